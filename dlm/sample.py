"""Sequences from a finished run, and how they came about.

    python -m dlm.sample run=DIR n=4 sampler=ordered policy=margin
    python -m dlm.sample run=DIR --prompt "def [MASK:12] return" page=generation.html
    python -m dlm.sample run=DIR sampler=ancestral steps=32 grid=cosine --watch

A prompt is text with gaps: [MASK] is one token to be generated, [MASK:12] twelve; without a gap the text is
continued to the model's full length.  `page` draws each token in the colour of the step at which it was fixed;
`--watch` shows the generation in the terminal.
"""

import inspect
import re
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm import config, sampling
from dlm.data.source import Source
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.files import write_atomically
from dlm.lm import DiffusionLM, LanguageModel
from dlm.trajectory import Screen, Trajectory, page

GAP = re.compile(r"\[MASK(?::(\d+))?\]")


@dataclass
class Options:
    """What samplers can be told; one that does not take an option refuses it."""

    steps: int | None = None  # steps in all
    grid: str | None = None  # uniform, cosine
    times: list[float] | None = None  # instead of steps and grid: from at most 1 down to 0
    increment: str | None = None  # tau_leap: euler, exact
    corrector: float | None = None  # tau_leap of flow matching: how much noise is added and taken away again
    remask: str | None = None  # remdm: cap, rescale; ordered, with selection=value: true, false
    eta: float | None = None  # remdm: how much is masked again
    policy: str | None = None  # ordered: random, left_to_right, top_probability, margin, log_ratio, entropy
    per_step: int | None = None  # ordered: tokens at a time, instead of steps
    reveal: str | None = None  # ordered, with steps: equal, binomial
    selection: str | None = None  # ordered: state (exact), value (by the drawn token's probability: biased)
    score_scale: str | None = None  # ordered: probability, log
    noise: str | None = None  # ordered: none, gumbel, gaussian
    noise_scale: float | None = None  # ordered: its coefficient
    anneal: str | None = None  # ordered: constant, masked_share
    ties: str | None = None  # ordered: left, random


@dataclass
class Command(Options):
    """The command line."""

    run: str = ""
    checkpoint: str = "best"
    n: int = 4
    seed: int = 0
    sampler: str | None = None  # by default the method's first
    values: str = "sampled"  # or greedy: the likeliest of every law, instead of temperature and top_p
    temperature: float = 1.0
    top_p: float = 1.0
    page: str | None = None  # an HTML file for the picture of the generation


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
    options: dict[str, Any] = {"warp": warp_for(command.values, command.temperature, command.top_p)}
    for key in (field.name for field in fields(Options)):
        value = getattr(command, key)
        if value is None:
            continue
        if ("grid" if key == "times" else key) not in takes:
            raise UserError(f"the sampler {name} takes no {key} (given {key}={value})")
        if key in takes and takes[key].annotation is bool:
            if str(value).lower() not in ("true", "false"):
                raise UserError(f"{key} of the sampler {name} is true or false, not {value}")
            value = str(value).lower() == "true"
        options[key] = value
    if command.times is not None:
        if command.grid is not None:
            raise UserError(f"grid={command.grid} and times={command.times} contradict each other")
        options["grid"] = options.pop("times")
    return options


def warp_for(values: str, temperature: float, top_p: float) -> sampling.Warp:
    """What the values of tokens are drawn under: their own law, a colder one, or none at all.

    Raises:
        UserError: for a temperature or a nucleus beside values=greedy, which leaves nothing to draw.
    """
    if values not in ("sampled", "greedy"):
        raise UserError(f"values is sampled or greedy, not {values!r}")
    warp = sampling.warp(temperature, top_p)
    if values == "sampled":
        return warp
    if temperature != 1 or top_p != 1:
        raise UserError("values=greedy takes the likeliest token: give no temperature or top_p beside it")
    return sampling.greedy


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


def caveats(model: LanguageModel, command: Command, prompted: bool) -> list[str]:
    """What a reader of the samples should know about how they were made."""
    found = []
    if prompted and isinstance(model, DiffusionLM) and model.process.mask_id is None:
        found.append(
            f"{type(model.process).__name__} was trained on sequences that are noisy everywhere; "
            "holding a prompt clean is a heuristic"
        )
    if command.selection == "value":
        found.append(
            "selection=value keeps the tokens that were drawn likeliest: not the model's own law, "
            "even for a perfect model"
        )
    if (command.remask or "").lower() == "true":
        found.append("remask=true asks anew for tokens that stand, which the network was never trained to predict")
    return found


def pieces_of(source: Source) -> list[str]:
    """Every token of the vocabulary as text."""
    return [source.decode([value]) for value in range(source.vocab_size)]


def expected_steps(model: LanguageModel, command: Command, tokens: int) -> int:
    """How many steps the sampler takes, for the scale of the colours: of its grid, or one per token."""
    takes = inspect.signature(getattr(sampling, model.sampler_name(command.sampler))).parameters
    if command.times is not None:
        return len(command.times) - 1
    if command.steps is not None or "grid" not in takes:
        return command.steps or -(-tokens // (command.per_step or 1))
    return getattr(getattr(model, "process", None), "steps", None) or sampling.DEFAULT_STEPS


def main() -> None:
    arguments = sys.argv[1:]
    prompt, rest = prompt_argument(arguments)
    watching = "--watch" in rest
    command: Command = config.command_line(Command, [word for word in rest if word != "--watch"])
    if not command.run:
        raise UserError("which run? python -m dlm.sample run=outputs/<study>/<scale>/runs/<run>")
    if command.n < 1:
        raise UserError(f"n must be at least 1, not {command.n}")
    model, data, _ = load_run(Path(command.run), command.checkpoint)
    ids, free = (part.to(model.device) for part in parse_prompt(prompt, data.source))
    options = options_for(model, command)
    if command.page is not None and not Path(command.page).parent.is_dir():
        raise UserError(f"cannot write {command.page}: its directory does not exist")
    rng = torch.Generator().manual_seed(command.seed)
    wide = (command.n, len(ids))
    given, free = ids.expand(wide), free.expand(wide)
    if watching:
        count = expected_steps(model, command, int(free[0].sum()))
        with Screen(sys.stdout, pieces_of(data.source), (~free[0]).tolist(), count - 1) as screen:
            try:
                sample = model.sample(
                    given,
                    free,
                    rng,
                    command.sampler,
                    watch=lambda step, x: screen.show(step.tolist(), x.tolist()),
                    **options,
                )
            except KeyboardInterrupt:
                sys.exit(130)
    else:
        sample = model.sample(given, free, rng, command.sampler, **options)
    notes = caveats(model, command, prompted=bool(prompt))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    for row, evaluations in zip(sample.x.tolist(), sample.evaluations.tolist(), strict=True):
        print(f"--- {evaluations} network evaluations")
        print(data.source.decode(row))
    if command.page is not None:
        draw_page(Path(command.page), model, data.source, sample, command, arguments, notes)


def draw_page(
    path: Path,
    model: LanguageModel,
    source: Source,
    sample: sampling.Sample,
    command: Command,
    arguments: list[str],
    notes: list[str],
) -> None:
    """Write the picture of a generation."""
    trajectories = [
        Trajectory([source.decode([value]) for value in row], fixed_at, evaluations)
        for row, fixed_at, evaluations in zip(*(part.tolist() for part in sample[:3]), strict=True)
    ]
    method = type(model.process if isinstance(model, DiffusionLM) else model).__name__
    html = page(
        trajectories,
        f"{method} by {model.sampler_name(command.sampler)} sampling",
        f"{Path(command.run).name}, checkpoint {command.checkpoint}, seed {command.seed}",
        shlex.join(["python", "-m", "dlm.sample", *arguments]),
        notes,
        expected_steps(model, command, int((sample.fixed_at >= 0).sum(1).max())),
    )
    write_atomically(path, html.encode())
    print(f"drawn: {path}", file=sys.stderr)


if __name__ == "__main__":
    config.entry(main)
