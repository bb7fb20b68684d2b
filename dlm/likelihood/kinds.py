"""Which likelihoods a process has: the names of `python -m dlm.evaluate likelihood=...`, each with what it is.

exact_count       the any-order NELBO of a mask predictor, by exact counts of masks; no boundary terms
continuous        the process's own strict bound: sampled times, reconstruction and prior terms; for flow
                  matching between tokens, the tight bound of the diffusion with the same marginals
steps             the T-step bound on a grid of times, of any process; infinite where a score network's step
                  cannot lead to the data
flow_path         the path bound of flow matching: valid, looser than `continuous` on the same network
left_to_right     the chain rule in reading order: exact
permuted          the chain rule in one fixed order of a given closeness to reading order: exact; what an
                  autoregressive model of permuted text is reported by
order_mixture     -log of the mean of p(x | sigma) over the fixed orders of an autoregressive model: exact, the
                  likelihood of the model that draws its order first
causal            of a dual model, the chain rule under causal attention: exact; its left_to_right is that of the
                  mask predictor
top_probability, margin, log_ratio, entropy
                  the chain rule in an order that the network chooses from what it sees: exact
random_order      the mean of -log p(x | sigma) over K random orders: another estimator of the any-order NELBO
mixture           -log of the mean of p(x | sigma) over K random orders: a bound that tightens with K
order_variance    the variance of log p(x | sigma) over random orders
square_defect     what a swap of two neighbours of the order changes
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.augment import Permutation
from dlm.likelihood.bounds import any_order_nelbo, continuous_nelbo, step_nelbo
from dlm.likelihood.chain import adaptive_nll, autoregressive_nll, left_to_right_nll, order_nll
from dlm.likelihood.random_orders import mixture_nll, random_order_log_p, variance_pseudo_values
from dlm.likelihood.squares import square_defect_draws
from dlm.process import FlowMatching, Process, UniformDiffusion
from dlm.process.base import Denoise
from dlm.process.masked import ANY_ORDER
from dlm.process.parameterisation import converted

Draws = Callable[
    [Denoise, Int[Tensor, "B L"], Bool[Tensor, "B L"], Int[Tensor, " B"], int, int], Float[Tensor, "B draws"]
]
"""draws(denoise, x0, target, index, draws, seed): nats per window, one column per draw, one column if exact."""

Columns = Callable[[Float[Tensor, "B rounds draws"]], Float[Tensor, "B columns"]]

EXACT = "exact"


def mean_of_draws(raw: Float[Tensor, "B rounds draws"]) -> Float[Tensor, "B columns"]:
    """The draws of a single round; the means of several, which are independent even where draws are stratified."""
    return raw[:, 0] if raw.shape[1] == 1 else raw.mean(2)


def minus_mean(raw: Float[Tensor, "B rounds orders"]) -> Float[Tensor, "B columns"]:
    return -mean_of_draws(raw)


def order_variances(raw: Float[Tensor, "B rounds orders"]) -> Float[Tensor, "B columns"]:
    return mean_of_draws(variance_pseudo_values(raw))


@dataclass(frozen=True)
class Kind:
    """One likelihood of a model: what the number is, how its draws are made and what is made of them.

    `columns` turns the draws of one or more independent rounds into columns whose mean is the estimate and whose
    spread is its Monte-Carlo error.  Kinds of one `source` are made of the same draws.
    """

    bound: str  # "exact", or which bound or statistic
    source: str
    draws: Draws
    columns: Columns = mean_of_draws
    unit: str = "nats per token"
    count: Literal["draws", "orders", "one"] = "draws"  # what sets the number of columns of one round
    settings: Mapping[str, object] = field(default_factory=dict)  # what else decides the numbers

    @property
    def per_token(self) -> bool:
        return self.unit == "nats per token"

    @property
    def label(self) -> str:
        """As printed: "exact", "bound (...)", or the name of what is no likelihood."""
        return self.bound if not self.per_token or self.bound.startswith(EXACT) else f"bound ({self.bound})"


def exact(nll: Callable[..., Float[Tensor, " B"]], source: str, **settings: object) -> Kind:
    """A kind without draws, from nll(denoise, x0, target)."""

    def draws(denoise, x0, target, *_):
        return nll(denoise, x0, target).double()[:, None]

    return Kind(EXACT, source, draws, count="one", settings=settings)


def permuted(nll: Callable[..., Float[Tensor, " B"]], permutation: Permutation) -> Kind:
    """A kind without draws, from nll(denoise, x0, target, order): order[j] is the position revealed j-th."""

    def in_order(denoise, x0, target):
        return nll(denoise, x0, target, permutation.order(x0.shape[1]).to(x0.device))

    names = {"closeness": permutation.closeness, "permutation_seed": permutation.seed}
    return exact(in_order, "permuted", **names)


Listed = Callable[[int], tuple[Int[Tensor, "K L"], Float[Tensor, " K"]]]
"""listed(length): fixed orders, and the probability of each."""


def autoregressive_kinds(
    start: int, orders: Listed | None = None, permutation: Permutation | None = None
) -> dict[str, Kind]:
    """An autoregressive model has its exact likelihood, from the left or of permuted text; if it knows several
    orders, their mixture too."""

    def nll(denoise, x0, target):
        return autoregressive_nll(denoise, x0, target, start).double().sum(1)

    def nll_of_permuted(denoise, x0, target, order):
        return nll(denoise, x0[:, order], target[:, order])

    if permutation is not None:
        return {"permuted": permuted(nll_of_permuted, permutation)}
    found = {"left_to_right": exact(nll, "left_to_right")}
    if orders is None:
        return found

    def mixture(denoise, x0, target):
        listed, share = (part.to(x0.device) for part in orders(x0.shape[1]))
        nlls = [
            autoregressive_nll(denoise, x0, target, start, order=order.expand(x0.shape)).double().sum(1)
            for order in listed
        ]
        return -(share.log() - torch.stack(nlls, 1)).logsumexp(1)

    return found | {"order_mixture": exact(mixture, "order_mixture")}


def kinds(
    process: Process,
    scores: Mapping[str, Callable[[Tensor], Tensor]],
    times: Float[Tensor, " T+1"],
    grid: str = "uniform",
    permutation: Permutation | None = None,
) -> dict[str, Kind]:
    """The likelihoods of a process by name, the one it is reported by first.

    Args:
        scores: of masked positions, by name: the orders that a network may choose.
        times: 0 = t_0 < ... < t_T = t_max, the grid of the T-step bound, called `grid`.
        permutation: the fixed order of `permuted`; without one, a mask predictor has no such likelihood.
    """
    steps = len(times) - 1
    settings = {"steps": steps, "grid": grid}
    draws = partial(_step_draws, process, times)
    own = {} if process.steps is not None else _continuous(process)
    own["steps"] = Kind(f"{steps}-step bound", f"steps-{steps}-{grid}", draws, settings=settings)
    if not process.mask_predictor:
        return own
    counted = {"exact_count": Kind(ANY_ORDER, "exact_count", partial(_draws, any_order_nelbo, process))}
    reported = counted | own if process.bound_kind == ANY_ORDER else own | counted
    return reported | _chain_rules(process, scores, permutation)


def _draws(estimator, process, denoise, x0, target, index, draws, seed):
    return estimator(process, denoise, x0, target, index, draws, seed)


def _step_draws(process, times, denoise, x0, target, index, draws, seed):
    return step_nelbo(process, denoise, x0, target, index, draws, seed, times)


def _converted_draws(process, other, denoise, x0, target, index, draws, seed):
    denoise = converted(denoise, process, other.predicts)
    return continuous_nelbo(other, denoise, x0, target, index, draws, seed)


def _continuous(process: Process) -> dict[str, Kind]:
    """The strict continuous bounds: the process's own, and that of the other process with the same marginals."""
    own = Kind(process.bound_kind, "continuous", partial(_draws, continuous_nelbo, process))
    if isinstance(process, FlowMatching) and process.mask_id is None:
        tight = process.as_diffusion()
        draws = partial(_converted_draws, process, tight)
        return {
            "continuous": Kind(tight.bound_kind, "continuous", draws),
            "flow_path": replace(own, source="flow_path"),
        }
    if isinstance(process, UniformDiffusion) and process.predicts == "leave-one-out":
        path = FlowMatching(process.vocab_size, process.noise, schedule=process.schedule, t_min=process.t_min)
        return {
            "continuous": own,
            "flow_path": Kind(path.bound_kind, "flow_path", partial(_converted_draws, process, path)),
        }
    return {"continuous": own}


def _chain_rules(
    process: Process, scores: Mapping[str, Callable[[Tensor], Tensor]], permutation: Permutation | None
) -> dict[str, Kind]:
    """What follows from conditionals of hidden tokens: exact likelihoods, and how the orders disagree."""

    def squares(denoise, x0, target, index, draws, seed):
        return square_defect_draws(process, denoise, x0, index, draws, seed, target=target)

    def nll_in_order(denoise, x0, target, order):
        return order_nll(process, denoise, x0, target, order.argsort().double().expand(x0.shape))

    found = {"left_to_right": exact(partial(left_to_right_nll, process), "left_to_right")}
    if permutation is not None:
        found["permuted"] = permuted(nll_in_order, permutation)
    for name, score in scores.items():
        found[name] = exact(partial(adaptive_nll, process, score=score), name)
    orders = partial(_draws, random_order_log_p, process)
    per_window = "nats^2 per window"
    return found | {
        "random_order": Kind(ANY_ORDER, "orders", orders, minus_mean, count="orders"),
        "mixture": Kind("mixture of orders", "orders", orders, mixture_nll, count="orders"),
        "order_variance": Kind("variance over orders", "orders", orders, order_variances, per_window, "orders"),
        "square_defect": Kind("square defect", "squares", squares, unit="nats per square"),
    }
