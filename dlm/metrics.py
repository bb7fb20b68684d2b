"""Scores that stay right on several devices: float64 sums, every window counted once."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Score(NamedTuple):
    """Negative log-likelihood of a held-out set, in nats per token."""

    nll: float
    se: float  # standard error over windows: text sampling and Monte-Carlo noise together
    se_draws: float  # the part that more draws would remove (an upper bound where draws are stratified)
    windows: int
    tokens: int
    per_window: list[float]

    def bits_per_char(self, chars_per_token: float) -> tuple[float, float]:
        """(value, standard error) in bits per character."""
        scale = 1 / (math.log(2) * chars_per_token)
        return self.nll * scale, self.se * scale


class WindowNLL(Metric):
    """Gathers every window's negative log-likelihood draws; the result is identical for any number of processes.

    Windows are put in order before they are summed, in float64, so not even rounding depends on the sharding.
    """

    full_state_update = False
    index: list[Tensor]
    mean: list[Tensor]
    variance: list[Tensor]
    tokens: list[Tensor]

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for name in ("index", "mean", "variance", "tokens"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)

    def update(self, nats: Float[Tensor, "B draws"], tokens: Int[Tensor, " B"], index: Int[Tensor, " B"]) -> None:
        """Nats per window in each draw (one column if exact), the window's scored tokens and its number."""
        nats = nats.double()
        draws = nats.shape[1]
        spread = nats.var(1) / draws if draws > 1 else torch.zeros(len(nats), dtype=nats.dtype, device=nats.device)
        self.index.append(index)
        self.mean.append(nats.mean(1))
        self.variance.append(spread)
        self.tokens.append(tokens)

    def compute(self) -> Score:
        order = dim_zero_cat(self.index).argsort()
        mean, variance, tokens = (dim_zero_cat(s)[order].cpu() for s in (self.mean, self.variance, self.tokens))
        total = int(tokens.sum())
        nll = float(mean.sum()) / total
        residual = mean - nll * tokens.double()  # ratio estimator: windows may differ in length
        n = len(mean)
        se = math.sqrt(float((residual**2).sum()) * n / max(n - 1, 1)) / total
        se_draws = math.sqrt(float(variance.sum())) / total
        return Score(nll, se, se_draws, n, total, (mean / tokens).tolist())
