"""Tables of results: best losses (T2), laws (T4), probes (T5), tuning (T6), memorisation (T7), cost (T8)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from dlm.report.figures_laws import NOT_FITTED
from dlm.report.figures_measures import COPYING, NOT_MEASURED, PROBES
from dlm.report.page import Prose, Table, chip, swatch
from dlm.report.panels import Absent
from dlm.report.style import ink
from dlm.report.summary import Frame, Summary
from dlm.report.tables import clock, plus_minus


def best_table(summary: Summary) -> Table:
    """T2: best loss, its 95 % interval and its epoch, on the trunk and over the cooled-down branches."""
    found = summary.best.set_index(["cell", "arm", "kind"])
    rows = []
    for cell in summary.study.plan["cells"]:
        planned = {run.arm for run in summary.study.runs if run.cell == cell["cell"]}
        for arm in sorted(planned, key=summary.order.__getitem__):
            head = [cell["cell"], swatch(ink(arm).colour, summary.label(arm))]
            if (cell["cell"], arm, "trunk") not in found.index:
                rows.append([*head, chip("missing", "bad"), *[""] * 6])
                continue
            line: list[object] = list(head)
            for kind in ("trunk", "cooled"):
                if (cell["cell"], arm, kind) not in found.index:
                    line += ["–", "–", "–"]
                    continue
                row = found.loc[(cell["cell"], arm, kind)]
                low, high = row.nll - 1.96 * row.se, row.nll + 1.96 * row.se
                edge = " (last)" if row.edge else ""
                line += [plus_minus(row.nll, row.se), f"{low:.3f} to {high:.3f}", f"{row.epoch:.3g}{edge}"]
            rows.append([*line, int(found.loc[(cell["cell"], arm, "trunk")].seeds)])
    return Table(
        ["<cell", "<arm", "trunk", "95 % interval", "epoch", "cooled", "95 % interval", "epoch", "seeds"],
        rows,
        f"T2. Best loss on the report split ({summary.results['unit']}), chosen on tune: on the trunk of "
        "constant learning rate, and over the branches that were cooled down. ± one standard error over "
        "passages and seeds. Last: it was the last one seen, so more training might lower it.",
    )


def laws_tables(summary: Summary) -> list[Table | Prose]:
    """T4: fitted coefficients with intervals beside the published ones, and what could not be identified."""
    fits = summary.fits
    if fits is None:
        return [Prose(f"T4, fitted laws: {NOT_FITTED}.")]
    published = fits.get("published", [])

    def theirs(law: str, parameter: str) -> str:
        found = [p for p in published if (p["law"], p["parameter"]) == (law, parameter)]
        return "; ".join(f"{number(p['value'])} ({p['how']})" for p in found) or "–"

    rows, failed = [], {}
    for law in fits["laws"]:
        if law["status"] != "fitted":
            failed.setdefault((law["law"], law["status"], law["why"]), []).append(law["arm"])
            continue
        for i, (name, value) in enumerate(law["parameters"].items()):
            head = [law["law"], swatch(ink(law["arm"]).colour, summary.label(law["arm"])), name, interval(value)]
            size = [number(law["loo_rmse"]), f"{law['cells']} / {law['points']}"] if not i else ["", ""]
            rows.append([*head, theirs(law["law"], name), *size])
    for law in fits["crossing_laws"]:
        pair = f"{summary.label(law['process'])} against {summary.label(law['baseline'])}"
        if law["status"] != "fitted":
            failed.setdefault((f"{law['kind']}(U)", law["status"], law["why"]), []).append(pair)
            continue
        censored = sum(bool(c["censored"]) for c in law["cells"])
        name = f"{law['kind']} = a·U^b, {law['unit']}" + (f", {law['size']}" if law.get("size") else "")
        exponent = interval({"value": law["b"], "low": law["low"], "high": law["high"]})
        size = f"{len(law['cells'])} ({censored} censored)"
        rows.append([name, pair, "b", exponent, theirs(law["kind"], "b"), "", size])
    head = ["<law", "<arm", "<parameter", "fitted [95 %]", "published", "left-out RMSE", "cells / points"]
    caption = (
        "T4. Fitted coefficients beside published ones, with how those are known. Left-out RMSE: the error on a "
        "cell that the fit did not see, nats. Models and corpora differ: exponents and epochs may be compared, "
        "losses may not."
    )
    not_fitted = [
        [law, chip(status, "none"), "; ".join(summary.label(a) for a in arms if a), why]
        for (law, status, why), arms in failed.items()
    ]
    names = ["<law", "<parameter", "value", "<of", "<source", "<how it is known"]
    values = [[p["law"], p["parameter"], number(p["value"]), p["arm"], p["source"], p["how"]] for p in published]
    tables: list[Table | Prose] = [Prose(text) for text in outdated(summary)]
    tables += [Table(head, rows, caption)] if rows else []
    if not_fitted:
        caption = "T4. Laws without a number: the cells of this scale do not determine them."
        tables.append(Table(["<law", "<", "<arms", "<why"], not_fitted, caption, wrap=True))
    return [*tables, Table(names, values, folded="Published values and where they come from")]


def outdated(summary: Summary) -> list[str]:
    """A warning where the laws were fitted to other runs than are there now."""
    fitted, here = (summary.fits or {}).get("runs"), {run.name for run in summary.study.compared}
    if fitted is None or set(fitted) == here:
        return []
    return [f"The laws were fitted to {len(fitted)} runs, of {len(here)} that are there now: run stage=fit again."]


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value if value is not None else "–")


def interval(value: dict[str, Any]) -> str:
    low, high = (number(value.get(k)) for k in ("low", "high"))
    return f"{number(value.get('value'))} [{low}, {high}]"


def probes_table(summary: Summary) -> Table | Absent:
    """T5: probes and downstream tasks at the chosen checkpoint, or at the last one where that was not measured."""
    m = summary.measures
    tasks = sorted(name for name in m["measure"].unique() if str(name).startswith("task:"))
    columns = [name for name in (*PROBES, *tasks) if (m["measure"] == name).any()]
    if not columns:
        return Absent("T5", "probes and downstream tasks", NOT_MEASURED)
    rows = []
    for cell, arm, part in checkpoints(summary, m[m["measure"].isin(columns)]):
        for at, row in (("chosen", part[part.checkpoint == "best"]), ("last", last(part))):
            if row.empty:
                continue
            by = row.set_index("measure")
            values = [plus_minus(by.loc[c, "value"], by.loc[c, "se"]) if c in by.index else "–" for c in columns]
            when = f"{at}, {by['epoch'].max():.3g}"
            rows.append([cell, swatch(ink(arm).colour, summary.label(arm)), when, *values])
    chance = m.groupby("measure")["chance"].mean()
    names = [
        PROBES.get(c, c.removeprefix("task:")) + (f", chance {chance[c]:.2f}" if pd.notna(chance[c]) else "")
        for c in columns
    ]
    return Table(
        ["<cell", "<arm", "<checkpoint, epoch", *names],
        rows,
        "T5. Share of right answers ± one standard error at the checkpoint chosen on tune and at the last one.",
    )


def checkpoints(summary: Summary, m: Frame) -> Iterable[tuple[str, str, Frame]]:
    """(cell, arm, rows) of measures in the order of the plan, cooled-down checkpoints left out."""
    found = dict(list(m[~m["cooled"].astype(bool)].groupby(["cell", "arm"])))
    for cell in summary.cells:
        for arm in summary.arms(cell["cell"], main=False):
            if (cell["cell"], arm) in found:
                yield cell["cell"], arm, found[cell["cell"], arm]


def last(part: Frame) -> Frame:
    """The rows of the last checkpoint of the trunk."""
    marked = part[part["checkpoint"] != "best"]
    return marked[marked["epoch"] == marked["epoch"].max()]


def memorisation_table(summary: Summary) -> Table | Absent:
    """T7: copying at the last checkpoint of the trunk, beside the natural level."""
    m = summary.measures
    labels = COPYING | {
        "copied_5": "5-grams copied",
        "extraction_fast": "extracted, 8 tokens a step",
        "membership_auc": "membership AUC",
        "sample_entropy": "sample entropy, nats",
        "distinct_3": "distinct 3-grams",
    }
    columns = [name for name in labels if (m["measure"] == name).any()]
    if not columns:
        return Absent("T7", "memorisation", NOT_MEASURED)
    rows = []
    for cell, arm, part in checkpoints(summary, m):
        by = last(part).set_index("measure")
        if not by.index.isin(columns).any():
            continue
        line = [cell, swatch(ink(arm).colour, summary.label(arm)), f"{by['epoch'].max():.3g}"]
        for name in columns:
            if name not in by.index:
                line.append("–")
                continue
            natural = "natural_" + name.removeprefix("copied_")
            text = plus_minus(by.loc[name, "value"], by.loc[name, "se"])
            line.append(text + (f" ({by.loc[natural, 'value']:.3f})" if natural in by.index else ""))
        rows.append(line)
    caption = (
        "T7. Memorisation at the last checkpoint of the trunk, ± one standard error; in brackets the same for "
        "held-out text, which shares that much with the training text by nature. Entropy and distinct n-grams "
        "tell copying from noise."
    )
    return Table(["<cell", "<arm", "epoch", *(labels[c] for c in columns)], rows, caption)


def cost_table(summary: Summary) -> Table | Absent:
    """T8: what evaluation costs beside training, and its Monte-Carlo error."""
    rows = []
    for cell in summary.cells:
        for arm in summary.arms(cell["cell"], main=False):
            records = [run.record for run in summary.members[cell["cell"], arm]]

            def mean(key: str, records: list[dict[str, Any]] = records) -> float:
                return float(np.mean([r.get(key) or 0.0 for r in records]))

            bounds = [r["likelihood"]["bound"] for r in records]
            curves, final = mean("evaluation_seconds"), mean("final_evaluation_seconds")
            draws = np.mean([b.get("se_draws") or 0.0 for b in bounds])
            last_row = [run.evaluations[-1].get("report/se_draws") for run in summary.members[cell["cell"], arm]]
            known = [v for v in last_row if v is not None]
            rows.append([
                cell["cell"], swatch(ink(arm).colour, summary.label(arm)),
                clock(mean("seconds")), clock(curves), clock(final),
                f"{(curves + final) / max(mean('seconds'), 1e-9):.0%}",
                f"{bounds[0].get('windows', '–')} × {bounds[0].get('draws', '–')}",
                f"{np.mean([b['se'] for b in bounds]):.4f}", f"{draws:.4f}",
                f"{np.mean(known):.4f}" if known else "–",
            ])  # fmt: skip
    if not rows:
        return Absent("T8", "cost of evaluation", "no run has finished")
    head = [
        "<cell",
        "<arm",
        "training",
        "curve evaluations",
        "final evaluation",
        "share of training",
        "windows × draws",
    ]
    return Table(
        [*head, "se", "of it Monte Carlo", "Monte Carlo on the curve"],
        rows,
        "T8. Seconds per run, mean over seeds, and standard errors in nats per token. Monte Carlo: the part of "
        "the error that more draws would remove; the same draws are used for every checkpoint and arm, so that "
        "most of it leaves a difference. An exact likelihood has none.",
    )


def tuning_table(trials: list[dict[str, Any]], source: str) -> Table:
    """T6: every trial of the searches, the best of each marked."""
    best = {}
    for trial in trials:
        value = trial.get("tune_nll")
        if value is not None and math.isfinite(value):
            name = trial.get("search", "")
            best[name] = min(best.get(name, math.inf), value)
    rows = []
    for t in sorted(
        trials,
        key=lambda t: (str(t.get("search")), t.get("weight_decay") or 0, t.get("dropout") or 0, t.get("lr") or 0),
    ):
        value = t.get("tune_nll")
        loss = f"{value:.4f}" if value is not None else chip("missing", "bad")
        chosen = chip("chosen", "good") if value is not None and value == best.get(t.get("search", "")) else ""
        epoch, seen = (number(t.get(k)) for k in ("epoch", "observed_to"))
        row = [
            t.get("search", ""),
            number(t.get("weight_decay")),
            number(t.get("dropout")),
            number(t.get("lr")),
            loss,
        ]
        rows.append([*row, epoch, seen, t.get("stopped") or "", chosen])
    head = [
        "<search",
        "weight decay",
        "dropout",
        "learning rate",
        "best tune loss",
        "its epoch",
        "observed to",
        "<stopped",
        "<",
    ]
    return Table(
        head, rows, f"T6. Every tuning trial ({source}), judged by its lowest loss on tune, nats per token."
    )
