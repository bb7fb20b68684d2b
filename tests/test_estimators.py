"""The estimators of dlm.likelihood against enumeration: unbiased bounds, exact scores, moments over orders."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracle import (
    F64,
    TWO_STRINGS,
    WORLD,
    Exact,
    Table,
    average,
    expected_boundary,
    expected_nelbo,
    gauss_legendre,
    order_log_likelihoods,
    order_moments,
    random_network,
    sequences,
)

from dlm import likelihood
from dlm.likelihood import any_order_nelbo, continuous_nelbo, is_mask_predictor, left_to_right_nll, mask_id
from dlm.process import AnyOrder, FlowMatching, GenMaskedDiffusion, MaskedDiffusion, UniformDiffusion
from dlm.process.schedule import Cosine, Polynomial

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


@pytest.mark.parametrize("net", [RN, EX], ids=["random", "exact"])
def test_left_to_right_is_the_chain_rule(net):
    """T66: `left_to_right_nll` = the identity order's -log p(x | sigma) to 1e-12; sums to 1; H when exact."""
    got = left_to_right_nll(MD4, net, WORLD.clean, everywhere(WORLD.clean), rows=10)
    close(got, -order_log_likelihoods(net, WORLD)[0], 1e-12)
    close((-got).exp().sum(), 1.0, 1e-12)
    if net is EX:
        close(average(WORLD, got), WORLD.entropy, 1e-12)


def test_left_to_right_given_a_prompt():
    """T66: only targets are predicted, the rest is read: -log p(x^2, x^3 | x^1) to 1e-12 for the exact network."""
    target = torch.tensor([False, True, True]).expand_as(WORLD.clean)
    got = left_to_right_nll(MD4, at_one_half, WORLD.clean, target)
    first = torch.zeros(3, dtype=F64).index_add(0, WORLD.clean[:, 0], WORLD.p)
    close(got, -(WORLD.p / first[WORLD.clean[:, 0]]).log(), 1e-12)


@pytest.mark.parametrize("world", [WORLD, TWO_STRINGS], ids=["dirichlet", "zeros"])
def test_random_order_with_exact_conditionals_is_the_data(world):
    """T45: p_rand(x), the mean over orders of p(x | sigma), equals p(x), to 1e-14."""
    process = MaskedDiffusion(world.vocab_size)
    mass, _, _ = order_moments(Exact(process, world), world)
    close(torch.where(world.p > 0, mass, 0.0), world.p, 1e-14)


def test_moments_over_orders_by_dynamic_programming():
    """T53: p_rand, mean and variance over the 6 orders = enumeration, to 1e-12."""
    orders = order_log_likelihoods(RN, WORLD)
    mass, mean, variance = order_moments(RN, WORLD)
    close(mass, orders.exp().mean(0), 1e-12)
    close(mean, orders.mean(0), 1e-12)
    close(variance, orders.var(0, correction=0), 1e-11)


def test_orders_agree_exactly_when_every_square_commutes():
    """T54: variance over orders and all square defects vanish for exact conditionals (1e-12) only."""
    for net, zero in ((EX, True), (RN, False)):
        defects = square_defects(net)
        _, _, variance = order_moments(net, WORLD)
        if zero:
            close(defects, torch.zeros_like(defects), 1e-12)
            close(variance, torch.zeros_like(variance), 1e-12)
        else:
            assert defects.abs().amax(0).min() > 1e-2 and variance.min() > 1e-3


def square_defects(net):
    """log mu^i(S) mu^j(S\\i) - log mu^j(S) mu^i(S\\j) for all S and i < j in S: [squares N]."""

    def log_mu(hidden, position):
        masked = torch.tensor([i in hidden for i in range(3)])
        table = net(torch.where(masked, 3, WORLD.clean), torch.full((27,), 0.5, dtype=F64)).log_softmax(-1)
        return table.gather(-1, WORLD.clean[..., None])[:, position, 0]

    rows = []
    for size in (2, 3):
        for hidden in itertools.combinations(range(3), size):
            for i, j in itertools.combinations(hidden, 2):
                without_i, without_j = [[k for k in hidden if k != gone] for gone in (i, j)]
                one = log_mu(hidden, i) + log_mu(without_i, j)
                rows.append(one - log_mu(hidden, j) - log_mu(without_j, i))
    return torch.stack(rows)


def test_mean_over_orders_bounds_the_random_order_law():
    """T55: NELBO(x) >= -log p_rand(x), sum_x p_rand(x) = 1, and more orders inside the logarithm tighten it."""
    orders = order_log_likelihoods(RN, WORLD)
    mass, mean, _ = order_moments(RN, WORLD)
    close(mass.sum(), 1.0, 1e-12)
    assert (-mean >= -mass.log()).all()
    bounds = []
    for k in (1, 2, 3):
        tuples = torch.tensor(list(itertools.product(range(6), repeat=k)))
        bounds.append(-(orders[tuples].logsumexp(1) - math.log(k)).mean(0))
    assert (bounds[0] >= bounds[1] - 1e-12).all() and (bounds[1] >= bounds[2] - 1e-12).all()
    assert (bounds[2] >= -mass.log() - 1e-12).all()


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.9])
def test_two_strings_where_the_sampler_cannot_see_what_the_bound_does(theta):
    """T56: p = 1/2, 1/2 for every theta; NELBO = ln 2 - ln(1 - theta^2)/2; Var = artanh(theta)^2; to 1e-12."""
    states = {(2, 2): (1 + theta) / 2, (2, 1): (1 - theta) / 2}

    def net(x_t, t, where=None):
        probs = torch.full((*x_t.shape, 2), 0.5, dtype=F64)
        probs[:, 1] = torch.tensor([0.0, 1.0], dtype=F64)
        for row, x in enumerate(x_t.tolist()):
            zero = states.get(tuple(x), 0.5)
            probs[row, 0] = torch.tensor([zero, 1 - zero], dtype=F64)
        return probs.log()

    mass, mean, variance = order_moments(net, TWO_STRINGS)
    live = TWO_STRINGS.p > 0
    close(mass[live], TWO_STRINGS.p[live], 1e-13)
    nelbo = (-mean[live]).mean()
    close(nelbo, math.log(2) - 0.5 * math.log(1 - theta**2), 1e-13)
    close(variance[live], torch.full((2,), math.atanh(theta) ** 2, dtype=F64), 1e-12)
    process = MaskedDiffusion(2)
    close(average(TWO_STRINGS, expected_nelbo(process, net, TWO_STRINGS, gauss_legendre(4))), nelbo, 1e-12)


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


def test_only_mask_predictors_have_conditionals_of_hidden_tokens():
    """Uniform processes have no mask to ask about; GenMD4's masks say something about what they hide."""
    uniform = UniformDiffusion(3)
    with pytest.raises(TypeError):
        mask_id(uniform)
    assert is_mask_predictor(MD4) and is_mask_predictor(AnyOrder(3)) and is_mask_predictor(FlowMatching(3))
    assert not any(map(is_mask_predictor, (uniform, GenMaskedDiffusion(3), FlowMatching(3, "uniform"))))
    assert likelihood.mask_id(MD4) == 3 and np.isfinite(3)
