"""A study from plan to report: `python -m dlm.experiment name=super-data-learners scale=laptop`.

Every run is a process of its own, `workers` at a time with one thread each. A second call does only what is
missing; a failed run never costs another; the report shows what is there. A study that has a measure.py plans no
runs: it is a laboratory (dlm.laboratory).
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dlm import config, laboratory
from dlm.errors import UserError
from dlm.plan import Command, Job, Plan, load

START_SECONDS = 8.0  # of a process, its imports and its data


def calibrate(plan: Plan) -> None:
    """Predict every job's seconds from a few seconds of the real step of each arm, `workers` at once."""
    if not plan.settings.get("calibrate", True):
        for job in plan.jobs:
            job.seconds = plan.settings["seconds_per_run"]
        return
    pending = {job.arm: job for job in plan.jobs if not job.finished}
    measured: dict[str, dict[str, float]] = {}
    queue = list(pending.values())
    while queue:
        batch, queue = queue[: plan.workers], queue[plan.workers :]
        crowd = (batch * plan.workers)[: plan.workers]  # as crowded as the study itself will be
        command = [sys.executable, "-m", "dlm.speed"]
        running = [(job, start([*command, *job.overrides], text=True, stdout=-1, stderr=-1)) for job in crowd]
        for job, process in running:
            out, err = process.communicate()
            if process.returncode:
                raise UserError(
                    f"calibrating {job.arm} failed: {(err.strip().splitlines() or ['no message'])[-1]}"
                )
            measured[job.arm] = json.loads(out.strip().splitlines()[-1])
    for job in plan.jobs:
        if job.arm in measured:
            rate = measured[job.arm]
            job.scoring_seconds = job.scored_tokens / rate["scored_tokens_per_second"]
            job.seconds = START_SECONDS + job.tokens / rate["tokens_per_second"] + job.scoring_seconds


def train(plan: Plan) -> list[Job]:
    """Run what is missing, longest first; return the jobs that failed."""
    logs = plan.directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting = sorted((job for job in plan.jobs if not job.finished), key=lambda job: -job.seconds)
    running: list[tuple[Job, subprocess.Popen]] = []
    failed: list[Job] = []
    begin, shown = time.perf_counter(), 0.0
    total = sum(job.seconds for job in waiting) or 1.0
    todo = list(waiting)
    while waiting or running:
        while waiting and len(running) < plan.workers:
            job = waiting.pop(0)
            with open(logs / f"{job.run}.log", "ab") as log:
                command = [sys.executable, "-m", "dlm.train", *job.overrides]
                running.append((job, start(command, stdout=log, stderr=log)))
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


def report(plan: Plan) -> tuple[Path, list[str]]:
    """Build the study's own report; return the page and its verdict lines."""
    module = load(plan.folder / "report.py")
    page = module.main(plan.directory)
    results = json.loads((plan.directory / "results.json").read_text())
    return page, module.verdict_lines(results)


def start(command: list[str], **options: Any) -> subprocess.Popen:
    """A worker process; on Linux it ends with the runner even if that is killed, and leaves its run resumable."""
    follow = die_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, env=environment(), preexec_fn=follow, **options)


def die_with_parent() -> None:
    """prctl(PR_SET_PDEATHSIG, SIGTERM), in the child."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


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
    if laboratory.is_laboratory(command):
        laboratory.run(command)
    else:
        run_plan(command)


def run_plan(command: Command) -> None:
    """The stages of a study that is a plan of runs."""
    plan = Plan(command)
    started, spent = plan.earlier()
    begin = time.perf_counter()
    failed: list[Job] = []
    if command.stage != "report":
        try:
            plan.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {plan.directory}: {error.strerror}") from error
        calibrate(plan)
        plan.fit_budget()
        plan.show()
        spent["calibrate"] = spent.get("calibrate", 0) + time.perf_counter() - begin
        plan.write(started, spent)
    if command.stage == "all":
        trained = time.perf_counter()
        failed = train(plan)
        spent["train"] = spent.get("train", 0) + time.perf_counter() - trained
        spent["total"] = spent.get("total", 0) + time.perf_counter() - begin
        plan.write(started, spent)
    if command.stage != "plan":
        page, verdict = report(plan)
        print("\n".join(["", *verdict, "", f"report: {page}"]))
    if failed:
        names = ", ".join(job.run for job in failed)
        raise UserError(f"{len(failed)} of {len(plan.jobs)} runs failed ({names}); see {plan.directory / 'logs'}")


if __name__ == "__main__":
    config.entry(main)
