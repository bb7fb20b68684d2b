"""A study from plan to report: `python -m dlm.experiment name=super-data-learners scale=laptop`.

Every run is a process of its own, or a SLURM job. A second call does only what is missing; a failed run never
costs another; the report shows what is there. The stages are in dlm.study. A study that has a measure.py plans no
runs: it is a laboratory (dlm.laboratory).
"""

import sys

from dlm import config, laboratory
from dlm.study.command import Command
from dlm.study.stages import run_study

INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    if laboratory.is_laboratory(command):
        laboratory.run(command)
        return
    try:
        run_study(command)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    config.entry(main)
