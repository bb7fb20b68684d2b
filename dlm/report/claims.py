"""Claims that were stated before the runs, each answered yes, no or undecided by a rule that stands beside it.

A rule looks at one cell at a time and answers with what its intervals allow; the claim is answered yes or no only
where every cell that can tell says the same. The smoke scale decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from dlm.report.page import Table, chip

MOST = 3  # findings quoted
Answer = Literal["yes", "no", "undecided"]
TONES = {"yes": "good", "no": "bad", "undecided": "maybe"}


class Finding(NamedTuple):
    """What one cell says, in half a sentence."""

    answer: Answer
    text: str


class Claim(NamedTuple):
    """A claim, the rule in words, what it needs, and the rule as a function of a study's summary."""

    id: str
    claim: str
    rule: str
    needs: str
    findings: Callable[[Any], list[Finding]]


def answered(claim: Claim, summary: Any) -> dict[str, str]:
    """One claim: its findings, and what they come to together. `summary.results["smoke"]`: nothing is decided."""
    findings, smoke = claim.findings(summary), summary.results["smoke"]
    said: set[Answer] = {f.answer for f in findings if f.answer != "undecided"}
    verdict: Answer = next(iter(said)) if len(said) == 1 and not smoke else "undecided"
    shown = [f for f in findings if f.answer == verdict] or findings  # those that decided it
    evidence = "; ".join(f.text for f in shown[:MOST]) or claim.needs
    if len(shown) > MOST:
        evidence += f"; and {len(shown) - MOST} more like these"
    if smoke:
        evidence = f"too small a scale to decide; {evidence}"
    elif len(said) == 2:
        agree = [next(f for f in findings if f.answer == a).text for a in ("yes", "no")]
        evidence = f"the cells disagree: yes by {agree[0]}; no by {agree[1]}"
    return {
        "id": claim.id,
        "claim": claim.claim,
        "answer": verdict,
        "evidence": f"{evidence}.",
        "rule": claim.rule,
    }


def claims_table(answers: list[dict[str, str]]) -> Table:
    """The answers, each with its evidence and the rule that gave it."""
    rows = [
        [
            h["id"],
            Markup("<b>{}</b><br>{}").format(h["claim"], chip(h["answer"], TONES[h["answer"]])),
            Markup('{}<br><span class="small">Rule: {}</span>').format(h["evidence"], h["rule"]),
        ]
        for h in answers
    ]
    return Table(["<", "<claim", "<evidence"], rows, wrap=True)


def is_smoke_scale(scale: str) -> bool:
    return "smoke" in scale
