"""NAE-SAT: errors of the conditionals of latents and of observations, and the consistency of what is sampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from dlm.report.claims import Answer, Finding
from dlm.report.decoded import Decoded
from dlm.report.decoding import Contender, of, plain
from dlm.report.page import Figure
from dlm.report.panels import Absent, publish
from dlm.report.proportions import Estimate, averaged, over_seeds, share, unpaired
from dlm.report.style import Ink, canvas, heading, key, log_axis
from dlm.report.summary import Frame, to_frame

KINDS = {"latents": Ink("#c8590a", "-", "s"), "observations": Ink("#0072b2", "-", "o")}


def imbalance(decoded: Decoded) -> Frame:
    """Mean squared error of log-probabilities by kind and number of masked latents, averaged over trainings:
    se² = (mean of the se over sequences)² + var_s / S."""
    found: dict[tuple[str, str, int, str], list[tuple[float, float]]] = {}
    for cell in decoded.cells("nae_sat"):
        for run in decoded.runs(cell):
            for row in run.imbalance:
                for kind in KINDS:
                    part = row.get(kind)
                    if row.get("checkpoint") == "best" and part:
                        at = (cell, run.arm, int(row["masked"]), kind)
                        found.setdefault(at, []).append((part["error"], part.get("se") or 0.0))
    rows = []
    for (cell, arm, masked, kind), values in sorted(found.items()):
        errors = np.array([error for error, _ in values])
        between = errors.var(ddof=1) / len(errors) if len(errors) > 1 else 0.0
        se = math.hypot(float(np.mean([se for _, se in values])), math.sqrt(between))
        head = {"cell": cell, "arm": arm, "masked": masked, "kind": kind}
        rows.append(head | {"error": errors.mean(), "se": se, "seeds": len(errors)})
    return to_frame(rows, ["cell", "arm", "masked", "kind", "error", "se", "seeds"])


def imbalance_figure(decoded: Decoded) -> Figure | Absent:
    """F7: errors on latents and on observations, by the number of masked latents."""
    frame = imbalance(decoded)
    if frame.empty:
        return Absent("F7", "error imbalance", "no NAE-SAT run has measured its conditionals (command: imbalance)")
    panels = list(frame.groupby(["cell", "arm"], sort=False))
    figure, axes = canvas(max(8.2, 1.2 + 4.3 * len(panels)), 3.4, columns=len(panels), sharey=True)
    for ((cell, arm), part), ax in zip(panels, axes[0], strict=True):
        for kind, look in KINDS.items():
            some = part[part["kind"] == kind]
            ax.errorbar(
                some["masked"], some["error"], yerr=2 * some["se"], color=look.colour, marker=look.marker, ms=4.5,
                lw=1.4, elinewidth=1,
            )  # fmt: skip
        several = len({a for (c, a), _ in panels if c == cell}) > 1
        heading(ax, decoded.title(str(cell)) + (f", {decoded.study.label(str(arm))}" if several else ""))
        ax.set_xlabel("masked latents")
        log_axis(ax.yaxis)
        ax.set_xticks(sorted(part["masked"].unique()) if part["masked"].nunique() < 13 else ax.get_xticks())
    axes[0, 0].set_ylabel("mean squared error of log p, nats²")
    key(figure, [Line2D([], [], color=i.colour, marker=i.marker, ms=4.5, label=k) for k, i in KINDS.items()])
    seeds = int(frame["seeds"].max())
    caption = (
        "How far the model's log-probabilities of the true values of masked tokens are from those of the "
        "Bayes predictor (exact, by enumeration, or the reference that the rows name), when so many latents "
        "and the same share of observations are masked. Bars: ± two standard errors over sequences and "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}."
    )
    return publish(decoded, "F7", "f7-imbalance", figure, frame, caption)


def latents_worse(decoded: Decoded) -> list[Finding]:
    """Errors on latents against those on observations, at each number of masked latents."""
    found = []
    for (cell, _), part in imbalance(decoded).groupby(["cell", "arm"], sort=False):
        wide = part.pivot(index="masked", columns="kind", values=["error", "se"]).dropna()
        if wide.empty:
            continue
        lead = wide["error"]["latents"] - wide["error"]["observations"]
        se = np.hypot(wide["se"]["latents"], wide["se"]["observations"])
        worse, better = int((lead > 2 * se).sum()), int((lead < -2 * se).sum())
        answer: Answer = "yes" if worse > len(wide) / 2 and not better else "no" if better > worse else "undecided"
        text = f"{decoded.title(str(cell))}: latents clearly worse at {worse} of {len(wide)} numbers masked"
        found.append(Finding(answer, text + (f", clearly better at {better}" if better else "")))
    return found


def sampled(decoded: Decoded, who: Contender) -> Frame:
    """The decodings that consistency is about: values drawn, as published, where there are such; else greedy."""
    drawn = plain(decoded.table, values="sampled")
    return of(drawn if (drawn["cell"] == who.cell).any() else decoded.plain, who)


def consistent(rows: Frame) -> Estimate | None:
    """Share of observations that follow from the latents beside them.

    The interval is that of whole sequences, as if all observations of one were right or wrong together, and so too
    wide rather than too narrow.
    """
    by_run = [averaged([share(*whole(row)) for row in part["row"]]) for _, part in rows.groupby("run", sort=False)]
    return over_seeds(by_run) if by_run else None


def whole(row: dict[str, Any]) -> tuple[int, int]:
    """The share of right cells as a number of sequences, and the sequences."""
    return round(row["puzzles"] * row["right"] / row["cells"]), row["puzzles"]


def nae_order(decoded: Decoded) -> list[Finding]:
    """Consistency under margin minus that under random order."""
    found = []
    for cell in decoded.cells("nae_sat"):
        for arm in decoded.diffusion(cell):
            margin, idle = (sampled(decoded, Contender(cell, arm, rule)) for rule in ("margin", "random"))
            pairs = []
            for run in [r for r in dict.fromkeys(margin["run"]) if r in set(idle["run"])]:
                one, other = (f[f["run"] == run].iloc[0]["row"] for f in (margin, idle))
                pairs.append(unpaired(whole(one), whole(other)))
            before, after = consistent(idle), consistent(margin)
            if pairs and before and after:
                e = over_seeds(pairs)
                answer: Answer = "yes" if e.low > 0 else "no" if e.high < 0 else "undecided"
                interval = f"difference [{100 * e.low:+.1f}, {100 * e.high:+.1f}] points".replace("-", "−")
                text = f"from {100 * before.value:.1f} % to {100 * after.value:.1f} %, {interval}"
                found.append(Finding(answer, f"{decoded.title(cell)}: {text}"))
    return found
