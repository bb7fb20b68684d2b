"""Given tokens stand, and the rest follows its conditional law."""

import importlib
import itertools
import math
from functools import partial

import pytest
import torch
from oracle import F64, WORLD, index, sequences
from sampler_laws import DRAWS, agrees, close, exact, seeded

from dlm import sampling
from dlm.process import MaskedDiffusion
from dlm.sampling.core import Generation

MD4 = MaskedDiffusion(3)
EXACT = exact(MD4)
hitting, ordered = (importlib.import_module(f"dlm.sampling.{name}") for name in ("hitting", "ordered"))


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "random", "margin", "entropy"])
@pytest.mark.parametrize("held", [(True, False, False), (False, True, False), (False, True, True)])
def test_infilling_draws_from_the_conditional(name, held):
    """T76: with the exact network and given tokens held, the rest follows p(x_S | x_given); they never change."""
    given = torch.tensor([1, 2, 0]).expand(DRAWS, 3).clone()
    free = ~torch.tensor(held).expand(DRAWS, 3)
    if name == "ancestral":
        x = sampling.ancestral(MD4, EXACT, given[:9000], free[:9000], seeded(4), steps=64).x
    elif name == "first_hitting":
        x = sampling.first_hitting(MD4, EXACT, given, free, seeded(4)).x
    else:
        x = sampling.ordered(MD4, EXACT, given, free, seeded(4), name).x
    assert (x == given[: len(x)])[:, torch.tensor(held)].all()
    fits = (WORLD.clean == given[0])[:, torch.tensor(held)].all(1)
    law = torch.where(fits, WORLD.p, 0.0)
    assert agrees(x, law / law.sum())


class Enumerated(Generation):
    """A batch whose rows are all orders and all values, with the probability of each row."""

    ranks: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor

    def uniforms(self, purpose, step):
        return self.ranks

    def draw(self, logits, where, law, step):
        row, position = where.nonzero(as_tuple=True)
        forced = self.values[row, position]
        chance = law(self.warped(logits), self.x[where], step[row]).gather(-1, forced[:, None])[:, 0]
        chances = torch.ones(where.shape, dtype=F64).masked_scatter(where, chance)
        Enumerated.weight = self.weight * chances.prod(1)
        return forced


def every_case():
    """The tokens, given or to be drawn, which are free, and noise that ranks these: for every observed subset, all
    strings and all orders."""
    rows = []
    for held in itertools.product([False, True], repeat=3):
        hidden = [i for i in range(3) if not held[i]]
        for x in WORLD.clean:
            for order in itertools.permutations(range(len(hidden))):
                ranks = torch.full((3,), 0.5, dtype=F64)
                ranks[hidden] = (torch.tensor(order, dtype=F64) + 1) / (len(hidden) + 1)
                rows.append((x, ~torch.tensor(held), ranks))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


@pytest.mark.parametrize(
    "name", ["first_hitting", "random", "left_to_right", "top_probability", "margin", "entropy"]
)
def test_infilling_is_exact_by_enumeration(name, monkeypatch):
    """T76: for every observed subset and every value of it, the sampler's own steps, over all orders and values of
    the rest, have the law p(x_S | x_obs), to 1e-13."""
    values, free, Enumerated.ranks = every_case()
    Enumerated.values, Enumerated.weight = values, torch.ones(len(values), dtype=F64)
    for module in (hitting, ordered):
        monkeypatch.setattr(module, "Generation", Enumerated)
    run = sampling.first_hitting if name == "first_hitting" else partial(sampling.ordered, policy=name)
    assert torch.equal(run(MD4, EXACT, torch.where(free, 0, values), free, seeded()).x, values)
    orders = torch.tensor([math.factorial(int(n)) for n in free.sum(1)], dtype=F64)
    task, states = index(torch.where(free, 3, values), 4), sequences(4, 3)  # what was given, and where
    law = torch.zeros(64, 27, dtype=F64)
    law.index_put_((task, index(values, 3)), Enumerated.weight / orders, accumulate=True)
    fits = ((states[:, None] == 3) | (states[:, None] == WORLD.clean)).all(-1) * WORLD.p
    close(law, fits / fits.sum(1, keepdim=True), 1e-13)
