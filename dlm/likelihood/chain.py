"""The chain rule: the exact -log p(x0) of a network that is asked for one token after another.

    -log p(x0) = sum_j -log mu^{sigma_j}(x0^{sigma_j} | x0^{sigma_<j}, the rest masked)

is the likelihood of *some* distribution whatever the network, as long as the order sigma is fixed in advance or
each next position is chosen by looking at the visible tokens only: then every sequence has one path, and the
probabilities of the paths sum to one.  It costs one network row per token.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.backbone import Directed
from dlm.likelihood.bounds import in_pieces
from dlm.likelihood.masking import mask_id
from dlm.process import Process
from dlm.process.base import Denoise, token_nll
from dlm.process.masked import masking_time

ROWS = 128  # sequences that a network reads at a time


def order_nll(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    place: Float[Tensor, "B L"],
    rows: int = ROWS,
) -> Float[Tensor, " B"]:
    """-log p(x0 | sigma), each row in its own order: targets of a smaller `place` are revealed first."""
    sequence, position = target.nonzero(as_tuple=True)
    columns = torch.arange(x0.shape[1], device=x0.device)
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for b, i in zip(sequence.split(rows), position.split(rows), strict=True):
        hidden = target[b] & (place[b] >= place[b, i][:, None])
        clean = x0[b]
        rate = hidden.sum(1).double() / target[b].sum(1).clamp(min=1)
        t = masking_time(process, rate)
        asked = columns == i[:, None]
        nll = token_nll(denoise, torch.where(hidden, mask_id(process), clean), t, clean, asked)
        total.index_add_(0, b, nll.double().sum(1))
    return total


def left_to_right_nll(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    rows: int = ROWS,
) -> Float[Tensor, " B"]:
    """The exact -log p(x0) of a mask predictor used in order: -sum_i log mu^i(x0^i | x0^{<i}, rest masked).

    To be compared with an autoregressive model's. Costs one row per target; `rows` are evaluated at a time.
    """
    place = torch.arange(x0.shape[1], dtype=torch.float64, device=x0.device).expand(x0.shape)
    return order_nll(process, denoise, x0, target, place, rows)


def adaptive_nll(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    score: Callable[[Float[Tensor, "N V"]], Float[Tensor, " N"]],
) -> Float[Tensor, " B"]:
    """-log p(x0) when the masked position of the highest `score` is revealed next; ties go to the left.

    `score` sees the network's logits and no token that is still hidden (dlm.sampling.policy has several), so this
    is the exact likelihood of the sampler that reveals one token at a time by the same rule (Kim et al. 2025).
    """
    pieces = in_pieces(process, x0, target)
    return torch.cat([_adaptive_nll(process, denoise, clean, free, score) for clean, free in pieces])


def _adaptive_nll(process, denoise, x0, target, score):
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    hidden, n = target.clone(), target.sum(1)
    while (rows := hidden.any(1)).any():
        masked, clean = hidden[rows], x0[rows]
        t = masking_time(process, masked.sum(1).double() / n[rows])
        logits = denoise(torch.where(masked, mask_id(process), clean), t, masked).double()
        scores = torch.full(masked.shape, -torch.inf, dtype=torch.float64, device=x0.device)
        scores[masked] = score(logits).double()
        scores = torch.where(masked & scores.isneginf(), torch.finfo(torch.float64).min, scores)
        chosen = torch.zeros_like(masked).scatter_(1, scores.argmax(1, keepdim=True), True)
        asked = chosen[masked]
        total[rows] -= logits[asked].log_softmax(-1).gather(-1, clean[chosen][:, None])[:, 0]
        hidden[rows] = masked & ~chosen
    return total


def autoregressive_nll(
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    start: int,
    inputs: Int[Tensor, "B L"] | None = None,
    order: Int[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L"]:
    """-sum_i log p(x0^i | x0^{<i}) of a causal network, per position, from the symbol `start` on.

    One network row per sequence.

    Args:
        inputs: what the network reads instead of x0; no likelihood then, but a way of training.
        order: order[b, j] is the position of row b that is revealed j-th, after those before it; from the left if
            absent. In any fixed order this is the exact likelihood of some distribution.  The position of the very
            first token is not told: it has nothing to be near to.
    """
    read = x0 if inputs is None else inputs
    if order is not None:
        x, scored, read = (a.gather(1, order) for a in (x0, target, read))
        nll = autoregressive_nll(in_order(denoise, order), x, scored, start, read)
        return torch.zeros_like(nll).scatter(1, order, nll)
    before = torch.cat([torch.full_like(x0[:, :1], start), read[:, :-1]], 1)
    return token_nll(denoise, before, None, x0, target)  # pyright: ignore[reportArgumentType]


def in_order(denoise: Denoise, order: Int[Tensor, "B L"]) -> Directed:
    """The network told where the tokens stand: the token of position i is read in slot i + 1 from the left, and
    predicted in slot i."""
    content = torch.cat([torch.zeros_like(order[:, :1]), order[:, :-1] + 1], 1)
    return Directed(denoise, positions=torch.stack([content, order], -1))
