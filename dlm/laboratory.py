"""A laboratory: a study that measures by itself, where the other kind plans many training runs.

A folder experiments/<name>/ is a laboratory if it holds

    measure.py    SETTINGS: dict[str, type]                  every key of a scale file, and its type
                  measure(settings: dict, directory: Path)   writes JSON and CSV files (dlm.files), prints progress
    report.py     main(directory: Path) -> Path              report.html, results.json, the CSV behind each figure
                  verdict_lines(results: dict) -> list[str]  what the command prints at the end
    laptop.yaml   smoke.yaml   README.md

`measure.py` may import torch and all of dlm; `report.py` never reaches torch and reads what was measured through
dlm.report.measurements. Either may be divided among neighbours in the folder, measure_*.py and report_*.py,
imported by their plain names. `python -m dlm.experiment name=<name> scale=<scale>` measures into
<output_dir>/<name>/<scale>/ and then reports; laboratory.json, written last, says of which settings and which
code the measurements are, and the same ones are never taken twice. One process, one thread. stage=plan prints
what would be done, stage=report takes what is there. `seeds=0,1` replaces the scale's list where SETTINGS has
`seeds`; the options of a plan of runs (arms, workers, minutes, ...) mean nothing here and are refused.
"""

import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from dlm import config, device
from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.study.command import Command, load, study_file, whole_numbers

RECORD = "laboratory.json"
STAGES = ("all", "plan", "report")
MEANINGLESS = ("arms", "only", "workers", "minutes", "limit", "launcher", "any_code")


def is_laboratory(command: Command) -> bool:
    """Whether the study measures by itself. Raises UserError if there is no such study or scale."""
    return (study_file(command).parent / "measure.py").is_file()


class Laboratory:
    """One laboratory at one scale: its settings, its code, its directory."""

    def __init__(self, command: Command):
        self.file = study_file(command)
        self.folder = self.file.parent
        for option in MEANINGLESS:
            given = getattr(command, option)
            if given != getattr(Command, option):
                raise UserError(f"{command.name} is a laboratory and has no {option}: leave out {option}={given}")
        if command.stage not in STAGES:
            raise UserError(f"{command.name} is a laboratory: its stage is one of {', '.join(STAGES)}")
        self.command = command
        self.module = load(self.folder / "measure.py")
        self.settings = checked(self.file, self.module.SETTINGS)
        if command.seeds:
            if "seeds" not in self.settings:
                raise UserError(f"{command.name} draws nothing at random: leave out seeds={command.seeds}")
            self.settings["seeds"] = whole_numbers("seeds", command.seeds)
        self.directory = Path(command.output_dir) / command.name / command.scale
        self.code = fingerprint(self.folder)

    @property
    def state(self) -> str:
        """ "measured", "missing", or why what is there is not what would be measured now."""
        if not (self.directory / RECORD).is_file():
            return "missing"
        record = read_json(self.directory / RECORD)
        if record.get("settings") != self.settings:
            return "of other settings"
        return "measured" if record.get("code") == self.code else "of other code"

    def show(self) -> None:
        state = {"measured": "measured", "missing": "not yet measured"}.get(
            self.state, f"measured, but {self.state}"
        )
        print(f"{self.command.name}, scale {self.command.scale}: a laboratory, {state}")
        for key, value in self.settings.items():
            print(f"  {key}: {value}")

    def measure(self) -> None:
        """Measure, unless the measurements of these settings and this code are there."""
        if self.state == "measured":
            print(f"measured before, with the same settings and code: {self.directory}")
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / RECORD).unlink(missing_ok=True)  # from here on the files are of two minds
        except OSError as error:
            raise UserError(f"cannot write to {self.directory}: {error.strerror}") from error
        started, begin = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small tensors: more threads only wait for each other
        try:
            self.module.measure(dict(self.settings), self.directory)
            machine = device.describe()
        finally:
            torch.set_num_threads(threads)
        seconds = round(time.perf_counter() - begin, 1)
        write_json(
            self.directory / RECORD,
            {
                "study": self.command.name,
                "scale": self.command.scale,
                "command": f"make experiment NAME={self.command.name} SCALE={self.command.scale}"
                + (f" SEEDS={self.command.seeds}" if self.command.seeds else ""),
                "settings": self.settings,
                "code": self.code,
                "started": started,
                "seconds": seconds,
                "machine": machine,
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            },
        )
        print(f"measured in {seconds:g} s", flush=True)

    def report(self) -> tuple[Path, list[str]]:
        """The laboratory's own report; returns the page and its verdict lines."""
        state = self.state
        if state == "missing":
            raise UserError(
                f"nothing measured in {self.directory}; first run: "
                f"make experiment NAME={self.command.name} SCALE={self.command.scale}"
            )
        if state != "measured":
            print(f"note: the measurements are {state} than would be used now")
        module = load(self.folder / "report.py")
        page = module.main(self.directory)
        return page, module.verdict_lines(read_json(self.directory / "results.json"))


def run(command: Command) -> None:
    """Measure and report, or the part of it that `stage` asks for."""
    laboratory = Laboratory(command)
    if command.stage != "report":
        laboratory.show()
    if command.stage == "all":
        laboratory.measure()
    if command.stage != "plan":
        page, verdict = laboratory.report()
        print("\n".join(["", *verdict, "", f"report: {page}"]))


def checked(file: Path, types: dict[str, type]) -> dict[str, Any]:
    """The settings of a scale's file, every key present, known and of its type.

    Raises:
        UserError: naming the file and the first key that is not.
    """
    try:
        settings = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file}: expected keys and values")
    for key in settings:
        if key not in types:
            raise UserError(f"{file}: unknown key {key!r}; there are: {', '.join(types)}")
    for key, kind in types.items():
        if key not in settings:
            raise UserError(f"{file}: has no {key!r}")
        value = settings[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            settings[key] = value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{file}: {key} is {value!r}, expected {kind.__name__}")
    return settings


def fingerprint(folder: Path) -> str:
    """A hash of all that may decide a number: the laboratory's code, the package, its methods, torch's version."""
    measure, conf = sorted(folder.glob("measure*.py")), sorted(config.bundled("conf").rglob("*.yaml"))
    digest = hashlib.sha256(json.dumps(torch.__version__).encode())
    for path in [*measure, *sorted(config.PACKAGE.rglob("*.py")), *conf]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
