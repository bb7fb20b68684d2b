"""Predicted seconds: from the measured speed of each network, or from what the scale assumes of a device that is
not here."""

import json
import sys
import time

from dlm import device
from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.study.launch import gpus, spawn
from dlm.study.plan import Plan

LAPS_SECONDS = 6.0  # of a calibration, the part that is not its start


def calibrate(plan: Plan) -> None:
    """Predict every job's seconds: from a few seconds of the real step of each network, `workers` at once, kept in
    speeds.json; or from the FLOP/s that the scale assumes, where the device is not here."""
    if not plan.settings.get("calibrate", True):
        for job in plan.jobs:
            job.seconds = plan.settings["seconds_per_run"]
        return
    away = plan.command.launcher == "slurm" or (any(job.cost.on_gpu for job in plan.jobs) and not gpus())
    if away:
        plan.assumed = assumed = plan.settings.get("assume", {}).get("flops_per_second", 0.0)
        if not assumed:
            raise UserError(f"{plan.file}: without the device here, costs need assume: {{flops_per_second: ...}}")
        rates = {job.cost.speed_key: job.cost.assumed_rate(assumed / plan.sharing) for job in plan.jobs}
    else:
        rates = measured_rates(plan)
    for job in plan.jobs:
        if job.cost.speed_key in rates:  # what is finished is not measured
            job.seconds, job.scoring_seconds = job.cost.seconds(rates[job.cost.speed_key])


def measured_rates(plan: Plan) -> dict[str, dict[str, float]]:
    """{speed_key: tokens per second} of what is pending, as crowded as the study itself will be."""
    file, here = plan.directory / "speeds.json", f"{device.describe()}, {plan.workers} at a time"
    known = read_json(file).get(here, {}) if file.is_file() else {}
    queue = list({job.cost.speed_key: job for job in plan.pending if job.cost.speed_key not in known}.values())
    if any(job.cost.on_gpu for job in queue):
        print(f"  measuring the speed of {len(queue)} networks", flush=True)
    while queue:
        batch, queue = queue[: plan.workers], queue[plan.workers :]
        crowd = (batch * plan.workers)[: plan.workers]
        command = [sys.executable, "-m", "dlm.speed"]
        begin = time.monotonic()
        running = [(job, spawn([*command, *job.overrides], {}, text=True, stdout=-1, stderr=-1)) for job in crowd]
        for job, process in running:
            out, err = process.communicate()
            if process.returncode:
                raise UserError(
                    f"calibrating {job.arm} failed: {(err.strip().splitlines() or ['no message'])[-1]}"
                )
            rate = json.loads(out.strip().splitlines()[-1])
            if job.cost.on_gpu:  # compiling takes its time
                rate["start_seconds"] = round(max(time.monotonic() - begin - LAPS_SECONDS, 0), 1)
            known[job.cost.speed_key] = rate
        plan.directory.mkdir(parents=True, exist_ok=True)
        write_json(file, (read_json(file) if file.is_file() else {}) | {here: known})
    return known
