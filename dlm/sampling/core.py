"""The one loop under every sampler of a process, and the parts that all share.

A step decides *where* tokens may change from the state, the times and uniform noise alone, asks the network for
the rows and its vocabulary head for the positions that do, and draws there by inverse CDF in float64 (float32
races cool the sampler: Zheng et al. 2024).  That is exact, not an approximation: a masked token is revealed with a
probability that does not depend on the network, and elsewhere

    p(x_s | x_t) = (1 - event_prob) delta(x_t) + event_prob * event

with an `event_prob` that needs no network, the event being allowed to repeat x_t (thinning).

Rows need not be in step: each waits at its own next step in which something may change, and all of those are
evaluated together.  Rows never influence one another, and a row's sample is a function of (seed, row) alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process import Process
from dlm.process.base import Denoise
from dlm.sampling.noise import VALUE, WHERE, RowNoise

LOOK_AHEAD = 1 << 15  # positions whose next steps are examined at once
DEFAULT_STEPS = 64  # of a process that has no steps of its own
DRAWN_AT_ONCE = 1 << 23  # probabilities held in float64


class Sample(NamedTuple):
    """A finished batch, with the history of how it came about."""

    x: Int[Tensor, "B L"]
    fixed_at: Int[Tensor, "B L"]  # the step at which each token took its final value; -1 for a prompt
    evaluations: Int[Tensor, " B"]  # network evaluations each row needed (NFE)
    ties: Int[Tensor, " B"] | None = None  # steps whose cut fell between equal scores; None if nothing is ranked


Warp = Callable[[Tensor], Tensor]
"""Reshapes logits before they are drawn from; the identity keeps the model's own law."""

Watch = Callable[[Int[Tensor, " B"], Int[Tensor, "B L"]], None]
"""Told the step that each row has reached, and the states, after every change."""

Chance = Callable[[Int[Tensor, "R L"], Int[Tensor, " R"]], Float[Tensor, "R L"]]
"""chance(x, step): how probably each position changes in that step of its row, whatever the network says."""

Law = Callable[[Float[Tensor, "N V"], Int[Tensor, " N"], Int[Tensor, " N"]], Float[Tensor, "N S"]]
"""law(logits, x, step): the law of a changing position, for N positions taken from anywhere."""


def unwarped(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N V"]:
    """The model's own law."""
    return logits


def greedy(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N V"]:
    """All mass on the likeliest token, on the first of several: a warp under which nothing is left to chance."""
    best = torch.full_like(logits, -torch.inf)
    return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)


def warp(temperature: float = 1.0, top_p: float = 1.0) -> Warp:
    """Temperature, then nucleus: the smallest set of tokens whose mass reaches top_p (Holtzman et al. 2020).

    Both act on the network's law of a token, never on the probability that it is revealed.

    Raises:
        UserError: for numbers outside these ranges.
    """
    if temperature <= 0 or not 0 < top_p <= 1:
        raise UserError(f"need temperature > 0 and 0 < top_p <= 1, not temperature={temperature}, top_p={top_p}")

    if temperature == 1 and top_p == 1:
        return unwarped

    def apply(logits):
        logits = logits.double() / temperature
        if top_p == 1:
            return logits
        p, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        beyond = p.cumsum(-1) - p >= top_p
        return logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)

    return apply


def draw(probs: Float[Tensor, "N S"], uniforms: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Categorical draws by inverse CDF in float64; an outcome of probability zero is never drawn."""
    cdf = probs.double().cumsum(-1)
    u = uniforms[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def time_grid(
    steps: int | None = None, grid: str | Sequence[float] = "uniform", t_max: float = 1.0
) -> Float[Tensor, " T+1"]:
    """t_T > ... > t_0 = 0 from t_max down: "uniform", "cosine" (small steps in alpha first, MD4's sampling grid),
    or any decreasing times that end at 0.

    Raises:
        UserError: for another name, for times that do not descend to 0, for `steps` beside explicit times.
    """
    if not isinstance(grid, str):
        times = torch.tensor([float(t) for t in grid], dtype=torch.float64)
        if steps is not None:
            raise UserError(f"steps={steps} and explicit times contradict each other: give one of them")
        if len(times) < 2 or times[0] > 1 or times[-1] != 0 or (times.diff() >= 0).any():
            raise UserError(f"times must descend from at most 1 to exactly 0, not {[float(t) for t in grid]}")
        return times.clamp(max=t_max)
    if grid not in ("uniform", "cosine"):
        raise UserError(f"a time grid is uniform or cosine, not {grid!r}")
    steps = DEFAULT_STEPS if steps is None else steps
    if steps < 1:
        raise UserError(f"steps must be at least 1, not {steps}")
    i = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = t_max * (1 - i if grid == "uniform" else torch.cos(torch.pi / 2 * i))
    times[-1] = 0.0
    return times


class Generation:
    """A batch on its way from noise to tokens: `free` positions are generated, the others are held."""

    def __init__(
        self,
        process: Process,
        denoise: Denoise,
        given: Int[Tensor, "B L"],
        free: Bool[Tensor, "B L"],
        generator: torch.Generator,
        warp: Warp = unwarped,
        watch: Watch | None = None,
    ):
        if warp is not unwarped and process.predicts == "score" and process.mask_id is None:
            raise UserError("temperature and top_p reshape the law of a clean token; this network predicts ratios")
        batch, length = given.shape
        self.process, self.denoise, self.free, self.warp, self.watch = process, denoise, free, warp, watch
        self.noise = RowNoise(generator, batch, length, given.device)
        self.every = torch.arange(batch, device=given.device)
        self.x = torch.where(free, process.prior(self.uniforms(WHERE, -1)), given)
        self.fixed_at = torch.where(free, 0, -1)
        self.evaluations = torch.zeros_like(self.every)
        if watch is not None:
            watch(torch.full_like(self.every, -1), self.x)

    @property
    def masked(self) -> Bool[Tensor, "B L"]:
        return self.free & (self.x == self.process.mask_id)

    def uniforms(self, purpose: int, step: Int[Tensor, " B"] | int) -> Float[Tensor, "B L"]:
        """The noise of every row at its step."""
        return self.noise.rows(self.every, self.at_every(step), purpose)

    def at_every(self, step: Int[Tensor, " B"] | int) -> Int[Tensor, " B"]:
        return step if isinstance(step, Tensor) else torch.full_like(self.every, step)

    def ask(self, where: Bool[Tensor, "B L"], t: Float[Tensor, " B"]) -> Float[Tensor, "N V"]:
        """The network's logits at the positions `where`, evaluating the rows that have any."""
        rows = where.any(1)
        self.evaluations += rows
        return self.denoise(self.x[rows], t[rows], where[rows])

    def draw(
        self, logits: Float[Tensor, "N V"], where: Bool[Tensor, "B L"], law: Law, step: Int[Tensor, " B"]
    ) -> Int[Tensor, " N"]:
        """Values at the N positions `where`, each from its law at the step of its row, under the warp."""
        row, position = where.nonzero(as_tuple=True)
        u = self.noise.at(row, step[row], VALUE, position)
        pieces = max(1, DRAWN_AT_ONCE // self.process.num_states)
        inputs = zip(*(v.split(pieces) for v in (logits, self.x[where], step[row], u)), strict=True)
        return torch.cat([draw(law(self.warped(some.double()), x, k), v) for some, x, k, v in inputs])

    def warped(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """The logits under the warp. Scores keep their sum, which is a rate."""
        if self.warp is unwarped or self.process.predicts != "score":
            return self.warp(logits)
        return self.warp(logits).log_softmax(-1) + logits.logsumexp(-1, keepdim=True)

    def put(self, where: Bool[Tensor, "B L"], values: Int[Tensor, " N"], step: Int[Tensor, " B"]) -> None:
        """Write values; a token that came out as it was has not changed."""
        x = self.x.masked_scatter(where, values)
        self.fixed_at = torch.where(x != self.x, step[:, None], self.fixed_at)
        self.x = x

    def redraw(
        self, where: Bool[Tensor, "B L"], t: Float[Tensor, " B"], law: Law, step: Int[Tensor, " B"] | int
    ) -> None:
        """Change the positions `where`, all from the same state.

        A visible token of a masked process can only be masked again, which is no question to a network.
        """
        step = self.at_every(step)
        asked = where if self.process.mask_id is None else where & self.masked
        erased = where & ~asked
        if asked.any():
            self.put(asked, self.draw(self.ask(asked, t), asked, law, step), step)
        if erased.any():
            self.put(erased, self.process.prior(torch.zeros_like(self.x[erased]).double()), step)
        if self.watch is not None:
            self.watch(step, self.x)

    def evolve(self, times: Float[Tensor, " T"], chance: Chance, law: Law) -> None:
        """Take every row through T steps, of which the k-th tells the network times[k]."""
        steps = len(times)
        times = times.to(self.x.device)
        at = torch.zeros_like(self.every)
        while len(rows := self.every[at < steps]):
            ahead = max(1, min(steps, LOOK_AHEAD // (len(rows) * self.x.shape[1])))
            step = at[rows, None] + torch.arange(ahead, device=rows.device)
            k, row = step.clamp(max=steps - 1).flatten(), rows.repeat_interleave(ahead)
            hit = self.free[row] & (self.noise.rows(row, k, WHERE) < chance(self.x[row], k))
            hit = hit.unflatten(0, step.shape) & (step < steps)[..., None]
            busy = hit.any(2)
            found, first = busy.any(1), busy.int().argmax(1)
            at[rows] += torch.where(found, first, ahead)
            where = torch.zeros_like(self.free)
            where[rows[found]] = hit[found, first[found]]
            if found.any():
                self.redraw(where, times[at.clamp(max=steps - 1)], law, at)
            at[rows[found]] += 1

    def finish(self, t: float, step: Int[Tensor, " B"] | int) -> None:
        """Draw the masks that are left from the network's conditionals at time t, all at once."""
        if self.process.mask_id is not None and self.masked.any():
            times = torch.full(self.every.shape, t, dtype=torch.float64, device=self.x.device)
            self.redraw(self.masked, times, conditional, step)

    def sample(self) -> Sample:
        return Sample(self.x, self.fixed_at, self.evaluations)


def conditional(
    logits: Float[Tensor, "N V"], x: Int[Tensor, " N"], step: Int[Tensor, " N"]
) -> Float[Tensor, "N V"]:
    """The law of the token behind a mask: mu itself, the step from anywhere to the very end."""
    return logits.softmax(-1)


def require_mask_predictor(process: Process, what: str) -> None:
    """Raises UserError unless the network's answer is the conditional of a token given the visible ones."""
    if not process.mask_predictor:
        raise UserError(f"{what} needs a mask predictor (md4, aoarm, dfm_mask), not {type(process).__name__}")
