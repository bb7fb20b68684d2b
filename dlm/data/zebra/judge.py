"""How right an answer is, and where it goes wrong first, whatever format and order it was given in.

As for Sudoku (dlm.data.sudoku.judge): the first error is the first step with a wrong fill, and its kind is what
the cell would have needed at that moment (dlm.data.zebra.deduce), with all cells of earlier steps filled and none
of this step; where several fills of one step are wrong, the least kind of them.
"""

import numpy as np

from dlm.data.sudoku.formats import Fills
from dlm.data.sudoku.judge import NEVER, NO_BLANK_CELL, course, judgement
from dlm.data.task import NO_ERROR, Judgement
from dlm.data.zebra.deduce import KINDS, UNSOLVED, needed
from dlm.data.zebra.puzzle import Clues, Size, Solutions

ERROR_KINDS = {NO_ERROR: "none", NO_BLANK_CELL: "no blank cell", **KINDS, UNSOLVED: "not deducible"}


def judge(clues: Clues, solutions: Solutions, fills: Fills, size: Size) -> Judgement:
    """Solved, right cells and the first error of each answer, and the fills up to it by kind."""
    truth = solutions + 1
    found = course(np.zeros_like(truth), fills)
    right = found.answer == truth
    error_at = found.first_error(np.zeros_like(truth), truth)
    step = np.where(found.at <= error_at[:, None], found.at, -1)
    step = np.where(found.at == NEVER, -1, step).astype(np.int16)
    kind = needed(clues, solutions, step, size)
    return judgement(found, np.ones_like(right), right, error_at, kind, sorted(ERROR_KINDS))
