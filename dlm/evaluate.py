"""Likelihoods of a finished run, with error bars.

    python -m dlm.evaluate run=DIR draws=64                                  the block of the run's record, anew
    python -m dlm.evaluate run=DIR likelihood=bound precision=0.005          draws until it is that precise
    python -m dlm.evaluate run=DIR likelihood=left_to_right,margin,mixture orders=16 windows=64
    python -m dlm.evaluate run=DIR likelihood=steps steps=256 grid=cosine calibrate=true
    python -m dlm.evaluate run=DIR likelihood=permuted closeness=closer permutation_seed=1
    torchrun --nproc-per-node 2 -m dlm.evaluate run=DIR likelihood=all       on several processes

Every number names its kind: "exact", or the bound it is; dlm/likelihood/kinds.py says what each name means.
Scores are on the report split unless another is asked for, at the checkpoint with the lowest loss on the tune
split.  Results grow in `DIR/likelihoods`, so that a killed evaluation continues where it was.
"""

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from dlm import config
from dlm.augment import CLOSENESS, Permutation
from dlm.build import build_data, build_model
from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.files import write_json
from dlm.likelihood import EXACT, Kind
from dlm.lm import LanguageModel
from dlm.metrics import Score
from dlm.run import RunDirectory, load_checkpoint
from dlm.scoring import Scorer, content_hash, joined, rows


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


def score(
    model: LanguageModel, data: DataModule, kind: Kind, split: str, windows: int | None, draws: int, batch: int
) -> Score:
    """One likelihood of windows of a split, kept nowhere. Raises UserError if the split has none."""
    return Scorer(model, data, batch, windows).estimate(kind, draws, split).score


def measure(model: LanguageModel, data: DataModule, settings: Settings) -> dict[str, Any]:
    """The likelihood block and the samples of a record; in fp32, whatever precision the run trained in."""
    model.eval()
    per_char = data.source.chars_per_token(settings.split)

    def block(kind: Kind, windows: int | None, draws: int) -> dict[str, Any]:
        s = score(model, data, kind, settings.split, windows, draws, settings.batch_size)
        return rows.row(kind, s, per_char, settings.split, draws)

    kinds, headline = model.likelihoods(), model.headline
    likelihood: dict[str, Any] = {
        "bound": block(headline, settings.windows, settings.draws),
        "left_to_right": None,
        "extra": {},
    }
    if "left_to_right" in kinds and headline.bound != EXACT:
        windows = settings.left_to_right_windows
        likelihood["left_to_right"] = block(kinds["left_to_right"], windows, 1)
        # the bound on the very same windows, so that the two can be compared
        likelihood["bound_same_windows"] = block(headline, windows, settings.draws)
    for name in model.also_reported:
        if name in kinds:
            likelihood["extra"][kinds[name].bound] = block(kinds[name], settings.windows, settings.draws)
    return {"likelihood": likelihood, "samples": draw_samples(model, data, settings)}


def draw_samples(model: LanguageModel, data: DataModule, settings: Settings) -> list[str]:
    """Samples by the model's default sampler, from a fixed seed: of whatever the data do not give."""
    if settings.samples == 0:
        return []
    numbers = np.arange(settings.samples) % max(1, len(data.window_numbers(settings.split)))
    x0, free = (tensor.to(model.device) for tensor in data.examples(settings.split, numbers))
    options: dict[str, Any] = {} if "autoregressive" in model.samplers else {"steps": settings.sample_steps}
    sample = model.sample(torch.where(free, 0, x0), free, torch.Generator().manual_seed(0), **options)
    return [data.source.decode(row) for row in sample.x.tolist()]


def load_run(path: Path, checkpoint: str = "best") -> tuple[LanguageModel, DataModule, RunDirectory]:
    """A trained model with its data, from its run directory.

    Raises:
        UserError: if the directory, its checkpoint, vocabulary or corpus is not what the run was trained with.
    """
    run = RunDirectory(path)
    cfg, data = load_data(run)
    return load_model(run, cfg, data, checkpoint), data, run


def load_data(run: RunDirectory, changes: dict[str, Any] | None = None) -> tuple[DictConfig, DataModule]:
    """A run's configuration and data, some settings of the data changed.

    Raises:
        UserError: for a setting that its data do not have, or another vocabulary than it was trained with.
    """
    saved = run.read_config()
    for key in changes or {}:
        if key not in saved["data"]:
            raise UserError(f"the data of {run.path} ({saved['data'].get('_target_')}) have no setting {key!r}")
    cfg: Any = OmegaConf.merge(OmegaConf.structured(config.RunConfig), saved, {"data": changes or {}})
    data = build_data(cfg)
    if data.source.vocab_size != saved["vocab_size"]:
        raise UserError(
            f"{run.path} was trained with {saved['vocab_size']} symbols, its data now has {data.source.vocab_size}"
        )
    return cfg, data


def load_model(run: RunDirectory, cfg: DictConfig, data: DataModule, checkpoint: str = "best") -> LanguageModel:
    """The model of a run with the weights of a checkpoint, in evaluation mode and on the GPU if there is one.

    Raises:
        UserError: if the checkpoint is missing, damaged, or of another configuration or corpus.
    """
    model = build_model(cfg, data.source.fingerprint, 1, data.source.layout)
    file = run.checkpoint(checkpoint)
    content = load_checkpoint(file)
    model.on_load_checkpoint(content)
    try:
        model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} does not fit the run's configuration: {reason}") from error
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device)


@dataclass
class Command:
    """The command line of this module; null is left to the meaning that the comment gives."""

    run: str = ""
    checkpoint: str = "best"  # or a snapshot: epoch-32, cooled-96
    split: str = "report"
    windows: int | None = None  # every window of the split
    draws: int | None = None  # per window: 32, or 8 in each round with `precision`
    left_to_right_windows: int | None = 64  # of the record's block; each costs one row per token
    batch_size: int = 16
    likelihood: str | None = None  # names of dlm/likelihood/kinds.py, or bound, or all; null: the record's block
    steps: int | None = None  # of likelihood=steps
    grid: str | None = None  # of likelihood=steps: uniform or cosine
    closeness: str | None = None  # of likelihood=permuted: identity, much_closer, closer, uniform
    permutation_seed: int | None = None  # of likelihood=permuted: 0
    orders: int | None = None  # of random_order, mixture, order_variance: 8
    precision: float | None = None  # nats per token of Monte-Carlo error to draw down to
    max_draws: int | None = None  # per window, with `precision`: 4096
    calibrate: bool = False  # by one temperature, found on the tune split


def chosen(model: LanguageModel, command: Command) -> dict[str, Kind]:
    """The likelihoods asked for, by name; by default the one that the model is reported by.

    Raises:
        UserError: for one that the model does not have, or an option that none of them takes.
    """
    has = model.likelihoods(command.steps, command.grid, permutation(command))
    headline = next(iter(has))
    everything = ",".join(has)
    wanted = everything if command.likelihood == "all" else command.likelihood or headline
    asked = [name.strip() for name in wanted.split(",")]
    if has[headline].bound != EXACT:  # an autoregressive model has no bound
        asked = [headline if name == "bound" else name for name in asked]
    for name in asked:
        if name == "permuted" and name not in has and has.keys() >= {"left_to_right", "exact_count"}:
            raise UserError(f"likelihood=permuted: give the order, closeness={'|'.join(CLOSENESS)}")
        if name not in has:
            raise UserError(f"likelihood={name}: this {type(model).__name__} has {', '.join(has)}, no {name!r}")
    kinds = {name: has[name] for name in asked}
    check_calibration(model, command)
    check_options(kinds, command)
    return kinds


def permutation(command: Command) -> Permutation | None:
    """The fixed order asked for. Raises UserError for a seed without a closeness."""
    if command.closeness is not None:
        return Permutation(command.closeness, command.permutation_seed or 0)
    if command.permutation_seed is not None:
        raise UserError(f"permutation_seed={command.permutation_seed} belongs to closeness, which is not given")
    return None


def check_calibration(model: LanguageModel, command: Command) -> None:
    """Raises UserError for a network whose logits are no law of a token: ratios that nothing normalises."""
    process = getattr(model, "process", None)
    if command.calibrate and process is not None and process.predicts == "score" and not process.mask_predictor:
        raise UserError("calibrate=true divides logits by a temperature; this network's are ratios, not a law")


def check_options(kinds: dict[str, Kind], command: Command) -> None:
    """Raises UserError for an option that none of these likelihoods takes; with `all`, each takes its own."""
    names, counts = ", ".join(kinds), {kind.count for kind in kinds.values()}
    for option, fits, where in (
        ("steps", "steps" in kinds, "likelihood=steps"),
        ("grid", "steps" in kinds, "likelihood=steps"),
        ("closeness", "permuted" in kinds, "likelihood=permuted"),
        ("orders", "orders" in counts, "likelihood=random_order, mixture or order_variance"),
        ("draws", "draws" in counts, "a likelihood that is drawn"),
    ):
        if getattr(command, option) is not None and not fits:
            raise UserError(f"{option}={getattr(command, option)} belongs to {where}, which is not asked for")
    likelihoods = [kind for kind in kinds.values() if kind.per_token]
    for option in ("precision", "calibrate"):
        if getattr(command, option) and not likelihoods:
            raise UserError(f"{option} is about likelihoods, and {names} is none")
    if command.precision and all(kind.bound == EXACT for kind in likelihoods):
        raise UserError(f"precision={command.precision}: {names} is exact, there is nothing to draw")


def score_chosen(scorer: Scorer, kinds: dict[str, Kind], command: Command) -> None:
    """Score each kind; the first process prints a line and writes a JSON file as soon as it is done."""
    per_char = scorer.data.source.chars_per_token(command.split)
    tuning = {"draws": command.draws or 32, "orders": command.orders or 8, "one": 1}
    per_round = tuning | {"draws": command.draws or (8 if command.precision else 32)}
    for name, kind in kinds.items():
        n = per_round[kind.count]
        temperatures = [1.0]
        if command.calibrate and kind.per_token:
            temperatures.append(scorer.temperature(kind, tuning[kind.count]))
        results = []
        for temperature in temperatures:
            if command.precision and kind.per_token and kind.bound != EXACT:
                most = command.max_draws or 4096
                found = scorer.precise(kind, n, command.split, temperature, command.precision, most)
            else:
                found = scorer.estimate(kind, n, command.split, temperature)
            result = rows.full_row(name, kind, found, per_char, command.split)
            results.append(result | {"checkpoint": command.checkpoint, "temperature": temperature})
        result = results[-1]
        if len(results) > 1:
            result["uncalibrated"] = results[0]
            result["tune"] = [scorer.estimate(kind, tuning[kind.count], "tune", t).score.nll for t in temperatures]
        if scorer.ranks.first:
            for line in rows.lines(results, command.precision):
                print(line, flush=True)
            settings = "".join(f"-{value}" for value in kind.settings.values())
            settings += f"-{n}" if kind.count == "orders" else ""
            file = f"{name}{settings}-{command.split}-{command.checkpoint}.json"
            write_json(Path(command.run) / "likelihoods" / file, result)


def score_record_block(model: LanguageModel, data: DataModule, run: RunDirectory, command: Command) -> None:
    """The block of the run's record, beside the record, which stays as it is."""
    settings = Settings(
        command.split, command.windows, command.draws or 32, command.left_to_right_windows, command.batch_size, 0
    )
    block = measure(model, data, settings)["likelihood"]
    write_json(run.path / f"likelihood-{command.split}-{command.checkpoint}.json", block)
    for row in filter(None, [block["bound"], block["left_to_right"], *block["extra"].values()]):
        print(
            f"{row['nats_per_token']:.4f} ± {row['se']:.4f} nats per token, {row['bits_per_char']:.4f} ± "
            f"{row['se_bits']:.4f} bits per character   {row['kind']}, "
            f"{row['windows']} windows x {row['draws']} draws"
        )


def check(command: Command, wanted: bool) -> None:
    """Raises UserError for what is wrong whatever the run; `wanted`: more than the record's block is asked for."""
    if not command.run:
        raise UserError("which run? python -m dlm.evaluate run=outputs/<study>/<scale>/runs/<run>")
    sizes = (
        "windows",
        "draws",
        "left_to_right_windows",
        "batch_size",
        "steps",
        "orders",
        "precision",
        "max_draws",
    )
    config.check_positive(OmegaConf.structured(command), sizes)
    if command.split not in DataModule.split_names:
        raise UserError(f"split is one of {', '.join(DataModule.split_names)}, not {command.split!r}")
    if command.orders is not None and command.orders < 3:
        raise UserError(f"orders={command.orders}: the spread of a variance over orders needs at least 3")
    if command.max_draws is not None and command.precision is None:
        raise UserError(f"max_draws={command.max_draws} belongs to precision, which is not asked for")
    if command.max_draws is not None and command.max_draws < 2 * (command.draws or 8):
        raise UserError(
            f"max_draws={command.max_draws} leaves no two rounds of {command.draws or 8} draws to compare"
        )
    if wanted and command.left_to_right_windows != Command.left_to_right_windows:
        raise UserError(
            f"left_to_right_windows={command.left_to_right_windows} belongs to the record's block: "
            "with likelihood=, windows= is for all of them"
        )
    if command.calibrate and command.split == "tune":
        raise UserError("calibrate finds the temperature on the tune split: report another one")


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    record = ("run", "checkpoint", "split", "windows", "draws", "left_to_right_windows", "batch_size")
    wanted = any(getattr(command, f.name) != f.default for f in fields(Command) if f.name not in record)
    check(command, wanted)
    model, data, run = load_run(Path(command.run), command.checkpoint)
    kinds = chosen(model, command) if wanted else {}
    with joined() as ranks:
        if wanted:
            directory = run.path / "likelihoods"
            content = content_hash(run.checkpoint(command.checkpoint)) + content_hash(run.config)
            scorer = Scorer(model, data, command.batch_size, command.windows, directory, content, ranks)
            score_chosen(scorer, kinds, command)
        elif ranks.first:
            score_record_block(model, data, run, command)


if __name__ == "__main__":
    config.entry(main)
