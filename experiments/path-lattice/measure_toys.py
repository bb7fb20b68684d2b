"""What the measurements share: the toy languages, how networks are trained on them and judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlm.noise import Stream, generator
from dlm.process import Process
from dlm.toy import lattice as la
from dlm.toy.ensemble import Ensemble, Net, train
from dlm.toy.lattice import Lattice

SQUARE, CUBE, MODES = Lattice(2, 2), Lattice(2, 3), Lattice(3, 4)


def language(lattice: Lattice, **weights: float) -> Tensor:
    """p [M] from unnormalised weights by string, written s011=..."""
    p = torch.zeros(len(lattice.states), dtype=torch.float64)
    for string, weight in weights.items():
        p[lattice.state(string[1:])] = weight
    return (p / p.sum())[lattice.clean]


def languages() -> dict[str, tuple[Lattice, Tensor]]:
    """The toy languages of the order measurements, by the name they have in the report."""
    dirichlet = generator(0, Stream.INITIALISATION, 0).dirichlet([0.5] * 8)
    return {
        "two strings": (SQUARE, language(SQUARE, s01=1, s11=1)),
        "even parity": (CUBE, language(CUBE, s000=1, s011=1, s101=1, s110=1)),
        "exactly one 1": (CUBE, language(CUBE, s100=6, s010=3, s001=1)),
        "random": (CUBE, torch.tensor(dirichlet)),
    }


def modes() -> Tensor:
    """Nine strings abab over three tokens, weights 1/rank: a constraint that generalises, and rare modes."""
    p = torch.zeros(len(MODES.states), dtype=torch.float64)
    for rank, (a, b) in enumerate((a, b) for a in range(3) for b in range(3)):
        p[MODES.index(torch.tensor([a, b, a, b]))] = 1 / (rank + 1)
    return (p / p.sum())[MODES.clean]


def networks(lattice: Lattice, seeds: Sequence[int], settings: dict[str, Any], shared: bool = False) -> Ensemble:
    shape = {"dim": settings["dim"], "depth": settings["depth"], "heads": 2}
    return Ensemble(lattice, seeds, settings["lr"], shared, **shape)


def learn(
    net: Net,
    processes: Sequence[Process],
    seeds: Sequence[int],
    p: Tensor,
    settings: dict[str, Any],
    **options: Any,
) -> tuple[list[int], list[Tensor]]:
    """`dlm.toy.ensemble.train` with the settings of the study."""
    options = {"steps": settings["steps"], "batch": settings["batch"], "marks": settings["marks"]} | options
    return train(net, processes, seeds, p, **options)


def quality(lattice: Lattice, mu: Tensor, p: Tensor) -> dict[str, list[float]]:
    """Per member, in nats: excess of the bound over the entropy = KL(p || random-order law) + Jensen gap, half the
    order variance, each averaged under p; and the total variation of the law."""
    edges = la.from_predictor(lattice, mu)
    law = la.terminal(lattice, edges)
    live = p > 0

    def mean(value: Tensor) -> Tensor:
        return torch.where(live, p * torch.where(live, value, 0.0), 0.0).sum(-1)

    kl = mean(p.log() - law.log())
    excess = mean(la.nelbo(lattice, edges) + p.log())
    found = {"excess": excess, "kl": kl, "gap": excess - kl}
    found |= {"half_variance": mean(la.order_variance(lattice, edges)) / 2, "tv": (law - p).abs().sum(-1) / 2}
    return {name: value.tolist() for name, value in found.items()}


def series(found: Sequence[dict[str, list[float]]]) -> dict[str, list[list[float]]]:
    """One row per mark for every key."""
    return {key: [row[key] for row in found] for key in found[0]}
