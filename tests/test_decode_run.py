"""The command `python -m dlm.decode`: what it asks of a run, writes into it, and makes only once."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import die, in_fork, toy_run, trained, weights
from progressions import Progressions

from dlm.decode import __main__ as command
from dlm.decode import run as decode_run
from dlm.evaluate import load_run
from dlm.files import append_row, held

TASK = [
    *("data._target_=progressions.Progressions", "+data.puzzles=null", "data.held_out=30", "data.vocab_size=5"),
    *("seq_len=9", "evaluation.snapshots=[0.25,0.5]", "steps=10"),
]
task_run = trained("aoarm", *TASK)
causal_run = trained("arm", *TASK)


@pytest.fixture
def copied(task_run, tmp_path):
    """A run that a test may write to."""
    return clone(task_run, tmp_path / "run")


def clone(run, path):
    for file in (
        "config.yaml",
        "record.json",
        "best.ckpt",
        "snapshots/epoch-0.25.ckpt",
        "snapshots/epoch-0.5.ckpt",
    ):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes((Path(run) / file).read_bytes())
    return path


def decodings(run):
    return [json.loads(line) for line in (Path(run) / "decodings.jsonl").read_text().splitlines()]


def test_rows_are_written_and_made_once(called, copied):
    arguments = (
        f"run={copied}",
        "policy=random,margin,given",
        "values=greedy,sampled",
        "puzzles=10",
        "batch_size=4",
    )
    printed = called(command.main, *arguments)
    rows = decodings(copied)
    assert len(rows) == 6 == printed.count("solved") and "there already" not in printed
    assert {(r["setting"]["policy"], r["setting"]["values"]) for r in rows} == {
        (policy, values) for policy in ("random", "margin", "given") for values in ("greedy", "sampled")
    }
    record = json.loads((copied / "record.json").read_text())
    for row in rows:
        assert (row["checkpoint"], row["split"], row["seed"], row["sampler"]) == ("best", "report", 0, "ordered")
        assert (row["epoch"], row["step"]) == (record["best"]["epoch"], record["best"]["step"])
        assert row["data"] == record["data"]["fingerprint"] and row["code"] == record["code"]
        assert row["puzzles"] == 10 and row["tokens_per_step"] == 1 and row["device"] in ("cpu", "cuda")
        assert row["solved"] == bin(int(row["outcomes"], 16)).count("1")
        assert row["wilson"][0] <= row["solved"] / 10 <= row["wilson"][1]
        assert row["cells"] == sum(9 - 2 - n % 3 for n in range(0, 30, 3)), "the puzzles lie evenly in the split"
    again = called(command.main, *arguments)
    assert again.count("(there already)") == 6 and decodings(copied) == rows
    called(command.main, *arguments, "seeds=0,1")
    assert [r["seed"] for r in decodings(copied)[6:]] == [1] * 6


def test_a_key_hashes_weights_puzzles_setting_seed_and_version(called, copied, monkeypatch):
    one = (f"run={copied}", "policy=margin", "puzzles=6")
    variants = [(), ("puzzles=5",), ("split=tune",), ("seeds=1",), ("ties=left",), ("checkpoints=epoch-0.5",)]
    for variant in variants:
        called(command.main, *one, *variant)
    monkeypatch.setattr(decode_run, "VERSION", decode_run.VERSION + 1)
    called(command.main, *one)
    assert len({row["key"] for row in decodings(copied)}) == len(variants) + 1
    called(command.main, *one, "batch_size=2", "puzzles=6")
    assert len(decodings(copied)) == len(variants) + 1, "the batch size decides nothing"


def test_every_checkpoint_with_its_step(called, copied):
    called(command.main, f"run={copied}", "policy=margin", "puzzles=4", "checkpoints=all")
    _, data, run = load_run(copied)
    rows = {row["checkpoint"]: row for row in decodings(copied)}
    assert list(rows) == run.checkpoints == ["epoch-0.25", "epoch-0.5", "best"]
    for epoch in (0.25, 0.5):
        row = rows[f"epoch-{epoch:g}"]
        assert (row["epoch"], row["step"]) == (epoch, round(epoch * data.steps_per_epoch))
    (copied / "record.json").unlink()
    called(command.main, f"run={copied}", "policy=margin", "puzzles=5")
    row = decodings(copied)[-1]
    assert (row["epoch"], row["step"]) == (rows["best"]["epoch"], rows["best"]["step"]), "as its checkpoint says"


def test_a_killed_command_continues(called, copied, task_run, tmp_path, monkeypatch):
    """Killed in its third row, with half a line written: two rows stay, the others are as if nothing had been."""
    arguments = ("policy=random,margin,entropy,log_ratio", "puzzles=8", "values=sampled")
    wanted = clone(task_run, tmp_path / "whole")
    called(command.main, f"run={wanted}", *arguments)

    def append_and_die(path, row):
        if len(decodings(copied) if path.is_file() else []) == 2:
            path.open("a").write(json.dumps(row)[:40])
            die()
        append_row(path, row)

    with monkeypatch.context() as patch:
        patch.setattr(decode_run, "append_row", append_and_die)
        patch.setattr("sys.argv", ["dlm", f"run={copied}", *arguments])
        assert in_fork(command.main) < 0
    assert not (copied / "decodings.jsonl").read_bytes().endswith(b"\n")
    printed = called(command.main, f"run={copied}", *arguments)
    assert printed.count("(there already)") == 2

    def timeless(rows):
        return [row | {"seconds": 0} for row in rows]

    assert timeless(decodings(copied)) == timeless(decodings(wanted))


def test_a_second_process_is_refused(refused, copied):
    with held(copied / ".decode.lock", "taken"):
        assert "another process is decoding" in refused(command.main, f"run={copied}")
    assert not (copied / "decodings.jsonl").exists()


def test_what_is_left_out_is_said_in_one_line(called, copied):
    said = called(
        *(command.main, f"run={copied}", "puzzles=4", "policy=random,margin,given", "noise=none,gumbel"),
        *("noise_scale=0.5", "per_step=1,8", "steps=50"),
    )
    (left_out,) = [line for line in said.splitlines() if line.startswith("left out")]
    for reason, count in (
        ("policy=random has none", 1),
        ("policy=given has none", 1),
        ("per_step=8 does not fit: no puzzle has more than 7 tokens to reveal", 4),
        ("steps=50 does not fit", 4),
    ):
        assert any(reason in part and part.endswith(f"({count})") for part in left_out.split("; ")), (reason, said)
    assert len(decodings(copied)) == 4


def test_an_order_that_the_data_do_not_give_is_left_out(called, tmp_path):
    run = toy_run(tmp_path, "method=aoarm", *TASK, "data.name=unordered")
    said = called(command.main, f"run={run}", "puzzles=4", "policy=given,margin", "traces=2")
    assert "left out: policy=given: the data give no order" in said
    assert [row["setting"]["policy"] for row in decodings(run)] == ["margin"]
    assert not (run / "boards.json").exists(), "answers that fill no board"


def test_autoregressive_rows(called, causal_run, tmp_path):
    """Prompts of three lengths in one batch; policies mean nothing to it."""
    run = clone(causal_run, tmp_path / "run")
    called(command.main, f"run={run}", "values=greedy,sampled", "policy=random,margin", "per_step=1,2")
    rows = decodings(run)
    assert [(row["sampler"], row["setting"]) for row in rows] == [
        ("autoregressive", {"values": "greedy"}),
        ("autoregressive", {"values": "sampled"}),
    ]
    assert all(row["nfe"] == row["cells"] / 30 and row["tokens_per_step"] == 1 for row in rows)
    assert all(
        row["by"] == {"givens": {str(g): [row["by"]["givens"][str(g)][0], 10] for g in (2, 3, 4)}} for row in rows
    )
    assert all(row["ties"] is None for row in rows)
    model, data, _ = load_run(run)
    examples = data.examples("report", np.arange(30))
    logits = model.backbone(shifted(examples.x0, model.vocab_size), None)
    right = (logits.argmax(-1) == examples.x0) | ~examples.target
    assert rows[0]["solved"] == int(right.all(1).sum()), "greedy answers are right where every argmax is"


def shifted(x0, start):
    """What a causal model reads: the start symbol, then all but the last token."""
    return x0.roll(1, 1).index_fill(1, x0.new_zeros(1), start)


def test_grids_are_command_lines_with_the_last_word(called, copied, tmp_path):
    grids = tmp_path / "grids.json"
    blocks = [
        {"policy": ["random", "margin"], "values": "greedy,sampled", "puzzles": 5},
        {"noise": "gumbel", "noise_scale": [0.05, 0.5], "policy": "margin", "seeds": [0, 1], "remask": False},
        {"checkpoints": "all", "policy": "margin", "split": ["report", "tune"], "steps": 3, "puzzles": None},
    ]
    grids.write_text(json.dumps(blocks))
    called(command.main, f"run={copied}", f"grids={grids}", "puzzles=7")
    rows = decodings(copied)
    assert len(rows) == 4 + 4 + 6
    assert [row["puzzles"] for row in rows] == [5] * 4 + [7] * 4 + [30] * 6
    assert {(r["setting"]["noise_scale"], r["seed"]) for r in rows[4:8]} == {
        (scale, seed) for scale in (0.05, 0.5) for seed in (0, 1)
    }


def test_boards_are_traces_of_the_first_puzzles(called, refused, copied):
    arguments = (f"run={copied}", "policy=random,margin", "values=sampled", "puzzles=10")
    called(command.main, *arguments)
    called(command.main, *arguments, "traces=2")
    boards = json.loads((copied / "boards.json").read_text())
    assert [(board["policy"], board["number"]) for board in boards] == [
        (policy, number) for policy in ("random", "margin") for number in (0, 3)
    ]
    for board in boards:
        given = Progressions("markov", 9, 5, 4, 30).givens(board["number"])
        assert [step == -1 for step in board["step"]] == [slot < given for slot in range(9)]
        assert board["size"] == 1 and board["setting"]["values"] == "sampled"
    assert "0 boards added" in called(command.main, *arguments, "traces=2")
    called(command.main, *arguments, "traces=3")
    more = json.loads((copied / "boards.json").read_text())
    assert more[:4] == boards and [board["number"] for board in more[4:]] == [6, 6]
    (copied / "boards.json").write_text("[1,")
    assert "no list of boards" in refused(command.main, *arguments, "traces=1")


def test_a_collection_it_was_not_trained_on(called, refused, copied, tmp_path):
    puzzles = tmp_path / "collection.txt"
    puzzles.write_text("1 2\n0 3\n4 4\n")
    called(command.main, f"run={copied}", f"puzzles_file={puzzles}", "policy=margin")
    (row,) = decodings(copied)
    assert (row["split"], row["puzzles"], row["cells"]) == ("file", 3, 7 + 6 + 5)
    puzzles.write_text("1 2 3\n")
    assert "a line is no pair" in refused(command.main, f"run={copied}", f"puzzles_file={puzzles}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["policy=wisest"], "wisest"),
        (["policy=random", "noise=gumbel"], "policy=random has none"),
        (["split=hard"], "split is one of train, tune, report, not 'hard'"),
        (["checkpoints=epoch-7"], "no checkpoint epoch-7; there are: epoch-0.25, epoch-0.5, best"),
        (["sampler=thinning"], "samples by"),
        (["puzzles=0"], "puzzles=0 must be positive"),
        (["batch_size=0"], "batch_size=0 must be positive"),
        (["traces=-1"], "traces=-1"),
        (["seeds=a"], "seeds=a"),
        (["per_step=0"], "per_step=0"),
        (["polcy=margin"], "polcy"),
        (["grids=nowhere.json"], "nowhere.json"),
        (["puzzles_file=nowhere.txt"], "nowhere.txt"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(refused, copied, arguments, said):
    assert said in refused(command.main, f"run={copied}", *arguments)
    assert not (copied / "decodings.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{]", "is not JSON"),
        ("{}", "expected a list of objects"),
        ('[{"policy": "margin"}, {"polcy": "margin"}]', "object 2: 'polcy' is not one of the keys"),
        ('[{"run": "elsewhere"}]', "object 1: 'run'"),
        ("[3]", "object 1: 3"),
        ('[{"puzzles": "many"}]', "object 1:"),
    ],
)
def test_mistakes_in_grids_are_one_line(refused, copied, tmp_path, content, said):
    (tmp_path / "grids.json").write_text(content)
    assert said in refused(command.main, f"run={copied}", f"grids={tmp_path / 'grids.json'}")


def test_runs_without_right_answers_are_refused(refused, tmp_path, md4_run):
    assert "has no config.yaml" in refused(command.main, f"run={tmp_path}")
    assert "of which no answer is right" in refused(command.main, f"run={md4_run}")
    assert "which run?" in refused(command.main)


def test_weights_and_steps_of_the_run_stay(called, copied):
    before = weights(copied)
    called(command.main, f"run={copied}", "policy=margin", "puzzles=4", "sampler=ordered,ancestral", "steps=3")
    assert all((before[name] == value).all() for name, value in weights(copied).items())
    ordered, ancestral = decodings(copied)
    assert (ordered["sampler"], ancestral["sampler"]) == ("ordered", "ancestral")
    assert ancestral["setting"] == {"steps": 3, "values": "greedy"} and ancestral["nfe"] <= 3
    assert math.isclose(ordered["nfe"], 3)
