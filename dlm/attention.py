"""Attention: where a slot stands (rotary angles), which keys it sees (masks), and softmax(q k^T / sqrt(D)) v."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def rotations(length: int, width: int) -> Float[Tensor, "L 2 W/2"]:
    """cos and sin of position * 10000^(-2i/width) (Su et al. 2021)."""
    frequency = 1e4 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], 1)


def turns(rope: Float[Tensor, "P 2 W/2"], positions: Int[Tensor, "B L 2"]) -> Float[Tensor, "B L 2 1 2 W/2"]:
    """Rotary angles of sequences read in an order of their own, for queries and keys.

    A slot reads one token, its content, and predicts another, its target, which need not be the next one; both
    positions enter (Pannatier et al. 2024, sigma-GPT). Keys turn with their content; of a query's frequencies
    every other one turns with its content, the rest with its target. A head can thus look for what stands near
    what was just read, or near what is asked for, and distances alone matter, as ever.
    """
    content, target = rope[positions].unbind(2)
    from_target = torch.arange(rope.shape[-1], device=rope.device) % 2 == 1
    return torch.stack([torch.where(from_target, target, content), content], 2)[:, :, :, None]


def rotate(
    x: Float[Tensor, "B L 2 H W"], rope: Float[Tensor, "L 2 W/2"] | Float[Tensor, "B L 2 1 2 W/2"]
) -> Float[Tensor, "B L 2 H W"]:
    """Rotate the pairs (x_i, x_{i + W/2}) of every head by its position's angles; queries and keys at once."""
    if rope.ndim == 3:
        rope = rope[:, None, None]
    cos, sin = rope.to(x.dtype).unbind(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def causal_mask(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "Q K"]:
    """True where query i, the (keys - queries + i)-th position, may look."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def seen_keys(batch: int, length: int, drop: float, causal: bool, device: torch.device) -> Bool[Tensor, "B 1 L L"]:
    """Which keys a query sees when it loses every other one with probability `drop`, its own never."""
    kept = torch.rand(batch, 1, length, length, device=device) >= drop
    kept = kept | torch.eye(length, dtype=torch.bool, device=device)
    return kept & causal_mask(length, length, device) if causal else kept


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Any = None) -> Float[Tensor, "B H L D"]:
    """softmax(q k^T / sqrt(D)) v, spelled out; the softmax sums in fp32 whatever it is given."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    elif causal:
        scores = scores.masked_fill(~causal_mask(q.shape[-2], k.shape[-2], q.device), -torch.inf)
    return scores.softmax(-1) @ v


def resolve_attention(choice: str, q: Tensor) -> str:
    """The rule behind "auto": spelled-out attention for bf16 on a CPU, whose fused kernel is slow in backward
    up to a few hundred positions; the fused kernel everywhere else."""
    if choice != "auto":
        return choice
    return "plain" if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 512 else "sdpa"
