"""What the study's figures share: one panel per cell, lines with bands, and the three files of a figure.

A figure first gathers the frame of exactly what it will draw, then draws that frame; `publish` writes both. Where
a study lacks the data, the figure's function returns `Absent` with the reason instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from dlm.report.page import Figure
from dlm.report.study import Study
from dlm.report.style import canvas, heading, ink, key, log_axis, save
from dlm.report.summary import Frame, Summary

GREY = "#777777"
MOST = 8  # cells drawn in one figure
WIDTH = 8.2


class OfStudy(Protocol):
    """Whatever knows which study it is about."""

    @property
    def study(self) -> Study: ...


class Absent(NamedTuple):
    """A figure or table that this study's data do not allow, and why."""

    number: str
    title: str
    why: str


def publish(summary: OfStudy, number: str, name: str, figure: Canvas, frame: Frame, caption: str) -> Figure:
    """Write figures/<name>.svg, .png and .csv (exactly the data drawn) and return the figure for the page."""
    study = summary.study
    svg = save(figure, study.directory, name)
    frame.to_csv(study.directory / "figures" / f"{name}.csv", index=False, float_format="%.6g")
    return Figure(name, svg, caption, study.again, number=number, csv=f"figures/{name}.csv")


def drawn(summary: Summary, frame: Frame) -> tuple[list[dict[str, Any]], Frame, str]:
    """The cells that a frame speaks of, at most `MOST`; the frame cut to them; a sentence if any was left out."""
    present = [cell for cell in summary.cells if (frame["cell"] == cell["cell"]).any()]
    cells = present[:MOST]
    left = f" Only the first {MOST} of {len(present)} cells are drawn." if len(present) > MOST else ""
    return cells, frame[frame["cell"].isin([c["cell"] for c in cells])], left


def title(cell: dict[str, Any]) -> str:
    size = f", {cell['size']}" if cell.get("size") else ""
    control = " (control)" if cell["role"] == "control" else ""
    return f"{cell['cell']}: {cell['unique_tokens']:,} unique tokens{size}{control}"


def column(
    cells: Sequence[dict[str, Any]], height: float = 3.7
) -> tuple[Canvas, list[tuple[dict[str, Any], Axes]]]:
    """One panel under another, one per cell."""
    figure, axes = canvas(WIDTH, height * len(cells) + 0.3, rows=len(cells))
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        heading(ax, title(cell))
    return figure, list(zip(cells, axes[:, 0], strict=True))


def banded(ax: Axes, x: Frame, y: Frame, se: Frame, arm: str, **line: Any) -> None:
    """A line in the arm's ink with ± one standard error."""
    look = ink(arm)
    ax.fill_between(x, y - se, y + se, color=look.colour, alpha=0.14, lw=0)
    style: dict[str, Any] = {"ls": look.dash} | line
    ax.plot(x, y, color=look.colour, **style)


def limits(frame: Frame, value: str = "nll") -> tuple[float, float]:
    """Limits of a loss axis: from just below the best to where the slowest arm's learning still shows."""
    lowest = frame.groupby("arm")[value].min()
    floor, top = lowest.min(), frame[value].max()
    top = min(top, floor + max(1.3, 2.5 * (lowest.max() - floor)))
    return floor - 0.06 * (top - floor), top + 0.02 * (top - floor)


def arm_key(figure: Canvas, summary: Summary, arms: Sequence[str], extra: Sequence[Line2D] = ()) -> None:
    """The arms' colours above the panels, for figures with no room for direct labels."""
    lines = []
    for arm in arms:
        look = ink(arm)
        lines.append(
            Line2D([], [], color=look.colour, ls=look.dash, marker=look.marker, ms=4, label=summary.label(arm))
        )
    key(figure, [*lines, *extra], columns=5)


def grid(
    summary: Summary,
    frame: Frame,
    rows: Sequence[tuple[str, str]],
    xlabel: str = "epochs of training",
    height: float = 2.1,
    most: int = 4,
) -> tuple[Canvas, Frame]:
    """A row of panels per quantity (`row`), a column of them per cell: `value` ± `se` by `epoch`, a line per arm.

    `line` is solid or dashed; `floor` is a natural or chance level, dotted in grey, or NaN. Arms are moved apart a
    little, so that their errors can be told apart. Returns the canvas and the part of the frame that was drawn.
    """
    cells = [c for c in summary.cells if (frame["cell"] == c["cell"]).any()][:most]
    rows = [(name, label) for name, label in rows if (frame["row"] == name).any()]
    frame = frame[frame["cell"].isin([c["cell"] for c in cells])]
    width = 2.6 + 2.5 * len(cells)
    figure, axes = canvas(
        width, height * len(rows) + 1.0, rows=len(rows), columns=len(cells), sharex="col", sharey="row"
    )
    for i, (name, label) in enumerate(rows):
        for j, cell in enumerate(cells):
            ax = axes[i, j]
            log_axis(ax.xaxis, few=True)
            part = frame[(frame["row"] == name) & (frame["cell"] == cell["cell"])]
            for k, ((arm, line), points) in enumerate(part.groupby(["arm", "line"], sort=False)):
                look = ink(str(arm))
                apart = points["epoch"] * 1.015**k
                ax.errorbar(
                    apart, points["value"], yerr=points["se"].fillna(0), color=look.colour, lw=1.2,
                    ls="--" if line == "dashed" else "-", marker=look.marker, ms=3.5, elinewidth=0.8,
                    mfc="white" if line == "dashed" else look.colour,
                )  # fmt: skip
            if part["floor"].notna().any():
                ax.axhline(part["floor"].mean(), color="#999999", ls=":", lw=1.1)
            if not i:
                heading(ax, f"{cell['cell']}")
            if not j:
                ax.set_ylabel(label, fontsize=8)
            if i == len(rows) - 1:
                ax.set_xlabel(xlabel)
    return figure, frame
