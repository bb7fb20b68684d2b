"""Samplers: plain functions from (process, denoise) and a starting sequence to a finished one.

    core.py            the one loop: where first, then the network there, then the draw; rows at their own steps
    diffusion.py       down a grid of times: ancestral, tau_leap (with a corrector), remdm
    hitting.py         without a grid, exact: first_hitting, thinning
    ordered.py         by an order of positions, whose scores are in policy.py
    autoregressive.py  left to right
    noise.py           uniforms addressed by (seed, row, step, purpose, position)

`free` marks the positions to be generated; the others are a prompt and never change.
"""

from dlm.sampling.autoregressive import autoregressive
from dlm.sampling.core import DEFAULT_STEPS, Sample, Warp, Watch, draw, greedy, time_grid, warp
from dlm.sampling.diffusion import ancestral, remdm, tau_leap
from dlm.sampling.hitting import first_hitting, thinning
from dlm.sampling.ordered import Order, ordered
from dlm.sampling.policy import POLICIES, Policy

__all__ = [
    "DEFAULT_STEPS",
    "POLICIES",
    "Order",
    "Policy",
    "Sample",
    "Warp",
    "Watch",
    "ancestral",
    "autoregressive",
    "draw",
    "first_hitting",
    "greedy",
    "ordered",
    "remdm",
    "tau_leap",
    "thinning",
    "time_grid",
    "warp",
]
