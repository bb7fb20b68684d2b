"""A plan as a table: what is there, what is missing, what it will take."""

from collections.abc import Iterable
from itertools import groupby

from dlm.study.plan import Job, Plan


def show(plan: Plan, briefly: bool = False) -> None:
    """Print the runs by cell and arm (unless `briefly`), the cost of each cell, and the totals."""
    many = "as SLURM jobs" if plan.command.launcher == "slurm" else f"{plan.workers} at a time"
    print(f"{plan.command.name}, scale {plan.command.scale}: {len(plan.jobs)} runs, {many}")
    for where in dict.fromkeys(plan.tuned.values()):
        arms = ", ".join(arm for arm, found in plan.tuned.items() if found == where)
        print(f"  tuned: {where or 'not yet, counted with the untuned settings'}: {arms}")
    if not briefly:
        show_runs(plan)
    for job in plan.dropped:
        minutes = plan.command.minutes
        print(
            f"  {job.cell:<14} {job.arm:<24} {job.seed:<10} {job.epochs:>7g}  DROPPED to fit minutes={minutes:g}"
        )
    print(f"  {'cell':<14} {'runs':>5} {'parameters':>11} {'tokens':>9} {'FLOPs':>9} {'(full)':>9} {'disk':>9}")
    for cell in plan.settings["cells"]:
        print(cost_line(cell["cell"], [job for job in plan.jobs if job.cell == cell["cell"]]))
    print(cost_line("total", plan.jobs))
    print(prediction(plan), flush=True)


def show_runs(plan: Plan) -> None:
    print(f"  {'cell':<14} {'arm':<24} {'seeds':<8} {'epochs':>6}  {'branches':<20} state")
    for (cell, arm), group in groupby(sorted_jobs(plan), key=lambda job: (job.cell, job.arm)):
        jobs = list(group)
        seeds, ends = ",".join(str(job.seed) for job in jobs), ",".join(f"{e:g}" for e in jobs[0].branches)
        print(f"  {cell:<14} {arm:<24} {seeds:<8} {jobs[0].epochs:>6g}  {ends or '-':<20} {state(jobs)}")


def sorted_jobs(plan: Plan) -> Iterable[Job]:
    """By cell, arm and seed, in the order of the scale's file."""
    cells, arms = (
        [entry[key] for entry in found] for key, found in (("cell", plan.settings["cells"]), ("arm", plan.arms))
    )
    return sorted(plan.jobs, key=lambda job: (cells.index(job.cell), arms.index(job.arm), job.seed))


def state(jobs: list[Job]) -> str:
    left = [job for job in jobs if not job.finished]
    if not left:
        return "finished"
    each = " each" if len(left) > 1 else ""
    done = f"{len(jobs) - len(left)} finished, " if len(left) < len(jobs) else ""
    return f"{done}about {clock(max(job.seconds for job in left))}{each}"


def cost_line(name: str, jobs: list[Job]) -> str:
    sizes = sorted({job.cost.params for job in jobs})
    params = "-".join(count(size) for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "-"
    tokens, flops, full, disk = (
        sum(getattr(job.cost, key) for job in jobs)
        for key in ("trained_tokens", "flops", "flops_full", "disk_bytes")
    )
    return f"  {name:<14} {len(jobs):>5} {params:>11} {tokens:>9.2e} {flops:>9.2e} {full:>9.2e} {count(disk):>8}B"


def prediction(plan: Plan) -> str:
    """The wall time that is left, and by which assumption."""
    minutes, budget = plan.predicted_seconds / 60, plan.settings.get("minutes")
    shown = f"{minutes:.1f} minutes" if minutes < 180 else f"{minutes / 60:.1f} hours"
    parts = [
        f"predicted: {shown} (training {plan.training_seconds / 60:.1f}, "
        f"measures {plan.measuring_seconds / 60:.1f})"
    ]
    if plan.jobs[0].cost.on_gpu:
        parts.append(f"{plan.gpu_hours:.1f} GPU-hours")
    if plan.assumed:
        parts.append(f"at an assumed {plan.assumed:.2g} FLOP/s per GPU")
    if budget and minutes > budget:
        parts.append(f"more than the {budget} minutes this scale is meant for, and run whole all the same")
    return "; ".join(parts)


def clock(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} minutes"
        if seconds < 9000
        else f"{seconds / 3600:.1f} hours"
    )


def count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
