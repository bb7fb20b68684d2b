"""How right an answer is, and where it goes wrong first, whatever format and order it was given in.

A fill is wrong if its value is not the solution's, or if it goes where nothing is to be filled: outside the board,
on a given, on a cell that an earlier fill has written.  An answer is right only if it is the one solution: another
grid that obeys all rules has changed a given.  The first error is the first step with a wrong fill.  Its kind is
what the cell would have taken at that moment, on the board as it stood *before* that step, which is still without
an error (dlm.data.sudoku.deduce); where several fills of one step are wrong, the least kind of them: the easiest.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from dlm.data.sudoku.board import Boards, Shape
from dlm.data.sudoku.deduce import NOT_DEDUCIBLE, deducible
from dlm.data.sudoku.formats import Fills
from dlm.data.sudoku.grade import TECHNIQUES
from dlm.data.task import NO_ERROR, Judgement

NO_BLANK_CELL = 1
ERROR_KINDS = {
    NO_ERROR: "none",
    NO_BLANK_CELL: "no blank cell",
    **{code: name for code, name in TECHNIQUES.items() if code},
    NOT_DEDUCIBLE: "not deducible",
}
NEVER = np.iinfo(np.int64).max
ROWS = 1 << 10  # answers whose boards are deduced from at once


class Course(NamedTuple):
    """How answers came about, by cell."""

    answer: Boards  # givens, and the first fill of each blank; 0 where none was
    at: Int[np.ndarray, "B cells"]  # the step of that fill; NEVER for givens and cells without one
    astray: Int[np.ndarray, " B"]  # the first step with a fill where nothing is to be filled, or NEVER
    strays: Int[np.ndarray, " B"]  # the number of such fills in that step

    def first_error(self, puzzle: Boards, solution: Boards) -> Int[np.ndarray, " B"]:
        """The first step with a wrong fill, or NEVER."""
        wrong = (puzzle == 0) & (self.answer != solution)
        return np.minimum(np.where(wrong, self.at, NEVER).min(axis=1), self.astray)


def course(puzzle: Boards, fills: Fills) -> Course:
    """Plays the fills, in the order of their steps; of one step, in the order of the slots."""
    rows = np.arange(len(puzzle))
    answer, at = puzzle.copy(), np.full(puzzle.shape, NEVER)
    astray, strays = np.full(len(puzzle), NEVER), np.zeros(len(puzzle), dtype=np.int64)
    written = puzzle > 0
    for k in np.argsort(fills.step, axis=1, kind="stable").T:
        made, step = fills.made[rows, k], fills.step[rows, k]
        cell, value = fills.cell[rows, k], fills.value[rows, k]
        fresh = made & (cell >= 0) & ~written[rows, cell]
        on, there = rows[fresh], cell[fresh]
        answer[on, there], at[on, there], written[on, there] = value[fresh], step[fresh], True
        stray = made & ~fresh
        astray[stray] = np.minimum(astray[stray], step[stray])
        strays += stray & (step == astray)
    return Course(answer, at, astray, strays)


def kinds(
    puzzle: Boards, found: Course, shape: Shape, last: Int[np.ndarray, " B"] | None = None
) -> UInt8[np.ndarray, "B cells"]:
    """What each filled cell took when it was filled (2..9); 0 for others, and for those filled after step `last`.

    After an error the board may contradict itself, and the kinds of what follows mean little.
    """
    asked = found.at < NEVER
    if last is not None:
        asked &= found.at <= last[:, None]
    kind = np.zeros(puzzle.shape, dtype=np.uint8)
    for first in range(0, len(puzzle), ROWS):
        some = slice(first, first + ROWS)
        row, cell = np.nonzero(asked[some])
        step = found.at[some][row, cell]
        moments, moment = np.unique(np.stack([row, step], axis=1), axis=0, return_inverse=True)
        when, at = moments[:, 1:], found.at[some][moments[:, 0]]
        before = np.where((puzzle[some][moments[:, 0]] > 0) | (at < when), found.answer[some][moments[:, 0]], 0)
        levels = deducible(before, shape, asked=at == when)
        kind[some][row, cell] = levels[moment.reshape(-1), cell]
    return kind


def judge(puzzle: Boards, solution: Boards, fills: Fills, shape: Shape) -> Judgement:
    """Solved, right cells and the first error of each answer, and the fills up to it by kind."""
    found = course(puzzle, fills)
    blank = puzzle == 0
    right = blank & (found.answer == solution)
    error_at = found.first_error(puzzle, solution)
    return judgement(
        found, blank, right, error_at, kinds(puzzle, found, shape, last=error_at), sorted(ERROR_KINDS)
    )


def judgement(
    found: Course,
    blank: Bool[np.ndarray, "B cells"],
    right: Bool[np.ndarray, "B cells"],
    error_at: Int[np.ndarray, " B"],
    kind: UInt8[np.ndarray, "B cells"],
    codes: list[int],
) -> Judgement:
    """What there is to say of answers to puzzles of any sort.

    Args:
        blank, right: the cells to answer, and those of them that are right.
        error_at: the step of the first error, or NEVER.
        kind: what each cell took, up to that step; 0 for others.
        codes: the kinds of errors in order, the hardest last.
    """
    never, hardest = error_at == NEVER, codes[-1]
    wrong_then = blank & ~right & (found.at == error_at[:, None]) & ~never[:, None]
    astray_then = (found.astray == error_at) & ~never
    easiest = np.where(wrong_then, kind, hardest).min(axis=1, initial=hardest)
    first_error = np.where(never, NO_ERROR, np.where(astray_then, NO_BLANK_CELL, easiest))
    counts = np.stack([(kind == code).sum(axis=1) if code else np.zeros(len(kind), int) for code in codes], 1)
    counts[:, codes.index(NO_BLANK_CELL)] = np.where(astray_then, found.strays, 0)
    cells = blank.sum(axis=1)
    solved = never & (right.sum(axis=1) == cells)
    return Judgement(solved, right.sum(axis=1), cells, first_error.astype(np.uint8), counts)


def trace(puzzle: Boards, solution: Boards, fills: Fills, shape: Shape) -> list[dict]:
    """How each answer came about, cell by cell, as plain JSON: see TaskSource.trace."""
    found = course(puzzle, fills)
    kind = kinds(puzzle, found, shape)
    step = np.where(found.at == NEVER, -1, found.at)
    return [
        {
            "size": shape.size,
            "puzzle": puzzle[i].tolist(),
            "solution": solution[i].tolist(),
            "answer": found.answer[i].tolist(),
            "step": step[i].tolist(),
            "kind": kind[i].tolist(),
        }
        for i in range(len(puzzle))
    ]
