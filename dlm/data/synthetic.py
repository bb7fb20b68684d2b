"""Toy distributions over V^L whose entropy is known, against which any bound can be checked.

A sequence x is row Σ_i x_i V^{L-1-i} of its table, so `probs().reshape((V,) * L)[x]` is p(x).
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt16
from numpy.typing import ArrayLike
from torch import Tensor

from dlm.data.source import SPLITS, Source, check_budget
from dlm.errors import UserError

ENUMERABLE = 2**20
"""Largest table, in sequences."""


def entropy(p: Float64[Tensor, "... K"]) -> Float64[Tensor, "..."]:
    """H(p) = -Σ p ln p, in nats."""
    return torch.special.entr(p).sum(-1)


def choose(p: Float64[Tensor, "... K"], u: Float64[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The inverse distribution function at u in [0, 1), in float64; what has probability zero never occurs."""
    cdf = p.cumsum(-1)
    return torch.searchsorted(cdf / cdf[..., -1:], u[..., None].contiguous(), right=True).squeeze(-1)


class Table:
    """Any distribution over V^L, row by row."""

    def __init__(self, p: Float64[Tensor, " K"], vocab_size: int, seq_len: int) -> None:
        self.p, self.vocab_size, self.seq_len = p, vocab_size, seq_len

    def probs(self) -> Float64[Tensor, " K"]:
        return self.p

    def entropy(self) -> float:
        return entropy(self.p).item()

    def sample(self, count: int, generator: torch.Generator) -> Int[Tensor, "N L"]:
        row = choose(self.p, torch.rand(count, dtype=torch.float64, generator=generator))
        powers = self.vocab_size ** torch.arange(self.seq_len - 1, -1, -1)
        return row[:, None] // powers % self.vocab_size


class Chain:
    """A Markov chain, p(x) = π(x_1) Π_i P(x_i, x_{i+1}), of any length:

    H = H(π) + Σ_{i<L} Σ_a (π P^{i-1})_a H(P_a)
    """

    def __init__(self, initial: Float64[Tensor, " V"], transition: Float64[Tensor, "V V"], seq_len: int) -> None:
        self.initial, self.transition, self.seq_len = initial, transition, seq_len

    def probs(self) -> Float64[Tensor, " K"]:
        vocab_size = len(self.initial)
        p = self.initial
        for _ in range(self.seq_len - 1):
            p = (p.view(-1, vocab_size, 1) * self.transition).flatten()
        return p

    def entropy(self) -> float:
        total, marginal = entropy(self.initial), self.initial
        for _ in range(self.seq_len - 1):
            total = total + marginal @ entropy(self.transition)
            marginal = marginal @ self.transition
        return total.item()

    def sample(self, count: int, generator: torch.Generator) -> Int[Tensor, "N L"]:
        u = torch.rand(count, self.seq_len, dtype=torch.float64, generator=generator)
        x = [choose(self.initial.expand(count, -1), u[:, 0])]
        for i in range(1, self.seq_len):
            x.append(choose(self.transition[x[-1]], u[:, i]))
        return torch.stack(x, dim=1)


def dirichlet(concentration: float, shape: tuple[int, ...], rng: np.random.Generator) -> Float64[Tensor, "..."]:
    return torch.from_numpy(rng.dirichlet(np.full(shape[-1], concentration), size=shape[:-1]))


def markov(vocab_size: int, seq_len: int, concentration: float, rng: np.random.Generator) -> Chain:
    """A chain whose initial distribution and transition rows are drawn from a Dirichlet distribution."""
    initial = dirichlet(concentration, (vocab_size,), rng)
    return Chain(initial, dirichlet(concentration, (vocab_size, vocab_size), rng), seq_len)


def random_table(vocab_size: int, seq_len: int, concentration: float, rng: np.random.Generator) -> Table:
    """A table drawn from a Dirichlet distribution: no order of generation is special."""
    if vocab_size**seq_len > ENUMERABLE:
        raise UserError(f"data.name=dirichlet: {vocab_size}^{seq_len} sequences exceed a table of {ENUMERABLE}")
    return Table(dirichlet(concentration, (vocab_size**seq_len,), rng), vocab_size, seq_len)


def source0(vocab_size: int, seq_len: int, concentration: float, rng: np.random.Generator) -> Chain:
    """p(01) = p(11) = 1/2: the first token is a fair coin, the second is always 1, so H = ln 2."""
    if (vocab_size, seq_len) != (2, 2):
        raise UserError(f"data.name=source0 has vocab_size=2 and seq_len=2, not {vocab_size} and {seq_len}")
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    return Chain(half, torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64), seq_len)


DISTRIBUTIONS = {"markov": markov, "dirichlet": random_table, "source0": source0}


def spaced_symbols(text: str) -> list[int]:
    """Symbols written as numbers with spaces between. Raises UserError for anything else."""
    try:
        return [int(symbol) for symbol in text.split()]
    except ValueError as error:
        raise UserError(f"a toy's text is its symbols as numbers, such as '0 1 0', not {text!r}") from error


class ToySource(Source):
    """I.i.d. sequences of a toy distribution, laid end to end; `seed` fixes the distribution and the samples.

    One symbol counts as one character.
    """

    aligned = True

    def __init__(
        self,
        name: str,
        seq_len: int,
        vocab_size: int,
        concentration: float = 0.5,
        seed: int = 0,
        sequences: int = 4096,
        held_out: int = 1024,
        unique_tokens: int | None = None,
    ) -> None:
        if name not in DISTRIBUTIONS:
            raise UserError(f"data.name={name} is no toy distribution; known: {', '.join(DISTRIBUTIONS)}")
        if not 1 <= vocab_size <= 2**16 or seq_len < 1 or concentration <= 0 or min(sequences, held_out) < 1:
            raise UserError(
                f"data '{name}': out of range: {vocab_size=} {seq_len=} {concentration=} {sequences=} {held_out=}"
            )
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.unique_tokens = unique_tokens
        rng = np.random.Generator(np.random.Philox(key=seed))
        self.distribution = DISTRIBUTIONS[name](vocab_size, seq_len, concentration, rng)
        self.entropy = self.distribution.entropy()
        """Nats per sequence."""
        counts = dict(zip(SPLITS, (sequences, held_out, held_out), strict=True))
        self._streams = {
            split: self.sample(count, torch.Generator().manual_seed(3 * seed + number))
            .flatten().numpy().astype(np.uint16)
            for number, (split, count) in enumerate(counts.items())
        }  # fmt: skip
        check_budget(name, len(self._streams["train"]), unique_tokens, seq_len)
        content = hashlib.sha256(b"".join(stream.tobytes() for stream in self._streams.values())).hexdigest()
        self.fingerprint = content[:16]
        self.audit = {
            "name": name,
            "sha256": content,
            "vocab_size": vocab_size,
            "entropy": self.entropy,
            "tokens": {split: len(stream) for split, stream in self._streams.items()},
        }

    def probs(self) -> Float64[Tensor, " K"]:
        """The table of all V^L probabilities; raises UserError where that is too large."""
        if self.vocab_size**self.seq_len > ENUMERABLE:
            raise UserError(f"{self.vocab_size}^{self.seq_len} sequences exceed a table of {ENUMERABLE}")
        return self.distribution.probs()

    def sample(self, count: int, generator: torch.Generator) -> Int[Tensor, "N L"]:
        return self.distribution.sample(count, generator)

    def tokens(self, split: str) -> UInt16[np.ndarray, " U"]:
        return self._streams[split][: self.unique_tokens if split == "train" else None]

    def chars(self, split: str) -> int:
        return len(self.tokens(split))

    def encode(self, text: str) -> list[int]:
        return spaced_symbols(text)

    def decode(self, ids: ArrayLike) -> str:
        return " ".join(map(str, np.asarray(ids).tolist()))
