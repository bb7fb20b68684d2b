"""What the next fill takes: against a slow reference with sets, and against the solver that fills for itself."""

from itertools import combinations

import numpy as np
import pytest

from dlm.data.sudoku.board import SHAPES, parse
from dlm.data.sudoku.deduce import NOT_DEDUCIBLE, deducible
from dlm.data.sudoku.generate import generate
from dlm.data.sudoku.grade import grade, sight
from dlm.data.sudoku.solve import solve


def reference(board, shape):
    """The definition with sets of values, one technique after the other, nothing compiled or shared."""
    n, sees = shape.size, sight(shape)
    units = [list(map(int, unit)) for unit in shape.units]
    marks = [set() if v else set(range(1, n + 1)) - set(board[sees[c]].tolist()) for c, v in enumerate(board)]
    levels = np.zeros(len(board), dtype=int)

    def note(level, lone, hidden):
        for cell in np.flatnonzero((board == 0) & (levels == 0)).tolist():
            alone = any(
                any(cell in unit and sum(v in marks[c] for c in unit) == 1 for unit in units) for v in marks[cell]
            )
            if (lone and len(marks[cell]) == 1) or (hidden and alone):
                levels[cell] = level

    def erase(cells, values):
        """From all that see every one of `cells`."""
        hit = False
        for cell in range(len(board)):
            if all(sees[cell, c] for c in cells) and marks[cell] & values:
                marks[cell] -= values
                hit = True
        return hit

    def naked(size):
        for unit in units:
            for some in combinations([c for c in unit if marks[c]], size):
                union = set().union(*(marks[c] for c in some))
                if size == 2 and len({frozenset(marks[c]) for c in some}) > 1:
                    continue
                if len(union) == size and erase(some, union):
                    return True
        return False

    def locked():
        for unit in units:
            for value in range(1, n + 1):
                places = [c for c in unit if value in marks[c]]
                if len(places) in (2, 3) and erase(places, {value}):
                    return True
        return False

    def wing():
        pairs = [c for c in range(len(board)) if len(marks[c]) == 2]
        for hinge in pairs:
            for p, q in combinations([c for c in pairs if sees[hinge, c]], 2):
                three = marks[hinge] | marks[p] | marks[q]
                z = marks[p] & marks[q]
                if len(three) == 3 and len(z) == 1 and not z & marks[hinge] and erase((p, q), z):
                    return True
        return False

    def rectangle():
        box = shape.places[:, 2]
        for a, b in combinations(range(n), 2):
            for c, d in combinations(range(n), 2):
                corners = [a * n + c, a * n + d, b * n + c, b * n + d]
                if len({int(box[k]) for k in corners}) != 2:
                    continue
                for odd in corners:
                    rest = [marks[k] for k in corners if k != odd]
                    if len(rest[0]) == 2 and rest[0] == rest[1] == rest[2] and marks[odd] & rest[0]:
                        marks[odd] -= rest[0]
                        return True
        return False

    tools = {4: lambda: naked(2), 5: lambda: naked(3), 6: locked, 7: wing, 8: rectangle}
    note(2, True, False)
    note(3, False, True)
    for level in range(4, 9):
        while any(tools[k]() for k in range(4, level + 1)):
            pass
        note(level, True, True)
    levels[(board == 0) & (levels == 0)] = NOT_DEDUCIBLE
    return levels


def partly_solved(shape, count, rng):
    """Puzzles with a random share of their blanks filled in."""
    found = generate(shape, count, 3, 0)
    extra = rng.random(found.puzzle.shape) < rng.random((count, 1)) * 0.6
    return np.where(extra, found.solution, found.puzzle)


@pytest.mark.parametrize(("size", "count"), [(4, 60), (6, 40), (9, 12)])
def test_levels_are_the_reference_s(size, count):
    """Boards that need everything: the marks that are left do not depend on how they are searched."""
    shape = SHAPES[size]
    boards = partly_solved(shape, count, np.random.default_rng(size))
    found = deducible(boards, shape)
    for board, levels in zip(boards, found, strict=True):
        assert levels.tolist() == reference(board, shape).tolist(), board
    assert len(np.unique(found)) >= 5


@pytest.mark.parametrize("size", SHAPES)
def test_the_easiest_cell_is_the_solver_s_first_fill(size):
    shape = SHAPES[size]
    boards = partly_solved(shape, 300, np.random.default_rng(1))
    boards = boards[(boards == 0).any(axis=1)]
    levels = deducible(boards, shape)
    grades = grade(boards, shape, strict=False)
    easiest = np.where(levels == 0, 99, levels).min(axis=1)
    assert (easiest == np.where(grades.order[:, 0] >= 0, grades.technique[:, 0], NOT_DEDUCIBLE)).all()


def test_only_what_is_asked_is_answered_and_alike():
    shape, rng = SHAPES[9], np.random.default_rng(2)
    boards = partly_solved(shape, 100, rng)
    asked = rng.random(boards.shape) < 0.1
    whole, part = deducible(boards, shape), deducible(boards, shape, asked)
    assert (part == np.where(asked, whole, 0)).all() and (whole[boards > 0] == 0).all()
    assert (whole[boards == 0] >= 2).all() and (whole <= NOT_DEDUCIBLE).all()


def test_what_needs_another_fill_first_is_not_deducible():
    """The last cells of a row of singles: after the first the second is a single too, but not before."""
    shape = SHAPES[4]
    board = parse("1.......4...2..1")
    full = solve(board[None], shape)[0]
    levels = deducible(board[None], shape)[0]
    assert (levels == NOT_DEDUCIBLE).any()
    almost = np.where(np.arange(16) == 5, 0, full)
    assert deducible(almost[None].astype(np.uint8), shape)[0][5] == 2


def test_contradictory_boards_end():
    boards = np.random.default_rng(0).integers(0, 10, (200, 81)).astype(np.uint8)
    levels = deducible(boards, SHAPES[9])
    assert ((levels == 0) == (boards > 0)).all()
    with pytest.raises(ValueError, match="not rows of 81"):
        deducible(np.zeros((1, 16), dtype=np.uint8), SHAPES[9])
