"""Sudoku in its four formats through the command: the same puzzles and counts, whatever writes the answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TOY, composed
from hydra.errors import InstantiationException

from dlm import train
from dlm.decode import __main__ as command
from dlm.errors import UserError
from dlm.evaluate import load_run

SMALL = [word for word in TOY if not word.startswith(("data", "seq_len", "steps"))]
FORMATS = {
    "in_place": ("method=aoarm", []),
    "prefix": ("method=aoarm", []),
    "triples": ("method=arm", ["data.order=solver"]),
    "joint": ("method=arm", ["data.order=random"]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a few steps in each format, decoded."""
    root, found = tmp_path_factory.mktemp("sudoku"), {}
    for name, (method, order) in FORMATS.items():
        data = [
            "data=sudoku",
            "data.size=4",
            "data.sequences=60",
            "data.held_out=12",
            f"data.format={name}",
            *order,
        ]
        where = [f"data.cache_dir={root}/data", f"output_dir={root}/{name}", "steps=2", "evaluation.windows=4"]
        found[name] = train.train(composed(*SMALL, method, *data, *where))
    return found


def rows_of(run):
    return [json.loads(line) for line in (Path(run) / "decodings.jsonl").read_text().splitlines()]


def test_all_formats_answer_the_same_cells(called, runs):
    said = {}
    for name, run in runs.items():
        called(command.main, f"run={run}", "policy=margin", "traces=2", "puzzles=12")
        (said[name],) = rows_of(run)
    blanks = said["in_place"]["cells"]
    for name, row in said.items():
        assert row["cells"] == blanks and row["puzzles"] == 12, name
        assert row["by"].keys() == {"level", "givens"} and sum(n for _, n in row["by"]["givens"].values()) == 12
        assert row["solved"] + sum(row["first_errors"].values()) == 12
    assert said["in_place"]["nfe"] == said["joint"]["nfe"] == blanks / 12
    assert said["triples"]["nfe"] == 3 * blanks / 12
    assert said["prefix"]["nfe"] >= 16, "the copies of the givens are answered too"


def test_boards_show_the_puzzle_and_its_filling(called, runs):
    for name, run in runs.items():
        called(command.main, f"run={run}", "policy=margin", "traces=2", "puzzles=12")
        boards = json.loads((run / "boards.json").read_text())
        assert [board["number"] for board in boards] == [0, 1], name
        for board in boards:
            puzzle, solution, step, kind = (np.array(board[k]) for k in ("puzzle", "solution", "step", "kind"))
            assert board["size"] == 4 and len(puzzle) == 16
            assert (solution[puzzle > 0] == puzzle[puzzle > 0]).all() and (kind[puzzle > 0] == 0).all()
            if name == "in_place":
                assert sorted(step[puzzle == 0]) == list(range((puzzle == 0).sum()))
                assert ((kind >= 2) == (puzzle == 0)).all()


def test_solved_is_equal_to_the_solution(called, runs):
    """A board counts if every cell is the solution's, told from the boards of all puzzles."""
    run = runs["in_place"]
    called(command.main, f"run={run}", "policy=given", "values=sampled", "traces=12", "puzzles=12")
    row = rows_of(run)[-1]
    boards = [b for b in json.loads((run / "boards.json").read_text()) if b["policy"] == "given"]
    assert len(boards) == 12
    assert row["right"] == sum(
        a == s for b in boards for a, s, p in zip(b["answer"], b["solution"], b["puzzle"], strict=True) if p == 0
    )
    assert row["solved"] == sum(board["answer"] == board["solution"] for board in boards)


def test_the_solvers_order_is_followed(called, runs):
    run = runs["in_place"]
    called(command.main, f"run={run}", "policy=given", "values=greedy", "traces=3", "puzzles=12")
    boards = [b for b in json.loads((run / "boards.json").read_text()) if b["policy"] == "given"]
    _, data, _ = load_run(run)
    for board in boards[-3:]:
        place = data.source.place("report", np.array([board["number"]]))[0]  # pyright: ignore
        blank = torch.tensor(board["puzzle"]) == 0
        steps = torch.tensor(board["step"])[blank]
        assert torch.equal(steps.argsort(), place[blank].argsort())


def test_collections(called, refused, runs, tmp_path):
    boards = json.loads((runs["in_place"] / "boards.json").read_text())
    lines = ["".join(map(str, board["puzzle"])).replace("0", ".") for board in boards[:2]]
    (tmp_path / "good.txt").write_text("\n".join(lines) + "\n")
    for run in runs.values():
        called(command.main, f"run={run}", f"puzzles_file={tmp_path / 'good.txt'}", "policy=margin")
        row = rows_of(run)[-1]
        assert (row["split"], row["puzzles"], row["cells"]) == ("file", 2, sum(line.count(".") for line in lines))
    (tmp_path / "bad.txt").write_text(lines[0] + "\n" + "." * 81 + "\n")
    said = refused(command.main, f"run={runs['in_place']}", f"puzzles_file={tmp_path / 'bad.txt'}")
    assert "bad.txt:2" in said and "4x4" in said


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("triples", {"order": "row_major"}, "trained with data="),
        ("joint", {"order": "solver"}, "trained with data="),
        ("in_place", {"size": 6}, "6x6"),
        ("in_place", {"format": "joint", "order": "solver"}, "symbols"),
        ("joint", {"format": "triples"}, "seq_len=16"),
    ],
)
def test_other_data_than_in_training_are_refused(refused, runs, tmp_path, name, changes, said):
    """An edited configuration: another order has the same tokens and vocabulary, the rest has others."""
    run = tmp_path / "run"
    shutil.copytree(runs[name], run, ignore=shutil.ignore_patterns("decodings.jsonl"))
    load_run(run)  # as it is, it loads
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"].keys() >= changes.keys()
    config["data"].update(changes)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises((UserError, InstantiationException), match=said):
        load_run(run)
    assert said in refused(command.main, f"run={run}", "policy=margin", "puzzles=12")
    rows = run / "decodings.jsonl"
    assert not rows.exists() or not rows.read_text()
