"""From the files of a study to its runs, their curves and one tidy table. No torch, no network.

A study is a directory: `plan.json` says what was to be run, and `runs/<run>/` holds for each run its
`config.yaml`, an append-only `metrics.jsonl`, the losses per held-out window in `windows.jsonl`, and, once
finished, `record.json`. A run without a record is unfinished: it is listed as missing, never dropped and never
compared. Losses are nats per token.
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
from dlm.report.curve import Curve


def latest(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """The last row for each value of `keys`, sorted by it: a resumed run logs some steps again."""
    kept = {tuple(row[key] for key in keys): row for row in rows if all(key in row for key in keys)}
    return [kept[key] for key in sorted(kept)]


@dataclass(frozen=True, eq=False)
class Run:
    """One planned run and what its directory holds; `record` is empty until it has finished."""

    name: str
    cell: str
    arm: str
    seed: int
    planned: dict[str, Any]
    evaluations: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    record: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def load(cls, directory: Path, planned: dict[str, Any]) -> Run:
        """Read one run's directory. Raises UserError for corrupt files."""
        config = directory / "config.yaml"
        record = directory / "record.json"
        return cls(
            name=planned["run"],
            cell=planned["cell"],
            arm=planned["arm"],
            seed=int(planned["seed"]),
            planned=planned,
            evaluations=latest((r for r in read_lines(directory / "metrics.jsonl") if "report/nll" in r), "step"),
            windows=latest(read_lines(directory / "windows.jsonl"), "step", "split"),
            record=read_json(record) if record.is_file() else {},
            config=(yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.is_file() else {},
        )

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

    @cached_property
    def curve(self) -> Curve | None:
        """The evaluations with losses per window on both splits; None where there are none, or not all finite."""
        by_step = {(row["step"], row["split"]): row["nll"] for row in self.windows}
        rows = [
            row
            for row in self.evaluations
            if row["epoch"] > 0 and all((row["step"], split) in by_step for split in ("tune", "report"))
        ]
        if not rows:
            return None
        widths = {(len(by_step[r["step"], "tune"]), len(by_step[r["step"], "report"])) for r in rows}
        if len(widths) > 1:
            raise UserError(f"{self.name}: windows.jsonl: the number of held-out windows changes between steps")
        tune, report = (np.array([by_step[r["step"], s] for r in rows], float) for s in ("tune", "report"))
        if not (np.isfinite(tune).all() and np.isfinite(report).all()):
            return None
        epochs, tokens, flops = (
            np.array([row[key] for row in rows], float) for key in ("epoch", "tokens", "flops")
        )
        stopped = self.record.get("stopped")
        return Curve(self.name, self.seed, epochs, tokens, flops, tune, report, stopped)


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
        return sorted(
            (r for r in self.compared if r.cell == cell and r.arm == arm), key=lambda r: (r.seed, r.name)
        )

    def curves(self, cell: str, arm: str) -> list[Curve]:
        """The curves of `of`."""
        return [run.curve for run in self.of(cell, arm) if run.curve is not None]

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


def load_study(directory: Path) -> Study:
    """Read a study directory. Raises UserError, in one line, where it or its plan is missing or corrupt."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: no such study")
    plan = read_json(directory / "plan.json")
    for key in ("study", "scale", "cells", "arms", "runs"):
        if key not in plan:
            raise UserError(f"{directory / 'plan.json'}: has no {key!r}")
    study = Study(directory, plan, [Run.load(directory / "runs" / p["run"], p) for p in plan["runs"]])
    _ = study.fingerprint  # refuse mixed data before anything is drawn
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
