"""Nine modes of unequal weight: what networks make of finite samples, and how evenly their states train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from measure_toys import MODES, learn, modes, networks, quality, series
from torch import Tensor

from dlm.noise import Stream, generator
from dlm.process import MaskedDiffusion, Process
from dlm.process.balanced import BalancedDiffusion
from dlm.toy import lattice as la


def coverage(settings: dict[str, Any]) -> dict[str, Any]:
    """The nine modes learned from finite samples: what the law covers, smooths over and invents."""
    found: dict[str, Any] = {"modes": int((modes() > 0).sum()), "sets": []}
    first = settings["training_sets"][0]
    for sizes, shared in (([*settings["training_sets"], 0], False), ([first], True)):
        hat = torch.stack([training_set(seed, size) for size in sizes for seed in settings["seeds"]])
        seeds = settings["seeds"] * len(sizes)
        nets = networks(MODES, seeds, settings, shared)
        steps, seen = learn(nets, [MaskedDiffusion(3)], seeds, hat, settings)
        rows = [covered(la.terminal(MODES, la.from_predictor(MODES, mu)), hat, seeds, settings) for mu in seen]
        constant = sampled(hat, seeds, settings)
        for i, size in enumerate(sizes):
            part = slice(i * len(settings["seeds"]), (i + 1) * len(settings["seeds"]))
            entry = {key: [row[key][part].tolist() for row in rows] for key in rows[0]}
            entry |= {key: value[part].tolist() for key, value in constant.items()}
            found["sets"].append({"size": size, "shared": shared} | entry)
        found["steps"] = steps
    return found


def training_set(seed: int, size: int) -> Tensor:
    """Shares of `size` strings drawn from the modes; the modes themselves for size 0."""
    rng = generator(seed, Stream.EVALUATION, size)
    return torch.from_numpy(rng.multinomial(size, modes().numpy()) / size) if size else modes()


def drawn(law: Tensor, seeds: Sequence[int], key: int, draws: int) -> Tensor:
    """Shares of `draws` strings from each law."""
    rngs = [generator(seed, Stream.EVALUATION, key) for seed in seeds]
    rows = [rng.multinomial(draws, (q / q.sum()).numpy()) for rng, q in zip(rngs, law, strict=True)]
    return torch.from_numpy(np.stack(rows)).double() / draws


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation."""
    return (p - q).abs().sum(-1) / 2


def covered(law: Tensor, hat: Tensor, seeds: Sequence[int], settings: dict[str, Any]) -> dict[str, Tensor]:
    """What each law [S M] has made of its training set."""
    p, sample = modes(), drawn(law, seeds, 10_000, settings["draws"])
    return {
        "seen": torch.where(hat > 0, law, 0).sum(-1),
        "unseen": torch.where((hat == 0) & (p > 0), law, 0).sum(-1),
        "invalid": torch.where(p == 0, law, 0).sum(-1),
        "tv_data": distance(law, p),
        "tv_empirical": distance(law, hat),
        "tv_drawn": distance(sample, p),
        "missed": ((sample == 0) & (p > 0)).sum(-1),
        "entropy_gain": torch.special.xlogy(hat, hat).sum(-1) - torch.special.xlogy(law, law).sum(-1),
    }


def sampled(hat: Tensor, seeds: Sequence[int], settings: dict[str, Any]) -> dict[str, Tensor]:
    """What chance alone does: to the training sets, and to as many draws from the data as from the networks."""
    p = modes()
    perfect = drawn(p.expand_as(hat), seeds, 10_001, settings["draws"])
    return {
        "unseen_share": torch.where(hat == 0, p, 0).sum(-1),
        "unseen_modes": ((hat == 0) & (p > 0)).sum(-1),
        "tv_sample": distance(hat, p),
        "missed_by_data": ((perfect == 0) & (p > 0)).sum(-1),
        "tv_drawn_from_data": distance(perfect, p),
    }


def imbalance(settings: dict[str, Any]) -> dict[str, Any]:
    """How unevenly states train: MD4, MD4 with rejection, and MD4 on as few rows as rejection leaves."""
    seeds, p = settings["seeds"], modes()
    reached = torch.where((la.training_visits(MODES, p) > 0) & (MODES.masks > 0))[0]
    weight = la.training_visits(MODES, p)[reached]
    found: dict[str, Any] = {
        "states": [MODES.label(int(n)) for n in reached],
        "masks": MODES.masks[reached].tolist(),
        "expected": (weight / weight.sum()).tolist(),
    }
    plain, rejecting = ([kind(3) for _ in seeds] for kind in (MaskedDiffusion, BalancedDiffusion))
    batch = settings["batch"]
    for name, processes in (("md4", plain), ("md4_balanced", rejecting), ("md4_fewer", plain)):
        if name == "md4_fewer":
            used = (np.sum(found[kind]["visits"]) for kind in ("md4_balanced", "md4"))
            batch = max(1, round(batch * next(used) / next(used)))
        found |= {name: unevenly(settings, processes, batch, reached) | {"batch": batch}}
    return found | {"steps": found["md4"]["steps"]}


def unevenly(
    settings: dict[str, Any], processes: Sequence[Process], batch: int, reached: Tensor
) -> dict[str, Any]:
    """Train on the modes with one process per seed; visits and gradient norms by state, and the errors."""
    seeds, p = settings["seeds"], modes()
    visits, signal = (torch.zeros(len(seeds), len(MODES.states)) for _ in range(2))
    member = torch.arange(len(seeds)).repeat_interleave(batch)

    def watch(state: Tensor, gradient: Tensor) -> None:
        norm = gradient.pow(2).sum((1, 2)).sqrt() * batch * MODES.length  # of a row's own objective
        signal.index_put_((member, state), norm, accumulate=True)
        visits.index_put_((member, state), (norm > 0).float(), accumulate=True)

    wide, exact = p.expand(len(seeds), -1), la.exact_conditionals(MODES, p)
    nets = networks(MODES, seeds, settings)
    steps, seen = learn(nets, processes, seeds, wide, settings, batch=batch, watch=watch)
    rows = []
    for mu in seen:
        ratio = torch.where(exact > 0, exact, 1.0) / torch.where(exact > 0, mu, 1.0)
        kl = (exact * ratio.log()).sum((-1, -2))[:, reached]
        errors = {"mean": kl.mean(1).tolist(), "worst": kl.amax(1).tolist()}
        rows.append(errors | {"excess": quality(MODES, mu, wide)["excess"]})
    return {
        "steps": steps,
        "visits": visits[:, reached].tolist(),
        "signal": signal[:, reached].tolist(),
    } | series(rows)
