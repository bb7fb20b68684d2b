"""Corpora: where documents come from, and nothing else.

A new corpus (a hub data set, say) is one class here with a `name` and `documents()`.
"""

import sysconfig
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from dlm.errors import UserError


class Corpus(ABC):
    """A named collection of documents; a document is the unit that is never divided between splits."""

    name: str

    @abstractmethod
    def documents(self) -> Iterator[tuple[str, str]]:
        """(document id, text) pairs; ids are unique and stable, since the split is a hash of them."""


class Pydoc(Corpus):
    """`pydoc_data.topics`: the language reference as plain text, 0.46 M characters, present in every CPython."""

    name = "pydoc"

    def documents(self) -> Iterator[tuple[str, str]]:
        from pydoc_data.topics import topics

        yield from topics.items()


class StandardLibrary(Corpus):
    """The source code of the running Python's standard library, one document per file, about 8 MB."""

    name = "stdlib"

    # Tables of constants, near-copies of other modules, and what some systems leave out.
    # fmt: off
    EXCLUDED = frozenset({
        "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "distutils", "ensurepip", "turtledemo",
        "tkinter", "msilib", "site-packages", "dist-packages", "__pycache__",
    })
    # fmt: on

    def documents(self) -> Iterator[tuple[str, str]]:
        root = Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if self.EXCLUDED.isdisjoint(relative.parts):
                with tokenize.open(path) as file:  # honours PEP 263 encoding declarations
                    yield relative.as_posix(), file.read()


class TextFile(Corpus):
    """Any UTF-8 text file; its paragraphs are its documents."""

    name = "file"

    def __init__(self, path: str | Path | None) -> None:
        if path is None:
            raise UserError("data.path is not set: data=file needs data.path=<a UTF-8 text file>")
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"data.path={path}: no such file")
        if self.path.is_dir():
            raise UserError(f"data.path={path} is a directory, not a text file")

    def documents(self) -> Iterator[tuple[str, str]]:
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"data.path={self.path} is not UTF-8 text (byte {error.start})") from error
        except PermissionError as error:
            raise UserError(f"data.path={self.path} may not be read") from error
        if "\0" in text:
            raise UserError(f"data.path={self.path} is a binary file (it holds NUL characters)")
        if not text.strip():
            raise UserError(f"data.path={self.path} is empty")
        for number, paragraph in enumerate(paragraphs(text)):
            yield f"paragraph {number}", paragraph


def paragraphs(text: str) -> list[str]:
    """Maximal blocks of non-blank lines, indentation kept."""
    blocks, block = [], []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            blocks.append("\n".join(block))
            block = []
    return blocks
