"""From the files of a study to its runs, their curves and one tidy table. No torch, no network.

A study is a directory: `plan.json` says what was to be run, and `runs/<run>/` holds for each run its
`config.yaml`, an append-only `metrics.jsonl`, the losses per held-out window in `windows.jsonl`, the cooled-down
branches in `branches.jsonl`, what was measured on its checkpoints in `measures.jsonl`, and, once finished,
`record.json`. A run without a record is unfinished: it is listed as missing, never dropped and never compared.
Losses are nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dlm.errors import UserError
from dlm.files import read_json, read_lines
from dlm.report.curve import Curve, ProbeCurve

SPLITS = ("tune", "report")
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def latest(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """The last row for each value of `keys`, sorted by it: a resumed run logs some steps again."""
    kept = {tuple(row[key] for key in keys): row for row in rows if all(key in row for key in keys)}
    return [kept[key] for key in sorted(kept)]


@dataclass(frozen=True, eq=False)
class Run:
    """One planned run and what its directory holds; `record` is empty and `curve` None until it has finished.

    `evaluations`, `branches` and `measures` are the rows of `metrics.jsonl`, `branches.jsonl` and
    `measures.jsonl`, the last one of each step, of each epoch, and of each checkpoint and measure.
    """

    name: str
    cell: str
    arm: str
    seed: int
    directory: Path
    planned: dict[str, Any]
    evaluations: list[dict[str, Any]] = field(repr=False)
    branches: list[dict[str, Any]] = field(repr=False)
    measures: list[dict[str, Any]] = field(repr=False)
    record: dict[str, Any] = field(repr=False)
    curve: Curve | None = field(repr=False)

    @classmethod
    def load(cls, directory: Path, planned: dict[str, Any]) -> Run:
        """Read one run's directory. Raises UserError for corrupt files."""
        found = directory / "record.json"
        record = read_json(found) if found.is_file() else {}
        rows = read_lines(directory / "metrics.jsonl")
        evaluations = latest((row for row in rows if "report/nll" in row), "step")
        branches = latest(read_lines(directory / "branches.jsonl"), "epoch")
        name, seed = planned["run"], int(planned["seed"])
        try:
            curve = run_curve(name, seed, directory, evaluations, branches, record) if record else None
        except ValueError as error:
            raise UserError(f"{directory}: {error}") from error
        return cls(
            name=name,
            cell=planned["cell"],
            arm=planned["arm"],
            seed=seed,
            directory=directory,
            planned=planned,
            evaluations=evaluations,
            branches=branches,
            measures=latest(read_lines(directory / "measures.jsonl"), "checkpoint", "measure"),
            record=record,
            curve=curve,
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty where there is none yet. Raises UserError where it is not YAML."""
        path = self.directory / "config.yaml"
        if not path.is_file():
            return {}
        try:
            return yaml.load(path.read_text(encoding="utf-8"), Loader=YAML) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error

    @property
    def problem(self) -> str | None:
        """Why the run cannot be compared; None if it can."""
        if not self.record and not self.evaluations:
            return "not started"
        if not self.record:
            return f"unfinished: last evaluation at epoch {self.evaluations[-1]['epoch']:.3g}"
        if self.curve is None:
            return "finished, but without finite losses per held-out window"
        return None

    @property
    def code(self) -> str:
        """The version of the code that decided the run's numbers."""
        return str(self.record.get("code") or "unknown")

    def probe(self, measure: str) -> ProbeCurve | None:
        """A measure at the checkpoints of the trunk, by epoch; None without any."""
        rows = [
            row
            for row in self.measures
            if row["measure"] == measure
            and row["checkpoint"].startswith("epoch-")
            and not row.get("cooled")
            and row.get("epoch", 0) > 0
            and math.isfinite(math.nan if row.get("value") is None else row["value"])
        ]
        if not rows or self.curve is None:
            return None
        rows.sort(key=lambda row: row["epoch"])
        epochs, values = (np.array([row[key] for row in rows], float) for key in ("epoch", "value"))
        tokens, flops = (np.interp(epochs, self.curve.epochs, x) for x in (self.curve.tokens, self.curve.flops))
        se = np.array([row.get("se") or 0.0 for row in rows], float)
        items = min(int(row.get("n") or 0) for row in rows)
        return ProbeCurve(self.name, self.seed, measure, epochs, tokens, flops, values, se, items)


def run_curve(
    name: str,
    seed: int,
    directory: Path,
    evaluations: list[dict[str, Any]],
    branches: list[dict[str, Any]],
    record: dict[str, Any],
) -> Curve | None:
    """A finished run's evaluations with losses per window on both splits, and its cooled-down branches.

    None where there are none, or not all finite. Raises ValueError where the number of windows changes or does not
    fit the record's passages.
    """
    windows = {(row["step"], row["split"]): row["nll"] for row in read_lines(directory / "windows.jsonl")}
    rows = [
        row | {"windows": {split: windows[row["step"], split] for split in SPLITS}}
        for row in evaluations
        if row["epoch"] > 0 and all((row["step"], split) in windows for split in SPLITS)
    ]
    found = record.get("passages") or {}
    passages = {split: np.asarray(found[split]) if found.get(split) else None for split in SPLITS}

    def curve(rows: list[dict[str, Any]], cooled: Curve | None) -> Curve | None:
        if not rows:
            return None
        if len({tuple(len(row["windows"][split]) for split in SPLITS) for row in rows}) > 1:
            raise ValueError("the number of held-out windows changes between steps")
        tune, report = (np.array([row["windows"][split] for row in rows], float) for split in SPLITS)
        if not (np.isfinite(tune).all() and np.isfinite(report).all()):
            return None
        epochs, tokens, flops = (np.array([r[key] for r in rows], float) for key in ("epoch", "tokens", "flops"))
        stopped = record.get("stopped")
        return Curve(
            name, seed, epochs, tokens, flops, tune, report, stopped, passages["tune"], passages["report"], cooled
        )

    return curve(rows, curve([row for row in branches if row.get("windows")], None))


@dataclass(frozen=True, eq=False)
class Study:
    """A study directory, read once. `runs` are all planned runs, in the order of the plan."""

    directory: Path
    plan: dict[str, Any]
    runs: list[Run] = field(repr=False)

    @property
    def compared(self) -> list[Run]:
        """The finished runs with a curve."""
        return [run for run in self.runs if run.problem is None]

    @property
    def missing(self) -> list[Run]:
        return [run for run in self.runs if run.problem is not None]

    @property
    def unplanned(self) -> list[str]:
        """Run directories the plan does not know, say from an earlier plan: not read, only named."""
        known = {run.name for run in self.runs}
        return sorted(p.name for p in (self.directory / "runs").glob("*") if p.is_dir() and p.name not in known)

    @property
    def again(self) -> str:
        """The command that makes this study's report again, from its files."""
        return f"python experiments/{self.plan['study']}/report.py {self.directory}"

    def label(self, arm: str) -> str:
        return next((a["label"] for a in self.plan["arms"] if a["arm"] == arm), arm)

    def of(self, cell: str, arm: str) -> list[Run]:
        """The comparable runs of one arm in one cell, by seed."""
        return self.members.get((cell, arm), [])

    @cached_property
    def members(self) -> dict[tuple[str, str], list[Run]]:
        """The comparable runs by cell and arm."""
        found: dict[tuple[str, str], list[Run]] = {}
        for run in sorted(self.compared, key=lambda r: (r.seed, r.name)):
            found.setdefault((run.cell, run.arm), []).append(run)
        return found

    def curves(self, cell: str, arm: str) -> list[Curve]:
        """The curves of `of`."""
        return [run.curve for run in self.of(cell, arm) if run.curve is not None]

    def probes(self, cell: str, arm: str, measure: str) -> list[ProbeCurve]:
        """A measure by epoch, of every comparable run of `of` that has it."""
        found = (run.probe(measure) for run in self.of(cell, arm))
        return [probe for probe in found if probe is not None]

    @cached_property
    def code(self) -> str | None:
        """The code version all finished runs share; None without any.

        Raises UserError where the versions differ, unless the plan says `any_code`: numbers of different code are
        not comparable.
        """
        found: dict[str, str] = {}
        for run in self.runs:
            if run.record:
                found.setdefault(run.code, run.name)
        if len(found) > 1 and not self.plan.get("any_code"):
            (one, first), (two, second) = list(found.items())[:2]
            raise UserError(
                f"{self.directory}: runs of different code cannot be compared: {first} is of code {one}, {second} "
                f"of code {two}; run the older ones again, or set any_code in plan.json"
            )
        return "mixed" if len(found) > 1 else next(iter(found), None)

    @cached_property
    def fingerprint(self) -> str | None:
        """The data all finished runs share. Raises UserError where they were not trained on the same data."""
        found: dict[str, str] = {}
        for run in self.runs:
            if run.record:
                found.setdefault(str(run.record.get("data", {}).get("fingerprint")), run.name)
        if len(found) > 1:
            listed = ", ".join(f"{run} has {mark}" for mark, run in found.items())
            raise UserError(f"{self.directory}: runs on different data cannot be compared: {listed}")
        return next(iter(found), None)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Tidy: one row per run and evaluation; unfinished runs included and marked."""
        unique = {cell["cell"]: cell["unique_tokens"] for cell in self.plan["cells"]}
        rows = [
            {
                "run": run.name,
                "cell": run.cell,
                "unique_tokens": unique.get(run.cell),
                "arm": run.arm,
                "seed": run.seed,
                "finished": run.problem is None,
            }
            | {key.replace("/", "_"): row.get(key) for key in EVALUATION}
            for run in self.runs
            for row in run.evaluations
        ]
        head = ["run", "cell", "unique_tokens", "arm", "seed", "finished"]
        return pd.DataFrame(rows, columns=head + [key.replace("/", "_") for key in EVALUATION])


EVALUATION = (
    ["step", "epoch", "tokens", "targets", "flops", "seconds"]
    + [f"{split}/{what}" for split in ("tune", "report") for what in ("nll", "se")]
)  # fmt: skip


def read_plan(directory: Path) -> dict[str, Any]:
    """The plan of a study directory. Raises UserError, in one line, where either is missing or corrupt."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: no such study")
    plan = read_json(directory / "plan.json")
    for key in ("study", "scale", "cells", "arms", "runs"):
        if key not in plan:
            raise UserError(f"{directory / 'plan.json'}: has no {key!r}")
    return plan


def load_study(directory: Path) -> Study:
    """Read a study directory. Raises UserError, in one line, where it or its plan is missing or corrupt."""
    plan = read_plan(directory)
    study = Study(directory, plan, [Run.load(directory / "runs" / p["run"], p) for p in plan["runs"]])
    _ = study.fingerprint, study.code  # refuse mixed data and mixed code before anything is drawn
    return study


def best(study: Study, cell: str, arm: str) -> dict[str, Any]:
    """The likelihoods of an arm in a cell, chosen on tune and measured on report, averaged over seeds.

    All seeds see the same windows, so se² = (mean of the seeds' se)² + var_s / S.
    """
    runs = study.of(cell, arm)
    scores = [run.record["likelihood"] for run in runs]

    def average(part: str) -> dict[str, Any] | None:
        found = [score[part] for score in scores if score.get(part)]
        if not found:
            return None
        spread = {}
        for value, se in (("nats_per_token", "se"), ("bits_per_char", "se_bits")):
            values = [f[value] for f in found]
            seeds = np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0
            spread[value] = float(np.mean(values))
            spread[se] = math.hypot(float(np.mean([f[se] for f in found])), math.sqrt(seeds))
        return {
            "kind": found[0]["kind"],
            "windows": found[0].get("windows"),
            "draws": found[0].get("draws"),
        } | spread

    return {
        "cell": cell,
        "arm": arm,
        "seeds": len(runs),
        "epoch": float(np.mean([run.record["best"]["epoch"] for run in runs])),
        "exact": runs[0].record["bound_kind"] == "exact",
        "bound": average("bound"),
        "left_to_right": average("left_to_right"),
        "bound_same_windows": average("bound_same_windows"),
    }


def unit(study: Study) -> str:
    """ "nats per character" where one token is one character, by the records' own conversion."""
    scores = [run.record["likelihood"]["bound"] for run in study.compared]
    ratios = [s["bits_per_char"] * math.log(2) / s["nats_per_token"] for s in scores]
    return "nats per character" if ratios and np.allclose(ratios, 1, atol=2e-3) else "nats per token"
