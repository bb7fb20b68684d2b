"""Puzzles from the command line.

python -m dlm.data.sudoku make size=9 puzzles=100000 workers=2                 graded shards for data=sudoku
python -m dlm.data.sudoku check file=collection.txt                            proper, ambiguous or impossible
python -m dlm.data.sudoku grade file=collection.txt mode=full                  what a human needs for each
python -m dlm.data.sudoku show size=6 seed=3                                   a puzzle, and how it is solved
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dlm import config
from dlm.data.sudoku.board import Shape, drawn, parse, read_puzzles, shape_of, text
from dlm.data.sudoku.generate import check_givens, generate
from dlm.data.sudoku.grade import TECHNIQUES, grade
from dlm.data.sudoku.shards import FOLDER, PER_SHARD, Collection, make
from dlm.data.sudoku.solve import count_solutions, solve
from dlm.errors import UserError

ACTIONS = ("make", "check", "grade", "show")


@dataclass
class Command:
    """The settings of all four actions."""

    size: int = 9
    puzzles: int = 10_000  # make: rounded up to whole shards
    per_shard: int = PER_SHARD
    seed: int = 0
    givens: int | None = None  # make, show: null for minimal puzzles
    mode: str = "strict"  # of the techniques: strict, as the published data, or full
    out: str = str(FOLDER)
    workers: int = 1
    file: str | None = None  # check, grade: a collection, one puzzle to a line
    puzzle: str | None = None  # show: this one

    @property
    def strict(self) -> bool:
        return self.mode == "strict"


def make_collection(command: Command) -> None:
    """Graded shards of generated puzzles; those that are there already are kept."""
    for name in ("puzzles", "per_shard", "workers"):
        if getattr(command, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(command, name)}")
    check_givens(shape_of(command.size), command.givens)
    collection = Collection(command.size, command.seed, command.per_shard, command.strict, command.givens)
    shards = -(-command.puzzles // command.per_shard)
    begin, solved, levels = time.perf_counter(), 0, np.zeros(9, dtype=int)
    with tqdm(total=shards * command.per_shard, unit=" puzzles", disable=None) as bar:
        for meta in make(Path(command.out), collection, shards, command.workers):
            solved += meta["solved"]
            levels += np.array(meta["levels"])
            bar.update(command.per_shard)
    total, seconds = shards * command.per_shard, time.perf_counter() - begin
    print(f"{total} puzzles in {Path(command.out) / collection.name}, {seconds:.1f} s")
    print(f"{solved} ({100 * solved / total:.1f} %) solved by the {command.mode} techniques; hardest needed:")
    print_levels(levels, total)


def print_levels(levels: np.ndarray, total: int) -> None:
    for level, name in TECHNIQUES.items():
        if levels[level]:
            print(f"    {name:<20}{levels[level]:>10}  {100 * levels[level] / total:5.1f} %")


def collection_of(command: Command) -> dict[Shape, list[tuple[str, np.ndarray]]]:
    """The puzzles of `file` by shape, each with its line."""
    if command.file is None:
        raise UserError("which puzzles? file=COLLECTION, one puzzle to a line")
    found: dict[Shape, list[tuple[str, np.ndarray]]] = {}
    for where, board in read_puzzles(Path(command.file)):
        found.setdefault(shape_of(int(np.sqrt(len(board)))), []).append((where, board))
    if not found:
        raise UserError(f"{command.file} holds no puzzle")
    return found


def check(command: Command) -> None:
    """Raises UserError, naming the first line, unless every puzzle has exactly one solution."""
    print(f"{require_proper(collection_of(command))} puzzles, each with exactly one solution")


def require_proper(collection: dict[Shape, list[tuple[str, np.ndarray]]]) -> int:
    """The number of puzzles. Raises UserError, naming the first line that has not exactly one solution."""
    bad, total = [], 0
    for shape, rows in collection.items():
        counts = count_solutions(np.stack([board for _, board in rows]), shape)
        total += len(rows)
        says = {0: "no solution", 2: "more than one solution"}
        bad += [f"{where}: {says[int(n)]}" for (where, _), n in zip(rows, counts, strict=True) if n != 1]
    if bad:
        raise UserError(f"{bad[0]} ({len(bad)} of {total} puzzles are not proper)")
    return total


def grade_collection(command: Command) -> None:
    """One line per puzzle, and how many need what. Raises UserError for one that is not proper, as `check`."""
    collection = collection_of(command)
    require_proper(collection)
    for shape, rows in collection.items():
        grades = grade(np.stack([board for _, board in rows]), shape, strict=command.strict)
        names = [
            "not solved" if not s else TECHNIQUES[int(n)] for s, n in zip(grades.solved, grades.level, strict=True)
        ]
        for (where, board), name in zip(rows, names, strict=True):
            print(f"{where}  {text(board)}  {name}")
        for name, count in Counter(names).most_common():
            print(
                f"    {name:<20}{count:>8} of {len(rows)} at {shape.size}x{shape.size}, {command.mode} techniques"
            )


def show(command: Command) -> None:
    """A puzzle, its solution, and the cells in the order in which a human fills them in."""
    if command.puzzle is not None:
        board = parse(command.puzzle)
        shape = shape_of(int(np.sqrt(len(board))))
        count = int(count_solutions(board[None], shape)[0])
        if count != 1:
            raise UserError(f"puzzle: {'no solution' if count == 0 else 'more than one solution'}")
    else:
        shape = shape_of(command.size)
        board = generate(shape, 1, command.seed, 0, givens=command.givens).puzzle[0]
    solution = solve(board[None], shape)[0]
    grades = grade(board[None], shape, strict=command.strict)
    print(drawn(board), "", drawn(solution), "", sep="\n")
    filled = int((grades.order[0] >= 0).sum())
    for cell, technique in zip(grades.order[0, :filled], grades.technique[0, :filled], strict=True):
        row, column = divmod(int(cell), shape.size)
        print(f"row {row + 1}, column {column + 1}: {solution[cell]}   {TECHNIQUES[int(technique)]}")
    if not grades.solved[0]:
        print(f"the {command.mode} techniques go no further: {int((board == 0).sum()) - filled} cells are left")


def main() -> None:
    action, *arguments = sys.argv[1:] or [""]
    if action not in ACTIONS:
        raise UserError(f"python -m dlm.data.sudoku {'|'.join(ACTIONS)} key=value ..., not {action!r}")
    command: Command = config.command_line(Command, arguments)
    if command.mode not in ("strict", "full"):
        raise UserError(f"mode is strict or full, not {command.mode!r}")
    {"make": make_collection, "check": check, "grade": grade_collection, "show": show}[action](command)


if __name__ == "__main__":
    config.entry(main)
