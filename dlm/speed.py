"""Tokens per second of training and of scoring, and how much of the machine that is.

    python -m dlm.speed method=md4 backbone=char seq_len=256
    python -m dlm.speed method=md4 trainer=gpu backbone=small seq_len=512 batch_size=64 --profile

The real training step (corruption noise, forward, backward, clipping, AdamW) on random tokens, without a Trainer.
Reports the median and the best of many short laps, because machines are shared and noisy. The last line is JSON;
`--profile` prints before it where the time of a training step goes.

Model FLOPs utilisation (Chowdhery et al. 2022) is the training step's own floating-point operations, forward and
backward, counted by the network's shapes, per second, over the best rate of square matrix products in the same
precision, measured in this process a moment before. Nothing recomputed or wasted counts as work.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch.profiler import ProfilerActivity, profile

from dlm import config, device
from dlm.build import build_model, outline
from dlm.lm import LanguageModel
from dlm.train import quiet

VOCABULARY = 97
SIZES = {"cpu": (256, 512, 1024), "cuda": (2048, 4096, 8192)}  # of the products that the peak is looked for in
PEAK_SECONDS = 0.15  # per size
PROFILED_STEPS = 3


class Bench:
    """A model of this configuration on random tokens.

    Raises:
        UserError: for a device that is not there, or a configuration that makes no model.
    """

    def __init__(self, cfg: DictConfig):
        device.check_accelerator(cfg.trainer.accelerator, cfg.trainer.devices)
        torch.set_num_threads(cfg.trainer.threads or torch.get_num_threads())
        torch.set_float32_matmul_precision("high")  # as in training
        config.check_positive(cfg)
        size, layout = outline(cfg)
        if OmegaConf.is_missing(cfg, "vocab_size"):
            cfg.vocab_size = size or VOCABULARY
        self.cfg = cfg
        self.where = torch.device("cpu" if cfg.trainer.accelerator == "cpu" else "cuda")
        self.model: LanguageModel = build_model(cfg, "speed", 1, layout).to(self.where)
        if device.resolve_compile(cfg.trainer.compile, cfg.trainer.accelerator):
            for block in self.model.backbone.blocks:
                block.compile()
        self.optimizer = self.model.optim.optimizer(self.model)
        self.precision = device.resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator, cfg.backbone.dim)
        self.x0 = torch.randint(cfg.vocab_size, (cfg.batch_size, cfg.seq_len), device=self.where)
        self.batch: dict[str, Any] = {"x0": self.x0, "target": torch.ones_like(self.x0, dtype=torch.bool)}
        self.batch |= {"step": 0, "size": cfg.batch_size, "rows": list(range(cfg.batch_size))}
        self.index = torch.arange(cfg.batch_size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision.startswith("bf16") else torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.where.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def train_step(self) -> int:
        """One step of training; the passes over the batch that it is counted as."""
        with self.autocast():
            loss = self.model.training_step(self.batch, 0)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.batch["step"] += 1
        return 1

    def score(self) -> int:
        """One scoring of the batch; its draws."""
        with self.autocast(), torch.no_grad():
            scored = self.model.nll_draws(self.x0, self.batch["target"], self.index, self.cfg.evaluation.draws)
        return scored.shape[1]

    def rates(self, work: Callable[[], int], seconds: float) -> list[float]:
        """Tokens per second of each lap."""
        work()
        return [self.x0.numel() * passes / lap for lap, passes in laps(work, self.where, seconds)]

    def profiled(self) -> str:
        """The operators that most of a training step's time goes to, as a table."""
        on_gpu = self.where.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self.train_step()
        with profile(activities=activities) as found:
            for _ in range(PROFILED_STEPS):
                self.train_step()
            synchronise(self.where)
        by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        return found.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=60)


def synchronise(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize()


def laps(work: Callable[[], int], where: torch.device, seconds: float) -> list[tuple[float, int]]:
    """The duration and the result of each repetition, at least five of them."""
    found: list[tuple[float, int]] = []
    synchronise(where)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(found) < 5:
        start = time.perf_counter()
        result = work()
        synchronise(where)
        found.append((time.perf_counter() - start, result))
    return found


def matmul_peak(where: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several square matrix products: what this device is found to do at most."""
    best = 0.0
    for size in SIZES[where.type]:
        a, b = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)

        def product(a=a, b=b, out=out) -> int:
            torch.mm(a, b, out=out)
            return 0

        product()
        best = max(best, 2 * size**3 / min(lap for lap, _ in laps(product, where, PEAK_SECONDS)))
    return best


def measure(bench: Bench, seconds: float = 3.0) -> dict[str, Any]:
    """Training and scoring rates of a configuration on this machine, in tokens per second of wall time."""
    model, length = bench.model, bench.cfg.seq_len
    peak = matmul_peak(bench.where, bench.dtype)
    trained = bench.rates(bench.train_step, seconds)
    model.eval()
    scored = bench.rates(bench.score, seconds)
    model.train()
    flops = model.flops_per_token(length)
    rate = statistics.median(trained)
    return {
        "method": bench.cfg.method["_target_"].rsplit(".", 1)[-1],
        "params": sum(p.numel() for p in model.parameters()),
        "conditioning": model.backbone.conditioning_parameters,
        "precision": bench.precision,
        "tokens_per_second": round(rate),
        "best_tokens_per_second": round(max(trained)),
        "scored_tokens_per_second": round(statistics.median(scored)),
        "flops_per_token": flops,
        "flops_per_token_full_attention": model.flops_per_token(length, causal=False),
        "flops_per_second": round(flops * rate),
        "peak_flops_per_second": round(peak),
        "model_flops_utilisation": round(flops * rate / peak, 4),
        "hardware": device.describe(),
    }


def main() -> None:
    quiet()
    overrides = [argument for argument in sys.argv[1:] if argument != "--profile"]
    with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
        bench = Bench(compose("config", overrides=overrides))
    result = measure(bench)
    if "--profile" in sys.argv[1:]:
        print(bench.profiled())
    print(json.dumps(result))


if __name__ == "__main__":
    config.entry(main)
