"""The figures of any study of loss curves: against epochs, against compute, the crossings, the likelihoods.

`results` is what a study's report computes and writes to results.json. Read here: `unit`; `labels`, by arm;
`best`, one entry per arm and cell; `comparisons`, each with its `cell`, `process` and `baseline`, the
crossings `x1` and `x2` as JSON, and under `missing` why there are none, else None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from dlm.report.crossing import Crossing
from dlm.report.curve import Curve
from dlm.report.page import Figure
from dlm.report.study import Study
from dlm.report.style import Tag, canvas, heading, ink, key, label_right, log_axis, save

GREY = "#777777"
SAME = {"ls": "", "marker": "o", "ms": 6, "mfc": "white", "mec": GREY, "mew": 1.3, "label": "X1: same epoch"}
SO_FAR = {"ls": "", "marker": "D", "ms": 5.5, "mfc": GREY, "mec": "white", "label": "X2: best so far"}

BANDS = "One line per seed. Bands: ± one standard error over held-out windows, the same windows for every run."


def at(curves: Sequence[Curve], epoch: float) -> float:
    """Report loss at an epoch, linear in log epoch, averaged over seeds."""
    x = math.log(epoch)
    return float(np.mean([np.interp(x, np.log(c.epochs), c.report.mean(axis=1)) for c in curves]))


def reached(curves: Sequence[Curve]) -> float:
    """Report loss of the checkpoint chosen on tune, averaged over seeds."""
    return float(np.mean([c.report[c.best].mean() for c in curves]))


def by_arm(study: Study, cell: dict[str, Any]) -> list[tuple[dict[str, Any], list[Curve]]]:
    """The arms that have finished runs in a cell, in the order of the plan, each with its curves."""
    arms = [(a, study.curves(cell["cell"], a["arm"])) for a in study.plan["arms"]]
    return [(a, curves) for a, curves in arms if curves]


def band(axes: Any, x: np.ndarray, loss: np.ndarray, colour: str, **line: Any) -> None:
    """The mean over windows of a [E, W] loss with its standard error."""
    mean, se = loss.mean(axis=1), loss.std(axis=1, ddof=1) / math.sqrt(loss.shape[1])
    axes.fill_between(x, mean - se, mean + se, color=colour, alpha=0.13, lw=0)
    axes.plot(x, mean, color=colour, **line)


def ceiling(curves: Sequence[Curve]) -> tuple[float, float]:
    """Limits of the loss axis: from just below the best to where the slowest arm's learning still shows."""
    lowest = [curve.report.mean(axis=1).min() for curve in curves]
    floor, top = min(lowest), max(curve.report.mean(axis=1).max() for curve in curves)
    top = min(top, floor + max(1.3, 2.5 * (max(lowest) - floor)))
    return floor - 0.06 * (top - floor), top + 0.02 * (top - floor)


def title(cell: dict[str, Any]) -> str:
    return f"{cell['cell']}: {cell['unique_tokens']:,} unique tokens" + (
        " (control)" if cell["role"] == "control" else ""
    )


def panels(study: Study, height: float = 3.7) -> tuple[Any, list[tuple[dict[str, Any], Any]]]:
    """One panel under another for every cell with a finished run."""
    cells = [cell for cell in study.plan["cells"] if any(run.cell == cell["cell"] for run in study.compared)]
    figure, axes = canvas(8.2, height * len(cells), rows=len(cells))
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        heading(ax, title(cell))
    return figure, list(zip(cells, axes[:, 0], strict=True))


def curves_figure(study: Study, results: dict[str, Any]) -> Figure:
    """Loss against epochs, all arms, with minima, the baselines' best continued, and the crossings."""
    figure, cells = panels(study)
    for cell, ax in cells:
        arms = by_arm(study, cell)
        everything = [curve for _, curves in arms for curve in curves]
        right = max(curve.epochs[-1] for curve in everything)
        log_axis(ax.xaxis)
        ax.set(xlim=(min(curve.epochs[0] for curve in everything), right), ylim=ceiling(everything))
        ax.set_xlabel("epochs of training (passes over the unique data)")
        ax.set_ylabel(f"held-out loss, {results['unit']}")
        tags = []
        for arm, curves in arms:
            look, lowest = ink(arm["arm"]), reached(curves)
            for curve in curves:
                band(ax, curve.epochs, curve.report, look.colour, ls=look.dash)
                best = (curve.epochs[curve.best], curve.report[curve.best].mean())
                ax.plot(*best, "o", ms=4, color=look.colour, zorder=4, clip_on=False)
            if arm["baseline"]:
                ax.hlines(lowest, min(c.epochs[c.best] for c in curves), right, look.colour, ":", lw=1, zorder=1)
            y = lowest if arm["baseline"] else float(np.mean([c.report[-1].mean() for c in curves]))
            tags.append(Tag(y, f"{arm['label']}  {lowest:.3f}", look.colour))
        for c in results["comparisons"]:
            if c["cell"] == cell["cell"] and not c["missing"]:
                mark_crossings(ax, study, c)
        label_right(ax, tags)
    chosen = Line2D([], [], ls="", marker="o", ms=4, color=GREY, label="checkpoint chosen on tune")
    level = Line2D([], [], ls=":", lw=1, color=GREY, label="baseline's best, continued")
    key(figure, [Line2D([], [], **SAME), Line2D([], [], **SO_FAR), chosen, level])
    caption = (
        f"Loss on the report split ({results['unit']}; diffusion models: upper bounds) against epochs, "
        f"logarithmic. {BANDS} Dots: the checkpoint chosen on tune. Dotted: the baseline's best, continued. "
        "Circles: X1. Diamonds: X2. Marks take the colour of the baseline that is crossed. Numbers at the "
        "right: loss of the chosen checkpoint."
    )
    return Figure("curves", save(figure, study.directory, "curves"), caption, study.again)


def mark_crossings(ax: Any, study: Study, comparison: dict[str, Any]) -> None:
    """X1 on the process's curve (circle), X2 on the baseline's best (diamond); coloured like the baseline."""
    ours, theirs = (study.curves(comparison["cell"], comparison[who]) for who in ("process", "baseline"))
    colour = ink(comparison["baseline"]).colour
    same, so_far = Crossing.from_json(comparison["x1"]), Crossing.from_json(comparison["x2"])
    if same.epoch is not None:
        ax.plot(same.epoch, at(ours, same.epoch), "o", ms=6.5, mfc="white", mec=colour, mew=1.3, zorder=5)
    if so_far.crossed:
        ax.plot(so_far.epoch, reached(theirs), "D", ms=6, mfc=colour, mec="white", mew=0.8, zorder=5)


def compute_figure(study: Study, results: dict[str, Any]) -> Figure:
    """Best-so-far loss against training compute: the X2 view."""
    figure, cells = panels(study)
    for cell, ax in cells:
        arms = by_arm(study, cell)
        everything = [curve for _, curves in arms for curve in curves]
        left, right = min(c.flops[0] for c in everything), max(c.flops[-1] for c in everything)
        log_axis(ax.xaxis)
        if right > 100 * left:
            ax.xaxis.set_major_locator(LogLocator())
        ax.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
        ax.set(xlim=(left, right), ylim=ceiling(everything))
        ax.set_xlabel("training compute, FLOPs (forward and backward)")
        ax.set_ylabel(f"best loss so far, {results['unit']}")
        tags = []
        for arm, curves in arms:
            look, lowest = ink(arm["arm"]), reached(curves)
            for curve in curves:
                band(ax, curve.flops, curve.report[curve.best_so_far()], look.colour, ls=look.dash)
            ax.hlines(lowest, min(c.flops[-1] for c in curves), right, look.colour, ":", lw=1, zorder=1)
            tags.append(Tag(lowest, f"{arm['label']}  {lowest:.3f}", look.colour))
        for c in results["comparisons"]:
            if c["cell"] == cell["cell"] and not c["missing"] and Crossing.from_json(c["x2"]).crossed:
                level = reached(study.curves(c["cell"], c["baseline"]))
                colour = ink(c["baseline"]).colour
                ax.plot(
                    Crossing.from_json(c["x2"]).flops, level, "D", ms=6, mfc=colour, mec="white", mew=0.8, zorder=5
                )
        label_right(ax, tags)
    key(figure, [Line2D([], [], **SO_FAR), Line2D([], [], ls=":", lw=1, color=GREY, label="no further training")])
    caption = (
        f"Loss of the best checkpoint so far (chosen on tune, reported on report; {results['unit']}) against "
        f"training compute. {BANDS} Dotted: no further training. Diamonds: X2. Evaluation is not counted as "
        "compute."
    )
    return Figure("compute", save(figure, study.directory, "compute"), caption, study.again)


def crossings_figure(study: Study, results: dict[str, Any]) -> Figure:
    """All crossings at a glance: epoch and 95 % interval of X1 and X2, censored ones as arrows."""
    known = [c for c in results["comparisons"] if not c["missing"]]
    figure, axes = canvas(8.2, 1.3 + 0.3 * len(known) + 0.12 * len({c["cell"] for c in known}))
    ax = axes[0, 0]
    log_axis(ax.xaxis)
    y, ticks, cell = 0.0, [], None
    for c in known:
        if cell not in (None, c["cell"]):
            ax.axhline(y - 0.25, color="#cccccc", lw=0.7)
            y += 0.5
        cell = c["cell"]
        colour = ink(c["process"]).colour
        for kind, marker, shift in (("x1", "o", -0.16), ("x2", "D", 0.16)):
            draw_crossing(ax, Crossing.from_json(c[kind]), y + shift, marker, colour)
        ticks.append(
            (y, f"{c['cell']}   {results['labels'][c['process']]} against {results['labels'][c['baseline']]}")
        )
        y += 1
    ax.set_yticks([t for t, _ in ticks], [text for _, text in ticks])
    ax.set(ylim=(y - 0.4, -0.6), xlabel="epoch of the crossing")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    arrow = Line2D([], [], ls="", marker=">", ms=5, mfc="white", mec="#aaaaaa", label="not reached up to here")
    key(figure, [Line2D([], [], **SAME), Line2D([], [], **SO_FAR), arrow])
    caption = (
        "Epoch of each crossing with its 95 % bootstrap interval over held-out windows; pale: seen but "
        "not confirmed; open arrows: not reached up to the last epoch observed."
    )
    return Figure("crossings", save(figure, study.directory, "crossings"), caption, study.again)


def draw_crossing(ax: Any, found: Crossing, y: float, marker: str, colour: str) -> None:
    """One crossing of the overview: a mark with its interval, or an open arrow where it was not reached."""
    if not found.crossed:
        ax.plot(found.observed_to, y, ">", ms=5, mfc="white", mec="#aaaaaa")
        ax.annotate(
            "X1" if marker == "o" else "X2", (found.observed_to, y), (6, 0), textcoords="offset points",
            fontsize=6.5, color="#999999", va="center", annotation_clip=False,
        )  # fmt: skip
        return
    face = "white" if marker == "o" else colour
    alpha = 1.0 if found.status != "within noise" else 0.45
    if found.low is not None:
        ax.plot([found.low, found.high or found.observed_to], [y, y], color=colour, lw=1.4, alpha=alpha)
        if found.high is None:
            ax.plot(found.observed_to, y, ">", ms=4, color=colour, alpha=alpha)
    ax.plot(found.epoch, y, marker, ms=5.5, mfc=face, mec=colour, mew=1.2, alpha=alpha, zorder=4)


def best_figure(study: Study, results: dict[str, Any]) -> Figure:
    """Best loss of every arm with its standard error: exact values filled, bounds open, left-to-right as a bar."""
    cells = [cell for cell in study.plan["cells"] if any(b["cell"] == cell["cell"] for b in results["best"])]
    counts = [sum(b["cell"] == cell["cell"] for b in results["best"]) for cell in cells]
    height = 0.9 + sum(0.36 * n + 0.55 for n in counts)
    figure, axes = canvas(8.2, height, rows=len(cells), height_ratios=counts)
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        rows = [b for b in results["best"] if b["cell"] == cell["cell"]]
        for y, b in enumerate(rows):
            colour, value = ink(b["arm"]).colour, b["bound"]["nats_per_token"]
            face = colour if b["exact"] else "white"
            ax.errorbar(value, y, xerr=b["bound"]["se"], fmt="o", ms=6, mfc=face, color=colour, mew=1.3, lw=1.3)
            if b["left_to_right"] and not b["exact"]:
                ordered, se = b["left_to_right"]["nats_per_token"], b["left_to_right"]["se"]
                ax.errorbar(ordered, y + 0.27, xerr=se, fmt="|", ms=8, mew=1.8, color=colour, lw=0.8)
        ax.set_yticks(range(len(rows)), [results["labels"][b["arm"]] for b in rows])
        ax.set(ylim=(len(rows) - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        heading(ax, title(cell))
    axes[-1, 0].set_xlabel(f"held-out loss of the checkpoint chosen on tune, {results['unit']}")
    exact = Line2D([], [], ls="", marker="o", ms=6, color=GREY, label="exact")
    bound = Line2D([], [], ls="", marker="o", ms=6, mfc="white", mec=GREY, mew=1.3, label="upper bound")
    ordered = Line2D([], [], ls="", marker="|", ms=9, mew=1.8, color=GREY, label="exact, left to right")
    key(figure, [exact, bound, ordered])
    caption = (
        f"Loss of each arm's chosen checkpoint on the report split, {results['unit']}. Error bars: ± one "
        "standard error over held-out windows. Open circles are upper bounds, filled ones exact; vertical "
        "strokes are the exact likelihood of the same network asked from left to right, on fewer windows: "
        "compare them with the bound on the same windows in the table."
    )
    return Figure("best", save(figure, study.directory, "best"), caption, study.again)
