"""What shapes an order beside its policy: ties, noise, a given place, numbers drawn per step, predicting anew."""

import itertools
import math
from typing import Any

import pytest
import torch
from oracle import F64
from sampler_laws import close, seeded

from dlm import sampling
from dlm.process import MaskedDiffusion
from dlm.sampling.ordered import Order, cut_between_equals, top

MD4 = MaskedDiffusion(3)
N = 20_000


def blank(rows, length):
    return torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.bool)


def fixed(logits):
    """A network that says the same of a position in every state."""
    logits = torch.tensor(logits, dtype=F64)

    def net(x, t, where):
        return logits.expand(len(x), -1, -1)[where]

    return net


def sure(*probabilities):
    """Positions whose likeliest value has these probabilities, the other two values sharing the rest."""
    return fixed([[math.log(p), math.log((1 - p) / 2), math.log((1 - p) / 2)] for p in probabilities])


def within(share, wanted, n=N):
    return abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / n)


def uniform_over(outcomes, cells, limit):
    """Pearson's chi-square of [n] outcomes against equal cells."""
    seen = torch.as_tensor(outcomes).bincount(minlength=cells).double()
    wanted = len(outcomes) / cells
    return float(((seen - wanted) ** 2 / wanted).sum()) < limit


# --- ties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "options", "ties"),
    [
        ((0.8, 0.8, 0.8), {}, 2),
        ((0.8, 0.8, 0.6), {}, 1),
        ((0.8, 0.6, 0.6), {}, 1),
        ((0.9, 0.8, 0.6), {}, 0),
        ((0.8, 0.8, 0.6), {"per_step": 2}, 0),
        ((0.8, 0.6, 0.6), {"per_step": 2}, 1),
        ((0.8, 0.8, 0.8), {"noise": "gumbel"}, 0),
        ((0.8, 0.8, 0.8), {"ties": "random"}, 2),
        ((0.8, 0.8, 0.8), {"policy": "random"}, 0),
        ((0.8, 0.8, 0.8), {"policy": "left_to_right"}, 0),
        ((0.8, 0.8, 0.8), {"policy": "given", "place": torch.tensor([[4, 1, 1]] * 4)}, 1),
        ((1.0, 1.0, 0.6), {"policy": "log_ratio"}, 1),
        ((0.8, 0.8, 0.8), {"policy": None, "selection": "value", "warp": sampling.greedy}, 2),
    ],
)
def test_ties_at_the_cut_are_counted(probabilities, options, ties):
    """A step counts if the last revealed and the first that waits score exactly the same: three equal positions
    have two such steps; infinite scores tie as well, noise and orders of their own do not."""
    certain, none = [0.0, -math.inf, -math.inf], -9.0
    net = fixed([certain if p == 1 else [math.log(p / (1 - p)), 0.0, none] for p in probabilities])
    options = {"policy": "margin", **options}
    assert sampling.ordered(MD4, net, *blank(4, 3), seeded(), **options).ties.tolist() == [ties] * 4


def test_ties_are_counted_row_by_row():
    """The first token of a row says what the others look like: rows with 2, 0, 1 ties, side by side."""
    kinds = torch.tensor([[1.0, 1.0, 1.0], [3.0, 2.0, 1.0], [2.0, 2.0, 1.0]], dtype=F64)

    def net(x, t, where):
        logits = torch.zeros(*x.shape, 3, dtype=F64)
        logits[:, 1:, 0] = kinds[x[:, 0]]
        return logits[where]

    given, free = blank(3, 4)
    given[:, 0], free[:, 0] = torch.arange(3), False
    sample = sampling.ordered(MD4, net, given, free, seeded(), "margin")
    assert sample.ties.tolist() == [2, 0, 1]
    alone = sampling.ordered(MD4, net, given[:1], free[:1], seeded(), "margin", ties="random")
    both = sampling.ordered(MD4, net, given, free, seeded(), "margin", ties="random")
    assert all(torch.equal(a, b[:1]) for a, b in zip(alone, both, strict=True)), "no row needs the others"


def test_random_ties_are_fair_and_leave_the_score_its_say():
    """Scores (0.6, 0.8, 0.8, 0.8): the six orders of the last three are equally frequent in 20 000 rows
    (chi-square with 5 degrees below 31, once in 1e5) and the first comes last; ties to the left know one order."""
    net, shape = sure(0.6, 0.8, 0.8, 0.8), blank(N, 4)
    steps = sampling.ordered(MD4, net, *shape, seeded(), "top_probability", ties="random").fixed_at
    assert (steps[:, 0] == 3).all()
    perms = {perm: i for i, perm in enumerate(itertools.permutations(range(3)))}
    assert uniform_over([perms[tuple(row)] for row in steps[:, 1:].tolist()], 6, 31)
    left = sampling.ordered(MD4, net, *shape, seeded(), "top_probability").fixed_at
    assert (left == torch.tensor([3, 0, 1, 2])).all()


def test_top_breaks_ties_by_its_key_and_by_nothing_else():
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0, math.inf, math.nan]], dtype=F64)
    candidates = torch.tensor([[True, True, True, False, True, True]])
    key = torch.tensor([[0.1, 0.9, 0.5, 0.0, 0.7, 0.3]], dtype=F64)
    two = torch.tensor([2])
    assert top(score, candidates, two).nonzero()[:, 1].tolist() == [1, 4]
    assert top(score, candidates, two, key).nonzero()[:, 1].tolist() == [2, 4]
    chosen = top(score, candidates, two, key)
    assert cut_between_equals(score, chosen, candidates).tolist() == [True]
    assert cut_between_equals(score, top(score, candidates, torch.tensor([3])), candidates).tolist() == [False]


# --- noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "scale", "gap"),
    [
        ("top_probability", "probability", 0.9 - 0.7),
        ("top_probability", "log", math.log(0.9 / 0.7)),
        ("margin", "probability", 0.85 - 0.55),
        ("margin", "log", math.log(0.85 / 0.55)),
        ("log_ratio", "probability", math.log(18 / (14 / 3))),
    ],
)
def test_noise_is_added_on_the_chosen_scale(policy, scale, gap):
    """Positions whose likeliest value has 0.9 and 0.7 (the next 0.05 and 0.15): under Gumbel noise of scale 0.3
    the surer one leads with probability sigmoid(gap / 0.3) of the gap on that scale, within 5 standard errors."""
    options: dict[str, Any] = {"score_scale": scale, "noise": "gumbel", "noise_scale": 0.3}
    sample = sampling.ordered(MD4, sure(0.9, 0.7), *blank(N, 2), seeded(), policy, **options)
    assert within(float((sample.fixed_at[:, 0] == 0).double().mean()), 1 / (1 + math.exp(-gap / 0.3)))


def test_noise_is_new_in_every_row_and_step():
    """Three equal positions under noise: the six orders are equally frequent, so a second step knows nothing of
    the first; and so are the nine pairs of first places in neighbouring rows (chi-square with 5 and 8 degrees,
    limits exceeded once in 1e5)."""
    sample = sampling.ordered(MD4, sure(0.8, 0.8, 0.8), *blank(N, 3), seeded(), "margin", noise="gaussian")
    perms = {perm: i for i, perm in enumerate(itertools.permutations(range(3)))}
    assert uniform_over([perms[tuple(row)] for row in sample.fixed_at.tolist()], 6, 31)
    first = sample.fixed_at.argmin(1)
    assert uniform_over(3 * first[::2] + first[1::2], 9, 37)


@pytest.mark.parametrize("noise", ["gumbel", "gaussian"])
def test_noise_is_finite_and_exact_at_both_ends(noise):
    """Uniforms are multiples of 2^-53 below 1: at 0 the noise is that of 2^-54, at the last one its own, to 1e-12
    of the values in higher precision (Gumbel -3.6223 and 36.7368, Gaussian -8.2924 and 8.2095)."""
    u = torch.tensor([0.0, 0.3, 1 - 2.0**-53, 1.0], dtype=F64)
    seen = Order("margin", noise=noise).disturb(torch.zeros(4, dtype=F64), u, torch.ones(4, dtype=F64))
    inner = torch.special.ndtri(u[1]) if noise == "gaussian" else -math.log(-math.log(0.3))
    ends = (-math.log(54 * math.log(2)), 53 * math.log(2)) if noise == "gumbel" else (-8.2924, 8.2095)
    close(seen[1], inner, 1e-12)
    close(seen[[0, 2, 3]], torch.tensor([*ends, ends[1]], dtype=F64), 1e-12 if noise == "gumbel" else 1e-4)


# --- a given order, and numbers drawn per step -----------------------------------------------------------------


def test_a_given_order_is_followed_in_every_row():
    """Smallest place first, over the free positions of each row; places of the prompt mean nothing."""
    given, free = blank(2, 4)
    free[1, 1] = False
    place = torch.tensor([[30, 10, 40, 20], [7, -99, 5, 6]])
    one, two = (
        sampling.ordered(MD4, sure(0.9, 0.8, 0.7, 0.6), given, free, seeded(), "given", per_step, place=place)
        for per_step in (1, 2)
    )
    assert one.fixed_at.tolist() == [[2, 0, 3, 1], [2, -1, 0, 1]] and one.evaluations.tolist() == [4, 3]
    assert two.fixed_at.tolist() == [[1, 0, 1, 0], [1, -1, 0, 0]] and two.evaluations.tolist() == [2, 2]


def test_binomial_numbers_in_random_order_are_ancestral_sampling():
    """Three tokens in three steps: all 27 assignments of steps are equally frequent in 20 000 rows, as when each
    token chooses its own (chi-square with 26 degrees below 70, once in 1e5), for this and for ancestral sampling;
    a row is asked in the steps that reveal something, and in no other."""
    net = sure(0.9, 0.8, 0.7)
    both = (
        sampling.ordered(MD4, net, *blank(N, 3), seeded(), "random", steps=3, reveal="binomial"),
        sampling.ancestral(MD4, net, *blank(N, 3), seeded(), steps=3),
    )
    for sample in both:
        assert uniform_over(sample.fixed_at @ torch.tensor([9, 3, 1]), 27, 70)
        asked = torch.stack([(sample.fixed_at == step).any(1) for step in range(3)]).sum(0)
        assert torch.equal(sample.evaluations, asked)


def test_binomial_numbers_follow_any_policy():
    """Four tokens in two steps: the first reveals Binomial(4, 1/2) of them (chi-square over 5 cells, below 31),
    and always the surest."""
    sample = sampling.ordered(
        MD4, sure(0.6, 0.7, 0.8, 0.9), *blank(N, 4), seeded(), "margin", steps=2, reveal="binomial"
    )
    early = (sample.fixed_at == 0).sum(1)
    wanted = N * torch.tensor([1, 4, 6, 4, 1], dtype=F64) / 16
    assert float(((early.bincount(minlength=5) - wanted) ** 2 / wanted).sum()) < 31
    assert (sample.fixed_at.diff(dim=1) <= 0).all()
    again = sampling.ordered(
        MD4, sure(0.6, 0.7, 0.8, 0.9), *blank(3, 4), seeded(), "margin", steps=2, reveal="binomial"
    )
    assert torch.equal(again.fixed_at, sample.fixed_at[:3])


# --- predicting anew what stands -------------------------------------------------------------------------------


def fickle(length=7):
    """A network whose answer depends on the whole state, at visible positions too."""
    mix = torch.randn(length * 4, length * 3, dtype=F64, generator=seeded(7))

    def net(x, t, where):
        state = torch.nn.functional.one_hot(x, 4).to(F64).flatten(1)
        return (state @ mix).unflatten(1, (length, 3))[where]

    return net


def predicted_anew(net, given, free, ends, visit):
    """One row by the recipe: predict every free position, keep the likeliest `end` of them, mask the rest."""
    x = [3 if f else g for g, f in zip(given, free, strict=True)]
    for end in ends:
        probs = net(torch.tensor([x]), None, torch.ones(1, len(x), dtype=torch.bool)).softmax(-1)
        best = {i: max((float(p), -v) for v, p in enumerate(probs[i])) for i in range(len(x)) if free[i]}
        kept = sorted(best, key=lambda i: (-best[i][0], i))[:end]
        x = [(-best[i][1] if i in kept else 3) if free[i] else given[i] for i in range(len(x))]
        visit(x)


@pytest.mark.parametrize(
    ("options", "ends"), [({}, range(1, 8)), ({"steps": 3}, (2, 4, 7)), ({"per_step": 3}, (3, 6, 7))], ids=str
)
def test_predicting_anew_follows_the_recipe(options, ends):
    """Greedy values by the log of their probability, 12 rows of 7, some with a prompt: every state of every row
    is that of a plain loop over positions, and fixed_at the step of the last change. On the way tokens do change,
    and one at a time they are masked again."""
    net, (given, free) = fickle(), blank(12, 7)
    given = torch.randint(3, given.shape, generator=seeded(1))
    free[8:, 2] = False
    seen = []
    sample = sampling.ordered(
        MD4,
        net,
        given,
        free,
        seeded(),
        selection="value",
        score_scale="log",
        remask=True,
        warp=sampling.greedy,
        watch=lambda step, x: seen.append(x.clone()),
        **options,
    )
    history = torch.stack(seen, 1)
    for row in range(12 if not options else 8):
        states = []
        predicted_anew(net, given[row].tolist(), free[row].tolist(), ends[: int(free[row].sum())], states.append)
        assert history[row, 1 : len(states) + 1].tolist() == states
    before, after = history[:, :-1], history[:, 1:]
    moved = before != after
    last = (moved * torch.arange(1, moved.shape[1] + 1)[:, None]).amax(1) - 1
    assert torch.equal(sample.fixed_at, torch.where(free, last, -1))
    assert (moved & (before < 3) & (after < 3)).any() and (options or (moved & (after == 3)).any())
    assert torch.equal(sample.x[~free], given[~free]) and (sample.x < 3).all()
    fewer = {7: 6, 3: 3 if "steps" in options else 2}[len(ends)]  # steps that six tokens need
    assert sample.evaluations.tolist() == [len(ends)] * 8 + [fewer] * 4
