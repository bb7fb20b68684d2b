"""The one Transformer that every process shares, whole.

Pre-norm blocks with RMSNorm, rotary positions, scaled-dot-product attention and a gated MLP; residual outputs and
the vocabulary head start at zero, so an untrained model predicts the uniform distribution exactly.  Autoregressive
and diffusion models differ in one flag, `causal`; a time-dependent process adds one, `time`.

Input ids are 0..vocab_size: the extra id (= vocab_size) is the mask of masked processes, the start symbol of the
autoregressive model, and never occurs in uniform ones.  Outputs are logits over the vocab_size real tokens.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.errors import UserError

CHUNKED_HEAD_FROM = 1 << 25  # logits; beyond 128 MiB in fp32 the chunked cross-entropy saves more than it costs


@dataclass
class Cache:
    """Keys and values of the positions read so far, one [B H L D] pair per layer, filled up to `length`."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0


class Transformer(nn.Module):
    """Tokens [B L] (and times [B]) to logits [B L V].

    Args:
        vocab_size: V, the real tokens.
        max_len: longest sequence; a longer one raises UserError.
        dim, depth, heads: width, number of blocks, attention heads.
        mlp: "swiglu" (hidden width 8/3 dim) or "gelu" (4 dim): the same number of parameters.
        causal: attend to the left only.
        time: how t enters: "none", "additive" (one vector added to every token), "adaln" (per-block scale, shift
            and gate). `conditioning_parameters` says what it adds.
        dropout: on the embedding and on each residual branch.
        tie: share the input embedding with the vocabulary head.
        attention: "sdpa", "plain" (matmul, softmax, matmul), or "auto", see `resolve_attention`.
    """

    rope: Tensor

    def __init__(
        self,
        vocab_size: int,
        max_len: int = 128,
        dim: int = 96,
        depth: int = 3,
        heads: int = 4,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        causal: bool = False,
        time: Literal["none", "additive", "adaln"] = "none",
        dropout: float = 0.0,
        tie: bool = False,
        attention: Literal["auto", "sdpa", "plain"] = "auto",
    ):
        super().__init__()
        if dim % heads or (dim // heads) % 2:
            raise UserError(f"backbone.dim={dim} must split into backbone.heads={heads} heads of even width")
        for name, value, known in (
            ("mlp", mlp, ("swiglu", "gelu")),
            ("time", time, ("none", "additive", "adaln")),
            ("attention", attention, ("auto", "sdpa", "plain")),
        ):
            if value not in known:
                raise UserError(f"backbone.{name} is one of {', '.join(known)}, not {value!r}")
        self.vocab_size, self.max_len, self.dim, self.heads = vocab_size, max_len, dim, heads
        self.causal, self.tie = causal, tie
        self.embed = nn.Embedding(vocab_size + 1, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp, causal, dropout, attention, adaln=time == "adaln") for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim)
        self.adaln = time == "adaln"
        self.head = None if tie else nn.Linear(dim, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02 if tie else 1.0)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        # last, so that a seed gives the shared weights the same values with and without it
        self.time = TimeEmbedding(dim) if time != "none" else None
        self.register_buffer("rope", rotations(max_len, dim // heads), persistent=False)

    @property
    def conditioning_parameters(self) -> int:
        """Parameters that exist only to tell the network the time."""
        told = [self.time, *(block.modulation for block in self.blocks)]
        return sum(p.numel() for module in told if module is not None for p in module.parameters())

    def hidden(
        self, x: Int[Tensor, "B L"], t: Float[Tensor, " B"] | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "B L D"]:
        """The normalised last layer. With a cache, x continues the positions already read."""
        start = cache.length if cache else 0
        if start + x.shape[1] > self.max_len:
            raise UserError(f"a sequence of {start + x.shape[1]} tokens exceeds backbone.max_len={self.max_len}")
        h = self.embed(x)
        condition = None
        if self.time is not None:
            if t is None:
                raise UserError("this backbone is conditioned on time and was given none")
            condition = self.time(t.to(h.dtype))
            if not self.adaln:
                h = h + condition[:, None]
        h = self.dropout(h)
        rope = self.rope[start : start + x.shape[1]]
        for i, block in enumerate(self.blocks):
            h = block(h, rope, condition, (cache, i) if cache else None)
        if cache:
            cache.length += x.shape[1]
        return self.norm(h)

    def logits(self, h: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """The vocabulary head, on whatever positions it is given; always in at least fp32."""
        return F.linear(h, self.head_weight).to(torch.promote_types(h.dtype, torch.float32))

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        return self.embed.weight[: self.vocab_size] if self.head is None else self.head.weight

    def forward(
        self,
        x: Int[Tensor, "B L"],
        t: Float[Tensor, " B"] | None = None,
        where: Bool[Tensor, "B L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L V"]:
        """Logits everywhere, or [N V] at the N positions `where`: the head then works only on those."""
        h = self.hidden(x, t, cache)
        return self.logits(h if where is None else h[where])

    def cross_entropy(
        self,
        x: Int[Tensor, "B L"],
        t: Float[Tensor, " B"] | None,
        x0: Int[Tensor, "B L"],
        where: Bool[Tensor, "B L"],
    ) -> Float[Tensor, " N"]:
        """-log softmax(logits)[x0] at `where`.

        Large vocabularies go through the chunked linear cross-entropy, which never holds all logits at once.
        """
        h, target = self.hidden(x, t)[where], x0[where]
        if h.shape[0] * self.vocab_size >= CHUNKED_HEAD_FROM:
            weight, options = self.head_weight.to(h.dtype), nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(h, weight, target, reduction="none", options=options)
        return F.cross_entropy(self.logits(h), target, reduction="none")

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` rows of up to max_len positions."""
        empty = self.head_weight.new_zeros(batch, self.heads, self.max_len, self.dim // self.heads)
        return Cache([empty.clone() for _ in self.blocks], [empty.clone() for _ in self.blocks])

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of one forward and backward pass per token at this length.

        6 per weight that multiplies (the head included, the embedding look-up not), and 12 length dim per layer
        for attention, half of it when causal (Kaplan et al. 2020, appendix B; nanoGPT's count). What reads the
        time works once per sequence.
        """
        matrices = {n: p.numel() for n, p in self.named_parameters() if p.ndim == 2 and not n.startswith("embed")}
        per_sequence = sum(size for n, size in matrices.items() if n.startswith("time.") or ".modulation." in n)
        per_token = sum(matrices.values()) - per_sequence * (1 - 1 / length)
        head = self.vocab_size * self.dim if self.tie else 0
        attention = 12 * length * self.dim * len(self.blocks) * (0.5 if self.causal else 1.0)
        return 6.0 * (per_token + head) + attention


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with adaLN both branches are scaled, shifted, gated by t."""

    def __init__(self, dim: int, heads: int, mlp: str, causal: bool, dropout: float, attention: str, adaln: bool):
        super().__init__()
        self.heads, self.causal, self.attention, self.gated = heads, causal, attention, mlp == "swiglu"
        hidden = 8 * math.ceil(dim / 3) if self.gated else 4 * dim
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, (2 if self.gated else 1) * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.modulation: Any = (
            nn.utils.skip_init(nn.Linear, dim, 6 * dim, device=self.qkv.weight.device) if adaln else None
        )  # draws nothing
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, rope: Tensor, condition: Any = None, cache: Any = None) -> Tensor:
        if self.modulation is None:
            h = h + self.dropout(self.attend(self.norm1(h), rope, cache))
            return h + self.dropout(self.mlp(self.norm2(h)))
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        attended = self.attend(self.norm1(h) * (1 + scale1) + shift1, rope, cache)
        h = h + (1 + gate1) * self.dropout(attended)
        return h + (1 + gate2) * self.dropout(self.mlp(self.norm2(h) * (1 + scale2) + shift2))

    def mlp(self, h):
        if not self.gated:
            return self.down(F.gelu(self.up(h)))
        value, gate = self.up(h).chunk(2, -1)
        return self.down(F.silu(gate) * value)

    def attend(self, h, rope, cache=None):
        batch, length, dim = h.shape
        qk, v = self.qkv(h).view(batch, length, 3, self.heads, -1).split((2, 1), 2)
        q, k = rotate(qk, rope).permute(2, 0, 3, 1, 4)
        v = v[:, :, 0].transpose(1, 2)
        seen = length
        if cache is not None:
            store, layer = cache
            seen = store.length + length
            store.keys[layer][:, :, store.length : seen] = k
            store.values[layer][:, :, store.length : seen] = v
            k, v = store.keys[layer][:, :, :seen].to(q.dtype), store.values[layer][:, :, :seen].to(q.dtype)
        if resolve_attention(self.attention, q) == "plain":
            out = plain_attention(q, k, v, self.causal)
        elif self.causal and seen != length:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(length, seen, q.device))
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(out.transpose(1, 2).reshape(batch, length, dim))


class TimeEmbedding(nn.Module):
    """t in [0, 1] through sinusoids of 1000 t and a two-layer MLP (Vaswani et al. 2017; Peebles and Xie 2023)."""

    frequencies: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer(
            "frequencies", torch.exp(-math.log(1e4) * torch.arange(dim // 2) / (dim // 2)), persistent=False
        )
        self.mlp = nn.Sequential(nn.Linear(2 * (dim // 2), dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        angles = 1000 * t[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


def rotations(length: int, width: int) -> Float[Tensor, "L 2 W/2"]:
    """cos and sin of position * 10000^(-2i/width) (Su et al. 2021)."""
    frequency = 1e4 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], 1)


def rotate(x: Float[Tensor, "B L 2 H W"], rope: Float[Tensor, "L 2 W/2"]) -> Float[Tensor, "B L 2 H W"]:
    """Rotate the pairs (x_i, x_{i + W/2}) of every head by its position's angles; queries and keys at once."""
    cos, sin = rope[:, 0, None, None].to(x.dtype), rope[:, 1, None, None].to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def causal_mask(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "Q K"]:
    """True where query i, the (keys - queries + i)-th position, may look."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Float[Tensor, "B H L D"]:
    """softmax(q k^T / sqrt(D)) v, spelled out; the softmax sums in fp32 whatever it is given."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(~causal_mask(q.shape[-2], k.shape[-2], q.device), -torch.inf)
    return scores.softmax(-1) @ v


def resolve_attention(choice: str, q: Tensor) -> str:
    """The rule behind "auto": spelled-out attention for bf16 on a CPU, whose fused kernel is slow in backward
    up to a few hundred positions; the fused kernel everywhere else."""
    if choice != "auto":
        return choice
    return "plain" if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 512 else "sdpa"
