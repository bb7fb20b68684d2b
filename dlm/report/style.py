"""The house style: how an arm is drawn in every figure of every study, and the parts that all figures share."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D


class Ink(NamedTuple):
    """How an arm is drawn, in every figure of every study."""

    colour: str
    dash: str | tuple
    marker: str


INKS = {  # autoregressive models in black and warm tones, diffusion in blues and greens (Okabe-Ito where possible)
    "arm": Ink("#222222", "-", "s"),
    "arm-reg": Ink("#c8590a", "-", "D"),
    "md4": Ink("#0072b2", "-", "o"),
    "md4-reg": Ink("#0072b2", "--", "o"),
    "shuffle": Ink("#009e73", "-", "^"),
    "udlm": Ink("#009e73", "--", "h"),
    "dfm_mask": Ink("#56b4e9", "-", "v"),
    "dfm_uniform": Ink("#66c2a5", "-.", "<"),
    "genmd4": Ink("#332288", "-", ">"),
    "aoarm": Ink("#6a6fc7", "-.", "P"),
    "any-order": Ink("#6a6fc7", "-", "P"),
    "dual": Ink("#a0428f", "-", "X"),
}
SPARE = ("#117733", "#88a0dc", "#44aa99", "#1f4e79")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ebebeb",
    "grid.linewidth": 0.7,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    "xtick.minor.size": 0,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.fonttype": "path",
}


def ink(arm: str) -> Ink:
    """The arm's own ink; an unknown arm gets a spare colour that depends on its name alone."""
    spare = SPARE[int(hashlib.sha256(arm.encode()).hexdigest(), 16) % len(SPARE)]
    return INKS.get(arm, Ink(spare, "-", "o"))


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Canvas, Any]:
    """A figure (inches) and its [rows, columns] axes in the house style."""
    engine = ConstrainedLayoutEngine(h_pad=0.08, hspace=0.06 if rows > 1 else 0)
    with plt.rc_context(STYLE):
        size = (width, height)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout=engine, **options)
    return figure, axes


def heading(axes: Axes, text: str) -> None:
    """A panel's title, flush left."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color="#222222", pad=9)


def key(figure: Canvas, marks: Sequence[Line2D], columns: int | None = None) -> None:
    """What the marks mean, in grey, above the panels; in one row, or in so many `columns`, or fewer if they would
    not fit the figure."""
    most = min(columns or len(marks), len(marks))
    fitting = (n for n in range(most, 1, -1) if key_width(marks, n) <= figure.get_figwidth())
    figure.legend(
        handles=marks,
        loc="outside upper right",
        ncols=next(fitting, 1),
        fontsize=8,
        frameon=False,
        labelcolor="#555555",
        handletextpad=0.2,
        columnspacing=1.4,
    )


def key_width(marks: Sequence[Line2D], columns: int) -> float:
    """About how many inches a key takes: it is filled column by column, each as wide as its longest label."""
    rows, wide = divmod(len(marks), columns)
    sizes = [rows + (i < wide) for i in range(columns)]
    lengths = [len(str(mark.get_label())) for mark in marks]
    starts = [sum(sizes[:i]) for i in range(columns)]
    return sum(0.06 * max(lengths[s : s + n]) + 0.45 for s, n in zip(starts, sizes, strict=True))


def log_axis(axis: Any, ticks: Sequence[float] = (), few: bool = False) -> None:
    """A log scale with plainly written ticks at 1, 2, 5 (or `ticks`, or 1, 3 if `few`), not as powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    one_two_five = ticker.LogLocator(subs=(1, 3), numticks=6) if few else ticker.LogLocator(subs=(1, 2, 5))
    axis.set_major_locator(ticker.FixedLocator(ticks) if len(ticks) else one_two_five)
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(ticker.NullLocator())


class Tag(NamedTuple):
    """A direct label: its text and the y it belongs to."""

    y: float
    text: str
    colour: str


def label_right(axes: Axes, tags: Sequence[Tag], size: float = 8.5) -> None:
    """Write tags right of the axes at their y, moved apart just enough not to overlap, a thin leader to each.

    Call it last: it reads the limits. Raises nothing; tags beyond the limits are written at the edge.
    """
    low, high = axes.get_ylim()
    inches = axes.get_window_extent().height / axes.figure.dpi
    gap = (high - low) * size * 1.25 / 72 / inches
    tags = sorted(tags, key=lambda tag: tag.y)
    ys = spread([min(max(tag.y, low), high) for tag in tags], gap)
    if ys:  # the whole stack moves into the axes: up from below first, so that the top is what has to fit
        up = max(0.0, low - ys[0])
        down = min(0.0, high + gap / 2 - ys[-1] - up)
        ys = [y + up + down for y in ys]
    for tag, y in zip(tags, ys, strict=True):
        where = axes.get_yaxis_transform()
        leader = [min(max(tag.y, low), high), y]
        axes.plot(
            [1.003, 1.027],
            leader,
            color=tag.colour,
            lw=0.5,
            transform=where,
            clip_on=False,
            scalex=False,
            scaley=False,
        )
        axes.text(1.03, y, tag.text, color=tag.colour, fontsize=size, va="center", transform=where)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Sorted values moved as little as possible (least squares) so that neighbours are at least `gap` apart."""
    blocks: list[tuple[float, int]] = []  # (mean of value - rank * gap, size): isotonic regression of what is left
    for rank, value in enumerate(values):
        mean, size = value - rank * gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, n = blocks.pop()
            mean, size = (mean * size + other * n) / (size + n), size + n
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [mean + rank * gap for rank, mean in enumerate(flat)]


def save(figure: Canvas, directory: Path, name: str) -> Markup:
    """Write <directory>/figures/<name>.svg and .png, close the figure, return the SVG element for a page."""
    target = directory / "figures"
    target.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": name}
    with plt.rc_context(style):
        for axes in figure.axes:
            for artist in (*axes.lines, *axes.collections, *axes.patches):
                artist.set_in_layout(False)  # they lie within their axes
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine(None)  # laid out once, it stays where it is: half the time of a report
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(target / f"{name}.png")
    plt.close(figure)
    (target / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])
