"""What the next fill of a board takes: the technique without which a cell cannot be filled at this moment.

A cell can be filled by technique k if it has one mark left, or a value has this one place left in a unit, once the
techniques up to k (dlm.data.sudoku.grade, the sound ones of its full mode) have taken away all marks that they can
while *no other cell is filled*.  So a cell that a human fills last, after fifty easy fills, is not deducible at
first: it says what the board says now, not what it will say later.

The techniques are applied lowest first, each until nothing more goes.  The hardest technique of the first fill of
`grade(strict=False)` is therefore the least of all cells.  Later fills of that solver may rest on marks that it
took away before, when a pair was still a pair; this looks at the board alone.
"""

import numpy as np
from jaxtyping import Bool, UInt8
from numba import njit

from dlm.data.sudoku.board import Boards, Shape
from dlm.data.sudoku.grade import UNSOLVED, eliminate, peers_of, pencil_marks, sight

NOT_DEDUCIBLE = UNSOLVED


def deducible(
    boards: Boards, shape: Shape, asked: Bool[np.ndarray, "N cells"] | None = None
) -> UInt8[np.ndarray, "N cells"]:
    """For every blank the least technique (2..8) by which it could be the next to be filled, 9 if there is none; 0
    for filled cells.

    Where the filled cells contradict each other the techniques are only words: the answer is some number 2..9.

    Args:
        asked: the cells to answer for, all others are 0: nothing is tried once these are known.
    """
    boards = np.ascontiguousarray(boards, dtype=np.uint8)
    if boards.ndim != 2 or boards.shape[1] != shape.cells or boards.max(initial=0) > shape.size:
        raise ValueError(f"{boards.shape} boards, not rows of {shape.cells} values 0..{shape.size}")
    wanted = boards == 0 if asked is None else np.ascontiguousarray(asked) & (boards == 0)
    sees = sight(shape)
    levels = np.zeros(boards.shape, dtype=np.uint8)
    box = np.ascontiguousarray(shape.places[:, 2])
    _deducible(boards, wanted, np.ascontiguousarray(shape.units), peers_of(sees), sees, box, levels)
    return levels


@njit(cache=True, nogil=True)
def _deducible(boards, wanted, units, peers, sees, box, levels):
    marks = np.empty(boards.shape[1], dtype=np.int64)
    for i in range(len(boards)):
        missing = 0
        for cell in range(len(marks)):
            missing += wanted[i, cell]
        if missing == 0:
            continue
        pencil_marks(boards[i], marks, peers, units.shape[1])
        for level in range(2, UNSOLVED):
            if level >= 4:
                changed = False
                while eliminate(marks, units, peers, sees, box, False, level):
                    changed = True
                if not changed:
                    continue
            if level != 3:
                missing -= _lone(marks, wanted[i], levels[i], level)
            if level != 2:
                missing -= _hidden(marks, units, wanted[i], levels[i], level)
            if missing == 0:
                break
        for cell in range(len(marks)):
            if wanted[i, cell] and levels[i, cell] == 0:
                levels[i, cell] = UNSOLVED


@njit(cache=True, nogil=True)
def _lone(marks, wanted, levels, level):
    """Marks the cells with one mark that have no level yet; how many."""
    found = 0
    for cell in range(len(marks)):
        if wanted[cell] and levels[cell] == 0 and marks[cell] and marks[cell] & (marks[cell] - 1) == 0:
            levels[cell] = level
            found += 1
    return found


@njit(cache=True, nogil=True)
def _hidden(marks, units, wanted, levels, level):
    """Marks the only place of a value in a unit, likewise."""
    found = 0
    for unit in units:
        once, twice = 0, 0
        for cell in unit:
            twice |= once & marks[cell]
            once |= marks[cell]
        once &= ~twice
        if once:
            for cell in unit:
                if marks[cell] & once and wanted[cell] and levels[cell] == 0:
                    levels[cell] = level
                    found += 1
    return found
