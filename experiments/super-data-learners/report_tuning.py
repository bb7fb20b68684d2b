"""Every trial of the tuning searches (T6): those shipped beside this file, or those in the study's neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlm.files import read_json
from dlm.report.page import Table
from dlm.report.panels import Absent
from dlm.report.study import Study
from dlm.report.tables_measures import tuning_table


def tuning(study: Study) -> Table | Absent:
    """T6 of the search that the study's arms were tuned by. Raises UserError where its file is corrupt."""
    name = study.plan.get("tuning") or "tuning"
    places = (study.directory / f"{name}.json", Path(__file__).parent / f"{name}.json")
    for path in places:
        if path.is_file():
            found: dict[str, Any] = read_json(path)
            where = ", ".join(str(found[k]) for k in ("cell", "date", "hardware") if found.get(k))
            return tuning_table(found.get("trials", []), f"{path.name}: {where}")
    return Absent("T6", "tuning trials", f"no {name}.json in the study's directory or beside its report")
