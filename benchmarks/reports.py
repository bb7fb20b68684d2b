"""How long a large study takes to read, compare and fit, and how much memory that needs.

    python benchmarks/reports.py [--runs 1000] [--windows 128] [--keep DIRECTORY] [--page]

writes a synthetic study of that many finished runs (14 arms, 12 cells of three sizes, the rest seeds) and prints
the seconds, wall-clock and of the processor, and the peak memory of each part; --page also builds the report of
super-data-learners from it.
"""

import argparse
import importlib
import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dlm.report.crossing import x1, x2, x3
from dlm.report.fits import crossing_laws, data_multipliers, fit_study
from dlm.report.study import Study, load_study

ROOT = Path(__file__).parents[1]
EPOCHS = [0.5, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512]
BRANCHES = [24, 96, 384]
SIZES = {"1M": 1e6, "4M": 4e6, "16M": 1.6e7}
BUDGETS = [65536, 262144, 1048576, 4194304]
ARMS = ["arm", "arm-reg", "md4", "genmd4", "aoarm", "shuffle", "udlm", "dfm_mask", "dfm_uniform"]
ARMS += ["arm-mask", "arm-replace", "arm-drop", "arm-k16", "dual"]


def law(parameters: float, unique: float, epochs: float, exact: bool) -> float:
    """A loss that turns up early for autoregressive arms and late for the others."""
    optimum = (4.0 if exact else 80.0) * (unique / 1e6) ** 0.3 * (1e6 / parameters) ** 0.3
    data = unique * epochs**1.2 * math.exp(-((max(epochs - 1, 0) / optimum) ** 0.6))
    return 1.2 + 3.0 * (parameters / 1e6) ** -0.3 * 0.2 + (1.6 if exact else 2.0) * (data / 1e6) ** -0.15


def write_study(root: Path, runs: int, windows: int) -> Path:
    """The study directory, with about `runs` finished runs."""
    cells = [
        {"cell": f"{size}-{unique}", "role": "scarce", "size": size, "unique_tokens": unique}
        for size in SIZES
        for unique in BUDGETS
    ]
    seeds = range(math.ceil(runs / (len(cells) * len(ARMS))))
    arms = [{"arm": a, "label": a, "baseline": a in ("arm", "arm-reg"), "description": a} for a in ARMS]
    rng = np.random.default_rng(0)
    passages = {split: np.sort(rng.integers(0, windows // 4, windows)).tolist() for split in ("tune", "report")}
    difficulty = {split: rng.normal(0, 0.3, windows) for split in passages}
    planned = []
    for cell in cells:
        for arm in ARMS:
            for seed in seeds:
                name = f"{cell['cell']}-{arm}-s{seed}"
                planned.append({"run": name, "cell": cell["cell"], "arm": arm, "seed": seed, "epochs": 512})
                write_run(root / "runs" / name, planned[-1], cell, passages, difficulty, rng)
    plan = {"study": "super-data-learners", "scale": "synthetic", "command": "", "started": "", "cells": cells}
    plan |= {"arms": arms, "runs": planned, "hardware": {}, "seconds": {}, "budget_minutes": None, "workers": 1}
    (root / "plan.json").write_text(json.dumps(plan))
    return root


def write_run(directory: Path, run: dict, cell: dict, passages: dict, difficulty: dict, rng) -> None:  # pyright: ignore
    directory.mkdir(parents=True)
    size, unique, exact = SIZES[cell["size"]], cell["unique_tokens"], run["arm"].startswith("arm")
    shift = 0.01 * ARMS.index(run["arm"]) + rng.normal(0, 0.01)
    metrics, losses, branches = [], [], []
    for epoch in EPOCHS:
        level = law(size, unique, epoch, exact) + shift
        tokens = int(epoch * unique)
        row = {
            "step": int(epoch * 64),
            "epoch": epoch,
            "tokens": tokens,
            "targets": tokens,
            "flops": 6 * size * tokens,
        }
        metrics += [row | {"train/loss": level, "lr": 1e-3, "tokens_per_second": 1e4} for _ in range(4)]
        found = {s: (level + d + rng.normal(0, 0.05, len(d))).round(6) for s, d in difficulty.items()}
        means = {f"{s}/nll": float(x.mean()) for s, x in found.items()}
        means |= {f"{s}/se": float(x.std() / len(x) ** 0.5) for s, x in found.items()}
        metrics.append(row | means | {"seconds": tokens / 1e4})
        losses += [{"step": row["step"], "split": s, "nll": x.tolist()} for s, x in found.items()]
        if epoch in BRANCHES:
            lower = {s: (x - 0.05).tolist() for s, x in found.items()}
            branches.append(row | means | {"seconds": 1.0, "windows": lower})
    names = ("nll", "top1", "continuation", "infill", "copied_50", "weight_norm")
    measures = [
        {"checkpoint": f"epoch-{e}", "epoch": e, "cooled": False, "measure": m, "split": "report", "se": 0.01,
         "value": 0.3 + 0.02 * math.log(e) - (0.01 * e**0.5 if exact else 0), "n": 256, "chance": 0.25,
         "unit": "share"}
        for e in BRANCHES
        for m in names
    ]  # fmt: skip
    best = metrics[-1]
    score = {
        "kind": "exact",
        "nats_per_token": best["report/nll"],
        "se": 0.01,
        "bits_per_char": best["report/nll"] * 1.4427,
    }
    record = {
        "run": run["run"], "cell": run["cell"], "arm": run["arm"], "seed": run["seed"], "unique_tokens": unique,
        "method": run["arm"], "params": int(size * 1.05), "params_non_embedding": int(size), "code": "abc",
        "passages": passages, "bound_kind": "exact" if exact else "bound", "stopped": None,
        "best": {"step": 1, "epoch": 24.0},
        "data": {"fingerprint": "f", "audit": {}}, "versions": {}, "hardware": "", "command": "", "samples": [],
        "likelihood": {"bound": score | {"se_bits": 0.01, "windows": 128, "draws": 1}, "left_to_right": None},
        "steps": 1, "epochs": 512.0, "tokens": best["tokens"], "targets": best["targets"], "flops": best["flops"],
        "seconds": 1.0, "tokens_per_second": 1e4,
    }  # fmt: skip
    for name, rows in (("metrics", metrics), ("windows", losses), ("branches", branches), ("measures", measures)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.yaml").write_text("".join(f"key{i}: {{a: {i}, b: [1, 2, 3]}}\n" for i in range(60)))
    (directory / "record.json").write_text(json.dumps(record, indent=1))


def compare(study: Study) -> int:
    """Every crossing of every process against both baselines in every cell; how many."""
    count = 0
    for cell in (c["cell"] for c in study.plan["cells"]):
        for process in (a["arm"] for a in study.plan["arms"] if not a["baseline"]):
            for baseline in ("arm", "arm-reg"):
                ours, theirs = study.curves(cell, process), study.curves(cell, baseline)
                found = [x1(ours, theirs), *(x2(ours, theirs, matched=m) for m in (False, True))]
                found.append(x2(ours, theirs, cooled=True))
                probes = (study.probes(cell, arm, "continuation") for arm in (process, baseline))
                found.append(x3(*probes))
                count += len(found)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch) / "study"
        if not (root / "plan.json").is_file():
            write_study(root, options.runs, options.windows)
        begun, spent = time.perf_counter(), time.process_time()

        def done(what: str) -> None:
            nonlocal begun, spent
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            wall, processor = time.perf_counter() - begun, time.process_time() - spent
            print(f"{what:<28} {wall:6.1f} s, {processor:6.1f} s of processor, peak {memory:5.2f} GiB", flush=True)
            begun, spent = time.perf_counter(), time.process_time()

        study = load_study(root)
        done(f"load {len(study.compared)} runs")
        done(f"compare, {compare(study)} crossings")
        crossing_laws(study)
        done("crossing laws")
        data_multipliers(study)
        done("data multipliers")
        fits = fit_study(study)
        done("all fits")
        (root / "fits.json").write_text(json.dumps(fits))
        if options.page:
            sys.path.insert(0, str(ROOT / "experiments" / "super-data-learners"))
            module = importlib.import_module("report")
            begun, spent = time.perf_counter(), time.process_time()
            module.main(root)
            done("report, read again")


if __name__ == "__main__":
    main()
