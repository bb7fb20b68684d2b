"""X2 over model sizes, planted: fronts of made-up sizes cross where they were made to."""

import json
import math

import numpy as np
import pytest

from dlm.report.curve import Curve
from dlm.report.pareto import FrontCrossing, front_of, x2_over_sizes

WINDOWS = 48
DIFFICULTY = np.random.default_rng(0).normal(0, 0.3, WINDOWS)


def run(losses, flops, noise=0.0, seed=0, tune=None, passages=None, cooled=None):
    """A run with these mean losses after so many FLOPs; difficulties are shared by all runs."""
    rng, flops = np.random.default_rng([7, seed]), np.asarray(flops, float)

    def windows(means):
        own = rng.normal(0, noise, (len(flops), WINDOWS)) if noise else 0.0
        return np.asarray(means, float)[:, None] + DIFFICULTY - DIFFICULTY.mean() + own

    epochs = np.arange(1.0, len(flops) + 1)
    tune = windows(losses if tune is None else tune)
    return Curve("r", seed, epochs, epochs * 1000, flops, tune, windows(losses), None, passages, passages, cooled)


# the baseline's small size is best until 10, its large one from 40 on; the process's sizes likewise
BASELINE = {"small": [run([3.0, 2.5, 2.6], [1, 10, 20])], "large": [run([2.8, 2.3, 2.4], [10, 40, 80])]}
PROCESS = {"small": [run([3.2, 2.9, 2.45], [1, 10, 20])], "large": [run([3.0, 2.6, 2.2], [10, 40, 80])]}


def test_a_front_is_the_best_of_all_sizes_by_that_compute():
    front = front_of(BASELINE, "baseline", 10, 0)
    assert front.flops.tolist() == [1, 10, 10, 20, 40, 80]
    best = front.sums[front.best].sum(axis=1) / front.counts.sum()
    assert best.tolist() == pytest.approx([3.0, 2.5, 2.5, 2.5, 2.3, 2.3])
    assert [str(front.labels[k]) for k in front.best] == ["small"] * 4 + ["large"] * 2
    assert front.within(np.array([0.5, 1, 15, 1000])).tolist() == [-1, 0, 2, 5]


def test_both_may_choose_their_size():
    """d by compute: 1: -0.2, 10: -0.4, 20: +0.05, 40: -0.15, 80: +0.1; the first excursion is already exact."""
    found = x2_over_sizes(PROCESS, BASELINE)
    at = 10 * 2 ** (0.4 / 0.45)
    assert (found.status, found.chosen) == ("clear", ("small", "small"))
    assert (found.flops, found.low, found.high) == pytest.approx((at, at, at))
    assert (found.observed_to, found.difference) == pytest.approx((80, 0.1))


def test_against_its_best_ever_the_crossing_comes_later():
    """d: up to 20: below zero, 40: 2.3 - 2.45 = -0.15, 80: +0.1."""
    found = x2_over_sizes(PROCESS, BASELINE, ever=True)
    assert found.flops == pytest.approx(40 * 2 ** (0.15 / 0.25)) and found.chosen == ("large", "large")


def test_one_size_alone_crosses_earlier():
    """At the small size the baseline over-fits and may not grow: what makes X2 at one size the easier crossing."""
    one = {"small": PROCESS["small"], "again": PROCESS["small"]}
    fixed = {"small": BASELINE["small"], "again": BASELINE["small"]}
    assert x2_over_sizes(one, fixed, ever=True).flops < x2_over_sizes(PROCESS, BASELINE, ever=True).flops


def test_the_size_is_chosen_on_tune_and_reported_on_report():
    lucky = run([2.0], [40], tune=[9.0])  # lowest on report, not on tune
    front = front_of({"small": BASELINE["small"], "lucky": [lucky]}, "baseline", 10, 0)
    assert str(front.labels[front.best[-1]]) == "small"


def test_what_is_not_reached_is_censored_at_what_was_spent():
    worse = x2_over_sizes({k: [run([4, 3.9], [10, 60])] for k in BASELINE}, BASELINE)
    assert (worse.status, worse.flops, worse.low, worse.high, worse.share) == ("not reached", None, None, None, 0)
    assert worse.observed_to == 60 and str(worse) == "not reached within 60 FLOPs"
    better = x2_over_sizes(PROCESS, {k: [run([4, 3.9], [1, 60])] for k in PROCESS})
    assert (better.status, better.flops) == ("from the start", 1)


def test_the_baseline_has_not_begun_before_its_first_evaluation():
    late = {k: [run([2.5, 2.4], [50, 60])] for k in ("small", "large")}
    found = x2_over_sizes(PROCESS, late)
    assert found.flops == pytest.approx(60 * (80 / 60) ** (0.05 / 0.25), rel=1e-6)


def test_the_interval_covers_and_knows_its_seeds():
    def arm(losses, seeds, noise):
        return {
            k: [run(losses, x, noise, s) for s in seeds] for k, x in (("a", [1, 10, 100]), ("b", [2, 20, 200]))
        }

    def found(noise, seeds=(0, 1, 2)):
        ours = arm([3.0, 2.6, 2.2], seeds, noise)
        return x2_over_sizes(ours, arm([2.6, 2.5, 2.5], [s + 50 for s in seeds], noise), ever=True)

    exact, noisy = found(0.0), found(0.2)
    assert exact.flops is not None and noisy.low is not None and noisy.high is not None
    assert noisy.low < exact.flops < noisy.high and noisy.low < noisy.high
    assert exact.se == pytest.approx(0, abs=1e-9) and noisy.se > 0


def test_cooled_branches_stand_apart():
    ours = {k: [run([3, 3], [1, 10], cooled=run([2.0], [10]))] for k in ("a", "b")}
    theirs = {k: [run([2.5, 2.5], [1, 10], cooled=run([2.4], [10]))] for k in ("a", "b")}
    assert x2_over_sizes(ours, theirs).status == "not reached"
    found = x2_over_sizes(ours, theirs, cooled=True)
    assert (found.kind, found.status, found.difference) == (
        "X2 over sizes cooled",
        "from the start",
        pytest.approx(0.4),
    )
    with pytest.raises(ValueError, match="no cooled-down branch"):
        x2_over_sizes(PROCESS, BASELINE, cooled=True)


def test_edges_of_what_was_tried_are_named():
    assert x2_over_sizes(PROCESS, BASELINE).notes == ("the baseline's best size, large, is its largest",)


def test_it_serialises():
    found = x2_over_sizes(PROCESS, BASELINE)
    assert FrontCrossing.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert str(found).startswith("19 FLOPs [19, 19]") and math.isfinite(found.se)


@pytest.mark.parametrize(
    ("process", "baseline", "said"),
    [
        ({"small": PROCESS["small"]}, {"small": BASELINE["small"]}, "two sizes or more"),
        (PROCESS, {"small": BASELINE["small"], "other": BASELINE["large"]}, "the same of both"),
        (
            PROCESS,
            BASELINE | {"large": [run([2], [10], passages=np.zeros(WINDOWS, int))]},
            "same held-out windows",
        ),
        (PROCESS, {k: [run([2], [500])] for k in PROCESS}, "cost less than the baseline's first"),
    ],
)
def test_what_cannot_be_compared_is_refused(process, baseline, said):
    with pytest.raises(ValueError, match=said):
        x2_over_sizes(process, baseline)
