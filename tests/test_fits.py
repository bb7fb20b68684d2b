"""Crossing laws, data multipliers and the fits of a whole study, planted and found again."""

import json
import math

import numpy as np
import pytest

from dlm.report.crossing import Crossing
from dlm.report.crossing_laws import BestLosses, Cell, _Line, crossing_cell, data_multiplier, fit_power_law, needed
from dlm.report.curve import Curve
from dlm.report.fits import MOST_EPOCHS, arm_points, fit_study, spread
from dlm.report.study import Run, Study

BUDGETS = np.array([1e6, 2e6, 4e6, 8e6, 16e6, 32e6])


def test_a_crossing_law_without_noise_is_exact():
    found = fit_power_law([Cell(u, 3e-3 * u**0.7) for u in BUDGETS])
    assert found.status == "fitted"
    assert (found.a, found.b) == (pytest.approx(3e-3, rel=1e-4), pytest.approx(0.7, rel=1e-6))
    assert found.low < 0.7 < found.high and found.high - found.low < 0.01


def test_the_interval_of_an_uncensored_law_is_that_of_linear_regression():
    rng = np.random.default_rng(2)
    x, y = np.log(BUDGETS), 1 + 0.7 * np.log(BUDGETS) + rng.normal(0, 0.3, 6)
    found = fit_power_law([Cell(u, math.exp(v)) for u, v in zip(BUDGETS, y, strict=True)])
    slope, level = np.polyfit(x, y, 1)
    rest = y - level - slope * x
    se = math.sqrt((rest**2).sum() / 4 / ((x - x.mean()) ** 2).sum())
    assert found.b == pytest.approx(slope, abs=1e-4)
    assert (found.high - found.low) / 2 == pytest.approx(2.776 * se, rel=0.02)  # Student's t, 4 degrees of freedom
    assert found.sigma == pytest.approx(math.sqrt((rest**2).mean()), rel=0.01)


def censored(rng, noise=0.4, limit=300.0):
    """Two cells per budget around 0.003 U^0.7; what would come after the limit is censored there."""
    values = [(u, 3e-3 * u**0.7 * math.exp(noise * rng.normal())) for u in np.repeat(BUDGETS, 2)]
    return [Cell(u, min(x, limit), "right" if x > limit else None) for u, x in values]


def test_leaving_out_censored_cells_biases_the_exponent_and_keeping_them_does_not():
    kept, dropped = [], []
    for trial in range(40):
        cells = censored(np.random.default_rng(trial), limit=200.0)
        kept.append(fit_power_law(cells).b)
        dropped.append(fit_power_law([c for c in cells if c.censored is None]).b)
    kept, dropped = (np.array([b for b in bs if b is not None]) for bs in (kept, dropped))
    error = kept.std(ddof=1) / math.sqrt(len(kept))
    assert abs(kept.mean() - 0.7) < 3 * error
    assert dropped.mean() < 0.6 and dropped.mean() < 0.7 - 3 * dropped.std(ddof=1) / math.sqrt(len(dropped))


@pytest.mark.slow
def test_the_interval_of_a_censored_law_covers():
    """300 laws of twelve cells, a third of them censored: 95 % to 3.3 standard errors, and 2 % for so few."""
    found = [fit_power_law(censored(np.random.default_rng(1000 + trial))) for trial in range(300)]
    covered = np.mean([(f.low is None or f.low <= 0.7) and (f.high is None or f.high >= 0.7) for f in found])
    assert abs(covered - 0.95) < 0.02 + 3.3 * math.sqrt(0.95 * 0.05 / 300)


def test_left_censored_cells_pull_down():
    cells = [Cell(u, 3e-3 * u**0.7, log_se=0.1) for u in BUDGETS[1:]]
    below = fit_power_law([Cell(BUDGETS[0], 10.0, "left"), *cells])  # the law says 47.5 there
    assert below.b > fit_power_law([Cell(BUDGETS[0], 60.0, "left"), *cells]).b + 0.02


def test_few_crossings_are_refused():
    few = fit_power_law([Cell(u, u) for u in BUDGETS[:3]])
    assert (few.status, few.b) == ("not identifiable", None) and "3 budgets" in few.why
    once = fit_power_law([Cell(1e6, 9.0), *(Cell(u, 300.0, "right") for u in BUDGETS[1:])])
    assert once.status == "not identifiable" and "1 of 6" in once.why and once.a is None
    assert fit_power_law([]).status == "not identifiable"


def test_two_crossings_use_their_own_errors():
    cells = [
        Cell(1e6, 50.0, log_se=0.05),
        Cell(2e6, 81.2, log_se=0.05),
        *(Cell(u, 40.0, "right") for u in BUDGETS[2:]),
    ]
    found = fit_power_law(cells)
    assert found.status == "fitted" and found.sigma == 0 and found.b == pytest.approx(0.7, abs=0.01)
    half = 1.96 * 0.05 * math.sqrt(2) / math.log(2)
    assert found.high - found.b == pytest.approx(half, rel=0.05)


def test_the_gradient_of_the_likelihood():
    cells = [Cell(1e6, 3.0, log_se=0.2), Cell(3e6, 9.0), Cell(4e6, 20.0, "right", 0.1), Cell(1e7, 2.0, "left")]
    line, at = _Line(cells, free_sigma=True), np.array([1.3, 0.4, -0.3])
    _, gradient = line.cost(at)
    for k in range(3):
        step = 1e-6 * np.eye(3)[k]
        assert gradient[k] == pytest.approx((line.cost(at + step)[0] - line.cost(at - step)[0]) / 2e-6, rel=1e-5)


def crossing(**fields):
    shared = {
        "kind": "X1", "process": "p", "baseline": "b", "status": "clear", "epoch": 40.0, "low": 30.0, "high": 50.0,
        "share": 1.0, "clear_epoch": 64.0, "observed_to": 256.0, "difference": 0.1, "se": 0.01, "flops": 4e9,
        "tokens": 1e6, "baseline_epoch": 20.0, "baseline_flops": 1e9, "windows": 9, "seeds": (1, 1), "notes": (),
        "observed_flops": 2.5e10,
    }  # fmt: skip
    return Crossing(**(shared | fields))


def test_crossings_become_cells():
    seen = crossing_cell(1e6, crossing(), "epoch")
    assert (seen.value, seen.censored) == (40.0, None)
    assert seen.log_se == pytest.approx(math.log(50 / 30) / 3.92)
    assert crossing_cell(1e6, crossing(high=None), "epoch").log_se == pytest.approx(2 * math.log(40 / 30) / 3.92)
    never = crossing(status="not reached", epoch=None, flops=None, low=None, high=None)
    assert crossing_cell(1e6, never, "epoch") == Cell(1e6, 256.0, "right")
    assert crossing_cell(1e6, never, "flops").value == 2.5e10
    nearly = crossing(status="not reached", epoch=None, flops=None, low=128.0, high=None)
    assert crossing_cell(1e6, nearly, "epoch") == Cell(1e6, 256.0, "right", 2 * math.log(2) / 3.92)
    assert crossing_cell(1e6, crossing(status="from the start", epoch=1.0), "epoch").to_json() == {
        "unique_tokens": 1e6, "value": 1.0, "censored": True, "side": "left", "log_se": 0.0
    }  # fmt: skip


def best(scale, se=0.0, budgets=BUDGETS):
    """Best losses 2 + (U / scale)^-0.3: `scale` times less data is needed than at scale one."""
    budgets = np.asarray(budgets, float)
    return BestLosses(budgets, 2 + (budgets * scale / 1e6) ** -0.3, np.full(len(budgets), se))


def test_a_planted_data_multiplier():
    found = data_multiplier(best(2.0, se=0.002), best(1.0, se=0.002))
    assert (
        found["status"] == "fitted" and len(found["points"]) == 5
    )  # the last budget's loss is beyond the baseline
    for point in found["points"]:
        assert point["multiplier"] == pytest.approx(2.0, rel=1e-6)  # 2 U is a budget of the baseline's
        assert point["low"] <= 2.0 and (point["high"] is None or point["high"] >= 2.0)
        assert point["baseline_unique_tokens"] == pytest.approx(2 * point["unique_tokens"], rel=1e-6)
    assert found["points"][2]["high"] / found["points"][2]["low"] < 1.2
    assert found["points"][4]["high"] is None


def test_multipliers_that_do_not_exist_are_refused():
    assert data_multiplier(best(100.0), best(1.0))["why"] == "no loss was reached by both"
    assert "it takes 2" in data_multiplier(best(1.0, budgets=[1e6]), best(1.0))["why"]
    rising = BestLosses(BUDGETS, np.linspace(2, 3, 6), np.zeros(6))
    refused = data_multiplier(best(1.0), rising)
    assert (refused["status"], refused["points"]) == ("not identifiable", [])


def test_interpolation_of_needed_text():
    unique, loss = np.array([1.0, 10.0, 100.0]), np.array([3.0, 2.0, 1.0])
    assert needed(unique, loss, 2.5) == pytest.approx(math.sqrt(10))
    assert needed(unique, loss, 3.5) == 0 and needed(unique, loss, 0.5) == math.inf


EPOCHS = np.array([0.5, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384])


def a_study(budgets=BUDGETS, branches=(), directory=None):
    """MD4 follows Muennighoff's law with E = 2, b = 0.3 and R_D = 15; ARM crosses it at the epoch 0.003 U^0.6."""
    plan = {
        "study": "s", "scale": "x", "runs": [],
        "cells": [{"cell": f"u{u:.0f}", "role": "scarce", "unique_tokens": u} for u in budgets],
        "arms": [{"arm": a, "label": a, "baseline": a == "arm"} for a in ("arm", "md4")],
    }  # fmt: skip
    difficulty = np.random.default_rng(0).normal(0, 0.2, 40)
    runs = []
    for cell in plan["cells"]:
        u = cell["unique_tokens"]
        for arm in ("arm", "md4"):
            for seed in (0, 1):
                drift = 0.001 * np.random.default_rng([int(u), seed, len(arm)]).normal()
                data = u / 1e6 * (1 - 15 * np.expm1(-(EPOCHS - 1) / 15))
                loss = 2 + data**-0.3 + (0.3 * np.log(EPOCHS / (0.003 * u**0.6)) if arm == "arm" else 0) + drift
                losses = loss[:, None] + difficulty
                curve = dict(
                    zip(("epochs", "tokens", "flops"), (EPOCHS, EPOCHS * u, EPOCHS * u * 6e6), strict=True)
                )
                name, cooled = f"{cell['cell']}-{arm}-{seed}", None
                if branches:
                    keep = np.isin(EPOCHS, branches)
                    cooled = Curve(name, seed, *(x[keep] for x in (*curve.values(), losses - 0.1, losses - 0.1)))
                found = Curve(name, seed, *curve.values(), losses, losses, cooled=cooled)
                record = {"params_non_embedding": 1_000_000, "run": name}
                runs.append(Run(name, cell["cell"], arm, seed, directory, {}, [{}], [], [], record, found))
    return Study(directory, plan, runs)


def test_the_fits_of_a_study():
    found = fit_study(a_study())
    assert found == json.loads(json.dumps(found))
    crossings = {entry["kind"]: entry for entry in found["crossing_laws"]}
    same = crossings["X1"]
    assert same["status"] == "fitted" and same["b"] == pytest.approx(0.6, abs=0.02)
    assert same["low"] <= 0.6 <= same["high"] and len(same["cells"]) == 6
    assert crossings["X2"]["unit"] == "FLOPs" and len(found["published"]) > 20
    laws = {(entry["law"], entry["arm"]): entry for entry in found["laws"]}
    assert len(laws) == 7 and laws["softq", None]["status"] == "not fitted"
    refused = laws["muennighoff", "md4"]
    assert refused["status"] == "not identifiable" and refused["why"] == "6 cells for 4 parameters; it takes 8"
    assert (refused["parameters"], refused["predicted"], refused["cells"]) == ({}, [], 6)
    (worth,) = found["data_multiplier"]
    assert (worth["status"], worth["losses"]) == ("fitted", "trunk") and worth["points"]


def test_a_fitted_law_lists_its_predictions():
    found = fit_study(a_study(np.geomspace(1e6, 1e8, 8)))
    law = next(entry for entry in found["laws"] if (entry["law"], entry["arm"]) == ("muennighoff", "md4"))
    assert (law["status"], law["losses"], law["cells"]) == ("fitted", "trunk", 8) and "one model size" in law[
        "form"
    ]
    assert law["parameters"]["R_D"]["value"] == pytest.approx(15, rel=0.03)
    assert law["parameters"]["b"]["value"] == pytest.approx(0.3, rel=0.03)
    assert law["parameters"]["R_D"]["low"] < law["parameters"]["R_D"]["high"] and law["loo_rmse"] < 0.01
    assert len(law["predicted"]) == law["points"] > 80
    observed, predicted, cell, epoch = law["predicted"][0]
    assert (cell, epoch) == ("u1000000", 1.0) and predicted == pytest.approx(observed, abs=0.01)


def test_points_are_cooled_values_where_every_cell_has_three():
    trunk, names, kind = arm_points(a_study(), "md4")
    assert kind == "trunk" and len(names) == 6 and trunk.epochs.min() == 1 and trunk.cells == 6
    assert np.bincount(trunk.cell).max() <= MOST_EPOCHS
    cooled, _, kind = arm_points(a_study(branches=(24, 96, 384)), "md4")
    assert kind == "cooled" and sorted(set(cooled.epochs)) == [24, 96, 384]
    assert cooled.loss[0] == pytest.approx(trunk.loss[trunk.epochs == 24][0] - 0.1)
    assert arm_points(a_study(branches=(24, 96)), "md4")[2] == "trunk"
    assert arm_points(a_study(), "nothing")[0] is None


def test_epochs_are_spread_evenly_in_log():
    assert spread(np.arange(1.0, 6)).tolist() == [1, 2, 3, 4, 5]
    few = spread(np.geomspace(1, 1000, 100))
    assert len(few) == MOST_EPOCHS and (few[0], few[-1]) == (1, pytest.approx(1000))
