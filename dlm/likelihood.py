"""How probable a model finds a sequence: estimators and exact scores on (process, denoise) alone.

Everything is in nats per sequence, summed over the `target` positions; divide by their number for nats per token.
Estimators return one column per draw, so that a caller can state the Monte-Carlo error, and take their noise from
the window's own address (seed, index): the same for every model, checkpoint, batch size and number of processes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.noise import Stream, uniforms
from dlm.process import Process
from dlm.process.base import Denoise, token_nll
from dlm.process.masked import MaskedDiffusion, exact_count_mask

LOGITS_AT_ONCE = 1 << 25  # 256 MiB in float64


def any_order_nelbo(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    index: Int[Tensor, " B"],
    draws: int,
    seed: int,
) -> Float[Tensor, "B draws"]:
    """The bound of every mask predictor, by exact counts on a stratified grid; it has no boundary terms.

        E_{k ~ U{1..n}} E_{|S| = k} (n / k) sum_{i in S} -log mu^i(x0^i | x0 with S masked)

    with k = ceil(n (s + U) / draws) in draw s and one U per window.  The masked set holds the k smallest of n
    uniforms, and the k-th smallest is itself Beta(k, n - k + 1), the masking rate at which a network that knows
    the time must be asked: so the estimator is exactly unbiased for time-conditioned networks as well.
    """
    batch, length = x0.shape
    noise = uniforms(seed, Stream.EVALUATION, index.tolist(), draws * length + 1).to(x0.device)
    strata = (torch.arange(draws, device=x0.device) + noise[:, :1]) / draws
    n = target.sum(1, keepdim=True)
    k = torch.ceil(strata * n).clamp(min=1).long().flatten()
    order = noise[:, 1:].reshape(batch * draws, length)
    x0, target = x0.repeat_interleave(draws, 0), target.repeat_interleave(draws, 0)
    where = exact_count_mask(order, target, k)
    rate = order.masked_fill(~where, 0.0).amax(1)
    t = masking_time(process, rate)
    masked = torch.where(where, mask_id(process), x0)
    nll = token_nll(denoise, masked, t, x0, where).double().sum(1)
    return (n.repeat_interleave(draws, 0)[:, 0] / k * nll).view(batch, draws)


def continuous_nelbo(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    index: Int[Tensor, " B"],
    draws: int,
    seed: int,
) -> Float[Tensor, "B draws"]:
    """Any process's own bound: stratified times, one corruption each, and the boundary terms.

    The mean over draws is unbiased for E[-log p(x0 | x_tmin)] + integral + KL(q(x_tmax | x0) || prior).
    """
    batch, length = x0.shape
    noise = uniforms(seed, Stream.EVALUATION, index.tolist(), (draws + 1) * length + 1).to(x0.device)
    strata = (torch.arange(draws, device=x0.device) + noise[:, :1]) / draws
    t = process.times(strata.flatten())
    corruption = noise[:, 1:].reshape(batch, draws + 1, length)
    wide, wide_target = x0.repeat_interleave(draws, 0), target.repeat_interleave(draws, 0)
    x_t = process.corrupt(wide, t, corruption[:, 1:].reshape(batch * draws, length))
    x_t = torch.where(wide_target, x_t, wide)
    rows = max(1, LOGITS_AT_ONCE // (length * process.vocab_size))
    pieces = zip(x_t.split(rows), t.split(rows), wide.split(rows), strict=True)
    ell = torch.cat([process.nelbo(denoise(z, s).double(), clean, z, s) for z, s, clean in pieces])
    integral = (process.t_max - process.t_min) * (ell * wide_target).sum(1).view(batch, draws)
    boundary = (process.boundary(denoise, x0, corruption[:, 0], target) * target).sum(1, keepdim=True)
    return integral + boundary


def left_to_right_nll(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    rows: int = 128,
) -> Float[Tensor, " B"]:
    """The exact -log p(x0) of a mask predictor used in order: -sum_i log mu^i(x0^i | x0^{<i}, rest masked).

    A chain rule over true conditionals of some joint, hence an exact likelihood whatever the network, to be
    compared with an autoregressive model's. Costs one row per target; `rows` are evaluated at a time.
    """
    sequence, position = target.nonzero(as_tuple=True)
    columns = torch.arange(x0.shape[1], device=x0.device)
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for b, i in zip(sequence.split(rows), position.split(rows), strict=True):
        hidden = target[b] & (columns >= i[:, None])
        clean = x0[b]
        rate = hidden.sum(1) / target[b].sum(1).clamp(min=1)
        t = masking_time(process, rate)
        asked = columns == i[:, None]
        nll = token_nll(denoise, torch.where(hidden, mask_id(process), clean), t, clean, asked)
        total.index_add_(0, b, nll.double().sum(1))
    return total


def masking_time(process: Process, rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The time at which a share `rate` of the tokens is masked, as a network that knows the time is told it."""
    return process.schedule.inverse(rate.double()).clamp(process.t_min, process.t_max)


def mask_id(process: Process) -> int:
    """The mask of a process whose network predicts hidden tokens.

    Raises:
        TypeError: for a process that does not mask, which has no conditionals of hidden tokens.
    """
    if process.mask_id is None:
        raise TypeError(f"{type(process).__name__} does not mask: it has no conditionals of hidden tokens")
    return process.mask_id


def is_mask_predictor(process: Process) -> bool:
    """Whether the network's answer depends only on which tokens are visible: MD4, any-order, masked flow.

    Not GenMD4, where the pattern of masks itself carries information about the tokens behind it.
    """
    scalar = not isinstance(process, MaskedDiffusion) or not process.time_dependent
    return process.mask_id is not None and scalar
