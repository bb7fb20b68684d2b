"""What each claim about puzzles looks at: one function per claim, one finding per cell and model with the data.

A finding is "yes" or "no" only where a 95 % interval over puzzles (paired, puzzle by puzzle, wherever two
decodings answer the same ones) and over seeds leaves no doubt. The rules stand in words beside
the claims, in report_claims.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from dlm.report.claims import Answer, Finding
from dlm.report.decoded import Decoded
from dlm.report.decoding import (
    AUTOREGRESSIVE,
    Contender,
    between_splits,
    difference,
    estimate,
    kinds,
    of,
    plain,
    rule_label,
)
from dlm.report.figures_boards import grouped
from dlm.report.proportions import Estimate, wilson
from dlm.report.summary import Frame

SAME = 0.05  # shares that differ by less are the same
FAR = 0.30  # "far ahead", "a gap like the published one" (71 points)
PUBLISHED_NOISE = ("Gumbel 0.5, annealed", "Gumbel 0.5")
FAIR = ("top_probability", "margin")  # the two adaptive rules of the paper
UNDEDUCIBLE = "not deducible by the seven"  # a group of figures_boards.GROUPS


def points(e: Estimate) -> str:
    """A difference of shares in percentage points, with its interval."""
    return f"{100 * e.value:+.1f} points [{100 * e.low:+.1f}, {100 * e.high:+.1f}]".replace("-", "−")


def above(e: Estimate | None, bar: float = 0.0) -> Answer:
    """Whether a difference exceeds a bar, by its interval."""
    if e is None:
        return "undecided"
    return "yes" if e.low > bar else "no" if e.high < bar else "undecided"


def not_ahead(e: Estimate) -> Answer:
    """Whether a score is as good as another: yes as `equal`, no only where it is ahead.

    A score that is behind explains no lead.
    """
    return "no" if e.low > SAME else "yes" if equal(e) == "yes" else "undecided"


def equal(e: Estimate | None, margin: float = SAME) -> Answer:
    """Whether a difference lies within ± margin: yes where all its interval does, no where none of it does."""
    if e is None:
        return "undecided"
    return (
        "yes"
        if -margin < e.low and e.high < margin
        else "no"
        if e.low > margin or e.high < -margin
        else "undecided"
    )


def both(answers: Iterable[Answer]) -> Answer:
    """Yes where all say yes, no where one says no."""
    said = list(answers)
    return "no" if "no" in said else "yes" if said and set(said) == {"yes"} else "undecided"


def unanimous(answers: Iterable[Answer]) -> Answer:
    """Yes or no where all say so."""
    said = set(answers)
    return said.pop() if len(said) == 1 else "undecided"


def families(decoded: Decoded, task: str = "sudoku") -> list[tuple[str, str, str]]:
    """The diffusion models of a task: cell, arm, and how to call them."""
    found = []
    for cell in decoded.cells(task):
        arms = decoded.diffusion(cell)
        for arm in arms:
            name = f", {decoded.study.label(arm)}" if len(arms) > 1 else ""
            found.append((cell, arm, decoded.title(cell) + name))
    return found


def rows(decoded: Decoded, cell: str, arm: str, rule: str, noise: str | None = None) -> Frame:
    """A rule's decodings without noise, or with one; one token a step."""
    table = decoded.plain if noise is None else plain(decoded.table, noise=noise)
    return of(table, Contender(cell, arm, rule))


def gap(
    decoded: Decoded, cell: str, arm: str, first: str, second: str, noise: str | None = None
) -> Estimate | None:
    """Share solved under one rule minus another's, of the same model."""
    return difference(
        decoded.study, rows(decoded, cell, arm, first, noise), rows(decoded, cell, arm, second, noise)
    )


def loud(decoded: Decoded, cell: str, arm: str) -> str | None:
    """The published noise as this model was decoded with it: annealed, or else constant."""
    there = decoded.table[(decoded.table["cell"] == cell) & (decoded.table["arm"] == arm)]["noise_name"]
    return next((name for name in PUBLISHED_NOISE if (there == name).any()), None)


def adaptive(decoded: Decoded, task: str = "sudoku") -> list[Finding]:
    found = []
    for cell, arm, name in families(decoded, task):
        leads = {rule: gap(decoded, cell, arm, rule, "random") for rule in FAIR}
        known = {rule: e for rule, e in leads.items() if e is not None}
        if known:
            text = ", ".join(f"{rule_label(rule)} {points(e)}" for rule, e in known.items())
            found.append(Finding(both(above(e) for e in known.values()), f"{name}: {text}"))
    return found


def same_without_noise(decoded: Decoded, task: str = "sudoku") -> list[Finding]:
    found = []
    for cell, arm, name in families(decoded, task):
        e = gap(decoded, cell, arm, "margin", "top_probability")
        if e is not None:
            found.append(Finding(equal(e), f"{name}: {points(e)}"))
    return found


def collapse(decoded: Decoded) -> list[Finding]:
    """Whether the noise takes more than half of each probability score's lead over random order.

    The lead has an interval, too: the fall is held against half of its upper end, or of its lower one.
    """
    found = []
    for cell, arm, name in families(decoded):
        noise = loud(decoded, cell, arm)
        idle = rows(decoded, cell, arm, "random")
        if noise is None or idle.empty:
            continue
        answers, texts = [], []
        for rule in FAIR:
            quiet, noisy = rows(decoded, cell, arm, rule), rows(decoded, cell, arm, rule, noise)
            fall, lead = (difference(decoded.study, quiet, other) for other in (noisy, idle))
            if fall is None or lead is None:
                continue
            more, less = fall.low > lead.high / 2, fall.high < lead.low / 2
            answers.append("undecided" if lead.low <= SAME else "yes" if more else "no" if less else "undecided")
            texts.append(f"{rule_label(rule)} from {percent(quiet)} to {percent(noisy)}")
        if answers:
            found.append(Finding(both(answers), f"{name}, {noise}: {', '.join(texts)}"))
    return found


def ratio_survives(decoded: Decoded) -> list[Finding]:
    """Whether the log-ratio is far ahead of both probability scores under the noise."""
    found = []
    for cell, arm, name in families(decoded):
        noise = loud(decoded, cell, arm)
        if noise is None:
            continue
        leads = {rule: gap(decoded, cell, arm, "log_ratio", rule, noise) for rule in FAIR}
        known = {rule: e for rule, e in leads.items() if e is not None}
        if known:
            text = ", ".join(f"{points(e)} over {rule_label(rule)}" for rule, e in known.items())
            found.append(Finding(both(above(e, FAR) for e in leads.values()), f"{name}, {noise}: {text}"))
    return found


def noise_not_score(decoded: Decoded) -> list[Finding]:
    """The published gap: made by the noise on the score's scale, not by the score."""
    found = []
    for cell, arm, name in families(decoded):
        noise = loud(decoded, cell, arm)
        margin, ratio = (gap(decoded, cell, arm, rule, "top_probability") for rule in ("margin", "log_ratio"))
        if noise is None or margin is None or ratio is None:
            continue
        wide = gap(decoded, cell, arm, "log_ratio", "top_probability", noise)
        paper = gap(decoded, cell, arm, "margin", "top_probability", noise)
        if wide is None:
            continue
        text = f"{name}: over top probability without noise margin {points(margin)}, log-ratio {points(ratio)}; "
        text += f"with {noise} log-ratio {points(wide)}"
        text += f", margin of probabilities {points(paper)}" if paper is not None else ""
        # a log-ratio that is ahead without noise proves nothing of margin, the score of the published gap
        alike = "yes" if equal(ratio) == "yes" else "undecided"
        found.append(Finding(both([not_ahead(margin), alike, above(wide, FAR)]), text))
    return found


def percent(rows: Frame) -> str:
    return f"{100 * estimate(rows).value:.1f} %"


def arms_by_order(decoded: Decoded, cell: str) -> dict[str, dict[str, Contender]]:
    """The autoregressive contenders of a cell: by format, and then by the order they were trained in."""
    found: dict[str, dict[str, Contender]] = {}
    for c in decoded.in_cell(cell):
        if c.rule == AUTOREGRESSIVE:
            form = str(decoded.runs(cell, c.arm)[0].data.get("format") or "")
            found.setdefault(form, {}).setdefault(decoded.order(c), c)
    return found


def seeds(decoded: Decoded, *who: Contender) -> int:
    """The smallest number of trainings among contenders."""
    return min(decoded.rows(c)["run"].nunique() for c in who)


def steps_of(decoded: Decoded, who: Contender) -> set[int]:
    return {int(run.record.get("steps") or 0) for run in decoded.runs(who.cell, who.arm)}


def orders(decoded: Decoded) -> list[Finding]:
    """ARM in the solver's order over row by row over random order, in one format, at equal steps."""
    found = []
    for cell, arms in [(c, arms) for c in decoded.cells("sudoku") for arms in arms_by_order(decoded, c).values()]:
        ranked = [arms[o] for o in ("solver", "row_major", "random") if o in arms]
        if len(ranked) < 2:
            continue
        pairs = list(pairwise(ranked))
        leads = [difference(decoded.study, decoded.rows(a), decoded.rows(b)) for a, b in pairs]
        text = ", ".join(
            f"{decoded.label(a)} over {decoded.label(b)} {points(e)}"
            for (a, b), e in zip(pairs, leads, strict=True)
            if e is not None
        )
        answer = both(above(e) for e in leads)
        if seeds(decoded, *ranked) < 2:
            answer, text = "undecided", f"{text} (one seed)"
        elif len(set.union(*(steps_of(decoded, c) for c in ranked))) > 1:
            answer, text = "undecided", f"{text} (not at equal steps)"
        else:
            text += f", {seeds(decoded, *ranked)} seeds"
        found.append(Finding(answer, f"{decoded.title(cell)}: {text}"))
    return found


def diffusion_and_arm(decoded: Decoded) -> list[Finding]:
    """MDM by margin no worse than ARM with the solver's order, by SAME."""
    found = []
    for cell, arm, name in families(decoded):
        ours = Contender(cell, arm, "margin")
        for theirs in [arms["solver"] for arms in arms_by_order(decoded, cell).values() if "solver" in arms]:
            e = difference(decoded.study, decoded.rows(ours), decoded.rows(theirs))
            if e is not None:
                few = seeds(decoded, ours, theirs) < 2
                text = f"{name} over {decoded.label(theirs)}: {points(e)}{' (one seed)' if few else ''}"
                found.append(Finding("undecided" if few else above(e, -SAME), text))
    return found


def mechanism(decoded: Decoded) -> list[Finding]:
    """First errors on cells that were not deducible, against their share of the fills; training by training."""
    found = []
    for cell in decoded.cells("sudoku"):
        for who in decoded.in_cell(cell):
            part = decoded.rows(who).drop_duplicates("run")  # repeats answer the same puzzles
            fills, errors = grouped(kinds(part, "fills")), grouped(kinds(part, "first_errors"))
            if who.rule not in ("random", "top_probability", "margin", AUTOREGRESSIVE):
                continue
            if not fills[UNDEDUCIBLE] or not sum(errors.values()):
                continue
            answer = unanimous(misled(own) for _, own in part.groupby("run"))
            share = fills[UNDEDUCIBLE] / sum(fills.values())
            among, n = errors[UNDEDUCIBLE] / sum(errors.values()), part["run"].nunique()
            found.append(
                Finding(
                    answer,
                    f"{decoded.title(cell)}, {decoded.label(who)}: {100 * share:.1f} % of the fills, "
                    f"{100 * among:.0f} % of the first errors{f', {n} trainings' if n > 1 else ''}",
                )
            )
    return found


def misled(rows: Frame) -> Answer:
    """Whether a first error is likelier where the cell could not be deduced, in the decoding of one training."""
    fills, errors = grouped(kinds(rows, "fills")), grouped(kinds(rows, "first_errors"))
    n, wrong = max(fills[UNDEDUCIBLE], errors[UNDEDUCIBLE]), errors[UNDEDUCIBLE]
    others, missed = sum(fills.values()) - fills[UNDEDUCIBLE], sum(errors.values()) - wrong
    if not n or not others:
        return "undecided"
    (low, high), (least, most) = wilson(wrong, n), wilson(min(missed, others), others)
    return "yes" if low > most else "no" if high < least else "undecided"


def hard_is_harder(decoded: Decoded) -> list[Finding]:
    """Puzzles beyond the seven techniques, against those within them."""
    table = plain(decoded.table, split="hard")
    found = []
    for cell in decoded.cells("sudoku"):
        for who in decoded.in_cell(cell, table):
            e = between_splits(decoded.rows(who), of(table, who))
            if e is not None and who.rule in (*FAIR, "log_ratio", AUTOREGRESSIVE):
                found.append(Finding(above(e), f"{decoded.title(cell)}, {decoded.label(who)}: {points(e)}"))
    return found


def oracle(decoded: Decoded) -> list[Finding]:
    """The solver's own order against the model's, margin."""
    found = []
    for cell, arm, name in families(decoded):
        e = gap(decoded, cell, arm, "given", "margin")
        if e is not None:
            found.append(Finding(above(e), f"{name}: {points(e)}"))
    return found
