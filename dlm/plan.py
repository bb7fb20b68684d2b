"""What a study will run: the product of its arms and cells, with predicted cost.

experiments/<name>/<scale>.yaml lists arms (a method with its settings) and cells (a data budget). Every job has a
stable run directory, named by what decides its numbers, so a second plan finds what the first has finished.
"""

import importlib.util
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dlm import config, device
from dlm.callbacks import evaluation_steps
from dlm.errors import UserError
from dlm.files import newest_row, read_json, write_json
from dlm.run import RunDirectory

STAGES = ("all", "plan", "report")
WHOLE_SPLIT = 300  # windows, roughly, where a split is scored whole: a prediction must not build the data


@dataclass
class Command:
    """The command line; each setting left out takes the value of the scale's file."""

    name: str = ""
    scale: str = "laptop"
    arms: str = ""  # further arms: names from the scale's file or of any method, separated by commas
    seeds: str = ""
    workers: int | None = None
    minutes: float | None = None  # drop runs from the end of the plan until it is predicted to fit
    stage: str = "all"
    output_dir: str = "outputs"


@dataclass
class Job:
    """One run of the plan."""

    run: str
    cell: str
    arm: str
    seed: int
    epochs: float
    overrides: list[str]
    path: Path
    tokens: float = 0.0
    scored_tokens: float = 0.0
    seconds: float = 0.0  # predicted
    scoring_seconds: float = 0.0  # the part of them that evaluations take

    @property
    def finished(self) -> bool:
        return RunDirectory(self.path).finished

    def progress(self) -> float:
        """Share of the predicted seconds that is done; evaluations lie evenly on the logarithm of the epochs."""
        if self.finished:
            return 1.0
        epoch = newest_row(RunDirectory(self.path).metrics).get("epoch", 0.0)
        scoring = self.scoring_seconds / max(self.seconds, 1e-9)
        evaluated = math.log(max(epoch, 1)) / math.log(max(self.epochs, 2))
        return min(0.99, (1 - scoring) * epoch / self.epochs + scoring * evaluated)


def study_file(command: Command) -> Path:
    """experiments/<name>/<scale>.yaml. Raises UserError if there is no such study, scale or stage."""
    experiments = config.bundled("experiments")
    folder = experiments / command.name
    known = sorted(p.parent.name for p in experiments.glob("*/report.py"))
    if not command.name or not (folder / "report.py").is_file():
        raise UserError(f"no experiment {command.name!r} in {experiments}; there are: {', '.join(known)}")
    file = folder / f"{command.scale}.yaml"
    if not file.is_file():
        scales = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"{command.name} has no scale {command.scale!r} ({file}); there are: {scales}")
    if command.stage not in STAGES:
        raise UserError(f"stage is one of {', '.join(STAGES)}, not {command.stage!r}")
    return file


def load(path: Path) -> Any:
    """A study's own Python file as a module (its folder's name is no identifier).

    It may import its neighbours in the folder by their plain names; those are forgotten again afterwards, so that
    two studies can use the same ones.
    """
    spec = importlib.util.spec_from_file_location(f"dlm_{path.stem}_{path.parent.name.replace('-', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        for neighbour in {p.stem for p in path.parent.glob("*.py")} & set(sys.modules):
            del sys.modules[neighbour]
    return module


def whole_numbers(name: str, text: str) -> list[int]:
    """ "0,3" as [0, 3]. Raises UserError."""
    if not all(s.isdecimal() for s in text.split(",")):
        raise UserError(f"{name} are whole numbers separated by commas, not {text!r}")
    return sorted({int(s) for s in text.split(",")})


class Plan:
    """A study at one scale: its file, its jobs, its directory."""

    def __init__(self, command: Command):
        file = study_file(command)
        self.command, self.folder, self.file = command, file.parent, file
        self.settings = yaml.safe_load(file.read_text())
        self.directory = Path(command.output_dir) / command.name / command.scale
        self.workers = command.workers or self.settings.get("workers", 1)
        if command.workers is not None and command.workers < 1:
            raise UserError(f"workers must be at least 1, not {command.workers}")
        if command.minutes is not None and command.minutes <= 0:
            raise UserError(f"minutes must be positive, not {command.minutes:g}")
        self.arms = self._arms()
        self.jobs = self._jobs()
        self.dropped: list[Job] = []

    def _arms(self) -> list[dict[str, Any]]:
        arms = list(self.settings["arms"])
        optional = {arm["arm"]: arm for arm in self.settings.get("optional_arms", [])}
        methods = {p.stem for p in (config.bundled("conf") / "method").glob("*.yaml")}
        for name in filter(None, self.command.arms.split(",")):
            if name in {arm["arm"] for arm in arms}:
                continue
            if name not in optional and name not in methods:
                raise UserError(
                    f"no arm {name!r}: neither in {self.file} nor a method ({', '.join(sorted(methods))})"
                )
            plain = {"arm": name, "label": name, "baseline": False, "overrides": [f"method={name}"]}
            arms.append(optional.get(name, plain))
        return arms

    def _jobs(self) -> list[Job]:
        seeds = self.settings["seeds"]
        if self.command.seeds:
            seeds = whole_numbers("seeds", self.command.seeds)
        jobs = []
        with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
            for cell in self.settings["cells"]:
                for arm in self.arms:
                    epochs = cell["epochs"].get(arm["arm"], cell["epochs"]["default"])
                    for seed in seeds:
                        jobs.append(self._job(cell, arm, seed, epochs))
        return jobs

    def _job(self, cell: dict[str, Any], arm: dict[str, Any], seed: int, epochs: float) -> Job:
        overrides = [
            *self.settings["base"],
            *arm["overrides"],
            *cell.get("overrides", []),
            f"study={self.command.name}",
            f"scale={self.command.scale}",
            f"cell={cell['cell']}",
            f"arm={arm['arm']}",
            f"seed={seed}",
            f"epochs={epochs}",
            f"output_dir={self.command.output_dir}",
        ]
        cfg = compose("config", overrides=overrides)
        job = Job(config.run_name(cfg), cell["cell"], arm["arm"], seed, epochs, overrides, config.run_path(cfg))
        unique = cell["unique_tokens"] // cfg.seq_len * cfg.seq_len
        job.tokens = unique * epochs
        steps_per_epoch = unique / cfg.seq_len / cfg.batch_size
        job.scored_tokens = self._scored(cfg, math.ceil(epochs * steps_per_epoch), steps_per_epoch)
        return job

    @staticmethod
    def _scored(cfg: DictConfig, steps: int, steps_per_epoch: float) -> float:
        """Tokens that evaluations push through the network."""
        e = cfg.evaluation
        exact = cfg.method["_target_"].endswith("AutoregressiveLM")
        points = len(evaluation_steps(steps, steps_per_epoch, e.per_octave, e.first_epoch))
        curve = points * 2 * (e.windows or WHOLE_SPLIT) * (1 if exact else e.draws)
        final = (e.final_windows or WHOLE_SPLIT) * (1 if exact else e.final_draws)
        in_order = 0 if exact else (e.left_to_right_windows or WHOLE_SPLIT) * (cfg.seq_len + e.final_draws)
        return (curve + final + in_order) * cfg.seq_len

    def fit_budget(self) -> None:
        """With `minutes=`, drop runs from the end of the plan until the rest is predicted to fit; say which."""
        if self.command.minutes is None:
            return
        while self.jobs and self.predicted_seconds > 60 * self.command.minutes:
            self.dropped.append(self.jobs.pop())

    @property
    def predicted_seconds(self) -> float:
        """Wall time of the plan: no worker can finish before its longest run."""
        left = [job.seconds for job in self.jobs if not job.finished]
        return max(sum(left) / self.workers, max(left, default=0.0))

    def earlier(self) -> tuple[str, dict[str, float]]:
        """When this plan was first started, and the seconds its stages have taken so far: a second call adds."""
        file = self.directory / "plan.json"
        if file.is_file():
            plan = read_json(file)
            if {run["run"] for run in plan["runs"]} & {job.run for job in self.jobs}:
                return plan["started"], plan["seconds"]
        return time.strftime("%Y-%m-%dT%H:%M:%S%z"), {}

    def show(self) -> None:
        print(f"{self.command.name}, scale {self.command.scale}: {len(self.jobs)} runs, {self.workers} at a time")
        for job in self.jobs:
            state = "finished" if job.finished else f"about {job.seconds:.0f} s"
            print(f"  {job.cell:<14} {job.arm:<14} seed {job.seed}  {job.epochs:>5g} epochs  {state}")
        for job in self.dropped:
            print(
                f"  {job.cell:<14} {job.arm:<14} seed {job.seed}  DROPPED to fit minutes={self.command.minutes:g}"
            )
        budget = self.settings.get("minutes")
        over = f"; more than the {budget} minutes this scale is meant for, and run whole all the same"
        print(
            f"predicted: {self.predicted_seconds / 60:.1f} minutes"
            + (over if budget and self.predicted_seconds > 60 * budget else ""),
            flush=True,
        )

    def write(self, started: str, seconds: dict[str, float]) -> None:
        def public(arm: dict[str, Any]) -> dict[str, Any]:
            return {"label": arm["arm"], "baseline": False, "description": ""} | arm

        def entry(job: Job) -> dict[str, Any]:
            return {
                "run": job.run,
                "cell": job.cell,
                "arm": job.arm,
                "seed": job.seed,
                "epochs": job.epochs,
                "predicted_seconds": round(job.seconds, 1),
            }

        write_json(
            self.directory / "plan.json",
            {
                "study": self.command.name,
                "scale": self.command.scale,
                "command": f"make experiment NAME={self.command.name} SCALE={self.command.scale}"
                + (f" ARMS={self.command.arms}" if self.command.arms else "")
                + (f" SEEDS={self.command.seeds}" if self.command.seeds else ""),
                "started": started,
                "budget_minutes": self.settings.get("minutes"),
                "workers": self.workers,
                "hardware": {"machine": device.describe(), "cores": os.cpu_count()},
                "cells": [{k: v for k, v in c.items() if k != "overrides"} for c in self.settings["cells"]],
                "arms": [public(arm) for arm in self.arms],
                "runs": [entry(job) for job in self.jobs],
                "dropped": [entry(job) for job in self.dropped],
                "seconds": {k: round(v, 1) for k, v in seconds.items()},
            },
        )
