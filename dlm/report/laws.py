"""Laws of the held-out loss L(N, U, e): N parameters, U unique tokens, e epochs over them.

**Muennighoff et al. 2023** (arXiv 2305.16264, Eq. 5 and 6; alpha = beta as in their fit). Repeated tokens and
excess parameters lose their worth exponentially:

    L = E + A / N'^a + B / D'^a
    D' = U + U R_D (1 - exp(-(e - 1)/R_D))
    N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1)/R_N)),    U_N = min(N, (A/B)^(1/a) U)

It falls with e for ever, so it cannot represent over-fitting.

**Quokka**, Ni et al. 2025 (arXiv 2510.03280, Eq. 14):

    L = A / N^a + B / D'^b,    D' = U e^c exp(-(max(0, e - 1)/e_p)^k),    e_p = g U^h / N^m

with its minimum near `optimal_epochs`, (c/k)^(1/k) e_p.

**Chinchilla with an additive penalty.** Every token seen counts as new, and over-fitting is paid for apart, by a
term that grows with the parameters per unique token and with the repetitions. Additive penalties have been
proposed (arXiv 2605.01640); the form is this project's own:

    L = E + A / N^a + B / (U e)^b + F (N/U)^p (e - 1)^q

**With one model size** no term in N can be told from a constant. The laws are then reduced to what (U, e) alone
carries: E + A/N'^a, or A/N^a, becomes one constant E, e_p = g U^h, and the penalty F U^(-p) (e - 1)^q.

Losses are nats per token. Parameters are searched in `Law.coordinates`: amplitudes stand for the size of their
term at the geometric means of N and U, which unties them from the exponents, and positive ones are logarithms.
`Law.natural` turns them back into the numbers above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm.report.curve import Array


@dataclass(frozen=True, eq=False)
class Points:
    """Observed losses: parameters N, unique tokens U, epochs e (at least one) and nats per token, each [n].

    `cell` numbers the (N, U) each point belongs to, from zero. Raises ValueError for values no law is defined for.
    """

    parameters: Array
    unique: Array
    epochs: Array
    loss: Array
    cell: NDArray[np.int64]

    def __post_init__(self) -> None:
        if min(self.parameters.min(), self.unique.min(), self.loss.min()) <= 0 or self.epochs.min() < 1:
            raise ValueError("a law needs positive sizes, tokens and losses, and at least one epoch")

    @property
    def cells(self) -> int:
        return int(self.cell.max()) + 1

    @property
    def centre(self) -> tuple[float, float]:
        """Geometric means of N and U over the points."""
        return float(np.exp(np.log(self.parameters).mean())), float(np.exp(np.log(self.unique).mean()))

    @property
    def sizes(self) -> int:
        return len(np.unique(self.parameters))


@dataclass(frozen=True)
class Coordinate:
    """One searched parameter: the range of its starts, the box it stays in, and whether its log is searched."""

    name: str
    starts: tuple[float, float]
    box: tuple[float, float]
    log: bool = True

    def scaled(self, values: tuple[float, float]) -> tuple[float, float]:
        low, high = values
        return (math.log(low), math.log(high)) if self.log else (low, high)


@dataclass(frozen=True)
class Law:
    """A law: `predict(columns, log_n, log_u, e)` of the searched parameters, each [S, 1], at centred logs [n] of
    N and U and epochs [n], giving the loss [S, n]; `natural(values, N0, U0)` for the published parameters."""

    name: str
    form: str
    coordinates: tuple[Coordinate, ...]
    predict: Callable[[dict[str, Array], Array, Array, Array], Array]
    natural: Callable[[dict[str, Array], float, float], dict[str, Array]]

    @property
    def size(self) -> int:
        return len(self.coordinates)

    def values(self, z: Array) -> dict[str, Array]:
        """Search coordinates [S, p] as values, each [S, 1]."""
        columns = zip(self.coordinates, z.T, strict=True)
        return {c.name: (np.exp(x) if c.log else x)[:, None] for c, x in columns}

    def loss(self, z: Array, points: Points, centre: tuple[float, float]) -> Array:
        """Predicted loss [S, n] at search coordinates z [S, p]."""
        log_n, log_u = np.log(points.parameters / centre[0]), np.log(points.unique / centre[1])
        return self.predict(self.values(z), log_n, log_u, points.epochs)


def optimal_epochs(c: float, k: float, e_p: float) -> float:
    """Epochs at which Quokka's law is lowest, (c/k)^(1/k) e_p, for optima far above one epoch."""
    return (c / k) ** (1 / k) * e_p


def _worth(repeats: Array, scale: Array) -> Array:
    """Muennighoff's 1 + R* (1 - exp(-R/R*))."""
    return 1 - scale * np.expm1(-repeats / scale)


def _muennighoff(v: dict[str, Array], log_n: Array, log_u: Array, e: Array) -> Array:
    optimal = np.minimum(log_n, np.log(v["A"] / v["B"]) / v["a"] + log_u)
    log_size = optimal + np.log(_worth(np.expm1(log_n - optimal), v["R_N"]))
    log_data = log_u + np.log(_worth(e - 1, v["R_D"]))
    return v["E"] + v["A"] * np.exp(-v["a"] * log_size) + v["B"] * np.exp(-v["a"] * log_data)


def _muennighoff_one_size(v: dict[str, Array], log_n: Array, log_u: Array, e: Array) -> Array:
    return v["E"] + v["B"] * np.exp(-v["b"] * (log_u + np.log(_worth(e - 1, v["R_D"]))))


def _quokka_term(v: dict[str, Array], log_u: Array, e: Array, log_e_p: Array) -> Array:
    with np.errstate(divide="ignore", over="ignore"):
        decay = np.exp(np.minimum(v["k"] * (np.log(e - 1) - log_e_p), 50.0))
        return v["B"] * np.exp(np.minimum(-v["b"] * (log_u + v["c"] * np.log(e) - decay), 50.0))


def _quokka(v: dict[str, Array], log_n: Array, log_u: Array, e: Array) -> Array:
    log_e_p = np.log(v["g"]) + v["h"] * log_u - v["m"] * log_n
    return v["A"] * np.exp(-v["a"] * log_n) + _quokka_term(v, log_u, e, log_e_p)


def _quokka_one_size(v: dict[str, Array], log_n: Array, log_u: Array, e: Array) -> Array:
    return v["E"] + _quokka_term(v, log_u, e, np.log(v["g"]) + v["h"] * log_u)


def _repeats(e: Array, power: Array) -> Array:
    """(e - 1)^power, with 0 at one epoch."""
    with np.errstate(divide="ignore"):
        return np.exp(power * np.log(e - 1))


def _penalty(v: dict[str, Array], log_n: Array, log_u: Array, e: Array) -> Array:
    fresh = v["A"] * np.exp(-v["a"] * log_n) + v["B"] * np.exp(-v["b"] * (log_u + np.log(e)))
    return v["E"] + fresh + v["F"] * np.exp(v["p"] * (log_n - log_u)) * _repeats(e, v["q"])


def _penalty_one_size(v: dict[str, Array], log_n: Array, log_u: Array, e: Array) -> Array:
    fresh = v["B"] * np.exp(-v["b"] * (log_u + np.log(e)))
    return v["E"] + fresh + v["F"] * np.exp(-v["p"] * log_u) * _repeats(e, v["q"])


def _natural(v: dict[str, Array], n0: float, u0: float) -> dict[str, Array]:
    """Amplitudes at the origin from amplitudes at the centre."""
    found = dict(v)
    if "A" in v:
        found["A"] = v["A"] * n0 ** v["a"]
    found["B"] = v["B"] * u0 ** (v["b"] if "b" in v else v["a"])
    if "g" in v:
        found["g"] = v["g"] * u0 ** -v["h"] * (n0 ** v["m"] if "m" in v else 1.0)
    if "F" in v:
        found["F"] = v["F"] * (n0 ** -v["p"] if "A" in v else 1.0) * u0 ** v["p"]
    return found


def _pick(names: str) -> tuple[Coordinate, ...]:
    return tuple(COORDINATES[name] for name in names.split())


COORDINATES = {
    c.name: c
    for c in (
        Coordinate("E", (0.2, 3.0), (1e-3, 1e2)),
        Coordinate("A", (0.03, 3.0), (1e-5, 1e3)),
        Coordinate("a", (0.1, 1.0), (1e-3, 5.0)),
        Coordinate("B", (0.03, 3.0), (1e-5, 1e3)),
        Coordinate("b", (0.1, 1.0), (1e-3, 5.0)),
        Coordinate("R_D", (2.0, 300.0), (1e-2, 1e5)),
        Coordinate("R_N", (1.0, 100.0), (1e-2, 1e5)),
        Coordinate("c", (0.5, 2.5), (1e-2, 20.0)),
        Coordinate("k", (0.2, 1.2), (0.02, 5.0)),
        Coordinate("g", (0.3, 300.0), (1e-4, 1e6)),
        Coordinate("h", (-0.5, 1.0), (-6.0, 6.0), log=False),
        Coordinate("m", (-0.5, 1.0), (-6.0, 6.0), log=False),
        Coordinate("F", (1e-4, 1.0), (1e-9, 1e3)),
        Coordinate("p", (-0.5, 2.0), (-6.0, 6.0), log=False),
        Coordinate("q", (0.3, 2.0), (0.05, 10.0)),
    )
}

LAWS = {
    law.name: law
    for law in (
        Law(
            "muennighoff", "E + A/N'^a + B/D'^a, D' = U + U R_D (1 - exp(-(e-1)/R_D))",
            _pick("E A a B R_D R_N"), _muennighoff, _natural,
        ),
        Law(
            "quokka", "A/N^a + B/D'^b, D' = U e^c exp(-((e-1)/e_p)^k), e_p = g U^h / N^m",
            _pick("A a B b c k g h m"), _quokka, _natural,
        ),
        Law(
            "penalty", "E + A/N^a + B/(U e)^b + F (N/U)^p (e-1)^q",
            _pick("E A a B b F p q"), _penalty, _natural,
        ),
    )
}  # fmt: skip

ONE_SIZE = {
    law.name: law
    for law in (
        Law(
            "muennighoff", "E + B/D'^b, D' = U + U R_D (1 - exp(-(e-1)/R_D)); one model size",
            _pick("E B b R_D"), _muennighoff_one_size, _natural,
        ),
        Law(
            "quokka", "E + B/D'^b, D' = U e^c exp(-((e-1)/e_p)^k), e_p = g U^h; one model size",
            _pick("E B b c k g h"), _quokka_one_size, _natural,
        ),
        Law(
            "penalty", "E + B/(U e)^b + F U^(-p) (e-1)^q; one model size",
            _pick("E B b F p q"), _penalty_one_size, _natural,
        ),
    )
}  # fmt: skip
