"""The held-out losses of one run as training goes on, and the grid on which several runs can be compared.

Losses are kept per held-out window, in nats per token, on two splits: a checkpoint is chosen on *tune*, and its
loss on *report* counts. Between evaluations everything is linear in log epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The evaluations of one run, in the order of training.

    `epochs`, `tokens`, `flops` are [E] and count training only; `tune` and `report` are [E, windows], the nats
    per token of each held-out window. Raises ValueError where shapes disagree or epochs do not increase from
    above zero.
    """

    run: str
    seed: int
    epochs: Array
    tokens: Array
    flops: Array
    tune: Array
    report: Array
    stopped: str | None = None

    def __post_init__(self) -> None:
        lengths = {len(x) for x in (self.epochs, self.tokens, self.flops, self.tune, self.report)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"{self.run}: needs equally many epochs, tokens, FLOPs and losses, at least one")
        if self.epochs[0] <= 0 or np.any(np.diff(self.epochs) <= 0):
            raise ValueError(f"{self.run}: epochs must increase from above zero")

    @property
    def best(self) -> int:
        """Index of the checkpoint chosen on tune over the whole run."""
        return int(self.tune.mean(axis=1).argmin())

    def best_so_far(self) -> NDArray[np.intp]:
        """Index of the checkpoint chosen on tune after each evaluation, [E]."""
        return running_argmin(self.tune.mean(axis=1))


def running_argmin(loss: Array) -> NDArray[np.intp]:
    """Index of the first minimum of loss[..., : k + 1] for every k."""
    earlier = np.minimum.accumulate(loss, axis=-1)[..., :-1]
    lower = np.concatenate([np.ones_like(loss[..., :1], dtype=bool), loss[..., 1:] < earlier], axis=-1)
    return np.maximum.accumulate(np.where(lower, np.arange(loss.shape[-1]), 0), axis=-1)


def interpolation(source: Array, target: Array) -> Array:
    """Weights [T, S] of linear interpolation in log epoch, from `source` epochs onto `target` epochs."""
    x, y = np.log(source), np.log(target)
    return np.stack([np.interp(y, x, unit) for unit in np.eye(len(x))], axis=1)


def common_epochs(curves: Sequence[Curve]) -> Array:
    """Evaluation epochs, where all curves were observed, of whichever was evaluated least often there.

    Taking the sparsest grid keeps "two consecutive evaluations" honest: no point is interpolated in every curve.
    Empty where the ranges do not overlap.
    """
    low = max(curve.epochs[0] for curve in curves) * (1 - 1e-9)
    high = min(curve.epochs[-1] for curve in curves) * (1 + 1e-9)
    inside = [curve.epochs[(curve.epochs >= low) & (curve.epochs <= high)] for curve in curves]
    return min(inside, key=len)
