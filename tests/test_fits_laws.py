"""Planted laws of the loss come back, with noise inside their intervals; what cannot be told is refused."""

import numpy as np
import pytest

from dlm.report.fitting import HUBER, Problem, fit, huber
from dlm.report.laws import LAWS, ONE_SIZE, Points, optimal_epochs

EPOCHS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256.0])
SIZES = np.array([7e6, 4e7, 1.25e8, 6e8, 2.8e9])
BUDGETS = np.array([1e7, 3e7, 1e8, 3e8, 1e9])
PLANTED = {
    "muennighoff": {"E": 1.869, "A": 521, "a": 0.3527, "B": 1488, "R_D": 15.39, "R_N": 5.31},
    "quokka": {
        "A": 1535.23, "a": 0.42, "B": 54.21, "b": 0.13, "c": 1.49, "k": 0.40, "g": 254.35, "h": 0.39, "m": 0.55
    },
    "penalty": {"E": 1.7, "A": 406, "a": 0.34, "B": 410, "b": 0.28, "F": 2e-4, "p": 0.6, "q": 0.9},
}  # fmt: skip
PLANTED_ONE_SIZE = {
    "muennighoff": {"E": 2.4, "B": 1488, "b": 0.3527, "R_D": 15.39},
    "quokka": {"E": 0.6, "B": 54.21, "b": 0.13, "c": 1.49, "k": 0.40, "g": 0.02, "h": 0.39},
    "penalty": {"E": 2.4, "B": 410, "b": 0.28, "F": 3.0, "p": 0.35, "q": 0.9},
}
MANY = np.geomspace(1e7, 1e10, 16)


def planted(law, truth, sizes=SIZES, budgets=BUDGETS, epochs=EPOCHS, noise=0.0, seed=0):
    """Losses that follow a law of the published parameters exactly, or with normal noise on their logs."""
    size, unique, epoch = (x.ravel() for x in np.meshgrid(sizes, budgets, epochs, indexing="ij"))
    values = {name: np.array([[float(x)]]) for name, x in truth.items()}
    loss = law.predict(values, np.log(size), np.log(unique), epoch)[0]
    loss = loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))
    return Points(size, unique, epoch, loss, np.repeat(np.arange(len(sizes) * len(budgets)), len(epochs)))


def muennighoff_by_hand(n, u, e, E, A, B, a, R_D, R_N):
    """The law as it is published, with the compute-optimal size for U tokens."""
    u_n = min(n, (A / B) ** (1 / a) * u)
    size = u_n + u_n * R_N * (1 - np.exp(-(n / u_n - 1) / R_N))
    data = u + u * R_D * (1 - np.exp(-(e - 1) / R_D))
    return E + A / size**a + B / data**a


def quokka_by_hand(n, u, e, A, a, B, b, c, k, g, h, m):
    data = u * e**c * np.exp(-((max(0, e - 1) / (g * u**h / n**m)) ** k))
    return A / n**a + B / data**b


def penalty_by_hand(n, u, e, E, A, a, B, b, F, p, q):
    return E + A / n**a + B / (u * e) ** b + F * (n / u) ** p * (e - 1) ** q


BY_HAND = {"muennighoff": muennighoff_by_hand, "quokka": quokka_by_hand, "penalty": penalty_by_hand}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_its_published_formula_in_any_centre(name):
    law, truth = LAWS[name], PLANTED[name]
    points = planted(law, truth)
    expected = [
        BY_HAND[name](n, u, e, **truth)
        for n, u, e in zip(points.parameters, points.unique, points.epochs, strict=True)
    ]
    assert points.loss == pytest.approx(np.array(expected), rel=1e-12)
    centred = {name: np.array([[x]]) for name, x in truth.items()}  # natural() undoes the centring
    n0, u0 = points.centre
    back = law.natural(centred, n0, u0)
    away = {name: (float(x[0, 0]) if np.ndim(x) else x) for name, x in back.items()}
    log_n, log_u = np.log(points.parameters / n0), np.log(points.unique / u0)
    expected = [
        BY_HAND[name](n, u, e, **away)
        for n, u, e in zip(points.parameters, points.unique, points.epochs, strict=True)
    ]
    assert law.predict(centred, log_n, log_u, points.epochs)[0] == pytest.approx(np.array(expected), rel=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_a_planted_law_comes_back_to_one_per_cent(name):
    found = fit(LAWS[name], planted(LAWS[name], PLANTED[name]))
    assert found.status == "fitted" and found.loo_rmse < 1e-6
    for parameter, truth in PLANTED[name].items():
        assert found.parameters[parameter][0] == pytest.approx(truth, rel=0.01), parameter


@pytest.mark.parametrize("name", ONE_SIZE)
def test_one_model_size_leaves_the_part_in_unique_tokens_and_epochs(name):
    law = ONE_SIZE[name]
    found = fit(law, planted(law, PLANTED_ONE_SIZE[name], sizes=[1e8], budgets=MANY))
    assert found.status == "fitted", found.why
    for parameter, truth in PLANTED_ONE_SIZE[name].items():
        assert found.parameters[parameter][0] == pytest.approx(truth, rel=0.01), parameter


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_noise_stays_inside_the_intervals(name):
    """0.3 % noise on the loss; of all parameters at most one may lie outside its 95 % interval."""
    found = fit(LAWS[name], planted(LAWS[name], PLANTED[name], noise=0.003, seed=1))
    assert found.status == "fitted"
    outside = [
        p for p, truth in PLANTED[name].items() if not found.parameters[p][1] <= truth <= found.parameters[p][2]
    ]
    assert len(outside) <= 1, outside
    for parameter, truth in PLANTED[name].items():
        value, low, high = found.parameters[parameter]
        assert low <= value <= high and value == pytest.approx(truth, rel=0.3), parameter
    assert 0.002 < found.loo_rmse < 0.05


def test_few_cells_are_refused_without_a_number():
    law = LAWS["quokka"]
    found = fit(law, planted(law, PLANTED["quokka"], sizes=SIZES[:3], budgets=BUDGETS))
    assert found.status == "not identifiable" and found.why == "15 cells for 9 parameters; it takes 18"
    assert not found.parameters and found.predicted is None and found.loo_rmse is None


def test_what_one_epoch_cannot_tell_is_refused():
    """Without repetition R_D has no effect at all: as many cells as one likes do not help."""
    law = LAWS["muennighoff"]
    found = fit(law, planted(law, PLANTED["muennighoff"], epochs=np.array([1.0]), noise=0.001))
    assert found.status == "not identifiable" and not found.parameters


def test_an_over_fitted_penalty_without_over_fitting_is_refused():
    law = LAWS["penalty"]
    found = fit(law, planted(law, PLANTED["penalty"] | {"F": 1e-12}, noise=0.001))
    assert found.status == "not identifiable" and ("determine" in found.why or "finite" in found.why)


def test_one_size_does_not_carry_the_terms_in_it():
    law = LAWS["penalty"]
    found = fit(law, planted(law, PLANTED["penalty"], sizes=[1e8], budgets=MANY))
    assert found.status == "not identifiable" and not found.parameters


def test_outliers_do_not_move_the_fit():
    law, truth = ONE_SIZE["muennighoff"], PLANTED_ONE_SIZE["muennighoff"]
    points = planted(law, truth, sizes=[1e8], budgets=MANY)
    points.loss[::29] *= 1.2
    found = fit(law, points)
    assert found.parameters["R_D"][0] == pytest.approx(truth["R_D"], rel=0.01)


def test_the_optimum_of_quokka_is_where_its_law_is_lowest():
    truth = PLANTED["quokka"]
    for unique, size in ((1e7, 4e7), (1e9, 1e9)):
        e_p = truth["g"] * unique ** truth["h"] / size ** truth["m"]
        epochs = np.geomspace(1, 1e4, 20_001)
        lowest = epochs[np.argmin([quokka_by_hand(size, unique, e, **truth) for e in epochs])]
        assert optimal_epochs(truth["c"], truth["k"], e_p) == pytest.approx(lowest, rel=0.03)
    assert optimal_epochs(1.49, 0.40, 1.0) == pytest.approx(26.8, rel=0.01)


def test_huber_and_its_jacobian():
    assert huber(np.array([HUBER, -2 * HUBER])) == pytest.approx(np.array([0.5, 1.5]) * HUBER**2)
    law = LAWS["quokka"]
    problem = Problem(law, planted(law, PLANTED["quokka"], noise=0.01))
    z = np.array([[np.log(np.mean(c.starts)) if c.log else np.mean(c.starts) for c in law.coordinates]])
    forward = problem.jacobian(z, problem.residuals(z))[0]
    for k in range(law.size):
        step = 1e-5 * np.eye(law.size)[k]
        central = (problem.residuals(z + step) - problem.residuals(z - step))[0] / 2e-5
        assert forward[:, k] == pytest.approx(central, abs=1e-4)


def test_points_outside_the_laws_are_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        Points(*(np.array([x]) for x in (1e6, 1e6, 0.5, 2.0)), np.array([0]))
