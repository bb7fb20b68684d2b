"""Networks trained on toy languages, seen whole: every state, every path, every order (see README.md).

All networks of one measurement train side by side on `process.loss` (dlm.ensemble); what they have learned is read
as a table of conditionals mu [S N L V] over all states of the lattice, so that no measured number is itself
sampled.
Every file holds one value per seed; the report averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlm import lattice as la
from dlm.ensemble import Ensemble, Net, Tables, conditionals, imitate, train
from dlm.files import write_json
from dlm.lattice import Lattice
from dlm.noise import Stream, generator
from dlm.process import MaskedDiffusion, Process
from dlm.process.balanced import BalancedDiffusion

SETTINGS = {
    "seeds": list,
    "steps": int,  # of training, for every network
    "more_steps": int,  # on the data that reach what was never visited
    "marks": int,  # how often a network is looked at, evenly in log(step)
    "batch": int,
    "dim": int,
    "depth": int,
    "lr": float,  # of networks
    "table_lr": float,  # of tables of logits
    "theta": float,  # where the biased networks begin
    "rare": float,  # weight of the strings added later
    "tremble": list,  # rates
    "training_sets": list,  # sizes of finite samples
    "draws": int,  # strings drawn from every network to count modes
}

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
    """`dlm.ensemble.train` with the settings of the study."""
    options = {"steps": settings["steps"], "batch": settings["batch"], "marks": settings["marks"]} | options
    return train(net, processes, seeds, p, **options)


# -- what is read off a table -------------------------------------------------------------------------------


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


def lean(mu: Tensor) -> dict[str, list[float]]:
    """Where on the factorised line from balanced (0) to one path per string (1), seen from __ and from _1; and the
    total variation of the path law from either end."""
    root, shared = SQUARE.root, SQUARE.state("_1")
    paths = la.path_masses(SQUARE, la.from_predictor(SQUARE, mu))
    found = {"from__": 2 * mu[:, root, 0, 0] - 1, "from_1": 1 - 2 * mu[:, shared, 0, 0]}
    for name, (a, b) in {"balanced": (0.25, 0.25), "concentrated": (0.5, 0.0)}.items():
        end = la.path_masses(SQUARE, la.two_strings(a, b))
        found[f"to_{name}"] = (paths - end).abs().sum((1, 2)) / 2
    return {name: value.tolist() for name, value in found.items()}


# -- the measurements ---------------------------------------------------------------------------------------


def drawings() -> dict[str, Any]:
    """The solutions that the report draws."""
    halves, one = language(SQUARE, s01=1, s11=1), language(CUBE, s100=1, s010=1, s001=1)
    pairs = {
        "balanced": (SQUARE, la.balanced(SQUARE, halves)),
        "constraint first (lambda = 1)": (SQUARE, la.from_paths(SQUARE, torch.tensor([[0.0], [1.0]]) * halves)),
        "concentrated, one path per string": (SQUARE, la.two_strings(0.5, 0.0)),
        "factorised, theta = 0.6": (SQUARE, la.from_predictor(SQUARE, la.factorised(SQUARE, 0.6))),
        "exactly one 1: balanced": (CUBE, la.balanced(CUBE, one)),
        "exactly one 1: concentrated, left to right": (
            CUBE,
            la.concentrated(CUBE, one, torch.zeros(8, dtype=torch.long)),
        ),
        "011 and 111: factorised, theta = 0.6": (CUBE, la.from_predictor(CUBE, la.factorised(CUBE, 0.6))),
    }
    return {name: drawing(lattice, edges) for name, (lattice, edges) in pairs.items()}


def drawing(lattice: Lattice, edges: Tensor) -> dict[str, Any]:
    """States with their visits, and edges [from, to, probability]."""
    names, seen = [lattice.label(n) for n in range(len(lattice.states))], la.visits(lattice, edges)
    links = [
        [names[n], names[int(lattice.child[n, i, v])], float(edges[n, i, v])]
        for n in range(len(names))
        for i in range(lattice.length)
        if lattice.hidden[n, i]
        for v in range(lattice.vocab_size)
    ]
    return {"length": lattice.length, "visits": dict(zip(names, seen.tolist(), strict=True)), "edges": links}


def select(settings: dict[str, Any]) -> tuple[dict[str, Any], Ensemble]:
    """Two strings, from neutral and from biased starts, as networks and as tables; also the neutral networks."""
    seeds, (_, p) = settings["seeds"], languages()["two strings"]
    biased = la.factorised(SQUARE, settings["theta"]) * SQUARE.hidden[..., None]
    nets = networks(SQUARE, [*seeds, *seeds], settings)
    leaning = nets.chosen(range(len(seeds), 2 * len(seeds)))
    imitate(leaning, biased, settings["steps"] // 2)
    for name, value in leaning.parameters.items():
        nets.parameters[name].data[len(seeds) :] = value.detach()
    flat = torch.full_like(biased, 0.5)
    tables = Tables(SQUARE, torch.stack([flat] * len(seeds) + [biased] * len(seeds)), settings["table_lr"])
    found: dict[str, Any] = {}
    wide = p.expand(2 * len(seeds), -1)
    for kind, net in (("network", nets), ("table", tables)):
        steps, seen = learn(net, [MaskedDiffusion(2)], seeds * 2, wide, settings)
        rows = [lean(mu) | quality(SQUARE, mu, wide) for mu in seen]
        for start, members in (("neutral", slice(0, len(seeds))), ("biased", slice(len(seeds), None))):
            kept = [{key: values[members] for key, values in row.items()} for row in rows]
            found[f"{kind}, {start}"] = {"steps": steps} | series(kept)
    return found, nets.chosen(range(len(seeds)))


def orders(settings: dict[str, Any]) -> dict[str, Any]:
    """Order variance and its relation to the error, on every language of length three."""
    cube = {name: p for name, (lattice, p) in languages().items() if lattice is CUBE}
    seeds = settings["seeds"]
    p = torch.cat([q.expand(len(seeds), -1) for q in cube.values()])
    nets = networks(CUBE, seeds * len(cube), settings)
    steps, seen = learn(nets, [MaskedDiffusion(2)], seeds * len(cube), p, settings)
    rows = [quality(CUBE, mu, p) for mu in seen]
    found = {}
    for i, name in enumerate(cube):
        part = slice(i * len(seeds), (i + 1) * len(seeds))
        found[name] = {"steps": steps} | series([{k: v[part] for k, v in row.items()} for row in rows])
    return found


def unvisited(settings: dict[str, Any], nets: Ensemble) -> dict[str, Any]:
    """mu^1(0 | _0), the "?" edge: what two-string training left there, and how it moves once data reach it.

    By networks with symbols of their own for every position, by networks that share them, by tables of logits.
    """
    seeds, rare, state = settings["seeds"], settings["rare"], SQUARE.state("_0")
    halves = languages()["two strings"][1]
    data = {
        "00": language(SQUARE, s01=(1 - rare) / 2, s11=(1 - rare) / 2, s00=rare),
        "00 and 10": language(SQUARE, s01=(1 - rare) / 2, s11=(1 - rare) / 2, s00=rare / 2, s10=rare / 2),
    }
    shared = networks(SQUARE, seeds, settings, shared=True)
    learn(shared, [MaskedDiffusion(2)], seeds, halves.expand(len(seeds), -1), settings)
    kinds = {"own": nets, "shared": shared}
    found: dict[str, Any] = {
        "before": {name: conditionals(net)[:, state, 0, 0].tolist() for name, net in kinds.items()},
        "visits_per_step": settings["batch"] * float(la.training_visits(SQUARE, data["00"])[state]),
    }
    p = torch.cat([q.expand(len(seeds), -1) for q in data.values()])
    for name, net in kinds.items():
        twice = net.chosen([*range(len(seeds))] * 2)
        steps, seen = learn(twice, [MaskedDiffusion(2)], seeds * 2, p, settings, steps=settings["more_steps"])
        moved = torch.stack([mu[:, state, 0, 0] for mu in seen]).chunk(2, 1)
        found |= {"steps": steps} | {f"{name}, {added}": moved[i].tolist() for i, added in enumerate(data)}
    starts = [0.02, 0.5, 0.98]
    mu = la.exact_conditionals(SQUARE, halves).repeat(len(starts) * len(seeds), 1, 1, 1)
    for i, start in enumerate(starts):
        mu[i * len(seeds) : (i + 1) * len(seeds), state, 0] = torch.tensor([start, 1 - start], dtype=mu.dtype)
    tables, wide = Tables(SQUARE, mu, settings["table_lr"]), data["00"].expand(len(mu), -1)
    _, seen = learn(tables, [MaskedDiffusion(2)], seeds * 3, wide, settings, steps=settings["more_steps"])
    moved = torch.stack([mu[:, state, 0, 0] for mu in seen]).chunk(3, 1)
    return found | {f"table from {s}, 00": moved[i].tolist() for i, s in enumerate(starts)}


def trembling(settings: dict[str, Any], nets: Ensemble) -> dict[str, Any]:
    """P(second token = 0) of the trained networks by rate, in three orders, by edge and by token."""
    mu, found = conditionals(nets), {}
    for kind in ("edge", "token"):
        for lam in (0.0, 0.5, 1.0):
            policy = la.order_policy(SQUARE, torch.tensor([1 - lam, lam], dtype=torch.float64))
            edges = la.from_predictor(SQUARE, mu, policy)
            laws = [la.terminal(SQUARE, la.tremble(SQUARE, edges, rate, kind)) for rate in settings["tremble"]]
            found[f"{kind}, {lam:g}"] = [law[:, [0, 2]].sum(1).tolist() for law in laws]
    return {"rates": settings["tremble"]} | found


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


def measure(settings: dict[str, Any], directory: Path) -> None:
    """All measurements, each into a file of its own."""
    write_json(directory / "drawings.json", drawings())
    print("two strings: which solution training selects", flush=True)
    found, nets = select(settings)
    write_json(directory / "selection.json", found)
    print("what was never visited; the trembling hand", flush=True)
    write_json(directory / "unvisited.json", unvisited(settings, nets))
    write_json(directory / "trembling.json", trembling(settings, nets))
    print("order variance on the languages of length three", flush=True)
    both = {"two strings": found["network, neutral"]} | orders(settings)
    entropies = {n: float(-torch.special.xlogy(p, p).sum()) for n, (_, p) in languages().items()}
    write_json(directory / "orders.json", {"entropy": entropies, "languages": both})
    print("modes from finite samples", flush=True)
    write_json(directory / "coverage.json", coverage(settings))
    print("how evenly states train", flush=True)
    write_json(directory / "imbalance.json", imbalance(settings))
