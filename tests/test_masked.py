"""Masked processes against enumeration: MD4, any-order, GenMD4."""

import itertools
import math

import pytest
import torch
from oracle import (
    F64,
    TWO_STRINGS,
    WORLD,
    Exact,
    Table,
    average,
    certain,
    conditional_nll,
    enumerated_loss,
    expected_nelbo,
    gauss_legendre,
    integrand,
    order_log_likelihoods,
    random_network,
    reachable,
    sequences,
    step_bound,
    subset_costs,
)
from torch.nn import functional as F

from dlm.process import (
    AnyOrder,
    GenMaskedDiffusion,
    MaskedDiffusion,
    ScoreMaskedDiffusion,
    ScoreUniformDiffusion,
)
from dlm.process.divergence import generalised_kl
from dlm.process.masked import carry_over, exact_count_mask
from dlm.process.schedule import (
    Cosine,
    CosineSquared,
    Geometric,
    HalfCosine,
    Kappa,
    Linear,
    Polynomial,
)

MD4 = MaskedDiffusion(3)
RN = random_network(MD4, WORLD, seed=1)
EX = Exact(MD4, WORLD)
IN_U = gauss_legendre(4)  # exact: with the linear schedule the integrand is a polynomial of degree L - 1
BINOMIAL = math.comb


def genmd4(w=(0.5, 1.0, 2.3), t_min=1e-3):
    process = GenMaskedDiffusion(len(w), t_min=t_min).double()
    with torch.no_grad():
        process.schedule.raw.copy_(torch.log(torch.expm1(torch.tensor(w, dtype=F64))))
    return process


def whole(process):
    """Integrate over all of (0, 1), without the reconstruction's cut."""
    process.t_min = 0.0
    return process


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=tol)


# -- MD4 and the any-order model --------------------------------------------------------------------------


@pytest.mark.parametrize("net", [RN, EX], ids=["random", "exact"])
def test_md4_is_the_mean_over_orders(net):
    """T01: NELBO(x) = E_sigma[-log p(x | sigma)] for every x, to 1e-12."""
    close(expected_nelbo(MD4, net, WORLD, IN_U), -order_log_likelihoods(net, WORLD).mean(0), 1e-12)


def test_md4_is_a_weighted_sum_over_subsets():
    """T02: NELBO(x) = sum_S C_S / (|S| binom(L, |S|)), to 1e-12."""
    direct = sum(c / (len(s) * BINOMIAL(3, len(s))) for s, c in subset_costs(RN, WORLD).items())
    close(expected_nelbo(MD4, RN, WORLD, IN_U), direct, 1e-12)


@pytest.mark.parametrize("world", [WORLD, TWO_STRINGS], ids=["dirichlet", "zeros"])
def test_md4_with_the_exact_network_is_the_entropy(world):
    """T03: sum_x p(x) NELBO(x) = H, to 1e-12; also where p has zeros."""
    process = MaskedDiffusion(world.vocab_size)
    close(average(world, expected_nelbo(process, Exact(process, world), world, IN_U)), world.entropy, 1e-12)


@pytest.mark.parametrize(
    "schedule", [Cosine(), CosineSquared(), HalfCosine(), Polynomial(0.5), Polynomial(2.0), Kappa(3.0)], ids=str
)
def test_md4_does_not_depend_on_its_schedule(schedule):
    """T04: a time-free network has one NELBO whatever the schedule, to 1e-11."""
    rule = gauss_legendre(200, power=4)
    close(expected_nelbo(MaskedDiffusion(3, schedule), RN, WORLD, rule), expected_nelbo(MD4, RN, WORLD), 1e-11)


def test_geometric_noise_integrates_the_part_it_covers():
    """T05: sigma in [1e-4, 20] gives int_{u_min}^{u_max} f(u) du, to 1e-11."""
    u_min, u_max = -math.expm1(-1e-4), -math.expm1(-20.0)
    part = expected_nelbo(MaskedDiffusion(3, t_min=u_min, t_max=u_max), RN, WORLD, IN_U)
    close(expected_nelbo(MaskedDiffusion(3, Geometric()), RN, WORLD, gauss_legendre(200)), part, 1e-11)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_t_step_bound_is_a_right_riemann_sum(steps):
    """T07: the sum of posterior KLs = sum_i (u_i - u_{i-1}) f(u_i) on an arbitrary grid, to 1e-12."""
    grid = torch.cat([torch.zeros(1, dtype=F64), torch.linspace(0, 1, steps + 1, dtype=F64)[1:] ** 1.7])
    f = integrand(MD4, RN, WORLD, grid[1:])
    close(step_bound(MD4, RN, WORLD, grid), (grid.diff()[:, None] * f).sum(0), 1e-12)


def subsets(positions):
    """All subsets, as tuples."""
    return [s for size in range(len(positions) + 1) for s in itertools.combinations(positions, size)]


def revealed_together(world, u_t, u_s):
    """E[sum_j H(x^j | x_t) - H(x^R | x_t)], R being what a step from rate u_t to u_s reveals.

    Enumerated over the masked sets of x_t and over R, from the entropies of the world alone.
    """
    everything, total = tuple(range(world.length)), 0.0
    reveal = (u_t - u_s) / u_t
    for masked in subsets(everything):
        seen = tuple(i for i in everything if i not in masked)
        here = u_t ** len(masked) * (1 - u_t) ** len(seen)
        known = world.marginal_entropy(seen)
        for together in subsets(masked):
            chance = reveal ** len(together) * (1 - reveal) ** (len(masked) - len(together))
            alone = sum(world.marginal_entropy((*seen, j)) - known for j in together)
            total += here * chance * (alone - (world.marginal_entropy((*seen, *together)) - known))
    return total


@pytest.mark.parametrize("grid", [[1.0], [0.5, 1.0], [0.25, 0.5, 0.75, 1.0], [0.1, 0.55, 1.0]], ids=len)
def test_t_step_gap_is_total_correlation(grid):
    """T08: L_T - H is the sum over steps of the conditional total correlation of what each reveals, to 1e-12;

    for T = 1, 2, 4 even steps and three uneven ones.  One step costs sum_i H(x^i) - H.
    """
    grid = torch.tensor([0.0, *grid], dtype=F64)
    gap = average(WORLD, step_bound(MD4, EX, WORLD, grid)) - WORLD.entropy
    close(gap, sum(revealed_together(WORLD, t, s) for s, t in itertools.pairwise(grid)), 1e-12)
    if len(grid) == 2:
        close(gap, sum(WORLD.marginal_entropy([i]) for i in range(3)) - WORLD.entropy, 1e-12)
    assert gap > 1e-3


def test_conditional_entropy_grows_with_the_masking_rate():
    """T12: f is increasing for the exact network, and f(1) = sum_i H(x^i), to 1e-12."""
    u = torch.linspace(0.01, 1, 50, dtype=F64)
    f = (integrand(MD4, EX, WORLD, u) * WORLD.p).sum(1)
    assert (f.diff() > 0).all()
    close(f[-1], sum(WORLD.marginal_entropy([i]) for i in range(3)), 1e-12)


def test_cutting_the_ends_costs_what_the_epsilon_form_says():
    """T13: int_e^{1-e} f + L e log V - H = -e (f(0) + f(1)) + L e log V + O(e^2), to 5e-8 at e = 1e-4."""
    e = 1e-4
    f = (integrand(MD4, EX, WORLD, torch.tensor([1e-9, 1.0], dtype=F64)) * WORLD.p).sum(1)
    cut = average(WORLD, expected_nelbo(MaskedDiffusion(3, t_min=e, t_max=1 - e), EX, WORLD, IN_U))
    code = cut + 3 * e * math.log(3)
    close(code - WORLD.entropy, -e * f.sum() + 3 * e * math.log(3), 5e-8)


def test_score_entropy_is_md4_plus_the_cost_of_a_wrong_normaliser():
    """T22: `ScoreMaskedDiffusion`, fed logits log(s/r) + log V, has the score entropy as its authors print it: it
    is MD4 of the normalised scores + w (Z - 1 - log Z) and at least MD4: to 1e-11, relative and absolute.
    """
    rng = torch.Generator().manual_seed(0)
    t = torch.rand(100, dtype=F64, generator=rng) * 0.98 + 0.01
    x0 = torch.randint(3, (100, 1), generator=rng)
    score = torch.randn(100, 3, dtype=F64, generator=rng).exp()
    alpha, r = 1 - t, (1 - t) / t  # r = alpha / (1 - alpha), sigma' = 1 / alpha for the linear schedule
    taken = score.gather(1, x0)[:, 0]
    printed = (score.sum(1) - r * taken.log() + r * (r.log() - 1)) / alpha
    process, logits = ScoreMaskedDiffusion(3, Linear()), (score / r[:, None]).log()[:, None] + math.log(3)
    masked = torch.full_like(x0, 3)
    entropy = process.integrand(logits, x0, masked, t)[:, 0]
    torch.testing.assert_close(process.scores(logits, masked, t)[:, 0].exp(), score, rtol=1e-12, atol=0)
    torch.testing.assert_close(entropy, printed, rtol=1e-11, atol=1e-11)
    md4 = MD4.nelbo(score.log()[:, None], x0, masked, t)[:, 0]
    z = score.sum(1) / r
    excess = MD4.schedule.unmask_rate(t) * (z - 1 - z.log())
    torch.testing.assert_close(entropy, md4 + excess, rtol=1e-11, atol=1e-11)
    assert (entropy - md4 > -1e-11).all() and (entropy - md4).max() > 1
    normalised = ScoreMaskedDiffusion(3, Linear(), normalise=True).integrand(logits, x0, masked, t)[:, 0]
    torch.testing.assert_close(normalised, md4, rtol=1e-11, atol=1e-11)


def test_score_entropy_constants():
    """T23: one jump costs s - a log s + K(a), K(a) = a (log a - 1): zero at s = a, s at a = 0 (1e-14).

    `generalised_kl` on a grid of a; then both score processes, fed the ratios of a known x0, cost nothing at any
    state (1e-13), where the sum over tokens is multiplied by rates up to 10.
    """
    a = torch.linspace(0.01, 3, 50, dtype=F64)
    s = a.flip(0)

    def jump(true, model):  # out of state 1 to state 0
        true, model = (torch.stack([v, torch.zeros_like(v)], -1)[:, None] for v in (true, model))
        return generalised_kl(true, model, torch.ones(50, 1, dtype=torch.long))[:, 0]

    close(jump(a, s), s - a * s.log() + a * (a.log() - 1), 1e-14)
    close(jump(a, a), torch.zeros(50, dtype=F64), 1e-14)
    close(jump(torch.zeros_like(s), s), s, 1e-14)
    for process in (ScoreMaskedDiffusion(3, Linear()), ScoreUniformDiffusion(3, Linear())):
        x0, x_t = sequences(3, 2).repeat_interleave(process.num_states**2, 0), sequences(process.num_states, 2)
        x_t = x_t.repeat(9, 1)
        for t in (0.1, 0.5, 0.9):
            times = torch.full((len(x0),), t, dtype=F64)
            cost = process.integrand(certain(process, x0, x_t, times), x0, x_t, times)
            close(cost, torch.zeros_like(cost), 1e-13)


def test_unified_integrand_is_the_masked_cross_entropy():
    """T14: the pi = e_m case of the one formula for interpolating processes is w 1[z = m] CE.

    ell = (-alpha'/alpha) pi(z)/q(z|x0) { KL(q(.|x0) || q(.|mu)) + R - 1 - log R }, to 1e-12 relative (1e-13 where
    it is zero).
    """
    rng = torch.Generator().manual_seed(1)
    t = torch.rand(200, dtype=F64, generator=rng) * 0.98 + 0.01
    x0 = torch.randint(3, (200, 1), generator=rng)
    logits = torch.randn(200, 1, 3, dtype=F64, generator=rng)
    for masked in (True, False):
        x_t = torch.full_like(x0, 3) if masked else x0
        mu = logits.softmax(-1)[:, 0] if masked else F.one_hot(x0[:, 0], 3).to(F64)  # carried over
        mask = F.one_hot(torch.tensor(3), 4).to(F64)

        def q(p, t=t, mask=mask):
            return (1 - t)[:, None] * F.pad(p, (0, 1)) + t[:, None] * mask

        true, model = q(F.one_hot(x0[:, 0], 3).to(F64)), q(mu)
        kl = torch.special.xlogy(true, true / model.clamp(min=1e-300)).sum(1)
        ratio = (true.gather(1, x_t) / model.gather(1, x_t))[:, 0]
        pi = mask[x_t[:, 0]]
        ell = pi / (1 - t) / true.gather(1, x_t)[:, 0] * (kl + ratio - 1 - ratio.log())
        got = MD4.nelbo(logits, x0, x_t, t)[:, 0]
        torch.testing.assert_close(got, ell, rtol=1e-12, atol=1e-13)


def test_ardm_weights_average_to_md4():
    """T67: `AnyOrder.loss` over every count k and every order of the noise is the NELBO, to 1e-12."""
    process = AnyOrder(3)
    orders = torch.tensor(list(itertools.permutations([0.1, 0.4, 0.8])), dtype=F64)
    x0, n = WORLD.clean, len(WORLD.clean)
    total = torch.zeros(n, dtype=F64)
    for k in (1, 2, 3):
        for order in orders:
            t = torch.full((n,), (k - 0.5) / 3, dtype=F64)
            bound = process.loss(RN, x0, t, torch.ones_like(x0, dtype=torch.bool), order.expand(1, n, 3))
            close(bound.nelbo.sum(1), bound.objective, 1e-13)
            total += bound.nelbo.sum(1) / 18
    close(total, expected_nelbo(MD4, RN, WORLD, IN_U), 1e-12)


def test_any_order_counts_only_targets():
    """T67: with n < L targets k runs over 1..n, the given token is never masked, the mean is conditional.

    -log p(x^{1,2} | x^3) averaged over the two orders.
    """
    process, target = AnyOrder(3), torch.tensor([[True, True, False]])
    x0 = WORLD.clean
    total = 0
    for k in (1, 2):
        for noise in ([0.2, 0.7, 0.1], [0.7, 0.2, 0.1]):
            t = torch.full((len(x0),), (k - 0.5) / 2, dtype=F64)
            noise = torch.tensor(noise, dtype=F64).expand(1, len(x0), 3)
            total = total + process.loss(RN, x0, t, target.expand_as(x0), noise).nelbo / 4
    assert (total[:, 2] == 0).all()

    def nll(*masked):
        hidden = torch.tensor([i in masked for i in range(3)]).expand_as(x0)
        return conditional_nll(RN, x0, hidden, 3)

    both, one, two = nll(0, 1), nll(0), nll(1)
    expected = (both[:, 0] + two[:, 1] + both[:, 1] + one[:, 0]) / 2
    close(total.sum(1), expected, 1e-12)


def test_exact_counts_are_uniform_over_subsets():
    """T67: every ranking of the noise masks exactly k targets, every subset equally often."""
    noise = torch.tensor(list(itertools.permutations([0.0, 0.3, 0.5, 0.9])), dtype=F64)
    target = torch.tensor([True, True, False, True]).expand_as(noise)
    for k in range(4):
        masks = exact_count_mask(noise, target, torch.full((len(noise),), k))
        assert (masks.sum(1) == k).all() and not masks[:, 2].any()
        _, counts = masks.unique(dim=0, return_counts=True)
        assert len(counts) == math.comb(3, k) and (counts == counts[0]).all()


def test_erasing_the_last_token_is_the_autoregressive_model():
    """T66: the destroyer that removes the last token has the chain rule as its bound: H when exact, to 1e-12."""
    identity = -order_log_likelihoods(EX, WORLD)[0]
    close(average(WORLD, identity), WORLD.entropy, 1e-12)
    prefix_costs = 0
    for kept in range(3):
        masked = torch.arange(3) >= kept
        prefix_costs = prefix_costs + conditional_nll(RN, WORLD.clean, masked.expand_as(WORLD.clean), 3)[:, kept]
    close(prefix_costs, -order_log_likelihoods(RN, WORLD)[0], 1e-12)


@pytest.mark.parametrize("process", [MD4, genmd4()], ids=["md4", "genmd4"])
def test_visible_tokens_neither_move_nor_cost(process):
    """T79: carried-over tokens have no rate, no event and no term in the bound; the mask is never predicted."""
    states = sequences(4, 3)
    x0 = torch.where(states == 3, 0, states)
    t, s = torch.full((64,), 0.6, dtype=F64), torch.full((64,), 0.2, dtype=F64)
    logits = RN(states, t)
    visible = states != 3
    with torch.no_grad():
        assert (process.nelbo(logits, x0, states, t)[visible] == 0).all()
        assert (process.event_prob(states, t, s)[visible] == 0).all()
        assert (process.rates(logits, states, t)[visible] == 0).all()
        assert (process.rates(logits, states, t)[..., 3] == 0).all()
        after = process.posterior(logits, states, t, s)
        close(after[visible], F.one_hot(states, 4).to(F64)[visible], 0)
        clean = process.posterior(logits, states, t, torch.zeros_like(s))
    close(clean[..., 3], torch.zeros(64, 3, dtype=F64), 0)
    carried = carry_over(logits, states, 3).softmax(-1)
    close(carried[visible], F.one_hot(x0, 3).to(F64)[visible], 0)


# -- GenMD4 -----------------------------------------------------------------------------------------------

IN_S = gauss_legendre(80, power=6)
DRIFTING = Table(4, 3, 3, seed=2, drift=0.5)


def test_genmd4_with_unit_powers_is_md4():
    """T26: w = 1 is MD4 on the linear schedule, for a network that knows the time, to 1e-12."""
    close(
        expected_nelbo(whole(genmd4((1.0, 1.0, 1.0))), DRIFTING, WORLD, IN_S).detach(),
        expected_nelbo(MD4, DRIFTING, WORLD, IN_S),
        1e-12,
    )


@pytest.mark.parametrize("w", [(0.5, 1.0, 2.3), (1.4, 0.7, 3.0)])
def test_genmd4_with_the_exact_network_is_the_entropy(w):
    """T27: NELBO = H whatever w, with a posterior that knows t, to 1e-11."""
    process = whole(genmd4(w))
    total = average(WORLD, expected_nelbo(process, Exact(process, WORLD), WORLD, IN_S)).detach()
    close(total, WORLD.entropy, 1e-11)


@torch.no_grad()
def test_genmd4_steps_approach_the_entropy_from_above():
    """T28: L_T - H is positive and falls about as 1/T at T = 4, 16, 64."""
    process = genmd4()
    exact = Exact(process, WORLD)
    gaps = []
    for steps in (4, 16, 64):
        grid = torch.linspace(0, 1, steps + 1, dtype=F64)
        gaps.append(float(average(WORLD, step_bound(process, exact, WORLD, grid)) - WORLD.entropy))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert all(3 < a / b < 5 for a, b in itertools.pairwise(gaps))


def test_genmd4_needs_its_mean_zero_terms():
    """T29: at mu ~ w mu*, the loss without (-w_a + sum_v w_v mu_v) is 0.447 nats below H, the whole loss 0.564
    above, to 5e-4.
    """
    process = whole(genmd4())
    exact, w = Exact(process, WORLD), process.schedule.w.detach()

    def tilted(x_t, t, where=None):
        return exact(x_t, t) + w.log()

    def cross_entropy_only(logits, x0, x_t, t):
        nll = -w[x0] * logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0]
        return torch.where(x_t == 3, nll / t[:, None], 0.0)

    with torch.no_grad():
        full = average(WORLD, expected_nelbo(process, tilted, WORLD, IN_S))
        bare = average(WORLD, expected_nelbo(process, tilted, WORLD, IN_S, cross_entropy_only))
    close(full - WORLD.entropy, torch.tensor(0.564, dtype=F64), 5e-4)
    close(bare - WORLD.entropy, torch.tensor(-0.447, dtype=F64), 5e-4)


def genmd4_expected_loss(process, denoise, t, p=WORLD.p):
    """(1 - t_min) sum_{x_t} q_w(x_t | x0) sum_i ell + reconstruction at one t, differentiable in w."""
    span = process.t_max - process.t_min
    ell = integrand(process, denoise, WORLD, torch.tensor([t], dtype=F64))[0]
    return (p * (span * ell + process.decoder_nll(WORLD.clean).sum(-1))).sum()


@pytest.mark.parametrize("t", [0.02, 0.37, 0.9])
def test_genmd4_gradient_is_unbiased(t):
    """T30: over all pairs of masks the objective's gradient in w and in the network is the true one, to 1e-12.

    Its value, and the reported NELBO, are the expected loss itself.
    """
    process, net = genmd4(), Table(4, 3, 3, seed=3, drift=0.4)
    net.logits.requires_grad_()
    true = genmd4_expected_loss(process, net, t)
    nelbo, objective = enumerated_loss(process, net, WORLD, t)
    close(average(WORLD, nelbo), true, 1e-12)
    close(average(WORLD, objective), true, 1e-12)
    wanted = torch.autograd.grad(true, [process.schedule.raw, net.logits])
    got = torch.autograd.grad((WORLD.p * objective).sum(), [process.schedule.raw, net.logits])
    close(got[0], wanted[0], 1e-12)
    close(got[1], wanted[1], 1e-12)
    assert wanted[0].abs().min() > 1e-4


@pytest.mark.parametrize("steps", [None, 4])
def test_genmd4_entries_are_independent(steps):
    """T33: raw_v gets a gradient only through x0, through mu_v and through the decoder's normaliser at t_min.

    Where x0 lacks v and mu_v = 0, the decoder's gradient is all there is (1e-15), and none with T steps; some
    mu_v, or a v in x0, gives another.
    """
    process = GenMaskedDiffusion(4, steps=steps).double()
    target = torch.ones(8, 5, dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randint(3, (8, 5), generator=rng)  # never 3
    noise, t = torch.rand(2, 8, 5, generator=rng, dtype=F64), torch.arange(1, 9, dtype=F64) / 8
    t = (t * 4).ceil() / 4 if steps else t
    table = torch.randn(5, 4, generator=rng, dtype=F64)

    def gradient(x0, mass):
        logits = table.clone()
        logits[:, 3] = math.log(mass) if mass else -math.inf
        bound = process.loss(lambda x, t, where: logits[x[where]], x0, t, target, noise)
        (grad,) = torch.autograd.grad(bound.objective.sum(), process.schedule.raw)
        if steps is not None:
            return grad
        (decoder,) = torch.autograd.grad(process.decoder_nll(x0).sum(), process.schedule.raw)
        return grad - decoder

    without = gradient(x0, 0.0)
    close(without[3], torch.zeros((), dtype=F64), 1e-15)
    assert without[:3].abs().min() > 1e-3
    assert gradient(x0, 0.1)[3].abs() > 1e-3
    x0[:, 0] = 3
    assert gradient(x0, 1e-9)[3].abs() > 1e-3


def test_genmd4_gradient_agrees_with_finite_differences():
    """T31: the enumerated loss differentiated numerically in raw w, to 1e-8."""
    process, h = genmd4(), 1e-5
    _, objective = enumerated_loss(process, DRIFTING, WORLD, 0.3)
    (got,) = torch.autograd.grad((WORLD.p * objective).sum(), process.schedule.raw)
    raw = process.schedule.raw.detach().clone()
    for v in range(3):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                process.schedule.raw.copy_(raw)
                process.schedule.raw[v] += sign * h
                sides.append(genmd4_expected_loss(process, DRIFTING, 0.3))
        close(got[v], (sides[0] - sides[1]) / (2 * h), 1e-8)


def test_genmd4_whole_gradient_with_reconstruction():
    """T32: integrated over t in (t_min, 1), with the factor (1 - t_min) and the reconstruction, to 1e-12.

    The integral of the estimator's expectation = the gradient of reconstruction + int_{t_min}^1.
    """
    process = genmd4(t_min=1e-2)
    p = torch.zeros(27, dtype=F64)
    p[5] = 1.0  # one sequence, 012: three different powers
    nodes, weights = gauss_legendre(12, power=4)(process.t_min, 1.0)
    total = 0
    for t, weight in zip(nodes, weights / (1 - process.t_min), strict=True):
        _, objective = enumerated_loss(process, DRIFTING, WORLD, float(t))
        total = total + weight * objective[5]
    (got,) = torch.autograd.grad(total, process.schedule.raw)
    ell = integrand(process, DRIFTING, WORLD, nodes)[:, 5]
    whole_loss = (weights * ell).sum() + process.decoder_nll(WORLD.clean[5:6]).sum()
    close(total, whole_loss, 1e-12)
    (wanted,) = torch.autograd.grad(whole_loss, process.schedule.raw)
    close(got, wanted, 1e-12)


def test_genmd4_reconstruction_is_its_decoder():
    """The decoder p(v | m) proportional to 1 - alpha_{tmin,v}, by enumeration of the last mask, to 1e-13."""
    process = genmd4()
    q_mask = process.schedule.u(torch.tensor([1e-3], dtype=F64), torch.arange(3)[None])[0].detach()
    decoder = q_mask / q_mask.sum()
    expected = -(q_mask * decoder.log())[WORLD.clean]
    close(process.decoder_nll(WORLD.clean).detach(), expected, 1e-13)


@pytest.mark.parametrize("t", [1.0, 1 - 6e-8, 1e-3])
def test_genmd4_gradient_is_finite_at_both_ends(t):
    """At t = 1 exactly, where nothing stays visible, given tokens must not turn the gradient into NaN."""
    process = GenMaskedDiffusion(3)
    rng = torch.Generator().manual_seed(0)
    x0, target = torch.randint(3, (64, 5), generator=rng), torch.arange(5).expand(64, 5) < 3
    net = torch.nn.Embedding(4, 3)
    bound = process.loss(
        lambda x, t, where=None: net(x) if where is None else net(x)[where],
        x0,
        torch.full((64,), t),
        target,
        torch.rand(2, 64, 5, generator=rng),
    )
    assert torch.isfinite(bound.objective).all()
    bound.objective.sum().backward()
    assert torch.isfinite(process.schedule.raw.grad).all() and torch.isfinite(net.weight.grad).all()


def test_genmd4_exact_posterior_is_bayes():
    """The T-step posterior from m: stay with rho_a = (s/t)^{w_a}, else reveal a, to 1e-13."""
    process = genmd4()
    t, s = torch.tensor([0.7], dtype=F64), torch.tensor([0.3], dtype=F64)
    for a in range(3):
        sure = torch.full((1, 1, 3), -torch.inf, dtype=F64)
        sure[..., a] = 0
        got = process.posterior(sure, torch.tensor([[3]]), t, s)[0, 0].detach()
        rho = float((s / t) ** process.schedule.w[a])
        wanted = torch.zeros(4, dtype=F64)
        wanted[a], wanted[3] = 1 - rho, rho
        close(got, wanted, 1e-13)


def test_reachable_states_carry_all_probability():
    """The enumeration itself: sum over x_t of q(x_t | x0) = 1, to 1e-13."""
    for process in (MD4, genmd4()):
        row, _, q = reachable(process, WORLD, 0.4)
        close(torch.zeros(27, dtype=F64).index_add(0, row, q.detach()), torch.ones(27, dtype=F64), 1e-13)
