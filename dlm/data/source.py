"""What the models see of any data: three token streams, a vocabulary and a way back to text."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt
from numpy.typing import ArrayLike
from torch import Tensor

from dlm.errors import UserError
from dlm.layout import NO_LAYOUT, Layout

SPLITS = ("train", "tune", "report")
"""`tune` is for selection, early stopping and temperatures; `report` is only ever reported."""
HELD_OUT = SPLITS[1:]
"""What evaluations score, in the order of the data module's loaders."""


class Examples(NamedTuple):
    """Sequences as a model gets them."""

    x0: Int[Tensor, "B L"]
    target: Bool[Tensor, "B L"]  # what is destroyed and scored; the rest is given


class Source(ABC):
    """Three token streams over the data vocabulary {0, ..., V-1}.

    The vocabulary has neither mask nor BOS: a model that wants one appends it as id V, so that every process
    scores exactly the same targets.
    """

    vocab_size: int
    seq_len: int
    fingerprint: str
    """16 hex digits of SHA-256 over content, tokenizer and preparation: equal exactly when scores compare.

    It leaves out `unique_tokens`, since runs of different budgets are scored on the same held-out text."""
    audit: dict
    """What the data is and how clean the split is; plain JSON, kept in every run record."""
    aligned: bool = False
    """Whether windows may start at multiples of `seq_len` only (i.i.d. sequences laid end to end)."""
    layout: Layout = NO_LAYOUT
    noise_shape: tuple[int, ...] | None = None
    """Uniforms that `examples` takes for one training sequence; None: it is always written down the same way."""

    @abstractmethod
    def tokens(self, split: str) -> UInt[np.ndarray, " U"]:
        """The whole split as one stream; `train` is cut to its first `unique_tokens`."""

    def size(self, split: str) -> int:
        """Number of tokens of the split."""
        return len(self.tokens(split))

    def examples(
        self, split: str, starts: Int[np.ndarray, " B"], noise: Float[Tensor, "B *shape"] | None = None
    ) -> Examples:
        """The sequences that start there in the stream, circularly; in training, as `noise` has them written."""
        stream = self.tokens(split)
        x0 = torch.from_numpy(stream[(starts[:, None] + np.arange(self.seq_len)) % len(stream)].astype(np.int64))
        return Examples(x0, torch.ones_like(x0, dtype=torch.bool))

    def documents(self, split: str) -> UInt[np.ndarray, " U"]:
        """The number of the document that each token comes from; sequences laid end to end are one each."""
        return (np.arange(self.size(split)) // self.seq_len).astype(np.uint32)

    @abstractmethod
    def chars(self, split: str) -> int:
        """Number of characters that `tokens(split)` stands for: the denominator of bits per character."""

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def decode(self, ids: ArrayLike) -> str: ...

    def chars_per_token(self, split: str) -> float:
        return self.chars(split) / self.size(split)


def check_budget(name: str, available: int, unique_tokens: int | None, seq_len: int) -> None:
    """Raise UserError unless `unique_tokens` (None: all) of the `available` training tokens hold a window of L."""
    if seq_len < 1:
        raise UserError(f"seq_len={seq_len}: a window holds at least one token")
    if unique_tokens is not None and unique_tokens > available:
        raise UserError(f"data.unique_tokens={unique_tokens} exceeds the {available} training tokens of '{name}'")
    if unique_tokens is not None and unique_tokens < seq_len:
        raise UserError(f"data.unique_tokens={unique_tokens} is less than one window of seq_len={seq_len}")
