"""The tables of crossings (T3): at one size and over sizes, and of probes.

Of `results`, which a study's report computes and writes to results.json, this reads `unit`; `labels`, by arm;
`comparisons`, each with its `cell`, `role`, `process` and `baseline`, the crossings `x1`, `x2`, `x2_matched` and
(or None) `x2_cooled` as JSON, `x3` by probe, and under `missing` why there are none, else None; and `fronts`, one
entry per budget of text, process and baseline that have several sizes, with `matched`, `ever` and (or None)
`cooled`.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from dlm.report.crossing import Crossing
from dlm.report.page import Table, chip, swatch
from dlm.report.pareto import FrontCrossing
from dlm.report.style import ink
from dlm.report.tables import plus_minus

TONES = {"clear": "good", "from the start": "good", "within noise": "maybe", "not reached": "none"}


def crossings_tables(results: dict[str, Any], most: int = 24) -> list[Table]:
    """T3: one row per cell, process and baseline; chips say how sure each crossing is.

    Of more than `most` rows only those of the first process stand open, and all of them are folded below.
    """
    rows = {}
    for c in results["comparisons"]:
        control = Markup('<br><span class="small">control</span>') if c["role"] == "control" else ""
        cell = Markup("{}{}").format(c["cell"], control)
        head = [cell, swatch(ink(c["process"]).colour, results["labels"][c["process"]])]
        head.append(swatch(ink(c["baseline"]).colour, results["labels"][c["baseline"]]))
        key = (c["cell"], c["process"], c["baseline"])
        if c["missing"]:
            rows[key] = [*head, chip("missing", "bad"), chip("missing", "bad"), "", "", c["missing"], "", ""]
            continue
        same, so_far, matched = (Crossing.from_json(c[kind]) for kind in ("x1", "x2", "x2_matched"))
        cooled = where(Crossing.from_json(c["x2_cooled"])) if c.get("x2_cooled") else "–"
        share = f"{so_far.flops / so_far.baseline_flops:.1f}×" if so_far.flops is not None else "–"
        margin = plus_minus(so_far.difference, so_far.se, "+")
        found = [where(same), where(so_far), share, cooled, where(matched), margin, f"{so_far.share:.0%}"]
        rows[key] = [*head, *found]
    head = ["<cell", "<process", "<against", "<X1, epoch", "<X2, epoch", "X2 compute", "<X2 cooled, epoch"]
    head += ["<X2 matched, epoch", "final lead", "seen in"]
    caption = (
        "T3. Crossings with 95 % bootstrap intervals. X2 compute: training FLOPs of the process at X2, as a "
        "multiple of what the baseline had spent at its best. Final lead: baseline's best minus process's "
        f"best, ± paired standard error, {results['unit']}; positive means that the process is ahead. Seen "
        "in: share of bootstrap resamples in which X2 occurs at all."
    )
    if len(rows) <= most:
        return [Table(head, list(rows.values()), caption)]
    first = next(process for _, process, _ in rows)
    lead = [row for (_, process, _), row in rows.items() if process == first]
    return [Table(head, lead, caption), Table(head, list(rows.values()), folded=f"All {len(rows)} comparisons")]


def probe_crossings_table(results: dict[str, Any], names: dict[str, str]) -> list[Table]:
    """T3, probes: X3 of every comparison that was probed, a column per probe; none without probes."""
    known = [c for c in results["comparisons"] if c.get("x3")]
    columns = [name for name in names if any(name in c["x3"] for c in known)]
    rows = [
        [
            c["cell"],
            swatch(ink(c["process"]).colour, results["labels"][c["process"]]),
            swatch(ink(c["baseline"]).colour, results["labels"][c["baseline"]]),
            *(where(Crossing.from_json(c["x3"][name])) if name in c["x3"] else "–" for name in columns),
        ]
        for c in known
    ]
    head = ["<cell", "<process", "<against", *(f"<{names[name]}" for name in columns)]
    caption = (
        "X3: the epoch from which the process is the more accurate at a probe, with 95 % intervals; confirmed "
        "as X1 is."
    )
    return (
        [Table(head, rows, caption, folded="" if len(rows) <= 12 else "Crossings of the probes")] if rows else []
    )


def where(found: Crossing) -> Markup:
    """A crossing for a table cell: its epoch, its interval, and a chip for how sure it is."""
    return located(found, found.epoch, 3)


def compute(found: FrontCrossing) -> Markup:
    """A crossing of fronts for a table cell, by its FLOPs."""
    return located(found, found.flops, 2)


def located(found: Crossing | FrontCrossing, at: float | None, digits: int) -> Markup:
    """Where a crossing is, its interval, and a chip for how sure it is."""
    if found.status == "not reached":
        return chip(f"not reached, > {found.observed_to:.{digits}g}", "none")
    if found.status == "from the start":
        return chip(f"≤ {at:.{digits}g}, from the start", "good")
    ends = (
        f"> {found.observed_to:.{digits}g}" if e is None else f"{e:.{digits}g}" for e in (found.low, found.high)
    )
    mark = chip("clear" if found.status == "clear" else found.doubt, TONES[found.status])
    return Markup('<b>{}</b> <span class="small">[{},\u00a0{}]</span><br>{}').format(
        f"{at:.{digits}g}", *ends, mark
    )


def fronts_table(results: dict[str, Any]) -> list[Table]:
    """T3, over sizes: the crossings of fronts, where a study has several sizes at one budget of text."""
    rows = []
    for f in results.get("fronts", []):
        same, ever = (FrontCrossing.from_json(f[kind]) for kind in ("matched", "ever"))
        cooled = compute(FrontCrossing.from_json(f["cooled"])) if f["cooled"] else "–"
        head = [f"{f['unique_tokens']:,}", swatch(ink(f["process"]).colour, results["labels"][f["process"]])]
        head.append(swatch(ink(f["baseline"]).colour, results["labels"][f["baseline"]]))
        margin = plus_minus(ever.difference, ever.se, "+")
        rows.append([*head, compute(same), compute(ever), cooled, " / ".join(same.chosen), margin])
    head = ["unique tokens", "<process", "<against", "<X2 over sizes, FLOPs", "<against its best ever"]
    caption = (
        "T3, over sizes. The compute from which the best of all the process's sizes is below the best of all the "
        "baseline's: by the same compute, which is the critical compute of the published line; against the "
        "baseline's best, whatever it had spent; and by the same compute, of cooled-down branches alone. "
        "Intervals: 95 % bootstrap. Sizes: those chosen there, of the process and of the baseline. Final lead: "
        f"baseline's best ever minus process's best, ± paired standard error, {results['unit']}."
    )
    return [Table([*head, "<cooled", "<sizes there", "final lead"], rows, caption)] if rows else []
