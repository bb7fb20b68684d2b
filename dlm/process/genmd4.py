"""GenMD4: a masked process that learns how soon each token value is masked.  (Shi et al. 2024, section 6.)"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.errors import UserError
from dlm.process.base import Bound
from dlm.process.masked import MaskedDiffusion
from dlm.process.schedule import TokenPolynomial


class GenMaskedDiffusion(MaskedDiffusion):
    """GenMD4: token value v is masked on its own learned schedule alpha_{t,v} = 1 - t^{w_v}.

    With a = x0^i, per masked position (Shi et al. 2024, written out for this schedule)

        ell_t = (1/t) [ -w_a log mu_a - w_a + sum_v w_v mu_v ]  >= 0,

    plus the reconstruction at t_min by the decoder p(v | m) proportional to 1 - alpha_{tmin,v} = t_min^{w_v}.

    w enters through ell and through q(x_t | x0).  Two independent corruptions z1, z2 at the same t give the
    unbiased leave-one-out gradient of

        1/2 (f1 + f2) + 1/2 stopgrad(f1 - f2) (log q(z1) - log q(z2)),

    whose network gradient is that of 1/2 (f1 + f2).  The optimal network depends on t.
    """

    mask_predictor = False  # the pattern of masks itself carries information about the tokens behind it
    time_dependent = True
    noise_draws = 2
    network_passes = 2
    bound_kind = "GenMD4 NELBO"

    def __init__(self, vocab_size: int, t_min: float = 1e-3, steps: int | None = None, hybrid: float = 0.0):
        if t_min <= 0:
            raise UserError(f"GenMD4 needs t_min > 0 for its reconstruction term, not t_min={t_min}")
        super().__init__(vocab_size, None, t_min, 1.0, steps, hybrid)
        self.schedule = TokenPolynomial(vocab_size)

    def mask_prob(self, x0, t):
        return self.schedule.u(t, x0)

    def log_q(self, x_t, x0, t):
        log_u, intact = self.schedule.log_u(t, x0), x_t == x0
        log_alpha = torch.log(
            -torch.expm1(torch.where(intact, log_u, -1.0))
        )  # at t = 1, NaN gradients where masked
        visible = torch.where(intact, log_alpha, -torch.inf)
        return torch.where(x_t == self.mask_id, log_u, visible)

    def rates(self, logits, x_t, t):
        """m -> v at (w_v / t) mu_v."""
        masked = (x_t == self.mask_id)[..., None] / t[:, None, None]
        return F.pad(masked * self.schedule.w * logits.softmax(-1), (0, 1))

    def conditional_rates(self, x0, x_t, t):
        rate = (x_t == self.mask_id) * self.schedule.w[x0] / t[:, None]
        return rate[..., None] * F.one_hot(x0, self.num_states)

    def marginal(self, p0, t):
        u = torch.exp(self.schedule.w * torch.log(t)[:, None])[:, None].to(p0.dtype)
        return torch.cat([(1 - u) * p0, (u * p0).sum(-1, keepdim=True)], -1)

    def rate_bound(self, x_t, t):
        return (self.schedule.w.max() / t)[:, None] * (x_t == self.mask_id)

    def event_prob(self, x_t, t, s):
        """No token is revealed sooner than one of the largest exponent: 1 - (s/t)^max w."""
        fastest = -torch.expm1(self.schedule.w.max() * torch.log(s / t))
        return fastest[:, None] * (x_t == self.mask_id)

    def event(self, logits, x_t, t, s):
        """m -> v with probability mu_v (1 - rho_v), rho_v = (1-alpha_{s,v}) / (1-alpha_{t,v}) = (s/t)^{w_v};

        here given that `event_prob` struck, so that a mask may stay one.
        """
        log_ratio = torch.log(s / t)[:, None]
        struck = torch.expm1(self.schedule.w * log_ratio) / torch.expm1(self.schedule.w.max() * log_ratio)
        mu = logits.softmax(-1)
        return torch.cat([mu * struck, (mu * (1 - struck)).sum(-1, keepdim=True)], -1)

    def integrand(self, logits, x0, x_t, t):
        return self._where_masked(self.rate_term(logits, x0) / t[:, None].to(logits.dtype), x_t)

    def step_kl(self, logits, x0, x_t, t, s):
        return self._where_masked(self.step_term(logits, x0, t[:, None], s[:, None]), x_t)

    def _where_masked(self, term, x_t):
        return torch.where(x_t == self.mask_id, term, 0.0)

    def rate_term(self, logits: Float[Tensor, "*N V"], x0: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """t ell_t of a masked token."""
        w = self.schedule.w.to(logits.dtype)
        log_mu = logits.log_softmax(-1)
        taken = log_mu.gather(-1, x0[..., None])[..., 0]
        return -w[x0] * taken - w[x0] + (w * log_mu.exp()).sum(-1)

    def step_term(
        self, logits: Float[Tensor, "*N V"], x0: Int[Tensor, "*N"], t: Float[Tensor, "*N"], s: Float[Tensor, "*N"]
    ) -> Float[Tensor, "*N"]:
        """rho_a log(rho_a / sum_v mu_v rho_v) - (1 - rho_a) log mu_a, the divergence of one step at a mask."""
        log_ratio = torch.log(torch.where(s <= 0, t, s) / t).to(logits.dtype)[..., None]  # rho = 0 at s = 0
        log_rho = self.schedule.w.to(logits.dtype) * log_ratio
        log_mu = logits.log_softmax(-1)
        taken = log_mu.gather(-1, x0[..., None])[..., 0]
        rho = log_rho.exp().expand_as(log_mu).gather(-1, x0[..., None])[..., 0]
        stays = log_rho.expand_as(log_mu).gather(-1, x0[..., None])[..., 0] - torch.logsumexp(log_mu + log_rho, -1)
        return torch.where(s <= 0, -taken, rho * stays - (1 - rho) * taken)

    def decoder_nll(self, x0: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """(1 - alpha_{tmin,a}) [ -w_a log t_min + logsumexp_v (w_v log t_min) ], exact, with its gradient in w."""
        log_p = self.schedule.w * math.log(self.t_min)
        return log_p[x0].exp() * (torch.logsumexp(log_p, 0) - log_p[x0])

    def reconstruction(self, denoise, x0, noise, target):
        return self.decoder_nll(x0)

    def prior_term(self, denoise, x0, noise, target):
        return torch.zeros(x0.shape, dtype=noise.dtype, device=x0.device)  # alpha_1 = 0 for every w

    def loss(self, denoise, x0, t, target, noise):
        terms, objectives, log_qs, scored = [], [], [], torch.zeros((), dtype=torch.long, device=x0.device)
        for draw in noise:
            with torch.no_grad():
                x_t = torch.where(target, self.corrupt(x0, t, draw), x0)
            where = target & (x_t == self.mask_id)
            scored = scored + where.sum()
            logits, times = denoise(x_t, t, where), t[:, None].expand(x0.shape)[where]
            if self.steps is None:
                term = (self.t_max - self.t_min) * self.rate_term(logits, x0[where]) / times.to(logits.dtype)
                extra = torch.zeros_like(term)
            else:
                term = self.steps * self.step_term(logits, x0[where], times, self.before(times))
                extra = self.hybrid * self.steps * F.cross_entropy(logits, x0[where], reduction="none")
            empty = torch.zeros(x0.shape, dtype=term.dtype, device=term.device)
            terms.append(empty.masked_scatter(where, term))
            objectives.append(empty.masked_scatter(where, term + extra).sum(1))
            destroyed = torch.where(target, x_t, self.mask_id)  # given tokens have no q, and log q = -inf at t = 1
            log_qs.append((self.log_q(destroyed, x0, t) * target).sum(1))
        f1, f2 = objectives
        reconstruction = torch.zeros_like(terms[0])
        if self.steps is None:
            reconstruction = (self.decoder_nll(x0) * target).to(f1.dtype)
        score = 0.5 * (f1 - f2).detach() * (log_qs[0] - log_qs[1]).to(f1.dtype)
        score = score - score.detach()  # a gradient without a value, so the objective reads as the bound
        objective = 0.5 * (f1 + f2) + score + reconstruction.sum(1)
        return Bound(0.5 * (terms[0] + terms[1]) + reconstruction, objective, scored)
