"""What a run will take, from its configuration alone: no data, no network, no GPU.

Parameters are counted on the meta device. Seconds come from rates measured on the device (`dlm.speed`), or, where
it is not here, from the utilisation that the scale's file assumes.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dlm import config
from dlm.build import outline
from dlm.callbacks import evaluation_steps
from dlm.errors import UserError
from dlm.layout import Layout
from dlm.lm import LanguageModel

START_SECONDS = 8.0  # of a process, its imports and its data
WHOLE_SPLIT = 300  # windows, roughly, where a split is scored whole: a prediction must not build the data
CHARACTERS = 97  # tokens, where neither the configuration of the data nor the scale says more
TRAINING_STATE = 16  # bytes per parameter of a resumable checkpoint: weights, their average, two moments
AVERAGED = 4  # bytes per parameter of a snapshot
ROW = 12  # bytes of one held-out window's loss in windows.jsonl


@dataclass(frozen=True)
class Cost:
    """Of one run. `flops` are forward and backward passes of training; `flops_full` counts the same with full
    attention everywhere, as if no mask saved anything."""

    params: int
    tokens: float  # of the trunk
    branch_tokens: float  # of the cooldowns beside it
    scored_tokens: float  # through the network in evaluations
    flops_per_token: float
    flops: float
    flops_full: float
    disk_bytes: float
    devices: int  # over all nodes
    nodes: int
    on_gpu: bool
    speed_key: str  # runs that share it train at the same rate

    @property
    def trained_tokens(self) -> float:
        return self.tokens + self.branch_tokens

    def seconds(self, rate: dict[str, float]) -> tuple[float, float]:
        """(all, the part that evaluations take), given tokens per second of training and of scoring."""
        scoring = self.scored_tokens / rate["scored_tokens_per_second"]
        start = rate.get("start_seconds", START_SECONDS)
        return start + self.trained_tokens / rate["tokens_per_second"] + scoring, scoring

    def assumed_rate(self, flops_per_second: float) -> dict[str, float]:
        """Rates from the floating-point operations per second that one device is assumed to reach."""
        train = flops_per_second * self.devices / self.flops_per_token
        return {"tokens_per_second": train, "scored_tokens_per_second": 3 * train}  # no backward pass


class Pricing:
    """Counts; one network is described per distinct backbone and method."""

    def __init__(self, assume: dict[str, Any]):
        self.assume = assume
        self.networks: dict[str, tuple[int, float, float]] = {}

    def __call__(self, cfg: DictConfig, unique_tokens: int, epochs: float) -> Cost:
        told, layout = outline(cfg)
        size = told or self.assume.get("vocab_size", CHARACTERS)
        cfg = OmegaConf.merge(cfg, {"vocab_size": size})  # pyright: ignore[reportAssignmentType]
        unique = unique_tokens // cfg.seq_len * cfg.seq_len
        if not unique:
            raise UserError(f"{unique_tokens} unique tokens are less than one window of seq_len={cfg.seq_len}")
        ends = list(OmegaConf.select(cfg, "branches.epochs") or [])
        tail = sum(ends) * cfg.branches.cooldown if ends else 0.0
        per_epoch = unique / cfg.seq_len / cfg.batch_size
        points = len(self.marks(cfg, epochs, per_epoch))
        params, flops, full = self.network(cfg, layout)
        trained = unique * (epochs + tail)
        kept = len(OmegaConf.select(cfg, "evaluation.snapshots") or []) + len(ends)
        windows = 2 * (cfg.evaluation.windows or WHOLE_SPLIT) * (points + len(ends))
        plain = config.resolved(cfg)
        decisive = {k: plain[k] for k in ("backbone", "method", "batch_size", "seq_len", "trainer")}
        decisive["draws"] = cfg.evaluation.draws
        return Cost(
            params=params,
            tokens=unique * epochs,
            branch_tokens=unique * tail,
            scored_tokens=self.scored(cfg, points, len(ends)),
            flops_per_token=flops,
            flops=trained * flops,
            flops_full=trained * full,
            disk_bytes=params * (TRAINING_STATE + AVERAGED * kept) + ROW * windows,
            devices=abs(cfg.trainer.devices) * cfg.trainer.num_nodes,
            nodes=cfg.trainer.num_nodes,
            on_gpu=cfg.trainer.accelerator != "cpu",
            speed_key=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16],
        )

    def network(self, cfg: DictConfig, layout: Layout) -> tuple[int, float, float]:
        """(parameters, FLOPs per trained token, the same with full attention)."""
        plain = config.resolved(cfg)
        tables = [None if table is None else table.tolist() for table in layout]
        key = json.dumps([plain["backbone"], plain["method"], tables], sort_keys=True)
        if key not in self.networks:
            with torch.device("meta"):
                backbone = instantiate(cfg.backbone, _partial_=True)(layout=layout)
            make = instantiate(cfg.method, _partial_=True)
            model: LanguageModel = make(
                backbone=backbone, optim=OmegaConf.to_object(cfg.optim), seed=0, eval_draws=1, total_steps=1
            )
            counted, full = (model.flops_per_token(cfg.seq_len, causal=c) for c in (None, False))
            self.networks[key] = (sum(p.numel() for p in model.parameters()), counted, full)
        return self.networks[key]

    @staticmethod
    def marks(cfg: DictConfig, epochs: float, per_epoch: float) -> list[int]:
        e = cfg.evaluation
        return evaluation_steps(math.ceil(epochs * per_epoch), per_epoch, e.per_octave, e.first_epoch)

    @staticmethod
    def scored(cfg: DictConfig, points: int, branches: int) -> float:
        """Tokens that evaluations push through the network."""
        e = cfg.evaluation
        exact = bool(cfg.backbone.causal)
        curve = (points + branches) * 2 * (e.windows or WHOLE_SPLIT) * (1 if exact else e.draws)
        final = (e.final_windows or WHOLE_SPLIT) * (1 if exact else e.final_draws)
        in_order = 0 if exact else (e.left_to_right_windows or WHOLE_SPLIT) * (cfg.seq_len + e.final_draws)
        return (curve + final + in_order) * cfg.seq_len
