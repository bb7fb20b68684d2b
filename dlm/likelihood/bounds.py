"""Bounds on -log p(x0) by drawing times and corruptions: unbiased draws of a number above the model's own.

Estimators return one column per draw, so that a caller can state the Monte-Carlo error, and take their noise from
the window's own address (seed, index): the same for every model, checkpoint, batch size and number of processes.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.likelihood.masking import mask_id
from dlm.noise import Stream, uniforms
from dlm.process import Process
from dlm.process.base import Denoise, token_nll
from dlm.process.masked import exact_count_mask, masking_time

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
    pieces = in_pieces(process, masked, t, x0, where)
    nll = torch.cat([token_nll(denoise, *piece).double().sum(1) for piece in pieces])
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
    strata, corruption = stratified(x0, index, draws, seed)
    t = process.times(strata)
    x_t, wide, wide_target = corrupted(process, x0, target, t, corruption[:, 1:])
    pieces = in_pieces(process, x_t, t, wide)
    ell = torch.cat([process.nelbo(denoise(z, s).double(), clean, z, s) for z, s, clean in pieces])
    integral = (process.t_max - process.t_min) * where(wide_target, ell).sum(1).view(len(x0), draws)
    ends = in_pieces(process, x0, corruption[:, 0], target)
    boundary = torch.cat([process.boundary(denoise, clean, noise, of) for clean, noise, of in ends])
    return integral + where(target, boundary).sum(1, keepdim=True)


def step_nelbo(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    index: Int[Tensor, " B"],
    draws: int,
    seed: int,
    times: Float[Tensor, " T+1"],
) -> Float[Tensor, "B draws"]:
    """The T-step bound on a grid 0 = t_0 < ... < t_T = t_max, of any process.

        sum_{i=1}^T E_q KL( q(x_s | x_t, x0) || p(x_s | x_t) ) + KL(q(x_{t_T} | x0) || prior)

    where t = t_i, s = t_{i-1} and alpha_0 = 1: the term i = 1 is the reconstruction.  Each draw takes one step i,
    stratified on 1..T, and one corruption at t_i, and weighs the divergence by T: unbiased for any number of
    draws; with T of them every step is visited exactly once.  It lies above the continuous bound for (near-)exact
    networks only.
    """
    times = times.to(x0.device)
    steps = len(times) - 1
    strata, corruption = stratified(x0, index, draws, seed)
    i = (strata * steps).long().clamp(max=steps - 1)
    s, t = times[i], times[i + 1]
    x_t, wide, wide_target = corrupted(process, x0, target, t, corruption[:, 1:])
    pieces = in_pieces(process, x_t, wide, t, s)
    kl = torch.cat([process.step_kl(denoise(z, now).double(), x, z, now, then) for z, x, now, then in pieces])
    total = steps * where(wide_target, kl).sum(1).view(len(x0), draws)
    ends = in_pieces(process, x0, corruption[:, 0], target)
    prior = torch.cat([process.prior_term(denoise, clean, noise, of) for clean, noise, of in ends])
    return total + where(target, prior).sum(1, keepdim=True)


def stratified(
    x0: Int[Tensor, "B L"], index: Int[Tensor, " B"], draws: int, seed: int
) -> tuple[Float[Tensor, " B*draws"], Float[Tensor, "B draws+1 L"]]:
    """One point of [0, 1) in every stratum of each window, and noise for each; the first is for the boundary."""
    batch, length = x0.shape
    noise = uniforms(seed, Stream.EVALUATION, index.tolist(), (draws + 1) * length + 1).to(x0.device)
    strata = (torch.arange(draws, device=x0.device) + noise[:, :1]) / draws
    return strata.flatten(), noise[:, 1:].reshape(batch, draws + 1, length)


def corrupted(
    process: Process,
    x0: Int[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
    t: Float[Tensor, " B*draws"],
    noise: Float[Tensor, "B draws L"],
) -> tuple[Int[Tensor, "B*draws L"], Int[Tensor, "B*draws L"], Bool[Tensor, "B*draws L"]]:
    """x_t of every draw, beside its x0 and its target."""
    draws = noise.shape[1]
    wide, wide_target = x0.repeat_interleave(draws, 0), target.repeat_interleave(draws, 0)
    return torch.where(wide_target, process.corrupt(wide, t, noise.flatten(0, 1)), wide), wide, wide_target


def where(target: Bool[Tensor, "B L"], nats: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Nothing outside the target, whatever stands there."""
    return torch.where(target, nats, 0.0)


def in_pieces(process: Process, x_t: Int[Tensor, "B L"], *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of x_t and of what belongs to them, a few at a time, so that their logits fit into memory."""
    rows = max(1, LOGITS_AT_ONCE // (x_t.shape[1] * process.vocab_size))
    return zip(x_t.split(rows), *(other.split(rows) for other in others), strict=True)
