"""The ways of writing a puzzle with its solution as a sequence, and of reading an answer as a series of fills.

Every sequence begins with a fixed number of clue slots of four tokens each, a clue's type and its items, blank
where it has none; they are given. The answer follows, all of it targets:

    in_place   one token per cell, in place: the item that lives there
    triples    attribute, house and item of one cell after the other, as Shah et al. 2024
    joint      one token for a cell with its item, in the same order: a third as long

The token of an item is the same wherever it stands. Published sequences share the digits 0..5 between houses,
attributes and values and spell a clue with 6 to 13 symbols; here each token is made of an attribute, a value and a
house (dlm.layout), so the network may still share what it learns.
"""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int

from dlm.data.sudoku.formats import Fills
from dlm.data.zebra.puzzle import NO_CLUE, NO_ITEM, SIGNS, Clues, Size, Solutions, drawn, written
from dlm.errors import UserError
from dlm.layout import Layout

ORDERS = ("row_major", "random", "solver")
TYPES = 7
WORDS = {**SIGNS, 4: "|", 7: "between"}


def clue_slots(size: Size) -> int:
    """Slots that hold the clues of 98 % of published-style puzzles, and of nearly all minimal ones."""
    return (size.houses - 1) * size.attributes + 1


class Format:
    """One way of writing puzzles of one size with at most `slots` clues.

    Tokens 0..items - 1 are the items, then come the types of clues and the blank.
    """

    name: ClassVar[str]
    ordered: ClassVar[bool] = True  # whether it writes the cells in an order that the data choose
    per_cell: ClassVar[int] = 1

    def __init__(self, size: Size, slots: int) -> None:
        self.size, self.slots = size, slots
        self.blank = size.items + TYPES
        self.prompt = 4 * slots
        self.seq_len = self.prompt + self.per_cell * size.cells
        made_of = np.concatenate([self.item_parts(), np.zeros((TYPES + 1, 3), int), self.answer_parts()])
        self.vocab_size = len(made_of)
        number, part = np.divmod(np.arange(self.prompt), 4)
        clue_places = np.stack([number + 1, part, np.zeros_like(part), np.zeros_like(part)], 1)
        self.layout = Layout(
            torch.from_numpy(np.concatenate([clue_places, self.answer_places()])), torch.from_numpy(made_of)
        )

    def item_parts(self) -> Int[np.ndarray, "items 3"]:
        """Attribute, value and house of every item, from 1; 0 for none. The numbers of houses are attribute 1."""
        attribute, value = np.divmod(np.arange(self.size.items), self.size.houses)
        number = attribute == 0
        return np.stack([attribute + 1, np.where(number, 0, value + 1), np.where(number, value + 1, 0)], 1)

    def answer_parts(self) -> Int[np.ndarray, "V 3"]:
        """The same of tokens that occur in answers only."""
        return np.zeros((0, 3), dtype=int)

    def answer_places(self) -> Int[np.ndarray, "A 4"]:
        """Clue, part of a clue or an answer, house and attribute of each answer slot; 0 for none."""
        part = 4 + np.tile(np.arange(self.per_cell), self.size.cells)
        return np.stack([np.zeros_like(part), part, np.zeros_like(part), np.zeros_like(part)], 1)

    def clue_tokens(self, clues: Clues) -> Int[np.ndarray, "B P"]:
        kind, items = clues[..., :1].astype(np.int64), clues[..., 1:].astype(np.int64)
        kind = np.where(kind == NO_CLUE, self.blank, self.size.items + kind - 1)
        return np.concatenate([kind, np.where(items == NO_ITEM, self.blank, items)], 2).reshape(len(clues), -1)

    def write(
        self, clues: Clues, solutions: Solutions, order: Int[np.ndarray, "B cells"]
    ) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """The sequences, and which tokens are targets; `order` lists all cells as they are to be written."""
        item = self.size.houses * (1 + order // self.size.houses) + np.take_along_axis(solutions, order, 1)
        answer = self.tokens(order, item).reshape(len(clues), -1)
        x0 = np.concatenate([self.clue_tokens(clues), answer], 1)
        return x0, np.broadcast_to(np.arange(self.seq_len) >= self.prompt, x0.shape).copy()

    def read(self, x: Int[np.ndarray, "B L"], fixed_at: Int[np.ndarray, "B L"]) -> Fills:
        """The fills of answers, values from 1; in an order of its own a sequence is read from the left."""
        cell, item = self.pairs(x[:, self.prompt :].reshape(len(x), self.size.cells, self.per_cell))
        houses = self.size.houses
        fits = (item >= houses) & (item < self.size.items) & (item // houses - 1 == cell // houses)
        value = np.where(fits, item % houses + 1, 0).astype(np.uint8)
        step = (
            np.broadcast_to(np.arange(self.size.cells), cell.shape) if self.ordered else fixed_at[:, self.prompt :]
        )
        return Fills(np.ones(cell.shape, dtype=bool), step, cell, value)

    def tokens(self, cell: Int[np.ndarray, "B K"], item: Int[np.ndarray, "B K"]) -> Int[np.ndarray, "B K P"]:
        """The tokens of cells with the items that live there."""
        raise NotImplementedError

    def pairs(self, tokens: Int[np.ndarray, "B K P"]) -> tuple[Int[np.ndarray, "B K"], Int[np.ndarray, "B K"]]:
        """The other way: -1 for no cell, or no item."""
        raise NotImplementedError

    def clues_of(self, x: Int[np.ndarray, " L"]) -> Clues | None:
        """The clues that a sequence begins with; None if that is no sequence of clues."""
        rows = np.asarray(x)[: self.prompt].reshape(-1, 4)
        kind, items = rows[:, 0] - self.size.items + 1, rows[:, 1:]
        kind = np.where(rows[:, 0] == self.blank, NO_CLUE, kind)
        known = ((items >= 0) & (items < self.size.items)) | (items == self.blank)
        wanted = np.arange(3) < np.array([0, 2, 2, 2, 1, 2, 2, 3])[kind.clip(0, TYPES), None]
        if len(rows) < self.slots or not ((kind >= 0) & (kind <= TYPES)).all() or not known.all():
            return None
        if ((items != self.blank) != wanted).any():
            return None
        return np.concatenate([kind[:, None], np.where(items == self.blank, NO_ITEM, items)], 1).astype(np.uint8)

    def text(self, x: Int[np.ndarray, " L"]) -> str:
        """A whole sequence as its puzzle and grid, `.` where it says nothing; anything else symbol by symbol."""
        clues = self.clues_of(x) if len(x) == self.seq_len else None
        if clues is None:
            return " ".join(self.symbol(int(token)) for token in x)
        fills = self.read(np.asarray(x)[None], np.zeros((1, len(x)), dtype=int))
        grid = np.zeros(self.size.cells, dtype=np.int64)
        for cell, value in zip(fills.cell[0][::-1], fills.value[0][::-1], strict=True):
            if cell >= 0:
                grid[cell] = value
        return f"{written(clues, self.size)}\n{drawn(grid - 1, self.size)}"

    def symbol(self, token: int) -> str:
        """One token for a reader."""
        if 0 <= token < self.size.items:
            return self.size.item(token)
        return WORDS.get(token - self.size.items + 1, ".") if token < self.blank else "."


class InPlace(Format):
    name = "in_place"
    ordered = False

    def answer_places(self):
        attribute, house = np.divmod(np.arange(self.size.cells), self.size.houses)
        return np.stack([np.zeros_like(house), np.full_like(house, 4), house + 1, attribute + 1], 1)

    def write(self, clues, solutions, order):
        return super().write(clues, solutions, np.broadcast_to(np.arange(self.size.cells), solutions.shape))

    def tokens(self, cell, item):
        return item[..., None]

    def pairs(self, tokens):
        return np.broadcast_to(np.arange(self.size.cells), tokens.shape[:2]), tokens[..., 0]


class Triples(Format):
    """Attributes are tokens after the blank; houses are the items that are their numbers."""

    name = "triples"
    per_cell = 3

    def answer_parts(self):
        return np.stack([[a + 2, 0, 0] for a in range(self.size.attributes)])

    def tokens(self, cell, item):
        attribute, house = np.divmod(cell, self.size.houses)
        return np.stack([self.blank + 1 + attribute, house, item], -1)

    def pairs(self, tokens):
        attribute, house, item = (tokens[..., k] for k in range(3))
        attribute = attribute - self.blank - 1
        there = (attribute >= 0) & (attribute < self.size.attributes) & (house >= 0) & (house < self.size.houses)
        return np.where(there, attribute * self.size.houses + house, -1), item

    def symbol(self, token):
        attribute = token - self.blank - 1
        return chr(ord("a") + attribute) if 0 <= attribute < self.size.attributes else super().symbol(token)


class Joint(Format):
    """Token blank + 1 + c n + v is the value v, from 0, in cell c."""

    name = "joint"

    def answer_parts(self):
        cell, value = np.divmod(np.arange(self.size.cells * self.size.houses), self.size.houses)
        return np.stack([cell // self.size.houses + 2, value + 1, cell % self.size.houses + 1], 1)

    def tokens(self, cell, item):
        return (self.blank + 1 + cell * self.size.houses + item % self.size.houses)[..., None]

    def pairs(self, tokens):
        token = tokens[..., 0] - self.blank - 1
        cell, value = np.divmod(token, self.size.houses)
        there = (token >= 0) & (cell < self.size.cells)
        item = self.size.houses * (1 + cell // self.size.houses) + value
        return np.where(there, cell, -1), np.where(there, item, -1)

    def symbol(self, token):
        if token <= self.blank:
            return super().symbol(token)
        cell, item = (int(found[0, 0]) for found in self.pairs(np.array([[[token]]])))
        return f"h{cell % self.size.houses + 1}={self.size.item(item)}" if cell >= 0 else "."


FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (InPlace, Triples, Joint)}


def format_of(size: Size, name: str, slots: int | None = None) -> Format:
    """Raises UserError for a format that there is not; `slots` are by default `clue_slots`."""
    if name not in FORMATS:
        raise UserError(f"data.format is one of {', '.join(FORMATS)}, not {name!r}")
    if slots is not None and slots < 1:
        raise UserError(f"data.clues={slots}: a puzzle has at least one clue")
    return FORMATS[name](size, clue_slots(size) if slots is None else slots)


def zebra_length(houses: int, attributes: int, name: str, slots: int | None = None) -> int:
    """The number of tokens of a puzzle in a format."""
    return format_of(Size(houses, attributes), name, slots).seq_len
