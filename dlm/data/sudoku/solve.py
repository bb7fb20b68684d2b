"""All solutions of a board: depth-first search with one word of candidate bits per cell.

Every node first places what is forced: cells with one candidate left, and values with one cell left in a unit.
Where that stops it branches on a cell with the fewest candidates: its lowest candidate v first, then "not v".
The search is exhaustive, so a count below its limit is exact, and a board that contradicts itself counts 0.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from numba import njit

from dlm.data.sudoku.board import Boards, Shape
from dlm.data.sudoku.splitmix import below

BITS = np.array([bin(mask).count("1") for mask in range(1 << 9)], dtype=np.int64)


class Tables(NamedTuple):
    """What the search has to know of a shape."""

    units: np.ndarray  # [3 n, n] cells
    units_of: np.ndarray  # [cells, 3]: row, column and box
    unit_bits: np.ndarray  # [cells]: the same as a bit set
    peers: np.ndarray  # [cells, P]: the other cells of these units


class Space(NamedTuple):
    """What the search writes to; allocated once."""

    stack: np.ndarray  # [cells + 1, cells]: the candidates at every depth; bit v - 1 is value v
    queue: np.ndarray  # [cells]: cells that have come down to one candidate
    branch: np.ndarray  # [cells + 1]: the cell branched on at every depth


@cache
def tables(shape: Shape) -> Tables:
    units = shape.units.astype(np.int32)
    member = (units[:, None, :] == np.arange(shape.cells)[None, :, None]).any(axis=-1)  # [3 n, cells]
    units_of = np.array([np.flatnonzero(member[:, cell]) for cell in range(shape.cells)], dtype=np.int32)
    peers = [np.setdiff1d(units[units_of[cell]], [cell]) for cell in range(shape.cells)]
    unit_bits = (1 << units_of.astype(np.int64)).sum(axis=1)
    return Tables(units, units_of, unit_bits, np.array(peers, dtype=np.int32))


def space(shape: Shape) -> Space:
    cells = shape.cells
    stack = np.empty((cells + 1, cells), dtype=np.int16)
    return Space(stack, np.empty(cells, dtype=np.int32), np.empty(cells + 1, dtype=np.int32))


@njit(cache=True, nogil=True)
def propagate(cand, queue, queued, dirty, tables):
    """Place all that is forced; False at a contradiction.

    `queue[:queued]` holds the cells whose single candidate has yet to be taken from their peers; the bit set
    `dirty` the units that have lost candidates since they were last searched for values with one place left.
    """
    units, peers, unit_bits = tables.units, tables.peers, tables.unit_bits
    n = units.shape[1]
    full = (1 << n) - 1
    while True:
        while queued > 0:
            queued -= 1
            cell = queue[queued]
            bit = cand[cell]
            for k in range(peers.shape[1]):
                peer = peers[cell, k]
                rest = cand[peer]
                if rest & bit:
                    rest ^= bit
                    if rest == 0:
                        return False
                    cand[peer] = rest
                    dirty |= unit_bits[peer]
                    if rest & (rest - 1) == 0:
                        queue[queued] = peer
                        queued += 1
        unit = 0
        while dirty and queued == 0:
            while not (dirty >> unit) & 1:
                unit += 1
            dirty ^= 1 << unit
            once, twice = 0, 0
            for k in range(n):
                mask = cand[units[unit, k]]
                twice |= once & mask
                once |= mask
            if once != full:
                return False
            hidden = once & ~twice
            if hidden == 0:
                continue
            for k in range(n):
                cell = units[unit, k]
                mask = cand[cell]
                only = mask & hidden
                if only and mask & (mask - 1):
                    if only & (only - 1):
                        return False
                    cand[cell] = only
                    dirty |= unit_bits[cell]
                    queue[queued] = cell
                    queued += 1
            if queued:
                break
        if queued == 0:
            return True


@njit(cache=True, nogil=True)
def most_constrained(cand, random):
    """An undecided cell with the fewest candidates, the first or, given a random state, any; -1 if none is."""
    best, fewest, ties = -1, 99, 0
    for cell in range(len(cand)):
        mask = cand[cell]
        count = BITS[mask]
        if count == 1 or count > fewest:
            continue
        if count < fewest:
            best, fewest, ties = cell, count, 1
            if count == 2 and len(random) == 0:
                break
        elif len(random):
            ties += 1
            if below(random, ties) == 0:
                best = cell
    return best


@njit(cache=True, nogil=True)
def candidate(mask, random):
    """One bit of the mask: the lowest, or a random one given a random state."""
    if len(random):
        for _ in range(below(random, int(BITS[mask]))):
            mask &= mask - 1
    return mask & -mask


@njit(cache=True, nogil=True)
def search(space, queued, dirty, limit, random, tables):
    """The number of solutions up to `limit` below `space.stack[0]`, and the depth at which the last one lies."""
    stack, queue, branch = space.stack, space.queue, space.branch
    depth, found = 0, 0
    while True:
        if propagate(stack[depth], queue, queued, dirty, tables):
            cell = most_constrained(stack[depth], random)
            if cell >= 0:
                bit = candidate(stack[depth, cell], random)
                for k in range(stack.shape[1]):
                    stack[depth + 1, k] = stack[depth, k]
                stack[depth, cell] ^= bit
                branch[depth] = cell
                depth += 1
                stack[depth, cell] = bit
                queue[0], queued = cell, 1
                dirty = tables.unit_bits[cell]
                continue
            found += 1
            if found == limit:
                return found, depth
        depth -= 1
        if depth < 0:
            return found, 0
        cell = branch[depth]
        rest = stack[depth, cell]
        queue[0], queued = cell, int(rest & (rest - 1) == 0)
        dirty = tables.unit_bits[cell]


@njit(cache=True, nogil=True)
def start(board, space, tables):
    """Write the givens and all other candidates; how many cells are queued."""
    full = (1 << tables.units.shape[1]) - 1
    queued = 0
    for cell in range(len(board)):
        space.stack[0, cell] = full
        if board[cell]:
            space.stack[0, cell] = 1 << (board[cell] - 1)
            space.queue[queued] = cell
            queued += 1
    return queued


@njit(cache=True, nogil=True)
def read(cand, board):
    """Write the values of a decided state."""
    for cell in range(len(cand)):
        board[cell] = BITS[cand[cell] - 1] + 1


@njit(cache=True, nogil=True)
def _search_all(boards, limit, space, tables, counts, solutions):
    every_unit = (1 << len(tables.units)) - 1
    no_random = np.empty(0, dtype=np.uint64)
    for i in range(len(boards)):
        queued = start(boards[i], space, tables)
        counts[i], depth = search(space, queued, every_unit, limit, no_random, tables)
        if counts[i] == limit:
            read(space.stack[depth], solutions[i])


def _searched(boards: Boards, shape: Shape, limit: int) -> tuple[np.ndarray, np.ndarray]:
    boards = np.ascontiguousarray(boards, dtype=np.uint8)
    if boards.ndim != 2 or boards.shape[1] != shape.cells or boards.max(initial=0) > shape.size or limit < 1:
        raise ValueError(f"{boards.shape} boards of values 0..{shape.size} and a limit from 1 on, not {limit}")
    counts, solutions = np.zeros(len(boards), dtype=np.int64), np.zeros_like(boards)
    _search_all(boards, limit, space(shape), tables(shape), counts, solutions)
    return counts, solutions


def count_solutions(boards: Boards, shape: Shape, limit: int = 2) -> Int[np.ndarray, " N"]:
    """The number of solutions of each board, cut at `limit`; 1 is a proper puzzle."""
    return _searched(boards, shape, limit)[0]


def solve(boards: Boards, shape: Shape) -> UInt8[np.ndarray, "N cells"]:
    """A solution of each board, the only one of a proper puzzle; zeros where there is none."""
    return _searched(boards, shape, 1)[1]
