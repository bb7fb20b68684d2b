"""Boards: shapes, units, reading and drawing, and what is said to malformed ones."""

import numpy as np
import pytest

from dlm.data.sudoku.board import SHAPES, drawn, is_solution, parse, read_puzzles, repeated, shape_of, text
from dlm.errors import UserError

FOUR = "12..34....1...2."
NINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda s: f"{s.size}x{s.size}")
def test_units_cover_every_cell_three_times(shape):
    """n rows, n columns and n boxes; a cell's three units meet in it, and a box is box_rows x box_cols."""
    assert shape.units.shape == (3 * shape.size, shape.size)
    assert (np.bincount(shape.units.flatten()) == 3).all()
    for box in shape.units[2 * shape.size :]:
        rows, columns = np.divmod(box, shape.size)
        assert np.ptp(rows) == shape.box_rows - 1 and np.ptp(columns) == shape.box_cols - 1
        assert len(np.unique(box)) == shape.size


def test_a_solution_holds_every_value_in_every_unit():
    """By construction: value = box_cols * (row % box_rows) + row // box_rows + column, mod n; a swap breaks it."""
    for shape in SHAPES.values():
        row, column = np.divmod(np.arange(shape.cells), shape.size)
        board = (shape.box_cols * (row % shape.box_rows) + row // shape.box_rows + column) % shape.size + 1
        broken, blank = board.copy(), board.copy()
        broken[[0, 1]] = board[[1, 0]]
        blank[3] = 0
        assert is_solution(np.stack([board, broken, blank]).astype(np.uint8), shape).tolist() == [
            True,
            False,
            False,
        ]
        assert repeated(board.astype(np.uint8), shape) is None


@pytest.mark.parametrize("puzzle", [FOUR, NINE])
def test_text_and_drawing_round_trip(puzzle):
    board = parse(puzzle)
    assert text(board) == puzzle and board.dtype == np.uint8
    assert np.array_equal(parse(drawn(board)), board), "the drawing can be read again"
    assert np.array_equal(parse(puzzle.replace(".", "0")), board)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("123", ["3 cells", "16", "36", "81"]),
        (FOUR.replace("4", "x"), ["'x'", "row 2, column 2"]),
        (FOUR.replace("4", "7"), ["'7'", "1..4"]),
        ("11" + "." * 14, ["row 1", "1 twice"]),
        ("1..." + "1..." + "." * 8, ["column 1", "1 twice"]),
        ("1...." + "1" + "." * 10, ["box 1", "1 twice"]),
    ],
)
def test_malformed_puzzles_are_named(wrong, said, tmp_path):
    """Alone, and by the line of their file."""
    with pytest.raises(UserError) as error:
        parse(wrong)
    assert all(word in str(error.value) for word in said)
    file = tmp_path / "puzzles.txt"
    file.write_text(f"# a collection\n\n{FOUR},solution,3.2\n{wrong}\n")
    with pytest.raises(UserError, match=r"puzzles\.txt:4: "):
        list(read_puzzles(file))


def test_files_and_sizes_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        list(read_puzzles(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="size=5"):
        shape_of(5)
