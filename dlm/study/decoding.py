"""How finished runs of tasks are decoded: the `decode` blocks of a scale's file.

decode:
  - arms: [mdm]                  default: all
    cells: [sudoku-6x6]          default: every cell that counts sequences
    run_seeds: [0]               default: the runs of all seeds
    seconds: 40                  predicted, per run
    policy: [random, margin]     ... and every other key of the command line of dlm.decode; lists make a product
    noise: [none, gumbel]
  - command: imbalance           dlm.decode.imbalance, with the keys of its own command line
    cells: [nae-sat]

One process decodes a run by all the blocks that are about it; every other `command` has a process of its own. The
directory of a run remembers what is done; a block that has changed is done again, and its command skips what is
there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dlm.errors import UserError
from dlm.files import read_json, write_atomically, write_json
from dlm.run import RunDirectory
from dlm.study.checks import Number, check_keys

DECODED = "decoded.json"  # in a run's directory: which blocks it has been through
GRIDS = "grids.json"  # beside it: the blocks as dlm.decode reads them
WHERE: dict[str, Any] = {"command": str, "arms": list, "cells": list, "run_seeds": list, "seconds": Number}
"""Keys that say what a block is about; all others go to its command."""


WORDS, NUMBERS, WHOLE = (str, list), (*Number, list), (int, list)
COMMANDS: dict[str, dict[str, Any]] = {
    "decode": {
        "checkpoints": WORDS, "split": WORDS, "puzzles": int, "puzzles_file": str, "sampler": WORDS,
        "policy": WORDS, "noise": WORDS, "noise_scale": NUMBERS, "anneal": WORDS, "score_scale": WORDS,
        "per_step": WHOLE, "steps": WHOLE, "selection": WORDS, "reveal": WORDS, "remask": (bool, list),
        "ties": WORDS, "values": WORDS, "seeds": WHOLE, "batch_size": int, "traces": int,
    },
    "imbalance": {
        "checkpoints": WORDS, "masked": (str, int, list), "repeats": int, "seed": int, "batch_size": int,
    },
}  # fmt: skip
"""The keys of each command, and their types."""


def check_blocks(file: Path, blocks: list[Any], arms: Iterable[str], tasks: list[str]) -> list[dict[str, Any]]:
    """The blocks of a scale, each with the cells that it is about.

    Args:
        tasks: the cells that count sequences, of which answers can be judged.

    Raises:
        UserError: for unknown keys, arms and cells, and for blocks that nothing can be decoded by.
    """
    found = []
    for number, block in enumerate(blocks, 1):
        where = f"{file}: decode block {number}"
        command = block.get("command", "decode") if isinstance(block, dict) else "decode"
        if command not in COMMANDS:
            raise UserError(f"{where}: command is one of {', '.join(COMMANDS)}, not {command!r}")
        check_keys(where, block, WHERE | COMMANDS[command], ())
        for key, value in settings_of(block).items():
            for element in value if isinstance(value, list) else []:
                check_keys(where, {key: element}, COMMANDS[command], ())
        for what, named, known in (
            ("arm", block.get("arms", []), list(arms)),
            ("cell of sequences", block.get("cells", []), tasks),
        ):
            for name in named:
                if name not in known:
                    raise UserError(f"{where}: there is no {what} {name!r}; there are: {', '.join(known)}")
        if not tasks:
            raise UserError(f"{where}: no cell of this scale counts sequences")
        if block.get("seconds", 0) < 0:
            raise UserError(f"{where}: seconds must be zero or more, not {block['seconds']}")
        found.append({"command": command, "cells": tasks} | block)
    return found


def about(blocks: list[dict[str, Any]], cell: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """The blocks of a checked scale that one run goes through."""
    return [
        block
        for block in blocks
        if cell in block["cells"] and arm in block.get("arms", [arm]) and seed in block.get("run_seeds", [seed])
    ]


def seconds_of(blocks: list[dict[str, Any]]) -> float:
    return sum(block.get("seconds", 0.0) for block in blocks)


def settings_of(block: dict[str, Any]) -> dict[str, Any]:
    """What a block says to its command."""
    return {key: value for key, value in block.items() if key not in WHERE}


class Decoding(NamedTuple):
    """What one process does with a finished run."""

    run: RunDirectory
    command: str
    blocks: list[dict[str, Any]]
    name: str

    def asked(self) -> dict[str, Any]:
        """What decides whether the run has been through it; predicted seconds do not."""
        settings = [settings_of(block) for block in self.blocks]
        return {"command": self.command, "checkpoints": self.run.checkpoints, "blocks": settings}

    def noted(self) -> list[dict[str, Any]]:
        file = self.run.path / DECODED
        return read_json(file).get("done", []) if file.is_file() else []

    def done(self) -> bool:
        return self.asked() in self.noted()

    def note(self) -> bool:
        """Remember that the run has been through it."""
        write_json(self.run.path / DECODED, {"done": [*self.noted(), self.asked()]})
        return True

    def line(self) -> list[str]:
        """The command line after `python -m`; of dlm.decode, with the file of its grids, which this writes."""
        run = f"run={self.run.path}"
        if self.command == "decode":
            grids = self.run.path / GRIDS
            write_atomically(grids, json.dumps([settings_of(block) for block in self.blocks], indent=1).encode())
            return ["dlm.decode", run, f"grids={grids}"]
        settings = settings_of(self.blocks[0]).items()
        return [f"dlm.decode.{self.command}", run, *(f"{key}={spelled(value)}" for key, value in settings)]


def decodings(run: RunDirectory, blocks: list[dict[str, Any]]) -> list[Decoding]:
    """The processes that take a run through its blocks."""
    decode = [block for block in blocks if block["command"] == "decode"]
    others = [block for block in blocks if block["command"] != "decode"]
    found = [Decoding(run, "decode", decode, f"{run.path.name}.decode")] if decode else []
    for number, block in enumerate(others):
        found.append(Decoding(run, block["command"], [block], f"{run.path.name}.{block['command']}-{number}"))
    return found


def spelled(value: Any) -> str:
    """A YAML value as a command line has it."""
    if isinstance(value, list):
        return ",".join(spelled(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
