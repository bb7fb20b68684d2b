"""The report of this laboratory: what training selects on the lattice of masked strings.

    python experiments/path-lattice/report.py outputs/path-lattice/<scale>

reads what was measured there and writes report.html, figures/*.svg and *.png, results.json and a CSV per figure.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from report_figures import ORDERS, order_figures, selection, solutions, theory, trembling, unvisited
from report_modes import METHODS, coverage, imbalance
from report_style import mean_se

from dlm.errors import UserError
from dlm.report.measurements import Measurements
from dlm.report.page import Prose, Section, page

MEASURED = {
    "drawings": ("balanced",),
    "selection": ("network, biased", "network, neutral"),
    "unvisited": ("before", "steps", "visits_per_step"),
    "trembling": ("rates", *(f"edge, {order}" for order in ORDERS)),
    "orders": ("languages", "entropy"),
    "coverage": ("sets", "steps", "modes"),
    "imbalance": ("steps", "states", "masks", "expected", *METHODS),
}
"""What each file must hold before anything is drawn from it."""


def compute(measured: Measurements) -> dict[str, Any]:
    """The numbers of the verdict, each as [mean, standard error over seeds]."""
    data = {name: measured.json(f"{name}.json", *keys) for name, keys in MEASURED.items()}

    def pair(values: Any) -> list[float]:
        mean, se = mean_se(values)
        return [float(mean), float(se)]

    biased, neutral = (data["selection"][f"network, {start}"] for start in ("biased", "neutral"))
    rates = data["trembling"]["rates"]
    rate = min(range(len(rates)), key=lambda i: abs(rates[i] - 0.1))
    cover, shared = data["coverage"]["sets"][0], data["coverage"]["sets"][-1]
    kinds = [data["imbalance"][k] for k in METHODS]
    peaks = [np.max(k["visits"], 1) / np.median(k["visits"], 1).clip(min=1) for k in kinds]
    points = [
        (h, g)
        for language in data["orders"]["languages"].values()
        for row_h, row_g in zip(language["half_variance"], language["gap"], strict=True)
        for h, g in zip(row_h, row_g, strict=True)
        if 1e-4 < h < 0.1
    ]
    results: dict[str, Any] = {
        "smoke": measured.smoke,
        "scale": measured.record["scale"],
        "theta": measured.record["settings"]["theta"],
        "seeds": len(measured.record["settings"]["seeds"]),
        "start_to_balanced": pair(biased["to_balanced"][0]),
        "biased_to_balanced": pair(biased["to_balanced"][-1]),
        "biased_to_concentrated": pair(biased["to_concentrated"][-1]),
        "neutral_to_balanced": pair(neutral["to_balanced"][-1]),
        "biased_variance": [2 * v for v in pair(biased["half_variance"][-1])],
        "gap_to_half_variance": pair([g / h for h, g in points]) if points else [math.nan, math.nan],
        "unvisited": {k: [min(v), max(v)] for k, v in data["unvisited"]["before"].items()},
        "unvisited_after": {k: pair(data["unvisited"][f"{k}, 00"][-1]) for k in data["unvisited"]["before"]},
        "more_steps": data["unvisited"]["steps"][-1],
        "rare": measured.record["settings"]["rare"],
        "tremble_rate": rates[rate],
        "tremble": {lam: pair(data["trembling"][f"edge, {lam}"][rate]) for lam in ORDERS},
        "tremble_theory": {lam: theory("edge", float(lam), rates[rate]) for lam in ORDERS},
        "training_set": cover["size"],
        "seen": pair(cover["seen"][-1]),
        "unseen": pair(cover["unseen"][-1]),
        "unseen_share": pair(cover["unseen_share"]),
        "unseen_shared": pair(shared["unseen"][-1]),
        "invalid": pair(cover["invalid"][-1]),
        "peak": [pair(p) for p in peaks],
        "final_excess": [pair(k["excess"][-1]) for k in kinds],
        "excess_change": pair(np.subtract(kinds[1]["excess"][-1], kinds[0]["excess"][-1])),
        "excess_change_fewer": pair(np.subtract(kinds[1]["excess"][-1], kinds[2]["excess"][-1])),
    }
    return results | {"verdict": verdict_lines(results)}


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """The three findings, in the numbers that were measured."""

    def said(pair: list[float], digits: int = 3) -> str:
        return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"

    r = results
    nearer = r["biased_to_balanced"][0] < r["biased_to_concentrated"][0]
    selects = (
        "Training selects the balanced solution" if nearer else "Training did not come to the balanced solution"
    )
    first = (
        f"{selects}: networks that begin at theta = {r['theta']:g}, {said(r['start_to_balanced'])} away from it "
        f"in total variation between laws over paths, end {said(r['biased_to_balanced'])} away (from a neutral "
        f"start {said(r['neutral_to_balanced'])}), with an order variance of {said(r['biased_variance'])}; what "
        f"is left of it is paid in the bound, gap / (variance / 2) = {said(r['gap_to_half_variance'], 2)}."
    )
    own, tied, after = r["unvisited"]["own"], r["unvisited"]["shared"], r["unvisited_after"]
    second = (
        "Where data never go the softmax says what its weights imply: mu(0 | _0) on the “?” edge is "
        f"{own[0]:.2f} to {own[1]:.2f} over {r['seeds']} seeds where positions have symbols of their own and "
        f"{tied[0]:.2f} to {tied[1]:.2f} where they share them, and {r['more_steps']} steps with "
        f"{r['rare']:.0%} of 00 bring it to {said(after['own'], 2)} and {said(after['shared'], 2)} (truth 1); a "
        f"hand that trembles at rate {r['tremble_rate']:g} errs {said(r['tremble']['1'], 4)} with the "
        f"constraint first against {said(r['tremble']['0'], 4)} with it last (theory "
        f"{r['tremble_theory']['1']:.4f} and {r['tremble_theory']['0']:.4f})."
    )

    def effect(pair: list[float]) -> str:
        sure = "clearly" if abs(pair[0]) > 2 * pair[1] > 0 else "not clearly"
        return f"{sure} {'higher' if pair[0] > 0 else 'lower'} ({pair[0]:+.3f} ± {pair[1]:.3f})"

    if r["invalid"][0] > r["seen"][0]:
        does = "has not learned the language"
    elif r["unseen"][0] > r["unseen_share"][0] / 2:
        does = "smooths"
    else:
        does = "does not smooth but repeats them"
    third = (
        f"From {r['training_set']} strings a network "
        f"{does}: {said(r['seen'], 2)} of its mass is "
        f"on modes it saw, {said(r['unseen'], 2)} (with shared symbols {said(r['unseen_shared'], 2)}) on modes "
        f"it never saw, which hold {said(r['unseen_share'], 2)} of the data, {said(r['invalid'], 2)} on strings "
        "that do not exist; rejecting often-met states lowers the visits of the most trained state from "
        f"{r['peak'][0][0]:.0f} to {r['peak'][1][0]:.1f} times the median's, and the final error in nats is "
        f"{effect(r['excess_change'])} than with MD4 after as many steps, {effect(r['excess_change_fewer'])} "
        "than with MD4 on as many rows."
    )
    lines = [first, second, third]
    if r["smoke"]:
        return ["Smoke scale: this proves the machinery, and nothing about the models.", *lines]
    return lines


LEDE = Markup(
    "A masked model writes a string by <b>walking down a lattice</b>: from the all-masked string, one token at a "
    "time, to a clean one. Many sets of transition probabilities end in the same language and differ in how they "
    "get there: every order alike (<b>balanced</b>), one path for each string (<b>concentrated</b>), or a mixture "
    "that a network with independent outputs can express (<b>factorised</b>). On languages so small that every "
    "state and every path can be listed, this laboratory asks which of them training selects, what it leaves "
    "undecided, and what that costs."
)


def build(measured: Measurements, results: dict[str, Any]) -> str:
    lines = results["verdict"]
    warning = lines[0] if results["smoke"] else ""
    settings = measured.record["settings"]
    sections = [
        Section("Verdict", [Prose(line) for line in (lines[1:] if results["smoke"] else lines)]),
        Section("Solutions", solutions(measured)),
        Section("What training selects", [selection(measured)]),
        Section("Orders that disagree", order_figures(measured)),
        Section("Edges that are never visited", [unvisited(measured)]),
        Section("The trembling hand", [trembling(measured)]),
        Section("Modes from finite samples", coverage(measured)),
        Section("How evenly states train", imbalance(measured)),
        Section("Provenance", measured.provenance()),
    ]
    subtitle = f"Scale {results['scale']}, {len(settings['seeds'])} seeds, {settings['steps']} steps each"
    return page("Paths on the lattice of masked strings", subtitle, LEDE, sections, warning)


def main(directory: Path) -> Path:
    """Write the report of a measured laboratory and return the page's path. Raises UserError."""
    measured = Measurements(Path(directory))
    results = compute(measured)
    return measured.write(build(measured, results), results)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} DIRECTORY")
    try:
        written = main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    print(written)
