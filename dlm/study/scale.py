"""A scale: experiments/<study>/<scale>.yaml, read and refused where it contradicts itself.

minutes: 25                    what the scale is meant to take; a longer plan says so
workers: 2                     runs at a time
seeds: [0, 1, 2]
tuning: tuning                 the scale that searched the settings of the arms that are `tuned`
base: [data=pydoc, ...]        overrides of every run
arms:                          what is compared; `optional_arms` join by ARMS=
  - arm: arm-reg               its name, once
    label: ARM, regularised
    baseline: true             X1 and X2 are measured against it
    description: ...
    group: regularised         baseline, regularised, mechanism, process, dual or order
    overrides: [method=arm]    they win over `base`
    tuned: arm                 ... and so do those of the best trial of this search
    cells: [scarce-8k]         default: all
    replicate: false           the first seed alone; or the cells in which it gets every seed
cells:                         the data budgets
  - cell: scarce-8k
    role: scarce               or control; task: no law of the budget is fitted
    size: 20M                  a label, where cells differ in size
    unique_tokens: 8192        or sequences: 57600 examples, however many tokens an arm writes each of them in
    overrides: [...]
    epochs: {default: 416, arm: 128}
    branches: {default: [24, 96, 384], arm: [24, 96]}    epochs at which cooled branches end
evaluate: {seeds: [0], seconds: 25, items: 48}    seconds: predicted, per run; the rest goes to dlm.measure
decode: [...]                  how finished runs of tasks are decoded, see decoding.py
assume: {flops_per_second: 2e14, vocab_size: 50257}    per GPU, and of data that is not there yet
slurm: {partition: gpu, cpus_per_task: 8, timeout_min: 1440}
calibrate: false               with seconds_per_run: 10 instead of measuring
"""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dlm.errors import UserError
from dlm.measure.subject import Settings
from dlm.study.checks import Number, arm_name, check_keys, keyed, once, same
from dlm.study.decoding import check_blocks

TOP: dict[str, Any] = {
    "minutes": Number, "workers": int, "seeds": list, "base": list, "arms": list, "optional_arms": list,
    "cells": list, "tuning": str, "evaluate": dict, "decode": list, "assume": dict, "slurm": dict,
    "calibrate": bool, "seconds_per_run": Number,
}  # fmt: skip
ARM: dict[str, Any] = {
    "arm": str, "label": str, "baseline": bool, "description": str, "group": str, "overrides": list, "tuned": str,
    "cells": list, "replicate": (bool, list),
}  # fmt: skip
CELL: dict[str, Any] = {
    "cell": str, "role": str, "size": str, "unique_tokens": int, "sequences": int, "overrides": list,
    "epochs": dict, "branches": dict,
}  # fmt: skip
ASSUME = {"flops_per_second": Number, "vocab_size": int}
EVALUATE: dict[str, Any] = {
    "seeds": list, "seconds": Number, "measures": (str, list), "checkpoints": (str, list),
} | {f.name: str if f.type is str else int for f in fields(Settings)}  # fmt: skip
GROUPS = ("baseline", "regularised", "mechanism", "process", "dual", "order")
TASK = "task"
ROLES = ("scarce", "control", TASK)
BUDGETS = ("unique_tokens", "sequences")


def read_scale(file: Path, methods: set[str]) -> dict[str, Any]:
    """The settings of a scale's file.

    Args:
        methods: names that may become arms by ARMS=; a cell may give epochs for them.

    Raises:
        UserError: one line, for a key that is unknown, missing or of the wrong type, and for arms and cells that
            contradict each other.
    """
    try:
        settings = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    check_keys(f"{file}", settings, TOP, ("seeds", "base", "arms", "cells"))
    check_keys(f"{file}: assume", settings.get("assume", {}), ASSUME, ())
    check_keys(f"{file}: evaluate", settings.get("evaluate", {}), EVALUATE, ())
    for key in ("minutes", "workers", "seconds_per_run"):
        if not settings.get(key, 1) > 0:
            raise UserError(f"{file}: {key} must be positive, not {settings[key]}")
    if not settings["seeds"] or not all(type(s) is int and s >= 0 for s in settings["seeds"]):
        raise UserError(f"{file}: seeds are whole numbers, not {settings['seeds']}")
    once(file, "seed", settings["seeds"])
    if settings.get("calibrate") is False and "seconds_per_run" not in settings:
        raise UserError(f"{file}: calibrate: false needs seconds_per_run")
    arms = [*settings["arms"], *settings.get("optional_arms", [])]
    for arm in arms:
        check_keys(f"{file}: arm {arm_name(arm)}", arm, ARM, ("arm", "overrides"))
    for cell in settings["cells"]:
        where = f"{file}: cell {cell.get('cell', '?')!r}" if isinstance(cell, dict) else f"{file}: cells"
        check_keys(where, cell, CELL, ("cell", "epochs"))
        if len([key for key in BUDGETS if key in cell]) != 1:
            raise UserError(f"{where}: needs one of {' and '.join(BUDGETS)}, and not both")
    once(file, "arm", [arm["arm"] for arm in arms])
    once(file, "cell", [cell["cell"] for cell in settings["cells"]])
    base = keyed(f"{file}: base", settings["base"])
    for arm in arms:
        check_arm(file, settings, arm, base)
    for cell in settings["cells"]:
        check_cell(file, cell, arms, methods, base)
    budgets = [(str(sorted(keyed("", c.get("overrides", [])).items())), *budget_of(c)) for c in settings["cells"]]
    for kind in BUDGETS:
        same_kind = [f"{size} ({o})" for o, key, size in budgets if key == kind]
        once(file, f"cell of the same overrides and {kind}", same_kind)
    tasks = [cell["cell"] for cell in settings["cells"] if "sequences" in cell]
    settings["decode"] = check_blocks(file, settings.get("decode", []), [arm["arm"] for arm in arms], tasks)
    return settings


def check_arm(file: Path, settings: dict[str, Any], arm: dict[str, Any], base: dict[str, str]) -> None:
    where = f"{file}: arm {arm['arm']!r}"
    own = keyed(where, arm["overrides"])
    if "method" not in {**base, **own}:
        raise UserError(f"{where}: names no method")
    if arm.get("group", "process") not in GROUPS:
        raise UserError(f"{where}: group is one of {', '.join(GROUPS)}, not {arm['group']!r}")
    if "tuned" in arm and "tuning" not in settings:
        raise UserError(f"{where}: tuned: {arm['tuned']}, but the scale names no tuning")
    cells = [cell["cell"] for cell in settings["cells"]]
    replicated = arm.get("replicate", True)
    for name in [*arm.get("cells", []), *(replicated if isinstance(replicated, list) else [])]:
        if name not in cells:
            raise UserError(f"{where}: there is no cell {name!r}; there are: {', '.join(cells)}")
    for cell in settings["cells"]:
        if cell["cell"] in arm.get("cells", cells):
            for key, value in keyed(f"{file}: cell {cell['cell']!r}", cell.get("overrides", [])).items():
                if key in own and not same(own[key], value):
                    raise UserError(f"{where}: {key}={own[key]}, but cell {cell['cell']!r} says {value}")


def check_cell(
    file: Path, cell: dict[str, Any], arms: list[dict[str, Any]], methods: set[str], base: dict[str, str]
) -> None:
    where = f"{file}: cell {cell['cell']!r}"
    kind, size = budget_of(cell)
    given = {**base, **keyed(where, cell.get("overrides", []))}.get(f"data.{kind}")
    if given is not None and not same(given, str(size)):
        raise UserError(f"{where}: {kind}: {size}, but data.{kind}={given}")
    if role_of(cell) not in ROLES:
        raise UserError(f"{where}: role is one of {', '.join(ROLES)}, not {cell['role']!r}")
    if size < 1:
        raise UserError(f"{where}: {kind} must be positive, not {size}")
    if "default" not in cell["epochs"]:
        raise UserError(f"{where}: epochs has no 'default'")
    known = {"default", *methods, *(arm["arm"] for arm in arms)}
    for key in ("epochs", "branches"):
        for name in cell.get(key, {}):
            if name not in known:
                raise UserError(f"{where}: {key} for {name!r}, which is no arm")
    for name, epochs in cell["epochs"].items():
        if not isinstance(epochs, Number) or isinstance(epochs, bool) or not 0 < epochs < math.inf:
            raise UserError(f"{where}: epochs of {name!r} must be a positive number, not {epochs!r}")
    for name, ends in cell.get("branches", {}).items():
        if not isinstance(ends, list) or not all(isinstance(e, Number) and e > 0 for e in ends):
            raise UserError(f"{where}: branches of {name!r} are a list of epochs, not {ends!r}")
        longest = cell["epochs"].get(name, cell["epochs"]["default"])
        if ends and max(ends) > longest:
            raise UserError(f"{where}: a branch of {name!r} ends at epoch {max(ends):g}, its trunk at {longest:g}")


def seeds_of(arm: dict[str, Any], cell: dict[str, Any], seeds: list[int]) -> list[int]:
    """All seeds where the arm is replicated, else the first."""
    replicated = arm.get("replicate", True)
    everywhere = cell["cell"] in replicated if isinstance(replicated, list) else replicated
    return seeds if everywhere else seeds[:1]


def epochs_of(cell: dict[str, Any], arm: str) -> float:
    return cell["epochs"].get(arm, cell["epochs"]["default"])


def branches_of(cell: dict[str, Any], arm: str) -> list[float]:
    """Epochs at which this arm's cooled branches end; of the default list, those that its trunk reaches."""
    branches = cell.get("branches", {})
    return branches.get(arm, [end for end in branches.get("default", []) if end <= epochs_of(cell, arm)])


def budget_of(cell: dict[str, Any]) -> tuple[str, int]:
    """Which of BUDGETS the cell has, and how large it is."""
    kind = next(key for key in BUDGETS if key in cell)
    return kind, cell[kind]


def role_of(cell: dict[str, Any]) -> str:
    """A cell of sequences is a task unless it says otherwise."""
    return cell.get("role", TASK if "sequences" in cell else ROLES[0])


def tokens_of(cell: dict[str, Any], seq_len: int) -> int:
    """The unique training tokens of an arm that writes its sequences in `seq_len` tokens."""
    kind, size = budget_of(cell)
    return size if kind == "unique_tokens" else size * seq_len


def budget(cell: dict[str, Any]) -> list[str]:
    """The cell's own overrides, its budget among them."""
    own = cell.get("overrides", [])
    kind, size = budget_of(cell)
    given = any(str(override).startswith(f"data.{kind}=") for override in own)
    return [*own, *([] if given else [f"data.{kind}={size}"])]
