"""The report of this study: who overtakes whom when the data are few and repeated, and how sure that is.

    python experiments/super-data-learners/report.py outputs/super-data-learners/<scale>

reads the study directory and writes into it report.html, figures/*.svg and *.png, results.json and curves.csv.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from dlm.crossing import Crossing, Curve, x1, x2
from dlm.errors import UserError
from dlm.page import Figure, Listing, Prose, Section, Table, chip, page, swatch
from dlm.report import Run, Study, Tag, canvas, heading, ink, key, label_right, load_study, log_axis, save

KINDS = ("x1", "x2", "x2_matched")
FEW = 6  # evaluations below which a curve proves only that the machinery works

# ------------------------------------------------------------------------------------------------ results


def compute(study: Study) -> dict[str, Any]:
    """Every number of the report, ready for JSON."""
    baselines = [a["arm"] for a in study.plan["arms"] if a["baseline"]]
    processes = [a["arm"] for a in study.plan["arms"] if not a["baseline"]]
    planned = {(run.cell, run.arm) for run in study.runs}
    results = {
        "study": study.plan["study"],
        "scale": study.plan["scale"],
        "fingerprint": study.fingerprint,
        "smoke": is_smoke(study),
        "unit": unit(study),
        "labels": {a["arm"]: a["label"] for a in study.plan["arms"]},
        "comparisons": [
            compare(study, cell, process, baseline)
            for cell in study.plan["cells"]
            for process in processes
            for baseline in baselines
            if {(cell["cell"], process), (cell["cell"], baseline)} <= planned
        ],
        "best": [
            best(study, cell["cell"], arm["arm"])
            for cell in study.plan["cells"]
            for arm in study.plan["arms"]
            if study.of(cell["cell"], arm["arm"])
        ],
        "missing": [{"run": run.name, "why": run.problem} for run in study.missing],
    }
    return results | {"verdict": verdict_lines(results)}


def compare(study: Study, cell: dict[str, Any], process: str, baseline: str) -> dict[str, Any]:
    """X1, X2 and matched X2 of one process against one baseline in one cell; `missing` says why there are none."""
    ours, theirs = (study.curves(cell["cell"], arm) for arm in (process, baseline))
    found = {
        "cell": cell["cell"],
        "role": cell["role"],
        "unique_tokens": cell["unique_tokens"],
        "process": process,
        "baseline": baseline,
        "missing": None,
    }
    absent = [study.label(arm) for arm, curves in ((process, ours), (baseline, theirs)) if not curves]
    if absent:
        return found | dict.fromkeys(KINDS) | {"missing": f"no finished run of {' or '.join(absent)}"}
    try:
        crossings = (x1(ours, theirs), x2(ours, theirs), x2(ours, theirs, matched=True))
    except ValueError as error:
        raise UserError(f"{study.directory}: {error}") from error
    return found | {kind: crossing.to_json() for kind, crossing in zip(KINDS, crossings, strict=True)}


def best(study: Study, cell: str, arm: str) -> dict[str, Any]:
    """The likelihoods of an arm in a cell, chosen on tune and measured on report, averaged over seeds.

    All seeds see the same windows, so se² = (mean of the seeds' se)² + var_s / S.
    """
    runs = study.of(cell, arm)
    scores = [run.record["likelihood"] for run in runs]

    def average(part: str) -> dict[str, Any] | None:
        found = [score[part] for score in scores if score.get(part)]
        if not found:
            return None
        spread = {}
        for value, se in (("nats_per_token", "se"), ("bits_per_char", "se_bits")):
            values = [f[value] for f in found]
            seeds = np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0
            spread[value] = float(np.mean(values))
            spread[se] = math.hypot(float(np.mean([f[se] for f in found])), math.sqrt(seeds))
        return {
            "kind": found[0]["kind"],
            "windows": found[0].get("windows"),
            "draws": found[0].get("draws"),
        } | spread

    return {
        "cell": cell,
        "arm": arm,
        "seeds": len(runs),
        "epoch": float(np.mean([run.record["best"]["epoch"] for run in runs])),
        "exact": runs[0].record["bound_kind"] == "exact",
        "bound": average("bound"),
        "left_to_right": average("left_to_right"),
    }


def is_smoke(study: Study) -> bool:
    """Whether the scale is the smoke test, or the curves are too short to mean anything."""
    counts = [len(run.curve.epochs) for run in study.compared if run.curve is not None]
    return "smoke" in str(study.plan["scale"]) or not counts or float(np.median(counts)) < FEW


def unit(study: Study) -> str:
    """ "nats per character" where one token is one character, by the records' own conversion."""
    scores = [run.record["likelihood"]["bound"] for run in study.compared]
    ratios = [s["bits_per_char"] * math.log(2) / s["nats_per_token"] for s in scores]
    return "nats per character" if ratios and np.allclose(ratios, 1, atol=2e-3) else "nats per token"


# ------------------------------------------------------------------------------------------------ verdict


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """The verdict in plain text, one line per cell and process, with a caution first where one is due."""
    lines = []
    if results["smoke"]:
        lines.append(
            "Smoke scale or too few evaluations: this proves the machinery, and nothing about the models."
        )
    for pairs in grouped(results["comparisons"]):
        first = pairs[0]
        parts = [f"against {results['labels'][c['baseline']]}: {in_words(c)}" for c in pairs]
        name = f"{first['cell']}, {results['labels'][first['process']]}"
        lines.append(f"{name}{control(pairs)}: " + "; ".join(parts) + ".")
    if results["missing"]:
        lines.append(f"Missing: {len(results['missing'])} of the planned runs; see the list of runs.")
    return lines


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
    same, so_far = crossing(comparison, "x1"), crossing(comparison, "x2")
    spent = f" ({so_far.flops:.2g} FLOPs)" if so_far.flops is not None else ""
    return f"X1 {same}, X2 {so_far}{spent}"


def crossing(comparison: dict[str, Any], kind: str) -> Crossing:
    return Crossing(**comparison[kind])


def control(pairs: Sequence[dict[str, Any]]) -> str:
    """For a control cell: whether the absence of crossings, which is what is expected there, was observed."""
    if pairs[0]["role"] != "control":
        return ""
    known = [c for c in pairs if not c["missing"]]
    if not known:
        return " (control, nothing to compare)"
    crossed = any(crossing(c, kind).status in ("clear", "from the start") for c in known for kind in ("x1", "x2"))
    return " (control, UNEXPECTED crossing)" if crossed else " (control, no clear crossing, as expected)"


def headline(results: dict[str, Any]) -> str:
    """Who clearly beat the best that each baseline ever reached in the scarce cells, and how the controls did."""
    sentences = []
    for baseline in dict.fromkeys(c["baseline"] for c in results["comparisons"]):
        scarce = [c for c in results["comparisons"] if c["baseline"] == baseline and c["role"] != "control"]
        known = [c for c in scarce if not c["missing"]]
        won = [c for c in known if crossing(c, "x2").status in ("clear", "from the start")]
        names = ", ".join(f"{results['labels'][c['process']]} ({c['cell']})" for c in won)
        missing = f" ({len(scarce) - len(known)} more missing)" if len(known) < len(scarce) else ""
        sentences.append(
            f"The best that {results['labels'][baseline]} ever reached was clearly beaten in {len(won)} of "
            f"{len(known)} comparisons{missing}" + (f": {names}." if won else ".")
        )
    for pairs in grouped(results["comparisons"]):
        if pairs[0]["role"] == "control":
            said = control(pairs).strip(" ()").removeprefix("control, ")
            sentences.append(f"{pairs[0]['cell']}, {results['labels'][pairs[0]['process']]}: {said}.")
    return " ".join(sentences) or "Nothing to compare."


TONES = {"clear": "good", "from the start": "good", "within noise": "maybe", "not reached": "none"}


def verdict_table(results: dict[str, Any]) -> Table:
    """One row per cell, process and baseline; chips say how sure each crossing is."""
    rows = []
    for c in results["comparisons"]:
        control = Markup('<br><span class="small">control</span>') if c["role"] == "control" else ""
        cell = Markup("{}{}").format(c["cell"], control)
        head = [cell, swatch(ink(c["process"]).colour, results["labels"][c["process"]])]
        head.append(swatch(ink(c["baseline"]).colour, results["labels"][c["baseline"]]))
        if c["missing"]:
            rows.append([*head, chip("missing", "bad"), chip("missing", "bad"), "", c["missing"], "", ""])
            continue
        same, so_far, matched = (crossing(c, kind) for kind in KINDS)
        share = f"{so_far.flops / so_far.baseline_flops:.1f}×" if so_far.flops is not None else "–"
        margin = plus_minus(so_far.difference, so_far.se, "+")
        rows.append([*head, where(same), where(so_far), share, where(matched), margin, f"{so_far.share:.0%}"])
    head = ["<cell", "<process", "<against", "<X1, epoch", "<X2, epoch", "X2 compute", "<X2 matched, epoch"]
    return Table(
        [*head, "final lead", "seen in"],
        rows,
        "Crossings with 95 % bootstrap intervals. X2 compute: training FLOPs of the process at X2, as a "
        "multiple of what the baseline had spent at its best. Final lead: baseline's best minus process's "
        f"best, ± paired standard error, {results['unit']}; positive means that the process is ahead. Seen "
        "in: share of bootstrap resamples in which X2 occurs at all.",
    )


def where(found: Crossing) -> Markup:
    """A crossing for a table cell: its epoch, its interval, and a chip for how sure it is."""
    if found.status == "not reached":
        return chip(f"not reached, > {found.observed_to:.3g}", "none")
    if found.status == "from the start":
        return chip(f"≤ {found.epoch:.3g}, from the start", "good")
    low, high = (f"> {found.observed_to:.3g}" if e is None else f"{e:.3g}" for e in (found.low, found.high))
    mark = chip("clear" if found.status == "clear" else found.doubt, TONES[found.status])
    return Markup('<b>{:.3g}</b> <span class="small">[{},\u00a0{}]</span><br>{}').format(
        found.epoch, low, high, mark
    )


# ------------------------------------------------------------------------------------------------ figures


def at(curves: Sequence[Curve], epoch: float) -> float:
    """Report loss at an epoch, linear in log epoch, averaged over seeds."""
    x = math.log(epoch)
    return float(np.mean([np.interp(x, np.log(c.epochs), c.report.mean(axis=1)) for c in curves]))


def reached(curves: Sequence[Curve]) -> float:
    """Report loss of the checkpoint chosen on tune, averaged over seeds."""
    return float(np.mean([c.report[c.best].mean() for c in curves]))


def by_arm(study: Study, cell: dict[str, Any]) -> list[tuple[dict[str, Any], list[Curve]]]:
    """The arms that have finished runs in a cell, in the order of the plan, each with its curves."""
    arms = [(a, study.curves(cell["cell"], a["arm"])) for a in study.plan["arms"]]
    return [(a, curves) for a, curves in arms if curves]


def band(axes: Any, x: np.ndarray, loss: np.ndarray, colour: str, **line: Any) -> None:
    """The mean over windows of a [E, W] loss with its standard error."""
    mean, se = loss.mean(axis=1), loss.std(axis=1, ddof=1) / math.sqrt(loss.shape[1])
    axes.fill_between(x, mean - se, mean + se, color=colour, alpha=0.13, lw=0)
    axes.plot(x, mean, color=colour, **line)


def ceiling(curves: Sequence[Curve]) -> tuple[float, float]:
    """Limits of the loss axis: from just below the best to where the slowest arm's learning still shows."""
    lowest = [curve.report.mean(axis=1).min() for curve in curves]
    floor, top = min(lowest), max(curve.report.mean(axis=1).max() for curve in curves)
    top = min(top, floor + max(1.3, 2.5 * (max(lowest) - floor)))
    return floor - 0.06 * (top - floor), top + 0.02 * (top - floor)


def title(cell: dict[str, Any]) -> str:
    return f"{cell['cell']}: {cell['unique_tokens']:,} unique tokens" + (
        " (control)" if cell["role"] == "control" else ""
    )


def panels(study: Study, height: float = 3.7) -> tuple[Any, list[tuple[dict[str, Any], Any]]]:
    """One panel under another for every cell with a finished run."""
    cells = [cell for cell in study.plan["cells"] if any(run.cell == cell["cell"] for run in study.compared)]
    figure, axes = canvas(8.2, height * len(cells), rows=len(cells))
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        heading(ax, title(cell))
    return figure, list(zip(cells, axes[:, 0], strict=True))


def curves_figure(study: Study, results: dict[str, Any]) -> Markup:
    """Loss against epochs, all arms, with minima, the baselines' best continued, and the crossings."""
    figure, cells = panels(study)
    for cell, ax in cells:
        arms = by_arm(study, cell)
        everything = [curve for _, curves in arms for curve in curves]
        right = max(curve.epochs[-1] for curve in everything)
        log_axis(ax.xaxis)
        ax.set(xlim=(min(curve.epochs[0] for curve in everything), right), ylim=ceiling(everything))
        ax.set_xlabel("epochs of training (passes over the unique data)")
        ax.set_ylabel(f"held-out loss, {results['unit']}")
        tags = []
        for arm, curves in arms:
            look, lowest = ink(arm["arm"]), reached(curves)
            for curve in curves:
                band(ax, curve.epochs, curve.report, look.colour, ls=look.dash)
                best = (curve.epochs[curve.best], curve.report[curve.best].mean())
                ax.plot(*best, "o", ms=4, color=look.colour, zorder=4, clip_on=False)
            if arm["baseline"]:
                ax.hlines(lowest, min(c.epochs[c.best] for c in curves), right, look.colour, ":", lw=1, zorder=1)
            y = lowest if arm["baseline"] else float(np.mean([c.report[-1].mean() for c in curves]))
            tags.append(Tag(y, f"{arm['label']}  {lowest:.3f}", look.colour))
        for c in results["comparisons"]:
            if c["cell"] == cell["cell"] and not c["missing"]:
                mark_crossings(ax, study, c)
        label_right(ax, tags)
    chosen = Line2D([], [], ls="", marker="o", ms=4, color=GREY, label="checkpoint chosen on tune")
    level = Line2D([], [], ls=":", lw=1, color=GREY, label="baseline's best, continued")
    key(figure, [Line2D([], [], **SAME), Line2D([], [], **SO_FAR), chosen, level])
    return save(figure, study.directory, "curves")


def mark_crossings(ax: Any, study: Study, comparison: dict[str, Any]) -> None:
    """X1 on the process's curve (circle), X2 on the baseline's best (diamond); coloured like the baseline."""
    ours, theirs = (study.curves(comparison["cell"], comparison[who]) for who in ("process", "baseline"))
    colour = ink(comparison["baseline"]).colour
    same, so_far = crossing(comparison, "x1"), crossing(comparison, "x2")
    if same.epoch is not None:
        ax.plot(same.epoch, at(ours, same.epoch), "o", ms=6.5, mfc="white", mec=colour, mew=1.3, zorder=5)
    if so_far.crossed:
        ax.plot(so_far.epoch, reached(theirs), "D", ms=6, mfc=colour, mec="white", mew=0.8, zorder=5)


GREY = "#777777"
SAME = {"ls": "", "marker": "o", "ms": 6, "mfc": "white", "mec": GREY, "mew": 1.3, "label": "X1: same epoch"}
SO_FAR = {"ls": "", "marker": "D", "ms": 5.5, "mfc": GREY, "mec": "white", "label": "X2: best so far"}


def compute_figure(study: Study, results: dict[str, Any]) -> Markup:
    """Best-so-far loss against training compute: the X2 view."""
    figure, cells = panels(study)
    for cell, ax in cells:
        arms = by_arm(study, cell)
        everything = [curve for _, curves in arms for curve in curves]
        left, right = min(c.flops[0] for c in everything), max(c.flops[-1] for c in everything)
        log_axis(ax.xaxis)
        if right > 100 * left:
            ax.xaxis.set_major_locator(LogLocator())
        ax.xaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
        ax.set(xlim=(left, right), ylim=ceiling(everything))
        ax.set_xlabel("training compute, FLOPs (forward and backward)")
        ax.set_ylabel(f"best loss so far, {results['unit']}")
        tags = []
        for arm, curves in arms:
            look, lowest = ink(arm["arm"]), reached(curves)
            for curve in curves:
                band(ax, curve.flops, curve.report[curve.best_so_far()], look.colour, ls=look.dash)
            ax.hlines(lowest, min(c.flops[-1] for c in curves), right, look.colour, ":", lw=1, zorder=1)
            tags.append(Tag(lowest, f"{arm['label']}  {lowest:.3f}", look.colour))
        for c in results["comparisons"]:
            if c["cell"] == cell["cell"] and not c["missing"] and crossing(c, "x2").crossed:
                level = reached(study.curves(c["cell"], c["baseline"]))
                colour = ink(c["baseline"]).colour
                ax.plot(crossing(c, "x2").flops, level, "D", ms=6, mfc=colour, mec="white", mew=0.8, zorder=5)
        label_right(ax, tags)
    key(figure, [Line2D([], [], **SO_FAR), Line2D([], [], ls=":", lw=1, color=GREY, label="no further training")])
    return save(figure, study.directory, "compute")


def crossings_figure(study: Study, results: dict[str, Any]) -> Markup:
    """All crossings at a glance: epoch and 95 % interval of X1 and X2, censored ones as arrows."""
    known = [c for c in results["comparisons"] if not c["missing"]]
    figure, axes = canvas(8.2, 1.3 + 0.3 * len(known) + 0.12 * len({c["cell"] for c in known}))
    ax = axes[0, 0]
    log_axis(ax.xaxis)
    y, ticks, cell = 0.0, [], None
    for c in known:
        if cell not in (None, c["cell"]):
            ax.axhline(y - 0.25, color="#cccccc", lw=0.7)
            y += 0.5
        cell = c["cell"]
        colour = ink(c["process"]).colour
        for kind, marker, shift in (("x1", "o", -0.16), ("x2", "D", 0.16)):
            draw_crossing(ax, crossing(c, kind), y + shift, marker, colour)
        ticks.append(
            (y, f"{c['cell']}   {results['labels'][c['process']]} against {results['labels'][c['baseline']]}")
        )
        y += 1
    ax.set_yticks([t for t, _ in ticks], [text for _, text in ticks])
    ax.set(ylim=(y - 0.4, -0.6), xlabel="epoch of the crossing")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    arrow = Line2D([], [], ls="", marker=">", ms=5, mfc="white", mec="#aaaaaa", label="not reached up to here")
    key(figure, [Line2D([], [], **SAME), Line2D([], [], **SO_FAR), arrow])
    return save(figure, study.directory, "crossings")


def draw_crossing(ax: Any, found: Crossing, y: float, marker: str, colour: str) -> None:
    """One crossing of the overview: a mark with its interval, or an open arrow where it was not reached."""
    if not found.crossed:
        ax.plot(found.observed_to, y, ">", ms=5, mfc="white", mec="#aaaaaa")
        ax.annotate(
            "X1" if marker == "o" else "X2", (found.observed_to, y), (6, 0), textcoords="offset points",
            fontsize=6.5, color="#999999", va="center", annotation_clip=False,
        )  # fmt: skip
        return
    face = "white" if marker == "o" else colour
    alpha = 1.0 if found.status != "within noise" else 0.45
    if found.low is not None:
        ax.plot([found.low, found.high or found.observed_to], [y, y], color=colour, lw=1.4, alpha=alpha)
        if found.high is None:
            ax.plot(found.observed_to, y, ">", ms=4, color=colour, alpha=alpha)
    ax.plot(found.epoch, y, marker, ms=5.5, mfc=face, mec=colour, mew=1.2, alpha=alpha, zorder=4)


def best_figure(study: Study, results: dict[str, Any]) -> Markup:
    """Best loss of every arm with its standard error: exact values filled, bounds open, left-to-right as a bar."""
    cells = [cell for cell in study.plan["cells"] if any(b["cell"] == cell["cell"] for b in results["best"])]
    counts = [sum(b["cell"] == cell["cell"] for b in results["best"]) for cell in cells]
    height = 0.9 + sum(0.36 * n + 0.55 for n in counts)
    figure, axes = canvas(8.2, height, rows=len(cells), height_ratios=counts)
    for cell, ax in zip(cells, axes[:, 0], strict=True):
        rows = [b for b in results["best"] if b["cell"] == cell["cell"]]
        for y, b in enumerate(rows):
            colour, value = ink(b["arm"]).colour, b["bound"]["nats_per_token"]
            face = colour if b["exact"] else "white"
            ax.errorbar(value, y, xerr=b["bound"]["se"], fmt="o", ms=6, mfc=face, color=colour, mew=1.3, lw=1.3)
            if b["left_to_right"] and not b["exact"]:
                ordered, se = b["left_to_right"]["nats_per_token"], b["left_to_right"]["se"]
                ax.errorbar(ordered, y + 0.27, xerr=se, fmt="|", ms=8, mew=1.8, color=colour, lw=0.8)
        ax.set_yticks(range(len(rows)), [results["labels"][b["arm"]] for b in rows])
        ax.set(ylim=(len(rows) - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        heading(ax, title(cell))
    axes[-1, 0].set_xlabel(f"held-out loss of the checkpoint chosen on tune, {results['unit']}")
    exact = Line2D([], [], ls="", marker="o", ms=6, color=GREY, label="exact")
    bound = Line2D([], [], ls="", marker="o", ms=6, mfc="white", mec=GREY, mew=1.3, label="upper bound")
    ordered = Line2D([], [], ls="", marker="|", ms=9, mew=1.8, color=GREY, label="exact, left to right")
    key(figure, [exact, bound, ordered])
    return save(figure, study.directory, "best")


# ------------------------------------------------------------------------------------------------ tables


def plus_minus(value: float, se: float, sign: str = "") -> str:
    """Value ± SE that will not break across lines."""
    return f"{value:{sign}.3f}\u00a0±\u00a0{se:.3f}".replace("-", "−")


def likelihood_table(results: dict[str, Any]) -> Table:
    """Best likelihoods in nats per token and bits per character, bound and left-to-right, with SE."""
    rows = []
    for b in results["best"]:
        bound, exact = b["bound"], b["left_to_right"]
        row = [b["cell"], swatch(ink(b["arm"]).colour, results["labels"][b["arm"]]), bound["kind"]]
        row += [
            plus_minus(bound["nats_per_token"], bound["se"]),
            plus_minus(bound["bits_per_char"], bound["se_bits"]),
        ]
        if exact and not b["exact"]:
            row += [plus_minus(exact["nats_per_token"], exact["se"])]
            row += [plus_minus(exact["bits_per_char"], exact["se_bits"])]
        else:
            row += ["–", "–"]
        rows.append([*row, f"{b['epoch']:.3g}", b["seeds"]])
    head = ["<cell", "<arm", "<kind", results["unit"], "bits per character"]
    head += [f"left to right, {results['unit']}", "left to right, bits per character", "best epoch", "seeds"]
    return Table(
        head,
        rows,
        "Checkpoint chosen on the tune split, measured on the report split; ± is the standard error over "
        "held-out windows (and over seeds where there are several). Left to right: the same network asked "
        "for one token after another, an exact likelihood in that order, often measured on fewer windows.",
    )


def extra_table(study: Study) -> list[Table]:
    """Further likelihoods that some records hold, by their own names."""
    rows = [
        [
            run.cell,
            swatch(ink(run.arm).colour, study.label(run.arm)),
            name,
            run.seed,
            plus_minus(score["nats_per_token"], score["se"]),
            plus_minus(score["bits_per_char"], score["se_bits"]),
        ]
        for run in study.compared
        for name, score in (run.record["likelihood"].get("extra") or {}).items()
    ]
    head = ["<cell", "<arm", "<measure", "seed", "nats per token", "bits per character"]
    return [Table(head, rows, folded="Further likelihoods")] if rows else []


def runs_table(study: Study) -> Table:
    """One row per planned run; a missing one keeps its row."""
    rows = []
    for run in study.runs:
        head = [run.cell, swatch(ink(run.arm).colour, study.label(run.arm)), run.seed]
        if run.problem:
            rows.append([*head, *[""] * 9, chip("missing", "bad") + " " + (run.problem or "")])
            continue
        r = run.record
        sizes = [f"{r['params']:,}", f"{r['params_non_embedding']:,}", f"{r['epochs']:.4g}", f"{r['steps']:,}"]
        targets = run.evaluations[-1].get("targets")
        work = [short(r["tokens"]), short(targets), f"{r['flops']:.2e}", clock(r["seconds"])]
        rows.append([*head, *sizes, *work, short(r["tokens_per_second"]), reason(run)])
    head = ["<cell", "<arm", "seed", "parameters", "non-embedding", "epochs", "steps", "tokens", "scored targets"]
    return Table(
        [*head, "FLOPs", "time", "tokens/s", "<best epoch, early stop"],
        rows,
        "All planned runs. Tokens, targets and FLOPs count training only. A mask model scores only the "
        "masked part of what it sees, so equal tokens are not equal targets.",
    )


def reason(run: Run) -> str:
    stopped = run.record.get("stopped")
    return f"best at {run.record['best']['epoch']:.3g}" + (f"; {stopped}" if stopped else "")


def short(count: float | None) -> str:
    """12345678 -> 12.3M."""
    if count is None:
        return "–"
    for size, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{mark}"
    return f"{count:.3g}"


def clock(seconds: float) -> str:
    """Seconds as 1 h 02 min, 3 min 20 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a.b": value}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, sub in tree.items()
        for key, value in flat(sub, f"{prefix}.{name}".lstrip(".")).items()
    }


def protocol_tables(study: Study) -> list[Table]:
    """What all runs share, and what differs between arms, read off the resolved configurations."""
    configs = {run.name: flat(run.config) for run in study.compared if run.config}
    if not configs:
        return [Table(["<setting", "<value"], [], "No run has a config.yaml.")]
    keys = sorted({key for config in configs.values() for key in config})
    values = {key: {name: config.get(key, "–") for name, config in configs.items()} for key in keys}
    shared = [key for key in keys if len({str(v) for v in values[key].values()}) == 1]
    arms = [a["arm"] for a in study.plan["arms"] if any(run.arm == a["arm"] for run in study.compared)]
    members = {arm: [run.name for run in study.compared if run.arm == arm and run.config] for arm in arms}
    per_arm = {
        key: [", ".join(sorted({str(values[key][name]) for name in members[arm]})) for arm in arms]
        for key in keys
        if key not in shared
    }
    differing = [
        [Markup("<code>{}</code>").format(key), *row] for key, row in per_arm.items() if len(set(row)) > 1
    ]
    common = [[Markup("<code>{}</code>").format(key), next(iter(values[key].values()))] for key in shared]
    return [
        Table(
            ["<setting", *(f"<{study.label(arm)}" for arm in arms)],
            differing,
            "Settings that differ between arms.",
        ),
        Table(["<setting", "<value"], common, folded=f"The {len(common)} settings that all runs share"),
    ]


def audit_table(study: Study) -> Table:
    """The data audit of each cell, leak check included."""
    cells = {run.cell: flat(run.record.get("data", {}).get("audit", {})) for run in study.compared}
    keys = list(dict.fromkeys(key for audit in cells.values() for key in audit))
    rows = [[key.replace(".", ": ").replace("_", " "), *(cells[c].get(key, "–") for c in cells)] for key in keys]
    return Table(["<audit", *cells], [[tidy(x) for x in row] for row in rows])


def tidy(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def provenance(study: Study) -> list[Any]:
    """Commands, versions, hardware, data, seeds and time."""
    plan, records = study.plan, [run.record for run in study.compared]

    def listed(values: Iterable[Any]) -> str:
        return "; ".join(dict.fromkeys(str(v) for v in values if v)) or "not recorded"

    seconds = plan.get("seconds") or {}
    took = ", ".join(f"{stage} {clock(s)}" for stage, s in seconds.items() if s is not None) or "not recorded"
    versions = listed(", ".join(f"{k} {v}" for k, v in (r.get("versions") or {}).items()) for r in records)
    hardware = listed([", ".join(f"{k}: {v}" for k, v in flat(plan.get("hardware") or {}).items())])
    facts = [
        ("command", Markup("<code>{}</code>").format(plan.get("command", "not recorded"))),
        ("this report again", Markup("<code>{}</code>").format(command(study))),
        ("started", plan.get("started", "not recorded")),
        ("time taken", took),
        ("budget", f"{plan.get('budget_minutes', '–')} minutes, {plan.get('workers', '–')} runs at once"),
        ("seeds", listed(sorted({str(run.seed) for run in study.runs}))),
        ("data fingerprint", Markup("<code>{}</code>").format(study.fingerprint or "not recorded")),
        ("versions", versions),
        ("machine", hardware),
        ("device of the runs", listed(r.get("hardware") for r in records)),
    ]
    commands = "\n".join(f"{run.name}\n    {run.record.get('command', 'not recorded')}" for run in study.compared)
    return [Table(["<", "<"], facts), Listing("The exact command of every finished run", commands, folded=True)]


def command(study: Study) -> str:
    return f"python experiments/super-data-learners/report.py {study.directory}"


# ------------------------------------------------------------------------------------------------ page

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
    "stopped. Intervals are 95 % bootstrap intervals over held-out windows{seeds}. <b>X2 matched</b> is the "
    "weaker comparison with what the baseline had reached by the same compute."
)

BANDS = "One line per seed. Bands: ± one standard error over held-out windows, the same windows for every run."


def build(study: Study, results: dict[str, Any]) -> str:
    """The page."""
    again = command(study)
    several = any(b["seeds"] > 1 for b in results["best"])
    verdict: list[Any] = [
        Prose(Markup("<b>{}</b>").format(headline(results))),
        Prose(Markup(DEFINITIONS.format(seeds=" and seeds" if several else ""))),
    ]
    notes = dict.fromkeys(
        note
        for c in results["comparisons"]
        if not c["missing"]
        for kind in ("x1", "x2")
        for note in c[kind]["notes"]
    )
    if results["comparisons"]:
        verdict.append(verdict_table(results))
        verdict.append(Listing("The same in words", "\n".join(results["verdict"]), folded=True))
    if notes:
        verdict.append(Listing("Reservations", "\n".join(notes), folded=True))
    sections = [Section("Verdict", verdict)]
    if study.compared:
        sections += evidence(study, results, again)
    sections.append(Section("Runs", [runs_table(study), *missing(study)]))
    if study.compared:
        sections += [
            Section("Samples", samples(study)),
            Section("Data", [audit_table(study)]),
            Section("Protocol", [arms_table(study), *protocol_tables(study)]),
        ]
    sections.append(Section("Provenance", provenance(study)))
    warning = results["verdict"][0] if results["smoke"] else ""
    subtitle = f"Scale {results['scale']}, {len(study.compared)} of {len(study.runs)} planned runs compared"
    return page("Who learns more from scarce text?", subtitle, LEDE, sections, warning)


def evidence(study: Study, results: dict[str, Any], again: str) -> list[Section]:
    """The figures, with captions that stand on their own."""
    caption = (
        f"Loss on the report split ({results['unit']}; diffusion models: upper bounds) against epochs, "
        f"logarithmic. {BANDS} Dots: the checkpoint chosen on tune. Dotted: the baseline's best, continued. "
        "Circles: X1. Diamonds: X2. Marks take the colour of the baseline that is crossed. Numbers at the "
        "right: loss of the chosen checkpoint."
    )
    sections = [
        Section("Loss against epochs", [Figure("curves", curves_figure(study, results), caption, again)]),
    ]
    caption = (
        f"Loss of the best checkpoint so far (chosen on tune, reported on report; {results['unit']}) against "
        f"training compute. {BANDS} Dotted: no further training. Diamonds: X2. Evaluation is not counted as "
        "compute."
    )
    sections.append(
        Section("Best so far against compute", [Figure("compute", compute_figure(study, results), caption, again)])
    )
    if any(not c["missing"] for c in results["comparisons"]):
        caption = (
            "Epoch of each crossing with its 95 % bootstrap interval over held-out windows; pale: seen but "
            "not confirmed; open arrows: not reached up to the last epoch observed."
        )
        sections.append(
            Section("Crossings", [Figure("crossings", crossings_figure(study, results), caption, again)])
        )
    caption = (
        f"Loss of each arm's chosen checkpoint on the report split, {results['unit']}. Error bars: ± one "
        "standard error over held-out windows. Open circles are upper bounds, filled ones exact; vertical "
        "strokes are the exact likelihood of the same network asked from left to right."
    )
    figure = Figure("best", best_figure(study, results), caption, again)
    sections.append(Section("Likelihoods", [figure, likelihood_table(results), *extra_table(study)]))
    return sections


def missing(study: Study) -> list[Any]:
    """The planned runs that could not be compared, and the directories that no plan knows."""
    blocks: list[Any] = []
    if study.missing:
        text = "\n".join(f"{run.name}: {run.problem}" for run in study.missing)
        blocks.append(Listing(f"Missing runs ({len(study.missing)} of {len(study.runs)})", text))
    else:
        blocks.append(Prose("No planned run is missing."))
    if study.plan.get("dropped"):
        text = "\n".join(
            f"{entry['run']}: about {clock(entry['predicted_seconds'])}" for entry in study.plan["dropped"]
        )
        blocks.append(Listing("Not run, to stay within the minutes asked for", text))
    if study.unplanned:
        blocks.append(Listing("Directories that are not in the plan, not read", "\n".join(study.unplanned)))
    return blocks


def samples(study: Study, most: int = 2) -> list[Any]:
    """A few samples per arm of each cell, the first cell open."""
    blocks: list[Any] = [Prose("Drawn from the chosen checkpoints, not selected.")]
    for i, cell in enumerate(study.plan["cells"]):
        for arm in study.plan["arms"]:
            runs = study.of(cell["cell"], arm["arm"])
            texts = [text for run in runs[:1] for text in (run.record.get("samples") or [])[:most]]
            if texts:
                divider = "\n" + "─" * 24 + "\n"
                blocks.append(Listing(f"{arm['label']}, {cell['cell']}", divider.join(texts), folded=i > 0))
    return blocks


def arms_table(study: Study) -> Table:
    rows = [
        [
            swatch(ink(a["arm"]).colour, a["label"]),
            "baseline" if a["baseline"] else "process",
            a.get("description", ""),
        ]
        for a in study.plan["arms"]
    ]
    return Table(["<arm", "<role", "<what it is"], rows)


def main(study_dir: Path) -> Path:
    """Write the report of a study directory and return the page's path. Raises UserError."""
    study = load_study(Path(study_dir))
    results = compute(study)
    study.table.to_csv(study.directory / "curves.csv", index=False)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (study.directory / "results.json").write_text(text + "\n", encoding="utf-8")
    target = study.directory / "report.html"
    target.write_text(build(study, results), encoding="utf-8")
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} STUDY_DIRECTORY")
    try:
        written = main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    print("\n".join(json.loads((written.parent / "results.json").read_text(encoding="utf-8"))["verdict"]))
    print(written)
