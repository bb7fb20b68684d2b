"""Revealing masked tokens in an order: random, left to right, a given one, or by what the network is sure of.

Every choice of Kim et al. 2025, Ye et al. 2024 and Nie et al. 2025 (LLaDA) is a factor of its own here: the score
and its scale, the noise added to it, how that noise is annealed, how many tokens a step reveals, and whether the
choice may look at the drawn values.

    selection="state"   positions are chosen from the state, then drawn: with one token a step and exact
                        conditionals, the law of the data
    selection="value"   every masked token is drawn first, and those kept whose drawn value is likeliest: biased
                        even then, towards what is likely; with `remask`, the sampler of Ye et al. 2024
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process import Process
from dlm.process.base import Denoise
from dlm.process.masked import masking_time
from dlm.sampling.core import (
    DRAWN_AT_ONCE,
    Generation,
    Sample,
    Warp,
    Watch,
    conditional,
    require_mask_predictor,
    unwarped,
)
from dlm.sampling.noise import ORDER, WHERE
from dlm.sampling.policy import LOG_SCALED, POLICIES, log_scale


@dataclass
class Order:
    """How positions are ranked.

    Attributes:
        policy: one of POLICIES; by default random, or top_probability for selection="value".
        selection: "state" or "value", see above.
        score_scale: "probability", or "log" for the logarithm of top_probability or margin.
        noise: "none", "gumbel" or "gaussian", added to the score with the coefficient noise_scale (default 1).
        anneal: "constant", or "masked_share": the coefficient times the share of tokens still masked.
        ties: which of equal scores comes first, the "left" or a "random" one.
        reveal: how many tokens a step reveals: "equal" shares, or a "binomial" number of the mean that ancestral
            sampling would have; with policy="random" that is ancestral sampling on a linear schedule.
        remask: whether tokens that stand already are predicted anew and may be hidden again.
    """

    policy: str | None = None
    selection: str = "state"
    score_scale: str = "probability"
    noise: str = "none"
    noise_scale: float | None = None
    anneal: str = "constant"
    ties: str = "left"
    reveal: str = "equal"
    remask: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for unknown values and for options that contradict each other."""
        self.policy = self.policy or ("random" if self.selection == "state" else "top_probability")
        for name, known in {
            "policy": tuple(POLICIES),
            "selection": ("state", "value"),
            "score_scale": ("probability", "log"),
            "noise": ("none", "gumbel", "gaussian"),
            "anneal": ("constant", "masked_share"),
            "ties": ("left", "random"),
            "reveal": ("equal", "binomial"),
            "remask": (False, True),
        }.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} is one of {', '.join(map(str, known))}, not {getattr(self, name)!r}")
        if self.noise == "none" and (self.noise_scale is not None or self.anneal != "constant"):
            raise UserError("noise_scale and anneal shape a noise: give noise=gumbel or noise=gaussian as well")
        if self.noise != "none" and POLICIES[self.policy] is None:
            raise UserError(f"noise={self.noise} is added to a score, and policy={self.policy} has none")
        if self.score_scale == "log" and self.policy not in LOG_SCALED:
            raise UserError(f"score_scale=log is for {' and '.join(LOG_SCALED)}, not for policy={self.policy}")
        if self.selection == "value" and self.policy != "top_probability":
            raise UserError(
                f"selection=value ranks by the drawn value's probability (top_probability), not by {self.policy}"
            )
        if self.remask and self.selection != "value":
            raise UserError("remask=true compares the values of one step, new and old: it needs selection=value")
        self.noise_scale = 1.0 if self.noise_scale is None else self.noise_scale
        if self.noise_scale <= 0:
            raise UserError(f"noise_scale={self.noise_scale} must be positive")

    @property
    def scored(self) -> bool:
        """Whether the choice needs the network's answer."""
        return POLICIES[str(self.policy)] is not None

    def score(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
        """The policy's score of positions, in float64, a few at a time."""
        rule = POLICIES[str(self.policy)]
        assert rule is not None
        score = torch.cat(
            [rule(some.double()) for some in logits.split(max(1, DRAWN_AT_ONCE // logits.shape[-1]))]
        )
        return log_scale(score) if self.score_scale == "log" else score

    def of_values(self, logits: Float[Tensor, "N V"], values: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The network's own probability of drawn values, on the chosen scale."""
        taken = logits.double().gather(-1, values[:, None])[:, 0] - logits.double().logsumexp(-1)
        return taken if self.score_scale == "log" else taken.exp()

    def disturb(
        self, score: Float[Tensor, " N"], uniforms: Float[Tensor, " N"], share: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """The score with its noise; `share` of the tokens is still masked."""
        if self.noise == "none":
            return score
        u = uniforms.clamp(2.0**-54, 1 - 2.0**-53)
        wave = -torch.log(-torch.log(u)) if self.noise == "gumbel" else torch.special.ndtri(u)
        scale = float(self.noise_scale or 0.0)
        return score + scale * wave * (share if self.anneal == "masked_share" else 1.0)


@torch.no_grad()
def ordered(
    process: Process,
    denoise: Denoise,
    given: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"],
    generator: torch.Generator,
    policy: str | None = None,
    per_step: int | None = None,
    steps: int | None = None,
    selection: str = "state",
    score_scale: str = "probability",
    noise: str = "none",
    noise_scale: float | None = None,
    anneal: str = "constant",
    ties: str = "left",
    reveal: str = "equal",
    remask: bool = False,
    place: Int[Tensor, "B L"] | None = None,
    warp: Warp = unwarped,
    watch: Watch | None = None,
) -> Sample:
    """Reveal `per_step` masked tokens at a time (default 1), or all of them in `steps` steps as equal as can be.

    Every row is ranked by itself.  With exact conditionals and one token per step every state-only order is exact;
    k tokens at a time cost the total correlation within each block.  policy="given" reveals by `place`, the
    smallest first; what it says of positions that are not free is ignored.

    `remask=True` is Ye et al.'s (2024) sampler: each step predicts all free positions from the current state,
    those that stand included, keeps as many of the best as had been due by then, with their new values, and masks
    the rest again.  Their settings are warp=greedy, score_scale="log" and Gumbel noise of scale 0.5, annealed (by
    the share that is masked after the step, one step ahead of anneal="masked_share").  What a network says of a
    visible position was never trained, so the kept tokens may be worse than those they replace.

    Raises:
        UserError: for options that are unknown, contradict each other or do not fit the number of tokens.
    """
    require_mask_predictor(process, "ordered sampling")
    order = Order(policy, selection, score_scale, noise, noise_scale, anneal, ties, reveal, remask)
    require_place(order, place, given)
    total = free.sum(1)
    blocks = block_ends(total, per_step, steps, free.shape[1])
    if order.reveal == "binomial" and steps is None:
        raise UserError("reveal=binomial draws the number of each step: say how many steps=")
    run = Generation(process, denoise, given, free, generator, warp, watch)
    position = torch.arange(free.shape[1], device=free.device).expand(free.shape)
    tied = torch.zeros_like(total)
    for step, end in enumerate(blocks):
        masked, now = run.masked, run.at_every(step)
        hidden = masked.sum(1)
        more = hidden - (total - end)
        if order.reveal == "binomial":
            more = (masked & (run.uniforms(WHERE, len(blocks) + step) < 1 / (len(blocks) - step))).sum(1)
        if not (more > 0).any():
            continue
        share = hidden.double() / total.clamp(min=1)
        candidates = (free if order.remask else masked) & (more > 0)[:, None]
        count = more + (total - hidden) if order.remask else more
        t, key = masking_time(process, share), run.uniforms(WHERE, step)
        if not order.scored:
            score = key if order.policy == "random" else -(position if place is None else place).double()
            where = top(score, candidates, count, key if order.ties == "random" else None)
            tied += cut_between_equals(score, where, candidates)
            run.redraw(where, t, conditional, step)
            continue
        logits = run.ask(candidates, t)
        drawn = run.draw(logits, candidates, conditional, now) if order.selection == "value" else None
        row, column = candidates.nonzero(as_tuple=True)
        score = order.score(logits) if drawn is None else order.of_values(logits, drawn)
        score = order.disturb(score, run.noise.at(row, now[row], ORDER, column), share[row])
        score = score.new_zeros(free.shape).masked_scatter(candidates, score)
        where = top(score, candidates, count, key if order.ties == "random" else None)
        tied += cut_between_equals(score, where, candidates)
        if drawn is None:
            run.put(where, run.draw(logits[where[candidates]], where, conditional, now), now)
        else:
            run.put(candidates, torch.where(where[candidates], drawn, process.mask_id), now)
        if watch is not None:
            watch(now, run.x)
    return run.sample()._replace(ties=tied)


def require_place(order: Order, place: Int[Tensor, "B L"] | None, given: Int[Tensor, "B L"]) -> None:
    """Raises UserError unless `place` is there, and fits, where the policy asks for it and only there."""
    if order.policy != "given":
        if place is not None:
            raise UserError(f"place is the order of policy=given, not of policy={order.policy}")
    elif place is None:
        raise UserError("policy=given needs the place of every position, which comes from data that have an order")
    elif place.shape != given.shape:
        raise UserError(f"place has the shape {tuple(place.shape)}, the sequences {tuple(given.shape)}")


def block_ends(
    total: Int[Tensor, " B"], per_step: int | None, steps: int | None, length: int | None = None
) -> list[Int[Tensor, " B"]]:
    """How many of each row's tokens have been revealed after every step.

    More than `length` (by default, than the longest row) is refused, whatever rows are there: one with fewer
    tokens than `steps` has steps in which nothing happens, and comes out the same beside any other.

    Raises:
        UserError: for both numbers, or one that does not fit the tokens to be revealed.
    """
    most = int(total.max())
    if per_step is not None and steps is not None:
        raise UserError(f"per_step={per_step} and steps={steps} contradict each other: give one of them")
    limit = most if length is None else length
    for name, value in (("per_step", per_step), ("steps", steps)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
        if value is not None and value > limit > 0:
            raise UserError(f"{name}={value} does not fit: there are {limit} tokens to reveal")
    if most == 0:
        return []
    if steps is not None:
        return [total * k // steps for k in range(1, steps + 1)]
    size = per_step or 1
    return [total.clamp(max=size * k) for k in range(1, -(-most // size) + 1)]


def top(
    score: Float[Tensor, "B L"],
    candidates: Bool[Tensor, "B L"],
    count: Int[Tensor, " B"],
    key: Float[Tensor, "B L"] | None = None,
) -> Bool[Tensor, "B L"]:
    """The `count` highest-scoring candidates of each row; among equals the leftmost first, or the lowest `key`."""
    rank = finite(score).masked_fill(~candidates, -torch.inf)
    if key is None:
        best = rank.sort(dim=1, descending=True, stable=True).indices
    else:
        by_key = key.sort(dim=1, stable=True).indices
        best = by_key.gather(1, rank.gather(1, by_key).sort(dim=1, descending=True, stable=True).indices)
    return candidates & (best.argsort(1) < count[:, None])


def cut_between_equals(
    score: Float[Tensor, "B L"], chosen: Bool[Tensor, "B L"], candidates: Bool[Tensor, "B L"]
) -> Bool[Tensor, " B"]:
    """Whether the worst chosen candidate of a row and the best that was left have exactly the same score."""
    worst = finite(score).masked_fill(~chosen, torch.inf).amin(1)
    return worst == finite(score).masked_fill(chosen | ~candidates, -torch.inf).amax(1)


def finite(score: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Scores in float64 with room above and below for what takes no part."""
    return torch.nan_to_num(score.double(), posinf=1e300, neginf=-1e300)
