"""The search for an arm's settings: its trials, the best of them, and the file that keeps them all.

python -m dlm.tuning outputs/super-data-learners/tuning experiments/super-data-learners/tuning.json

A search is all trials of one method. A trial is judged by its lowest loss on the tune split; searches of a study
have the same trials, so that no family is tuned harder than another.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlm import config, device
from dlm.errors import UserError
from dlm.files import read_json, write_json

SPACE = ("weight_decay", "dropout", "lr")


@dataclass(frozen=True)
class Search:
    """All trials of a study's searches, and where they were read."""

    where: str
    trials: list[dict[str, Any]]
    missing: int = 0  # planned trials that are not finished

    def best(self, search: str) -> dict[str, Any]:
        """The trial with the lowest `tune_nll`, averaged over seeds; of equal ones the smallest weight decay.

        Raises:
            UserError: if there is no such search, trials are missing, or the searches differ in their trials.
        """
        if self.missing:
            raise UserError(f"{self.where}: {self.missing} trials are not finished; first run stage=tune")
        spaces = {name: self.space(name) for name in sorted({trial["search"] for trial in self.trials})}
        if search not in spaces:
            raise UserError(f"{self.where}: no search {search!r}; there are: {', '.join(spaces)}")
        for name, space in spaces.items():
            if space != spaces[search]:
                raise UserError(
                    f"{self.where}: the searches are not equal: {search} has {len(spaces[search])} trials, {name} "
                    f"{len(space)}, {len(set(space) ^ set(spaces[search]))} settings are in one alone"
                )
        by_settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for trial in self.trials:
            if trial["search"] == search:
                by_settings.setdefault(tuple(trial[key] for key in SPACE), []).append(trial)

        def judged(trials: list[dict[str, Any]]) -> tuple[float, float]:
            return statistics.fmean(t["tune_nll"] for t in trials), trials[0]["weight_decay"]

        return min(by_settings.values(), key=judged)[0]

    def space(self, search: str) -> list[tuple[Any, ...]]:
        """What was tried: (weight decay, dropout, rate, seed), each as often as it was."""
        return sorted(tuple(t[key] for key in (*SPACE, "seed")) for t in self.trials if t["search"] == search)


def overrides_of(trial: dict[str, Any]) -> list[str]:
    """What a trial sets, the method aside: another arm of the family may take it over."""
    return [override for override in trial["overrides"] if not override.startswith("method=")]


def find(shipped: Path, directory: Path) -> Search | None:
    """The trials that ship with the study, else those of the search's own runs, else None."""
    if shipped.is_file():
        return Search(str(shipped), check(shipped, read_json(shipped))["trials"])
    if (directory / "plan.json").is_file():
        trials, missing = finished_trials(directory)
        return Search(str(directory), trials, missing)
    return None


def check(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Raises UserError, naming file and key, unless every trial says what it tried and what came out."""
    trials = found.get("trials")
    if not isinstance(trials, list) or not trials or not all(isinstance(trial, dict) for trial in trials):
        raise UserError(f"{file}: has no list of trials")
    for number, trial in enumerate(trials):
        for key in ("search", "overrides", "tune_nll", "seed", *SPACE):
            if key not in trial:
                raise UserError(f"{file}: trial {number} has no {key!r}")
        for key in ("tune_nll", *SPACE):
            if not isinstance(trial[key], int | float):
                raise UserError(f"{file}: trial {number}: {key} must be a number, not {trial[key]!r}")
    return found


def read_plan(directory: Path) -> dict[str, Any]:
    """The plan of a search. Raises UserError, naming the file, where it is missing or no plan."""
    plan = read_json(directory / "plan.json")
    for key in ("command", "started", "cells", "arms", "runs"):
        if key not in plan:
            raise UserError(f"{directory / 'plan.json'}: has no {key!r}")
    return plan


def finished_trials(directory: Path) -> tuple[list[dict[str, Any]], int]:
    """(the finished trials of a search, best first; how many planned ones are not finished)."""
    plan = read_plan(directory)
    arms = {arm["arm"]: arm for arm in plan["arms"]}
    trials = []
    for run in plan["runs"]:
        record = directory / "runs" / run["run"] / "record.json"
        if record.is_file():
            settings = yaml.safe_load(record.with_name("config.yaml").read_text())
            trials.append(trial_of(arms[run["arm"]], plan.get("base", []), read_json(record), settings))
    return sorted(trials, key=lambda t: (t["search"], t["tune_nll"])), len(plan["runs"]) - len(trials)


def trial_of(
    arm: dict[str, Any], base: Iterable[str], record: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    chosen = [o.partition("=")[2] for o in [*base, *arm["overrides"]] if o.startswith("method=")]
    if not chosen:
        raise UserError(f"arm {arm['arm']!r} of the search names no method")
    return {
        "search": chosen[-1],
        "arm": arm["arm"],
        "cell": record["cell"],
        "overrides": arm["overrides"],
        "weight_decay": settings["optim"]["weight_decay"],
        "dropout": settings["backbone"]["dropout"],
        "lr": settings["optim"]["lr"],
        "tune_nll": record["best"]["tune_nll"],
        "epoch": record["best"]["epoch"],
        "observed_to": record["epochs"],
        "stopped": record["stopped"],
        "seed": record["seed"],
        "fingerprint": record["data"]["fingerprint"],
    }


def main() -> None:
    """Write the finished trials of a search as one JSON file. Raises UserError where some are missing."""
    if len(sys.argv) != 3 or "=" in sys.argv[1]:
        raise UserError("usage: python -m dlm.tuning SEARCH_DIRECTORY FILE.json")
    directory, file = map(Path, sys.argv[1:])
    plan = read_plan(directory)
    trials, missing = finished_trials(directory)
    if missing:
        raise UserError(
            f"{directory}: {missing} of {len(plan['runs'])} trials are not finished: {plan['command']}"
        )
    fingerprints = {trial.pop("fingerprint") for trial in trials}
    if len(fingerprints) > 1:
        raise UserError(f"{directory}: the trials saw different data ({', '.join(sorted(fingerprints))})")
    found = {
        "command": plan["command"],
        "date": time.strftime("%Y-%m-%d", time.strptime(plan["started"][:10], "%Y-%m-%d")),
        "hardware": plan.get("hardware", {"machine": device.describe(), "cores": os.cpu_count()}),
        "fingerprint": fingerprints.pop(),
        "cell": ", ".join(cell["cell"] for cell in plan["cells"]),
        "trials": trials,
    }
    write_json(file, found)
    search = Search(str(file), trials)
    for name in sorted({trial["search"] for trial in trials}):
        best = search.best(name)
        print(
            f"{name}: {len(search.space(name))} trials, best {best['tune_nll']:.4f} nats per token at epoch "
            f"{best['epoch']:g}: {' '.join(overrides_of(best))}"
        )


if __name__ == "__main__":
    config.entry(main)
