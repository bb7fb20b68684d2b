"""Puzzles as data to train on: made on first use, split, and written in one of four formats.

Every split keeps its puzzles as they were drawn; relabelled values and random orders are drawn when an example is
written for training.  Held-out examples are always written alike: unrelabelled, in the chosen order, a random one
being a fixed function of the example's number.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from dlm.data.cache import cached
from dlm.data.source import SPLITS, Examples
from dlm.data.sudoku import judge, splits
from dlm.data.sudoku.board import parse, read_puzzles
from dlm.data.sudoku.formats import ORDERS, Fills, format_of, text_of
from dlm.data.sudoku.generate import check_givens
from dlm.data.sudoku.grade import grade
from dlm.data.sudoku.shards import PER_SHARD, Collection, Graded
from dlm.data.sudoku.solve import count_solutions, solve
from dlm.data.sudoku.splits import LEVELS, Rows, Wanted
from dlm.data.task import Judgement, TaskSource
from dlm.errors import UserError
from dlm.layout import Layout
from dlm.noise import Stream, uniforms

FILE, HARD = "file", "hard"


class SudokuSource(TaskSource):
    """Minimal puzzles of one size, or puzzles of so many givens, that the seven techniques solve.

    Args:
        size: 4, 6 or 9.
        format: in_place, prefix, triples or joint (dlm.data.sudoku.formats).
        order: of the cells of triples and joint, the givens first: row_major, random (drawn anew at every visit)
            or solver (the blanks as the techniques fill them).
        sequences, held_out: puzzles to train on, and in each of tune, report and, where there are as many, hard.
        seed: of the collection, not of a run.
        givens: None for minimal puzzles.
        strict: whether the techniques have the quirks of the published data (dlm.data.sudoku.grade).
        levels: which puzzles are taken: solved (by the techniques: the published filter), singles, or all.
        relabel: rename the values at random in training. The solver's order stays the solver's order.
        puzzles: a collection of one puzzle to a line, the split "file": only ever evaluated.
        seq_len: as configured; it follows from size and format, so another is refused.
        workers: threads that make what is missing; None: as many as there are processors.

    Splits:
        Besides train, tune and report: "hard", puzzles of the collection that the techniques do not solve, and
        "file". Where the solver's order is asked for, a puzzle that the techniques do not solve is written in the
        order of the fills that they do make, then row by row.

    The fingerprint is that of the held-out puzzles, their format and their order: a model of another format or
    order is refused. `audit["puzzles"]` is that of the puzzles alone, equal for all formats: scores of answers
    compare where it is equal. Neither knows how many puzzles are trained on.

    Raises:
        UserError: for what does not exist or does not go together, a line of `puzzles` that is no proper puzzle of
            this size, and more puzzles than there are.
    """

    error_kinds: ClassVar[dict[int, str]] = judge.ERROR_KINDS

    def __init__(
        self,
        size: int,
        format: str = "in_place",
        order: str | None = None,
        sequences: int = 10_000,
        held_out: int = 500,
        seed: int = 0,
        givens: int | None = None,
        strict: bool = True,
        levels: str = "solved",
        relabel: bool = True,
        puzzles: str | Path | None = None,
        cache_dir: str | Path = ".cache/data",
        seq_len: int | None = None,
        workers: int | None = None,
    ) -> None:
        self.format = format_of(size, format)
        self.shape, self.order, self.seed, self.relabel = self.format.shape, order, seed, relabel
        check(self.format.ordered, format, order, levels, sequences, held_out, seed)
        check_givens(self.shape, givens)
        self.seq_len, self.vocab_size = self.format.seq_len, self.format.vocab_size
        self.layout = self.format.layout
        if seq_len is not None and seq_len != self.seq_len:
            raise UserError(f"seq_len={seq_len}: {size}x{size} puzzles as {format} have {self.seq_len} tokens")
        draws = (size if relabel else 0) + (self.shape.cells if order == "random" else 0)
        self.noise_shape = (draws,) if draws else None
        wanted = Wanted(Collection(size, seed, PER_SHARD, strict, givens), levels, sequences, held_out)
        root = Path(cache_dir).resolve() / "sudoku"
        key = digest(splits.VERSION, *wanted)
        self.folder = root / f"{wanted.collection.name}-{levels}-{sequences}-{key[:8]}"
        workers = workers or os.cpu_count() or 1
        meta = cached(self.folder, lambda folder: splits.build(wanted, root, folder, workers))
        self.counts: dict[str, int] = dict(meta["audit"]["sequences"])
        self.splits = (*SPLITS, *([HARD] if self.counts[HARD] else []))
        self.fingerprint = digest(meta["puzzles"], format, order, meta["orders"] if order == "solver" else None)
        self.audit = {
            "name": f"sudoku {size}x{size}",
            "task": "sudoku",
            "size": size,
            "format": format,
            "order": order,
            "seed": seed,
            "mode": "strict" if strict else "full",
            "taken": levels,
            "asked_givens": givens,
            "relabel": relabel,
            "puzzles": meta["puzzles"],
            "tokens": {split: count * self.seq_len for split, count in self.counts.items()},
            **meta["audit"],
        }
        self._file: Rows | None = None
        if puzzles is not None:
            self.add_file(Path(puzzles), strict)

    @classmethod
    def outline(cls, *, size: int, format: str = "in_place", **_: Any) -> tuple[int, Layout]:
        written = format_of(size, format)
        return written.vocab_size, written.layout

    def add_file(self, path: Path, strict: bool = True) -> None:
        """Make a collection of puzzles the split "file".

        Raises:
            UserError: for the first line that is malformed, of another size, or no proper puzzle.
        """
        where, boards = [], []
        for line, board in read_puzzles(path):
            if len(board) != self.shape.cells:
                raise UserError(f"{line}: {len(board)} cells, not a {self.shape.size}x{self.shape.size} puzzle")
            where.append(line)
            boards.append(board)
        if not boards:
            raise UserError(f"{path} holds no puzzle")
        puzzle = np.stack(boards)
        for line, count in zip(where, count_solutions(puzzle, self.shape), strict=True):
            if count != 1:
                raise UserError(f"{line}: {'no solution' if count == 0 else 'more than one solution'}")
        grades = grade(puzzle, self.shape, strict)
        solution = solve(puzzle, self.shape)
        self._file = Rows.of(Graded(puzzle, solution, grades.solved, grades.level, grades.order, grades.technique))
        self.counts[FILE] = len(puzzle)
        self.splits = (*(split for split in self.splits if split != FILE), FILE)
        self.audit["file"] = {
            "path": str(path),
            "sequences": len(puzzle),
            "sha256": hashlib.sha256(puzzle.tobytes()).hexdigest()[:16],
            "levels": splits.level_counts(grades.level),
            "givens": splits.spread(self._file.givens),
        }

    def rows(self, split: str, numbers: Int[np.ndarray, " B"] | None = None) -> Rows:
        """Puzzles by their numbers, or all.

        Raises:
            UserError: for a split that there is not.
        """
        if split == FILE and self._file is not None:
            kept = self._file.packed()
        elif split in self.splits:
            kept = splits.read_rows(self.folder, split, self.shape)
        elif split == HARD:
            solved = (
                "all of its puzzles are taken" if self.audit["taken"] == "all" else "techniques solve all of it"
            )
            raise UserError(f"split=hard: this collection of {self.audit['name']} has no hard puzzles ({solved})")
        elif split == FILE:
            raise UserError("split=file: no collection was given, data.puzzles=FILE names one")
        else:
            raise UserError(f"split is one of {', '.join(self.splits)}, not {split!r}")
        return Rows.unpacked(kept if numbers is None else np.asarray(kept[numbers]))

    def count(self, split: str) -> int:
        return self.counts[split] if split in self.splits else len(self.rows(split).givens)

    def written(self, split: str, numbers: Int[np.ndarray, " B"], noise: Float[Tensor, "B draws"] | None):
        rows = self.rows(split, numbers)
        puzzle, solution, order = rows.puzzle, rows.solution, rows.order.astype(np.int64)
        drawn = None if noise is None else noise.numpy()
        if drawn is not None and self.relabel:
            puzzle, solution = relabelled(drawn[:, : self.shape.size], puzzle, solution)
            drawn = drawn[:, self.shape.size :]
        if self.order == "random":
            key = (1 + self.splits.index(split)) << 40  # apart from the rows of any training stream
            held = None if drawn is not None else uniforms(self.seed, Stream.VIEW, key + numbers, self.shape.cells)
            order = np.argsort((puzzle == 0) + (drawn if held is None else held.numpy()), axis=1)
        elif self.order == "row_major":
            order = np.argsort(puzzle == 0, axis=1, kind="stable")
        x0, target = self.format.write(puzzle, solution, order)
        return Examples(torch.from_numpy(x0), torch.from_numpy(target))

    def _read(self, split, numbers, x, fixed_at) -> tuple[np.ndarray, np.ndarray, Fills]:
        rows = self.rows(split, numbers)
        puzzle = rows.puzzle
        return puzzle, rows.solution, self.format.read(puzzle, np.asarray(x), np.asarray(fixed_at))

    def judge(self, split, numbers, x, fixed_at) -> Judgement:
        """Answers to puzzles as they are written held out; see dlm.data.sudoku.judge. The end symbol of `prefix`
        is no cell, and the steps of `triples` and `joint` are the places in the sequence."""
        return judge.judge(*self._read(split, numbers, x, fixed_at), self.shape)

    def trace(self, split, number, x, fixed_at) -> dict[str, Any]:
        one = (np.asarray(part)[None] for part in (number, x, fixed_at))
        return judge.trace(*self._read(split, *one), self.shape)[0]

    def strata(self, split, numbers):
        rows = self.rows(split, numbers)
        return {"level": rows.level.astype(np.int64), "givens": rows.givens.astype(np.int64)}

    def place(self, split, numbers):
        rows = self.rows(split, numbers)
        places = self.format.places(rows.puzzle, rows.rank)
        return None if places is None else torch.from_numpy(places).double()

    def encode(self, text: str) -> list[int]:
        """A puzzle as the beginning of a sequence. Raises UserError where it is none."""
        board = parse(text)
        if len(board) != self.shape.cells:
            raise UserError(f"{len(board)} cells, not a {self.shape.size}x{self.shape.size} puzzle")
        return self.format.prompt(board)

    def decode(self, ids: ArrayLike) -> str:
        return text_of(self.format, np.asarray(ids))


def check(ordered: bool, format: str, order: str | None, levels: str, sequences: int, held_out: int, seed: int):
    """Raises UserError for settings that do not exist, or do not go together."""
    if ordered and order not in ORDERS:
        raise UserError(f"data.format={format} needs data.order, one of {', '.join(ORDERS)}, not {order!r}")
    if not ordered and order is not None:
        raise UserError(f"data.order={order} belongs to data.format=triples or joint; {format} has one order only")
    if levels not in LEVELS:
        raise UserError(f"data.levels is one of {', '.join(LEVELS)}, not {levels!r}")
    if order == "solver" and levels == "all":
        raise UserError("data.order=solver needs puzzles that the techniques solve: data.levels=solved or singles")
    for name, value in {"sequences": sequences, "held_out": held_out}.items():
        if value < 1:
            raise UserError(f"data.{name}={value} must be at least 1")
    if not 0 <= seed < 1 << 56:
        raise UserError(f"data.seed={seed} must be in 0..2^56-1")


def relabelled(noise: np.ndarray, *boards: np.ndarray) -> list[np.ndarray]:
    """Every row of the boards under a random renaming of the values; blanks stay blank."""
    names = np.zeros((len(noise), noise.shape[1] + 1), dtype=np.uint8)
    names[:, 1:] = np.argsort(noise, axis=1) + 1
    return [np.take_along_axis(names, board.astype(np.int64), axis=1) for board in boards]


def digest(*parts: Any) -> str:
    """16 hex digits of what these say."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
