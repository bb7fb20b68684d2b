"""How probable a model finds a sequence: estimators and exact scores on (process, denoise) alone.

Everything is in nats per sequence, summed over the `target` positions; divide by their number for nats per token.

    kinds            the names of all likelihoods, and which of them a process has
    bounds           the any-order, continuous and T-step bounds, by Monte Carlo
    chain            the chain rule in a given or adaptive order: exact, one network row per token
    random_orders    K random orders: their mean, their mixture, their variance
    orders           the moments over all orders, exact for short sequences
    squares          the square defect
    calibration      the temperature that a likelihood likes best
    counting         network rows
    masking          the mask of a mask predictor
"""

from dlm.likelihood.bounds import any_order_nelbo, continuous_nelbo, step_nelbo
from dlm.likelihood.calibration import best_temperature, tempered
from dlm.likelihood.chain import adaptive_nll, autoregressive_nll, left_to_right_nll, order_nll
from dlm.likelihood.counting import Counted
from dlm.likelihood.kinds import EXACT, Kind, autoregressive_kinds, kinds
from dlm.likelihood.masking import mask_id
from dlm.likelihood.orders import OrderMoments, order_moments
from dlm.likelihood.random_orders import mixture_nll, random_order_log_p, variance_pseudo_values
from dlm.likelihood.squares import SquareDefect, square_defect, square_defect_draws
from dlm.process.masked import masking_time

__all__ = [
    "EXACT",
    "Counted",
    "Kind",
    "OrderMoments",
    "SquareDefect",
    "adaptive_nll",
    "any_order_nelbo",
    "autoregressive_kinds",
    "autoregressive_nll",
    "best_temperature",
    "continuous_nelbo",
    "kinds",
    "left_to_right_nll",
    "mask_id",
    "masking_time",
    "mixture_nll",
    "order_moments",
    "order_nll",
    "random_order_log_p",
    "square_defect",
    "square_defect_draws",
    "step_nelbo",
    "tempered",
    "variance_pseudo_values",
]
