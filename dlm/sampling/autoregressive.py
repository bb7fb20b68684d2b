"""Left to right, one token per call, with the keys and values of what was read kept."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.backbone import Directed, Transformer
from dlm.errors import UserError
from dlm.sampling.core import Sample, Warp, Watch, draw, unwarped
from dlm.sampling.noise import VALUE, RowNoise


@torch.no_grad()
def autoregressive(
    backbone: Transformer | Directed,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    warp: Warp = unwarped,
    cached: bool = True,
    watch: Watch | None = None,
) -> Sample:
    """Draw from p(x^i | x^{<i}); `cached=False` re-reads the whole prefix, for comparison.

    Every row continues its own prompt, whose length may differ from row to row, and is asked once per free token.

    Raises:
        UserError: if a given token stands to the right of a free one: a causal model cannot see it.
    """
    if (free[:, :-1] & ~free[:, 1:]).any():
        raise UserError("an autoregressive model can only continue a prompt, not fill in before given text")
    x, (batch, length) = given.clone(), given.shape
    noise, every = RowNoise(generator, batch, length, given.device), torch.arange(batch, device=given.device)
    position = torch.arange(length, device=given.device)
    begin = (~free).sum(1)
    inputs = torch.cat([torch.full_like(x[:, :1], backbone.vocab_size), x], 1)
    cache = backbone.new_cache(batch) if cached else None
    read = 0
    for i in range(int(begin.min()), length):
        rows = every[free[:, i]]
        at_last = torch.zeros(batch, i + 1 - read, dtype=torch.bool, device=x.device)
        at_last[rows, -1] = True
        logits = backbone(inputs[:, read : i + 1], None, at_last, cache)
        u = noise.at(rows, i - begin[rows], VALUE, torch.full_like(rows, i))
        values = draw(warp(logits.double()).softmax(-1), u)
        inputs[rows, i + 1] = x[rows, i] = values
        read = i + 1 if cached else 0
        if watch is not None:  # what is still to come shows as the start symbol
            watch((i - begin).clamp(min=-1), torch.where(free & (position > i), backbone.vocab_size, x))
    return Sample(x, torch.where(free, position - begin[:, None], -1), free.sum(1))
