"""What the report says in words: the verdict, its caution, and the definitions it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from dlm.report.claims import is_smoke_scale
from dlm.report.crossing import Crossing
from dlm.report.pareto import FrontCrossing
from dlm.report.study import Study

FEW = 6  # evaluations below which a curve says nothing about its model


def is_smoke(study: Study) -> bool:
    """Whether the scale is the smoke test, or the curves are too short to mean anything."""
    counts = [len(run.curve.epochs) for run in study.compared if run.curve is not None]
    return is_smoke_scale(study.plan["scale"]) or not counts or float(np.median(counts)) < FEW


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """The verdict in plain text, a line per cell and process and per pair of fronts; first a caution, if due."""
    lines = []
    if results["smoke"]:
        lines.append(caution(results["scale"]))
    for pairs in grouped(results["comparisons"]):
        first = pairs[0]
        parts = [f"against {results['labels'][c['baseline']]}: {in_words(c)}" for c in pairs]
        name = f"{first['cell']}, {results['labels'][first['process']]}"
        lines.append(f"{name}{control(pairs)}: " + "; ".join(parts) + ".")
    labels = results["labels"]
    for f in results.get("fronts", []):
        pair = f"{labels[f['process']]} against {labels[f['baseline']]}"
        same, ever = (FrontCrossing.from_json(f[kind]) for kind in ("matched", "ever"))
        sizes = f"{f['unique_tokens']:,} unique tokens, the best of {len(same.sizes)} sizes by the same compute"
        lines.append(f"{sizes}, {pair}: X2 {same}; against its best ever: {ever}.")
    if results["missing"]:
        lines.append(f"Missing: {len(results['missing'])} of the planned runs; see the list of runs.")
    return lines


def caution(scale: str) -> str:
    """Why nothing may be concluded where `is_smoke`."""
    if is_smoke_scale(scale):
        return "Smoke scale: this proves the machinery, and nothing about the models."
    return f"Too few evaluations, under {FEW} in a typical run, to say anything about the models."


def grouped(comparisons: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Comparisons by cell and process, in their order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison["cell"], comparison["process"]), []).append(comparison)
    return list(groups.values())


def in_words(comparison: dict[str, Any]) -> str:
    """X1 and X2 of one comparison in words."""
    if comparison["missing"]:
        return comparison["missing"]
    same, so_far = Crossing.from_json(comparison["x1"]), Crossing.from_json(comparison["x2"])
    spent = f" ({so_far.flops:.2g} FLOPs)" if so_far.flops is not None else ""
    return f"X1 {same}, X2 {so_far}{spent}"


def control(pairs: Sequence[dict[str, Any]]) -> str:
    """For a control cell: whether the absence of crossings, which is what is expected there, was observed."""
    if pairs[0]["role"] != "control":
        return ""
    known = [c for c in pairs if not c["missing"]]
    if not known:
        return " (control, nothing to compare)"
    crossed = any(
        Crossing.from_json(c[kind]).status in ("clear", "from the start") for c in known for kind in ("x1", "x2")
    )
    return " (control, UNEXPECTED crossing)" if crossed else " (control, no clear crossing, as expected)"


def headline(results: dict[str, Any]) -> str:
    """Who clearly beat the best that each baseline ever reached in the scarce cells, and how the controls did."""
    sentences = []
    for baseline in dict.fromkeys(c["baseline"] for c in results["comparisons"]):
        scarce = [c for c in results["comparisons"] if c["baseline"] == baseline and c["role"] != "control"]
        known = [c for c in scarce if not c["missing"]]
        won: dict[str, list[str]] = {}
        for c in known:
            if Crossing.from_json(c["x2"]).status in ("clear", "from the start"):
                won.setdefault(results["labels"][c["process"]], []).append(c["cell"])
        names = "; ".join(f"{process} ({', '.join(cells)})" for process, cells in won.items())
        missing = f" ({len(scarce) - len(known)} more missing)" if len(known) < len(scarce) else ""
        sentences.append(
            f"The best that {results['labels'][baseline]} ever reached was clearly beaten in "
            f"{sum(map(len, won.values()))} of {len(known)} comparisons{missing}" + (f": {names}." if won else ".")
        )
    controls: dict[str, list[str]] = {}
    for pairs in grouped(results["comparisons"]):
        if pairs[0]["role"] == "control":
            said = control(pairs).strip(" ()").removeprefix("control, ")
            controls.setdefault(said, []).append(f"{results['labels'][pairs[0]['process']]} ({pairs[0]['cell']})")
    sentences += [f"In the controls, {said}: {', '.join(who)}." for said, who in controls.items()]
    return " ".join(sentences) or "Nothing to compare."


LEDE = Markup(
    "An <b>autoregressive</b> model (ARM) writes text from left to right and learns to predict the next "
    "token. A <b>diffusion</b> model learns to restore text that has been destroyed, by masking tokens "
    "(MD4, flow matching) or by replacing them at random (Shuffle), so every pass over the same text poses "
    "it new questions. With plenty of text the autoregressive model learns faster. But where text is "
    "<b>scarce</b> and has to be repeated for many epochs, it starts to memorise and its loss on unseen "
    "text rises again, while the diffusion model may still be improving. At some point the curves may "
    "<b>cross</b>. This report asks whether, and when, they do. What is compared is the loss on held-out "
    "text: for autoregressive models an exact value, for diffusion models an <b>upper bound</b> on it. So a "
    "diffusion model below an autoregressive one is a conservative finding, and one above it proves "
    "nothing."
)

DEFINITIONS = Markup(
    "<b>X1, at the same epoch:</b> from here on the baseline's loss is above the process's at the same "
    "epoch (two consecutive evaluations, each by more than two standard errors). It needs only that the "
    "baseline over-fits. <b>X2, best so far:</b> the process's best checkpoint so far beats the best that "
    "the baseline <i>ever</i> reached, as if the baseline had been stopped at the right moment. Checkpoints "
    "are chosen on the tune split, losses reported on the report split. <b>Clear</b> means more than two "
    "paired standard errors; <b>within noise</b> that the point estimate has crossed, but not by that much; "
    "<b>not confirmed</b> that the observation ended too soon after X1, usually because the baseline was "
    "stopped. Intervals are 95 % bootstrap intervals over passages of held-out text{seeds}. <b>X2 cooled</b> "
    "compares branches whose learning rate was cooled down, <b>X2 matched</b> is the weaker comparison with what "
    "the baseline had reached by the same compute. <b>X3</b> is X1 for the accuracy of a probe."
)
