"""What measures need of the data and no weights: the streams, the training text, the text of single tokens."""

from functools import cached_property

import numpy as np
from jaxtyping import Int

from dlm.data.source import Source

ASKED = 1 << 20  # tokens of the report split


class Texts:
    """The streams of a source. Everything is computed once, when first asked for."""

    def __init__(self, source: Source):
        self.source = source
        self.found: dict[object, list] = {}  # what measures of the data alone have found

    @cached_property
    def train(self) -> Int[np.ndarray, " U"]:
        """The training tokens: the first `unique_tokens`."""
        return np.asarray(self.source.tokens("train"))

    @cached_property
    def report(self) -> Int[np.ndarray, " R"]:
        """The held-out tokens that questions are cut from."""
        return np.asarray(self.source.tokens("report")[:ASKED])

    @cached_property
    def train_text(self) -> str:
        return self.source.decode(self.train)

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each token of the report split, by itself."""
        ids, inverse = np.unique(self.report, return_inverse=True)
        text = [self.source.decode([int(i)]) for i in ids]
        return [text[i] for i in inverse.reshape(-1)]
