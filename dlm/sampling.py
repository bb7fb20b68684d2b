"""Samplers: plain functions from (process, denoise) and a starting sequence to a finished one.

All share one habit: decide *where* tokens change first, then ask the network for the rows, and its vocabulary
head for the positions, that do, and draw there by inverse CDF in float64 (float32 races cool the sampler: Zheng et
al. 2024).  `free` marks the positions to be generated; the others are a prompt and never change.  Rows of a batch
never influence one another.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.backbone import Transformer
from dlm.errors import UserError
from dlm.likelihood import is_mask_predictor, mask_id, masking_time
from dlm.process import Process
from dlm.process.base import Denoise


class Sample(NamedTuple):
    """A finished batch, with the history of how it came about."""

    x: Int[Tensor, "B L"]
    fixed_at: Int[Tensor, "B L"]  # the step at which each token took its final value; -1 for a prompt
    evaluations: Int[Tensor, " B"]  # network evaluations each row needed (NFE)


Warp = Callable[[Tensor], Tensor]
"""Reshapes logits before they are drawn from; the identity keeps the model's own law."""


def warp(temperature: float = 1.0, top_p: float = 1.0) -> Warp:
    """Temperature, then nucleus: the smallest set of tokens whose mass reaches top_p (Holtzman et al. 2020)."""
    if temperature <= 0 or not 0 < top_p <= 1:
        raise UserError(f"need temperature > 0 and 0 < top_p <= 1, not temperature={temperature}, top_p={top_p}")

    def apply(logits):
        logits = logits.double() / temperature
        if top_p == 1:
            return logits
        p, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        beyond = p.cumsum(-1) - p >= top_p
        return logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)

    return apply


def draw(probs: Float[Tensor, "N S"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """Categorical draws by inverse CDF in float64; an outcome of probability zero is never drawn."""
    cdf = probs.double().cumsum(-1)
    u = torch.rand(len(probs), 1, dtype=torch.float64, generator=generator).to(probs.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def noise_like(x: Tensor, generator: torch.Generator) -> Float[Tensor, "B L"]:
    return torch.rand(x.shape, dtype=torch.float64, generator=generator).to(x.device)


def time_grid(steps: int, kind: str = "uniform", t_max: float = 1.0) -> list[float]:
    """t_max = t_T > ... > t_0 = 0; "cosine" takes small steps in alpha first (MD4's sampling grid)."""
    if kind not in ("uniform", "cosine"):
        raise UserError(f"a time grid is uniform or cosine, not {kind!r}")
    i = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    t = 1 - i if kind == "uniform" else torch.cos(torch.pi / 2 * i)
    return [*(t_max * t[:-1]).tolist(), 0.0]


def start(process: Process, given: Int[Tensor, "B L"], free: Bool[Tensor, "B L"], generator) -> Int[Tensor, "B L"]:
    """Pure noise where free, the prompt elsewhere."""
    return torch.where(free, process.prior(noise_like(given, generator)), given)


@torch.no_grad()
def ancestral(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    steps: int = 64,
    grid: str = "uniform",
    warp: Warp = lambda logits: logits,
) -> Sample:
    """x_s ~ p(x_s | x_t) over a grid of times: each position by its own event probability, then its event."""
    x = start(process, given, free, generator)
    fixed_at = torch.where(free, 0, -1)
    evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for step, (t, s) in enumerate(pairwise(time_grid(steps, grid))):
        t, s = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (t, s))
        where = free & (noise_like(x, generator) < process.event_prob(x, t, s))
        rows = where.any(1)
        if not rows.any():
            continue
        logits = warp(denoise(x[rows], t[rows], where[rows]).double())
        of = where.nonzero()[:, 0]
        new = draw(process.event(logits, x[where], t[of], s[of]), generator)
        fixed_at[where] = torch.where(new == x[where], fixed_at[where], step)
        x[where] = new
        evaluations += rows
    return Sample(x, fixed_at, evaluations)


@torch.no_grad()
def tau_leap(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    steps: int = 64,
    grid: str = "uniform",
    warp: Warp = lambda logits: logits,
) -> Sample:
    """Euler steps of the reverse chain (the lecture's algorithm 7): jump to y with probability h R_t(y).

    Where h sum_y R_t(y) exceeds one it is cut to one; masks that survive the last step are then drawn from mu.
    """
    x = start(process, given, free, generator)
    fixed_at = torch.where(free, 0, -1)
    t_max = min(process.t_max, 1.0)
    for step, (t, s) in enumerate(pairwise(time_grid(steps, grid, t_max))):
        times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        jump = (t - s) * process.rates(warp(denoise(x, times).double()), x, times)
        total = jump.sum(-1)
        where = free & (noise_like(x, generator) < total)
        if where.any():
            x[where] = draw(jump[where], generator)
        fixed_at[where] = step
    evaluations = torch.full((len(x),), steps, dtype=torch.long, device=x.device)
    if process.mask_id is not None and (left := x == process.mask_id).any():
        end = torch.full((len(x),), t_max / steps, dtype=torch.float64, device=x.device)
        x[left] = draw(warp(denoise(x, end, left).double()).softmax(-1), generator)
        fixed_at[left] = steps
        evaluations += left.any(1)
    return Sample(x, fixed_at, evaluations)


@torch.no_grad()
def first_hitting(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    warp: Warp = lambda logits: logits,
) -> Sample:
    """The exact law of the continuous masked process, one token per network call (Zheng et al. 2024).

    With n tokens masked at rate u, the next is revealed at rate u U^(1/n), and it is equally likely any of them.
    """
    require_mask_predictor(process, "first-hitting sampling")
    x = start(process, given, free, generator)
    fixed_at = torch.where(free, 0, -1)
    evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
    u = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for step in range(int(free.sum(1).max())):
        masked = free & (x == mask_id(process))
        rows, n = masked.any(1), masked.sum(1)
        u = u * noise_like(u, generator) ** (1 / n.clamp(min=1))
        t = masking_time(process, u)
        chosen = noise_like(x, generator).masked_fill(~masked, torch.inf).argmin(1)
        where = torch.zeros_like(masked).scatter_(1, chosen[:, None], True) & masked
        x[where] = draw(warp(denoise(x[rows], t[rows], where[rows]).double()).softmax(-1), generator)
        fixed_at[where] = step
        evaluations += rows
    return Sample(x, fixed_at, evaluations)


Policy = Callable[[Float[Tensor, "B L V"]], Float[Tensor, "B L"]]
"""Scores every masked position from the state alone; the highest is revealed next.

A rule that looked at the *drawn* values would bias the sampler even with exact conditionals."""


def top_probability(logits: Float[Tensor, "B L V"]) -> Float[Tensor, "B L"]:
    """max_v mu_v."""
    return logits.softmax(-1).amax(-1)


def margin(logits: Float[Tensor, "B L V"]) -> Float[Tensor, "B L"]:
    """mu_(1) - mu_(2), the gap between the two likeliest values (Kim et al. 2025)."""
    top = logits.softmax(-1).topk(2, -1).values
    return top[..., 0] - top[..., 1]


def entropy(logits: Float[Tensor, "B L V"]) -> Float[Tensor, "B L"]:
    """sum_v mu_v log mu_v, the negative entropy."""
    p = logits.softmax(-1)
    return torch.xlogy(p, p).sum(-1)


POLICIES: dict[str, Policy | None] = {
    "random": None,
    "left_to_right": None,
    "top_probability": top_probability,
    "margin": margin,
    "entropy": entropy,
}


@torch.no_grad()
def ordered(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    policy: str = "random",
    per_step: int = 1,
    warp: Warp = lambda logits: logits,
) -> Sample:
    """Reveal `per_step` masked tokens at a time, in the order of a policy of POLICIES; ties go to the left.

    Exact with exact conditionals for every policy when per_step = 1.
    """
    require_mask_predictor(process, "ordered sampling")
    if policy not in POLICIES:
        raise UserError(f"an order policy is one of {', '.join(POLICIES)}, not {policy!r}")
    if per_step < 1:
        raise UserError(f"per_step must be at least 1, not {per_step}")
    score = POLICIES[policy]
    x = start(process, given, free, generator)
    fixed_at = torch.where(free, 0, -1)
    evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
    position = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)
    for step in range(-(-int(free.sum(1).max()) // per_step)):
        masked = free & (x == mask_id(process))
        rows = masked.any(1)
        u = masked.sum(1) / free.sum(1).clamp(min=1)
        t = masking_time(process, u)
        logits = None
        if score is not None:
            logits = denoise(x, t).double()
            scores = score(logits)
        else:
            scores = noise_like(x, generator) if policy == "random" else -position.expand(x.shape)
        ranked = scores.masked_fill(~masked, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        where = torch.zeros_like(masked).scatter_(1, ranked[:, :per_step], True) & masked
        at = denoise(x[rows], t[rows], where[rows]).double() if logits is None else logits[where]
        x[where] = draw(warp(at).softmax(-1), generator)
        fixed_at[where] = step
        evaluations += rows
    return Sample(x, fixed_at, evaluations)


@torch.no_grad()
def autoregressive(
    backbone: Transformer,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    warp: Warp = lambda logits: logits,
    cached: bool = True,
) -> Sample:
    """Left to right with a key-value cache; `cached=False` re-reads the whole prefix, for comparison.

    Raises:
        UserError: if a given token stands to the right of a free one: a causal model cannot see it.
    """
    if (free[:, :-1] & ~free[:, 1:]).any():
        raise UserError("an autoregressive model can only continue a prompt, not fill in before given text")
    if (free != free[:1]).any():
        raise UserError("all prompts of one autoregressive batch must have the same length")
    x, length = given.clone(), given.shape[1]
    begin = int((~free[0]).sum())
    inputs = torch.cat([torch.full_like(x[:, :1], backbone.vocab_size), x], 1)
    cache = backbone.new_cache(len(x)) if cached else None
    read = 0
    for i in range(begin, length):
        at_last = torch.zeros(len(x), i + 1 - read, dtype=torch.bool, device=x.device)
        at_last[:, -1] = True
        logits = backbone(inputs[:, read : i + 1], None, at_last, cache)
        inputs[:, i + 1] = x[:, i] = draw(warp(logits.double()).softmax(-1), generator)
        read = i + 1 if cached else 0
    steps = torch.arange(length, device=x.device) - begin
    fixed_at = torch.where(free, steps, -1)
    return Sample(x, fixed_at, free.sum(1))


def require_mask_predictor(process: Process, what: str) -> None:
    if not is_mask_predictor(process):
        raise UserError(f"{what} needs a mask predictor (md4, aoarm, dfm_mask), not {type(process).__name__}")
