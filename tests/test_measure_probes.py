"""Probes: items are what they say, options are scored as they should be, and planted answers come out."""

import itertools
import math

import numpy as np
import pytest
import torch
from measured_models import LETTERS, Given, model, subject, untrained

from dlm.measure import items, probes
from dlm.measure.items import Layout
from dlm.measure.texts import Texts

V = len(LETTERS)
RNG = np.random.default_rng(0)
TEXT = "".join(RNG.choice(list("abcdefg"), 600))
LAYOUTS = {
    "continuation": Layout.continuation(28),
    "infill": Layout.infill(28),
    "later": Layout.later(28),
    "earlier": Layout.earlier(28),
}


def cycle(noise, length, seed=1):
    """A walk around a, b, ..., e: one step on, or with probability `noise` to any letter."""
    rng = np.random.default_rng(seed)
    at, text = 0, []
    for _ in range(length):
        at = int(rng.integers(5)) if rng.random() < noise else (at + 1) % 5
        text.append(LETTERS[at])
    return "".join(text)


def walk(noise):
    """log P[a, b] of that walk; from the start symbol, uniform."""
    table = torch.full((V + 1, V), -math.inf, dtype=torch.float64)
    table[:, :5] = math.log(1 / 5)
    for a in range(5):
        table[a, :5] = math.log(noise / 5)
        table[a, (a + 1) % 5] = math.log(noise / 5 + 1 - noise)
    return table


@pytest.mark.parametrize("name", LAYOUTS)
def test_items_are_true_text_with_one_segment_exchanged_for_another_from_it(name):
    layout, source = LAYOUTS[name], Given(28, TEXT)
    made = items.choices(Texts(source), layout, 20)
    text = source.decode(source.tokens("report"))
    assert len(made) == 20 and made.options.shape[1:] == (4, layout.left + layout.right)
    assert made.target.sum(1).tolist() == [layout.end - layout.begin] * 20
    for options, target in zip(made.options, made.target, strict=True):
        strings = [source.decode(o) for o in options]
        segments = [source.decode(o[target]) for o in options]
        assert strings[0] in text and all(s in text for s in segments) and len(set(segments)) == 4
        assert (options[:, ~target] == options[0, ~target]).all()


def test_the_places_of_items_are_a_function_of_the_text_alone_and_both_directions_share_them():
    source = Given(28, TEXT)
    one, other = (items.choices(Texts(source), LAYOUTS["infill"], 20) for _ in range(2))
    assert (one.options == other.options).all()
    before, after = (items.choices(Texts(source), LAYOUTS[n], 20) for n in ("earlier", "later"))
    assert (before.options[:, 0] == after.options[:, 0]).all()
    fewer = items.choices(Texts(source), LAYOUTS["infill"], 10)
    assert (fewer.options == one.options[:10]).all()


def test_a_text_with_too_few_items_has_none():
    assert len(items.choices(Texts(Given(28, TEXT, report=TEXT[:30])), LAYOUTS["infill"], 20)) == 0
    assert len(items.choices(Texts(Given(28, "ab" * 300)), LAYOUTS["infill"], 20)) == 0, "no three distractors"
    assert len(items.choices(Texts(Given(28, TEXT)), LAYOUTS["infill"], 4)) == 4, "few because few were asked for"


@pytest.mark.parametrize("kind", ["arm", "md4"])
@pytest.mark.parametrize("probe", [probes.continuation, probes.infill, probes.reversal])
def test_an_untrained_model_ties_everywhere_and_scores_chance(kind, probe):
    found = probe(subject(untrained(kind, V, 28), Given(28, TEXT), items=12))
    assert found.value == found.chance == 0.25 and found.details["ties"] == 1 and found.n == 12
    if probe is probes.reversal:
        assert found.details["forward"] == 0.25 and found.details["difference"] == 0


def test_an_untrained_uniform_process_is_at_chance_within_its_error():
    """Its bound depends on whether noise happens to hit the true token: options differ, by noise alone."""
    found = probes.continuation(subject(untrained("shuffle", V, 28), Given(28, TEXT), items=200))
    assert abs(found.value - 0.25) < 4 * found.se and found.se < 0.04


def test_an_autoregressive_model_scores_whole_sequences_by_its_exact_likelihood():
    table, source = walk(0.3), Given(28, cycle(0.3, 600))
    it = subject(model("arm", lambda x: table[x], V, 28), source, items=15)
    made = items.choices(it.texts, LAYOUTS["infill"], 15)
    nats = probes.option_nats(it, made)
    for i in range(15):
        for o in range(4):
            x = made.options[i, o]
            exact = math.log(5) - sum(float(table[a, b]) for a, b in itertools.pairwise(x))
            assert nats[i, o] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("probe", [probes.continuation, probes.infill, probes.reversal])
def test_the_model_of_a_nearly_deterministic_text_finds_the_true_option(probe):
    table, source = walk(0.02), Given(28, cycle(0.02, 4000))
    it = subject(model("arm", lambda x: table[x], V, 28), source, items=100)
    found = probe(it)
    assert found.value > 0.9 and found.se < 0.03, "distractors of the wrong phase are e^-5 times as likely"


def test_a_mask_predictor_is_asked_for_the_segment_under_noise_that_options_share():
    table = walk(0.02)

    def neighbours(x):
        left = torch.cat([torch.full_like(x[:, :1], V), x[:, :-1]], 1)
        return table[left].nan_to_num(neginf=-30.0)

    it = subject(model("md4", neighbours, V, 28), Given(28, cycle(0.02, 4000)), items=60)
    found = probes.infill(it)
    assert found.value > 0.7
    made = items.choices(it.texts, LAYOUTS["infill"], 8)
    same = items.Items(np.repeat(made.options[:, :1], 4, 1), made.target)
    right, ties = probes.points(probes.option_nats(it, same))
    assert ties == 1 and (right == 0.25).all(), "the same sequence gets the same noise in every place"


def test_a_single_exchanged_token_is_one_exact_answer_of_a_mask_predictor():
    torch.manual_seed(3)
    table = torch.randn(V + 1, V, dtype=torch.float64)

    def left(x):
        return table[torch.cat([torch.full_like(x[:, :1], V), x[:, :-1]], 1)]

    it = subject(model("md4", left, V, 28), Given(28, "(a)[b]" * 100), items=20)
    made = items.brackets(it.texts, 20, 28)
    nats = probes.option_nats(it, made)
    for x, target, found in zip(made.options, made.target, nats, strict=True):
        (j,) = np.flatnonzero(target)
        law = table[x[0, j - 1]].log_softmax(-1)
        assert torch.allclose(found, -law[x[:, j]], atol=1e-12)
    assert it.model.backbone.asked == made.options.shape[0] * 2


def test_brackets_are_matched_inside_out_and_a_stray_one_empties_the_stack():
    assert items.matched(list("a(b[c])d")) == [(3, 5, "]"), (1, 6, ")")]
    assert items.matched(list("([)]()")) == [(4, 5, ")")]
    assert items.matched(["(", "x", "),"]) == [], "a closing bracket that shares its token cannot be exchanged"
    assert items.matched(["f(", "x", ")"]) == [(0, 2, ")")]


def test_preferring_one_bracket_whatever_was_opened_is_right_half_the_time():
    text = "(ab)(c)(de)[f]xx" * 30
    always = torch.zeros(V, dtype=torch.float64)
    always[LETTERS.index(")")] = 5.0
    for kind in ("arm", "md4"):
        it = subject(model(kind, lambda x: always.expand(*x.shape, V), V, 28), Given(28, text), items=30)
        found = probes.closing_brackets(it)
        assert found.value == found.chance == 0.5 and found.n == 30 and found.details["ties"] == 0


def test_a_model_that_remembers_what_was_opened_closes_it():
    opened = torch.full((V + 1, V), 0.0, dtype=torch.float64)

    def logits(x):
        """One step after an opening bracket and a letter, the matching bracket is likeliest."""
        before = torch.cat([torch.full_like(x[:, :2], V), x[:, :-2]], 1)
        table = opened.clone()
        table[LETTERS.index("("), LETTERS.index(")")] = table[LETTERS.index("["), LETTERS.index("]")] = 9.0
        return table[before]

    it = subject(model("md4", logits, V, 28), Given(28, "(a)[b]" * 100), items=20)
    assert probes.closing_brackets(it).value == 1
    fresh = untrained("md4", V, 28)
    assert probes.closing_brackets(subject(fresh, Given(28, "(a)[b]" * 100))).details["ties"] == 1
    assert probes.closing_brackets(subject(fresh, Given(28, "abc" * 100))) is None


def test_ties_share_the_point():
    nats = torch.tensor([[1.0, 1.0, 2.0, 3.0], [2.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    right, ties = probes.points(nats)
    assert right.tolist() == [0.5, 0.0, 1.0, 0.25] and ties == 0.75
