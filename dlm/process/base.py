"""What a process is: a way of destroying sequences, and all the mathematics of undoing it.

A `Process` runs on bare tensors.  It destroys a clean sequence x0 into x_t (`corrupt`), knows the true reverse
jump rates given x0 (`conditional_rates`), turns a network's logits into the model's reverse rates (`rates`),
and from the two follows the bound.  For any factorised continuous-time Markov chain

    -log p(x0) <= E[-log p(x0 | x_tmin)] + int_tmin^tmax E_q sum_i ell_t^i dt + KL(q(x_tmax | x0) || prior),

    ell_t^i = sum_{y != x_t^i} [ R_y - C_y + C_y log(C_y / R_y) ]          (generalised Kullback-Leibler),

with C the conditional and R the model's rates at position i (Campbell et al. 2022; Shi et al. 2024;
Lipman et al. 2024).  Subclasses override `integrand` by its closed form; the generic one stays as its test.

Taken in T steps of a fixed grid t_i = i / T instead (D3PM, Austin et al. 2021; MD4's discrete form), the same
process has the bound

    -log p(x0) <= sum_{i=1}^T E KL( q(x_s | x_t, x0) || p(x_s | x_t) ) + prior term,     t = t_i, s = t_{i-1},

one sum with alpha_0 = 1, so that i = 1 is the reconstruction.  `steps=T` selects it, in training and in scoring.

Units are nats.  Randomness enters only through the `noise` argument: independent uniforms on [0, 1), so the same
noise gives the same corruption on every machine, for every process, and a test can enumerate it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.errors import UserError
from dlm.process.divergence import categorical_kl, generalised_kl

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
        predicts: what the network's output means: "posterior" p(x0^i | x_t), "leave-one-out" p(x0^i | x_t^{-i}),
            or "score", p_t(y, x_t^{-i}) / p_t(x_t).  Bounds and samplers go by it and `parameterisation.py`
            converts, so that none can be fed the wrong one; a checkpoint says which it holds.
        mask_predictor: whether softmax(logits) at a masked position is the conditional of that token given the
            visible ones, whatever the time: then the network is an any-order autoregressive model as well.
        proper: whether the exact network minimises the objective, as it minimises every bound.
        time_dependent: whether the optimal network depends on t, so that the backbone must be told it.
        noise_draws: how many independent rows of uniforms per sequence one `loss` needs.
        network_passes: how often one `loss` asks the network, which is what it costs.
        bound_kind: the name under which its likelihood bound is reported.
        mask_id: the state that hides a token, if there is one.
        schedule: how fast it destroys; scalar, except GenMD4's.
        steps: T of the T-step bound, or None for the continuous one.
        hybrid: D3PM's lambda, the weight of a cross-entropy on x0 beside each step's divergence.  It belongs to
            the objective only, never to the reported bound.
    """

    predicts = "posterior"
    mask_predictor = False
    proper = True
    time_dependent = True
    noise_draws = 1
    network_passes = 1
    bound_kind = "bound"
    mask_id: Any = None  # int, or None
    schedule: Any

    def __init__(
        self,
        vocab_size: int,
        num_states: int,
        t_min: float = 0.0,
        t_max: float = 1.0,
        steps: int | None = None,
        hybrid: float = 0.0,
    ):
        super().__init__()
        if not 0 <= t_min < t_max <= 1:
            raise UserError(f"times must satisfy 0 <= t_min < t_max <= 1, not t_min={t_min}, t_max={t_max}")
        if steps is not None and steps < 1:
            raise UserError(f"a T-step bound needs steps >= 1, not steps={steps}")
        if hybrid < 0 or (hybrid > 0 and steps is None):
            raise UserError(f"hybrid={hybrid} is D3PM's weight >= 0 beside a T-step bound: it needs steps=T")
        self.vocab_size, self.num_states = vocab_size, num_states
        self.steps, self.hybrid = steps, hybrid
        self.t_min, self.t_max = (t_min, t_max) if steps is None else (0.0, 1.0)
        if steps is not None:
            self.bound_kind = f"{steps}-step bound"

    @property
    def counts_tokens(self) -> bool:
        """Whether its noise has the token frequencies of the training split, to be shown by `observe`."""
        return False

    def observe(self, counts: Int[Tensor, " V"]) -> None:
        """Called once with the token counts of the training split, if `counts_tokens`."""

    def end_of_step(self) -> None:
        """Called after every optimiser step, for a process that remembers what it has been trained on."""

    def times(self, lattice: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Uniforms on [0, 1) to times in (t_min, t_max]: t = t_min is never asked for, where weights blow up.

        With `steps`, to the grid 1/T, 2/T, ..., 1.
        """
        if self.steps is not None:
            return (self.steps - torch.floor(lattice * self.steps)) / self.steps
        return self.t_max - (self.t_max - self.t_min) * lattice

    def before(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The grid time one step closer to the data."""
        assert self.steps is not None, "a continuous bound has no grid"
        return torch.round(t * self.steps - 1) / self.steps

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

    def log_evidence(self, x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]) -> Float[Tensor, "B L V"]:
        """log q(x_t^i | x0^i = a) for every value a: what the token at i itself says about its origin."""
        batch, length = x_t.shape
        values = torch.arange(self.vocab_size, device=x_t.device).repeat(length).expand(batch, -1)
        log_q = self.log_q(x_t.repeat_interleave(self.vocab_size, 1), values, t)
        return log_q.unflatten(1, (length, self.vocab_size))

    def marginal(self, p0: Float[Tensor, "B L V"], t: Float[Tensor, " B"]) -> Float[Tensor, "B L S"]:
        """q_t(. | p0) = sum_a p0(a) q(x_t = . | x0 = a)."""
        raise NotImplementedError

    def destroyed(
        self, time: float, x0: Int[Tensor, "B L"], noise: Float[Tensor, "B L"], target: Bool[Tensor, "B L"]
    ) -> tuple[Int[Tensor, "B L"], Float[Tensor, " B"]]:
        """x_t with all rows at one time, positions outside `target` left clean; and that time, for each row."""
        t = torch.full((len(x0),), time, dtype=noise.dtype, device=x0.device)
        return torch.where(target, self.corrupt(x0, t, noise), x0), t

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

    def rate_bound(self, x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """At most how fast a position leaves x_t, sum_y R_t(y), whatever the network says."""
        return torch.full(x_t.shape, torch.inf, dtype=t.dtype, device=x_t.device)

    def log_posterior(
        self, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L V"]:
        """log p(x0^i | x_t) from the network's output: softmax, or c(a) q(x_t^i | a) normalised."""
        if self.predicts == "posterior":
            return logits.log_softmax(-1)
        return (logits.log_softmax(-1) + self.log_evidence(x_t, t).to(logits.dtype)).log_softmax(-1)

    def event_prob(
        self, x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"], s: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L"]:
        """Probability that a position is redrawn between t and s < t, whatever the network says.

        A sampler decides with it *where* tokens may change before it asks the network anything.  It bounds the
        probability of a change from above; a redrawn token may come out as it was (thinning), and the tighter
        the bound, the less the network is asked.
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
        """What the bound averages over t, in nats per unit of time: the integrand, or T times one step's term."""
        if self.steps is None:
            return self.integrand(logits, x0, x_t, t)
        return self.steps * self.step_kl(logits, x0, x_t, t, self.before(t))

    def integrand(
        self,
        logits: Float[Tensor, "B L V"],
        x0: Int[Tensor, "B L"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
    ) -> Float[Tensor, "B L"]:
        """ell_t of the continuous bound."""
        return generalised_kl(self.conditional_rates(x0, x_t, t), self.rates(logits, x_t, t), x_t)

    def step_kl(
        self,
        logits: Float[Tensor, "B L V"],
        x0: Int[Tensor, "B L"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
    ) -> Float[Tensor, "B L"]:
        """KL( q(x_s | x_t, x0) || p(x_s | x_t) ) in nats: one term of the T-step bound."""
        model = self.posterior(logits, x_t, t, s)
        return categorical_kl(self.conditional_posterior(x0, x_t, t, s).to(model.dtype), model)

    def conditional_posterior(
        self, x0: Int[Tensor, "B L"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"], s: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L S"]:
        """The true q(x_s | x_t, x0): the model's own for a network that is certain of x0."""
        return self.posterior(F.one_hot(x0, self.vocab_size).to(t.dtype).log(), x_t, t, s)

    def boundary(
        self,
        denoise: Denoise,
        x0: Int[Tensor, "B L"],
        noise: Float[Tensor, "B L"],
        target: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L"]:
        """What the integral over (t_min, t_max) leaves out: reconstruction and prior terms, unbiased.

        Positions outside `target` are read, not destroyed; their own entries mean nothing.
        """
        target = torch.ones_like(x0, dtype=torch.bool) if target is None else target
        prior = self.prior_term(denoise, x0, noise, target)
        return prior if self.steps is not None else prior + self.reconstruction(denoise, x0, noise, target)

    def reconstruction(
        self,
        denoise: Denoise,
        x0: Int[Tensor, "B L"],
        noise: Float[Tensor, "B L"],
        target: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        """-log p(x0 | x_tmin), x_tmin ~ q(. | x0) by `noise`; nothing where t_min = 0 is reached."""
        return torch.zeros(x0.shape, dtype=noise.dtype, device=x0.device)

    def prior_term(
        self,
        denoise: Denoise,
        x0: Int[Tensor, "B L"],
        noise: Float[Tensor, "B L"],
        target: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        """KL(q(x_tmax | x0) || prior), or what replaces it; nothing where the data are wholly destroyed."""
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
        logits = denoise(x_t, t)
        ell = (self.t_max - self.t_min) * self.nelbo(logits, x0, x_t, t) * target
        objective = ell.sum(1)
        if self.hybrid > 0 and self.steps is not None:
            log_mu = self.log_posterior(logits, x_t, t)
            nll = F.cross_entropy(log_mu.transpose(1, 2), x0, reduction="none")
            objective = objective + self.hybrid * self.steps * (nll * target).sum(1)
        return Bound(ell, objective, target.sum())


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
