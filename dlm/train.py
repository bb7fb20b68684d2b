"""One run: compose, fit, evaluate, write its record. Interrupted, it continues; finished, it is skipped.

python -m dlm.train method=md4 data=pydoc data.unique_tokens=8192 epochs=100
python -m dlm.train -m method=arm,md4,shuffle seed=0,1            (a sweep)
"""

import logging
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

from dlm import callbacks, config, device, evaluate
from dlm.backbone import LOOKED_UP
from dlm.build import build_data, build_model, observe
from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.files import read_json, write_atomically, write_json
from dlm.fit import branches, fit_branches, fit_trunk, plan_steps
from dlm.lm import LanguageModel
from dlm.run import RunDirectory, load_checkpoint
from dlm.version import code_version


def find(trainer: lightning.Trainer, kind: type) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # pyright: ignore


def make_record(
    cfg: DictConfig, run: RunDirectory, data: DataModule, model: LanguageModel, trainer: lightning.Trainer
) -> dict[str, Any]:
    """Everything a report needs to know about a finished run."""
    log, best = find(trainer, callbacks.RunLog), find(trainer, callbacks.KeepBest)
    stop = find(trainer, callbacks.OverfitStop)
    axes = log.axes(trainer)
    backbone, length = model.backbone, data.source.seq_len
    full = model.flops_per_token(length, causal=False) / model.flops_per_token(length)
    embedding = sum(p.numel() for n, p in backbone.named_parameters() if n.startswith((*LOOKED_UP, "head")))
    params = sum(p.numel() for p in model.parameters())
    return {
        "run": run.path.name,
        "study": cfg.study,
        "scale": cfg.scale,
        "cell": cfg.cell,
        "arm": cfg.arm,
        "method": cfg.method["_target_"].rsplit(".", 1)[-1],
        "seed": cfg.seed,
        "unique_tokens": data.source.size("train"),
        "params": params,
        "params_non_embedding": params - embedding,
        "params_conditioning": backbone.conditioning_parameters,
        "steps": axes["step"],
        "epochs": axes["epoch"],
        "tokens": axes["tokens"],
        "targets": axes["targets"],
        "flops": axes["flops"],
        "flops_full_attention": axes["flops"] * full,  # as if no attention were causal
        "seconds": axes["seconds"],
        "evaluation_seconds": round(log.evaluation_seconds, 3),
        "tokens_per_second": round(axes["tokens"] / max(axes["seconds"], 1e-9), 1),
        "bound_kind": model.bound_kind,
        "stopped": stop.reason if stop else None,
        "best": {"step": best.step, "epoch": best.epoch, "tune_nll": best.loss},
        "precision": str(trainer.precision),
        "dropout": cfg.backbone.dropout,
        "weight_decay": cfg.optim.weight_decay,
        "optim": config.resolved(cfg.optim),
        "code": code_version(),
        "data": {"fingerprint": data.source.fingerprint, "audit": data.source.audit},
        "passages": {
            split: data.window_passages(split, cfg.evaluation.windows).tolist() for split in data.split_names
        },
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
    config.check_branches(cfg)
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    data = build_data(cfg)
    plain = config.resolved(cfg)
    run = RunDirectory(config.run_path(cfg))
    if run.finished:
        print(f"already finished: {run.path}")
        return run.path
    steps = plan_steps(cfg, data)
    branches(cfg, run, data)
    model = build_model(cfg, data.source.fingerprint, steps, data.source.layout)
    observe(model, data)
    if not is_main_process():
        trainer = fit_trunk(cfg, run, data, model, steps, main=False)
        fit_branches(cfg, run, data, trainer.global_step)
        return run.path
    run.create()
    with run.locked():
        if run.finished:  # by another process, while this one waited for its turn
            return run.path
        check_code(run)
        write_atomically(run.config, yaml.safe_dump(plain, sort_keys=False).encode())
        print(f"{'resuming' if run.last.is_file() else 'training'} {run.path} ({steps} steps)", flush=True)
        trainer = fit_trunk(cfg, run, data, model, steps, main=True)
        cooled = fit_branches(cfg, run, data, trainer.global_step, trainer.logger)
        for logger in trainer.loggers:  # a sweep's next run in this process must not continue this one
            logger.experiment.finish()  # pyright: ignore[reportAttributeAccessIssue]
        record = make_record(cfg, run, data, model, trainer) | {"branches": cooled, "snapshots": run.checkpoints}
        model.load_state_dict(load_checkpoint(run.best)["state_dict"])
        model.to(trainer.strategy.root_device)  # Lightning leaves a fitted model on the CPU
        started = time.perf_counter()
        record |= evaluate.measure(model, data, evaluate.Settings.of(cfg.evaluation))
        record["final_evaluation_seconds"] = round(time.perf_counter() - started, 3)
        write_json(run.record, record)
        run.last.unlink(missing_ok=True)
        shutil.rmtree(run.forks, ignore_errors=True)
    headline = record["likelihood"]["bound"]
    print(
        f"finished {run.path.name}: {headline['nats_per_token']:.4f} ± {headline['se']:.4f} nats per token "
        f"({headline['kind']}), {headline['bits_per_char']:.3f} bits per character, "
        f"best epoch {record['best']['epoch']:g}",
        flush=True,
    )
    return run.path


def check_code(run: RunDirectory) -> None:
    """Note which code trains a run. Raises UserError for one that other code began: its numbers would mix both."""
    here = code_version()
    if run.last.is_file() and run.begun.is_file() and (begun := read_json(run.begun).get("code")) != here:
        raise UserError(f"{run.path} was begun by code {begun}, this is {here}: delete it to train it anew")
    write_json(run.begun, {"code": here})


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
