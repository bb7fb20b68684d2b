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
    group: regularised         baseline, regularised, mechanism, process or dual
    overrides: [method=arm]    they win over `base`
    tuned: arm                 ... and so do those of the best trial of this search
    cells: [scarce-8k]         default: all
    replicate: false           the first seed alone; or the cells in which it gets every seed
cells:                         the data budgets
  - cell: scarce-8k
    role: scarce               or control
    size: 20M                  a label, where cells differ in size
    unique_tokens: 8192
    overrides: [...]
    epochs: {default: 416, arm: 128}
    branches: {default: [24, 96, 384], arm: [24, 96]}    epochs at which cooled branches end
evaluate: {seeds: [0], seconds: 25, items: 48}    seconds: predicted, per run; the rest goes to dlm.measure
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

Number = (int, float)
TOP: dict[str, Any] = {
    "minutes": Number, "workers": int, "seeds": list, "base": list, "arms": list, "optional_arms": list,
    "cells": list, "tuning": str, "evaluate": dict, "assume": dict, "slurm": dict, "calibrate": bool,
    "seconds_per_run": Number,
}  # fmt: skip
ARM: dict[str, Any] = {
    "arm": str, "label": str, "baseline": bool, "description": str, "group": str, "overrides": list, "tuned": str,
    "cells": list, "replicate": (bool, list),
}  # fmt: skip
CELL: dict[str, Any] = {
    "cell": str, "role": str, "size": str, "unique_tokens": int, "overrides": list, "epochs": dict,
    "branches": dict,
}  # fmt: skip
ASSUME = {"flops_per_second": Number, "vocab_size": int}
EVALUATE: dict[str, Any] = {
    "seeds": list, "seconds": Number, "measures": (str, list), "checkpoints": (str, list),
} | {f.name: str if f.type is str else int for f in fields(Settings)}  # fmt: skip
GROUPS = ("baseline", "regularised", "mechanism", "process", "dual")
ROLES = ("scarce", "control")
RESERVED = {"study", "scale", "cell", "arm", "seed", "epochs", "output_dir"}


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
        check_keys(where, cell, CELL, ("cell", "unique_tokens", "epochs"))
    once(file, "arm", [arm["arm"] for arm in arms])
    once(file, "cell", [cell["cell"] for cell in settings["cells"]])
    base = keyed(f"{file}: base", settings["base"])
    for arm in arms:
        check_arm(file, settings, arm, base)
    for cell in settings["cells"]:
        check_cell(file, cell, arms, methods, base)
    budgets = [
        (str(sorted(keyed("", c.get("overrides", [])).items())), c["unique_tokens"]) for c in settings["cells"]
    ]
    once(file, "cell of the same overrides and unique_tokens", [f"{tokens} ({o})" for o, tokens in budgets])
    return settings


def check_keys(where: str, found: Any, known: dict[str, Any], required: tuple[str, ...]) -> None:
    """Raises UserError for anything but a mapping with these keys, of these types."""
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a mapping, not {found!r}")
    for key, value in found.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        kind = known[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            name = "number" if kinds == Number else " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{where}: {key} must be of type {name}, not {value!r}")
    for key in required:
        if key not in found:
            raise UserError(f"{where}: has no {key!r}")


def arm_name(arm: Any) -> str:
    return repr(arm.get("arm", "?") if isinstance(arm, dict) else arm)


def once(file: Path, what: str, found: list[Any]) -> None:
    for name in found:
        if found.count(name) > 1:
            raise UserError(f"{file}: two times the same {what}: {name}")


def keyed(where: str, overrides: list[Any]) -> dict[str, str]:
    """{key: value} of `key=value` strings. Raises UserError for another form, or two values of one key."""
    found: dict[str, str] = {}
    for override in overrides:
        key, equals, value = str(override).partition("=")
        if not equals:
            raise UserError(f"{where}: {override!r} is no key=value")
        if key in RESERVED:
            raise UserError(f"{where}: {override}: the plan sets {key} by itself")
        if key in found and not same(found[key], value):
            raise UserError(f"{where}: {key} is given twice, as {found[key]} and as {value}")
        found[key] = value
    return found


def same(one: str, other: str) -> bool:
    """Whether two values on a command line mean the same: 1e-3 is 0.001."""
    return one == other or yaml_number(one) == yaml_number(other) is not None


def yaml_number(text: str) -> float | None:
    return float(text) if text.replace(".", "", 1).replace("e-", "", 1).replace("e", "", 1).isdecimal() else None


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
    budget = {**base, **keyed(where, cell.get("overrides", []))}.get("data.unique_tokens")
    if budget is not None and not same(budget, str(cell["unique_tokens"])):
        raise UserError(f"{where}: unique_tokens: {cell['unique_tokens']}, but data.unique_tokens={budget}")
    if cell.get("role", ROLES[0]) not in ROLES:
        raise UserError(f"{where}: role is one of {', '.join(ROLES)}, not {cell['role']!r}")
    if cell["unique_tokens"] < 1:
        raise UserError(f"{where}: unique_tokens must be positive, not {cell['unique_tokens']}")
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


def budget(cell: dict[str, Any]) -> list[str]:
    """The cell's own overrides, its budget among them."""
    own = cell.get("overrides", [])
    given = any(str(override).startswith("data.unique_tokens=") for override in own)
    return [*own, *([] if given else [f"data.unique_tokens={cell['unique_tokens']}"])]
