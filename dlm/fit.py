"""A model fitted to its data: the trunk of a run, and the cooled-down branches that leave it.

The trunk trains at a constant rate after its warm-up (warm-up, stable, decay: Haegele et al. 2024). A branch that
ends at epoch e leaves it at the step where the run of e epochs with `optim.cooldown` would begin to lower its
rate, and is from there on that run, bit for bit: noise and data are functions of the step. So one trunk and a few
short branches stand for many whole runs.
"""

import math
from pathlib import Path
from typing import Any

import lightning
from omegaconf import DictConfig, OmegaConf

from dlm import callbacks, device, tracking
from dlm.build import build_model, observe
from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.files import read_lines
from dlm.lm import LanguageModel
from dlm.run import AtomicCheckpointIO, RunDirectory, load_checkpoint


def plan_steps(cfg: DictConfig, data: DataModule) -> int:
    """How many optimiser steps the configured epochs (or steps) are."""
    steps = cfg.steps if cfg.steps is not None else math.ceil(cfg.epochs * data.steps_per_epoch)
    if steps < 1:
        raise UserError(f"epochs={cfg.epochs}, steps={cfg.steps} leave nothing to train")
    return steps


class Branch:
    """One cooled-down branch: where it leaves the trunk, where it ends, and its files."""

    def __init__(self, run: RunDirectory, data: DataModule, epoch: float, cooldown: float):
        self.epoch = epoch
        self.steps = math.ceil(epoch * data.steps_per_epoch)
        self.fork = math.floor(self.steps * (1 - cooldown))
        name = f"cooled-{epoch:g}.ckpt"
        self.start, self.last, self.weights = (
            run.forks / f"{self.fork}.ckpt",
            run.forks / name,
            run.snapshots / name,
        )


def branches(cfg: DictConfig, run: RunDirectory, data: DataModule) -> list[Branch]:
    """Raises UserError for a branch that would leave the trunk before its first step."""
    found = [Branch(run, data, epoch, cfg.branches.cooldown) for epoch in sorted(set(cfg.branches.epochs))]
    for branch in found:
        if branch.fork < 1:
            raise UserError(
                f"branches.epochs: epoch {branch.epoch:g} is only {branch.steps} steps, none to branch from"
            )
    return found


def build_trainer(
    cfg: DictConfig,
    run: RunDirectory,
    data: DataModule,
    steps: int,
    own: list[lightning.Callback],
    logger: Any = False,
) -> lightning.Trainer:
    """Lightning's Trainer, with the callbacks of a trunk or of a branch."""
    t = cfg.trainer
    return lightning.Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        num_nodes=t.num_nodes,
        strategy=t.strategy,
        precision=device.resolve_precision(t.precision, t.accelerator, cfg.backbone.dim),  # pyright: ignore
        accumulate_grad_batches=t.accumulate,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=10**9,  # EvaluationSchedule decides
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=logger,
        callbacks=own,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,  # callbacks.Progress knows the number of steps
        enable_model_summary=False,
        enable_checkpointing=True,
        default_root_dir=run.path,
    )


def flops_per_token(model: LanguageModel, data: DataModule) -> float:
    return model.flops_per_token(data.source.seq_len)


def fit(trainer: lightning.Trainer, cfg: DictConfig, data: DataModule, model: LanguageModel, resume: Path | None):
    """Train from a checkpoint, or from the start."""
    if device.resolve_compile(cfg.trainer.compile, cfg.trainer.accelerator):
        for block in model.backbone.blocks:
            block.compile()
    if resume is not None:
        load_checkpoint(resume)  # fails here, in one line, if it is damaged
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)


def fit_trunk(
    cfg: DictConfig, run: RunDirectory, data: DataModule, model: LanguageModel, steps: int, main: bool
) -> lightning.Trainer:
    """Evaluation at logarithmically spaced epochs, checkpoints that survive a kill, forks and snapshots."""
    t, evaluation = cfg.trainer, cfg.evaluation
    marks = callbacks.evaluation_steps(steps, data.steps_per_epoch, evaluation.per_octave, evaluation.first_epoch)
    ema = callbacks.Ema(cfg.optim.ema)
    snapshots = {
        max(1, round(epoch * data.steps_per_epoch)): run.snapshots / f"epoch-{epoch:g}.ckpt"
        for epoch in evaluation.snapshots
    }
    parts: list[lightning.Callback] = [
        callbacks.EvaluationSchedule(marks),
        ema,
        callbacks.KeepSnapshots(snapshots, ema),
        callbacks.RunLog(run, t.log_every, flops_per_token(model, data)),
    ]
    if evaluation.overfit_margin is not None:
        parts.append(callbacks.OverfitStop(evaluation.overfit_margin))
    parts.append(callbacks.KeepForks({branch.fork: branch.start for branch in branches(cfg, run, data)}))
    parts += [callbacks.KeepBest(run.best), callbacks.KeepLast(run.last, t.checkpoint_every, marks)]
    if t.progress:
        parts.append(callbacks.Progress())
    logger = tracking.wandb_logger(cfg, run, data.source.fingerprint) if cfg.logger.wandb and main else False
    trainer = build_trainer(cfg, run, data, steps, parts, logger)
    fit(trainer, cfg, data, model, run.last if run.last.is_file() else None)
    return trainer


def fit_branches(
    cfg: DictConfig, run: RunDirectory, data: DataModule, reached: int, logger: Any = None
) -> list[float]:
    """Cool down every branch that leaves the trunk within its `reached` steps; return the epochs they end at.

    Each finished one is a row of branches.jsonl: what a run that ends there has cost, and its held-out losses. A
    trunk that stopped because it over-fitted carries only the branches that leave it before.
    """
    done = {row["epoch"] for row in read_lines(run.branches)}
    due = [branch for branch in branches(cfg, run, data) if branch.fork <= reached]
    for branch in due:
        if branch.epoch not in done:
            fit_branch(cfg, run, data, branch, logger)
        branch.last.unlink(missing_ok=True)
    return [branch.epoch for branch in due]


def fit_branch(cfg: DictConfig, run: RunDirectory, data: DataModule, branch: Branch, logger: Any = None) -> None:
    """One branch, from its fork or from where it was interrupted."""
    cfg = OmegaConf.merge(cfg, {"optim": {"cooldown": cfg.branches.cooldown}})  # pyright: ignore
    model = build_model(cfg, data.source.fingerprint, branch.steps, data.source.layout)
    observe(model, data)
    ema = callbacks.Ema(cfg.optim.ema)
    parts = [
        callbacks.EvaluationSchedule([branch.steps]),
        ema,
        callbacks.KeepSnapshots({branch.steps: branch.weights}, ema),
        callbacks.BranchLog(run, flops_per_token(model, data), branch.epoch, logger),
        callbacks.KeepLast(branch.last, cfg.trainer.checkpoint_every, [branch.steps]),
    ]
    trainer = build_trainer(cfg, run, data, branch.steps, parts)
    fit(trainer, cfg, data, model, branch.last if branch.last.is_file() else branch.start)
