"""From the files of a study of tasks to its runs and what they decoded. No torch, no network.

Beside what every study has (dlm/report/study.py) a run of a task holds `decodings.jsonl` (one row per checkpoint,
split, way of decoding and seed), `boards.json` (single boards, cell by cell) and `imbalance.jsonl` (errors of its
conditionals). Any of them may be missing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlm.errors import UserError
from dlm.files import read_lines
from dlm.report.study import Run, Study, latest, read_plan

SETTING = {  # the factors of a decoding, and what stands for one that a row does not name
    "policy": "random", "score_scale": "probability", "noise": "none", "noise_scale": 0.0, "anneal": "constant",
    "selection": "state", "reveal": "equal", "per_step": 0, "steps": 0, "values": "greedy",
    "remask": False, "ties": "random",
}  # fmt: skip
TASKS = {"sudoku": "Sudoku", "zebra": "Zebra", "nae_sat": "NAE-SAT"}
KEYS = ("checkpoint", "split", "sampler", *SETTING)
NUMBERS = ("epoch", "step", "puzzles", "solved", "cells", "right", "nfe", "tokens_per_step", "seconds")


@dataclass(frozen=True, eq=False)
class TaskRun(Run):
    """A run whose answers are judged, or one on text beside it; compared once it has finished."""

    @property
    def problem(self) -> str | None:
        if self.record:
            return None
        rows = self.evaluations
        return f"unfinished: last evaluation at epoch {rows[-1]['epoch']:.3g}" if rows else "not started"

    @cached_property
    def audit(self) -> dict[str, Any]:
        return (self.record.get("data") or {}).get("audit") or {}

    @property
    def task(self) -> str | None:
        """ "sudoku", "zebra", "nae_sat"; None for text."""
        name = str(self.audit.get("name") or "").split(" ")[0]
        return self.audit.get("task") or (name if name in TASKS else None)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What decides the examples: the audit, and the settings of the data where it is silent."""
        return (self.config.get("data") or {}) | self.audit

    @cached_property
    def decodings(self) -> list[dict[str, Any]]:
        """The rows of `decodings.jsonl`, the last of each key."""
        return latest(read_lines(self.directory / "decodings.jsonl"), "key")

    @cached_property
    def imbalance(self) -> list[dict[str, Any]]:
        return read_lines(self.directory / "imbalance.jsonl")

    @cached_property
    def boards(self) -> list[dict[str, Any]]:
        """Boards that were solved cell by cell. Raises UserError where the file is corrupt."""
        path = self.directory / "boards.json"
        if not path.is_file():
            return []
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
        return found if isinstance(found, list) else found.get("boards", [])


class TaskStudy(Study):
    """A study whose cells are tasks: each cell has its own data, so runs are compared within a cell only."""

    @cached_property
    def fingerprint(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The data of all finished runs, by cell: arms may write the same puzzles in different formats."""
        found = dict.fromkeys(str((run.record.get("data") or {}).get("fingerprint")) for run in self.compared)
        return ", ".join(found) or None

    @property
    def tasks(self) -> list[TaskRun]:
        """The finished runs, in the order of the plan."""
        return [run for run in self.compared if isinstance(run, TaskRun)]

    def family(self, cell: str, arm: str) -> list[TaskRun]:
        """The finished runs of one arm in one cell, by seed."""
        return [run for run in self.of(cell, arm) if isinstance(run, TaskRun)]

    @cached_property
    def decodings(self) -> pd.DataFrame:
        """One row per decoding of a finished run: what was trained, what was asked for, and what came out.

        Columns: run, cell, arm, seed (of the training), task, size, KEYS, decode_seed, NUMBERS, accuracy, and
        `row`, the row itself. The factors that do not apply hold SETTING's values. Of a decoding of fewer and
        one of more puzzles the larger counts.
        """
        rows = [flattened(run, row) for run in self.tasks for row in run.decodings if row.get("puzzles")]
        head = ["run", "cell", "arm", "seed", "task", "size", *KEYS, "decode_seed", *NUMBERS, "accuracy", "row"]
        table = pd.DataFrame(rows, columns=pd.Index(head)).sort_values("puzzles", kind="stable")
        return table.drop_duplicates(["run", *KEYS, "decode_seed"], keep="last").sort_index()


def flattened(run: TaskRun, row: dict[str, Any]) -> dict[str, Any]:
    """A decoding as a row of the table."""
    given = row.get("setting") or {}
    setting = {key: other if given.get(key) is None else given[key] for key, other in SETTING.items()}
    if row.get("sampler") == "autoregressive":
        setting["policy"] = "autoregressive"
    if setting["noise"] == "none":
        setting |= {"noise_scale": 0.0, "anneal": "constant"}
    elif given.get("noise_scale") is None:
        setting["noise_scale"] = 1.0
    head = {"run": run.name, "cell": run.cell, "arm": run.arm, "seed": run.seed, "task": run.task}
    numbers = {key: row[key] if row.get(key) is not None else math.nan for key in NUMBERS}
    what = {key: row.get(key) for key in ("checkpoint", "split", "sampler")}
    return (
        head | {"size": size_of(run)} | what | setting | {"decode_seed": row.get("seed", 0)}
        | numbers | {"accuracy": row["solved"] / row["puzzles"], "row": row}
    )  # fmt: skip


def size_of(run: TaskRun) -> str:
    """How large a run's puzzles are, in words: "9×9", "20 latents, 280 observations"; the cell where unknown."""
    data = run.data
    if run.task == "nae_sat" and data.get("latents"):
        return f"{data['latents']} latents, {data.get('observations', '?')} observations"
    if run.task == "zebra" and data.get("houses"):
        return f"{data['houses']}×{data.get('attributes', '?')}"
    side = side_of(data)
    return f"{side}×{side}" if side and run.task == "sudoku" else str(data.get("size") or run.cell)


def side_of(data: dict[str, Any]) -> int | None:
    """The side of a Sudoku: its `size`, or the product of its box's sides."""
    size = data.get("size")
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        first, _, second = size.lower().replace("×", "x").partition("x")
        if first.isdigit():
            return int(first) if second in ("", first) else int(first) * int(second or 1)
    box = data.get("box")
    return math.prod(box) if isinstance(box, list) else None


def outcomes(row: dict[str, Any]) -> np.ndarray:
    """Which puzzles were solved, bool [puzzles]. Raises UserError where the row's bits do not fit its counts."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["outcomes"]), np.uint8))
    found = bits[: row["puzzles"]].astype(bool)
    if len(found) < row["puzzles"] or found.sum() != row["solved"]:
        raise UserError(f"a decoding's outcomes do not fit its {row['solved']} of {row['puzzles']} solved puzzles")
    return found


def load_tasks(directory: Path) -> TaskStudy:
    """Read a study directory. Raises UserError, in one line, where it or its plan is missing or corrupt."""
    plan = read_plan(directory)
    runs = [TaskRun.load(directory / "runs" / p["run"], p) for p in plan["runs"]]
    study = TaskStudy(directory, plan, list(runs))
    _ = study.code  # refuse mixed code before anything is drawn
    return study
