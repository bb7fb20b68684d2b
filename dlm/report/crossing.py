"""Where one held-out loss curve crosses another, and how sure that is.

Two different crossings are called "the crossover" in the literature on data-scarce training. They can lie an
order of magnitude apart, so both are computed. Write L_P(e) for the loss of a process P after e epochs, L_B(e)
for a baseline's.

**X1, at the same epoch.**  d(e) = L_B(e) - L_P(e).  X1 is the first epoch at which d changes sign from below and
then stays positive until two consecutive evaluations have had d > 2 SE(d). It asks only that the baseline
over-fits.

**X2, best so far.**  After every evaluation the checkpoint with the lowest *tune* loss so far is chosen, and its
*report* loss counts: L*_P(e).  d(e) = min L_B - L*_P(e), where the baseline's best is likewise chosen on tune,
over its **whole** run.  X2 is the first upward change of sign of d; it is clear once one evaluation within that
excursion has d > 2 SE(d). `x2(..., matched=True)` is the weaker variant in which the baseline's best is taken
over what it had spent by the same compute; `x2(..., cooled=True)` compares cooled-down branches only, at the
epochs where they end, because cooling down a model is worth as much as many epochs and may hurt an over-fitted
one.

**X3, a probe.**  d(e) = A_P(e) - A_B(e) for the accuracy A of a probe, located and confirmed as X1.

Every location is found by linear interpolation of d in log e. Losses are kept per held-out window, and all runs
see the same windows with the same random numbers, so SE(d) is paired and robust to the resemblance of windows
from one passage; with several seeds the variance of the average over seeds is added (`bootstrap.standard_error`).

The interval is the percentile bootstrap of the whole procedure (selection on tune included; SE(d) held fixed):
passages are resampled jointly for all runs, seeds within each arm. A resample without a crossing counts as +∞, so
an interval may be open to the right; an arm that never crosses is right-censored, "> e_max", never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlm.report.bootstrap import best_report_loss, over_seeds, report_loss, standard_error, weights
from dlm.report.curve import Array, Clusters, Curve, ProbeCurve, common_epochs, interpolation
from dlm.report.upcrossing import CLEAR, Status, first_upcrossings, upcrossing

CONFIRMATIONS = {"X1": 2, "X2": 1, "X3": 2}


@dataclass(frozen=True)
class Crossing:
    """One crossing of `process` below `baseline`, ready for JSON through `to_json`.

    `epoch` is None when nothing was seen up to `observed_to`. `low` and `high` bound the 95 % bootstrap interval;
    None stands for "beyond `observed_to`". `share` is the part of the resamples in which the curves cross at all.
    `clear_epoch` is the evaluation at which the crossing was confirmed. `difference` and `se` are d and SE(d) at
    the last evaluation (nats per token, for X3 a share; positive: the process is ahead). `flops` and `tokens` are
    what the process has spent at `epoch`; `observed_flops` what it had spent by `observed_to`, where a crossing
    that was not reached is censored; `baseline_flops` what the baseline had spent by its own best,
    `baseline_epoch`.
    `windows` come from `passages` passages; for X3 both count the probe's items.
    """

    kind: str
    process: str
    baseline: str
    status: Status
    epoch: float | None
    low: float | None
    high: float | None
    share: float
    clear_epoch: float | None
    observed_to: float
    difference: float
    se: float
    flops: float | None
    tokens: float | None
    baseline_epoch: float
    baseline_flops: float
    windows: int
    seeds: tuple[int, int]
    notes: tuple[str, ...]
    passages: int = 0
    observed_flops: float = 0.0

    @property
    def crossed(self) -> bool:
        return self.status != "not reached"

    @property
    def doubt(self) -> str:
        """Why a crossing that was seen is not clear: too small, or too close to the end of the observation."""
        return "within noise" if self.difference <= CLEAR * self.se else "not confirmed"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Crossing:
        """What `to_json` wrote, lists back to tuples."""
        fields: dict[str, Any] = found | {key: tuple(found[key]) for key in ("seeds", "notes")}
        return cls(**fields)

    def __str__(self) -> str:
        if self.status == "not reached":
            whose = "the process" if self.kind.startswith("X2") else "both"
            return f"not reached within {self.observed_to:.3g} epochs of {whose}"
        if self.status == "from the start":
            return f"ahead from the first evaluation (epoch ≤ {self.epoch:.3g})"
        low, high = (f"> {self.observed_to:.3g}" if end is None else f"{end:.3g}" for end in (self.low, self.high))
        doubt = "" if self.status == "clear" else f", seen but {self.doubt}"
        return f"epoch {self.epoch:.3g} [{low}, {high}]{doubt}"


def x1(process: Sequence[Curve], baseline: Sequence[Curve], *, resamples: int = 1000, seed: int = 0) -> Crossing:
    """X1 of a process (its curves, one per seed) below a baseline; see the module docstring.

    Raises ValueError where the held-out windows differ or no evaluation is common to all curves.
    """
    _check_windows(process, baseline)
    grid = _common(process, baseline)
    onto = [[interpolation(c.epochs, grid) for c in arm] for arm in (process, baseline)]
    ours, theirs = (
        [m @ c.report_clusters.sums for m, c in zip(ms, arm, strict=True)]
        for ms, arm in zip(onto, (process, baseline), strict=True)
    )
    draws = {
        name: over_seeds(
            [report_loss(c, resamples, seed) @ m.T for m, c in zip(ms, arm, strict=True)], resamples, seed, name
        )
        for name, ms, arm in zip(("process", "baseline"), onto, (process, baseline), strict=True)
    }
    notes = [f"{c.run}: {c.stopped}; only epochs observed in both count" for c in baseline if c.stopped]
    return _crossing("X1", process, baseline, grid, ours, theirs, draws["baseline"] - draws["process"], notes)


def x2(
    process: Sequence[Curve],
    baseline: Sequence[Curve],
    *,
    matched: bool = False,
    cooled: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Crossing:
    """X2 of a process below a baseline's best: of its whole run, or (`matched`) of what it had spent by then.

    `cooled`: of cooled-down branches; seeds without a branch are left out and named. Raises ValueError where the
    held-out windows differ, or (`cooled`) where an arm has no branch.
    """
    notes = []
    if cooled:
        notes = [f"{c.run}: has no cooled-down branch" for c in (*process, *baseline) if c.cooled is None]
        process, baseline = (_cooled(arm) for arm in (process, baseline))
    _check_windows(process, baseline)
    grid = common_epochs(process)
    onto = [interpolation(c.epochs, grid) for c in process]
    budgets = np.mean([np.interp(grid, c.epochs, c.flops) for c in process], axis=0)
    reached = [
        np.searchsorted(c.flops, budgets * (1 + 1e-9), side="right") - 1
        if matched
        else np.full(len(grid), len(c.flops) - 1)
        for c in baseline
    ]
    started = np.min(reached, axis=0) >= 0

    ours = [m @ c.report_clusters.sums[c.best_so_far()] for m, c in zip(onto, process, strict=True)]
    theirs = [
        np.where(started[:, None], c.report_clusters.sums[c.best_so_far()[np.maximum(k, 0)]], np.nan)
        for k, c in zip(reached, baseline, strict=True)
    ]
    our_draws = [best_report_loss(c, resamples, seed) @ m.T for m, c in zip(onto, process, strict=True)]
    their_draws = [
        np.where(started, best_report_loss(c, resamples, seed)[:, np.maximum(k, 0)], np.nan)
        for k, c in zip(reached, baseline, strict=True)
    ]
    draws = over_seeds(their_draws, resamples, seed, "baseline") - over_seeds(
        our_draws, resamples, seed, "process"
    )
    what = "cooled-down branch" if cooled else "evaluation"
    notes += [
        f"{c.run}: its best is its last {what}, epoch {c.epochs[-1]:.3g}: more training might lower it"
        for c in baseline
        if c.best == len(c.epochs) - 1
    ]
    kind = "X2" + " cooled" * cooled + " matched" * matched
    return _crossing(kind, process, baseline, grid, ours, theirs, draws, notes)


def x3(
    process: Sequence[ProbeCurve], baseline: Sequence[ProbeCurve], *, resamples: int = 1000, seed: int = 0
) -> Crossing:
    """X3: the first epoch from which the process is the more accurate at a probe.

    Only standard errors are known, not answers, so SE(d) is not paired: SE² = sum over arms of (the mean of the
    seeds' se)² + var_s / S. In a resample all checkpoints of an arm shift by one normal deviate in units of their
    se, because the items are the same at every checkpoint. Raises ValueError where no epoch is common.
    """
    grid = _common(process, baseline)
    means, errors, draws = [], [], []
    for name, arm in (("process", process), ("baseline", baseline)):
        onto = [interpolation(c.epochs, grid) for c in arm]
        values = [m @ c.values for m, c in zip(onto, arm, strict=True)]
        error = np.mean([m @ c.se for m, c in zip(onto, arm, strict=True)], axis=0)
        shift = np.random.default_rng([seed, len(means), 3]).normal(size=(resamples, 1))
        draws.append(weights(len(arm), resamples, seed, name) @ np.stack(values) + shift * error)
        spread = np.var(values, axis=0, ddof=1) / len(arm) if len(arm) > 1 else 0.0
        errors.append(error**2 + spread)
        means.append(np.mean(values, axis=0))
    items = min(c.items for c in (*process, *baseline))
    return _located(
        "X3", process, baseline, grid, means[0] - means[1], np.sqrt(errors[0] + errors[1]), draws[0] - draws[1],
        (), [int(c.values.argmax()) for c in baseline], (items, items),
    )  # fmt: skip


def _common(process: Sequence[Curve | ProbeCurve], baseline: Sequence[Curve | ProbeCurve]) -> Array:
    grid = common_epochs([*process, *baseline])
    if not len(grid):
        raise ValueError(f"{process[0].run} and {baseline[0].run} share no range of epochs")
    return grid


def _cooled(arm: Sequence[Curve]) -> list[Curve]:
    found = [c.cooled for c in arm if c.cooled is not None]
    if not found:
        raise ValueError(f"{arm[0].run}: has no cooled-down branch")
    return found


def _check_windows(process: Sequence[Curve], baseline: Sequence[Curve]) -> None:
    first = process[0]
    for curve in (*process, *baseline):
        for ours, theirs in (
            (curve.tune_clusters, first.tune_clusters),
            (curve.report_clusters, first.report_clusters),
        ):
            if not np.array_equal(ours.counts, theirs.counts):
                raise ValueError(f"{curve.run} and {first.run} were not evaluated on the same held-out windows")


def _crossing(
    kind: str,
    process: Sequence[Curve],
    baseline: Sequence[Curve],
    grid: Array,
    ours: Sequence[Array],
    theirs: Sequence[Array],
    draws: Array,
    notes: Sequence[str],
) -> Crossing:
    """Locate the crossing of the loss sums [G, P] `ours` below `theirs`; its interval from `draws` [R, G] of d."""
    counts = process[0].report_clusters.counts
    difference = Clusters(np.mean(theirs, axis=0) - np.mean(ours, axis=0), counts)
    arms = ([m.sum(axis=1) / counts.sum() for m in arm] for arm in (ours, theirs))
    se = standard_error(difference, *arms)
    best = [c.best for c in baseline]
    sizes = (process[0].report.shape[1], len(counts))
    return _located(kind, process, baseline, grid, difference.mean, se, draws, notes, best, sizes)


def _located(
    kind: str,
    process: Sequence[Curve] | Sequence[ProbeCurve],
    baseline: Sequence[Curve] | Sequence[ProbeCurve],
    grid: Array,
    d: Array,
    se: Array,
    draws: Array,
    notes: Sequence[str],
    best: Sequence[int],
    sizes: tuple[int, int],
) -> Crossing:
    """Locate the upward crossing of d [G] and its interval; `best`: each baseline's best evaluation."""
    x, confirmations = np.log(grid), CONFIRMATIONS[kind[:2]]
    found = upcrossing(x.tolist(), d.tolist(), se.tolist(), confirmations)
    places = np.exp(first_upcrossings(x, draws, se, confirmations))
    low, high = np.quantile(places, [0.025, 0.975], method="inverted_cdf")
    epoch = math.exp(found.x) if math.isfinite(found.x) else None

    def spent(what: str, at: float) -> float:
        return float(np.mean([np.interp(at, c.epochs, getattr(c, what)) for c in process]))

    return Crossing(
        kind=kind,
        process=process[0].run,
        baseline=baseline[0].run,
        status=found.status,
        epoch=epoch,
        low=float(low) if math.isfinite(low) else None,
        high=float(high) if math.isfinite(high) else None,
        share=float(np.isfinite(places).mean()),
        clear_epoch=None if found.confirmed is None else float(grid[found.confirmed]),
        observed_to=float(grid[-1]),
        difference=float(d[-1]),
        se=float(se[-1]),
        flops=None if epoch is None else spent("flops", epoch),
        tokens=None if epoch is None else spent("tokens", epoch),
        baseline_epoch=float(np.mean([c.epochs[k] for c, k in zip(baseline, best, strict=True)])),
        baseline_flops=float(np.mean([c.flops[k] for c, k in zip(baseline, best, strict=True)])),
        windows=sizes[0],
        seeds=(len(process), len(baseline)),
        notes=tuple(notes),
        passages=sizes[1],
        observed_flops=spent("flops", float(grid[-1])),
    )
