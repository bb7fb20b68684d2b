"""Samplers that walk down a grid of times: ancestral, tau-leaping with a corrector, remasking.

Each says only where a position may change in a step and by which law; the loop is `core.Generation.evolve`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process import FlowMatching, Process
from dlm.process.base import Denoise
from dlm.sampling.core import (
    Generation,
    Sample,
    Warp,
    Watch,
    conditional,
    require_mask_predictor,
    time_grid,
    unwarped,
)


@torch.no_grad()
def ancestral(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    steps: int | None = None,
    grid: str | Sequence[float] = "uniform",
    warp: Warp = unwarped,
    watch: Watch | None = None,
) -> Sample:
    """x_s ~ p(x_s | x_t) over a grid of times: each position by its own event probability, then its event.

    Its distance from the continuous process is O(1/T): what it costs to draw the tokens of a step independently.
    A process trained in T steps is by default sampled in T, here and by the other samplers on a grid.
    """
    run = Generation(process, denoise, given, free, generator, warp, watch)
    times = process_grid(process, steps, grid).to(given.device)
    t, s = times[:-1], times[1:]
    run.evolve(
        t,
        lambda x, k: process.event_prob(x, t[k], s[k]),
        lambda logits, x, k: process.event(logits, x, t[k], s[k]),
    )
    return run.sample()


@torch.no_grad()
def tau_leap(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    steps: int | None = None,
    grid: str | Sequence[float] = "uniform",
    increment: str = "euler",
    corrector: float = 0.0,
    warp: Warp = unwarped,
    watch: Watch | None = None,
) -> Sample:
    """The reverse chain with its rates frozen over each step (the lecture's algorithm 7): jump to y with
    probability h R_t(y), cut to one in total; masks that survive the last step are drawn from mu.

    Where the rates are w(t) (mu - 1[x_t]), `increment="exact"` replaces h w(t) by its integral's own
    (kappa_s - kappa_t) / (1 - kappa_t), which is always a probability: the mixture path's ancestral step.

    `corrector=c` adds noise and takes it away again at c(t) = c alpha_t, zero in the last step: forward rates
    times 1 + c(t), jumps to the source at c(t) (-alpha'/alpha), finite at t = 1.  The marginals are the same for
    every c >= 0 (Gat et al. 2024); on the linear schedule c is Campbell et al.'s (2024) constant remasking rate.
    """
    require_leap(process, increment, corrector)
    if increment == "exact":
        return ancestral(process, denoise, given, free, generator, steps, grid, warp, watch)
    run = Generation(process, denoise, given, free, generator, warp, watch)
    times = process_grid(process, steps, grid).to(given.device)
    t, h = times[:-1], -times.diff()
    strength, renewal = correction(process, t, corrector)
    corrected: Any = process.corrected_rates if corrector else None

    def chance(x: Int[Tensor, "R L"], k: Int[Tensor, " R"]) -> Float[Tensor, "R L"]:
        back = renewal[k, None].expand(x.shape)
        if process.mask_id is not None:
            back = back * (x != process.mask_id)
        bound = (1 + strength[k, None]) * process.rate_bound(x, t[k]) + back
        return (h[k, None] * bound).clamp(max=1)

    def law(logits: Float[Tensor, "N V"], x: Int[Tensor, " N"], k: Int[Tensor, " N"]) -> Float[Tensor, "N S"]:
        alone = (logits[:, None], x[:, None], t[k])
        rates = corrected(*alone, strength[k]) if corrector else process.rates(*alone)
        return jump_law(h[k, None] * rates[:, 0], x, chance(x[:, None], k)[:, 0])

    run.evolve(t, chance, law)
    run.finish(float(t[-1]), len(t))
    return run.sample()


def process_grid(process: Process, steps: int | None, grid: str | Sequence[float]) -> Float[Tensor, " T+1"]:
    """From where the process starts, in its own number of steps if it has one and no other is asked for."""
    own = steps if steps is not None or not isinstance(grid, str) else process.steps
    return time_grid(own, grid, process.t_max)


def correction(
    process: Process, t: Float[Tensor, " T"], corrector: float
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """c(t) = corrector alpha_t, zero in the last step, and the rate c(t) (-alpha'/alpha) of renewing a token."""
    none = torch.zeros_like(t)
    if not corrector:
        return none, none
    alpha, last = process.schedule.alpha(t), torch.arange(len(t), device=t.device) == len(t) - 1
    rate = process.schedule.noise_rate(torch.where(alpha > 0, t, 0.5))
    strength = torch.where(last, none, corrector * alpha)
    return strength, strength * torch.where(alpha > 0, rate, none)


def towards_posterior(process: Process) -> bool:
    """Whether the reverse rates are w(t) (mu - 1[x_t]), so that when to jump needs no network."""
    return process.predicts == "posterior" and (process.mask_predictor or isinstance(process, FlowMatching))


def require_leap(process: Process, increment: str, corrector: float) -> None:
    """Raises UserError for an unknown increment, one that the process has not, or a misplaced corrector."""
    if increment not in ("euler", "exact"):
        raise UserError(f"increment is euler or exact, not {increment!r}")
    if increment == "exact" and not towards_posterior(process):
        raise UserError(
            f"increment=exact integrates rates w(t) (mu - x_t), which {type(process).__name__} does not have: "
            "use increment=euler or sampler=ancestral"
        )
    if corrector < 0:
        raise UserError(f"corrector={corrector} must be zero or more")
    if corrector and not isinstance(process, FlowMatching):
        raise UserError(f"corrector={corrector} is flow matching's, not {type(process).__name__}'s")
    if corrector and increment == "exact":
        raise UserError("a corrector adds rates, which only increment=euler takes")


def jump_law(
    jumps: Float[Tensor, "N S"], x: Int[Tensor, " N"], chance: Float[Tensor, " N"]
) -> Float[Tensor, "N S"]:
    """The law of a position that `chance` struck: jumps with probability min(1, sum) / chance, or stays."""
    total = jumps.sum(-1)
    stay = (1 - total.clamp(max=1) / chance).clamp(min=0)
    share = total.clamp(max=1) / (chance * torch.where(total > 0, total, 1.0))
    return (jumps * share[:, None]).scatter(-1, x[:, None], stay[:, None])


@torch.no_grad()
def remdm(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    steps: int | None = None,
    grid: str | Sequence[float] = "uniform",
    remask: str = "cap",
    eta: float | None = None,
    warp: Warp = unwarped,
    watch: Watch | None = None,
) -> Sample:
    """Remasking (ReMDM, Wang et al. 2025): a visible token is masked again with probability sigma_t, and a mask
    revealed with (alpha_s - (1 - sigma_t) alpha_t) / (1 - alpha_t), which leaves every marginal as it was.

    The largest sigma that is possible is min(1, (1 - alpha_s) / alpha_t); `remask="cap"` takes at most eta of all
    tokens (default 0.02), "rescale" eta times the largest (default 0.1).  The last step reveals everything.
    """
    require_mask_predictor(process, "remasking")
    if remask not in ("cap", "rescale"):
        raise UserError(f"remask is cap or rescale, not {remask!r}")
    eta = {"cap": 0.02, "rescale": 0.1}[remask] if eta is None else eta
    if not 0 <= eta <= 1:
        raise UserError(f"eta={eta} must be in [0, 1]")
    run = Generation(process, denoise, given, free, generator, warp, watch)
    times = process_grid(process, steps, grid).to(given.device)
    erase, reveal = remasking(process, times, remask, eta)

    def chance(x: Int[Tensor, "R L"], k: Int[Tensor, " R"]) -> Float[Tensor, "R L"]:
        return torch.where(x == process.mask_id, reveal[k, None], erase[k, None])

    run.evolve(times[:-1], chance, conditional)
    return run.sample()


def remasking(
    process: Process, times: Float[Tensor, " T+1"], remask: str, eta: float
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """sigma of every step, and the probability that a mask is revealed in it."""
    alpha = process.schedule.alpha(times)
    alpha[-1] = 1.0
    a_t, a_s = alpha[:-1], alpha[1:]
    most = torch.where(a_t > 0, (1 - a_s) / torch.where(a_t > 0, a_t, 1.0), 1.0).clamp(max=1)
    erase = most.clamp(max=eta) if remask == "cap" else eta * most
    return erase, (a_s - (1 - erase) * a_t) / (1 - a_t)
