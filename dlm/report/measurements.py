"""What a laboratory has measured, as its report reads it: files only, no torch (see dlm.laboratory).

measured = Measurements(directory)
curves = measured.json("curves.json")       # UserError, naming file and line, if it is missing or corrupt
Figure(name, save(figure, directory, name), caption, measured.again)
return measured.write(html, results)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dlm.errors import UserError
from dlm.files import read_json, write_atomically, write_json
from dlm.report.page import Table


class Measurements:
    """The directory of a measured laboratory and the record of how it was measured.

    Raises:
        UserError: if the directory, its laboratory.json or a key of that is missing or corrupt.
    """

    def __init__(self, directory: Path):
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory: nothing was measured there")
        self.directory = directory
        self.record = read_json(directory / "laboratory.json")
        for key in ("study", "scale", "command", "settings", "code", "started", "seconds", "machine", "versions"):
            if key not in self.record:
                raise UserError(f"{directory / 'laboratory.json'}: has no {key!r}")

    @property
    def smoke(self) -> bool:
        """Whether the scale only proves the machinery."""
        return "smoke" in self.record["scale"]

    @property
    def again(self) -> str:
        """The command that draws the report again, from the files."""
        return f"python experiments/{self.record['study']}/report.py {self.directory}"

    def json(self, name: str, *keys: str) -> dict[str, Any]:
        """A measured file that has at least these keys. Raises UserError where it has not."""
        content = read_json(self.directory / name)
        for key in keys:
            if key not in content:
                raise UserError(f"{self.directory / name}: has no {key!r}")
        return content

    def csv(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """The numbers behind a figure, beside it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([head, *rows])
        write_atomically(self.directory / name, text.getvalue().encode())

    def write(self, html: str, results: dict[str, Any]) -> Path:
        """report.html and results.json; returns the page's path."""
        write_json(self.directory / "results.json", results)
        write_atomically(self.directory / "report.html", html.encode())
        return self.directory / "report.html"

    def provenance(self) -> list[Table]:
        """Commands, versions, machine, time and every setting."""
        record = self.record
        facts = [
            ("command", Markup("<code>{}</code>").format(record["command"])),
            ("this report again", Markup("<code>{}</code>").format(self.again)),
            ("started", record["started"]),
            ("time taken", f"{record['seconds']:g} s of measuring"),
            ("code fingerprint", Markup("<code>{}</code>").format(record["code"])),
            ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
            ("machine", record["machine"]),
        ]
        settings = [(key, json.dumps(value)) for key, value in record["settings"].items()]
        return [Table(["<", "<"], facts), Table(["<setting", "<value"], settings, folded="Every setting")]
