"""Samplers without a grid, against the laws of the continuous processes they claim to simulate."""

import itertools
import math

import pytest
import torch
from oracle import F64, WORLD, Exact, model_law, ordered_law, random_network, sequences
from sampler_laws import agrees, blank, close, exact, genmd4, seeded

from dlm import sampling
from dlm.errors import UserError
from dlm.process import FlowMatching, GenMaskedDiffusion, MaskedDiffusion, UniformDiffusion
from dlm.process.schedule import Cosine
from dlm.sampling.hitting import accepted

MD4 = MaskedDiffusion(3)


def uniform(probs, candidates):
    return candidates.to(F64) / candidates.sum()


@pytest.mark.parametrize(
    "process", [MD4, MaskedDiffusion(3, Cosine()), FlowMatching(3, "mask")], ids=lambda p: type(p).__name__
)
def test_first_hitting_has_the_random_order_law(process):
    """T45, T46: one token per call at the hitting times is random-order generation (chi-square)."""
    net = random_network(MD4, WORLD, seed=1)
    sample = sampling.first_hitting(process, net, *blank(), seeded(1))
    assert agrees(sample.x, ordered_law(net, WORLD, uniform)) and (sample.evaluations == 3).all()
    assert agrees(sampling.first_hitting(process, exact(MD4), *blank(), seeded(2)).x, WORLD.p)


def below(values, points):
    """The share of `values` [N] at or below each point."""
    return (values[:, None] <= points).double().mean(0)


def test_first_hitting_tells_the_times_of_the_process():
    """T46: the j-th of n = 8 tokens is asked for at the time whose masking rate is the j-th largest of n uniforms;
    given that it is u, and that m tokens stay masked, the next rate has P(<= y) = (y/u)^m.

    20 000 rows against P(j-th largest <= y) = sum_{k<j} binom(n, k) (1-y)^k y^(n-k), which also says that the
    number masked at rate y is Binomial(n, y): at 51 points from 0.0005 to 0.9995, within 5 standard errors where
    25 rows are expected on either side.  A rate of 0.999 u + 0.0005 would miss all 80 expected beyond each end.
    """
    told, n, rows = [], 8, 20_000

    def net(x, t, where):
        told.append(t)
        return torch.zeros(int(where.sum()), 3, dtype=F64)

    process = MaskedDiffusion(3, Cosine())
    sampling.first_hitting(process, net, torch.zeros(rows, n).long(), torch.ones(rows, n).bool(), seeded())
    rates = process.schedule.u(torch.stack(told))
    assert len(rates) == n and (rates.diff(dim=0) < 0).all()
    y = torch.cat([torch.tensor([0.0005, 0.9995], dtype=F64), torch.arange(1, 50, dtype=F64) / 50])

    def agree(values, law):
        seen = rows * law * (1 - law) > 25
        error = (below(values, y) - law) / (law * (1 - law) / rows).sqrt()
        assert seen.sum() > 10 and error[seen].abs().max() < 5, error[seen]

    for j, rate in enumerate(rates, start=1):
        agree(rate, torch.stack([math.comb(n, k) * (1 - y) ** k * y ** (n - k) for k in range(j)]).sum(0))
    for masked, (u, following) in zip(range(n - 1, 0, -1), itertools.pairwise(rates), strict=True):
        scaled = (following / u) ** masked  # uniform, whatever u was
        agree(scaled, y)
        centred, other = scaled - scaled.mean(), u - u.mean()
        correlation = (centred * other).mean() / (centred.std() * other.std())
        assert abs(float(correlation)) < 5 / math.sqrt(rows)


def test_accepted_candidates_have_the_rates_of_the_chain():
    """Candidates at rate n max(w) / t, one of n positions each, accepted by the law of `accepted`: per position
    and value that is GenMD4's own rate w_v mu_v / t (1e-12)."""
    process, t = genmd4(), 0.3
    states = sequences(4, 3)
    logits = random_network(process, WORLD, seed=3)(states, torch.full((64,), t, dtype=F64))
    with torch.no_grad():
        rates = process.rates(logits, states, torch.full((64,), t, dtype=F64))
        for some in range(64):
            masked = states[some] == 3
            n = int(masked.sum())
            law = accepted(process, logits[some, masked])
            candidate = n * process.schedule.w.max().double() / t / max(n, 1)
            close(candidate * law[:, :3], rates[some, masked][:, :3], 1e-12)
            close(law.sum(-1), torch.ones(n), 1e-14)


def test_thinning_has_the_law_of_its_chain():
    """Settles the derivation: thinning in log time with the bound n max(w), stopped at t_min and finished there
    from mu, has the law of the model's own chain, solved as a differential equation (27 000 draws, chi-square),
    for a network that changes with time and exponents from 0.74 to 2.4. With t_min as large as here the chain that
    is not stopped has another law, which the test notices."""
    process = GenMaskedDiffusion(3, t_min=0.1)
    with torch.no_grad():
        process.schedule.raw.copy_(torch.tensor([0.1, 0.9, 2.3]))
        net = random_network(process, WORLD, seed=7)
        states = sequences(4, 3)
        at_stop = model_law(process, net, WORLD, steps=400, a=process.t_min, b=1 - 1e-9)
        mu = net(states, torch.full((64,), process.t_min, dtype=F64)).softmax(-1)
        law = torch.zeros(27, dtype=F64)
        for x, mass, probs in zip(states, at_stop, mu, strict=True):
            fits = torch.where(x == 3, probs[torch.arange(3), WORLD.clean], (WORLD.clean == x).to(F64))
            law += mass * fits.prod(1)
        to_the_end = model_law(process, net, WORLD, steps=400)[(states < 3).all(1)]
    close(law.sum(), 1.0, 1e-9)
    sample = sampling.thinning(process, net, *blank(), seeded(5))
    assert agrees(sample.x, law)
    assert not agrees(sample.x, to_the_end / to_the_end.sum())


def test_thinning_draws_the_data():
    """With GenMD4's exact network, which knows the time, the samples are the data (chi-square), at a small t_min;
    candidates per token are those of the bound, max(w) log(1/t) until a token is accepted: more than one."""
    process = genmd4()
    sample = sampling.thinning(process, exact(process), *blank(8000), seeded(6))
    assert agrees(sample.x, WORLD.p)
    assert 3 < sample.evaluations.double().mean() < 12


def test_thinning_infills():
    """T76 for GenMD4: given tokens are held, and the rest follows the conditional (chi-square). What is given was
    never masked, and its own factor alpha in the posterior is the same for every completion."""
    process = genmd4()
    given, free = torch.tensor([1, 2, 0]).expand(27_000, 3), torch.tensor([False, True, True]).expand(27_000, 3)
    oracle = Exact(process, WORLD)

    def net(x, t, where):
        return oracle(x, t, where)

    x = sampling.thinning(process, net, given[:6000], free[:6000], seeded(7)).x
    assert (x[:, 0] == 1).all()
    law = torch.where(WORLD.clean[:, 0] == 1, WORLD.p, 0.0)
    assert agrees(x, law / law.sum())


def test_only_their_own_processes():
    with pytest.raises(UserError, match="mask predictor"):
        sampling.first_hitting(UniformDiffusion(3), None, *blank(2), seeded())  # pyright: ignore
    with pytest.raises(UserError, match="mask predictor"):
        sampling.first_hitting(genmd4(), None, *blank(2), seeded())  # pyright: ignore
    with pytest.raises(UserError, match="GenMD4"):
        sampling.thinning(MD4, None, *blank(2), seeded())  # pyright: ignore
