"""Masked (absorbing) processes: MD4 and the any-order autoregressive model.

Each token turns into the mask m with probability u_t = 1 - alpha_t, independently.  The network predicts the
clean tokens and never the mask; visible tokens are carried over ("SUBS"), so only masked positions are scored:

    -log p(x0) <= int_0^1 -alpha'_t / (1 - alpha_t)  E sum_{i: x_t^i = m} -log mu^i(x0^i | x_t)  dt      (MD4)

which does not depend on the schedule and equals the any-order autoregressive loss E_sigma[-log p(x0 | sigma)].
In T steps the weight becomes T (u_t - u_s) / u_t, and the bound a right Riemann sum of the same integral.
Sources: Shi et al. 2024 (MD4); Sahoo et al. 2024 (MDLM); Ou et al. 2024 (RADD); Hoogeboom et al. 2022; with
`steps` and `hybrid`, Austin et al. 2021 (D3PM-absorbing, for a network that never predicts the mask).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dlm.process.base import Bound, Denoise, Process, token_nll
from dlm.process.schedule import Linear, Schedule

ANY_ORDER = "any-order NELBO"


class MaskedDiffusion(Process):
    """MD4: every token is masked on the same schedule.  The exact network does not depend on t."""

    mask_predictor = True
    time_dependent = False
    bound_kind = ANY_ORDER

    def __init__(
        self,
        vocab_size: int,
        schedule: Schedule | None = None,
        t_min: float = 0.0,
        t_max: float = 1.0,
        steps: int | None = None,
        hybrid: float = 0.0,
    ):
        super().__init__(vocab_size, vocab_size + 1, t_min, t_max, steps, hybrid)
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

    def marginal(self, p0, t):
        u, alpha = (f(t)[:, None, None].to(p0.dtype) for f in (self.schedule.u, self.schedule.alpha))
        return torch.cat([alpha * p0, u * p0.sum(-1, keepdim=True)], -1)

    def rates(self, logits, x_t, t):
        """m -> v at w(t) mu_v; visible tokens do not move."""
        rate = self.schedule.unmask_rate(t)[:, None] * (x_t == self.mask_id)
        return F.pad(rate[..., None] * logits.softmax(-1), (0, 1))

    def conditional_rates(self, x0, x_t, t):
        rate = self.schedule.unmask_rate(t)[:, None] * (x_t == self.mask_id)
        return rate[..., None] * F.one_hot(x0, self.num_states)

    def rate_bound(self, x_t, t):
        return self.schedule.unmask_rate(t)[:, None] * (x_t == self.mask_id)

    def event_prob(self, x_t, t, s):
        """A masked token is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t) = (u_t - u_s) / u_t."""
        return reveal_prob(self.schedule, t, s)[:, None] * (x_t == self.mask_id)

    def event(self, logits, x_t, t, s):
        return F.pad(logits.softmax(-1), (0, 1))

    def weight(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """What the cross-entropy of a masked token counts for: w(t), or T (u_t - u_s) / u_t with `steps`."""
        if self.steps is None:
            return self.schedule.unmask_rate(t)
        return self.steps * reveal_prob(self.schedule, t, self.before(t))

    def integrand(self, logits, x0, x_t, t):
        ce = F.cross_entropy(logits.transpose(1, 2), x0, reduction="none")
        return self.schedule.unmask_rate(t)[:, None].to(ce.dtype) * (x_t == self.mask_id) * ce

    def step_kl(self, logits, x0, x_t, t, s):
        ce = F.cross_entropy(logits.transpose(1, 2), x0, reduction="none")
        return self.event_prob(x_t, t, s).to(ce.dtype) * ce

    def reconstruction(self, denoise, x0, noise, target):
        return first_unmasked(self, denoise, x0, noise, target)

    def prior_term(self, denoise, x0, noise, target):
        return last_masked(self, denoise, x0, noise, target)

    def loss(self, denoise, x0, t, target, noise):
        """The same as the generic loss, asking the vocabulary head for masked positions only."""
        x_t = torch.where(target, self.corrupt(x0, t, noise[0]), x0)
        return self.loss_at(denoise, x0, x_t, t, target)

    def loss_at(
        self,
        denoise: Denoise,
        x0: Int[Tensor, "B L"],
        x_t: Int[Tensor, "B L"],
        t: Float[Tensor, " B"],
        target: Bool[Tensor, "B L"],
    ) -> Bound:
        """The loss of a corruption that was drawn already."""
        where = target & (x_t == self.mask_id)
        nll = token_nll(denoise, x_t, t, x0, where)
        weight = (self.t_max - self.t_min) * self.weight(t)
        nelbo = weight[:, None].to(nll.dtype) * nll
        objective = nelbo.sum(1)
        if self.hybrid > 0 and self.steps is not None:
            objective = objective + self.hybrid * self.steps * nll.sum(1)
        return Bound(nelbo, objective, where.sum())


def reveal_prob(schedule: Schedule, t: Float[Tensor, " B"], s: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """(u_t - u_s) / u_t, the probability that a replaced token is restored between t and s; one at s = 0."""
    u_t, u_s = schedule.u(t), schedule.u(s)
    u_s = torch.where(s <= 0, torch.zeros_like(u_s), u_s)  # the last step restores everything
    return (u_t - u_s) / u_t


def first_unmasked(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    noise: Float[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
) -> Float[Tensor, "B L"]:
    """What u in [0, u(t_min)] leaves out, as the last step of a sampler: u_min f(u_min), mostly nothing.

    f(u) = (1/u) E_{masks at rate u} sum_masked CE.
    """
    if process.schedule.u(torch.tensor(process.t_min, dtype=torch.float64)) == 0:
        return torch.zeros(x0.shape, dtype=noise.dtype, device=x0.device)
    x_t, t = process.destroyed(process.t_min, x0, noise, target)
    return token_nll(denoise, x_t, t, x0, target & (x_t == process.mask_id)).to(noise.dtype)


def last_masked(
    process: Process,
    denoise: Denoise,
    x0: Int[Tensor, "B L"],
    noise: Float[Tensor, "B L"],
    target: Bool[Tensor, "B L"],
) -> Float[Tensor, "B L"]:
    """What u in [u(t_max), 1] leaves out, as the first step of a sampler: (1 - u_max) f(1), mostly nothing.

    The divergence from an all-mask prior would be infinite; a step that starts from nothing but masks is not.
    """
    t = torch.full((len(x0),), process.t_max, dtype=noise.dtype, device=x0.device)
    visible = process.schedule.alpha(torch.tensor(process.t_max, dtype=torch.float64)).to(x0.device)
    if visible == 0:
        return torch.zeros(x0.shape, dtype=noise.dtype, device=x0.device)
    nothing = torch.where(target, process.mask_id, x0)
    return visible * token_nll(denoise, nothing, t, x0, target).to(noise.dtype)


class AnyOrder(MaskedDiffusion):
    """The any-order autoregressive model (ARDM): exactly k of the n targets are masked, k uniform on 1..n.

        -log p(x0) <= E_k E_{|S| = k} (n / k) sum_{i in S} -log mu^i(x0^i | x0 with S masked)

    the same bound as MD4's, with the lower-variance estimator; t in (0, 1] stands for k = ceil(t n).
    """

    def __init__(self, vocab_size: int, schedule: Schedule | None = None):
        super().__init__(vocab_size, schedule)

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


def carry_over(logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], mask_id: int) -> Float[Tensor, "B L V"]:
    """SUBS: the posterior of a visible token is itself, whatever the network says."""
    visible = F.one_hot(x_t.clamp(max=logits.shape[-1] - 1), logits.shape[-1]).bool()
    certain = torch.full_like(logits, -torch.inf).masked_fill(visible, 0.0)
    return torch.where((x_t == mask_id)[..., None], logits, certain)


def masking_time(process: Process, rate: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The time at which a share `rate` of the tokens is masked, as a network that knows the time is told it."""
    return process.schedule.inverse(rate.double()).clamp(process.t_min, process.t_max)
