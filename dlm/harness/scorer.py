"""How probable a continuation is after a context, and how a model goes on: text in, nats and text out.

    log p(y | c) = log p(c y) - log p(c)

An autoregressive model has it exactly. A mask predictor hides y and keeps c: its any-order bound by Monte Carlo,
under noise that all continuations of a question share (Nie et al. 2025 rank options so), or one of its exact chain
rules. Trained on whole windows, it reads a shorter text with masks behind it, as if the text went on
(`tail="masked"`), or the text alone (`tail="none"`: cheaper, another input than it was trained on). Any other
process holds c clean, which it was not trained to.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm import sampling
from dlm.backbone import Directed
from dlm.data.source import Source
from dlm.errors import UserError
from dlm.likelihood import Kind, mask_id, masking_time
from dlm.lm import AutoregressiveLM, DiffusionLM, LanguageModel
from dlm.measure.memorisation import likeliest

TAILS = ("masked", "none")


class Piece(NamedTuple):
    """At most one window of tokens, of which the last `scored` count."""

    ids: list[int]
    scored: int
    owner: int  # the pair it belongs to
    address: int  # of its noise


class TextScorer:
    """A model with its tokenizer.

    Args:
        likelihood: a name of dlm/likelihood/kinds.py; None: what the model is exact in, or its any-order bound.
        draws: of a Monte-Carlo bound, or random orders.
        rows: sequences that the network reads at a time.

    Raises:
        UserError: for a likelihood that the model does not have, or that cannot leave a tail masked, and for a
            model that reads in another order.
    """

    def __init__(
        self,
        model: LanguageModel,
        source: Source,
        likelihood: str | None = None,
        draws: int = 32,
        tail: Literal["masked", "none"] = "masked",
        rows: int = 64,
    ):
        if tail not in TAILS:
            raise UserError(f"tail is {' or '.join(TAILS)}, not {tail!r}")
        if isinstance(model, AutoregressiveLM) and model.permutation is not None:
            raise UserError("a model of permuted text does not read a context before its continuation")
        self.model, self.source, self.draws, self.rows = model, source, draws, rows
        has = {name: kind for name, kind in model.likelihoods().items() if kind.per_token}
        self.name = likelihood or (
            "exact_count" if "exact_count" in has and "causal" not in has else next(iter(has))
        )
        if self.name not in has:
            raise UserError(f"likelihood={self.name}: this {type(model).__name__} has {', '.join(has)}")
        self.kind: Kind = has[self.name]
        self.causal = isinstance(model, AutoregressiveLM) or self.name == "causal"
        self.masks = not self.causal and isinstance(model, DiffusionLM) and model.process.mask_predictor
        if self.masks and tail == "masked" and self.name in ("continuous", "steps"):
            raise UserError(f"likelihood={self.name} asks the process about every position: it needs tail=none")
        self.tail = tail if self.masks else "none"
        self.longest = source.seq_len

    @property
    def process(self) -> Any:
        return self.model.process

    def encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Their tokens as they stand side by side: a token over the seam counts as continuation, as does the
        space at the end of the context."""
        stem = context.rstrip()
        continuation = context[len(stem) :] + continuation
        whole, before = self.source.encode(stem + continuation), self.source.encode(stem) if stem else []
        cut = max(0, min(len(before), len(whole) - 1))
        return whole[:cut], whole[cut:]

    @torch.no_grad()
    def nats(self, pairs: Sequence[tuple[list[int], list[int]]], index: Sequence[int]) -> list[float]:
        """-log p of each continuation after its context, or its bound; `index` addresses the noise."""
        pieces = [piece for i, pair in enumerate(pairs) for piece in self.pieces(*pair, i, index[i])]
        total = [0.0] * len(pairs)
        seed, draws = self.model.seed_of_evaluation, 1 if self.kind.count == "one" else self.draws
        for batch in self._batches(pieces, max(1, self.rows // draws)):
            x0, target = self.tensors(batch)
            noise = torch.tensor([piece.address for piece in batch])
            raw = self.kind.draws(self.model.backbone, x0, target, noise, draws, seed).double()
            for piece, value in zip(batch, self.kind.columns(raw[:, None]).mean(1).tolist(), strict=True):
                total[piece.owner] += value
        return total

    def pieces(self, context: list[int], continuation: list[int], owner: int, index: int) -> Iterator[Piece]:
        """The continuation cut into windows, each token in one of them after as many others as fit."""
        ids, begin = context + continuation, len(context)
        if not continuation:
            return
        if len(continuation) <= self.longest:
            yield Piece(ids[-self.longest :], len(continuation), owner, index)
            return
        for number, start in enumerate(range(begin, len(ids), self.longest)):
            end = min(start + self.longest, len(ids))
            yield Piece(ids[max(0, end - self.longest) : end], end - start, owner, (number << 32) + index)

    def _batches(self, pieces: list[Piece], size: int) -> Iterator[list[Piece]]:
        """A few at a time, of like length; of equal length where nothing may stand behind a text."""
        pieces = sorted(pieces, key=lambda piece: -len(piece.ids))
        while pieces:
            batch = pieces[:size]
            if not self.causal and self.tail == "none":
                batch = [piece for piece in batch if len(piece.ids) == len(batch[0].ids)]
            yield batch
            pieces = pieces[len(batch) :]

    def tensors(self, batch: list[Piece]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Tokens, and which of them are scored; behind a text stand masks, or zeros that nothing sees."""
        width = self.longest if self.tail == "masked" else max(len(piece.ids) for piece in batch)
        x0 = torch.full((len(batch), width), mask_id(self.process) if self.masks else 0)
        target = torch.zeros_like(x0, dtype=torch.bool)
        for row, piece in enumerate(batch):
            x0[row, : len(piece.ids)] = torch.tensor(piece.ids)
            target[row, len(piece.ids) - piece.scored : len(piece.ids)] = True
        return x0.to(self.model.device), target.to(self.model.device)

    @torch.no_grad()
    def is_likeliest(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether each continuation is what the model writes if it always takes the likeliest next token.

        False for a process without masks, which has no next token.
        """
        right = [self.causal or self.masks] * len(pairs)
        pieces = [piece for i, pair in enumerate(pairs) for piece in self.pieces(*pair, i, 0)]
        for batch in self._batches(pieces, self.rows) if self.causal or self.masks else ():
            x0, target = self.tensors(batch)
            found = self._causal_hits(x0, target) if self.causal else self._masked_hits(x0, target)
            for piece, hit in zip(batch, found.tolist(), strict=True):
                right[piece.owner] &= hit
        return right

    def _causal_hits(self, x0, target):
        before = torch.cat([torch.full_like(x0[:, :1], self.source.vocab_size), x0[:, :-1]], 1)
        network = self.model.backbone
        if not isinstance(self.model, AutoregressiveLM):
            network = Directed(network, causal=True)
        missed = torch.zeros_like(target)
        missed[target] = network(before, None, target).argmax(-1) != x0[target]
        return ~missed.any(1)

    def _masked_hits(self, x0, target):
        """One token after another; a row is done with at its first miss."""
        alive, hidden, n = torch.ones(len(x0), dtype=torch.bool, device=x0.device), target.clone(), target.sum(1)
        while (rows := alive & hidden.any(1)).any():
            masked, clean = hidden[rows], x0[rows]
            t = masking_time(self.process, masked.sum(1).double() / n[rows])
            first = masked & (masked.cumsum(1) == 1)
            logits = self.model.backbone(torch.where(masked, mask_id(self.process), clean), t, first)
            alive[rows] = logits.argmax(-1) == clean[first]
            hidden[rows] = masked & ~first
        return alive

    @torch.no_grad()
    def continued(self, context: str, tokens: int, temperature: float = 0.0, seed: int = 0) -> str:
        """How the model goes on for so many tokens; at temperature 0 with the likeliest one at a time: from left
        to right, or where a mask predictor is surest."""
        tokens = min(tokens, self.longest - 1)
        given = self.source.encode(context)[-(self.longest - tokens) :]
        x = torch.tensor([given + [0] * tokens], device=self.model.device)
        free = torch.arange(x.shape[1], device=x.device)[None] >= len(given)
        options: dict[str, Any] = {"warp": likeliest if temperature == 0 else sampling.warp(temperature)}
        if self.masks:
            options |= {"sampler": "ordered", "policy": "top_probability", "per_step": 1}
        sample = self.model.sample(x, free, torch.Generator().manual_seed(seed), **options)
        return self.source.decode(sample.x[0, len(given) :].tolist())
