"""Measure the checkpoints of a finished run.

    python -m dlm.measure run=DIR                                            every measure of every checkpoint
    python -m dlm.measure run=DIR measures=continuation,top1 checkpoints=epoch-32,best items=200
    python -m dlm.measure run=DIR measures=left_to_right,mixture chain_at=all chain_windows=16

A line is printed, and a row appended to `DIR/measures.jsonl`, as soon as a measure is made; what is there already
for the same weights and settings is not made again, and a killed command continues.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from dlm import config
from dlm.errors import UserError
from dlm.measure.run import measure_run
from dlm.measure.subject import Settings


@dataclass
class Command(Settings):
    """The command line: the settings, and what they are for."""

    run: str = ""
    measures: str = "all"  # or names, separated by commas
    checkpoints: str = "all"  # or names: best, epoch-32, cooled-96


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    if not command.run:
        raise UserError("which run? python -m dlm.measure run=outputs/<study>/<scale>/runs/<run>")
    settings = Settings(**{f.name: getattr(command, f.name) for f in fields(Settings)})
    rows = measure_run(Path(command.run), settings, command.measures, command.checkpoints)
    print(f"{len(rows)} measures in {Path(command.run) / 'measures.jsonl'}")


if __name__ == "__main__":
    config.entry(main)
