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
over what it had spent by the same compute.

Every location is found by linear interpolation of d in log e. Losses are kept per held-out window, and all runs
see the same windows with the same random numbers, so SE(d) is paired: the standard error of the per-window
difference. With several seeds the curves are averaged over seeds, and the variance of that average is added:

    SE(d)² = var_w(d_w) / W + var_s(L_P) / S_P + var_s(L_B) / S_B

The interval is the percentile bootstrap of the whole procedure (selection on tune included; SE(d) held fixed):
windows are resampled jointly for all runs, seeds within each arm. A resample without a crossing counts as +∞, so
an interval may be open to the right; an arm that never crosses is right-censored, "> e_max", never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dlm.report.curve import Array, Curve, common_epochs, interpolation, running_argmin

Status = Literal["clear", "within noise", "from the start", "not reached"]

CONFIRMATIONS = {"X1": 2, "X2": 1}
CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Crossing:
    """One crossing of `process` below `baseline`, ready for JSON through `to_json`.

    `epoch` is None when nothing was seen up to `observed_to`. `low` and `high` bound the 95 % bootstrap interval;
    None stands for "beyond `observed_to`". `share` is the part of the resamples in which the curves cross at all.
    `clear_epoch` is the evaluation at which the crossing was confirmed. `difference` and `se` are d and SE(d) at
    the last evaluation (nats per token; positive: the process is ahead). `flops` and `tokens` are what the
    process has spent at `epoch`; `baseline_flops` what the baseline had spent at its own best, `baseline_epoch`.
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
            whose = "both" if self.kind == "X1" else "the process"
            return f"not reached within {self.observed_to:.3g} epochs of {whose}"
        if self.status == "from the start":
            return f"ahead from the first evaluation (epoch ≤ {self.epoch:.3g})"
        low, high = (f"> {self.observed_to:.3g}" if end is None else f"{end:.3g}" for end in (self.low, self.high))
        doubt = "" if self.status == "clear" else f", seen but {self.doubt}"
        return f"epoch {self.epoch:.3g} [{low}, {high}]{doubt}"


class Upcrossing(NamedTuple):
    """What `upcrossing` found: how sure, where (in the units of x), and the index that confirmed it."""

    status: Status
    x: float
    confirmed: int | None


def upcrossing(x: Sequence[float], d: Sequence[float], se: Sequence[float], confirmations: int) -> Upcrossing:
    """First upward sign change of d whose excursion holds `confirmations` consecutive values above 2 SE.

    Failing that, an unconfirmed excursion that lasts to the end is "within noise". An excursion without a sign
    change, positive from the first value on, counts only if it never ends: "from the start" once confirmed. NaN
    (no baseline yet) starts the record anew.
    """
    begun: float | None = None
    steady = False
    streak = first = 0
    for i, value in enumerate(d):
        if math.isnan(value):
            begun, steady, streak, first = None, False, 0, i + 1
            continue
        if value <= 0:
            begun, streak = None, 0
            continue
        if begun is None and i > first:
            begun = x[i - 1] + (x[i] - x[i - 1]) * -d[i - 1] / (value - d[i - 1])
        elif begun is None:
            begun = -math.inf
        streak = streak + 1 if value > CLEAR * se[i] else 0
        if streak >= confirmations and math.isfinite(begun):
            return Upcrossing("clear", begun, i)
        steady = steady or streak >= confirmations
    if begun is None:
        return Upcrossing("not reached", math.inf, None)
    if begun == -math.inf:
        return Upcrossing("from the start" if steady else "within noise", x[first], None)
    return Upcrossing("within noise", begun, None)


def x1(process: Sequence[Curve], baseline: Sequence[Curve], *, resamples: int = 1000, seed: int = 0) -> Crossing:
    """X1 of a process (its curves, one per seed) below a baseline; see the module docstring.

    Raises ValueError where the held-out windows differ in number or no evaluation is common to all curves.
    """
    _check_windows(process, baseline)
    grid = common_epochs([*process, *baseline])
    if not len(grid):
        raise ValueError(f"{process[0].run} and {baseline[0].run} share no range of epochs")
    ours, theirs = ([interpolation(c.epochs, grid) @ c.report for c in arm] for arm in (process, baseline))
    draws = _Draws(process, baseline, resamples, seed)
    replicas = draws.mean([draws.report @ m.T for m in theirs], draws.theirs) - draws.mean(
        [draws.report @ m.T for m in ours], draws.ours
    )
    notes = [f"{c.run}: {c.stopped}; only epochs observed in both count" for c in baseline if c.stopped]
    return _crossing("X1", process, baseline, grid, ours, theirs, replicas, notes)


def x2(
    process: Sequence[Curve],
    baseline: Sequence[Curve],
    *,
    matched: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Crossing:
    """X2 of a process below a baseline's best: of its whole run, or (`matched`) of what it had spent by then.

    Raises ValueError where the held-out windows differ in number.
    """
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

    ours = [m @ c.report[c.best_so_far()] for m, c in zip(onto, process, strict=True)]
    theirs = [
        np.where(started[:, None], c.report[c.best_so_far()[np.maximum(k, 0)]], np.nan)
        for k, c in zip(reached, baseline, strict=True)
    ]

    draws = _Draws(process, baseline, resamples, seed)
    our_replicas = [draws.best_so_far(c) @ m.T for m, c in zip(onto, process, strict=True)]
    their_replicas = [
        np.where(started, draws.best_so_far(c)[:, np.maximum(k, 0)], np.nan)
        for k, c in zip(reached, baseline, strict=True)
    ]
    replicas = draws.mean(their_replicas, draws.theirs) - draws.mean(our_replicas, draws.ours)
    notes = [
        f"{c.run}: its best is its last evaluation, epoch {c.epochs[-1]:.3g}: more training might lower it"
        for c in baseline
        if c.best == len(c.epochs) - 1
    ]
    return _crossing("X2 matched" if matched else "X2", process, baseline, grid, ours, theirs, replicas, notes)


class _Draws:
    """Bootstrap weights: windows [R, W] jointly for all runs, seeds [R, S] within each arm."""

    def __init__(self, process: Sequence[Curve], baseline: Sequence[Curve], resamples: int, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def resample(n: int) -> Array:
            return rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n

        self.report = resample(process[0].report.shape[1])
        self.tune = resample(process[0].tune.shape[1])
        self.ours, self.theirs = resample(len(process)), resample(len(baseline))

    def best_so_far(self, curve: Curve) -> Array:
        """Report loss [R, E] of the checkpoint that each resample would have chosen on tune so far."""
        chosen = running_argmin(self.tune @ curve.tune.T)
        return np.take_along_axis(self.report @ curve.report.T, chosen, axis=1)

    @staticmethod
    def mean(curves: Sequence[Array], weights: Array) -> Array:
        """Average [R, G] over the resampled seeds of one arm."""
        return np.einsum("rs,srg->rg", weights, np.stack(curves))


def _check_windows(process: Sequence[Curve], baseline: Sequence[Curve]) -> None:
    first = process[0]
    for curve in (*process, *baseline):
        if (curve.tune.shape[1], curve.report.shape[1]) != (first.tune.shape[1], first.report.shape[1]):
            raise ValueError(f"{curve.run} and {first.run} were not evaluated on the same held-out windows")


def _crossing(
    kind: str,
    process: Sequence[Curve],
    baseline: Sequence[Curve],
    grid: Array,
    ours: Sequence[Array],
    theirs: Sequence[Array],
    replicas: Array,
    notes: Sequence[str],
) -> Crossing:
    """Locate the crossing of the [G, W] losses `ours` below `theirs`; its interval from [R, G] `replicas` of d."""
    per_window = np.mean(theirs, axis=0) - np.mean(ours, axis=0)
    windows = per_window.shape[1]
    variance = per_window.var(axis=1, ddof=1) / windows if windows > 1 else np.full(len(grid), np.inf)
    for arm in (ours, theirs):
        if len(arm) > 1:
            variance = variance + np.var([m.mean(axis=1) for m in arm], axis=0, ddof=1) / len(arm)
    d, se = per_window.mean(axis=1), np.sqrt(variance)

    x, confirmations = np.log(grid).tolist(), CONFIRMATIONS[kind[:2]]
    found = upcrossing(x, d.tolist(), se.tolist(), confirmations)
    resampled = np.exp([upcrossing(x, row, se.tolist(), confirmations).x for row in replicas.tolist()])
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    epoch = math.exp(found.x) if math.isfinite(found.x) else None

    def spent(curves: Sequence[Curve], what: str, at: float) -> float:
        return float(np.mean([np.interp(at, c.epochs, getattr(c, what)) for c in curves]))

    return Crossing(
        kind=kind,
        process=process[0].run,
        baseline=baseline[0].run,
        status=found.status,
        epoch=epoch,
        low=float(low) if math.isfinite(low) else None,
        high=float(high) if math.isfinite(high) else None,
        share=float(np.isfinite(resampled).mean()),
        clear_epoch=None if found.confirmed is None else float(grid[found.confirmed]),
        observed_to=float(grid[-1]),
        difference=float(d[-1]),
        se=float(se[-1]),
        flops=None if epoch is None else spent(process, "flops", epoch),
        tokens=None if epoch is None else spent(process, "tokens", epoch),
        baseline_epoch=float(np.mean([c.epochs[c.best] for c in baseline])),
        baseline_flops=float(np.mean([c.flops[c.best] for c in baseline])),
        windows=windows,
        seeds=(len(process), len(baseline)),
        notes=tuple(notes),
    )
