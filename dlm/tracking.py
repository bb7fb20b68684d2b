"""Curves and results in Weights & Biases, offline unless WANDB_MODE=online. Nothing else needs it."""

import os

from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from dlm import config
from dlm.errors import UserError
from dlm.run import RunDirectory

AXES = ("epoch", "tokens", "flops")


def wandb_logger(cfg: DictConfig, run: RunDirectory) -> WandbLogger:
    """One W&B run per run directory, grouped by study and scale; curves against epoch, tokens or FLOPs."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(name, str(run.path))
    import wandb  # an import of seconds, for runs that want it

    if cfg.logger.mode not in ("offline", "online", "disabled"):
        raise UserError(f"logger.mode (WANDB_MODE) is offline, online or disabled, not {cfg.logger.mode!r}")
    try:
        experiment = wandb.init(
            project=cfg.logger.project,
            name=run.path.name,
            id=run.path.name,
            dir=run.path,
            group=f"{cfg.study}/{cfg.scale}",
            job_type=cfg.arm or cfg.method["_target_"].rsplit(".", 1)[-1],
            tags=[str(tag) for tag in (cfg.cell, cfg.arm) if tag],
            mode=cfg.logger.mode,
            resume="allow",
            config=config.resolved(cfg),
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
    except wandb.Error as error:
        raise UserError(f"W&B refused (WANDB_MODE={cfg.logger.mode}): {' '.join(str(error).split())}") from error
    for axis in AXES:
        experiment.define_metric(axis, hidden=True)
    for metrics in ("train/*", "tune/*", "report/*", "w/*"):
        experiment.define_metric(metrics, step_metric="epoch")
    return WandbLogger(experiment=experiment)
