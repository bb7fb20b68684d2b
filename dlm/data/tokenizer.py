"""Tokenizers: a fixed table of characters, and byte-level BPE fitted on the training split alone."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt
from numpy.typing import ArrayLike

from dlm.errors import UserError

if TYPE_CHECKING:
    import tokenizers


class Tokenizer(ABC):
    """Text to ids and back. One that learns from data is first fitted into a folder, then loaded from there."""

    vocab_size: int
    unknown_id: int | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all that decides the ids, training text apart; part of the cache name."""

    @abstractmethod
    def fit(self, texts: list[str], folder: Path) -> None:
        """Learn from the training split and write what was learnt into `folder`."""

    @abstractmethod
    def load(self, folder: Path) -> Tokenizer:
        """The tokenizer that `fit` left in `folder`; `vocab_size` is then the number of ids in use."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[UInt[np.ndarray, " N"]]: ...

    @abstractmethod
    def decode(self, ids: ArrayLike) -> str: ...

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()


class Characters(Tokenizer):
    """V = 97: the 95 printable ASCII characters are ids 0 to 94, newline is 95, everything else is UNK, 96.

    The table is fixed in code, so nothing about the text enters the vocabulary and ids compare across corpora.
    """

    TABLE = "".join(map(chr, range(32, 127))) + "\n"
    UNKNOWN = "\ufffd"
    vocab_size = len(TABLE) + 1
    unknown_id = len(TABLE)

    # Code points to ids: the last entry stands for every code point beyond ASCII.
    _ids = np.full(129, unknown_id, dtype=np.uint16)
    _ids[[ord(character) for character in TABLE]] = np.arange(len(TABLE))
    _codes = np.array([ord(character) for character in TABLE + UNKNOWN], dtype="<u4")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.TABLE.encode()).hexdigest()[:16]

    def fit(self, texts: list[str], folder: Path) -> None:
        """Nothing to learn."""

    def load(self, folder: Path) -> Characters:
        return self

    def encode_batch(self, texts: list[str]) -> list[UInt[np.ndarray, " N"]]:
        codes = (np.frombuffer(text.encode("utf-32-le"), dtype="<u4") for text in texts)
        return [self._ids[np.minimum(code, 128)] for code in codes]

    def decode(self, ids: ArrayLike) -> str:
        return self._codes[np.asarray(ids, dtype=np.int64)].tobytes().decode("utf-32-le")


class BPE(Tokenizer):
    """Byte-level byte-pair encoding of at most `vocab_size` ids; encodes any text, and decodes it exactly.

    It is fitted on the whole training split, whatever `unique_tokens`, so that every budget has the same
    vocabulary and the same targets; never on held-out text, whose statistics the merges would leak.
    """

    FILE = "tokenizer.json"

    def __init__(self, vocab_size: int = 512, folder: Path | None = None) -> None:
        if vocab_size < 256:
            raise UserError(
                f"data.tokenizer.vocab_size={vocab_size}: byte-level BPE needs at least 256, one per byte"
            )
        self.limit = vocab_size
        self.vocab_size = vocab_size
        self.folder = folder

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(["byte-level BPE", self.limit]).encode()).hexdigest()[:16]

    def fit(self, texts: list[str], folder: Path) -> None:
        from tokenizers import Tokenizer as Codec
        from tokenizers import decoders, models, pre_tokenizers, trainers

        codec = Codec(models.BPE())
        codec.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        codec.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=self.limit, initial_alphabet=alphabet, show_progress=False)
        codec.train_from_iterator(texts, trainer)
        codec.save(str(folder / self.FILE))

    def load(self, folder: Path) -> BPE:
        fitted = BPE(self.limit, folder)
        fitted.vocab_size = len(json.loads((folder / self.FILE).read_text(encoding="utf-8"))["model"]["vocab"])
        return fitted

    @cached_property
    def codec(self) -> tokenizers.Tokenizer:
        if self.folder is None:
            raise UserError("this BPE tokenizer has not been fitted: use the `encode` and `decode` of its source")
        from tokenizers import Tokenizer as Codec

        return Codec.from_file(str(self.folder / self.FILE))

    def encode_batch(self, texts: list[str]) -> list[UInt[np.ndarray, " N"]]:
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in self.codec.encode_batch(texts)]

    def decode(self, ids: ArrayLike) -> str:
        return self.codec.decode(np.asarray(ids).tolist(), skip_special_tokens=False)
