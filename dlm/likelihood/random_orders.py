"""What K random orders of revealing say about a sequence, and what may be made of their K log-likelihoods.

With a_k = log p(x0 | sigma_k), sigma_k uniform on the L! orders,

    mean_k -a_k                    is unbiased for the any-order NELBO,
    -log mean_k exp(a_k)           is the K-order mixture bound: from the NELBO at K = 1 down to -log p_random(x0),
                                   never increasing in K in expectation, as for importance-weighted bounds (Burda
                                   et al. 2016): a mean over K + 1 is the mean of its K + 1 means over K, and -log
                                   is convex,
    sum_k (a_k - a)^2 / (K - 1)    is unbiased for the variance over orders.

Each order costs one network row per token.
"""

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.likelihood.chain import ROWS, order_nll
from dlm.noise import Stream, uniforms
from dlm.process import Process
from dlm.process.base import Denoise


def random_order_log_p(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    index: Int[Tensor, " B"],
    orders: int,
    seed: int,
    rows: int = ROWS,
) -> Float[Tensor, "B orders"]:
    """log p(x0 | sigma_k) for K = `orders` uniformly random orders, functions of (seed, index)."""
    place = uniforms(seed, Stream.EVALUATION, index.tolist(), orders, x0.shape[1]).to(x0.device).flatten(0, 1)
    wide, wide_target = x0.repeat_interleave(orders, 0), target.repeat_interleave(orders, 0)
    return -order_nll(process, denoise, wide, wide_target, place, rows).view(len(x0), orders)


def mixture_nll(log_p: Float[Tensor, "*B orders"]) -> Float[Tensor, "*B"]:
    """-log( (1/K) sum_k p(x0 | sigma_k) )."""
    return math.log(log_p.shape[-1]) - log_p.logsumexp(-1)


def variance_pseudo_values(log_p: Float[Tensor, "*B orders"]) -> Float[Tensor, "*B orders"]:
    """K s^2 - (K - 1) s^2 without order k: their mean is the unbiased variance s^2 over orders, exactly, and
    their spread is its jackknife standard error.  Needs K >= 3."""
    k = log_p.shape[-1]
    squares = (log_p - log_p.mean(-1, keepdim=True)) ** 2
    whole = squares.sum(-1, keepdim=True) / (k - 1)
    without = ((k - 1) * whole - k / (k - 1) * squares) / (k - 2)
    return k * whole - (k - 1) * without
