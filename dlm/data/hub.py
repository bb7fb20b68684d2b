"""Corpora of the Hugging Face hub, or local files of the same layout: as many first documents as are needed.

A corpus is pinned to a revision and read as a stream, in the order of its files. C4's is random; where an order is
not, a budget is the beginning of the corpus, not a sample of it. Only what is kept is stored: tokens and document
numbers, once per (corpus, revision, tokenizer, sizes), in the cache that every source uses.
"""

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from platform import python_version
from typing import Any

from dlm.data.cache import cached
from dlm.data.split import PREPARATION, digest
from dlm.data.stream import build_streamed
from dlm.data.text import TextSource
from dlm.data.tokenizer import Tokenizer
from dlm.errors import UserError

STREAMING = 1
"""Part of every cache name: raise it with any change to what a stream becomes."""

READERS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json"}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
DECODING = (ValueError, EOFError, zlib.error, lzma.LZMAError)
"""What a damaged file raises; Arrow's errors are ValueErrors."""


class HubText(TextSource):
    """A corpus with a `text` column, prepared by dlm.data.stream: see there for splits and de-duplication.

    Args:
        clean_lines: whether lines are cut out of documents, or only repeated documents dropped.
        held_out_split: the split of the data set that held-out text comes from, and part of the names of its local
            files; None: the beginning of `train` is held out.
        train_tokens: the pool that is prepared. Runs that are to be compared share it; their budgets are prefixes.
        held_out_tokens: in each of tune and report.
        path: a folder of .parquet, .arrow, .jsonl or .json files, possibly compressed, instead of the hub.

    Raises UserError if the hub cannot be reached, a file has no such layout, or the corpus is too small.
    """

    def __init__(
        self,
        name: str,
        dataset: str,
        seq_len: int,
        train_tokens: int,
        held_out_tokens: int,
        tokenizer: Tokenizer,
        subset: str | None = None,
        revision: str = "main",
        held_out_split: str | None = None,
        clean_lines: bool = True,
        unique_tokens: int | None = None,
        path: str | Path | None = None,
        cache_dir: str | Path = ".cache/data",
    ) -> None:
        for key, value in {"train_tokens": train_tokens, "held_out_tokens": held_out_tokens}.items():
            if value < 1:
                raise UserError(f"data.{key}={value} must be positive")
        if unique_tokens is not None and unique_tokens > train_tokens:
            raise UserError(
                f"data.unique_tokens={unique_tokens} exceeds data.train_tokens={train_tokens}, the pool of "
                f"'{name}' that is prepared: raise it"
            )
        if tokenizer.learns:
            raise UserError(f"'{name}' is read as a stream, which no tokenizer can be fitted on: gpt2 or bytes")
        corpus = LocalFiles(Path(path), held_out_split) if path else Hub(dataset, subset, revision, held_out_split)
        settings = (train_tokens, held_out_tokens, clean_lines, PREPARATION, STREAMING)
        key = digest(corpus.identity, tokenizer.fingerprint, *map(str, settings))[:16]
        wanted = {"train": train_tokens, "tune": held_out_tokens, "report": held_out_tokens}

        def build(folder: Path) -> dict:
            tokenizer.fit([], folder)
            held_out = corpus.documents(held_out_split) if held_out_split else None
            train = corpus.documents("train")
            built = build_streamed(train, held_out, wanted, tokenizer.load(folder), folder, clean_lines)
            about = {"name": name, "python": python_version(), **corpus.audit()}
            return built | {"audit": about | {"vocab_size": tokenizer.load(folder).vocab_size} | built["audit"]}

        self.folder = Path(cache_dir).resolve() / f"{name}-{key}"
        # Where the files came from does not change a score: the fingerprint is of their content alone.
        content = digest(tokenizer.fingerprint, str(PREPARATION), str(STREAMING))
        self._open(name, content, cached(self.folder, build), tokenizer, seq_len, unique_tokens)


class Hub:
    """A data set of the hub, at one revision."""

    def __init__(self, dataset: str, subset: str | None, revision: str, held_out_split: str | None) -> None:
        self.dataset, self.subset, self.revision = dataset, subset, revision
        self.identity = digest(dataset, str(subset), revision, str(held_out_split))
        self.commit = revision

    def audit(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "subset": self.subset, "revision": self.commit}

    def documents(self, split: str) -> Iterator[str]:
        """Raises UserError if the hub cannot be reached."""
        from datasets.exceptions import DatasetsError
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

        with_subset = f"{self.dataset} ({self.subset})" if self.subset else self.dataset
        try:
            # First a request that gives up soon; it says which commit a branch's name stands for.
            self.commit = (
                HfApi().dataset_info(self.dataset, revision=self.revision, timeout=10).sha or self.revision
            )
            yield from texts_of(
                self.dataset, name=self.subset, revision=self.commit, split=split, where=with_subset
            )
        except (OSError, HTTPError, DatasetsError, *DECODING) as error:
            raise UserError(
                f"the corpus {with_subset}, split {split}, could not be read from the Hugging Face hub "
                f"({reason(error)}): connect once, or set data.path=<a folder with its files>"
            ) from error


class LocalFiles:
    """Files of a folder; those whose names hold the name of the held-out split are that split."""

    def __init__(self, path: Path, held_out_split: str | None) -> None:
        if not path.is_dir():
            raise UserError(f"data.path={path} is not a folder of .parquet, .arrow, .jsonl or .json files")
        self.path, self.held_out_split = path.resolve(), held_out_split
        files = sorted(file for file in path.rglob("*") if file.is_file() and kind(file))
        if len({kind(file) for file in files}) != 1:
            found = "files of several kinds" if files else "no .parquet, .arrow, .jsonl or .json file"
            raise UserError(f"data.path={path} holds {found}: one kind is needed, with a column 'text'")
        held_out = [file for file in files if held_out_split and held_out_split in file.name]
        self.files = {"train": [file for file in files if file not in held_out]}
        if held_out_split:
            self.files[held_out_split] = held_out
        for split, members in self.files.items():
            if not members:
                raise UserError(
                    f"data.path={path} has no file of the split {split!r}: its name is to hold that word"
                )
        stats = [(file, file.stat()) for file in files]
        self.identity = digest(*(f"{file}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats))

    def audit(self) -> dict[str, Any]:
        return {"files": {split: len(members) for split, members in self.files.items()}}

    def documents(self, split: str) -> Iterator[str]:
        """Raises UserError for a file that cannot be read or has no column `text`."""
        from datasets.exceptions import DatasetsError

        members = [str(file) for file in self.files[split]]
        where = f"data.path={self.path}"
        try:
            yield from texts_of(kind(Path(members[0])), data_files={split: members}, split=split, where=where)
        except (OSError, DatasetsError, *DECODING) as error:
            raise UserError(f"{where}: a file of the split {split!r} cannot be read ({reason(error)})") from error


def texts_of(loader: str, where: str, **options: Any) -> Iterator[str]:
    """The `text` column of a stream of rows. Raises UserError if there is none."""
    import datasets  # 1.7 s to import, and only needed to build

    for row in datasets.load_dataset(loader, streaming=True, **options):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            columns = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{where} has no column 'text' of strings, but {columns}")
        yield row["text"]


def kind(file: Path) -> str:
    """The reader of a file by its name; empty if there is none."""
    suffixes = [suffix for suffix in file.suffixes if suffix not in COMPRESSED]
    return READERS.get(suffixes[-1], "") if suffixes else ""


def reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
