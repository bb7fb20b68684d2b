"""Decoding the checkpoints of a run: which, on what, and rows that are made once.

Rows grow in `DIR/decodings.jsonl`, each in one write as soon as it is made, so a killed command continues where it
was.  The key of a row is a hash of what decides it: the weights, the data, the puzzles, the setting, the seed and
VERSION.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dlm.data.task import TaskSource
from dlm.decode.rows import batches, decode, summary
from dlm.decode.settings import Setting
from dlm.errors import UserError
from dlm.evaluate import load_data, load_model
from dlm.files import append_row, drop_torn_line, held, read_lines
from dlm.lm import LanguageModel
from dlm.run import RunDirectory, load_checkpoint
from dlm.scoring import content_hash
from dlm.version import code_version

VERSION = 1
"""To be raised whenever the same weights, puzzles and setting would give other answers or other judgements."""


class Block(NamedTuple):
    """What one product of settings is measured on."""

    checkpoints: list[str]
    split: str
    numbers: Int[np.ndarray, " N"]
    seeds: list[int]
    batch_size: int


class Written(NamedTuple):
    """Puzzles as a model gets them."""

    digest: str  # SHA-256 of their numbers, tokens and targets
    most: int  # tokens that one of them leaves to be generated


class Decoder:
    """A run that is decoded: its data, one of its models at a time, and the rows that it has."""

    def __init__(self, run: RunDirectory, puzzles_file: str | None = None):
        """`puzzles_file` is a collection of puzzles to one line each, the split "file" of the data.

        Raises:
            UserError: if the data have no right answers, read no collection or not this one, or are not those that
                the run was trained on.
        """
        self.run, self.puzzles_file = run, puzzles_file
        changes = None if puzzles_file is None else {"puzzles": str(Path(puzzles_file).absolute())}
        self.cfg, self.data = load_data(run, changes)
        if not isinstance(self.data.source, TaskSource):
            raise UserError(
                f"{run.path} was trained on text, of which no answer is right: dlm.decode is for tasks"
            )
        self.source = self.data.source
        self.loaded: tuple[str, LanguageModel] | None = None
        self.hashes: dict[str, str] = {}
        self.asked: dict[tuple[str, bytes], Written] = {}
        self.file = run.path / "decodings.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}

    @contextmanager
    def open(self) -> Iterator["Decoder"]:
        """Hold the rows against a second process. Raises UserError if another one is decoding this run."""
        with held(self.run.path / ".decode.lock", f"another process is decoding {self.run.path}"):
            drop_torn_line(self.file)
            self.rows = {row["key"]: row for row in read_lines(self.file) if "key" in row}
            yield self

    def model(self, checkpoint: str) -> LanguageModel:
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None  # never two at a time
            self.loaded = (checkpoint, load_model(self.run, self.cfg, self.data, checkpoint))
        return self.loaded[1]

    def checkpoints(self, text: str) -> list[str]:
        """ "all" of the run, or names. Raises UserError for one that is not there."""
        names = self.run.checkpoints if text == "all" else [name.strip() for name in text.split(",")]
        missing = [name for name in names if not self.run.checkpoint(name).is_file()]
        if missing or not names:
            there = ", ".join(self.run.checkpoints) or "none"
            raise UserError(
                f"{self.run.path} has no checkpoint {', '.join(missing) or 'at all'}; there are: {there}"
            )
        return names

    def numbers(self, split: str, puzzles: int | None) -> Int[np.ndarray, " N"]:
        """Puzzles spread evenly over a split. Raises UserError for a split that is not there or has none."""
        if split not in self.source.splits:
            hint = "; puzzles_file=FILE adds file" if split == "file" else ""
            raise UserError(f"split is one of {', '.join(self.source.splits)}, not {split!r}{hint}")
        numbers = self.data.window_numbers(split, puzzles)
        if not len(numbers):
            raise UserError(f"the split {split} of {self.run.path} has no puzzles")
        return numbers

    def written(self, block: Block) -> Written:
        """What is asked of a model, once for all settings."""
        key = (block.split, block.numbers.tobytes())
        if key not in self.asked:
            content, most = hashlib.sha256(block.numbers.astype(np.int64).tobytes()), 0
            for some in batches(block.numbers, 4096):
                x0, free = self.source.written(block.split, some, None)
                content.update(x0.numpy().tobytes() + free.numpy().tobytes())
                most = max(most, int(free.sum(1).max()))
            self.asked[key] = Written(content.hexdigest(), most)
        return self.asked[key]

    def fitting(self, settings: list[Setting], block: Block) -> tuple[list[Setting], Counter[str]]:
        """The settings that these puzzles allow, and why others are left out."""
        kept, left_out = [], Counter[str]()
        most = self.written(block).most
        ordered = self.source.place(block.split, block.numbers[:1]) is not None
        for setting in settings:
            paces = {key: setting.choice.get(key) for key in ("per_step", "steps")}
            large = [f"{key}={n}" for key, n in paces.items() if setting.sampler == "ordered" and (n or 0) > most]
            if large:
                left_out[f"{large[0]} does not fit: no puzzle has more than {most} tokens to reveal"] += 1
            elif setting.policy == "given" and not ordered:
                left_out["policy=given: the data give no order of these tokens"] += 1
            else:
                kept.append(setting)
        return kept, left_out

    def row(self, checkpoint: str, block: Block, setting: Setting, seed: int) -> tuple[dict[str, Any], bool]:
        """One row, and whether it was made now; the one that is there already if there is one."""
        key = self.key(checkpoint, block, setting, seed)
        if key in self.rows:
            return self.rows[key], False
        model = self.model(checkpoint)
        outcome = decode(model, self.source, block.split, block.numbers, setting, seed, block.batch_size)
        epoch, step = self.reached(checkpoint)
        row = {
            "key": key,
            "version": VERSION,
            "code": code_version(),
            "checkpoint": checkpoint,
            "epoch": epoch,
            "step": step,
            "split": block.split,
            "data": self.source.fingerprint,
            "sampler": setting.sampler,
            "setting": setting.choice,
            "seed": seed,
            **summary(outcome, self.source),
            "device": model.device.type,
        }
        append_row(self.file, row)
        self.rows[key] = row
        return row, True

    def key(self, checkpoint: str, block: Block, setting: Setting, seed: int) -> str:
        """16 hex digits of SHA-256 over everything that decides a row."""
        if checkpoint not in self.hashes:
            self.hashes[checkpoint] = content_hash(self.run.checkpoint(checkpoint))
        data = [self.source.fingerprint, block.split, self.written(block).digest]
        parts = [VERSION, self.hashes[checkpoint], *data, setting.sampler, setting.choice, seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def reached(self, checkpoint: str) -> tuple[float, int]:
        """(epoch, step) of a checkpoint: snapshots by their names, the best as its record or its content says."""
        kind, _, value = checkpoint.partition("-")
        per_epoch = self.data.steps_per_epoch
        if kind in ("epoch", "cooled") and value:
            epoch = float(value)
            return epoch, max(1, round(epoch * per_epoch)) if kind == "epoch" else math.ceil(epoch * per_epoch)
        step = best_step(self.run, checkpoint)
        return self.data.epoch_of(step), step


def best_step(run: RunDirectory, checkpoint: str) -> int:
    """The step of the weights with the lowest tune loss (or, unfinished, of any whole checkpoint)."""
    if checkpoint == "best" and run.finished:
        return int(run.read_record()["best"]["step"])
    return int(load_checkpoint(run.checkpoint(checkpoint)).get("global_step", 0))
