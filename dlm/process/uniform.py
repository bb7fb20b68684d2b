"""Uniform ("Shuffle") diffusion: tokens are replaced by uniformly random ones.

    q(x_t | x0) = alpha_t 1[x_t = x0] + (1 - alpha_t) / V,      forward rate (y -> z) = (-alpha'/alpha) / V.

SEDD-uniform, UDLM and Duo's base objective are this one bound.  The network predicts the *leave-one-out*
posterior c^i(a) = p(x0^i = a | x_t^{-i}), which makes the concrete score

    s_y = p_t(y, x_t^{-i}) / p_t(x_t) = q_t(y | c) / q_t(x_t^i | c),   q_t(. | c) = alpha_t c + (1 - alpha_t) / V,

and the reverse rate to y is (-alpha'/alpha) / V * s_y.  With R = q_t(z | x0) / q_t(z | c) at the observed z,

    ell_t = (-alpha'/alpha) / (V q_t(z | x0)) * { KL(q_t(. | x0) || q_t(. | c)) + R - 1 - log R }.

Fed the ordinary posterior instead, the same formula is a bound with a permanent gap (1.4 nats on a 9-bit toy),
hence `predicts` and the exact conversion below.  Sources: Lou et al. 2024 (SEDD); Schiff et al. 2024 (UDLM);
Sahoo et al. 2025 (Duo); von Ruette et al. 2025 (GIDD).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.process.base import Process, uniform_tokens
from dlm.process.schedule import Linear, Schedule


class UniformDiffusion(Process):
    """The uniform process with the leave-one-out (mean) parameterisation of the score.

    t is cut to [t_min, t_max] because the integrand's two factors overflow at the ends; `boundary` adds back
    exactly what the cut leaves out, so the reported number stays a bound.
    """

    predicts = "leave-one-out"
    bound_kind = "uniform NELBO"

    def __init__(
        self, vocab_size: int, schedule: Schedule | None = None, t_min: float = 1e-3, t_max: float = 0.999
    ):
        super().__init__(vocab_size, vocab_size, t_min, t_max)
        self.schedule = schedule or Linear()

    def prior(self, noise):
        return uniform_tokens(noise, self.vocab_size)

    def q(self, p0: Float[Tensor, "*N V"], t: Float[Tensor, "*N"]) -> Float[Tensor, "*N V"]:
        """q_t(. | p0) = alpha_t p0 + (1 - alpha_t) / V."""
        alpha, u = self.schedule.alpha(t)[..., None], self.schedule.u(t)[..., None]
        return alpha.to(p0.dtype) * p0 + u.to(p0.dtype) / self.vocab_size

    def log_q(self, x_t, x0, t):
        return token_log_q(self.schedule, self.vocab_size, x_t, x0, t)

    def rates(self, logits, x_t, t):
        q = self.q(logits.softmax(-1), t[:, None].expand(x_t.shape))
        return self._rates_from(q, x_t, t)

    def conditional_rates(self, x0, x_t, t):
        clean = F.one_hot(x0, self.vocab_size).to(t.dtype)
        return self._rates_from(self.q(clean, t[:, None].expand(x_t.shape)), x_t, t)

    def _rates_from(self, q, x_t, t):
        """Reverse rates (-alpha'/alpha) / V * q(y) / q(x_t) out of x_t."""
        score = q / q.gather(-1, x_t[..., None])
        rate = (self.schedule.noise_rate(t) / self.vocab_size)[:, None, None].to(q.dtype)
        return rate * score * ~F.one_hot(x_t, self.vocab_size).bool()

    def event(self, logits, x_t, t, s):
        """Plug-in posterior p(x_s = y | x_t = z) proportional to q(z | x_s = y) q_s(y | c)."""
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        keep = (alpha_t / alpha_s)[:, None].to(logits.dtype)
        forward = keep * F.one_hot(x_t, self.vocab_size) + (1 - keep) / self.vocab_size
        clean = logits.softmax(-1)
        joint = forward * torch.where((s <= 0)[:, None], clean, self.q(clean, s))  # generation ends clean
        return joint / joint.sum(-1, keepdim=True)

    def nelbo(self, logits, x0, x_t, t):
        """Closed form, written in delta = q_t(. | c) / q_t(. | x0) - 1 so that nothing cancels as alpha -> 0:

        KL = sum_y q_t(y | x0) (delta_y - log1p delta_y),
        R - 1 - log R = log1p delta_z - delta_z / (1 + delta_z).
        """
        dtype, v = logits.dtype, self.vocab_size
        alpha, u = (f(t)[:, None].to(dtype) for f in (self.schedule.alpha, self.schedule.u))
        mu = logits.softmax(-1)
        q_other, q_clean = u / v, alpha + u / v  # q_t(y | x0) for y != x0 and for y = x0
        at_clean, at_seen = x0[..., None], x_t[..., None]
        mu_clean = mu.gather(-1, at_clean)[..., 0]
        delta = alpha[..., None] * mu / q_other[..., None]  # right for every y != x0
        other = delta - torch.log1p(delta)
        missing = 1 - mu_clean
        delta_clean = -alpha * missing / q_clean
        ratio_clean = (alpha * mu_clean + q_other) / q_clean  # 1 + delta, exact also where delta -> -1
        log_clean = torch.where(
            delta_clean > -0.5, torch.log1p(delta_clean.clamp(min=-0.5)), torch.log(ratio_clean)
        )
        kl = q_other * other.scatter(-1, at_clean, 0.0).sum(-1) + q_clean * (delta_clean - log_clean)
        intact = x_t == x0
        delta_seen = delta.gather(-1, at_seen)[..., 0]
        delta_over_ratio = torch.where(intact, delta_clean / ratio_clean, delta_seen / (1 + delta_seen))
        saito = torch.where(intact, log_clean, torch.log1p(delta_seen)) - delta_over_ratio
        prefactor = self.schedule.noise_rate(t)[:, None].to(dtype) / (v * torch.where(intact, q_clean, q_other))
        return prefactor * (kl + saito)

    def boundary(self, denoise, x0, noise, target=None):
        """-log p(x0 | x_tmin) by the network's own posterior, and KL(q(x_tmax | x0) || uniform)."""
        t = torch.full((len(x0),), self.t_min, dtype=noise.dtype, device=x0.device)
        z = self.corrupt(x0, t, noise)
        z = z if target is None else torch.where(target, z, x0)
        log_p = loo_to_posterior(self.schedule, denoise(z, t).to(noise.dtype), z, t)
        reconstruction = F.cross_entropy(log_p.transpose(1, 2), x0, reduction="none")
        alpha = self.schedule.alpha(torch.tensor(self.t_max, dtype=torch.float64))
        return reconstruction + prior_kl(alpha, self.vocab_size)


def token_log_q(
    schedule: Schedule, vocab_size: int, x_t: Int[Tensor, "*N"], x0: Int[Tensor, "*N"], t: Float[Tensor, " B"]
) -> Float[Tensor, "*N"]:
    """log( alpha_t 1[x_t = x0] + (1 - alpha_t) / V )."""
    t = t.reshape(-1, *[1] * (x_t.ndim - 1))
    return torch.log(schedule.alpha(t) * (x_t == x0) + schedule.u(t) / vocab_size)


def prior_kl(alpha: Float[Tensor, ""], vocab_size: int) -> Float[Tensor, ""]:
    """KL(alpha e_x + (1 - alpha)/V || 1/V) of one token, in nats."""
    v = vocab_size
    same, other = alpha + (1 - alpha) / v, (1 - alpha) / v
    return same * torch.log1p((v - 1) * alpha) + (v - 1) * other * torch.log1p(-alpha)


def loo_to_posterior(
    schedule: Schedule, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B L V"]:
    """log p(x0^i | x_t) up to a constant: c(a) q_t(x_t^i | a)."""
    values = torch.arange(logits.shape[-1], device=logits.device)
    return logits.log_softmax(-1) + token_log_q(schedule, len(values), x_t[..., None], values, t).to(logits.dtype)


def posterior_to_loo(
    schedule: Schedule, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B L V"]:
    """log p(x0^i | x_t^{-i}) up to a constant: mu(a) / q_t(x_t^i | a)."""
    values = torch.arange(logits.shape[-1], device=logits.device)
    return logits.log_softmax(-1) - token_log_q(schedule, len(values), x_t[..., None], values, t).to(logits.dtype)
