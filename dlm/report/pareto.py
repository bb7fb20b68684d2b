"""X2 where each side may choose the size of its model: the front of the best loss by compute, over sizes.

At one budget of unique text let r run over an arm's model sizes, and let C_r(e) be what size r has spent after e
epochs. The front is the report loss of what tune would have chosen within a compute C,

    L*(C) = report loss at argmin { tune loss of (r, e) : C_r(e) <= C },

and X2 over sizes is the first C at which d(C) = L*_B(C) - L*_P(C) changes sign from below, clear once one
evaluation within that excursion has d > 2 SE(d): the critical compute of Prabhudesai et al. (2025, arXiv
2507.15857). With `ever` the baseline's best is that of all its sizes and epochs, whatever it had spent. X2 at
one size (dlm.report.crossing) is another crossing, usually an easier one: there the baseline may not choose its
size.

Losses of one size are means over its seeds. SE(d) is paired over passages, plus the variance over seeds of the
two sizes that stand on the fronts; intervals resample passages jointly and seeds within each size, selection on
tune included. Fronts are steps in C; a crossing is located by linear interpolation of d in log C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm.report.bootstrap import over_seeds, report_loss, resampled, standard_error
from dlm.report.curve import Array, Clusters, Curve, common_epochs, interpolation, running_argmin
from dlm.report.upcrossing import CLEAR, Status, first_upcrossings, upcrossing

Sizes = Mapping[str, Sequence[Curve]]  # the curves of one arm, one per seed, by the label of the size


@dataclass(frozen=True)
class FrontCrossing:
    """One crossing of fronts, in training FLOPs.

    `flops` is None when nothing was seen up to `observed_to`; `low` and `high` bound the 95 % interval, None
    stands for "beyond `observed_to`"; `share` is the part of the resamples with a crossing. `difference` and `se`
    are d and SE(d) at `observed_to`, in nats per token. `chosen` are the sizes of process and baseline that stand
    on the fronts at the crossing, or at `observed_to`.
    """

    kind: str
    status: Status
    flops: float | None
    low: float | None
    high: float | None
    share: float
    observed_to: float
    difference: float
    se: float
    chosen: tuple[str, str]
    sizes: tuple[str, ...]
    passages: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> FrontCrossing:
        """What `to_json` wrote, lists back to tuples."""
        fields: dict[str, Any] = found | {key: tuple(found[key]) for key in ("chosen", "sizes", "notes")}
        return cls(**fields)

    @property
    def doubt(self) -> str:
        """Why a crossing that was seen is not clear."""
        return "within noise" if self.difference <= CLEAR * self.se else "not confirmed"

    def __str__(self) -> str:
        if self.status == "not reached":
            return f"not reached within {self.observed_to:.2g} FLOPs"
        if self.status == "from the start":
            return f"ahead from the first compute that both have spent ({self.flops:.2g} FLOPs)"
        low, high = (f"> {self.observed_to:.2g}" if end is None else f"{end:.2g}" for end in (self.low, self.high))
        doubt = "" if self.status == "clear" else f", seen but {self.doubt}"
        return f"{self.flops:.2g} FLOPs [{low}, {high}]{doubt}"


@dataclass(frozen=True, eq=False)
class Front:
    """All evaluations of an arm at all sizes, [N] in the order of what they cost.

    `sums` [N, P] are report losses summed within passages, means over seeds; `spread` [N] the variance of that
    mean over seeds; `best` [N] indexes the evaluation that tune chooses among the first so many. `drawn` [R, N] is
    the report loss of what each resample would have chosen so far.
    """

    flops: Array
    labels: NDArray[np.str_]
    sums: Array
    counts: Array
    spread: Array
    best: NDArray[np.intp]
    drawn: Array

    def within(self, compute: Array) -> NDArray[np.intp]:
        """Index of the last evaluation that costs no more, [G]."""
        return np.searchsorted(self.flops, compute * (1 + 1e-9), side="right") - 1


def front_of(arm: Sizes, stream: str, resamples: int, seed: int) -> Front:
    """The evaluations of an arm at all its sizes. Raises ValueError where two seeds share no range of epochs."""
    return _front(tuple((label, tuple(curves)) for label, curves in arm.items()), stream, resamples, seed)


@lru_cache(maxsize=128)
def _front(arm: tuple[tuple[str, tuple[Curve, ...]], ...], stream: str, resamples: int, seed: int) -> Front:
    parts = []
    for label, curves in arm:
        grid = common_epochs(curves)
        if not len(grid):
            raise ValueError(f"{curves[0].run} and the other seeds of its size share no range of epochs")
        onto = [interpolation(c.epochs, grid) for c in curves]
        both = list(zip(onto, curves, strict=True))
        report = [m @ c.report_clusters.sums for m, c in both]
        means = [x.sum(axis=1) / curves[0].report_clusters.counts.sum() for x in report]
        tune_draws = [resampled(c.tune_clusters, resamples, seed, "tune") @ m.T for m, c in both]
        report_draws = [report_loss(c, resamples, seed) @ m.T for m, c in both]
        parts.append(
            (
                np.mean([np.interp(grid, c.epochs, c.flops) for c in curves], axis=0),
                np.full(len(grid), label),
                np.mean(report, axis=0),
                np.var(means, axis=0, ddof=1) / len(curves) if len(curves) > 1 else np.zeros(len(grid)),
                np.mean([m @ c.tune_clusters.mean for m, c in both], axis=0),
                over_seeds(report_draws, resamples, seed, stream).T,
                over_seeds(tune_draws, resamples, seed, stream).T,
            )
        )
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    flops, labels, sums, spread, tune, drawn, drawn_tune = (column[order] for column in joined)
    drawn_best = np.take_along_axis(drawn.T, running_argmin(drawn_tune.T), axis=1)
    counts = arm[0][1][0].report_clusters.counts
    return Front(flops, labels, sums, counts, spread, running_argmin(tune), drawn_best)


def x2_over_sizes(
    process: Sizes,
    baseline: Sizes,
    *,
    ever: bool = False,
    cooled: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> FrontCrossing:
    """X2 of a process's front over model sizes below a baseline's; see the module docstring.

    Args:
        ever: against the baseline's best of all sizes and epochs, not that of the same compute.
        cooled: cooled-down branches alone.

    Raises:
        ValueError: where sizes or held-out windows differ, there are fewer than two sizes, a run has no branch
            (`cooled`), or the process had spent nothing that the baseline had.
    """
    if len(process) < 2 or set(process) != set(baseline):
        raise ValueError(
            f"a front needs two sizes or more, the same of both: {list(process)} and {list(baseline)}"
        )
    if cooled:
        process, baseline = _branches(process), _branches(baseline)
    _check_windows([c for arm in (process, baseline) for curves in arm.values() for c in curves])
    ours, theirs = (front_of(a, s, resamples, seed) for a, s in ((process, "process"), (baseline, "baseline")))
    grid = np.unique(np.concatenate([ours.flops, theirs.flops]))
    first = ours.flops[0] if ever else max(ours.flops[0], theirs.flops[0])
    grid = grid[(grid >= first) & (grid <= ours.flops[-1])]
    if not len(grid):
        raise ValueError(f"{next(iter(process.values()))[0].run}: its sizes cost less than the baseline's first")
    i = ours.within(grid)
    k = np.full(len(grid), len(theirs.flops) - 1) if ever else theirs.within(grid)
    p, b = ours.best[i], theirs.best[k]
    difference = Clusters(theirs.sums[b] - ours.sums[p], ours.counts)
    se = np.sqrt(standard_error(difference) ** 2 + ours.spread[p] + theirs.spread[b])
    draws = theirs.drawn[:, k] - ours.drawn[:, i]
    x, d = np.log(grid), difference.mean
    found = upcrossing(x.tolist(), d.tolist(), se.tolist(), 1)
    places = np.exp(first_upcrossings(x, draws, se, 1))
    low, high = np.quantile(places, [0.025, 0.975], method="inverted_cdf")
    at = len(grid) - 1 if math.isinf(found.x) else int(np.searchsorted(x, found.x - 1e-12))
    last = theirs.best[-1]
    return FrontCrossing(
        kind="X2 over sizes" + " ever" * ever + " cooled" * cooled,
        status=found.status,
        flops=math.exp(found.x) if math.isfinite(found.x) else None,
        low=float(low) if math.isfinite(low) else None,
        high=float(high) if math.isfinite(high) else None,
        share=float(np.isfinite(places).mean()),
        observed_to=float(grid[-1]),
        difference=float(d[-1]),
        se=float(se[-1]),
        chosen=(str(ours.labels[p[at]]), str(theirs.labels[b[at]])),
        sizes=tuple(process),
        passages=len(ours.counts),
        notes=tuple(_reservations(baseline, str(theirs.labels[last]))),
    )


def _reservations(baseline: Sizes, best: str) -> list[str]:
    """Where the baseline's front ends at the edge of what was tried."""
    cost = {label: min(c.flops[-1] / c.tokens[-1] for c in curves) for label, curves in baseline.items()}
    edges = {min(cost, key=cost.__getitem__): "smallest", max(cost, key=cost.__getitem__): "largest"}
    return [f"the baseline's best size, {best}, is its {edges[best]}"] if best in edges else []


def _branches(arm: Sizes) -> dict[str, list[Curve]]:
    found = {label: [c.cooled for c in curves if c.cooled is not None] for label, curves in arm.items()}
    for label, curves in found.items():
        if not curves:
            raise ValueError(f"{arm[label][0].run}: has no cooled-down branch")
    return found


def _check_windows(curves: Sequence[Curve]) -> None:
    first = curves[0]
    for c in curves:
        for one, other in ((c.tune_clusters, first.tune_clusters), (c.report_clusters, first.report_clusters)):
            if not np.array_equal(one.counts, other.counts):
                raise ValueError(f"{c.run} and {first.run} were not evaluated on the same held-out windows")
