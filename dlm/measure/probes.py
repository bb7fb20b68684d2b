"""Choices between a true sequence and false ones, by likelihood: what a model knows, loss apart.

An autoregressive model scores the whole sequence, so that what stands after the exchanged segment counts as well.
A diffusion model is asked for the segment given the rest: the bound with the segment as its target, under noise
that all options of an item share, so that their difference is what is estimated (a bracket, a single token, takes
one exact answer of a mask predictor). Options within `TIE` nats of the best share the point.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dlm.measure.items import Items, Layout, brackets, choices
from dlm.measure.subject import Measured, Subject, each, mean_and_se

TIE = 1e-5  # nats: the same sequence in another batch may differ by rounding


def option_nats(subject: Subject, items: Items) -> Float[Tensor, "N O"]:
    """-log p of every option, or its bound, up to a constant per item."""
    n, options, length = items.options.shape
    x0 = torch.from_numpy(items.options).reshape(n * options, length)
    index = torch.arange(n).repeat_interleave(options)
    if subject.causal:
        nats = subject.nats(subject.model.headline, x0, index, 1)
    else:
        target = torch.from_numpy(items.target).repeat_interleave(options, 0)
        single = subject.mask_predictor and int(target.sum(1).max()) == 1
        kind = subject.model.likelihoods()["exact_count"] if subject.mask_predictor else subject.model.headline
        nats = subject.nats(kind, x0, index, 1 if single else subject.settings.draws, target=target)
    return nats.mean(1).reshape(n, options)


def points(nats: Float[Tensor, "N O"]) -> tuple[Float[np.ndarray, " N"], float]:
    """1 / number tied where the first option is among the best, else 0; and the share of items with a tie."""
    best = nats <= nats.amin(1, keepdim=True) + TIE
    tied = best.sum(1)
    return (best[:, 0].double() / tied).numpy(), float((tied > 1).double().mean())


def choice(subject: Subject, items: Items) -> Measured | None:
    """Accuracy over items. None where the text has too few."""
    if len(items) == 0:
        return None
    right, ties = points(option_nats(subject, items))
    return accuracy(items, right, ties)


def accuracy(items: Items, right: Float[np.ndarray, " N"], ties: float) -> Measured:
    """The points of all items as a row."""
    details = {"ties": ties, "tokens": items.options.shape[2], "exchanged": int(items.target[0].sum())}
    details |= {"each": each(right)}
    return Measured(*mean_and_se(right), len(items), "share", 1 / items.options.shape[1], details=details)


def longest(subject: Subject) -> int:
    return subject.data.source.seq_len


def continuation(subject: Subject) -> Measured | None:
    """The true continuation of 8 tokens after 48, among three from elsewhere in the held-out text."""
    layout = Layout.continuation(longest(subject))
    return choice(subject, choices(subject.texts, layout, subject.settings.items))


def infill(subject: Subject) -> Measured | None:
    """The true 8 tokens between 24 and 24, among three from elsewhere."""
    layout = Layout.infill(longest(subject))
    return choice(subject, choices(subject.texts, layout, subject.settings.items))


def reversal(subject: Subject) -> Measured | None:
    """The true 8 tokens before 8 given ones; `details` holds the same places asked forwards, in pairs."""
    before, after = (
        choices(subject.texts, layout, subject.settings.items)
        for layout in (Layout.earlier(longest(subject)), Layout.later(longest(subject)))
    )
    if not len(before) == len(after) > 0:
        return None
    (right, ties), (forward, _) = (points(option_nats(subject, items)) for items in (before, after))
    difference, se = mean_and_se(right - forward)
    details = {"forward": float(forward.mean()), "difference": difference, "se_difference": se}
    found = accuracy(before, right, ties)
    return replace(found, details=found.details | details)


def closing_brackets(subject: Subject) -> Measured | None:
    """The true closing bracket or one of another kind, the text on both sides given."""
    return choice(subject, brackets(subject.texts, subject.settings.items, longest(subject)))
