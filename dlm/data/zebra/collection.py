"""The puzzles of a run: training and held-out splits that share no puzzle, made once and kept.

Puzzles come from one endless stream that (size, slots, style, seed) decides; `report` takes the first, then
`tune`, then `train`, so more training puzzles leave the others as they were. A puzzle that the solver of deduce.py
does not get through is not taken, nor is one that is another's view (views.py): no two puzzles of all splits are
the same under any renaming, exchange of attributes or clues, or reversal of the row. `hard` comes from a stream of
minimal puzzles and takes what the solver does not get through.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int16, UInt8
from tqdm import tqdm

from dlm.data.cache import cached
from dlm.data.source import HELD_OUT
from dlm.data.zebra.deduce import UNSOLVED, Deductions, deduce
from dlm.data.zebra.generate import Puzzles, generate
from dlm.data.zebra.puzzle import NO_CLUE, Clues, Size, Solutions, houses_of
from dlm.data.zebra.views import keys
from dlm.errors import UserError

VERSION = 1  # of the generator and the solver: raised with any change of their numbers
CHUNK = 4096
FEWEST_NEW = 0.01  # of a chunk; below that nearly all there are have been seen


class Collection(NamedTuple):
    """What decides every puzzle of a run."""

    houses: int
    attributes: int
    slots: int
    style: str
    seed: int
    sequences: int
    held_out: int

    @property
    def size(self) -> Size:
        return Size(self.houses, self.attributes)

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps([VERSION, *self]).encode()).hexdigest()[:8]
        return f"zebra-{self.size}-{self.style}-s{self.seed}-{digest}"


class Graded(NamedTuple):
    """The puzzles of a split, and how the solver gets through them."""

    clues: Clues
    solutions: Solutions
    order: Int16[np.ndarray, "N cells"]  # cells as they are filled, -1 after the last
    kind: UInt8[np.ndarray, "N cells"]
    level: UInt8[np.ndarray, " N"]

    def rows(self, which: slice | Int[np.ndarray, " K"]) -> "Graded":
        return Graded(*(column[which] for column in self))


def graded(puzzles: Puzzles, size: Size) -> Graded:
    found: Deductions = deduce(puzzles.clues, houses_of(puzzles.solutions, size), size)
    return Graded(*puzzles, found.order, found.kind, found.level)


def fresh(collection: Collection, hard: bool, seen: set[int], workers: int) -> Iterator[Graded]:
    """Puzzles nobody has seen, a chunk at a time: those that the solver gets through, or (hard) does not. Adds
    them to `seen`."""
    size, style = collection.size, "minimal" if hard else collection.style

    def chunk(number: int) -> tuple[Graded, np.ndarray]:
        found = generate(
            size, CHUNK, collection.seed, int(hard), number * CHUNK, slots=collection.slots, style=style
        )
        return graded(found, size), keys(found.clues, found.solutions, size)

    with ThreadPoolExecutor(workers) as pool:  # the compiled loops leave Python to others
        number = 0
        while True:
            for found, key in pool.map(chunk, range(number, number + workers)):
                wanted = np.flatnonzero((found.level == UNSOLVED) == hard)
                new = []
                for row in wanted:
                    if int(key[row]) not in seen:
                        seen.add(int(key[row]))
                        new.append(row)
                yield found.rows(np.array(new, dtype=np.int64))
                if len(new) <= FEWEST_NEW * len(wanted):
                    return
            number += workers


def make(folder: Path, collection: Collection, workers: int = 1) -> dict:
    """The meta data of the collection in `folder`, made if it is not there whole.

    Raises:
        UserError: if there are fewer different puzzles than it wants.
    """

    def build(temporary: Path) -> dict:
        held, wanted = collection.held_out, collection.sequences + 2 * collection.held_out
        seen: set[int] = set()
        parts = taken(fresh(collection, False, seen, workers), wanted, f"zebra {collection.size}")
        if (got := len(parts.level)) < wanted:
            raise UserError(
                f"{got} different {collection.size} {collection.style} puzzles were found, not the {wanted} of"
                " data.sequences and twice data.held_out"
            )
        splits = {"report": slice(held), "tune": slice(held, 2 * held), "train": slice(2 * held, None)}
        splits = {split: parts.rows(which) for split, which in splits.items()}
        hard = taken(fresh(collection, True, seen, workers), held, f"zebra {collection.size} hard")
        splits["hard"] = hard
        own = {split: keys(rows.clues, rows.solutions, collection.size) for split, rows in splits.items()}
        content = hashlib.sha256()
        for split in HELD_OUT:
            for column in splits[split]:
                content.update(column.tobytes())
        for split, rows in splits.items():
            np.savez_compressed(temporary / f"{split}.npz", **rows._asdict())
        return {
            "version": VERSION,
            **collection._asdict(),
            "puzzles": content.hexdigest()[:16],
            "audit": {
                "sequences": {split: len(rows.level) for split, rows in splits.items()},
                "levels": {split: counts(rows.level) for split, rows in splits.items()},
                "clues": {split: counts((rows.clues[..., 0] != NO_CLUE).sum(1)) for split, rows in splits.items()},
                "leak_audit": {
                    "classes_shared": {
                        f"{one} {other}": len(np.intersect1d(own[one], own[other]))
                        for one, other in combinations(own, 2)
                    },
                    "repeated": {split: len(key) - len(np.unique(key)) for split, key in own.items()},
                },
            },
        }

    return cached(folder / collection.name, build)


def counts(numbers: Int[np.ndarray, " N"] | UInt8[np.ndarray, " N"]) -> dict[str, int]:
    """How often each number occurs."""
    found, times = np.unique(numbers, return_counts=True)
    return {str(number): int(count) for number, count in zip(found, times, strict=True)}


def taken(chunks: Iterator[Graded], wanted: int, name: str) -> Graded:
    """The first `wanted` of them, or all there are."""
    parts, got = [], 0
    with tqdm(total=wanted, desc=name, unit=" puzzles", disable=None, leave=False) as bar:
        for part in chunks:
            parts.append(part.rows(slice(wanted - got)))
            bar.update(len(parts[-1].level))
            got += len(parts[-1].level)
            if got == wanted:
                break
    return Graded(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def read(folder: Path, collection: Collection, split: str) -> Graded:
    """A split of a collection that was made."""
    with np.load(folder / collection.name / f"{split}.npz") as content:
        return Graded(**{name: content[name] for name in Graded._fields})
