"""Zebra puzzles from the command line.

python -m dlm.data.zebra make houses=4 attributes=4 puzzles=1000 out=puzzles.txt   a collection, one to a line
python -m dlm.data.zebra check file=puzzles.txt                                    proper, ambiguous or impossible
python -m dlm.data.zebra show houses=3 attributes=3 seed=3                         a puzzle, and how it is solved
python -m dlm.data.zebra show puzzle='3x3 a1=h2; b1<a2; ...'                      this one

How a puzzle is written is told in dlm.data.zebra.puzzle.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dlm import config
from dlm.data.zebra.deduce import KINDS, UNSOLVED, deduce
from dlm.data.zebra.formats import clue_slots
from dlm.data.zebra.generate import STYLES, generate
from dlm.data.zebra.puzzle import (
    NO_CLUE,
    Clues,
    Size,
    drawn,
    houses_of,
    parse,
    read_puzzles,
    told,
    written,
    written_clue,
)
from dlm.data.zebra.solve import count_solutions, solve
from dlm.errors import UserError
from dlm.files import write_atomically

ACTIONS = ("make", "check", "show")
AT_ONCE = 1000
SAYS = {0: "no solution: its clues contradict each other", 2: "more than one solution"}


@dataclass
class Command:
    """The settings of all three actions."""

    houses: int = 4
    attributes: int = 4
    style: str = "published"  # or minimal
    seed: int = 0
    puzzles: int = 1000  # make
    out: str = "zebra.txt"  # make
    file: str | None = None  # check: a collection, one puzzle to a line
    puzzle: str | None = None  # show: this one


def make_collection(command: Command) -> None:
    """A text file of generated puzzles, each with its level behind."""
    size, out = Size(command.houses, command.attributes), Path(command.out)
    if command.puzzles < 1:
        raise UserError(f"puzzles must be at least 1, not {command.puzzles}")
    lines, levels = [], Counter()
    with tqdm(total=command.puzzles, unit=" puzzles", disable=None) as bar:
        for first in range(0, command.puzzles, AT_ONCE):
            count = min(AT_ONCE, command.puzzles - first)
            found = generate(size, count, command.seed, first=first, slots=clue_slots(size), style=command.style)
            level = deduce(found.clues, houses_of(found.solutions, size), size).level.tolist()
            lines += [f"{written(c, size)}  # {name_of(n)}" for c, n in zip(found.clues, level, strict=True)]
            levels.update(level)
            bar.update(count)
    write_atomically(out, "\n".join([*lines, ""]).encode())
    print(f"{command.puzzles} {command.style} {size} puzzles in {out}; hardest needed:")
    for level, count in sorted(levels.items()):
        print(f"    {name_of(level):<20}{count:>10}  {100 * count / command.puzzles:5.1f} %")


def name_of(level: int) -> str:
    return "not deducible" if level == UNSOLVED else KINDS[level]


def check(command: Command) -> None:
    """Raises UserError, naming the first line, unless every puzzle has exactly one solution."""
    if command.file is None:
        raise UserError("which puzzles? file=COLLECTION, one puzzle to a line")
    bad, total = [], 0
    for where, size, clues in read_puzzles(Path(command.file)):
        total += 1
        count = solutions_to(clues, size)
        bad += [f"{where}: {SAYS[count]}"] if count != 1 else []
    if not total:
        raise UserError(f"{command.file} holds no puzzle")
    if bad:
        raise UserError(f"{bad[0]} ({len(bad)} of {total} puzzles are not proper)")
    print(f"{total} puzzles, each with exactly one solution")


def solutions_to(clues: Clues, size: Size) -> int:
    """0, 1, or 2 for more."""
    return int(count_solutions(clues[None], size)[0])


def show(command: Command) -> None:
    """A puzzle, its solution, and the cells in the order in which clues decide them."""
    if command.puzzle is not None:
        size, clues = parse(command.puzzle)
        if (count := solutions_to(clues, size)) != 1:
            raise UserError(f"puzzle: {SAYS[count]}")
    else:
        size = Size(command.houses, command.attributes)
        clues = generate(size, 1, command.seed, slots=clue_slots(size), style=command.style).clues[0]
        clues = clues[clues[:, 0] != NO_CLUE]
    solution = solve(clues[None], size)[0]
    print(written(clues, size), "", sep="\n")
    for clue in clues:
        print(f"{written_clue(clue, size):<12}{told(clue, size)}")
    print("", drawn(solution, size), "", sep="\n")
    found = deduce(clues[None], houses_of(solution[None], size), size)
    filled = int((found.order[0] >= 0).sum())
    for cell, kind in zip(found.order[0, :filled].tolist(), found.kind[0, :filled].tolist(), strict=True):
        attribute, house = divmod(cell, size.houses)
        item = size.item((1 + attribute) * size.houses + int(solution[cell]))
        print(f"house {house + 1}: {item:<6}{KINDS[kind]}")
    if filled < size.cells:
        print(f"the solver gets no further: {size.cells - filled} cells are left")


def main() -> None:
    action, *arguments = sys.argv[1:] or [""]
    if action not in ACTIONS:
        raise UserError(f"python -m dlm.data.zebra {'|'.join(ACTIONS)} key=value ..., not {action!r}")
    command: Command = config.command_line(Command, arguments)
    if command.style not in STYLES:
        raise UserError(f"style={command.style}: zebra puzzles are {' or '.join(STYLES)}")
    {"make": make_collection, "check": check, "show": show}[action](command)


if __name__ == "__main__":
    config.entry(main)
