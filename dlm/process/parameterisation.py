"""Three things a network may predict, and the exact ways between them.

    posterior        mu^i(a) = p(x0^i = a | x_t)                wanted by masks and flow matching
    leave-one-out    c^i(a)  = p(x0^i = a | x_t^{-i})           wanted by the plug-in reverse of uniform diffusion
    score            s^i(y)  = p_t(y, x_t^{-i}) / p_t(x_t)      wanted by score entropy

    mu(a) ~ c(a) q_t(x_t^i | a),     s(y) = q_t(y | c) / q_t(x_t^i | c),     c(a) ~ (s(a) - S u_t pi_a) / alpha_t,

with S = sum_y s(y).  A process says which one its network gives (`predicts`, stored with every checkpoint), and
nothing in the suite feeds one where another is wanted: the wrong one leaves a permanent bias, with uniform noise a
bound that is over a nat too high on 27 strings, and a sampler whose error does not shrink with its steps.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process.base import Denoise, Process

MEANINGS = ("posterior", "leave-one-out", "score")


def log_posterior(
    process: Process, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B L V"]:
    """log mu^i(a)."""
    return process.log_posterior(logits, x_t, t)


def log_leave_one_out(
    process: Process, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B L V"]:
    """log c^i(a).  Behind a mask only: a visible token of a masked sequence gives its own conditional away."""
    if process.predicts == "leave-one-out":
        return logits.log_softmax(-1)
    if process.predicts == "score" and process.mask_id is None:
        return process.log_leave_one_out(logits, x_t, t)  # pyright: ignore[reportCallIssue]
    log_mu = logits.log_softmax(-1)
    evidence = process.log_evidence(x_t, t).to(log_mu.dtype)
    known = evidence.isfinite().all(-1, keepdim=True)
    return torch.where(known, (log_mu - torch.where(known, evidence, 0.0)).log_softmax(-1), log_mu)


def log_score(
    process: Process, logits: Float[Tensor, "B L V"], x_t: Int[Tensor, "B L"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B L V"]:
    """log s^i(y) for the tokens y of the vocabulary, zero at x_t itself; of masks, only masked positions count."""
    if process.predicts == "score":
        return process.scores(logits, x_t, t)  # pyright: ignore[reportCallIssue]
    log_q = process.marginal(log_leave_one_out(process, logits, x_t, t).exp(), t).log()
    return (log_q - log_q.gather(-1, x_t[..., None]))[..., : process.vocab_size]


CONVERSIONS = {"posterior": log_posterior, "leave-one-out": log_leave_one_out, "score": log_score}


def converted(denoise: Denoise, process: Process, meaning: str) -> Denoise:
    """The network of `process` as one that predicts `meaning`, in logarithms; itself if it already does.

    Raises:
        UserError: for another meaning.
    """
    if meaning not in CONVERSIONS:
        raise UserError(f"a network predicts one of {', '.join(MEANINGS)}, not {meaning!r}")
    if process.predicts == meaning != "score":  # a score network's logits still have to be scaled
        return denoise
    convert = CONVERSIONS[meaning]

    def translated(x_t, t, where=None):
        logits = convert(process, denoise(x_t, t).double(), x_t, t)
        return logits if where is None else logits[where]

    return translated
