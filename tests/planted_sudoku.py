"""A planted study of puzzles in a directory: decodings, boards and losses with known answers."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

KINDS_FILLED = {2: 2200, 3: 1900, 4: 260, 6: 150, 7: 60, 9: 40}
KINDS_WRONG = {2: 0.05, 3: 0.15, 4: 0.15, 6: 0.1, 7: 0.05, 9: 0.5}  # shares of first errors
RULES = {  # (policy, score_scale) -> share solved without noise, with Gumbel noise 0.5
    ("random", "probability"): (0.06, None),
    ("row_major", "probability"): (0.09, None),
    ("top_probability", "probability"): (0.82, 0.07),
    ("top_probability", "log"): (0.82, 0.08),
    ("entropy", "probability"): (0.81, 0.07),
    ("margin", "probability"): (0.82, 0.10),
    ("log_ratio", "probability"): (0.82, 0.76),
    ("given", "probability"): (0.93, None),
}
ARMS = {"arm-solver": ("solver", 0.94), "arm-rows": ("row_major", 0.80), "arm-random": ("random", 0.6)}
LABELS = {
    "mdm": "MDM", "arm-solver": "ARM with order", "arm-rows": "ARM without order",
    "arm-random": "ARM, random order",
    "pi-identity": "reading order", "pi-much": "much closer", "pi-closer": "closer", "pi-uniform": "uniform order",
    "mdm-text": "MDM on text",
}  # fmt: skip
PI = {"pi-identity": ("identity", 1.90), "pi-much": ("much_closer", 1.96), "pi-closer": ("closer", 2.02),
      "pi-uniform": ("uniform", 2.20), "mdm-text": (None, 2.21)}  # fmt: skip


def rng_of(*what):
    return np.random.default_rng(int(hashlib.sha256(repr(what).encode()).hexdigest()[:8], 16))


def planted(root, sizes=(4, 6), seeds=(0, 1, 2), puzzles=300, rules=None, nae=True, zebra=True, text=True,
            arms=None, mdm_at_4=True, scale="laptop", snapshots=(1, 2, 4, 8)):  # fmt: skip
    """Write a study and return its directory. `rules` and `arms` replace RULES and ARMS."""
    study = Path(root) / "study"
    runs, cells = [], []
    rules = rules or RULES
    for size in sizes:
        cell = f"sudoku-{size}x{size}"
        cells.append({"cell": cell, "role": "task", "sequences": 20_000})
        own = (arms or ARMS) if size == min(sizes) else {}
        for arm in [*(["mdm"] if mdm_at_4 or size > 4 else []), *own]:
            runs += [(cell, arm, seed, {"task": "sudoku", "size": size}) for seed in seeds]
    if nae:
        cells.append({"cell": "nae-sat", "role": "task", "sequences": 8_000})
        runs += [("nae-sat", "mdm", s, {"name": "nae_sat", "latents": 8, "observations": 24}) for s in seeds]
    if zebra:
        cells.append({"cell": "zebra", "role": "task", "sequences": 8_000})
        runs += [("zebra", "mdm", s, {"task": "zebra", "size": "5 houses"}) for s in seeds[:1]]
    if text:
        cells.append({"cell": "text", "role": "scarce", "unique_tokens": 8192})
        runs += [("text", arm, s, {}) for arm in PI for s in seeds]
    used = dict.fromkeys(arm for _, arm, _, _ in runs)
    plan = {
        "study": "sudoku-order", "scale": scale, "command": "make experiment NAME=sudoku-order",
        "started": "2026-01-05", "cells": cells, "runs": [],
        "arms": [{"arm": a, "label": LABELS.get(a, a), "baseline": False, "group": "order"} for a in used],
    }  # fmt: skip
    for cell, arm, seed, audit in runs:
        name = f"{cell}-{arm}-s{seed}"
        plan["runs"].append({"run": name, "cell": cell, "arm": arm, "seed": seed})
        write(study / "runs" / name, cell, arm, seed, audit, rules, arms or ARMS, puzzles, snapshots)
    study.mkdir(parents=True, exist_ok=True)
    (study / "plan.json").write_text(json.dumps(plan))
    return study


def write(directory, cell, arm, seed, audit, rules, arms, puzzles, snapshots):
    directory.mkdir(parents=True)
    rng = rng_of(directory.name)
    size = audit.get("size", 0) if audit.get("task") == "sudoku" else 0
    length = size**2 or 32
    form = "joint" if arm in arms else "in_place"
    base = PI[arm][1] if arm in PI else 0.3 if arm == "mdm" else 0.5
    metrics = [
        {"step": 300 * s, "epoch": float(s), "tokens": 300 * 64 * s * length, "targets": 9600 * s * length,
         "flops": 1e12 * s, "seconds": 30.0 * s}
        | {f"{split}/{k}": v for split in ("tune", "report")
           for k, v in (("nll", base + 0.8 / s + rng.normal(0, 0.01)), ("se", 0.01))}
        for s in snapshots
    ]  # fmt: skip
    audit = audit | (
        {"format": form, "order": arms[arm][0] if arm in arms else None, "mode": "strict",
         "levels": {"train": {"2": 600, "3": 9000, "4": 1500}, "report": {"2": 30, "3": 180, "4": 60, "7": 30}},
         "givens": {"train": {"mean": 10.9, "5 %": 10, "median": 11, "95 %": 12}},
         "puzzles": f"puzzles-{size}", "sequences": {"train": 20_000, "report": 300, "hard": 300},
         "leak_audit": {"puzzles_shared": {"report": 0}}} if size else {}
    )  # fmt: skip
    method = {"permutation": {"closeness": PI[arm][0]}} if arm in PI and PI[arm][0] else {}
    config = {"method": {"_target_": "dlm.lm." + ("AutoregressiveLM" if "arm" in arm or "pi-" in arm else "A")}
              | method, "data": {"seed": 0, "held_out": puzzles, "sequences": 20_000}, "seq_len": length,
              "batch_size": 64, "seed": seed}  # fmt: skip
    last = metrics[-1]
    nll = base + rng.normal(0, 0.01)
    record = {
        "run": directory.name, "cell": cell, "arm": arm, "method": "AnyOrder", "seed": seed, "code": "planted",
        "unique_tokens": 20_000 * length, "params": 460_000, "params_non_embedding": 450_000,
        "steps": last["step"], "epochs": last["epoch"], "tokens": last["tokens"], "targets": last["targets"],
        "flops": last["flops"], "flops_full_attention": last["flops"], "seconds": last["seconds"],
        "tokens_per_second": 20_000.0, "bound_kind": "exact", "stopped": None,
        "best": {"step": last["step"], "epoch": last["epoch"], "tune_nll": nll},
        "likelihood": {"bound": {"kind": "exact", "nats_per_token": nll, "se": 0.008,
                                 "bits_per_char": nll / math.log(2), "se_bits": 0.01, "windows": 64, "draws": 1},
                       "left_to_right": None, "bound_same_windows": None},
        "data": {"fingerprint": f"{cell}-{form}", "audit": audit}, "versions": {"python": "3.13"},
        "hardware": "planted", "command": "python -m dlm.train", "samples": [],
    }  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metrics))
    (directory / "record.json").write_text(json.dumps(record))
    (directory / "config.yaml").write_text(json.dumps(config))
    if cell != "text":
        rows = list(decoded(arm, seed, audit, rules, arms, puzzles, snapshots, length))
        (directory / "decodings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if cell == "nae-sat":
        rows = [
            {"key": str(k), "checkpoint": "best", "masked": k, "repeats": 100, "reference": "exact",
             "latents": {"masked": k, "error": 0.5 * k / 8, "se": 0.01},
             "observations": {"masked": 3 * k, "error": 0.08 * k / 8, "se": 0.01} if k > 1 else None}
            for k in (1, 2, 4, 6, 8)
        ]  # fmt: skip
        (directory / "imbalance.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if size and seed == 0:
        traces = [board(size, p, k) for p in ("random", "top_probability", "given") for k in (0, 1)]
        (directory / "boards.json").write_text(json.dumps(traces if arm == "mdm" else []))


def decoded(arm, seed, audit, rules, arms, puzzles, snapshots, length):
    task = audit.get("task") or "nae_sat"
    hardness = rng_of("puzzles", audit.get("size"), task).permutation(puzzles) / puzzles
    level = np.where(hardness < 0.1, 2, np.where(hardness < 0.7, 3, np.where(hardness < 0.9, 4, 7)))
    givens = 10 + rng_of("givens", task).integers(0, 3, puzzles)

    def row(share, setting, sampler="ordered", checkpoint="best", step=2400, split="report", k=1):
        rng = rng_of(arm, seed, audit, setting, checkpoint, split, k)
        noisy = hardness + rng.normal(0, 0.04, puzzles)
        solved = np.argsort(np.argsort(noisy)) < round(puzzles * min(share + rng.normal(0, 0.01), 1))
        n = int(solved.sum())
        wrong = {str(kind): round(s * (puzzles - n)) for kind, s in KINDS_WRONG.items()}
        by = {
            name: {str(v): [int(solved[values == v].sum()), int((values == v).sum())] for v in np.unique(values)}
            for name, values in (("level", level), ("givens", givens))
        }
        key = hashlib.sha256(repr((arm, seed, setting, checkpoint, split, k)).encode()).hexdigest()[:12]
        return {
            "key": key, "version": 1, "code": "planted", "checkpoint": checkpoint, "epoch": step / 300,
            "step": step, "split": split, "data": "planted", "sampler": sampler, "setting": setting, "seed": 0,
            "puzzles": puzzles, "solved": n, "cells": puzzles * 26, "right": int(puzzles * (20 + 6 * share)),
            "nfe": 26.0 / k, "tokens_per_step": float(k), "by": by, "first_errors": wrong,
            "fills": {str(kind): f for kind, f in KINDS_FILLED.items()}, "ties": 0.01, "seconds": 3.0,
            "outcomes": np.packbits(solved).tobytes().hex(), "device": "cpu",
        }  # fmt: skip

    if arm in arms:
        share = arms[arm][1]
        for epoch in snapshots:
            yield row(
                share * (1 - 0.6 / epoch), {"values": "greedy"}, "autoregressive", f"epoch-{epoch}", 300 * epoch
            )
        yield row(share, {"values": "greedy"}, "autoregressive")
        if task == "sudoku":
            yield row(share * 0.5, {"values": "greedy"}, "autoregressive", split="hard")
        return
    base = {"anneal": "constant", "per_step": 1, "steps": None, "selection": "state", "values": "greedy",
            "remask": False, "ties": "random", "noise": "none", "noise_scale": None}  # fmt: skip
    for (policy, scale), (plain, noised) in rules.items():
        setting = base | {"policy": policy, "score_scale": scale}
        if task == "zebra" and policy in ("random", "top_probability", "margin"):
            yield row(plain, setting)
        if task != "sudoku":
            if task == "nae_sat" and policy in ("random", "top_probability", "margin"):
                yield row(0.1, setting) | {"right": int(puzzles * 26 * (0.94 if policy != "random" else 0.78))}
            continue
        yield row(plain, setting)
        yield row(plain * 0.5, setting, split="hard")
        for epoch in snapshots:
            if (policy, scale) in (("random", "probability"), ("top_probability", "probability")):
                yield row(plain * (1 - 0.6 / epoch), setting, checkpoint=f"epoch-{epoch}", step=300 * epoch)
        if policy in ("random", "top_probability", "margin") and scale == "probability":
            for k in (2, 4):
                yield row(plain * (1 - 0.1 * k), setting | {"per_step": k}, k=k)
        if noised is not None:
            for noise_scale, anneal, share in ((0.5, "masked_share", noised), (0.5, "constant", noised * 0.9),
                                               (0.05, "masked_share", (plain + noised) / 2)):  # fmt: skip
                yield row(share, setting | {"noise": "gumbel", "noise_scale": noise_scale, "anneal": anneal})


def board(size, policy, number):
    """A board with two wrong cells."""
    wide, high = {4: (2, 2), 6: (3, 2), 9: (3, 3)}[size]
    solution = [(r * wide + r // high + c + number) % size + 1 for r in range(size) for c in range(size)]
    rng = rng_of(size, number)
    blank = rng.random(size**2) < 0.7
    order = rng_of(size, number, policy).permutation(np.flatnonzero(blank))
    answer, step, kind = list(solution), [-1] * size**2, [0] * size**2
    for k, cell in enumerate(order):
        step[cell], kind[cell] = k, int(rng.choice([2, 2, 3, 3, 4, 7]))
    if policy == "random":
        for cell in order[3:5]:
            answer[cell], kind[cell] = solution[cell] % size + 1, 9
    puzzle = [0 if b else v for b, v in zip(blank, solution, strict=True)]
    return {"policy": policy, "setting": {"policy": policy}, "number": number, "size": size, "puzzle": puzzle,
            "solution": solution, "answer": answer, "step": step, "kind": kind}  # fmt: skip
