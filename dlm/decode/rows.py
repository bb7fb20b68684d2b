"""One way of decoding over the puzzles of a split, and what it came to.

Every puzzle is one row of noise, addressed by its number: its answer is a function of (weights, setting, seed,
number), whatever batch it is in, so settings and models are compared in pairs, puzzle by puzzle.  The network
computes in float32 at least; a batch of another size rounds its sums differently, which only matters where two
scores are that close.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int

from dlm.data.task import NO_ERROR, Judgement, TaskSource
from dlm.decode.settings import Setting
from dlm.lm import LanguageModel
from dlm.report.proportions import wilson
from dlm.sampling.noise import Numbered


class Answers(NamedTuple):
    """What a model answered to B puzzles."""

    x: Int[np.ndarray, "B L"]
    fixed_at: Int[np.ndarray, "B L"]  # the step at which each token took its value; -1: given
    evaluations: Int[np.ndarray, " B"]  # of the network
    tokens: Int[np.ndarray, " B"]  # how many were to be generated
    ties: Int[np.ndarray, " B"] | None  # steps whose choice fell between equal scores
    seconds: float


class Outcome(NamedTuple):
    """The answers to N puzzles, judged."""

    judged: Judgement
    strata: dict[str, Int[np.ndarray, " N"]]
    evaluations: Int[np.ndarray, " N"]
    tokens: Int[np.ndarray, " N"]
    ties: Int[np.ndarray, " N"] | None
    seconds: float  # spent in the sampler


def answer(
    model: LanguageModel,
    source: TaskSource,
    split: str,
    numbers: Int[np.ndarray, " B"],
    setting: Setting,
    seed: int = 0,
) -> Answers:
    """One batch. Raises UserError for a setting that does not fit the model."""
    x0, free = (tensor.to(model.device) for tensor in source.written(split, numbers, None))
    options = setting.options()
    if setting.choice.get("policy") == "given":
        place = source.place(split, numbers)
        options["place"] = None if place is None else place.to(model.device)
    rng = Numbered(seed, torch.from_numpy(numbers))
    started = time.perf_counter()
    sample = model.sample(torch.where(free, 0, x0), free, rng, setting.sampler, **options)
    x = sample.x.cpu().numpy()
    seconds = time.perf_counter() - started
    ties = None if sample.ties is None else sample.ties.cpu().numpy()
    fixed_at, evaluations = sample.fixed_at.cpu().numpy(), sample.evaluations.cpu().numpy()
    return Answers(x, fixed_at, evaluations, free.sum(1).cpu().numpy(), ties, seconds)


def batches(numbers: Int[np.ndarray, " N"], batch_size: int) -> Iterator[Int[np.ndarray, " B"]]:
    for start in range(0, len(numbers), batch_size):
        yield numbers[start : start + batch_size]


def decode(
    model: LanguageModel,
    source: TaskSource,
    split: str,
    numbers: Int[np.ndarray, " N"],
    setting: Setting,
    seed: int = 0,
    batch_size: int = 256,
) -> Outcome:
    """Let the model answer the puzzles of these numbers, and judge the answers."""
    judged, strata, answers = [], [], []
    for some in batches(numbers, batch_size):
        found = answer(model, source, split, some, setting, seed)
        judged.append(source.judge(split, some, found.x, found.fixed_at))
        strata.append(source.strata(split, some))
        answers.append(found._replace(x=found.x[:0], fixed_at=found.fixed_at[:0]))
    return Outcome(
        Judgement(*(joined(column) for column in zip(*judged, strict=True))),
        {name: joined([part[name] for part in strata]) for name in strata[0]},
        joined([a.evaluations for a in answers]),
        joined([a.tokens for a in answers]),
        joined([a.ties for a in answers]),
        sum(a.seconds for a in answers),
    )


def joined(parts: Any) -> Any:
    """Arrays end to end; None if any of them is."""
    return None if any(part is None for part in parts) else np.concatenate(parts)


def summary(outcome: Outcome, source: TaskSource) -> dict[str, Any]:
    """The part of a row that the answers decide."""
    judged, evaluations = outcome.judged, int(outcome.evaluations.sum())
    solved, n = int(judged.solved.sum()), len(judged.solved)
    kinds, errors = np.unique(judged.first_error[judged.first_error != NO_ERROR], return_counts=True)
    fills = None
    if judged.fills is not None:
        fills = named(sorted(source.error_kinds), judged.fills.sum(0))
    return {
        "puzzles": n,
        "solved": solved,
        "wilson": list(wilson(solved, n)),
        "cells": int(judged.cells.sum()),
        "right": int(judged.right.sum()),
        "nfe": evaluations / n,
        "tokens_per_step": int(outcome.tokens.sum()) / evaluations if evaluations else None,
        "by": {name: by_stratum(judged.solved, of) for name, of in outcome.strata.items()},
        "first_errors": named(kinds, errors),
        "fills": fills,
        "ties": int(outcome.ties.sum()) / evaluations if outcome.ties is not None and evaluations else None,
        "outcomes": np.packbits(judged.solved).tobytes().hex(),
        "seconds": round(outcome.seconds, 3),
    }


def named(kinds: Any, counts: Any) -> dict[str, int]:
    """Counts above zero by the kind's number, as JSON has keys."""
    return {str(int(kind)): int(count) for kind, count in zip(kinds, counts, strict=True) if count}


def by_stratum(solved: Bool[np.ndarray, " N"], strata: Int[np.ndarray, " N"]) -> dict[str, list[int]]:
    """[how many were solved, how many there are] of each stratum."""
    return {str(int(s)): [int(solved[strata == s].sum()), int((strata == s).sum())] for s in np.unique(strata)}


def line(setting: Setting, row: dict[str, Any]) -> str:
    """A row for the reader at the terminal."""
    solved, cells = (100 * row[a] / max(row[b], 1) for a, b in (("solved", "puzzles"), ("right", "cells")))
    low, high = (100 * bound for bound in row["wilson"])
    pace = "" if row["tokens_per_step"] is None else f", {row['tokens_per_step']:.2f} tokens per step"
    return (
        f"{row['checkpoint']} {row['split']} s{row['seed']}  {setting}: solved {solved:.1f} % "
        f"[{low:.1f}, {high:.1f}] of {row['puzzles']}, cells {cells:.1f} %, "
        f"{row['nfe']:.1f} evaluations{pace}, {row['seconds']:.1f} s"
    )
