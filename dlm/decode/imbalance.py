"""Which of its masked questions a model has learned: the error imbalance of L&O-NAE-SAT (Kim et al. 2025, Fig. 2).

    python -m dlm.decode.imbalance run=DIR                     any number of masked latents, 1,000 repeats
    python -m dlm.decode.imbalance run=DIR masked=1,4,8 checkpoints=all
    python -m dlm.decode.imbalance run=DIR masked=11 proxy=RUN     against a model that was trained longer

For each number l, l of the N latents and l P / N of the P observations of fresh sequences are masked at random;

    E ( log p_model(x^i | visible) - log p(x^i | visible) )^2,      x^i the true value,

is averaged over the masked latents and, apart from them, over the masked observations.  p is the Bayes predictor,
by enumeration (NaeSatSource.posterior); the published one is a proxy, the same network trained 25 times longer,
which `proxy` allows where the hidden latents are too many to enumerate.  Sequences and masks are functions of the
seed and the number of the repeat: the same for every run and l, and fewer masks are a part of more.

Rows go to DIR/imbalance.jsonl; what has been made is not made again.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from omegaconf import OmegaConf
from torch import Tensor

from dlm import config
from dlm.data.nae_sat import MOST_HIDDEN, NaeSatSource
from dlm.decode.run import Decoder
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.files import append_row, drop_torn_line, held, read_lines
from dlm.likelihood import mask_id, masking_time
from dlm.lm import DiffusionLM, LanguageModel
from dlm.noise import Stream, uniforms
from dlm.run import RunDirectory
from dlm.scoring import content_hash
from dlm.version import code_version

VERSION = 1
"""To be raised whenever the same weights and questions would give other numbers."""
KINDS = ("latents", "observations")

Predictor = Callable[[Int[Tensor, "B L"], Bool[Tensor, "B L"]], Float[Tensor, "B L"]]
"""predictor(x, hidden): log-probabilities of the true values x of the hidden tokens, zero elsewhere."""


@dataclass
class Command:
    """The command line; "list" is several values with commas."""

    run: str = ""
    checkpoints: str = "best"  # list: best, epoch-32; or all
    masked: str = "all"  # list: numbers of masked latents
    repeats: int = 1000
    proxy: str | None = None  # the directory of another run, of the same data, in the place of the Bayes predictor
    seed: int = 0
    batch_size: int = 256  # sequences at a time; decides nothing


class Questions(NamedTuple):
    """Fresh sequences, and an order in which each is masked."""

    x: Int[Tensor, "R L"]
    rank: Int[Tensor, "R L"]  # of a latent among the latents, of an observation among the observations

    def hidden(self, source: NaeSatSource, latents: int) -> Bool[Tensor, "R L"]:
        """The masks of so many latents and the like share of observations."""
        at_most = torch.zeros(source.seq_len, dtype=torch.long)
        at_most[: source.latents] = latents
        at_most[source.latents : source.latents + source.observations] = observations(source, latents)
        return self.rank < at_most


def observations(source: NaeSatSource, latents: int) -> int:
    """How many observations are masked beside so many latents: l P / N, to the nearest whole number."""
    return math.floor(latents * source.observations / source.latents + 0.5)


def questions(source: NaeSatSource, repeats: int, seed: int) -> Questions:
    """Repeat r is a function of (seed, r)."""
    n, p = source.latents, source.observations
    noise = uniforms(seed, Stream.EVALUATION, range(repeats), 2, source.seq_len)
    x = source.written("report", np.arange(repeats), noise[:, 0, :n]).x0
    rank = torch.zeros_like(x)
    for part in (slice(0, n), slice(n, n + p)):
        rank[:, part] = noise[:, 1, part].argsort(1).argsort(1)
    return Questions(x, rank)


def bayes(source: NaeSatSource) -> Predictor:
    """The exact conditionals of the data."""

    def predict(x, hidden):
        one = torch.from_numpy(source.posterior(x.cpu().numpy(), hidden.cpu().numpy())).to(x.device)
        return torch.where(hidden, torch.where(x == 1, one, 1 - one).log(), 0.0)

    return predict


def network(model: LanguageModel, source: NaeSatSource) -> Predictor:
    """What a mask predictor says. Raises UserError for any other model."""
    process: Any = getattr(model, "process", None)
    if not isinstance(model, DiffusionLM) or not process.mask_predictor:
        raise UserError(f"the error imbalance is about masked tokens: {type(model).__name__} predicts none")

    @torch.no_grad()
    def predict(x, hidden):
        rate = hidden.sum(1).double() / (source.latents + source.observations)
        masked = torch.where(hidden, mask_id(process), x)
        logits = model.backbone(masked, masking_time(process, rate), hidden).double()
        said = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        said[hidden] = logits.log_softmax(-1).gather(-1, x[hidden][:, None])[:, 0]
        return said

    return predict


def imbalance(
    model: Predictor,
    reference: Predictor,
    source: NaeSatSource,
    asked: Questions,
    latents: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The part of a row that the predictors decide: for each kind of token the mean squared difference of
    log-probabilities with its standard error over sequences, and the mean -log p of both in nats per token."""
    hidden = asked.hidden(source, latents)
    errors, said, known = [], [], []
    for x, where in zip(asked.x.split(batch_size), hidden.split(batch_size), strict=True):
        x, where = x.to(device), where.to(device)
        ours, best = model(x, where).cpu(), reference(x, where).cpu()
        errors.append((ours - best) ** 2)
        said.append(ours)
        known.append(best)
    parts = slice(0, source.latents), slice(source.latents, source.latents + source.observations)
    found: dict[str, Any] = {}
    for kind, part in zip(KINDS, parts, strict=True):
        count = hidden[:, part].sum(1)  # the same for every sequence
        if not int(count[0]):
            found[kind] = None
            continue
        square, nll, best = (torch.cat(v)[:, part].sum(1) / count for v in (errors, said, known))
        found[kind] = {
            "masked": int(count[0]),
            "error": square.mean().item(),
            "se": square.std().item() / math.sqrt(len(square)) if len(square) > 1 else None,
            "nll": -nll.mean().item(),
            "reference_nll": -best.mean().item(),
        }
    return found


def counts(said: str, source: NaeSatSource, exact: bool) -> list[int]:
    """Numbers of masked latents. Raises UserError for what is none, or too many to enumerate."""
    if said == "all":
        return list(range(1, (min(source.latents, MOST_HIDDEN) if exact else source.latents) + 1))
    parts = [part.strip() for part in said.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= source.latents for part in parts):
        raise UserError(f"masked={said}: expected numbers of latents, 1 to {source.latents}, with commas between")
    if exact and max(map(int, parts)) > MOST_HIDDEN:
        raise UserError(f"masked={said}: more than {MOST_HIDDEN} latents are not enumerated: give a proxy")
    return [int(part) for part in parts]


def nae_sat(source: object, run: Path) -> NaeSatSource:
    """Raises UserError for other data."""
    if not isinstance(source, NaeSatSource):
        raise UserError(f"{run} was not trained on data=nae_sat, of which latents and observations are known")
    return source


def proxy_of(path: Path, source: NaeSatSource) -> tuple[Predictor, str]:
    """The best checkpoint of another run as reference, and its hash. Raises UserError for other data."""
    model, data, run = load_run(path)
    if data.source.fingerprint != source.fingerprint:
        raise UserError(f"proxy={path} was trained on other data (fingerprint {data.source.fingerprint})")
    return network(model, source), content_hash(run.checkpoint("best"))


def measure(decoder: Decoder, command: Command) -> None:
    """Every row that is not there yet; one line each."""
    source = nae_sat(decoder.source, decoder.run.path)
    numbers = counts(command.masked, source, command.proxy is None)
    reference, named = bayes(source), "exact"
    if command.proxy is not None:
        reference, named = proxy_of(Path(command.proxy), source)
    asked = questions(source, command.repeats, command.seed)
    file = decoder.run.path / "imbalance.jsonl"
    drop_torn_line(file)
    there = {row["key"]: row for row in read_lines(file) if "key" in row}
    for checkpoint in decoder.checkpoints(command.checkpoints):
        weights = content_hash(decoder.run.checkpoint(checkpoint))
        for latents in numbers:
            parts = [VERSION, weights, source.fingerprint, named, latents, command.repeats, command.seed]
            key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
            if key not in there:
                started, model = time.perf_counter(), decoder.model(checkpoint)
                found = imbalance(
                    network(model, source), reference, source, asked, latents, command.batch_size, model.device
                )
                epoch, step = decoder.reached(checkpoint)
                there[key] = {
                    "key": key,
                    "version": VERSION,
                    "code": code_version(),
                    "checkpoint": checkpoint,
                    "epoch": epoch,
                    "step": step,
                    "data": source.fingerprint,
                    "reference": "exact" if command.proxy is None else Path(command.proxy).name,
                    "masked": latents,
                    "repeats": command.repeats,
                    "seed": command.seed,
                    **found,
                    "seconds": round(time.perf_counter() - started, 3),
                    "device": model.device.type,
                }
                append_row(file, there[key])
            print(line(there[key]), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row for the reader at the terminal."""
    parts = [
        f"{row[kind]['masked']} {kind} {row[kind]['error']:.4f} ± {row[kind]['se'] or math.nan:.4f} "
        f"(nll {row[kind]['nll']:.4f}, best {row[kind]['reference_nll']:.4f})"
        for kind in KINDS
        if row[kind] is not None
    ]
    return f"{row['checkpoint']}  masked {row['masked']}: {'; '.join(parts)}"


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    if not command.run:
        raise UserError("which run? python -m dlm.decode.imbalance run=outputs/<study>/<scale>/runs/<run>")
    config.check_positive(OmegaConf.structured(command), ("repeats", "batch_size"))
    if command.seed < 0:
        raise UserError(f"seed={command.seed} is negative")
    torch.set_float32_matmul_precision("highest")
    run = RunDirectory(Path(command.run))
    threads = run.read_config()["trainer"]["threads"]
    if threads:
        torch.set_num_threads(threads)
    with held(run.path / ".imbalance.lock", f"another process is measuring the imbalance of {run.path}"):
        measure(Decoder(run), command)


if __name__ == "__main__":
    config.entry(main)
