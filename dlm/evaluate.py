"""Likelihoods of a finished run, with error bars: `python -m dlm.evaluate run=DIR draws=64`.

Every number names its kind: "exact", or the bound it is. Scores are on the report split unless another is asked
for, at the checkpoint with the lowest loss on the tune split.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dlm import config
from dlm.build import build_data, build_model
from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.files import write_json
from dlm.lm import LanguageModel
from dlm.metrics import Score, WindowNLL
from dlm.run import RunDirectory, load_checkpoint


@dataclass
class Settings:
    """How finely a finished run is scored."""

    split: str = "report"
    windows: int | None = None  # null: every window of the split
    draws: int = 32
    left_to_right_windows: int | None = 64  # each costs one row per token
    batch_size: int = 16
    samples: int = 4
    sample_steps: int = 64

    @classmethod
    def of(cls, evaluation: Any) -> "Settings":
        return cls(
            windows=evaluation.final_windows,
            draws=evaluation.final_draws,
            left_to_right_windows=evaluation.left_to_right_windows,
            batch_size=evaluation.batch_size,
            samples=evaluation.samples,
            sample_steps=evaluation.sample_steps,
        )


@torch.no_grad()
def score(
    model: LanguageModel, data: DataModule, nll_draws: Any, split: str, windows: int | None, draws: int, batch: int
) -> Score:
    """Score windows of a split by any function of `LanguageModel.nll_draws`' signature."""
    numbers, x0 = torch.from_numpy(data.window_numbers(split, windows)), data.windows(split, windows)
    if len(x0) == 0:
        raise UserError(f"the {split} split of the data holds no window of {data.source.seq_len} tokens")
    metric = WindowNLL(sync_on_compute=False)  # one process scores every window; the others may have ended
    for index, rows in zip(numbers.split(batch), x0.to(model.device).split(batch), strict=True):
        target = torch.ones_like(rows, dtype=torch.bool)
        metric.update(nll_draws(rows, target, index, draws), target.sum(1), index)
    return metric.compute()


def measure(model: LanguageModel, data: DataModule, settings: Settings) -> dict[str, Any]:
    """The likelihood block and the samples of a record; in fp32, whatever precision the run trained in."""
    model.eval()
    per_char = data.source.chars_per_token(settings.split)

    def block(nll_draws: Any, kind: str, windows: int | None, draws: int) -> dict[str, Any]:
        s = score(model, data, nll_draws, settings.split, windows, draws, settings.batch_size)
        bits, bits_se = s.bits_per_char(per_char)
        return {
            "kind": kind if kind.startswith("exact") else f"bound ({kind})",
            "split": settings.split,
            "nats_per_token": s.nll,
            "se": s.se,
            "se_draws": s.se_draws,
            "bits_per_char": bits,
            "se_bits": bits_se,
            "windows": s.windows,
            "draws": draws if kind != "exact" else 1,
        }

    likelihood: dict[str, Any] = {
        "bound": block(model.nll_draws, model.bound_kind, settings.windows, settings.draws),
        "left_to_right": None,
        "extra": {},
    }
    if model.left_to_right_draws is not None:
        windows = settings.left_to_right_windows
        likelihood["left_to_right"] = block(model.left_to_right_draws, "exact", windows, 1)
        # the bound on the very same windows, so that the two can be compared
        likelihood["bound_same_windows"] = block(model.nll_draws, model.bound_kind, windows, settings.draws)
    for kind, nll_draws in model.other_bounds().items():
        likelihood["extra"][kind] = block(nll_draws, kind, settings.windows, settings.draws)
    return {"likelihood": likelihood, "samples": draw_samples(model, data, settings)}


def draw_samples(model: LanguageModel, data: DataModule, settings: Settings) -> list[str]:
    """Unconditional samples by the model's default sampler, from a fixed seed."""
    if settings.samples == 0:
        return []
    given = torch.zeros(settings.samples, data.source.seq_len, dtype=torch.long, device=model.device)
    options: dict[str, Any] = {} if "autoregressive" in model.samplers else {"steps": settings.sample_steps}
    sample = model.sample(
        given, torch.ones_like(given, dtype=torch.bool), torch.Generator().manual_seed(0), **options
    )
    return [data.source.decode(row) for row in sample.x.tolist()]


def load_run(path: Path, checkpoint: str = "best") -> tuple[LanguageModel, DataModule, RunDirectory]:
    """A trained model with its data, from its run directory.

    Raises:
        UserError: if the directory, its checkpoint, vocabulary or corpus is not what the run was trained with.
    """
    run = RunDirectory(path)
    cfg = OmegaConf.merge(OmegaConf.structured(config.RunConfig), run.read_config())
    saved_vocabulary = run.read_config()["vocab_size"]
    data = build_data(cfg)  # pyright: ignore[reportArgumentType]
    if data.source.vocab_size != saved_vocabulary:
        raise UserError(
            f"{path} was trained with {saved_vocabulary} symbols, its data now has {data.source.vocab_size}"
        )
    model = build_model(cfg, data.source.fingerprint, total_steps=1)  # pyright: ignore[reportArgumentType]
    content = load_checkpoint(path / f"{checkpoint}.ckpt")
    model.on_load_checkpoint(content)
    try:
        model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path / checkpoint}.ckpt does not fit the run's configuration: {reason}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device), data, run


@dataclass
class Command(Settings):
    """The command line of this module."""

    run: str = ""
    checkpoint: str = "best"
    samples: int = 0


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    if not command.run:
        raise UserError("which run? python -m dlm.evaluate run=outputs/<study>/<scale>/runs/<run>")
    sizes = ("windows", "draws", "left_to_right_windows", "batch_size", "sample_steps")
    config.check_positive(OmegaConf.structured(command), sizes)
    if command.split not in DataModule.split_names:
        raise UserError(f"split is one of {', '.join(DataModule.split_names)}, not {command.split!r}")
    model, data, run = load_run(Path(command.run), command.checkpoint)
    result = measure(model, data, command)
    write_json(run.path / f"likelihood-{command.split}-{command.checkpoint}.json", result["likelihood"])
    rows = [
        result["likelihood"]["bound"],
        result["likelihood"]["left_to_right"],
        *result["likelihood"]["extra"].values(),
    ]
    for row in filter(None, rows):
        print(
            f"{row['nats_per_token']:.4f} ± {row['se']:.4f} nats per token, {row['bits_per_char']:.4f} ± "
            f"{row['se_bits']:.4f} bits per character   {row['kind']}, "
            f"{row['windows']} windows x {row['draws']} draws"
        )


if __name__ == "__main__":
    config.entry(main)
