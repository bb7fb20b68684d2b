"""Splits of a collection: drawn shard by shard, disjoint, and written once as rows of bytes.

The puzzles of a collection come in one order, that of its shards.  The first are held out: one for `report`, one
for `tune`, and so on in turn; `hard` takes those that the techniques do not solve.  All others train.  So held-out
sets do not depend on how much is trained on, and a smaller training set is the beginning of a larger one.

No two splits share a puzzle, and at 6x6 no equivalence class: the first puzzle of a class decides where it goes,
and its like are left out of all other splits (solutions are shared, of which there are 49 classes only).  At 9x9
random puzzles are never equivalent, so only equal ones are looked for, and a sample is checked by canonical form.
At 4x4 all puzzles fall in a few dozen classes: the splits share no puzzle and all classes.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from tqdm import tqdm

from dlm.data.leak import occurs
from dlm.data.sudoku.board import SHAPES, Boards, Shape, shape_of
from dlm.data.sudoku.canonical import canonical
from dlm.data.sudoku.grade import UNSOLVED
from dlm.data.sudoku.shards import Collection, Graded, make_shard, read_shard
from dlm.data.sudoku.solve import count_solutions
from dlm.errors import UserError

VERSION = 1  # of what follows: raised with any change of the rows
LEVELS = {"solved": 8, "singles": 3, "all": UNSOLVED}
"""The hardest level of a puzzle that is taken."""
DISJOINT = (6,)  # sizes whose splits share no class
HARD_AMONG = 40  # puzzles that are searched for one that is hard
RARE = 1e-3  # where fewer puzzles than this are new, the collection is as good as exhausted
SAMPLE = {"train": 2000, "held_out": 500}  # puzzles of a split whose canonical forms are compared


class Wanted(NamedTuple):
    """What decides the splits."""

    collection: Collection
    levels: str
    train: int
    held_out: int


class Rows(NamedTuple):
    """Puzzles as they are kept: 2 n^2 + 2 bytes each."""

    solution: Boards
    order: (
        Boards  # all cells: givens in reading order, then the solver's fills, then what it left, in reading order
    )
    givens: UInt8[np.ndarray, " N"]
    level: UInt8[np.ndarray, " N"]

    @classmethod
    def of(cls, boards: Graded) -> "Rows":
        cells = boards.puzzle.shape[1]
        rank = np.where(boards.puzzle > 0, 0, 2 * cells) + np.arange(cells)
        row, fill = np.nonzero(boards.order >= 0)
        rank[row, boards.order[row, fill]] = cells + fill
        order = np.argsort(rank, axis=1).astype(np.uint8)
        return cls(boards.solution, order, (boards.puzzle > 0).sum(axis=1).astype(np.uint8), boards.level)

    @property
    def puzzle(self) -> Boards:
        cells = self.solution.shape[1]
        given = np.zeros(self.solution.shape, dtype=np.uint8)
        np.put_along_axis(given, self.order, np.arange(cells) < self.givens[:, None], axis=1)
        return self.solution * given

    @property
    def rank(self) -> np.ndarray:
        """The place of every cell in `order`: [N, cells]."""
        return np.argsort(self.order, axis=1)

    def packed(self) -> UInt8[np.ndarray, "N width"]:
        return np.concatenate([self.solution, self.order, self.givens[:, None], self.level[:, None]], axis=1)

    @classmethod
    def unpacked(cls, rows: UInt8[np.ndarray, "N width"]) -> "Rows":
        cells = (rows.shape[1] - 2) // 2
        return cls(rows[:, :cells], rows[:, cells : 2 * cells], rows[:, -2], rows[:, -1])


def row_file(split: str) -> str:
    return f"puzzles-{split}.bin"


def read_rows(folder: Path, split: str, shape: Shape) -> np.ndarray:
    """The rows of a split, mapped from the disk."""
    width = 2 * shape.cells + 2
    if (folder / row_file(split)).stat().st_size == 0:
        return np.zeros((0, width), dtype=np.uint8)
    return np.memmap(folder / row_file(split), dtype=np.uint8, mode="r").reshape(-1, width)


def keys(boards: Boards) -> UInt64[np.ndarray, " N"]:
    """64 bits of each board's hash: two unlike ones among two million share them with a probability of 1e-7."""
    boards = np.ascontiguousarray(boards)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in boards)
    return np.frombuffer(digests, dtype="<u8")


def class_keys(boards: Boards, shape: Shape) -> UInt64[np.ndarray, " N"]:
    """The same of each board's equivalence class."""
    return keys(canonical(boards, shape))


def shared(splits: dict[str, UInt64[np.ndarray, " N"]]) -> dict[str, int]:
    """For every two splits, how many of the second's keys occur in the first: leaks, if it is any."""
    return {f"{a}, {b}": int(occurs(splits[b], splits[a]).sum()) for a, b in combinations(splits, 2)}


class Drawn(NamedTuple):
    """The puzzles of a shard, with their own keys and those that decide their split."""

    rows: Rows
    own: UInt64[np.ndarray, " N"]
    kind: UInt64[np.ndarray, " N"]
    taken: Bool[np.ndarray, " N"]  # whether the level is one that is asked for


class Splitter:
    """Deals shards out to splits."""

    def __init__(self, wanted: Wanted, root: Path, folder: Path, workers: int) -> None:
        self.wanted, self.root, self.workers = wanted, root, workers
        self.shape = shape_of(wanted.collection.size)
        self.split_of: dict[int, str] = {}  # held-out keys
        self.seen: set[int] = set()  # training puzzles
        self.own: dict[str, list[np.ndarray]] = {split: [] for split in ("train", "tune", "report", "hard")}
        self.kind: dict[str, list[np.ndarray]] = {split: [] for split in self.own}
        self.count = dict.fromkeys(self.own, 0)
        self.shards = self.drawn = 0  # shards dealt out, and puzzles drawn while holding out
        with ExitStack() as stack:
            self.files = {split: stack.enter_context(open(folder / row_file(split), "wb")) for split in self.own}
            total = wanted.train + 2 * wanted.held_out
            bar = tqdm(total=total, unit=" puzzles", desc=wanted.collection.name, disable=None)
            self.bar = stack.enter_context(bar)
            self.deal()

    def deal(self) -> None:
        first = []  # the shards that held-out puzzles come from; what they leave is trained on
        for missing in (self.missing_held_out, self.missing_hard):
            for drawn in self.supply(missing):
                self.hold_out(drawn)
                first.append(drawn)
        for drawn in first:
            self.train(drawn)
        for drawn in self.supply(self.missing_train):
            self.train(drawn)

    def missing_held_out(self) -> int:
        return 2 * self.wanted.held_out - self.count["report"] - self.count["tune"]

    def missing_train(self) -> int:
        return self.wanted.train - self.count["train"]

    def missing_hard(self) -> int:
        """Puzzles that are worth drawing in search of hard ones."""
        full = self.wanted.levels == "all" or self.count["hard"] == self.wanted.held_out
        return 0 if full else max(0, HARD_AMONG * self.wanted.held_out - self.drawn)

    def supply(self, missing: Callable[[], int]) -> Iterator[Drawn]:
        """The next shards while something is missing, as many at a time as that will take.

        Raises:
            UserError: where hardly any new puzzle turns up.
        """
        rate, size = 1.0, self.wanted.collection.per_shard
        while (before := missing()) > 0:
            count = max(1, int(before / rate / size))
            with ThreadPoolExecutor(self.workers) as pool:  # the kernels run outside the interpreter's lock
                try:
                    yield from pool.map(self.draw, range(self.shards, self.shards + count))
                finally:  # a reader that has enough waits for no more
                    pool.shutdown(cancel_futures=True)
            self.shards += count
            rate = (before - missing()) / (count * size)
            if rate < RARE:
                raise UserError(self.exhausted())

    def draw(self, shard: int) -> Drawn:
        make_shard(self.root, self.wanted.collection, shard)
        boards = read_shard(self.root, self.wanted.collection, shard)
        own = keys(boards.puzzle)
        kind = class_keys(boards.puzzle, self.shape) if self.shape.size in DISJOINT else own
        return Drawn(Rows.of(boards), own, kind, boards.level <= LEVELS[self.wanted.levels])

    def hold_out(self, drawn: Drawn) -> None:
        """The first puzzle of a class decides where it belongs."""
        chosen: dict[str, list[int]] = {"tune": [], "report": [], "hard": []}
        limit = self.wanted.held_out
        for i, key in enumerate(drawn.kind.tolist()):
            turn = "report" if self.count["report"] <= self.count["tune"] else "tune"
            if not drawn.taken[i] or self.count[turn] == limit:
                turn = "hard" if drawn.rows.level[i] == UNSOLVED else ""
            if not turn or self.count[turn] == limit or key in self.split_of:
                continue
            self.split_of[key] = turn
            self.count[turn] += 1
            chosen[turn].append(i)
        for split, places in chosen.items():
            self.write(split, drawn, np.array(places, dtype=np.int64))
        self.bar.update(len(chosen["tune"]) + len(chosen["report"]))
        self.drawn += len(drawn.own)

    def train(self, drawn: Drawn) -> None:
        places = []
        for i in np.flatnonzero(drawn.taken):
            own, kind = int(drawn.own[i]), int(drawn.kind[i])
            if self.count["train"] == self.wanted.train:
                break
            if own in self.seen or kind in self.split_of:
                continue
            self.seen.add(own)
            self.count["train"] += 1
            places.append(i)
        self.write("train", drawn, np.array(places, dtype=np.int64))
        self.bar.update(len(places))

    def write(self, split: str, drawn: Drawn, places: np.ndarray) -> None:
        self.own[split].append(drawn.own[places])
        self.kind[split].append(drawn.kind[places])
        self.files[split].write(drawn.rows.packed()[places].tobytes())

    def exhausted(self) -> str:
        n, found = self.shape.size, sum(self.count.values()) - self.count["hard"]
        asked = self.wanted.train + 2 * self.wanted.held_out
        return (
            f"data.sequences={self.wanted.train} and data.held_out={self.wanted.held_out} ask for {asked} "
            f"different {n}x{n} puzzles, of which random drawing finds hardly more than {found} "
            f"(levels={self.wanted.levels}, givens={self.wanted.collection.givens or 'minimal'})"
        )


def build(wanted: Wanted, root: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Write the rows of all splits; their meta data, with the audit.

    Raises:
        UserError: if there are not as many different puzzles.
    """
    check_existing(wanted)
    dealt = Splitter(wanted, root, folder, workers)
    shape, size = dealt.shape, dealt.shape.size
    rows = {split: Rows.unpacked(read_rows(folder, split, shape)) for split in dealt.own}
    own = {split: np.concatenate([*parts, np.zeros(0, np.uint64)]) for split, parts in dealt.own.items()}
    leak: dict[str, Any] = {"puzzles_shared": shared(own)}
    if size in DISJOINT:
        kind = {split: np.concatenate([*parts, np.zeros(0, np.uint64)]) for split, parts in dealt.kind.items()}
        leak["classes_shared"] = shared(kind)
    sample = {
        split: some.puzzle[: SAMPLE["train" if split == "train" else "held_out"]] for split, some in rows.items()
    }
    leak["sample"] = {split: len(boards) for split, boards in sample.items()}
    leak["sample_classes_shared"] = shared({s: class_keys(boards, shape) for s, boards in sample.items()})
    if size == 4:
        leak["note"] = "4x4 puzzles fall in so few classes that all splits share them: no claim of generalisation"
    content = hashlib.sha256(b"".join(rows[s].puzzle.tobytes() for s in ("tune", "report", "hard")))
    solver = hashlib.sha256(b"".join(rows[s].order.tobytes() for s in ("tune", "report", "hard")))
    audit = {
        "sequences": dealt.count,
        "levels": {split: level_counts(some.level) for split, some in rows.items()},
        "givens": {split: spread(some.givens) for split, some in rows.items() if len(some.givens)},
        "leak_audit": leak,
    }
    return {"audit": audit, "puzzles": content.hexdigest()[:16], "orders": solver.hexdigest()[:16]}


def level_counts(level: UInt8[np.ndarray, " N"]) -> dict[str, int]:
    return {str(code): int(n) for code, n in enumerate(np.bincount(level, minlength=1)) if n}


def spread(givens: UInt8[np.ndarray, " N"]) -> dict[str, float]:
    low, middle, high = np.quantile(givens, [0.05, 0.5, 0.95]).tolist()
    return {"mean": round(float(givens.mean()), 4), "5 %": low, "median": middle, "95 %": high}


@lru_cache
def existing(shape: Shape, givens: int | None) -> int:
    """The number of different 4x4 puzzles: minimal ones, or proper ones of so many givens.

    All subsets of one grid of each class of grids, times the size of the class.
    """
    assert shape == SHAPES[4]
    subsets = (np.arange(1 << 16)[:, None] >> np.arange(16)) & 1
    # 288 grids are two classes: the lower band of 1234 3412 either exchanges columns or does not
    grids = {"1234341221434321": 96, "1234341223414123": 192}
    total = 0
    for grid, size in grids.items():
        boards = (subsets * np.array(list(grid), dtype=int)).astype(np.uint8)
        proper = count_solutions(boards, shape) == 1
        if givens is not None:
            total += size * int((proper & (subsets.sum(axis=1) == givens)).sum())
            continue
        without = np.arange(1 << 16)[:, None] & ~(1 << np.arange(16))
        less = (proper[without] & (subsets == 1)).any(axis=1)
        total += size * int((proper & ~less).sum())
    return total


def check_existing(wanted: Wanted) -> None:
    """Raises UserError for more 4x4 puzzles than there are."""
    shape, asked = shape_of(wanted.collection.size), wanted.train + 2 * wanted.held_out
    if shape.size == 4 and asked > (exist := existing(shape, wanted.collection.givens)):
        kind = "minimal" if wanted.collection.givens is None else f"of {wanted.collection.givens} givens"
        raise UserError(
            f"data.sequences={wanted.train} and data.held_out={wanted.held_out} ask for {asked} different 4x4 "
            f"puzzles; {exist} exist ({kind})"
        )
