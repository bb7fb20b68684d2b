"""The order in which clues decide the cells, and how many of them each cell needs at once.

A solver looks at what is filled in already, and at as few clues as it can. What it needed for a cell is the cell's
kind:

    2 elimination   no clue: the value has one house left, or the house one value
    3 one clue      and elimination, until nothing more follows
    4 two clues     the same, going back and forth between the two
    5 three clues
    6 more clues    all clues together, each still used by itself
    9 not deducible: it takes a guess, or an argument about cases

It remembers only filled cells, no marks, so a cell's kind depends on what is filled in and on nothing else. At
each step it takes the lowest kind that decides any cell; of equal sets of clues the first in the order in which
they are written; of several cells that a set decides, the first of its own items, or else the first row by row.
One cell is filled at a time.

That is the solver of Shah et al. 2024 (google-research, zebra_puzzle_generator) in its order of trials:
elimination, then single clues, pairs, triples. Theirs tries the clues of a set one after the other in every order
and keeps the marks of sets that decided a cell; here a set is used until nothing more follows, and `more clues` is
ours.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, UInt8
from numba import njit

from dlm.data.zebra.puzzle import NO_CLUE, Clues, Size, Solutions, houses_of
from dlm.data.zebra.solve import BITS, blank, propagate

KINDS = {2: "elimination", 3: "one clue", 4: "two clues", 5: "three clues", 6: "more clues"}
UNSOLVED = 9
"""The kind of a cell that does not follow, and the level of a puzzle that has one."""
ANY = -1


@dataclass(frozen=True)
class Deductions:
    """What the solver did with each puzzle. Column k of `order` and `kind` is the k-th fill."""

    order: Int16[np.ndarray, "N cells"]  # cells in the order of their fills; -1 after the last
    kind: UInt8[np.ndarray, "N cells"]  # 0 after the last
    level: UInt8[np.ndarray, " N"]  # the hardest kind it needed; UNSOLVED if cells are left
    used: UInt8[np.ndarray, "N C"]  # 1 for the clues of the sets that filled cells


@njit(cache=True, nogil=True)
def decided(pos, before, own, clues, target, houses):
    """The item that is in one house now and was not before: `target` itself, or if that is ANY the first of the
    items of the clues `own`, or the first row by row; -1 if none is."""
    if target != ANY:
        return target if BITS[pos[target]] == 1 else -1
    for number in own:
        for k in range(1, 4):
            item = clues[number, k]
            if item < len(pos) and BITS[pos[item]] == 1 and BITS[before[item]] > 1:
                return np.int64(item)
    for first in range(houses, len(pos), houses):
        best, least = -1, 1 << houses
        for item in range(first, first + houses):
            if BITS[pos[item]] == 1 and BITS[before[item]] > 1 and pos[item] < least:
                best, least = item, pos[item]
        if best >= 0:
            return best
    return -1


@njit(cache=True, nogil=True)
def easiest(known, target, clues, houses, room, own):
    """The lowest kind that decides the item `target` (ANY: some item) that is not in `known`, the houses of filled
    cells, and that item; UNSOLVED and -1 if none does. `own[:kind - 2]` tells the clues; `room` is [C + 3, items].
    """
    pos, one, two, three = room[0], room[1], room[2], room[3:]
    nothing = own[:0]
    pos[:] = known
    if not propagate(pos, clues, nothing, houses):
        return UNSOLVED, -1
    item = decided(pos, known, nothing, clues, target, houses)
    if item >= 0:
        return 2, item
    live = 0  # clues that may still say something
    for number in range(len(clues)):
        if clues[number, 0] == NO_CLUE:
            continue
        for k in range(1, 4):
            item = clues[number, k]
            if item < len(pos) and BITS[pos[item]] > 1:
                own[3 + live] = number
                live += 1
                break
    alive = own[3 : 3 + live]
    for i in range(live):
        own[0] = alive[i]
        one[:] = pos
        if not propagate(one, clues, own[:1], houses):
            return UNSOLVED, -1
        item = decided(one, pos, own[:1], clues, target, houses)
        if item >= 0:
            return 3, item
        three[i] = one
    # a set of clues begins where its first one alone leads to, and is skipped where the next one adds nothing
    for i in range(live):
        own[0] = alive[i]
        for j in range(i + 1, live):
            own[1] = alive[j]
            one[:] = three[i]
            if not propagate(one, clues, own[:2], houses):
                return UNSOLVED, -1
            item = decided(one, pos, own[:2], clues, target, houses)
            if item >= 0:
                return 4, item
    for i in range(live):
        own[0] = alive[i]
        for j in range(i + 1, live):
            own[1] = alive[j]
            two[:] = three[i]
            if not propagate(two, clues, own[:2], houses):
                return UNSOLVED, -1
            for k in range(j + 1, live):
                own[2] = alive[k]
                one[:] = two
                if not propagate(one, clues, own[:3], houses):
                    return UNSOLVED, -1
                item = decided(one, pos, own[:3], clues, target, houses)
                if item >= 0:
                    return 5, item
    one[:] = pos
    if not propagate(one, clues, alive, houses):
        return UNSOLVED, -1
    item = decided(one, pos, nothing, clues, target, houses)
    return (6, item) if item >= 0 else (UNSOLVED, -1)


@njit(cache=True, nogil=True)
def follow(clues, solution, houses, room, own, known, order, kind, used):
    """The level; fills the rows `order`, `kind` and `used`, by the items' houses `solution` of a proper puzzle."""
    blank(known, houses)
    cells, hardest = len(order), 0
    order[:], kind[:], used[:] = -1, 0, 0
    for filled in range(cells):
        needed, item = easiest(known, ANY, clues, houses, room, own)
        if needed == UNSOLVED:
            return UNSOLVED
        known[item] = 1 << solution[item]
        order[filled] = (item // houses - 1) * houses + solution[item]
        kind[filled] = needed
        hardest = max(hardest, needed)
        if needed < 6:
            for number in own[: needed - 2]:
                used[number] = 1
        else:
            used[:] = clues[:, 0] != NO_CLUE
    return hardest


@njit(cache=True, nogil=True)
def _follow_all(clues, solutions, houses, order, kind, level, used):
    items = solutions.shape[1]
    room = np.empty((clues.shape[1] + 3, items), dtype=np.int64)
    own, known = np.empty(clues.shape[1] + 3, dtype=np.int64), np.empty(items, dtype=np.int64)
    for i in range(len(clues)):
        level[i] = follow(clues[i], solutions[i], houses, room, own, known, order[i], kind[i], used[i])


def deduce(clues: Clues, houses: UInt8[np.ndarray, "N items"], size: Size) -> Deductions:
    """What the solver does with proper puzzles, whose items live in `houses` (`puzzle.houses_of`)."""
    clues, houses = np.ascontiguousarray(clues), np.ascontiguousarray(houses)
    order = np.empty((len(clues), size.cells), dtype=np.int16)
    kind = np.empty(order.shape, dtype=np.uint8)
    level, used = np.empty(len(clues), dtype=np.uint8), np.empty(clues.shape[:2], dtype=np.uint8)
    _follow_all(clues, houses, size.houses, order, kind, level, used)
    return Deductions(order, kind, level, used)


@njit(cache=True, nogil=True)
def _needed(clues, solutions, step, houses, kinds):
    items = solutions.shape[1]
    room = np.empty((clues.shape[1] + 3, items), dtype=np.int64)
    own, known = np.empty(clues.shape[1] + 3, dtype=np.int64), np.empty(items, dtype=np.int64)
    for i in range(len(clues)):
        for target in range(houses, items):
            now = step[i, (target // houses - 1) * houses + solutions[i, target]]
            if now < 0:
                continue
            blank(known, houses)
            for item in range(houses, items):
                if 0 <= step[i, (item // houses - 1) * houses + solutions[i, item]] < now:
                    known[item] = 1 << solutions[i, item]
            cell = (target // houses - 1) * houses + solutions[i, target]
            kinds[i, cell] = easiest(known, target, clues[i], houses, room, own)[0]


def needed(
    clues: Clues, solutions: Solutions, step: Int16[np.ndarray, "N cells"], size: Size
) -> UInt8[np.ndarray, "N cells"]:
    """The kind of each cell at the step at which it was filled, when all cells of earlier steps held their right
    value; 0 for cells of step -1, which were not filled."""
    kinds = np.zeros(step.shape, dtype=np.uint8)
    houses = houses_of(solutions, size)
    _needed(np.ascontiguousarray(clues), houses, np.ascontiguousarray(step), size.houses, kinds)
    return kinds
