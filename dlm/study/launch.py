"""Many processes, so many at a time: on this machine here, on a cluster in slurm.py.

A launcher starts tasks and says how many may be under way; `run_tasks` keeps it busy, prints what ends and how
much time is left, and stops everything at a deadline or a signal. A task that fails costs no other.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

PATIENCE = 30.0  # seconds between asking a process to end and ending it
NEWS = 30.0  # seconds between two lines of progress


@dataclass
class Task:
    """A command to run. It has succeeded if it ended with status 0 and left what `done` looks for."""

    name: str
    command: list[str]
    log: Path
    done: Callable[[], bool]
    seconds: float = 1.0  # predicted
    progress: Callable[[], float] = field(default=lambda: 0.0)  # share of them that is over
    on_gpu: bool = False
    devices: int = 1  # over all nodes
    nodes: int = 1

    @property
    def last_line(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        return " ".join(text.strip().splitlines()[-1:])[:160]


class Handle(Protocol):
    task: Task

    def poll(self) -> int | None:
        """The exit status; None while the task is under way."""
        ...


class Launcher(Protocol):
    capacity: int

    def start(self, tasks: list[Task]) -> list[Handle]: ...

    def stop(self, handles: list[Handle]) -> None: ...


class Deadline:
    """So many minutes from now; None: never."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def passed(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end


class OutOfTime(Exception):
    """The deadline has passed; whatever was under way can be resumed."""


def run_tasks(tasks: list[Task], launcher: Launcher, deadline: Deadline) -> list[Task]:
    """Run all tasks, longest first; return those that failed.

    Raises:
        OutOfTime: at the deadline, after ending what was under way.
        KeyboardInterrupt: on SIGINT or SIGTERM, likewise.
    """
    waiting = sorted(tasks, key=lambda task: -task.seconds)
    running: list[Handle] = []
    failed: list[Task] = []
    begin = shown = time.monotonic()
    total = sum(task.seconds for task in tasks) or 1.0
    already = sum(task.seconds * task.progress() for task in tasks) / total  # of runs that are resumed
    with signals():
        try:
            while waiting or running:
                if deadline.passed:
                    raise OutOfTime
                free = launcher.capacity - len(running)
                if waiting and free > 0:
                    running += launcher.start(waiting[:free])
                    waiting = waiting[free:]
                for handle, status in [(h, h.poll()) for h in running]:
                    if status is None:
                        continue
                    running.remove(handle)
                    good = status == 0 and handle.task.done()
                    print(
                        f"  {'done  ' if good else 'FAILED'} {handle.task.name}: {handle.task.last_line}",
                        flush=True,
                    )
                    failed += [] if good else [handle.task]
                now = time.monotonic()
                if now - shown > NEWS:
                    shown = now
                    share = sum(task.seconds * task.progress() for task in tasks) / total
                    print(f"  {progress_line(now - begin, already, share)}", flush=True)
                time.sleep(0.2)
        finally:
            launcher.stop(running)
    return failed


def progress_line(elapsed: float, already: float, share: float) -> str:
    """How much is done and, once enough of it was done by this call, how much time is left."""
    gained = share - already
    left = f", about {elapsed * (1 - share) / gained / 60:.1f} minutes left" if gained > 0.02 else ""
    return f"{100 * share:3.0f} % after {elapsed / 60:.1f} minutes{left}"


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Local:
    """Processes of this machine, `workers` at a time; tasks of one GPU take the GPUs in turn and share them."""

    def __init__(self, workers: int):
        self.capacity = workers
        self.slots: dict[int, LocalHandle] = {}

    def start(self, tasks: list[Task]) -> list[Handle]:
        started: list[Handle] = []
        for task in tasks:
            slot = next(
                i for i in range(self.capacity) if i not in self.slots or self.slots[i].process.poll() is not None
            )
            task.log.parent.mkdir(parents=True, exist_ok=True)
            with open(task.log, "ab") as log:
                process = spawn(task.command, gpu_of(slot, task), stdout=log, stderr=log)
            self.slots[slot] = LocalHandle(task, process)
            started.append(self.slots[slot])
        return started

    def stop(self, handles: list[Handle]) -> None:
        """Ask the processes to end, and end those that do not; every run resumes from its last checkpoint."""
        alive = [handle.process for handle in handles if isinstance(handle, LocalHandle)]
        for process in alive:
            process.terminate()
        until = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in alive) and time.monotonic() < until:
            time.sleep(0.05)
        for process in alive:
            if process.poll() is None:
                process.kill()
                process.wait()


@dataclass
class LocalHandle:
    task: Task
    process: subprocess.Popen

    def poll(self) -> int | None:
        return self.process.poll()


def gpus() -> int:
    """How many GPUs this machine has."""
    return torch.cuda.device_count()


def gpu_of(slot: int, task: Task) -> dict[str, str]:
    """The GPU that a task of one device sees, where there are several."""
    if not (task.on_gpu and task.devices == 1 and gpus() > 1):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus())))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]}


def spawn(command: list[str], extra: dict[str, str], **options: Any) -> subprocess.Popen:
    """A worker process, out of reach of the terminal's Ctrl-C: the runner ends it. On Linux it ends with the
    runner even if that is killed, and leaves its run resumable."""
    follow = die_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(
        command, env=environment() | extra, preexec_fn=follow, start_new_session=True, **options
    )  # pyright: ignore


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
