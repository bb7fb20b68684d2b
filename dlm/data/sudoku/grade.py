"""The seven techniques of a human solver, and the order in which they fill a board.

The puzzles of Shah et al. 2024 come with the order in which a fixed list of seven techniques fills the blanks; a
puzzle that needs more (another technique, or search) is not in their training set.  This is that solver.  Every
blank keeps its marks, the values that no peer holds.  At each step the techniques are tried from the first on, and
the first that changes anything is applied, once:

    2 lone single       a cell with one mark (row by row)
    3 hidden single     a value with one place in a unit
    4 naked pair        two cells of a unit with the same two marks: no cell that sees both holds these
    5 naked triplet     three cells of a unit with three marks in all: the same
    6 locked candidate  the places of a value in a unit all see a cell outside: it does not hold the value
    7 XY wing           marks xy at a hinge that sees xz and yz: no cell that sees both pincers holds z
    8 unique rectangle  marks xy at three corners of a rectangle over two boxes: the fourth corner is neither x nor
                        y, or the two could be exchanged and the solution would not be unique

The numbers are those of the data set (0 is a given).  Units are searched rows first, then columns, then boxes;
cells in reading order.  All techniques but the last are deductions from the rules; the last also assumes a proper
puzzle.

`strict` copies the quirks that decide what is in that data set: a triplet is seen only if two of its cells have
equal marks, a locked candidate only with two places, a rectangle only if the fourth corner has both marks and
more, and the pincers of a wing are its first and last cell in reading order, which is wrong where one of them is
the hinge.  A board that this spoils is never completed: a proper puzzle counts as solved only if all units are
complete, and then it is its solution.  The fills of an *unsolved* board may be wrong under `strict`.  Without
`strict` each technique finds all that is described above and is sound: every fill is the solution's.  Neither mode
solves all that the other does, since a wing that errs in its reason may be right in its conclusion.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from numba import njit

from dlm.data.sudoku.board import Boards, Shape

TECHNIQUES = {
    0: "given",
    2: "lone single",
    3: "hidden single",
    4: "naked pair",
    5: "naked triplet",
    6: "locked candidate",
    7: "XY wing",
    8: "unique rectangle",
}
UNSOLVED = 9  # the level of a puzzle that the seven techniques do not solve


@dataclass(frozen=True)
class Grades:
    """What the solver did with each puzzle.  Column k of `order` and `technique` is the k-th fill."""

    solved: Bool[np.ndarray, " N"]
    order: Int16[np.ndarray, "N cells"]  # the cells in the order of their fills; -1 after the last
    technique: UInt8[np.ndarray, "N cells"]  # the hardest used since the fill before, a single included; 0 after
    level: UInt8[np.ndarray, " N"]  # the hardest used at all; UNSOLVED if the board is not complete
    board: UInt8[np.ndarray, "N cells"]  # with all fills

    def __len__(self) -> int:
        return len(self.level)


def grade(puzzles: Boards, shape: Shape, strict: bool = True) -> Grades:
    """Solves proper puzzles as a human would.

    A board whose givens clash, or that has no solution, ends as unsolved.  A puzzle with several solutions may be
    completed to one of them, since the unique rectangle takes uniqueness for granted.
    """
    boards = np.array(puzzles, dtype=np.uint8, order="C")
    if boards.ndim != 2 or boards.shape[1] != shape.cells or boards.max(initial=0) > shape.size:
        raise ValueError(f"{boards.shape} boards, not rows of {shape.cells} values 0..{shape.size}")
    order = np.full(boards.shape, -1, dtype=np.int16)
    technique = np.zeros(boards.shape, dtype=np.uint8)
    level = np.zeros(len(boards), dtype=np.uint8)
    sees = sight(shape)
    peers = peers_of(sees)
    box = np.ascontiguousarray(shape.places[:, 2])
    _grade(boards, np.ascontiguousarray(shape.units), peers, sees, box, strict, order, technique, level)
    return Grades(level != UNSOLVED, order, technique, level, boards)


def sight(shape: Shape) -> Bool[np.ndarray, "cells cells"]:
    """Whether two different cells share a unit."""
    sees = np.zeros((shape.cells, shape.cells), dtype=np.bool_)
    for unit in shape.units:
        sees[np.ix_(unit, unit)] = True
    np.fill_diagonal(sees, False)
    return sees


def peers_of(sees: Bool[np.ndarray, "cells cells"]) -> np.ndarray:
    """The cells that each cell sees, in reading order: [cells, P]."""
    return np.stack([np.flatnonzero(row) for row in sees])


@njit(cache=True, nogil=True)
def _grade(boards, units, peers, sees, box, strict, order, technique, level):
    marks = np.empty(boards.shape[1], dtype=np.int64)  # one bit per value
    for i in range(len(boards)):
        level[i] = _solve(boards[i], marks, units, peers, sees, box, strict, order[i], technique[i])


@njit(cache=True, nogil=True)
def _solve(board, marks, units, peers, sees, box, strict, order, technique):
    """The level; `board` is completed in place, as far as the techniques go."""
    size, filled = units.shape[1], 0
    hardest, since = 0, 0  # techniques used at all, and since the last fill
    pencil_marks(board, marks, peers, size)
    while True:
        used, cell = 2, lone_single(marks)
        if cell < 0:
            used, cell = 3, hidden_single(marks, units)
        if cell >= 0:
            hardest, since = max(hardest, used), max(since, used)
            bit, marks[cell] = marks[cell], 0
            while bit:
                board[cell] += 1
                bit >>= 1
            for peer in peers[cell]:
                marks[peer] &= ~(1 << (int(board[cell]) - 1))
            order[filled], technique[filled] = cell, since
            filled, since = filled + 1, 0
            continue
        used = eliminate(marks, units, peers, sees, box, strict, 8)
        if used == 0:
            break
        hardest, since = max(hardest, used), max(since, used)
    for unit in units:
        seen = 0
        for cell in unit:
            seen |= 1 << int(board[cell])
        if seen != (2 << size) - 2:
            return UNSOLVED
    return hardest


@njit(cache=True, nogil=True)
def pencil_marks(board, marks, peers, size):
    """Writes the values that no peer of a blank holds; a filled cell has no marks."""
    for cell in range(len(board)):
        marks[cell] = 0 if board[cell] else (1 << size) - 1
    for cell in range(len(board)):
        if board[cell]:
            for peer in peers[cell]:
                marks[peer] &= ~(1 << (int(board[cell]) - 1))


@njit(cache=True, nogil=True)
def eliminate(marks, units, peers, sees, box, strict, hardest):
    """Applies, once, the first technique of 4..`hardest` that changes any marks; its number, or 0."""
    if hardest >= 4 and naked_pair(marks, units, peers, sees):
        return 4
    if hardest >= 5 and naked_triplet(marks, units, peers, sees, strict):
        return 5
    if hardest >= 6 and locked_candidate(marks, units, peers, sees, strict):
        return 6
    if hardest >= 7 and xy_wing(marks, peers, sees, strict):
        return 7
    if hardest >= 8 and unique_rectangle(marks, box, units.shape[1], strict):
        return 8
    return 0


@njit(cache=True, nogil=True)
def _count(bits):
    count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


@njit(cache=True, nogil=True)
def _erase(marks, peers, sees, a, b, c, bits):
    """Takes `bits` from all cells that see a, b and c; whether any had one."""
    changed = False
    for cell in peers[a]:
        if marks[cell] & bits and (sees[b, cell] or b == a) and (sees[c, cell] or c == a):
            marks[cell] &= ~bits
            changed = True
    return changed


@njit(cache=True, nogil=True)
def lone_single(marks):
    for cell in range(len(marks)):
        if marks[cell] and marks[cell] & (marks[cell] - 1) == 0:
            return cell
    return -1


@njit(cache=True, nogil=True)
def hidden_single(marks, units):
    """The cell, whose marks are cut down to the value."""
    for unit in units:
        once, twice = 0, 0
        for cell in unit:
            twice |= once & marks[cell]
            once |= marks[cell]
        once &= ~twice
        if once:
            for cell in unit:
                if marks[cell] & once:
                    marks[cell] &= once
                    marks[cell] &= ~(marks[cell] - 1)  # two values with this one place: a spoiled board
                    return cell
    return -1


@njit(cache=True, nogil=True)
def naked_pair(marks, units, peers, sees):
    for unit in units:
        for i, a in enumerate(unit):
            if _count(marks[a]) == 2:
                for b in unit[i + 1 :]:
                    if marks[b] == marks[a] and _erase(marks, peers, sees, a, b, a, marks[a]):
                        return True
    return False


@njit(cache=True, nogil=True)
def naked_triplet(marks, units, peers, sees, strict):
    for unit in units:
        for i in range(len(unit)):
            a = marks[unit[i]]
            if a == 0 or _count(a) > 3:
                continue
            for j in range(i + 1, len(unit)):
                b = marks[unit[j]]
                if b == 0 or _count(a | b) > 3:
                    continue
                for k in range(j + 1, len(unit)):
                    c = marks[unit[k]]
                    if c == 0 or _count(a | b | c) != 3 or (strict and a != b and a != c and b != c):
                        continue
                    if _erase(marks, peers, sees, unit[i], unit[j], unit[k], a | b | c):
                        return True
    return False


@njit(cache=True, nogil=True)
def locked_candidate(marks, units, peers, sees, strict):
    places = np.empty(3, dtype=np.int64)
    for unit in units:
        tried = 0
        for first in unit:
            bits = marks[first] & ~tried  # values in the order in which they turn up
            tried |= bits
            while bits:
                bit = bits & ~(bits - 1)
                bits &= bits - 1
                count = 0
                for cell in unit:
                    if marks[cell] & bit:
                        if count < 3:
                            places[count] = cell
                        count += 1
                if count == 2 or (count == 3 and not strict):
                    last = places[count - 1]
                    if _erase(marks, peers, sees, places[0], places[1], last, bit):
                        return True
    return False


@njit(cache=True, nogil=True)
def _two_marks(marks):
    """The cells with two marks, in reading order."""
    pairs = np.empty(len(marks), dtype=np.int64)
    count = 0
    for cell in range(len(marks)):
        if _count(marks[cell]) == 2:
            pairs[count] = cell
            count += 1
    return pairs[:count]


@njit(cache=True, nogil=True)
def xy_wing(marks, peers, sees, strict):
    """Three cells with two marks each, three in all, one of which, the hinge, sees the two others."""
    pairs = _two_marks(marks)
    for i, a in enumerate(pairs):
        for j in range(i + 1, len(pairs)):
            b = pairs[j]
            if _count(marks[a] | marks[b]) != 3:
                continue
            for c in pairs[j + 1 :]:
                if marks[c] != marks[a] ^ marks[b] or (sees[a, b] and sees[b, c] and sees[a, c]):
                    continue  # in one unit: a naked triplet
                for hinge, p, q in ((b, a, c), (a, b, c), (c, a, b)):
                    if sees[hinge, p] and sees[hinge, q]:
                        if strict:
                            p, q = a, c
                        if _erase(marks, peers, sees, p, q, p, marks[p] & marks[q]):
                            return True
    return False


@njit(cache=True, nogil=True)
def _two_of(x, y, z):
    """Whether exactly two of three are equal."""
    return int(x == y) + int(y == z) + int(x == z) == 1


@njit(cache=True, nogil=True)
def unique_rectangle(marks, box, size, strict):
    """Three corners with the same two marks; strict: the fourth has both, and more."""
    pairs = _two_marks(marks)
    for i, a in enumerate(pairs):
        for j in range(i + 1, len(pairs)):
            b = pairs[j]
            if marks[b] != marks[a]:
                continue
            for c in pairs[j + 1 :]:
                if marks[c] != marks[a] or not _two_of(box[a], box[b], box[c]):
                    continue
                if not (_two_of(a // size, b // size, c // size) and _two_of(a % size, b % size, c % size)):
                    continue
                odd = ((a // size) ^ (b // size) ^ (c // size)) * size + ((a % size) ^ (b % size) ^ (c % size))
                shared = marks[odd] & marks[a]
                if shared and (not strict or (shared == marks[a] and marks[odd] != shared)):
                    marks[odd] &= ~shared
                    return True
    return False
