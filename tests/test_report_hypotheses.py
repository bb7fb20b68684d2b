"""The ten hypotheses on planted studies: for each a yes, a no and an undecided, known beforehand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from planted_study import KNOTS, level, planted

from dlm.report.study import load_study
from dlm.study.command import load

FOLDER = Path(__file__).parents[1] / "experiments" / "super-data-learners"
ONE = [{"cell": "scarce-8k", "role": "scarce", "unique_tokens": 8192}]
THREE = ["arm", "arm-reg", "md4"]
EARLY = {1: 3.3, 8: 2.4, 16: 2.7, 40: 3.6, 384: 4.6}  # an ARM that over-fits early
FLAT = {1: 3.3, 40: 2.4, 384: 2.4}  # one that does not over-fit


@pytest.fixture(scope="module")
def report():
    return load(FOLDER / "report.py")


def answers(report, directory):
    """{id: hypothesis} of a planted study."""
    found = report.compute(load_study(directory))["hypotheses"]
    assert [h["id"] for h in found] == [f"H{k}" for k in range(1, 11)]
    assert all(h["evidence"].endswith(".") and h["rule"] and h["claim"] for h in found)
    return {h["id"]: h for h in found}


def check(report, tmp_path, name, expected, **options):
    options = {"cells": ONE, "arms": THREE, "windows": 24, "branches": ()} | options
    found = answers(report, planted(tmp_path / f"{name}-{expected}", **options))[name]
    assert found["answer"] == expected, found["evidence"]
    return found


def two(shift, unique=16384):
    return [*ONE, {"cell": "scarce-16k", "role": "scarce", "unique_tokens": unique, "shift": shift}]


def sizes(shift):
    return [
        {"cell": "s", "role": "scarce", "unique_tokens": 8192, "size": "small", "params": 100_000},
        {"cell": "l", "role": "scarce", "unique_tokens": 8192, "size": "large", "params": 900_000, "shift": shift},
    ]


@pytest.mark.parametrize(("expected", "shift"), [("yes", 0.5), ("no", -0.5), ("undecided", 0.0)])
def test_h1_asks_whether_x1_comes_later_with_more_text(report, tmp_path, expected, shift):
    found = check(report, tmp_path, "H1", expected, cells=two(shift), arms=["arm", "md4"])
    assert "scarce-8k: X1 43" in found["evidence"]


def test_h1_is_no_where_arm_over_fits_and_is_never_crossed(report, tmp_path):
    knots = {"arm": {1: 2.0, 20: 1.0, 384: 1.9}}
    found = check(report, tmp_path, "H1", "no", cells=two(0.5), arms=["arm", "md4"], knots=knots)
    assert "no clear X1" in found["evidence"]


def test_one_seed_decides_nothing_about_trainings(report, tmp_path):
    found = check(report, tmp_path, "H1", "undecided", cells=two(0.5), arms=["arm", "md4"], seeds=(0,))
    assert "(one seed)" in found["evidence"]


@pytest.mark.parametrize(("name", "cells"), [("H1", two(0.5)), ("H2", sizes(-0.5))])
def test_every_cell_that_tells_needs_two_seeds(report, tmp_path, name, cells):
    study = planted(tmp_path, cells=cells, arms=["arm", "md4"], windows=24, branches=())
    assert answers(report, study)[name]["answer"] == "yes"
    plan = json.loads((study / "plan.json").read_text())
    plan["runs"] = [r for r in plan["runs"] if r["cell"] == cells[0]["cell"] or r["seed"] == 0]
    (study / "plan.json").write_text(json.dumps(plan))
    found = answers(report, study)[name]
    assert found["answer"] == "undecided" and "(one seed)" in found["evidence"]


@pytest.mark.parametrize(("expected", "shift"), [("yes", -0.5), ("no", 0.5), ("undecided", 0.0)])
def test_h2_asks_whether_x1_comes_earlier_in_larger_models(report, tmp_path, expected, shift):
    check(report, tmp_path, "H2", expected, cells=sizes(shift), arms=["arm", "md4"])


@pytest.mark.parametrize(
    ("expected", "reg"),
    [
        ("yes", {1: 3.4, 60: 2.1, 384: 2.1}),  # never crossed
        ("no", {1: 3.3, 24: 2.38, 48: 2.75, 384: 4.6}),  # over-fits almost as early as ARM
        ("undecided", {1: 3.4, 60: 2.332, 384: 2.4}),  # X1 delayed, X2 within noise
    ],
)
def test_h3_asks_whether_regularisation_takes_the_crossings_away(report, tmp_path, expected, reg):
    check(report, tmp_path, "H3", expected, knots={"arm-reg": reg})


def test_h3_says_nothing_about_trainings_from_one_seed(report, tmp_path):
    knots = {"arm-reg": {1: 3.4, 60: 2.1, 384: 2.1}}
    assert "(one seed)" in check(report, tmp_path, "H3", "undecided", knots=knots, seeds=(0,))["evidence"]


def evidence(crossing=None, **curve):
    """`report_evidence` and a summary with one comparison and one curve, both by hand."""
    fields = {"process": "md4", "baseline": "arm", "observed_to": 384.0, "epoch": None, "low": None,
              "high": None, "share": 0.0, "clear_epoch": None, "difference": -0.01, "se": 0.02, "flops": None,
              "tokens": None, "baseline_epoch": 20.0, "baseline_flops": 1.0, "windows": 9, "seeds": [2, 2],
              "notes": []}  # fmt: skip
    found = {"kind": "X1"} | fields | (crossing or {})
    comparison = {"cell": "c", "process": "md4", "baseline": "arm", "missing": None, "x1": found}
    frame = pd.DataFrame({"cell": "c", "arm": "arm", "epoch": [], "nll": [], "se": [], "tune": []} | curve)
    frame = frame.assign(cell="c", arm="arm")
    return load(FOLDER / "report_evidence.py"), SimpleNamespace(
        results={"comparisons": [comparison]}, curves=frame
    )


@pytest.mark.parametrize(("low", "ruled_out"), [(None, True), (60.0, False)])
def test_what_was_not_reached_may_still_lie_inside_the_interval(low, ruled_out):
    """A difference that hovers below zero: not reached, but 2.5 % of its resamples cross by epoch 60."""
    module, summary = evidence({"status": "not reached", "low": low, "share": 0.3 if low else 0.0})
    x = module.crossing(summary, "c", "md4", "arm", "x1")
    assert (x.low, x.high, x.censored, x.ruled_out) == (low or 384.0, math.inf, True, ruled_out)


def test_an_arm_has_turned_since_the_epoch_chosen_on_tune():
    """Report happens to be lowest where tune is not: only from there would the rise be clear."""
    curve = {"epoch": [8, 40, 80, 160], "nll": [2.5, 2.40, 2.25, 2.44], "se": [0.05] * 4}
    module, summary = evidence(**curve, tune=[2.5, 2.30, 2.35, 2.36])
    assert not module.turned(summary, "c", "arm")
    assert module.turned(evidence(**curve, tune=[2.5, 2.4, 2.3, 2.36])[1], "c", "arm")
    assert module.chosen_epoch(summary, "c", "arm", [8, 80, 160]) == 80


@pytest.mark.parametrize(("expected", "lift", "seeds"), [("yes", 0.0, 3), ("no", 0.2, 3), ("undecided", 0.2, 1)])
def test_h4_asks_whether_the_mask_predictors_agree(report, tmp_path, expected, lift, seeds):
    knots = {"dfm_mask": {e: x + lift for e, x in KNOTS["md4"].items()}}
    arms = ["arm", "md4", "dfm_mask"]
    check(report, tmp_path, "H4", expected, arms=arms, knots=knots, seeds=range(seeds))


@pytest.mark.parametrize(
    ("expected", "uniform"),
    [
        ("yes", {1: 3.5, 60: 3.0, 300: 2.3, 384: 2.28}),
        ("no", {1: 3.5, 30: 2.2, 60: 2.6, 384: 3.0}),
        ("undecided", {1: 3.5, 40: 2.9, 200: 2.2, 384: 2.6}),
    ],
)
def test_h5_asks_whether_uniform_diffusion_crosses_and_turns_later(report, tmp_path, expected, uniform):
    knots = {"shuffle": uniform, "md4": {1: 3.5, 40: 2.9, 200: 2.2, 384: 2.6}}
    check(report, tmp_path, "H5", expected, arms=["arm", "md4", "shuffle"], knots=knots)


@pytest.mark.parametrize(
    ("expected", "left", "falls", "se"),
    [("yes", 0.2, 0.0, 0.02), ("no", 0.8, 0.0, 0.02), ("no", 0.2, 0.2, 0.02), ("undecided", 0.5, 0.0, 0.1)],
)
def test_h6_asks_what_a_temperature_removes(report, tmp_path, expected, left, falls, se):
    def measures(cell, arm, epoch):
        nll = level(KNOTS["arm"], epoch)
        rise = max(0.0, nll - 2.4) if epoch > 20 else 0.0
        accuracy = 0.4 - (falls if epoch > 20 else 0.0)
        return {"nll": (nll, se), "nll_calibrated": (nll - (1 - left) * rise, se), "top1": (accuracy, 0.01)}

    check(report, tmp_path, "H6", expected, measures=measures, arms=["arm", "md4"])


def test_h6_measures_the_rise_from_the_checkpoint_chosen_on_tune(report, tmp_path):
    def measures(cell, arm, epoch):
        nll = 2.2 if epoch == 4 else 2.4  # a lucky report split; tune is lowest at epoch 16
        return {"nll": (nll, 0.05), "nll_calibrated": (2.2, 0.02), "top1": (0.4, 0.01)}

    found = check(report, tmp_path, "H6", "undecided", measures=measures, arms=["arm", "md4"])
    assert "rises by only +0.000" in found["evidence"]


@pytest.mark.parametrize(("expected", "gap"), [("yes", -0.05), ("no", 0.05), ("undecided", 0.002)])
def test_h7_compares_the_exact_likelihood_with_its_bound(report, tmp_path, expected, gap):
    check(report, tmp_path, "H7", expected, configs={"md4": {"gap": gap}})


@pytest.mark.parametrize(("expected", "slope"), [("yes", 0.05), ("no", -0.05), ("undecided", 0.001)])
def test_h8_asks_whether_the_variance_over_orders_grows(report, tmp_path, expected, slope):
    def measures(cell, arm, epoch):
        return {"order_variance_train": (0.5 + slope * level({1: 0.0, 384: 6.0}, epoch), 0.02)}

    check(report, tmp_path, "H8", expected, measures=measures)


@pytest.mark.parametrize(("expected", "share"), [("yes", 0.9), ("no", 0.1), ("undecided", 0.5)])
def test_h9_asks_what_sixteen_orders_recover(report, tmp_path, expected, share):
    epochs = sorted({*KNOTS["arm"], *KNOTS["md4"]})
    mixed = {e: (1 - share) * level(KNOTS["arm"], e) + share * level(KNOTS["md4"], e) for e in epochs}
    orders = {"arm-orders": {"method": {"orders": {"_target_": "dlm.augment.Orders", "count": 16}}}}
    arms = ["arm", "md4", "arm-orders"]
    check(report, tmp_path, "H9", expected, arms=arms, knots={"arm-orders": mixed}, configs=orders)


@pytest.mark.parametrize(
    ("expected", "arm_begins", "md4_begins"), [("yes", 16, 128), ("no", 64, 64), ("undecided", 999, 999)]
)
def test_h10_asks_who_copies_first(report, tmp_path, expected, arm_begins, md4_begins):
    begins = {"arm": arm_begins, "md4": md4_begins, "arm-reg": 999}

    def measures(cell, arm, epoch):
        copied = 0.5 if epoch >= begins[arm] else 0.01
        return {"copied_50": (copied, 0.01), "natural_50": (0.01, 0.005)}

    check(report, tmp_path, "H10", expected, measures=measures)


def test_what_was_not_measured_is_undecided_and_says_what_it_needs(report, tmp_path):
    found = answers(report, planted(tmp_path, cells=ONE, arms=THREE, windows=8))
    for name in ("H2", "H6", "H8", "H9", "H10"):
        assert found[name]["answer"] == "undecided" and found[name]["evidence"].startswith("needs ")


def test_the_smoke_scale_decides_nothing(report, tmp_path):
    study = planted(tmp_path, cells=two(0.5), arms=THREE, windows=8, scale="smoke")
    assert {h["answer"] for h in answers(report, study).values()} == {"undecided"}


def test_cells_that_disagree_leave_a_hypothesis_undecided(report, tmp_path):
    def measures(cell, arm, epoch):
        sign = 1 if cell == "scarce-8k" else -1
        return {"order_variance_train": (1 + sign * 0.1 * level({1: 0.0, 384: 6.0}, epoch), 0.02)}

    found = check(report, tmp_path, "H8", "undecided", cells=two(0.2), measures=measures)
    assert "disagree" in found["evidence"]
