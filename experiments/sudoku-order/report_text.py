"""Text in permuted orders: what another order of reading costs an ARM, and masked diffusion beside it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dlm.report.claims import Answer, Finding
from dlm.report.decoded import Decoded
from dlm.report.page import Figure
from dlm.report.panels import Absent, publish
from dlm.report.style import canvas, heading
from dlm.report.summary import to_frame
from dlm.report.tasks import TaskRun

CLOSENESS = {  # how far an order is from reading order, nearest first
    "identity": "reading order",
    "much_closer": "much closer (√L swaps)",
    "closer": "closer (L/10 swaps)",
    "uniform": "uniform",
}
SHADES = {
    "identity": "#222222", "much_closer": "#8c4a15", "closer": "#d07a2d", "uniform": "#e8b27a", "mdm": "#0072b2",
}  # fmt: skip
TOLERANCE = 0.02  # nats per token


class Read(NamedTuple):
    """One arm on text: how far its order is from reading order ("mdm": it reads in all), and its losses."""

    cell: str
    arm: str
    closeness: str
    losses: list[float]  # nats per token, by training
    se: float  # over held-out text, mean of the trainings'

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    @property
    def error(self) -> float:
        """Standard error over held-out text and trainings."""
        between = np.var(self.losses, ddof=1) / len(self.losses) if len(self.losses) > 1 else 0.0
        return math.hypot(self.se, math.sqrt(between))


def closeness_of(run: TaskRun) -> str:
    """identity, much_closer, closer or uniform for an autoregressive model; "mdm" for another."""
    method = run.config.get("method") or {}
    kind = str(method.get("_target_") or "")
    if "Autoregressive" not in kind and (kind or run.record.get("bound_kind") != "exact"):
        return "mdm"
    return (method.get("permutation") or {}).get("closeness", "identity")


def readers(decoded: Decoded) -> list[Read]:
    """The arms that were trained on text, from reading order to uniform; the diffusion models last."""
    runs = [
        run
        for run in decoded.study.tasks
        if run.task is None and (run.record.get("likelihood") or {}).get("bound")
    ]
    found: dict[tuple[str, str], list[TaskRun]] = {}
    for run in runs:
        found.setdefault((run.cell, run.arm), []).append(run)
    made = []
    for (cell, arm), own in found.items():
        bounds = [score_of(run) for run in own]
        losses = [b["nats_per_token"] for b in bounds]
        made.append(Read(cell, arm, closeness_of(own[0]), losses, float(np.mean([b["se"] for b in bounds]))))
    rank = [*CLOSENESS, "mdm"]
    return sorted(made, key=lambda r: (r.cell, rank.index(r.closeness) if r.closeness in rank else len(rank)))


def score_of(run: TaskRun) -> dict[str, float]:
    """The likelihood of a text in the run's own order: `permuted` where the record has it, else the headline."""
    likelihood = run.record["likelihood"]
    return (likelihood.get("extra") or {}).get("permuted") or likelihood["bound"]


def by_class(found: list[Read]) -> dict[str, Read]:
    """Several permutations of one class (or seeds under several arms) together, by class."""
    classes: dict[str, list[Read]] = {}
    for read in found:
        classes.setdefault(read.closeness, []).append(read)
    return {
        name: own[0]._replace(losses=[x for r in own for x in r.losses], se=float(np.mean([r.se for r in own])))
        for name, own in classes.items()
    }


def text_cells(decoded: Decoded) -> dict[str, dict[str, Read]]:
    """The readers of each text cell by class, where there are at least two classes."""
    found = readers(decoded)
    cells = {cell: by_class([r for r in found if r.cell == cell]) for cell in dict.fromkeys(r.cell for r in found)}
    return {cell: own for cell, own in cells.items() if len(own) > 1}


def permuted_figure(decoded: Decoded) -> Figure | Absent:
    """F8: held-out loss of autoregressive models of permuted text, and of masked diffusion beside them."""
    cells = text_cells(decoded)
    if not cells:
        return Absent("F8", "text in permuted orders", "no text was learned in two orders")
    rows = [
        {"cell": cell, "arm": r.arm, "class": name, "nll": r.mean, "se": r.error, "trainings": len(r.losses)}
        for cell, own in cells.items()
        for name, r in own.items()
    ]
    frame = to_frame(rows)
    figure, axes = canvas(8.2, 0.9 + sum(0.42 * len(own) + 0.7 for own in cells.values()), rows=len(cells))
    for (cell, own), ax in zip(cells.items(), axes[:, 0], strict=True):
        for y, (name, r) in enumerate(own.items()):
            colour = SHADES.get(name, "#777777")
            ax.plot(r.losses, [y] * len(r.losses), "o", color=colour, alpha=0.3, ms=4, mew=0)
            ax.errorbar(r.mean, y, xerr=2 * r.error, fmt="D", color=colour, ms=5.5, lw=1.5)
        ax.set_yticks(range(len(own)), [class_label(name) for name in own], fontsize=8.5)
        ax.set(ylim=(len(own) - 0.5, -0.5))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        heading(ax, f"{cell}: held-out loss by the order of reading")
    axes[-1, 0].set_xlabel("nats per token (exact for ARMs; for the masked diffusion model an upper bound)")
    caption = (
        "An autoregressive model of permuted text, from reading order to a uniformly random order, and a masked "
        "diffusion model, which reads in all orders. Diamonds: means, ± two standard errors over held-out text "
        "and trainings; pale dots: single trainings (seeds, permutations)."
    )
    return publish(decoded, "F8", "f8-permuted", figure, frame, caption)


def class_label(name: str) -> str:
    return "masked diffusion" if name == "mdm" else f"ARM, {CLOSENESS.get(name, name)}"


def closer_is_better(decoded: Decoded) -> list[Finding]:
    """The classes in order, each against the next."""
    found = []
    for cell, own in text_cells(decoded).items():
        ranked = [own[name] for name in CLOSENESS if name in own]
        if len(ranked) < 2:
            continue
        steps = [(b.mean - a.mean, math.hypot(a.error, b.error)) for a, b in pairwise(ranked)]
        clear = all(d > 2 * se for d, se in steps)
        turned = any(d < -2 * se for d, se in steps)
        few = min(len(r.losses) for r in ranked) < 2
        answer: Answer = "undecided" if few else "no" if turned else "yes" if clear else "undecided"
        text = ", ".join(f"{CLOSENESS[r.closeness]} {r.mean:.3f} ± {r.error:.3f}" for r in ranked)
        found.append(Finding(answer, f"{cell}: {text}{' (one training)' if few else ''}"))
    return found


def diffusion_reads(decoded: Decoded) -> list[Finding]:
    """The masked diffusion model's bound against the uniform order's loss.

    A bound below the ARM's loss shows that the loss is; a bound above it shows nothing.
    """
    found = []
    for cell, own in text_cells(decoded).items():
        if "mdm" not in own or "uniform" not in own:
            continue
        ours, theirs = own["mdm"], own["uniform"]
        d, se = ours.mean - theirs.mean, math.hypot(ours.error, theirs.error)
        few = min(len(ours.losses), len(theirs.losses)) < 2
        said: Answer = "yes" if d + 2 * se < TOLERANCE else "undecided"
        text = f"{cell}: {d:+.3f} ± {se:.3f} nats per token".replace("-", "−")
        found.append(Finding("undecided" if few else said, f"{text}{' (one training)' if few else ''}"))
    return found
