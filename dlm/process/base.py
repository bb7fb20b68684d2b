"""What a process is: a way of destroying sequences, and all the mathematics of undoing it.

A `Process` runs on bare tensors.  It destroys a clean sequence x0 into x_t (`corrupt`), knows the true reverse
jump rates given x0 (`conditional_rates`), turns a network's logits into the model's reverse rates (`rates`),
and from the two follows the bound.  For any factorised continuous-time Markov chain

    -log p(x0) <= E[-log p(x0 | x_tmin)] + int_tmin^tmax E_q sum_i ell_t^i dt + KL(q(x_tmax | x0) || prior),

    ell_t^i = sum_{y != x_t^i} [ R_y - C_y + C_y log(C_y / R_y) ]          (generalised Kullback-Leibler),

with C the conditional and R the model's rates at position i (Campbell et al. 2022; Shi et al. 2024;
Lipman et al. 2024).  Subclasses override `nelbo` by its closed form; the generic one stays as its test.

Units are nats.  Randomness enters only through the `noise` argument: independent uniforms on [0, 1), so the same
noise gives the same corruption on every machine, for every process, and a test can enumerate it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Denoise = Callable[..., Tensor]
"""denoise(x_t [B L], t [B], where: Bool [B L] | None) -> logits [B L V], or [N V] at the N positions `where`.

A network, a table of exact posteriors, anything.  A denoiser may also offer `cross_entropy(x_t, t, x0, where)`,
the -log softmax(logits)[x0] at `where` as [N], computed without ever holding all logits."""


class Bound(NamedTuple):
    """What a training step needs: the reported bound and the quantity to differentiate."""

    nelbo: Float[Tensor, "B L"]  # unbiased for the negative evidence lower bound, per position, in nats
    objective: Float[Tensor, " B"]  # differentiated; summed over positions; its value need not be a bound
    scored: Int[Tensor, ""]  # how many positions carried a loss


class Process(nn.Module):
    """Destroys sequences over a vocabulary of V tokens; its states are 0..num_states-1 (V, or V+1 with a mask).

    Attributes:
        predicts: what the network's softmax means: "posterior" p(x0^i | x_t), or "leave-one-out"
            p(x0^i | x_t^{-i}).  Bounds and samplers read it, so they cannot be fed the wrong one.
        time_dependent: whether the optimal network depends on t, so that the backbone must be told it.
        noise_draws: how many independent corruptions of each sequence one `loss` needs.
        bound_kind: the name under which its likelihood bound is reported.
        mask_id: the state that hides a token, if there is one.
        schedule: how fast it destroys; scalar, except GenMD4's.
    """

    predicts = "posterior"
    time_dependent = True
    noise_draws = 1
    bound_kind = "bound"
    mask_id: Any = None  # int, or None
    schedule: Any

    def __init__(self, vocab_size: int, num_states: int, t_min: float = 0.0, t_max: float = 1.0):
        super().__init__()
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"times must satisfy 0 <= t_min < t_max <= 1, not t_min={t_min}, t_max={t_max}")
        self.vocab_size, self.num_states = vocab_size, num_states
        self.t_min, self.t_max = t_min, t_max

    def times(self, lattice: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Uniforms on [0, 1) to times in (t_min, t_max]: t = t_min is never asked for, where weights blow up."""
        return self.t_max - (self.t_max - self.t_min) * lattice

    # -- the destroying process ---------------------------------------------------------------------------

    def prior(self, noise: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x_1, where generation starts."""
        raise NotImplementedError

    def corrupt(
        self, x0: Int[Tensor, "B L"], t: Float[Tensor, " B"], noise: Float[Tensor, "B L"]
    ) -> Int[Tensor, "B L"]:
        """x_t ~ q(x_t | x0) as a deterministic function of uniform noise.

        One uniform serves both decisions: below u_t the token is replaced by a draw from the noise distribution,
        and noise / u_t, uniform again, says which.
        """
        u = self.schedule.u(t)[:, None]
        replaced = noise < u
        return torch.where(replaced, self.prior(torch.where(replaced, noise / u, 0.0)), x0)

    def log_q(
        self, x_t: Int[Tensor, "B L"], x0: Int[Tensor, "B L"], t: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L"]:
        """log q(x_t^i | x0^i)."""
        raise NotImplementedError

    # -- the reverse process ------------------------------------------------------------------------------

    def rates(
        self, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L S"]:
        """The model's reverse rates out of x_t, per unit of decreasing t; the entry of x_t itself is zero."""
        raise NotImplementedError

    def conditional_rates(
        self, x0: Int[Tensor, "B L"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L S"]:
        """The true reverse rates given x0."""
        raise NotImplementedError

    def event_prob(
        self, x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"], s: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L"]:
        """Probability that a position is redrawn between t and s < t, whatever the network says.

        A sampler decides with it *where* tokens may change before it asks the network anything.
        """
        return torch.ones_like(x_t, dtype=t.dtype)

    def event(
        self,
        logits: Float[Tensor, "N V"],
        x_t: Int[Tensor, " N"],
        t: Float[Tensor, " N"],
        s: Float[Tensor, " N"],
    ) -> Float[Tensor, "N S"]:
        """The law of a redrawn token, for N positions taken from anywhere."""
        raise NotImplementedError

    def posterior(
        self,
        logits: Float[Tensor, "B L V"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
    ) -> Float[Tensor, "B L S"]:
        """p(x_s | x_t) = (1 - event_prob) delta(x_t) + event_prob * event."""
        length = x_t.shape[1]
        wide = [v.repeat_interleave(length) for v in (t, s)]
        event = self.event(logits.flatten(0, 1), x_t.flatten(), *wide).unflatten(0, x_t.shape)
        p = self.event_prob(x_t, t, s)[..., None]
        return (1 - p) * F.one_hot(x_t, self.num_states) + p * event

    # -- the bound ----------------------------------------------------------------------------------------

    def nelbo(
        self,
        logits: Float[Tensor, "B L V"],
        x0: Int[Tensor, "B L"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
    ) -> Float[Tensor, "B L"]:
        """The integrand ell_t of the bound, in nats per unit of time."""
        return generalised_kl(self.conditional_rates(x0, x_t, t), self.rates(logits, x_t, t), x_t)

    def boundary(
        self,
        denoise: Denoise,
        x0: Int[Tensor, "B L"],
        noise: Float[Tensor, "B L"],
        target: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Reconstruction and prior terms: what the integral over (t_min, t_max) leaves out. Unbiased.

        Positions outside `target` are read, not destroyed; their own entries mean nothing.
        """
        return torch.zeros(x0.shape, dtype=noise.dtype, device=x0.device)

    def loss(
        self,
        denoise: Denoise,
        x0: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
        target: Bool[Tensor, "B L"],
        noise: Float[Tensor, "draws B L"],
    ) -> Bound:
        """One training term at times t ~ U(t_min, t_max]; only `target` positions are destroyed and scored."""
        x_t = torch.where(target, self.corrupt(x0, t, noise[0]), x0)
        ell = (self.t_max - self.t_min) * self.nelbo(denoise(x_t, t), x0, x_t, t) * target
        return Bound(ell, ell.sum(1), target.sum())


def uniform_tokens(noise: Float[Tensor, "B L"], vocab_size: int) -> Int[Tensor, "B L"]:
    """Uniforms on [0, 1) to uniform tokens."""
    return (noise * vocab_size).long().clamp(max=vocab_size - 1)


def generalised_kl(
    true: Float[Tensor, "B L S"], model: Float[Tensor, "B L S"], x_t: Int[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """sum_{y != x_t} [ R_y - C_y + C_y log(C_y / R_y) ], 0 log 0 = 0 in value and in gradient."""
    off = ~F.one_hot(x_t, true.shape[-1]).bool()
    live = off & (true > 0)
    ratio = torch.where(live, true, 1.0) / torch.where(live, model, 1.0)
    return (off * (model - true) + torch.where(live, true * torch.log(ratio), 0.0)).sum(-1)


def token_nll(
    denoise: Denoise,
    x_t: Int[Tensor, "B L"],
    t: Float[Tensor, " B"],
    x0: Int[Tensor, "B L"],
    where: Bool[Tensor, "B L"],
) -> Float[Tensor, "B L"]:
    """-log mu^i(x0^i | x_t) at the positions `where`, zero elsewhere: the vocabulary head works only there."""
    if hasattr(denoise, "cross_entropy"):
        nll = denoise.cross_entropy(x_t, t, x0, where)  # pyright: ignore[reportFunctionMemberAccess]
    else:
        nll = F.cross_entropy(denoise(x_t, t, where), x0[where], reduction="none")
    return torch.zeros(x0.shape, dtype=nll.dtype, device=nll.device).masked_scatter(where, nll)
