"""Samplers against the laws they claim, over all 27 strings: by enumeration of rules, and by drawing."""

import math

import pytest
import torch
from oracle import (
    F64,
    WORLD,
    Exact,
    index,
    ordered_law,
    random_network,
    sequences,
)

from dlm import sampling
from dlm.process import FlowMatching, MaskedDiffusion, UniformDiffusion
from dlm.process.schedule import Cosine

MD4 = MaskedDiffusion(3)
RN = random_network(MD4, WORLD, seed=1)
DRAWS = 27000


def exact(x_t, t, where=None):
    """The exact network, which does not depend on t, asked where every state has a probability."""
    return Exact(MD4, WORLD)(x_t, torch.full_like(t, 0.5), where)


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


def highest(score):
    """A deterministic rule from a policy's scores: the best candidate, ties to the left."""

    def choose(probs, candidates):
        scores = score(probs.log()[None])[0].masked_fill(~candidates, -torch.inf)
        return torch.nn.functional.one_hot(scores.argmax(), len(candidates)).to(F64)

    return choose


def uniform(probs, candidates):
    return candidates.to(F64) / candidates.sum()


def leftmost(probs, candidates):
    return torch.nn.functional.one_hot(candidates.long().argmax(), len(candidates)).to(F64)


def rule(policy):
    return {"random": uniform, "left_to_right": leftmost}.get(policy) or highest(sampling.POLICIES[policy])


each_policy = pytest.mark.parametrize("policy", list(sampling.POLICIES))


@each_policy
def test_state_only_rules_are_exact_with_exact_conditionals(policy):
    """T49: whatever the rule, revealing one token at a time from exact conditionals gives p, to 1e-13."""
    close(ordered_law(exact, WORLD, rule(policy)), WORLD.p, 1e-13)


@each_policy
def test_any_rule_defines_a_distribution(policy):
    """T51: with a random network the law still sums to 1, to 1e-12."""
    close(ordered_law(RN, WORLD, rule(policy)).sum(), 1.0, 1e-12)


def agrees(x, law, bound=60.0):
    """Pearson's chi-square over the strings expected more than 5 times, the rest pooled (26 degrees at most).

    60 is exceeded once in 6000 samples.
    """
    seen = index(x, 3).bincount(minlength=27).to(F64)
    wanted = law * len(x)
    often = wanted > 5
    pooled = [*zip(seen[often], wanted[often], strict=True), (seen[~often].sum(), wanted[~often].sum())]
    return sum(float((s - w) ** 2 / w) for s, w in pooled if w > 0) < bound


def blank(free=True, rows=DRAWS):
    given = torch.zeros(rows, 3, dtype=torch.long)
    return given, torch.tensor(free).expand(rows, 3).clone()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@each_policy
def test_ordered_sampler_has_the_law_of_its_rule(policy):
    """T49: 27000 draws with a random network against the rule's enumerated law (chi-square)."""
    sample = sampling.ordered(MD4, RN, *blank(), generator(), policy)
    assert agrees(sample.x, ordered_law(RN, WORLD, rule(policy)))
    assert (sample.evaluations == 3).all()


@pytest.mark.parametrize("process", [MD4, MaskedDiffusion(3, Cosine()), FlowMatching(3, "mask")], ids=str)
def test_first_hitting_has_the_random_order_law(process):
    """T45, T46: one token per call at the hitting times is random-order generation (chi-square)."""
    sample = sampling.first_hitting(process, RN, *blank(), generator(1))
    assert agrees(sample.x, ordered_law(RN, WORLD, uniform))
    assert agrees(sampling.first_hitting(process, exact, *blank(), generator(2)).x, WORLD.p)


def step_law(process, denoise, steps):
    """The law of the ancestral sampler on a uniform grid, by multiplying its kernels over all states."""
    states = sequences(process.num_states, 3)
    prior = (states == 3).all(1).to(F64) if process.num_states == 4 else torch.full((27,), 1 / 27, dtype=F64)
    law, m = prior, len(states)
    for i in range(steps, 0, -1):
        t, s = (torch.full((m,), v / steps, dtype=F64) for v in (i, i - 1))
        p = process.posterior(denoise(states, t), states, t, s)
        kernel = torch.stack([p[:, i].gather(1, states[:, i].expand(m, m)) for i in range(3)]).prod(0)
        law = law @ kernel
    return law[(states < 3).all(1)]


@pytest.mark.parametrize("process", [MD4, UniformDiffusion(3), FlowMatching(3, "uniform")], ids=str)
def test_ancestral_sampler_has_the_law_of_its_kernels(process):
    """T43: 4 steps, 27000 draws against the product of the enumerated kernels, which sums to 1 (1e-12)."""
    net = random_network(process, WORLD, seed=5)
    law = step_law(process, net, 4)
    close(law.sum(), 1.0, 1e-12)
    assert agrees(sampling.ancestral(process, net, *blank(), generator(3), steps=4).x, law)


def test_more_steps_halve_the_distance():
    """T44: total variation to the data is c/T for the exact network: ratio 2 +- 0.2 from T = 16 to 32."""
    distance = [float((step_law(MD4, exact, t) - WORLD.p).abs().sum() / 2) for t in (16, 32)]
    assert math.isclose(distance[0] / distance[1], 2, abs_tol=0.2)


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "random", "margin", "entropy"])
@pytest.mark.parametrize("held", [(True, False, False), (False, True, False), (False, True, True)])
def test_infilling_draws_from_the_conditional(name, held):
    """T76: with the exact network and given tokens held, the rest follows p(x_S | x_given); they never change."""
    given = torch.tensor([1, 2, 0]).expand(DRAWS, 3).clone()
    free = ~torch.tensor(held).expand(DRAWS, 3)
    if name == "ancestral":
        x = sampling.ancestral(MD4, exact, given, free, generator(4), steps=256).x
    elif name == "first_hitting":
        x = sampling.first_hitting(MD4, exact, given, free, generator(4)).x
    else:
        x = sampling.ordered(MD4, exact, given, free, generator(4), name).x
    assert (x[~free] == given[~free]).all()
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
            law = law / law.sum()
            masked = ~kept
            got = infill_law(value, masked)
            close(got, law, 1e-13)


def infill_law(value, masked):
    paths = {tuple(torch.where(masked, 3, value).tolist()): torch.ones((), dtype=F64)}
    for _ in range(int(masked.sum())):
        following = {}
        for state, mass in paths.items():
            x = torch.tensor(state)[None]
            probs = exact(x, torch.ones(1, dtype=F64)).softmax(-1)[0]
            hidden = [i for i in range(3) if state[i] == 3]
            for i in hidden:
                for a in range(3):
                    to = (*state[:i], a, *state[i + 1 :])
                    following[to] = following.get(to, 0) + mass * probs[i, a] / len(hidden)
        paths = following
    return torch.stack([paths.get(tuple(x.tolist()), torch.zeros((), dtype=F64)) for x in WORLD.clean])


def test_tau_leaping_a_masked_process_is_ancestral_for_the_linear_schedule():
    """T47: Euler's step h w(t) = h / t is the exact increment; 8 steps have the ancestral law (chi-square)."""
    sample = sampling.tau_leap(MD4, RN, *blank(), generator(6), steps=8)
    assert agrees(sample.x, step_law(MD4, RN, 8))


def test_tau_leaping_converges_for_uniform_processes():
    """T74: with their own exact networks both uniform samplers approach p: TV below 0.05 at 128 steps."""
    for process in (UniformDiffusion(3), FlowMatching(3, "uniform")):
        oracle = Exact(process, WORLD)

        def net(x_t, t, where=None, oracle=oracle):  # all rows share their time: ask for the 27 states once
            return oracle(WORLD.clean, t[:1].expand(27))[index(x_t, 3)]

        sample = sampling.tau_leap(process, net, *blank(), generator(7), steps=128)
        seen = index(sample.x, 3).bincount(minlength=27).to(F64) / DRAWS
        assert float((seen - WORLD.p).abs().sum() / 2) < 0.05


def test_nucleus_is_the_smallest_set_with_the_mass():
    """T77: the token that crosses top_p stays; ties are broken by index; temperature 1, top_p 1 change nothing."""
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]], dtype=F64).log()

    def kept(p):
        return torch.isfinite(sampling.warp(top_p=p)(logits)).tolist()

    assert kept(0.4) == [[True, False, False], [False, False, True]]
    assert kept(0.6) == [[True, True, False], [True, False, True]]
    assert kept(0.9) == [[True, True, True], [True, True, True]]
    close(sampling.warp()(logits), logits, 0)
    close(sampling.warp(temperature=2.0)(logits), logits / 2, 0)
