"""Zebra puzzles: n houses in a row, m attributes, and clues about who has what.

Every attribute gives each of its n values to one house. A *cell* is one attribute of one house, number
attribute * n + house; a solution says which value each cell has. An *item* is what clues speak of: the house with
a number (items 0..n-1), or whoever has a value of an attribute (item n + attribute * n + value). A clue is four
small numbers: its type and up to three items. The types, and how often each is drawn, are those of the data of
Shah et al. 2024 (generator: google-research, zebra_puzzle_generator):

    name             written    holds where                                         drawn
    same             a1=b2      both are of one house                                  4
    different        a1!=b2     they are not                                           1
    neighbours       a1~b2      their houses touch                                     2
    end              a1|        the house is the first or the last                     2
    immediately left a1<<b2     the second house is the next to the right              2
    left             a1<b2      the second house is somewhere to the right             2
    between          a1<b2<c1   three houses from left to right, not all next doors    1

A puzzle is one line of text: its size, then its clues.  3x3 a1=h2; a3<b1; b2|   Attributes are the letters a to f,
h is a house; values and houses count from 1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from dlm.data.sudoku.board import puzzle_lines
from dlm.errors import UserError

SIZES = range(3, 7)
"""Houses, and attributes, as published."""

NO_CLUE, SAME, DIFFERENT, NEIGHBOURS, END, NEXT, LEFT, BETWEEN = range(8)
NAMES = ("none", "same", "different", "neighbours", "end", "immediately left", "left", "between")
ITEMS = np.array([0, 2, 2, 2, 1, 2, 2, 3])
"""Items of a clue, by its type."""
WEIGHTS = np.array([0, 4, 1, 2, 2, 2, 2, 1])
SYMMETRIC = (SAME, DIFFERENT, NEIGHBOURS)
"""Types whose two items may be exchanged."""
NO_ITEM = 255
SIGNS = {SAME: "=", DIFFERENT: "!=", NEIGHBOURS: "~", NEXT: "<<", LEFT: "<"}

Clues = UInt8[np.ndarray, "N C 4"]
"""Type and items of each clue; after the last one, type NO_CLUE. Items that are not there are NO_ITEM."""
Solutions = UInt8[np.ndarray, "N cells"]
"""The value, from 0, of each cell."""


@dataclass(frozen=True)
class Size:
    """Raises UserError for a size that puzzles do not come in."""

    houses: int
    attributes: int

    def __post_init__(self) -> None:
        for name in ("houses", "attributes"):
            if getattr(self, name) not in SIZES:
                raise UserError(f"{name}={getattr(self, name)}: zebra puzzles have {SIZES[0]} to {SIZES[-1]}")

    @property
    def cells(self) -> int:
        return self.houses * self.attributes

    @property
    def items(self) -> int:
        return self.houses * (1 + self.attributes)

    def item(self, item: int) -> str:
        """h2 for the second house, a1 for the first value of the first attribute."""
        attribute, value = divmod(int(item), self.houses)
        return f"{'h' if attribute == 0 else chr(ord('a') + attribute - 1)}{value + 1}"

    def __str__(self) -> str:
        return f"{self.houses}x{self.attributes}"


def houses_of(solutions: Solutions, size: Size) -> UInt8[np.ndarray, "N items"]:
    """The house, from 0, of every item."""
    values = solutions.reshape(-1, size.attributes, size.houses)
    numbers = np.broadcast_to(np.arange(size.houses), (len(values), 1, size.houses))
    return np.concatenate([numbers, values.argsort(2)], 1).reshape(len(values), -1).astype(np.uint8)


def solutions_of(houses: UInt8[np.ndarray, "N items"], size: Size) -> Solutions:
    """The other way round."""
    each = houses.reshape(-1, 1 + size.attributes, size.houses)[:, 1:]
    return each.argsort(2).reshape(len(each), -1).astype(np.uint8)


def holds(
    clue: UInt8[np.ndarray, " 4"], houses: UInt8[np.ndarray, "N items"], size: Size
) -> Bool[np.ndarray, " N"]:
    """Whether the clue is true of each placement of the items."""
    kind = int(clue[0])
    a, b, c = (houses[:, item if item != NO_ITEM else 0].astype(int) for item in clue[1:])
    return {
        SAME: a == b,
        DIFFERENT: a != b,
        NEIGHBOURS: abs(a - b) == 1,
        END: (a == 0) | (a == size.houses - 1),
        NEXT: a + 1 == b,
        LEFT: a < b,
        BETWEEN: (a < b) & (b < c),
    }[kind]


def written(clues: UInt8[np.ndarray, "C 4"], size: Size) -> str:
    """The puzzle in one line."""
    return f"{size} " + "; ".join(written_clue(clue, size) for clue in clues if clue[0] != NO_CLUE)


def written_clue(clue: UInt8[np.ndarray, " 4"], size: Size) -> str:
    kind, items = int(clue[0]), [size.item(item) for item in clue[1:] if item != NO_ITEM]
    if kind == END:
        return f"{items[0]}|"
    return ("<" if kind == BETWEEN else SIGNS[kind]).join(items)


def told(clue: UInt8[np.ndarray, " 4"], size: Size) -> str:
    """The clue in words."""
    kind, items = int(clue[0]), [size.item(item) for item in clue[1:] if item != NO_ITEM]
    a, b, c = (*items, "", "")[:3]
    return {
        SAME: f"{a} and {b} are in one house",
        DIFFERENT: f"{a} and {b} are in different houses",
        NEIGHBOURS: f"{a} and {b} are next-door neighbours",
        END: f"{a} is at one of the ends",
        NEXT: f"{a} is immediately to the left of {b}",
        LEFT: f"{a} is somewhere to the left of {b}",
        BETWEEN: f"{b} is between {a}, on its left, and {c}",
    }[kind]


def parse(text: str, where: str = "puzzle") -> tuple[Size, UInt8[np.ndarray, "C 4"]]:
    """The size and the clues of one line.

    Raises:
        UserError: for anything that is not a size and clues as above; `where` says which puzzle.
    """
    head, _, body = text.strip().partition(" ")
    sides = re.fullmatch(r"(\d+)x(\d+)", head)
    if sides is None:
        raise UserError(f"{where}: begins with its size, HOUSESxATTRIBUTES, such as 4x3, not with {head[:20]!r}")
    try:
        size = Size(int(sides[1]), int(sides[2]))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    clues = [parse_clue(part.strip(), size, where) for part in body.split(";") if part.strip()]
    return size, np.array(clues, dtype=np.uint8).reshape(-1, 4)


def parse_clue(text: str, size: Size, where: str = "clue") -> list[int]:
    """One clue. Raises UserError."""
    parts = re.split(r"(!=|<<|=|~|<|\|)", text.replace(" ", ""))
    names, signs = [part for part in parts[::2] if part], parts[1::2]
    kinds = {(sign,): (kind, 2) for kind, sign in SIGNS.items()} | {("|",): (END, 1), ("<", "<"): (BETWEEN, 3)}
    kind, count = kinds.get(tuple(signs), (NO_CLUE, 0))
    if kind == NO_CLUE or len(names) != count:
        raise UserError(f"{where}: {text!r} is no clue; these are: a1=b2 a1!=b2 a1~b2 a1| a1<<b2 a1<b2 a1<b2<c1")
    items = [parse_item(name, size, f"{where}: {text!r}") for name in names]
    if len(set(items)) < len(items):
        raise UserError(f"{where}: {text!r} names {size.item(max(items, key=items.count))} twice")
    return [kind, *items, *[NO_ITEM] * (3 - count)]


def parse_item(name: str, size: Size, where: str) -> int:
    """The number of an item. Raises UserError."""
    found = re.fullmatch(r"([a-fh])(\d+)", name)
    attribute = -1 if found is None else 0 if found[1] == "h" else ord(found[1]) - ord("a") + 1
    if found is None or attribute > size.attributes or not 1 <= int(found[2]) <= size.houses:
        last = size.item(size.items - 1)
        raise UserError(f"{where}: {name!r} is neither a house h1..h{size.houses} nor a value a1..{last}")
    return attribute * size.houses + int(found[2]) - 1


def read_puzzles(path: Path) -> Iterator[tuple[str, Size, UInt8[np.ndarray, "C 4"]]]:
    """(where, size, clues) of every line of a collection; blank lines and what follows a # are skipped.

    Raises:
        UserError: for a missing or unreadable file, or a malformed puzzle, by its line.
    """
    for where, line in puzzle_lines(path):
        yield where, *parse(line, where)


def drawn(solution: UInt8[np.ndarray, " cells"], size: Size) -> str:
    """A row per attribute, a column per house; `.` for what is negative, not known."""
    rows = solution.astype(int).reshape(size.attributes, size.houses)
    lines = ["".join(f"{size.item(house):<5}" for house in range(size.houses))]
    for a, row in enumerate(rows.tolist(), start=1):
        lines.append("".join(f"{size.item(a * size.houses + v) if v >= 0 else '.':<5}" for v in row))
    return "\n".join(line.rstrip() for line in lines)
