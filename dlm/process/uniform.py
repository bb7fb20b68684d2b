"""Uniform ("Shuffle") diffusion: tokens are replaced by uniformly random ones.

    q(x_t | x0) = alpha_t 1[x_t = x0] + (1 - alpha_t) / V,      forward rate (y -> z) = (-alpha'/alpha) / V.

SEDD-uniform, UDLM and Duo's base objective are this one bound.  The network predicts the *leave-one-out*
posterior c^i(a) = p(x0^i = a | x_t^{-i}), which makes the concrete score

    s_y = p_t(y, x_t^{-i}) / p_t(x_t) = q_t(y | c) / q_t(x_t^i | c),   q_t(. | c) = alpha_t c + (1 - alpha_t) / V,

and the reverse rate to y is (-alpha'/alpha) / V * s_y.  With R = q_t(z | x0) / q_t(z | c) at the observed z,

    ell_t = (-alpha'/alpha) / (V q_t(z | x0)) * { KL(q_t(. | x0) || q_t(. | c)) + R - 1 - log R }.

Fed the ordinary posterior instead, the same formula is a bound with a permanent gap (1.4 nats on a 9-bit toy),
hence `predicts` and the exact conversion of `Process.log_posterior`.  All of it holds for any noise distribution
pi in place of 1/V.  In T steps (`steps`), with the plug-in reverse p(x_s | x_t) ~ q(x_t | x_s) q_s(x_s | c), it
is D3PM-uniform.  Sources: Lou et al. 2024 (SEDD); Schiff et al. 2024 (UDLM); Sahoo et al. 2025 (Duo); von Ruette
et al. 2025 (GIDD); Austin et al. 2021 (D3PM).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.process.base import Process
from dlm.process.schedule import Linear, Schedule
from dlm.process.token_noise import TokenDistribution, TokenNoise, token_noise


class UniformDiffusion(Process):
    """The uniform process with the leave-one-out (mean) parameterisation of the score.

    t is cut to [t_min, t_max] because the integrand's two factors overflow at the ends; `boundary` adds back
    exactly what the cut leaves out, so the reported number stays a bound.
    """

    predicts = "leave-one-out"
    bound_kind = "uniform NELBO"

    def __init__(
        self,
        vocab_size: int,
        schedule: Schedule | None = None,
        t_min: float = 1e-3,
        t_max: float = 0.999,
        steps: int | None = None,
        hybrid: float = 0.0,
        noise: TokenDistribution = "uniform",
    ):
        super().__init__(vocab_size, vocab_size, t_min, t_max, steps, hybrid)
        self.schedule = schedule or Linear()
        self.noise = token_noise(vocab_size, noise)
        if steps is None and not self.noise.uniform:
            self.bound_kind = f"{self.noise.name}-noise NELBO"

    @property
    def counts_tokens(self):
        return self.noise.counted

    def observe(self, counts):
        self.noise.observe(counts)

    def prior(self, noise):
        return self.noise.draw(noise)

    def marginal(self, p0, t):
        """q_t(. | p0) = alpha_t p0 + (1 - alpha_t) pi."""
        alpha, u = (f(t)[:, None, None].to(p0.dtype) for f in (self.schedule.alpha, self.schedule.u))
        return alpha * p0 + u * self.noise.pi.to(p0.dtype)

    def log_q(self, x_t, x0, t):
        return interpolating_log_q(self.schedule, self.noise, x_t, x0, t)

    def rates(self, logits, x_t, t):
        return self._rates_from(self.marginal(logits.softmax(-1), t), x_t, t)

    def conditional_rates(self, x0, x_t, t):
        return self._rates_from(self.marginal(F.one_hot(x0, self.vocab_size).to(t.dtype), t), x_t, t)

    def _rates_from(self, q, x_t, t):
        """Reverse rates (-alpha'/alpha) pi(x_t) q(y) / q(x_t) out of x_t."""
        score = q / q.gather(-1, x_t[..., None])
        rate = self.schedule.noise_rate(t)[:, None].to(q.dtype) * self.noise.pi[x_t].to(q.dtype)
        return rate[..., None] * score * ~F.one_hot(x_t, self.vocab_size).bool()

    def rate_bound(self, x_t, t):
        """(-alpha'/alpha) (1 - u pi_z) / u: q_t(z | c) is at least u pi_z."""
        u = self.schedule.u(t)[:, None]
        return self.schedule.noise_rate(t)[:, None] * (1 - u * self.noise.pi[x_t].to(t.dtype)) / u

    def event_prob(self, x_t, t, s):
        """Of the plug-in posterior, at least (k + (1-k) pi_z) u_s / u_t stays at z, k = alpha_t / alpha_s: so

        1 - that = (1 - k) (1 - u_s pi_z) / u_t bounds the probability of a change, without asking the network.
        """
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        u_s = torch.where(s <= 0, torch.zeros_like(s), self.schedule.u(s))[:, None]  # generation ends clean
        move = ((alpha_s - alpha_t) / alpha_s / self.schedule.u(t))[:, None]
        move = torch.where((s <= 0)[:, None], torch.ones_like(move), move)
        return move * (1 - u_s * self.noise.pi[x_t].to(t.dtype))

    def log_step(
        self,
        logits: Float[Tensor, "B L V"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
    ) -> Float[Tensor, "B L V"]:
        """log p(x_s | x_t), the plug-in posterior p(x_s = y | x_t = z) ~ q(z | x_s = y) q_s(y | c)."""
        clean = (s <= 0)[:, None, None]  # generation ends clean, whatever the schedule
        alpha_s = torch.where(s <= 0, torch.ones_like(s), self.schedule.alpha(s))
        keep = (self.schedule.alpha(t) / alpha_s)[:, None].expand(x_t.shape).to(logits.dtype)
        log_c = logits.log_softmax(-1)
        log_q_s = torch.where(clean, log_c, self.marginal(log_c.exp(), torch.where(s <= 0, t, s)).log())
        return log_plug_in(keep, self.noise.pi[x_t].to(logits.dtype), x_t, log_q_s)

    def posterior(self, logits, x_t, t, s):
        return self.log_step(logits, x_t, t, s).exp()

    def event(self, logits, x_t, t, s):
        """The plug-in posterior, given that `event_prob` struck."""
        plug_in = self.posterior(logits[:, None], x_t[:, None], t, s)[:, 0]
        return given_struck(plug_in, x_t, self.event_prob(x_t[:, None], t, s)[:, 0])

    def step_kl(self, logits, x0, x_t, t, s):
        """In logarithms of the model's step: a network sure of the wrong token costs much, not infinity."""
        true = self.conditional_posterior(x0, x_t, t, s).to(logits.dtype)
        model = self.log_step(logits, x_t, t, s)
        return torch.where(true > 0, true * (torch.where(true > 0, true, 1.0).log() - model), 0.0).sum(-1)

    def integrand(self, logits, x0, x_t, t):
        """Closed form, written in delta = q_t(. | c) / q_t(. | x0) - 1 so that nothing cancels as alpha -> 0:

        KL = sum_y q_t(y | x0) (delta_y - log1p delta_y),
        R - 1 - log R = log1p delta_z - delta_z / (1 + delta_z).
        """
        dtype, pi = logits.dtype, self.noise.pi.to(logits.dtype)
        alpha, u = (f(t)[:, None].to(dtype) for f in (self.schedule.alpha, self.schedule.u))
        mu = logits.softmax(-1)
        q_clean = alpha + u * pi[x0]  # q_t(y | x0) for y = x0; u pi_y for the others
        at_clean, at_seen = x0[..., None], x_t[..., None]
        mu_clean = mu.gather(-1, at_clean)[..., 0]
        delta = (alpha / u)[..., None] * (mu / pi)  # right for every y != x0
        other = pi * (delta - torch.log1p(delta))
        delta_clean = -alpha * (1 - mu_clean) / q_clean
        ratio_clean = (alpha * mu_clean + u * pi[x0]) / q_clean  # 1 + delta, exact also where delta -> -1
        log_clean = torch.where(
            delta_clean > -0.5, torch.log1p(delta_clean.clamp(min=-0.5)), torch.log(ratio_clean)
        )
        kl = u * other.scatter(-1, at_clean, 0.0).sum(-1) + q_clean * (delta_clean - log_clean)
        intact = x_t == x0
        delta_seen = delta.gather(-1, at_seen)[..., 0]
        delta_over_ratio = torch.where(intact, delta_clean / ratio_clean, delta_seen / (1 + delta_seen))
        saito = torch.where(intact, log_clean, torch.log1p(delta_seen)) - delta_over_ratio
        prefactor = self.schedule.noise_rate(t)[:, None].to(dtype) * torch.where(intact, pi[x_t] / q_clean, 1 / u)
        return prefactor * (kl + saito)

    def reconstruction(self, denoise, x0, noise, target):
        """-log p(x0 | x_tmin) by the network's own posterior."""
        z, t = self.destroyed(self.t_min, x0, noise, target)
        log_p = self.log_posterior(denoise(z, t).to(noise.dtype), z, t)
        return F.cross_entropy(log_p.transpose(1, 2), x0, reduction="none")

    def prior_term(self, denoise, x0, noise, target):
        alpha = self.schedule.alpha(torch.tensor(self.t_max, dtype=torch.float64)).to(x0.device)
        return self.noise.prior_kl(x0, alpha).to(noise.dtype)


def log_plug_in(
    keep: Float[Tensor, "*N"],
    noise: Float[Tensor, "*N"],
    x_t: Int[Tensor, "*N"],
    log_q_s: Float[Tensor, "*N S"],
) -> Float[Tensor, "*N S"]:
    """log p(x_s = y | x_t = z), p ~ q(z | x_s = y) q_s(y), for any interpolating process (D3PM's reverse).

    The forward step keeps a token with probability `keep` = alpha_t / alpha_s and otherwise draws from the noise
    distribution, whose probability of the observed z is `noise`.
    """
    moved, stayed = torch.log((1 - keep) * noise), torch.log(keep + (1 - keep) * noise)
    seen = log_q_s.gather(-1, x_t[..., None]) + stayed[..., None]
    return (log_q_s + moved[..., None]).scatter(-1, x_t[..., None], seen).log_softmax(-1)


def given_struck(
    posterior: Float[Tensor, "N S"], x_t: Int[Tensor, " N"], event_prob: Float[Tensor, " N"]
) -> Float[Tensor, "N S"]:
    """The law of a token that `event_prob` chose to redraw, where that bounds the chance of a change from above:

    (posterior - (1 - event_prob) delta(x_t)) / event_prob.
    """
    own = x_t[:, None]
    moves = (posterior / event_prob[:, None].to(posterior.dtype)).scatter(1, own, 0.0)
    return moves.scatter(1, own, (1 - moves.sum(1, keepdim=True)).clamp(min=0))


def interpolating_log_q(
    schedule: Schedule, noise: TokenNoise, x_t: Int[Tensor, "B L"], x0: Int[Tensor, "B L"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B L"]:
    """log( alpha_t 1[x_t = x0] + (1 - alpha_t) pi(x_t) )."""
    alpha, u = schedule.alpha(t)[:, None], schedule.u(t)[:, None]
    return torch.log(alpha * (x_t == x0) + u * noise.pi[x_t].to(t.dtype))
