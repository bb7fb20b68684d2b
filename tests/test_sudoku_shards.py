"""Shards and their command line: a function of (seed, shard), whole or made again, mistakes in one line."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from dlm.data.sudoku import __main__ as command
from dlm.data.sudoku.board import is_solution, shape_of, text
from dlm.data.sudoku.shards import BOARDS, Collection, folder_of, make, make_shard, read_shard
from dlm.data.sudoku.solve import count_solutions
from dlm.errors import UserError

SMALL = Collection(size=6, seed=5, per_shard=40, strict=True)
PROPER = ".1....4.....34.."


def test_a_shard_is_a_function_of_seed_and_number(tmp_path):
    """Made alone, after another or by two processes: the same files, to the byte; other seeds, other puzzles."""
    metas = list(make(tmp_path / "one", SMALL, 3))
    alone = make_shard(tmp_path / "two", SMALL, 2)
    assert alone == metas[2] and alone["files"][BOARDS]["sha256"] == metas[2]["files"][BOARDS]["sha256"]
    two = sorted(make(tmp_path / "three", SMALL, 3, workers=2), key=lambda m: m["shard"])
    assert two == metas
    other = make_shard(tmp_path / "one", SMALL._replace(seed=6), 0)
    assert other["files"][BOARDS]["sha256"] != metas[0]["files"][BOARDS]["sha256"]
    puzzles = np.concatenate([read_shard(tmp_path / "one", SMALL, shard).puzzle for shard in range(3)])
    assert len(np.unique(puzzles, axis=0)) == 120


def test_a_shard_holds_proper_puzzles_and_how_they_are_solved(tmp_path):
    """One solution each, the stored one; an order that fills exactly the blanks of what the techniques solve."""
    meta = make_shard(tmp_path, SMALL, 0)
    found = read_shard(tmp_path, SMALL, 0)
    shape = shape_of(6)
    assert (count_solutions(found.puzzle, shape) == 1).all() and is_solution(found.solution, shape).all()
    given = found.puzzle > 0
    assert (found.puzzle[given] == found.solution[given]).all()
    assert found.solved.any() and meta["solved"] == found.solved.sum() == sum(meta["levels"])
    for i in np.flatnonzero(found.solved):
        filled = found.order[i][found.order[i] >= 0]
        assert sorted(filled) == np.flatnonzero(~given[i]).tolist()


def test_damage_is_noticed_and_mended(tmp_path):
    meta = make_shard(tmp_path, SMALL, 0)
    file = folder_of(tmp_path, SMALL, 0) / BOARDS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="shard-00000 is missing or damaged"):
        read_shard(tmp_path, SMALL, 0)
    assert make_shard(tmp_path, SMALL, 0) == meta and file.read_bytes() == whole


# --- the command line -----------------------------------------------------------------------------------------


def test_make_says_what_it_made_and_keeps_what_is_there(tmp_path, called):
    arguments = ("make", "size=4", "puzzles=30", "per_shard=20", f"out={tmp_path}")
    out = called(command.main, *arguments)
    assert "40 puzzles" in out and "lone single" in out and "100.0 %" in out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    called(command.main, *arguments)
    assert len(before) == 2 and before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}


def test_a_collection_is_checked_and_graded(tmp_path, called, refused):
    file = tmp_path / "mine.txt"
    file.write_text(f"{PROPER}\n{'.' * 16}\n")
    for action in ("check", "grade"):
        line = refused(command.main, action, f"file={file}")
        assert "mine.txt:2" in line and "more than one solution" in line and "1 of 2" in line
    file.write_text(PROPER + "\n")
    assert "1 puzzles, each with exactly one solution" in called(command.main, "check", f"file={file}")
    out = called(command.main, "grade", f"file={file}")
    assert text(np.array([int(c) if c != "." else 0 for c in PROPER], dtype=np.uint8)) in out and "single" in out


def test_show_draws_the_way_to_the_solution(called):
    out = called(command.main, "show", f"puzzle={PROPER}")
    assert out.count("row ") == 12 and " . 1 | " in out
    assert called(command.main, "show", "size=6", "seed=1") == called(command.main, "show", "size=6", "seed=1")


def test_a_reader_that_leaves_ends_it_quietly():
    """`show ... | head -1`: no traceback, the status of a broken pipe."""
    call = [sys.executable, "-m", "dlm.data.sudoku", "show", "size=9"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141 and not error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["make", "check", "grade", "show"]),
        (["solve"], ["'solve'"]),
        (["make", "size=5"], ["size=5"]),
        (["make", "puzzles=0"], ["puzzles"]),
        (["make", "givens=3", "size=9", "puzzles=1", "per_shard=1"], ["givens=3"]),
        (["make", "mode=hard"], ["hard"]),
        (["make", "colour=red"], ["colour"]),
        (["check"], ["file="]),
        (["check", "file=/nowhere/x.txt"], ["/nowhere/x.txt"]),
        (["show", "puzzle=123"], ["3 cells"]),
        (["show", "puzzle=" + "." * 16], ["more than one solution"]),
        (["show", "puzzle=123........4...."], ["no solution"]),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments, said, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(command.main, *arguments)
    assert all(word in line for word in said), line
    assert not list(tmp_path.iterdir())
