"""Samplers without a grid: they jump from one change of the continuous process to the next, exactly."""

import itertools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process import GenMaskedDiffusion, Process
from dlm.process.base import Denoise
from dlm.process.masked import masking_time
from dlm.sampling.core import (
    Generation,
    Sample,
    Warp,
    Watch,
    conditional,
    require_mask_predictor,
    unwarped,
)
from dlm.sampling.noise import ORDER, WHERE


@torch.no_grad()
def first_hitting(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    warp: Warp = unwarped,
    watch: Watch | None = None,
) -> Sample:
    """The exact law of the continuous masked process, one token per network call (Zheng et al. 2024).

    Every token is revealed when the masking rate falls to a uniform of its own: the largest of n uniforms comes
    first, which is the paper's u -> u U^(1/n), and it is equally likely any of the n.  Ancestral sampling on a
    grid is the same with the times rounded.
    """
    require_mask_predictor(process, "first-hitting sampling")
    run = Generation(process, denoise, given, free, generator, warp, watch)
    rate, order = run.uniforms(ORDER, 0).masked_fill(~free, -1.0).sort(dim=1, descending=True)
    for step in range(int(free.sum(1).max())):
        where = torch.zeros_like(free).scatter_(1, order[:, step, None], rate[:, step, None] >= 0)
        run.redraw(where, masking_time(process, rate[:, step].clamp(min=0)), conditional, step)
    return run.sample()


@torch.no_grad()
def thinning(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    warp: Warp = unwarped,
    watch: Watch | None = None,
) -> Sample:
    """GenMD4's chain, exactly: in log time a mask turns into v at rate w_v mu_v <= max w (Lewis and Shedler 1979).

    Candidates come at rate n max(w) while n tokens are masked, each at one of them; the network is asked there,
    and v is accepted with probability w_v mu_v / max(w), nothing with the rest.  At t_min what is still masked is
    drawn at once.
    """
    if not isinstance(process, GenMaskedDiffusion):
        raise UserError(f"thinning simulates GenMD4's learned schedule; {type(process).__name__} has none")
    run = Generation(process, denoise, given, free, generator, warp, watch)
    fastest = process.schedule.w.max().double()

    def law(logits: Float[Tensor, "N V"], x: Int[Tensor, " N"], step: Int[Tensor, " N"]) -> Float[Tensor, "N S"]:
        return accepted(process, logits)

    t = torch.ones(len(given), dtype=torch.float64, device=given.device)
    reached = torch.zeros_like(run.every)
    for step in itertools.count():
        masked = run.masked
        waited = run.uniforms(WHERE, step)[:, 0] ** (1 / (fastest * masked.sum(1).clamp(min=1)))
        t = torch.where(masked.any(1), t * waited, 0.0)
        alive = t > process.t_min
        if not alive.any():
            break
        chosen = run.uniforms(ORDER, step).masked_fill(~masked, torch.inf).argmin(1)
        where = torch.zeros_like(masked).scatter_(1, chosen[:, None], alive[:, None])
        run.redraw(where, t, law, step)
        reached += alive
    run.finish(process.t_min, reached)
    return run.sample()


def accepted(process: GenMaskedDiffusion, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N S"]:
    """What a candidate becomes: v with probability w_v mu_v / max(w), still a mask with the rest."""
    w = process.schedule.w.to(logits.dtype)
    reveal = logits.softmax(-1) * w / w.max()
    return torch.cat([reveal, (1 - reveal.sum(-1, keepdim=True)).clamp(min=0)], -1)
