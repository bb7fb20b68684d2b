"""Zebra puzzles as a task: the clues are given, the cells are to be filled.

In training a puzzle is written in another view each time (dlm.data.zebra.views): attributes, values and clues
change their names and places, and the row may be read from the other end. Held-out puzzles are written as they
were made.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from dlm.data.source import SPLITS, Examples
from dlm.data.task import TaskSource
from dlm.data.zebra.collection import Collection, Graded, make, read
from dlm.data.zebra.deduce import deduce
from dlm.data.zebra.formats import ORDERS, Format, format_of
from dlm.data.zebra.generate import STYLES
from dlm.data.zebra.judge import ERROR_KINDS, judge
from dlm.data.zebra.puzzle import NO_CLUE, NO_ITEM, Size, houses_of, parse
from dlm.data.zebra.views import seen, uniforms_of_view, view_of
from dlm.errors import UserError
from dlm.layout import Layout


class ZebraSource(TaskSource):
    """Generated puzzles of one size.

    Args:
        houses, attributes: 3 to 6 each.
        sequences: training puzzles.
        held_out: puzzles in each of tune, report and hard.
        seed: of the puzzles, not of the run.
        style: "published" (the solver needs at most three clues at a time, and uses all), or "minimal" (no clue
            can be left out, and the solver needs what it needs).
        format: in_place, triples or joint, see dlm.data.zebra.formats.
        order: of the cells of triples and joint: row_major, random (drawn anew at every visit) or solver.
        clues: slots for clues; None for the usual number. Puzzles with more are not taken.
        augment: write training puzzles in another view at every visit. A solver's order is then the solver's order
            for that view.
        seq_len: None, or what these settings come to.
        cache_dir: where the puzzles are kept.
        workers: threads that make them; None for as many as there are processors.

    Raises:
        UserError: for impossible values.
    """

    error_kinds = ERROR_KINDS

    def __init__(
        self,
        houses: int,
        attributes: int,
        sequences: int = 20_000,
        held_out: int = 500,
        seed: int = 0,
        style: str = "published",
        format: str = "in_place",
        order: str | None = None,
        clues: int | None = None,
        augment: bool = True,
        seq_len: int | None = None,
        cache_dir: str = ".cache/data",
        workers: int | None = None,
    ) -> None:
        self.shape = Size(houses, attributes)
        self.format = format_of(self.shape, format, clues)
        self.order, self.augment, self.seed = order, augment, seed
        check(self.format, order, style, sequences, held_out, seed, workers)
        self.seq_len, self.vocab_size = self.format.seq_len, self.format.vocab_size
        self.layout = self.format.layout
        if seq_len is not None and seq_len != self.seq_len:
            raise UserError(f"seq_len={seq_len}: {self.shape} puzzles as {format} have {self.seq_len} tokens")
        collection = Collection(houses, attributes, self.format.slots, style, seed, sequences, held_out)
        folder = Path(cache_dir).resolve() / "zebra"
        meta = make(folder, collection, workers or len(os.sched_getaffinity(0)))
        self.splits = tuple(split for split in (*SPLITS, "hard") if meta["audit"]["sequences"][split])
        self.puzzles: dict[str, Graded] = {split: read(folder, collection, split) for split in self.splits}
        self.orders = {split: self.held_order(split) for split in self.splits}
        views = uniforms_of_view(self.shape, self.format.slots) if augment else 0
        draws = views + (self.shape.cells if order == "random" else 0)
        self.noise_shape = (draws,) if draws else None
        decisive = (meta["puzzles"], self.format.slots, format, order, seed if order == "random" else None)
        self.fingerprint = hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]
        self.audit = {
            "name": f"zebra {self.shape}",
            "task": "zebra",
            "houses": houses,
            "attributes": attributes,
            "style": style,
            "format": format,
            "order": order,
            "seed": seed,
            "augment": augment,
            "clue_slots": self.format.slots,
            "puzzles": meta["puzzles"],
            "tokens": {split: count * self.seq_len for split, count in meta["audit"]["sequences"].items()},
            **meta["audit"],
        }

    @classmethod
    def outline(
        cls, *, houses: int, attributes: int, format: str = "in_place", clues: int | None = None, **_: Any
    ) -> tuple[int, Layout]:
        written = format_of(Size(houses, attributes), format, clues)
        return written.vocab_size, written.layout

    def held_order(self, split: str) -> Int[np.ndarray, "N cells"]:
        """The cells of every puzzle as they are written without noise."""
        found = self.puzzles[split]
        if self.order == "random":
            generator = np.random.Generator(np.random.Philox(key=[self.seed, (*SPLITS, "hard").index(split)]))
            return generator.random(found.order.shape).argsort(1)
        if self.order == "solver":
            return whole(found.order)
        return np.broadcast_to(np.arange(self.shape.cells), found.order.shape)

    def count(self, split: str) -> int:
        return len(self.puzzles[split].level)

    def written(
        self, split: str, numbers: Int[np.ndarray, " B"], noise: Float[Tensor, "B *shape"] | None
    ) -> Examples:
        found, order = self.puzzles[split].rows(numbers), self.orders[split][numbers]
        clues, solutions = found.clues, found.solutions
        if noise is not None:
            uniforms = noise.numpy()
            if self.augment:
                view = view_of(uniforms, self.shape, clues)
                clues, solutions = seen(clues, solutions, view, self.shape)
                if self.order == "solver":  # its ties go by the place of clues and cells
                    order = whole(deduce(clues, houses_of(solutions, self.shape), self.shape).order)
            if self.order == "random":
                order = uniforms[:, -self.shape.cells :].argsort(1)
        x0, target = self.format.write(clues, solutions, order)
        return Examples(torch.from_numpy(x0), torch.from_numpy(target))

    def judge(self, split, numbers, x, fixed_at):
        found = self.puzzles[split].rows(numbers)
        return judge(found.clues, found.solutions, self.format.read(x, fixed_at), self.shape)

    def strata(self, split, numbers):
        found = self.puzzles[split].rows(numbers)
        return {"level": found.level.astype(int), "clues": (found.clues[..., 0] != NO_CLUE).sum(1)}

    def place(self, split, numbers):
        if self.format.ordered:
            return None
        rank = whole(self.puzzles[split].order[numbers]).argsort(1)
        given = np.full((len(rank), self.format.prompt), -1)
        return torch.from_numpy(np.concatenate([given, rank], 1).astype(np.float64))

    def encode(self, text: str) -> list[int]:
        """The clue tokens of a puzzle in one line (dlm.data.zebra.puzzle): the prompt of its answer."""
        size, clues = parse(text)
        if size != self.shape or len(clues) > self.format.slots:
            raise UserError(f"a prompt here is a {self.shape} puzzle of at most {self.format.slots} clues")
        rows = np.full((1, self.format.slots, 4), NO_ITEM, dtype=np.uint8)
        rows[0, :, 0] = NO_CLUE
        rows[0, : len(clues)] = clues
        return self.format.clue_tokens(rows)[0].tolist()

    def decode(self, ids: ArrayLike) -> str:
        return self.format.text(np.asarray(ids, dtype=np.int64).reshape(-1))


def check(
    written: Format,
    order: str | None,
    style: str,
    sequences: int,
    held_out: int,
    seed: int,
    workers: int | None,
) -> None:
    """Raises UserError for impossible values."""
    if written.ordered and order not in ORDERS:
        raise UserError(f"data.format={written.name} needs data.order, one of {', '.join(ORDERS)}, not {order!r}")
    if not written.ordered and order is not None:
        raise UserError(f"data.order={order} belongs to data.format=triples or joint; {written.name} has one only")
    if style not in STYLES:
        raise UserError(f"data.style is one of {', '.join(STYLES)}, not {style!r}")
    if seed < 0:
        raise UserError(f"data.seed={seed} is negative")
    for name, value in (("sequences", sequences), ("held_out", held_out), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"data.{name}={value} must be at least 1")


def whole(order: Int[np.ndarray, "N cells"]) -> Int[np.ndarray, "N cells"]:
    """Orders of all cells: those that the solver did not get to follow row by row."""
    rank = np.full(order.shape, order.shape[1], dtype=np.int64)
    row, place = np.nonzero(order >= 0)
    rank[row, order[row, place]] = place
    return rank.argsort(1, kind="stable")
