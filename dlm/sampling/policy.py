"""Which masked token to reveal next: scores of positions, read from the network's answer alone.

A policy maps the logits of the current state to one score per position; the highest is revealed next.  Because it
never sees a *drawn* value, revealing one token at a time is exact with exact conditionals, whatever the policy,
and every sequence has one path, hence an exact likelihood, under each.

The scores differ in scale, which matters as soon as noise is added to them: the probability of the likeliest
value, its logarithm and the margin are bounded above, so confident positions lie closer together than the noise;
the log-ratio is not, so they stay ahead.  Sources: Kim et al. 2025 (margin); Zheng et al. 2023 and Nie et al. 2025
(top probability); Ye et al. 2024 (log scale and noise).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Policy = Callable[[Float[Tensor, "*N V"]], Float[Tensor, "*N"]]


def top_probability(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """mu_(1) = max_v mu_v."""
    return logits.log_softmax(-1).amax(-1).exp()


def margin(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """mu_(1) - mu_(2), the gap between the two likeliest values."""
    top = logits.softmax(-1).topk(2, -1).values
    return top[..., 0] - top[..., 1]


def log_ratio(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """log mu_(1) - log mu_(2): the gap in log space; infinite where one value has all the mass."""
    top = logits.topk(2, -1).values
    return top[..., 0] - top[..., 1]


def entropy(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """sum_v mu_v log mu_v: the negative entropy, so that the surest position scores highest."""
    p = logits.softmax(-1)
    return torch.special.xlogy(p, p).sum(-1)


def log_scale(score: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """log of a score between 0 and 1 (Ye et al. 2024 rank by log mu_(1))."""
    return score.log()


LOG_SCALED = ("top_probability", "margin")
"""The scores that are probabilities; log_ratio is on the log scale as it is, and the entropy is no probability."""

POLICIES: dict[str, Policy | None] = {  # those without a score need no network to choose
    "random": None,
    "left_to_right": None,
    "given": None,
    "top_probability": top_probability,
    "margin": margin,
    "log_ratio": log_ratio,
    "entropy": entropy,
}
