"""Which windows make up the n-th batch: a function of (seed, n), so that a run resumes and rescales exactly."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from dlm.errors import UserError


class MicroBatch(NamedTuple):
    """The part of global batch `step` that one rank processes in one forward pass."""

    step: int
    starts: Int[np.ndarray, " b"]
    """Where each window begins in the stream."""
    rows: Int[np.ndarray, " b"]
    """The place of each window in the global batch."""


class StreamSampler(Sampler[MicroBatch]):
    """An endless sampler of windows of L tokens from a stream of U tokens.

    Epoch e draws, from a counter-based generator keyed by (seed, e), an offset o in [0, L) and a permutation π of
    the W = ⌊U/L⌋ windows that begin, circularly, at o + iL. So the window boundaries move from epoch to epoch and
    no token is seen twice in one. Global window q is window π_e(q mod W) of epoch e = ⌊q/W⌋; global batch n holds
    q = nB, ..., nB + B - 1. With R ranks and A micro-batches of b = B/(RA), micro-batch a of rank r holds rows
    (aR + r)b, ..., (aR + r)b + b - 1 of it. `start` counts the micro-batches already consumed by each rank.

    Raises UserError if B is not a multiple of RA, or the stream holds no window.
    """

    def __init__(
        self,
        tokens: int,
        seq_len: int,
        batch_size: int,
        seed: int,
        *,
        aligned: bool = False,
        world: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        start: int = 0,
    ) -> None:
        if batch_size < 1 or batch_size % (world * accumulate):
            raise UserError(
                f"batch_size={batch_size} does not divide over {world} processes x {accumulate} micro-batches"
            )
        if tokens < seq_len:
            raise UserError(f"a training stream of {tokens} tokens holds no window of seq_len={seq_len}")
        self.tokens, self.seq_len, self.aligned = tokens, seq_len, aligned
        self.batch_size, self.seed = batch_size, seed
        self.world, self.rank, self.accumulate, self.start = world, rank, accumulate, start
        self.windows = tokens // seq_len
        # A batch straddles at most a few epochs, and two of them at a time.
        self._epoch_starts = lru_cache(maxsize=2)(self.epoch_starts)

    def epoch_starts(self, epoch: int) -> Int[np.ndarray, " W"]:
        """Where the windows of `epoch` begin, in the order in which they are seen."""
        key = np.array([self.seed, epoch], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        offset = 0 if self.aligned else generator.integers(self.seq_len)
        return (offset + self.seq_len * generator.permutation(self.windows)) % self.tokens

    def micro_batch(self, number: int) -> MicroBatch:
        """The `number`-th micro-batch of this rank since the beginning of training."""
        step, micro = divmod(number, self.accumulate)
        size = self.batch_size // (self.world * self.accumulate)
        rows = (micro * self.world + self.rank) * size + np.arange(size)
        epochs, places = np.divmod(step * self.batch_size + rows, self.windows)
        starts = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            starts[here] = self._epoch_starts(epoch)[places[here]]
        return MicroBatch(step, starts, rows)

    def __iter__(self) -> Iterator[MicroBatch]:
        number = self.start
        while True:
            yield self.micro_batch(number)
            number += 1


class ShardedBatches(Sampler[Int[np.ndarray, " b"]]):
    """Every R-th batch of a fixed list of window numbers, from the r-th on: never padded, never re-cut.

    Each forward pass is then bitwise the one that a single process makes, and every window is scored once.
    """

    def __init__(self, numbers: Int[np.ndarray, " N"], batch_size: int, world: int = 1, rank: int = 0) -> None:
        batches = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
        if len(batches) < world:
            raise UserError(
                f"{len(numbers)} evaluation windows in batches of eval_batch_size={batch_size} "
                f"leave some of the {world} processes without any: lower eval_batch_size"
            )
        self.batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Int[np.ndarray, " b"]]:
        return iter(self.batches)
