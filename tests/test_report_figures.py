"""The frames behind the figures, and the figures of a planted study that has everything."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_study import KNOTS, level, planted

from dlm.errors import UserError
from dlm.report.figures_budgets import budgets_figure, lead_figure, repetition_figure
from dlm.report.figures_crossings import crossings_figure
from dlm.report.figures_laws import contour_figure, laws_figure
from dlm.report.figures_loss import compute_figure
from dlm.report.figures_measures import memorisation_figure, norms_figure, order_variance_figure, probes_figure
from dlm.report.figures_mechanism import mechanism_figure, orders_of
from dlm.report.fits import fit_study
from dlm.report.panels import Absent
from dlm.report.study import load_study
from dlm.report.summary import Summary, clustered_se, mean_and_se
from dlm.report.tables_crossings import fronts_table
from dlm.report.tables_measures import best_table, cost_table, laws_tables, memorisation_table, probes_table
from dlm.study.command import load

FOLDER = Path(__file__).parents[1] / "experiments" / "super-data-learners"
MECHANISM = ["arm-masked", "arm-orders-16"]
FITS = {
    "laws": [
        {"law": "muennighoff", "form": "", "arm": "md4", "status": "fitted", "why": "", "losses": "trunk",
         "parameters": {"R_D": {"value": 12.0, "low": 9.0, "high": 17.0}}, "loo_rmse": 0.03, "cells": 4,
         "points": 2, "predicted": [[2.5, 2.45, "scarce-8k", 4.0], [2.3, 2.31, "scarce-8k", 8.0]]},
        {"law": "quokka", "form": "", "arm": "md4", "status": "not identifiable",
         "why": "3 cells for 9 parameters",
         "losses": "trunk", "parameters": {}, "loo_rmse": None, "cells": 3, "points": 30, "predicted": []},
    ],
    "crossing_laws": [
        {"kind": "X1", "process": "md4", "baseline": "arm", "size": None, "unit": "epochs", "status": "fitted",
         "why": "", "a": 0.1, "b": 0.43, "low": 0.2, "high": None, "sigma": 0.1,
         "cells": [{"unique_tokens": 8192, "value": 40, "censored": False, "side": None, "log_se": 0.1}]},
    ],
    "data_multiplier": [
        {"process": "md4", "baseline": "arm", "size": None, "losses": "trunk", "status": "fitted", "why": "",
         "points": [{"unique_tokens": 8192, "multiplier": 1.4, "low": None, "high": 1.7}]},
    ],
    "published": [{"law": "muennighoff", "parameter": "R_D", "value": 15.39, "source": "a paper", "how": "paper",
                   "arm": "autoregressive"}],
}  # fmt: skip


def measures(cell, arm, epoch):
    x = math.log(epoch) / math.log(384)
    found = {
        "nll": (2.5, 0.02), "train_nll": (2.5 - x, 0.02), "weight_norm": (30 + 10 * x, None), "top1": (0.3, 0.01),
        "continuation": (0.25 + 0.5 * x, 0.05), "copied_13": (0.5 * x, 0.02), "natural_13": (0.04, 0.01),
        "copied_50": (0.2 * x, 0.02), "natural_50": (0.01, 0.005), "extraction": (x, 0.03),
    }  # fmt: skip
    return found | ({} if arm.startswith("arm") else {"order_variance_train": (0.1 * x, 0.01)})


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A study with branches, measures, fits, three sizes, two budgets and mechanism arms."""
    cells = [
        {"cell": f"8k-{n}", "role": "scarce", "unique_tokens": 8192, "size": n, "params": p, "shift": s}
        for n, p, s in (("small", 100_000, 0.2), ("medium", 300_000, 0.0), ("large", 900_000, -0.2))
    ] + [
        {
            "cell": "16k",
            "role": "scarce",
            "unique_tokens": 16384,
            "shift": 0.3,
            "params": 300_000,
            "size": "medium",
        }
    ]
    configs = {"arm-orders-16": {"method": {"orders": {"_target_": "x", "count": 16}}}}
    return planted(
        tmp_path_factory.mktemp("everything"), cells=cells, arms=["arm", "arm-reg", "md4", *MECHANISM],
        seeds=(0, 1), windows=16, measures=measures, fits=FITS, configs=configs, last={"arm": 128},
    )  # fmt: skip


@pytest.fixture(scope="module")
def summary(everything):
    report = load(FOLDER / "report.py")
    study = load_study(everything)
    return Summary(study, report.compute(study))


def csv(summary, name):
    return pd.read_csv(summary.study.directory / "figures" / f"{name}.csv")


def test_the_clustered_error_is_the_textbook_one_without_clusters_and_grows_with_them():
    x = np.random.default_rng(0).normal(size=400)
    plain = x.std(ddof=1) / 20
    assert clustered_se(x) == pytest.approx(plain)
    assert clustered_se(x, list(range(400))) == pytest.approx(plain)
    repeated = np.repeat(x[:100], 4)  # four equal windows per passage: 100 independent values, not 400
    assert clustered_se(repeated, np.repeat(np.arange(100), 4)) == pytest.approx(x[:100].std(ddof=1) / 10)
    assert clustered_se(repeated) < 0.6 * clustered_se(repeated, np.repeat(np.arange(100), 4))


def test_the_clustered_error_is_that_of_the_mean_of_unequal_passages():
    rng, errors, means = np.random.default_rng(1), [], []
    sizes = rng.integers(1, 9, 40)
    member = np.repeat(np.arange(40), sizes)
    for _ in range(800):
        losses = rng.normal(size=40)[member] + 0.3 * rng.normal(size=len(member))
        means.append(losses.mean())
        errors.append(clustered_se(losses, member))
    # the standard deviation of 800 means is known to 2.5 %; the sandwich estimate is a little low with 40 clusters
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)


def test_seeds_add_their_variance():
    stack = np.zeros((4, 1, 8)) + np.array([0.0, 1.0, 2.0, 3.0])[:, None, None]
    mean, se = mean_and_se(stack, None)
    assert mean[0] == 1.5 and se[0] == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2)


def test_the_mean_curve_is_the_planted_one(summary):
    c = summary.curves
    line = c[(c["cell"] == "8k-medium") & (c["arm"] == "md4")]
    truth = np.array([level(KNOTS["md4"], e) for e in line["epoch"]])
    assert np.all(np.abs(line["nll"] - truth) < 4 * line["se"])
    assert list(line["seeds"].unique()) == [2]
    assert line["best"].is_monotonic_decreasing


def test_the_best_is_chosen_on_tune_and_cooled_where_there_are_branches(summary):
    best = summary.best.set_index(["cell", "arm", "kind"])
    arm = best.loc[("8k-medium", "arm", "trunk")]
    assert arm.epoch in (16, 20, 24) and not arm.edge
    cooled = best.loc[("8k-medium", "md4", "cooled")]
    assert cooled.epoch == 384 and cooled.edge
    assert cooled.nll < best.loc[("8k-medium", "md4", "trunk")].nll


def test_a_difference_is_paired_and_positive_where_the_arm_is_ahead(summary):
    d = summary.difference("8k-medium", "md4", "arm")
    assert d["kind"] == "cooled" and d["value"] > 2 * d["se"]
    back = summary.difference("8k-medium", "arm", "md4")
    assert back["value"] == pytest.approx(-d["value"]) and back["se"] == pytest.approx(d["se"])
    parts = [
        summary.best.set_index(["cell", "arm", "kind"]).loc[("8k-medium", a, "cooled")].se for a in ("md4", "arm")
    ]
    assert d["se"] < 0.8 * math.hypot(*parts)  # windows differ more than arms do


def test_the_lead_figure_draws_the_paired_differences(summary):
    lead_figure(summary)
    row = csv(summary, "f13-lead").set_index(["cell", "arm"]).loc[("16k", "md4")]
    d = summary.difference("16k", "md4", "arm-reg")
    assert row.lead == pytest.approx(d["value"], rel=1e-4) and row.se == pytest.approx(d["se"], rel=1e-4)


def test_fronts_over_sizes_stand_in_figures_table_and_verdict(summary):
    """Three sizes at 8,192 tokens, one at 16,384: a front of each pair at the first budget alone."""
    fronts = {(f["unique_tokens"], f["process"], f["baseline"]): f for f in summary.results["fronts"]}
    assert list(fronts) == [(8192, "md4", "arm"), (8192, "md4", "arm-reg")]
    assert all(f["matched"]["sizes"] == ("small", "medium", "large") and f["cooled"] for f in fronts.values())
    compute_figure(summary)
    drawn = csv(summary, "f2-loss-compute").query("kind == 'front' and arm == 'md4'")
    assert drawn["tune"].is_monotonic_decreasing and drawn["flops"].is_monotonic_increasing
    crossings_figure(summary)
    over = csv(summary, "f3-crossings-budget").query("kind == 'X2 over sizes' and baseline == 'arm'")
    assert over["flops"].tolist() == pytest.approx([fronts[8192, "md4", "arm"]["matched"]["flops"]], rel=1e-5)
    (table,) = fronts_table(summary.results)
    assert [row[0] for row in table.rows] == ["8,192", "8,192"]
    said = [line for line in summary.results["verdict"] if "the best of 3 sizes" in line]
    assert len(said) == 2 and "MD4 against ARM: X2 " in said[0] and "against its best ever: " in said[0]


def test_repetition_is_measured_at_equal_tokens(summary):
    repetition_figure(summary)
    found = csv(summary, "f6-repetition")
    assert found["tokens"].nunique() == 1
    tokens = found["tokens"][0]
    md4 = found[found.arm == "md4"].set_index("cell")
    assert md4.loc["16k"].increase == 0
    expected = level(KNOTS["md4"], tokens / 8192) - level(KNOTS["md4"], tokens / 16384, 0.3)
    assert md4.loc["8k-medium"].increase == pytest.approx(expected, abs=4 * md4.loc["8k-medium"].se)


def test_every_figure_has_its_data(summary):
    made = [
        contour_figure,
        laws_figure,
        mechanism_figure,
        probes_figure,
        memorisation_figure,
        order_variance_figure,
    ]
    for figure in [f(summary) for f in (*made, norms_figure, budgets_figure)]:
        assert not isinstance(figure, Absent), figure
        assert len(csv(summary, figure.name)) and "<svg" in figure.svg
    assert csv(summary, "f5-size-epochs").groupby("arm")["parameters"].nunique().tolist() == [3, 3]
    assert set(csv(summary, "f9-mechanism")["arm"]) == {"arm", "arm-reg", "md4", *MECHANISM}
    copied = csv(summary, "f11-memorisation").query("row == 'copied_13'")
    assert copied["floor"].tolist() == [0.04] * len(copied)
    gap = csv(summary, "f14-norms").query("row == 'gap' and epoch == 256 and arm == 'md4'")
    assert gap["value"].tolist() == pytest.approx([math.log(256) / math.log(384)] * len(gap), rel=1e-4)
    probes = csv(summary, "f10-probes")
    assert probes[probes.row == "continuation"]["floor"].unique().tolist() == [0.25]


def test_the_number_of_orders_is_read_off_the_configuration():
    assert orders_of({"method": {"orders": {"_target_": "x", "count": 16}}}) == 16
    assert orders_of({"method": {"orders": {"count": "all"}}}) == math.inf
    assert orders_of({"method": {"orders": {"reversed": 0.5}}}) is None
    assert orders_of({"method": {}}) is None


def test_tables_say_what_was_fitted_and_what_was_not(summary):
    fitted, failed, published = laws_tables(summary)
    assert [row[3] for row in fitted.rows] == ["12 [9, 17]", "0.43 [0.2, –]"]
    assert "15.39 (paper)" in fitted.rows[0][4]
    assert failed.rows[0][0] == "quokka" and failed.rows[0][3] == "3 cells for 9 parameters"
    assert published.folded


def test_tables_hold_every_planned_arm_and_what_was_measured(summary):
    best = best_table(summary)
    assert len(best.rows) == 4 * 5 and best.head[-1] == "seeds"
    probes = probes_table(summary)
    assert any("chance 0.25" in name for name in probes.head)
    copied = memorisation_table(summary)
    assert any("(0.040)" in str(cell) for row in copied.rows for cell in row)
    assert len(cost_table(summary).rows) == 4 * 5


def test_what_a_study_lacks_is_listed_once_with_the_reason(tmp_path):
    report = load(FOLDER / "report.py")
    directory = planted(tmp_path, windows=8, seeds=(0,), branches=(), arms=["arm", "md4"])
    (directory / "runs" / "scarce-16k-md4-s0" / "record.json").unlink()
    page = report.main(directory).read_text()
    for number in ("F5", "F7", "F9", "F10", "F11", "F12", "F13", "F14", "T5", "T7"):
        assert page.count(f'<td class="l">{number}</td>') == 1
    assert "run stage=evaluate" in page and "not fitted yet: run stage=fit" in page
    assert 'chip bad">missing' in page
    drawn = {p.stem.split("-")[0] for p in (directory / "figures").glob("*.svg")}
    assert drawn == {"f1", "f2", "f3", "f4", "f6", "f8"}


def test_corrupt_fits_and_trials_are_named(tmp_path):
    report = load(FOLDER / "report.py")
    directory = planted(tmp_path, windows=8, seeds=(0,), arms=["arm", "md4"], branches=(), cells=[
        {"cell": "8k", "role": "scarce", "unique_tokens": 8192}])  # fmt: skip
    for name, content, said in (
        ("fits.json", "{", "fits.json:1: not JSON"),
        ("fits.json", "{}", "fits.json: has no list 'laws'"),
        ("tuning.json", "[]", "tuning.json: expected a JSON object"),
        ("tuning.json", '{"trials": 3}', "tuning.json: has no list of trials"),
        ("runs/8k-md4-s0/measures.jsonl", "{\n{}\n", "measures.jsonl:1: corrupt line"),
    ):
        (directory / name).write_text(content)
        with pytest.raises(UserError, match=said):
            report.main(directory)
        (directory / name).unlink()
    row = {"checkpoint": "epoch-8", "measure": "top1", "epoch": 8.0}  # without a value: as if not measured
    (directory / "runs" / "8k-md4-s0" / "measures.jsonl").write_text(json.dumps(row) + "\n")
    assert load_study(directory).probes("8k", "md4", "top1") == []


def test_tuning_trials_are_all_shown(tmp_path):
    report = load(FOLDER / "report.py")
    trials = [
        {
            "search": "arm",
            "weight_decay": w,
            "dropout": 0.1,
            "lr": 2e-3,
            "tune_nll": x,
            "epoch": 32,
            "observed_to": 64,
        }
        for w, x in ((0.1, 2.5), (1.0, 2.3), (3.0, None))
    ]
    directory = planted(tmp_path, windows=8, seeds=(0,), arms=["arm", "md4"])
    (directory / "tuning.json").write_text(json.dumps({"cell": "scarce-8k", "trials": trials}))
    table = report.tuning(load_study(directory))
    assert [row[1] for row in table.rows] == ["0.1", "1", "3"]
    assert ["chosen" in str(row[-1]) for row in table.rows] == [False, True, False]
    assert "missing" in str(table.rows[2][4])


def test_the_plan_says_where_the_trials_are(tmp_path):
    """A file by its whole path; a search's own runs beside the study, the unfinished ones as missing."""
    report = load(FOLDER / "report.py")
    directory = planted(tmp_path, windows=8, seeds=(0,), arms=["arm", "md4"], branches=())
    plan = json.loads((directory / "plan.json").read_text())
    shipped = tmp_path / "elsewhere" / "tuning-x.json"
    shipped.parent.mkdir()
    shipped.write_text(json.dumps({"trials": [{"search": "md4", "weight_decay": 1.0, "tune_nll": 2.0}]}))
    (directory / "plan.json").write_text(json.dumps(plan | {"tuning": str(shipped)}))
    table = report.tuning(load_study(directory))
    assert [row[:2] for row in table.rows] == [["md4", "1"]] and "tuning-x.json" in table.caption
    shipped.unlink()
    assert isinstance(report.tuning(load_study(directory)), Absent)
    (directory / "plan.json").write_text(json.dumps(plan | {"tuning": str(tmp_path / "tuning-own")}))
    own = planted(tmp_path / "own", windows=8, seeds=(0,), arms=["arm", "md4"], branches=(), cells=[
        {"cell": "8k", "role": "scarce", "unique_tokens": 8192}])  # fmt: skip
    (own / "runs" / "8k-md4-s0" / "record.json").unlink()
    own.rename(tmp_path / "tuning-own")
    table = report.tuning(load_study(directory))
    assert [row[0] for row in table.rows] == ["arm", "md4"]
    assert "chosen" in str(table.rows[0][-1]) and "missing" in str(table.rows[1][4])


def test_laws_fitted_to_other_runs_say_so(tmp_path):
    """fits.json names its runs: after more have come the page asks for stage=fit, and not before."""
    report = load(FOLDER / "report.py")
    directory = planted(tmp_path, windows=8, seeds=(0,), arms=["arm", "md4"], branches=(), cells=[
        {"cell": "8k", "role": "scarce", "unique_tokens": 8192}])  # fmt: skip
    found = fit_study(load_study(directory))
    assert len(found["runs"]) == 2
    for runs, said in ((found["runs"], False), (found["runs"][:1], True)):
        (directory / "fits.json").write_text(json.dumps(found | {"runs": runs}))
        text = report.main(directory).read_text()
        assert ("fitted to 1 runs, of 2 that are there now" in text) == said


def test_the_best_size_of_a_budget_is_chosen_on_tune(tmp_path):
    """Of two sizes, the one with the lower tune loss is drawn, even where the other is luckier on report."""
    cells = [
        {"cell": f"{u}-{size}", "role": "scarce", "unique_tokens": u, "size": size}
        for u in (8192, 16384)
        for size in ("small", "large")
    ]
    directory = planted(tmp_path, windows=8, seeds=(0,), arms=["arm", "md4"], branches=(), cells=cells)
    study = load_study(directory)
    report = load(FOLDER / "report.py")
    summary = Summary(study, report.compute(study))
    worse = summary.best["cell"].str.endswith("small")
    summary.__dict__["best"] = summary.best.assign(tune=np.where(worse, 2.0, 1.0), nll=np.where(worse, 1.0, 1.5))
    budgets_figure(summary)
    drawn = pd.read_csv(directory / "figures" / "f4-loss-budget.csv")
    drawn = drawn[drawn["panel"] == "best loss"]
    assert set(drawn["cell"]) == {"8192-large", "16384-large"} and set(drawn["nll"]) == {1.5}
