"""One-scalar temperature calibration: the T that minimises a likelihood when all logits are divided by it.

A network that overfits grows too sure of itself, and its likelihood then mixes two things: what it knows, and how
badly it is calibrated.  One number, found on data that the reported split does not contain, takes the second away
(Guo et al. 2017).  -log softmax(beta l)[x] is convex in beta = 1/T, and so is every bound that is a mean of such
terms with fixed weights (chain rules in a fixed order, the any-order NELBO): one minimum, which a golden-section
search finds.  Elsewhere (uniform noise, learned schedules, orders that the tempered network itself chooses) it is
a search all the same, whose answer is never worse on the data it saw than no temperature at all.
"""

import math
from collections.abc import Callable

from dlm.process.base import Denoise

COLDEST, HOTTEST = 1 / 8, 8.0
TOLERANCE = 1e-3  # of log T
GOLDEN = (math.sqrt(5) - 1) / 2


class Tempered:
    """A denoiser whose logits are divided by a temperature; it offers no fast cross-entropy."""

    def __init__(self, denoise: Denoise, temperature: float):
        self.denoise, self.temperature = denoise, temperature

    def __call__(self, x_t, t, where=None, **how):
        return self.denoise(x_t, t, where, **how) / self.temperature


def tempered(denoise: Denoise, temperature: float) -> Denoise:
    """The denoiser at a temperature; at 1 the denoiser itself, with all its fast paths."""
    return denoise if temperature == 1 else Tempered(denoise, temperature)


def best_temperature(nll: Callable[[float], float]) -> float:
    """The T in [1/8, 8] of the lowest nll(T), to a thousandth; never one that is worse than T = 1.

    `nll` must be a function: the same noise at every T.
    """
    seen = {1.0: nll(1.0)}

    def at(log_t: float) -> float:
        t = math.exp(log_t)
        if t not in seen:
            seen[t] = nll(t)
        return seen[t]

    low, high = math.log(COLDEST), math.log(HOTTEST)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    while high - low > TOLERANCE:
        if at(left) <= at(right):
            high, right = right, left
            left = high - GOLDEN * (high - low)
        else:
            low, left = left, right
            right = low + GOLDEN * (high - low)
    return min(seen, key=lambda t: seen[t])
