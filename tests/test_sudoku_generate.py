"""Sudoku's compiled search against a slow reference and known boards, and the puzzles that it generates."""

import numpy as np
import pytest

from dlm.data.sudoku.board import SHAPES, is_solution, parse
from dlm.data.sudoku.generate import generate
from dlm.data.sudoku.solve import count_solutions, solve
from dlm.data.sudoku.splitmix import below, keyed, mixed, shuffle
from dlm.errors import UserError

CLASSIC = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
CLASSIC_SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
ESCARGOT = "100007090030020008009600500005300900010080002600004000300000010040000007007000300"
SEVENTEEN = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
SEVENTEEN_SOLVED = "693784512487512936125963874932651487568247391741398625319475268856129743274836159"


def reference_count(board, shape):
    """The number of solutions by trying every value in the first blank, in plain Python."""
    n, board = shape.size, list(map(int, board))
    peers = [{int(p) for unit in shape.units if cell in unit for p in unit} - {cell} for cell in range(n * n)]
    if any(board[c] and board[c] == board[p] for c in range(n * n) for p in peers[c]):
        return 0

    def below(cell):
        while cell < n * n and board[cell]:
            cell += 1
        if cell == n * n:
            return 1
        total, taken = 0, {board[p] for p in peers[cell]}
        for value in set(range(1, n + 1)) - taken:
            board[cell] = value
            total += below(cell + 1)
        board[cell] = 0
        return total

    return below(0)


def blanked(text, *cells):
    return "".join("0" if i in cells else c for i, c in enumerate(text))


def changed(text, cell, value):
    return text[:cell] + str(value) + text[cell + 1 :]


def count(text, limit=2):
    board = np.array([[int(c) for c in text]], dtype=np.uint8)
    return int(count_solutions(board, SHAPES[int(len(text) ** 0.5)], limit)[0])


@pytest.mark.parametrize("size, blanks, boards", [(4, (4, 13), 300), (6, (8, 19), 100)])
def test_counts_equal_those_of_a_slow_reference(size, blanks, boards):
    """Grids with random blanks, a third of them with one given changed: no, one and many solutions all occur."""
    shape, rng = SHAPES[size], np.random.default_rng(0)
    tried = generate(shape, boards, seed=11, shard=0).solution.copy()
    for i, board in enumerate(tried):
        board[rng.permutation(shape.cells)[: rng.integers(*blanks)]] = 0
        if i % 3 == 0:
            board[rng.choice(np.flatnonzero(board))] = rng.integers(1, size + 1)
    expected = np.array([reference_count(board, shape) for board in tried])
    assert (expected == 0).any() and (expected == 1).any() and (expected > 2).any()
    assert np.array_equal(count_solutions(tried, shape, limit=1 << 40), expected)
    assert np.array_equal(count_solutions(tried, shape), expected.clip(max=2))
    found = solve(tried, shape)
    assert np.array_equal(is_solution(found, shape), expected > 0)
    assert not found[expected == 0].any()
    assert np.array_equal(found[expected > 0] * (tried > 0)[expected > 0], tried[expected > 0])


@pytest.mark.parametrize(
    "text, limit, solutions",
    [
        ("0" * 16, 1000, 288),  # all 4x4 grids
        ("0" * 36, 1000, 1000),
        ("0" * 81, 1000, 1000),
        ("1234" + "0" * 12, 100, 12),  # 288 / 4!
        ("1234" + "34" + "0" * 10, 100, 6),
        ("1230" + "0004" + "0" * 8, 2, 0),  # a cell without candidates
        ("11" + "0" * 14, 2, 0),
        ("100001" + "0" * 30, 2, 0),
        ("123000" + "000400" + "000000" * 4, 10, 0),  # no place for 4 in the first row
        ("123000" + "000100" + "000000" * 4, 10, 10),
        ("123450" + "000006" + "0" * 24, 2, 0),
        (CLASSIC, 10, 1),
        (ESCARGOT, 10, 1),
        (SEVENTEEN, 10, 1),
        (CLASSIC_SOLVED, 10, 1),
        (changed(CLASSIC_SOLVED, 0, 1), 2, 0),  # full and wrong
        (changed(CLASSIC, 2, 1), 2, 0),  # 1 clashes with no given there, but the solution has 4
        (blanked(CLASSIC_SOLVED, 3, 4, 30, 31), 10, 2),  # 6 7 / 7 6
        (blanked(CLASSIC_SOLVED, 33, 35, 42, 44), 10, 1),  # 4 3 / 7 1
    ],
)
def test_known_counts(text, limit, solutions):
    assert count(text, limit) == solutions


def test_a_rectangle_of_two_values_has_two_solutions():
    """1 3 / 3 1 in one band and two stacks: swapping them is the other solution."""
    corners = [9 * row + column for row in (3, 4) for column in (5, 8)]
    assert [CLASSIC_SOLVED[cell] for cell in corners] == ["1", "3", "3", "1"]
    assert count(blanked(CLASSIC_SOLVED, *corners), 10) == 2


@pytest.mark.parametrize("text, solution", [(CLASSIC, CLASSIC_SOLVED), (SEVENTEEN, SEVENTEEN_SOLVED)])
def test_known_solutions(text, solution):
    assert np.array_equal(solve(parse(text)[None], SHAPES[9])[0], parse(solution))


def test_boards_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="boards"):
        solve(np.zeros((1, 16), dtype=np.uint8), SHAPES[9])
    with pytest.raises(ValueError, match=r"values 0\.\.4"):
        solve(np.full((1, 16), 5, dtype=np.uint8), SHAPES[4])


@pytest.mark.parametrize("size, puzzles", [(4, 100), (6, 100), (9, 30)])
def test_puzzles_are_proper_and_minimal(size, puzzles):
    """One solution, the one stored; without any one of its givens, more than one."""
    shape = SHAPES[size]
    puzzle, solution = generate(shape, puzzles, seed=1, shard=2)
    assert is_solution(solution, shape).all()
    assert np.array_equal(puzzle, solution * (puzzle > 0))
    assert (count_solutions(puzzle, shape) == 1).all()
    row, cell = np.nonzero(puzzle)
    without = puzzle[row]
    without[np.arange(len(row)), cell] = 0
    assert (count_solutions(without, shape) == 2).all()


@pytest.mark.parametrize("size", SHAPES)
def test_a_puzzle_is_a_function_of_seed_shard_and_index(size):
    shape = SHAPES[size]
    puzzle, solution = generate(shape, 50, seed=5, shard=1)
    fewer = generate(shape, 20, seed=5, shard=1)
    assert np.array_equal(fewer.puzzle, puzzle[:20]) and np.array_equal(fewer.solution, solution[:20])
    for seed, shard in ((5, 0), (6, 1), (1, 5)):
        other = generate(shape, 50, seed=seed, shard=shard)
        assert (other.solution != solution).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("size, givens", [(4, 8), (6, 18), (9, 30), (9, 36)])
def test_more_givens_are_the_minimal_puzzle_and_others(size, givens):
    shape = SHAPES[size]
    minimal, solution = generate(shape, 50, seed=3, shard=0)
    puzzle, same = generate(shape, 50, seed=3, shard=0, givens=givens)
    assert np.array_equal(same, solution)
    assert ((puzzle > 0).sum(axis=1) == givens).all()
    assert np.array_equal(puzzle, solution * (puzzle > 0))
    assert (puzzle > 0)[minimal > 0].all()


def test_few_givens_take_other_grids():
    """At 9x9 one minimal puzzle in 27 has 22 givens or fewer."""
    puzzle, solution = generate(SHAPES[9], 10, seed=3, shard=0, givens=22)
    assert ((puzzle > 0).sum(axis=1) == 22).all()
    assert np.array_equal(solve(puzzle, SHAPES[9]), solution)


@pytest.mark.parametrize("size, givens", [(4, 3), (4, 17), (6, 7), (6, 37), (9, 16), (9, 82), (9, 0), (9, -1)])
def test_an_impossible_number_of_givens_is_refused(size, givens):
    with pytest.raises(UserError, match=f"givens={givens}: a {size}x{size} puzzle"):
        generate(SHAPES[size], 1, seed=0, shard=0, givens=givens)


def test_a_number_of_givens_out_of_reach_is_refused(monkeypatch):
    monkeypatch.setattr("dlm.data.sudoku.generate.DRAWS", 20)
    with pytest.raises(UserError, match="givens=17: too few"):
        generate(SHAPES[9], 1, seed=0, shard=0, givens=17)


@pytest.mark.parametrize(
    "size, puzzles, mean, tolerance", [(4, 4000, 4.312, 0.04), (6, 4000, 10.08, 0.06), (9, 2000, 24.37, 0.1)]
)
def test_mean_number_of_givens(size, puzzles, mean, tolerance):
    """Against means over 20,000, 20,000 and 60,000 puzzles; s.e. 0.0075, 0.012, 0.025 (seed 4), 4 to 5 allowed."""
    puzzle = generate(SHAPES[size], puzzles, seed=4, shard=0).puzzle
    assert abs((puzzle > 0).sum(axis=1).mean() - mean) < tolerance


def test_every_4x4_grid_is_drawn():
    """288 grids in 20,000 draws, the rarest 49 +- 7 times (0.71 of the mean; at least 23 wanted); first rows are
    uniform: each of 24 comes 833 +- 28 times (seed 8; 4.5 s.e. allowed)."""
    grids = generate(SHAPES[4], 20_000, seed=8, shard=0, givens=16).solution
    times = np.unique(grids, axis=0, return_counts=True)[1]
    assert len(times) == 288 and times.min() > 20_000 / 288 / 3
    rows = np.unique(grids[:, :4], axis=0, return_counts=True)[1]
    assert len(rows) == 24 and np.abs(rows - 20_000 / 24).max() < 127


def test_splitmix():
    """The generator's published first outputs for seeds 0 and 1234567."""
    step = 0x9E3779B97F4A7C15
    assert int(mixed(np.uint64(step))) == 0xE220A8397B1DCDAF
    assert int(mixed(np.uint64((1234567 + step) % (1 << 64)))) == 6457827717110365317


def test_shuffle_is_uniform():
    """24 orders of 4 items in 24,000 draws: 1,000 +- 31 each (4.5 s.e. allowed)."""
    state = np.array([keyed(np.uint64(0), np.uint64(0), np.uint64(0))], dtype=np.uint64)
    seen = {}
    for _ in range(24_000):
        items = np.arange(4)
        shuffle(state, items)
        seen[tuple(items.tolist())] = seen.get(tuple(items.tolist()), 0) + 1
    assert len(seen) == 24 and max(abs(n - 1000) for n in seen.values()) < 140
    assert {below(state, 3) for _ in range(100)} == {0, 1, 2}
