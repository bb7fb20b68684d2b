"""What a measure is made on: one set of weights, its data, and what several measures share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.data.module import DataModule
from dlm.lm import DiffusionLM, LanguageModel
from dlm.measure.texts import Texts

REMEMBERED = 1 << 27  # logits kept: 512 MiB


@dataclass
class Settings:
    """How finely a checkpoint is measured; the defaults suit windows of 128 tokens on one processor core."""

    windows: int = 32  # of each split, evenly spread: likelihoods, accuracy, membership
    draws: int = 4  # per window, and per option of a probe
    items: int = 48  # of each probe
    samples: int = 6  # sequences generated at temperature 1
    extractions: int = 16  # training prefixes that are continued
    orders: int = 4  # random orders per window: mixture, order variance
    order_windows: int = 6  # of each split: order variance
    order_tokens: int = 32  # of each of those windows: one network row per token and order
    chain_windows: int = 4  # whole windows: left_to_right, mixture
    chain_at: str = "best"  # the checkpoints at which those two are made: names, or all
    batch_tokens: int | None = None  # that the network reads at a time: 2,048, or 131,072 on a GPU


@dataclass(frozen=True)
class Measured:
    """One number about a model."""

    value: float
    se: float | None
    n: int  # what the standard error is over: windows, items, samples
    unit: str = "nats per token"
    chance: float | None = None
    split: str = "report"
    details: dict[str, Any] = field(default_factory=dict)


class Remembered:
    """A denoiser that answers a repeated question from memory: the same noise asks it at every temperature.

    Keeps the first `room` logits, and asks the network again for the rest.
    """

    def __init__(self, denoise: Any, room: int = REMEMBERED):
        self.denoise, self.room = denoise, room
        self.answers: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, x: Int[Tensor, "B L"], t: Any = None, where: Any = None, **how: Any) -> Tensor:
        parts = {"x": x, "t": t, "where": where} | how
        key = tuple((k, content(v)) for k, v in sorted(parts.items()))
        if key not in self.answers:
            answer = self.denoise(x, t, where, **how)
            if answer.numel() > self.room:
                return answer
            self.room -= answer.numel()
            self.answers[key] = answer
        return self.answers[key]


def content(value: Any) -> Any:
    """What tells two arguments apart: the shape and bytes of a tensor."""
    return (tuple(value.shape), value.cpu().numpy().tobytes()) if isinstance(value, Tensor) else value


@dataclass
class Subject:
    """A model with its data.

    `texts` holds what does not depend on the weights, so that checkpoints of one run can share it.
    """

    model: LanguageModel
    data: DataModule
    settings: Settings = field(default_factory=Settings)
    texts: Any = None
    found: dict[Any, Any] = field(default_factory=dict)  # what one measure leaves for another

    def __post_init__(self) -> None:
        self.texts = self.texts or Texts(self.data.source)
        self.denoise = Remembered(self.model.backbone)

    @property
    def causal(self) -> bool:
        """Whether the model is reported, and generates, as an autoregressive one (a dual model is)."""
        return self.model.sampler_name(None) == "autoregressive"

    @property
    def mask_predictor(self) -> bool:
        return isinstance(self.model, DiffusionLM) and self.model.process.mask_predictor

    @property
    def seed(self) -> int:
        return self.model.seed_of_evaluation

    def windows(self, split: str, limit: int) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
        """`limit` windows of a split, evenly spread, and their numbers."""
        numbers = self.data.window_numbers(split, limit)
        return self.data.examples(split, numbers).x0, torch.from_numpy(numbers)

    @torch.no_grad()
    def nats(
        self,
        kind: Any,
        x0: Int[Tensor, "N L"],
        index: Int[Tensor, " N"],
        draws: int,
        denoise: Any = None,
        target: Bool[Tensor, "N L"] | None = None,
    ) -> Float[Tensor, "N columns"]:
        """The draws of a likelihood of sequences, nats per sequence, about `batch_tokens` at a time."""
        target = torch.ones_like(x0, dtype=torch.bool) if target is None else target
        denoise, device = denoise or self.model.backbone, self.model.device
        at_once = self.settings.batch_tokens or (1 << 11 if device.type == "cpu" else 1 << 17)
        size = max(1, at_once // (x0.shape[1] * max(draws, 1)))
        parts = zip(*(v.split(size) for v in (x0, target, index)), strict=True)
        found = [kind.draws(denoise, x.to(device), of.to(device), i, draws, self.seed) for x, of, i in parts]
        return torch.cat([part.double().cpu() for part in found])


def mean_and_se(values: Sequence[float] | np.ndarray | Tensor) -> tuple[float, float | None]:
    """The mean of independent numbers and its standard error; None for a single one."""
    numbers = np.asarray(values, dtype=np.float64)
    spread = float(numbers.std(ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else None
    return float(numbers.mean()), spread


def each(values: Sequence[float] | np.ndarray | Tensor) -> list[float]:
    """The single numbers behind a mean, for paired comparisons of models."""
    return np.asarray(values, dtype=np.float64).round(5).tolist()
