"""Held-out loss against epochs (F1) and against compute (F2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from dlm.report.crossing import Crossing
from dlm.report.page import Figure
from dlm.report.panels import GREY, MOST, Absent, banded, column, drawn, limits, publish
from dlm.report.style import Tag, canvas, heading, ink, key, label_right, log_axis
from dlm.report.summary import Frame, Summary, joined

SAME = {"ls": "", "marker": "o", "ms": 6, "mfc": "white", "mec": GREY, "mew": 1.3, "label": "X1: same epoch"}
SO_FAR = {"ls": "", "marker": "D", "ms": 5.5, "mfc": GREY, "mec": "white", "label": "X2: best so far"}
COOLED = {"ls": "", "marker": "*", "ms": 8, "mfc": GREY, "mec": "white", "mew": 0.6}
CROWDED = 10  # comparisons in a cell beyond which crossings are not marked on the curves


def losses_figure(summary: Summary) -> Figure | Absent:
    """F1: loss against epochs, with cooled branches, minima, the baselines' best continued, and the crossings."""
    number, name = "F1", "f1-loss-epochs"
    trunk = summary.curves[summary.curves["arm"].isin(summary.arms())].assign(kind="trunk")
    if trunk.empty:
        return Absent(number, "loss against epochs", "no run has finished")
    cooled = summary.branches[summary.branches["arm"].isin(summary.arms())].assign(kind="cooled")
    frame = joined([trunk, cooled])
    cells, frame, left = drawn(summary, frame)
    unit = summary.results["unit"]
    figure, panels = column(cells)
    best = summary.best.set_index(["cell", "arm", "kind"])
    for cell, ax in panels:
        part = frame[frame["cell"] == cell["cell"]]
        log_axis(ax.xaxis)
        right = part["epoch"].max()
        ax.set(xlim=(part["epoch"].min(), right), ylim=limits(part[part.kind == "trunk"]))
        ax.set_xlabel("epochs of training (passes over the unique data)")
        ax.set_ylabel(f"held-out loss, {unit}")
        tags = []
        for arm in summary.arms(cell["cell"]):
            line = part[(part.arm == arm) & (part.kind == "trunk")]
            banded(ax, line.epoch, line.nll, line.se, arm)
            look, lowest = ink(arm), best.loc[(cell["cell"], arm, "trunk")]
            at = float(np.interp(math.log(lowest.epoch), np.log(line.epoch), line.nll))
            ax.plot(lowest.epoch, at, "o", ms=4.5, color=look.colour, zorder=4, clip_on=False)
            dots = part[(part.arm == arm) & (part.kind == "cooled")]
            ax.errorbar(dots.epoch, dots.nll, dots.se, fmt="*", ms=8, mfc=look.colour, mec="white", mew=0.6,
                        ecolor=look.colour, elinewidth=0.9, zorder=5)  # fmt: skip
            baseline = is_baseline(summary, arm)
            if baseline:
                ax.hlines(lowest.nll, lowest.epoch, right, look.colour, ":", lw=1, zorder=1)
            y = lowest.nll if baseline else line.nll.iloc[-1]
            tags.append(Tag(y, f"{summary.label(arm)}  {lowest.nll:.3f}", look.colour))
        found = [c for c in summary.results["comparisons"] if c["cell"] == cell["cell"] and not c["missing"]]
        for c in found if len(found) <= CROWDED else ():
            mark_crossings(ax, part, c, best)
        label_right(ax, tags)
    chosen = Line2D([], [], ls="", marker="o", ms=4, color=GREY, label="chosen on tune")
    level = Line2D([], [], ls=":", lw=1, color=GREY, label="baseline's best, continued")
    star = [Line2D([], [], **COOLED, label="cooled branch")] if len(cooled) else []
    key(figure, [Line2D([], [], **SAME), Line2D([], [], **SO_FAR), chosen, *star, level])
    caption = (
        f"Loss on the report split ({unit}; diffusion models: upper bounds) against epochs, logarithmic. Lines: "
        "mean over seeds; bands: ± one standard error over passages and seeds. Dots: the checkpoint chosen on "
        "tune, its loss at the right. Dotted: a baseline's best, continued. "
        + ("Stars: branches that were cooled down at that epoch. " if star else "")
        + "Circles: X1. Diamonds: X2. Marks take the colour of the baseline that is crossed"
        + f" (none where a cell has more than {CROWDED} comparisons)."
        + left
    )
    return publish(summary, number, name, figure, frame, caption)


def is_baseline(summary: Summary, arm: str) -> bool:
    return any(a["arm"] == arm and a["baseline"] for a in summary.study.plan["arms"])


def mark_crossings(ax: Any, part: Frame, comparison: dict[str, Any], best: Frame) -> None:
    """X1 on the process's curve (circle), X2 on the baseline's best (diamond); coloured like the baseline."""
    colour = ink(comparison["baseline"]).colour
    same, so_far = Crossing.from_json(comparison["x1"]), Crossing.from_json(comparison["x2"])
    if same.epoch is not None:
        line = part[(part.arm == comparison["process"]) & (part.kind == "trunk")]
        y = float(np.interp(math.log(same.epoch), np.log(line.epoch), line.nll))
        ax.plot(same.epoch, y, "o", ms=6.5, mfc="white", mec=colour, mew=1.3, zorder=5)
    if so_far.crossed:
        level = best.loc[(comparison["cell"], comparison["baseline"], "trunk")].nll
        ax.plot(so_far.epoch, level, "D", ms=6, mfc=colour, mec="white", mew=0.8, zorder=5)


def compute_figure(summary: Summary) -> Figure | Absent:
    """F2: the running best against training compute, in bits; the front over sizes where there are several."""
    number, name = "F2", "f2-loss-compute"
    factor, unit = summary.bits_per_nat
    trunk = summary.curves[summary.curves["arm"].isin(summary.arms())]
    if trunk.empty:
        return Absent(number, "loss against compute", "no run has finished")
    frame = trunk[["cell", "arm", "epoch", "flops", "seeds"]].assign(
        unique_tokens=trunk["cell"].map(summary.unique),
        bits=trunk["best"] * factor,
        se=trunk["best_se"] * factor,
        tune=trunk.groupby(["cell", "arm"])["tune"].cummin() * factor,
        kind="running best",
    )
    fronts = [front(rows, u, str(a)) for (u, a), rows in frame.groupby(["unique_tokens", "arm"], sort=False)]
    frame = joined([frame, *fronts])
    budgets = sorted(frame["unique_tokens"].unique())[:MOST]
    frame = frame[frame["unique_tokens"].isin(budgets)]
    figure, axes = canvas(8.2, 3.7 * len(budgets) + 0.3, rows=len(budgets))
    for budget, ax in zip(budgets, axes[:, 0], strict=True):
        part = frame[frame["unique_tokens"] == budget]
        heading(ax, f"{budget:,} unique tokens")
        compute_axis(ax, part["flops"].min(), part["flops"].max())
        ax.set(xlim=(part["flops"].min(), part["flops"].max()), ylim=limits(part, "bits"))
        ax.set_ylabel(f"best loss so far, {unit}")
        tags = []
        for arm in [a for a in summary.arms() if (part["arm"] == a).any()]:
            own, look = part[part.arm == arm], ink(arm)
            several = (own.kind == "front").any()
            for _, line in own[own.kind == "running best"].groupby("cell", sort=False):
                if several:
                    ax.plot(line.flops, line.bits, color=look.colour, lw=0.5, alpha=0.45)
                else:
                    banded(ax, line.flops, line.bits, line.se, arm)
            line = own[own.kind == "front"].sort_values("flops")
            ax.plot(line.flops, line.bits, color=look.colour, ls=look.dash, lw=2.0, drawstyle="steps-post")
            last = (line if several else own.sort_values("flops")).iloc[-1]
            ax.hlines(last.bits, last.flops, part["flops"].max(), look.colour, ":", lw=1, zorder=1)
            tags.append(Tag(last.bits, f"{summary.label(arm)}  {last.bits:.3f}", look.colour))
        cells = {c["cell"] for c in summary.cells if c["unique_tokens"] == budget}
        found = [c for c in summary.results["comparisons"] if c["cell"] in cells and not c["missing"]]
        best = summary.best.set_index(["cell", "arm", "kind"])
        for c in found if len(found) <= CROWDED else ():
            so_far = Crossing.from_json(c["x2"])
            if so_far.crossed:
                level = best.loc[(c["cell"], c["baseline"], "trunk")].nll * factor
                mark = {"ms": 6, "mfc": ink(c["baseline"]).colour, "mec": "white", "mew": 0.8, "zorder": 5}
                ax.plot(so_far.flops, level, "D", **mark)
        for f in (f for f in summary.results.get("fronts", []) if f["unique_tokens"] == budget):
            if f["matched"]["flops"] is not None:
                colour = ink(f["baseline"]).colour
                ax.axvline(f["matched"]["flops"], ymax=0.06, color=colour, lw=2, zorder=5)
        label_right(ax, tags)
    key(figure, [Line2D([], [], **SO_FAR), Line2D([], [], ls=":", lw=1, color=GREY, label="no further training")])
    sizes = (
        " Thick: the front over model sizes, chosen on tune; thin: each size; ticks below: X2 over sizes, in the "
        "baseline's colour."
        if (frame.kind == "front").any()
        else ""
    )
    caption = (
        f"Loss of the best checkpoint so far (chosen on tune, reported on report; {unit}) against training "
        f"compute. Bands: ± one standard error over passages and seeds.{sizes} Dotted: no further training. "
        "Diamonds: X2 at one model size. Evaluation is not counted as compute."
    )
    return publish(summary, number, name, figure, frame, caption)


def compute_axis(ax: Any, left: float, right: float) -> None:
    """A logarithmic axis of FLOPs with ticks as powers of ten."""
    log_axis(ax.xaxis)
    if right > 100 * left:
        ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
    ax.set_xlabel("training compute, FLOPs (forward and backward)")


def front(rows: Frame, unique: Any, arm: str) -> Frame:
    """The best so far over an arm's sizes at one budget of text, chosen on tune; empty where it has one size."""
    if rows["cell"].nunique() < 2:
        return rows.iloc[:0]
    ordered = rows.sort_values("flops", kind="stable")
    lowest = ordered["tune"].cummin()
    return ordered[lowest.diff().fillna(-1) < 0].assign(
        cell="all sizes", kind="front", unique_tokens=unique, arm=arm
    )
