"""How many puzzles a finished run solves, decoded in many ways.

    python -m dlm.decode run=DIR                                       random, top-probability and margin order
    python -m dlm.decode run=DIR policy=margin,top_probability noise=none,gumbel noise_scale=0.05,0.5
    python -m dlm.decode run=DIR policy=random,left_to_right,given per_step=1,2,4 seeds=0,1,2 values=sampled
    python -m dlm.decode run=DIR checkpoints=all puzzles=200           every snapshot: accuracy against steps
    python -m dlm.decode run=DIR split=hard traces=4                   ... and four boards per setting
    python -m dlm.decode run=DIR puzzles_file=collection.txt           puzzles that it was not trained on
    python -m dlm.decode run=DIR grids=grids.json                      a list of objects with these keys

Lists make a product, without the combinations that contradict each other; all settings answer the same puzzles
under the same noise.  Each result is a line here and a row of DIR/decodings.jsonl, and what is there is not made
again.  Boards go to DIR/boards.json.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dlm import config
from dlm.decode.rows import line
from dlm.decode.run import Block, Decoder
from dlm.decode.settings import AXES, settings
from dlm.decode.traces import trace
from dlm.errors import UserError
from dlm.lm import LanguageModel
from dlm.run import RunDirectory


@dataclass
class Command:
    """The command line; "list" is several values with commas."""

    run: str = ""
    grids: str | None = None  # a JSON file: a list of objects with the other keys, each a command line of its own
    checkpoints: str = "best"  # list: best, epoch-32, cooled-96; or all
    split: str | None = None  # list: report, tune, train, and what else the data have; with puzzles_file: file
    puzzles: int | None = 500  # spread evenly over the split; null: all
    puzzles_file: str | None = None  # a collection, one puzzle per line, in the place of the data's own
    sampler: str | None = None  # list: ordered if the model can, or else its first; ancestral, autoregressive, ...
    policy: str = "random,top_probability,margin"  # list: left_to_right, given, log_ratio, entropy
    noise: str = "none"  # list: gumbel, gaussian
    noise_scale: str | None = None  # list: the noise's coefficient, 1
    anneal: str = "constant"  # list: masked_share
    score_scale: str = "probability"  # list: log
    per_step: str | None = None  # list: tokens at a time, 1
    steps: str | None = None  # list: or in so many steps
    selection: str = "state"  # list: value
    reveal: str = "equal"  # list: binomial
    remask: str = "false"  # list: true
    ties: str = "random"  # list: left
    values: str = "greedy"  # list: sampled
    seeds: str = "0"  # list: of the sampler's noise
    batch_size: int = 256  # puzzles at a time; decides nothing
    traces: int = 0  # boards per setting, of the first puzzles, the last checkpoint and the first seed


def commands(command: Command, arguments: list[str]) -> list[Command]:
    """The command itself, or one for each object of its grids, which has the last word.

    Raises:
        UserError: naming file and object for what is no such list, or an unknown key.
    """
    if command.grids is None:
        return [command]
    file = Path(command.grids)
    try:
        grids = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(grids, list) or not grids:
        raise UserError(f"{file}: expected a list of objects")
    found = []
    for number, grid in enumerate(grids, start=1):
        known = [f.name for f in fields(Command) if f.name not in ("run", "grids")]
        wrong = [key for key in grid if key not in known] if isinstance(grid, dict) else [grid]
        if wrong:
            raise UserError(f"{file}: object {number}: {wrong[0]!r} is not one of the keys {', '.join(known)}")
        try:
            found.append(config.command_line(Command, [*arguments, *(f"{k}={text(v)}" for k, v in grid.items())]))
        except (UserError, *config.CONFIG_ERRORS) as error:
            raise UserError(f"{file}: object {number}: {config.one_line(error)}") from error
    return found


def text(value: Any) -> str:
    """A value of a grid as a command line has it."""
    if isinstance(value, list):
        return ",".join(map(text, value))
    return value if isinstance(value, str) else json.dumps(value)


def check(command: Command) -> None:
    """Raises UserError for what is wrong whatever the run."""
    config.check_positive(OmegaConf.structured(command), ("puzzles", "batch_size"))
    if command.traces < 0:
        raise UserError(f"traces={command.traces} must be zero or more")
    asked = {key: getattr(command, key) for key in AXES}
    found = settings(asked, ["ordered"])
    if not found.settings:
        raise UserError("; ".join(found.left_out))
    seeds(command.seeds)


def seeds(said: str) -> list[int]:
    """Raises UserError for anything but whole numbers from zero on."""
    parts = [part.strip() for part in said.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"seeds={said}: expected whole numbers, separated by commas")
    return [int(part) for part in parts]


def samplers(model: LanguageModel, said: str | None) -> list[str]:
    """Those asked for, by default one that takes an order. Raises UserError for one the model does not have."""
    default = "ordered" if "ordered" in model.samplers else next(iter(model.samplers))
    return [model.sampler_name(name.strip()) for name in (said or default).split(",")]


def decode_all(decoder: Decoder, command: Command) -> Counter[str]:
    """Every row and board of one command; returns why settings were left out."""
    names = decoder.checkpoints(command.checkpoints)
    asked = {key: getattr(command, key) for key in AXES}
    found = settings(asked, samplers(decoder.model(names[0]), command.sampler))
    left_out = Counter(found.left_out)
    split = command.split or ("report" if command.puzzles_file is None else "file")
    for part in split.split(","):
        numbered = decoder.numbers(part.strip(), command.puzzles)
        block = Block(names, part.strip(), numbered, seeds(command.seeds), command.batch_size)
        kept, why = decoder.fitting(found.settings, block)
        left_out += why
        for checkpoint in names:
            for setting in kept:
                for seed in block.seeds:
                    row, new = decoder.row(checkpoint, block, setting, seed)
                    print(line(setting, row) + ("" if new else " (there already)"), flush=True)
        if command.traces:
            made = trace(decoder, block, kept, command.traces)
            print(f"{made} boards added to {decoder.run.path / 'boards.json'}", flush=True)
    return left_out


def main() -> None:
    arguments = sys.argv[1:]
    command: Command = config.command_line(Command, arguments)
    if not command.run:
        raise UserError("which run? python -m dlm.decode run=outputs/<study>/<scale>/runs/<run>")
    every = commands(command, arguments)
    for one in every:
        check(one)
    torch.set_float32_matmul_precision("highest")  # ties are decided by the last bits
    run = RunDirectory(Path(command.run))
    threads = run.read_config()["trainer"]["threads"]
    if threads:
        torch.set_num_threads(threads)
    left_out: Counter[str] = Counter()
    decoder: Decoder | None = None
    for one in every:
        if decoder is None or one.puzzles_file != decoder.puzzles_file:
            decoder = Decoder(run, one.puzzles_file)
        with decoder.open():
            left_out += decode_all(decoder, one)
    if left_out:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in left_out.items())
        print(f"left out: {reasons}")


if __name__ == "__main__":
    config.entry(main)
