"""MD4 in T steps with the loss of Ye et al. 2024 (also Kim et al. 2025, whose Sudoku models are trained by it).

A masked token of cross-entropy c = -log mu^i(x0^i) at level i of T counts for

    (T - i + 1) * scale * (1 - e^{-c})^power * c,

where MD4's bound in T steps has the weight T / i: light masking, whose masked tokens are few and easy, counts more
in both, here linearly in the level.  The focal factor (Lin et al. 2017) takes away what is nearly certain already.

The linear weight leaves the minimiser where it is.  The focal factor does not: -(1 - p) log p is no proper score,
and over a true conditional q its mean is least at another p, unless q is certain.  In a proper puzzle all of them
are, so there the exact network is still the best one; on text it is not, and the reported bound (`nelbo`, MD4's)
says what that costs.
"""

import torch

from dlm.errors import UserError
from dlm.process.base import Bound, token_nll
from dlm.process.masked import MaskedDiffusion
from dlm.process.schedule import Schedule


class FocalDiffusion(MaskedDiffusion):
    """MaskedDiffusion in T steps, trained by the reweighted cross-entropy above, scored by MD4's bound.

    The sum is divided by the expected number of masked tokens, (T + 1) / (2 T) of the targets; the published code
    divides by the number in the batch, so that a batch's gradient would depend on how it is divided.

    Args:
        scale, power: alpha = 0.25 and gamma = 1 in the published code.
    """

    proper = False

    def __init__(
        self,
        vocab_size: int,
        schedule: Schedule | None = None,
        steps: int = 20,
        scale: float = 0.25,
        power: float = 1.0,
    ):
        super().__init__(vocab_size, schedule, steps=steps)
        if scale <= 0 or power < 0:
            raise UserError(f"focal loss: scale={scale} must be positive and power={power} zero or more")
        self.scale, self.power = scale, power

    def loss_at(self, denoise, x0, x_t, t, target):
        assert self.steps is not None
        where = target & (x_t == self.mask_id)
        nll = token_nll(denoise, x_t, t, x0, where)
        nelbo = self.weight(t)[:, None].to(nll.dtype) * nll
        surprise = -torch.expm1(-nll)  # 1 - p, zero outside `where`
        linear = self.steps * (1 - t) + 1
        expected = (self.steps + 1) / (2 * self.steps)
        objective = (linear / expected).to(nll.dtype) * (self.scale * surprise**self.power * nll).sum(1)
        return Bound(nelbo, objective, where.sum())
