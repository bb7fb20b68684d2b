"""What laws say: loss over model size and epochs (F5), predicted against observed loss (F7)."""

from __future__ import annotations

import numpy as np

from dlm.report.page import Figure
from dlm.report.panels import Absent, arm_key, publish
from dlm.report.style import canvas, heading, ink
from dlm.report.summary import Summary, to_frame

NOT_FITTED = "not fitted yet: run stage=fit"


def contour_figure(summary: Summary, arms: tuple[str, ...] = ("arm-reg", "md4")) -> Figure | Absent:
    """F5: contours of the loss over model size and epochs, at the budget of text that has the most sizes."""
    number, name, what = "F5", "f5-size-epochs", "loss over model size and epochs"
    curves = summary.curves[summary.curves["arm"].isin(arms)]
    columns = ["cell", "arm", "epoch", "nll", "se"]
    frame = curves[columns].assign(
        unique_tokens=curves["cell"].map(summary.unique),
        parameters=[summary.size(c, a) for c, a in zip(curves["cell"], curves["arm"], strict=True)],
    )
    sizes = frame.groupby(["unique_tokens", "arm"])["parameters"].nunique()
    if sizes.empty or sizes.max() < 3:
        most = 0 if sizes.empty else int(sizes.max())
        return Absent(number, what, f"needs three model sizes at one budget of text; there are {most}")
    budget = sizes.groupby("unique_tokens").sum().idxmax()
    shown = [a for a in arms if sizes.get((budget, a), 0) >= 3]
    frame = frame[(frame.unique_tokens == budget) & frame.arm.isin(shown)]
    figure, axes = canvas(1.4 + 4.2 * len(shown), 4.2, columns=len(shown), sharey=True)
    levels = np.linspace(frame.nll.min(), np.quantile(frame.nll, 0.85), 13)
    drawn = None
    for arm, ax in zip(shown, axes[0], strict=True):
        part = frame[frame.arm == arm]
        drawn = ax.tricontourf(
            np.log(part.epoch), np.log(part.parameters), part.nll, levels, cmap="cividis", extend="max"
        )
        ax.plot(np.log(part.epoch), np.log(part.parameters), ".", ms=2, color="white")
        low = part.loc[part.nll.idxmin()]
        ax.plot(np.log(low.epoch), np.log(low.parameters), "*", ms=11, mfc="white", mec="#222222")
        ticks = [e for e in (1, 3, 10, 30, 100, 300, 1000) if part.epoch.min() <= e <= part.epoch.max()]
        ax.set_xticks(np.log(ticks), [f"{t:g}" for t in ticks])
        rungs = sorted(part.parameters.unique())
        ax.set_yticks(np.log(rungs), [f"{n / 1e6:.3g}M" for n in rungs])
        ax.set_xlabel("epochs")
        heading(ax, summary.label(arm))
    axes[0, 0].set_ylabel("non-embedding parameters")
    assert drawn is not None
    figure.colorbar(
        drawn, format="%.2f", ax=axes[0].tolist(), label=f"held-out loss, {summary.results['unit']}", shrink=0.9
    )
    caption = (
        f"Loss on the report split over model size and epochs at {budget:,} unique tokens; trunks, linear "
        "between the evaluations (white dots). Star: the lowest loss. Training that was stopped early leaves "
        "its corner blank."
    )
    return publish(summary, number, name, figure, frame, caption)


def laws_figure(summary: Summary) -> Figure | Absent:
    """F7: predicted against observed loss, a panel per law that could be fitted."""
    number, name, what = "F7", "f7-laws", "predicted against observed loss"
    if summary.fits is None:
        return Absent(number, what, NOT_FITTED)
    laws = [law for law in summary.fits.get("laws", []) if law.get("predicted")]
    if not laws:
        return Absent(number, what, "no law is identifiable from these cells; T4 says why for each")
    frame = to_frame(
        [
            {"law": law["law"], "arm": law["arm"], "observed": o, "predicted": p, "cell": cell, "epoch": epoch}
            for law in laws
            for o, p, cell, epoch in law["predicted"]
        ]
    )
    names = list(dict.fromkeys(frame["law"]))
    figure, axes = canvas(1.2 + 3.3 * len(names), 4.3, columns=len(names), sharex=True, sharey=True)
    low, high = frame[["observed", "predicted"]].min().min(), frame["observed"].max()
    for law, ax in zip(names, axes[0], strict=True):
        ax.plot([low, high], [low, high], color="#999999", lw=1)
        for arm, part in frame[frame.law == law].groupby("arm", sort=False):
            look = ink(str(arm))
            ax.plot(part.observed, part.predicted, look.marker, ms=3.5, mfc="none", mec=look.colour, mew=0.9)
        heading(ax, law)
        ax.set_xlabel("observed loss")
        pad = 0.03 * (high - low)
        ax.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axes[0, 0].set_ylabel(f"predicted loss, {summary.results['unit']}")
    arm_key(figure, summary, [a for a in summary.arms() if (frame.arm == a).any()])
    failed = [
        law["law"] + (f" ({summary.label(law['arm'])})" if law["arm"] else "")
        for law in summary.fits["laws"]
        if not law.get("predicted")
    ]
    errors = "; ".join(
        f"{law['law']}, {summary.label(law['arm'])}: {law['loo_rmse']:.3f}"
        for law in laws
        if law.get("loo_rmse") is not None
    )
    caption = (
        "Loss predicted by each fitted law against the loss observed, one point per evaluation; on the line: "
        "exact."
        + (f" Root mean square error in a cell left out of the fit, nats: {errors}." if errors else "")
        + (f" Not identifiable, so not drawn: {', '.join(failed)}." if failed else "")
    )
    return publish(summary, number, name, figure, frame, caption)
