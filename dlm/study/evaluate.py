"""What is done with finished runs, once, in processes of their own: measures, and the decoding of tasks."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from dlm import config
from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.run import RunDirectory
from dlm.study.command import Command
from dlm.study.decoding import about, decodings, seconds_of, spelled
from dlm.study.launch import Deadline, Launcher, Local, Task, gpus, run_tasks
from dlm.study.scale import read_scale
from dlm.study.slurm import Slurm

MEASURED = "measured.json"  # in a run's directory: which measures have been taken of which checkpoints


def launcher(command: Command, settings: dict[str, Any], workers: int, file: Path) -> Launcher:
    if command.launcher == "local":
        return Local(workers)
    return Slurm(command.directory / "jobs", settings.get("slurm", {}), file)


def evaluate(command: Command, file: Path, deadline: Deadline) -> list[Task]:
    """Measure and decode every finished run of the plan that has not been yet; return what failed."""
    settings = read_scale(file, config.methods())
    plan = read_json(command.directory / "plan.json")
    if "runs" not in plan:
        raise UserError(f"{command.directory / 'plan.json'}: has no 'runs'")
    finished = [run for run in plan["runs"] if directory_of(command, run).finished]
    tasks = [*measuring(command, settings, finished), *decoding(command, settings, finished)]
    if not tasks:
        return []
    workers = command.workers or settings.get("workers", 1)
    return run_tasks(tasks, launcher(command, settings, workers, file), deadline)


def directory_of(command: Command, run: dict[str, Any]) -> RunDirectory:
    return RunDirectory(command.directory / "runs" / run["run"])


def measuring(command: Command, settings: dict[str, Any], runs: list[dict[str, Any]]) -> list[Task]:
    """The measures of `evaluate` that are missing."""
    wanted = dict(settings.get("evaluate", {}))
    if not wanted:
        return []
    seeds, seconds = wanted.pop("seeds", None), wanted.pop("seconds", 1.0)
    arguments = [f"{key}={spelled(value)}" for key, value in wanted.items()]
    tasks = []
    for run in runs:
        directory = directory_of(command, run)
        if (seeds is None or run["seed"] in seeds) and not measured(directory, arguments):
            line = [sys.executable, "-m", "dlm.measure", f"run={directory.path}", *arguments]
            log = command.directory / "logs" / f"{run['run']}.measure.log"
            done, progress = partial(note, directory, arguments), partial(share, directory, arguments)
            tasks.append(Task(run["run"], line, log, done, seconds, progress, on_gpu=on_gpu(command, directory)))
    if tasks:
        print(f"measures of {len(tasks)} runs: {' '.join(arguments)}", flush=True)
    return tasks


def decoding(command: Command, settings: dict[str, Any], runs: list[dict[str, Any]]) -> list[Task]:
    """The blocks of `decode` that runs have not been through."""
    tasks = []
    for run in runs:
        directory = directory_of(command, run)
        for one in decodings(directory, about(settings["decode"], run["cell"], run["arm"], run["seed"])):
            if not one.done():
                line = [sys.executable, "-m", *one.line()]
                log, seconds = command.directory / "logs" / f"{one.name}.log", seconds_of(one.blocks) or 1.0
                task = Task(one.name, line, log, one.note, seconds, lambda one=one: float(one.done()))
                task.on_gpu = on_gpu(command, directory)
                tasks.append(task)
    if tasks:
        print(f"decoding by {len(tasks)} processes", flush=True)
    return tasks


def on_gpu(command: Command, run: RunDirectory) -> bool:
    """Whether measures need a GPU: here, if there is one; as a job, if the run was trained on one."""
    return bool(gpus()) if command.launcher == "local" else run.read_config()["trainer"]["accelerator"] != "cpu"


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
