"""How crossings move with the unique tokens, and what a process's data are worth to a baseline.

**Crossing laws.**  X1(U) = a U^b in epochs and C_crit(U) = c U^g in FLOPs (X2) are straight lines in logs,

    log X_i = log a + b log U_i + eps_i,    eps_i ~ N(0, sigma² + s_i²),

with s_i from the crossing's own bootstrap interval and one sigma common to all cells. A cell without a crossing is
right-censored at what was observed, and one that was ahead from its first evaluation left-censored there; both
enter the likelihood as such (Tobin 1958),

    log l = sum_seen log N(log X_i) + sum_right log P(log X_i > c_i) + sum_left log P(log X_i < c_i),

because leaving them out biases b. The interval of b is where the profile of the likelihood stays within
n log(1 + t²/(n - 2)) / 2 of its maximum, with n crossings seen and t the 97.5 % point of Student's t with n - 2
degrees of freedom: exact where nothing is censored. Where only two were seen sigma is not estimated but zero, and
the threshold is that of a known variance.

**Not identifiable**: fewer than four different U, crossings seen at fewer than two of them, or an interval of b
that is open on both sides.

**Data multiplier.**  At equal best loss, U_B(L) / U_P(L): how much more unique text the baseline needs. U_B is
interpolated in log U, inside the losses that both reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize, root_scalar
from scipy.special import log_ndtr
from scipy.stats import chi2, t

from dlm.report.crossing import Crossing
from dlm.report.curve import Array

FEWEST = 4  # different U: twice the parameters of a line
STEEPEST = 12.0  # |b| beyond which an interval counts as open


@dataclass(frozen=True)
class Cell:
    """One crossing: `value` at `unique` tokens, or the limit of what was observed where `censored`.

    `log_se` is the standard error of log value; 0 where unknown.
    """

    unique: float
    value: float
    censored: Literal["right", "left"] | None = None
    log_se: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "unique_tokens": self.unique,
            "value": self.value,
            "censored": self.censored is not None,
            "side": self.censored,
            "log_se": self.log_se,
        }


@dataclass(frozen=True)
class PowerLaw:
    """`a` and `b` of X = a U^b, the interval of b (None: open), and sigma; or why there are none."""

    status: str
    why: str
    a: float | None = None
    b: float | None = None
    low: float | None = None
    high: float | None = None
    sigma: float | None = None


def crossing_cell(unique: float, found: Crossing, what: Literal["epoch", "flops"]) -> Cell:
    """A crossing as one cell of a law in epochs or FLOPs.

    The interval of the crossing gives the standard error of its logarithm, (log high - log low) / 3.92; one open
    to the right gives twice the distance to its lower end. So does a crossing that was not reached but is in more
    than 2.5 % of the resamples: without noise it might have been, which widens the tail that censoring stands for.
    """
    if found.status == "not reached":
        limit = found.observed_to if what == "epoch" else found.observed_flops
        width = 2 * math.log(found.observed_to / found.low) if found.low else 0.0
        return Cell(unique, limit, "right", max(width, 0.0) / 3.92)
    assert found.epoch is not None and found.flops is not None
    value = found.epoch if what == "epoch" else found.flops
    if found.status == "from the start":
        return Cell(unique, value, "left")
    width = 0.0
    if found.low is not None:
        width = math.log(found.high / found.low) if found.high else 2 * math.log(found.epoch / found.low)
    return Cell(unique, value, None, max(width, 0.0) / 3.92)


def fit_power_law(cells: Sequence[Cell]) -> PowerLaw:
    """The line through the logs of all cells, censored ones included."""
    seen = [cell for cell in cells if cell.censored is None]
    different, where_seen = len({c.unique for c in cells}), len({c.unique for c in seen})
    if different < FEWEST:
        return PowerLaw("not identifiable", f"{different} budgets of text for 2 parameters; it takes {FEWEST}")
    if where_seen < 2:
        return PowerLaw("not identifiable", f"crossings seen at {where_seen} of {different} budgets")
    line = _Line(cells, free_sigma=len(seen) > 2)
    best, (level, b, log_sigma) = line.best()
    n = len(seen)
    threshold = n * math.log1p(t.ppf(0.975, n - 2) ** 2 / (n - 2)) / 2 if n > 2 else float(chi2.ppf(0.95, 1)) / 2

    def short(at: float) -> float:
        return best - line.best(at, log_sigma)[0] - threshold

    low, high = (
        float(root_scalar(short, bracket=sorted((b, end)), xtol=2e-3).root) if short(end) > 0 else None
        for end in (-STEEPEST, STEEPEST)
    )
    if low is None and high is None:
        return PowerLaw("not identifiable", "the exponent is open on both sides")
    a = math.exp(level - b * line.centre)
    return PowerLaw("fitted", "", a, float(b), low, high, math.exp(log_sigma) if line.free_sigma else 0.0)


class _Line:
    """The likelihood of one line through the logs of the cells, in U centred at its geometric mean.

    A candidate is (log X at the centre, b, log sigma).
    """

    def __init__(self, cells: Sequence[Cell], free_sigma: bool) -> None:
        self.centre = float(np.mean([math.log(c.unique) for c in cells]))
        self.x: Array = np.array([math.log(c.unique) - self.centre for c in cells])
        self.y: Array = np.array([math.log(c.value) for c in cells])
        self.s: Array = np.array([max(c.log_se, 1e-3) for c in cells])
        self.side: Array = np.array([{"right": 1.0, "left": -1.0, None: 0.0}[c.censored] for c in cells])
        self.free_sigma = free_sigma

    def cost(self, at: Array) -> tuple[float, Array]:
        """Negative log-likelihood and its gradient."""
        level, b, log_sigma = at
        variance = math.exp(2 * log_sigma) if self.free_sigma else 0.0
        scale = np.sqrt(self.s**2 + variance)
        z = (self.y - level - b * self.x) / scale
        seen = self.side == 0
        survival = log_ndtr(-self.side * z)
        hazard = np.exp(-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - survival)
        value = np.where(seen, 0.5 * z**2 + 0.5 * math.log(2 * math.pi) + np.log(scale), -survival)
        slope = np.where(seen, z, self.side * hazard)  # of the value in z
        by_sigma = (np.where(seen, 1.0, 0.0) - slope * z) * variance / scale**2
        gradient = [-(slope / scale).sum(), -(slope * self.x / scale).sum(), by_sigma.sum()]
        return float(value.sum()), np.array(gradient)

    def best(self, b: float | None = None, log_sigma: float | None = None) -> tuple[float, Array]:
        """The highest log-likelihood, over all slopes or at a given one (from a log sigma), and its candidate."""
        seen = self.side == 0
        x, y = self.x[seen] - self.x[seen].mean(), self.y[seen]
        slope = b if b is not None else float(np.clip((x * y).sum() / (x**2).sum(), -STEEPEST, STEEPEST))
        rest = self.y - slope * self.x
        spread = math.log(max(float(rest[seen].std()), 0.05)) if log_sigma is None else log_sigma
        ends = [
            minimize(
                self.cost,
                [float(rest[seen].mean()) + shift, slope, spread + abs(shift)],
                jac=True,
                method="L-BFGS-B",
                bounds=[(None, None), (slope, slope) if b is not None else (-STEEPEST, STEEPEST), (-9.0, 4.0)],
                options={"maxiter": 500, "ftol": 1e-11, "gtol": 1e-7},
            )
            for shift in ((0.0, 1.0, -1.0) if b is None else (0.0,))
        ]
        found = min(ends, key=lambda end: end.fun)
        return -float(found.fun), np.asarray(found.x)


@dataclass(frozen=True, eq=False)
class BestLosses:
    """The best loss of one arm at each budget of unique tokens: `unique` increasing, `loss` and `se` in nats."""

    unique: Array
    loss: Array
    se: Array


def data_multiplier(
    process: BestLosses, baseline: BestLosses, *, resamples: int = 400, seed: int = 0
) -> dict[str, Any]:
    """U_baseline / U_process at each budget of the process whose best loss lies inside the baseline's range.

    The interval of a point comes from normal deviates of all best losses by their standard errors, as if the two
    arms were independent; they share their held-out text, so it is rather too wide. An end at which the loss
    leaves the baseline's range is None.
    """
    for name, arm in (("process", process), ("baseline", baseline)):
        if len(arm.unique) < 2:
            return _no_multiplier(f"best losses of the {name} at {len(arm.unique)} budgets of text; it takes 2")
    if np.any(np.diff(baseline.loss) >= 0):
        return _no_multiplier("the baseline's best loss does not fall with more text")
    inside = (process.loss <= baseline.loss.max()) & (process.loss >= baseline.loss.min())
    if not inside.any():
        return _no_multiplier("no loss was reached by both")
    rng = np.random.default_rng(seed)
    ours, theirs = (arm.loss + arm.se * rng.normal(size=(resamples, len(arm.loss))) for arm in (process, baseline))
    points = []
    for k in np.flatnonzero(inside):
        unique = float(needed(baseline.unique, baseline.loss, process.loss[k]))
        draws = np.array(
            [needed(baseline.unique, row, loss) for row, loss in zip(theirs, ours[:, k], strict=True)]
        )
        low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf") / process.unique[k]
        points.append(
            {
                "loss": float(process.loss[k]),
                "unique_tokens": float(process.unique[k]),
                "baseline_unique_tokens": unique,
                "multiplier": unique / float(process.unique[k]),
                "low": float(low) if low > 0 else None,
                "high": float(high) if math.isfinite(high) else None,
            }
        )
    return {"status": "fitted", "why": "", "points": points}


def needed(unique: Array, loss: Array, target: float) -> float:
    """Unique tokens at which a loss that falls with log U meets the target; 0 or +inf outside the range."""
    falling = np.minimum.accumulate(loss)
    if target > falling[0]:
        return 0.0
    if target < falling[-1]:
        return math.inf
    return float(np.exp(np.interp(-target, -falling, np.log(unique))))


def _no_multiplier(why: str) -> dict[str, Any]:
    return {"status": "not identifiable", "why": why, "points": []}
