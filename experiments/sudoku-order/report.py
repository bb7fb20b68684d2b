"""The report of this study: which order solves a puzzle, and what the noise has to do with it.

    python experiments/sudoku-order/report.py outputs/sudoku-order/<scale>

reads the study directory and writes into it report.html, results.json, decodings.csv and figures/*.svg, *.png and
*.csv. It takes whatever is there: what is missing is listed as missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report_claims import hypotheses, verdict_lines
from report_curves import curves_figure
from report_nae import imbalance_figure
from report_protocol import data_table, protocol
from report_tables import (
    grid_tables,
    others_table,
    strata_tables,
    table_1,
    table_2,
    table_3,
    table_5,
    text_table,
)
from report_text import permuted_figure
from report_words import LEDE, TITLE, headline

from dlm.errors import UserError
from dlm.report.claims import claims_table, is_smoke_scale
from dlm.report.decoded import Decoded
from dlm.report.decoding import ADAPTIVE, AUTOREGRESSIVE, Contender, difference, estimate, mean, plain
from dlm.report.figures_boards import boards_figure, mechanism_figure
from dlm.report.figures_decoding import pace_figure, progress_figure, strata_figure
from dlm.report.figures_noise import noise_figure
from dlm.report.page import Prose, Section, Table, page
from dlm.report.panels import Absent
from dlm.report.tables import missing, protocol_tables, provenance
from dlm.report.tasks import TaskStudy, load_tasks


def compute(study: TaskStudy) -> dict[str, Any]:
    """Every number of the verdict, ready for JSON."""
    results: dict[str, Any] = {
        "study": study.plan["study"],
        "scale": study.plan["scale"],
        "smoke": is_smoke_scale(study.plan["scale"]),
        "fingerprint": study.fingerprint,
        "labels": {a["arm"]: a["label"] for a in study.plan["arms"]},
        "missing": [{"run": run.name, "why": run.problem} for run in study.missing],
    }
    decoded = Decoded(study, results)
    results["solved"] = shares(decoded)
    results["differences"] = differences(decoded)
    results["hypotheses"] = hypotheses(decoded)
    results["verdict"] = verdict_lines(results)
    return results


def shares(decoded: Decoded) -> list[dict[str, Any]]:
    """The share solved under every setting of every contender, with its interval."""
    table = decoded.table
    found = []
    keys = ["cell", "arm", "rule", "checkpoint", "split", "noise_name", "pace", "values", "remask", "selection",
            "reveal", "ties"]  # fmt: skip
    for key, rows in table.groupby(keys, sort=False):
        own = dict(zip(keys, key, strict=True))
        who = Contender(own["cell"], own["arm"], own["rule"])
        spent = {k: round(mean(rows, k), 4) for k in ("nfe", "tokens_per_step")}
        name = {"task": str(rows["task"].iloc[0]), "size": str(rows["size"].iloc[0]), "label": decoded.label(who)}
        found.append(name | own | {"remask": bool(own["remask"])} | estimate(rows).to_json() | spent)
    return found


def differences(decoded: Decoded) -> list[dict[str, Any]]:
    """Every adaptive rule against random order and against top probability, and every pair of ARMs, without noise;
    rules against each other under each noise."""
    found = []
    table = plain(decoded.table, noise=None)
    for noise in dict.fromkeys(table["noise_name"]):
        part = table[table["noise_name"] == noise]
        for cell in dict.fromkeys(part["cell"]):
            who = decoded.in_cell(cell, part)
            for a in who:
                for b in who:
                    rules = (a.rule in (*ADAPTIVE, "given") and b.rule in ("random", "top_probability")
                             and a.arm == b.arm)  # fmt: skip
                    arms = a.rule == AUTOREGRESSIVE and who.index(a) < who.index(b) and b.rule == AUTOREGRESSIVE
                    if a == b or not (rules or arms):
                        continue
                    e = difference(decoded.study, decoded.rows(a, part), decoded.rows(b, part))
                    if e is not None:
                        found.append({"cell": cell, "noise": noise, "first": list(a[1:]), "second": list(b[1:])}
                                     | e.to_json())  # fmt: skip
    return found


def boards(decoded: Decoded) -> list[Any]:
    """F6: one figure per cell that kept boards."""
    cells = [cell for cell in decoded.cells("sudoku") if any(run.boards for run in decoded.runs(cell))]
    if not cells:
        return [Absent("F6", "boards being solved", "no run kept the boards it solved (traces=K)")]
    return [boards_figure(decoded, cell, "F6", f"f6-boards-{cell}") for cell in cells]


def sudoku(figure: Callable[..., Any], number: str) -> Callable[[Decoded], Any]:
    """A figure over all Sudoku cells."""
    return lambda decoded: figure(decoded, decoded.cells("sudoku"), number)


EVIDENCE: dict[str, tuple[Callable[[Decoded], Any], ...]] = {
    "Table 2": (table_2, protocol),
    "Noise and scale": (sudoku(noise_figure, "F3"), grid_tables, others_table),
    "Training": (sudoku(progress_figure, "F1"),),
    "Pace": (sudoku(pace_figure, "F2"),),
    "Difficulty": (sudoku(strata_figure, "F4"), strata_tables, table_5),
    "Where it goes wrong": (sudoku(mechanism_figure, "F5"), boards),
    "Zebra": (table_3,),
    "NAE-SAT": (table_1, imbalance_figure),
    "Text": (text_table, permuted_figure),
    "Training curves": (curves_figure,),
    "Data": (data_table,),
}


def build(study: TaskStudy, results: dict[str, Any]) -> str:
    """The page."""
    decoded = Decoded(study, results)
    sections = [
        Section(
            "Verdict",
            [
                Prose(headline(results)),
                claims_table(results["hypotheses"]),
                Prose(
                    "Claims stated before the runs. Undecided: the data cannot tell, or are not there yet. A "
                    "yes or no needs every cell that can tell to say the same. Intervals are 95 %, over "
                    "puzzles, and over trainings where there are several; S6, S7, S15 and S16 compare "
                    "trainings and need two of each."
                ),
            ],
        )
    ]
    absent: list[Absent] = []
    for title, makers in EVIDENCE.items():
        made = [block for make in makers for block in listed(make(decoded))]
        absent += [block for block in made if isinstance(block, Absent)]
        if blocks := [block for block in made if not isinstance(block, Absent)]:
            sections.append(Section(title, blocks))
    sections.append(Section("Runs", missing(study)))
    if study.compared:
        sections.append(Section("Protocol", protocol_tables(study)))
    if absent:
        rows = [[a.number, a.title, a.why] for a in absent]
        table = Table(["<", "<what", "<why"], rows, "Figures and tables that this study's data do not allow.")
        sections.append(Section("Not available", [table]))
    sections.append(Section("Provenance", provenance(study)))
    warning = results["verdict"][0] if results["smoke"] else ""
    subtitle = f"Scale {results['scale']}, {len(study.compared)} of {len(study.runs)} planned runs compared"
    return page(TITLE, subtitle, LEDE, sections, warning)


def listed(made: Any) -> list[Any]:
    return made if isinstance(made, list) else [made]


def main(study_dir: Path) -> Path:
    """Write the report of a study directory and return the page's path. Raises UserError."""
    study = load_tasks(Path(study_dir))
    results = compute(study)
    study.decodings.drop(columns="row").to_csv(study.directory / "decodings.csv", index=False)
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
