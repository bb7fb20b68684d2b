"""Curves and results in Weights & Biases, offline unless WANDB_MODE=online. Nothing else needs it.

    python -m dlm.tracking study=outputs/<study>/<scale>                   the study's report as one W&B run
    python -m dlm.tracking study=... do=sync [dry_run=true]                upload what lies here offline
    python -m dlm.tracking study=... do=curves                             the curves in this terminal

A run directory is one W&B run: its name is the id, so a resumed run adds to itself. Every row is logged at its own
training step, and all curves stand against epochs (tokens, flops, targets, steps and seconds are there to choose).
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from dlm import config, device
from dlm.errors import UserError
from dlm.files import newest_row, read_json, read_lines, write_json
from dlm.run import RunDirectory
from dlm.version import code_version

AXES = ("epoch", "tokens", "flops", "targets", "step", "seconds")
CURVES = ("train/*", "tune/*", "report/*", "cooled/*", "w/*", "lr", "tokens_per_second")
MODES = ("offline", "online", "disabled")
UPLOADS = 50  # directories in one call of `wandb sync`


class Curves(WandbLogger):
    """Logs each row at its training step, so that what an interrupted run logs twice falls on the same place.

    A row without a step, a cooled-down branch, comes after all others.
    """

    def __init__(self, experiment: Any, run: RunDirectory):
        super().__init__(experiment=experiment)
        self.last = newest_row(run.metrics).get("step", 0) + len(read_lines(run.branches))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.last = max(self.last + 1 if step is None else step, self.experiment.step)
        self.experiment.log(dict(metrics), step=self.last)


def wandb_logger(cfg: Any, run: RunDirectory, fingerprint: str | None = None) -> Curves:
    """One W&B run per run directory, in the group of its study and scale."""
    method = cfg.method.get("process", cfg.method)["_target_"].rsplit(".", 1)[-1]
    precision = device.resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator, cfg.backbone.dim)
    experiment = start(
        run.path,
        run.path.name,
        f"{cfg.study}/{cfg.scale}",
        "tune" if cfg.scale.split("-")[0] == "tuning" else "train",
        [cfg.cell, cfg.arm, method, cfg.scale, f"seed {cfg.seed}", precision],
        config.resolved(cfg) | {"data_fingerprint": fingerprint, "code": code_version()},
        cfg.logger.mode,
        cfg.logger.project,
    )
    for axis in AXES:
        experiment.define_metric(axis, hidden=True)
    for metrics in CURVES:
        experiment.define_metric(metrics, step_metric="epoch")
    experiment.define_metric("tune/nll", step_metric="epoch", summary="min,last")
    return Curves(experiment, run)


def start(
    folder: Path,
    name: str,
    group: str,
    job: str,
    tags: list[str | None],
    settings: dict[str, Any],
    mode: str,
    project: str,
) -> Any:
    """A W&B run that keeps its files in `folder`. Raises UserError if W&B refuses."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(variable, str(folder))
    import wandb  # an import of seconds, for runs that want it

    if mode not in MODES:
        raise UserError(f"logger.mode (WANDB_MODE) is offline, online or disabled, not {mode!r}")
    try:
        return wandb.init(
            project=project,
            name=name,
            id=name,
            dir=folder,
            group=group,
            job_type=job,
            tags=[tag[:64] for tag in dict.fromkeys(filter(None, tags))],  # as long as a tag may be
            mode=mode,  # pyright: ignore[reportArgumentType]
            resume="allow",
            config=settings,
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
    except wandb.Error as error:
        raise UserError(f"W&B refused (WANDB_MODE={mode}): {' '.join(str(error).split())}") from error


def log_report(study: Path, project: str, mode: str) -> str | None:
    """Figures, verdict, tables and the page of a study as media of one W&B run; None if nothing has changed.

    Raises UserError if the study has no report yet.
    """
    if not (study / "results.json").is_file():
        raise UserError(f"{study} has no results.json yet: make report first")
    results, marker = read_json(study / "results.json"), study / "wandb" / "report.json"
    figures = sorted((study / "figures").glob("*.png"))
    content = [study / "results.json", *figures]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in content)).hexdigest()
    earlier = read_json(marker) if marker.is_file() else {"step": -1, "content": None}
    if earlier["content"] == digest:
        return None
    name, step = f"report-{study.parent.name}-{study.name}", earlier["step"] + 1
    group = f"{study.parent.name}/{study.name}"
    settings = {"study": study.parent.name, "scale": study.name, "data_fingerprint": results.get("fingerprint")}
    run = start(study, name, group, "report", [study.name], settings, mode, project)
    import wandb

    media: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
    for key, (columns, rows) in tables(results).items():
        media[f"tables/{key}"] = wandb.Table(columns=columns, data=rows)  # pyright: ignore[reportArgumentType]
    if (study / "report.html").is_file():
        media["report"] = wandb.Html((study / "report.html").read_text(encoding="utf-8"))
    run.log(media, step=step)
    run.summary["verdict"] = "\n".join(results.get("verdict", []))
    run.finish()
    write_json(marker, {"step": step, "content": digest})
    return name


def tables(results: dict[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """(columns, rows) of every list of objects among the results; what is nested is written as text."""
    found = {}
    for name, rows in results.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            keys = list(dict.fromkeys(key for row in rows for key in row))
            columns = [one_type([row.get(key) for row in rows]) for key in keys]
            found[name] = keys, [list(row) for row in zip(*columns, strict=True)]
    return found


def one_type(column: list[Any]) -> list[Any]:
    """W&B refuses a column of several types: numbers stay numbers, anything mixed or nested becomes text."""
    kinds = {type(value) for value in column if value is not None}
    if kinds <= {int, float} or kinds in ({str}, {bool}):
        return [float(value) if kinds == {int, float} and value is not None else value for value in column]
    return [value if value is None else str(value) for value in column]


def offline_runs(study: Path) -> list[Path]:
    """The offline directories of a study's runs and of its report, oldest first; a resumed run has several."""
    found = [*study.glob("runs/*/wandb/offline-run-*"), *study.glob("wandb/offline-run-*")]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=lambda path: path.name)


def is_uploaded(directory: Path) -> bool:
    return any(directory.glob("*.wandb.synced"))


def is_finished(directory: Path) -> bool:
    """Whether nothing will be added: the report's, and those of runs that have their record."""
    owner = directory.parent.parent
    return owner.parent.name != "runs" or RunDirectory(owner).finished


def sync(study: Path, dry_run: bool, unfinished: bool) -> None:
    """Upload what has not been uploaded; W&B appends the directories of one run in the order of their start.

    Raises UserError without a login, or if an upload fails.
    """
    everything = offline_runs(study)
    waiting = [path for path in everything if not is_uploaded(path) and (unfinished or is_finished(path))]
    busy = sum(not is_uploaded(path) for path in everything) - len(waiting)
    for path in waiting:
        print(f"  {path.relative_to(study)}")
    note = f", {busy} of unfinished runs wait (unfinished=true takes them along)" if busy else ""
    print(f"{len(waiting)} of {len(everything)} offline directories are to be uploaded{note}", flush=True)
    if dry_run or not waiting:
        return
    import wandb

    if not wandb.login(prompt=False):
        raise UserError("not logged in to W&B: run `wandb login` or set WANDB_API_KEY; everything stays here")
    for start_at in range(0, len(waiting), UPLOADS):
        part = [str(path) for path in waiting[start_at : start_at + UPLOADS]]
        if subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *part]).returncode:
            raise UserError("`wandb sync` failed; what it has uploaded is marked, so the same command goes on")


def gather_links(study: Path) -> Path:
    """A folder that holds all the W&B directories of a study, as links, for viewers that want one folder.

    Raises UserError if there are none.
    """
    folder = study / "wandb"
    directories = [path for path in study.glob("runs/*/wandb/*run-*-*") if path.is_dir()]
    if not directories and not any(folder.glob("*run-*")):
        raise UserError(
            f"{study} has no W&B runs (logger=wandb writes them); make report shows the curves as well"
        )
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink() and not old.exists():
            old.unlink()
    for directory in directories:
        link = folder / directory.name
        if not link.exists():
            link.symlink_to(os.path.relpath(directory, folder))
    return folder


def show_curves(study: Path) -> None:
    """W&B's terminal view of a study, in place of this process. Raises UserError where there is no terminal."""
    folder = gather_links(study)
    if not sys.stdout.isatty():
        raise UserError(f"no terminal to draw in; elsewhere: wandb leet {folder}")
    os.execv(sys.executable, [sys.executable, "-m", "wandb", "leet", str(folder)])


@dataclass
class Command:
    """The command line."""

    study: str = ""
    do: str = "report"  # report, sync, curves
    dry_run: bool = False  # of sync: list, upload nothing
    unfinished: bool = False  # of sync: also runs that are still without a record
    project: str = "dlm"


def main() -> None:
    command: Command = config.command_line(Command, sys.argv[1:])
    if not command.study:
        raise UserError("which study? python -m dlm.tracking study=outputs/<study>/<scale>")
    study = Path(command.study).resolve()
    if not study.is_dir():
        raise UserError(f"there is no study {command.study}")
    if command.do == "report":
        name = log_report(study, command.project, os.environ.get("WANDB_MODE", "offline"))
        print(f"logged as {name} in {study / 'wandb'}" if name else "the report is logged already")
    elif command.do == "sync":
        sync(study, command.dry_run, command.unfinished)
    elif command.do == "curves":
        show_curves(study)
    else:
        raise UserError(f"do is report, sync or curves, not {command.do!r}")


if __name__ == "__main__":
    config.entry(main)
