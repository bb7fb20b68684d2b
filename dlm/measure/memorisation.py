"""What a model repeats of its training text, beside what held-out text repeats of it by itself.

Samples are drawn at temperature 1 by the model's first sampler, the same number of tokens for every model, at the
finest resolution: one step per token. English repeats itself, so a share of copied n-grams says something only
above the same share of held-out text. That share needs no text of equal length (a substring's does), so it is
taken over more of it.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.measure.overlap import codes, longest_common, shares
from dlm.measure.subject import Measured, Subject, mean_and_se

NATURAL_WINDOWS = 256
SUBSTRING_WINDOWS = 32
PREFIX = 32  # tokens given, and tokens asked for
FAST = 8  # tokens revealed at a time
SHARE, CHARACTERS = "share", "characters"


def sampled(subject: Subject) -> Int[np.ndarray, "S L"]:
    """The samples, made once: seed 0, temperature 1."""
    if "samples" not in subject.found:
        model, length = subject.model, subject.data.source.seq_len
        given = torch.zeros(subject.settings.samples, length, dtype=torch.long, device=model.device)
        process = getattr(model, "process", None)
        options: dict[str, Any] = {}
        if "first_hitting" in model.samplers and not subject.causal:
            options = {"sampler": "first_hitting"}  # one token at a time, exactly
        elif not subject.causal and process is not None:
            options = {"steps": process.steps or length}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            drawn = model.sample(given, torch.ones_like(given, dtype=torch.bool), generator, **options)
        subject.found["samples"] = drawn.x.cpu().numpy()
    return subject.found["samples"]


def held_out(subject: Subject, limit: int) -> Int[np.ndarray, "N L"]:
    """Windows of the report split."""
    return subject.windows("report", limit)[0].numpy()


def overlaps(subject: Subject, rows: Int[np.ndarray, "N L"], width: int, characters: bool) -> list[float]:
    """The share of each row's windows of `width` tokens, or characters, that stand in the training stream."""
    if not characters:
        return shares(list(rows), subject.texts.train, width)
    texts = [codes(subject.data.source.decode(row)) for row in rows]
    return shares(texts, codes(subject.texts.train_text), width)


def natural(subject: Subject, width: int, characters: bool = False) -> Measured | None:
    """The share of held-out text that stands verbatim in the training stream.

    At 50 characters nearly nothing, by construction: what shared so much with the training text was dropped from
    one of the two (dlm.data.split, dlm.data.stream). So `copied_50` is held against a text without leaks, not
    against what the language repeats by itself, as shorter n-grams are.
    """
    key = ("natural", width, characters)
    if key not in subject.texts.found:
        rows = held_out(subject, NATURAL_WINDOWS)
        subject.texts.found[key] = overlaps(subject, rows, width, characters)
    values = subject.texts.found[key]
    return Measured(*mean_and_se(values), len(values), SHARE, details={"width": width}) if values else None


def copied(subject: Subject, width: int, characters: bool = False) -> Measured | None:
    """The same share of the samples; `details` holds its excess over held-out text. None for a model whose windows
    are shorter than `width`."""
    values, baseline = overlaps(subject, sampled(subject), width, characters), natural(subject, width, characters)
    if not values or baseline is None:
        return None
    value, se = mean_and_se(values)
    details = {"width": width, "natural": baseline.value, "excess": value - baseline.value}
    details["se_excess"] = None if se is None or baseline.se is None else float(np.hypot(se, baseline.se))
    return Measured(value, se, len(values), SHARE, details=details)


def substrings(subject: Subject, rows: Int[np.ndarray, "N L"]) -> list[int]:
    """The longest substring, in characters, that each row has in common with the training text."""
    texts = [codes(subject.data.source.decode(row)) for row in rows]
    return longest_common(texts, codes(subject.texts.train_text))


def natural_common_substring(subject: Subject) -> Measured:
    """Of held-out windows as long as the samples, on average."""
    if "substrings" not in subject.texts.found:
        subject.texts.found["substrings"] = substrings(subject, held_out(subject, SUBSTRING_WINDOWS))
    values = subject.texts.found["substrings"]
    return Measured(*mean_and_se(values), len(values), CHARACTERS, details={"longest": max(values)})


def common_substring(subject: Subject) -> Measured:
    """Of the samples, on average; `details` holds the longest of all."""
    values = substrings(subject, sampled(subject))
    details = {"longest": max(values), "natural": natural_common_substring(subject).value}
    return Measured(*mean_and_se(values), len(values), CHARACTERS, details=details)


def likeliest(logits: Float[Tensor, "*N V"]) -> Float[Tensor, "*N V"]:
    """Temperature 0: all mass on the likeliest token, the first among equals."""
    law = torch.full_like(logits, -torch.inf)
    return law.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)


def continued(subject: Subject, given: Int[Tensor, "N T"], free: Bool[Tensor, "N T"], at_once: int) -> Tensor:
    """The likeliest continuation, token by token: left to right, or where a mask predictor is surest."""
    options: dict[str, Any] = {"warp": likeliest}
    if not subject.causal or at_once > 1:
        options |= {"sampler": "ordered", "policy": "top_probability", "per_step": at_once}
    device, generator = subject.model.device, torch.Generator().manual_seed(0)
    with torch.no_grad():
        return subject.model.sample(given.to(device), free.to(device), generator, **options).x.cpu()


def extracted(subject: Subject, at_once: int) -> Measured | None:
    """Share of training prefixes of 32 tokens whose next 32 come out exactly at temperature 0.

    This is extractable memorisation (Carlini et al. 2021). A prefix is shorter where windows are.
    None for models that do not reveal token by token.
    """
    if not subject.mask_predictor and not (subject.causal and at_once == 1):
        return None
    train, prefix = subject.texts.train, min(PREFIX, subject.data.source.seq_len // 2)
    count = min(subject.settings.extractions, len(train) // (2 * prefix))
    if at_once > prefix or count == 0:
        return None
    starts = np.arange(count) * (len(train) - 2 * prefix) // max(count - 1, 1)
    true = torch.from_numpy(train[starts[:, None] + np.arange(2 * prefix)].astype(np.int64))
    free = torch.zeros_like(true, dtype=torch.bool)
    free[:, prefix:] = True
    right = continued(subject, true.masked_fill(free, 0), free, at_once)[:, prefix:] == true[:, prefix:]
    details = {"prefix": prefix, "tokens_at_once": at_once, "tokens_right": float(right.double().mean())}
    return Measured(*mean_and_se(right.all(1).double()), count, SHARE, split="train", details=details)


def extraction(subject: Subject) -> Measured | None:
    """Of what was trained on, one token at a time: the maximum resolution."""
    return extracted(subject, 1)


def extraction_fast(subject: Subject) -> Measured | None:
    """The same with eight tokens at a time. Mask predictors only."""
    return extracted(subject, FAST)


def entropy(row: Int[np.ndarray, " L"]) -> float:
    """Of the token frequencies within one sequence, in nats."""
    p = np.unique(row, return_counts=True)[1] / len(row)
    return float(-(p * np.log(p)).sum())


def distinct(row: Int[np.ndarray, " L"], n: int = 3) -> float:
    """The share of a sequence's token n-grams that are different from one another."""
    grams = np.lib.stride_tricks.sliding_window_view(row, n)
    return len(np.unique(grams, axis=0)) / len(grams)


def sample_entropy(subject: Subject) -> Measured:
    """Token entropy within a sample, on average: low where it repeats itself. Beside held-out text's."""
    rows, text = sampled(subject), held_out(subject, NATURAL_WINDOWS)
    details = {"natural": mean_and_se([entropy(row) for row in text])[0]}
    return Measured(*mean_and_se([entropy(row) for row in rows]), len(rows), "nats", details=details)


def distinct_3(subject: Subject) -> Measured | None:
    """Distinct 3-grams per 3-gram within a sample, on average, beside held-out text's."""
    if subject.data.source.seq_len < 3:
        return None
    rows, text = sampled(subject), held_out(subject, NATURAL_WINDOWS)
    details = {"natural": mean_and_se([distinct(row) for row in text])[0]}
    return Measured(*mean_and_se([distinct(row) for row in rows]), len(rows), SHARE, details=details)
