"""The draws of one likelihood of one checkpoint: an append-only file, one line per window, round and temperature.

A killed evaluation continues where it was: noise is a function of (round, window), so what is missing is computed
as it would have been.  The file is named by a hash of everything that decides its numbers, the content of the
checkpoint among it: results of another checkpoint, split or setting are never mixed in.  The batch size, the
number of processes and the number of windows asked for decide nothing and are not part of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from dlm.files import append_row, drop_torn_line, read_lines, writing


class Entry(NamedTuple):
    """The draws of one window in one round at one temperature, and what they cost."""

    temperature: float
    round: int
    window: int  # its number in the split
    tokens: int
    nats: list[float]  # one number per draw
    rows: float  # sequences read by the network
    seconds: float


class Ledger:
    """Entries by (temperature, round, window), in `<directory>/<name>-<hash of identity>.jsonl` or in memory."""

    def __init__(self, directory: Path | None, name: str, identity: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        self.path = None if directory is None else directory / f"{name}-{digest}.jsonl"
        self.identity = identity
        self.entries: dict[tuple[float, int, int], Entry] = {}

    def open(self) -> list[Entry]:
        """What the file holds, after mending a torn last line; written anew with its identity if there is none."""
        if self.path is None:
            return []
        with writing(self.path.parent):
            self.path.parent.mkdir(exist_ok=True)
        drop_torn_line(self.path)
        rows = read_lines(self.path)
        if not rows:
            append_row(self.path, {"identity": self.identity})
        return [Entry(**row) for row in rows if "identity" not in row]

    def take(self, entries: list[Entry]) -> None:
        """Keep entries in memory."""
        self.entries |= {(e.temperature, e.round, e.window): e for e in entries}

    def write(self, entries: list[Entry]) -> None:
        """Append them to the file."""
        if self.path is not None:
            for entry in entries:
                append_row(self.path, entry._asdict())


def content_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
