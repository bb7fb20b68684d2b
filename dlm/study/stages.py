"""The stages of a study, each of which runs alone: data, plan, tune, train, evaluate, fit, report.

Every stage does only what is missing: a killed, interrupted or timed-out call is resumed by the same command.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dlm import config, device
from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.report.study import load_study
from dlm.study.calibrate import calibrate
from dlm.study.command import Command, load, study_file
from dlm.study.corpora import check_code, prepare
from dlm.study.evaluate import evaluate, launcher
from dlm.study.launch import Deadline, OutOfTime, Task, run_tasks
from dlm.study.plan import Job, Plan, find_search
from dlm.study.scale import TASK, read_scale, role_of
from dlm.study.table import show


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
            fit(command, file)
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


# --- train ------------------------------------------------------------------------------------------------------


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


# --- fit and report ---------------------------------------------------------------------------------------------


def fit(command: Command, file: Path) -> None:
    """Fit the laws to what is there, into fits.json; tasks have none."""
    from dlm.report.fits import fit_study  # scipy, which no other stage needs

    cells = read_scale(file, config.methods())["cells"]
    if all(role_of(cell) == TASK for cell in cells):
        if command.stage != "all":
            print(f"fits: none, every cell of {command.scale} is a task", flush=True)
        return
    fits = command.directory / "fits.json"
    write_json(fits, fit_study(load_study(command.directory)))
    print(f"fits: {fits}", flush=True)


def report(folder: Path, directory: Path) -> tuple[Path, list[str]]:
    """Build the study's own report; return the page and its verdict lines."""
    module = load(folder / "report.py")
    page = module.main(directory)
    return page, module.verdict_lines(read_json(directory / "results.json"))
