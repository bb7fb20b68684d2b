"""Boards: a puzzle or a solution as one row of cells, 0 for a blank.

A board of n x n cells has n rows, n columns and n boxes of box_rows x box_cols cells; each unit holds every value
1..n once.  Cells are numbered row by row.  A puzzle is proper if exactly one solution agrees with its givens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dlm.errors import UserError

Boards = UInt8[np.ndarray, "N cells"]


@dataclass(frozen=True)
class Shape:
    """The size of a board and of its boxes."""

    box_rows: int
    box_cols: int

    @property
    def size(self) -> int:
        return self.box_rows * self.box_cols

    @property
    def cells(self) -> int:
        return self.size**2

    @cached_property
    def units(self) -> np.ndarray:
        """The cells of every unit, rows, then columns, then boxes: [3 n, n]."""
        n = self.size
        grid = np.arange(n * n).reshape(n, n)
        boxes = grid.reshape(self.box_cols, self.box_rows, self.box_rows, self.box_cols).swapaxes(1, 2)
        return np.concatenate([grid, grid.T, boxes.reshape(n, n)])

    @cached_property
    def places(self) -> np.ndarray:
        """The row, the column and the box of every cell: [cells, 3]."""
        found = np.empty((self.cells, 3), dtype=np.int64)
        for index, unit in enumerate(self.units):
            found[unit, index // self.size] = index % self.size
        return found


SHAPES = {4: Shape(2, 2), 6: Shape(2, 3), 9: Shape(3, 3)}


def shape_of(size: int) -> Shape:
    """Raises UserError for a size without a shape."""
    if size not in SHAPES:
        raise UserError(f"size={size}: Sudoku comes in the sizes {', '.join(map(str, SHAPES))}")
    return SHAPES[size]


def parse(text: str, where: str = "puzzle") -> UInt8[np.ndarray, " cells"]:
    """A board from its cells in reading order: digits, and 0, `.` or `_` for blanks; spaces and bars are skipped.

    Raises:
        UserError: for another number of cells, a character or a value that has no place, or givens that repeat
            a value within a unit; `where` says which puzzle.
    """
    symbols = [c for c in text if c not in " |+-\t\r\n"]
    sizes = {shape.cells: shape for shape in SHAPES.values()}
    if len(symbols) not in sizes:
        known = ", ".join(f"{cells} ({shape.size}x{shape.size})" for cells, shape in sizes.items())
        raise UserError(f"{where}: {len(symbols)} cells; a board has {known}")
    shape = sizes[len(symbols)]
    for place, symbol in enumerate(symbols):
        if symbol not in "._" and not (symbol.isdecimal() and symbol.isascii() and int(symbol) <= shape.size):
            row, column = divmod(place, shape.size)
            place = f"row {row + 1}, column {column + 1}"
            raise UserError(f"{where}: {symbol!r} at {place} is no value of 1..{shape.size}")
    board = np.array([0 if c in "._" else int(c) for c in symbols], dtype=np.uint8)
    if (clash := repeated(board, shape)) is not None:
        kind, number, value = clash
        raise UserError(f"{where}: {kind} {number} holds {value} twice")
    return board


def repeated(board: UInt8[np.ndarray, " cells"], shape: Shape) -> tuple[str, int, int] | None:
    """The first unit that holds a value twice: its kind, its number from 1, and the value."""
    for index, unit in enumerate(shape.units):
        values = board[unit]
        values = values[values > 0]
        if len(np.unique(values)) < len(values):
            kind = ("row", "column", "box")[index // shape.size]
            return kind, index % shape.size + 1, int(np.bincount(values).argmax())
    return None


def is_solution(boards: Boards, shape: Shape) -> np.ndarray:
    """Whether each board is complete and every unit holds every value."""
    whole = np.sort(boards[:, shape.units], axis=-1) == np.arange(1, shape.size + 1)
    return whole.all(axis=(1, 2))


def text(board: UInt8[np.ndarray, " cells"]) -> str:
    """The cells in one line, `.` for a blank."""
    return "".join(str(v) if v else "." for v in board.tolist())


def drawn(board: UInt8[np.ndarray, " cells"]) -> str:
    """The board as a square with bars between its boxes."""
    shape = shape_of(int(np.sqrt(len(board))))
    n, lines = shape.size, []
    bar = "+".join(["-" * (2 * shape.box_cols + 1)] * shape.box_rows)
    for row in range(n):
        if row and row % shape.box_rows == 0:
            lines.append(bar)
        cells = [str(v) if v else "." for v in board[row * n : (row + 1) * n].tolist()]
        groups = [cells[c : c + shape.box_cols] for c in range(0, n, shape.box_cols)]
        lines.append("|".join(f" {' '.join(group)} " for group in groups))
    return "\n".join(lines)


def read_puzzles(path: Path) -> Iterator[tuple[str, UInt8[np.ndarray, " cells"]]]:
    """(where, board) of every line of a collection; blank lines and lines from `#` on are skipped, and so is what
    follows a comma or a space after the board (solutions, ratings).

    Raises:
        UserError: for a missing or unreadable file, or a malformed puzzle, by its line.
    """
    for where, line in puzzle_lines(path):
        yield where, parse(line.replace(",", " ").split()[0], where)


def puzzle_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of every line of a collection of any puzzles, without what follows a `#`, blank ones skipped.

    Raises:
        UserError: for a missing or unreadable file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read puzzles from {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        line = line.split("#")[0].strip()
        if line:
            where = f"{path}:{number}"
            yield where, line
