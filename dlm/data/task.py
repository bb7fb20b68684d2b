"""Tasks: sequences of which a part is given and the rest has one right answer.

A `TaskSource` is a Source of examples laid end to end, of which example n of a split begins at n L. It says of
every example which tokens are targets, and of every answer how right it is, whatever model and order it came from.
One example may be written in several ways (the order of its cells, the names of its values): training draws one by
`noise`, held-out examples are always written in the same.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt, UInt8
from torch import Tensor

from dlm.data.source import SPLITS, Examples, Source
from dlm.layout import Layout

AT_ONCE = 1 << 14  # examples
NO_ERROR = 0
"""The kind of the first error of an answer that has none."""


class Judgement(NamedTuple):
    """How right the answers to B examples are."""

    solved: Bool[np.ndarray, " B"]  # the whole answer is the one right answer
    right: Int[np.ndarray, " B"]  # how many cells of it are
    cells: Int[np.ndarray, " B"]  # how many there are to answer
    first_error: UInt8[np.ndarray, " B"]  # a key of `error_kinds`: what the cell of the first wrong value was
    fills: Int[np.ndarray, "B K"] | None = None  # fills up to the first error by kind, columns sorted(error_kinds)


class TaskSource(Source):
    """Examples with answers.

    Attributes:
        splits: SPLITS, and other held-out sets that are only ever reported, such as "hard".
        error_kinds: names of the kinds of cells on which a first error can be made.
    """

    aligned = True
    splits: tuple[str, ...] = SPLITS
    error_kinds: ClassVar[dict[int, str]] = {NO_ERROR: "none"}

    @classmethod
    def outline(cls, **settings: Any) -> tuple[int, Layout]:
        """Vocabulary size and layout of the data that these settings would make, without making any."""
        raise NotImplementedError

    @abstractmethod
    def count(self, split: str) -> int:
        """Number of examples."""

    @abstractmethod
    def written(
        self, split: str, numbers: Int[np.ndarray, " B"], noise: Float[Tensor, "B *shape"] | None
    ) -> Examples:
        """Examples by their numbers."""

    @abstractmethod
    def judge(
        self,
        split: str,
        numbers: Int[np.ndarray, " B"],
        x: Int[np.ndarray, "B L"],
        fixed_at: Int[np.ndarray, "B L"],
    ) -> Judgement:
        """Answers, and the step at which each token of them took its value (-1: given)."""

    def strata(self, split: str, numbers: Int[np.ndarray, " B"]) -> dict[str, Int[np.ndarray, " B"]]:
        """What answers are counted by besides: a level, a number of givens."""
        return {}

    def place(self, split: str, numbers: Int[np.ndarray, " B"]) -> Float[Tensor, "B L"] | None:
        """The order in which a solver would fill the slots of examples as they are written held out: smaller
        first. None where there is no such order, or the sequence is written in it already."""
        return None

    def trace(
        self, split: str, number: int, x: Int[np.ndarray, " L"], fixed_at: Int[np.ndarray, " L"]
    ) -> dict[str, Any] | None:
        """How one answer came about, for a picture, as plain JSON: size, and by cell the puzzle (0: blank), the
        solution, the answer, the step at which each was filled (-1: given) and the error kind of the cell at that
        moment (`kind`, 0 for givens). None where answers fill no board."""
        return None

    def size(self, split: str) -> int:
        return self.count(split) * self.seq_len

    def examples(
        self, split: str, starts: Int[np.ndarray, " B"], noise: Float[Tensor, "B *shape"] | None = None
    ) -> Examples:
        return self.written(split, starts // self.seq_len % self.count(split), noise)

    def tokens(self, split: str) -> UInt[np.ndarray, " U"]:
        numbers = np.arange(self.count(split))
        parts = (numbers[first : first + AT_ONCE] for first in range(0, len(numbers), AT_ONCE))
        found = [self.written(split, part, None).x0.flatten().numpy().astype(np.uint16) for part in parts]
        return np.concatenate([np.zeros(0, dtype=np.uint16), *found])

    def chars(self, split: str) -> int:
        return self.size(split)
