"""A run's directory: what lies in it, and how it survives being killed at any moment.

    config.yaml      the resolved configuration
    metrics.jsonl    append-only; one object per training or evaluation row; the last of a repeated step counts
    windows.jsonl    append-only; every held-out window's score, for paired comparisons
    last.ckpt        where an interrupted run continues; best.ckpt, the lowest tune loss
    record.json      written last: the run is finished

Whole files are written beside their place and moved into it, so a reader never sees half of one.
"""

import fcntl
import json
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


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.record = path / "config.yaml", path / "record.json"
        self.metrics, self.windows = path / "metrics.jsonl", path / "windows.jsonl"
        self.last, self.best = path / "last.ckpt", path / "best.ckpt"

    def create(self) -> None:
        """Make the directory ready for (more) training. Raises UserError if it cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / ".writable", b"")
            (self.path / ".writable").unlink(missing_ok=True)  # another rank may have been faster
        except OSError as error:
            raise UserError(f"cannot write to the run directory {self.path}: {error.strerror}") from error

    @property
    def finished(self) -> bool:
        return self.record.is_file()

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
        with open(self.path / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another process is training {self.path}") from error
            for rows in (self.metrics, self.windows):
                drop_torn_line(rows)
            for half in self.path.glob("*.tmp"):
                half.unlink()
            yield


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One line, in one write. Raises UserError if it cannot be written (a full disk)."""
    with writing(path), open(path, "ab") as file:
        file.write((json.dumps(row) + "\n").encode())


def newest_row(path: Path) -> dict[str, Any]:
    """The last whole row of an append-only file; empty if there is none."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((json.loads(line) for line in reversed(lines) if line.startswith("{") and line.endswith("}")), {})


def drop_torn_line(path: Path) -> None:
    """Cut off what a killed process left of its last line, so that the next row starts on a line of its own."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, move into place. Raises UserError if it cannot be written."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line which file could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError naming the file if it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


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
