"""Every fit that a study's runs carry: laws of the loss, crossing laws, data multipliers, beside published values.

`fit_study` returns what is written as `fits.json`; what the runs do not determine is "not identifiable", with the
reason and without a number. An arm's losses are its cooled-down branches where every cell has at least three of
them, else the trunk's evaluations from the first epoch on, at most `MOST_EPOCHS` per cell, evenly spread in log
epoch; means over seeds. Best losses are chosen on tune and read on report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlm.report.bootstrap import standard_error
from dlm.report.crossing import Crossing, x1, x2
from dlm.report.crossing_laws import BestLosses, crossing_cell, data_multiplier, fit_power_law
from dlm.report.curve import Array, Clusters, Curve, common_epochs, interpolation
from dlm.report.fitting import fit
from dlm.report.laws import LAWS, ONE_SIZE, Law, Points
from dlm.report.published import PUBLISHED
from dlm.report.study import Study

MOST_EPOCHS = 12
FEWEST_BRANCHES = 3
SOFTQ = {
    "law": "softq", "form": "", "arm": None, "status": "not fitted", "losses": None, "parameters": {},
    "why": "its formula (Xu et al. 2026, arXiv 2606.06888) was not at hand", "loo_rmse": None, "cells": 0,
    "points": 0, "predicted": [],
}  # fmt: skip


def fit_study(study: Study, *, seed: int = 0) -> dict[str, Any]:
    """All fits of a study, ready for JSON: `laws`, `crossing_laws`, `data_multiplier` and `published`.

    Raises UserError or ValueError where the study's runs cannot be compared.
    """
    return {
        "laws": [entry for arm in _arms(study) for entry in arm_laws(study, arm, seed=seed)] + [dict(SOFTQ)],
        "crossing_laws": crossing_laws(study),
        "data_multiplier": data_multipliers(study),
        "published": [value.to_json() for value in PUBLISHED],
        "runs": sorted(run.name for run in study.compared),
    }


def arm_laws(study: Study, arm: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """Every law fitted to one arm's losses; with one model size the laws without terms in it."""
    points, names, losses = arm_points(study, arm)
    if points is None:
        return []
    laws = LAWS if points.sizes > 1 else ONE_SIZE
    return [_law_entry(law, arm, points, names, losses, seed) for law in laws.values()]


def _law_entry(law: Law, arm: str, points: Points, names: Sequence[str], losses: str, seed: int) -> dict[str, Any]:
    found = fit(law, points, seed=seed)
    predicted = []
    if found.predicted is not None:
        predicted = [
            [float(observed), float(value), names[cell], float(epoch)]
            for observed, value, cell, epoch in zip(
                points.loss, found.predicted, points.cell, points.epochs, strict=True
            )
        ]
    return {
        "law": law.name,
        "form": law.form,
        "arm": arm,
        "status": found.status,
        "why": found.why,
        "losses": losses,
        "parameters": {
            name: {"value": value, "low": low, "high": high}
            for name, (value, low, high) in found.parameters.items()
        },
        "loo_rmse": found.loo_rmse,
        "cells": points.cells,
        "points": len(points.loss),
        "predicted": predicted,
    }


def arm_points(study: Study, arm: str) -> tuple[Points | None, list[str], str]:
    """The losses of one arm, its cells' names, and whether they are "cooled" or "trunk"; None without any."""
    found = {cell: study.curves(cell, arm) for cell in _cells(study)}
    found = {cell: curves for cell, curves in found.items() if curves}
    cooled = bool(found) and all(
        curve.cooled is not None and len(curve.cooled.epochs) >= FEWEST_BRANCHES
        for curves in found.values()
        for curve in curves
    )
    rows, names = [], []
    for cell, curves in found.items():
        used = [c.cooled for c in curves if c.cooled is not None] if cooled else curves
        grid = common_epochs(used)
        grid = spread(grid[grid >= 1])
        if not len(grid):
            continue
        loss = np.mean([interpolation(c.epochs, grid) @ c.report_clusters.mean for c in used], axis=0)
        size = float(study.of(cell, arm)[0].record["params_non_embedding"])
        rows += [(size, _unique(study, cell), e, x, len(names)) for e, x in zip(grid, loss, strict=True)]
        names.append(cell)
    if not rows:
        return None, [], "trunk"
    size, unique, epochs, losses, numbers = np.array(rows, float).T
    return Points(size, unique, epochs, losses, numbers.astype(int)), names, "cooled" if cooled else "trunk"


def spread(grid: Array) -> Array:
    """At most MOST_EPOCHS of an increasing grid, evenly spread in log epoch, ends included."""
    if len(grid) <= MOST_EPOCHS:
        return grid
    wanted = np.linspace(np.log(grid[0]), np.log(grid[-1]), MOST_EPOCHS)
    return grid[np.unique(np.abs(np.log(grid)[None, :] - wanted[:, None]).argmin(axis=1))]


def crossing_laws(study: Study) -> list[dict[str, Any]]:
    """X1 in epochs and X2 in FLOPs against unique tokens, for every process, baseline and model size."""
    entries = []
    for process, baseline in _pairs(study):
        for size, cells in _sizes(study).items():
            crossings: list[tuple[float, Crossing, Crossing]] = []
            for cell in cells:
                ours, theirs = study.curves(cell, process), study.curves(cell, baseline)
                if ours and theirs:
                    crossings.append((_unique(study, cell), x1(ours, theirs), x2(ours, theirs)))
            seen = {
                "X1": [crossing_cell(unique, same, "epoch") for unique, same, _ in crossings],
                "X2": [crossing_cell(unique, so_far, "flops") for unique, _, so_far in crossings],
            }
            for kind, found in seen.items():
                law = fit_power_law(found)
                entries.append(
                    {
                        "kind": kind,
                        "process": process,
                        "baseline": baseline,
                        "size": size,
                        "unit": "epochs" if kind == "X1" else "FLOPs",
                        "status": law.status,
                        "why": law.why,
                        "a": law.a,
                        "b": law.b,
                        "low": law.low,
                        "high": law.high,
                        "sigma": law.sigma,
                        "cells": [cell.to_json() for cell in found],
                    }
                )
    return entries


def data_multipliers(study: Study) -> list[dict[str, Any]]:
    """U_baseline / U_process at equal best loss, for every process, baseline and model size.

    Cooled-down best losses where both arms have them in every cell, else the trunk's.
    """
    entries = []
    for process, baseline in _pairs(study):
        for size, cells in _sizes(study).items():
            arms = [{c: study.curves(c, arm) for c in cells} for arm in (process, baseline)]
            curves = [curve for arm in arms for found in arm.values() for curve in found]
            cooled = bool(curves) and all(curve.cooled is not None for curve in curves)
            losses = [best_losses(study, arm, cooled) for arm in arms]
            entries.append(
                {"process": process, "baseline": baseline, "size": size, "losses": "cooled" if cooled else "trunk"}
                | data_multiplier(*losses)
            )
    return entries


def best_losses(study: Study, arm: dict[str, list[Curve]], cooled: bool) -> BestLosses:
    """The best loss at each budget: chosen on tune, read on report, averaged over seeds."""
    rows = []
    for cell, curves in arm.items():
        used = [c.cooled for c in curves if c.cooled is not None] if cooled else curves
        if used:
            chosen = [c.report_clusters.sums[[c.best]] for c in used]
            counts = used[0].report_clusters.counts
            mean = Clusters(np.mean(chosen, axis=0), counts)
            se = standard_error(mean, [x.sum(axis=1) / counts.sum() for x in chosen])
            rows.append((_unique(study, cell), float(mean.mean[0]), float(se[0])))
    unique, loss, se = np.array(sorted(rows), float).reshape(-1, 3).T
    return BestLosses(unique, loss, se)


def _arms(study: Study) -> list[str]:
    return [arm["arm"] for arm in study.plan["arms"]]


def _cells(study: Study) -> list[str]:
    return [cell["cell"] for cell in study.plan["cells"]]


def _unique(study: Study, cell: str) -> float:
    return float(next(c["unique_tokens"] for c in study.plan["cells"] if c["cell"] == cell))


def _sizes(study: Study) -> dict[str | None, list[str]]:
    """Cells by the label of their model size; one without label where the plan names none."""
    found: dict[str | None, list[str]] = {}
    for cell in study.plan["cells"]:
        found.setdefault(cell.get("size"), []).append(cell["cell"])
    return found


def _pairs(study: Study) -> list[tuple[str, str]]:
    """Every process with every baseline; the other baselines are set against the first as well."""
    baselines = [arm["arm"] for arm in study.plan["arms"] if arm["baseline"]]
    processes = [arm["arm"] for arm in study.plan["arms"] if not arm["baseline"]]
    return [(p, b) for p in processes for b in baselines] + [(other, baselines[0]) for other in baselines[1:]]
