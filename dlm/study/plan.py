"""What a study will run: the product of its arms and cells, with predicted cost, and plan.json.

Every job has a stable run directory, named by what decides its numbers, so a second plan finds what the first has
finished; finished runs of earlier plans (another seed, another arm) stay in plan.json as long as the scale's file
would still make them.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlm import config, device, tuning
from dlm.errors import UserError
from dlm.files import newest_row, read_json, read_lines, write_json
from dlm.run import RunDirectory
from dlm.study.checks import keyed, same
from dlm.study.command import Command, names, study_file, whole_numbers
from dlm.study.compose import Composer
from dlm.study.cost import Cost, Pricing
from dlm.study.decoding import about, seconds_of
from dlm.study.launch import gpus
from dlm.study.scale import branches_of, budget, epochs_of, read_scale, role_of, seeds_of, tokens_of
from dlm.tuning import Search


@dataclass
class Job:
    """One run of the plan."""

    run: str
    cell: str
    arm: str
    seed: int
    epochs: float
    branches: list[float]
    overrides: list[str]
    path: Path
    cost: Cost
    seconds: float = 0.0  # predicted
    scoring_seconds: float = 0.0  # the part of them that evaluations take
    earlier: bool = field(default=False)  # finished, and only kept from an earlier plan

    @property
    def finished(self) -> bool:
        return RunDirectory(self.path).finished

    def progress(self) -> float:
        """Share of the predicted seconds that is done; evaluations lie evenly on the logarithm of the epochs."""
        run = RunDirectory(self.path)
        if run.finished:
            return 1.0
        epoch = newest_row(run.metrics).get("epoch", 0.0)
        trunk = self.cost.tokens / self.cost.trained_tokens
        cooled = sum(row["epoch"] for row in read_lines(run.branches)) / max(sum(self.branches), 1e-9)
        trained = trunk * epoch / self.epochs + (1 - trunk) * min(cooled, 1.0)
        scoring = self.scoring_seconds / max(self.seconds, 1e-9)
        return min(0.99, (1 - scoring) * trained + scoring * epoch / self.epochs)


class Plan:
    """A study at one scale: its file, its jobs, its directory.

    Raises UserError for a scale that contradicts itself, unknown arms, and searches without trials (unless
    `dry`, where the arms they decide are counted with the untuned settings).
    """

    def __init__(self, command: Command, dry: bool = False):
        self.file = study_file(command)
        self.command, self.folder, self.dry = command, self.file.parent, dry
        self.methods = config.methods()
        self.settings = read_scale(self.file, self.methods)
        self.directory = command.directory
        self.workers = command.workers or self.settings.get("workers", 1)
        self.compose, self.price = Composer(), Pricing(self.settings.get("assume", {}))
        self.costs: dict[tuple[str, str], Cost] = {}
        self.search = find_search(command, self.folder, self.settings)
        self.tuned: dict[str, str] = {}  # arm -> where its settings come from
        self.arms = [self.resolved(arm) for arm in self._chosen()]
        self.seeds = whole_numbers("seeds", command.seeds) if command.seeds else self.settings["seeds"]
        self.jobs = [
            self._job(cell, arm, seed)
            for cell in self.settings["cells"]
            for arm in self.arms
            if cell["cell"] in arm.get("cells", [cell["cell"]])
            for seed in seeds_of(arm, cell, self.seeds)
        ]
        if not self.jobs:
            raise UserError(f"{self.file}: no arm of this plan has a cell")
        self.dropped: list[Job] = []
        self.assumed: float | None = None  # FLOP/s per device, where nothing was measured
        self.before = read_json(self.directory / "plan.json") if (self.directory / "plan.json").is_file() else {}
        self._keep_earlier()

    # --- arms ---------------------------------------------------------------------------------------------------

    def _arm(self, name: str) -> dict[str, Any]:
        """An arm of the scale's file, or a method as an arm of its own. Raises UserError."""
        listed = [*self.settings["arms"], *self.settings.get("optional_arms", [])]
        for arm in listed:
            if arm["arm"] == name:
                return arm
        if name not in self.methods:
            raise UserError(
                f"no arm {name!r}: neither in {self.file} ({', '.join(a['arm'] for a in listed)}) "
                f"nor a method ({', '.join(sorted(self.methods))})"
            )
        return {"arm": name, "label": name, "baseline": False, "overrides": [f"method={name}"]}

    def _chosen(self) -> list[dict[str, Any]]:
        """The scale's arms and those of `arms=`; with `only=`, these alone."""
        arms = {arm["arm"]: arm for arm in self.settings["arms"]}
        if self.command.only:
            arms = {name: self._arm(name) for name in names(self.command.only)}
        return list((arms | {name: self._arm(name) for name in names(self.command.arms)}).values())

    def resolved(self, arm: dict[str, Any]) -> dict[str, Any]:
        """The arm with the settings that its search found."""
        if "tuned" not in arm:
            return arm
        if self.search is None or self.search.missing:
            if self.dry:
                self.tuned[arm["arm"]] = ""
                return arm
            what = f"{self.search.missing} unfinished trials" if self.search else "no trials"
            raise UserError(
                f"arm {arm['arm']!r} is tuned by {self.settings['tuning']!r}, which has {what}: stage=tune"
            )
        best = self.search.best(arm["tuned"])
        own = keyed(f"{self.file}: arm {arm['arm']!r}", arm["overrides"])
        found = tuning.overrides_of(best)
        for key, value in keyed(self.search.where, found).items():
            if key in own and not same(own[key], value):
                raise UserError(f"{self.file}: arm {arm['arm']!r}: {key}={own[key]}, but its search found {value}")
        self.tuned[arm["arm"]] = f"{' '.join(found)} ({best['arm']} of {self.search.where})"
        return arm | {"overrides": [*arm["overrides"], *(o for o in found if o.partition("=")[0] not in own)]}

    # --- jobs ---------------------------------------------------------------------------------------------------

    def _job(self, cell: dict[str, Any], arm: dict[str, Any], seed: int) -> Job:
        epochs, branches = epochs_of(cell, arm["arm"]), branches_of(cell, arm["arm"])
        overrides = [
            *self.settings["base"],
            *arm["overrides"],
            *budget(cell),
            *([f"branches.epochs=[{','.join(f'{e:g}' for e in branches)}]"] if branches else []),
            f"study={self.command.name}",
            f"scale={self.command.scale}",
            f"cell={cell['cell']}",
            f"arm={arm['arm']}",
            f"seed={seed}",
            f"epochs={epochs}",
            f"output_dir={self.command.output_dir}",
        ]
        cfg = self.compose(overrides)
        kind = (cell["cell"], arm["arm"])
        if kind not in self.costs:  # all seeds cost the same
            self.costs[kind] = self.price(cfg, tokens_of(cell, cfg.seq_len), epochs)
        where = config.run_path(cfg)
        return Job(
            where.name, cell["cell"], arm["arm"], seed, epochs, branches, overrides, where, self.costs[kind]
        )

    def _keep_earlier(self) -> None:
        """Finished runs of the plan.json that is there, if the scale's file would make the very same run today."""
        cells, known = {cell["cell"]: cell for cell in self.settings["cells"]}, {job.run for job in self.jobs}
        listed = {arm["arm"] for arm in [*self.settings["arms"], *self.settings.get("optional_arms", [])]}
        for run in self.before.get("runs", []):
            path = self.directory / "runs" / run["run"]
            there = run["cell"] in cells and run["arm"] in listed | self.methods
            if run["run"] in known or not there or not RunDirectory(path).finished:
                continue
            arm = next((a for a in self.arms if a["arm"] == run["arm"]), None) or self.resolved(
                self._arm(run["arm"])
            )
            job = self._job(cells[run["cell"]], arm, run["seed"])
            if job.run == run["run"]:
                job.earlier = True
                self.jobs.append(job)
                self.arms += [arm] if arm["arm"] not in {a["arm"] for a in self.arms} else []

    @property
    def pending(self) -> list[Job]:
        return [job for job in self.jobs if not job.finished]

    # --- time ---------------------------------------------------------------------------------------------------

    def fit_budget(self) -> None:
        """With `minutes=`, drop runs from the end of the plan until the rest is predicted to fit; say which."""
        if self.command.minutes is None:
            return
        while self.pending and self.predicted_seconds > 60 * self.command.minutes:
            job = self.pending[-1]
            self.jobs.remove(job)
            self.dropped.append(job)

    @property
    def training_seconds(self) -> float:
        """Wall time of the training: no worker can finish before its longest run."""
        left = [job.seconds for job in self.pending]
        return max(sum(left) / self.workers, max(left, default=0.0))

    @property
    def measuring_seconds(self) -> float:
        """Wall time of the measures and decodings, where the scale says how long a run's take."""
        evaluate = self.settings.get("evaluate", {})
        seeds = evaluate.get("seeds", self.seeds)
        measures = evaluate.get("seconds", 0) * sum(job.seed in seeds for job in self.jobs)
        blocks = self.settings["decode"]
        decoded = sum(seconds_of(about(blocks, job.cell, job.arm, job.seed)) for job in self.jobs)
        return (measures + decoded) / self.workers

    @property
    def predicted_seconds(self) -> float:
        return self.training_seconds + self.measuring_seconds

    @property
    def sharing(self) -> float:
        """How many runs share one GPU of this machine, or the one that is assumed where it has none."""
        cost = self.jobs[0].cost
        if self.command.launcher != "local" or not cost.on_gpu or cost.devices > 1:
            return 1.0
        return max(1.0, self.workers / max(gpus(), 1))

    @property
    def gpu_hours(self) -> float:
        return sum(job.seconds * job.cost.devices for job in self.pending if job.cost.on_gpu) / self.sharing / 3600

    # --- plan.json ----------------------------------------------------------------------------------------------

    @property
    def started(self) -> str:
        """When the plan was first made: a second call continues it."""
        same_plan = {run["run"] for run in self.before.get("runs", [])} & {job.run for job in self.jobs}
        return self.before["started"] if same_plan else time.strftime("%Y-%m-%dT%H:%M:%S%z")

    def totals(self, jobs: list[Job]) -> dict[str, float]:
        return {
            "runs": len(jobs),
            "seconds": round(sum(job.seconds for job in jobs), 1),
            "tokens": sum(job.cost.trained_tokens for job in jobs),
            "flops": sum(job.cost.flops for job in jobs),
            "flops_full_attention": sum(job.cost.flops_full for job in jobs),
            "disk_bytes": round(sum(job.cost.disk_bytes for job in jobs)),
        }

    def write(self, data: dict[str, Any] | None = None) -> None:
        """plan.json, with what earlier calls have left in it: when it started, its seconds, its data."""

        def public(arm: dict[str, Any]) -> dict[str, Any]:
            found = {"label": arm["arm"], "baseline": False, "description": ""} | arm
            return found | ({"tuned_from": self.tuned[arm["arm"]]} if arm["arm"] in self.tuned else {})

        def entry(job: Job) -> dict[str, Any]:
            kept = {"run": job.run, "cell": job.cell, "arm": job.arm, "seed": job.seed, "epochs": job.epochs}
            cost = {"predicted_seconds": round(job.seconds, 1), "flops": job.cost.flops, "params": job.cost.params}
            return kept | cost | {"branches": job.branches}

        def cell(cell: dict[str, Any]) -> dict[str, Any]:
            jobs = [job for job in self.jobs if job.cell == cell["cell"]]
            found = {"role": role_of(cell)} | {k: v for k, v in cell.items() if k != "overrides"}
            return found | {"predicted": self.totals(jobs)}

        again = self.before if self.started == self.before.get("started") else {}
        write_json(
            self.directory / "plan.json",
            {
                "study": self.command.name,
                "scale": self.command.scale,
                "command": self.command.shell,
                "started": self.started,
                "budget_minutes": self.settings.get("minutes"),
                "workers": self.workers,
                "hardware": {"machine": device.describe(), "cores": os.cpu_count()},
                "any_code": self.command.any_code or again.get("any_code", False),
                "data": joined(again.get("data", {}), data),
                "tuning": self.search.where if self.search else None,
                "base": self.settings["base"],
                "cells": [cell(c) for c in self.settings["cells"]],
                "arms": [public(arm) for arm in self.arms],
                "runs": [entry(job) for job in self.jobs],
                "dropped": [entry(job) for job in self.dropped],
                "totals": self.totals(self.jobs) | {"gpu_hours": round(self.gpu_hours, 3)},
                "seconds": again.get("seconds", {}),
            },
        )


def joined(before: dict[str, Any], now: dict[str, Any] | None) -> dict[str, Any]:
    """Fingerprints of the data: those of now, and of a cell's other arms what was known of them."""
    if now is None:
        return before
    known = {cell: of if isinstance(of, dict) else {} for cell, of in before.items()}
    return {cell: known.get(cell, {}) | of if isinstance(of, dict) else of for cell, of in now.items()}


def find_search(command: Command, folder: Path, settings: dict[str, Any]) -> Search | None:
    """The trials that decide the tuned arms of a scale: shipped beside it, or run here."""
    scale = settings.get("tuning")
    if scale is None:
        return None
    return tuning.find(folder / f"{scale}.json", Path(command.output_dir) / command.name / scale)
