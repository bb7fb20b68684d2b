"""The estimators of dlm.likelihood against enumeration: unbiased bounds, calibration, cost.

The exact scores and what orders disagree about are in test_chain_rule.py."""

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
    expected_boundary,
    expected_nelbo,
    gauss_legendre,
    noise_for,
    random_network,
    reachable,
    sequences,
    step_bound,
)

from dlm import likelihood
from dlm.likelihood import (
    Counted,
    adaptive_nll,
    any_order_nelbo,
    best_temperature,
    continuous_nelbo,
    kinds,
    left_to_right_nll,
    mask_id,
    order_moments,
    square_defect_draws,
    step_nelbo,
    tempered,
)
from dlm.process import AnyOrder, FlowMatching, GenMaskedDiffusion, MaskedDiffusion, UniformDiffusion
from dlm.process.base import token_nll
from dlm.process.schedule import Cosine, Polynomial
from dlm.process.score import ScoreMaskedDiffusion

MD4 = MaskedDiffusion(3)
RN, EX = random_network(MD4, WORLD, seed=1), Exact(MD4, WORLD)
DRIFTING = Table(4, 3, 3, seed=2, drift=0.5)


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


def at_one_half(x_t, t, where=None):
    """The exact network, which does not depend on t, asked where every state has a probability."""
    return EX(x_t, torch.full_like(t, 0.5), where)


def everywhere(x0):
    return torch.ones_like(x0, dtype=torch.bool)


def test_exact_count_estimator_with_a_time_dependent_network():
    """T68: sum_k (1/L)(L/k) mean_{|S|=k} E_{u ~ Beta(k, L-k+1)} C_S(u) = the NELBO when mu knows t, to 1e-12."""
    nodes, weights = gauss_legendre(60)()
    total = torch.zeros(27, dtype=F64)
    for k in (1, 2, 3):
        density = nodes ** (k - 1) * (1 - nodes) ** (3 - k) * k * math.comb(3, k)
        for chosen in itertools.combinations(range(3), k):
            masked = torch.tensor([i in chosen for i in range(3)]).expand(27, 3)
            x_t = torch.where(masked, 3, WORLD.clean)
            for u, w in zip(nodes, weights * density, strict=True):
                log_mu = DRIFTING(x_t, u.expand(27)).log_softmax(-1)
                nll = -(log_mu.gather(-1, WORLD.clean[..., None])[..., 0] * masked).sum(1)
                total += w * nll / k / math.comb(3, k)
    close(total, expected_nelbo(MD4, DRIFTING, WORLD, gauss_legendre(60)), 1e-12)


@pytest.mark.parametrize(
    "process",
    [MD4, AnyOrder(3), MaskedDiffusion(3, Cosine()), FlowMatching(3, "mask"), MaskedDiffusion(3, Polynomial(2.0))],
    ids=["md4", "aoarm", "cosine", "dfm_mask", "polynomial"],
)
def test_any_order_nelbo_is_unbiased(process):
    """T68: the mean of 27 x 1600 draws is within 4.5 standard errors of the enumerated NELBO, for every x.

    The network knows the time, so the rate it is told must be Beta(k, L - k + 1) in the schedule's own clock.
    """
    repeats = 200
    x0 = WORLD.clean.repeat(repeats, 1)
    draws = any_order_nelbo(process, DRIFTING, x0, everywhere(x0), torch.arange(len(x0)), draws=8, seed=3)
    means = draws.mean(1).reshape(repeats, 27)
    rule = gauss_legendre(200, 4)
    truth = expected_nelbo(process, DRIFTING, WORLD, rule)
    z = (means.mean(0) - truth) / (means.std(0) / math.sqrt(repeats))
    assert z.abs().max() < 4.5 and z.pow(2).mean() < 2


def test_any_order_nelbo_with_given_tokens():
    """T68: with one token given, the estimate averages the two orders of the other two (4.5 s.e.)."""
    repeats = 400
    x0 = WORLD.clean.repeat(repeats, 1)
    target = torch.tensor([True, False, True]).expand_as(x0)
    draws = any_order_nelbo(MD4, RN, x0, target, torch.arange(len(x0)), draws=4, seed=5)
    means = draws.mean(1).reshape(repeats, 27)

    def nll(hidden, position):
        masked = torch.tensor([i in hidden for i in range(3)])
        log_mu = RN(torch.where(masked, 3, WORLD.clean), torch.full((27,), 0.5, dtype=F64)).log_softmax(-1)
        return -log_mu.gather(-1, WORLD.clean[..., None])[:, position, 0]

    truth = (nll((0, 2), 0) + nll((2,), 2) + nll((0, 2), 2) + nll((0,), 0)) / 2
    z = (means.mean(0) - truth) / (means.std(0) / math.sqrt(repeats))
    assert z.abs().max() < 4.5


@pytest.mark.parametrize(
    "process",
    [
        MD4,
        UniformDiffusion(3, t_min=0.05, t_max=0.95),
        FlowMatching(3, "uniform", t_min=0.05),
        GenMaskedDiffusion(3, t_min=0.05).double().requires_grad_(False),
    ],
    ids=["md4", "shuffle", "dfm_uniform", "genmd4"],
)
def test_continuous_nelbo_is_unbiased(process):
    """T25: stratified times, one corruption each, boundary included: within 4.5 s.e. of integral + boundary."""
    repeats, net = 200, random_network(process, WORLD, 4)
    x0 = WORLD.clean.repeat(repeats, 1)
    draws = continuous_nelbo(process, net, x0, everywhere(x0), torch.arange(len(x0)), draws=16, seed=7)
    means = draws.mean(1).reshape(repeats, 27)
    truth = expected_nelbo(process, net, WORLD) + expected_boundary(process, net, WORLD)
    z = (means.mean(0) - truth) / (means.std(0) / math.sqrt(repeats))
    assert z.abs().max() < 4.5 and z.pow(2).mean() < 2


@pytest.mark.parametrize("process", [MD4, UniformDiffusion(3, t_min=0.3)], ids=["md4", "shuffle"])
def test_given_tokens_are_never_destroyed_while_scoring(process):
    """A prompt stays what it is in every network call of both estimators, boundary terms included."""
    x0 = WORLD.clean.repeat(20, 1)
    target = torch.tensor([True, False, True]).expand_as(x0)
    net, seen = random_network(process, WORLD, 4), []

    def watched(x_t, t, where=None):
        seen.append(bool((x_t[:, 1].reshape(len(x0), -1) == x0[:, 1:2]).all()))
        return net(x_t, t, where)

    continuous_nelbo(process, watched, x0, target, torch.arange(len(x0)), draws=2, seed=0)
    assert all(seen)


def enumerated_steps(process, net, world, times):
    """The expectation of `step_nelbo` with one draw: over its step i and every corruption at t_i, [N]."""
    steps = len(times) - 1
    total = torch.zeros(len(world.clean), dtype=F64)
    for i in range(steps):
        row, (z,), q = reachable(process, world, times[i + 1])
        x0 = world.clean[row]
        noise = torch.full((len(x0), 1 + 2 * world.length), (i + 0.5) / steps, dtype=F64)
        noise[:, 1 + world.length :] = noise_for(process, x0, z, times[i + 1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(likelihood.bounds, "uniforms", lambda *_, noise=noise: noise)
            value = step_nelbo(process, net, x0, everywhere(x0), torch.arange(len(x0)), 1, 0, times)[:, 0]
        total = total.index_add(0, row, q * value / steps)
    return total


STEPPED = {
    "md4": MD4,
    "md4 cosine": MaskedDiffusion(3, Cosine()),
    "shuffle": UniformDiffusion(3),
    "dfm_uniform": FlowMatching(3, "uniform"),
    "dfm_mask": FlowMatching(3, "mask"),
    "genmd4": GenMaskedDiffusion(3, t_min=0.05).double().requires_grad_(False),
    "sedd_absorb": ScoreMaskedDiffusion(3),
    "d3pm_uniform": UniformDiffusion(3, steps=4),
}


@pytest.mark.parametrize("name", STEPPED)
def test_step_nelbo_is_unbiased(name):
    """T07, T19, T28: enumerated over its steps and corruptions, `step_nelbo` = the T-step bound, the divergence
    from the prior at the grid's end included, for every x, network and grid, to 1e-11."""
    process = STEPPED[name]
    net = random_network(process, WORLD, 4)
    for times in (torch.arange(5) / 4, torch.tensor([0.0, 0.3, 0.9, 1.0])):
        times = times.to(F64) * process.t_max
        if process.steps is not None and len(times) != 5:
            continue
        prior = process.prior_term(net, WORLD.clean, torch.zeros(27, 3, dtype=F64), everywhere(WORLD.clean))
        truth = step_bound(process, net, WORLD, times.tolist()) + prior.sum(1)
        close(enumerated_steps(process, net, WORLD, times), truth, 1e-11)


def test_as_many_draws_as_steps_visit_each_step_once():
    """T07: the draws of one window are stratified over the steps, and their mean over 27 x 400 windows is within
    4.5 s.e. of the T-step bound."""
    times, seen = torch.arange(7, dtype=F64) / 6, []

    def watched(x_t, t, where=None):
        seen.append(t)
        return RN(x_t, t, where)

    x0 = WORLD.clean.repeat(400, 1)
    draws = step_nelbo(MD4, watched, x0, everywhere(x0), torch.arange(len(x0)), 6, 1, times)
    close(torch.cat(seen).view(-1, 6), times[1:].expand(len(x0), -1), 1e-15)
    means = draws.mean(1).reshape(400, 27)
    z = (means.mean(0) - step_bound(MD4, RN, WORLD, times.tolist())) / (means.std(0) / math.sqrt(400))
    assert z.abs().max() < 4.5 and z.pow(2).mean() < 2


def kinds_of(process):
    return kinds(process, {}, torch.arange(9, dtype=F64) / 8 * process.t_max)


@pytest.mark.parametrize(
    "process",
    [UniformDiffusion(3, t_min=0.05, t_max=0.95), FlowMatching(3, "uniform", t_min=0.05)],
    ids=["shuffle", "dfm_uniform"],
)
def test_a_network_between_tokens_has_two_continuous_bounds(process):
    """T16, T36: fed the exact network in the process's own parameterisation, `continuous` is H plus its ends, and
    `flow_path` the bound of flow matching with exact posteriors, looser by more than 0.1 nats (4.5 s.e.)."""
    repeats, x0 = 150, WORLD.clean.repeat(150, 1)
    net, index = Exact(process, WORLD), torch.arange(150 * 27)
    means = {}
    for name in ("continuous", "flow_path"):
        draws = kinds_of(process)[name].draws(net, x0, everywhere(x0), index, 16, 7)
        means[name] = draws.mean(1).reshape(repeats, 27)
    tight = process if isinstance(process, UniformDiffusion) else process.as_diffusion()
    path = process if isinstance(process, FlowMatching) else FlowMatching(3, "uniform", t_min=0.05)
    for name, other in (("continuous", tight), ("flow_path", path)):
        exact = Exact(other, WORLD)
        truth = expected_nelbo(other, exact, WORLD) + expected_boundary(other, exact, WORLD)
        z = (means[name].mean(0) - truth) / (means[name].std(0) / math.sqrt(repeats))
        assert z.abs().max() < 4.5 and z.pow(2).mean() < 2, name
    gap = (means["flow_path"].mean(0) - means["continuous"].mean(0)) @ WORLD.p
    assert gap > 0.1


def test_each_process_has_the_likelihoods_that_it_can_have():
    """The first is the one it is reported by; only mask predictors have chain rules."""
    chain = {"left_to_right", "margin", "random_order", "mixture", "order_variance", "square_defect"}
    scores = {"margin": lambda logits: logits[:, 0]}
    for process, first, has_chain in (
        (MD4, "exact_count", True),
        (AnyOrder(3), "exact_count", True),
        (MaskedDiffusion(3, steps=8), "steps", True),
        (ScoreMaskedDiffusion(3), "continuous", True),
        (ScoreMaskedDiffusion(3, normalise=True), "exact_count", True),
        (FlowMatching(3), "exact_count", True),
        (FlowMatching(3, "uniform"), "continuous", False),
        (UniformDiffusion(3), "continuous", False),
        (UniformDiffusion(3, steps=8), "steps", False),
        (GenMaskedDiffusion(3), "continuous", False),
    ):
        found = kinds(process, scores, torch.arange(9, dtype=F64) / 8 * process.t_max)
        assert next(iter(found)) == first and ("exact_count" in found) == has_chain, process
        assert (chain <= set(found)) == has_chain and ("left_to_right" in found) == has_chain
        assert "steps" in found and ("continuous" in found) == (process.steps is None)
        tokens = process.mask_id is None and process.steps is None
        assert ("flow_path" in found) == tokens
        assert {k.bound for k in found.values() if k.label == "exact"} <= {"exact"}


# -- calibration -------------------------------------------------------------------------------------------


def too_sure(net):
    return lambda x_t, t, where=None: 2.5 * net(x_t, t, where)


def test_calibration_brings_back_a_network_that_is_too_sure():
    """Logits of exact networks times 2.5: left to right, over all orders, and for uniform diffusion, T = 2.5 is
    the best temperature, to 0.2 per cent; for masks it finds the entropy there."""
    masked, uniform = too_sure(at_one_half), UniformDiffusion(3, t_min=0.05, t_max=0.95)
    shuffled = too_sure(Exact(uniform, WORLD))
    x0, target = WORLD.clean, everywhere(WORLD.clean)
    rule = gauss_legendre(12)
    expected = {
        "left to right": lambda t: left_to_right_nll(MD4, tempered(masked, t), x0, target),
        "all orders": lambda t: order_moments(MD4, tempered(masked, t), x0).nelbo,
        "uniform": lambda t: expected_nelbo(uniform, tempered(shuffled, t), WORLD, rule),
    }
    for name, nll in expected.items():
        best = best_temperature(lambda t, nll=nll: float(average(WORLD, nll(t))))
        assert abs(best / 2.5 - 1) < 2e-3, (name, best)
        if name != "uniform":
            close(average(WORLD, nll(best)), WORLD.entropy, 1e-5)


def test_calibration_is_never_worse_than_none():
    """Whatever the function: at its own optimum T = 1 stays 1; with several minima or none, no worse."""
    assert abs(best_temperature(lambda t: math.log(t) ** 2) - 1) < 1e-3
    for nll in (
        lambda t: math.cos(9 * math.log(t)),
        lambda t: -math.exp(-((math.log(t) / 1e-4) ** 2)),
        lambda t: t,
    ):
        assert nll(best_temperature(nll)) <= nll(1.0)
    assert best_temperature(lambda t: t) < 0.126, "the end of the range where there is no minimum inside"


def test_a_temperature_passes_by_the_fast_cross_entropy():
    """At 1 the network itself, fast path and all; elsewhere token_nll goes through the divided logits."""

    class Fast:
        def __call__(self, x_t, t, where):
            return RN(x_t, t, where)

        def cross_entropy(self, x_t, t, x0, where):
            raise AssertionError("knows nothing of temperatures")

    x_t, t, where = torch.full((27, 3), 3), torch.full((27,), 0.5, dtype=F64), everywhere(WORLD.clean)
    assert tempered(Fast(), 1.0).cross_entropy
    got = token_nll(Counted(tempered(Fast(), 2.0)), x_t, t, WORLD.clean, where)
    truth = -(RN(x_t, t) / 2).log_softmax(-1).gather(-1, WORLD.clean[..., None])[..., 0]
    close(got, truth, 1e-14)


def test_the_cost_is_counted_in_rows():
    """One row per draw, per token of a chain rule, and per subset; the fast path counts as the plain one does."""
    x0, target, index = WORLD.clean, everywhere(WORLD.clean), torch.arange(27)
    for work, rows in (
        (lambda net: any_order_nelbo(MD4, net, x0, target, index, 5, 0), 27 * 5),
        (lambda net: continuous_nelbo(MD4, net, x0, target, index, 5, 0), 27 * 5),
        (lambda net: left_to_right_nll(MD4, net, x0, target), 27 * 3),
        (lambda net: adaptive_nll(MD4, net, x0, target, lambda logits: logits[:, 0]), 27 * 3),
        (lambda net: order_moments(MD4, net, x0), 27 * 8),
        (lambda net: square_defect_draws(MD4, net, x0, index, 5, 0), 27 * 5 * 3),
    ):
        counted = Counted(RN)
        work(counted)
        assert counted.rows == rows


def test_first_hitting_times_and_counts():
    """T46: u_next = u U^{1/n} has P(u_next <= y) = (y/u)^n, as the largest of n uniforms below u; masked
    counts at rate u are Binomial(L, u), to 1e-12."""
    for n, u in ((1, 1.0), (3, 0.7), (5, 0.2)):
        uniform = (torch.arange(200000, dtype=F64) + 0.5) / 200000
        following = u * uniform ** (1 / n)
        for y in (0.1 * u, 0.5 * u, 0.9 * u):
            close((following <= y).to(F64).mean(), (y / u) ** n, 1e-5)
    states = sequences(4, 3)
    for u in (0.1, 0.6):
        t = torch.full((64,), u, dtype=F64)
        q = MD4.log_q(states, WORLD.clean[7].expand(64, 3), t).sum(1).exp()
        law = torch.zeros(4, dtype=F64).index_add(0, (states == 3).sum(1), q)
        close(law, torch.tensor([math.comb(3, k) * u**k * (1 - u) ** (3 - k) for k in range(4)], dtype=F64), 1e-12)


def test_only_processes_with_a_mask_have_conditionals_of_hidden_tokens():
    """Uniform processes have no mask to ask about."""
    with pytest.raises(TypeError, match="does not mask"):
        mask_id(UniformDiffusion(3))
    assert mask_id(MD4) == mask_id(GenMaskedDiffusion(3)) == 3
