"""The command line of a study, and the files it means."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm import config
from dlm.errors import UserError

STAGES = ("data", "plan", "tune", "train", "evaluate", "fit", "report")
LAUNCHERS = ("local", "slurm")


@dataclass
class Command:
    """The command line; each setting left out takes the value of the scale's file."""

    name: str = ""
    scale: str = "laptop"
    arms: str = ""  # further arms: names from the scale's file or of any method, separated by commas
    only: str = ""  # these arms alone
    seeds: str = ""
    workers: int | None = None
    minutes: float | None = None  # drop runs from the end of the plan until it is predicted to fit
    limit: float | None = None  # minutes after which to stop, whatever is running; the same command resumes
    stage: str = "all"  # or some of STAGES, separated by commas
    launcher: str = "local"
    any_code: bool = False  # let runs of different code versions stand side by side
    output_dir: str = "outputs"

    @property
    def stages(self) -> tuple[str, ...]:
        """What `stage` asks for, in the order in which it is done."""
        return STAGES if self.stage == "all" else tuple(s for s in STAGES if s in self.stage.split(","))

    @property
    def directory(self) -> Path:
        return Path(self.output_dir) / self.name / self.scale

    @property
    def shell(self) -> str:
        """The `make` command that does this again."""
        settings = {"NAME": self.name, "SCALE": self.scale, "ARMS": self.arms, "ONLY": self.only}
        settings |= {"SEEDS": self.seeds, "LAUNCHER": "" if self.launcher == "local" else self.launcher}
        return " ".join(["make experiment", *(f"{key}={value}" for key, value in settings.items() if value)])


def study_file(command: Command) -> Path:
    """experiments/<name>/<scale>.yaml. Raises UserError if there is no such study, scale, stage or launcher."""
    experiments = config.bundled("experiments")
    folder = experiments / command.name
    known = sorted(p.parent.name for p in experiments.glob("*/report.py"))
    if not command.name or not (folder / "report.py").is_file():
        raise UserError(f"no experiment {command.name!r} in {experiments}; there are: {', '.join(known)}")
    file = folder / f"{command.scale}.yaml"
    if not file.is_file():
        scales = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"{command.name} has no scale {command.scale!r} ({file}); there are: {scales}")
    if command.stage != "all" and not set(command.stage.split(",")) <= set(STAGES):
        raise UserError(f"stage is one of all, {', '.join(STAGES)}, or some of them, not {command.stage!r}")
    if command.launcher not in LAUNCHERS:
        raise UserError(f"launcher is one of {', '.join(LAUNCHERS)}, not {command.launcher!r}")
    for name in ("workers", "minutes", "limit"):
        value = getattr(command, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} must be positive, not {value:g}")
    return file


def load(path: Path) -> Any:
    """A study's own Python file as a module (its folder's name is no identifier).

    It may import its neighbours in the folder by their plain names; those are forgotten again afterwards, so that
    two studies can use the same ones.
    """
    spec = importlib.util.spec_from_file_location(f"dlm_{path.stem}_{path.parent.name.replace('-', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        for neighbour in {p.stem for p in path.parent.glob("*.py")} & set(sys.modules):
            del sys.modules[neighbour]
    return module


def whole_numbers(name: str, text: str) -> list[int]:
    """ "0,3" as [0, 3]. Raises UserError."""
    if not all(s.isdecimal() for s in text.split(",")):
        raise UserError(f"{name} are whole numbers separated by commas, not {text!r}")
    return sorted({int(s) for s in text.split(",")})


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
