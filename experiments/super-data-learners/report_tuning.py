"""Every trial of the tuning searches (T6): those that ship beside this file, or those of the search's own runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlm.errors import UserError
from dlm.files import read_json
from dlm.report.page import Table
from dlm.report.panels import Absent
from dlm.report.study import Run, Study, load_study
from dlm.report.tables_measures import tuning_table


def tuning(study: Study) -> Table | Absent:
    """T6 of the search that the study's arms were tuned by. Raises UserError where its files are corrupt.

    The plan names the file or the directory where the search was read; where that has moved, its name is looked
    for in the study's directory, beside this file, and among the study's neighbours.
    """
    named = Path(study.plan.get("tuning") or "tuning.json")
    file, own = f"{named.stem}.json", study.directory.parent / named.stem
    for path in (named, study.directory / file, Path(__file__).parent / file):
        if path.is_file():
            found: dict[str, Any] = read_json(path)
            if not isinstance(found.get("trials"), list) or not all(isinstance(t, dict) for t in found["trials"]):
                raise UserError(f"{path}: has no list of trials")
            where = ", ".join(str(found[k]) for k in ("cell", "date", "hardware") if found.get(k))
            return tuning_table(found["trials"], f"{path.name}: {where}")
    if (own / "plan.json").is_file():
        search = load_study(own)
        methods = {arm["arm"]: method_of(arm) for arm in search.plan["arms"]}
        return tuning_table([trial(run, methods[run.arm]) for run in search.runs], f"the runs of {own.name}")
    return Absent("T6", "tuning trials", f"no {file} in the study's directory or beside its report")


def method_of(arm: dict[str, Any]) -> str:
    """The method that an arm of a search sets, which names the search."""
    chosen = [o.partition("=")[2] for o in arm.get("overrides", []) if o.startswith("method=")]
    return chosen[-1] if chosen else arm["arm"]


def trial(run: Run, search: str) -> dict[str, Any]:
    """One run of a search as a trial; one that is not finished has no loss yet."""
    optim, best = run.config.get("optim") or {}, run.record.get("best") or {}
    return {
        "search": search,
        "weight_decay": optim.get("weight_decay"),
        "dropout": (run.config.get("backbone") or {}).get("dropout"),
        "lr": optim.get("lr"),
        "tune_nll": best.get("tune_nll"),
        "epoch": best.get("epoch"),
        "observed_to": run.record.get("epochs"),
        "stopped": run.record.get("stopped"),
    }
