"""A study averaged over its seeds: the tidy frames behind every figure and table.

Each frame has one row per cell, arm and epoch (or checkpoint), in nats per token. With W held-out windows in G
passages, S seeds, x_w the loss of window w averaged over seeds and r_w = x_w - mean(x), the standard error is
that of a clustered mean, plus what seeds add:

    SE² = G / (G - 1) * sum_g (sum_{w in g} r_w)² / W² + var_s(mean_w) / S

A passage is a stretch of one document; where a record does not say which window is of which passage, every
window is its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from dlm.errors import UserError
from dlm.files import read_json
from dlm.report.curve import Array, Curve, common_epochs, interpolation
from dlm.report.study import Run, Study

Frame: TypeAlias = Any  # a pandas DataFrame, whose columns and rows a type checker cannot follow
MAIN = (
    "baseline",
    "regularised",
    "process",
    "dual",
    "",
)  # groups of arms; "mechanism" arms have figures of their own
POINT = ["cell", "arm", "epoch", "tokens", "flops", "nll", "se", "seeds"]


def to_frame(rows: Sequence[dict[str, Any]], columns: list[str] | None = None) -> Frame:
    """A DataFrame of rows; `columns` where there may be none."""
    return pd.DataFrame(rows, columns=columns)  # pyright: ignore[reportArgumentType]


def joined(frames: Sequence[Frame]) -> Frame:
    """Frames under one another, renumbered; empty ones left out."""
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def clustered_se(losses: Array, clusters: Sequence[int] | None = None) -> Array:
    """Standard error of the mean over the last axis of [..., W] losses that come in clusters; see the module."""
    count = losses.shape[-1]
    sums = losses - losses.mean(axis=-1, keepdims=True)
    if clusters is not None and len(clusters) == count:
        member = np.unique(np.asarray(clusters), return_inverse=True)[1]
        sums = sums @ np.eye(member.max() + 1)[member]
    groups = sums.shape[-1]
    if groups < 2:
        return np.full(losses.shape[:-1], np.nan)
    return np.sqrt(groups / (groups - 1) * (sums**2).sum(axis=-1)) / count


def mean_and_se(stack: Array, clusters: Sequence[int] | None) -> tuple[Array, Array]:
    """Mean and SE, each [...], of [S, ..., W] losses of the same windows under S seeds."""
    seeds = stack.shape[0]
    noise = np.var(stack.mean(axis=-1), axis=0, ddof=1) / seeds if seeds > 1 else 0.0
    within = clustered_se(stack.mean(axis=0), clusters)
    return stack.mean(axis=(0, -1)), np.sqrt(within**2 + noise)


def passages(runs: Sequence[Run], split: str = "report") -> list[int] | None:
    """The passage of each held-out window, where the records agree on it."""
    found = [(run.record.get("passages") or {}).get(split) for run in runs]
    return found[0] if found and found[0] and all(f == found[0] for f in found) else None


class Summary:
    """What a report draws: a study, its results, and the frames below. Everything is read or computed once."""

    def __init__(self, study: Study, results: dict[str, Any]) -> None:
        self.study, self.results = study, results
        self.order = {a["arm"]: i for i, a in enumerate(study.plan["arms"])}
        self.groups = {a["arm"]: a.get("group") or "" for a in study.plan["arms"]}
        self.cells = [c for c in study.plan["cells"] if any(r.cell == c["cell"] for r in study.compared)]
        self.members: dict[tuple[str, str], list[Run]] = {}
        for run in sorted(study.compared, key=lambda r: (r.seed, r.name)):
            self.members.setdefault((run.cell, run.arm), []).append(run)

    def label(self, arm: str) -> str:
        return self.study.label(arm)

    def arms(self, cell: str | None = None, main: bool = True) -> list[str]:
        """The arms with finished runs (in a cell), in the plan's order; `main` leaves the mechanism arms out."""
        found = {arm for where, arm in self.members if cell in (None, where)}
        return sorted((a for a in found if not main or self.groups.get(a, "") in MAIN), key=self.order.__getitem__)

    def unique(self, cell: str) -> int:
        return next(c["unique_tokens"] for c in self.study.plan["cells"] if c["cell"] == cell)

    def size(self, cell: str, arm: str) -> int | None:
        """Non-embedding parameters."""
        runs = self.members.get((cell, arm), [])
        return runs[0].record.get("params_non_embedding") if runs else None

    @cached_property
    def bits_per_nat(self) -> tuple[float, str]:
        """From nats per token to bits per character (or, where no record knows it, per token), and the unit."""
        scores = [run.record["likelihood"]["bound"] for run in self.study.compared]
        ratios = [s["bits_per_char"] / s["nats_per_token"] for s in scores if s.get("bits_per_char")]
        return (float(np.median(ratios)), "bits per character") if ratios else (1 / math.log(2), "bits per token")

    @cached_property
    def curves(self) -> Frame:
        """Held-out loss of the trunks: POINT, `tune`, and `best` ± `best_se`, the loss of the best so far."""
        rows: list[dict[str, Any]] = []
        for (cell, arm), runs in self.members.items():
            curves = [run.curve for run in runs if run.curve is not None]
            grid = common_epochs(curves)
            if not len(grid):  # no epoch was seen by every seed
                curves, grid = curves[:1], curves[0].epochs
            onto = [interpolation(c.epochs, grid) for c in curves]
            where = passages(runs)

            def over(values: list[Array], onto: list[Array] = onto) -> Array:
                return np.stack([m @ v for m, v in zip(onto, values, strict=True)])

            nll, se = mean_and_se(over([c.report for c in curves]), where)
            best, best_se = mean_and_se(over([c.report[c.best_so_far()] for c in curves]), where)
            tune = over([c.tune.mean(axis=1) for c in curves]).mean(axis=0)
            tokens, flops = (over([getattr(c, k) for c in curves]).mean(axis=0) for k in ("tokens", "flops"))
            columns = (grid, tokens, flops, nll, se, tune, best, best_se)
            names = ("epoch", "tokens", "flops", "nll", "se", "tune", "best", "best_se")
            rows += [
                {"cell": cell, "arm": arm, "seeds": len(curves)} | dict(zip(names, map(float, point), strict=True))
                for point in zip(*columns, strict=True)
            ]
        return to_frame(rows, [*POINT, "tune", "best", "best_se"])

    @cached_property
    def branches(self) -> Frame:
        """Held-out loss of the cooled-down branches that every seed of an arm has: POINT and `tune`."""
        rows = []
        for (cell, arm), runs in self.members.items():
            found = [{float(row["epoch"]): row for row in run.branches} for run in runs]
            found = [f for f in found if f]
            for epoch in sorted(set.intersection(*map(set, found))) if found else []:
                points = [f[epoch] for f in found]
                stack = np.stack([np.asarray(p["windows"]["report"], float) for p in points])
                if not np.isfinite(stack).all():
                    continue
                nll, se = mean_and_se(stack, passages(runs))
                rows.append(
                    {"cell": cell, "arm": arm, "epoch": epoch, "nll": float(nll), "se": float(se)}
                    | {k: float(np.mean([p[k] for p in points])) for k in ("tokens", "flops")}
                    | {"seeds": len(points), "tune": float(np.mean([p["tune/nll"] for p in points]))}
                )
        return to_frame(rows, [*POINT, "tune"])

    @cached_property
    def best(self) -> Frame:
        """The checkpoint chosen on tune: POINT, `kind` (trunk or cooled), `edge`, whether it is the last one, and
        `tune`, the loss it was chosen by.

        Each seed chooses its own trunk checkpoint; `epoch`, `tokens` and `flops` are means over seeds.
        """
        rows = []
        for (cell, arm), runs in self.members.items():
            losses = self.chosen(cell, arm, "trunk")
            curves = [run.curve for run in runs if run.curve is not None]
            rows.append(self._best_row(cell, arm, "trunk", losses, [_point(c) for c in curves]))
            if (cooled := self.chosen(cell, arm, "cooled")) is not None:
                picked = [(cooled_choice(r), r.branches) for r in runs if r.branches]
                points = [
                    {k: float(p[k]) for k in ("epoch", "tokens", "flops")}
                    | {"tune": float(p["tune/nll"])}
                    | {"edge": len(all_) > 1 and p["epoch"] == max(b["epoch"] for b in all_)}
                    for p, all_ in picked
                ]
                rows.append(self._best_row(cell, arm, "cooled", cooled, points))
        return to_frame(rows, [*POINT, "kind", "edge", "tune"])

    def _best_row(
        self, cell: str, arm: str, kind: str, losses: Any, points: list[dict[str, Any]]
    ) -> dict[str, Any]:
        nll, se = mean_and_se(losses, passages(self.members[cell, arm]))
        spent = {k: float(np.mean([p[k] for p in points])) for k in ("epoch", "tokens", "flops", "tune")}
        edge = all(p["edge"] for p in points)
        head = {"cell": cell, "arm": arm, "kind": kind, "nll": float(nll), "se": float(se)}
        return head | spent | {"seeds": len(points), "edge": edge}

    def chosen(self, cell: str, arm: str, kind: str) -> Array | None:
        """Loss [S, W] of every seed's chosen checkpoint on the report windows; None without one of this kind."""
        runs = self.members.get((cell, arm), [])
        if kind == "trunk":
            found = [run.curve.report[run.curve.best] for run in runs if run.curve is not None]
        else:
            found = [np.asarray(cooled_choice(run)["windows"]["report"], float) for run in runs if run.branches]
        return np.stack(found) if found else None

    def difference(self, cell: str, arm: str, other: str) -> dict[str, Any] | None:
        """Best loss of `other` minus that of `arm`, paired by window: positive where `arm` is ahead.

        {"value", "se", "kind", "seeds"}: cooled values where both arms have them, else the trunks'.
        """
        for kind in ("cooled", "trunk"):
            ours, theirs = (self.chosen(cell, a, kind) for a in (arm, other))
            if ours is None or theirs is None or ours.shape[1] != theirs.shape[1]:
                continue
            paired = theirs.mean(axis=0) - ours.mean(axis=0)
            noise = sum(np.var(a.mean(axis=1), ddof=1) / len(a) for a in (ours, theirs) if len(a) > 1)
            se = float(clustered_se(paired, passages([*self.members[cell, arm], *self.members[cell, other]])))
            seeds = min(len(ours), len(theirs))
            return {"value": float(paired.mean()), "se": math.hypot(se, noise**0.5), "kind": kind, "seeds": seeds}
        return None

    @cached_property
    def measures(self) -> Frame:
        """All measures: cell, arm, checkpoint, epoch, cooled, measure, value, se, chance, n, seeds; and, for what
        is measured on few windows, its `difference` from the reported score on the same ones.

        All seeds answer the same items, so SE² = (mean of the seeds' SE)² + var_s / S.
        """
        keys = ["cell", "arm", "checkpoint", "measure", "cooled"]
        rows = [
            {"cell": run.cell, "arm": run.arm, "cooled": bool(row.get("cooled"))}
            | {k: row.get(k) for k in ("checkpoint", "measure", "epoch", "value", "se", "chance", "n")}
            | {k: (row.get("details") or {}).get(k) for k in ("difference", "se_difference")}
            for run in self.study.compared
            for row in run.measures
            if row.get("value") is not None and math.isfinite(row["value"])
        ]
        numbers = ["epoch", "value", "se", "chance", "n", "difference", "se_difference"]
        frame = to_frame(rows, [*keys, *numbers])
        if frame.empty:
            return frame.assign(seeds=0)
        frame[numbers] = frame[numbers].astype(float)
        by = frame.groupby(keys, sort=False)
        out = by[numbers].mean()
        out["seeds"] = by["value"].count()
        between = (by["value"].var(ddof=1) / out["seeds"]).fillna(0.0)
        out["se"] = np.sqrt(out["se"].fillna(0.0) ** 2 + between).where(out["se"].notna() | (between > 0))
        return out.reset_index().sort_values("epoch", kind="stable")

    def measured(self, measure: str, cell: str, arm: str, cooled: bool = False) -> Frame:
        """One measure of an arm along its trunk, by epoch; the chosen checkpoint's own row stays out."""
        m = self.measures
        rows = m[(m.measure == measure) & (m.cell == cell) & (m.arm == arm) & (m.cooled == cooled)]
        return rows[rows.checkpoint != "best"].sort_values("epoch")

    @cached_property
    def fits(self) -> dict[str, Any] | None:
        """fits.json; None where the laws have not been fitted. Raises UserError if it is corrupt."""
        path = self.study.directory / "fits.json"
        if not path.is_file():
            return None
        found = read_json(path)
        for key in ("laws", "crossing_laws", "data_multiplier"):
            if not isinstance(found.get(key), list):
                raise UserError(f"{path}: has no list {key!r}: run stage=fit again")
        return found


def cooled_choice(run: Run) -> dict[str, Any]:
    """The cooled branch with the lowest loss on tune."""
    return min(run.branches, key=lambda row: row["tune/nll"])


def _point(curve: Curve) -> dict[str, Any]:
    k = curve.best
    spent = {"epoch": curve.epochs[k], "tokens": curve.tokens[k], "flops": curve.flops[k]}
    spent["tune"] = curve.tune[k].mean()
    return {name: float(value) for name, value in spent.items()} | {"edge": k == len(curve.epochs) - 1}
