"""Every schedule's closed forms agree with each other, with autograd, and with themselves in float32."""

import math

import pytest
import torch
from oracle import F64
from torch import nn

from dlm.process import GenMaskedDiffusion
from dlm.process import schedule as schedules
from dlm.process.schedule import Schedule, TokenPolynomial


def members():
    """Every scalar schedule of the module with its default arguments, and some with others."""
    found = [c for c in vars(schedules).values() if isinstance(c, type) and issubclass(c, Schedule)]
    everyone = [c() for c in found if c is not Schedule]
    others = [schedules.Polynomial(0.5), schedules.Polynomial(1.0), schedules.Kappa(1.0), schedules.Kappa(2.0)]
    return [pytest.param(s, id=f"{type(s).__name__}-{getattr(s, 'power', '')}") for s in everyone + others]


each = pytest.mark.parametrize("schedule", members())
T = torch.arange(1, 96, dtype=F64) / 96


@each
def test_closed_form_rates_are_the_derivatives_of_u(schedule):
    """T06: -alpha'/(1-alpha) and -alpha'/alpha by automatic differentiation, to 1e-12 relative.

    Of the smaller of u and alpha, the larger one being rounded; alpha + u = 1 to 1e-15.
    """
    t = T.clone().requires_grad_()
    u, alpha = schedule.u(t), schedule.alpha(t)
    (du,), (dalpha,) = torch.autograd.grad(u.sum(), t), torch.autograd.grad(alpha.sum(), t)
    slope = torch.where(u < 0.5, du, -dalpha)
    torch.testing.assert_close(-schedule.dalpha(T), slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.unmask_rate(T), slope / u.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.noise_rate(T), slope / alpha.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha + u, torch.ones_like(u), rtol=0, atol=1e-15)


@each
def test_u_agrees_with_finite_differences(schedule):
    """T06: the same derivative without automatic differentiation, to 1e-8 relative and 1e-9 absolute."""
    h = 1e-6
    fd = (schedule.u(T + h) - schedule.u(T - h)) / (2 * h)
    torch.testing.assert_close(-schedule.dalpha(T), fd, rtol=1e-8, atol=1e-9)


@each
def test_inverse_undoes_u(schedule):
    """T06: t(u(t)) = t to 1e-12 relative, wherever u < 1 - 1e-4 is not within rounding of 1 (geometric noise gets
    there: sigma = 20)."""
    u = schedule.u(T)
    near = u < 1 - 1e-4
    torch.testing.assert_close(schedule.inverse(u)[near], T[near], rtol=1e-12, atol=0)


FORMULAS = {
    "Linear": lambda t: 1 / t,
    "Cosine": lambda t: math.pi / 2 / math.tan(math.pi * t / 2),
    "HalfCosine": lambda t: math.pi / 2 / math.tan(math.pi * t / 4),
    "CosineSquared": lambda t: math.pi / math.tan(math.pi * t / 2),
    "Polynomial": lambda t: 2 / t,
    "LogLinear": lambda t: 1 / t,
    "Kappa": lambda t: 3 * (1 - t) ** 2 / (1 - (1 - t) ** 3),
    "Geometric": lambda t: (s := 1e-4 ** (1 - t) * 20**t) * math.log(2e5) / math.expm1(s),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_weight_table(name):
    """T06: the weight w(t) of every schedule as its paper prints it, to 1e-12 relative."""
    printed = torch.tensor([FORMULAS[name](float(t)) for t in T], dtype=F64)
    torch.testing.assert_close(getattr(schedules, name)().unmask_rate(T), printed, rtol=1e-12, atol=0)


@each
def test_time_runs_from_clean_to_noise(schedule):
    """u rises on [0, 1], from at most 1e-3 to at least 1 - 1e-3."""
    t = torch.linspace(0, 1, 201, dtype=F64)
    u = schedule.u(t)
    assert (u.diff() >= 0).all() and u[0] <= 1e-3 and u[-1] >= 1 - 1e-3
    assert torch.isfinite(u).all() and torch.isfinite(schedule.alpha(t[1:])).all()


@each
def test_float32_follows_float64_to_both_ends(schedule):
    """u, alpha and both rates in float32 to 1e-3 relative, down to t = 1e-6 and up to t = 1 - 1e-3."""
    ends = torch.cat([torch.logspace(-6, -0.01, 40), 1 - torch.logspace(-3, -1, 20)])
    for name in ("u", "alpha", "unmask_rate", "noise_rate"):
        coarse, fine = getattr(schedule, name)(ends), getattr(schedule, name)(ends.double())
        seen = fine > 1e-9  # geometric noise leaves nothing to be relative to
        torch.testing.assert_close(coarse.double()[seen], fine[seen], rtol=1e-3, atol=0)


@pytest.fixture
def double():
    """Parameters are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def test_learned_schedule_starts_linear_in_float32():
    """T33: as it is trained, w = 1 for every token, to the float32 rounding of 1 (1.2e-7)."""
    process = GenMaskedDiffusion(4)
    assert process.schedule.raw.dtype == torch.float32
    torch.testing.assert_close(process.schedule.w, torch.ones(4), rtol=0, atol=1.2e-7)


@pytest.mark.usefixtures("double")
def test_learned_schedule_starts_linear_and_its_entries_are_independent():
    """T33: made in float64, w = 1 for every token and alpha = 1 - t, to 1e-12; token v's keep probability depends
    on raw_v alone."""
    schedule = GenMaskedDiffusion(4).schedule
    assert isinstance(schedule, TokenPolynomial)
    torch.testing.assert_close(schedule.w, torch.ones(4, dtype=F64), rtol=0, atol=1e-12)
    t = torch.tensor([0.3], dtype=F64)
    torch.testing.assert_close(schedule.u(t, torch.tensor([[0, 3]])), t.expand(1, 2), rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(schedule.u(t, torch.tensor([[2]])).sum(), schedule.raw)
    assert grad[2] != 0 and (grad[[0, 1, 3]] == 0).all()
    assert isinstance(schedule.raw, nn.Parameter)
