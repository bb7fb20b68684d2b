"""A run's directory: what lies in it, and how it survives being killed at any moment.

    config.yaml      the resolved configuration
    metrics.jsonl    append-only; one object per training or evaluation row; the last of a repeated step counts
    windows.jsonl    append-only; every held-out window's score, for paired comparisons
    branches.jsonl   append-only; one object per cooled-down branch that is done
    begun.json       the code version that trains it: no other continues it
    last.ckpt        where an interrupted run continues; best.ckpt, the lowest tune loss
    forks/           where branches leave the trunk, until the run is finished
    snapshots/       averaged weights: epoch-<e>.ckpt of the trunk, cooled-<e>.ckpt of a branch
    record.json      written last: the run is finished

Whole files are written beside their place and moved into it, so a reader never sees half of one.
"""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dlm.errors import UserError
from dlm.files import drop_torn_line, held, read_json, write_atomically


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.record = path / "config.yaml", path / "record.json"
        self.metrics, self.windows = path / "metrics.jsonl", path / "windows.jsonl"
        self.last, self.best = path / "last.ckpt", path / "best.ckpt"
        self.begun = path / "begun.json"
        self.branches, self.forks, self.snapshots = path / "branches.jsonl", path / "forks", path / "snapshots"

    def create(self) -> None:
        """Make the directory ready for (more) training. Raises UserError if it cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise UserError(f"cannot write to the run directory {self.path}: {error.strerror}") from error

    @property
    def finished(self) -> bool:
        return self.record.is_file()

    def checkpoint(self, name: str) -> Path:
        """ "best", or the name of a snapshot such as epoch-32 or cooled-96."""
        snapshot = self.snapshots / f"{name}.ckpt"
        return snapshot if snapshot.is_file() else self.path / f"{name}.ckpt"

    @property
    def checkpoints(self) -> list[str]:
        """Names of the weights that were kept, by epoch: the trunk's snapshots, the branches', the best."""

        def epoch(name: str) -> tuple[bool, float]:
            kind, _, value = name.partition("-")
            return kind != "epoch", float(value)

        names = sorted((p.stem for p in self.snapshots.glob("*-*.ckpt")), key=epoch)
        return [*names, *(["best"] if self.best.is_file() else [])]

    def read_record(self) -> dict[str, Any]:
        return read_json(self.record)

    def read_config(self) -> dict[str, Any]:
        """Raises UserError if this is no run directory."""
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no config.yaml")
        return yaml.safe_load(self.config.read_text())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second process, and clear up after a killed one; the lock dies with its holder.

        Raises:
            UserError: if another process is training this very run.
        """
        with held(self.path / ".lock", f"another process is training {self.path}"):
            for rows in (self.metrics, self.windows, self.branches):
                drop_torn_line(rows)
            for half in [*self.path.glob("*.tmp"), *self.path.glob("*/*.tmp")]:
                half.unlink(missing_ok=True)
            yield


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that exist whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, beside)
        except (OSError, RuntimeError) as error:
            beside.unlink(missing_ok=True)
            raise UserError(f"cannot write the checkpoint {path}: {error}") from error
        os.replace(beside, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path), map_location)


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Raises UserError naming the file if it is missing, truncated or not a checkpoint."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the checkpoint {path} is truncated or corrupt ({reason}): delete it to start over"
        ) from error
