"""Where a sampled function first changes sign from below and stays up: one function, or thousands at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from dlm.report.curve import Array

Status = Literal["clear", "within noise", "from the start", "not reached"]

CLEAR = 2.0  # standard errors


class Upcrossing(NamedTuple):
    """What `upcrossing` found: how sure, where (in the units of x), and the index that confirmed it."""

    status: Status
    x: float
    confirmed: int | None


def upcrossing(x: Sequence[float], d: Sequence[float], se: Sequence[float], confirmations: int) -> Upcrossing:
    """First upward sign change of d whose excursion holds `confirmations` consecutive values above 2 SE.

    Failing that, an unconfirmed excursion that lasts to the end is "within noise". An excursion without a sign
    change, positive from the first value on, counts only if it never ends: "from the start" once confirmed. NaN
    (no baseline yet) starts the record anew.
    """
    begun: float | None = None
    steady = False
    streak = first = 0
    for i, value in enumerate(d):
        if math.isnan(value):
            begun, steady, streak, first = None, False, 0, i + 1
            continue
        if value <= 0:
            begun, streak = None, 0
            continue
        if begun is None and i > first:
            begun = x[i - 1] + (x[i] - x[i - 1]) * -d[i - 1] / (value - d[i - 1])
        elif begun is None:
            begun = -math.inf
        streak = streak + 1 if value > CLEAR * se[i] else 0
        if streak >= confirmations and math.isfinite(begun):
            return Upcrossing("clear", begun, i)
        steady = steady or streak >= confirmations
    if begun is None:
        return Upcrossing("not reached", math.inf, None)
    if begun == -math.inf:
        return Upcrossing("from the start" if steady else "within noise", x[first], None)
    return Upcrossing("within noise", begun, None)


def first_upcrossings(x: Array, d: Array, se: Array, confirmations: int) -> Array:
    """The locations that `upcrossing` finds in every row of d, [R, G] -> [R]; +inf where there is none."""
    rows, columns = d.shape
    begun, found = np.full(rows, np.nan), np.full(rows, np.nan)
    streak, first = np.zeros(rows, int), np.zeros(rows, int)
    for i in range(columns):
        value = d[:, i]
        unknown, above = np.isnan(value), value > 0
        first[unknown] = i + 1
        starts = above & np.isnan(begun)
        if i:
            rise = starts & (first < i)
            before = d[rise, i - 1]
            begun[rise] = x[i - 1] + (x[i] - x[i - 1]) * -before / (value[rise] - before)
            starts &= ~rise
        begun[starts] = -np.inf
        begun[~above] = np.nan
        streak = np.where(value > CLEAR * se[i], streak + 1, 0) * above
        confirmed = (streak >= confirmations) & np.isfinite(begun) & np.isnan(found)
        found[confirmed] = begun[confirmed]
    ends = np.where(np.isnan(begun), np.inf, np.where(begun == -np.inf, x[np.minimum(first, columns - 1)], begun))
    return np.where(np.isnan(found), ends, found)
