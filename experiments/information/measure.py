"""What is measured here: information destroyed, preserved and generated, and what networks are charged for it.

Two languages are small enough to be listed: `letters`, a Markov chain over V letters, for everything; `sentences`,
seven sentences of four words, for the information alone. Every number is a finite sum in float64, except that the
trained networks depend on their seed. Everything is stored in nats.
"""

import math
from pathlib import Path
from typing import Any

import torch
from measure_languages import described, letters, processes, sentences, spread_out
from measure_tables import nodes, train
from torch import Tensor

from dlm.files import write_json
from dlm.process import MaskedDiffusion, Process, UniformDiffusion
from dlm.process.destroyers import (
    Destroyer,
    MashLastToken,
    MashOneRandomUnmaskedToken,
    ShuffleOneRandomToken,
    number,
    sequences,
)
from dlm.toy import channels
from dlm.toy.channels import account, entropy, known, mutual_information
from dlm.toy.information import (
    Language,
    charged,
    exact_network,
    joint_table,
    mash_last_information,
    mash_one_information,
    masked_information,
    order_nll,
    pattern_information,
    shuffle_information,
    slope,
    token_masked_information,
    uniform_information,
)

SETTINGS = {
    "letters": int,  # V and L of the Markov chain
    "length": int,
    "stay": float,  # probability that a letter repeats
    "times": int,  # points of every curve over t
    "steps": int,  # of the three destroyers
    "spreads": list,  # GenMD4: w runs geometrically from 1/spread (the first token) to spread (the last)
    "checkpoints": list,  # training steps after which a network is measured
    "batch": int,
    "learning_rate": float,
    "knots": int,  # times at which a table of logits that depends on t is free
    "perturbation": float,  # standard deviation of the noise on the logits of the perturbed network
    "seeds": list,
}

DESTROYERS = (MashLastToken, MashOneRandomUnmaskedToken, ShuffleOneRandomToken)
CHAIN = 8  # Shuffles in a row between the stations of the two stories
QUOTED = 25  # Shuffles of the essay's example


# -- processes over time, destroyers over steps -------------------------------------------------------------


def curve(process: Process | Destroyer, language: Language, where: list[Any]) -> dict[str, list[float]]:
    """preserved, destroyed and generated at every t or k."""
    accounts = [account(joint_table(process, language, t)) for t in where]
    return {key: [getattr(a, key) for a in accounts] for key in ("preserved", "destroyed", "generated")}


Made = dict[str, dict[str, Process]]  # by language and method


def measure_processes(
    languages: dict[str, Language], made: Made, settings: dict[str, Any], directory: Path
) -> None:
    times = torch.linspace(0, 1, settings["times"], dtype=torch.float64).tolist()
    result: dict[str, Any] = {"t": times, "languages": {}}
    first, *_ = languages
    found = {name: curve(process, languages[first], times) for name, process in made[first].items()}
    groups: list[list[str]] = []  # methods that destroy alike, whatever they learn by
    for name, c in found.items():
        same = [g for g in groups if max_gap(found[g[0]], c) < 1e-9]
        same[0].append(name) if same else groups.append([name])
    for title, language in languages.items():
        curves = [found[g[0]] if title == first else curve(made[title][g[0]], language, times) for g in groups]
        masks = [made[title][g[0]].mask_id is not None for g in groups]
        result["languages"][title] = {
            **described(language),
            "curves": [{"methods": g, "masks": m, **c} for g, m, c in zip(groups, masks, curves, strict=True)],
            "pattern": [pattern(language, s, times) for s in settings["spreads"]],
            "closed_form_error": max(closed_errors(language, settings["spreads"], times[1:-1:4])),
        }
        print(f"  {title}: {len(groups)} ways of destroying among {sum(map(len, groups))} methods", flush=True)
    write_json(directory / "processes.json", result)


def max_gap(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    return max(abs(x - y) for key in a for x, y in zip(a[key], b[key], strict=True))


def pattern(language: Language, spread: float, times: list[float]) -> dict[str, Any]:
    """What the pattern of GenMD4's masks alone gives away."""
    w = spread_out(language, spread).schedule.w
    return {"spread": spread, "preserved": [float(pattern_information(language, t**w)) for t in times]}


def closed_errors(language: Language, spreads: list[float], times: list[float]) -> list[float]:
    """|closed form - joint table| of masks, GenMD4 and uniform noise on a linear schedule."""
    v, errors = language.vocab_size, []
    for t in times:
        pairs: list[tuple[Tensor, Process]] = [(masked_information(language, t), MaskedDiffusion(v))]
        pairs.append((uniform_information(language, 1 - t), UniformDiffusion(v)))
        for spread in spreads:
            process = spread_out(language, spread)
            pairs.append((token_masked_information(language, t**process.schedule.w), process))
        errors += [float((value - mutual_information(joint_table(p, language, t))).abs()) for value, p in pairs]
    return errors


def measure_destroyers(languages: dict[str, Language], settings: dict[str, Any], directory: Path) -> None:
    result: dict[str, Any] = {"k": list(range(settings["steps"] + 1)), "languages": {}}
    small = languages["letters"]
    for title, language in languages.items():
        made = [kind(language.vocab_size, language.length) for kind in DESTROYERS]
        curves = {type(d).__name__: curve(d, language, result["k"]) for d in made}
        result["languages"][title] = described(language) | {"curves": curves}
    forms = dict(zip(DESTROYERS, (mash_last_information, mash_one_information, shuffle_information), strict=True))
    errors = [
        abs(float(form(small, k)) - result["languages"]["letters"]["curves"][kind.__name__]["preserved"][k])
        for kind, form in forms.items()
        for k in result["k"]
    ]
    result["closed_form_error"] = max(errors)
    write_json(directory / "destroyers.json", result)


# -- networks -----------------------------------------------------------------------------------------------


def measure_slopes(
    language: Language, methods: dict[str, Process], settings: dict[str, Any], directory: Path
) -> None:
    """-dI/dt, the integrand of the exact network, of the trained ones, and the areas between."""
    spread = f"genmd4 (spread {settings['spreads'][-1]:g})"
    result: dict[str, Any] = {"entropy": float(language.entropy), "h": 1e-5, "methods": {}}
    for name in ("md4", spread, "shuffle", "dfm_uniform"):
        process = methods[name]
        low, high = process.t_min + 0.01, process.t_max - 0.01
        t = torch.linspace(low, high, settings["times"], dtype=torch.float64).tolist()
        t_node, weight = nodes(process)
        ends = [
            float(mutual_information(joint_table(process, language, e))) for e in (process.t_min, process.t_max)
        ]

        def spent(net, process=process, t_node=t_node, weight=weight) -> float:
            return float(weight @ torch.stack([charged(process, net, language, float(s)) for s in t_node]))

        exact = exact_network(process, language)
        one = {
            "t": t,
            "slope": [float(slope(process, language, s, result["h"])) for s in t],
            "exact": [float(charged(process, exact, language, s)) for s in t],
            "integral": spent(exact),
            "lost": ends[0] - ends[1],
            "bound": process.bound_kind,
            "trained": [],
        }
        above = [b - a for a, b in zip(one["slope"], one["exact"], strict=True)]
        one["deviation"], one["least"] = max(map(abs, above)), min(above)
        what = "above by at least" if process.bound_kind == "flow path bound" else "largest difference"
        amount = one["least"] if process.bound_kind == "flow path bound" else one["deviation"]
        print(f"  {name}: integrand of the exact network against -dI/dt, {what} {amount:.1e}", flush=True)
        if name in ("md4", "shuffle"):
            for seed in settings["seeds"]:
                for n, net in train(process, language, settings, seed):
                    paid = [float(charged(process, net, language, s)) for s in t]
                    one["trained"].append(
                        {"seed": seed, "steps": n, "paid": paid, "area": spent(net) - one["lost"]}
                    )
        result["methods"][name] = one
    write_json(directory / "slopes.json", result)


def measure_orders(language: Language, settings: dict[str, Any], directory: Path) -> None:
    """The same conditionals asked in order, in every order, and the law of a random order."""
    process = MaskedDiffusion(language.vocab_size)
    mask = process.mask_id
    exact = exact_network(process, language)
    result: dict[str, Any] = {"entropy": float(language.entropy), "networks": []}

    def add(name: str, seed: int | None, net: Any) -> None:
        nll = order_nll(net, language, mask)
        each = nll @ language.p
        random_order = -(torch.logsumexp(-nll, 0) - math.log(len(nll))) @ language.p
        result["networks"].append(
            {
                "network": name,
                "seed": seed,
                "in_order": float(each[0]),
                "mean": float(each.mean()),
                "best": float(each.min()),
                "worst": float(each.max()),
                "random": float(random_order),
                "spread": float(nll.std(0, correction=0) @ language.p),
            }
        )

    add("exact", None, exact)
    states = sequences(process.num_states, language.length)
    table = exact(states, torch.full((len(states),), 0.5)).clamp(min=-30)
    for seed in settings["seeds"]:
        rng = torch.Generator().manual_seed(seed)
        noisy = table + settings["perturbation"] * torch.randn(table.shape, generator=rng, dtype=torch.float64)
        add("exact, perturbed", seed, lambda x, t, noisy=noisy: noisy[number(x, process.num_states)])
        for n, net in train(process, language, settings, seed):
            add(f"any order, {n:,} steps", seed, net)
        for n, net in train(process, language, settings, seed, in_order=True):
            add(f"in order only, {n:,} steps", seed, net)
    write_json(directory / "orders.json", result)


# -- channels -----------------------------------------------------------------------------------------------


def measure_channels(directory: Path) -> None:
    """Alice says 0 half of the time; what each channel does to that, and to an even choice."""
    skewed = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    mash, shuffle = channels.mash(), channels.shuffle()
    listed = [
        channels.identity(),
        channels.cypher(),
        channels.cypher() >> channels.decrypt(),
        channels.product(),
        channels.product() >> channels.project(),
        channels.product() >> channels.project_coin(),
        mash,
        mash >> mash.guess(skewed),
        mash >> channels.mash_rest(),
        shuffle,
        shuffle >> shuffle,
        shuffle >> mash,
        mash >> mash.guess(skewed) >> shuffle,
    ]
    table = [{"channel": c.name, **c.account(skewed)._asdict()} for c in listed]
    stories = known(skewed, [shuffle] * CHAIN)
    runs = []
    for n in range(QUOTED + 1):
        power = torch.linalg.matrix_power(shuffle.matrix, n)
        low, high = channels.shuffle_range(n)
        runs.append({"n": n, "least": float(power.min()), "most": float(power.max()), "low": low, "high": high})
        runs[-1]["preserved"] = float(mutual_information(skewed[:, None] * power))
    content = {
        "alice": skewed.tolist(),
        "sent": float(entropy(skewed)),
        "channels": table,
        "known": stories.tolist(),
        "shuffles": runs,
        "quoted": [0.33333331, 0.33333335],
    }
    write_json(directory / "channels.json", content)


def measure(settings: dict[str, Any], directory: Path) -> None:
    languages = {
        "letters": letters(settings["letters"], settings["length"], settings["stay"]),
        "sentences": sentences(),
    }
    for title, language in languages.items():
        print(f"{title}: {len(language.p)} sequences, {float(language.entropy):.3f} nats", flush=True)
    made = {title: processes(language, settings["spreads"]) for title, language in languages.items()}
    measure_channels(directory)
    measure_processes(languages, made, settings, directory)
    measure_destroyers(languages, settings, directory)
    measure_slopes(languages["letters"], made["letters"], settings, directory)
    measure_orders(languages["letters"], settings, directory)
