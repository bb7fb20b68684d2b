"""One run: compose, fit, evaluate, write its record. Interrupted, it continues; finished, it is skipped.

python -m dlm.train method=md4 data=pydoc data.unique_tokens=8192 epochs=100
python -m dlm.train -m method=arm,md4,shuffle seed=0,1            (a sweep)
"""

import logging
import math
import os
import platform
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dlm import callbacks, config, device, evaluate, tracking
from dlm.build import build_data, build_model, observe
from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.files import write_atomically, write_json
from dlm.lm import LanguageModel
from dlm.run import AtomicCheckpointIO, RunDirectory, load_checkpoint


def build_trainer(
    cfg: DictConfig, run: RunDirectory, model: LanguageModel, data: DataModule, steps: int
) -> lightning.Trainer:
    """Lightning's Trainer: evaluation at logarithmically spaced epochs, checkpoints that survive a kill."""
    t, evaluation = cfg.trainer, cfg.evaluation
    marks = callbacks.evaluation_steps(steps, data.steps_per_epoch, evaluation.per_octave, evaluation.first_epoch)
    flops = model.backbone.flops_per_token(data.source.seq_len) * model.network_passes
    parts: list[lightning.Callback] = [callbacks.EvaluationSchedule(marks), callbacks.Ema(cfg.optim.ema)]
    parts.append(callbacks.RunLog(run, t.log_every, flops))
    if evaluation.overfit_margin is not None:
        parts.append(callbacks.OverfitStop(evaluation.overfit_margin))
    parts += [callbacks.KeepBest(run.best), callbacks.KeepLast(run.last, t.checkpoint_every, marks)]
    if t.progress:
        parts.append(callbacks.Progress())
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
        logger=tracking.wandb_logger(cfg, run) if cfg.logger.wandb and is_main_process() else False,
        callbacks=parts,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,  # callbacks.Progress knows the number of steps
        enable_model_summary=False,
        enable_checkpointing=True,
        default_root_dir=run.path,
    )


def plan_steps(cfg: DictConfig, data: DataModule) -> int:
    """How many optimiser steps the configured epochs (or steps) are."""
    steps = cfg.steps if cfg.steps is not None else math.ceil(cfg.epochs * data.steps_per_epoch)
    if steps < 1:
        raise UserError(f"epochs={cfg.epochs}, steps={cfg.steps} leave nothing to train")
    return steps


def fit(
    cfg: DictConfig, run: RunDirectory, data: DataModule, model: LanguageModel, steps: int
) -> lightning.Trainer:
    """Train from the last checkpoint if there is one, else from the start."""
    trainer = build_trainer(cfg, run, model, data, steps)
    if device.resolve_compile(cfg.trainer.compile, cfg.trainer.accelerator):
        for block in model.backbone.blocks:
            block.compile()
    resume = run.last if run.last.is_file() else None
    if resume is not None:
        load_checkpoint(resume)  # fails here, in one line, if it is damaged
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


def find(trainer: lightning.Trainer, kind: type) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # pyright: ignore


def make_record(
    cfg: DictConfig, run: RunDirectory, data: DataModule, model: LanguageModel, trainer: lightning.Trainer
) -> dict[str, Any]:
    """Everything a report needs to know about a finished run."""
    log, best = find(trainer, callbacks.RunLog), find(trainer, callbacks.KeepBest)
    stop = find(trainer, callbacks.OverfitStop)
    axes = log.axes(trainer)
    backbone = model.backbone
    embedding = sum(p.numel() for n, p in backbone.named_parameters() if n.startswith(("embed", "head")))
    params = sum(p.numel() for p in model.parameters())
    return {
        "run": run.path.name,
        "study": cfg.study,
        "scale": cfg.scale,
        "cell": cfg.cell,
        "arm": cfg.arm,
        "method": cfg.method["_target_"].rsplit(".", 1)[-1],
        "seed": cfg.seed,
        "unique_tokens": len(data.source.tokens("train")),
        "params": params,
        "params_non_embedding": params - embedding,
        "params_conditioning": backbone.conditioning_parameters,
        "steps": axes["step"],
        "epochs": axes["epoch"],
        "tokens": axes["tokens"],
        "targets": axes["targets"],
        "flops": axes["flops"],
        "seconds": axes["seconds"],
        "evaluation_seconds": round(log.evaluation_seconds, 3),
        "tokens_per_second": round(axes["tokens"] / max(axes["seconds"], 1e-9), 1),
        "bound_kind": model.bound_kind,
        "stopped": stop.reason if stop else None,
        "best": {"step": best.step, "epoch": best.epoch, "tune_nll": best.loss},
        "precision": str(trainer.precision),
        "dropout": cfg.backbone.dropout,
        "weight_decay": cfg.optim.weight_decay,
        "data": {"fingerprint": data.source.fingerprint, "audit": data.source.audit},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
        "hardware": device.describe(),
        "command": " ".join(["python -m dlm.train", *(a for a in sys.argv[1:] if not a.startswith("hydra"))]),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def train(cfg: DictConfig) -> Path:
    """Do what is still missing of one run; return its directory.

    Raises:
        UserError: for anything its reader can mend, before a finished result is touched.
    """
    quiet()
    torch.set_float32_matmul_precision("high")
    device.check_accelerator(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes)
    device.check_strategy(cfg.trainer.strategy)
    config.check_positive(cfg)
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    data = build_data(cfg)
    plain = config.resolved(cfg)
    run = RunDirectory(config.run_path(cfg))
    if run.finished:
        print(f"already finished: {run.path}")
        return run.path
    steps = plan_steps(cfg, data)
    model = build_model(cfg, data.source.fingerprint, steps)
    observe(model, data)
    if not is_main_process():
        fit(cfg, run, data, model, steps)
        return run.path
    run.create()
    with run.locked():
        if run.finished:  # by another process, while this one waited for its turn
            return run.path
        write_atomically(run.config, yaml.safe_dump(plain, sort_keys=False).encode())
        print(f"{'resuming' if run.last.is_file() else 'training'} {run.path} ({steps} steps)", flush=True)
        trainer = fit(cfg, run, data, model, steps)
        for logger in trainer.loggers:  # a sweep's next run in this process must not continue this one
            logger.experiment.finish()  # pyright: ignore[reportAttributeAccessIssue]
        record = make_record(cfg, run, data, model, trainer)
        model.load_state_dict(load_checkpoint(run.best)["state_dict"])
        model.to(trainer.strategy.root_device)  # Lightning leaves a fitted model on the CPU
        started = time.perf_counter()
        record |= evaluate.measure(model, data, evaluate.Settings.of(cfg.evaluation))
        record["final_evaluation_seconds"] = round(time.perf_counter() - started, 3)
        write_json(run.record, record)
        run.last.unlink(missing_ok=True)
    headline = record["likelihood"]["bound"]
    print(
        f"finished {run.path.name}: {headline['nats_per_token']:.4f} ± {headline['se']:.4f} nats per token "
        f"({headline['kind']}), {headline['bits_per_char']:.3f} bits per character, "
        f"best epoch {record['best']['epoch']:g}",
        flush=True,
    )
    return run.path


def is_main_process() -> bool:
    """Whether this process writes the run's files: rank 0, whoever started the ranks."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def quiet() -> None:
    """Silence what libraries say to their developers; errors still speak."""
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


@hydra.main(version_base="1.3", config_path=str(config.bundled("conf")), config_name="config")
def sweep(cfg: DictConfig) -> None:
    train(cfg)


def main() -> None:
    """Hydra's command line for sweeps (-m) and its other flags; a single run is composed directly."""
    if "trainer=cluster" in sys.argv and shutil.which("srun") is None:
        raise UserError("trainer=cluster submits to SLURM, but there is no srun on this machine")
    if any(argument.startswith("-") for argument in sys.argv[1:]):
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let mistakes reach `entry`, which says them in one line
        sweep()
        return
    with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
        cfg = compose("config", overrides=sys.argv[1:])
    train(cfg)


if __name__ == "__main__":
    config.entry(main)
