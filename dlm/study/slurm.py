"""Tasks as SLURM jobs, one each, through submitit; a run of several GPUs gets one process per GPU from srun.

Nodes, GPUs and processes of a job follow from trainer.num_nodes and trainer.devices of its run; the `slurm:`
block holds the rest: cpus_per_task, mem_gb, timeout_min, and what sbatch knows (partition, account, qos,
constraint, array_parallelism, ...). `cluster: local` runs the jobs as processes of this machine, which proves the
machinery without SLURM. A pre-empted or timed-out job is queued again, and its run resumes; jobs that an earlier
call queued are waited for, not doubled.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.study.launch import Handle, Task, environment

SHARED = {"timeout_min", "mem_gb", "cpus_per_task"}
DERIVED = {"nodes", "gpus_per_node", "tasks_per_node"}
EVERYTHING = 10**6  # the queue's length is the cluster's business


@dataclass
class Training:
    """What a job does, on every rank: run the command, write to the log; asked to leave, queue the same again."""

    name: str
    command: list[str]
    log: Path

    def __call__(self) -> None:
        with open(self.log, "ab") as log:
            status = subprocess.call(self.command, env=environment(), stdout=log, stderr=log)
        if status:
            raise RuntimeError(f"{self.name} ended with status {status}")

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm:
    """A launcher that submits everything at once and leaves the order to the cluster."""

    capacity = EVERYTHING

    def __init__(self, folder: Path, settings: dict[str, Any], where: Path):
        try:
            import submitit
        except ImportError:
            raise UserError("launcher=slurm needs submitit: pip install 'dlm[cluster]'") from None
        cluster = settings.get("cluster", "slurm")
        if cluster == "slurm" and shutil.which("srun") is None:
            raise UserError("launcher=slurm submits to SLURM, but there is no srun on this machine")
        self.folder, self.book = folder, folder / "jobs.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.here = cluster != "slurm"
        if given := DERIVED & settings.keys():
            raise UserError(
                f"{where}: slurm: {', '.join(sorted(given))} follow from trainer.num_nodes and trainer.devices"
            )
        parameters = {key: value for key, value in settings.items() if key in SHARED}
        if not self.here:
            parameters |= {f"slurm_{k}": v for k, v in settings.items() if k not in SHARED | {"cluster"}}
        try:
            self.executor = submitit.AutoExecutor(folder / "%j", cluster=cluster)
            self.executor.update_parameters(**parameters)
        except (NameError, AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: slurm: {' '.join(str(error).split())}") from None

    def start(self, tasks: list[Task]) -> list[Handle]:
        """Submit what is not queued already, an array for each shape of job."""
        book: dict[str, str] = read_json(self.book) if self.book.is_file() else {}
        handles: list[Handle] = []
        new: list[Task] = []
        for task in tasks:
            queued = self.queued(book.get(task.name))
            if queued is None:
                new.append(task)
            else:
                handles.append(SlurmHandle(task, queued))
        for nodes, devices in sorted({(task.nodes, task.devices) for task in new}):
            alike = [task for task in new if (task.nodes, task.devices) == (nodes, devices)]
            handles += self.submit(alike, nodes, devices // nodes)
        return handles

    def submit(self, tasks: list[Task], nodes: int, per_node: int) -> list[Handle]:
        gpus = {"gpus_per_node": per_node} if tasks[0].on_gpu else {}
        self.executor.update_parameters(nodes=nodes, tasks_per_node=per_node, **gpus)
        jobs = []
        with self.executor.batch():
            for task in tasks:
                task.log.parent.mkdir(parents=True, exist_ok=True)
                jobs.append(self.executor.submit(Training(task.name, task.command, task.log.absolute())))
        book = read_json(self.book) if self.book.is_file() else {}
        write_json(self.book, book | {task.name: job.job_id for task, job in zip(tasks, jobs, strict=True)})
        print(f"  submitted {len(jobs)} jobs: {jobs[0].job_id} to {jobs[-1].job_id}", flush=True)
        return [SlurmHandle(task, job) for task, job in zip(tasks, jobs, strict=True)]

    def queued(self, job_id: str | None) -> Any:
        """The job of an earlier call, if it is still queued or running."""
        if job_id is None:
            return None
        job = self.executor._executor.job_class(folder=self.folder / "%j", job_id=job_id)
        return None if job.done(force_check=True) else job

    def stop(self, handles: list[Handle]) -> None:
        """Jobs stay with the cluster; only a machine's own processes end with the command."""
        left = [handle for handle in handles if isinstance(handle, SlurmHandle)]
        if self.here:
            for handle in left:
                handle.job.cancel(check=False)
        elif left:
            print(
                f"  {len(left)} jobs stay queued: the same command waits for them, scancel ends them", flush=True
            )


@dataclass
class SlurmHandle:
    task: Task
    job: Any

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        return 0 if self.job.exception() is None else 1
