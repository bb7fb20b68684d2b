"""Given tokens stand, and the rest follows its conditional law."""

import pytest
import torch
from oracle import F64, WORLD
from sampler_laws import DRAWS, agrees, close, exact, seeded

from dlm import sampling
from dlm.process import MaskedDiffusion

MD4 = MaskedDiffusion(3)
EXACT = exact(MD4)


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


def test_infilling_is_exact_by_enumeration():
    """T76: for every observed subset, random-order revealing of the rest gives p(x_S | x_obs), to 1e-13."""
    for held in range(8):
        kept = torch.tensor([bool(held >> i & 1) for i in range(3)])
        for value in WORLD.clean[::9]:
            fits = (WORLD.clean == value)[:, kept].all(1)
            law = torch.where(fits, WORLD.p, 0.0)
            close(infill_law(value, ~kept), law / law.sum(), 1e-13)


def infill_law(value, masked):
    paths = {tuple(torch.where(masked, 3, value).tolist()): torch.ones((), dtype=F64)}
    for _ in range(int(masked.sum())):
        following = {}
        for state, mass in paths.items():
            x = torch.tensor(state)[None]
            probs = EXACT(x, torch.ones(1, dtype=F64)).softmax(-1)[0]
            hidden = [i for i in range(3) if state[i] == 3]
            for i in hidden:
                for a in range(3):
                    to = (*state[:i], a, *state[i + 1 :])
                    following[to] = following.get(to, 0) + mass * probs[i, a] / len(hidden)
        paths = following
    return torch.stack([paths.get(tuple(x.tolist()), torch.zeros((), dtype=F64)) for x in WORLD.clean])
