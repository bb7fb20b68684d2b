"""Tokenizers: fixed tables of characters and bytes, byte-level BPE fitted on the training split alone, GPT-2's."""

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
    learns = False
    """Whether `fit` reads the training text, which must then be at hand as a whole."""

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


class Bytes(Tokenizer):
    """V = 256: the bytes of the text in UTF-8. Fitted on nothing, and exact for any text in any corpus."""

    vocab_size = 256

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"UTF-8 bytes").hexdigest()[:16]

    def fit(self, texts: list[str], folder: Path) -> None:
        """Nothing to learn."""

    def load(self, folder: Path) -> Bytes:
        return self

    def encode_batch(self, texts: list[str]) -> list[UInt[np.ndarray, " N"]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: ArrayLike) -> str:
        """The text; a character that the ids cut or garble becomes U+FFFD."""
        return np.asarray(ids).astype(np.uint8).tobytes().decode(errors="replace")


class BPE(Tokenizer):
    """Byte-level byte-pair encoding of at most `vocab_size` ids; encodes any text, and decodes it exactly.

    It is fitted on the whole training split, whatever `unique_tokens`, so that every budget has the same
    vocabulary and the same targets; never on held-out text, whose statistics the merges would leak.
    """

    FILE = "tokenizer.json"
    learns = True

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


class Pretrained(BPE):
    """A tokenizer of the Hugging Face hub, GPT-2's by default (V = 50,257), or a `tokenizer.json` at `path`.

    Its file is kept beside the tokens, so that a prepared corpus needs no network.

    Raises UserError if the hub cannot be reached, has no such tokenizer, or `path` is not one.
    """

    learns = False

    def __init__(
        self,
        name: str = "openai-community/gpt2",
        revision: str = "main",
        path: str | Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name, self.revision, self.path, self.folder = name, revision, path, folder

    @property
    def fingerprint(self) -> str:
        source = [self.name, self.revision] if self.path is None else [hashlib.sha256(self._content()).hexdigest()]
        return hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]

    def _content(self) -> bytes:
        try:
            return Path(self.path or "").read_bytes()
        except OSError as error:
            raise UserError(f"data.tokenizer.path={self.path}: {error.strerror}") from error

    def fit(self, texts: list[str], folder: Path) -> None:
        """Nothing to learn: fetches the file."""
        self.fetch().save(str(folder / self.FILE))

    def fetch(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer as Codec

        if self.path is None:
            return Codec.from_file(self.download())
        try:
            content = json.loads(self._content())
        except ValueError as error:
            raise UserError(f"data.tokenizer.path={self.path} is no tokenizer.json ({error})") from error
        if not isinstance(content, dict) or "model" not in content:
            raise UserError(f"data.tokenizer.path={self.path} is no tokenizer.json: it describes no model")
        return Codec.from_str(json.dumps(content))

    def download(self) -> str:
        """The file, from the hub's own cache or the hub."""
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # pyright: ignore

        try:
            try:
                return hf_hub_download(self.name, self.FILE, revision=self.revision, local_files_only=True)
            except LocalEntryNotFoundError:
                HfApi().model_info(self.name, revision=self.revision, timeout=10)  # gives up soon: no retries
                return hf_hub_download(self.name, self.FILE, revision=self.revision)
        except (OSError, ValueError, HTTPError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise UserError(
                f"the tokenizer '{self.name}' could not be fetched from the Hugging Face hub ({reason}): connect "
                "once, set data.tokenizer.path=<its tokenizer.json>, or use data/tokenizer=bytes"
            ) from error

    def load(self, folder: Path) -> Pretrained:
        loaded = Pretrained(self.name, self.revision, self.path, folder)
        loaded.vocab_size = loaded.codec.get_vocab_size()
        return loaded
