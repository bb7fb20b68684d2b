"""Boards and how they were filled: `DIR/boards.json`, one object per (checkpoint, setting, puzzle).

What is on them is `TaskSource.trace`; data whose answers fill no board leave none.  A puzzle is answered alone as
it is among others, so boards are made apart from rows, and can be asked for later.
"""

import json
from typing import Any

from dlm.decode.rows import answer
from dlm.decode.run import Block, Decoder
from dlm.decode.settings import Setting
from dlm.errors import UserError
from dlm.files import write_json

FILE = "boards.json"


def read_boards(decoder: Decoder) -> list[dict[str, Any]]:
    """The boards that a run has. Raises UserError for a file that does not hold any."""
    path = decoder.run.path / FILE
    if not path.is_file():
        return []
    try:
        boards = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        boards = None
    if not isinstance(boards, list) or not all(isinstance(board, dict) for board in boards):
        raise UserError(f"{path} holds no list of boards: delete it to have them made anew")
    return boards


def trace(decoder: Decoder, block: Block, settings: list[Setting], count: int) -> int:
    """Make the boards of the first `count` puzzles that are not there yet, under the block's last checkpoint and
    first seed; returns how many."""
    boards = read_boards(decoder)
    there = {board.get("key") for board in boards}
    checkpoint, seed, first = block.checkpoints[-1], block.seeds[0], block.numbers[:count]
    made = 0
    for setting in settings:
        alone = [block._replace(numbers=first[i : i + 1]) for i in range(len(first))]
        keys = [decoder.key(checkpoint, one, setting, seed) for one in alone]
        if there.issuperset(keys):
            continue
        found = answer(decoder.model(checkpoint), decoder.source, block.split, first, setting, seed)
        for key, number, x, fixed_at in zip(keys, first, found.x, found.fixed_at, strict=True):
            board = decoder.source.trace(block.split, int(number), x, fixed_at)
            if board is None:
                return made
            if key not in there:
                at = {"key": key, "checkpoint": checkpoint, "split": block.split, "seed": seed}
                how = {"policy": setting.policy, "sampler": setting.sampler, "setting": setting.choice}
                boards.append(at | how | {"number": int(number)} | board)
                made += 1
    if made:
        write_json(decoder.run.path / FILE, boards)
    return made
