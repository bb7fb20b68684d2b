"""What the report says in words: its title, its introduction, and the verdict in a sentence or two."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

TITLE = "Which order solves a Sudoku?"

LEDE = Markup(
    "A <b>masked diffusion</b> model (MDM) may fill a puzzle's blank cells in any order; an "
    "<b>autoregressive</b> model (ARM) fills them in the order it was taught. Kim et al. (2025) report that "
    "an MDM which fills first the cell it is surest of goes from 7\u00a0% to 89\u00a0% of puzzles "
    "solved, above an ARM of seven times its size that was taught a human solver's order, and that it matters "
    "how sureness is "
    "measured: 19\u00a0% by the probability of the likeliest value, 89\u00a0% by its <b>margin</b> over the "
    "second. Their orders were drawn with <b>noise</b>. This report makes the puzzles anew, trains both kinds of "
    "models, and separates score, scale and noise. A puzzle counts as solved only if the whole board is its "
    "one solution."
)


def headline(results: dict[str, Any]) -> Markup:
    """The verdict on the published gap, from the answers to the claims."""
    answers = {h["id"]: h["answer"] for h in results["hypotheses"]}
    if results["smoke"]:
        return Markup("<b>Too small a scale to decide anything.</b>")
    said = {
        "yes": "The gap between top probability and margin is not in the scores: without noise they solve equally "
        "many puzzles, and with it whoever ranks on an unbounded scale keeps the lead.",
        "no": "The gap is not explained by the noise on the score's scale.",
        "undecided": "Whether the noise on the score's scale explains the gap is undecided.",
    }[answers.get("S5", "undecided")]
    order = {
        "yes": " Autoregressive models do learn the solver's order better than row by row, and that better than "
        "a random one.",
        "no": " That autoregressive models learn the better, the nearer their order is to the solver's, is not "
        "borne out.",
    }.get(answers.get("S6", ""), "")
    counted = {a: sum(x == a for x in answers.values()) for a in ("yes", "no", "undecided")}
    tally = f" Of {len(answers)} claims {counted['yes']} hold, {counted['no']} do not, "
    return Markup("<b>{}</b>{}{}").format(said, order, tally + f"{counted['undecided']} are undecided.")
