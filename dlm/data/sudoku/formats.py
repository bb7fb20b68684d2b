"""Four ways of writing a puzzle with its solution as a sequence, and of reading an answer as a series of fills.

in_place   n^2 tokens, the values of the cells in reading order; the givens are no targets.
prefix     n^2 clues (with a symbol for a blank), a separator, n^2 answers, an end: as in Ye et al. 2025 and Kim et
           al. 2025. All answers are targets, the copies of the givens and the end included.
triples    row, column, value of one cell after the other, as in Shah et al. 2024. The givens come first and are no
           targets.
joint      one token for a cell with its value, in the same order: a third as long.

A triple's three kinds of tokens are different ones here (the published vocabulary shares the digits 0..9 between
them), but each is made of its kind and its number (dlm.layout), so the network may still share what it learns.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from dlm.data.sudoku.board import Boards, Shape, drawn, shape_of
from dlm.errors import UserError
from dlm.layout import Layout

ORDERS = ("row_major", "random", "solver")
Orders = Int[np.ndarray, "B cells"]
"""All cells of a board as they are written: givens first."""


class Written(NamedTuple):
    """Sequences, and which tokens of them are targets."""

    x0: Int[np.ndarray, "B L"]
    target: Bool[np.ndarray, "B L"]


class Fills(NamedTuple):
    """What an answer writes on the board, in up to K fills; those of equal step are simultaneous."""

    made: Bool[np.ndarray, "B K"]  # whether it is a fill at all: givens and their faithful copies are none
    step: Int[np.ndarray, "B K"]
    cell: Int[np.ndarray, "B K"]  # -1: outside the board
    value: UInt8[np.ndarray, "B K"]  # 0: no value


class Format(ABC):
    """One way of writing boards of one shape."""

    name: ClassVar[str]
    ordered: ClassVar[bool] = False  # whether it writes the cells in an order that the data choose
    seq_len: int
    vocab_size: int
    layout: Layout

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @abstractmethod
    def write(self, puzzle: Boards, solution: Boards, order: Orders | None = None) -> Written:
        """The sequences of puzzles with their solutions; `order` where the format is `ordered`."""

    @abstractmethod
    def read(self, puzzle: Boards, x: Int[np.ndarray, "B L"], fixed_at: Int[np.ndarray, "B L"]) -> Fills:
        """The fills of answers `x`, whose tokens took their values at the steps `fixed_at` (-1: given)."""

    @abstractmethod
    def boards(self, x: Int[np.ndarray, "B L"]) -> Boards:
        """What sequences say of every cell, 0 for nothing; of a cell that is written twice, the first."""

    @abstractmethod
    def places(self, puzzle: Boards, rank: Int[np.ndarray, "B cells"]) -> Int[np.ndarray, "B L"] | None:
        """The rank of every slot's cell, less than zero for what is known before the first fill; None where slots
        belong to no cell."""

    @abstractmethod
    def prompt(self, puzzle: UInt8[np.ndarray, " cells"]) -> list[int]:
        """The tokens that say a puzzle and stand before its answer; of a complete board, all. Raises UserError
        where a puzzle is no beginning of a sequence."""

    def symbol(self, token: int) -> str:
        """One token for a reader."""
        return str(token)


class InPlace(Format):
    name = "in_place"

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.seq_len, self.vocab_size = shape.cells, shape.size
        self.layout = Layout(slots=torch.from_numpy(shape.places))

    def write(self, puzzle, solution, order=None):
        return Written(solution.astype(np.int64) - 1, puzzle == 0)

    def read(self, puzzle, x, fixed_at):
        value = self.boards(x)
        cell = np.broadcast_to(np.arange(self.shape.cells), value.shape)
        return Fills((puzzle == 0) | (value != puzzle), fixed_at, cell, value)

    def boards(self, x):
        return np.where((x >= 0) & (x < self.shape.size), x + 1, 0).astype(np.uint8)

    def places(self, puzzle, rank):
        return np.where(puzzle > 0, -1, rank)

    def prompt(self, puzzle):
        if (puzzle == 0).any():
            raise UserError("data.format=in_place writes blanks as masks: only a complete board has tokens")
        return (puzzle.astype(int) - 1).tolist()

    def symbol(self, token):
        return str(token + 1) if token < self.vocab_size else "."


class Prefix(Format):
    """Token v is the value v, 0 the blank, n + 1 the separator, n + 2 the end."""

    name = "prefix"

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.seq_len, self.vocab_size = 2 * shape.cells + 2, shape.size + 3
        self.separator, self.end = shape.size + 1, shape.size + 2
        nowhere = np.full((1, 3), shape.size)
        stands = np.concatenate([shape.places, nowhere, shape.places, nowhere])
        half = np.repeat([0, 2, 1, 3], [shape.cells, 1, shape.cells, 1])
        self.layout = Layout(slots=torch.from_numpy(np.column_stack([half, stands])))
        self.answer = slice(shape.cells + 1, 2 * shape.cells + 1)

    def write(self, puzzle, solution, order=None):
        one = np.ones((len(puzzle), 1), dtype=np.int64)
        x0 = np.concatenate([puzzle, self.separator * one, solution, self.end * one], axis=1).astype(np.int64)
        return Written(x0, np.broadcast_to(np.arange(self.seq_len) > self.shape.cells, x0.shape).copy())

    def read(self, puzzle, x, fixed_at):
        value = self.boards(x)
        cell = np.broadcast_to(np.arange(self.shape.cells), value.shape)
        return Fills((puzzle == 0) | (value != puzzle), fixed_at[:, self.answer], cell, value)

    def boards(self, x):
        answer = x[:, self.answer]
        return np.where((answer >= 0) & (answer <= self.shape.size), answer, 0).astype(np.uint8)

    def places(self, puzzle, rank):
        place = np.full((len(puzzle), self.seq_len), -1)
        place[:, self.answer] = np.where(puzzle > 0, -1, rank)
        place[:, -1] = self.shape.cells  # the end comes last
        return place

    def prompt(self, puzzle):
        return [*map(int, puzzle), self.separator]

    def symbol(self, token):
        return "." if token == 0 else str(token) if token <= self.shape.size else "|"


class Ordered(Format):
    """Cells one after the other, so many tokens each."""

    ordered = True
    per_cell: ClassVar[int]

    def write(self, puzzle, solution, order=None):
        assert order is not None
        tokens = self.tokens(order, np.take_along_axis(solution, order, axis=1).astype(np.int64))
        blank = np.take_along_axis(puzzle, order, axis=1) == 0
        return Written(tokens.reshape(len(puzzle), -1), np.repeat(blank, self.per_cell, axis=1))

    def read(self, puzzle, x, fixed_at):
        cell, value = self.pairs(x.reshape(len(x), -1, self.per_cell))
        step = np.arange(self.shape.cells) - (puzzle > 0).sum(axis=1, keepdims=True)
        return Fills(step >= 0, step, cell, value)

    def boards(self, x):
        cell, value = self.pairs(x.reshape(len(x), -1, self.per_cell))
        found = np.zeros((len(x), self.shape.cells), dtype=np.uint8)
        for k in reversed(range(self.shape.cells)):
            on = np.flatnonzero(cell[:, k] >= 0)
            found[on, cell[on, k]] = value[on, k]
        return found

    def places(self, puzzle, rank):
        return None

    def prompt(self, puzzle):
        cells = np.flatnonzero(puzzle)
        return self.tokens(cells[None], puzzle[None, cells].astype(np.int64)).reshape(-1).tolist()

    @abstractmethod
    def tokens(self, cell: Int[np.ndarray, "B K"], value: Int[np.ndarray, "B K"]) -> Int[np.ndarray, "B K P"]:
        """The tokens of cells with their values 1..n."""

    @abstractmethod
    def pairs(self, tokens: Int[np.ndarray, "B K P"]) -> tuple[Int[np.ndarray, "B K"], UInt8[np.ndarray, "B K"]]:
        """The other way: -1 for no cell, 0 for no value."""


class Triples(Ordered):
    """Token i is row i, n + i column i, 2 n + i the value i + 1."""

    name = "triples"
    per_cell = 3

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.seq_len, self.vocab_size = 3 * shape.cells, 3 * shape.size
        number, kind = np.divmod(np.arange(self.seq_len), 3)
        made_of = np.stack(np.divmod(np.arange(self.vocab_size), shape.size), axis=1)
        self.layout = Layout(torch.from_numpy(np.stack([kind, number], axis=1)), torch.from_numpy(made_of))

    def tokens(self, cell, value):
        n = self.shape.size
        return np.stack([cell // n, n + cell % n, 2 * n + value - 1], axis=-1)

    def pairs(self, tokens):
        n = self.shape.size
        row, column, value = (tokens[..., k] - k * n for k in range(3))
        on_board = (row >= 0) & (row < n) & (column >= 0) & (column < n)
        known = (value >= 0) & (value < n)
        return np.where(on_board, row * n + column, -1), np.where(known, value + 1, 0).astype(np.uint8)

    def symbol(self, token):
        kind, number = divmod(token, self.shape.size)
        return f"{('row ', 'column ', '')[kind]}{number + 1}" if kind < 3 else "."


class Joint(Ordered):
    """Token c n + v - 1 is the value v in cell c."""

    name = "joint"
    per_cell = 1

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.seq_len, self.vocab_size = shape.cells, shape.cells * shape.size
        cell, value = np.divmod(np.arange(self.vocab_size), shape.size)
        self.layout = Layout(tokens=torch.from_numpy(np.column_stack([cell, shape.places[cell], value])))

    def tokens(self, cell, value):
        return (cell * self.shape.size + value - 1)[..., None]

    def pairs(self, tokens):
        cell, value = np.divmod(tokens[..., 0], self.shape.size)
        on_board = (cell >= 0) & (cell < self.shape.cells)
        return np.where(on_board, cell, -1), np.where(on_board, value + 1, 0).astype(np.uint8)

    def symbol(self, token):
        cell, value = divmod(token, self.shape.size)
        row, column = divmod(cell, self.shape.size)
        return f"r{row + 1}c{column + 1}={value + 1}" if cell < self.shape.cells else "."


FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (InPlace, Prefix, Triples, Joint)}


def format_of(size: int, name: str) -> Format:
    """Raises UserError for a size or a format that there is not."""
    if name not in FORMATS:
        raise UserError(f"data.format is one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name](shape_of(size))


def puzzle_length(size: int, name: str) -> int:
    """The number of tokens of a puzzle of size n in a format."""
    return format_of(size, name).seq_len


def text_of(written: Format, ids: Tensor | np.ndarray | list[int]) -> str:
    """A whole sequence as its board, with `.` where it says nothing; anything else symbol by symbol."""
    tokens = np.asarray(ids, dtype=np.int64).reshape(-1)
    if len(tokens) != written.seq_len:
        return " ".join(written.symbol(int(token)) for token in tokens)
    return drawn(written.boards(tokens[None])[0])
