"""The chain rule in every order, and what orders disagree about, against enumeration of all orders."""

import itertools
import math

import pytest
import torch
from oracle import (
    F64,
    TWO_STRINGS,
    WORLD,
    Exact,
    average,
    expected_nelbo,
    gauss_legendre,
    order_log_likelihoods,
    ordered_law,
    random_network,
    random_world,
)
from oracle import order_moments as enumerated_moments

from dlm.errors import UserError
from dlm.likelihood import (
    adaptive_nll,
    bounds,
    left_to_right_nll,
    mixture_nll,
    order_moments,
    order_nll,
    random_order_log_p,
    square_defect,
    variance_pseudo_values,
)
from dlm.likelihood.squares import square_defect_draws
from dlm.process import MaskedDiffusion
from dlm.process.schedule import Cosine
from dlm.sampling.policy import POLICIES

MD4 = MaskedDiffusion(3)
RN, EX = random_network(MD4, WORLD, seed=1), Exact(MD4, WORLD)
SCORES = {name: score for name, score in POLICIES.items() if score is not None}
LONGER = random_world(2, 5, seed=3)
ORDERS = list(itertools.permutations(range(3)))


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


def everywhere(x0):
    return torch.ones_like(x0, dtype=torch.bool)


def in_the_middle(x_t, t, where=None):
    """The exact network, which does not depend on t, asked where every state has a probability."""
    return EX(x_t, torch.full_like(t, 0.5), where)


# -- one order ---------------------------------------------------------------------------------------------


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
    got = left_to_right_nll(MD4, in_the_middle, WORLD.clean, target)
    first = torch.zeros(3, dtype=F64).index_add(0, WORLD.clean[:, 0], WORLD.p)
    close(got, -(WORLD.p / first[WORLD.clean[:, 0]]).log(), 1e-12)


def test_any_order_is_its_own_chain_rule():
    """All six orders at once, one per row, = enumeration to 1e-12."""
    x0 = WORLD.clean.repeat(6, 1)
    place = torch.tensor(ORDERS).argsort(1).to(F64).repeat_interleave(27, 0)
    got = order_nll(MD4, RN, x0, everywhere(x0), place, rows=50).view(6, 27)
    close(-got, order_log_likelihoods(RN, WORLD), 1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_adaptive_orders_are_exact_likelihoods(name):
    """T49, T51: each state-only rule's -log p sums to one over all x for a random network (1e-12), is the law of
    the sampler that follows the rule (1e-12), and is -log p_data for exact conditionals (1e-12)."""
    nll = adaptive_nll(MD4, RN, WORLD.clean, everywhere(WORLD.clean), SCORES[name])
    close((-nll).exp().sum(), 1.0, 1e-12)
    assert (nll + order_log_likelihoods(RN, WORLD)[0]).abs().max() > 1e-2, "not simply left to right"

    def choose(probs, candidates):
        scores = SCORES[name](probs.log()).masked_fill(~candidates, -torch.inf)
        return torch.nn.functional.one_hot(scores.argmax(), 3).to(F64)

    close((-nll).exp(), ordered_law(RN, WORLD, choose), 1e-12)
    close(adaptive_nll(MD4, EX, WORLD.clean, everywhere(WORLD.clean), SCORES[name]), -WORLD.p.log(), 1e-12)


def test_ties_go_to_the_left():
    """A rule that cannot decide is the left-to-right chain rule, to 1e-14; so is one whose scores are -inf."""
    left = left_to_right_nll(MD4, RN, WORLD.clean, everywhere(WORLD.clean))
    for tie in (0.0, -torch.inf):
        undecided = lambda logits, tie=tie: torch.full_like(logits[:, 0], tie)  # noqa: E731
        nll = adaptive_nll(MD4, RN, WORLD.clean, everywhere(WORLD.clean), undecided)
        close(nll, left, 1e-14)


def test_adaptive_orders_given_a_prompt(monkeypatch):
    """A prompt is read: -log p(x^1, x^3 | x^2) to 1e-12 for exact conditionals, also one row at a time; a row
    without any target costs nothing and is certain."""
    target = torch.tensor([True, False, True]).expand_as(WORLD.clean).clone()
    target[5] = False
    second = torch.zeros(3, dtype=F64).index_add(0, WORLD.clean[:, 1], WORLD.p)
    truth = -(WORLD.p / second[WORLD.clean[:, 1]]).log()
    truth[5] = 0.0
    close(adaptive_nll(MD4, in_the_middle, WORLD.clean, target, SCORES["margin"]), truth, 1e-12)
    monkeypatch.setattr(bounds, "LOGITS_AT_ONCE", 1)
    close(adaptive_nll(MD4, in_the_middle, WORLD.clean, target, SCORES["margin"]), truth, 1e-12)


def test_a_network_that_knows_the_time_is_told_the_share_of_masks():
    """u(t) = masked targets / targets in every call, on a schedule that is not linear, to 1e-12."""
    process, seen = MaskedDiffusion(3, Cosine()), []

    def watched(x_t, t, where=None):
        given = 3 - (x_t == 3).sum(1)
        seen.append((process.schedule.u(t) - (3 - given).double() / 3).abs().max())
        return RN(x_t, t, where)

    x0, target, index = WORLD.clean, everywhere(WORLD.clean), torch.arange(27)
    left_to_right_nll(process, watched, x0, target)
    adaptive_nll(process, watched, x0, target, SCORES["margin"])
    random_order_log_p(process, watched, x0, target, index, 2, 0)
    order_moments(process, watched, x0)
    square_defect(process, watched, x0, draws=3)
    assert len(seen) >= 8 and max(seen) < 1e-12


# -- all orders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [WORLD, TWO_STRINGS], ids=["dirichlet", "zeros"])
def test_random_order_with_exact_conditionals_is_the_data(world):
    """T45: p_rand(x), the mean over orders of p(x | sigma), equals p(x), to 1e-14."""
    process = MaskedDiffusion(world.vocab_size)
    moments = order_moments(process, Exact(process, world), world.clean)
    live = world.p > 0
    close(moments.log_p_random.exp()[live], world.p[live], 1e-14)
    close(moments.variance[live], torch.zeros(int(live.sum()), dtype=F64), 1e-24)


@pytest.mark.parametrize("world", [WORLD, LONGER], ids=["3 tokens", "5 tokens"])
def test_moments_over_orders_by_dynamic_programming(world):
    """T53: p_rand, mean and variance over the 6 or 120 orders = enumeration, to 1e-12 (the variance to 1e-11); any
    batching."""
    process = MaskedDiffusion(world.vocab_size)
    net = random_network(process, world, seed=1)
    orders = order_log_likelihoods(net, world)
    for rows in (7, 1000):
        moments = order_moments(process, net, world.clean, rows)
        close(moments.log_p_random.exp(), orders.exp().mean(0), 1e-12)
        close(-moments.nelbo, orders.mean(0), 1e-12)
        close(moments.variance, orders.var(0, correction=0), 1e-11)
    mass, mean, variance = enumerated_moments(net, world)
    close(moments.log_p_random.exp(), mass, 1e-12)
    close(moments.variance, variance, 1e-11)
    close(-moments.nelbo, mean, 1e-12)


def test_a_small_variance_over_orders_is_not_lost_to_rounding():
    """Orders that differ by 1e-9 nats have a variance of 1e-18 or so, to a thousandth of it; a difference of
    second moments would leave 1e-15."""

    def nearly_exact(x_t, t, where=None):
        logits = in_the_middle(x_t, t)
        logits = logits + 1e-9 * RN(x_t, t)
        return logits if where is None else logits[where]

    orders = order_log_likelihoods(nearly_exact, WORLD)
    offsets = orders - orders.mean(0)
    variance = order_moments(MD4, nearly_exact, WORLD.clean).variance
    truth = (offsets**2).mean(0)
    assert truth.max() < 1e-16
    assert ((variance - truth).abs() < 1e-2 * truth.max()).all()


def test_orders_that_cannot_reach_a_sequence():
    """A conditional of zero on some paths only: the mixture lives, the mean and the variance are infinite."""

    def blind(x_t, t, where=None):
        logits = torch.zeros(*x_t.shape, 2, dtype=F64)
        logits[(x_t == torch.tensor([2, 2])).all(1), 0, 0] = -torch.inf  # never a 0 first, from nothing
        return logits if where is None else logits[where]

    moments = order_moments(MaskedDiffusion(2), blind, torch.tensor([[0, 1], [1, 1]]))
    close(moments.log_p_random.exp(), [1 / 8, 3 / 8], 1e-14)
    assert moments.nelbo[0].isinf() and moments.variance[0].isinf()
    assert moments.nelbo[1].isfinite() and moments.variance[1].isfinite()


def test_too_many_orders_are_refused():
    """2^13 subsets of masks are more than we enumerate; one line says so. So are the squares of a single token."""
    x0 = torch.zeros(1, 13, dtype=torch.long)
    for measure in (order_moments, square_defect):
        with pytest.raises(UserError, match="at most 12"):
            measure(MD4, RN, x0)
    for draws in (None, 4):
        with pytest.raises(UserError, match="two tokens"):
            square_defect(MD4, RN, x0[:, :1], draws=draws)


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
        return probs.log() if where is None else probs.log()[where]

    process, live = MaskedDiffusion(2), TWO_STRINGS.p > 0
    moments = order_moments(process, net, TWO_STRINGS.clean[live])
    close(moments.log_p_random.exp(), TWO_STRINGS.p[live], 1e-13)
    nelbo = moments.nelbo.mean()
    close(nelbo, math.log(2) - 0.5 * math.log(1 - theta**2), 1e-13)
    close(moments.variance, torch.full((2,), math.atanh(theta) ** 2, dtype=F64), 1e-12)
    close(average(TWO_STRINGS, expected_nelbo(process, net, TWO_STRINGS, gauss_legendre(4))), nelbo, 1e-12)


# -- K random orders ---------------------------------------------------------------------------------------


def test_random_orders_are_uniform_orders():
    """Each of 27 x 2000 draws is one of the six orders' log p, and each order's share is 1/6 (chi-squared on 5
    degrees of freedom below 25, p = 1e-4); the same for any batch."""
    orders = order_log_likelihoods(RN, WORLD)
    index, target = torch.arange(27), everywhere(WORLD.clean)
    draws = random_order_log_p(MD4, RN, WORLD.clean, target, index, 200, seed=2)
    distance = (draws[None] - orders[:, :, None]).abs()
    assert distance.amin(0).max() < 1e-12
    counts = distance.argmin(0).flatten().bincount(minlength=6).to(F64)
    expected = 27 * 200 / 6
    assert ((counts - expected) ** 2 / expected).sum() < 25
    some = torch.tensor([3, 20])
    again = random_order_log_p(MD4, RN, WORLD.clean[some], target[some], index[some], 200, seed=2, rows=5)
    close(again, draws[some], 1e-12)


def all_tuples(orders, k):
    """log p(x | sigma) of every ordered K-tuple of the six orders: [6^K N K]."""
    return orders[torch.tensor(list(itertools.product(range(6), repeat=k)))].transpose(1, 2)


def test_more_orders_inside_the_logarithm_tighten_the_mixture_bound():
    """T55, settled: the K-order mixture bound never increases with K in expectation, exactly over all ordered
    K-tuples of the 6 orders for K = 1..5, strictly here; it starts at the any-order NELBO (1e-12), stays above
    -log p_rand, and sum_x p_rand = 1.

    This part of T55 had only been derived.  It holds, for every x and network, and the proof is one line: the
    mean of K + 1 values is the mean of its K + 1 leave-one-out means, each distributed as a mean of K, and
    -log is convex.  A single draw need not fall: only the expectation does.
    """
    orders = order_log_likelihoods(RN, WORLD)
    moments = order_moments(MD4, RN, WORLD.clean)
    close(moments.log_p_random.exp().sum(), 1.0, 1e-12)
    bound = [mixture_nll(all_tuples(orders, k)).mean(0) for k in range(1, 6)]
    close(bound[0], moments.nelbo, 1e-12)
    for looser, tighter in itertools.pairwise(bound):
        assert (looser > tighter + 1e-6).all()
    assert (bound[-1] > -moments.log_p_random).all()
    gaps = [average(WORLD, b + moments.log_p_random) for b in bound]
    assert gaps[-1] < gaps[0] / 2.5, gaps  # about 1/K of the gap is left


def test_the_variance_of_some_orders_is_unbiased_for_that_of_all():
    """T53: over all ordered 3- and 4-tuples of the 6 orders, the mean of s^2 is the variance of `order_moments`
    to 1e-12; the pseudo-values average to s^2 (1e-12) and their spread is the leave-one-out jackknife (1e-11)."""
    orders = order_log_likelihoods(RN, WORLD)
    variance = order_moments(MD4, RN, WORLD.clean).variance
    for k in (3, 4):
        tuples = all_tuples(orders, k)
        pseudo = variance_pseudo_values(tuples)
        close(pseudo.mean(-1), tuples.var(-1), 1e-12)
        close(tuples.var(-1).mean(0), variance, 1e-12)
        without = torch.stack([tuples[..., [i for i in range(k) if i != gone]].var(-1) for gone in range(k)], -1)
        jackknife = (k - 1) / k * ((without - without.mean(-1, keepdim=True)) ** 2).sum(-1)
        close(pseudo.var(-1) / k, jackknife, 1e-11)


# -- squares -----------------------------------------------------------------------------------------------


def test_orders_agree_exactly_when_every_square_commutes():
    """T54: variance over orders and all square defects vanish for exact conditionals (1e-12), neither for a
    random network, whatever x."""
    for net, zero in ((EX, True), (RN, False)):
        defect, variance = square_defect(MD4, net, WORLD.clean), order_moments(MD4, net, WORLD.clean).variance
        if zero:
            assert defect.largest.max() < 1e-12 and variance.max() < 1e-12
        else:
            assert defect.largest.min() > 1e-2 and variance.min() > 1e-3
        assert (defect.mean <= defect.root_mean_square).all()
        assert (defect.root_mean_square <= defect.largest).all() and (defect.se == 0).all()


@pytest.mark.parametrize("world", [WORLD, LONGER], ids=["3 tokens", "5 tokens"])
def test_the_square_defect_is_what_a_swap_of_neighbours_changes(world):
    """T54: the mean, and mean square, over all orders and all L - 1 swaps of two neighbours of the change of
    log p(x | sigma), to 1e-12."""
    process, length = MaskedDiffusion(world.vocab_size), world.length
    net = random_network(process, world, seed=1)
    orders = list(itertools.permutations(range(length)))
    log_p = dict(zip(orders, order_log_likelihoods(net, world), strict=True))
    changes = torch.stack(
        [
            (log_p[o] - log_p[(*o[:k], o[k + 1], o[k], *o[k + 2 :])]).abs()
            for o in orders
            for k in range(length - 1)
        ]
    )
    defect = square_defect(process, net, world.clean, rows=9)
    close(defect.mean, changes.mean(0), 1e-12)
    close(defect.root_mean_square**2, (changes**2).mean(0), 1e-12)
    close(defect.largest, changes.amax(0), 1e-12)


def test_random_squares_estimate_all_of_them():
    """T54: 300 squares per sequence of five tokens: means within 4.5 of their own standard errors, every draw
    below the largest of all; a function of (seed, index) alone."""
    process = MaskedDiffusion(2)
    net = random_network(process, LONGER, seed=1)
    exact = square_defect(process, net, LONGER.clean)
    sampled = square_defect(process, net, LONGER.clean, draws=300, seed=1, rows=50)
    z = (sampled.mean - exact.mean) / sampled.se
    assert z.abs().max() < 4.5 and 0.3 < z.pow(2).mean() < 2
    assert (sampled.largest <= exact.largest + 1e-12).all()
    some = torch.tensor([4, 30])
    again = square_defect(process, net, LONGER.clean[some], some, draws=300, seed=1)
    close(again.mean, sampled.mean[some], 1e-12)


def test_squares_leave_given_tokens_alone():
    """Two targets and a given token make one square per context: every draw is its defect, to 1e-12."""
    target = torch.tensor([False, True, True]).expand_as(WORLD.clean)
    drawn = square_defect_draws(MD4, RN, WORLD.clean, torch.arange(27), 6, 0, target=target)

    def log_mu(masked):
        hidden = torch.tensor(masked).expand_as(WORLD.clean)
        x_t = torch.where(hidden, 3, WORLD.clean)
        table = RN(x_t, torch.full((27,), 0.5, dtype=F64)).log_softmax(-1)
        return table.gather(-1, WORLD.clean[..., None])[..., 0]

    both, second, third = (log_mu(m) for m in ([False, True, True], [False, True, False], [False, False, True]))
    wanted = (both[:, 1] + third[:, 2] - both[:, 2] - second[:, 1]).abs()
    close(drawn, wanted[:, None].expand(-1, 6), 1e-12)
    with pytest.raises(UserError, match="swaps two tokens"):
        square_defect_draws(MD4, RN, WORLD.clean, torch.arange(27), 6, 0, target=target & (WORLD.clean < 0))
