"""A planted study in a directory: curves, cooled branches, measures and fits with known answers, at any size."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

GRID = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
LABELS = {"arm": "ARM", "arm-reg": "ARM, regularised", "md4": "MD4", "shuffle": "Shuffle", "dfm_mask": "DFM, mask"}
BASELINES = ("arm", "arm-reg")
# arm: knots of the true curve {epoch: nats per token}, linear in log epoch between them, at 8,192 tokens
KNOTS = {
    "arm": {1: 3.3, 20: 2.4, 40: 2.7, 80: 3.6, 384: 4.6},
    "arm-reg": {1: 3.4, 60: 2.3, 384: 2.42},
    "md4": {1: 3.5, 40: 2.9, 200: 2.35, 384: 2.3},
    "shuffle": {1: 3.5, 60: 3.0, 384: 2.5},
    "dfm_mask": {1: 3.5, 40: 2.9, 200: 2.35, 384: 2.3},
}
GROUPS = {"arm": "baseline", "arm-reg": "regularised"}


def level(knots, epoch, shift=0.0):
    """The true loss at an epoch; `shift` moves the curve along log epoch (more text: later)."""
    return float(np.interp(math.log(epoch) - shift, np.log(list(knots)), list(knots.values())))


def planted(
    root, *, cells=None, arms=None, knots=None, seeds=(0, 1, 2), windows=48, noise=0.05, measures=None,
    branches=(24, 96, 384), grid=GRID, configs=None, fits=None, scale="laptop", last=None, extra=(),
):  # fmt: skip
    """Write a study and return its directory.

    `cells`: [{cell, role, unique_tokens, size, params, shift}]. `knots[arm]` or `knots[cell, arm]` are curves.
    `measures(cell, arm, epoch)` gives {measure: (value, se)} at checkpoints. `last[arm]` is an arm's last epoch.
    `configs[arm]` is merged into its config.yaml, JSON being YAML.
    """
    cells = cells or [
        {"cell": "scarce-8k", "role": "scarce", "unique_tokens": 8192, "shift": 0.0},
        {"cell": "scarce-16k", "role": "scarce", "unique_tokens": 16384, "shift": 0.3},
        {"cell": "control-131k", "role": "control", "unique_tokens": 131072, "shift": 2.5},
    ]
    arms = arms or list(LABELS)
    knots = KNOTS | (knots or {})
    study = Path(root) / "study"
    plan = {
        "study": "super-data-learners", "scale": scale, "command": "make experiment", "started": "2026-01-05",
        "cells": [{k: c[k] for k in ("cell", "role", "unique_tokens", "size") if k in c} for c in cells],
        "arms": [{"arm": a, "label": LABELS.get(a, a), "baseline": a in BASELINES,
                  "group": GROUPS.get(a, "mechanism" if a.startswith("arm") else "process")} for a in arms],
        "runs": [],
    }  # fmt: skip
    passages = [w // 4 for w in range(windows)]
    hardness = {s: np.random.default_rng(k).normal(0, 0.2, windows) for k, s in enumerate(("tune", "report"))}
    for cell in cells:
        for arm in arms:
            for seed in seeds:
                name = f"{cell['cell']}-{arm}-s{seed}"
                plan["runs"].append({"run": name, "cell": cell["cell"], "arm": arm, "seed": seed})
                curve = knots.get((cell["cell"], arm), knots.get(arm, KNOTS["arm"]))
                stop = min((last or {}).get(arm, grid[-1]), 12 if cell["role"] == "control" else grid[-1])
                epochs = [e for e in grid if e <= stop]
                write(study / "runs" / name, cell, arm, seed, curve, epochs, passages, hardness, noise,
                      branches, measures, (configs or {}).get(arm, {}))  # fmt: skip
    for name, content in extra:
        (study / name).write_text(content)
    study.mkdir(parents=True, exist_ok=True)
    (study / "plan.json").write_text(json.dumps(plan))
    if fits:
        (study / "fits.json").write_text(json.dumps(fits))
    return study


def write(directory, cell, arm, seed, curve, epochs, passages, hardness, noise, branches, measures, config):
    directory.mkdir(parents=True)
    rng = np.random.default_rng(int(hashlib.sha256(directory.name.encode()).hexdigest()[:8], 16))
    unique, shift, params = cell["unique_tokens"], cell.get("shift", 0.0), cell.get("params", 332_448)
    exact, windows = arm in BASELINES or arm.startswith("arm"), len(passages)
    own = rng.normal(0, noise / 5)
    metrics, losses, branch_rows = [], [], []

    def spent(epoch):
        tokens = int(epoch * unique)
        return {"step": max(1, int(epoch * 8)), "epoch": float(epoch), "tokens": tokens, "targets": tokens,
                "flops": tokens * params * 6.0, "seconds": tokens / 22_000}  # fmt: skip

    def scored(nll):
        found = {
            s: (nll + own + hardness[s] - hardness[s].mean() + rng.normal(0, noise, windows)) for s in hardness
        }
        means = {f"{s}/nll": float(x.mean()) for s, x in found.items()}
        se = {f"{s}/se": float(x.std(ddof=1) / windows**0.5) for s, x in found.items()}
        return means | se, {s: x.round(5).tolist() for s, x in found.items()}

    for epoch in epochs:
        means, per_window = scored(level(curve, epoch, shift))
        metrics.append(spent(epoch) | means)
        losses += [{"step": spent(epoch)["step"], "split": s, "nll": x} for s, x in per_window.items()]
    for epoch in (e for e in branches if e <= epochs[-1]):
        means, per_window = scored(level(curve, epoch, shift) - 0.05)
        branch_rows.append(spent(epoch) | means | {"windows": per_window})
    rows = []
    for epoch in epochs[::2] if measures else ():
        found = measures(cell["cell"], arm, epoch)
        rows += [
            {"checkpoint": f"epoch-{epoch:g}", "epoch": float(epoch), "cooled": False, "measure": k,
             "split": "report", "value": v, "se": se, "n": 48, "unit": "",
             "chance": 0.25 if k in ("continuation", "infill") else None}
            for k, (v, se) in found.items()
        ]  # fmt: skip
    for file, content in (
        ("metrics", metrics), ("windows", losses), ("branches", branch_rows), ("measures", rows)
    ):  # fmt: skip
        if content:
            (directory / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    method = {"_target_": f"dlm.lm.{arm}"} | config.get("method", {})
    settings = {"optim": {"weight_decay": 0.1}, "seed": seed} | config | {"method": method}
    (directory / "config.yaml").write_text(json.dumps(settings))
    best = min(metrics, key=lambda r: r["tune/nll"])

    def score(kind, shift=0.0):
        nats, se = best["report/nll"] + shift, best["report/se"]
        return {
            "kind": kind, "nats_per_token": nats, "se": se, "se_draws": 0.0 if kind == "exact" else 0.004,
            "bits_per_char": nats / math.log(2), "se_bits": se / math.log(2), "windows": windows, "draws": 16,
        }  # fmt: skip

    kind = "exact" if exact else "bound (any-order NELBO)"
    likelihood = {"bound": score(kind), "left_to_right": None, "bound_same_windows": None, "extra": {}}
    if not exact:
        ordered = score("exact", config.get("gap", -0.03))
        likelihood |= {"left_to_right": ordered, "bound_same_windows": score(kind)}
    final = spent(epochs[-1])
    record = {
        "run": directory.name, "cell": cell["cell"], "arm": arm, "method": arm, "seed": seed,
        "unique_tokens": unique,
        "params": params + 10_000, "params_non_embedding": params, "steps": final["step"], "epochs": epochs[-1],
        "tokens": final["tokens"], "targets": final["targets"], "flops": final["flops"],
        "seconds": final["seconds"],
        "flops_full_attention": final["flops"] * 1.1, "evaluation_seconds": 5.0, "final_evaluation_seconds": 9.0,
        "tokens_per_second": 22_000.0, "bound_kind": "exact" if exact else "any-order NELBO", "stopped": None,
        "best": {"step": best["step"], "epoch": best["epoch"], "tune_nll": best["tune/nll"]}, "code": "planted",
        "likelihood": likelihood, "samples": ["some text"], "passages": {"tune": passages, "report": passages},
        "data": {"fingerprint": "planted", "audit": {"leak": {"after": {"report_in_train": 0.0}}}},
        "versions": {"python": "3.13"}, "hardware": "planted", "command": "python -m dlm.train",
    }  # fmt: skip
    (directory / "record.json").write_text(json.dumps(record))
