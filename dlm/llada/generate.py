"""Semi-autoregressive decoding: blocks from left to right, the tokens of each in an order of their own.

What LLaDA's own generate() does (Nie et al. 2025) is `ordered` on one block after the other, while the blocks to
the right are masked and seen as such: its low_confidence is policy="top_probability" with values=greedy, or
selection="value" where values are drawn, and its random is policy="random".  Two details differ: the mask itself
is never predicted here, and where a block does not divide into equal steps, the larger ones come last.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process import MaskedDiffusion
from dlm.sampling import Sample, ordered


def in_blocks(
    process: MaskedDiffusion,
    denoise: Any,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    block_length: int | None = None,
    steps: int | None = None,
    **options: Any,
) -> Sample:
    """`ordered` on blocks of `block_length` free positions (default all at once), from left to right.

    `steps` are those of all blocks together, shared equally; `fixed_at` counts steps from the first block on.
    The other options are those of `ordered`.

    Raises:
        UserError: unless all rows have the same number of free tokens, the blocks divide it and the steps divide
            into the blocks; and for what `ordered` refuses.
    """
    total = int(free[0].sum())
    if (free.sum(1) != total).any() or total == 0:
        raise UserError("all rows of a batch must have the same number of tokens to generate, at least one")
    size = total if block_length is None else block_length
    if size < 1 or total % size:
        raise UserError(f"block_length={size} does not divide the {total} tokens to be generated")
    blocks = total // size
    if steps is not None and (steps < 1 or steps % blocks):
        raise UserError(f"steps={steps} cannot be shared equally by {blocks} blocks of {size} tokens")
    if steps is not None and steps > total:
        raise UserError(f"steps={steps} is more than the {total} tokens to be generated")
    per_block = None if steps is None else steps // blocks
    number = free.cumsum(1) - 1
    state = torch.where(free, process.mask_id, given)
    fixed_at = torch.full_like(given, -1)
    evaluations = ties = torch.zeros_like(free.sum(1))
    before = 0
    for block in range(blocks):
        here = free & (number >= block * size) & (number < (block + 1) * size)
        sample = ordered(process, denoise, state, here, generator, steps=per_block, **options)
        state = sample.x
        fixed_at = torch.where(here, sample.fixed_at + before, fixed_at)
        before += per_block or -(-size // (options.get("per_step") or 1))
        evaluations = evaluations + sample.evaluations
        ties = ties + (0 if sample.ties is None else sample.ties)
    return Sample(state, fixed_at, evaluations, ties)
