"""Minimal puzzles: a random full grid loses its givens in random order, all that can go.

The grid: a random first row, then the depth-first search of solve.py with random ties between cells and random
values.  This is not uniform over grids: at 4x4 the commonest of the 288 comes 1.8 times as often as the rarest.
The digging: the given v of a cell can go if the rest of the board, with v forbidden in that cell, has no solution;
one search for one solution instead of two.  A given that must stay does so for good, since fewer givens never have
fewer solutions; so one pass over the cells ends in a *minimal* puzzle: proper, and without any one given, not.
A puzzle with more givens is the same pass stopped early: easier, and no longer minimal.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dlm.data.sudoku.board import Boards, Shape
from dlm.data.sudoku.solve import read, search, space, tables
from dlm.data.sudoku.splitmix import keyed, shuffle
from dlm.errors import UserError

FEWEST = {4: 4, 6: 8, 9: 17}  # givens of any proper puzzle, by exhaustion (9x9: McGuire et al. 2014)
DRAWS = 10_000  # grids tried for one puzzle of few givens; at 9x9 one in 400 comes down to 21, hardly any to 20
NO_UNIT, ONE = np.int64(0), np.int64(1)  # typed, or Numba compiles the search once per constant


class Puzzles(NamedTuple):
    """Proper puzzles, 0 for a blank, and their solutions."""

    puzzle: Boards
    solution: Boards


@njit(cache=True, nogil=True)
def draw_grid(grid, random, space, tables):
    """Write a random full grid."""
    n = tables.units.shape[1]
    first = space.stack[0]
    for cell in range(len(first)):
        first[cell] = (1 << n) - 1
    for value in range(n):
        first[value] = 1 << value
        space.queue[value] = value
    shuffle(random, first[:n])
    _, depth = search(space, n, NO_UNIT, ONE, random, tables)
    read(space.stack[depth], grid)


@njit(cache=True, nogil=True)
def pencil(board, used, space, tables):
    """Write the givens, and for blanks the values that no unit `used` ([3 n] sets); how many cells are queued."""
    full = (1 << tables.units.shape[1]) - 1
    queued = 0
    for cell in range(len(board)):
        if board[cell]:
            space.stack[0, cell] = 1 << (board[cell] - 1)
            continue
        row, column, box = tables.units_of[cell]
        mask = full & ~(used[row] | used[column] | used[box])
        space.stack[0, cell] = mask
        if mask & (mask - 1) == 0:
            space.queue[queued] = cell
            queued += 1
    return queued


@njit(cache=True, nogil=True)
def implied(board, used, cell, bit, space, tables):
    """Whether the blank `cell` of a board with a solution that has `bit` there can hold nothing else."""
    queued = pencil(board, used, space, tables)
    others = space.stack[0, cell] & ~bit
    if others == 0:
        return True
    space.stack[0, cell] = others
    if others & (others - 1) == 0:
        space.queue[queued] = cell
        queued += 1
    every_unit = (1 << len(tables.units)) - 1
    found, _ = search(space, queued, every_unit, ONE, np.empty(0, dtype=np.uint64), tables)
    return found == 0


@njit(cache=True, nogil=True)
def dig(board, order, givens, space, tables):
    """Blank the cells of a full board in this order where the solution stays unique, down to `givens` of them."""
    n = tables.units.shape[1]
    used = np.full(len(tables.units), (1 << n) - 1)
    left = len(board)
    for cell in order:
        if left == givens:
            break
        value = board[cell]
        bit = 1 << (value - 1)
        board[cell] = 0
        for k in range(3):
            used[tables.units_of[cell, k]] ^= bit
        if implied(board, used, cell, bit, space, tables):
            left -= 1
        else:
            board[cell] = value
            for k in range(3):
                used[tables.units_of[cell, k]] ^= bit
    return left


@njit(cache=True, nogil=True)
def _generate(puzzles, solutions, seed, shard, givens, draws, space, tables):
    """Fill the rows; the first one that found no puzzle with so few givens, or -1."""
    random = np.empty(1, dtype=np.uint64)
    cells = np.arange(puzzles.shape[1]).astype(np.int16)
    for i in range(len(puzzles)):
        random[0] = keyed(seed, shard, np.uint64(i))
        order = cells.copy()
        for _ in range(draws):
            draw_grid(solutions[i], random, space, tables)
            shuffle(random, order)
            puzzles[i] = solutions[i]
            left = dig(puzzles[i], order, givens, space, tables)
            if givens == 0 or left == givens:
                break
        else:
            return i
    return -1


def check_givens(shape: Shape, givens: int | None) -> None:
    """Raises UserError for a number of givens that no proper puzzle has."""
    fewest = FEWEST[shape.size]
    if givens is not None and not fewest <= givens <= shape.cells:
        size = f"{shape.size}x{shape.size}"
        raise UserError(f"givens={givens}: a {size} puzzle with one solution has {fewest} to {shape.cells}")


def generate(shape: Shape, count: int, seed: int, shard: int, givens: int | None = None) -> Puzzles:
    """`count` minimal puzzles, or puzzles of exactly `givens` givens.

    Puzzle i depends on the shape, `givens` and (seed, shard, i) alone.  Where the digging of a grid ends above
    `givens` the next grid is drawn, so few givens cost many draws.  From the first grid the puzzle contains the
    minimal one of the same (seed, shard, i).

    Raises:
        UserError: for a number of givens that no proper puzzle has, or that none of `DRAWS` grids was brought to.
    """
    check_givens(shape, givens)
    puzzles, solutions = np.zeros((2, count, shape.cells), dtype=np.uint8)
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, shard & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    failed = _generate(puzzles, solutions, key[0], key[1], givens or 0, DRAWS, space(shape), tables(shape))
    if failed >= 0:
        raise UserError(f"givens={givens}: too few, digging at random did not reach them in {DRAWS:,} grids")
    return Puzzles(puzzles, solutions)
