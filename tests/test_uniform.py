"""Uniform diffusion against enumeration: the one bound in four notations, c against mu*, the cut at both ends."""

import itertools
import math

import pytest
import torch
from oracle import (
    F64,
    SMALL,
    WORLD,
    Exact,
    average,
    expected_boundary,
    expected_nelbo,
    generator,
    mutual_information,
    random_network,
    sequences,
    step_bound,
)
from torch.nn import functional as F

from dlm.process import FlowMatching, UniformDiffusion
from dlm.process.parameterisation import log_leave_one_out
from dlm.process.schedule import Cosine, CosineSquared, Kappa, Linear, Polynomial
from dlm.process.token_noise import TokenNoise

SCHEDULES = [Linear(), Cosine(), CosineSquared(), Polynomial(2.0), Kappa(2.0)]


def uncut(schedule=None):
    return UniformDiffusion(3, schedule, t_min=0.0, t_max=1.0)


FULL = uncut()
C, MU = Exact(FULL, WORLD), Exact(FULL, WORLD, "posterior")


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=tol)


def prior_kl(alpha, v):
    """Of uniform noise: (a + (1-a)/V) log(1 + (V-1) a) + (V-1) (1-a)/V log(1-a)."""
    same, other = alpha + (1 - alpha) / v, (1 - alpha) / v
    return torch.tensor(same * math.log1p((v - 1) * alpha) + (v - 1) * other * math.log1p(-alpha), dtype=F64)


def draws(n=200, v=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    t = torch.rand(n, dtype=F64, generator=rng) * 0.98 + 0.01
    x0, x_t = torch.randint(v, (2, n, 1), generator=rng)
    return t, x0, x_t, torch.randn(n, 1, v, dtype=F64, generator=rng)


def unified(alpha, dalpha, x0, z, mu):
    """ell = (-alpha'/alpha) pi(z)/q(z|x0) { KL + R - 1 - log R } per position."""
    v = mu.shape[-1]
    true = alpha[:, None] * F.one_hot(x0, v) + (1 - alpha[:, None]) / v
    model = alpha[:, None] * mu + (1 - alpha[:, None]) / v
    ratio = (true.gather(1, z[:, None]) / model.gather(1, z[:, None]))[:, 0]
    brace = (true * (true / model).log()).sum(1) + ratio - 1 - ratio.log()
    return -dalpha / alpha / v / true.gather(1, z[:, None])[:, 0] * brace


def udlm(alpha, dalpha, x0, z, mu):
    """(alpha'/(V alpha)) { V/b_z - V/m_z - sum_j b_j/b_z log(m_z b_j / (m_j b_z)) }, b = V q(x0), m = V q(mu)."""
    v = mu.shape[-1]
    bar = v * alpha[:, None] * F.one_hot(x0, v) + 1 - alpha[:, None]
    bar_mu = v * alpha[:, None] * mu + 1 - alpha[:, None]
    at, at_mu = bar.gather(1, z[:, None]), bar_mu.gather(1, z[:, None])
    inner = (bar / at * (at_mu * bar / (bar_mu * at)).log()).sum(1)
    return dalpha / (v * alpha) * ((v / at - v / at_mu)[:, 0] - inner)


def sedd(alpha, dalpha, x0, z, mu):
    """(-alpha'/alpha)/V sum_{y != z} { s_y - a_y log s_y + K(a_y) }, with the ratios a written in rho."""
    v = mu.shape[-1]
    model = alpha[:, None] * mu + (1 - alpha[:, None]) / v
    score = model / model.gather(1, z[:, None])
    esigma = 1 / alpha
    rho = ((esigma - 1) / (esigma - 1 + v))[:, None]
    kept = (z == x0)[:, None]
    a = torch.where(kept, rho, torch.where(F.one_hot(x0, v).bool(), 1 / rho, 1.0))
    terms = score - a * score.log() + a * (a.log() - 1)
    return -dalpha / alpha / v * (terms * ~F.one_hot(z, v).bool()).sum(1)


def duo(alpha, dalpha, x0, z, mu):
    """Duo's expanded form: kappa_t-free, the sum over j split into the clean token and the rest."""
    v = mu.shape[-1]
    bar = v * alpha[:, None] * F.one_hot(x0, v) + 1 - alpha[:, None]
    bar_mu = v * alpha[:, None] * mu + 1 - alpha[:, None]
    at, at_mu = bar.gather(1, z[:, None])[:, 0], bar_mu.gather(1, z[:, None])[:, 0]
    clean_mu = bar_mu.gather(1, x0[:, None])[:, 0]
    low, high = 1 - alpha, v * alpha + 1 - alpha
    log_ratio = bar_mu.log() - at_mu.log()[:, None]
    cross = low / at * (log_ratio.sum(1) - (clean_mu.log() - at_mu.log())) + high / at * (clean_mu / at_mu).log()
    entropy = (low / at) * (v - 1) * (low / at).log() + (high / at) * (high / at).log()
    return dalpha / (v * alpha) * (v / at - v / at_mu + cross - entropy)


@pytest.mark.parametrize("form", [unified, udlm, sedd, duo])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_one_bound_in_four_notations(form, schedule):
    """T15: `nelbo` = the unified, UDLM, SEDD and Duo forms on 200 random inputs, to 1e-10 relative."""
    t, x0, x_t, logits = draws()
    process = UniformDiffusion(5, schedule)
    printed = form(schedule.alpha(t), schedule.dalpha(t), x0[:, 0], x_t[:, 0], logits.softmax(-1)[:, 0])
    torch.testing.assert_close(process.nelbo(logits, x0, x_t, t)[:, 0], printed, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_leave_one_out_network_gives_the_entropy(schedule):
    """T16: the whole integral with c is H, whatever the schedule, to 1e-10 (1e-11 for linear)."""
    process = uncut(schedule)
    total = average(WORLD, expected_nelbo(process, Exact(process, WORLD), WORLD))
    close(total, WORLD.entropy, 1e-11 if isinstance(schedule, Linear) else 1e-10)


def test_ordinary_posterior_leaves_a_gap():
    """T17: the same integral with mu* in place of c exceeds H by more than 0.1 (negative control)."""
    assert average(WORLD, expected_nelbo(FULL, MU, WORLD)) > WORLD.entropy + 0.1


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_conversion_between_the_two_posteriors(t):
    """T18: mu*(a) ~ c(a) q_t(z | a) both ways, and c^i does not look at token i, to 1e-13."""
    states = sequences(3, 3)
    times = torch.full((27,), t, dtype=F64)
    c, mu = C(states, times), MU(states, times)
    close(FULL.log_posterior(c, states, times).exp(), mu.softmax(-1), 1e-13)
    flow = FlowMatching(3, "uniform")  # the same marginals, and a network that predicts mu*
    close(log_leave_one_out(flow, mu, states, times).exp(), c.softmax(-1), 1e-13)
    table = c.softmax(-1).reshape(3, 3, 3, 3, 3)  # x1 x2 x3, position, value
    for i in range(3):
        own = table[..., i, :].movedim(i, 0)
        close(own, own[:1].expand_as(own), 1e-13)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 32])
def test_plug_in_with_c_and_mixture_with_mu_are_one_sampler(steps):
    """T19: sum_a q(x_s | z, a) mu*(a) = the plug-in posterior with c at every step of T, to 1e-12: one sampler,
    one bound; T = 1 costs the total correlation (1e-12)."""
    states = sequences(3, 3)
    grid = torch.linspace(0, 1, steps + 1, dtype=F64)
    for s, t in itertools.pairwise(grid):
        t, s = t.expand(27), s.expand(27)
        mixture = 0
        for a in range(3):
            sure = F.one_hot(torch.full((27, 3), a), 3).to(F64).log()
            mixture = mixture + MU.probs(states, t)[..., a, None] * FULL.posterior(sure, states, t, s)
        close(FULL.posterior(C(states, t), states, t, s), mixture, 1e-12)
    gap = average(WORLD, step_bound(FULL, C, WORLD, grid)) - WORLD.entropy
    assert gap > 0
    if steps == 1:
        close(gap, sum(WORLD.marginal_entropy([i]) for i in range(3)) - WORLD.entropy, 1e-12)


def test_conditional_posterior_is_bayes():
    """q(x_s | x_t, x0) = q(x_t | x_s) q(x_s | x0) / q(x_t | x0) for all 27 triples, to 1e-13."""
    process = UniformDiffusion(3, Cosine())
    t, s = torch.tensor([0.7], dtype=F64), torch.tensor([0.3], dtype=F64)
    keep = float(process.schedule.alpha(t) / process.schedule.alpha(s))
    step = keep * torch.eye(3, dtype=F64) + (1 - keep) / 3
    early = float(process.schedule.alpha(s)) * torch.eye(3, dtype=F64) + float(process.schedule.u(s)) / 3
    late = float(process.schedule.alpha(t)) * torch.eye(3, dtype=F64) + float(process.schedule.u(t)) / 3
    for a in range(3):
        for z in range(3):
            sure = F.one_hot(torch.tensor([[a]]), 3).to(F64).log()
            got = process.posterior(sure, torch.tensor([[z]]), t, s)[0, 0]
            close(got, step[:, z] * early[a] / late[a, z], 1e-13)


def test_prior_cost():
    """T24: KL(alpha e_x + (1-alpha) pi || pi) in closed form = the sum, to 1e-13, for uniform and skewed pi."""
    skewed = (torch.arange(27, dtype=F64) + 1) / (27 * 14)
    for noise in (TokenNoise(27), TokenNoise(27, skewed.tolist())):
        for alpha in (1e-6, 1e-3, 0.3, 0.9, 1 - 1e-6):
            q = (1 - alpha) * noise.pi
            q[4] += alpha
            wanted = (q * (q / noise.pi).log()).sum()
            close(noise.prior_kl(torch.tensor([4]), torch.tensor(alpha, dtype=F64))[0], wanted, 1e-13)
    close(TokenNoise(27).prior_kl(torch.tensor([4]), torch.tensor(0.3, dtype=F64))[0], prior_kl(0.3, 27), 1e-13)


def test_prior_cost_keeps_its_sign_and_size_in_float32():
    """T24: a small alpha leaves KL ~ (V - 1) alpha^2 / 2, which must not drown in float32 rounding."""
    process = UniformDiffusion(27, t_min=1e-6, t_max=0.9999)
    with torch.no_grad():
        x0 = torch.zeros(1, 1, dtype=torch.long)
        noise = torch.full((1, 1), 0.5)
        sure = F.one_hot(x0, 27).float() * 100
        boundary = process.boundary(lambda x, t, where=None: sure, x0, noise)
    exact = prior_kl(1 - 0.9999, 27)
    close(boundary[0, 0].double(), exact, 1e-9)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(2.0)], ids=lambda s: type(s).__name__)
def test_cut_and_boundary_keep_the_books(schedule):
    """T25: integral over (t_min, t_max) + boundary >= H, -> H as the cut shrinks, and is accounted for to 1e-10.

    The excess is sum_i H(x^i | x_tmin) - H(x | x_tmin) and the prior's cost beyond I(x0; x_tmax).
    """
    excess = []
    for cut in (0.1, 0.03, 0.01, 0.001):
        process = UniformDiffusion(3, schedule, t_min=cut, t_max=1 - cut)
        exact = Exact(process, WORLD)
        integral = average(WORLD, expected_nelbo(process, exact, WORLD))
        first, last = (mutual_information(process, WORLD, t) for t in (cut, 1 - cut))
        close(integral, first - last, 1e-10)
        reconstruction = 0
        states = sequences(3, 3)
        times = torch.full((27,), cut, dtype=F64)
        joint = WORLD.p[:, None] * process.log_q(
            states.repeat(27, 1), WORLD.clean.repeat_interleave(27, 0), times.repeat(27)
        ).sum(-1).exp().reshape(27, 27)
        mu = Exact(process, WORLD, "posterior").probs(states, times)
        reconstruction = (joint.sum(0)[:, None, None] * -torch.special.xlogy(mu, mu)).sum()
        prior = 3 * prior_kl(float(process.schedule.alpha(torch.tensor(1 - cut, dtype=F64))), 3)
        boundary = average(WORLD, expected_boundary(process, exact, WORLD))
        close(boundary, reconstruction + prior, 1e-10)
        excess.append(float(integral + boundary - WORLD.entropy))
    assert all(a > b > 0 for a, b in itertools.pairwise(excess)) and excess[-1] < 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_reverse_rates_with_c_move_the_marginals(schedule):
    """T40: the model's reverse rates R(c) satisfy R p_t = -dp_t/dt, to 1e-9."""
    process = UniformDiffusion(2, schedule)
    states = sequences(2, 2)

    def marginal(t):
        log_q = process.log_q(states.repeat(4, 1), SMALL.clean.repeat_interleave(4, 0), t.expand(16))
        return SMALL.p @ log_q.sum(-1).exp().reshape(4, 4)

    for t in (0.1, 0.5, 0.9):
        t = torch.tensor(t, dtype=F64)
        slope = torch.autograd.functional.jacobian(marginal, t)
        rates = process.rates(Exact(process, SMALL)(states, t.expand(4)), states, t.expand(4))
        close(generator(process, rates) @ marginal(t), -slope, 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_float32_is_stable_at_both_ends(schedule):
    """nelbo in float32 within 1e-3 of float64 for alpha from 1e-4 to 1 - 1e-4, V = 3, 1000; finite gradients."""
    for v in (3, 1000):
        level = torch.logspace(-4, -0.3, 30, dtype=F64)
        t = schedule.inverse(torch.cat([level, 1 - level])).float()
        rng = torch.Generator().manual_seed(0)
        x0 = torch.randint(v, (len(t), 4), generator=rng)
        x_t = torch.where(torch.rand(x0.shape, generator=rng) < 0.5, x0, torch.randint(v, x0.shape, generator=rng))
        logits = (3 * torch.randn(len(t), 4, v, generator=rng)).requires_grad_()
        process = UniformDiffusion(v, schedule, 0.0, 1.0)
        coarse = process.nelbo(logits, x0, x_t, t.double())
        fine = process.nelbo(logits.detach().double(), x0, x_t, t.double())
        assert coarse.dtype == torch.float32
        torch.testing.assert_close(coarse.double(), fine, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(process.nelbo(logits, x0, x_t, t).double(), fine, rtol=5e-3, atol=1e-4)
        (grad,) = torch.autograd.grad(coarse.sum(), logits)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("certainty", [0.0, 20.0, 200.0])
def test_certain_networks_stay_finite(certainty):
    """A network sure of the right or of the wrong token has a finite bound and gradient in float32."""
    process = UniformDiffusion(5)
    t = torch.tensor([1e-3, 0.5, 0.999])
    x0 = torch.zeros(3, 2, dtype=torch.long)
    x_t = torch.tensor([[0, 1]]).expand(3, 2)
    for believed in (0, 1, 2):
        logits = (certainty * F.one_hot(torch.full((3, 2), believed), 5).float()).requires_grad_()
        ell = process.nelbo(logits, x0, x_t, t)
        (grad,) = torch.autograd.grad(ell.sum(), logits)
        assert torch.isfinite(ell).all() and (ell >= -1e-5).all() and torch.isfinite(grad).all()


def test_noise_is_shared_out_evenly():
    """`corrupt` on 60000 equally spaced noises hits every state in proportion exp(log_q), to 1e-4."""
    process, k = UniformDiffusion(3, Cosine()), 60000
    noise = ((torch.arange(k, dtype=F64) + 0.5) / k)[:, None]
    for t in (0.1, 0.5, 1.0):
        times = torch.full((k,), t, dtype=F64)
        hits = process.corrupt(torch.ones(k, 1, dtype=torch.long), times, noise)
        q = process.log_q(torch.arange(3)[:, None], torch.ones(3, 1, dtype=torch.long), times[:3]).exp()
        close(hits.flatten().bincount(minlength=3).to(F64) / k, q[:, 0], 1e-4)


def test_random_network_bound_exceeds_the_entropy():
    """Gibbs: any network's bound, averaged over the data, is above H."""
    process = UniformDiffusion(3, t_min=1e-6, t_max=1 - 1e-6)
    net = random_network(process, WORLD, seed=4)
    assert average(WORLD, expected_nelbo(process, net, WORLD)) > WORLD.entropy
