"""Copies, extraction and membership with planted answers; overlaps against brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from measured_models import LETTERS, Given, model, subject, untrained

from dlm.likelihood import order_moments
from dlm.measure import likelihoods, memorisation, overlap
from dlm.measure.subject import Remembered
from dlm.sampling import Sample

V = len(LETTERS)
RNG = np.random.default_rng(1)


def random_text(letters, length, seed):
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


TRAIN = random_text("abcdefghijkl", 800, 0)
STRANGE = random_text("mnopqrstuvwxyz", 400, 1)  # not a letter in common


def of(text):
    return overlap.codes(text)


# -- overlaps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [7, 1 << 22])
def test_overlaps_are_those_of_brute_force(monkeypatch, part):
    """In parts of the stream as well, whose seams must not lose a window."""
    monkeypatch.setattr(overlap, "PART", part)
    stream = random_text("ab", 60, 2)
    rows = [random_text("ab", n, 3 + n) for n in (1, 4, 12, 25, 40)] + ["c" * 8, stream[10:50]]
    for width in (1, 3, 6):
        windows = [[row[i : i + width] in stream for i in range(len(row) - width + 1)] for row in rows]
        assert [f.tolist() for f in overlap.found([of(r) for r in rows], of(stream), width)] == windows
        expected = [sum(w) / len(w) for w in windows if w]
        assert overlap.shares([of(r) for r in rows], of(stream), width) == pytest.approx(expected)
    longest = [
        max((b - a for a, b in itertools.combinations(range(len(row) + 1), 2) if row[a:b] in stream), default=0)
        for row in rows
    ]
    assert overlap.longest_common([of(r) for r in rows], of(stream)) == longest
    assert longest[-2:] == [0, 40]


def copying(text):
    """A model whose samples are consecutive stretches of a text, whoever trained it."""
    made = untrained("arm", V, 60)

    def sample(given, free, rng, **options):
        ids = torch.tensor([LETTERS.index(c) for c in text])
        x = torch.stack([ids[17 * i : 17 * i + given.shape[1]] for i in range(len(given))])
        return Sample(x, x, x[:, 0])

    made.sample = sample
    return made


def test_a_model_that_repeats_its_training_text_copies_all_and_one_that_does_not_nothing():
    source = Given(60, TRAIN, report=STRANGE)
    parrot, stranger = (subject(copying(text), source, samples=4) for text in (TRAIN, STRANGE))
    for n, characters in ((5, False), (13, False), (50, True)):
        found = memorisation.copied(parrot, n, characters)
        assert found.value == 1 and found.n == 4 and found.details["natural"] == 0 == found.details["excess"] - 1
        assert memorisation.copied(stranger, n, characters).value == 0
        assert memorisation.natural(parrot, n, characters).value == 0
    assert memorisation.common_substring(parrot).value == 60
    assert memorisation.common_substring(stranger).value == 0
    itself = subject(copying(STRANGE), Given(60, TRAIN, report=TRAIN), samples=4)
    assert memorisation.natural(itself, 13).value == 1, "the baseline is that of the held-out text"
    assert memorisation.natural_common_substring(itself).value == 60


def test_windows_shorter_than_an_n_gram_have_no_share_of_it():
    it = subject(untrained("arm", V, 8), Given(8, TRAIN), samples=3)
    assert memorisation.copied(it, 13) is None and memorisation.natural(it, 50, characters=True) is None


def test_diversity_within_a_sample_by_hand():
    assert memorisation.entropy(np.array([0, 0, 1, 1])) == pytest.approx(math.log(2))
    assert memorisation.entropy(np.array([3, 3, 3])) == 0
    assert memorisation.distinct(np.array([0, 1, 0, 1, 0, 1])) == 2 / 4


# -- extraction -------------------------------------------------------------------------------------------

ALPHABET = "abcdefghijklmnopqrstuvwxyz()[]"


def knows_the_alphabet(x):
    """The letter behind every position of a stretch of ALPHABET, from any that is seen; a mask is no letter."""
    seen = x < V
    first = seen.int().argmax(1, keepdim=True)
    start = x.gather(1, first) - first
    true = (start + torch.arange(x.shape[1])).clamp(0, V - 1)
    return 9.0 * torch.nn.functional.one_hot(true, V).double()


def next_letter(x):
    return 9.0 * torch.nn.functional.one_hot((x + 1).clamp(max=V - 1), V).double()


def test_what_was_learnt_by_heart_is_extracted_at_every_speed_and_what_was_not_is_not():
    source = Given(16, ALPHABET)
    by_heart = subject(model("md4", knows_the_alphabet, V, 16), source)
    for measure, at_once in ((memorisation.extraction, 1), (memorisation.extraction_fast, 8)):
        found = measure(by_heart)
        assert found.value == 1 and found.details["tokens_at_once"] == at_once and found.details["prefix"] == 8
        fresh = measure(subject(untrained("md4", V, 16), source))
        assert fresh.value == 0 and fresh.details["tokens_right"] < 0.2
    rotated = Given(16, "".join(sorted(ALPHABET, key=lambda c: (ALPHABET.index(c) * 7) % V)))
    assert memorisation.extraction(subject(model("md4", knows_the_alphabet, V, 16), rotated)).value == 0


def test_an_autoregressive_model_is_asked_greedily(monkeypatch):
    it = subject(model("arm", next_letter, V, 16), Given(16, ALPHABET))
    without = memorisation.continued

    def uncached(subject, given, free, at_once):  # the function in place of a network keeps no cache
        sample = subject.model.sample
        monkeypatch.setattr(subject.model, "sample", lambda *a, **k: sample(*a, **k, cached=False), raising=False)
        return without(subject, given, free, at_once)

    monkeypatch.setattr(memorisation, "continued", uncached)
    assert memorisation.extraction(it).value == 1
    assert memorisation.extraction_fast(it) is None
    assert memorisation.extraction(subject(untrained("shuffle", V, 16), Given(16, ALPHABET))) is None


def test_temperature_zero_takes_the_first_of_the_likeliest():
    law = memorisation.likeliest(torch.tensor([[0.0, 2.0, 2.0, 1.0]])).softmax(-1)
    assert law.tolist() == [[0.0, 1.0, 0.0, 0.0]]


# -- likelihoods ------------------------------------------------------------------------------------------


def frequencies(counts):
    """A text that repeats letters in these proportions, and log of the proportions."""
    p = torch.zeros(V, dtype=torch.float64)
    p[: len(counts)] = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return "".join(LETTERS[i] * n for i, n in enumerate(counts)), p.log().clamp(min=-60)


@pytest.mark.parametrize("kind", ["arm", "md4"])
def test_a_model_twice_too_sure_is_found_out_and_set_right(kind):
    """With logits 2 log p on text whose letters have exactly the shares p, T* is 2 and the loss there H(p): where
    every window has those shares. (A mask predictor is asked at few masks: there the shares are drawn.)"""
    counts = [5, 2, 1]
    text, log_p = frequencies(counts)
    it = subject(
        model(kind, lambda x: (2 * log_p).expand(*x.shape, V), V, 8), Given(8, text * 40), windows=40, draws=8
    )
    entropy = -float((log_p.exp() * log_p).sum())
    found = likelihoods.temperature(it)
    exact = kind == "arm"
    assert found.value == pytest.approx(2, rel=2e-3 if exact else 0.15) and found.split == "tune"
    calibrated, plain = likelihoods.nll_calibrated(it), likelihoods.nll(it)
    assert calibrated.value == pytest.approx(entropy, abs=1e-5 if exact else 4 * calibrated.se)
    assert calibrated.details["gain"] == pytest.approx(plain.value - calibrated.value) and plain.value > entropy


def test_a_question_asked_before_is_answered_from_memory():
    asked = []

    def network(x, t=None, where=None, **how):
        asked.append(how)
        return (x + len(asked)).float()

    x = torch.arange(6).reshape(2, 3)
    remembered, forgetful = Remembered(network), Remembered(network, room=5)
    first = remembered(x, torch.ones(2), x > 2)
    assert torch.equal(remembered(x.clone(), torch.ones(2), x > 2), first) and len(asked) == 1
    for other in (
        (x.reshape(3, 2), torch.ones(2), x > 2),
        (x + 1, torch.ones(2), x > 2),
        (x, torch.zeros(2), x > 2),
        (x, torch.ones(2), x > 1),
        (x, None, x > 2),
        (x, torch.ones(2)),
    ):
        before = len(asked)
        remembered(*other)
        assert len(asked) == before + 1
    remembered(x, torch.ones(2), x > 2, causal=True)
    assert asked[-1] == {"causal": True}
    forgetful(x), forgetful(x)
    assert len(asked) == 10


def test_top1_counts_the_likeliest_token():
    """Right on 5 of 8 letters if the commonest is always likeliest."""
    text, log_p = frequencies([5, 2, 1])
    arm, md4 = (
        subject(model(k, lambda x: log_p.expand(*x.shape, V), V, 8), Given(8, text * 30), windows=30, draws=8)
        for k in ("arm", "md4")
    )
    assert likelihoods.top1(arm).value == pytest.approx(5 / 8, abs=1e-12)
    found = likelihoods.top1(md4)
    assert abs(found.value - 5 / 8) < 4 * found.se and found.se < 0.05
    all_the_same = subject(arm.model, Given(8, "a" * 80))
    assert likelihoods.top1(all_the_same).value == 1
    assert likelihoods.top1(subject(untrained("shuffle", V, 8), Given(8, TRAIN))) is None


def test_the_variance_over_orders_is_that_of_all_orders():
    """Against dynamic programming over all subsets of masked positions; zero for a network without context."""
    torch.manual_seed(0)
    mixing = torch.randn(V + 1, V, dtype=torch.float64) / 2

    def bag(x):
        return mixing[x].sum(1, keepdim=True).expand(*x.shape, V)

    made, source = model("md4", bag, V, 4), Given(4, TRAIN)
    it = subject(made, source, order_windows=20, orders=200, order_tokens=4)
    found = likelihoods.order_variance_report(it)
    x0, _ = it.windows("report", 20)
    exact = order_moments(made.process, made.backbone, x0).variance / 4
    raw = np.array([found.value - float(exact.mean())])
    # kurtosis of log p is moderate: 200 orders give each window's variance to sqrt(2 / 199) of itself or so
    assert abs(raw[0]) < 4 * float(exact.square().sum().sqrt()) / 20 * math.sqrt(3 / 199)
    plain = subject(model("md4", lambda x: mixing[0].expand(*x.shape, V), V, 4), source, order_windows=5)
    assert likelihoods.order_variance_train(plain).value == pytest.approx(0, abs=1e-12)
    assert likelihoods.order_variance_train(subject(untrained("arm", V, 4), source)) is None


def test_chain_rules_stand_beside_the_headline_on_the_same_windows():
    it = subject(untrained("md4", V, 8), Given(8, TRAIN), chain_windows=3)
    for measure in (likelihoods.left_to_right, likelihoods.mixture):
        found = measure(it)
        assert found.value == pytest.approx(math.log(V), abs=1e-6) and found.n == 3
        assert found.details["difference"] == pytest.approx(0, abs=1e-6)
    assert likelihoods.left_to_right(subject(untrained("shuffle", V, 8), Given(8, TRAIN))) is None


def test_auc_counts_pairs_and_knows_its_error():
    members, others = RNG.integers(0, 6, 30).astype(float), RNG.integers(1, 8, 20).astype(float)
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    assert likelihoods.auc(members, others)[0] == pytest.approx(np.mean(pairs))
    assert likelihoods.auc(members, members)[0] == 0.5
    assert likelihoods.auc(np.arange(5.0), np.arange(5.0) + 10) == (1.0, 0.0)
    # 2,000 repetitions, seed 1: the spread is known to 1.6 %
    found = [likelihoods.auc(RNG.normal(size=30), RNG.normal(0.5, 2.0, size=20)) for _ in range(2000)]
    values, errors = np.array(found).T
    assert values.std() == pytest.approx(math.sqrt((errors**2).mean()), rel=0.08)


def test_training_windows_that_are_known_are_told_from_others():
    """A model of the training letters alone: held-out windows are all less likely."""
    log_p = torch.full((V,), -9.0, dtype=torch.float64)
    log_p[:12] = 0.0
    it = subject(model("arm", lambda x: log_p.expand(*x.shape, V), V, 8), Given(8, TRAIN, report=STRANGE))
    found, gap = likelihoods.membership_auc(it), likelihoods.train_nll(it)
    assert found.value == 1 and found.n == 64 and gap.details["gap"] == pytest.approx(9.0)
    same = subject(it.model, Given(8, TRAIN))
    assert likelihoods.membership_auc(same).value == 0.5 and likelihoods.train_nll(same).details["gap"] == 0


def test_the_norm_is_that_of_all_matrices():
    it = subject(untrained("arm", V, 8), Given(8, TRAIN))
    with torch.no_grad():
        for p in it.model.parameters():
            p.fill_(2.0)
    entries = sum(p.numel() for p in it.model.parameters() if p.ndim > 1)
    found = likelihoods.weight_norm(it)
    assert found.value == pytest.approx(2 * math.sqrt(entries))
    assert found.details["embedding"] == pytest.approx(2 * math.sqrt((V + 1) * 8))
