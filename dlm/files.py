"""Files that a reader never sees half of: whole ones are moved into place, rows are appended in one write."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.errors import UserError


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One line, in one write. Raises UserError if it cannot be written (a full disk)."""
    with writing(path), open(path, "ab") as file:
        file.write((json.dumps(row) + "\n").encode())


def newest_row(path: Path) -> dict[str, Any]:
    """The last whole row of an append-only file; empty if there is none."""
    return next(reversed(read_lines(path)), {})


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


@contextmanager
def held(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file against a second process; the lock dies with its holder.

    Raises:
        UserError: saying `taken` if another process holds it.
    """
    with writing(path):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(taken) from error
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises UserError, naming the file, where it is missing or is not one."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of an append-only JSON-lines file; [] where there is none yet.

    A torn last line is what an interrupted run leaves behind and is ignored. Raises UserError, naming file and
    line, for any other line that is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}:{number}: corrupt line (not a JSON object)")
    return rows
