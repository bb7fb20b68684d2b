"""Text as token streams: a corpus, split and audited, tokenised once and read by memory map ever after."""

from pathlib import Path
from platform import python_version

import numpy as np
from jaxtyping import Int, UInt
from numpy.typing import ArrayLike

from dlm.data.cache import cached
from dlm.data.corpus import Corpus, Pydoc, StandardLibrary, TextFile
from dlm.data.source import SPLITS, Source, check_budget
from dlm.data.split import PREPARATION, SEPARATOR, digest, prepare
from dlm.data.tokenizer import Characters, Tokenizer
from dlm.errors import UserError


class TextSource(Source):
    """The three splits of a corpus, each one flat file of ids in a folder named by a hash of
    (content of the corpus, tokenizer, version of the preparation).

    Raises UserError if a split is too small for a window of `seq_len`, or `unique_tokens` is out of range.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        unique_tokens: int | None = None,
        tokenizer: Tokenizer | None = None,
        cache_dir: str | Path = ".cache/data",
    ) -> None:
        tokenizer = tokenizer or Characters()
        documents = sorted(corpus.documents())
        content = digest(*(part for document in documents for part in document))
        key = digest(content, tokenizer.fingerprint, str(PREPARATION))[:16]
        self.folder = Path(cache_dir).resolve() / f"{corpus.name}-{key}"
        meta = cached(self.folder, lambda folder: build(corpus.name, documents, content, tokenizer, folder))
        self._open(corpus.name, key, meta, tokenizer, seq_len, unique_tokens)

    def _open(
        self, name: str, key: str, meta: dict, tokenizer: Tokenizer, seq_len: int, unique_tokens: int | None
    ) -> None:
        """Read what `self.folder` holds. Raises UserError for a budget or a window that does not fit."""
        self.seq_len = seq_len
        self.unique_tokens = unique_tokens
        self.tokenizer = tokenizer.load(self.folder)
        self.vocab_size = self.tokenizer.vocab_size
        self.audit = meta["audit"]
        self.fingerprint = digest(key, *(file["sha256"] for file in meta["files"].values()))[:16]
        self._dtype = meta["dtype"]
        check_budget(name, self.audit["tokens"]["train"], unique_tokens, seq_len)
        for split, count in self.audit["tokens"].items():
            if count < seq_len:
                raise UserError(f"'{name}': {split} holds {count} tokens, not one window of seq_len={seq_len}")

    def tokens(self, split: str) -> UInt[np.ndarray, " U"]:
        # Opened anew each time, so that a source stays a few strings to pickle for a worker.
        stream = np.memmap(self.folder / token_file(split), dtype=self._dtype, mode="r")
        return stream[: self.unique_tokens] if split == "train" else stream

    def documents(self, split: str) -> UInt[np.ndarray, " U"]:
        numbers = np.memmap(self.folder / document_file(split), dtype="uint32", mode="r")
        return numbers[: self.unique_tokens] if split == "train" else numbers

    def chars(self, split: str) -> int:
        if split == "train" and self.unique_tokens is not None:
            return len(self.decode(self.tokens(split)))
        return self.audit["chars"][split]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: ArrayLike) -> str:
        return self.tokenizer.decode(ids)


def build(name: str, documents: list[tuple[str, str]], content: str, tokenizer: Tokenizer, folder: Path) -> dict:
    """Prepare, fit the tokenizer on train, tokenise and write; returns the meta data of the cache."""
    prepared = prepare(documents)
    for split in SPLITS:
        if not prepared.paragraphs[split]:
            raise UserError(
                f"'{name}' is too small to split: nothing is left for {split} of {len(documents)} documents"
            )
    # A paragraph carries the separator that follows it, so that the ids of a split decode to its text exactly.
    texts = {s: [text + SEPARATOR for text in ps[:-1]] + ps[-1:] for s, ps in prepared.paragraphs.items()}
    tokenizer.fit(texts["train"], folder)
    fitted = tokenizer.load(folder)
    dtype = "uint16" if fitted.vocab_size <= 2**16 else "uint32"
    streams = {}
    for split in SPLITS:
        streams[split], lengths = tokenise(texts[split], fitted, dtype)
        streams[split].tofile(folder / token_file(split))
        np.repeat(np.array(prepared.documents[split], dtype="uint32"), lengths).tofile(
            folder / document_file(split)
        )
    audit = {
        "name": name,
        "python": python_version(),
        "sha256": content,
        "vocab_size": fitted.vocab_size,
        "tokens": {split: len(stream) for split, stream in streams.items()},
        "unknown": {split: int((stream == fitted.unknown_id).sum()) for split, stream in streams.items()},
        **prepared.audit,
    }
    return {"dtype": dtype, "audit": audit}


def tokenise(
    texts: list[str], tokenizer: Tokenizer, dtype: str
) -> tuple[UInt[np.ndarray, " U"], Int[np.ndarray, " texts"]]:
    """The ids of all texts, end to end, and how many each has."""
    import datasets  # 1.7 s to import, and only needed to build

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": texts}).map(
        lambda batch: {"ids": tokenizer.encode_batch(batch["text"])},
        batched=True,
        remove_columns=["text"],
        features=datasets.Features({"ids": datasets.List(datasets.Value(dtype))}),
        new_fingerprint=digest(tokenizer.fingerprint, *texts)[:16],
    )
    chunks = rows.data.column("ids").chunks
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks])
    return np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]), lengths


def token_file(split: str) -> str:
    return f"tokens-{split}.bin"


def document_file(split: str) -> str:
    return f"documents-{split}.bin"


def pydoc(
    seq_len: int,
    unique_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache_dir: str | Path = ".cache/data",
) -> TextSource:
    """Python's language reference: small, clean English prose that every machine already has."""
    return TextSource(Pydoc(), seq_len, unique_tokens, tokenizer, cache_dir)


def stdlib(
    seq_len: int,
    unique_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache_dir: str | Path = ".cache/data",
) -> TextSource:
    """The source code of Python's standard library: about 8 MB that every machine already has."""
    return TextSource(StandardLibrary(), seq_len, unique_tokens, tokenizer, cache_dir)


def file(
    path: str | Path | None,
    seq_len: int,
    unique_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache_dir: str | Path = ".cache/data",
) -> TextSource:
    """Any UTF-8 text file."""
    return TextSource(TextFile(path), seq_len, unique_tokens, tokenizer, cache_dir)
