"""A folder of files that is either whole or rebuilt.

The folder's name is a hash of everything its content depends on, so a stale cache cannot be read; `meta.json`
holds the size and SHA-256 of each file, so neither can a damaged one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dlm.errors import UserError

META = "meta.json"


def cached(folder: Path, build: Callable[[Path], dict]) -> dict:
    """The meta data of `folder`; if it is absent or damaged, `build(temporary)` writes its files and returns them.

    The folder appears in one rename. Processes that build the same thing at once both succeed: the first rename
    wins, the others find its equal in place.
    """
    meta = read_intact(folder)
    if meta is not None:
        return meta
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"data.cache_dir={folder.parent} is not a folder that can be written to") from error
    try:
        content = temporary / "content"
        content.mkdir()
        meta = {**build(content), "files": manifest(content)}
        (content / META).write_text(json.dumps(meta, indent=1))
        if folder.exists() and read_intact(folder) is None:
            with suppress(FileNotFoundError):  # another process has just moved it
                os.replace(folder, temporary / "damaged")
        try:
            os.replace(content, folder)
        except OSError:  # another process was first
            meta = read_intact(folder)
            if meta is None:
                raise
    finally:
        shutil.rmtree(temporary)
    return meta


def manifest(folder: Path) -> dict[str, dict]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(folder.iterdir())
    }


def read_intact(folder: Path) -> dict | None:
    """The meta data of a folder whose files are all there, of the right size and content; otherwise None."""
    try:
        meta = json.loads((folder / META).read_text())
        for name, expected in meta["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
                return None
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError, KeyError):
        return None
    return meta


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
