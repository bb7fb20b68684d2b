"""The report of this study: who overtakes whom when the data are few and repeated, and how sure that is.

    python experiments/super-data-learners/report.py outputs/super-data-learners/<scale>

reads the study directory and writes into it report.html, figures/*.svg and *.png, results.json and curves.csv.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dlm.errors import UserError
from dlm.report.crossing import Crossing, x1, x2
from dlm.report.figures import best_figure, compute_figure, crossings_figure, curves_figure
from dlm.report.page import Listing, Prose, Section, page
from dlm.report.study import Study, best, load_study, unit
from dlm.report.tables import (
    arms_table,
    audit_table,
    crossings_table,
    extra_table,
    likelihood_table,
    missing,
    protocol_tables,
    provenance,
    runs_table,
    samples,
)

KINDS = ("x1", "x2", "x2_matched")
FEW = 6  # evaluations below which a curve says nothing about its model


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


def is_smoke(study: Study) -> bool:
    """Whether the scale is the smoke test, or the curves are too short to mean anything."""
    counts = [len(run.curve.epochs) for run in study.compared if run.curve is not None]
    return is_smoke_scale(study.plan["scale"]) or not counts or float(np.median(counts)) < FEW


def is_smoke_scale(scale: str) -> bool:
    return "smoke" in scale


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """The verdict in plain text, one line per cell and process, with a caution first where one is due."""
    lines = []
    if results["smoke"]:
        lines.append(caution(results["scale"]))
    for pairs in grouped(results["comparisons"]):
        first = pairs[0]
        parts = [f"against {results['labels'][c['baseline']]}: {in_words(c)}" for c in pairs]
        name = f"{first['cell']}, {results['labels'][first['process']]}"
        lines.append(f"{name}{control(pairs)}: " + "; ".join(parts) + ".")
    if results["missing"]:
        lines.append(f"Missing: {len(results['missing'])} of the planned runs; see the list of runs.")
    return lines


def caution(scale: str) -> str:
    """Why nothing may be concluded where `is_smoke`."""
    if is_smoke_scale(scale):
        return "Smoke scale: this proves the machinery, and nothing about the models."
    return f"Too few evaluations, under {FEW} in a typical run, to say anything about the models."


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
    same, so_far = Crossing.from_json(comparison["x1"]), Crossing.from_json(comparison["x2"])
    spent = f" ({so_far.flops:.2g} FLOPs)" if so_far.flops is not None else ""
    return f"X1 {same}, X2 {so_far}{spent}"


def control(pairs: Sequence[dict[str, Any]]) -> str:
    """For a control cell: whether the absence of crossings, which is what is expected there, was observed."""
    if pairs[0]["role"] != "control":
        return ""
    known = [c for c in pairs if not c["missing"]]
    if not known:
        return " (control, nothing to compare)"
    crossed = any(
        Crossing.from_json(c[kind]).status in ("clear", "from the start") for c in known for kind in ("x1", "x2")
    )
    return " (control, UNEXPECTED crossing)" if crossed else " (control, no clear crossing, as expected)"


def headline(results: dict[str, Any]) -> str:
    """Who clearly beat the best that each baseline ever reached in the scarce cells, and how the controls did."""
    sentences = []
    for baseline in dict.fromkeys(c["baseline"] for c in results["comparisons"]):
        scarce = [c for c in results["comparisons"] if c["baseline"] == baseline and c["role"] != "control"]
        known = [c for c in scarce if not c["missing"]]
        won = [c for c in known if Crossing.from_json(c["x2"]).status in ("clear", "from the start")]
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


def build(study: Study, results: dict[str, Any]) -> str:
    """The page."""
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
        verdict.append(crossings_table(results))
        verdict.append(Listing("The same in words", "\n".join(results["verdict"]), folded=True))
    if notes:
        verdict.append(Listing("Reservations", "\n".join(notes), folded=True))
    sections = [Section("Verdict", verdict)]
    if study.compared:
        sections += evidence(study, results)
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


def evidence(study: Study, results: dict[str, Any]) -> list[Section]:
    """The figures, and the likelihoods behind the last one."""
    sections = [
        Section("Loss against epochs", [curves_figure(study, results)]),
        Section("Best so far against compute", [compute_figure(study, results)]),
    ]
    if any(not c["missing"] for c in results["comparisons"]):
        sections.append(Section("Crossings", [crossings_figure(study, results)]))
    figures = [best_figure(study, results), likelihood_table(results), *extra_table(study)]
    return [*sections, Section("Likelihoods", figures)]


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
