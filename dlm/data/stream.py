"""Corpora too large to hold: documents flow past once, and what is kept of them goes straight to disk.

Held-out text comes first: `report`, then `tune`, then `train`, each as many whole documents, in the order of the
stream, as give it its number of tokens. So training budgets nest (a smaller one is the beginning of a larger one)
and held-out text is the same whatever the size of the training pool. A later split yields to an earlier one:

1. a document whose text, white space apart, came before is dropped;
2. a line of at least 50 characters that came before is dropped;
3. a line that shares a window of 50 characters with an earlier held-out split is dropped.

Without `clean_lines` documents stay whole: only 1 is done, and the audit tells what 3 would have met.

Where a small corpus drops what leaks from its held-out text, a large one drops it from train, which it hardly
thins; held-out text stays a plain sample of the corpus. Memory: a batch of documents, 8 bytes per kept document
and line, about 12 per held-out character.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt
from tqdm import tqdm

from dlm.data.leak import WIDTH, shingles
from dlm.data.source import SPLITS
from dlm.data.split import SEPARATOR
from dlm.data.text import document_file, token_file
from dlm.data.tokenizer import Tokenizer

BATCH = 512  # documents
FILTER_BITS = 26


class Seen:
    """The 64-bit hashes that have come by: sorted runs, merged while the last two are of like length."""

    def __init__(self) -> None:
        self.runs: list[UInt[np.ndarray, " N"]] = []

    def add(self, hashes: UInt[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Which of them are here for the first time; they all count as seen from now on."""
        new = np.zeros(len(hashes), dtype=bool)
        values, first = np.unique(hashes, return_index=True)
        fresh = np.ones(len(values), dtype=bool)
        for run in self.runs:
            fresh &= run[np.minimum(np.searchsorted(run, values), len(run) - 1)] != values
        new[first[fresh]] = True
        if fresh.any():
            self.runs.append(values[fresh])
        while len(self.runs) > 1 and 2 * len(self.runs[-1]) > len(self.runs[-2]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]
        return new


class HeldOutWindows:
    """All 50-character windows of a held-out split, and which of them later text has repeated."""

    def __init__(self, lines: list[str]) -> None:
        self.values, self.counts = np.unique(shingles(lines)[0], return_counts=True)
        self.met = {"before": np.zeros(len(self.values), bool), "after": np.zeros(len(self.values), bool)}
        self.possible = np.zeros(2**FILTER_BITS, dtype=bool)  # most windows are nowhere near: one look settles it
        self.possible[self.values >> (64 - FILTER_BITS)] = True

    def find(self, hashes: UInt[np.ndarray, " N"]) -> tuple[Bool[np.ndarray, " N"], UInt[np.ndarray, " M"]]:
        """Which hashes are among the windows, and the places of those that are."""
        found = self.possible[hashes >> (64 - FILTER_BITS)]
        candidates = hashes[found]
        places = np.searchsorted(self.values, candidates)
        equal = (
            self.values[np.minimum(places, len(self.values) - 1)] == candidates if len(self.values) else found[:0]
        )
        found[found] = equal
        return found, places[equal]

    def share(self, when: str) -> float:
        """Share of the windows, at all offsets, that later text repeats, before or after lines were dropped."""
        return float(self.counts[self.met[when]].sum() / max(self.counts.sum(), 1))


class Cleaner:
    """Drops from each batch what came before; counts what it drops."""

    def __init__(self, clean_lines: bool) -> None:
        self.clean_lines = clean_lines
        self.documents, self.lines = Seen(), Seen()
        self.earlier: dict[str, HeldOutWindows] = {}
        self.duplicates = 0
        self.overlaps: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.leak: dict[str, dict[str, float]] = {"before": {}, "after": {}}

    def clean(self, batch: Iterable[str], split: str) -> list[str]:
        """The documents that are left, trimmed, without the lines that are to be dropped."""
        texts = [text for text in batch if text.strip()]
        new = self.documents.add(fingerprints(normal(text) for text in texts))
        self.duplicates += int((~new).sum())
        kept = [text.strip().splitlines() for text, is_new in zip(texts, new, strict=True) if is_new]
        lines = [normal(line) for document in kept for line in document]
        dropped = self._dropped(lines, split)
        flags = iter(dropped.tolist())
        cleaned = ("\n".join(line.rstrip() for line in document if not next(flags)) for document in kept)
        return [text for text in map(str.strip, cleaned) if text]

    def hold_out(self, split: str, documents: list[str]) -> None:
        """Keep the windows of a finished held-out split away from what follows."""
        self.earlier[split] = HeldOutWindows([normal(line) for text in documents for line in text.splitlines()])

    def finish(self, split: str) -> None:
        """Record how much of the earlier splits this one repeats."""
        for name, windows in self.earlier.items():
            for when, found in self.leak.items():
                found[f"{name}_in_{split}"] = windows.share(when)
                windows.met[when][:] = False

    def _dropped(self, lines: list[str], split: str) -> Bool[np.ndarray, " N"]:
        hashes, owner = shingles(lines)
        found = {name: windows.find(hashes) for name, windows in self.earlier.items()}
        dropped = np.zeros(len(lines), dtype=bool)
        if self.clean_lines:
            long = np.array([len(line) >= WIDTH for line in lines], dtype=bool)
            dropped[long] = ~self.lines.add(fingerprints(line for line in lines if len(line) >= WIDTH))
            repeated = int(dropped.sum())
            self.duplicates += repeated
            for where, _ in found.values():
                dropped[owner[where]] = True
            self.overlaps[split] += int(dropped.sum()) - repeated
        for name, (where, places) in found.items():
            self.earlier[name].met["before"][places] = True
            self.earlier[name].met["after"][places[~dropped[owner[where]]]] = True
        return dropped


def normal(text: str) -> str:
    """Every run of white space as one space: what counts as the same text."""
    return " ".join(text.split())


def fingerprints(texts: Iterable[str]) -> UInt[np.ndarray, " N"]:
    """64 bits of BLAKE2b of each text; two of 10^8 texts share one with a probability below 3e-4."""
    parts = [hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(parts), dtype="<u8")


def build_streamed(
    train: Iterable[str],
    held_out: Iterable[str] | None,
    wanted: dict[str, int],
    tokenizer: Tokenizer,
    folder: Path,
    clean_lines: bool,
) -> dict:
    """Write the token and document files of the three splits into `folder`; return dtype and audit.

    Args:
        train, held_out: texts of documents; without the latter, held-out text is the beginning of the former.
        wanted: tokens of each split; a stream that ends earlier leaves it, and what follows, with less.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    cleaner = Cleaner(clean_lines)
    training = iter(train)
    streams = {split: training if held_out is None else iter(held_out) for split in ("report", "tune")}
    if held_out is not None:
        streams["tune"] = streams["report"]  # one stream: tune goes on where report has ended
    streams["train"] = training
    splits = {
        split: _write(streams[split], split, wanted[split], cleaner, tokenizer, dtype, folder)
        for split in ("report", "tune", "train")
    }
    return {
        "dtype": dtype,
        "audit": {
            **{key: {s: splits[s][key] for s in SPLITS} for key in ("tokens", "documents", "chars", "unknown")},
            "duplicates_dropped": cleaner.duplicates,
            "overlaps_dropped": cleaner.overlaps,
            "leak": {"width": WIDTH, **{when: dict(sorted(s.items())) for when, s in cleaner.leak.items()}},
        },
    }


def _write(
    stream: Iterator[str],
    split: str,
    wanted: int,
    cleaner: Cleaner,
    tokenizer: Tokenizer,
    dtype: str,
    folder: Path,
) -> dict[str, int]:
    """Documents of the stream until the split has the tokens it wants."""
    count = {"tokens": 0, "documents": 0, "chars": 0, "unknown": 0}
    kept: list[str] = []
    bar = tqdm(total=wanted, desc=split, unit=" tokens", disable=not sys.stderr.isatty(), leave=False)
    with open(folder / token_file(split), "wb") as tokens, open(folder / document_file(split), "wb") as numbers:
        while count["tokens"] < wanted:
            # Held-out text is taken one document at a time: none of the stream is wasted where a split ends.
            size = BATCH if split == "train" else 1
            if not (batch := list(islice(stream, size))):
                break
            texts = cleaner.clean(batch, split)
            for text, ids in zip(texts, tokenizer.encode_batch([t + SEPARATOR for t in texts]), strict=True):
                if count["tokens"] >= wanted:
                    break
                ids = np.asarray(ids, dtype=dtype)
                ids.tofile(tokens)
                np.full(len(ids), count["documents"], dtype="uint32").tofile(numbers)
                count["tokens"] += len(ids)
                count["documents"] += 1
                count["chars"] += len(text) + len(SEPARATOR)
                count["unknown"] += (
                    int((ids == tokenizer.unknown_id).sum()) if tokenizer.unknown_id is not None else 0
                )
                bar.update(len(ids))
            kept += texts if split != "train" else []
    bar.close()
    cleaner.finish(split)
    if split != "train":
        cleaner.hold_out(split, kept)
    return count
