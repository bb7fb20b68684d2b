"""The three destroyers: one token at a time, until nothing is left to know.

    MashLastToken                hides the last visible token: what autoregressive models undo
    MashOneRandomUnmaskedToken   hides a random visible token: what any-order and masked diffusion models undo
    ShuffleOneRandomToken        puts a random token at a random position: what uniform diffusion undoes

Each is a Markov chain in steps k = 0, 1, 2, ... on whole sequences of length L, where a `Process` destroys every
position independently in continuous time.  The second and third become one when the number of steps is random:

    MashOneRandomUnmaskedToken   k ~ Binomial(L, u_t)           is masked diffusion's q_t,
    ShuffleOneRandomToken        k ~ Poisson(L lambda)          is uniform diffusion's with alpha = e^-lambda.

The first does not: its positions are not independent, and its bound is the autoregressive likelihood itself.

States are numbered as sequences are counted, the first position slowest; matrices hold the origin in the row.
Source: the essay on diffusion as destroying and generating information (MashLastToken, MashOneRandomUnmaskedToken,
ShuffleOneRandomToken); the number of touched positions is the classical occupancy chain.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.process.base import Process
from dlm.process.masked import MaskedDiffusion
from dlm.process.schedule import Linear, Schedule
from dlm.process.uniform import UniformDiffusion

MOST_STATES = 4096  # of a matrix


def sequences(size: int, length: int) -> Int[Tensor, "N L"]:
    """All size^length sequences, the first position varying slowest."""
    return torch.cartesian_prod(*[torch.arange(size)] * length).reshape(-1, length)


def number(x: Int[Tensor, "*B L"], size: int) -> Int[Tensor, "*B"]:
    """The row of x in `sequences(size, L)`."""
    return (x * size ** torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)).sum(-1)


class Destroyer:
    """A Markov chain on sequences of length L over V tokens; `num_states` is V, or V + 1 with a mask."""

    masks = True

    def __init__(self, vocab_size: int, length: int):
        if vocab_size < 1 or length < 1:
            raise ValueError(f"a destroyer needs tokens and positions, not V={vocab_size}, L={length}")
        self.vocab_size, self.length = vocab_size, length
        self.num_states = vocab_size + self.masks
        self.mask_id = vocab_size if self.masks else None

    def step(self, x: Int[Tensor, "B L"], noise: Float[Tensor, "B 2"]) -> Int[Tensor, "B L"]:
        """One application, a deterministic function of two uniforms: which position, and which token."""
        raise NotImplementedError

    def log_q(self, x_k: Int[Tensor, "B L"], x0: Int[Tensor, "B L"], k: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """log q(x_k | x0) of k steps from the clean sequence x0, exactly, for whole sequences."""
        raise NotImplementedError

    def matrix(self) -> Float[Tensor, "M M"]:
        """The kernel of one step between all states, row = from.

        Raises:
            ValueError: where there are more than MOST_STATES.
        """
        if self.num_states**self.length > MOST_STATES:
            raise ValueError(f"{self.num_states}^{self.length} states are too many for a matrix")
        states = sequences(self.num_states, self.length)
        kernel = torch.zeros(len(states), len(states), dtype=torch.float64)
        for to, probability in self._moves(states):
            kernel.index_put_(
                (torch.arange(len(states)), number(to, self.num_states)), probability, accumulate=True
            )
        return kernel

    def _moves(self, x: Int[Tensor, "M L"]) -> list[tuple[Int[Tensor, "M L"], Float[Tensor, " M"]]]:
        """Every kind of move as (where it leads, its probability)."""
        raise NotImplementedError


class MashLastToken(Destroyer):
    """Hides the last visible token, so that a prefix remains; nothing about it is random."""

    def step(self, x, noise):
        visible = x != self.mask_id
        last = visible & (visible.cumsum(1) == visible.sum(1, keepdim=True))
        return torch.where(last, self.vocab_size, x)

    def log_q(self, x_k, x0, k):
        left = torch.arange(self.length, device=x0.device) < (self.length - k)[:, None]
        right = (x_k == torch.where(left, x0, self.vocab_size)).all(1)
        return torch.where(right, 0.0, -torch.inf).double()

    def _moves(self, x):
        return [(self.step(x, torch.zeros(len(x), 2)), torch.ones(len(x), dtype=torch.float64))]


class MashOneRandomUnmaskedToken(Destroyer):
    """Hides one of the visible tokens, each equally likely: k steps hide a uniformly random set of k positions."""

    def step(self, x, noise):
        visible = x != self.mask_id
        count = visible.sum(1, keepdim=True)
        hit = visible & (visible.cumsum(1) == one_of(count, noise[:, :1]) + 1)
        return torch.where(hit, self.vocab_size, x)

    def log_q(self, x_k, x0, k):
        hidden = x_k == self.mask_id
        k = k.clamp(max=self.length)
        possible = ((x_k == x0) | hidden).all(1) & (hidden.sum(1) == k)
        return torch.where(possible, -log_binomial(self.length, k), -torch.inf)

    def _moves(self, x):
        visible = x != self.mask_id
        count = visible.sum(1)
        moves = [(x, (count == 0).double())]
        for i in range(self.length):
            to = x.clone()
            to[:, i] = self.vocab_size
            moves.append((to, visible[:, i] / count.clamp(min=1).double()))
        return moves

    def log_steps(self, k: Int[Tensor, " B"], alpha: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """log P(k steps) when a token is kept with probability alpha: Binomial(L, 1 - alpha)."""
        kept, hidden = torch.special.xlogy(self.length - k, alpha), torch.special.xlogy(k, 1 - alpha)
        return torch.where(k <= self.length, log_binomial(self.length, k) + kept + hidden, -torch.inf)

    def poissonised(self, schedule: Schedule | None = None) -> Process:
        """Every visible token hidden at its own random time: masked diffusion."""
        return MaskedDiffusion(self.vocab_size, schedule or Linear())


class ShuffleOneRandomToken(Destroyer):
    """Puts a uniformly random token at a uniformly random position, be it new there or not.

    Its kernel K = (1/L) sum_i (resample position i) has the eigenvalues 1 - |S|/L, (V-1)^|S| times for every set S
    of positions: what k steps leave of a correlation between |S| positions is (1 - |S|/L)^k.
    """

    masks = False

    def step(self, x, noise):
        position, token = noise.chunk(2, dim=1)
        return x.scatter(1, one_of(self.length, position), one_of(self.vocab_size, token))

    def log_q(self, x_k, x0, k):
        """With d positions changed, every set of m >= d touched ones that holds them may be to blame:

        q = sum_{m=d}^{L} binom(L-d, m-d) V^-m P(exactly these m are touched in k steps).
        """
        touched = torch.arange(self.length + 1, device=x0.device)
        changed = (x_k != x0).sum(1, keepdim=True)
        sets = log_binomial(self.length - changed, touched - changed) - log_binomial(self.length, touched)
        terms = sets - touched.double() * math.log(self.vocab_size) + self.log_touched(k)
        return torch.where(touched >= changed, terms, -torch.inf).logsumexp(1)

    def log_touched(self, k: Int[Tensor, " B"]) -> Float[Tensor, "B L+1"]:
        """log P(m different positions are touched in k steps), m = 0..L.

        Inclusion-exclusion gives binom(L, m) sum_j (-1)^(m-j) binom(m, j) (j/L)^k, whose terms cancel in long
        sequences; the chain P_k(m) = P_{k-1}(m) m/L + P_{k-1}(m-1) (L-m+1)/L has only positive ones.
        """
        m = torch.arange(self.length + 1, dtype=torch.float64, device=k.device)
        law = (m == 0).double()
        laws = [law]
        for _ in range(int(k.max())):
            fresh = torch.cat([law.new_zeros(1), law[:-1]]) * (self.length - m + 1) / self.length
            law = law * m / self.length + fresh
            laws.append(law)
        return torch.stack(laws)[k].log()

    def _moves(self, x):
        share = torch.full((len(x),), 1 / (self.length * self.vocab_size), dtype=torch.float64)
        moves = []
        for i in range(self.length):
            for token in range(self.vocab_size):
                to = x.clone()
                to[:, i] = token
                moves.append((to, share))
        return moves

    def log_steps(self, k: Int[Tensor, " B"], alpha: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """log P(k steps) when a token is kept with probability alpha = e^-lambda: Poisson(L lambda)."""
        mean = -self.length * alpha.log()
        return torch.special.xlogy(k, mean) - mean - torch.lgamma(k.double() + 1)

    def poissonised(self, schedule: Schedule | None = None) -> Process:
        """Every position resampled at its own random times: uniform diffusion."""
        return UniformDiffusion(self.vocab_size, schedule or Linear())


def one_of(n: Int[Tensor, "B 1"] | int, noise: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """Uniforms on [0, 1) to one of 0..n-1; to 0 where n = 0."""
    last = torch.as_tensor(n, device=noise.device) - 1
    return torch.minimum((noise * n).long(), last.clamp(min=0))


def log_binomial(n: Int[Tensor, "*B"] | int, k: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log binom(n, k), minus infinity outside 0 <= k <= n."""
    n = torch.as_tensor(n, dtype=torch.float64, device=k.device)
    inside = (k >= 0) & (k <= n)
    kept = torch.where(inside, k.double(), 0.0)
    value = torch.lgamma(n + 1) - torch.lgamma(kept + 1) - torch.lgamma(n - kept + 1)
    return torch.where(inside, value, -torch.inf)
