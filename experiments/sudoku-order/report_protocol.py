"""What was done: the published runs beside these, and the data with their audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from report_published import PROTOCOL

from dlm.report.decoded import Decoded
from dlm.report.decoding import mean
from dlm.report.figures_decoding import LEVELS
from dlm.report.figures_noise import noises
from dlm.report.page import Table
from dlm.report.panels import Absent
from dlm.report.summary import Frame
from dlm.report.tables import flat, short, tidy

NONE = "–"


def protocol(decoded: Decoded) -> Table | Absent:
    """What differs between the published runs and these: size, format, parameters, training, decoding."""
    rows = []
    for cell in [c for task in ("sudoku", "zebra", "nae_sat") for c in decoded.cells(task)]:
        for arm in dict.fromkeys(run.arm for run in decoded.runs(cell)):
            runs = decoded.runs(cell, arm)
            record, config = runs[0].record, runs[0].config
            own = [decoded.rows(w) for w in decoded.in_cell(cell) if w.arm == arm]
            length = config.get("seq_len")
            form = str(runs[0].data.get("format") or NONE).replace("_", " ")
            order = runs[0].data.get("order")
            rows.append([
                f"{decoded.title(cell)}: {decoded.study.label(arm)}",
                ", ".join(filter(None, (form, str(order or "").replace("_", " "), length and f"{length} tokens"))),
                short(record.get("params_non_embedding")),
                short(record["tokens"] / length) if length else NONE,
                f"{record.get('steps', 0):,}", short_flops(record.get("flops")),
                number(own, "nfe"), number(own, "tokens_per_step"), len(runs),
                decodings_of(decoded, cell, arm),
            ])  # fmt: skip
    if not rows:
        return Absent("T1", "protocol beside the published one", "no run of a puzzle has finished")
    for p in PROTOCOL:
        rows.append([
            p["what"], p["format"], short(p["params"]), short(p["sequences"]), f"{p['steps']:,.0f}",
            short_flops(p["flops"]), p["nfe"], p["pace"], p["seeds"],
            f"{p['values']}; {p['noise']}",
        ])  # fmt: skip
    arm, mdm = PROTOCOL
    head = ["<run", "<format", "parameters", "sequences seen", "steps", "FLOPs", "NFE", "tokens/step", "seeds",
            "<decoding"]  # fmt: skip
    caption = (
        "T1, protocol. What differs from the published runs. Parameters without embeddings (as published for the "
        "published ones); NFE: evaluations of the network per puzzle, without noise at one token a step. The "
        "published budget is from the code that the paper builds on. By it the published ARM took "
        f"{arm['flops'] / mdm['flops']:.1f} times the MDM's training FLOPs per model, and has "
        f"{arm['params'] / mdm['params']:.0f} times its parameters."
    )
    return Table(head, rows, caption, wrap=True)


def decodings_of(decoded: Decoded, cell: str, arm: str) -> str:
    """The values and noises that a model was decoded with."""
    part = decoded.table[(decoded.table["cell"] == cell) & (decoded.table["arm"] == arm)]
    values = " and ".join(dict.fromkeys(part["values"]))
    return f"{values}; {', '.join(noises(part))}" if len(part) else NONE


def short_flops(flops: float | None) -> str:
    return NONE if flops is None else f"{flops:.1e}"


def number(parts: Sequence[Frame], column: str) -> str:
    values = [mean(part, column) for part in parts if len(part)]
    values = [v for v in values if not math.isnan(v)]
    if not values:
        return NONE
    low, high = min(values), max(values)
    return f"{low:.1f}" if high - low < 0.05 else f"{low:.1f}–{high:.1f}"


def data_table(decoded: Decoded) -> Table | Absent:
    """T8: the audit of the data of each cell: levels, givens, what the splits share."""
    runs = {cell: decoded.runs(cell)[0] for task in ("sudoku", "zebra", "nae_sat") for cell in decoded.cells(task)}
    if not runs:
        return Absent("T8", "the data", "no run of a puzzle has finished")
    audits = {cell: flat(named_levels(run.audit)) for cell, run in runs.items()}
    keys = list(dict.fromkeys(key for audit in audits.values() for key in audit))
    rows = [
        [key.replace(".", ": ").replace("_", " "), *(tidy(a.get(key, NONE)) for a in audits.values())]
        for key in keys
    ]
    caption = "T8. The puzzles of each cell: how many, how hard, and what their splits share."
    return Table(["<audit", *map(decoded.title, audits)], rows, caption, folded="T8. The data and their audit")


def named_levels(audit: dict[str, Any]) -> dict[str, Any]:
    """The audit of Sudoku puzzles with techniques by name; other puzzles have other levels."""
    levels = audit.get("levels")
    if not isinstance(levels, dict) or audit.get("task") != "sudoku":
        return audit
    return audit | {
        "levels": {
            split: {level_name("level", k): v for k, v in found.items()} if isinstance(found, dict) else found
            for split, found in levels.items()
        }
    }


def level_name(what: str, value: str) -> str:
    return LEVELS.get(int(value), value) if what == "level" and value.isdigit() else value
