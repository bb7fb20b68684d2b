"""Tokens per second of training and of scoring: `python -m dlm.speed method=md4 backbone=char seq_len=256`.

The real training step (corruption noise, forward, backward, clipping, AdamW) on random tokens, without a Trainer.
Reports the median and the best of many short laps, because machines are shared and noisy.
"""

import json
import statistics
import sys
import time

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dlm import config, device
from dlm.build import build_model
from dlm.train import quiet

VOCABULARY = 97


def measure(cfg: DictConfig, seconds: float = 3.0) -> dict[str, float | str | int]:
    """Training and scoring rates of a configuration on this machine, in tokens per second of wall time."""
    device.check_accelerator(cfg.trainer.accelerator, cfg.trainer.devices)
    torch.set_num_threads(cfg.trainer.threads or torch.get_num_threads())
    config.check_positive(cfg)
    if OmegaConf.is_missing(cfg, "vocab_size"):
        cfg.vocab_size = VOCABULARY
    where = torch.device("cpu" if cfg.trainer.accelerator == "cpu" else "cuda")
    model = build_model(cfg, "speed", total_steps=1).to(where)
    if device.resolve_compile(cfg.trainer.compile, cfg.trainer.accelerator):
        for block in model.backbone.blocks:
            block.compile()
    optimizer = model.optim.optimizer(model)
    precision = device.resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator, cfg.backbone.dim)
    x0 = torch.randint(cfg.vocab_size, (cfg.batch_size, cfg.seq_len), device=where)
    batch = {"x0": x0, "target": torch.ones_like(x0, dtype=torch.bool), "step": 0, "size": cfg.batch_size}
    batch |= {"rows": list(range(cfg.batch_size)), "index": torch.arange(cfg.batch_size)}

    def autocast():
        return torch.autocast(where.type, torch.bfloat16, enabled=precision.startswith("bf16"))

    def train_step():
        with autocast():
            loss = model.training_step(batch, 0)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        batch["step"] += 1

    def score():
        with autocast(), torch.no_grad():
            draws = cfg.evaluation.draws
            scored = model.nll_draws(x0, batch["target"], batch["index"], draws)
        return scored.shape[1]

    def laps(work) -> tuple[float, float]:
        rounds = []
        work()
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds or len(rounds) < 5:
            start = time.perf_counter()
            rows = work() or 1
            if where.type == "cuda":
                torch.cuda.synchronize()
            rounds.append(x0.numel() * rows / (time.perf_counter() - start))
        return statistics.median(rounds), max(rounds)

    trained, best = laps(train_step)
    scored, _ = laps(score)
    return {
        "method": cfg.method["_target_"].rsplit(".", 1)[-1],
        "params": sum(p.numel() for p in model.parameters()),
        "conditioning": model.backbone.conditioning_parameters,
        "precision": precision,
        "tokens_per_second": round(trained),
        "best_tokens_per_second": round(best),
        "scored_tokens_per_second": round(scored),
        "flops_per_token": model.backbone.flops_per_token(cfg.seq_len) * model.network_passes,
        "hardware": device.describe(),
    }


def main() -> None:
    quiet()
    with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
        print(json.dumps(measure(compose("config", overrides=sys.argv[1:]))))


if __name__ == "__main__":
    config.entry(main)
