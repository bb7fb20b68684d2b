"""What checkpoints show: likelihoods (F8), probes (F10), memorisation (F11), order variance (F12), norms (F14)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D

from dlm.report.page import Figure
from dlm.report.panels import GREY, MOST, Absent, arm_key, grid, publish, title
from dlm.report.style import canvas, heading, ink, key
from dlm.report.summary import Frame, Summary, joined, to_frame

KINDS = {  # likelihoods of one checkpoint: label and marker
    "bound": ("upper bound (NELBO)", "o"),
    "mixture": ("mixture over orders, bound", "v"),
    "left_to_right": ("left to right, exact", "|"),
    "nll_calibrated": ("after one temperature", "x"),
}
PROBES = {
    "top1": "top-1 accuracy",
    "continuation": "continuation choice",
    "infill": "infill choice",
    "reversal": "reversal choice",
    "brackets": "brackets",
}
COPYING = {
    "copied_13": "13-grams copied",
    "copied_50": "50 characters copied",
    "common_substring": "longest copy, chars",
    "extraction": "prefixes extracted",
}
NOT_MEASURED = "nothing measured at checkpoints yet: run stage=evaluate"


def rows_of(summary: Summary, measures: Sequence[str], row: str = "", line: str = "solid") -> Frame:
    """Measures along the trunks as `grid` wants them; `row` puts all of them in one row of panels."""
    m = summary.measures
    found = m[
        m["measure"].isin(measures) & ~m["cooled"] & (m["checkpoint"] != "best") & m["arm"].isin(summary.arms())
    ]
    names = ["cell", "arm", "epoch", "value", "se", "seeds"]
    return found[names].assign(row=row or found["measure"], line=line, floor=float("nan"))


def losses_of(summary: Summary, cells: Sequence[str], arms: Sequence[str]) -> Frame:
    """The trunks' loss on report in the same shape, for a first row to compare with."""
    c = summary.curves[summary.curves["cell"].isin(cells) & summary.curves["arm"].isin(arms)]
    frame = c[["cell", "arm", "epoch", "se", "seeds"]].assign(value=c["nll"], row="loss", line="solid")
    return frame.assign(floor=float("nan"))


def likelihoods_figure(summary: Summary) -> Figure | Absent:
    """F8: the likelihoods of each arm's chosen checkpoint on one axis."""
    rows: list[dict[str, Any]] = []
    for b in summary.results["best"]:
        head = {"cell": b["cell"], "arm": b["arm"]}
        for kind, part in (
            ("exact" if b["exact"] else "bound", b["bound"]),
            ("left_to_right", b["left_to_right"]),
        ):
            if part and not (kind == "left_to_right" and b["exact"]):
                same = b["bound_same_windows"] if kind == "left_to_right" else None
                shift = b["bound"]["nats_per_token"] - same["nats_per_token"] if same else 0.0
                value = {"value": part["nats_per_token"] + shift, "se": part["se"], "shift": shift}
                rows.append(head | {"kind": kind} | value)
    m = summary.measures
    m = m[(m["checkpoint"] == "best") & m["measure"].isin(["mixture", "nll_calibrated", "nll"])]
    for (cell, arm), part in m.groupby(["cell", "arm"], sort=False):
        by = part.set_index("measure")
        own = next((r for r in rows if (r["cell"], r["arm"]) == (cell, arm)), None)
        if own is None:
            continue
        head = {"cell": cell, "arm": arm}
        if "nll_calibrated" in by.index and "nll" in by.index:
            shift = own["value"] - by.loc["nll", "value"]
            value = {"value": by.loc["nll_calibrated", "value"] + shift, "se": by.loc["nll_calibrated", "se"]}
            rows.append(head | {"kind": "nll_calibrated", "shift": shift} | value)
        if "mixture" in by.index and math.isfinite(by.loc["mixture", "difference"]):
            row = by.loc["mixture"]  # a few windows only: its difference from the bound on the very same ones
            value = {"value": own["value"] + row["difference"], "se": row["se_difference"]}
            rows.append(head | {"kind": "mixture", "shift": value["value"] - row["value"]} | value)
    if not rows:
        return Absent("F8", "likelihoods of the same checkpoint", "no run has finished")
    frame = to_frame(rows)
    frame = frame[frame["arm"].isin(summary.arms())]
    cells = [c for c in summary.cells if (frame["cell"] == c["cell"]).any()][:MOST]
    frame = frame[frame["cell"].isin([c["cell"] for c in cells])]
    counts = [frame[frame.cell == c["cell"]]["arm"].nunique() for c in cells]
    height = 0.9 + sum(0.4 * n + 0.6 for n in counts)
    figure, axes = canvas(8.2, height, rows=len(cells), height_ratios=counts)
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        part = frame[frame.cell == cell["cell"]]
        arms = [a for a in summary.arms() if (part.arm == a).any()]
        for row in part.itertuples():
            y, colour = arms.index(str(row.arm)), ink(str(row.arm)).colour
            if row.kind in ("exact", "bound"):
                face = colour if row.kind == "exact" else "white"
                ax.errorbar(
                    row.value, y, xerr=row.se, fmt="o", ms=6, mfc=face, color=colour, mew=1.3, lw=1.3, zorder=3
                )
            else:
                lift = {"left_to_right": 0.27, "mixture": -0.27, "nll_calibrated": 0.0}[str(row.kind)]
                fmt = KINDS[str(row.kind)][1]
                size = 8 if fmt == "|" else 6
                ax.errorbar(
                    row.value, y + lift, xerr=row.se, fmt=fmt, ms=size, mew=1.6, color=colour, lw=0.8, zorder=4
                )
        ax.set_yticks(range(len(arms)), [summary.label(a) for a in arms])
        ax.set(ylim=(len(arms) - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        heading(ax, title(cell))
    axes[-1, 0].set_xlabel(f"held-out loss of the checkpoint chosen on tune, {summary.results['unit']}")
    marks = [Line2D([], [], ls="", marker="o", ms=6, color=GREY, label="exact")]
    for kind, (label, marker) in KINDS.items():
        if (frame.kind == kind).any():
            open_: dict[str, Any] = {"mfc": "white"} if kind == "bound" else {}
            marks.append(Line2D([], [], ls="", marker=marker, ms=7, mew=1.5, mec=GREY, label=label, **open_))
    key(figure, marks)
    caption = (
        f"Likelihoods of each arm's chosen checkpoint on the report split, {summary.results['unit']}, ± one "
        "standard error over held-out windows and seeds. Filled: exact. Open: upper bounds. Strokes: the exact "
        "likelihood of the same network asked from left to right. Triangles: mixture over random orders, also a "
        "bound, its error bar that of its difference from the bound. Crosses: after one temperature fitted on "
        "tune. What was measured on fewer windows is moved by the difference of the bound between all windows and "
        "those (column shift of the data)."
    )
    return publish(summary, "F8", "f8-likelihoods", figure, frame, caption)


def probes_figure(summary: Summary) -> Figure | Absent:
    """F10: probes against epochs under the loss: does the loss mislead?"""
    frame = rows_of(summary, list(PROBES))
    if frame.empty:
        return Absent("F10", "probes against epochs", NOT_MEASURED)
    chance = summary.measures.groupby("measure")["chance"].mean()
    frame["floor"] = frame["row"].map(chance)
    arms = [a for a in summary.arms() if (frame["arm"] == a).any()]
    frame = joined([losses_of(summary, list(frame["cell"].unique()), arms), frame])
    figure, frame = grid(summary, frame, [("loss", "held-out loss"), *PROBES.items()])
    arm_key(figure, summary, arms, [Line2D([], [], ls=":", color="#999999", label="chance")])
    caption = (
        "Top: loss on the report split. Below: share of right answers on probes built from the report split, "
        "the same items for every arm; dotted: chance. Error bars: ± one standard error. Where the loss rises "
        "and accuracy does not fall, the loss says more about confidence than about knowledge."
    )
    return publish(summary, "F10", "f10-probes", figure, frame, caption)


def memorisation_figure(summary: Summary) -> Figure | Absent:
    """F11: what is copied from the training text, beside what held-out text shares with it by nature."""
    frame = rows_of(summary, list(COPYING))
    if frame.empty:
        return Absent("F11", "memorisation against epochs", NOT_MEASURED)
    m = summary.measures
    for name in COPYING:
        natural = m[m["measure"] == "natural_" + name.removeprefix("copied_")]
        by_cell = natural.groupby("cell")["value"].mean()
        own = frame["row"] == name
        frame.loc[own, "floor"] = frame.loc[own, "cell"].map(by_cell).astype(float)
    figure, frame = grid(summary, frame, list(COPYING.items()))
    arms = [a for a in summary.arms() if (frame["arm"] == a).any()]
    arm_key(figure, summary, arms, [Line2D([], [], ls=":", color="#999999", label="held-out text itself")])
    caption = (
        "Share of n-grams and of 50-character windows of generated text found verbatim in the training text, "
        "the mean longest common substring, and the share of training prefixes of 32 tokens continued verbatim "
        "for 32 more. Dotted: the same for held-out text, which shares that much by nature. Same number of "
        "tokens and temperature 1 for every arm; ± one standard error."
    )
    return publish(summary, "F11", "f11-memorisation", figure, frame, caption)


def order_variance_figure(summary: Summary) -> Figure | Absent:
    """F12: how differently a mask predictor scores a text in different orders."""
    kinds = (("order_variance_train", "solid"), ("order_variance_report", "dashed"))
    frame = joined([rows_of(summary, [name], "variance", line) for name, line in kinds])
    if frame.empty:
        return Absent("F12", "variance over orders against epochs", NOT_MEASURED)
    figure, frame = grid(summary, frame, [("variance", "variance over orders\nper token, nats²")], height=3.0)
    arms = [a for a in summary.arms() if (frame["arm"] == a).any()]
    held_out = Line2D([], [], ls="--", marker="o", mfc="white", color=GREY, ms=4, label="report (dashed)")
    arm_key(figure, summary, arms, [held_out])
    caption = (
        "Variance of log p(x | order) over random orders of the same window, divided by its length, on training "
        "text (solid) and on the report split (dashed). A model that scores every order alike has none."
    )
    return publish(summary, "F12", "f12-order-variance", figure, frame, caption)


def norms_figure(summary: Summary) -> Figure | Absent:
    """F14: weight norm, and report loss minus training loss."""
    gap = rows_of(summary, ["nll"]).merge(
        rows_of(summary, ["train_nll"]), on=["cell", "arm", "epoch"], suffixes=("", "_train")
    )
    gap = gap.assign(
        value=gap["value"] - gap["value_train"],
        se=(gap["se"] ** 2 + gap["se_train"].fillna(0) ** 2) ** 0.5,
        row="gap",
    )
    frame = joined([rows_of(summary, ["weight_norm"]), gap[[c for c in gap if not c.endswith("_train")]]])
    if frame.empty:
        return Absent("F14", "weight norm and the gap between train and report", NOT_MEASURED)
    labels = [("weight_norm", "norm of the weights"), ("gap", "report − train loss,\nnats per token")]
    figure, frame = grid(summary, frame, labels)
    arm_key(figure, summary, [a for a in summary.arms() if (frame["arm"] == a).any()])
    caption = (
        "Top: square root of the sum of squares of all weight matrices (averaged weights). Bottom: loss on the "
        "report split minus loss on training windows, ± one standard error: what has been memorised rather than "
        "learned."
    )
    return publish(summary, "F14", "f14-norms", figure, frame, caption)
