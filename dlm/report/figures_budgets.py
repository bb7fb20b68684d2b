"""Held-out loss against the amount of text: best loss (F4), what repeating costs (F6), leads (F13)."""

from __future__ import annotations

import math

import numpy as np

from dlm.report.figures_mechanism import best_of
from dlm.report.page import Figure
from dlm.report.panels import MOST, Absent, arm_key, publish, title
from dlm.report.style import canvas, heading, ink, log_axis
from dlm.report.summary import Frame, Summary, joined, to_frame


def budgets_figure(summary: Summary) -> Figure | Absent:
    """F4: best loss against unique tokens, and how many times more text the baseline would need."""
    number, name = "F4", "f4-loss-budget"
    best = best_of(summary)
    best = best[best["arm"].isin(summary.arms())]
    best = best.assign(unique_tokens=best["cell"].map(summary.unique), panel="best loss")
    frame = best.sort_values("tune").groupby(["arm", "unique_tokens"], as_index=False, sort=False).first()
    frame = frame.sort_values(["arm", "unique_tokens"])
    if frame["unique_tokens"].nunique() < 2:
        return Absent(
            number, "best loss against unique tokens", "needs finished runs at two budgets of text or more"
        )
    multiplier = multiplier_points(summary)
    figure, axes = canvas(8.2 if multiplier.empty else 11.0, 4.4, columns=1 if multiplier.empty else 2)
    ax = axes[0, 0]
    log_axis(ax.xaxis, sorted(frame["unique_tokens"].unique()))
    arms = [a for a in summary.arms() if (frame.arm == a).any()]
    for arm in arms:
        line, look = frame[frame.arm == arm], ink(arm)
        ax.errorbar(line.unique_tokens, line.nll, line.se, color=look.colour, ls=look.dash, lw=1.2)
        for kind, face in (("trunk", "white"), ("cooled", look.colour)):
            points = line[line.kind == kind]
            ax.plot(points.unique_tokens, points.nll, look.marker, ms=5, mfc=face, mec=look.colour)
    ax.set(xlabel="unique tokens", ylabel=f"best held-out loss, {summary.results['unit']}")
    heading(ax, "Best loss")
    if not multiplier.empty:
        right = axes[0, 1]
        for (process, baseline, _), line in multiplier.groupby(["arm", "baseline", "size"], sort=False):
            look = ink(str(process))
            face = look.colour if str(baseline) == "arm" else "white"
            low, high = (line.multiplier - line.low).clip(lower=0), (line.high - line.multiplier).clip(lower=0)
            right.errorbar(line.unique_tokens, line.multiplier, [low.fillna(0), high.fillna(0)], color=look.colour,
                           marker=look.marker, mfc=face, ms=5, lw=1)  # fmt: skip
        log_axis(right.xaxis, sorted(multiplier["unique_tokens"].unique()))
        right.axhline(1, color="#999999", lw=1, ls=":")
        right.set(
            xlabel="unique tokens of the process", ylabel="unique tokens of the baseline at equal loss, ratio"
        )
        heading(right, "Data multiplier (filled: against ARM)")
    arm_key(figure, summary, arms)
    cooled = (frame.kind == "cooled").any()
    kinds = "a cooled-down branch where there is one (filled), else the trunk (open)" if cooled else "trunks"
    frame = joined([frame, multiplier])
    caption = (
        f"Best loss of each arm, chosen on tune, against unique tokens: {kinds}; the best size where there are "
        "several. Error bars: ± one standard error over passages and seeds."
        + (
            " Right: how many times the process's text the baseline needs for the same loss."
            if len(multiplier)
            else ""
        )
        + (
            " No data multiplier: the losses of no pair overlap, or nothing was fitted."
            if multiplier.empty
            else ""
        )
    )
    return publish(summary, number, name, figure, frame, caption)


def multiplier_points(summary: Summary) -> Frame:
    """The data multipliers of fits.json that could be identified, one row per process, baseline and budget."""
    rows = [
        {"panel": "data multiplier", "arm": m["process"], "baseline": m["baseline"], "size": m.get("size") or ""}
        | point
        for m in (summary.fits or {}).get("data_multiplier", [])
        for point in m.get("points", [])
        if point.get("multiplier") is not None
    ]
    names = ["panel", "arm", "baseline", "size", "unique_tokens", "multiplier", "low", "high"]
    return to_frame(rows).reindex(columns=names).astype({"low": float, "high": float})


def repetition_figure(summary: Summary) -> Figure | Absent:
    """F6: what repeating costs, at a fixed number of tokens seen: loss minus that of the least repeated cell."""
    number, name, what = "F6", "f6-repetition", "loss increase against the unique fraction"
    curves = summary.curves[summary.curves["arm"].isin(summary.arms())]
    longest = curves.groupby("cell")["tokens"].max()
    if len(longest) < 2 or len({summary.unique(c) for c in longest.index}) < 2:
        return Absent(number, what, "needs finished runs at two budgets of text or more")
    budget = float(longest.min())
    rows = []
    for arm in summary.arms():
        points = []
        sizes = [summary.size(cell["cell"], arm) for cell in summary.cells]
        common = max(sizes, key=lambda size: (size is not None, sizes.count(size)))
        for cell, size in zip(summary.cells, sizes, strict=True):
            if size != common:
                continue
            line = curves[(curves.arm == arm) & (curves.cell == cell["cell"])].sort_values("tokens")
            if len(line) and line.tokens.iloc[0] <= budget <= line.tokens.iloc[-1] * 1.001:
                at = [float(np.interp(math.log(budget), np.log(line.tokens), line[k])) for k in ("nll", "se")]
                points.append((cell["unique_tokens"] / budget, cell["cell"], *at))
        points.sort()
        if len(points) > 1:
            rows += [
                {"arm": arm, "cell": c, "unique_fraction": u, "increase": nll - points[-1][2],
                 "se": math.hypot(se, points[-1][3]) if c != points[-1][1] else 0.0, "tokens": budget}
                for u, c, nll, se in points
            ]  # fmt: skip
    frame = to_frame(rows)
    if frame.empty:
        return Absent(number, what, f"no arm was observed at {budget:.3g} tokens in two cells")
    figure, axes = canvas(8.2, 4.2)
    ax = axes[0, 0]
    log_axis(ax.xaxis)
    ax.invert_xaxis()
    ax.axhline(0, color="#999999", lw=1, ls=":")
    for arm, line in frame.groupby("arm", sort=False):
        look = ink(str(arm))
        ax.errorbar(100 * line.unique_fraction, line.increase, line.se, color=look.colour, ls=look.dash,
                    marker=look.marker, ms=5, lw=1.2)  # fmt: skip
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:g} %")
    ax.set(xlabel="unique tokens as a share of the tokens seen (more repetition to the right)")
    ax.set_ylabel(f"loss increase, {summary.results['unit']}")
    arms = [a for a in summary.arms() if (frame.arm == a).any()]
    arm_key(figure, summary, arms)
    absent = [summary.label(a) for a in summary.arms() if a not in arms]
    caption = (
        f"Loss on the report split after {budget:.3g} tokens of training, minus that of the same arm in its "
        "least repeated cell; trunks of the size that most cells share, nothing stopped early. Error bars: ± "
        "one standard error, as if the cells "
        "were independent." + (f" Not observed there in two cells: {', '.join(absent)}." if absent else "")
    )
    return publish(summary, number, name, figure, frame, caption)


def lead_figure(summary: Summary, baseline: str = "arm-reg") -> Figure | Absent:
    """F13: heat map of the regularised baseline's best loss minus each process's."""
    number, name = "F13", "f13-lead"
    if baseline not in summary.arms():
        return Absent(number, "lead over the regularised ARM", f"no finished run of {summary.label(baseline)}")
    rows = [
        {
            "cell": cell["cell"],
            "arm": arm,
            "lead": d["value"],
            "se": d["se"],
            "kind": d["kind"],
            "seeds": d["seeds"],
        }
        for cell in summary.cells[:MOST]
        for arm in summary.arms(cell["cell"], main=False)
        if arm != baseline and (d := summary.difference(cell["cell"], arm, baseline))
    ]
    if not rows:
        return Absent(number, "lead over the regularised ARM", "no cell has both it and another arm")
    frame = to_frame(rows)
    arms = [a for a in summary.order if (frame.arm == a).any()]
    cells = [c for c in summary.cells if (frame.cell == c["cell"]).any()]
    values = frame.pivot(index="arm", columns="cell", values="lead").reindex(
        arms, columns=[c["cell"] for c in cells]
    )
    figure, axes = canvas(3.2 + 1.5 * len(cells), 1.3 + 0.42 * len(arms))
    ax = axes[0, 0]
    span = float(np.nanquantile(np.abs(values), 0.9)) or 1.0
    ax.imshow(values, cmap="PuOr", vmin=-span, vmax=span, aspect="auto")
    ax.set_xticks(range(len(cells)), [title(c).replace(": ", "\n") for c in cells], fontsize=7.5)
    ax.set_yticks(range(len(arms)), [summary.label(a) for a in arms])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for row in frame.itertuples():
        x, y = [c["cell"] for c in cells].index(row.cell), arms.index(row.arm)
        strong = abs(row.lead) > 0.62 * span
        text = f"{row.lead:+.3f}\n± {row.se:.3f}".replace("-", "−")
        ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color="white" if strong else "#222222")
    caption = (
        f"Best loss of {summary.label(baseline)} minus each arm's ({summary.results['unit']}, ± one paired "
        "standard error over passages and seeds); positive, purple: the arm is ahead. Cooled-down values where "
        "both arms have them, else trunks (the data say which)."
    )
    return publish(summary, number, name, figure, frame, caption)
