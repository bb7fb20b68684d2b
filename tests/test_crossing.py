"""Crossings planted in made-up curves are found where they were planted."""

import json
import math

import numpy as np
import pytest

from dlm.report.crossing import Crossing, x1, x2, x3
from dlm.report.curve import Curve, ProbeCurve, common_epochs, interpolation, running_argmin
from dlm.report.upcrossing import first_upcrossings, upcrossing

EPOCHS = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256.0])
WINDOWS = 64


def curve(loss, epochs=EPOCHS, run="p", noise=0.0, seed=0, stopped=None, difficulty=0.3, tune=None):
    """A curve with mean `loss` per evaluation: difficulties shared by all runs, plus its own `noise`."""
    epochs = np.asarray(epochs, dtype=float)
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(0, difficulty, WINDOWS)
    shared -= shared.mean()

    def windows(level):
        own = rng.normal(0, noise, (len(epochs), WINDOWS)) if noise else 0.0
        return np.asarray(level)[:, None] + shared + own

    tokens = epochs * 8192
    tune = loss if tune is None else tune
    return Curve(run, seed, epochs, tokens, tokens * 2.5e6, windows(tune), windows(loss), stopped)


def rising(at, slope=0.5, level=2.7):
    """A baseline that passes `level` at epoch `at`, linearly in log epoch."""
    return level + slope * np.log(EPOCHS / at)


FLAT = np.full(len(EPOCHS), 2.7)


@pytest.mark.parametrize("at", [1.5, 10.0, 45.0, 100.0])
def test_x1_is_exact_where_the_difference_is_linear_in_log_epoch(at):
    found = x1([curve(FLAT)], [curve(rising(at), run="b")])
    assert found.status == "clear"
    assert found.epoch == pytest.approx(at)
    assert found.tokens == pytest.approx(at * 8192)
    assert found.flops == pytest.approx(at * 8192 * 2.5e6)
    assert (found.low, found.high, found.share) == (pytest.approx(at), pytest.approx(at), 1.0)


def test_x1_needs_two_clear_evaluations():
    found = x1([curve(FLAT)], [curve(rising(200.0), run="b")])
    assert found.status == "within noise"
    assert found.epoch == pytest.approx(200.0)
    assert found.clear_epoch is None


def test_x1_not_reached_is_censored():
    found = x1([curve(FLAT)], [curve(rising(900.0), run="b")])
    assert (found.status, found.epoch, found.low, found.high) == ("not reached", None, None, None)
    assert found.share == 0.0
    assert found.observed_to == 256
    assert str(found) == "not reached within 256 epochs of both"
    never = x2([curve(FLAT)], [curve(FLAT[:4] - 0.1, EPOCHS[:4], "b")])
    assert str(never) == "not reached within 256 epochs of the process"


def test_x1_with_an_early_stopped_baseline_uses_only_the_common_range_and_says_so():
    stop = EPOCHS <= 64
    baseline = curve(rising(40.0)[stop], EPOCHS[stop], "b", stopped="stopped at epoch 64")
    found = x1([curve(FLAT)], [baseline])
    assert found.epoch == pytest.approx(40.0) and found.status == "clear"
    assert found.observed_to == 64
    assert any("stopped at epoch 64" in note for note in found.notes)
    assert x1([curve(FLAT)], [curve(rising(90.0)[stop], EPOCHS[stop], "b", stopped="…")]).observed_to == 64


def test_x1_interpolates_different_evaluation_epochs_in_log_epoch():
    sparse = EPOCHS[::2]
    found = x1([curve(np.full(len(sparse), 2.7), sparse)], [curve(rising(45.0), run="b")])
    assert found.epoch == pytest.approx(45.0)


def test_a_lead_before_the_baseline_has_learnt_is_not_a_crossing():
    loss = rising(45.0)
    loss[:2] = 3.5
    assert x1([curve(FLAT)], [curve(loss, run="b")]).epoch == pytest.approx(45.0)
    ahead = x1([curve(FLAT)], [curve(FLAT + 0.1, run="b")])
    assert ahead.status == "from the start" and ahead.epoch == 1.0
    barely = x1([curve(FLAT, noise=0.3)], [curve(FLAT + 0.01, run="b", noise=0.3, seed=1)])
    assert barely.status != "from the start"


def test_x2_is_located_against_the_best_of_the_whole_run():
    falling = 2.9 - 0.1 * np.log(EPOCHS)
    u_shaped = 2.5 + 0.05 * np.log(EPOCHS / 24) ** 2
    found = x2([curve(falling)], [curve(u_shaped, run="b")])
    assert found.epoch == pytest.approx(math.exp(4.0))
    assert found.status == "clear" and found.baseline_epoch == 24
    assert found.flops / found.baseline_flops == pytest.approx(math.exp(4.0) / 24)


def test_x2_matched_comes_no_later_than_x2_over_the_whole_run():
    ours = 2.6 - 0.1 * np.log(EPOCHS)
    theirs = np.where(EPOCHS < 128, 2.55, 2.2)
    early, whole = (x2([curve(ours)], [curve(theirs, run="b")], matched=m) for m in (True, False))
    assert early.epoch == pytest.approx(math.exp(0.5)) and early.status == "clear"
    assert whole.epoch == pytest.approx(math.exp(4.0))


def test_x2_chooses_on_tune_and_reports_on_report():
    tune = np.linspace(3.0, 2.0, len(EPOCHS))
    tune[5] = 0.5  # tune chooses evaluation 5 for good, whatever the report split says later
    report = np.linspace(3.0, 1.0, len(EPOCHS))
    found = x2([curve(report, tune=tune)], [curve(np.full(len(EPOCHS), report[5] - 0.1), run="b")])
    assert found.status == "not reached"
    assert found.difference == pytest.approx(-0.1)


def test_x2_survives_the_over_fitting_of_the_process():
    loss = 2.9 - 0.1 * np.log(EPOCHS)
    loss[-2:] = 3.5
    found = x2([curve(loss)], [curve(np.full(len(EPOCHS), 2.5), run="b")])
    assert found.epoch == pytest.approx(math.exp(4.0))
    assert found.difference == pytest.approx(2.5 - loss[-3])


def test_within_noise_is_said():
    ours = np.full(len(EPOCHS), 2.71)
    ours[-1] = 2.69
    found = x2([curve(ours, noise=0.2, seed=3)], [curve(FLAT, run="b", noise=0.2, seed=4)])
    assert found.status in {"within noise", "not reached"}
    assert 0 < found.share < 1


def test_the_error_is_paired_over_windows():
    wide = x1([curve(FLAT, difficulty=2.0)], [curve(rising(45.0), run="b", difficulty=2.0)])
    assert wide.se < 1e-12 and wide.status == "clear"


def test_interval_covers_the_planted_crossing():
    covered = []
    for trial in range(60):
        p = curve(FLAT, noise=0.6, seed=2 * trial)
        b = curve(rising(45.0), run="b", noise=0.6, seed=2 * trial + 1)
        found = x1([p], [b], resamples=400, seed=trial)
        covered.append(found.low is not None and found.low <= 45.0 <= (found.high or math.inf))
    assert np.mean(covered) >= 0.85


def test_interval_of_x2_covers_the_planted_crossing():
    covered = []
    for trial in range(60):
        p = curve(2.9 - 0.1 * np.log(EPOCHS), noise=0.15, seed=2 * trial)
        b = curve(2.5 + 0.3 * np.log(EPOCHS / 24) ** 2, run="b", noise=0.15, seed=2 * trial + 1)
        found = x2([p], [b], resamples=400, seed=trial)
        covered.append(found.low is not None and found.low <= math.exp(4.0) <= (found.high or math.inf))
    assert np.mean(covered) >= 0.85


def test_seeds_widen_the_interval():
    ours = [curve(FLAT + shift, run=f"p{k}", seed=k, noise=0.05) for k, shift in enumerate((-0.1, 0.0, 0.1))]
    theirs = [curve(rising(45.0), run=f"b{k}", seed=9 + k, noise=0.05) for k in range(3)]
    one, three = x1(ours[1:2], theirs[:1]), x1(ours, theirs)
    assert three.seeds == (3, 3)
    assert three.high - three.low > 2 * (one.high - one.low)
    assert three.epoch == pytest.approx(45.0, rel=0.1)


def test_the_bootstrap_is_reproducible_and_serialises():
    p, b = curve(FLAT, noise=0.3), curve(rising(45.0), run="b", noise=0.3, seed=5)
    first, second = x1([p], [b]), x1([p], [b])
    assert first == second
    assert Crossing.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_different_windows_are_refused():
    p = curve(FLAT)
    other = Curve("b", 0, p.epochs, p.tokens, p.flops, p.tune[:, :9], p.report[:, :9])
    with pytest.raises(ValueError, match="same held-out windows"):
        x1([p], [other])


def test_epochs_must_increase():
    p = curve(FLAT)
    with pytest.raises(ValueError, match="increase"):
        Curve("b", 0, p.epochs[::-1], p.tokens, p.flops, p.tune, p.report)


def test_parts():
    assert running_argmin(np.array([3, 2, 2.5, 2, 1])).tolist() == [0, 1, 1, 1, 4]
    assert interpolation(np.array([1.0, 4.0]), np.array([2.0])) == pytest.approx(np.array([[0.5, 0.5]]))
    assert common_epochs([curve(FLAT), curve(FLAT[:4], [2, 5, 30, 70])]).tolist() == [2, 5, 30, 70]
    nothing = upcrossing([0, 1, 2], [math.nan, -1, 1], [0, 0, 0], 1)
    assert (nothing.status, nothing.x) == ("clear", 1.5)


def test_many_at_once_are_located_as_one_by_one():
    rng = np.random.default_rng(0)
    x, se = np.log(EPOCHS), rng.uniform(0, 0.4, len(EPOCHS))
    d = np.cumsum(rng.normal(0.05, 0.4, (400, len(EPOCHS))), axis=1)
    d[::7, :3] = math.nan
    d[::11, 5] = 0.0
    for confirmations in (1, 2):
        expected = [upcrossing(x.tolist(), row, se.tolist(), confirmations).x for row in d.tolist()]
        assert first_upcrossings(x, d, se, confirmations) == pytest.approx(np.array(expected))
        assert len({math.isinf(e) for e in expected}) == 2


def with_branches(loss, cooled, run, epochs=(24, 96, 192)):
    trunk = curve(loss, run=run)
    branches = curve(cooled, epochs, run)
    return Curve(
        run, 0, trunk.epochs, trunk.tokens, trunk.flops, trunk.tune, trunk.report, None, None, None, branches
    )


def test_cooled_branches_are_compared_with_cooled_branches():
    ours, theirs = with_branches(FLAT, [2.6, 2.4, 2.2], "p"), with_branches(FLAT - 1, [2.5, 2.3, 2.9], "b")
    found = x2([ours], [theirs], cooled=True)
    assert (found.kind, found.status, found.baseline_epoch) == ("X2 cooled", "clear", 96)
    assert found.epoch == pytest.approx(math.sqrt(96 * 192))  # half way in log epoch from 2.4 to 2.2
    assert found.flops == pytest.approx(np.interp(found.epoch, [96, 192], np.array([96, 192]) * 8192 * 2.5e6))
    assert x2([ours], [theirs]).status == "not reached"  # the trunks are another story
    some = x2([ours, curve(FLAT, run="bare")], [theirs], cooled=True)
    assert some.seeds == (1, 1) and "bare: has no cooled-down branch" in some.notes
    with pytest.raises(ValueError, match="bare: has no cooled-down branch"):
        x2([curve(FLAT, run="bare")], [theirs], cooled=True)


def probe(values, run="p", se=0.0, epochs=EPOCHS):
    epochs, values = np.asarray(epochs, float), np.asarray(values, float)
    return ProbeCurve(run, 0, "top1", epochs, epochs * 8192, epochs * 1e9, values, np.full(len(values), se), 512)


def test_x3_is_where_the_accuracy_of_a_probe_overtakes():
    falling = 0.5 - 0.05 * np.log(EPOCHS / 45)
    found = x3([probe(np.full(len(EPOCHS), 0.5))], [probe(falling, "b")])
    assert (found.kind, found.status, found.windows) == ("X3", "clear", 512)
    assert found.epoch == pytest.approx(45) and found.flops == pytest.approx(45e9)
    assert found.baseline_epoch == 1
    never = x3([probe(np.full(len(EPOCHS), 0.2))], [probe(falling, "b", epochs=EPOCHS)])
    assert (never.status, never.epoch, never.observed_to, never.observed_flops) == (
        "not reached",
        None,
        256,
        256e9,
    )
    assert str(never) == "not reached within 256 epochs of both"


def test_x3_knows_its_noise():
    falling = 0.5 - 0.05 * np.log(EPOCHS / 45)
    wide = x3([probe(np.full(len(EPOCHS), 0.5), se=0.02)], [probe(falling, "b", se=0.02)])
    assert wide.se == pytest.approx(0.02 * math.sqrt(2)) and wide.low < 30 and wide.high > 65
    # one deviate per arm: the crossing moves by log epoch = 0.02 sqrt(2) z / 0.05
    assert math.log(wide.high / 45) == pytest.approx(1.96 * 0.02 * math.sqrt(2) / 0.05, rel=0.15)
    seeds = [probe(np.full(len(EPOCHS), 0.5 + x)) for x in (-0.02, 0.02)]
    assert x3(seeds, [probe(falling, "b")]).se == pytest.approx(0.02)
    late = x3([probe(np.full(len(EPOCHS), 0.5), se=0.05)], [probe(falling, "b", se=0.05)])
    assert late.status == "within noise"


def test_an_unconfirmed_end_is_censored_with_its_cost():
    found = x1([curve(FLAT)], [curve(rising(900.0), run="b")])
    assert found.observed_flops == pytest.approx(256 * 8192 * 2.5e6) and found.passages == WINDOWS


def test_passages_that_differ_are_refused():
    p = curve(FLAT)
    passages = np.repeat(np.arange(WINDOWS // 2), 2)
    other = Curve("b", 0, p.epochs, p.tokens, p.flops, p.tune, p.report, None, passages, passages)
    with pytest.raises(ValueError, match="same held-out windows"):
        x1([p], [other])
    with pytest.raises(ValueError, match="3 passages for 64"):
        Curve("b", 0, p.epochs, p.tokens, p.flops, p.tune, p.report, None, passages[:3], passages)
