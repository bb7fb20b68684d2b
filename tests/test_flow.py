"""Discrete flow matching against enumeration: MD4 for a mask, a looser bound for a uniform source."""

import math

import pytest
import torch
from oracle import (
    F64,
    SMALL,
    WORLD,
    Exact,
    World,
    average,
    enumerated_loss,
    expected_boundary,
    expected_nelbo,
    gauss_legendre,
    generator,
    integrand,
    random_network,
    sequences,
    subset_costs,
    tanh_sinh,
)
from torch.nn import functional as F

from dlm.errors import UserError
from dlm.process import FlowMatching, MaskedDiffusion
from dlm.process.divergence import generalised_kl
from dlm.process.parameterisation import converted
from dlm.process.schedule import CosineSquared, Kappa, Linear

MD4 = MaskedDiffusion(3)
RN = random_network(MD4, WORLD, seed=1)
PATHS = [Linear(), Kappa(3.0), CosineSquared()]  # kappa = tau, tau^3, sin^2


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_mask_source_is_md4_term_by_term(schedule):
    """T34: the generalised KL with carried-over visible tokens is MD4's integrand at every t, to 1e-11, and so is
    the integral, to 1e-12."""
    flow, md4 = FlowMatching(3, "mask", "generalised_kl", schedule), MaskedDiffusion(3, schedule)
    states = sequences(4, 3)
    for t in (0.01, 0.4, 0.99):
        t = torch.full((64,), t, dtype=F64)
        for x0 in WORLD.clean[::5]:
            x0 = torch.where(states == 3, x0, states)
            logits = RN(states, t)
            close(flow.nelbo(logits, x0, states, t), md4.nelbo(logits, x0, states, t), 1e-11)
            close(flow.posterior(logits, states, t, t / 3), md4.posterior(logits, states, t, t / 3), 1e-14)
    one, other = (expected_nelbo(p, RN, WORLD, gauss_legendre(60, 4)) for p in (flow, md4))
    close(one, other, 1e-12)


class Uncarried(FlowMatching):
    """A masked flow whose network may doubt what it sees."""

    def log_mu(self, logits, x_t):
        return logits.log_softmax(-1)


@pytest.mark.parametrize("t", [0.1, 0.7])
def test_doubting_visible_tokens_costs_their_missing_mass(t):
    """T35: without carrying over, the bound grows by w sum_visible (1 - mu_z) >= 0, to 1e-12."""
    carried, plain = (c(3, "mask", "generalised_kl") for c in (FlowMatching, Uncarried))
    times = torch.tensor([t], dtype=F64)
    penalty = integrand(plain, RN, WORLD, times) - integrand(carried, RN, WORLD, times)

    def missing(logits, x0, x_t, t):
        seen = logits.softmax(-1).gather(-1, x_t.clamp(max=2)[..., None])[..., 0]
        return torch.where(x_t < 3, (1 - seen) / t[:, None], 0.0)

    close(penalty, integrand(carried, RN, WORLD, times, missing), 1e-12)
    assert (penalty > 0).all()


@pytest.mark.parametrize("vocab_size", [2, 3, 27])
def test_uniform_source_pays_a_known_price(vocab_size):
    """T36: one token, uniform data, perfect network: ((V-1)/V)(1 + ln V) instead of ln V, to 1e-11."""
    world = World(vocab_size, 1, torch.full((vocab_size,), 1 / vocab_size, dtype=F64))
    process = FlowMatching(vocab_size, "uniform", "generalised_kl", t_min=0.0)
    bound = average(world, expected_nelbo(process, Exact(process, world), world))
    close(bound, (vocab_size - 1) / vocab_size * (1 + math.log(vocab_size)), 1e-11)
    assert bound > math.log(vocab_size)


@pytest.mark.parametrize("schedule", [Linear(), Kappa(2.0)], ids=lambda s: type(s).__name__)
def test_uniform_source_is_scored_by_uniform_diffusion(schedule):
    """T36: the same network through `converted` and `as_diffusion` reaches H, to 1e-6 at a cut of 1e-9.

    The flow's own bound does not, by more than 0.1 nats on the 27-string world.
    """
    process = FlowMatching(3, "uniform", schedule=schedule, t_min=0.0)
    exact = Exact(process, WORLD)
    diffusion = process.as_diffusion(t_min=1e-9, t_max=1 - 1e-9)
    loo = converted(exact, process, "leave-one-out")
    total = expected_nelbo(diffusion, loo, WORLD, tanh_sinh(0.05, 60))
    total = average(WORLD, total + expected_boundary(diffusion, loo, WORLD))
    close(total, WORLD.entropy, 1e-6)
    assert average(WORLD, expected_nelbo(process, exact, WORLD)) > WORLD.entropy + 0.1
    with pytest.raises(UserError):
        FlowMatching(3, "mask").as_diffusion()


def test_cross_entropy_weighs_every_count_alike():
    """T37: algorithm 8 with a mask and kappa = tau is (1/(L+1)) sum_k mean_{|S|=k} C_S, to 1e-12."""
    process = FlowMatching(3, "mask", "cross_entropy")
    nodes, weights = gauss_legendre(4)()
    got = sum(w * enumerated_loss(process, RN, WORLD, float(t))[1] for t, w in zip(nodes, weights, strict=True))
    wanted = sum(c / math.comb(3, len(s)) for s, c in subset_costs(RN, WORLD).items()) / 4
    close(got, wanted, 1e-12)


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_cross_entropy_trains_and_the_bound_is_reported(source):
    """The objectives differ, the reported nelbo does not; under cross-entropy it carries no gradient."""
    ce, kl = (FlowMatching(3, source, objective, t_min=1e-3) for objective in ("cross_entropy", "generalised_kl"))
    net = random_network(ce, WORLD, 2)
    net.logits.requires_grad_()
    a, b = (enumerated_loss(p, net, WORLD, 0.4) for p in (ce, kl))
    close(a[0].detach(), b[0].detach(), 1e-12)
    assert not a[0].requires_grad and a[1].requires_grad and (a[1] - b[1]).abs().max() > 1e-2


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_exact_increment_is_a_probability(schedule):
    """T47: (kappa_s - kappa_t)/(1 - kappa_t) in [0, 1], 1 at s = 0; Euler's step for kappa = tau, to 1e-14."""
    process = FlowMatching(3, "mask", schedule=schedule)
    x_t = torch.full((99, 1), 3)
    t = torch.arange(1, 100, dtype=F64) / 99
    for h in (1 / 99, 0.5 / 99):
        p = process.event_prob(x_t, t, t - h)[:, 0]
        assert ((p >= 0) & (p <= 1)).all()
        if isinstance(schedule, Linear):
            close(p, h * schedule.unmask_rate(t), 1e-14)
    close(process.event_prob(x_t, t, torch.zeros_like(t)), torch.ones(99, 1, dtype=F64), 0)


@pytest.mark.parametrize("source", ["mask", "uniform", [0.7, 0.3]], ids=str)
@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("strength", [0.0, 0.7, 15.0])
def test_a_corrector_leaves_the_marginals_alone(source, schedule, strength):
    """T39: with the exact network the rates corrected by c move p_t as -dp_t/dt for every c, to 1e-8 relative.

    For a mask and kappa = tau with c = eta (1 - t), Campbell's unmasking rate is (1 + eta (1 - t)) / t.
    """
    process = FlowMatching(2, source, schedule=schedule)
    states = sequences(process.num_states, 2)
    n, m = len(SMALL.clean), len(states)

    def p(t):
        x0, x_t = SMALL.clean.repeat_interleave(m, 0), states.repeat(n, 1)
        return SMALL.p @ process.log_q(x_t, x0, t.expand(n * m)).sum(-1).exp().reshape(n, m)

    for t in (0.05, 0.5, 0.95):
        t = torch.tensor(t, dtype=F64)
        wide = t.expand(m)
        logits = Exact(process, SMALL)(states, wide)
        rates = process.corrected_rates(logits, states, wide, strength * (1 - wide))
        slope = torch.autograd.functional.jacobian(p, t)
        close(generator(process, rates) @ p(t), -slope, 1e-8 * (1 + strength))
        assert (rates >= 0).all()
        if source == "mask" and isinstance(schedule, Linear):
            campbell = (1 + strength * (1 - t)) / t
            close(rates[-1, 0, :2].sum(), campbell, 1e-12 * campbell)
    plain = process.corrected_rates(logits, states, torch.ones(m, dtype=F64), torch.zeros(m, dtype=F64))
    assert torch.isfinite(plain).all(), "a corrector that has vanished costs nothing at kappa = 0"


def test_any_source_reaches_the_entropy_through_its_diffusion():
    """A skewed source: the tight bound of the diffusion with its marginals is H, to 1e-6; its own is above."""
    process = FlowMatching(3, [0.6, 0.3, 0.1], t_min=0.0)
    exact = Exact(process, WORLD)
    diffusion = process.as_diffusion(t_min=1e-9, t_max=1 - 1e-9)
    loo = converted(exact, process, diffusion.predicts)
    total = expected_nelbo(diffusion, loo, WORLD, tanh_sinh(0.05, 60)) + expected_boundary(diffusion, loo, WORLD)
    close(average(WORLD, total), WORLD.entropy, 1e-6)
    assert average(WORLD, expected_nelbo(process, exact, WORLD)) > WORLD.entropy + 0.1


def test_unigram_source_takes_the_frequencies_it_is_shown():
    """With one added to each count, so that nothing is impossible; a checkpoint carries them."""
    process, other = FlowMatching(4, "unigram"), FlowMatching(4, "unigram")
    process.observe(torch.tensor([5, 0, 3, 0]))
    close(process.noise.pi, torch.tensor([6.0, 1.0, 4.0, 1.0], dtype=F64) / 12, 1e-15)
    other.load_state_dict(process.state_dict())
    assert torch.equal(other.noise.pi, process.noise.pi)
    uniform = FlowMatching(4, "uniform")
    uniform.observe(torch.tensor([5, 0, 3, 0]))
    close(uniform.noise.pi, torch.full((4,), 0.25, dtype=F64), 0)
    for wrong in ("zipf", [0.5, 0.5], [0.5, 0.6, 0.1, -0.2], [0.1, 0.1, 0.1, 0.1]):
        with pytest.raises(UserError, match="noise"):
            FlowMatching(4, wrong)


@pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
def test_uniform_diffusion_is_the_mixture_path_and_jumps_in_balance(schedule):
    """What makes the path bound loose: the reversal of uniform diffusion has the mixture path's jump to x0 and, on
    top, conditional jumps in detailed balance, of flow (-alpha'/alpha) (1 - alpha) / V^2 between any two tokens:

        C(z -> y | x0) = w(t) 1[y = x0] + flow / q_t(z | x0),

    to 1e-12 relative; averaged over p(x0 | x_t) they are the diffusion's own rates with the exact network, and the
    generalised divergence of these rates is the tight integrand.
    """
    flow, v = FlowMatching(3, "uniform", schedule=schedule, t_min=0.0), 3
    diffusion = flow.as_diffusion(0.0, 1.0)
    states = sequences(3, 3)
    for t in (0.1, 0.5, 0.9):
        wide = torch.full((27,), t, dtype=F64)
        balanced = (schedule.noise_rate(wide) * schedule.u(wide) / v**2)[:, None, None]
        mu = Exact(flow, WORLD).probs(states, wide)
        elsewhere = ~F.one_hot(states, v).bool()
        seen = torch.exp(flow.log_evidence(states, wide))  # q_t(z | a) for every a
        model = flow.rates(mu.log(), states, wide) + balanced * (mu / seen).sum(-1, keepdim=True) * elsewhere
        logits = Exact(diffusion, WORLD)(states, wide)
        torch.testing.assert_close(model, diffusion.rates(logits, states, wide), rtol=1e-11, atol=1e-12)
        for x0 in WORLD.clean[::4]:
            x0 = x0.expand_as(states)
            q = flow.log_q(states, x0, wide).exp()[..., None]
            true = flow.conditional_rates(x0, states, wide) + balanced / q * elsewhere
            torch.testing.assert_close(true, diffusion.conditional_rates(x0, states, wide), rtol=1e-12, atol=1e-12)
            tight = generalised_kl(true, model, states)
            close(tight, diffusion.integrand(logits, x0, states, wide), 1e-11)
            assert (flow.integrand(mu.log(), x0, states, wide) - tight).abs().max() > 1e-2
