"""The ways to write down one puzzle.

A puzzle stays the same puzzle if the attributes change places, the values of an attribute change names, the row of
houses is read from the other end (then the items of left, immediately left and between change ends too), and the
clues, or the two items of a symmetric clue, change places. Solutions go along, and every cell keeps its kind
(deduce.py): what a clue says does not depend on how it is written.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from numba import njit

from dlm.data.sudoku.splitmix import mixed
from dlm.data.zebra.puzzle import (
    BETWEEN,
    LEFT,
    NEXT,
    NO_CLUE,
    NO_ITEM,
    SYMMETRIC,
    Clues,
    Size,
    Solutions,
    houses_of,
)


class View(NamedTuple):
    """How each puzzle is written."""

    attributes: Int[np.ndarray, "B attributes"]  # where each attribute goes
    values: Int[np.ndarray, "B attributes houses"]  # the new name of each value, by its old attribute
    mirrored: Bool[np.ndarray, " B"]
    clues: Int[np.ndarray, "B C"]  # which clue is written at each place
    swapped: Bool[np.ndarray, "B C"]  # symmetric clues that exchange their items, by their new place


def uniforms_of_view(size: Size, slots: int) -> int:
    """Uniforms that decide a view."""
    return 1 + size.attributes + size.cells + 2 * slots


def view_of(noise: Float[np.ndarray, "B U"], size: Size, clues: Clues) -> View:
    """A view drawn evenly among all, from the first of these uniforms; empty clues stay at the end."""
    mirrored, attributes, values, order, swapped = np.split(
        noise[:, : uniforms_of_view(size, clues.shape[1])],
        np.cumsum([1, size.attributes, size.cells, clues.shape[1]]),
        axis=1,
    )
    return View(
        attributes.argsort(1),
        values.reshape(-1, size.attributes, size.houses).argsort(2),
        mirrored[:, 0] < 0.5,
        (order + (clues[..., 0] == NO_CLUE)).argsort(1),
        swapped < 0.5,
    )


def seen(clues: Clues, solutions: Solutions, view: View, size: Size) -> tuple[Clues, Solutions]:
    """The puzzles and their solutions as `view` has them written."""
    n, row, house = size.houses, np.arange(len(clues))[:, None], np.arange(size.houses)
    at = np.where(view.mirrored[:, None], n - 1 - house, house)
    name = np.full((len(clues), 256), NO_ITEM, dtype=np.uint8)
    name[:, :n] = at
    name[:, n : size.items] = (n * (1 + view.attributes[:, :, None]) + view.values).reshape(len(clues), -1)
    kind, items = clues[row, view.clues, 0], clues[row, view.clues, 1:]
    items = name[row[..., None], items]
    turned = view.mirrored[:, None] & np.isin(kind, (NEXT, LEFT)) | view.swapped & np.isin(kind, SYMMETRIC)
    ends = view.mirrored[:, None] & (kind == BETWEEN)
    items = np.where(turned[..., None], items[..., [1, 0, 2]], items)
    items = np.where(ends[..., None], items[..., [2, 1, 0]], items)
    written = np.empty_like(solutions)
    written[row, cells_of(view, size)] = np.take_along_axis(
        view.values, solutions.reshape(-1, size.attributes, n).astype(int), 2
    ).reshape(solutions.shape)
    return np.concatenate([kind[..., None], items], 2), written


def cells_of(view: View, size: Size) -> Int[np.ndarray, "B cells"]:
    """Where each cell goes."""
    house = np.arange(size.houses)
    at = np.where(view.mirrored[:, None], size.houses - 1 - house, house)
    return (view.attributes[:, :, None] * size.houses + at[:, None, :]).reshape(len(at), -1)


@njit(cache=True, nogil=True)
def _keys(clues, where, orders, houses, symmetric, keys):
    item = np.empty(3, dtype=np.uint64)
    last = np.uint64(houses - 1)
    for i in range(len(clues)):
        for view in range(2 * len(orders)):
            order, mirror = orders[view // 2], view % 2 == 1
            total = np.uint64(0)
            for clue in clues[i]:
                if clue[0] == NO_CLUE:
                    break
                for k in range(3):
                    item[k] = np.uint64(NO_ITEM)
                    if clue[k + 1] != NO_ITEM:
                        house = np.uint64(where[i, clue[k + 1]])
                        item[k] = np.uint64(8 * order[clue[k + 1] // houses]) + (last - house if mirror else house)
                if mirror and (clue[0] == NEXT or clue[0] == LEFT):
                    item[0], item[1] = item[1], item[0]
                elif mirror and clue[0] == BETWEEN:
                    item[0], item[2] = item[2], item[0]
                if symmetric[clue[0]] and item[1] < item[0]:
                    item[0], item[1] = item[1], item[0]
                code = ((np.uint64(clue[0]) * np.uint64(256) + item[0]) * np.uint64(256) + item[1]) * np.uint64(
                    256
                )
                total += mixed(code + item[2])
            keys[i] = min(keys[i], total)


def keys(clues: Clues, solutions: Solutions, size: Size) -> UInt64[np.ndarray, " N"]:
    """A number for each proper puzzle that all its views share; different puzzles share one by accident only (64
    bits of hash).

    Naming every value after its house leaves the orders of the attributes and the two directions, which are all
    tried; the sum of the hashed clues does not depend on their order.
    """
    orders = np.array([(0, *order) for order in permutations(range(1, 1 + size.attributes))], dtype=np.int64)
    found = np.full(len(clues), np.iinfo(np.uint64).max, dtype=np.uint64)
    symmetric = np.isin(np.arange(8), SYMMETRIC)
    _keys(np.ascontiguousarray(clues), houses_of(solutions, size), orders, size.houses, symmetric, found)
    return found
