"""A study from plan to report: `python -m dlm.experiment name=super-data-learners scale=laptop`.

experiments/<name>/<scale>.yaml lists arms (a method with its settings) and cells (a data budget); their product is
the plan. Every run is a process of its own with a stable directory, `workers` at a time with one thread each. A
second call does only what is missing; a failed run never costs another; the report shows what is there.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dlm import config, device
from dlm.errors import UserError
from dlm.run import RunDirectory, write_json

STAGES = ("all", "plan", "report")


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
    flops_per_token: float = 0.0
    seconds: float = 0.0  # predicted

    def progress(self) -> float:
        """Share of the predicted work that is done."""
        directory = RunDirectory(self.path)
        if directory.finished:
            return 1.0
        if not directory.metrics.is_file():
            return 0.0
        for line in reversed(directory.metrics.read_text().splitlines()):
            if line.endswith("}"):
                return min(0.99, json.loads(line)["epoch"] / self.epochs)
        return 0.0


class Study:
    """A study at one scale: its file, its jobs, its directory."""

    def __init__(self, command: Command):
        folder = config.bundled("experiments") / command.name
        known = sorted(p.parent.name for p in config.bundled("experiments").glob("*/report.py"))
        if not command.name or not (folder / "report.py").is_file():
            raise UserError(f"no experiment {command.name!r} in {folder.parent}; there are: {', '.join(known)}")
        file = folder / f"{command.scale}.yaml"
        if not file.is_file():
            scales = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
            raise UserError(f"{command.name} has no scale {command.scale!r} ({file}); there are: {scales}")
        if command.stage not in STAGES:
            raise UserError(f"stage is one of {', '.join(STAGES)}, not {command.stage!r}")
        self.command, self.folder, self.file = command, folder, file
        self.plan_file = yaml.safe_load(file.read_text())
        self.directory = Path(command.output_dir) / command.name / command.scale
        self.workers = command.workers or self.plan_file.get("workers", 1)
        if command.workers is not None and command.workers < 1:
            raise UserError(f"workers must be at least 1, not {command.workers}")
        if command.minutes is not None and command.minutes <= 0:
            raise UserError(f"minutes must be positive, not {command.minutes:g}")
        self.arms = self._arms()
        self.jobs = self._jobs()
        self.dropped: list[Job] = []

    def _arms(self) -> list[dict[str, Any]]:
        arms = list(self.plan_file["arms"])
        optional = {arm["arm"]: arm for arm in self.plan_file.get("optional_arms", [])}
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
        seeds = self.plan_file["seeds"]
        if self.command.seeds:
            if not all(s.isdecimal() for s in self.command.seeds.split(",")):
                raise UserError(f"seeds are whole numbers separated by commas, not {self.command.seeds!r}")
            seeds = [int(s) for s in self.command.seeds.split(",")]
        jobs = []
        with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
            for cell in self.plan_file["cells"]:
                for arm in self.arms:
                    epochs = cell["epochs"].get(arm["arm"], cell["epochs"]["default"])
                    for seed in seeds:
                        jobs.append(self._job(cell, arm, seed, epochs))
        return jobs

    def _job(self, cell: dict[str, Any], arm: dict[str, Any], seed: int, epochs: float) -> Job:
        overrides = [
            *self.plan_file["base"],
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
        job.scored_tokens = self._scored(cfg, epochs)
        return job

    @staticmethod
    def _scored(cfg: DictConfig, epochs: float) -> float:
        """Tokens that evaluations push through the network."""
        e = cfg.evaluation
        exact = cfg.method["_target_"].endswith("AutoregressiveLM")
        points = e.per_octave * max(epochs, 1).bit_length() if isinstance(epochs, int) else e.per_octave * 8
        curve = points * 2 * (e.windows or 300) * (1 if exact else e.draws)
        final = (e.final_windows or 300) * (1 if exact else e.final_draws)
        in_order = 0 if exact else (e.left_to_right_windows or 300) * (cfg.seq_len + e.final_draws)
        return (curve + final + in_order) * cfg.seq_len

    # -- stages -------------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Predict every job's seconds from a few seconds of the real step of each arm, `workers` at once."""
        if not self.plan_file.get("calibrate", True):
            for job in self.jobs:
                job.seconds = self.plan_file["seconds_per_run"]
            return
        pending = {job.arm: job for job in self.jobs if not RunDirectory(job.path).finished}
        measured: dict[str, dict[str, float]] = {}
        queue = list(pending.values())
        while queue:
            batch, queue = queue[: self.workers], queue[self.workers :]
            crowd = (batch * self.workers)[: self.workers]  # as crowded as the study itself will be
            command = [sys.executable, "-m", "dlm.speed"]
            running = [
                (
                    job,
                    subprocess.Popen(
                        [*command, *job.overrides], env=environment(), text=True, stdout=-1, stderr=-1
                    ),
                )
                for job in crowd
            ]
            for job, process in running:
                out, err = process.communicate()
                if process.returncode:
                    raise UserError(
                        f"calibrating {job.arm} failed: {(err.strip().splitlines() or ['no message'])[-1]}"
                    )
                measured[job.arm] = json.loads(out.strip().splitlines()[-1])
        for job in self.jobs:
            if job.arm in measured:
                rate = measured[job.arm]
                job.flops_per_token = rate["flops_per_token"]
                training = job.tokens / rate["tokens_per_second"]
                job.seconds = 8 + training + job.scored_tokens / rate["scored_tokens_per_second"]

    def fit_budget(self) -> None:
        """With `minutes=`, drop runs from the end of the plan until the rest is predicted to fit; say which."""
        if self.command.minutes is None:
            return
        while self.jobs and self.predicted_seconds > 60 * self.command.minutes:
            self.dropped.append(self.jobs.pop())

    @property
    def predicted_seconds(self) -> float:
        """Wall time of the plan: no worker can finish before its longest run."""
        left = [job.seconds for job in self.jobs]
        return max(sum(left) / self.workers, max(left, default=0.0))

    def print_plan(self) -> None:
        print(f"{self.command.name}, scale {self.command.scale}: {len(self.jobs)} runs, {self.workers} at a time")
        for job in self.jobs:
            state = "finished" if RunDirectory(job.path).finished else f"about {job.seconds:.0f} s"
            print(f"  {job.cell:<14} {job.arm:<14} seed {job.seed}  {job.epochs:>5g} epochs  {state}")
        for job in self.dropped:
            print(
                f"  {job.cell:<14} {job.arm:<14} seed {job.seed}  DROPPED to fit minutes={self.command.minutes:g}"
            )
        budget = self.plan_file.get("minutes")
        over = f"; more than the {budget} minutes this scale is meant for, and run whole all the same"
        print(
            f"predicted: {self.predicted_seconds / 60:.1f} minutes"
            + (over if budget and self.predicted_seconds > 60 * budget else ""),
            flush=True,
        )

    def write_plan(self, started: str, seconds: dict[str, float]) -> None:
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
                "budget_minutes": self.plan_file.get("minutes"),
                "workers": self.workers,
                "hardware": {"machine": device.describe(), "cores": os.cpu_count()},
                "cells": [{k: v for k, v in c.items() if k != "overrides"} for c in self.plan_file["cells"]],
                "arms": [public(arm) for arm in self.arms],
                "runs": [entry(job) for job in self.jobs],
                "dropped": [entry(job) for job in self.dropped],
                "seconds": {k: round(v, 1) for k, v in seconds.items()},
            },
        )

    def train(self) -> list[Job]:
        """Run what is missing, longest first; return the jobs that failed."""
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        waiting = sorted((j for j in self.jobs if not RunDirectory(j.path).finished), key=lambda j: -j.seconds)
        running: list[tuple[Job, subprocess.Popen]] = []
        failed: list[Job] = []
        begin, shown = time.perf_counter(), 0.0
        total = sum(job.seconds for job in waiting) or 1.0
        todo = list(waiting)
        while waiting or running:
            while waiting and len(running) < self.workers:
                job = waiting.pop(0)
                with open(logs / f"{job.run}.log", "ab") as log:
                    command = [sys.executable, "-m", "dlm.train", *job.overrides]
                    running.append((job, subprocess.Popen(command, env=environment(), stdout=log, stderr=log)))
            for job, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((job, process))
                last = (logs / f"{job.run}.log").read_text(errors="replace").strip().splitlines()[-1:]
                print(
                    f"  {'done  ' if process.returncode == 0 else 'FAILED'} {job.run}: {' '.join(last)[:160]}",
                    flush=True,
                )
                failed += [job] if process.returncode else []
            elapsed = time.perf_counter() - begin
            if elapsed - shown > 30:
                shown = elapsed
                done = sum(job.seconds * job.progress() for job in todo) / total
                left = f", about {elapsed * (1 - done) / done / 60:.1f} minutes left" if done > 0.02 else ""
                print(f"  {100 * done:3.0f} % after {elapsed / 60:.1f} minutes{left}", flush=True)
            time.sleep(0.2)
        return failed

    def report(self) -> tuple[Path, list[str]]:
        """Build the study's own report; return the page and its verdict lines."""
        module = load_report(self.folder / "report.py")
        page = module.main(self.directory)
        results = json.loads((self.directory / "results.json").read_text())
        return page, module.verdict_lines(results)


def load_report(path: Path) -> Any:
    """A study's report.py as a module (its folder's name is no identifier)."""
    spec = importlib.util.spec_from_file_location(f"dlm_report_{path.parent.name.replace('-', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def environment() -> dict[str, str]:
    """One thread per process: several small runs side by side beat one run on several threads. And a heap that
    keeps what it has: glibc otherwise returns every large activation to the kernel and faults it in again, which
    costs a tenth of a training step and a third of a scoring pass (other C libraries ignore these)."""
    heap = {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "MALLOC_TOP_PAD_": str(2**26),
    }
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | heap


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    study = Study(command)
    started, begin = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
    seconds: dict[str, float] = {}
    failed: list[Job] = []
    if command.stage != "report":
        try:
            study.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {study.directory}: {error.strerror}") from error
        study.calibrate()
        study.fit_budget()
        study.print_plan()
        seconds["calibrate"] = time.perf_counter() - begin
        study.write_plan(started, seconds)
    if command.stage == "all":
        trained = time.perf_counter()
        failed = study.train()
        seconds["train"] = time.perf_counter() - trained
        seconds["total"] = time.perf_counter() - begin
        study.write_plan(started, seconds)
    if command.stage != "plan":
        page, verdict = study.report()
        print("\n".join(["", *verdict, "", f"report: {page}"]))
    if failed:
        names = ", ".join(job.run for job in failed)
        raise UserError(
            f"{len(failed)} of {len(study.jobs)} runs failed ({names}); see {study.directory / 'logs'}"
        )


if __name__ == "__main__":
    config.entry(main)
