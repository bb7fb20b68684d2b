"""The seven techniques, the order of the fills, and the classes of equivalent boards."""

import numpy as np
import pytest

from dlm.data.sudoku import grade as techniques
from dlm.data.sudoku.board import SHAPES, is_solution, parse
from dlm.data.sudoku.canonical import canonical, line_orders
from dlm.data.sudoku.generate import generate
from dlm.data.sudoku.grade import TECHNIQUES, UNSOLVED, grade, sight
from dlm.data.sudoku.solve import count_solutions

NINE = SHAPES[9]
SEES = sight(NINE)
PEERS = np.stack([np.flatnonzero(row) for row in SEES])
UNITS = np.ascontiguousarray(NINE.units)
BOX = np.array([r // 3 * 3 + c // 3 for r in range(9) for c in range(9)])


def bits(values):
    return sum(1 << (v - 1) for v in values)


def position(known, absent=()):
    """Marks of an empty board, but for `known` {(row, column): values} and `absent` (value, the cells without)."""
    marks = np.full((9, 9), 511, dtype=np.int64)
    for value, cells in absent:
        for cell in cells:
            marks[cell] &= ~bits([value])
    for cell, values in known.items():
        marks[cell] = bits(values)
    return marks.reshape(-1)


def same(cells, values):
    return {cell: values for cell in cells}


def lost(before, after):
    """{(row, column): values} that went."""
    return {
        divmod(int(cell), 9): {v for v in range(1, 10) if (before[cell] & ~after[cell]) >> (v - 1) & 1}
        for cell in np.flatnonzero(before != after)
    }


def applied(technique, marks, *arguments):
    after = marks.copy()
    hit = technique(after, *arguments)
    assert hit == bool((after != marks).any())
    return lost(marks, after)


def scrambled(boards, shape, rng):
    """Each board under a random element of the whole group."""
    bands, stacks = line_orders(shape.size, shape.box_rows), line_orders(shape.size, shape.box_cols)
    result = []
    for board in boards.reshape(-1, shape.size, shape.size):
        board = board[rng.choice(bands)][:, rng.choice(stacks)]
        if shape.box_rows == shape.box_cols and rng.random() < 0.5:
            board = board.T
        result.append(np.concatenate([[0], rng.permutation(shape.size) + 1])[board].ravel())
    return np.array(result, dtype=np.uint8)


def all_grids_4():
    """The 4x4 solutions, by trying all values at every cell."""
    boards = np.zeros((1, 16), dtype=np.uint8)
    peers = sight(SHAPES[4])
    for cell in range(16):
        boards = np.repeat(boards, 4, axis=0)
        boards[:, cell] = np.tile(np.arange(1, 5), len(boards) // 4)
        boards = boards[~(boards[:, peers[cell]] == boards[:, [cell]]).any(axis=1)]
    return boards


def test_singles():
    """The lone single is the first in reading order; the hidden one the first of rows, columns, then boxes."""
    assert techniques.lone_single(position({(7, 1): [3], (2, 8): [5], (2, 3): [1, 5]})) == 2 * 9 + 8
    column = [(1, [(r, 4) for r in range(9) if r != 6])]
    row = [(2, [(8, c) for c in range(9) if c != 7])]
    marks = position({}, column)
    assert techniques.hidden_single(marks, UNITS) == 6 * 9 + 4 and marks[6 * 9 + 4] == bits([1])
    marks = position({}, column + row)
    assert techniques.hidden_single(marks, UNITS) == 8 * 9 + 7 and marks[8 * 9 + 7] == bits([2])
    assert techniques.hidden_single(position({}), UNITS) == -1


def test_naked_pair():
    """A pair in one row and box takes its values from the rest of both."""
    gone = applied(techniques.naked_pair, position({(4, 0): [2, 7], (4, 2): [2, 7]}), UNITS, PEERS, SEES)
    rest = {(4, c) for c in range(9)} | {(r, c) for r in (3, 4, 5) for c in (0, 1, 2)}
    assert gone == same(rest - {(4, 0), (4, 2)}, {2, 7})
    assert not applied(techniques.naked_pair, position({(4, 0): [2, 7], (5, 4): [2, 7]}), UNITS, PEERS, SEES)


def test_naked_triplet():
    """Three cells with three marks; `strict` sees them only if two are equal."""
    chain = position({(0, 8): [1, 2], (4, 8): [2, 3], (7, 8): [1, 3]})
    alike = position({(0, 8): [1, 2, 3], (4, 8): [2, 3], (7, 8): [1, 2, 3]})
    rest = same({(r, 8) for r in range(9)} - {(0, 8), (4, 8), (7, 8)}, {1, 2, 3})
    for strict in (True, False):
        assert applied(techniques.naked_triplet, alike, UNITS, PEERS, SEES, strict) == rest
    assert applied(techniques.naked_triplet, chain, UNITS, PEERS, SEES, False) == rest
    assert not applied(techniques.naked_triplet, chain, UNITS, PEERS, SEES, True)


def test_locked_candidate():
    """A value whose places in a row are of one box leaves the rest of the box; strict: two places, not three."""
    box = {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}
    for places in ({(4, 3), (4, 5)}, {(4, 3), (4, 4), (4, 5)}):
        marks = position({}, [(6, [(4, c) for c in range(9) if (4, c) not in places])])
        gone = same({cell for cell in box if cell[0] != 4}, {6})
        assert applied(techniques.locked_candidate, marks, UNITS, PEERS, SEES, False) == gone
        strict = applied(techniques.locked_candidate, marks, UNITS, PEERS, SEES, True)
        assert strict == (gone if len(places) == 2 else {})
    pointing = position({}, [(6, [cell for cell in box if cell[1] != 5])])
    gone = same({(r, 5) for r in range(9) if r not in (3, 4, 5)}, {6})
    assert applied(techniques.locked_candidate, pointing, UNITS, PEERS, SEES, False) == gone


def test_xy_wing():
    """Hinge 12 at the middle cell: both modes; at the first cell: strict takes it for a pincer, and errs."""
    middle = position({(0, 4): [1, 3], (4, 4): [1, 2], (4, 7): [2, 3]})
    for strict in (True, False):
        assert applied(techniques.xy_wing, middle, PEERS, SEES, strict) == {(0, 7): {3}}
    first = position({(0, 0): [1, 2], (0, 5): [1, 3], (7, 0): [2, 3]})
    assert applied(techniques.xy_wing, first, PEERS, SEES, False) == {(7, 5): {3}}
    wrong = applied(techniques.xy_wing, first, PEERS, SEES, True)
    assert set().union(*wrong.values()) == {2} and (7, 5) not in wrong and (3, 0) in wrong
    row = position({(0, 0): [1, 2], (0, 5): [1, 3], (0, 7): [2, 3]})
    assert not applied(techniques.xy_wing, row, PEERS, SEES, False)  # a naked triplet


def test_unique_rectangle():
    """The fourth corner over two boxes is neither value; over four boxes nothing follows."""
    two = {(1, 0): [4, 9], (1, 4): [4, 9], (2, 4): [4, 9], (2, 0): [4, 6, 9]}
    for strict in (True, False):
        assert applied(techniques.unique_rectangle, position(two), BOX, 9, strict) == {(2, 0): {4, 9}}
    half = position({**two, (2, 0): [4, 6]})
    assert applied(techniques.unique_rectangle, half, BOX, 9, False) == {(2, 0): {4}}
    assert not applied(techniques.unique_rectangle, half, BOX, 9, True)
    four = position({(1, 0): [4, 9], (1, 4): [4, 9], (5, 4): [4, 9], (5, 0): [4, 6, 9]})
    assert not applied(techniques.unique_rectangle, four, BOX, 9, False)


def test_a_known_order():
    """A puzzle that needs all seven techniques, with the order recorded once from an independent solver."""
    puzzle = parse(".8.7...6......2....56....195.1..4.7.......3.6.28.......35......6.....9......43.81")
    order = [23, 22, 21, 30, 45, 54, 28, 31, 52, 51, 53, 43, 64, 65, 41, 13, 62, 68, 49, 67, 4, 12, 5, 50, 48, 57]
    order += [58, 40, 39, 59, 61, 16, 8, 6, 0, 2, 11, 10, 9, 18, 24, 35, 17, 15, 33, 38, 37, 36, 60, 66, 70, 71]
    order += [72, 73, 74, 75, 78]
    grades = grade(puzzle[None], NINE)
    assert grades.order[0, : len(order)].tolist() == order and (grades.order[0, len(order) :] == -1).all()
    assert grades.solved[0] and grades.level[0] == 8 == grades.technique.max()


@pytest.fixture(scope="module")
def puzzles():
    return generate(NINE, 2000, 5, 0)


def test_singles_against_a_plain_solver(puzzles):
    """Until a puzzle first needs more, the order is that of a solver on sets that knows the two singles alone."""
    grades = grade(puzzles.puzzle[:40], NINE)
    for i, puzzle in enumerate(puzzles.puzzle[:40]):
        board, fills = puzzle.copy(), []
        while True:
            marks = [
                set() if v else set(range(1, 10)) - set(board[PEERS[c]].tolist()) for c, v in enumerate(board)
            ]
            found = [(c, *marks[c], 2) for c in range(81) if len(marks[c]) == 1]
            for unit in UNITS:
                for c in unit:
                    alone = marks[c].difference(*(marks[other] for other in unit if other != c))
                    found += [(int(c), v, 3) for v in alone]
            if not found:
                break
            cell, board[cell], technique = found[0]
            fills.append((cell, technique))
        mine = list(zip(grades.order[i].tolist(), grades.technique[i].tolist(), strict=True))
        assert mine[: len(fills)] == fills
        assert (grades.level[i] <= 3) == bool(board.all())


def test_fills_are_the_solutions(puzzles):
    """Full mode: every fill, of unsolved boards too.  Strict: some boards are spoiled, none of them is solved."""
    for strict in (False, True):
        grades = grade(puzzles.puzzle, NINE, strict)
        wrong = ((grades.board != puzzles.solution) & (grades.board > 0)).any(axis=1)
        assert wrong.any() == strict and not (wrong & grades.solved).any()
        assert (grades.solved == (grades.board == puzzles.solution).all(axis=1)).all()
        assert (grades.solved == (grades.level != UNSOLVED)).all() and set(grades.level) <= {*TECHNIQUES, UNSOLVED}
        filled = (grades.board > 0) & (puzzles.puzzle == 0)
        for order, technique, cells in zip(grades.order, grades.technique, filled, strict=True):
            assert sorted(order[order >= 0]) == np.flatnonzero(cells).tolist()
            assert ((technique >= 2) == (order >= 0)).all()
        level = np.where(grades.solved, grades.technique.max(axis=1), UNSOLVED)
        assert (level == grades.level).all()


def test_improper_boards():
    """A complete board needs nothing; clashing or impossible givens are unsolved; a wrong shape is refused."""
    full = generate(NINE, 1, 1, 0).solution
    clash = full.copy()
    clash[0, 0] = clash[0, 1]
    grades = grade(np.concatenate([full, clash, np.zeros_like(full)]), NINE)
    assert grades.solved.tolist() == [True, False, False] and grades.level.tolist() == [0, UNSOLVED, UNSOLVED]
    with pytest.raises(ValueError, match="rows of 16"):
        grade(full, SHAPES[4])
    with pytest.raises(ValueError, match="rows of 16"):
        canonical(full, SHAPES[4])


def test_shares(puzzles):
    """Minimal puzzles: 0.62 are solved if strict, 0.651 in full, 0.416 by singles; s.e. 0.011, 4 allowed."""
    check_shares(puzzles.puzzle, 0.044)


@pytest.mark.slow
def test_shares_of_many():
    """The same of 20,000: s.e. 0.0035, within 0.01."""
    check_shares(generate(NINE, 20_000, 0, 0).puzzle, 0.01)


def check_shares(boards, within):
    strict, full = grade(boards, NINE), grade(boards, NINE, strict=False)
    shares = [strict.solved.mean(), full.solved.mean(), (strict.level <= 3).mean()]
    assert np.abs(np.array(shares) - [0.62, 0.651, 0.416]).max() < within, shares


def test_small_boards():
    """4x4 puzzles need lone singles only; both modes solve 6x6 boards to their solutions."""
    four, six = generate(SHAPES[4], 500, 1, 0), generate(SHAPES[6], 500, 1, 0)
    assert (grade(four.puzzle, SHAPES[4]).level == 2).all()
    grades = grade(six.puzzle, SHAPES[6], strict=False)
    assert ((grades.board == six.solution) | (grades.board == 0)).all() and grades.solved.mean() > 0.5


def test_classes_of_4x4():
    """The 288 grids fall in 2 classes, the minimal puzzles in 36: 13, 22 and 1 with 4, 5 and 6 givens."""
    grids = all_grids_4()
    assert len(grids) == 288 and is_solution(grids, SHAPES[4]).all()
    assert len(np.unique(canonical(grids, SHAPES[4]), axis=0)) == 2
    classes = np.unique(canonical(generate(SHAPES[4], 10_000, 2, 0).puzzle, SHAPES[4]), axis=0)
    assert np.bincount((classes > 0).sum(axis=1))[4:].tolist() == [13, 22, 1]


def test_canonical_is_least():
    """4x4: no other element of the class is less, by all 128 maps and all 24 names."""
    orders = line_orders(4, 2)
    names = np.array([[0, *p] for p in np.ndindex(5, 5, 5, 5) if sorted(p) == [1, 2, 3, 4]])
    for board in generate(SHAPES[4], 10, 3, 0).puzzle:
        square = board.reshape(4, 4)
        maps = [view[rows][:, columns] for view in (square, square.T) for rows in orders for columns in orders]
        assert len(maps) == 128
        everything = names[:, np.array(maps)].reshape(-1, 16)
        assert min(map(tuple, everything)) == tuple(canonical(board[None], SHAPES[4])[0])


@pytest.mark.parametrize("size", SHAPES)
def test_canonical_is_invariant(size):
    """50 random elements of the whole group leave it as it is, and so does the map to it; it is as proper."""
    shape, rng = SHAPES[size], np.random.default_rng(size)
    for boards in generate(shape, 2, 4, 0):
        least = canonical(boards, shape)
        assert (canonical(least, shape) == least).all()
        assert (
            canonical(scrambled(np.repeat(boards, 50, axis=0), shape, rng), shape) == least.repeat(50, axis=0)
        ).all()
        assert ((least > 0).sum(axis=1) == (boards > 0).sum(axis=1)).all()
        assert (count_solutions(least, shape) == 1).all()
    if size == 9:
        assert (least[0] != least[1]).any()
        assert (least[:, :9] == np.arange(1, 10)).all()  # a solution begins with the values in order


def test_classes_of_6x6():
    """6x6 solutions fall in 49 classes; nearly every puzzle has its own."""
    found = generate(SHAPES[6], 2000, 6, 0)
    grids = np.unique(canonical(found.solution, SHAPES[6]), axis=0)
    assert 40 < len(grids) <= 49
    assert len(np.unique(canonical(found.puzzle, SHAPES[6]), axis=0)) > 1980
