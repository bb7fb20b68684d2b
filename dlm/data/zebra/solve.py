"""All solutions of a puzzle: depth-first search over the houses that each item can still be in, one word of bits.

At every node each clue takes from its items the houses that no house of the others allows, and every attribute
gives a value with one house left, or a house with one value left, to each other; until nothing changes. Where that
stops it branches on an item with the fewest houses. The search is exhaustive: a count below its limit is exact.
"""

import numpy as np
from jaxtyping import Int
from numba import njit

from dlm.data.zebra.puzzle import (
    DIFFERENT,
    END,
    LEFT,
    NEIGHBOURS,
    NEXT,
    NO_CLUE,
    SAME,
    Clues,
    Size,
    Solutions,
    solutions_of,
)

BITS = np.array([bin(mask).count("1") for mask in range(1 << 6)], dtype=np.int64)
LOWEST = np.array([mask & -mask for mask in range(1 << 6)], dtype=np.int64)
HIGHEST = np.array([1 << mask.bit_length() >> 1 for mask in range(1 << 6)], dtype=np.int64)


@njit(cache=True, nogil=True)
def apply(clue, pos, houses):
    """Take from the clue's items the houses where it cannot hold; 1 if that took any, -1 if an item has none
    left, else 0. `pos` [items] are bit sets of houses."""
    kind, i, j, k = clue[0], clue[1], clue[2], clue[3]
    a = pos[i]
    full = (1 << houses) - 1
    if kind == END:
        a &= 1 | 1 << (houses - 1)
        if a == pos[i]:
            return 0
        pos[i] = a
        return 1 if a else -1
    b = pos[j]
    if kind == SAME:
        a &= b
        b = a
    elif kind == DIFFERENT:
        if a & (a - 1) == 0:
            b &= ~a
        if b & (b - 1) == 0:
            a &= ~b
    elif kind == NEIGHBOURS:
        b &= (a << 1 | a >> 1) & full
        a &= b << 1 | b >> 1
    elif kind == NEXT:
        b &= a << 1 & full
        a &= b >> 1
    elif kind == LEFT:
        b &= ~(LOWEST[a] * 2 - 1)
        a &= HIGHEST[b] - 1 if b else 0
    else:  # BETWEEN
        c = pos[k]
        b &= ~(LOWEST[a] * 2 - 1)
        c &= ~(LOWEST[b] * 2 - 1)
        b &= HIGHEST[c] - 1 if c else 0
        a &= HIGHEST[b] - 1 if b else 0
        if c != pos[k]:
            pos[k], pos[j], pos[i] = c, b, a
            return 1 if a and b and c else -1
    if a == pos[i] and b == pos[j]:
        return 0
    pos[i], pos[j] = a, b
    return 1 if a and b else -1


@njit(cache=True, nogil=True)
def eliminate(pos, houses):
    """Each value has a house of its own: the same result as `apply`, until nothing changes."""
    changed = 0
    for first in range(houses, len(pos), houses):
        again = True
        while again:
            again = False
            alone, once, twice = 0, 0, 0
            for item in range(first, first + houses):
                mask = pos[item]
                twice |= once & mask
                once |= mask
                if mask & (mask - 1) == 0:
                    if alone & mask or mask == 0:
                        return -1
                    alone |= mask
            if once != (1 << houses) - 1:
                return -1
            only = once & ~twice
            for item in range(first, first + houses):
                mask = pos[item]
                if mask & (mask - 1) == 0:
                    continue
                hidden = mask & only
                mask = hidden if hidden else mask & ~alone
                if mask != pos[item]:
                    if hidden & (hidden - 1) or mask == 0:
                        return -1
                    pos[item] = mask
                    changed, again = 1, True
    return changed


@njit(cache=True, nogil=True)
def propagate(pos, clues, chosen, houses):
    """Everything that follows from the clues of these numbers one by one; False at a contradiction."""
    while True:
        state = eliminate(pos, houses)
        if state < 0:
            return False
        changed = False
        for number in chosen:
            if clues[number, 0] != NO_CLUE:
                state = apply(clues[number], pos, houses)
                if state < 0:
                    return False
                changed |= state > 0
        if not changed:
            return True


@njit(cache=True, nogil=True)
def blank(pos, houses):
    """Nothing is known but the numbers of the houses."""
    for item in range(len(pos)):
        pos[item] = 1 << item if item < houses else (1 << houses) - 1


@njit(cache=True, nogil=True)
def search(stack, branch, clues, chosen, limit, houses, found):
    """The number of solutions up to `limit` below `stack[0]`; writes their items' houses to `found`."""
    depth, count = 0, 0
    while True:
        if propagate(stack[depth], clues, chosen, houses):
            best, fewest = -1, 99
            for item in range(houses, stack.shape[1]):
                size = BITS[stack[depth, item]]
                if 1 < size < fewest:
                    best, fewest = item, size
            if best >= 0:
                bit = LOWEST[stack[depth, best]]
                stack[depth + 1] = stack[depth]
                stack[depth, best] ^= bit
                branch[depth] = best
                depth += 1
                stack[depth, best] = bit
                continue
            for item in range(stack.shape[1]):
                found[count, item] = BITS[stack[depth, item] - 1]
            count += 1
            if count == limit:
                return count
        depth -= 1
        if depth < 0:
            return count


@njit(cache=True, nogil=True)
def _search_all(clues, houses, counts, found):
    items = found.shape[2]
    stack = np.empty((items * houses, items), dtype=np.int64)
    branch = np.empty(items * houses, dtype=np.int64)
    chosen = np.arange(clues.shape[1])
    for i in range(len(clues)):
        blank(stack[0], houses)
        counts[i] = search(stack, branch, clues[i], chosen, found.shape[1], houses, found[i])


def _searched(clues: Clues, size: Size, limit: int) -> tuple[np.ndarray, np.ndarray]:
    clues = np.ascontiguousarray(clues, dtype=np.uint8)
    if clues.ndim != 3 or clues.shape[2] != 4 or limit < 1:
        raise ValueError(f"{clues.shape} clues, not [N C 4], and a limit from 1 on, not {limit}")
    counts = np.zeros(len(clues), dtype=np.int64)
    found = np.zeros((len(clues), limit, size.items), dtype=np.uint8)
    _search_all(clues, size.houses, counts, found)
    return counts, found


def count_solutions(clues: Clues, size: Size, limit: int = 2) -> Int[np.ndarray, " N"]:
    """The number of solutions of each puzzle, cut at `limit`; 1 is a proper puzzle."""
    return _searched(clues, size, limit)[0]


def solve(clues: Clues, size: Size) -> Solutions:
    """A solution of each puzzle, the only one of a proper puzzle.

    Raises:
        ValueError: if one has none.
    """
    counts, found = _searched(clues, size, 1)
    if (counts == 0).any():
        raise ValueError(f"puzzle {int(np.flatnonzero(counts == 0)[0])} has no solution")
    return solutions_of(found[:, 0], size)
