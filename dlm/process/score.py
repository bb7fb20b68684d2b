"""Score entropy: SEDD's networks, which predict ratios of probabilities instead of clean tokens.

    ell_t = sum_{y != x_t} Q_t(y -> x_t) [ s_y - a_y log s_y + K(a_y) ],   a_y = q_t(y | x0) / q_t(x_t | x0),
    K(a) = a (log a - 1),

the generalised Kullback-Leibler divergence of the reverse rates Q_t(y -> x_t) s_y; nothing ties the scores to
each other.  (Lou et al. 2024.)

Behind a mask the true scores are r mu_v with r = alpha / (1 - alpha).  Scores that do not add up to r, but to Z r,
pay w(t) (Z - 1 - log Z) >= 0 over MD4's bound for their own normalisation mu, and reveal tokens at Z times the
nominal rate: forward and backward disagree (Shi et al. 2024).  Normalised scores are MD4 itself.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dlm.process.base import Bound, Process
from dlm.process.masked import MaskedDiffusion, reveal_prob
from dlm.process.schedule import LogLinear, Schedule
from dlm.process.uniform import UniformDiffusion


class ScoreMaskedDiffusion(MaskedDiffusion):
    """SEDD-absorb: s_v = r exp(logit_v) / V at masked positions: logits of zero are a uniform mu with Z = 1."""

    predicts = "score"

    def __init__(
        self, vocab_size: int, schedule: Schedule | None = None, normalise: bool = False, t_min: float = 0.0
    ):
        super().__init__(vocab_size, schedule or LogLinear(), t_min)
        self.normalise = normalise
        if normalise:
            self.predicts = "posterior"  # s = r mu: MD4 in every respect
        else:
            self.bound_kind = "score-entropy bound"

    def log_total(self, logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
        """log Z, Z = sum_v s_v / r."""
        if self.normalise:
            return torch.zeros(logits.shape[:-1], dtype=logits.dtype, device=logits.device)
        return torch.logsumexp(logits, -1) - math.log(self.vocab_size)

    def log_posterior(self, logits, x_t, t):
        return logits.log_softmax(-1)

    def scores(self, logits, x_t, t):
        """log s_v = log r + log Z + log mu_v."""
        log_r = torch.log(self.schedule.alpha(t) / self.schedule.u(t))[:, None, None].to(logits.dtype)
        return log_r + self.log_total(logits)[..., None] + logits.log_softmax(-1)

    def rates(self, logits, x_t, t):
        """m -> v at w(t) Z mu_v."""
        return super().rates(logits, x_t, t) * self.log_total(logits).exp()[..., None]

    def conditional_posterior(self, x0, x_t, t, s):
        return super().posterior(self._certain(x0, t.dtype), x_t, t, s)

    def _certain(self, x0, dtype):
        """The network of true scores given x0."""
        return F.one_hot(x0, self.vocab_size).to(dtype).log() + math.log(self.vocab_size)

    def rate_bound(self, x_t, t):
        if self.normalise:
            return super().rate_bound(x_t, t)
        return torch.where(x_t == self.mask_id, torch.inf, 0.0).to(t.dtype)

    def event_prob(self, x_t, t, s):
        """Z is not bounded, unless scores are normalised: every mask may go."""
        return super().event_prob(x_t, t, s) if self.normalise else (x_t == self.mask_id).to(t.dtype)

    def event(self, logits, x_t, t, s):
        """SEDD's analytic step reveals with probability Z (u_t - u_s) / u_t, here cut to one; all at s = 0."""
        if self.normalise:
            return super().event(logits, x_t, t, s)
        reveal = (self.log_total(logits).exp() * reveal_prob(self.schedule, t, s).to(logits.dtype)).clamp(max=1)
        reveal = torch.where(s <= 0, torch.ones_like(reveal), reveal)[:, None]
        return torch.cat([reveal * logits.softmax(-1), 1 - reveal], -1)

    def excess(self, logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
        """Z - 1 - log Z."""
        log_z = self.log_total(logits)
        return torch.expm1(log_z) - log_z

    def integrand(self, logits, x0, x_t, t):
        weight = self.schedule.unmask_rate(t)[:, None].to(logits.dtype) * (x_t == self.mask_id)
        return super().integrand(logits, x0, x_t, t) + weight * self.excess(logits)

    def step_kl(self, logits, x0, x_t, t, s):
        return Process.step_kl(self, logits, x0, x_t, t, s)

    def loss(self, denoise, x0, t, target, noise):
        x_t = torch.where(target, self.corrupt(x0, t, noise[0]), x0)
        where = target & (x_t == self.mask_id)
        logits = denoise(x_t, t, where)
        term = F.cross_entropy(logits, x0[where], reduction="none") + self.excess(logits)
        weight = ((self.t_max - self.t_min) * self.weight(t))[:, None].to(term.dtype)
        nelbo = weight * torch.zeros(x0.shape, dtype=term.dtype, device=term.device).masked_scatter(where, term)
        return Bound(nelbo, nelbo.sum(1), where.sum())


class ScoreUniformDiffusion(UniformDiffusion):
    """SEDD-uniform: logits are log s_y; the one at x_t itself means nothing."""

    predicts = "score"
    bound_kind = "score-entropy bound"

    def __init__(
        self, vocab_size: int, schedule: Schedule | None = None, t_min: float = 1e-3, t_max: float = 0.999
    ):
        super().__init__(vocab_size, schedule, t_min, t_max)

    def reconstruction(self, denoise, x0, noise, target):
        """-log p(x0 | x_tmin) by the decoder p(a) ~ s_a q(x_t | a): p_tmin stands for p_0, which it is close to.

        Unlike the exact inversion this stays positive for scores that no distribution has.
        """
        z, t = self.destroyed(self.t_min, x0, noise, target)
        log_p = self.scores(denoise(z, t).to(noise.dtype), z, t) + self.log_evidence(z, t)
        return F.cross_entropy(log_p.transpose(1, 2), x0, reduction="none")

    def scores(self, logits, x_t, t):
        return logits.scatter(-1, x_t[..., None], 0.0)

    def log_leave_one_out(self, logits, x_t, t):
        """c ~ (s - S u_t pi) / alpha_t; what no distribution has is cut to zero."""
        q = self.scores(logits, x_t, t).softmax(-1)
        return (q - self.marginal(torch.zeros_like(q), t)).clamp(min=0).log().log_softmax(-1)

    def log_posterior(self, logits, x_t, t):
        log_c = self.log_leave_one_out(logits, x_t, t)
        return (log_c + self.log_evidence(x_t, t).to(log_c.dtype)).log_softmax(-1)

    def rates(self, logits, x_t, t):
        rate = self.schedule.noise_rate(t)[:, None].to(logits.dtype) * self.noise.pi[x_t].to(logits.dtype)
        return rate[..., None] * logits.exp() * ~F.one_hot(x_t, self.vocab_size).bool()

    def conditional_posterior(self, x0, x_t, t, s):
        clean = UniformDiffusion(self.vocab_size, self.schedule, self.t_min, self.t_max).to(x0.device)
        return clean.conditional_posterior(x0, x_t, t, s)

    def rate_bound(self, x_t, t):
        return torch.full(x_t.shape, torch.inf, dtype=t.dtype, device=x_t.device)

    def event_prob(self, x_t, t, s):
        """Scores are not bounded: every token may move."""
        return torch.ones(x_t.shape, dtype=t.dtype, device=x_t.device)

    def posterior(self, logits, x_t, t, s):
        return Process.posterior(self, logits, x_t, t, s)

    def step_kl(self, logits, x0, x_t, t, s):
        return Process.step_kl(self, logits, x0, x_t, t, s)

    def event(self, logits, x_t, t, s):
        """SEDD's analytic step: p(x_s = y | x_t = z) ~ p_s(y) q(z | x_s = y), p_s from undoing the forward step:

        p_s(y) = (s_y - (1 - k) pi_y sum s) / k, k = alpha_t / alpha_s; what no distribution has is cut to zero.
        """
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        alpha_s = torch.where(s <= 0, torch.ones_like(alpha_s), alpha_s)
        keep = (alpha_t / alpha_s).to(logits.dtype)[:, None]
        pi = self.noise.pi.to(logits.dtype)
        p_t = logits.scatter(-1, x_t[:, None], 0.0).softmax(-1)
        p_s = (p_t - (1 - keep) * pi).clamp(min=0)
        forward = keep * F.one_hot(x_t, self.vocab_size) + (1 - keep) * pi[x_t][:, None]
        joint = p_s * forward
        total = joint.sum(-1, keepdim=True)
        return torch.where(total > 0, joint / torch.where(total > 0, total, 1.0), p_t)

    def integrand(self, logits, x0, x_t, t):
        """The generic divergence in logarithms: Q_t(y -> z) [ s_y - a_y + a_y (log a_y - log s_y) ]."""
        values = torch.arange(self.vocab_size, device=x0.device)
        alpha, u = (f(t)[:, None, None].to(logits.dtype) for f in (self.schedule.alpha, self.schedule.u))
        q = alpha * (values == x0[..., None]) + u * self.noise.pi.to(logits.dtype)
        a = q / q.gather(-1, x_t[..., None])
        log_s = logits.masked_fill(values == x_t[..., None], 0.0)  # s = a = 1 at x_t: contributes nothing
        divergence = torch.expm1(log_s) - (a - 1) + a * (a.log() - log_s)
        rate = self.schedule.noise_rate(t)[:, None].to(logits.dtype) * self.noise.pi[x_t].to(logits.dtype)
        return rate * divergence.sum(-1)
