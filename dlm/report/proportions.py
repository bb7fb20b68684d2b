"""Shares of solved puzzles: their intervals, and differences of shares, unpaired, paired, and over seeds.

All intervals are two-sided score intervals (95 % by default), which hold at 0 and 1 and for few puzzles: Wilson
(1927) for one share, and Newcombe's hybrid of two Wilson intervals for a difference (Newcombe 1998, "Interval
estimation for the difference between independent proportions", method 10, and "Improved confidence intervals for
the difference between binomial proportions based on paired data", method 10).

Several trainings (seeds) are judged on the same puzzles. As for losses (dlm/report/study.py), puzzles and seeds
add:

    half-width² = (mean half-width of the seeds)² + t² var_s / S        t: Student's quantile with S - 1 d.o.f.

which is too wide rather than too narrow, because var_s holds a part of the noise of the puzzles, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, t

from dlm.errors import UserError

Z = 1.959963984540054  # 95 %, two-sided


class Estimate(NamedTuple):
    """A share or a difference of shares with its interval; `puzzles` per seed, `seeds` trainings."""

    value: float
    low: float
    high: float
    puzzles: int
    seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, n: int, z: float = Z) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a share of `successes` out of `n`.

    Raises UserError where n is not positive or the successes are not among the n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"{successes} solved of {n} is not a share: needs 0 <= solved <= n and n >= 1")
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def share(successes: int, n: int, z: float = Z) -> Estimate:
    """A share with its Wilson interval."""
    low, high = wilson(successes, n, z)
    return Estimate(successes / n, low, high, n)


def unpaired(first: tuple[int, int], second: tuple[int, int], z: float = Z) -> Estimate:
    """The difference of two shares (successes, n) over different puzzles; Newcombe's method 10."""
    (a, n), (b, m) = first, second
    return hybrid(a / n, wilson(a, n, z), b / m, wilson(b, m, z), 0.0, min(n, m))


def paired(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray, z: float = Z) -> Estimate:
    """The difference of two shares over the same puzzles, from who solved which [N]; Newcombe's paired method 10.

    Raises UserError where the two do not speak of equally many puzzles, or of none.
    """
    x, y = np.asarray(first, bool), np.asarray(second, bool)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise UserError(f"outcomes of {x.size} and {y.size} puzzles cannot be paired")
    n = len(x)
    cells = [int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum()), int((~x & ~y).sum())]
    a, b, c, d = cells
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    cross = a * d - b * c
    if cross > 0:  # corrected for continuity, as in Newcombe 1998
        cross = max(cross - n / 2, 0.0)
    correlation = cross / math.sqrt(margins) if margins else 0.0
    p, q = (a + b) / n, (a + c) / n
    return hybrid(p, wilson(a + b, n, z), q, wilson(a + c, n, z), correlation, n)


def hybrid(
    p: float, around_p: tuple[float, float], q: float, around_q: tuple[float, float], correlation: float, n: int
) -> Estimate:
    """The difference p - q of two shares from the interval of each and the correlation between them."""
    below_p, above_p = p - around_p[0], around_p[1] - p
    below_q, above_q = q - around_q[0], around_q[1] - q
    low = below_p**2 - 2 * correlation * below_p * above_q + above_q**2
    high = above_p**2 - 2 * correlation * above_p * below_q + below_q**2
    return Estimate(p - q, p - q - math.sqrt(max(low, 0.0)), p - q + math.sqrt(max(high, 0.0)), n)


def over_seeds(estimates: Sequence[Estimate], z: float = Z) -> Estimate:
    """The mean over seeds of a share, or of a difference within each seed; see the module's docstring.

    One estimate is returned as it is: its interval knows nothing of other trainings.
    """
    if len(estimates) == 1:
        return estimates[0]
    values = np.array([e.value for e in estimates])
    mean = float(values.mean())
    between = seed_half_width(values, z)
    low = math.hypot(float(np.mean([e.value - e.low for e in estimates])), between)
    high = math.hypot(float(np.mean([e.high - e.value for e in estimates])), between)
    bottom = 0.0 if all(e.low >= 0 for e in estimates) else -1.0
    puzzles = min(e.puzzles for e in estimates)
    return Estimate(mean, max(bottom, mean - low), min(1.0, mean + high), puzzles, len(estimates))


def averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of repeated decodings of the same puzzles by the same weights. The interval does not shrink: it is
    that of the puzzles, which repeats share."""
    values, lows, highs = (float(np.mean([e[k] for e in estimates])) for k in range(3))
    return Estimate(values, lows, highs, min(e.puzzles for e in estimates))


def between_arms(first: np.ndarray, second: np.ndarray, z: float = Z) -> Estimate:
    """The difference of two arms that were trained apart, from who solved which puzzles: [S, N] and [R, N].

    The puzzles are the same: every seed of one is paired, puzzle by puzzle, with every seed of the other. The
    seeds of the arms vary
    independently: half-width² = (mean half-width of the pairs)² + t² var_s / S + t'² var_r / R.
    """
    x, y = np.atleast_2d(np.asarray(first, bool)), np.atleast_2d(np.asarray(second, bool))
    pairs = [paired(one, other, z) for one in x for other in y]
    mean = float(np.mean([e.value for e in pairs]))
    between = math.hypot(seed_half_width(x.mean(axis=1), z), seed_half_width(y.mean(axis=1), z))
    low = math.hypot(float(np.mean([e.value - e.low for e in pairs])), between)
    high = math.hypot(float(np.mean([e.high - e.value for e in pairs])), between)
    return Estimate(mean, max(-1.0, mean - low), min(1.0, mean + high), x.shape[1], min(len(x), len(y)))


def seed_half_width(values: np.ndarray, z: float = Z) -> float:
    """Half the interval of a mean over seeds, from what the seeds differ by; 0 (unknown) for one seed."""
    if len(values) < 2:
        return 0.0
    quantile = float(t.ppf(norm.cdf(z), len(values) - 1))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
