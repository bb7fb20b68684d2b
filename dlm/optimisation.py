"""The optimiser and its learning rate."""

import math
from dataclasses import dataclass

import torch

from dlm.errors import UserError


@dataclass
class Optimisation:
    """AdamW with a warm-up, stable, decay learning rate.

    Weight decay acts on matrices only: norms, biases and learned noise schedules stay free of it. The last
    `cooldown` share of the steps lowers the rate as 1 - sqrt(progress) (Haegele et al. 2024); 0 keeps it constant.
    """

    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    warmup_steps: int = 50
    cooldown: float = 0.0
    clip: float = 1.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        positive = {"clip": self.clip}
        shares = {"beta1": self.beta1, "beta2": self.beta2, "ema": self.ema, "cooldown": self.cooldown}
        counts = {"lr": self.lr, "weight_decay": self.weight_decay, "warmup_steps": self.warmup_steps}
        for values, allowed, wanted in (
            (positive, lambda v: v > 0, "positive"),
            (shares, lambda v: 0 <= v < 1, "in [0, 1)"),
            (counts, lambda v: v >= 0, "zero or more"),
        ):
            for name, value in values.items():
                if not allowed(value):
                    raise UserError(f"optim.{name}={value:g} must be {wanted}")

    def factor(self, step: int, total: int) -> float:
        """The learning rate of `step` as a share of `lr`."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        begin = total * (1 - self.cooldown)
        if self.cooldown == 0 or step < begin:
            return warm
        return warm * (1 - math.sqrt(min(1.0, (step - begin) / max(total - begin, 1))))

    def optimizer(self, model: torch.nn.Module) -> torch.optim.AdamW:
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), fused=True)
