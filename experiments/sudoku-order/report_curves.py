"""Training curves: held-out loss per target against training steps."""

from __future__ import annotations

from report_text import SHADES, closeness_of

from dlm.report.decoded import Decoded
from dlm.report.decoding import AUTOREGRESSIVE, Contender
from dlm.report.figures_decoding import tagged
from dlm.report.page import Figure
from dlm.report.panels import Absent, publish
from dlm.report.style import Ink, Tag, canvas, heading, log_axis
from dlm.report.summary import to_frame

DIFFUSION = ("#0072b2", "#009e73", "#56b4e9")  # arms of one cell


def curves_figure(decoded: Decoded) -> Figure | Absent:
    """F9: held-out loss per target against training steps, one panel per cell."""
    rows = []
    for run in decoded.study.tasks:
        for row in run.evaluations:
            if row.get("step") and row.get("tune/nll") is not None:
                head = {"cell": run.cell, "arm": run.arm, "seed": run.seed}
                rows.append(head | {"step": row["step"], "nll": row["tune/nll"]})
    frame = to_frame(rows, ["cell", "arm", "seed", "step", "nll"])
    if frame.empty:
        return Absent("F9", "training curves", "no run has an evaluation")
    cells = list(dict.fromkeys(frame["cell"]))
    columns = min(2, len(cells))
    lines = -(-len(cells) // columns)
    figure, axes = canvas(max(9.0, 4.9 * columns), 2.9 * lines, rows=lines, columns=columns)
    panels = []
    for cell, ax in zip(cells, axes.flat, strict=False):
        tags = []
        part = frame[frame["cell"] == cell]
        for arm, own in part.groupby("arm", sort=False):
            look = arm_ink(decoded, cell, str(arm))
            table = own.pivot_table(index="step", columns="seed", values="nll").dropna()
            if table.empty:
                continue
            for seed in table if table.shape[1] > 1 else ():
                ax.plot(table.index, table[seed], color=look.colour, lw=0.7, alpha=0.35)
            mean = table.mean(axis=1)
            ax.plot(mean.index, mean, color=look.colour, ls=look.dash, lw=1.5)
            tags.append(Tag(float(mean.iloc[-1]), decoded.study.label(str(arm)), look.colour))
        heading(ax, decoded.title(cell))
        log_axis(ax.xaxis, few=True)
        ax.set(xlabel="training steps", ylabel="nats per target")
        panels.append((ax, tags))
    for ax in axes.flat[len(cells) :]:
        ax.set_visible(False)
    tagged(figure, panels)
    caption = (
        "Held-out loss per target (split tune) while training; thick the mean over seeds, thin each seed. "
        "Different formats have different targets, so curves are comparable within one format only. All "
        "evaluations are on the same held-out puzzles: the spread of the seeds stands for an error bar."
    )
    return publish(decoded, "F9", "f9-curves", figure, frame, caption)


def arm_ink(decoded: Decoded, cell: str, arm: str) -> Ink:
    """An arm's ink beside others of its cell: by its order, or by its class on text."""
    runs = decoded.runs(cell, arm)
    if runs and runs[0].task is None:
        return Ink(SHADES.get(closeness_of(runs[0]), "#777777"), "-", "o")
    arms = decoded.diffusion(cell)
    if arm in arms:
        return Ink(DIFFUSION[arms.index(arm) % len(DIFFUSION)], "-", "o")
    return decoded.ink(Contender(cell, arm, AUTOREGRESSIVE))
