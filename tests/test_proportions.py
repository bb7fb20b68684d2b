"""Intervals of shares and their differences: published examples, coverage, what pairing and seeds do."""

import numpy as np
import pytest

from dlm.errors import UserError
from dlm.report.decoding import common_outcomes, pair
from dlm.report.proportions import (
    averaged,
    between_arms,
    over_seeds,
    paired,
    share,
    unpaired,
    wilson,
)


def vectors(both, first, second, neither):
    x = np.repeat([True, True, False, False], [both, first, second, neither])
    y = np.repeat([True, False, True, False], [both, first, second, neither])
    return x, y


def test_wilson_published():
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    for (r, n), expected in {
        (81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)
    }.items():  # fmt: skip
        assert wilson(r, n) == pytest.approx(expected, abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize(("solved", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_no_share(solved, n):
    with pytest.raises(UserError, match="is not a share"):
        wilson(solved, n)


def test_differences_published():
    """Newcombe 1998: 56/70 - 48/80 and 10/10 - 0/10 of different people; (36, 12, 2, 0) of the same ones."""
    assert unpaired((56, 70), (48, 80))[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert unpaired((10, 10), (0, 10))[:3] == pytest.approx((1.0, 0.6075, 1.0), abs=5e-5)
    assert paired(*vectors(36, 12, 2, 0))[:3] == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_equal_answers_have_an_interval():
    e = paired(*vectors(50, 0, 0, 0))
    assert e.value == 0 and e.low < 0 < e.high


def test_pairing_helps_where_answers_agree():
    agree, apart = paired(*vectors(60, 10, 5, 25)), unpaired((70, 100), (65, 100))
    assert agree.value == pytest.approx(apart.value)
    assert agree.high - agree.low < 0.7 * (apart.high - apart.low)


def test_unequal_puzzles_are_refused():
    with pytest.raises(UserError, match="3 and 2 puzzles cannot be paired"):
        paired([True] * 3, [True] * 2)


def test_coverage_of_the_paired_interval():
    """95 % within four standard errors of 2,000 draws, at a share near one and few puzzles."""
    rng = np.random.default_rng(0)
    truth, hits, draws = 0.9 - 0.8, 0, 2000
    for _ in range(draws):
        counts = rng.multinomial(60, [0.77, 0.13, 0.03, 0.07])
        e = paired(*vectors(*counts))
        hits += e.low <= truth <= e.high
    assert abs(hits / draws - 0.95) < 4 * (0.95 * 0.05 / draws) ** 0.5


def test_seeds_add_their_own_noise():
    same = over_seeds([share(80, 100)] * 3)
    assert same[:3] == pytest.approx(share(80, 100)[:3])
    apart = over_seeds([share(60, 100), share(80, 100), share(100, 100)])
    assert apart.value == pytest.approx(0.8) and apart.seeds == 3
    assert apart.value - apart.low > 4.3 * 0.2 / 3**0.5  # Student's quantile with two degrees of freedom
    assert over_seeds([share(80, 100)]) == share(80, 100)


def test_repeated_decodings_share_their_puzzles():
    e = averaged([share(80, 100), share(82, 100)])
    assert e.value == pytest.approx(0.81) and e.high - e.low > 0.9 * (share(80, 100).high - share(80, 100).low)


def test_arms_trained_apart():
    rng = np.random.default_rng(1)
    hard = rng.random(400)
    first, second = (np.stack([hard < p + s for s in (-0.02, 0, 0.02)]) for p in (0.8, 0.6))
    e = between_arms(first, second)
    assert e.low < 0.2 < e.high and e.seeds == 3 and e.puzzles == 400
    alone = between_arms(first[1], second[1])
    assert alone.high - alone.low < e.high - e.low


def test_decodings_of_unequally_many_puzzles_are_paired_by_their_numbers():
    """60 and 20 of a split of 200: every third of the 60 is one of the 20. None of 60 need be among 25."""
    solved = np.random.default_rng(0).random(200) < 0.5

    def row(n):
        found = solved[np.arange(n) * 200 // n]
        bits = np.packbits(found).tobytes().hex()
        return {"puzzles": n, "solved": int(found.sum()), "outcomes": bits}

    common = common_outcomes([row(60), row(20)])
    assert common is not None and (common[0] == common[1]).all() and len(common[0]) == 20
    assert pair(row(60), row(20)) == paired(common[0], common[0])
    assert common_outcomes([row(60), row(25)]) is None
    assert pair(row(60), row(25)).value == pytest.approx(row(60)["solved"] / 60 - row(25)["solved"] / 25)
