"""Sequences from a finished run.

    python -m dlm.sample run=DIR n=4 sampler=ordered policy=margin
    python -m dlm.sample run=DIR --prompt "def [MASK:12] return"

A prompt is text with gaps: [MASK] is one token to be generated, [MASK:12] twelve; without a gap the text is
continued to the model's full length.
"""

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm import config, sampling
from dlm.data.source import Source
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.likelihood import is_mask_predictor
from dlm.lm import DiffusionLM, LanguageModel

GAP = re.compile(r"\[MASK(?::(\d+))?\]")


@dataclass
class Command:
    """The command line. Options that a sampler does not take are refused."""

    run: str = ""
    checkpoint: str = "best"
    n: int = 4
    seed: int = 0
    sampler: str | None = None  # ancestral, tau_leap, first_hitting, ordered, autoregressive
    steps: int | None = None
    grid: str | None = None  # uniform, cosine
    policy: str | None = None  # random, left_to_right, top_probability, margin, entropy
    per_step: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0


def parse_prompt(prompt: str | None, source: Source) -> tuple[Int[Tensor, " L"], Bool[Tensor, " L"]]:
    """Token ids and the positions that are free.

    Raises:
        UserError: for a prompt longer than the model, or an empty gap.
    """
    ids: list[int] = []
    free: list[bool] = []
    text = prompt or f"[MASK:{source.seq_len}]"
    at = 0
    for gap in GAP.finditer(text):
        known = source.encode(text[at : gap.start()])
        count = int(gap[1]) if gap[1] else 1
        if count < 1:
            raise UserError(f"the gap {gap[0]} in the prompt generates nothing")
        ids += [*known, *[0] * count]
        free += [*[False] * len(known), *[True] * count]
        at = gap.end()
    rest = source.encode(text[at:])
    ids, free = [*ids, *rest], [*free, *[False] * len(rest)]
    if not any(free):
        ids += [0] * (source.seq_len - len(ids))
        free += [True] * (source.seq_len - len(free))
    if any(id >= source.vocab_size for id in ids):
        raise UserError(
            f"the prompt holds token {max(ids)}, the model's vocabulary ends at {source.vocab_size - 1}"
        )
    if len(ids) > source.seq_len or not any(free):
        raise UserError(f"the prompt fills {len(ids)} of the model's {source.seq_len} tokens and leaves no room")
    return torch.tensor(ids), torch.tensor(free)


def options_for(model: LanguageModel, command: Command) -> dict[str, Any]:
    """The options the chosen sampler takes.

    Raises:
        UserError: for one that it does not.
    """
    name = model.sampler_name(command.sampler)
    takes = inspect.signature(getattr(sampling, name)).parameters
    options: dict[str, Any] = {"warp": sampling.warp(command.temperature, command.top_p)}
    for key in ("steps", "grid", "policy", "per_step"):
        value = getattr(command, key)
        if value is None:
            continue
        if key not in takes:
            raise UserError(f"the sampler {name} takes no {key} (given {key}={value})")
        if key in ("steps", "per_step") and value < 1:
            raise UserError(f"{key} must be at least 1, not {value}")
        options[key] = value
    return options


def prompt_argument(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take `--prompt TEXT` (or `--prompt=TEXT`) out of the command line."""
    rest, prompt = [], None
    words = iter(arguments)
    for word in words:
        if word == "--prompt":
            prompt = next(words, None)
            if prompt is None:
                raise UserError('--prompt needs a text: --prompt "def [MASK:12] return"')
        elif word.startswith("--prompt="):
            prompt = word.removeprefix("--prompt=")
        else:
            rest.append(word)
    return prompt, rest


def main() -> None:
    prompt, rest = prompt_argument(sys.argv[1:])
    command: Command = config.command_line(Command, rest)
    if not command.run:
        raise UserError("which run? python -m dlm.sample run=outputs/<study>/<scale>/runs/<run>")
    if command.n < 1:
        raise UserError(f"n must be at least 1, not {command.n}")
    model, data, _ = load_run(Path(command.run), command.checkpoint)
    ids, free = (part.to(model.device) for part in parse_prompt(prompt, data.source))
    if prompt and isinstance(model, DiffusionLM) and not is_mask_predictor(model.process):
        print(
            f"note: {type(model.process).__name__} was trained on sequences that are noisy everywhere; "
            "holding a prompt clean is a heuristic",
            file=sys.stderr,
        )
    rng = torch.Generator().manual_seed(command.seed)
    wide = (command.n, len(ids))
    sample = model.sample(ids.expand(wide), free.expand(wide), rng, command.sampler, **options_for(model, command))
    for row, evaluations in zip(sample.x.tolist(), sample.evaluations.tolist(), strict=True):
        print(f"--- {evaluations} network evaluations")
        print(data.source.decode(row))


if __name__ == "__main__":
    config.entry(main)
