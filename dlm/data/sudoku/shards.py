"""Puzzles by the million: shards that are a function of (seed, shard), graded, hashed, and made only once.

A shard is a folder of `dlm.data.cache`: whole, or made again.  Its puzzles do not depend on how many processes
make the collection, nor on which shards were made before: a collection can be made in pieces and extended later.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, UInt8

from dlm.data.cache import cached, read_intact
from dlm.data.sudoku.board import shape_of
from dlm.data.sudoku.generate import generate
from dlm.data.sudoku.grade import grade
from dlm.errors import UserError

VERSION = 1  # of the generator and the grader: raised with any change of their numbers
BOARDS = "boards.npz"
PER_SHARD = 5_000  # of the collections that training reads
FOLDER = Path(".cache/data/sudoku")  # where it looks for them unless told otherwise


class Collection(NamedTuple):
    """What decides every puzzle of a collection."""

    size: int
    seed: int
    per_shard: int
    strict: bool  # how a puzzle's level and order are found
    givens: int | None = None  # None: minimal puzzles

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps([VERSION, *self]).encode()).hexdigest()[:8]
        kind = "minimal" if self.givens is None else f"{self.givens}-givens"
        return f"{self.size}x{self.size}-{kind}-s{self.seed}-{digest}"


class Graded(NamedTuple):
    """The puzzles of a shard."""

    puzzle: UInt8[np.ndarray, "N cells"]
    solution: UInt8[np.ndarray, "N cells"]
    solved: Bool[np.ndarray, " N"]  # by the seven techniques
    level: UInt8[np.ndarray, " N"]  # the hardest that was needed
    order: Int16[np.ndarray, "N cells"]  # blank cells as they are filled in, -1 padded
    technique: UInt8[np.ndarray, "N cells"]  # which one filled each of `order`


def folder_of(root: Path, collection: Collection, shard: int) -> Path:
    return root / collection.name / f"shard-{shard:05d}"


def make_shard(root: Path, collection: Collection, shard: int) -> dict:
    """Make one shard if it is not there whole; its meta data."""

    def build(folder: Path) -> dict:
        shape = shape_of(collection.size)
        found = generate(shape, collection.per_shard, collection.seed, shard, givens=collection.givens)
        grades = grade(found.puzzle, shape, strict=collection.strict)
        boards = Graded(found.puzzle, found.solution, grades.solved, grades.level, grades.order, grades.technique)
        np.savez_compressed(folder / BOARDS, **boards._asdict())
        return {
            "version": VERSION,
            **collection._asdict(),
            "shard": shard,
            "solved": int(grades.solved.sum()),
            "levels": np.bincount(grades.level[grades.solved], minlength=9).tolist(),
            "mean_givens": float((found.puzzle > 0).sum(1).mean()),
        }

    return cached(folder_of(root, collection, shard), build)


def make(root: Path, collection: Collection, shards: int, workers: int = 1) -> Iterator[dict]:
    """The meta data of every shard 0..shards-1, each made if it is missing, as they become ready."""
    if workers == 1:
        yield from (make_shard(root, collection, shard) for shard in range(shards))
        return
    with ThreadPoolExecutor(workers) as pool:  # the kernels run outside the interpreter's lock
        jobs = [pool.submit(make_shard, root, collection, shard) for shard in range(shards)]
        yield from (job.result() for job in as_completed(jobs))


def read_shard(root: Path, collection: Collection, shard: int) -> Graded:
    """The puzzles of a shard that was made.

    Raises:
        UserError: if it was not, or is damaged.
    """
    folder = folder_of(root, collection, shard)
    if read_intact(folder) is None:
        raise UserError(f"{folder} is missing or damaged: make it with python -m dlm.data.sudoku make")
    with np.load(folder / BOARDS) as content:
        return Graded(**{name: content[name] for name in Graded._fields})
