"""The one Transformer that every process shares, whole.

Pre-norm blocks with RMSNorm, rotary positions, scaled-dot-product attention and a gated MLP; residual outputs and
the vocabulary head start at zero, so an untrained model predicts the uniform distribution exactly.  Autoregressive
and diffusion models differ in one flag, `causal`; a time-dependent process adds one, `time`.  Who reads a sequence
in another way than its flag says, or in another order than from the left, asks through `Directed`.

Rotary positions tell distances only: in a sequence that is all masks every slot would get the same answer. Where
slots have a place of their own, as the cells of a board have, `positions` and the data's `layout` tell it.

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

from dlm.attention import causal_mask, plain_attention, resolve_attention, rotate, rotations, seen_keys, turns
from dlm.errors import UserError
from dlm.layout import NO_LAYOUT, Columns, Layout, with_extra

LOOKED_UP = ("embed", "slots", "parts")
"""Parameters that are read row by row and multiply nothing."""
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
        positions: "rotary" (distances between slots), "learned" (an embedding of each slot), or "both".
        layout: what the data say of slots and tokens (dlm.layout); every column adds a learned embedding.
        drop_attention: in training, the probability with which a query cannot see a key other than its own: one
            draw per sequence and pair of positions, the same in all heads and layers, so that what is dropped is
            dropped from the attention mask and not from the weights (their sum stays one).
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
        drop_attention: float = 0.0,
        positions: Literal["rotary", "learned", "both"] = "rotary",
        layout: Layout = NO_LAYOUT,
    ):
        super().__init__()
        if dim % heads or (dim // heads) % 2:
            raise UserError(f"backbone.dim={dim} must split into backbone.heads={heads} heads of even width")
        for name, value, known in (
            ("mlp", mlp, ("swiglu", "gelu")),
            ("time", time, ("none", "additive", "adaln")),
            ("attention", attention, ("auto", "sdpa", "plain")),
            ("positions", positions, ("rotary", "learned", "both")),
        ):
            if value not in known:
                raise UserError(f"backbone.{name} is one of {', '.join(known)}, not {value!r}")
        if not 0 <= drop_attention < 1:
            raise UserError(f"backbone.drop_attention={drop_attention} must be in [0, 1)")
        self.vocab_size, self.max_len, self.dim, self.heads = vocab_size, max_len, dim, heads
        self.causal, self.tie, self.drop_attention = causal, tie, drop_attention
        self.embed = nn.Embedding(vocab_size + 1, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp, dropout, attention, adaln=time == "adaln") for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim)
        self.adaln = time == "adaln"
        self.head = None if tie else nn.Linear(dim, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02 if tie else 1.0)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        # after all else, so that a seed gives the shared weights the same values with and without it
        self.time = TimeEmbedding(dim) if time != "none" else None
        slots, tokens = layout
        if slots is not None and len(slots) != max_len:
            raise UserError(f"the data lay out {len(slots)} slots, but backbone.max_len={max_len}")
        if tokens is not None and len(tokens) != vocab_size:
            raise UserError(f"the data describe {len(tokens)} tokens, but backbone.vocab_size={vocab_size}")
        learned = [] if positions == "rotary" else [torch.arange(max_len, device="cpu")[:, None]]
        tables = [*learned, *([] if slots is None else [slots])]
        self.slots = Columns(torch.cat(tables, 1), dim) if tables else None
        self.parts = None if tokens is None else Columns(with_extra(tokens), dim)
        self.register_buffer("rope", rotations(max_len + 1, dim // heads), persistent=False)
        self.rotary = positions != "learned"

    @property
    def conditioning_parameters(self) -> int:
        """Parameters that exist only to tell the network the time."""
        told = [self.time, *(block.modulation for block in self.blocks)]
        return sum(p.numel() for module in told if module is not None for p in module.parameters())

    @property
    def random_in_training(self) -> bool:
        """Whether a training pass draws from torch's global generator."""
        return self.dropout.p > 0 or self.drop_attention > 0

    def hidden(
        self,
        x: Int[Tensor, "B L"],
        t: Float[Tensor, " B"] | None = None,
        cache: Cache | None = None,
        *,
        causal: bool | None = None,
        positions: Int[Tensor, "B L 2"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The normalised last layer.

        Args:
            cache: x continues the positions already read.
            causal: instead of the network's own flag.
            positions: of each slot's content and of its target, counted in slots of the order from the left, where
                both are 0, 1, 2, ... (then the result is the default's, to the bit); see `turns`.
        """
        causal = self.causal if causal is None else causal
        start = cache.length if cache else 0
        if start + x.shape[1] > self.max_len:
            raise UserError(f"a sequence of {start + x.shape[1]} tokens exceeds backbone.max_len={self.max_len}")
        h = self.embed(x)
        if self.parts is not None:
            h = h + self.parts(x)
        if self.slots is not None:
            if positions is not None:
                raise UserError(
                    "orders that the network is told need backbone.positions=rotary and a plain layout"
                )
            h = h + self.slots(torch.arange(start, start + x.shape[1], device=x.device))
        condition = None
        if self.time is not None:
            if t is None:
                raise UserError("this backbone is conditioned on time and was given none")
            condition = self.time(t.to(h.dtype))
            if not self.adaln:
                h = h + condition[:, None]
        h = self.dropout(h)
        rope: Tensor | None = None
        if self.rotary:
            rope = self.rope[start : start + x.shape[1]] if positions is None else turns(self.rope, positions)
        seen = None
        if self.training and self.drop_attention > 0 and cache is None:
            seen = seen_keys(x.shape[0], x.shape[1], self.drop_attention, causal, x.device)
        for i, block in enumerate(self.blocks):
            h = block(h, rope, causal, condition, (cache, i) if cache else None, seen)
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
        *,
        causal: bool | None = None,
        positions: Int[Tensor, "B L 2"] | None = None,
    ) -> Float[Tensor, "B L V"]:
        """Logits everywhere, or [N V] at the N positions `where`: the head then works only on those."""
        h = self.hidden(x, t, cache, causal=causal, positions=positions)
        return self.logits(h if where is None else h[where])

    def cross_entropy(
        self,
        x: Int[Tensor, "B L"],
        t: Float[Tensor, " B"] | None,
        x0: Int[Tensor, "B L"],
        where: Bool[Tensor, "B L"],
        *,
        causal: bool | None = None,
        positions: Int[Tensor, "B L 2"] | None = None,
    ) -> Float[Tensor, " N"]:
        """-log softmax(logits)[x0] at `where`.

        Large vocabularies go through the chunked linear cross-entropy, which never holds all logits at once.
        """
        h, target = self.hidden(x, t, causal=causal, positions=positions)[where], x0[where]
        if h.shape[0] * self.vocab_size >= CHUNKED_HEAD_FROM:
            weight, options = self.head_weight.to(h.dtype), nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(h, weight, target, reduction="none", options=options)
        return F.cross_entropy(self.logits(h), target, reduction="none")

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` rows of up to max_len positions."""
        empty = self.head_weight.new_zeros(batch, self.heads, self.max_len, self.dim // self.heads)
        return Cache([empty.clone() for _ in self.blocks], [empty.clone() for _ in self.blocks])

    def flops_per_token(self, length: int, causal: bool | None = None) -> float:
        """Floating-point operations of one forward and backward pass per token at this length.

        6 per weight that multiplies (the head included, the embedding look-up not), and 12 length dim per layer
        for attention, half of it when causal (Kaplan et al. 2020, appendix B; nanoGPT's count). What reads the
        time works once per sequence. `causal=False` counts full attention whatever the network's flag.
        """
        causal = self.causal if causal is None else causal
        matrices = {
            n: p.numel() for n, p in self.named_parameters() if p.ndim == 2 and not n.startswith(LOOKED_UP)
        }
        per_sequence = sum(size for n, size in matrices.items() if n.startswith("time.") or ".modulation." in n)
        per_token = sum(matrices.values()) - per_sequence * (1 - 1 / length)
        head = self.vocab_size * self.dim if self.tie else 0
        attention = 12 * length * self.dim * len(self.blocks) * (0.5 if causal else 1.0)
        return 6.0 * (per_token + head) + attention


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with adaLN both branches are scaled, shifted, gated by t."""

    def __init__(self, dim: int, heads: int, mlp: str, dropout: float, attention: str, adaln: bool):
        super().__init__()
        self.heads, self.attention, self.gated = heads, attention, mlp == "swiglu"
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

    def forward(
        self,
        h: Tensor,
        rope: Tensor | None,
        causal: bool,
        condition: Any = None,
        cache: Any = None,
        seen: Any = None,
    ) -> Tensor:
        if self.modulation is None:
            h = h + self.dropout(self.attend(self.norm1(h), rope, causal, cache, seen))
            return h + self.dropout(self.mlp(self.norm2(h)))
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        attended = self.attend(self.norm1(h) * (1 + scale1) + shift1, rope, causal, cache, seen)
        h = h + (1 + gate1) * self.dropout(attended)
        return h + (1 + gate2) * self.dropout(self.mlp(self.norm2(h) * (1 + scale2) + shift2))

    def mlp(self, h):
        if not self.gated:
            return self.down(F.gelu(self.up(h)))
        value, gate = self.up(h).chunk(2, -1)
        return self.down(F.silu(gate) * value)

    def attend(self, h, rope, causal, cache=None, seen=None):
        batch, length, dim = h.shape
        qk, v = self.qkv(h).view(batch, length, 3, self.heads, -1).split((2, 1), 2)
        q, k = (qk if rope is None else rotate(qk, rope)).permute(2, 0, 3, 1, 4)
        v = v[:, :, 0].transpose(1, 2)
        read = length
        if cache is not None:
            store, layer = cache
            read = store.length + length
            store.keys[layer][:, :, store.length : read] = k
            store.values[layer][:, :, store.length : read] = v
            k, v = store.keys[layer][:, :, :read].to(q.dtype), store.values[layer][:, :, :read].to(q.dtype)
        if resolve_attention(self.attention, q) == "plain":
            out = plain_attention(q, k, v, causal, seen)
        elif seen is not None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        elif causal and read != length:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(length, read, q.device))
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(out.transpose(1, 2).reshape(batch, length, dim))


class Directed:
    """A network, or whatever wraps one, asked in one way: causally or not, in an order with these positions.

    To those who only ask, a denoiser like any other; it offers the fast cross-entropy and the cache if the network
    does.
    """

    def __init__(self, network: Any, **how: Any):
        self.network, self.how = network, how
        if hasattr(network, "cross_entropy"):
            self.cross_entropy = self._cross_entropy

    def __call__(self, *asked: Any, **how: Any) -> Any:
        return self.network(*asked, **self.how, **how)

    def _cross_entropy(self, *asked: Any, **how: Any) -> Any:
        return self.network.cross_entropy(*asked, **self.how, **how)

    @property
    def vocab_size(self) -> int:
        return self.network.vocab_size

    def new_cache(self, batch: int) -> Cache:
        return self.network.new_cache(batch)


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
