"""L&O-NAE-SAT (Kim et al. 2025, section 3.3): latent bits, and observations that a rule makes of them.

    x = (z_1, ..., z_N, o_1, ..., o_P),     z uniform on {0, 1}^N,     o_j = 1 unless z_a = z_b = z_c

for a fixed random triple {a, b, c} of different latents for each observation.  So an observation is a matter of
three look-ups once its latents are known, while a latent behind observations is a constraint-satisfaction problem:
easy and hard questions in one sequence, all asked by an objective that masks at random.  The best answer to
every question is known: `posterior` enumerates the latents that agree with what is visible.

An observation is 1 for six of the eight values of its triple, so the answer "always 1" is right in exactly 3/4 of
them, and one drawn with that frequency in (3/4)^2 + (1/4)^2 = 5/8.  (Of triples with repeated latents fewer are 1:
the published naive guess of 75 % means different latents.)  Observations are drawn independently and may have the
same triple: there are only N (N - 1) (N - 2) / 6.

Training sequences are never repeated on purpose: each is drawn anew, as published, so that a model can be short of
training but not of data.  An epoch is `sequences` of them, a unit of time and nothing else.
"""

import hashlib
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import ArrayLike
from torch import Tensor

from dlm.data.source import SPLITS, Examples
from dlm.data.synthetic import spaced_symbols
from dlm.data.task import NO_ERROR, Judgement, TaskSource
from dlm.errors import UserError
from dlm.layout import NO_LAYOUT, Layout

ALWAYS_ONE = 3 / 4
"""The share of observations that are 1: what is right of the answer "always 1"."""
BY_FREQUENCY = ALWAYS_ONE**2 + (1 - ALWAYS_ONE) ** 2
"""The share of observations that are right if each is drawn by itself with that frequency of ones."""
EXACT_SAMPLER = 1.0
"""The share that an exact sampler gets right, in any order: the observations are functions of the latents."""
PAD = 2
MOST_HIDDEN = 20
"""Hidden latents whose values can be enumerated: a million."""


class NaeSatSource(TaskSource):
    """Sequences of `latents` bits, `observations` of them, and `padding` tokens PAD that are always given.

    Args:
        latents, observations: N and P.
        padding: tokens behind; they are no targets (as published, 212 behind 300).
        seed: of the triples and of the held-out sequences, not of the run.
        sequences: of an epoch of training.
        held_out: sequences in each of tune and report.
        seq_len: N + P + padding.

    Raises:
        UserError: for fewer than three latents, no observation, or a length that is not the sum of the parts.
    """

    def __init__(
        self,
        latents: int,
        observations: int,
        padding: int = 0,
        seed: int = 0,
        sequences: int = 4096,
        held_out: int = 512,
        seq_len: int | None = None,
    ) -> None:
        if latents < 3 or min(observations, sequences, held_out) < 1 or min(padding, seed) < 0:
            raise UserError(
                f"data 'nae_sat': out of range: {latents=} (at least 3) {observations=} {padding=} {seed=} "
                f"{sequences=} {held_out=}"
            )
        length = latents + observations + padding
        if seq_len not in (None, length):
            raise UserError(
                f"data 'nae_sat' has {latents} + {observations} + {padding} tokens, not seq_len={seq_len}"
            )
        self.latents, self.observations, self.seed = latents, observations, seed
        self.seq_len = length
        self.vocab_size = PAD + 1 if padding else 2
        self.noise_shape = (latents,)
        self._counts: dict[str, int] = dict(zip(SPLITS, (sequences, held_out, held_out), strict=True))
        places = np.random.default_rng([seed, 0]).random((observations, latents))
        self.triples: Int[np.ndarray, "P 3"] = np.sort(places.argsort(1)[:, :3], axis=1)
        digest = hashlib.sha256(repr((latents, padding, seed, held_out)).encode())
        digest.update(self.triples.astype(np.int64).tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.audit = {
            "name": "nae_sat",
            "latents": latents,
            "observations": observations,
            "padding": padding,
            "distinct_triples": len(np.unique(self.triples, axis=0)),
            "latents_in_no_triple": latents - len(np.unique(self.triples)),
            "entropy": latents * math.log(2),  # nats per sequence
            "right_by": {"exact sampler": EXACT_SAMPLER, "always 1": ALWAYS_ONE, "by frequency": BY_FREQUENCY},
            "tokens": {split: count * length for split, count in self._counts.items()},
        }

    @classmethod
    def outline(cls, *, padding: int = 0, **_: Any) -> tuple[int, Layout]:
        return (PAD + 1 if padding else 2), NO_LAYOUT

    # -- sequences ----------------------------------------------------------------------------------------

    def observed(self, latents: Int[np.ndarray, "B N"]) -> Bool[np.ndarray, "B P"]:
        """What the observations of these latents are: not all equal."""
        first, second, third = (latents[:, self.triples[:, k]] for k in range(3))
        return (first != second) | (second != third)

    def sequence(self, latents: Int[np.ndarray, "B N"]) -> Int[np.ndarray, "B L"]:
        """Latents, their observations, padding."""
        x = np.full((len(latents), self.seq_len), PAD, dtype=np.int64)
        x[:, : self.latents] = latents
        x[:, self.latents : self.latents + self.observations] = self.observed(latents)
        return x

    @cached_property
    def _drawn(self) -> dict[str, UInt8[np.ndarray, "B N"]]:
        """The latents of every split, as they are where nothing is drawn anew."""
        found: dict[str, UInt8[np.ndarray, "B N"]] = {}
        for number, (split, count) in enumerate(self._counts.items(), start=1):
            rng = np.random.default_rng([self.seed, number])
            found[split] = rng.integers(2, size=(count, self.latents), dtype=np.uint8)
        return found

    def count(self, split: str) -> int:
        return self._counts[split]

    def written(self, split: str, numbers: Int[np.ndarray, " B"], noise: Float[Tensor, "B N"] | None) -> Examples:
        """Examples by their numbers; with `noise`, fresh ones whose latents are its first binary digits."""
        latents = self._drawn[split][numbers] if noise is None else (noise.numpy() < 0.5).astype(np.uint8)
        x = torch.from_numpy(self.sequence(latents))
        return Examples(x, (torch.arange(self.seq_len) < self.latents + self.observations).repeat(len(x), 1))

    def encode(self, text: str) -> list[int]:
        return spaced_symbols(text)

    def decode(self, ids: ArrayLike) -> str:
        return " ".join(map(str, np.asarray(ids).tolist()))

    # -- what is right ------------------------------------------------------------------------------------

    def judge(
        self,
        split: str,
        numbers: Int[np.ndarray, " B"],
        x: Int[np.ndarray, "B L"],
        fixed_at: Int[np.ndarray, "B L"],
    ) -> Judgement:
        """An observation is right if it follows from the latents beside it, whatever they are.

        One whose triple holds a padding token, or that is one, is wrong.
        """
        latents, seen = x[:, : self.latents], x[:, self.latents : self.latents + self.observations]
        follows = (seen == self.observed(latents)) & (latents[:, self.triples] != PAD).all(2)
        right = follows.sum(1)
        cells = np.full(len(x), self.observations)
        return Judgement(right == cells, right, cells, np.full(len(x), NO_ERROR, dtype=np.uint8))

    def posterior(self, x: Int[np.ndarray, "B L"], hidden: Bool[np.ndarray, "B L"]) -> Float[np.ndarray, "B L"]:
        """p(x_i = 1 | the tokens that are not hidden), for latents and observations alike; zero for padding.

        Exact: the share of ones among the latents that agree with what is visible, of which every one is as
        probable as any other.

        Raises:
            UserError: for more hidden latents than can be enumerated, or visible tokens that no latents explain.
        """
        found = np.zeros(x.shape)
        for row, (tokens, where) in enumerate(zip(x, hidden, strict=True)):
            agree = self.explanations(tokens, where)
            if len(agree) == 0:
                raise UserError("no latents explain the visible observations: the sequence is not of these data")
            found[row, : self.latents] = agree.mean(0)
            found[row, self.latents : self.latents + self.observations] = self.observed(agree).mean(0)
        return found

    def explanations(self, x: Int[np.ndarray, " L"], hidden: Bool[np.ndarray, " L"]) -> UInt8[np.ndarray, "K N"]:
        """All latents that agree with the tokens that are not hidden.

        Raises:
            UserError: for more than MOST_HIDDEN hidden latents.
        """
        unknown = hidden[: self.latents].nonzero()[0]
        if len(unknown) > MOST_HIDDEN:
            raise UserError(f"{len(unknown)} hidden latents are too many to enumerate: at most {MOST_HIDDEN}")
        values = np.arange(1 << len(unknown))[:, None] >> np.arange(len(unknown)) & 1
        agree = np.repeat(x[None, : self.latents].astype(np.uint8), len(values), 0)
        agree[:, unknown] = values
        for j in (~hidden[self.latents : self.latents + self.observations]).nonzero()[0]:
            first, second, third = agree[:, self.triples[j]].T  # one at a time: few are left after a few of them
            agree = agree[((first != second) | (second != third)) == x[self.latents + j]]
        return agree
