"""Networks trained on toy languages, seen whole: every state, every path, every order (see README.md).

All networks of one measurement train side by side on `process.loss` (dlm.toy.ensemble); what they have learned is
read as a table of conditionals mu [S N L V] over all states of the lattice, so that no measured number is itself
sampled.
Every file holds one value per seed; the report averages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from measure_modes import coverage, imbalance
from measure_toys import CUBE, SQUARE, language, languages, learn, networks, quality, series
from torch import Tensor

from dlm.files import write_json
from dlm.process import MaskedDiffusion
from dlm.toy import lattice as la
from dlm.toy.ensemble import Ensemble, Tables, conditionals, imitate
from dlm.toy.lattice import Lattice

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
