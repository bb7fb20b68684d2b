"""How much a mask predictor disagrees with itself about the order of revealing.

One network gives a sequence L! probabilities p(x0 | sigma), one per order.  Masked states form a lattice, from all
masked to none; an order is a path through it.  With l_i(S) = log mu^i(x0^i | x0 with S masked), sums over all L!
paths are sums over the 2^L subsets S of masked positions, smallest first:

    log p_random(S) = log mean_{i in S} p_random(S - i) e^{l_i(S)}         (the law of random-order sampling)
    mean(S)         = mean_{i in S} [ l_i(S) + mean(S - i) ]               (-mean is the any-order NELBO)
    var(S)          = mean_{i in S} [ var(S - i) + (l_i(S) + mean(S - i) - mean(S))^2 ].

The variance is the law of total variance over the next position; written so, nothing cancels when it is small.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.likelihood.chain import ROWS
from dlm.likelihood.masking import mask_id
from dlm.process import Process
from dlm.process.base import Denoise, token_nll
from dlm.process.masked import masking_time

LONGEST = 12  # 4096 subsets


class OrderMoments(NamedTuple):
    """Of log p(x0 | sigma) over all orders sigma, in nats per sequence."""

    log_p_random: Float[Tensor, " B"]  # log mean_sigma p(x0 | sigma)
    nelbo: Float[Tensor, " B"]  # mean_sigma -log p(x0 | sigma)
    variance: Float[Tensor, " B"]  # infinite if some order has probability zero


def order_moments(process: Process, denoise: Denoise, x0: Int[Tensor, "B L"], rows: int = ROWS) -> OrderMoments:
    """Exact, by dynamic programming over the subsets of masked positions: 2^L network rows per sequence.

    Raises:
        UserError: for more than LONGEST positions.
    """
    length = x0.shape[1]
    masked = subsets(length, x0.device)
    log_mu = subset_log_mu(process, denoise, x0, masked, rows)
    bit = 1 << torch.arange(length, device=x0.device)
    number, size = torch.arange(len(masked), device=x0.device), masked.sum(1)
    log_p = torch.zeros(log_mu.shape[:2], dtype=torch.float64, device=x0.device)
    mean, variance = torch.zeros_like(log_p), torch.zeros_like(log_p)
    for k in range(1, length + 1):
        of_size = number[size == k]
        inside = masked[of_size].nonzero()[:, 1].view(-1, k)  # the members i of every S
        rest = of_size[:, None] - bit[inside]  # S - i
        step = log_mu[:, of_size[:, None], inside]
        path = step + mean[:, rest]
        log_p[:, of_size] = (step + log_p[:, rest]).logsumexp(-1) - math.log(k)
        mean[:, of_size] = path.mean(-1)
        variance[:, of_size] = (variance[:, rest] + (path - path.mean(-1, keepdim=True)) ** 2).mean(-1)
    impossible = mean[:, -1].isinf()
    return OrderMoments(log_p[:, -1], -mean[:, -1], variance[:, -1].masked_fill(impossible, torch.inf))


def subsets(length: int, device: torch.device) -> Bool[Tensor, "2**L L"]:
    """All subsets of the positions; bit i of a row's number says whether i is in it.

    Raises:
        UserError: for more than LONGEST positions.
    """
    if length > LONGEST:
        raise UserError(f"all orders of {length} tokens are too many to enumerate: at most {LONGEST}")
    numbers = torch.arange(1 << length, device=device)
    return (numbers[:, None] >> torch.arange(length, device=device)) % 2 == 1


def subset_log_mu(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    masked: Bool[Tensor, "S L"],
    rows: int = ROWS,
) -> Float[Tensor, "B S L"]:
    """l_i(S) = log mu^i(x0^i | x0 with S masked) for the i in S, zero elsewhere."""
    batch, length = x0.shape
    sequence = torch.arange(batch, device=x0.device).repeat_interleave(len(masked))
    where = masked.repeat(batch, 1)
    pieces = []
    for b, hidden in zip(sequence.split(rows), where.split(rows), strict=True):
        t = masking_time(process, hidden.sum(1).double() / length)
        clean = x0[b]
        nll = token_nll(denoise, torch.where(hidden, mask_id(process), clean), t, clean, hidden)
        pieces.append(-nll.double())
    return torch.cat(pieces).view(batch, len(masked), length)
