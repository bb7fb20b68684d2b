"""The stages of a study, each of which runs alone: data, plan, tune, train, evaluate, fit, report.

Every stage does only what is missing: a killed, interrupted or timed-out call is resumed by the same command.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dlm import config, device
from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.report.study import load_study
from dlm.run import RunDirectory
from dlm.study.calibrate import calibrate
from dlm.study.command import Command, load, study_file
from dlm.study.corpora import check_code, prepare
from dlm.study.launch import Deadline, Launcher, Local, OutOfTime, Task, gpus, run_tasks
from dlm.study.plan import Job, Plan, find_search
from dlm.study.scale import read_scale
from dlm.study.slurm import Slurm
from dlm.study.table import show

MEASURED = "measured.json"  # in a run's directory: which measures have been taken of which checkpoints


def run_study(command: Command) -> None:
    """Do the stages that the command asks for.

    Raises:
        UserError: for whatever its reader can mend, and at the end if runs failed.
        KeyboardInterrupt: on SIGINT or SIGTERM, with every process ended and every run resumable.
    """
    file = study_file(command)
    deadline = Deadline(command.limit)
    try:
        failed = do_stages(command, file, deadline)
    except OutOfTime:
        limit = f" LIMIT={command.limit:g}"
        print(
            f"stopped after {command.limit:g} minutes; resume with the same command: {command.shell}{limit}",
            flush=True,
        )
        return
    if failed:
        names = ", ".join(task.name for task in failed)
        planned = len(read_json(command.directory / "plan.json")["runs"])
        raise UserError(f"{len(failed)} of {planned} runs failed ({names}); see {command.directory / 'logs'}")


def do_stages(command: Command, file: Path, deadline: Deadline) -> list[Task]:
    stages, failed = command.stages, []
    if {"data", "plan", "tune", "train"} & set(stages):
        make_directory(command.directory)
    if "tune" in stages:
        Plan(command, dry=True)  # a mistake in the command is found before the search, not after it
        tune(command, deadline)
    if {"data", "plan", "train"} & set(stages):
        plan = Plan(command, dry="train" not in stages)
        fingerprints = prepare(plan, quiet="data" not in stages) if {"data", "train"} & set(stages) else None
        if {"plan", "train"} & set(stages):
            show_search(plan)
            with clocked(command.directory, "calibrate"):
                calibrate(plan)
                plan.fit_budget()
                show(plan)
                plan.write(fingerprints)
        if "train" in stages:
            check_code(plan)
            with clocked(command.directory, "train"):
                failed += train(plan, deadline)
    if "evaluate" in stages:
        with clocked(command.directory, "evaluate"):
            failed += evaluate(command, file, deadline)
    if "fit" in stages:
        with clocked(command.directory, "fit"):
            fit(command.directory)
    if "report" in stages:
        page, verdict = report(file.parent, command.directory)
        print("\n".join(["", *verdict, "", f"report: {page}"]))
    return failed


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error


@contextmanager
def clocked(directory: Path, stage: str) -> Iterator[None]:
    """Add the seconds of a stage to those that plan.json has of earlier calls."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        if (directory / "plan.json").is_file():
            plan = read_json(directory / "plan.json")
            for key in (stage, "total"):
                plan["seconds"][key] = round(plan["seconds"].get(key, 0) + time.perf_counter() - begin, 1)
            write_json(directory / "plan.json", plan)


# --- plan -------------------------------------------------------------------------------------------------------


def show_search(plan: Plan) -> None:
    """In a dry run, the search that tuned arms wait for is part of what will be run."""
    if "" in plan.tuned.values():
        search = Plan(search_command(plan.command, plan.settings["tuning"]), dry=True)
        search.settings |= {k: plan.settings[k] for k in ("calibrate", "seconds_per_run") if k in plan.settings}
        calibrate(search)
        show(search, briefly=True)


# --- tune -------------------------------------------------------------------------------------------------------


def search_command(command: Command, scale: str) -> Command:
    return replace(command, scale=scale, arms="", only="", seeds="", minutes=None, stage="train")


def tune(command: Command, deadline: Deadline) -> None:
    """Run the search that the scale's tuned arms wait for, unless its trials are there or ship with the study."""
    file = study_file(command)
    settings = read_scale(file, config.methods())
    search = find_search(command, file.parent, settings)
    if "tuning" not in settings or (search is not None and not search.missing):
        return
    inner = search_command(command, settings["tuning"])
    if failed := do_stages(inner, study_file(inner), deadline):
        raise UserError(f"{len(failed)} trials of {settings['tuning']} failed; see {inner.directory / 'logs'}")


# --- train and evaluate -----------------------------------------------------------------------------------------


def launcher(command: Command, settings: dict[str, Any], workers: int, file: Path) -> Launcher:
    if command.launcher == "local":
        return Local(workers)
    return Slurm(command.directory / "jobs", settings.get("slurm", {}), file)


def train(plan: Plan, deadline: Deadline) -> list[Task]:
    """Run what is missing, longest first; return what failed."""

    def task(job: Job) -> Task:
        return Task(
            job.run,
            [sys.executable, "-m", "dlm.train", *job.overrides],
            plan.directory / "logs" / f"{job.run}.log",
            lambda: job.finished,
            job.seconds,
            job.progress,
            job.cost.on_gpu,
            job.cost.devices,
            job.cost.nodes,
        )

    tasks = [task(job) for job in plan.pending]
    if not tasks:
        return []
    if plan.command.launcher == "local" and any(t.on_gpu for t in tasks):
        device.check_accelerator("gpu", max(t.devices for t in tasks))
    return run_tasks(tasks, launcher(plan.command, plan.settings, plan.workers, plan.file), deadline)


def evaluate(command: Command, file: Path, deadline: Deadline) -> list[Task]:
    """Take the measures of every finished run that has not got them; return what failed."""
    settings = read_scale(file, config.methods())
    wanted = dict(settings.get("evaluate", {}))
    if not wanted:
        return []
    seeds, seconds = wanted.pop("seeds", None), wanted.pop("seconds", 1.0)
    arguments = [f"{key}={spelled(value)}" for key, value in wanted.items()]
    tasks = []
    plan = read_json(command.directory / "plan.json")
    if "runs" not in plan:
        raise UserError(f"{command.directory / 'plan.json'}: has no 'runs'")
    for run in plan["runs"]:
        directory = RunDirectory(command.directory / "runs" / run["run"])
        if directory.finished and (seeds is None or run["seed"] in seeds) and not measured(directory, arguments):
            line = [sys.executable, "-m", "dlm.measure", f"run={directory.path}", *arguments]
            log = command.directory / "logs" / f"{run['run']}.measure.log"
            done, progress = partial(note, directory, arguments), partial(share, directory, arguments)
            tasks.append(Task(run["run"], line, log, done, seconds, progress, on_gpu=on_gpu(command, directory)))
    if not tasks:
        return []
    print(f"measures of {len(tasks)} runs: {' '.join(arguments)}", flush=True)
    workers = command.workers or settings.get("workers", 1)
    return run_tasks(tasks, launcher(command, settings, workers, file), deadline)


def on_gpu(command: Command, run: RunDirectory) -> bool:
    """Whether measures need a GPU: here, if there is one; as a job, if the run was trained on one."""
    return bool(gpus()) if command.launcher == "local" else run.read_config()["trainer"]["accelerator"] != "cpu"


def spelled(value: Any) -> str:
    """A YAML value as the command line of a measure has it."""
    if isinstance(value, list):
        return ",".join(spelled(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def asked(run: RunDirectory, arguments: list[str]) -> dict[str, str]:
    """What decides whether measures are still those that would be taken now."""
    checkpoints = " ".join(run.checkpoints)
    return {"arguments": " ".join(arguments), "checkpoints": checkpoints}


def measured(run: RunDirectory, arguments: list[str]) -> bool:
    file = run.path / MEASURED
    return file.is_file() and read_json(file) == asked(run, arguments)


def share(run: RunDirectory, arguments: list[str]) -> float:
    return float(measured(run, arguments))


def note(run: RunDirectory, arguments: list[str]) -> bool:
    """Remember that a run's measures are taken; False if there are none."""
    if not (run.path / "measures.jsonl").is_file():
        return False
    write_json(run.path / MEASURED, asked(run, arguments))
    return True


# --- fit and report ---------------------------------------------------------------------------------------------


def fit(directory: Path) -> None:
    """Fit the laws to what is there, into fits.json."""
    from dlm.report.fits import fit_study  # scipy, which no other stage needs

    write_json(directory / "fits.json", fit_study(load_study(directory)))
    print(f"fits: {directory / 'fits.json'}", flush=True)


def report(folder: Path, directory: Path) -> tuple[Path, list[str]]:
    """Build the study's own report; return the page and its verdict lines."""
    module = load(folder / "report.py")
    page = module.main(directory)
    return page, module.verdict_lines(read_json(directory / "results.json"))
