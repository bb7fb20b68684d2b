"""All measures by name, and their rows in a run's `measures.jsonl`.

A row is found again by its `key`, a hash of the weights, the configuration, the data and the settings that decide
its number: it is made once, and a killed command continues where it was.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.files import append_row, drop_torn_line, read_lines
from dlm.measure import likelihoods, memorisation, probes
from dlm.measure.subject import Measured, Settings, Subject
from dlm.measure.texts import Texts
from dlm.run import RunDirectory, load_checkpoint
from dlm.scoring import content_hash

FILE = "measures.jsonl"
VERSION = 2  # raised with any change to what a measure is: older rows are then made anew


@dataclass(frozen=True)
class Measure:
    """A function of a Subject, and the settings that its number depends on. It returns None for a model, or a
    text, for which it has no meaning."""

    of: Callable[[Subject], Measured | None]
    uses: tuple[str, ...] = ()


SCORED, DRAWN, CHAIN = ("windows", "draws"), ("samples",), ("chain_windows", "orders", "draws")
OVER_ORDERS, ITEMS, COPIES = ("order_windows", "order_tokens", "orders"), ("items", "draws"), (5, 13)
MEASURES: dict[str, Measure] = {
    "nll": Measure(likelihoods.nll, SCORED),
    "temperature": Measure(likelihoods.temperature, SCORED),
    "nll_calibrated": Measure(likelihoods.nll_calibrated, SCORED),
    "top1": Measure(likelihoods.top1, SCORED),
    "train_nll": Measure(likelihoods.train_nll, SCORED),
    "membership_auc": Measure(likelihoods.membership_auc, SCORED),
    "weight_norm": Measure(likelihoods.weight_norm),
    "continuation": Measure(probes.continuation, ITEMS),
    "infill": Measure(probes.infill, ITEMS),
    "reversal": Measure(probes.reversal, ITEMS),
    "brackets": Measure(probes.closing_brackets, ITEMS),
    "order_variance_train": Measure(likelihoods.order_variance_train, OVER_ORDERS),
    "order_variance_report": Measure(likelihoods.order_variance_report, OVER_ORDERS),
    **{f"copied_{n}": Measure(partial(memorisation.copied, width=n), DRAWN) for n in COPIES},
    "copied_50": Measure(partial(memorisation.copied, width=50, characters=True), DRAWN),
    **{f"natural_{n}": Measure(partial(memorisation.natural, width=n)) for n in COPIES},
    "natural_50": Measure(partial(memorisation.natural, width=50, characters=True)),
    "common_substring": Measure(memorisation.common_substring, DRAWN),
    "natural_common_substring": Measure(memorisation.natural_common_substring),
    "sample_entropy": Measure(memorisation.sample_entropy, DRAWN),
    "distinct_3": Measure(memorisation.distinct_3, DRAWN),
    "extraction": Measure(memorisation.extraction, ("extractions",)),
    "extraction_fast": Measure(memorisation.extraction_fast, ("extractions",)),
    "left_to_right": Measure(likelihoods.left_to_right, CHAIN),
    "mixture": Measure(likelihoods.mixture, CHAIN),
}
"""What `measures=` may name; the cheap ones first."""
CHAINS = ("left_to_right", "mixture")  # made at `chain_at` only


def chosen(wanted: str, known: Iterable[str], what: str) -> list[str]:
    """`all`, or names separated by commas.

    Raises:
        UserError: naming the first that is not known.
    """
    known = list(known)
    if wanted == "all":
        return known
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"{what}={name}: there is no {name!r}, only {', '.join(known) or 'none'}")
    return names


def measure_run(
    path: Path,
    settings: Settings | None = None,
    measures: str = "all",
    checkpoints: str = "all",
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Make what is still missing of the measures of a run's checkpoints, a row of `measures.jsonl` each.

    Args:
        measures, checkpoints: `all`, or names separated by commas.
        tell: is given one line per measure made.

    Returns:
        The rows asked for, those made before among them.

    Raises:
        UserError: for a run that has no checkpoint, or an unknown name.
    """
    settings = settings or Settings()
    check(settings)
    run = RunDirectory(path)
    run.read_config()
    names = chosen(measures, MEASURES, "measures")
    weights = chosen(checkpoints, run.checkpoints, "checkpoints")
    if not weights:
        raise UserError(f"{path} has no checkpoint to measure")
    if settings.chain_at not in ("all", "best"):
        chosen(settings.chain_at, run.checkpoints, "chain_at")
    drop_torn_line(path / FILE)
    made = {row["key"]: row for row in read_lines(path / FILE)}
    texts, rows = None, []
    for checkpoint in weights:
        content, subject = content_hash(run.checkpoint(checkpoint)) + content_hash(run.config), None
        chained = settings.chain_at == "all" or checkpoint in settings.chain_at.split(",")
        for name in (n for n in names if n not in CHAINS or chained):
            key = identity(name, checkpoint, content, settings)
            if key not in made:
                if subject is None:
                    model, data, _ = load_run(path, checkpoint)
                    texts = texts or Texts(data.source)
                    subject = Subject(model, data, settings, texts)
                row = measured(name, subject)
                if row is None:
                    tell(f"{checkpoint:<12}{name:<25}not defined for this model or text")
                    continue
                made[key] = place(run, checkpoint, subject.data) | row | {"key": key}
                append_row(path / FILE, made[key])
                tell(line(made[key]))
            rows.append(made[key])
    return rows


def measured(name: str, subject: Subject) -> dict[str, Any] | None:
    """One measure as a row; None where the model, or the text, has no such thing."""
    started = time.perf_counter()
    found = MEASURES[name].of(subject)
    if found is None:
        return None
    row = {"measure": name, "split": found.split, "value": found.value, "se": found.se, "n": found.n}
    row |= {"chance": found.chance, "unit": found.unit, "details": found.details}
    row["seconds"] = round(time.perf_counter() - started, 3)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def identity(name: str, checkpoint: str, content: str, settings: Settings) -> str:
    """Hash of all that decides a row. How much the network reads at a time is no part of it."""
    values = asdict(settings)
    decisive = [VERSION, name, checkpoint, content, {use: values[use] for use in MEASURES[name].uses}]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def place(run: RunDirectory, checkpoint: str, data: DataModule) -> dict[str, Any]:
    """Which checkpoint, and its epoch: from its name or, of the best, from its step."""
    name = {"checkpoint": checkpoint}
    kind, _, epoch = checkpoint.partition("-")
    if epoch:
        return name | {"epoch": float(epoch), "cooled": kind == "cooled"}
    step = load_checkpoint(run.checkpoint(checkpoint)).get("global_step")
    return name | {"epoch": None if step is None else data.epoch_of(step), "cooled": False}


def line(row: dict[str, Any]) -> str:
    """One line of text."""
    name = f"{row['checkpoint']:<12}{row['measure']:<25}"
    value = "infinite" if row["value"] is None else f"{row['value']:.4f}"
    error = "" if row["se"] is None else f" ± {row['se']:.4f}"
    chance = "" if row["chance"] is None else f", by chance {row['chance']:.4g}"
    return f"{name}{value}{error} {row['unit']} (n = {row['n']}{chance})   {row['seconds']:.2f} s"


def check(settings: Settings) -> None:
    """Raises UserError for a number that measures nothing."""
    for name, value in asdict(settings).items():
        least = {"samples": 2, "orders": 3, "windows": 2}.get(name, 1)
        if isinstance(value, int) and value < least:
            raise UserError(f"{name}={value} must be at least {least}")
