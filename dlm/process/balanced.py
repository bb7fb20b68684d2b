"""MD4 that rejects corruptions it has seen too often, so that the states of the lattice train more evenly.

A state (a masked string) with few visible tokens is met far more often than one with many; the all-masked one, in
every epoch of every sequence.  The idea is a footnote of a note ("Defining the Generative Modeling Problem for
Discrete Masking Models") that breaks off: "hash the masked sequences ... and then have some probability of
rejecting a training sample if the".  Here: if its state has been met often.  With n(z) the number of times that
state z was met in training so far, counted by its hash,
and m the median of n over the states met at all,

    P(z is kept) = min(1, (m / n(z))^power),    objective = kept * MD4's objective,    nelbo = MD4's, of every row.

What this does to the minimiser: nothing.  Whether z is kept depends on z, the counts and an independent uniform,
not on which x0 led to z; nor does MD4's time weight, since q(z | x0) depends on x0 only through whether the
visible tokens agree.  So the expected objective is

    sum_z weight(z) P(z is kept) * sum_{i masked} E_{x0 | z} [ -log mu^i(x0^i | z) ],

the same cross-entropies under other positive weights, and each is least at mu^i(. | z) = p(x0^i | z).  Only a
network that cannot fit every state at once is moved, towards the rare ones.  With power 1 the visits that train
are capped at the median: n is proportional to q(z), the kept visits to min(q(z), median), and half the states lose
nothing.

The counts are a buffer: saved with the weights, so a resumed run goes on as it was.  They advance only in training
passes (module in training mode, gradients flowing), once per optimiser step: a global batch is judged by the
counts before it, however it is divided.  Strings without a mask, which carry no loss, are not counted.  States
that share a bucket of the table are counted as one; once states outnumber the buckets, the median is that of
buckets, and a state never met before may be rejected for its neighbours' sake.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process.base import Bound
from dlm.process.masked import MaskedDiffusion
from dlm.process.schedule import Schedule

ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # splitmix64's constants, as int64


class BalancedDiffusion(MaskedDiffusion):
    """Masked diffusion whose training rejects corruptions in proportion to how often their state was met.

    Args:
        power: 0 keeps everything (MD4), 1 caps a state's training visits at the median state's.
        buckets: size of the table of counts; states that share a bucket are counted together.
    """

    noise_draws = (
        2  # of one network pass: the first draw corrupts, the first column of the second decides what is kept
    )
    visited: Tensor
    met: Tensor  # since the last optimiser step

    def __init__(
        self,
        vocab_size: int,
        schedule: Schedule | None = None,
        power: float = 1.0,
        buckets: int = 1 << 16,
        t_min: float = 0.0,
        t_max: float = 1.0,
    ):
        if power < 0 or buckets < 1:
            raise UserError(f"balanced diffusion needs power >= 0 and buckets >= 1, not {power=}, {buckets=}")
        super().__init__(vocab_size, schedule, t_min, t_max)
        self.power = power
        self.register_buffer("visited", torch.zeros(buckets, dtype=torch.long))
        self.register_buffer("met", torch.zeros(buckets, dtype=torch.long), persistent=False)

    def bucket(self, x_t: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
        """The hash of each state: a sum of well-mixed (position, token) words."""
        word = (x_t + 1) * ODD[0] + (torch.arange(x_t.shape[1], device=x_t.device) + 1) * ODD[1]
        word = (word ^ (word >> 29)) * ODD[2]
        return ((word ^ (word >> 32)).sum(1) >> 8) % len(self.visited)

    def keep_prob(self, x_t: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """min(1, (m / n)^power), by the counts as they are."""
        seen = self.visited[self.visited > 0]
        median = seen.median() if len(seen) else torch.ones_like(self.visited[0])
        n = self.visited[self.bucket(x_t)]
        return torch.where(n > 0, (median / n.clamp(min=1)).clamp(max=1.0) ** self.power, 1.0)

    @torch.no_grad()
    def count(self, x_t: Int[Tensor, "B L"]) -> None:
        """Remember the masked states of a batch, or of its share."""
        masked = (x_t == self.mask_id).any(1)
        self.met += self.bucket(x_t[masked]).bincount(minlength=len(self.met))

    @torch.no_grad()
    def end_of_step(self) -> None:
        """Count the states of the global batch: of every micro-batch, of all ranks if there are several."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.met)
        self.visited += self.met
        self.met.zero_()

    def loss(self, denoise, x0, t, target, noise):
        """MD4's bound of every row, and its objective in the rows that are kept."""
        x_t = torch.where(target, self.corrupt(x0, t, noise[0]), x0)
        bound = self.loss_at(denoise, x0, x_t, t, target)
        kept = noise[1, :, 0] < self.keep_prob(x_t)
        if self.training and bound.objective.requires_grad:
            self.count(x_t)
        scored = (target & (x_t == self.mask_id) & kept[:, None]).sum()
        return Bound(bound.nelbo, bound.objective * kept, scored)
