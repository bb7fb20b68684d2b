"""Divergences of rates and of distributions, exact in value and gradient where a probability is zero."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def generalised_kl(
    true: Float[Tensor, "B L S"], model: Float[Tensor, "B L S"], x_t: Int[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """sum_{y != x_t} [ R_y - C_y + C_y log(C_y / R_y) ], 0 log 0 = 0 in value and in gradient."""
    off = ~F.one_hot(x_t, true.shape[-1]).bool()
    live = off & (true > 0)
    ratio = torch.where(live, true, 1.0) / torch.where(live, model, 1.0)
    return (off * (model - true) + torch.where(live, true * torch.log(ratio), 0.0)).sum(-1)


def categorical_kl(true: Float[Tensor, "*N S"], model: Float[Tensor, "*N S"]) -> Float[Tensor, "*N"]:
    """sum_y p_y log(p_y / m_y), 0 log 0 = 0 in value and in gradient."""
    live = true > 0
    ratio = torch.where(live, true, 1.0) / torch.where(live, model, 1.0)
    return torch.where(live, true * torch.log(ratio), 0.0).sum(-1)
