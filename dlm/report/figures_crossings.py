"""The crossings (F3): against unique tokens beside the published lines, and all of them at a glance."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from dlm.report.figures_loss import SAME, SO_FAR
from dlm.report.page import Figure
from dlm.report.panels import Absent, arm_key, publish
from dlm.report.published import LINES
from dlm.report.style import canvas, heading, ink, key, log_axis
from dlm.report.summary import Frame, Summary, joined, to_frame

KINDS = {"x1": "X1", "x2": "X2", "x2_cooled": "X2 cooled"}
DASHES = ("--", ":")
MOST = 60  # rows of the overview


def crossing_rows(summary: Summary) -> Frame:
    """Every crossing of the study, one per row; `epoch` and `flops` are missing where it was not reached."""
    rows = []
    for c in summary.results["comparisons"]:
        if c["missing"]:
            continue
        head = {k: c[k] for k in ("cell", "unique_tokens", "process", "baseline")}
        named = [(KINDS[k], c[k]) for k in KINDS if c.get(k)]
        named += [(f"X3 {probe}", found) for probe, found in (c.get("x3") or {}).items()]
        for kind, found in named:
            keys = (
                "status",
                "epoch",
                "low",
                "high",
                "observed_to",
                "share",
                "flops",
                "observed_flops",
                "baseline_flops",
            )
            rows.append(head | {"kind": kind} | {k: found.get(k) for k in keys})
    return to_frame(rows)


def front_rows(summary: Summary) -> Frame:
    """X2 over sizes by the same compute, a row per budget, process and baseline; `low` and `high` are FLOPs."""
    keys = ("status", "flops", "low", "high", "share")
    return to_frame(
        [
            {k: f[k] for k in ("unique_tokens", "process", "baseline")}
            | {"cell": "all sizes", "kind": "X2 over sizes", "observed_flops": f["matched"]["observed_to"]}
            | {k: f["matched"][k] for k in keys}
            for f in summary.results.get("fronts", [])
        ]
    )


def crossings_figure(summary: Summary) -> Figure | Absent:
    """F3: epochs (and FLOPs) of the crossings against unique tokens, a column per baseline."""
    number, name, what = "F3", "f3-crossings-budget", "crossings against unique tokens"
    frame = crossing_rows(summary)
    if frame.empty:
        return Absent(number, what, "nothing to compare yet")
    frame = frame[frame["kind"].isin(["X1", "X2"]) & frame["process"].isin(summary.arms())]
    if frame["unique_tokens"].nunique() < 2:
        return Absent(number, what, "needs comparisons at two budgets of text or more")
    over = front_rows(summary)
    baselines = list(dict.fromkeys(frame["baseline"]))[:3]
    frame = frame[frame["baseline"].isin(baselines)]
    budgets = np.array(sorted(frame["unique_tokens"].unique()), float)
    processes = [a for a in summary.arms() if (frame.process == a).any()]
    size = (1.8 + 3.3 * len(baselines), 8.6)
    figure, axes = canvas(*size, rows=3, columns=len(baselines), sharex=True, sharey="row")
    for j, baseline in enumerate(baselines):
        heading(axes[0, j], f"against {summary.label(baseline)}")
        for i, (kind, value) in enumerate((("X1", "epoch"), ("X2", "epoch"), ("X2", "flops"))):
            ax = axes[i, j]
            ax.set(yscale="log")
            for k, process in enumerate(processes):
                shift = 1.06 ** (k - (len(processes) - 1) / 2)
                part = frame[(frame.kind == kind) & (frame.process == process) & (frame.baseline == baseline)]
                for row in part.to_dict("records"):
                    vertical(ax, row, value, row["unique_tokens"] * shift, process)
            log_axis(ax.xaxis, budgets.tolist())
            if value == "epoch":
                log_axis(ax.yaxis)
            else:
                for (a, b), dash in zip(LINES.values(), DASHES, strict=True):
                    ax.plot(budgets, a * budgets**b, ls=dash, color="#999999", lw=1.2)
                ax.set_xlabel("unique tokens")
                for row in over.to_dict("records"):
                    if row["baseline"] == baseline and row["process"] in processes:
                        over_sizes(ax, row)
            if not j:
                ax.set_ylabel(f"{kind}, " + ("epochs" if value == "epoch" else "training FLOPs of the process"))
    lines = [
        Line2D([], [], ls=dash, color="#999999", label=f"published: {text}, U^{b:g}")
        for (text, (_, b)), dash in zip(LINES.items(), DASHES, strict=True)
    ]
    arrow = Line2D([], [], ls="", marker="^", ms=5, mfc="white", mec="#999999", label="not reached up to here")
    star = Line2D([], [], ls="", marker="*", ms=8, mfc="#999999", mec="white", label="X2 over sizes")
    arm_key(figure, summary, processes, [*lines, arrow, *([star] if len(over) else [])])
    caption = (
        "Crossings against unique tokens, with 95 % bootstrap intervals over passages and seeds. Open arrows: "
        "not reached up to there (right-censored, kept in the fits); pale: seen but not confirmed. Grey: "
        "critical compute as published for web text at 25 to 100 million tokens, extrapolated to this study's "
        "budgets. Theirs is a front over model sizes; X2 here is at one size, usually an easier crossing, "
        "because the baseline may not choose its size."
        + (" Stars: X2 over sizes, by the same compute, which is theirs." if len(over) else "")
    )
    return publish(summary, number, name, figure, joined([frame, over]), caption)


def over_sizes(ax: Any, row: dict[str, Any]) -> None:
    """A crossing of fronts: a star with its interval, or an open one where it was not reached."""
    look, at = ink(row["process"]), row["unique_tokens"]
    low, flops, high = (None if row[k] is None or np.isnan(row[k]) else row[k] for k in ("low", "flops", "high"))
    if flops is None:
        ax.plot(at, row["observed_flops"], "*", ms=9, mfc="white", mec=look.colour, alpha=0.8)
        return
    alpha = 0.4 if row["status"] == "within noise" else 1.0
    if low is not None:
        ax.plot([at, at], [low, high or row["observed_flops"]], color=look.colour, lw=2.2, alpha=alpha)
    ax.plot(at, flops, "*", ms=9, mfc=look.colour, mec="white", mew=0.6, alpha=alpha, zorder=5)


def vertical(ax: Any, row: dict[str, Any], value: str, x: float, process: str) -> None:
    """One crossing at x: a mark with its interval, or an open arrow where it was not reached."""
    look = ink(process)
    row = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
    if row["epoch"] is None:
        at = row["observed_to" if value == "epoch" else "observed_flops"]
        ax.plot(x, at, "^", ms=5, mfc="white", mec=look.colour, alpha=0.8)
        return
    scale = 1.0 if value == "epoch" else row["flops"] / row["epoch"]  # compute spent per epoch
    alpha = 0.4 if row["status"] == "within noise" else 1.0
    if row["low"] is not None:
        high = row["high"] if row["high"] is not None else row["observed_to"]
        ax.plot([x, x], [row["low"] * scale, high * scale], color=look.colour, lw=1.3, alpha=alpha)
    ax.plot(x, row["epoch"] * scale, look.marker, ms=5.5, color=look.colour, alpha=alpha)


def overview_figure(summary: Summary) -> Figure | Absent:
    """F3, at a glance: epoch and 95 % interval of X1 and X2, censored ones as arrows."""
    number, name = "F3, at a glance", "f3-crossings"
    frame = crossing_rows(summary)
    if frame.empty:
        return Absent(number, "all crossings", "nothing to compare yet")
    frame = frame[frame["kind"].isin(["X1", "X2"])]
    groups = list(frame.groupby(["cell", "process", "baseline"], sort=False))[:MOST]
    frame = joined([rows for _, rows in groups])
    figure, axes = canvas(8.2, 1.3 + 0.3 * len(groups) + 0.12 * frame["cell"].nunique())
    ax = axes[0, 0]
    log_axis(ax.xaxis)
    y, ticks, last = 0.0, [], None
    for (cell, process, baseline), rows in groups:
        if last not in (None, cell):
            ax.axhline(y - 0.25, color="#cccccc", lw=0.7)
            y += 0.5
        last = cell
        for row in rows.to_dict("records"):
            marker, shift = ("o", -0.16) if row["kind"] == "X1" else ("D", 0.16)
            horizontal(ax, row, y + shift, marker, ink(str(process)).colour)
        ticks.append((y, f"{cell}   {summary.label(process)} against {summary.label(baseline)}"))
        y += 1
    ax.set_yticks([t for t, _ in ticks], [text for _, text in ticks])
    ax.set(ylim=(y - 0.4, -0.6), xlabel="epoch of the crossing")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    arrow = Line2D([], [], ls="", marker=">", ms=5, mfc="white", mec="#aaaaaa", label="not reached up to here")
    key(figure, [Line2D([], [], **SAME), Line2D([], [], **SO_FAR), arrow])
    caption = (
        "Epoch of each crossing with its 95 % bootstrap interval over passages and seeds; pale: seen but not "
        "confirmed; open arrows: not reached up to the last epoch observed."
    )
    return publish(summary, number, name, figure, frame, caption)


def horizontal(ax: Any, row: dict[str, Any], y: float, marker: str, colour: str) -> None:
    """One crossing of the overview: a mark with its interval, or an open arrow where it was not reached."""
    found = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
    if found["status"] == "not reached":
        ax.plot(found["observed_to"], y, ">", ms=5, mfc="white", mec="#aaaaaa")
        ax.annotate(
            row["kind"], (found["observed_to"], y), (6, 0), textcoords="offset points",
            fontsize=6.5, color="#999999", va="center", annotation_clip=False,
        )  # fmt: skip
        return
    alpha = 1.0 if found["status"] != "within noise" else 0.45
    if found["low"] is not None:
        ax.plot([found["low"], found["high"] or found["observed_to"]], [y, y], color=colour, lw=1.4, alpha=alpha)
        if found["high"] is None:
            ax.plot(found["observed_to"], y, ">", ms=4, color=colour, alpha=alpha)
    face = "white" if marker == "o" else colour
    ax.plot(found["epoch"], y, marker, ms=5.5, mfc=face, mec=colour, mew=1.2, alpha=alpha, zorder=4)
