"""Tasks of lm-evaluation-harness on a run.

    python -m dlm.harness run=DIR tasks=hellaswag,arc_easy,piqa,sciq,lambada_openai,blimp draws=32
    python -m dlm.harness run=DIR tasks=my_task include=FOLDER likelihood=left_to_right checkpoint=cooled-96

A task that has been scored with the same settings is not scored again. Needs `pip install 'dlm[harness]'`, and the
network for the documents of a task that is used for the first time.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm import config
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.harness.scorer import TextScorer
from dlm.measure.run import place
from dlm.scoring import content_hash


@dataclass
class Command:
    """The command line."""

    run: str = ""
    tasks: str = ""  # names of tasks, groups or tags of the harness, separated by commas
    checkpoint: str = "best"
    likelihood: str | None = None  # of dlm/likelihood/kinds.py; null: exact if autoregressive, else the bound
    draws: int = 32  # of a bound, per continuation
    tail: str = "masked"  # what a mask predictor reads behind a text: masked, none
    limit: int | None = None  # documents of each task
    shots: int | None = None  # examples before each question; null: as the task has it
    include: str | None = None  # a folder of task files, instead of the harness's own
    rows: int = 64  # sequences that the network reads at a time


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    if not command.run or not command.tasks:
        raise UserError("which run, which tasks? python -m dlm.harness run=DIR tasks=hellaswag,piqa")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed: pip install 'dlm[harness]'")
    for name in ("draws", "limit", "rows"):
        if (value := getattr(command, name)) is not None and value < 1:
            raise UserError(f"{name}={value} must be positive")
    from dlm.harness import tasks  # imports the harness: seconds

    model, data, run = load_run(Path(command.run), command.checkpoint)
    tail: Any = command.tail
    scorer = TextScorer(model, data.source, command.likelihood, command.draws, tail, command.rows)
    manager = tasks.manager(command.include)
    names = tasks.known([name.strip() for name in command.tasks.split(",")], manager)
    checkpoint = {"checkpoint": command.checkpoint, **place(run, command.checkpoint, data)}
    weights = content_hash(run.checkpoint(command.checkpoint))[:16]
    for name in names:
        row = tasks.run_task(name, manager, scorer, run.path, checkpoint, weights, command.limit, command.shots)
        error = "" if row["se"] is None else f" ± {row['se']:.4f}"
        chance = "" if row["chance"] is None else f", by chance {row['chance']:.4f}"
        metric = f"{row['details']['metric']} {row['value']:.4f}{error}"
        print(f"{name:<24}{metric} (n = {row['n']}{chance}; {scorer.name})", flush=True)


if __name__ == "__main__":
    config.entry(main)
