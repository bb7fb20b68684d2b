"""Revealing in an order: rules and blocks against their enumerated laws, and the ordered sampler against both."""

import itertools
import math
from typing import Any

import pytest
import torch
from oracle import F64, WORLD, ordered_law, random_network
from sampler_laws import DRAWS, agrees, close, exact, seeded

from dlm import sampling
from dlm.errors import UserError
from dlm.process import GenMaskedDiffusion, MaskedDiffusion, UniformDiffusion
from dlm.process.schedule import Cosine
from dlm.sampling.ordered import Order, block_ends, top

MD4 = MaskedDiffusion(3)
RN = random_network(MD4, WORLD, seed=1)
EXACT = exact(MD4)


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


PLACE = torch.tensor([5, -1, 2])  # the middle first, then the right


def placed(probs, candidates):
    return torch.nn.functional.one_hot(PLACE.masked_fill(~candidates, 99).argmin(), len(candidates)).to(F64)


def rule(policy):
    rules = {"random": uniform, "left_to_right": leftmost, "given": placed}
    return rules.get(policy) or highest(sampling.POLICIES[policy])


def place_for(policy, place, rows):
    return {"place": place.expand(rows, -1)} if policy == "given" else {}


def blank(free=True, rows=DRAWS, length=3):
    given = torch.zeros(rows, length, dtype=torch.long)
    return given, torch.tensor(free).expand(rows, length).clone()


each_policy = pytest.mark.parametrize("policy", list(sampling.POLICIES))


# --- one token at a time, chosen from the state ---------------------------------------------------------------


@each_policy
def test_state_only_rules_are_exact_with_exact_conditionals(policy):
    """T49: whatever the rule, revealing one token at a time from exact conditionals gives p, to 1e-13."""
    close(ordered_law(EXACT, WORLD, rule(policy)), WORLD.p, 1e-13)


@each_policy
def test_any_rule_defines_a_distribution(policy):
    """T51: with a random network the law still sums to 1, to 1e-12."""
    close(ordered_law(RN, WORLD, rule(policy)).sum(), 1.0, 1e-12)


@each_policy
def test_ordered_sampler_has_the_law_of_its_rule(policy):
    """T49: 27000 draws with a random network against the rule's enumerated law (chi-square)."""
    sample = sampling.ordered(MD4, RN, *blank(), seeded(), policy, **place_for(policy, PLACE, DRAWS))
    assert agrees(sample.x, ordered_law(RN, WORLD, rule(policy)))
    assert (sample.evaluations == 3).all()


def test_scores_are_what_their_names_say():
    """On the law (0.6, 0.3, 0.1): 0.6, 0.3, log 2, minus the entropy; for a sure position 1, 1, infinity, 0."""
    p = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]], dtype=F64)
    neg_entropy = float((p[0] * p[0].log()).sum())
    wanted = {
        "top_probability": (0.6, 1.0),
        "margin": (0.3, 1.0),
        "log_ratio": (math.log(2), math.inf),
        "entropy": (neg_entropy, 0.0),
    }
    for name, values in wanted.items():
        score = sampling.POLICIES[name]
        close(score(p.log()[None] + 5), torch.tensor([values], dtype=F64), 1e-14)
    close(
        Order("top_probability", score_scale="log").score(p.log()),
        torch.tensor([math.log(0.6), 0.0], dtype=F64),
        1e-14,
    )
    close(Order("margin", score_scale="log").score(p.log()), torch.tensor([math.log(0.3), 0.0], dtype=F64), 1e-14)


# --- noise on the scores ---------------------------------------------------------------------------------------


def two_places(gap):
    """A network of two positions that differ in log-ratio by `gap`, and reveal which comes first."""
    logits = torch.tensor([[gap, 0.0], [0.0, 0.0]], dtype=F64)

    def net(x, t, where):
        return logits.expand(len(x), -1, -1)[where]

    return net


@pytest.mark.parametrize("noise", ["gumbel", "gaussian"])
def test_noise_shuffles_positions_by_its_own_law(noise):
    """Two positions whose scores differ by 1 under noise of scale 0.7: the better comes first with probability
    sigmoid(1/0.7) for Gumbel noise and Phi(1/(0.7 sqrt 2)) for Gaussian, within 5 standard errors of 20 000."""
    process, n = MaskedDiffusion(2), 20_000
    options = {"policy": "log_ratio", "noise": noise, "noise_scale": 0.7}
    sample = sampling.ordered(process, two_places(1.0), *blank(rows=n, length=2), seeded(), **options)
    first = float((sample.fixed_at[:, 0] == 0).double().mean())
    z = torch.tensor(1 / 0.7, dtype=F64)
    wanted = float(torch.sigmoid(z) if noise == "gumbel" else torch.special.ndtr(z / math.sqrt(2)))
    assert abs(first - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / n)


def test_annealing_is_linear_in_the_share_still_masked():
    """Noise of coefficient 2 at its 90th percentile: proportional to the share if annealed, else the same; no
    noise adds none."""
    order = Order("margin", noise="gaussian", noise_scale=2.0, anneal="masked_share")
    score, u = torch.zeros(3, dtype=F64), torch.full((3,), 0.9, dtype=F64)
    share = torch.tensor([1.0, 0.5, 0.25], dtype=F64)
    wave = float(torch.special.ndtri(u[0]))
    close(order.disturb(score, u, share), 2 * wave * share, 1e-15)
    constant = Order("margin", noise="gaussian", noise_scale=2.0)
    close(constant.disturb(score, u, share), torch.full((3,), 2 * wave, dtype=F64), 1e-15)
    close(Order("margin").disturb(score, u, share), score, 0)


TOTAL = torch.tensor([6, 4, 1])


def rows_of_three_kinds(rows):
    """Rows with 6, 4 and 1 tokens to reveal, in turn; a seventh token, held, says which kind a row is."""
    given = torch.zeros(rows, 7, dtype=torch.long)
    given[:, 6] = torch.arange(rows) % 3
    return given, torch.arange(7) < TOTAL[given[:, 6], None]


def share_masked(x):
    return (x == 3).sum(1).double() / TOTAL[x[:, 6]]


def test_annealing_in_the_sampler_scales_noise_by_the_share():
    """score + share * noise ranks as score / share + noise does: every token is revealed at the very step at which
    a network with its log-ratios divided by the share still masked reveals it under constant noise; not so the
    same network under constant noise."""
    gaps = torch.tensor([0.1, 0.9, 0.4, 1.3, 0.2, 0.7, 0.0], dtype=F64)
    logits = torch.stack([gaps, torch.zeros(7, dtype=F64), torch.full((7,), -9.0, dtype=F64)], -1)

    def net(x, t, where):
        return logits.expand(len(x), -1, -1)[where]

    def divided(x, t, where):
        return net(x, t, where) / share_masked(x)[:, None].expand(x.shape)[where][:, None]

    for noise in ("gumbel", "gaussian"):
        options: dict[str, Any] = {"policy": "log_ratio", "noise": noise, "noise_scale": 0.7}
        annealed, equal, constant = (
            sampling.ordered(MD4, network, *rows_of_three_kinds(1500), seeded(), anneal=anneal, **options).fixed_at
            for network, anneal in ((net, "masked_share"), (divided, "constant"), (net, "constant"))
        )
        assert torch.equal(annealed, equal)
        assert (annealed != constant).any(1).double().mean() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "random"},
        {"policy": "margin"},
        {"policy": "random", "per_step": 2},
        {"policy": "margin", "steps": 3},
        {"selection": "value", "per_step": 2},
    ],
    ids=str,
)
def test_the_network_is_told_the_time_of_the_share_still_masked(options):
    """u(t) is the share of a row's own free tokens that is still masked, to 1e-12, at every call."""
    process, asked = MaskedDiffusion(3, Cosine()), []

    def watched(x, t, where):
        asked.extend(share_masked(x).tolist())
        close(process.schedule.u(t), share_masked(x), 1e-12)
        return everywhere(x, t, where)

    sampling.ordered(process, watched, *rows_of_three_kinds(9), seeded(), **options)
    assert len(asked) > 9 and max(asked) == 1 and min(asked) < 0.5


def test_a_bounded_score_drowns_where_the_log_ratio_does_not():
    """Positions sure to 0.999 and to 0.6: their probabilities are 0.4 apart and their log-ratios 6.5, so that
    under Gumbel noise of scale 0.5 the surer one leads in sigmoid(0.8) = 69% and in 100% of 20 000 rows."""
    logits = torch.tensor([[math.log(999.0), 0.0], [math.log(1.5), 0.0]], dtype=F64)

    def net(x, t, where):
        return logits.expand(len(x), -1, -1)[where]

    first = {}
    for policy in ("top_probability", "log_ratio"):
        options = {"policy": policy, "noise": "gumbel", "noise_scale": 0.5}
        sample = sampling.ordered(MaskedDiffusion(2), net, *blank(rows=20_000, length=2), seeded(), **options)
        first[policy] = float((sample.fixed_at[:, 0] == 0).double().mean())
    wanted = 1 / (1 + math.exp(-(0.999 - 0.6) / 0.5))
    assert abs(first["top_probability"] - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 20_000)
    assert first["log_ratio"] > 0.999


# --- choosing by the value that was drawn ------------------------------------------------------------------------


def value_law(net, remask=False):
    """The law of keeping the drawn tokens that are likeliest, by the sampler's own score and choice, over all
    joint draws at the masked positions: one more in every step, or with `remask` one, two, three of all."""
    order, states = Order(selection="value"), {(3, 3, 3): torch.ones((), dtype=F64)}
    for step in range(3):
        following = {}
        for state, mass in states.items():
            x = torch.tensor(state)[None]
            masked = (x == 3) | remask
            logits = net(x, torch.ones(1, dtype=F64), masked)
            probs = logits.softmax(-1)
            for values in itertools.product(range(3), repeat=len(logits)):
                drawn = torch.tensor(values)
                weight = mass * probs.gather(1, drawn[:, None]).prod()
                score = torch.zeros(1, 3, dtype=F64).masked_scatter(masked, order.of_values(logits, drawn))
                kept = top(score, masked, torch.tensor([step + 1 if remask else 1]))
                rest = 3 if remask else x
                to = tuple(torch.where(kept, x.masked_scatter(masked, drawn), rest)[0].tolist())
                following[to] = following.get(to, 0) + weight
        states = following
    return torch.stack([states.get(tuple(x.tolist()), torch.zeros((), dtype=F64)) for x in WORLD.clean])


def test_choosing_by_the_drawn_value_is_biased():
    """T50, negative control: LLaDA's rule, ranking by the probability of the sampled token, misses p by a total
    variation above 0.05 even with exact conditionals; its enumerated law sums to 1 (1e-12), and the sampler has it
    (27 000 draws, chi-square)."""
    law = value_law(EXACT)
    close(law.sum(), 1.0, 1e-12)
    assert float((law - WORLD.p).abs().sum() / 2) > 0.05
    x = sampling.ordered(MD4, EXACT, *blank(), seeded(3), selection="value").x
    assert agrees(x, law) and not agrees(x, WORLD.p)
    assert agrees(sampling.ordered(MD4, RN, *blank(), seeded(4), selection="value").x, value_law(RN))


def test_predicting_anew_what_stands_has_its_law():
    """Ye et al.'s rule with drawn values: 27 000 draws with a random network against its enumerated law, which is
    another than without remasking (chi-square); one evaluation a step."""
    law = value_law(RN, remask=True)
    close(law.sum(), 1.0, 1e-12)
    sample = sampling.ordered(MD4, RN, *blank(), seeded(5), selection="value", remask=True)
    assert agrees(sample.x, law) and not agrees(sample.x, value_law(RN))
    assert (sample.evaluations == 3).all()


# --- several tokens at a time ------------------------------------------------------------------------------------


def block_law(net, sizes):
    """Random blocks of the given sizes, each drawn in parallel: P(S) = mean over blocks A of prod mu P(S \\ A)."""
    paths = {(3, 3, 3): torch.ones((), dtype=F64)}
    for size in sizes:
        following = {}
        for state, mass in paths.items():
            hidden = [i for i in range(3) if state[i] == 3]
            mu = net(torch.tensor(state)[None], torch.ones(1, dtype=F64)).softmax(-1)[0]
            blocks = list(itertools.combinations(hidden, size))
            for block, values in itertools.product(blocks, itertools.product(range(3), repeat=size)):
                to, weight = list(state), mass / len(blocks)
                for i, a in zip(block, values, strict=True):
                    to[i], weight = a, weight * mu[i, a]
                following[tuple(to)] = following.get(tuple(to), 0) + weight
        paths = following
    return torch.stack([paths[tuple(x.tolist())] for x in WORLD.clean])


def test_blocks_cost_the_dependence_within_them():
    """T52: block laws sum to 1 (1e-12); one at a time costs nothing, all at once the total correlation (1e-12);
    two first and one first cost 0.018 and 0.137 nats, three 0.242 (to 5e-4)."""
    divergence = {}
    for sizes in ((1, 1, 1), (2, 1), (1, 2), (3,)):
        law = block_law(EXACT, sizes)
        close(law.sum(), 1.0, 1e-12)
        divergence[sizes] = float((WORLD.p * (WORLD.p / law).log()).sum())
    correlation = sum(WORLD.marginal_entropy([i]) for i in range(3)) - WORLD.entropy
    close(divergence[1, 1, 1], 0.0, 1e-12)
    close(divergence[3,], correlation, 1e-12)
    for sizes, nats in (((2, 1), 0.018), ((1, 2), 0.137), ((3,), 0.242)):
        assert abs(divergence[sizes] - nats) < 5e-4, divergence


@pytest.mark.parametrize(
    ("options", "sizes"), [({"per_step": 2}, (2, 1)), ({"steps": 2}, (1, 2)), ({"per_step": 3}, (3,))], ids=str
)
def test_blocks_of_the_sampler(options, sizes):
    """T52: 27 000 draws against the law of the same blocks (chi-square), and one evaluation a block."""
    sample = sampling.ordered(MD4, RN, *blank(), seeded(8), **options)
    assert agrees(sample.x, block_law(RN, sizes)) and (sample.evaluations == len(sizes)).all()


def test_steps_divide_the_tokens_evenly():
    """N steps in all: every row's blocks differ by one at most; a row with fewer tokens skips steps, uncounted."""
    total = torch.tensor([7, 3, 0])
    ends = torch.stack(block_ends(total, None, 4))
    sizes = ends.diff(dim=0, prepend=torch.zeros(1, 3, dtype=torch.long))
    assert (ends[-1] == total).all() and (sizes.amax(0) - sizes.amin(0) <= 1).all()
    given, free = blank(rows=2, length=7)
    free[1, 3:] = False
    sample = sampling.ordered(MaskedDiffusion(3), everywhere, given, free, seeded(), steps=5)
    assert sample.evaluations.tolist() == [5, 3]


def everywhere(x, t, where=None):
    shape = x.shape if where is None else (int(where.sum()),)
    return torch.linspace(0, 1, 3, dtype=F64).expand(*shape, 3)


@each_policy
@pytest.mark.parametrize("per_step", [1, 3, 8])
def test_several_tokens_at_a_time(policy, per_step):
    """Every row is ranked by itself: full blocks first, then its own remainder, and no evaluation beyond."""
    given, free = blank(rows=5, length=8)
    free[2, 4:] = False
    place = place_for(policy, torch.arange(8), 5)
    sample = sampling.ordered(MaskedDiffusion(3), everywhere, given, free, seeded(), policy, per_step, **place)
    tokens = free.sum(1)
    assert torch.equal(sample.evaluations, -(-tokens // per_step))
    for row in range(5):
        counts = sample.fixed_at[row][free[row]].bincount()
        assert counts[:-1].eq(per_step).all() and counts.sum() == tokens[row]
    if policy not in ("random",):
        wanted = torch.cat([torch.arange(int(n)) // per_step for n in tokens])
        assert torch.equal(sample.fixed_at[free], wanted), "ties go to the left"


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "wisest"}, "wisest"),
        ({"per_step": 0}, "per_step"),
        ({"per_step": 9}, "per_step=9 does not fit: there are 8 tokens"),
        ({"steps": 9}, "steps=9 does not fit"),
        ({"steps": 0}, "steps"),
        ({"steps": 2, "per_step": 2}, "contradict"),
        ({"selection": "fate"}, "fate"),
        ({"selection": "value", "policy": "margin"}, "selection=value"),
        ({"selection": "value", "policy": "random"}, "selection=value"),
        ({"policy": "left_to_right", "noise": "gumbel"}, "left_to_right"),
        ({"policy": "random", "noise": "gumbel"}, "random"),
        ({"policy": "margin", "noise": "pink"}, "pink"),
        ({"policy": "margin", "noise_scale": 0.5}, "noise=gumbel"),
        ({"policy": "margin", "anneal": "masked_share"}, "noise=gumbel"),
        ({"policy": "margin", "noise": "gumbel", "noise_scale": 0.0}, "noise_scale=0.0"),
        ({"policy": "margin", "noise": "gumbel", "anneal": "slowly"}, "slowly"),
        ({"policy": "entropy", "score_scale": "log"}, "score_scale=log"),
        ({"policy": "log_ratio", "score_scale": "log"}, "score_scale=log"),
        ({"policy": "random", "score_scale": "log"}, "score_scale=log"),
        ({"policy": "margin", "score_scale": "decibel"}, "decibel"),
        ({"policy": "margin", "ties": "top"}, "ties is one of left, random, not 'top'"),
        ({"policy": "margin", "reveal": "poisson"}, "poisson"),
        ({"policy": "margin", "reveal": "binomial"}, "steps="),
        ({"policy": "margin", "reveal": "binomial", "per_step": 2}, "steps="),
        ({"policy": "margin", "remask": True}, "selection=value"),
        ({"selection": "value", "remask": "cap"}, "remask is one of False, True, not 'cap'"),
        ({"policy": "given"}, "needs the place"),
        ({"policy": "given", "noise": "gumbel", "place": torch.zeros(2, 8)}, "has none"),
        ({"policy": "given", "place": torch.zeros(8)}, "place has the shape .8,., the sequences .2, 8."),
        ({"policy": "margin", "place": torch.zeros(2, 8)}, "not of policy=margin"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        sampling.ordered(MD4, everywhere, *blank(rows=2, length=8), seeded(), **options)


def test_only_mask_predictors_have_orders():
    for process in (UniformDiffusion(3), GenMaskedDiffusion(3)):
        with pytest.raises(UserError, match="mask predictor"):
            sampling.ordered(process, everywhere, *blank(rows=2), seeded())
