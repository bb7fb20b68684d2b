"""The held-out losses of one run as training goes on, and the grid on which several runs can be compared.

Losses are kept per held-out window, in nats per token, on two splits: a checkpoint is chosen on *tune*, and its
loss on *report* counts. Windows cut from one passage resemble each other, so passages are what may be resampled.
Between evaluations everything is linear in log epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Clusters(NamedTuple):
    """Losses summed within passages, [E, P], and the windows of each passage, [P]."""

    sums: Array
    counts: Array

    @property
    def mean(self) -> Array:
        """Nats per token at every evaluation, [E]."""
        return self.sums.sum(axis=1) / self.counts.sum()


@dataclass(frozen=True, eq=False)
class Curve:
    """The evaluations of one run, in the order of training.

    `epochs`, `tokens`, `flops` are [E] and count training only; `tune` and `report` are [E, windows], the nats
    per token of each held-out window; `tune_passages` and `report_passages` the passage each window was cut from
    (None: every window stands alone). `cooled` holds the run's cooled-down branches, each at the epoch and the
    cost of a run that ends with that cooldown. Raises ValueError where shapes disagree or epochs do not increase
    from above zero.
    """

    run: str
    seed: int
    epochs: Array
    tokens: Array
    flops: Array
    tune: Array
    report: Array
    stopped: str | None = None
    tune_passages: NDArray[np.int64] | None = None
    report_passages: NDArray[np.int64] | None = None
    cooled: Curve | None = None

    def __post_init__(self) -> None:
        lengths = {len(x) for x in (self.epochs, self.tokens, self.flops, self.tune, self.report)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"{self.run}: needs equally many epochs, tokens, FLOPs and losses, at least one")
        if self.epochs[0] <= 0 or np.any(np.diff(self.epochs) <= 0):
            raise ValueError(f"{self.run}: epochs must increase from above zero")
        for losses, passages in ((self.tune, self.tune_passages), (self.report, self.report_passages)):
            if passages is not None and len(passages) != losses.shape[1]:
                raise ValueError(f"{self.run}: {len(passages)} passages for {losses.shape[1]} held-out windows")

    @property
    def best(self) -> int:
        """Index of the checkpoint chosen on tune over the whole run."""
        return int(self.tune.mean(axis=1).argmin())

    def best_so_far(self) -> NDArray[np.intp]:
        """Index of the checkpoint chosen on tune after each evaluation, [E]."""
        return running_argmin(self.tune.mean(axis=1))

    @cached_property
    def tune_clusters(self) -> Clusters:
        return clusters(self.tune, self.tune_passages)

    @cached_property
    def report_clusters(self) -> Clusters:
        return clusters(self.report, self.report_passages)


@dataclass(frozen=True, eq=False)
class ProbeCurve:
    """The accuracy of one run at one probe, by checkpoint: shares in [0, 1], higher is better.

    `epochs`, `tokens`, `flops`, `values` and `se` are [E]; `se` is the standard error over the probe's items,
    which are the same at every checkpoint; `items` counts them.
    """

    run: str
    seed: int
    measure: str
    epochs: Array
    tokens: Array
    flops: Array
    values: Array
    se: Array
    items: int


class Observed(Protocol):
    """Whatever was observed at some epochs."""

    @property
    def epochs(self) -> Array: ...


Some = TypeVar("Some", bound=Observed)


def clusters(losses: Array, passages: NDArray[np.int64] | None) -> Clusters:
    """[E, W] losses summed within passages, in the order of the passages' numbers."""
    if passages is None:
        return Clusters(losses, np.ones(losses.shape[1]))
    _, member = np.unique(passages, return_inverse=True)
    counts = np.bincount(member).astype(float)
    order = np.argsort(member, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    return Clusters(np.add.reduceat(losses[:, order], starts, axis=1), counts)


def running_argmin(loss: Array) -> NDArray[np.intp]:
    """Index of the first minimum of loss[..., : k + 1] for every k."""
    earlier = np.minimum.accumulate(loss, axis=-1)[..., :-1]
    lower = np.concatenate([np.ones_like(loss[..., :1], dtype=bool), loss[..., 1:] < earlier], axis=-1)
    return np.maximum.accumulate(np.where(lower, np.arange(loss.shape[-1]), 0), axis=-1)


def interpolation(source: Array, target: Array) -> Array:
    """Weights [T, S] of linear interpolation in log epoch, from `source` epochs onto `target` epochs."""
    x, y = np.log(source), np.log(target)
    if len(x) == 1:
        return np.ones((len(y), 1))
    right = np.clip(np.searchsorted(x, y), 1, len(x) - 1)
    share = np.clip((y - x[right - 1]) / (x[right] - x[right - 1]), 0.0, 1.0)
    weights = np.zeros((len(y), len(x)))
    rows = np.arange(len(y))
    weights[rows, right - 1], weights[rows, right] = 1 - share, share
    return weights


def common_epochs(curves: Sequence[Some]) -> Array:
    """Evaluation epochs, where all curves were observed, of whichever was evaluated least often there.

    Taking the sparsest grid keeps "two consecutive evaluations" honest: no point is interpolated in every curve.
    Empty where the ranges do not overlap.
    """
    low = max(curve.epochs[0] for curve in curves) * (1 - 1e-9)
    high = min(curve.epochs[-1] for curve in curves) * (1 + 1e-9)
    inside = [curve.epochs[(curve.epochs >= low) & (curve.epochs <= high)] for curve in curves]
    return min(inside, key=len)
