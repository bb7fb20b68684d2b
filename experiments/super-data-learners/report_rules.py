"""What each hypothesis looks at: one function per hypothesis, one finding per cell that has the data.

A finding is "yes" or "no" only where two standard errors, or a 95 % interval, leave no doubt in that cell. The
rules stand in words beside the claims, in report_hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from report_evidence import (
    UNIFORM,
    X,
    best_epochs,
    chosen_epoch,
    crossing,
    late_loss,
    measure_at,
    ordered_crossings,
    turned,
    with_orders,
)

from dlm.report.claims import Answer, Finding
from dlm.report.summary import Summary

CLEAR = 2.0  # standard errors
PAIR = ("md4", "arm")


def pm(value: float, se: float, sign: str = "+") -> str:
    return f"{value:{sign}.3f} ± {se:.3f}".replace("-", "−")


def replicated(summary: Summary, cell: str, arms: Sequence[str]) -> bool:
    """Whether each arm has two seeds or more in a cell; errors of a single one know nothing of the noise of
    training."""
    return all(len(summary.members.get((cell, arm), [])) > 1 for arm in arms)


def seeded(summary: Summary, cell: str, arms: Sequence[str], finding: Finding) -> Finding:
    """The finding, undecided where an arm has a single seed."""
    if replicated(summary, cell, arms):
        return finding
    return Finding("undecided", f"{finding.text} (one seed)")


def told(answers: set[bool | None]) -> Answer:
    """Yes or no where all that is known says so."""
    known = answers - {None}
    return ("yes" if known == {True} else "no") if len(known) == 1 else "undecided"


def in_words(summary: Summary, name: str, cell: str, x: X) -> str:
    return f"{name}: X1 {x.text}{'' if replicated(summary, cell, PAIR) else ' (one seed)'}"


def scarce(summary: Summary) -> list[str]:
    """The cells that are not controls, by unique tokens."""
    cells = [c for c in summary.cells if c["role"] != "control"]
    return [c["cell"] for c in sorted(cells, key=lambda c: c["unique_tokens"])]


def later(one: X, other: X) -> bool | None:
    """Whether `other` comes later than `one`: by disjoint intervals, or censored beyond; None if unknown."""
    if other.low > one.high:
        return True
    return False if other.high < one.low else None


def h1(summary: Summary) -> list[Finding]:
    """X1 of MD4 against ARM at growing budgets of text, at one model size."""
    found = ordered_crossings(summary, "md4", "arm", "x1", by="unique_tokens")
    if len(found) < 2:
        return []
    text = ", ".join(in_words(summary, cell, cell, x) for cell, x in found)
    (small, first), rest = found[0], found[1:]
    if not replicated(summary, small, PAIR):
        return [Finding("undecided", text)]
    if not first.clear:
        return [Finding("no" if first.ruled_out and first.overfitted else "undecided", f"no clear X1: {text}")]
    known = [x for cell, x in rest if x.known and replicated(summary, cell, PAIR)]
    return [Finding(told({later(first, x) for x in known}), text)]


def h2(summary: Summary) -> list[Finding]:
    """X1 of MD4 against ARM at growing model sizes, at each budget of text."""
    findings = []
    for budget in dict.fromkeys(c["unique_tokens"] for c in summary.cells):
        found = ordered_crossings(summary, "md4", "arm", "x1", by="size", unique_tokens=budget)
        if len(found) < 2:
            continue
        text = ", ".join(in_words(summary, f"{summary.size(c, 'md4'):,} parameters", c, x) for c, x in found)
        known = [x for cell, x in found if x.known and replicated(summary, cell, PAIR)]
        said = told({later(big, small) for small, big in combinations(known, 2)})
        findings.append(Finding(said, f"{budget:,} unique tokens, {text}"))
    return findings


def h3(summary: Summary) -> list[Finding]:
    """X1 and X2 of MD4 against the regularised ARM, in every scarce cell."""
    findings = []
    for cell in scarce(summary):
        plain, tuned = (crossing(summary, cell, "md4", b, "x1") for b in ("arm", "arm-reg"))
        best = crossing(summary, cell, "md4", "arm-reg", "x2_cooled") or crossing(
            summary, cell, "md4", "arm-reg", "x2"
        )
        if plain is None or tuned is None or best is None:
            continue
        delayed: bool | None = None
        if plain.clear and tuned.low >= 2 * plain.high:
            delayed = True
        elif plain.clear and tuned.clear and tuned.high < 2 * plain.low:
            delayed = False
        text = f"{cell}: X1 {plain.text} against ARM, {tuned.text} against ARM regularised, X2 {best.text}"
        said: Answer = "yes" if delayed and best.ruled_out else "undecided"
        said = "no" if delayed is False or best.clear else said
        findings.append(seeded(summary, cell, (*PAIR, "arm-reg"), Finding(said, text)))
    return findings


def h4(summary: Summary) -> list[Finding]:
    """Best losses of the mask predictors, pairwise."""
    family = [a for a in ("md4", "dfm_mask", "aoarm") if a in summary.arms(main=False)]
    found = []
    for cell in [c["cell"] for c in summary.cells]:
        for one, other in combinations(family, 2):
            if d := summary.difference(cell, one, other):
                found.append((cell, one, other, d))
    strict = CLEAR if len(found) < 2 else 2.0 + 0.35 * math.log(len(found))  # about Bonferroni's quantile
    findings: list[Finding] = []
    doubtful: list[Finding] = []
    for cell, one, other, d in found:
        text = f"{cell}: {summary.label(other)} minus {summary.label(one)} {pm(d['value'], d['se'])}"
        if abs(d["value"]) <= CLEAR * d["se"]:
            sharp = CLEAR * d["se"] <= 0.1
            findings.append(Finding("yes" if sharp else "undecided", text))
        else:
            sure = abs(d["value"]) > strict * d["se"]
            findings.append(seeded(summary, cell, (one, other), Finding("no" if sure else "undecided", text)))
            doubtful.append(findings[-1])
    against = [f for f in findings if f.answer == "no"]
    return (
        against or doubtful or findings
    )  # one clear difference refutes an identity, an unclear one leaves it open


def h5(summary: Summary) -> list[Finding]:
    """Uniform diffusion against MD4: whose crossing, and whose turn, comes later."""
    findings = []
    arm = next((a for a in UNIFORM if a in summary.arms(main=False)), UNIFORM[0])
    for cell in scarce(summary):
        masked, uniform = (crossing(summary, cell, a, "arm", "x2") for a in ("md4", arm))
        if masked is None or uniform is None:
            continue
        crosses = later(masked, uniform) if masked.known else None
        turns = turned(summary, cell, "md4"), turned(summary, cell, arm)
        epochs = best_epochs(summary, cell, "md4"), best_epochs(summary, cell, arm)
        overfits: bool | None = None
        if turns[0] and min(epochs[1]) > max(epochs[0]):
            overfits = True
        elif turns[1] and max(epochs[1]) < min(epochs[0]):
            overfits = False
        text = (
            f"{cell}: X2 against ARM {masked.text} for MD4, {uniform.text} for {summary.label(arm)}; best at "
            f"epoch {np.mean(epochs[0]):.3g}{'' if turns[0] else ' (not turned)'} and "
            f"{np.mean(epochs[1]):.3g}{'' if turns[1] else ' (not turned)'}"
        )
        said: Answer = "yes" if crosses and overfits else "undecided"
        said = "no" if crosses is False or overfits is False else said
        findings.append(seeded(summary, cell, ("md4", arm, "arm"), Finding(said, text)))
    return findings


def h6(summary: Summary) -> list[Finding]:
    """ARM's rise after its minimum, before and after one temperature, and its top-1 accuracy."""
    findings = []
    for cell in scarce(summary):
        raw, calibrated, top1 = (summary.measured(m, cell, "arm") for m in ("nll", "nll_calibrated", "top1"))
        if min(len(raw), len(calibrated), len(top1)) < 2:
            continue
        at = chosen_epoch(summary, cell, "arm", raw["epoch"].to_list())
        low, end = raw[raw["epoch"] == at].iloc[0], raw.iloc[-1]
        rise, rise_se = end.value - low.value, math.hypot(end.se, low.se)
        if rise <= CLEAR * rise_se:
            findings.append(Finding("undecided", f"{cell}: ARM's loss rises by only {pm(rise, rise_se)}"))
            continue
        start, stop = (measure_at(calibrated, e) for e in (low.epoch, end.epoch))
        rest, rest_se = stop[0] - start[0], math.hypot(stop[1], start[1])
        removed = 1 - rest / rise
        removed_se = math.hypot(rest_se, rest / rise * rise_se) / rise
        before, after = (measure_at(top1, e) for e in (low.epoch, end.epoch))
        change, change_se = after[0] - before[0], math.hypot(after[1], before[1])
        text = (
            f"{cell}: rise {pm(rise, rise_se)} nats to epoch {end.epoch:.3g}, {removed:.0%} ± {removed_se:.0%} "
            f"of it removed by a temperature, top-1 accuracy {pm(change, change_se)}"
        )
        if removed + CLEAR * removed_se < 0.5 or change < -CLEAR * change_se:
            findings.append(Finding("no", text))
        else:
            findings.append(Finding("yes" if removed - CLEAR * removed_se > 0.5 else "undecided", text))
    return findings


def h7(summary: Summary) -> list[Finding]:
    """MD4's exact left-to-right likelihood minus its bound, on the windows that both were measured on."""
    findings = []
    for cell in [c["cell"] for c in summary.cells]:
        scores = [run.record["likelihood"] for run in summary.members.get((cell, "md4"), [])]
        pairs = [(s["left_to_right"], s["bound_same_windows"]) for s in scores
                 if s.get("left_to_right") and s.get("bound_same_windows")]  # fmt: skip
        if not pairs:
            continue
        gaps = np.array([exact["nats_per_token"] - bound["nats_per_token"] for exact, bound in pairs])
        noise = float(
            np.mean([bound.get("se_draws") or 0.0 for _, bound in pairs])
        )  # the same draws for all seeds
        se = math.hypot(noise, gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0)
        gap = float(gaps.mean())
        text = f"{cell}: left to right minus bound {pm(gap, se)} on {pairs[0][0].get('windows')} windows"
        findings.append(Finding("no" if gap > CLEAR * se else "yes" if gap < -CLEAR * se else "undecided", text))
    return findings


def h8(summary: Summary) -> list[Finding]:
    """Variance over orders on training text, first and last checkpoint of MD4."""
    findings = []
    for cell in scarce(summary):
        found = summary.measured("order_variance_train", cell, "md4")
        if len(found) < 2:
            continue
        first, last = found.iloc[0], found.iloc[-1]
        change, se = last.value - first.value, math.hypot(first.se, last.se)
        text = f"{cell}: {pm(change, se)} nats² per token from epoch {first.epoch:.3g} to {last.epoch:.3g}"
        said: Answer = "yes" if change > CLEAR * se else "no" if change < -CLEAR * se else "undecided"
        findings.append(Finding(said, text))
    return findings


def h9(summary: Summary) -> list[Finding]:
    """The share of MD4's lead over ARM, late in training, that sixteen orders recover."""
    findings = []
    for cell in scarce(summary):
        arm = with_orders(summary, cell, 16)
        late = late_loss(summary, cell, ("arm", "md4", arm)) if arm else None
        if arm is None or late is None:
            continue
        epoch, ((base, base_se), (diffusion, diffusion_se), (orders, orders_se)) = late
        lead, lead_se = base - diffusion, math.hypot(base_se, diffusion_se)
        if lead <= CLEAR * lead_se:
            findings.append(
                Finding("undecided", f"{cell}: MD4 does not lead ARM at epoch {epoch:.3g}, {pm(lead, lead_se)}")
            )
            continue
        share = (base - orders) / lead
        se = math.hypot(orders_se, (1 - share) * base_se, share * diffusion_se) / lead
        text = f"{cell}: {share:.0%} ± {se:.0%} of MD4's lead of {pm(lead, lead_se)} over ARM at epoch {epoch:.3g}"
        said: Answer = "yes" if share - CLEAR * se > 0.5 else "no" if share + CLEAR * se < 0.5 else "undecided"
        findings.append(seeded(summary, cell, ("arm", "md4", arm), Finding(said, text)))
    return findings


def h10(summary: Summary) -> list[Finding]:
    """The first checkpoint at which 50-character copying exceeds its natural level, ARM and MD4."""
    findings = []
    for cell in scarce(summary):
        onset: dict[str, float | None] = {}
        seen: dict[str, float] = {}
        seeds = math.inf
        for arm in ("arm", "md4"):
            copied, natural = (summary.measured(m, cell, arm) for m in ("copied_50", "natural_50"))
            if copied.empty or natural.empty:
                break
            level, level_se = natural["value"].mean(), natural["se"].fillna(0).mean()
            excess = copied["value"] - level > CLEAR * (copied["se"].fillna(0) ** 2 + level_se**2) ** 0.5
            onset[arm] = float(copied["epoch"][excess].iloc[0]) if excess.any() else None
            seen[arm] = float(copied["epoch"].max())
            seeds = min(seeds, copied["seeds"].min())
        if len(seen) < 2:
            continue
        ours, theirs = onset["md4"], onset["arm"]
        said: Answer = "undecided"
        if theirs is not None:
            said = "yes" if (ours or math.inf) >= 2 * theirs and seen["md4"] >= 2 * theirs else "no"
            if ours is None and seen["md4"] < 2 * theirs:
                said = "undecided"
        elif ours is not None and seen["arm"] >= ours:
            said = "no"
        words = [f"from epoch {at:.3g}" if at else f"not up to epoch {seen[a]:.3g}" for a, at in onset.items()]
        text = f"{cell}: copying above its natural level {words[0]} for ARM, {words[1]} for MD4"
        findings.append(Finding(said, text) if seeds > 1 else Finding("undecided", f"{text} (one seed)"))
    return findings
