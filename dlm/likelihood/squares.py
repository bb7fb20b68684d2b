"""The square defect: a local measure of whether a mask predictor's conditionals belong to one joint distribution.

With l_i(S) = log mu^i(x0^i | x0 with S masked), revealing i before j or j before i should not matter:

    d_ij(S) = l_i(S) + l_j(S - i) - l_j(S) - l_i(S - j).

Every square of the lattice of masked states commutes (d = 0) exactly when log p(x0 | sigma) is the same for every
order sigma, that is, when the conditionals are those of one joint, not necessarily of the data.  d_ij(S) is the
change of log p(x0 | sigma) when two neighbours of the order swap places, so it measures locally, by three network
rows, what the variance over orders measures along whole paths.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.likelihood.chain import ROWS
from dlm.likelihood.masking import mask_id
from dlm.likelihood.orders import subset_log_mu, subsets
from dlm.noise import Stream, uniforms
from dlm.process import Process
from dlm.process.base import Denoise, token_nll
from dlm.process.masked import masking_time

ONE_TOKEN = "a square of the lattice swaps two tokens: a sequence of one has none"


class SquareDefect(NamedTuple):
    """|d_ij(S)| in nats, with |S| uniform on 2..L, S uniform of that size and the pair i, j uniform in S."""

    mean: Float[Tensor, " B"]
    root_mean_square: Float[Tensor, " B"]
    largest: Float[Tensor, " B"]  # of the squares looked at
    se: Float[Tensor, " B"]  # standard error of the mean; zero if all squares were looked at


def square_defect(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    index: Int[Tensor, " B"] | None = None,
    draws: int | None = None,
    seed: int = 0,
    rows: int = ROWS,
) -> SquareDefect:
    """How far the squares of the lattice are from commuting: all of them (L <= 12), or `draws` random ones.

    `index` numbers the sequences, whose squares are a function of (seed, index); by default 0, 1, ...

    Raises:
        UserError: for all squares of more than `orders.LONGEST` positions, or for a single one.
    """
    if draws is None:
        defects, weight = all_squares(process, denoise, x0, rows)
    else:
        index = torch.arange(len(x0)) if index is None else index
        defects = square_defect_draws(process, denoise, x0, index, draws, seed, rows)
        weight = torch.full((draws,), 1 / draws, dtype=torch.float64, device=x0.device)
    mean = defects @ weight
    se = torch.zeros_like(mean) if draws is None else defects.std(1) / math.sqrt(draws)
    return SquareDefect(mean, ((defects**2) @ weight).sqrt(), defects.amax(1), se)


def all_squares(
    process: Process, denoise: Denoise, x0: Int[Tensor, "B L"], rows: int = ROWS
) -> tuple[Float[Tensor, "B N"], Float[Tensor, " N"]]:
    """|d_ij(S)| of every square i < j in S, and the probability of each."""
    length = x0.shape[1]
    if length < 2:
        raise UserError(ONE_TOKEN)
    masked = subsets(length, x0.device)
    log_mu = subset_log_mu(process, denoise, x0, masked, rows)
    defects, weights = [], []
    for i in range(length):
        for j in range(i + 1, length):
            both = torch.where(masked[:, i] & masked[:, j])[0]
            one = log_mu[:, both, i] + log_mu[:, both - (1 << i), j]
            other = log_mu[:, both, j] + log_mu[:, both - (1 << j), i]
            defects.append((one - other).abs())
            weights += [1 / ((length - 1) * math.comb(length, k) * math.comb(k, 2)) for k in masked[both].sum(1)]
    return torch.cat(defects, 1), torch.tensor(weights, dtype=torch.float64, device=x0.device)


def square_defect_draws(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    index: Int[Tensor, " B"],
    draws: int,
    seed: int,
    rows: int = ROWS,
    target: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B draws"]:
    """|d_ij(S)| of random squares: a random order of the targets, and two neighbours of it that swap places."""
    batch, length = x0.shape
    target = torch.ones_like(x0, dtype=torch.bool) if target is None else target
    n = target.sum(1, keepdim=True)
    if (n < 2).any():
        raise UserError(ONE_TOKEN)
    noise = uniforms(seed, Stream.EVALUATION, index.tolist(), draws, length + 1).to(x0.device).flatten(0, 1)
    target, n = target.repeat_interleave(draws, 0), n.repeat_interleave(draws, 0)
    rank = noise[:, 1:].masked_fill(~target, -1.0).argsort(1).argsort(1) - (length - n)  # negative: given
    first = (noise[:, :1] * (n - 1)).long()  # how many targets are visible in S
    clean = x0.repeat_interleave(draws, 0)
    hidden, later = rank >= first, rank >= first + 2
    i, j = rank == first, rank == first + 1

    def log_mu(masked: Tensor, asked: Tensor) -> Float[Tensor, "N L"]:
        pieces = []
        pieces_of = (masked.split(rows), asked.split(rows), clean.split(rows), n[:, 0].split(rows))
        for where, at, x, of in zip(*pieces_of, strict=True):
            t = masking_time(process, where.sum(1).double() / of)
            pieces.append(-token_nll(denoise, torch.where(where, mask_id(process), x), t, x, at).double())
        return torch.cat(pieces)

    shared = log_mu(hidden, i | j)
    defect = shared[i] + log_mu(later | j, j)[j] - shared[j] - log_mu(later | i, i)[i]
    return defect.abs().view(batch, draws)
