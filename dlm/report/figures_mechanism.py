"""Which part of diffusion helps an autoregressive model (F9): noise on its inputs, or many orders of reading."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.layout_engine import ConstrainedLayoutEngine

from dlm.report.page import Figure
from dlm.report.panels import Absent, publish, title
from dlm.report.style import Tag, canvas, heading, ink, label_right, log_axis
from dlm.report.summary import Frame, Summary

REFERENCES = ("arm", "arm-reg", "md4")
MECHANISM = "#b3478f"


def orders_of(config: dict[str, Any]) -> float | None:
    """How many fixed orders an arm was trained in: inf for a fresh one per row, None for other arms."""
    orders = (config.get("method") or {}).get("orders")
    count = orders.get("count") if isinstance(orders, dict) else orders
    if isinstance(orders, dict) and orders.get("reversed"):
        return None
    if count in ("all", 0):
        return math.inf
    return float(count) if isinstance(count, int | float) else None


def best_of(summary: Summary) -> Frame:
    """The best loss of every arm and cell: its cooled-down value if it has one, else its trunk's."""
    ranked = summary.best.sort_values("kind")  # "cooled" comes before "trunk"
    return ranked.groupby(["cell", "arm"], as_index=False, sort=False).first()


def mechanism_figure(summary: Summary) -> Figure | Absent:
    """F9: best loss and its epoch for the mechanism arms beside the references; loss against the orders."""
    number, name, what = "F9", "f9-mechanism", "mechanism arms"
    arms = [a for a in summary.arms(main=False) if summary.groups.get(a) == "mechanism"]
    if not arms:
        return Absent(number, what, "no mechanism arm has finished, or the scale has none")
    best = best_of(summary)
    cells = [c for c in summary.cells if best[(best.cell == c["cell"]) & best.arm.isin(arms)].size][:6]
    keep = [a for a in summary.order if a in (*REFERENCES, *arms)]
    best = best[best.arm.isin(keep) & best.cell.isin([c["cell"] for c in cells])]
    trained = {key: orders_of(runs[0].config) for key, runs in summary.members.items() if key[1] in arms}
    best = best.assign(orders=[trained.get((c, a)) for c, a in zip(best.cell, best.arm, strict=True)])
    orders = bool(best["orders"].notna().any())
    counts = [best[best.cell == c["cell"]]["arm"].nunique() for c in cells]
    figure, axes = canvas(
        11.0 if orders else 8.4, 1.0 + sum(0.27 * n + 0.9 for n in counts),
        rows=len(cells), columns=3 if orders else 2, height_ratios=counts,
        width_ratios=(3, 1.6, 2.4) if orders else (3, 1.6),
    )  # fmt: skip
    for i, cell in enumerate(cells):
        part = best[best.cell == cell["cell"]].set_index("arm")
        shown = [a for a in keep if a in part.index]
        loss, epoch = axes[i, 0], axes[i, 1]
        for y, arm in enumerate(shown):
            row = part.loc[arm]
            colour = ink(arm).colour if arm in REFERENCES else MECHANISM
            loss.errorbar(row.nll, y, xerr=row.se, fmt="o", ms=5, color=colour, lw=1.3)
            epoch.barh(y, row.epoch, color=colour, alpha=0.75, height=0.6)
            epoch.text(
                row.epoch * 1.04, y, f"{row.epoch:.3g}" + ("+" if row.edge else ""), va="center", fontsize=7
            )
            if arm in REFERENCES:
                loss.axvline(row.nll, color=colour, ls=":", lw=0.9)
        loss.set_yticks(range(len(shown)), [summary.label(a) for a in shown], fontsize=8)
        epoch.set_yticks([])
        log_axis(epoch.xaxis, few=True)
        epoch.set_xlim(max(part.epoch.min() / 2, 0.5), part.epoch.max() * 2.2)
        for ax in (loss, epoch):
            ax.set_ylim(len(shown) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", visible=False)
        heading(loss, title(cell))
        if i == len(cells) - 1:
            loss.set_xlabel(f"best held-out loss, {summary.results['unit']}")
            epoch.set_xlabel("epoch of the best")
        if orders:
            orders_panel(axes[i, 2], summary, part)
    layout = figure.get_layout_engine()
    if orders and isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0, 0, 0.97, 1))  # room for the labels on the right
    caption = (
        "Best loss (cooled-down branch where there is one, chosen on tune), ± one standard error over passages "
        "and seeds, and its epoch; +: still falling at the last evaluation. Dotted: the references."
        + (" Right: loss against the number K of orders an autoregressive model was trained in." if orders else "")
    )
    return publish(summary, number, name, figure, best.drop(columns="tokens"), caption)


def orders_panel(ax: Any, summary: Summary, part: Frame) -> None:
    """Best loss against K; fresh orders for every row stand at the right end."""
    line = part[part["orders"].notna()].sort_values("orders")
    if line.empty:
        ax.set_visible(False)
        return
    finite = [k for k in line["orders"] if math.isfinite(k)]
    end = 4 * max(finite, default=16)
    x = [k if math.isfinite(k) else end for k in line["orders"]]
    tags = []
    for arm in (a for a in REFERENCES if a in part.index):
        row, colour = part.loc[arm], ink(arm).colour
        ax.axhspan(row.nll - row.se, row.nll + row.se, color=colour, alpha=0.14, lw=0)
        ax.axhline(row.nll, color=colour, ls=":", lw=1)
        tags.append(Tag(row.nll, summary.label(arm), colour))
    ax.errorbar(x, line.nll, line.se, marker="o", ms=5, color=MECHANISM, lw=1.2)
    log_axis(ax.xaxis, sorted(set(x)))
    ax.xaxis.set_major_formatter(lambda v, _: "all" if v >= end - 0.5 and len(finite) < len(x) else f"{v:g}")
    ax.set_xlabel("orders K")
    label_right(ax, tags, size=7.5)
