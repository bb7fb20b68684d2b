"""Likelihoods of a checkpoint, and what follows from them: calibration, accuracy, order variance, membership.

All on the same evenly spread windows, under noise that is a function of the window alone: checkpoints and models
compare in pairs.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from dlm.likelihood import best_temperature, tempered
from dlm.measure.subject import Measured, Subject, each, mean_and_se

NATS = "nats per token"


class Mistaken:
    """A denoiser whose cross-entropy is 1 where the likeliest token is not the true one, 0 where it is: any
    likelihood that is a mean of cross-entropies becomes the error rate under the same draws."""

    def __init__(self, denoise):
        self.denoise = denoise

    def cross_entropy(self, x_t, t, x0, where, **how):
        return (self.denoise(x_t, t, where, **how).argmax(-1) != x0[where]).double()


def window_nll(subject: Subject, split: str, temperature: float = 1.0) -> Float[np.ndarray, " N"]:
    """The headline likelihood of each window, nats per token, its logits divided by a temperature."""
    key = ("nll", split, temperature)
    if key not in subject.found:
        x0, index = subject.windows(split, subject.settings.windows)
        denoise = tempered(subject.denoise, temperature)
        nats = subject.nats(subject.model.headline, x0, index, subject.settings.draws, denoise)
        subject.found[key] = nats.mean(1).numpy() / x0.shape[1]
    return subject.found[key]


def nll(subject: Subject) -> Measured:
    """The likelihood that the model is reported by; exact or a bound, as `details` says."""
    values = window_nll(subject, "report")
    details = {"kind": subject.model.headline.label, "each": each(values)}
    return Measured(*mean_and_se(values), len(values), NATS, details=details)


def a_law(subject: Subject) -> bool:
    """Whether the network's logits are the law of a token, which a temperature may reshape."""
    process = getattr(subject.model, "process", None)
    return process is None or process.predicts != "score" or process.mask_predictor


def fitted_temperature(subject: Subject) -> float:
    """The temperature that the tune split likes best (`dlm.likelihood.calibration`)."""
    if "temperature" not in subject.found:
        subject.found["temperature"] = best_temperature(lambda t: float(window_nll(subject, "tune", t).mean()))
    return subject.found["temperature"]


def temperature(subject: Subject) -> Measured | None:
    """T* itself: above 1 where the model is too sure of itself. None for a network of unnormalised ratios."""
    if not a_law(subject):
        return None
    count = len(window_nll(subject, "tune"))
    return Measured(fitted_temperature(subject), None, count, "temperature", None, "tune")


def nll_calibrated(subject: Subject) -> Measured | None:
    """The same likelihood at T*: what the model knows, apart from how badly it is calibrated."""
    if not a_law(subject):
        return None
    t = fitted_temperature(subject)
    before, after = window_nll(subject, "report"), window_nll(subject, "report", t)
    gain, se = mean_and_se(before - after)
    details = {"temperature": t, "gain": gain, "se_gain": se, "each": each(after)}
    return Measured(*mean_and_se(after), len(after), NATS, details=details)


def top1(subject: Subject) -> Measured | None:
    """Share of tokens whose likeliest prediction is the true one.

    Autoregressive: of the next token. Mask predictors: of a masked token, at the mask counts and masks of the
    any-order bound, 1/k summed over the k masked, so that each count weighs the same. None for other processes.
    """
    kind = subject.model.headline if subject.causal else subject.model.likelihoods().get("exact_count")
    if kind is None:
        return None
    x0, index = subject.windows("report", subject.settings.windows)
    errors = subject.nats(kind, x0, index, subject.settings.draws, Mistaken(subject.denoise)).mean(1)
    details = {"of": "the next token" if subject.causal else "masked tokens"}
    right = mean_and_se(1 - errors / x0.shape[1])
    return Measured(*right, len(x0), "share", 1 / subject.model.vocab_size, details=details)


def in_a_chain(subject: Subject, *names: str) -> Measured | None:
    """A likelihood that costs a network row per token, on a few whole windows, beside the headline on the same."""
    has = subject.model.likelihoods()
    kind = next((has[name] for name in names if name in has), None)
    if kind is None:
        return None
    x0, index = subject.windows("report", subject.settings.chain_windows)
    raw = subject.nats(kind, x0, index, subject.settings.orders)
    values = kind.columns(raw[:, None]).mean(1).reshape(-1).numpy() / x0.shape[1]
    headline = subject.model.headline
    same = subject.nats(headline, x0, index, max(8, subject.settings.draws)).mean(1).numpy() / x0.shape[1]
    difference, se = mean_and_se(values - same)
    details: dict[str, Any] = {"kind": kind.label, "each": each(values)}
    if kind.count == "orders":
        details["orders"] = subject.settings.orders
    details |= {"nll_same_windows": float(same.mean()), "difference": difference, "se_difference": se}
    return Measured(*mean_and_se(values), len(values), NATS, details=details)


def left_to_right(subject: Subject) -> Measured | None:
    """The exact likelihood in reading order. None for models without conditionals of hidden tokens."""
    return in_a_chain(subject, "left_to_right")


def mixture(subject: Subject) -> Measured | None:
    """-log mean_k p(x | sigma_k) over K random orders: a bound that tightens with K.

    Of an autoregressive model of several fixed orders, the exact likelihood under a random one of them. None for
    other models.
    """
    return in_a_chain(subject, "mixture", "order_mixture")


def order_variance(subject: Subject, split: str) -> Measured | None:
    """Var_sigma log p(x | sigma) / L over random orders, unbiased, of the first `order_tokens` of some windows.

    Zero for a model that is consistent about the order of revealing. Mask predictors only.
    """
    kind = subject.model.likelihoods().get("order_variance")
    if kind is None:
        return None
    x0, index = subject.windows(split, subject.settings.order_windows)
    x0 = x0[:, : subject.settings.order_tokens]
    raw = subject.nats(kind, x0, index, subject.settings.orders)
    values = kind.columns(raw[:, None]).mean(1) / x0.shape[1]
    details = {"orders": subject.settings.orders, "tokens": x0.shape[1]}
    return Measured(*mean_and_se(values), len(values), "nats^2 per token", None, split, details)


def order_variance_train(subject: Subject) -> Measured | None:
    """`order_variance` of training windows."""
    return order_variance(subject, "train")


def order_variance_report(subject: Subject) -> Measured | None:
    """`order_variance` of held-out windows."""
    return order_variance(subject, "report")


def train_nll(subject: Subject) -> Measured:
    """The headline likelihood of training windows; `details` holds the gap to the report split."""
    train, report = window_nll(subject, "train"), window_nll(subject, "report")
    value, se = mean_and_se(train)
    other, se_other = mean_and_se(report)
    both = None if se is None or se_other is None else math.hypot(se, se_other)
    details = {"report": other, "gap": other - value, "se_gap": both, "each": each(train)}
    return Measured(value, se, len(train), NATS, split="train", details=details)


def auc(members: Float[np.ndarray, " M"], others: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """P(loss of a member < loss of another), ties counted half (Mann and Whitney 1947), and its standard error
    from the placement of each loss among the other group (DeLong et al. 1988)."""
    wins = (members[:, None] < others) + 0.5 * (members[:, None] == others)
    spread = sum(float(wins.mean(axis).var(ddof=1)) / wins.shape[1 - axis] for axis in (0, 1))
    return float(wins.mean()), math.sqrt(spread)


def membership_auc(subject: Subject) -> Measured | None:
    """How well a threshold on the loss tells training windows from held-out ones (Yeom et al. 2018)."""
    train, report = window_nll(subject, "train"), window_nll(subject, "report")
    if min(len(train), len(report)) < 2:
        return None
    details = {"train_windows": len(train), "report_windows": len(report)}
    return Measured(*auc(train, report), len(train) + len(report), "probability", 0.5, details=details)


def weight_norm(subject: Subject) -> Measured:
    """sqrt of the sum of squares of all weight matrices, the embedding among them."""
    matrices = {n: p.detach().double() for n, p in subject.model.named_parameters() if p.ndim > 1}
    squares = {n: float(p.square().sum()) for n, p in matrices.items()}
    embedding = sum(v for n, v in squares.items() if ".embed." in n)
    details = {"embedding": math.sqrt(embedding)}
    return Measured(math.sqrt(sum(squares.values())), None, len(squares), "norm", split="train", details=details)
