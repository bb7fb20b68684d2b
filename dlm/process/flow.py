"""Discrete flow matching: the factorised mixture path between a source and the data.

Flow matching's own clock is tau = 1 - t and its kappa_tau is our alpha_t; a token is *kept* with probability
kappa and drawn from the source otherwise.  The conditional process jumps once, straight to x0, and the model
replaces the unknown x0 by its posterior mu = p(x0^i | x_t):

    conditional rate z -> y:  w(t) (1[y = x0] - 1[y = z]),      model rate:  w(t) (mu_y - 1[y = z]),
    w(t) = kappa' / (1 - kappa) = -alpha'/(1 - alpha).

Training is either cross-entropy on x0 with weight one (the lecture's algorithm 8; Campbell et al. 2024; Gat et al.
2024), or the path bound itself, the generalised Kullback-Leibler divergence

    ell_t = w(t) [ 1[z = x0] - mu_z - (1 - 1[z = x0]) log mu_x0 ]          (Lipman et al. 2024).

For a mask source with carried-over visible tokens this is MD4's bound term by term.  For a uniform source it is
valid but looser than uniform diffusion's (by up to one nat per token, even for a perfect network), because the
conditional process is not Markov after marginalisation; `as_diffusion` gives the tight one.

Any other noise distribution may be the source.  A corrector of strength c >= 0 adds c times the rates of the
marginals forward and backward, (1 + c) w(t) mu_y + c (kappa'/kappa) pi_y, which leaves the marginals alone and
lets a sampler revise what it has written (Campbell et al. 2024; Gat et al. 2024).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.errors import UserError
from dlm.process.base import Bound, Process, token_nll
from dlm.process.masked import ANY_ORDER, carry_over, first_unmasked, last_masked, reveal_prob
from dlm.process.schedule import Linear, Schedule
from dlm.process.token_noise import TokenDistribution, token_noise
from dlm.process.uniform import UniformDiffusion, interpolating_log_q


class FlowMatching(Process):
    """The mixture path from a source, trained by `objective`.

    The source is "mask", "uniform", "unigram" (the token frequencies of the training split) or V probabilities.
    """

    def __init__(
        self,
        vocab_size: int,
        source: TokenDistribution = "mask",
        objective: Literal["cross_entropy", "generalised_kl"] = "cross_entropy",
        schedule: Schedule | None = None,
        t_min: float | None = None,
        t_max: float = 1.0,
    ):
        if objective not in ("cross_entropy", "generalised_kl"):
            raise UserError(f"flow matching trains by cross_entropy or generalised_kl, not {objective!r}")
        masks = source == "mask"
        default_t_min = 0.0 if masks else 1e-3
        super().__init__(vocab_size, vocab_size + masks, default_t_min if t_min is None else t_min, t_max)
        self.schedule = schedule or Linear()
        self.objective = objective
        self.noise = token_noise(vocab_size, "uniform" if masks else source)
        self.mask_id = vocab_size if masks else None
        self.mask_predictor, self.time_dependent = masks, not masks
        self.bound_kind = ANY_ORDER if masks else "flow path bound"

    @property
    def counts_tokens(self):
        return self.noise.counted

    def observe(self, counts):
        self.noise.observe(counts)

    def prior(self, noise):
        if self.mask_id is not None:
            return torch.full(noise.shape, self.mask_id, dtype=torch.long, device=noise.device)
        return self.noise.draw(noise)

    def log_q(self, x_t, x0, t):
        if self.mask_id is None:
            return interpolating_log_q(self.schedule, self.noise, x_t, x0, t)
        u, alpha = self.schedule.u(t)[:, None], self.schedule.alpha(t)[:, None]
        return torch.where(x_t == self.mask_id, u.log(), torch.where(x_t == x0, alpha.log(), -torch.inf))

    def marginal(self, p0, t):
        alpha, u = (f(t)[:, None, None].to(p0.dtype) for f in (self.schedule.alpha, self.schedule.u))
        return alpha * F.pad(p0, (0, self.num_states - self.vocab_size)) + u * self._source(p0.dtype)

    def _source(self, dtype: torch.dtype) -> Float[Tensor, " S"]:
        """The law of a token at t = 1, over the states."""
        if self.mask_id is None:
            return self.noise.pi.to(dtype)
        return F.one_hot(torch.tensor(self.mask_id, device=self.noise.pi.device), self.num_states).to(dtype)

    def log_mu(self, logits, x_t):
        """The log posterior over clean tokens; a visible token of a masked sequence is its own."""
        if self.mask_id is not None:
            logits = carry_over(logits, x_t, self.mask_id)
        return logits.log_softmax(-1)

    def mu(self, logits, x_t):
        return self.log_mu(logits, x_t).exp()

    def rates(self, logits, x_t, t):
        return self._towards(self.mu(logits, x_t), x_t, t)

    def conditional_rates(self, x0, x_t, t):
        return self._towards(F.one_hot(x0, self.vocab_size).to(t.dtype), x_t, t)

    def _towards(self, mu, x_t, t):
        """Jump at rate w(t) to a draw from mu; a draw that repeats x_t is no jump."""
        mu = F.pad(mu, (0, self.num_states - self.vocab_size))
        jump = mu * ~F.one_hot(x_t, self.num_states).bool()
        return self.schedule.unmask_rate(t)[:, None, None].to(mu.dtype) * jump

    def corrected_rates(
        self,
        logits: Float[Tensor, "B L V"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
        c: Float[Tensor, " B"],
    ) -> Float[Tensor, "B L S"]:
        """(1 + c) w(t) mu_y + c (kappa'/kappa) pi_y out of x_t: the same marginals for any c(t) >= 0.

        kappa'/kappa diverges at t = 1, so c must vanish there.
        """
        c = c[:, None, None].to(logits.dtype)
        renewal = self.schedule.noise_rate(t)[:, None, None].to(logits.dtype) * self._source(logits.dtype)
        back = torch.where(c > 0, c * renewal, 0.0) * ~F.one_hot(x_t, self.num_states).bool()
        return (1 + c) * self.rates(logits, x_t, t) + back

    def rate_bound(self, x_t, t):
        rate = self.schedule.unmask_rate(t)[:, None].expand(x_t.shape)
        return rate if self.mask_id is None else rate * (x_t == self.mask_id)

    def event_prob(self, x_t, t, s):
        """The exact increment (kappa_s - kappa_t) / (1 - kappa_t) of the mixture path, always in [0, 1]."""
        prob = reveal_prob(self.schedule, t, s)[:, None].expand(x_t.shape)
        return prob if self.mask_id is None else prob * (x_t == self.mask_id)

    def event(self, logits, x_t, t, s):
        return F.pad(self.mu(logits, x_t), (0, self.num_states - self.vocab_size))

    def integrand(self, logits, x0, x_t, t):
        log_mu = self.log_mu(logits, x_t)
        mu, right = log_mu.exp(), x_t == x0
        mu_seen = F.pad(mu, (0, 1)).gather(-1, x_t[..., None])[..., 0]
        log_clean = torch.where(right, 0.0, log_mu.gather(-1, x0[..., None])[..., 0])
        return self.schedule.unmask_rate(t)[:, None].to(mu.dtype) * (
            right * (1 - mu_seen) - mu_seen * ~right - log_clean
        )

    def reconstruction(self, denoise, x0, noise, target):
        """-log mu(x0 | x_tmin): a network that is not certain near t = 0 makes the other integrands diverge."""
        if self.mask_id is not None:
            return first_unmasked(self, denoise, x0, noise, target)
        if self.t_min == 0:
            return super().reconstruction(denoise, x0, noise, target)
        z, t = self.destroyed(self.t_min, x0, noise, target)
        log_mu = self.log_mu(denoise(z, t).to(noise.dtype), z)
        return -log_mu.gather(-1, x0[..., None])[..., 0]

    def prior_term(self, denoise, x0, noise, target):
        if self.mask_id is not None:
            return last_masked(self, denoise, x0, noise, target)
        alpha = self.schedule.alpha(torch.tensor(self.t_max, dtype=torch.float64)).to(x0.device)
        return self.noise.prior_kl(x0, alpha).to(noise.dtype)

    def loss(self, denoise, x0, t, target, noise):
        if self.objective == "generalised_kl":
            return super().loss(denoise, x0, t, target, noise)
        x_t = torch.where(target, self.corrupt(x0, t, noise[0]), x0)
        if self.mask_id is not None:
            where = target & (x_t == self.mask_id)
            nll = token_nll(denoise, x_t, t, x0, where)
            return Bound(self._span_weight(t).to(nll.dtype) * nll.detach(), nll.sum(1), where.sum())
        logits = denoise(x_t, t)
        nll = F.cross_entropy(logits.transpose(1, 2), x0, reduction="none") * target
        ell = (self.t_max - self.t_min) * self.nelbo(logits.detach(), x0, x_t, t) * target
        return Bound(ell, nll.sum(1), target.sum())

    def _span_weight(self, t):
        return (self.t_max - self.t_min) * self.schedule.unmask_rate(t)[:, None]

    def as_diffusion(self, t_min: float = 1e-3, t_max: float = 0.999) -> UniformDiffusion:
        """The diffusion with this path's marginals, whose bound is tight; it takes leave-one-out logits."""
        if self.mask_id is not None:
            raise UserError("only a source of tokens has a uniform-diffusion bound; this one is masked")
        return UniformDiffusion(self.vocab_size, self.schedule, t_min, t_max, noise=self.noise)
