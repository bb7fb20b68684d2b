"""Resampling of held-out passages and of seeds, and the standard error that goes with it.

All runs see the same windows, so passages are resampled jointly for all of them, and a difference of losses is
paired. Both resamplings draw n - 1 of n with replacement (Rao and Wu 1988), which makes the variance of a
resampled mean s²/n, without the factor (n - 1)/n that matters for three seeds:

    mean*(e) = sum_p w_p S_p(e) / sum_p w_p n_p        S_p: loss summed over the n_p windows of passage p

Seeds are drawn anew within each arm. Resampling the rows and the columns of one table counts what is peculiar to
one seed at one window more than once, so an interval over few, noisy seeds is too wide rather than too narrow
(Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dlm.report.curve import Array, Clusters, Curve, running_argmin

STREAMS = {"report": 0, "tune": 1, "process": 2, "baseline": 3}


@lru_cache(maxsize=32)
def weights(n: int, resamples: int, seed: int, stream: str) -> Array:
    """Bootstrap weights [R, n], each row with sum one; the same for equal arguments."""
    if n == 1:
        return np.ones((resamples, 1))
    rng = np.random.default_rng([seed, STREAMS[stream]])
    return rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples) / (n - 1)


def resampled(found: Clusters, resamples: int, seed: int, stream: str) -> Array:
    """Mean loss [R, E] over resampled passages."""
    drawn = weights(len(found.counts), resamples, seed, stream)
    return (drawn @ found.sums.T) / (drawn @ found.counts)[:, None]


@lru_cache(maxsize=256)
def report_loss(curve: Curve, resamples: int, seed: int) -> Array:
    """Report loss [R, E] of every evaluation."""
    return resampled(curve.report_clusters, resamples, seed, "report")


@lru_cache(maxsize=256)
def best_report_loss(curve: Curve, resamples: int, seed: int) -> Array:
    """Report loss [R, E] of the checkpoint that each resample would have chosen on tune so far."""
    chosen = running_argmin(resampled(curve.tune_clusters, resamples, seed, "tune"))
    return np.take_along_axis(report_loss(curve, resamples, seed), chosen, axis=1)


def over_seeds(curves: Sequence[Array], resamples: int, seed: int, stream: str) -> Array:
    """Average [R, G] of the [R, G] of each seed over the resampled seeds of one arm."""
    drawn = weights(len(curves), resamples, seed, stream)
    return np.einsum("rs,srg->rg", drawn, np.stack(curves))


def standard_error(difference: Clusters, *arms: Sequence[Array]) -> Array:
    """Cluster-robust standard error [G] of a mean difference, plus the variance of each arm's mean over seeds.

        SE² = P/(P - 1) sum_p (S_p - n_p d)² / W² + sum_arms var_s / S

    with P passages and W windows; `arms` are the mean losses [G] of each seed. Infinite for one passage.
    """
    passages, windows = len(difference.counts), difference.counts.sum()
    residuals = difference.sums - difference.counts * difference.mean[:, None]
    if passages > 1:
        variance = passages / (passages - 1) * (residuals**2).sum(axis=1) / windows**2
    else:
        variance = np.full(len(residuals), np.inf)
    for arm in arms:
        if len(arm) > 1:
            variance = variance + np.var(arm, axis=0, ddof=1) / len(arm)
    return np.sqrt(variance)
