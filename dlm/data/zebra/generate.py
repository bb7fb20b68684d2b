"""Puzzles: a random solution, and clues drawn at random among those that hold until no other solution is left.

A clue's type is drawn with the weights of `puzzle.WEIGHTS`, its attributes evenly but for the numbers of the
houses, which come a fifth as often, its values evenly where the clue can hold. As in the published generator,
`same` and `different` join two attributes, the other types may stay within one, no clue is about house numbers
only, and an end, or the last two of a `between`, is never a house number.

A drawn clue is kept if it is false of another solution that the clues so far allow; that keeps the clues few. Then

    minimal     clues are taken away in random order while the solution stays the only one. What is left is
                proper, and without any one clue, not.
    published   clues are added until at most three at a time decide every cell (deduce.py), and those that were
                not used in that are taken away: easier puzzles, more clues.

Shah et al. 2024 do the latter. Their generator favours entities that their solver has not placed yet rather than
clues that exclude a known alternative, and their solver differs in detail (deduce.py). Their longest sequence, of
457 tokens for 3 to 6 houses and attributes, leaves room for about as many clues as the 31 that are reached here.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from dlm.data.sudoku.splitmix import below, keyed, shuffle
from dlm.data.zebra.deduce import follow
from dlm.data.zebra.puzzle import (
    BETWEEN,
    DIFFERENT,
    END,
    NEIGHBOURS,
    NEXT,
    NO_CLUE,
    NO_ITEM,
    SAME,
    WEIGHTS,
    Clues,
    Size,
    Solutions,
    solutions_of,
)
from dlm.data.zebra.solve import blank, propagate, search
from dlm.errors import UserError

STYLES = ("minimal", "published")
MOST = 64  # clues held while a puzzle is made
DRAWS = 1000  # puzzles drawn for one that has few enough clues


class Puzzles(NamedTuple):
    """Proper puzzles and their solutions."""

    clues: Clues
    solutions: Solutions


@njit(cache=True, nogil=True)
def attribute(random, attributes, numbers):
    """0, the numbers of the houses, a fifth as often as each other; never if `numbers` is false."""
    if not numbers:
        return 1 + below(random, attributes)
    drawn = below(random, 5 * attributes + 1)
    return 0 if drawn == 0 else 1 + (drawn - 1) // 5


@njit(cache=True, nogil=True)
def draw_clue(clue, random, there, houses, attributes, weights):
    """Write a random clue that holds where `there[attribute * houses + house]` is the item of a house."""
    left = below(random, weights.sum())
    kind = 0
    while left >= weights[kind]:
        left -= weights[kind]
        kind += 1
    clue[0], clue[1], clue[2], clue[3] = kind, NO_ITEM, NO_ITEM, NO_ITEM
    if kind == END:
        end = below(random, 2) * (houses - 1)
        clue[1] = there[attribute(random, attributes, False) * houses + end]
        return
    if kind == BETWEEN:  # three houses from left to right, evenly among all threes
        while True:
            a, b, c = below(random, houses), below(random, houses), below(random, houses)
            if a < b < c:
                break
        clue[1] = there[attribute(random, attributes, True) * houses + a]
        clue[2] = there[attribute(random, attributes, False) * houses + b]
        clue[3] = there[attribute(random, attributes, False) * houses + c]
        return
    while True:
        first, second = attribute(random, attributes, True), attribute(random, attributes, True)
        if first != second or (first > 0 and kind != SAME and kind != DIFFERENT):
            break
    while True:
        a, b = below(random, houses), below(random, houses)
        if kind == SAME:
            b = a
        right = b - a
        if (
            kind == SAME
            or (kind == DIFFERENT and right != 0)
            or (kind == NEIGHBOURS and abs(right) == 1)
            or (kind == NEXT and right == 1)
            or (kind != DIFFERENT and kind != NEIGHBOURS and kind != NEXT and right > 0)
        ):
            break
    clue[1], clue[2] = there[first * houses + a], there[second * houses + b]


@njit(cache=True, nogil=True)
def true_of(clue, where, houses):
    """Whether a clue holds of the items' houses."""
    kind, a = clue[0], where[clue[1]]
    if kind == END:
        return a == 0 or a == houses - 1
    b = where[clue[2]]
    if kind == SAME:
        return a == b
    if kind == DIFFERENT:
        return a != b
    if kind == NEIGHBOURS:
        return abs(a - b) == 1
    if kind == NEXT:
        return a + 1 == b
    return a < b and (kind != BETWEEN or b < where[clue[3]])


@njit(cache=True, nogil=True)
def others(clues, chosen, truth, houses, stack, branch, found, other):
    """Whether the chosen clues allow a solution beside the true one, which is written to `other`."""
    blank(stack[0], houses)
    if search(stack, branch, clues, chosen, 2, houses, found) < 2:
        return False
    for k in range(2):
        for item in range(len(truth)):
            if found[k, item] != truth[item]:
                for i in range(len(truth)):
                    other[i] = found[k, i]
                return True
    return False


@njit(cache=True, nogil=True)
def settled(clues, chosen, houses, pos):
    """Whether all chosen clues together decide all cells, each clue used by itself."""
    blank(pos, houses)
    propagate(pos, clues, chosen, houses)
    return (pos & (pos - 1) == 0).all()


@njit(cache=True, nogil=True)
def compose(clues, truth, random, published, houses, attributes, weights, stack, branch):
    """Write clues of a proper puzzle to `clues` [MOST, 4]; their number, or MOST + 1 if they do not fit."""
    items = len(truth)
    found, other = np.empty((2, items), dtype=np.uint8), np.empty(items, dtype=np.uint8)
    there = np.empty(items, dtype=np.int64)
    for a in range(attributes + 1):
        for value in range(houses):
            item = a * houses + value
            there[a * houses + truth[item]] = item
    everything = np.arange(MOST)
    count = 0
    while others(clues, everything[:count], truth, houses, stack, branch, found, other):
        if count == MOST:
            return MOST + 1
        while True:
            draw_clue(clues[count], random, there, houses, attributes, weights)
            if not true_of(clues[count], other, houses):
                break
        count += 1
    if published:
        room, own = np.empty((MOST + 3, items), dtype=np.int64), np.empty(MOST + 3, dtype=np.int64)
        known, used = np.empty(items, dtype=np.int64), np.empty(MOST, dtype=np.uint8)
        order, kind = np.empty(houses * attributes, dtype=np.int16), np.empty(houses * attributes, dtype=np.uint8)
        while (
            not settled(clues, everything[:count], houses, stack[0])  # the cheaper test first
            or follow(clues[:count], truth, houses, room, own, known, order, kind, used[:count]) > 5
        ):
            if count == MOST:
                return MOST + 1
            draw_clue(clues[count], random, there, houses, attributes, weights)
            new = True
            for k in range(count):
                new &= (clues[k] != clues[count]).any()
            count += new
        kept = np.flatnonzero(used[:count])
    else:
        trial, kept = everything[:count].copy(), everything[:count]
        shuffle(random, trial)
        for number in trial:
            without = kept[kept != number]
            if not others(clues, without, truth, houses, stack, branch, found, other):
                kept = without
        kept = kept.copy()
    shuffle(random, kept)
    clues[: len(kept)] = clues[kept]
    return len(kept)


@njit(cache=True, nogil=True)
def _generate(clues, truths, seed, stream, first, published, houses, attributes, weights, draws):
    """Fill the rows; the first that found no puzzle with so few clues, or -1."""
    random = np.empty(1, dtype=np.uint64)
    items = truths.shape[1]
    stack, branch = np.empty((items * houses, items), dtype=np.int64), np.empty(items * houses, dtype=np.int64)
    drawn = np.empty((MOST + 1, 4), dtype=np.uint8)
    row = np.arange(houses)
    for i in range(len(clues)):
        random[0] = keyed(seed, stream, np.uint64(first + i))
        done = False
        for _ in range(draws):
            for house in range(houses):
                truths[i, house] = house
            for a in range(1, attributes + 1):
                shuffle(random, row)
                for value in range(houses):
                    truths[i, a * houses + value] = row[value]
            count = compose(drawn, truths[i], random, published, houses, attributes, weights, stack, branch)
            if count <= clues.shape[1]:
                clues[i, :, 0], clues[i, :, 1:] = NO_CLUE, NO_ITEM
                clues[i, :count] = drawn[:count]
                done = True
                break
        if not done:
            return i
    return -1


def generate(
    size: Size, count: int, seed: int, stream: int = 0, first: int = 0, slots: int = 32, style: str = "minimal"
) -> Puzzles:
    """`count` proper puzzles of at most `slots` clues, in random order.

    Puzzle i depends on the size, slots, style and (seed, stream, first + i) alone. One with more clues is redrawn.

    Raises:
        UserError: for an unknown style, or `slots` that none of DRAWS puzzles kept to.
    """
    if style not in STYLES:
        raise UserError(f"style={style}: zebra puzzles are {' or '.join(STYLES)}")
    clues = np.zeros((count, slots, 4), dtype=np.uint8)
    truths = np.zeros((count, size.items), dtype=np.uint8)
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, stream], dtype=np.uint64)
    failed = _generate(
        clues, truths, key[0], key[1], first, style == "published", size.houses, size.attributes, WEIGHTS, DRAWS
    )
    if failed >= 0:
        raise UserError(f"clues={slots}: too few, none of {DRAWS:,} {style} {size} puzzles had no more")
    return Puzzles(clues, solutions_of(truths, size))
