"""One board for all boards that are the same puzzle.

A puzzle stays the same puzzle under a new naming of the values, a permutation of the bands, of the rows within a
band, of the stacks, of the columns within a stack, and, where boxes are square, the exchange of rows and columns.
That is n! namings times 128 (4x4), 3,456 (6x6) or 3,359,232 (9x9) maps of the cells.  The canonical board is the
least of its class, read as one number in reading order with 0 for a blank.  Two boards are equivalent if and only
if their canonical boards are equal: a split without leaks keeps these disjoint.

The search goes row by row.  For a given map the least naming counts values as they first turn up, so a row is
known once the columns are ordered and the rows up to it chosen; what is greater than the best prefix is cut.
It is exact for every board, and slow only where almost nothing is given (an empty board cuts nothing).
"""

from itertools import permutations, product

import numpy as np
from jaxtyping import Int
from numba import njit

from dlm.data.sudoku.board import Boards, Shape


def canonical(boards: Boards, shape: Shape) -> Boards:
    """The least board of each board's class; puzzles and solutions alike."""
    boards = np.asarray(boards, dtype=np.uint8)
    if boards.ndim != 2 or boards.shape[1] != shape.cells or boards.max(initial=0) > shape.size:
        raise ValueError(f"{boards.shape} boards, not rows of {shape.cells} values 0..{shape.size}")
    squares = boards.reshape(-1, shape.size, shape.size)
    square_boxes = shape.box_rows == shape.box_cols
    views = np.stack([squares, squares.swapaxes(1, 2)] if square_boxes else [squares], axis=1)
    least = np.full(squares.shape, 255, dtype=np.uint8)
    _canonical(views, line_orders(shape.size, shape.box_cols), shape.box_rows, least)
    return least.reshape(-1, shape.cells)


def line_orders(size: int, width: int) -> Int[np.ndarray, "orders size"]:
    """All orders of `size` columns that keep the stacks of `width` columns together (or rows and bands)."""
    stacks = [list(permutations(range(first, first + width))) for first in range(0, size, width)]
    orders = [sum(picked, ()) for stack in permutations(stacks) for picked in product(*stack)]
    return np.array(orders, dtype=np.int64)


@njit(cache=True, nogil=True)
def _canonical(views, orders, box_rows, least):
    size = views.shape[2]
    names = np.zeros((size + 1, size + 1), dtype=np.uint8)  # of each value after so many rows; 0: none yet
    named = np.zeros(size + 1, dtype=np.int64)  # how many values have one
    chosen = np.zeros(size, dtype=np.int64)  # the row at each place
    for i in range(len(least)):
        for view in views[i]:
            for order in orders:
                _search(view, order, box_rows, names, named, chosen, least[i])


@njit(cache=True, nogil=True)
def _search(board, order, box_rows, names, named, chosen, least):
    """All orders of the rows, depth first; the rows chosen so far equal the first ones of `least`.

    A loop, not a recursion: recursive functions that come from the compiler's cache crash.
    """
    size = len(order)
    place, row, used = 0, 0, 0  # used: the set of the rows chosen
    while True:
        if row == size:
            if place == 0:
                return
            place -= 1
            used ^= 1 << chosen[place]
            row = chosen[place] + 1
            continue
        band = ((1 << box_rows) - 1) << (row - row % box_rows)
        begun = place % box_rows > 0  # then the row must be of the band that is used in part
        if not used >> row & 1 and (not begun or used & band):
            count = _lower(board, row, order, place, names, named[place], least)
            if count >= 0 and place + 1 < size:
                chosen[place] = row
                used |= 1 << row
                place, row = place + 1, 0
                named[place] = count
                continue
        row += 1


@njit(cache=True, nogil=True)
def _lower(board, row, order, place, names, named, least):
    """Lowers row `place` of `least` to the renamed row; the number of names then, or -1 if the row is greater."""
    size = len(order)
    for value in range(size + 1):
        names[place + 1, value] = names[place, value]
    for k in range(size):
        value = board[row, order[k]]
        if value and names[place + 1, value] == 0:
            named += 1
            names[place + 1, value] = named
        name = names[place + 1, value]
        if name > least[place, k]:
            return -1
        if name < least[place, k]:
            least[place, k] = name
            least[place, k + 1 :] = 255  # every prefix can be completed, so what follows is free again
            least[place + 1 :] = 255
    return named
