"""A Hydra launcher that gives every job of a sweep its own process: `hydra/launcher=process`.

Lightning starts the other ranks of a job by running the command line again; inside an in-process sweep that
command line is the whole sweep. Here each job is a plain single run, whose command line is safe to repeat. (Hydra
finds its plugins in this namespace only, hence the folder.)
"""

import subprocess
import sys
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dlm.errors import UserError


class ProcessLauncher(Launcher):
    """Runs `python -m dlm.train <overrides>` once per job; a failing job does not stop the others."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        results = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            chosen = list(filter_overrides(overrides))
            print(f"job {number}: {' '.join(chosen)}", flush=True)
            command = [sys.executable, "-m", "dlm.train", *chosen, "hydra/launcher=basic"]
            code = subprocess.run(command, check=False).returncode
            result = JobReturn(overrides=chosen, status=JobStatus.COMPLETED if code == 0 else JobStatus.FAILED)
            result.return_value = None if code == 0 else UserError(f"exit status {code}: {' '.join(command)}")
            results.append(result)
        return results
