"""What the figures share: means with their errors over seeds, the axis of steps, captions with their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dlm.report.measurements import Measurements
from dlm.report.page import Figure
from dlm.report.style import log_axis, save
from dlm.report.tables import plus_minus

INK, BLUE, ORANGE, GREEN, GREY = "#222222", "#0072b2", "#c8590a", "#009e73", "#777777"
BARS = "Bands and bars: ± one standard error over seeds."


def mean_se(values: Any) -> tuple[Any, Any]:
    """Mean and standard error over the last axis, which are the seeds; one seed has no error (nan)."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    return values.mean(-1), values.std(-1, ddof=1) / math.sqrt(n) if n > 1 else values[..., 0] * math.nan


def signed(values: Any, sign: str = "+") -> str:
    mean, se = mean_se(values)
    return plus_minus(float(mean), float(se), sign)


def band(axes: Any, x: Any, values: Any, colour: str, **line: Any) -> None:
    """A line with its standard error."""
    mean, se = mean_se(values)
    axes.fill_between(x, mean - se, mean + se, color=colour, alpha=0.15, lw=0)
    axes.plot(x, mean, color=colour, **line)


def since(steps: Iterable[float]) -> np.ndarray:
    """Steps for a logarithmic axis that holds the start: it stands at one half."""
    return np.maximum(np.asarray(list(steps), float), 0.5)


def step_axis(axes: Any, steps: Iterable[float]) -> None:
    x = since(steps)
    ticks = [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if v <= x[-1]]
    log_axis(axes.xaxis, [0.5, *ticks])
    axes.xaxis.set_major_formatter(lambda v, _: "0" if v < 1 else f"{v:,g}")
    axes.set(xlim=(0.5, x[-1]), xlabel="training steps")


def shown(measured: Measurements, figure: Any, name: str, caption: str) -> Figure:
    """A finished figure, with the name of the file that holds its numbers."""
    numbers = "orders" if name == "gap" else name
    text = f"{caption} Numbers: {numbers}.csv."
    return Figure(name, save(figure, measured.directory, name), text, measured.again)
