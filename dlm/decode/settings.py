"""The ways of decoding that a command line asks for: the product of its lists, without what contradicts itself.

How many tokens a step reveals is one axis with two names: `per_step=1,2 steps=10` are three paces. Without a noise
there is neither its scale nor its anneal, so noise=none appears once however many of those are listed.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, NamedTuple

from dlm import sampling
from dlm.errors import UserError
from dlm.sampling import Order

VALUES = {"greedy": sampling.greedy, "sampled": sampling.warp()}
"""How a token's value is drawn from the network's law of it: the likeliest, or at random."""
RANKED = ("policy", "noise", "noise_scale", "anneal", "score_scale", "selection", "reveal", "remask", "ties")
"""What `Order` decides; the rest of an ordered setting is its pace and its values."""
AXES = (*RANKED, "per_step", "steps", "values")


class Setting(NamedTuple):
    """One way of decoding: a sampler and what it is told, with the default of everything that it is not."""

    sampler: str
    choice: dict[str, Any]

    @property
    def policy(self) -> str:
        """The order of the tokens by its name."""
        return self.choice.get("policy") or self.sampler

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `LanguageModel.sample`, but for the place that policy=given needs."""
        told = {key: value for key, value in self.choice.items() if key != "values" and value is not None}
        return told | {"warp": VALUES[self.choice["values"]]}

    def __str__(self) -> str:
        choice = self.choice
        log = " log" if choice.get("score_scale") == "log" else ""
        parts = [f"{self.policy}{log}"]
        if choice.get("noise", "none") != "none":
            annealed = " annealed" if choice["anneal"] == "masked_share" else ""
            parts.append(f"{choice['noise']} {choice['noise_scale']:g}{annealed}")
        parts += [f"{choice[key]} {words}" for key, words in PACES.items() if choice.get(key)]
        parts += [f"{key}={choice[key]}" for key, value in UNSAID.items() if choice.get(key, value) != value]
        return ", ".join([*parts, choice["values"]])


PACES = {"per_step": "per step", "steps": "steps"}
UNSAID = {"selection": "state", "reveal": "equal", "remask": False, "ties": "random"}
"""What a line of results says only where it is otherwise."""


class Product(NamedTuple):
    """What lists of choices come to: settings, and how often each reason left a combination out."""

    settings: list[Setting]
    left_out: Counter[str]


def numbers(key: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """A comma-separated list of positive numbers. Raises UserError for anything else."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < number < float("inf") for number in found):
        wanted = "positive whole numbers" if kind is int else "positive numbers"
        raise UserError(f"{key}={text}: expected {wanted}, separated by commas")
    return found


def truths(key: str, text: str) -> list[bool]:
    """A comma-separated list of true and false. Raises UserError for anything else."""
    known = {"true": True, "false": False}
    parts = [part.strip().lower() for part in text.split(",")]
    if not set(parts) <= known.keys():
        raise UserError(f"{key}={text}: expected true, false or true,false")
    return [known[part] for part in parts]


def listed(asked: dict[str, str | None]) -> dict[str, list[Any]]:
    """The values of each axis from the text of the command line; what is not said has its one default.

    Raises:
        UserError: for a value that no sampler knows.
    """
    lists: dict[str, list[Any]] = {}  # of texts, numbers and truths
    for key, text in asked.items():
        if text is None:
            continue
        if key == "remask":
            lists[key] = truths(key, text)
        elif key in ("per_step", "steps", "noise_scale"):
            lists[key] = numbers(key, text, float if key == "noise_scale" else int)
        else:
            lists[key] = [part.strip() for part in text.split(",")]
    for policy in lists.get("policy", []):
        Order(policy)
    for key in ("noise", "anneal", "score_scale", "selection", "reveal", "ties"):
        for value in lists.get(key, []):
            told: dict[str, Any] = {"policy": "top_probability", "noise": "gumbel", key: value}
            Order(**told)
    for value in lists.get("values", []):
        if value not in VALUES:
            raise UserError(f"values is one of {', '.join(VALUES)}, not {value!r}")
    return lists


def settings(asked: dict[str, str | None], samplers: Iterable[str]) -> Product:
    """Every setting that the lists of `asked` come to, for each of the samplers.

    Raises:
        UserError: for a value that no sampler knows.
    """
    lists = listed(asked)
    found: dict[str, Setting] = {}
    left_out: Counter[str] = Counter()
    for sampler in samplers:
        made, why = ordered(lists) if sampler == "ordered" else unordered(sampler, lists)
        left_out += why
        for choice in made:
            found.setdefault(f"{sampler} {choice}", Setting(sampler, choice))
    return Product(list(found.values()), left_out)


def paces(lists: dict[str, list[Any]]) -> list[tuple[int | None, int | None]]:
    """(per_step, steps), of which one is None; one token a step unless something else is said."""
    at_a_time = [(count, None) for count in lists.get("per_step", [])]
    return [*at_a_time, *((None, n) for n in lists.get("steps", []))] or [(1, None)]


def ordered(lists: dict[str, list[Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The choices of dlm.sampling.ordered, and why others are none."""
    axes = {key: lists.get(key, [getattr(Order(), key)]) for key in RANKED} | {
        "ties": lists.get("ties", ["random"]),
        "noise_scale": lists.get("noise_scale", [None]),
    }
    found: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for values in product(*axes.values()):
        ranked = dict(zip(axes, values, strict=True))
        if ranked["noise"] == "none":
            ranked |= {"noise_scale": None, "anneal": "constant"}
        try:
            order = Order(**ranked)
        except UserError as error:
            left_out[str(error)] += 1
            continue
        if ranked["noise"] != "none":
            ranked["noise_scale"] = order.noise_scale
        for per_step, steps in paces(lists):
            if order.reveal == "binomial" and steps is None:
                left_out["reveal=binomial draws the number of each step: say how many steps="] += 1
                continue
            for kind in lists.get("values", ["greedy"]):
                choice = ranked | {"per_step": per_step, "steps": steps, "values": kind}
                if choice not in found:
                    found.append(choice)
    return found, left_out


def unordered(sampler: str, lists: dict[str, list[Any]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The choices of any other sampler: values, and steps where it takes them."""
    takes_steps = "steps" in inspect.signature(getattr(sampling, sampler)).parameters
    steps = [{"steps": n} for n in lists.get("steps", [sampling.DEFAULT_STEPS])] if takes_steps else [{}]
    return [n | {"values": kind} for n, kind in product(steps, lists.get("values", ["greedy"]))], Counter()
