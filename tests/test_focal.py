"""The reweighted loss of Ye et al. 2024: its numbers by hand, and where its minimiser is."""

import math

import pytest
import torch

from dlm.errors import UserError
from dlm.process import FocalDiffusion, MaskedDiffusion

F64 = torch.float64
X0 = torch.tensor([[0, 1, 2, 1]])
X_T = torch.tensor([[3, 1, 3, 3]])
TARGET = torch.tensor([[True, True, True, False]])


def constant(p):
    """A network that gives every masked token the same law."""
    logits = torch.tensor(p, dtype=F64).log()
    return lambda x, t, where=None: logits.expand(int(where.sum()) if where is not None else x.numel(), -1)


@pytest.mark.parametrize("level", [1, 7, 20])
def test_a_masked_target_counts_as_published(level):
    """(T - i + 1) alpha (1 - p)^gamma (-log p), over the expected number of masks; givens count nothing."""
    process = FocalDiffusion(3).double()
    bound = process.loss_at(constant([0.7, 0.2, 0.1]), X0, X_T, torch.tensor([level / 20], dtype=F64), TARGET)
    tokens = sum(0.25 * (1 - p) * -math.log(p) for p in (0.7, 0.1))
    assert bound.objective.item() == pytest.approx((20 - level + 1) * tokens / (21 / 40), rel=1e-12)
    assert bound.scored == 2


def test_the_reported_bound_is_md4s():
    t = torch.tensor([0.35], dtype=F64)
    ours, md4 = (
        process.loss_at(constant([0.7, 0.2, 0.1]), X0, X_T, t, TARGET)
        for process in (FocalDiffusion(3).double(), MaskedDiffusion(3, steps=20).double())
    )
    assert torch.equal(ours.nelbo, md4.nelbo)
    assert ours.objective != md4.objective


def test_without_the_focal_factor_only_the_weight_differs():
    """power = 0 and scale = 1 leave the linear weight, (T - i + 1) instead of T / i."""
    t = torch.tensor([0.25], dtype=F64)
    ours = FocalDiffusion(3, scale=1.0, power=0.0).double().loss_at(constant([0.7, 0.2, 0.1]), X0, X_T, t, TARGET)
    md4 = MaskedDiffusion(3, steps=20).double().loss_at(constant([0.7, 0.2, 0.1]), X0, X_T, t, TARGET)
    assert (ours.objective / md4.objective).item() == pytest.approx((20 - 5 + 1) / (20 / 5) * 40 / 21, rel=1e-12)


def test_the_minimiser_moves_unless_the_answer_is_certain():
    """Over a coin of q = 0.8, -(1 - p) log p is least at another p; over a certain token it is least at p = 1."""
    p = torch.linspace(0.001, 0.999, 999, dtype=F64)

    def mean(q):
        return sum(w * -(1 - r) * r.log() for w, r in ((q, p), (1 - q, 1 - p)))

    assert abs(p[mean(0.8).argmin()].item() - 0.8) > 0.05
    assert p[mean(1.0).argmin()].item() == pytest.approx(0.999)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"power": -1.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match="focal loss"):
        FocalDiffusion(3, **settings)
