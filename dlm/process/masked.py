"""Masked (absorbing) processes: MD4, the any-order autoregressive model, GenMD4.

Each token turns into the mask m with probability u_t = 1 - alpha_t, independently.  The network predicts the
clean tokens and never the mask; visible tokens are carried over ("SUBS"), so only masked positions are scored:

    -log p(x0) <= int_0^1 -alpha'_t / (1 - alpha_t)  E sum_{i: x_t^i = m} -log mu^i(x0^i | x_t)  dt      (MD4)

which does not depend on the schedule and equals the any-order autoregressive loss E_sigma[-log p(x0 | sigma)].
Sources: Shi et al. 2024 (MD4, GenMD4); Sahoo et al. 2024 (MDLM); Ou et al. 2024 (RADD); Hoogeboom et al. 2022.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.process.base import Bound, Denoise, Process, token_nll
from dlm.process.schedule import Linear, Schedule, TokenPolynomial


class MaskedDiffusion(Process):
    """MD4: every token is masked on the same schedule.  The exact network does not depend on t."""

    time_dependent = False
    bound_kind = "any-order NELBO"

    def __init__(self, vocab_size: int, schedule: Schedule | None = None, t_min: float = 0.0, t_max: float = 1.0):
        super().__init__(vocab_size, vocab_size + 1, t_min, t_max)
        self.schedule = schedule or Linear()
        self.mask_id = vocab_size

    def prior(self, noise):
        return torch.full(noise.shape, self.mask_id, dtype=torch.long, device=noise.device)

    def mask_prob(self, x0: Int[Tensor, "B L"], t: Float[Tensor, " B"]) -> Float[Tensor, "B L"]:
        """u_t at each position."""
        return self.schedule.u(t)[:, None].expand(x0.shape)

    def corrupt(self, x0, t, noise):
        return torch.where(noise < self.mask_prob(x0, t), self.mask_id, x0)

    def log_q(self, x_t, x0, t):
        u, alpha = self.schedule.u(t)[:, None], self.schedule.alpha(t)[:, None]
        visible = torch.where(x_t == x0, torch.log(alpha), -torch.inf)
        return torch.where(x_t == self.mask_id, torch.log(u), visible)

    def rates(self, logits, x_t, t):
        """m -> v at w(t) mu_v; visible tokens do not move."""
        rate = self.schedule.unmask_rate(t)[:, None] * (x_t == self.mask_id)
        return F.pad(rate[..., None] * logits.softmax(-1), (0, 1))

    def conditional_rates(self, x0, x_t, t):
        rate = self.schedule.unmask_rate(t)[:, None] * (x_t == self.mask_id)
        return rate[..., None] * F.one_hot(x0, self.num_states)

    def event_prob(self, x_t, t, s):
        """A masked token is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t) = (u_t - u_s) / u_t."""
        u_t, u_s = self.schedule.u(t), self.schedule.u(s)
        u_s = torch.where(s <= 0, torch.zeros_like(u_s), u_s)  # the last step reveals everything
        return ((u_t - u_s) / u_t)[:, None] * (x_t == self.mask_id)

    def event(self, logits, x_t, t, s):
        return F.pad(logits.softmax(-1), (0, 1))

    def nelbo(self, logits, x0, x_t, t):
        ce = F.cross_entropy(logits.transpose(1, 2), x0, reduction="none")
        return self.schedule.unmask_rate(t)[:, None].to(ce.dtype) * (x_t == self.mask_id) * ce

    def boundary(self, denoise, x0, noise, target=None):
        return uncovered(self, denoise, x0, noise, target)

    def loss(self, denoise, x0, t, target, noise):
        """The same as the generic loss, asking the vocabulary head for masked positions only."""
        x_t = torch.where(target, self.corrupt(x0, t, noise[0]), x0)
        where = target & (x_t == self.mask_id)
        nll = token_nll(denoise, x_t, t, x0, where)
        weight = (self.t_max - self.t_min) * self.schedule.unmask_rate(t)
        nelbo = weight[:, None].to(nll.dtype) * nll
        return Bound(nelbo, nelbo.sum(1), where.sum())


def uncovered(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    noise: Float[Tensor, "B L"],
    target: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L"]:
    """What u in [u(t_min), u(t_max)] leaves out of [0, 1], as the first and last step of a T-step bound:

    u_min f(u_min) + (1 - u_max) f(1), with f(u) = (1/u) E_{masks at rate u} sum_masked CE; mostly nothing.
    """
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    masked_at_t_min, visible_at_t_max = process.schedule.u(ends)[0], process.schedule.alpha(ends)[1]
    target = torch.ones_like(x0, dtype=torch.bool) if target is None else target
    left_out = torch.zeros(x0.shape, dtype=noise.dtype, device=x0.device)
    early, late = (torch.full((len(x0),), float(end), dtype=noise.dtype, device=x0.device) for end in ends)
    if masked_at_t_min > 0:
        x_t = torch.where(target, process.corrupt(x0, early, noise), x0)
        left_out = left_out + token_nll(denoise, x_t, early, x0, x_t == process.mask_id)
    if visible_at_t_max > 0:
        first = token_nll(denoise, torch.where(target, process.mask_id, x0), late, x0, target)
        left_out = left_out + visible_at_t_max * first
    return left_out


class AnyOrder(MaskedDiffusion):
    """The any-order autoregressive model (ARDM): exactly k of the n targets are masked, k uniform on 1..n.

        -log p(x0) <= E_k E_{|S| = k} (n / k) sum_{i in S} -log mu^i(x0^i | x0 with S masked)

    the same bound as MD4's, with the lower-variance estimator; t in (0, 1] stands for k = ceil(t n).
    """

    def loss(self, denoise, x0, t, target, noise):
        n = target.sum(1)
        k = torch.ceil(t * n).clamp(min=1).long()
        where = exact_count_mask(noise[0], target, k)
        nll = token_nll(denoise, torch.where(where, self.mask_id, x0), t, x0, where)
        nelbo = (n / k)[:, None].to(nll.dtype) * nll
        return Bound(nelbo, nelbo.sum(1), where.sum())


def exact_count_mask(
    noise: Float[Tensor, "B L"], target: Bool[Tensor, "B L"], k: Int[Tensor, " B"]
) -> Bool[Tensor, "B L"]:
    """A uniformly random set of exactly k target positions per row: those with the k smallest uniforms."""
    ranks = noise.masked_fill(~target, torch.inf).argsort(1).argsort(1)
    return target & (ranks < k[:, None])


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

    time_dependent = True
    noise_draws = 2
    bound_kind = "GenMD4 NELBO"

    def __init__(self, vocab_size: int, t_min: float = 1e-3):
        if t_min <= 0:
            raise ValueError(f"GenMD4 needs t_min > 0 for its reconstruction term, not t_min={t_min}")
        super().__init__(vocab_size, None, t_min)
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

    def event_prob(self, x_t, t, s):
        return (x_t == self.mask_id).to(t.dtype)

    def event(self, logits, x_t, t, s):
        """m -> v with probability mu_v (1 - rho_v), rho_v = (1-alpha_{s,v}) / (1-alpha_{t,v}) = (s/t)^{w_v}."""
        mu = logits.softmax(-1)
        stay = (s / t)[:, None] ** self.schedule.w
        return torch.cat([mu * (1 - stay), (mu * stay).sum(-1, keepdim=True)], -1)

    def nelbo(self, logits, x0, x_t, t):
        masked = x_t == self.mask_id
        return torch.where(masked, self._masked_term(logits, x0) / t[:, None].to(logits.dtype), 0.0)

    def _masked_term(self, logits: Float[Tensor, "*N V"], x0: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        w = self.schedule.w.to(logits.dtype)
        log_mu = logits.log_softmax(-1)
        taken = log_mu.gather(-1, x0[..., None])[..., 0]
        return -w[x0] * taken - w[x0] + (w * log_mu.exp()).sum(-1)

    def reconstruction(self, x0: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """(1 - alpha_{tmin,a}) [ -w_a log t_min + logsumexp_v (w_v log t_min) ], exact, with its gradient in w."""
        log_p = self.schedule.w * math.log(self.t_min)
        return log_p[x0].exp() * (torch.logsumexp(log_p, 0) - log_p[x0])

    def boundary(self, denoise, x0, noise, target=None):
        return self.reconstruction(x0)

    def loss(self, denoise, x0, t, target, noise):
        terms, log_qs, scored = [], [], torch.zeros((), dtype=torch.long, device=x0.device)
        for draw in noise:
            with torch.no_grad():
                x_t = torch.where(target, self.corrupt(x0, t, draw), x0)
            where = target & (x_t == self.mask_id)
            scored = scored + where.sum()
            term = self._masked_term(denoise(x_t, t, where), x0[where])
            ell = torch.zeros(x0.shape, dtype=term.dtype, device=term.device).masked_scatter(where, term)
            terms.append(ell * ((self.t_max - self.t_min) / t[:, None]).to(ell.dtype))
            destroyed = torch.where(target, x_t, self.mask_id)  # given tokens have no q, and log q = -inf at t = 1
            log_qs.append((self.log_q(destroyed, x0, t) * target).sum(1))
        f1, f2 = terms[0].sum(1), terms[1].sum(1)
        reconstruction = (self.reconstruction(x0) * target).to(f1.dtype)
        score = 0.5 * (f1 - f2).detach() * (log_qs[0] - log_qs[1]).to(f1.dtype)
        score = score - score.detach()  # a gradient without a value, so the objective reads as the bound
        objective = 0.5 * (f1 + f2) + score + reconstruction.sum(1)
        return Bound(0.5 * (terms[0] + terms[1]) + reconstruction, objective, scored)


def carry_over(logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], mask_id: int) -> Float[Tensor, "B L V"]:
    """SUBS: the posterior of a visible token is itself, whatever the network says."""
    visible = F.one_hot(x_t.clamp(max=logits.shape[-1] - 1), logits.shape[-1]).bool()
    certain = torch.full_like(logits, -torch.inf).masked_fill(visible, 0.0)
    return torch.where((x_t == mask_id)[..., None], logits, certain)
