"""The report of this study: who overtakes whom when the data are few and repeated, and how sure that is.

    python experiments/super-data-learners/report.py outputs/super-data-learners/<scale>

reads the study directory and writes into it report.html, results.json, curves.csv and figures/*.svg, *.png and
*.csv. It takes whatever is there: what is missing is listed as missing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from report_hypotheses import hypotheses
from report_tuning import tuning
from report_words import DEFINITIONS, LEDE, headline, is_smoke, verdict_lines

from dlm.errors import UserError
from dlm.report.claims import claims_table
from dlm.report.crossing import x1, x2, x3
from dlm.report.figures_budgets import budgets_figure, lead_figure, repetition_figure
from dlm.report.figures_crossings import crossings_figure, overview_figure
from dlm.report.figures_laws import contour_figure, laws_figure
from dlm.report.figures_loss import compute_figure, losses_figure
from dlm.report.figures_measures import (
    PROBES,
    likelihoods_figure,
    memorisation_figure,
    norms_figure,
    order_variance_figure,
    probes_figure,
)
from dlm.report.figures_mechanism import mechanism_figure
from dlm.report.page import Listing, Prose, Section, Table, page
from dlm.report.panels import Absent
from dlm.report.pareto import x2_over_sizes
from dlm.report.study import Study, best, load_study, unit
from dlm.report.summary import Summary
from dlm.report.tables import (
    arms_table,
    audit_table,
    extra_table,
    likelihood_table,
    missing,
    protocol_tables,
    provenance,
    runs_table,
    samples,
)
from dlm.report.tables_crossings import crossings_tables, fronts_table, probe_crossings_table
from dlm.report.tables_measures import best_table, cost_table, laws_tables, memorisation_table, probes_table

MANY = 300  # runs from which comparisons and figures are made side by side
KINDS = ("x1", "x2", "x2_matched", "x2_cooled")


def compute(study: Study) -> dict[str, Any]:
    """Every number of the report, ready for JSON."""
    compared = [a for a in study.plan["arms"] if a.get("group") != "mechanism"]
    planned = {(run.cell, run.arm) for run in study.runs}
    pairs = [
        (cell, process["arm"], baseline["arm"])
        for cell in study.plan["cells"]
        for process in compared
        for baseline in compared
        if baseline["baseline"] and not process["baseline"]
        if {(cell["cell"], process["arm"]), (cell["cell"], baseline["arm"])} <= planned
    ]
    results = {
        "study": study.plan["study"],
        "scale": study.plan["scale"],
        "fingerprint": study.fingerprint,
        "smoke": is_smoke(study),
        "unit": unit(study),
        "labels": {a["arm"]: a["label"] for a in study.plan["arms"]},
        "comparisons": side_by_side(study, partial(compare, study), pairs),
        "fronts": fronts(study, compared),
        "best": [
            best(study, cell["cell"], arm["arm"])
            for cell in study.plan["cells"]
            for arm in study.plan["arms"]
            if study.of(cell["cell"], arm["arm"])
        ],
        "missing": [{"run": run.name, "why": run.problem} for run in study.missing],
    }
    return results | {"verdict": verdict_lines(results), "hypotheses": hypotheses(study, results)}


def compare(study: Study, cell: dict[str, Any], process: str, baseline: str) -> dict[str, Any]:
    """The crossings of one process against one baseline in one cell; `missing` says why there are none.

    `x2_cooled` is None where an arm has no cooled-down branch, `x3` holds one crossing per probe that both have.
    """
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
        missing = f"no finished run of {' or '.join(absent)}"
        return found | dict.fromkeys(KINDS) | {"x3": {}, "missing": missing}
    cooled = all(any(c.cooled is not None for c in arm) for arm in (ours, theirs))
    try:
        crossings = {"x1": x1(ours, theirs), "x2": x2(ours, theirs), "x2_matched": x2(ours, theirs, matched=True)}
        if cooled:
            crossings["x2_cooled"] = x2(ours, theirs, cooled=True)
        probes = {name: [study.probes(cell["cell"], arm, name) for arm in (process, baseline)] for name in PROBES}
        third = {name: x3(*both).to_json() for name, both in probes.items() if all(both)}
    except ValueError as error:
        raise UserError(f"{study.directory}: {error}") from error
    located = {kind: crossings[kind].to_json() if kind in crossings else None for kind in KINDS}
    return found | located | {"x3": third}


def fronts(study: Study, arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """X2 over model sizes, of each process against each baseline, at every budget where both have two or more.

    Of the sizes of a budget, those of which both have finished runs; one budget's cells differ in size alone.
    """
    found = []
    for unique in dict.fromkeys(cell["unique_tokens"] for cell in study.plan["cells"]):
        cells = [c for c in study.plan["cells"] if c["unique_tokens"] == unique and c.get("size")]
        for process in (a["arm"] for a in arms if not a["baseline"]):
            for baseline in (a["arm"] for a in arms if a["baseline"]):
                sizes = [c for c in cells if all(study.of(c["cell"], arm) for arm in (process, baseline))]
                if len({c["size"] for c in sizes}) < 2 or len({c["size"] for c in sizes}) < len(sizes):
                    continue
                ours, theirs = (
                    {c["size"]: study.curves(c["cell"], a) for c in sizes} for a in (process, baseline)
                )
                curves = [c for arm in (ours, theirs) for seeds in arm.values() for c in seeds]
                try:
                    crossings = {
                        "matched": x2_over_sizes(ours, theirs).to_json(),
                        "ever": x2_over_sizes(ours, theirs, ever=True).to_json(),
                        "cooled": x2_over_sizes(ours, theirs, cooled=True).to_json()
                        if all(c.cooled is not None for c in curves)
                        else None,
                    }
                except ValueError as error:
                    raise UserError(f"{study.directory}: {error}") from error
                found.append({"unique_tokens": unique, "process": process, "baseline": baseline} | crossings)
    return found


def build(study: Study, results: dict[str, Any]) -> str:
    """The page."""
    summary = Summary(study, results)
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
        verdict += [*crossings_tables(results), *fronts_table(results)]
        verdict.append(Listing("The same in words", "\n".join(results["verdict"]), folded=True))
    if notes:
        verdict.append(Listing("Reservations", "\n".join(notes), folded=True))
    sections = [Section("Verdict", verdict)]
    sections.append(
        Section(
            "Hypotheses",
            [
                Prose(
                    "Stated before these runs. Undecided: the data cannot tell, or are not there yet. H1 to H5, "
                    "H9 and H10 compare trainings, so they also need two seeds of each arm."
                ),
                claims_table(results["hypotheses"]),
            ],
        )
    )
    absent: list[Absent] = []
    for title, made in evidence(summary).items():
        absent += [block for block in made if isinstance(block, Absent)]
        if shown := [block for block in made if not isinstance(block, Absent)]:
            sections.append(Section(title, shown))
    trials = tuning(study)
    absent += [trials] if isinstance(trials, Absent) else []
    sections += [Section("Tuning", [trials])] if not isinstance(trials, Absent) else []
    sections.append(Section("Runs", [runs_table(study), *missing(study)]))
    if study.compared:
        sections += [
            Section("Samples", samples(study)),
            Section("Data", [audit_table(study)]),
            Section("Protocol", [arms_table(study), *protocol_tables(study)]),
        ]
    if absent:
        rows = [[a.number, a.title, a.why] for a in absent]
        table = Table(["<", "<what", "<why"], rows, "Figures and tables that this study's data do not allow.")
        sections.append(Section("Not available", [table]))
    sections.append(Section("Provenance", provenance(study)))
    warning = results["verdict"][0] if results["smoke"] else ""
    subtitle = f"Scale {results['scale']}, {len(study.compared)} of {len(study.runs)} planned runs compared"
    return page("Who learns more from scarce text?", subtitle, LEDE, sections, warning)


def evidence(summary: Summary) -> dict[str, list[Any]]:
    """The blocks of every section of EVIDENCE."""
    makers = [(make,) for blocks in EVIDENCE.values() for make in blocks]
    _ = summary.curves, summary.branches, summary.best, summary.measures  # once, before forks share them
    blocks = iter(side_by_side(summary.study, lambda make: make(summary), makers))
    return {title: [b for _ in makes for b in listed(next(blocks))] for title, makes in EVIDENCE.items()}


WORK: list[tuple[Callable[..., Any], list[tuple[Any, ...]]]] = []  # in a fork: what it works on


def side_by_side(study: Study, work: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    """[work(*call) for call in calls]; of a large study in forks, which share its data without copying it."""
    if len(study.compared) < MANY or "fork" not in multiprocessing.get_all_start_methods():
        return [work(*call) for call in calls]
    workers = min(8, os.cpu_count() or 1)
    with multiprocessing.get_context("fork").Pool(workers, WORK.append, [(work, calls)]) as pool:
        return pool.map(do_one, range(len(calls)), chunksize=1)


def do_one(index: int) -> Any:
    work, calls = WORK[-1]
    return work(*calls[index])


def listed(made: Any) -> list[Any]:
    return made if isinstance(made, list) else [made]


def likelihood_tables(summary: Summary) -> list[Any]:
    if not summary.study.compared:
        return []
    return [likelihood_table(summary.results), *extra_table(summary.study)]


EVIDENCE: dict[str, tuple[Callable[[Summary], Any], ...]] = {
    "Loss against epochs": (losses_figure, best_table),
    "Best so far against compute": (compute_figure,),
    "Crossings": (overview_figure, crossings_figure),
    "How scarce the text is": (budgets_figure, repetition_figure, lead_figure, contour_figure),
    "Laws": (laws_figure, laws_tables),
    "Likelihoods": (likelihoods_figure, likelihood_tables),
    "Mechanism": (mechanism_figure,),
    "Probes": (probes_figure, probes_table, lambda summary: probe_crossings_table(summary.results, PROBES)),
    "Memorisation": (memorisation_figure, memorisation_table, order_variance_figure, norms_figure),
    "Cost of evaluation": (cost_table,),
}


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
