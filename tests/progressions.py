"""A task so small that its answers are plain: arithmetic progressions modulo V, of which the beginning is given.

x[i] = (a + b i) mod V,   the first 2, 3 or 4 of L tokens given, by the puzzle's number
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dlm.data.source import SPLITS, Examples
from dlm.data.synthetic import spaced_symbols
from dlm.data.task import Judgement, TaskSource
from dlm.errors import UserError


class Progressions(TaskSource):
    """Has the arguments of the toy source, whose configuration tests override, and `puzzles`: a file of lines
    "a b"."""

    error_kinds: ClassVar[dict[int, str]] = {0: "none", 1: "odd slot", 2: "even slot"}

    def __init__(self, name, seq_len, vocab_size, sequences, held_out, seed=0, puzzles=None, **_):
        self.seq_len, self.vocab_size, self.fingerprint = seq_len, vocab_size, f"{seed:016d}"
        rng = np.random.default_rng(seed)
        counts = dict(zip(SPLITS, (sequences, held_out, held_out), strict=True))
        self.starts = {split: rng.integers(0, vocab_size, (n, 2)) for split, n in counts.items()}
        self.named, self.audit = name, {}
        if puzzles is not None:
            self.splits = (*SPLITS, "file")
            lines = [spaced_symbols(line) for line in Path(puzzles).read_text().splitlines()]
            if any(len(line) != 2 for line in lines):
                raise UserError(f"{puzzles}: a line is no pair")
            self.starts["file"] = np.array(lines)

    def count(self, split):
        return len(self.starts[split])

    def givens(self, numbers):
        return 2 + np.asarray(numbers) % 3

    def solutions(self, split, numbers):
        a, b = self.starts[split][numbers].T
        return (a[:, None] + b[:, None] * np.arange(self.seq_len)) % self.vocab_size

    def written(self, split, numbers, noise):
        x0 = torch.from_numpy(self.solutions(split, numbers))
        return Examples(x0, torch.from_numpy(np.arange(self.seq_len) >= self.givens(numbers)[:, None]))

    def judge(self, split, numbers, x, fixed_at):
        free = np.arange(self.seq_len) >= self.givens(numbers)[:, None]
        right = (x == self.solutions(split, numbers)) & free
        first = np.zeros(len(x), np.uint8)
        fills = np.zeros((len(x), 3), np.int64)
        for row in range(len(x)):
            for slot in sorted(np.flatnonzero(free[row]), key=lambda i, r=row: (fixed_at[r, i], i)):
                kind = 1 if slot % 2 else 2
                fills[row, kind] += 1
                if not right[row, slot]:
                    first[row] = kind
                    break
        return Judgement((right == free).all(1), right.sum(1), free.sum(1), first, fills)

    def strata(self, split, numbers):
        return {"givens": self.givens(numbers)}

    def place(self, split, numbers):
        """From right to left."""
        return -torch.arange(self.seq_len).float().expand(len(numbers), -1) if self.named == "markov" else None

    def trace(self, split, number, x, fixed_at):
        if self.named != "markov":
            return None
        return {"size": 1, "answer": x.tolist(), "step": fixed_at.tolist()}

    def encode(self, text):
        return spaced_symbols(text)

    def decode(self, ids):
        return " ".join(map(str, np.asarray(ids).tolist()))
