"""The tables of this study: the published ones side by side with ours, the grid, the strata, the data."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup
from report_nae import consistent, sampled
from report_protocol import NONE, level_name, number
from report_published import HARD, NAE_SAT, SUDOKU, ZEBRA, Published, beside
from report_rules import loud
from report_text import CLOSENESS, text_cells

from dlm.report.decoded import Decoded
from dlm.report.decoding import AUTOREGRESSIVE, Contender, counts, estimate, mean, of, plain, rule_label, usual
from dlm.report.figures_decoding import PACED
from dlm.report.figures_noise import QUIET, families, noises
from dlm.report.page import Table, swatch
from dlm.report.panels import Absent
from dlm.report.proportions import Estimate, share
from dlm.report.summary import Frame
from dlm.report.tables import plus_minus

SHOWN = (AUTOREGRESSIVE, *PACED, "left_to_right")  # beside the published numbers; T6 has the others


def shown(e: Estimate | None) -> Any:
    """A share in percent over its interval."""
    if e is None:
        return NONE
    return Markup('{:.1f}<br><span class="small">{:.1f}–{:.1f}</span>').format(
        100 * e.value, 100 * e.low, 100 * e.high
    )


def solved(rows: Frame) -> Any:
    """The share of whole boards solved, in percent over its interval and the mean evaluations of the network."""
    if not len(rows):
        return NONE
    spent = mean(rows, "nfe")
    nfe = "" if math.isnan(spent) else Markup('<br><span class="small">NFE {:.1f}</span>').format(spent)
    return shown(estimate(rows)) + nfe


def side_by_side(
    decoded: Decoded, task: str, published: tuple[Published, ...], number: str, caption: str, split: str = "report"
) -> Table | Absent:
    """One row per contender and noise, a column per cell, and what is published."""
    cells = decoded.cells(task)
    table = plain(decoded.table, noise=None, split=split)
    table = table[table["cell"].isin(cells)]
    columns = [(cell, QUIET) for cell in cells]
    for cell in cells:
        for noise in dict.fromkeys(filter(None, (loud(decoded, cell, a) for a in decoded.diffusion(cell, table)))):
            if (table[table["cell"] == cell]["noise_name"] == noise).any():
                columns.append((cell, noise))
    columns.sort(key=lambda column: cells.index(column[0]))
    who = {(w.arm, w.rule): w for cell in reversed(cells) for w in reversed(decoded.in_cell(cell, table))}
    rows = []
    for w in reversed(who.values()):
        if w.rule not in SHOWN:
            continue
        kind = "arm" if w.rule == AUTOREGRESSIVE else "mdm"
        paper = beside(published, kind, decoded.order(w) if kind == "arm" else w.rule)
        cuts = [of(table[table["noise_name"] == noise], w._replace(cell=cell)) for cell, noise in columns]
        said = NONE if paper is None else f"{paper:.2f}"
        rows.append([swatch(decoded.ink(w).colour, decoded.label(w)), *map(solved, cuts), said])
    if not rows:
        return Absent(number, caption.split(".")[0], f"no {task} run was decoded on split={split}")
    n = table["puzzles"].astype(int)
    size = f"{n.min():,}" if n.min() == n.max() else f"{n.min():,} to {n.max():,}"
    loudly = len(columns) > len(cells)
    head = [Markup("{}{}, %").format(decoded.title(c), f", {noise}" if loudly else "") for c, noise in columns]
    text = (
        f"{number}. {caption} Whole boards solved exactly, under each its 95 % interval and NFE, the mean number "
        f"of evaluations of the network per puzzle; {size} puzzles; greedy values, one token a step, tokens "
        "frozen once revealed. The published numbers come without intervals; their NFE stand under the protocol."
    )
    return Table(["<order", *head, "published, %"], rows, text)


def table_2(decoded: Decoded) -> Table | Absent:
    caption = "Table 2 of the paper beside this study. Its MDM rows: Gumbel noise of 0.5."
    return side_by_side(decoded, "sudoku", SUDOKU, "T1", caption)


def table_5(decoded: Decoded) -> Table | Absent:
    caption = "Hard puzzles (Table 5 of the paper): those that the seven techniques do not solve."
    return side_by_side(decoded, "sudoku", HARD, "T2", caption, split="hard")


def table_3(decoded: Decoded) -> Table | Absent:
    return side_by_side(decoded, "zebra", ZEBRA, "T3", "Zebra puzzles (Table 3 of the paper).")


def table_1(decoded: Decoded) -> Table | Absent:
    """NAE-SAT: consistent observations by order of revealing."""
    rules = ("random", "top_probability", "margin", "log_ratio")
    rows = []
    for cell in decoded.cells("nae_sat"):
        for arm in decoded.diffusion(cell):
            own = {rule: sampled(decoded, Contender(cell, arm, rule)) for rule in rules}
            if any(map(len, own.values())):
                values = [shown(consistent(own[rule])) for rule in rules]
                seeds = max(part["run"].nunique() for part in own.values())
                rows.append([f"{decoded.title(cell)}: {decoded.study.label(arm)}", *values, seeds])
    if not rows:
        return Absent("T4", "NAE-SAT (Table 1 of the paper)", "no NAE-SAT run was decoded")
    for (latents, observations), vanilla, margin in NAE_SAT:
        name = f"published: {latents} latents, {observations} observations"
        rows.append([name, f"{vanilla:.2f}", NONE, f"{margin:.2f}", NONE, "not stated"])
    caption = (
        "T4. NAE-SAT (Table 1 of the paper): observations that follow from the latents sampled beside them, %. "
        "Always answering 1 would be right in 75 %. Intervals as if all observations of a sequence were right or "
        "wrong together: too wide rather than too narrow."
    )
    return Table(["<data", *(rule_label(rule) for rule in rules), "seeds"], rows, caption)


def text_table(decoded: Decoded) -> Table | Absent:
    """T5: losses on text by the class of the order."""
    rows = []
    for cell, own in text_cells(decoded).items():
        base = own.get("identity")
        for name, r in own.items():
            label = "masked diffusion (bound)" if name == "mdm" else f"ARM, {CLOSENESS.get(name, name)}"
            lead = NONE if base is None or r is base else plus_minus(
                r.mean - base.mean, math.hypot(r.error, base.error), "+")  # fmt: skip
            rows.append([cell, label, plus_minus(r.mean, r.error), lead, len(r.losses)])
    if not rows:
        return Absent("T5", "text in permuted orders", "no text was learned in two orders")
    caption = (
        "T5. Held-out loss by the order of reading, nats per token, ± standard error over text and trainings."
    )
    return Table(["<cell", "<order", "loss", "above reading order", "trainings"], rows, caption)


def grid_tables(decoded: Decoded) -> list[Table | Absent]:
    """T6: every rule under every noise, one table per diffusion model."""
    table = plain(decoded.table, noise=None)
    table = table[table["rule"] != AUTOREGRESSIVE]
    made: list[Table | Absent] = []
    for cell, arm in families(decoded, [c for t in ("sudoku", "zebra") for c in decoded.cells(t)], table):
        part = table[(table["cell"] == cell) & (table["arm"] == arm)]
        looks = noises(part)
        rows = []
        for who in [w for w in decoded.in_cell(cell, part) if w.arm == arm]:
            own = of(part, who)
            values = [solved(own[own["noise_name"] == name]) for name in looks]
            rows.append([swatch(decoded.ink(who).colour, rule_label(who.rule)), *values])
        n, seeds = int(part["puzzles"].max()), part["run"].nunique()
        caption = (
            f"T6. {decoded.title(cell)}, {decoded.study.label(arm)}: whole boards solved under each score and "
            f"noise, %, with 95 % intervals and NFE (mean evaluations of the network per puzzle); {n:,} puzzles, "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'}, one token a step."
        )
        made.append(Table(["<score", *looks], rows, caption))
    return made or [Absent("T6", "the grid of scores and noises", "no run was decoded with and without noise")]


def others_table(decoded: Decoded) -> Table | Absent:
    """T6, continued: drawn values, several tokens a step, values first, re-masking: what the grid leaves out."""
    table = decoded.table
    table = table[(table["checkpoint"] == "best") & table["task"].isin(["sudoku", "zebra"])]
    table = table[~usual(table) | (table["values"] != "greedy") | (table["pace"] != "1 per step")]
    keys = [
        "cell",
        "arm",
        "rule",
        "noise_name",
        "split",
        "pace",
        "values",
        "selection",
        "reveal",
        "remask",
        "ties",
    ]
    rows = []
    for key, part in table.groupby(keys, sort=False):
        own = dict(zip(keys, key, strict=True))
        who = Contender(own["cell"], own["arm"], own["rule"])
        pairs = {
            "values first": own["selection"] == "value",
            "re-masked": bool(own["remask"]),
            f"{own['reveal']} number a step": own["reveal"] != "equal",
            f"ties to the {own['ties']}": own["ties"] != "random",
            f"split {own['split']}": own["split"] != "report",
        }
        unusual = [words for words, here in pairs.items() if here]
        pace = "" if own["rule"] == AUTOREGRESSIVE else own["pace"]
        name = swatch(decoded.ink(who).colour, f"{decoded.title(who.cell)}, {decoded.label(who)}")
        rows.append([name, own["noise_name"], own["values"], pace, ", ".join(unusual), shown(estimate(part)),
                     number([part], "nfe"), int(part["puzzles"].max())])  # fmt: skip
    if not rows:
        return Absent("T6", "other ways of decoding", "no run was decoded otherwise")
    head = ["<order", "<noise", "<values", "<pace", "<also", "solved, %", "NFE", "puzzles"]
    title = "T6. Other ways of decoding: drawn values, several tokens a step, values first, re-masking"
    return Table(head, rows, f"{title}. Whole boards solved, with 95 % intervals.", folded=title)


def strata_tables(decoded: Decoded) -> list[Table | Absent]:
    """T7: by level and by number of givens, one folded table each per cell."""
    made: list[Table | Absent] = []
    for what, name in (("level", "hardest technique needed"), ("givens", "number of givens")):
        for cell in decoded.cells("sudoku"):
            who = [w for w in decoded.in_cell(cell) if counts(decoded.rows(w), what)]
            values = list(dict.fromkeys(v for w in who for v in counts(decoded.rows(w), what)))
            values.sort(key=lambda v: (len(v), v))
            rows = [
                [
                    swatch(decoded.ink(w).colour, decoded.label(w)),
                    *(stratum(decoded.rows(w), what, v) for v in values),
                ]
                for w in who
            ]
            if rows:
                head = [level_name(what, v) for v in values]
                title = f"T7. {decoded.title(cell)}, solved by {name}"
                note = f"{title}: %, with the 95 % Wilson interval over puzzles of the mean over seeds."
                made.append(Table(["<order", *head], rows, note, folded=title))
    return made or [Absent("T7", "by level and givens", "no decoding was counted by level or givens")]


def stratum(rows: Frame, what: str, value: str) -> Any:
    right, n = counts(rows, what).get(value, (0, 0))
    if not n:
        return NONE
    puzzles = max(1, round(n / len(rows)))
    return shown(share(round(puzzles * right / n), puzzles))
