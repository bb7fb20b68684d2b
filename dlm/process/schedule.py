"""Schedules: how fast the destroying process works.

Time runs from t = 0 (clean) to t = 1 (noise).  A token is kept with probability alpha_t and replaced by a
draw from the noise distribution with probability u_t = 1 - alpha_t.  Every process needs only

    alpha(t), u(t), dalpha(t) = d alpha / dt,
    noise_rate(t)  = -alpha' / alpha        forward rate of the destroying chain        [1 / time]
    unmask_rate(t) = -alpha' / (1 - alpha)  reverse rate; the weight of MD4's bound     [1 / time]
    inverse(u)     = t with u(t) = u

and each is written in the closed form that stays finite in float32 at the end where the naive quotient does
not (u is never formed as 1 - alpha from a rounded alpha).  Two warnings about names: MD4's "cosine" is not
MDLM's "cosine", and the flow-matching kappa = tau^n is 1 - (1 - t)^n here, not t^n.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

HALF_PI = math.pi / 2


class Schedule(nn.Module):
    """A scalar schedule: all methods map times [B] to values [B]."""

    def u(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        raise NotImplementedError

    def dalpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        raise NotImplementedError

    def inverse(self, u: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        raise NotImplementedError

    def alpha(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return 1 - self.u(t)

    def noise_rate(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return -self.dalpha(t) / self.alpha(t)

    def unmask_rate(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return -self.dalpha(t) / self.u(t)


class Linear(Schedule):
    """alpha_t = 1 - t: MD4's and LLaDA's default; flow matching's kappa = tau."""

    def u(self, t):
        return t

    def dalpha(self, t):
        return -torch.ones_like(t)

    def inverse(self, u):
        return u

    def unmask_rate(self, t):
        return 1 / t


class Cosine(Schedule):
    """MD4's cosine, alpha_t = 1 - cos(pi/2 (1 - t)): reveals few tokens early in generation, many late."""

    def u(self, t):
        return torch.sin(HALF_PI * t)

    def alpha(self, t):
        return 2 * torch.sin(HALF_PI * (1 - t) / 2) ** 2

    def dalpha(self, t):
        return -HALF_PI * torch.cos(HALF_PI * t)

    def inverse(self, u):
        return torch.asin(u) / HALF_PI

    def unmask_rate(self, t):
        return HALF_PI * torch.sin(HALF_PI * (1 - t)) / torch.sin(HALF_PI * t)

    def noise_rate(self, t):
        return HALF_PI / torch.tan(HALF_PI * (1 - t) / 2)


class HalfCosine(Schedule):
    """MDLM's "cosine", alpha_t = cos(pi t / 2)."""

    def u(self, t):
        return 2 * torch.sin(HALF_PI * t / 2) ** 2

    def alpha(self, t):
        return torch.sin(HALF_PI * (1 - t))

    def dalpha(self, t):
        return -HALF_PI * torch.sin(HALF_PI * t)

    def inverse(self, u):
        return 2 * torch.asin(torch.sqrt(u / 2)) / HALF_PI

    def unmask_rate(self, t):
        return HALF_PI / torch.tan(HALF_PI * t / 2)

    def noise_rate(self, t):
        return HALF_PI * torch.sin(HALF_PI * t) / torch.sin(HALF_PI * (1 - t))


class CosineSquared(Schedule):
    """MDLM's "cosinesqr", alpha_t = cos^2(pi t / 2)."""

    def u(self, t):
        return torch.sin(HALF_PI * t) ** 2

    def alpha(self, t):
        return torch.sin(HALF_PI * (1 - t)) ** 2

    def dalpha(self, t):
        return -HALF_PI * torch.sin(math.pi * t)

    def inverse(self, u):
        return torch.asin(torch.sqrt(u)) / HALF_PI

    def unmask_rate(self, t):
        return math.pi * torch.sin(HALF_PI * (1 - t)) / torch.sin(HALF_PI * t)

    def noise_rate(self, t):
        return math.pi * torch.sin(HALF_PI * t) / torch.sin(HALF_PI * (1 - t))


class Polynomial(Schedule):
    """alpha_t = 1 - t^power: MD4's `poly`, one token of GenMD4's learned schedule."""

    def __init__(self, power: float = 2.0):
        super().__init__()
        self.power = power

    def u(self, t):
        return t**self.power

    def alpha(self, t):
        return -torch.expm1(self.power * torch.log(t))

    def dalpha(self, t):
        return -self.power * t ** (self.power - 1)

    def inverse(self, u):
        return u ** (1 / self.power)

    def unmask_rate(self, t):
        return self.power / t


class LogLinear(Schedule):
    """SEDD's and MDLM's log-linear noise sigma = -log(1 - (1 - eps) t): linear, stopped short of alpha = 0."""

    def __init__(self, eps: float = 1e-3):
        super().__init__()
        self.eps = eps

    def u(self, t):
        return (1 - self.eps) * t

    def dalpha(self, t):
        return -(1 - self.eps) * torch.ones_like(t)

    def inverse(self, u):
        return u / (1 - self.eps)

    def unmask_rate(self, t):
        return 1 / t


class Geometric(Schedule):
    """SEDD's geometric noise, alpha_t = exp(-sigma_t) with sigma_t = sigma_min^(1-t) sigma_max^t."""

    def __init__(self, sigma_min: float = 1e-4, sigma_max: float = 20.0):
        super().__init__()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.log_ratio = math.log(sigma_max / sigma_min)

    def sigma(self, t):
        return self.sigma_min * torch.exp(self.log_ratio * t)

    def u(self, t):
        return -torch.expm1(-self.sigma(t))

    def alpha(self, t):
        return torch.exp(-self.sigma(t))

    def dalpha(self, t):
        return -self.noise_rate(t) * self.alpha(t)

    def inverse(self, u):
        return torch.log(-torch.log1p(-u) / self.sigma_min) / self.log_ratio

    def unmask_rate(self, t):
        return self.noise_rate(t) / torch.expm1(self.sigma(t))

    def noise_rate(self, t):
        return self.sigma(t) * self.log_ratio


class Kappa(Schedule):
    """Flow matching's kappa_tau = tau^power on its own clock tau = 1 - t: alpha_t = (1 - t)^power."""

    def __init__(self, power: float = 3.0):
        super().__init__()
        self.power = power

    def u(self, t):
        return -torch.expm1(self.power * torch.log1p(-t))

    def alpha(self, t):
        return (1 - t) ** self.power

    def dalpha(self, t):
        return -self.power * (1 - t) ** (self.power - 1)

    def inverse(self, u):
        return -torch.expm1(torch.log1p(-u) / self.power)

    def noise_rate(self, t):
        return self.power / (1 - t)


class TokenPolynomial(nn.Module):
    """GenMD4's learned schedule: token value v is kept with probability alpha_{t,v} = 1 - t^{w_v}.

    w = softplus(raw) > 0, one free entry per vocabulary item, starting at w = 1 (MD4's linear schedule).
    (Shi et al. 2024, section 6.)  `raw` must stay free of weight decay, which would pull w towards log 2.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.raw = nn.Parameter(torch.full((vocab_size,), math.log(math.expm1(1.0))))

    @property
    def w(self) -> Float[Tensor, " V"]:
        return F.softplus(self.raw)

    def log_u(self, t: Float[Tensor, " B"], x: Tensor) -> Float[Tensor, "B L"]:
        """log(1 - alpha_{t, x}) = w_x log t for the token values x."""
        return self.w[x] * torch.log(t)[:, None]

    def u(self, t: Float[Tensor, " B"], x: Tensor) -> Float[Tensor, "B L"]:
        return torch.exp(self.log_u(t, x))
