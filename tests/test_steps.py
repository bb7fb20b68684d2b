"""Finite time against enumeration: what T steps cost, when more of them help, and what they tend to."""

import itertools
import math

import pytest
import torch
from oracle import (
    F64,
    WORLD,
    Exact,
    Table,
    average,
    expected_nelbo,
    gauss_legendre,
    generator,
    random_network,
    sequences,
    step_bound,
)
from torch.nn import functional as F

from dlm.errors import UserError
from dlm.process import GenMaskedDiffusion, MaskedDiffusion, ScoreMaskedDiffusion, UniformDiffusion
from dlm.process.divergence import categorical_kl
from dlm.process.schedule import Cosine, LogLinear
from dlm.process.uniform import log_plug_in

MD4 = MaskedDiffusion(3)
UNIFORM = UniformDiffusion(3, t_min=0.0, t_max=1.0)
INTEGRAL = gauss_legendre(60)


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


def uniform_grid(steps):
    return torch.linspace(0, 1, steps + 1, dtype=F64)


def total(process, net, grid):
    return float(average(WORLD, step_bound(process, net, WORLD, grid)))


# -- more steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [MD4, MaskedDiffusion(3, Cosine()), UNIFORM], ids=["md4", "cosine", "uniform"])
def test_refinement_helps_the_exact_network(process):
    """T09: with exact conditionals L_T never rises when its grid is refined: doubling, and 20 random points added.

    To 1e-12, for masks and for uniform noise.
    """
    exact = Exact(process, WORLD)
    doubled = [total(process, exact, uniform_grid(steps)) for steps in (1, 2, 4, 8, 16, 32)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(doubled))
    assert doubled[0] > doubled[-1] + 0.05 and doubled[-1] > WORLD.entropy
    rng, grid, before = torch.Generator().manual_seed(0), uniform_grid(1), doubled[0]
    for _ in range(20):
        grid = torch.cat([grid, torch.rand(1, generator=rng, dtype=F64)]).sort().values
        after = total(process, exact, grid)
        assert after <= before + 1e-12
        before = after


def test_refinement_can_hurt_another_network():
    """T10: a network that is good when all is masked and bad when little is has L_1 < L_inf (negative control)."""
    adversary = Table(4, 3, 3, seed=0)
    states = sequences(4, 3)
    hidden = (states == 3).sum(1)
    exact = Exact(MD4, WORLD)(states, torch.full((64,), 0.5, dtype=F64))
    wrong = -2.0 * exact.clamp(min=-20)  # the likelier, the less believed
    adversary.logits = torch.where((hidden == 3)[:, None, None], exact, wrong)
    assert total(MD4, adversary, uniform_grid(1)) < average(WORLD, expected_nelbo(MD4, adversary, WORLD, INTEGRAL))


def gap_ratios(process, steps):
    """How (L_T - L_inf) falls as T doubles, for a random network."""
    net = random_network(process, WORLD, seed=1)
    limit = float(average(WORLD, expected_nelbo(process, net, WORLD)))
    gaps = [total(process, net, uniform_grid(t)) - limit for t in steps]
    return [a / b for a, b in itertools.pairwise(gaps)]


def test_masks_approach_their_limit_as_one_over_t():
    """T11: (L_T - L_inf) halves when T doubles: ratio 2 +- 0.1 from T = 16 to 128."""
    ratios = gap_ratios(MD4, (16, 32, 64, 128))
    assert all(abs(ratio - 2) < 0.1 for ratio in ratios), ratios


def test_uniform_noise_approaches_its_limit_as_one_over_t():
    """T20: (L_T - L_inf) is c/T + O(1/T^2): the ratio is 2 +- 0.1 from T = 32 to 128, as with masks from 16.

    This network has a larger second-order term: the ratios from T = 8, 16, 32 and 64 on are 2.22, 2.10, 2.04 and
    2.02, whose excess over 2 at least halves every time.
    """
    ratios = gap_ratios(UNIFORM, (8, 16, 32, 64, 128))
    assert all(abs(ratio - 2) < 0.1 for ratio in ratios[2:]), ratios
    excess = [ratio - 2 for ratio in ratios]
    assert excess[0] < 0.3 and all(b < a / 2 for a, b in itertools.pairwise(excess)), ratios


# -- what a step is -----------------------------------------------------------------------------------------


def test_mass_on_the_mask_has_a_closed_form():
    """T21: D3PM-absorbing with probability out_m left on the mask, one step's divergence in closed form

        r [ log((u_t + alpha_t out_m) / u_t) - log out_x0 ]
        + (1 - r) [ log((u_t + alpha_t out_m) / u_t) - log((u_s + alpha_s out_m) / u_s) ],   r = (u_t - u_s) / u_t,

    is that of the plug-in reverse, to 1e-12; with out_m = 0 it is MD4's r (-log mu).
    """
    rng = torch.Generator().manual_seed(0)
    n, mask = 100, 3
    out = torch.rand(n, 4, generator=rng, dtype=F64)
    out[:10, mask] = 0
    out = out / out.sum(1, keepdim=True)
    u_t, u_s = torch.rand(2, n, generator=rng, dtype=F64).sort(0, descending=True).values
    alpha_t, alpha_s = 1 - u_t, 1 - u_s
    x0, z = torch.randint(3, (n,), generator=rng), torch.full((n,), mask)

    def q_s(p0):
        return alpha_s[:, None] * p0 + u_s[:, None] * F.one_hot(z, 4)

    reverse, true = (
        log_plug_in(alpha_t / alpha_s, torch.ones(n, dtype=F64), z, q_s(p).log()).exp()
        for p in (out, F.one_hot(x0, 4).to(F64))
    )
    r = (u_t - u_s) / u_t
    more_t = torch.log((u_t + alpha_t * out[:, mask]) / u_t)
    more_s = torch.log((u_s + alpha_s * out[:, mask]) / u_s)
    log_clean = out.gather(1, x0[:, None])[:, 0].log()
    printed = r * (more_t - log_clean) + (1 - r) * (more_t - more_s)
    close(categorical_kl(true, reverse), printed, 1e-12)
    close(printed[:10], (-r * log_clean)[:10], 1e-12)


@pytest.mark.parametrize("steps", [1, 3, 17])
def test_steps_are_the_same_bound_trained_and_scored(steps):
    """`steps=T` averages T times one step's divergence over the grid: `step_bound`, for three families, to 1e-11.

    D3PM's lambda changes the objective and leaves the reported bound alone.
    """
    grid = uniform_grid(steps)
    for make in (MaskedDiffusion, GenMaskedDiffusion, UniformDiffusion):
        process = make(3, steps=steps).double().requires_grad_(False)
        net = random_network(process, WORLD, seed=3)
        close(expected_nelbo(process, net, WORLD), step_bound(process, net, WORLD, grid), 1e-11)
        assert process.bound_kind == f"{steps}-step bound"
        x0, t = WORLD.clean, process.times(torch.full((27,), 0.3, dtype=F64))
        noise = torch.rand(process.noise_draws, 27, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
        target = torch.ones_like(x0, dtype=torch.bool)
        plain, hybrid = (make(3, steps=steps, hybrid=h).double().requires_grad_(False) for h in (0.0, 0.5))
        one, other = (p.loss(net, x0, t, target, noise) for p in (plain, hybrid))
        close(one.nelbo, other.nelbo, 0)
        assert (other.objective >= one.objective - 1e-12).all() and (other.objective > one.objective).any()


def test_a_truncated_schedule_pays_for_its_first_step():
    """A log-linear schedule that stops at alpha_1 = 0.1 adds 0.1 f(1), the first step of a sampler, to 1e-12."""
    process = MaskedDiffusion(3, LogLinear(0.1), steps=4)
    net = random_network(process, WORLD, seed=5)
    t, noise = torch.ones(27, dtype=F64), torch.zeros(27, 3, dtype=F64)
    nothing_known = F.cross_entropy(
        net(torch.full((27, 3), 3), t).transpose(1, 2), WORLD.clean, reduction="none"
    ).sum(1)
    close(process.boundary(net, WORLD.clean, noise).sum(1), 0.1 * nothing_known, 1e-12)
    finer = MaskedDiffusion(3, LogLinear(0.1))  # beside the continuous bound, which ends there as well
    close(finer.boundary(net, WORLD.clean, noise).sum(1), 0.1 * nothing_known, 1e-12)


def test_scores_of_no_distribution_reveal_at_z_times_the_rate():
    """SEDD's analytic step at a mask reveals with probability Z (u_t - u_s) / u_t; Z = 1 when normalised."""
    process, normalised = ScoreMaskedDiffusion(3), ScoreMaskedDiffusion(3, normalise=True)
    x_t, t, s = torch.full((1, 1), 3), torch.tensor([0.8], dtype=F64), torch.tensor([0.6], dtype=F64)
    logits = torch.tensor([[[0.3, -0.2, 0.7]]], dtype=F64)
    z = logits.exp().sum() / 3
    for p, factor in ((process, z), (normalised, 1.0)):
        reveal = 1 - p.posterior(logits, x_t, t, s)[0, 0, 3]
        close(reveal, factor * 0.25, 1e-12)
    assert process.step_kl(logits, torch.zeros(1, 1, dtype=torch.long), x_t, t, s) > 0


# -- the smallest chain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "back"), [(1.0, 2.0), (0.3, 0.0), (5.0, 5.0)])
def test_two_states(there, back):
    """T41: p_t(1) = a/(a+b) + (p_0 - a/(a+b)) e^{-(a+b) t} is expm of `generator`, to 2e-12 (torch's)."""

    class TwoStates:
        num_states = 2

    rates = torch.tensor([[[0.0, there]], [[back, 0.0]]], dtype=F64)
    matrix = generator(TwoStates(), rates)
    for t in (0.01, 0.4, 3.0):
        p = torch.linalg.matrix_exp(t * matrix) @ torch.tensor([0.7, 0.3], dtype=F64)
        rest = there / (there + back)
        close(p[1], rest + (0.3 - rest) * math.exp(-(there + back) * t), 2e-12)
        close(p.sum(), 1.0, 1e-13)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"hybrid": -0.1, "steps": 4}, {"hybrid": 0.1}, {"t_min": 0.5, "t_max": 0.2}]
)
def test_settings_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        MaskedDiffusion(3, **wrong)


@pytest.mark.parametrize("gap", [10.0, 60.0, 300.0])
def test_a_network_sure_of_the_wrong_token_costs_much_not_infinity(gap):
    """One step of uniform noise in float32, V = 27, T = 1000: the value and gradient of float64, and finite."""
    process = UniformDiffusion(27, steps=1000)
    x0 = torch.zeros(3, 2, dtype=torch.long)
    x_t = torch.tensor([[0, 5]]).expand(3, 2)
    t = torch.tensor([1 / 1000, 0.5, 1.0])
    found = []
    for dtype in (torch.float32, F64):
        logits = (gap * F.one_hot(torch.full((3, 2), 5), 27).to(dtype)).requires_grad_()
        ell = process.nelbo(logits, x0, x_t, t.to(dtype))
        (grad,) = torch.autograd.grad(ell.sum(), logits)
        assert torch.isfinite(ell).all() and torch.isfinite(grad).all()
        found.append(ell.double())
    torch.testing.assert_close(*found, rtol=2e-3, atol=2e-3)
    assert found[1].max() > 100
