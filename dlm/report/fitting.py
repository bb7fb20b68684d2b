"""Fitting a law of the loss to observed points, and saying when the points do not determine it.

As in Hoffmann et al. 2022 (Eq. 3 there): Huber's loss with threshold 1e-3 on the residuals of the log loss,

    min_z  sum_i w_i Huber(log L(z; N_i, U_i, e_i) - log L_i),

from many starts, L-BFGS at the end. The starts are first sorted by a Levenberg-Marquardt descent of all of them at
once (Huber's loss by reweighting), which costs less than one start at a time; the best go on to L-BFGS.

Out of sample: the root mean square error, in nats per token, of each cell predicted without it. Intervals: 95 %
percentiles over resamples of whole cells, because the losses of one cell come from the same runs.

**Not identifiable** is what is said instead of a number, where any of these holds:

- there are fewer cells than twice the parameters;
- a parameter ends at the edge of its box;
- the Jacobian of the log losses is singular (condition number above 1e6 in search coordinates);
- the interval of a parameter in search coordinates is wider than a factor of ten, or wider than 2 for an exponent
  of either sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize

from dlm.report.curve import Array
from dlm.report.laws import Law, Points

HUBER = 1e-3
STARTS = 512
KEPT = 8
RESAMPLES = 200
MOST_CONDITION = 1e6
WIDEST_FACTOR, WIDEST = 10.0, 2.0


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law, or why there is none. `parameters` maps a name to its (value, low, high); `predicted` [n] are
    the losses at the points, nats per token, and `loo_rmse` the error at cells left out."""

    law: Law
    status: str
    why: str
    parameters: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    predicted: Array | None = None
    loo_rmse: float | None = None


def huber(residual: Array) -> Array:
    """r²/2 up to the threshold, linear beyond."""
    size = np.abs(residual)
    return np.where(size <= HUBER, 0.5 * residual**2, HUBER * (size - 0.5 * HUBER))


class Problem:
    """The points of one law: residuals of the log loss, their cost and Jacobian, for many candidates at once."""

    def __init__(self, law: Law, points: Points, weights: Array | None = None) -> None:
        self.law, self.points, self.centre = law, points, points.centre
        self.target = np.log(points.loss)
        self.box = np.array([c.scaled(c.box) for c in law.coordinates])

    def residuals(self, z: Array) -> Array:
        """[S, n] at candidates z [S, p]; huge where the law gives no positive finite loss."""
        with np.errstate(all="ignore"):
            found = np.log(self.law.loss(z, self.points, self.centre)) - self.target
        return np.where(np.isfinite(found), found, 1e3)

    def cost(self, z: Array, weights: Array) -> Array:
        return (weights * huber(self.residuals(z))).sum(axis=-1)

    def jacobian(self, z: Array, base: Array, step: float = 1e-6) -> Array:
        """Forward differences [S, n, p]."""
        candidates, size = z.shape
        moved = (z[:, None, :] + step * np.eye(size)).reshape(-1, size)
        found = self.residuals(moved).reshape(candidates, size, -1)
        return (found - base[:, None, :]).transpose(0, 2, 1) / step

    def descend(self, z: Array, weights: Array, iterations: int) -> tuple[Array, Array]:
        """Levenberg-Marquardt from every row of z [S, p] with weights [S, n] or [n]; rows and their costs."""
        weights = np.broadcast_to(weights, (len(z), len(self.target)))
        damping = np.full(len(z), 1e-2)
        residual = self.residuals(z)
        cost = (weights * huber(residual)).sum(axis=1)
        for _ in range(iterations):
            scale = weights * np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-12))
            jacobian = self.jacobian(z, residual)
            weighted = jacobian * scale[:, :, None]
            normal = weighted.transpose(0, 2, 1) @ jacobian
            gradient = (weighted.transpose(0, 2, 1) @ residual[:, :, None])[:, :, 0]
            diagonal = np.einsum("spp->sp", normal)
            ridge = damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
            system = normal + ridge[:, :, None] * np.eye(z.shape[1])
            step = np.clip(np.linalg.solve(system, gradient[:, :, None])[:, :, 0], -2.0, 2.0)
            moved = np.clip(z - step, self.box[:, 0], self.box[:, 1])
            candidate = self.residuals(moved)
            reached = (weights * huber(candidate)).sum(axis=1)
            better = reached < cost
            z, residual = np.where(better[:, None], moved, z), np.where(better[:, None], candidate, residual)
            cost = np.where(better, reached, cost)
            damping = np.clip(np.where(better, damping / 4, damping * 5), 1e-10, 1e8)
        return z, cost

    def polish(self, z: Array) -> tuple[Array, float]:
        """L-BFGS from one candidate [p], with central differences."""
        size, step = len(z), 1e-6
        weights = np.ones(len(self.target))

        def cost(at: Array) -> tuple[float, Array]:
            around = np.concatenate([at[None], at + step * np.eye(size), at - step * np.eye(size)])
            found = self.cost(around, weights)
            return float(found[0]) * 1e4, (found[1 : size + 1] - found[size + 1 :]) / (2 * step) * 1e4

        found = minimize(
            cost, z, jac=True, method="L-BFGS-B", bounds=self.box, options={"maxiter": 300, "ftol": 1e-15}
        )
        return np.asarray(found.x), float(found.fun) / 1e4


def search(problem: Problem, seed: int) -> Array:
    """The best search coordinates [p] from STARTS seeded starts."""
    rng = np.random.default_rng(seed)
    low, high = np.array([c.scaled(c.starts) for c in problem.law.coordinates]).T
    starts = rng.uniform(low, high, size=(STARTS, problem.law.size))
    weights = np.ones(len(problem.target))
    z, cost = problem.descend(starts, weights, 12)
    z, cost = problem.descend(z[np.argsort(cost)[: STARTS // 8]], weights, 40)
    z, cost = problem.descend(z[np.argsort(cost)[:KEPT]], weights, 150)
    ends = [(z[i], float(cost[i])) for i in range(len(z))] + [problem.polish(z[i]) for i in range(len(z))]
    return min(ends, key=lambda end: end[1])[0]


def fit(law: Law, points: Points, *, seed: int = 0) -> Fit:
    """Fit a law; see the module docstring for when there is no number."""
    if points.cells < 2 * law.size:
        return _refused(law, f"{points.cells} cells for {law.size} parameters; it takes {2 * law.size}")
    problem = Problem(law, points)
    z = search(problem, seed)

    edges = np.isclose(z, problem.box[:, 0], atol=1e-6) | np.isclose(z, problem.box[:, 1], atol=1e-6)
    if edges.any():
        names = ", ".join(c.name for c, at in zip(law.coordinates, edges, strict=True) if at)
        return _refused(law, f"no finite value fits best: {names}")
    jacobian = problem.jacobian(z[None], problem.residuals(z[None]))[0]
    values = np.linalg.svd(jacobian, compute_uv=False)
    if values[-1] * MOST_CONDITION < values[0]:
        return _refused(law, "the Jacobian is singular: some parameters can be traded for others")

    rng = np.random.default_rng([seed, 1])
    cells = points.cells
    counts = rng.multinomial(cells, np.full(cells, 1 / cells), size=RESAMPLES)
    draws, _ = problem.descend(np.tile(z, (RESAMPLES, 1)), counts[:, points.cell].astype(float), 25)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    wide = [
        c.name
        for c, width in zip(law.coordinates, high - low, strict=True)
        if width > (math.log(WIDEST_FACTOR) if c.log else WIDEST)
    ]
    if wide:
        return _refused(law, f"the points do not determine {', '.join(wide)}")

    natural = {name: x[:, 0] for name, x in law.natural(law.values(np.vstack([z, draws])), *points.centre).items()}
    parameters = {}
    for name, x in natural.items():
        low, high = np.quantile(x[1:], [0.025, 0.975])
        parameters[name] = (float(x[0]), float(low), float(high))
    predicted = law.loss(z[None], points, points.centre)[0]
    return Fit(law, "fitted", "", parameters, predicted, left_out_error(problem, z))


def left_out_error(problem: Problem, z: Array) -> float:
    """Root mean square error, nats per token, of every cell as predicted from the others."""
    points = problem.points
    kept = (points.cell[None, :] != np.arange(points.cells)[:, None]).astype(float)
    refitted, _ = problem.descend(np.tile(z, (points.cells, 1)), kept, 40)
    error = problem.law.loss(refitted, points, problem.centre) - points.loss
    return float(np.sqrt((error**2 * (1 - kept)).sum() / len(points.loss)))


def _refused(law: Law, why: str) -> Fit:
    return Fit(law, "not identifiable", why)
