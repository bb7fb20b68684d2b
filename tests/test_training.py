"""An interrupted run continues bit for bit, a finished one is left alone, and a damaged one says so."""

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
from conftest import TOY, composed, curve, die, in_fork, rows, same_weights, toy_run, weights

from dlm import callbacks, config, evaluate, run, sample, train
from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.files import append_row, drop_torn_line, write_atomically
from dlm.run import RunDirectory, load_checkpoint

LOSSES = ("train/loss", "train/nelbo", "lr", "targets", "epoch")
SCORES = ("tune/nll", "report/nll", "tune/se", "report/se_draws")


def agree(one, other):
    """Every number of the curve, every window's score, the chosen weights and the record, to the bit."""
    assert curve(one, *LOSSES) == curve(other, *LOSSES)
    assert curve(one, *SCORES) == curve(other, *SCORES)
    last = [{(r["step"], r["split"]): r["nll"] for r in rows(path, "windows.jsonl")} for path in (one, other)]
    assert last[0] == last[1]
    assert same_weights(one, other)
    records = [RunDirectory(path).read_record() for path in (one, other)]
    for key in ("best", "likelihood", "samples", "steps", "tokens", "targets", "flops", "stopped"):
        assert records[0][key] == records[1][key], key


# --- killed and run again -----------------------------------------------------------------------------------


def killed(output_dir, *overrides, on):
    """Train in a fork that gets SIGKILL at the `on`-th call of a function; its run directory."""
    module, name, count = on

    def child():
        original, calls = getattr(module, name), [0]

        def counted(*arguments, **options):
            calls[0] += 1
            if calls[0] == count:
                if name == "append_row":  # half of a line is on disk when the process dies
                    with open(arguments[0], "a") as file:
                        file.write(json.dumps(arguments[1])[:20])
                        file.flush()
                        os.fsync(file.fileno())
                die()
            return original(*arguments, **options)

        setattr(module, name, counted)
        toy_run(output_dir, *overrides)

    assert in_fork(child) == -9
    return config.run_path(composed(*TOY, f"output_dir={output_dir}", *overrides))


AT = {
    "before the first checkpoint": (callbacks, "append_row", 2),
    "writing the row of a step": (callbacks, "append_row", 12),
    "writing window scores": (callbacks, "append_row", 15),
    "writing a checkpoint": (torch, "save", 3),
    "moving a checkpoint into place": (os, "replace", 5),
    "in the final evaluation": (evaluate, "measure", 1),
    "writing the record": (train, "write_json", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same runs, never interrupted."""
    return {
        overrides: toy_run(tmp_path_factory.mktemp("whole"), *overrides)
        for overrides in [("method=md4",), ("method=arm", "backbone.dropout=0.3"), ("method=genmd4",)]
    }


@pytest.mark.parametrize("moment", AT)
def test_a_killed_run_continues_to_the_bit(moment, whole, tmp_path):
    path = killed(tmp_path, "method=md4", on=AT[moment])
    assert not (path / "record.json").exists()
    assert toy_run(tmp_path, "method=md4") == path
    agree(path, whole["method=md4",])
    assert not (path / "last.ckpt").exists(), "a finished run needs no place to continue from"
    assert {p.name for p in path.iterdir()} <= {
        "begun.json", "config.yaml", "metrics.jsonl", "windows.jsonl", "best.ckpt", "record.json", ".lock",
    }  # fmt: skip


@pytest.mark.parametrize("overrides", [("method=arm", "backbone.dropout=0.3"), ("method=genmd4",)], ids=str)
def test_dropout_and_learned_schedules_continue_as_well(overrides, whole, tmp_path):
    """Also after two interruptions."""
    for count in (9, 6):
        path = killed(tmp_path, *overrides, on=(callbacks, "append_row", count))
    toy_run(tmp_path, *overrides)
    agree(path, whole[overrides])


def test_a_stopped_run_stays_stopped(tmp_path):
    """Killed between the stop and its record, an over-fitted run must not train on when it continues."""
    settings = ("method=md4", "evaluation.overfit_margin=-1")  # every loss is "above its best": stops at once
    uninterrupted = toy_run(tmp_path / "whole", *settings)
    assert RunDirectory(uninterrupted).read_record()["steps"] < 12
    path = killed(tmp_path / "killed", *settings, on=(evaluate, "measure", 1))
    toy_run(tmp_path / "killed", *settings)
    agree(path, uninterrupted)


def test_the_uninterrupted_runs_are_worth_comparing(whole):
    """They learn, evaluate several times, and differ from each other."""
    for path in whole.values():
        losses = [row["tune/nll"] for row in curve(path, "tune/nll").values()]
        assert len(losses) == 3 and min(losses) < losses[0]
        assert sorted(curve(path, "train/loss")) == list(range(1, 13))
    finals = {curve(path, "tune/nll")[12]["tune/nll"] for path in whole.values()}
    assert len(finals) == len(whole)


def test_a_run_may_resume_with_other_hardware_settings(tmp_path, whole):
    """Micro-batches, workers and threads are no part of a run: killed at an odd step, it continues in halves."""
    path = killed(tmp_path, "method=md4", on=(callbacks, "append_row", 10))
    assert load_checkpoint(path / "last.ckpt")["global_step"] % 2 == 1
    toy_run(tmp_path, "method=md4", "trainer.accumulate=2")
    for step, row in curve(whole["method=md4",], "tune/nll").items():
        assert math.isclose(curve(path, "tune/nll")[step]["tune/nll"], row["tune/nll"], rel_tol=1e-5), step
    assert same_weights(path, whole["method=md4",], atol=1e-5)


@pytest.mark.parametrize("method", ["md4", "genmd4", "shuffle", "arm", "md4_balanced"])
def test_accumulating_is_one_large_batch(method, tmp_path):
    """Two micro-batches of two against one of four: logged losses and weights to 1e-5."""
    one = toy_run(tmp_path / "1", f"method={method}")
    two = toy_run(tmp_path / "2", f"method={method}", "trainer.accumulate=2")
    for keys in (("train/loss", "train/nelbo"), ("tune/nll",), ("targets",), ("epoch",)):
        left, right = curve(one, *keys), curve(two, *keys)
        assert left.keys() == right.keys()
        for step in left:
            assert list(left[step].values()) == pytest.approx(list(right[step].values()), rel=1e-5), (step, keys)
    assert same_weights(one, two, atol=1e-5)


# --- finished, damaged, or busy ----------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    path = toy_run(tmp_path)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.iterdir()}
    capsys.readouterr()
    assert toy_run(tmp_path) == path
    assert capsys.readouterr().out == f"already finished: {path}\n"
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.iterdir()}


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(damage, tmp_path, refused):
    path = killed(tmp_path, "method=md4", on=(callbacks, "append_row", 12))
    last = path / "last.ckpt"
    last.write_bytes({"truncated": last.read_bytes()[:9000], "empty": b"", "text": b"not a checkpoint\n"}[damage])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    error = refused(train.main, *TOY, "method=md4", f"output_dir={tmp_path}")
    assert str(last) in error and "delete" in error
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    for name in ("last.ckpt", "best.ckpt", "config.yaml"):
        assert after[name] == before[name]
    assert before["metrics.jsonl"].startswith(after["metrics.jsonl"]) and b'"step": 8' in after["metrics.jsonl"]


def test_torn_last_lines_are_dropped(tmp_path):
    file = tmp_path / "rows.jsonl"
    for content, kept in [
        (b'{"step": 1}\n{"step": 2}\n{"st', b'{"step": 1}\n{"step": 2}\n'),
        (b'{"step": 1}\n', b'{"step": 1}\n'),
        (b'{"st', b""),
        (b"", b""),
    ]:
        file.write_bytes(content)
        drop_torn_line(file)
        assert file.read_bytes() == kept
        append_row(file, {"step": 3})
        assert json.loads(file.read_text().splitlines()[-1]) == {"step": 3}
    drop_torn_line(tmp_path / "absent.jsonl")


def test_the_second_process_on_a_run_is_refused(tmp_path, refused):
    path = killed(tmp_path, "method=md4", on=(callbacks, "append_row", 12))
    with RunDirectory(path).locked():
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        error = refused(train.main, *TOY, "method=md4", f"output_dir={tmp_path}")
        assert "another process" in error and str(path) in error
        assert before == {file.name: file.read_bytes() for file in path.iterdir()}
    toy_run(tmp_path, "method=md4")  # the lock is gone with its holder
    assert RunDirectory(path).finished


def test_whole_files_appear_at_once_or_not_at_all(tmp_path):
    file = tmp_path / "record.json"
    write_atomically(file, b"old")

    def torn():
        os.replace = die
        write_atomically(file, b"new" * 10**6)

    assert in_fork(torn) == -9
    assert file.read_bytes() == b"old"


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch, refused):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.torch, "save", full)
    error = refused(train.main, *TOY, f"output_dir={tmp_path}")
    assert "No space left on device" in error and "best.ckpt" in error
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.ckpt"))


# --- stopping, averaging, evaluating -------------------------------------------------------------------------


def test_over_fitting_stops_a_run_and_is_recorded(tmp_path):
    """A rate so high that the loss rises: two evaluations in a row above the best by any margin."""
    overrides = ["evaluation.overfit_margin=0.0", "optim.lr=3", "optim.ema=0.0", "steps=200", "optim.clip=1000"]
    path = toy_run(tmp_path, "method=arm", *overrides, "evaluation.per_octave=4")
    record = RunDirectory(path).read_record()
    assert record["steps"] < 200 and record["epochs"] == record["steps"] / 16
    assert "above its best" in record["stopped"] and f"epoch {record['epochs']:g}" in record["stopped"]
    losses = {step: row["tune/nll"] for step, row in curve(path, "tune/nll").items()}
    assert max(losses) == record["steps"]
    assert record["best"]["step"] == min(losses, key=losses.get)
    assert all(loss > min(losses.values()) for loss in list(losses.values())[-2:])


def stopped_after(losses, margin):
    """How many evaluations OverfitStop allows."""
    stop = callbacks.OverfitStop(margin)
    trainer = SimpleNamespace(should_stop=False, datamodule=SimpleNamespace(epoch_of=float))
    for count, loss in enumerate(losses, 1):
        trainer.global_step = count
        model = SimpleNamespace(scores={"tune": SimpleNamespace(nll=loss)})
        stop.on_validation_end(trainer, model)
        resumed = callbacks.OverfitStop(margin)
        resumed.load_state_dict(json.loads(json.dumps(stop.state_dict())))
        stop = resumed
        if trainer.should_stop:
            return count, stop.reason
    return None


def test_two_evaluations_in_a_row_are_needed():
    """Also across a resumption; the margin counts from the best so far."""
    assert stopped_after([3.0, 2.0, 2.6, 2.0, 2.6, 2.4, 2.6, 2.7], 0.5)[0] == 8
    assert stopped_after([3.0, 2.0, 2.5, 2.5, 2.5], 0.5) is None
    count, reason = stopped_after([3.0, 2.0, 9.0, 9.0], 0.5)
    assert count == 4
    assert reason == "stopped at epoch 4: the tune loss 9.000 is 7.00 nats above its best 2.000 at epoch 2"


def test_moving_average_by_hand():
    """decay_n = min(decay, (1 + n) / (10 + n)), the first update copies what Lightning counts as n = 1."""
    for decay in (0.99, 0.15):
        ema = callbacks.Ema(decay)
        averaged, wanted = torch.tensor([1.0], dtype=torch.float64), 1.0
        for n, current in enumerate([2.0, 3.0, 5.0], 1):
            new = torch.tensor([current], dtype=torch.float64)
            ema._kwargs["multi_avg_fn"]([averaged], [new], torch.tensor(n))
            keep = min(decay, (1 + n) / (10 + n))
            wanted = keep * wanted + (1 - keep) * current
        assert math.isclose(averaged.item(), wanted, rel_tol=1e-12)


def test_evaluations_and_the_chosen_checkpoint_hold_the_average(tmp_path):
    """A run without averaging ends elsewhere; the raw weights are kept beside the average for resuming."""
    one, other = (toy_run(tmp_path, f"optim.ema={ema}") for ema in (0.99, 0.0))
    assert curve(one, "train/loss") == curve(other, "train/loss"), "averaging does not touch training"
    assert curve(one, "tune/nll") != curve(other, "tune/nll")
    raw = torch.load(other / "best.ckpt", weights_only=True)
    assert all(torch.equal(raw["state_dict"][k], v) for k, v in raw["current_model_state"].items())
    kept = torch.load(one / "best.ckpt", weights_only=True)
    assert any(not torch.equal(kept["state_dict"][k], v) for k, v in kept["current_model_state"].items())
    assert all(torch.equal(kept["current_model_state"][k], v) for k, v in weights(other).items())


def test_evaluation_steps_by_hand():
    steps = callbacks.evaluation_steps
    assert steps(total=100, steps_per_epoch=10, per_octave=1, first_epoch=1) == [10, 20, 40, 80, 100]
    assert steps(total=80, steps_per_epoch=10, per_octave=1, first_epoch=1) == [10, 20, 40, 80]
    assert steps(total=5, steps_per_epoch=10, per_octave=1, first_epoch=1) == [5]
    assert steps(total=40, steps_per_epoch=10, per_octave=2, first_epoch=1) == [10, 14, 20, 28, 40]
    assert steps(total=4, steps_per_epoch=0.5, per_octave=1, first_epoch=1) == [1, 2, 4]  # never step 0, once each
    long, short = steps(1000, 10, 3, 2), steps(500, 10, 3, 2)
    assert set(short[:-1]) <= set(long), "runs of different length are compared at the same epochs"


def test_evaluations_happen_exactly_then(tmp_path):
    """Once each, at the end too, also when several batches make a step; on no other split than the two."""
    for accumulate in (1, 2):
        path = toy_run(tmp_path / str(accumulate), "steps=11", f"trainer.accumulate={accumulate}")
        evaluated = [row["step"] for row in rows(path) if "tune/nll" in row]
        assert evaluated == [4, 8, 11]
        assert [(r["step"], r["split"]) for r in rows(path, "windows.jsonl")] == [
            (step, split) for step in evaluated for split in DataModule.split_names
        ]


def test_the_chosen_checkpoint_is_the_lowest_on_tune(tmp_path):
    path = toy_run(tmp_path, "optim.lr=0.5", "optim.ema=0.0", "steps=64", "evaluation.per_octave=2", "method=arm")
    losses = {step: row["tune/nll"] for step, row in curve(path, "tune/nll").items()}
    best = min(losses, key=losses.get)
    assert best < max(losses), "the last evaluation should not be the best, or this tests nothing"
    record = RunDirectory(path).read_record()
    assert record["best"] == {"step": best, "epoch": best / 16, "tune_nll": losses[best]}
    assert load_checkpoint(path / "best.ckpt")["global_step"] == best
    model, data, _ = evaluate.load_run(path)
    score = evaluate.score(model, data, model.headline, "tune", None, 2, 16)
    assert math.isclose(score.nll, losses[best], rel_tol=1e-6)
    reported = record["likelihood"]["bound"]["nats_per_token"]
    assert math.isclose(reported, curve(path, "report/nll")[best]["report/nll"], rel_tol=1e-6)


def test_curve_axes_are_exact_counts(tmp_path):
    """epoch, tokens and FLOPs follow from the step; the scored targets are those that carried a loss."""
    path = toy_run(tmp_path, "method=arm")
    for row in rows(path):
        assert row["tokens"] == row["targets"] == row["step"] * 4 * 8
        assert row["epoch"] == row["step"] * 4 / 64
    masked = rows(toy_run(tmp_path, "method=md4"))[-1]
    assert 0.3 < masked["targets"] / masked["tokens"] < 0.7


# --- checkpoints of something else ---------------------------------------------------------------------------


def rewritten(path, old, new):
    text = (path / "config.yaml").read_text()
    assert old in text
    (path / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize("command", [evaluate.main, sample.main], ids=["evaluate", "sample"])
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  vocab_size: 4\n  concentration", "  vocab_size: 5\n  concentration", "4 symbols"),
        ("  seed: 0\n  sequences", "  seed: 9\n  sequences", "data="),
        ("depth: 1", "depth: 2", "does not fit"),
        ("dim: 16", "dim: 32", "does not fit"),
    ],
)
def test_a_run_whose_configuration_was_changed_is_refused(command, old, new, said, tmp_path, refused):
    path = toy_run(tmp_path)
    rewritten(path, old, new)
    error = refused(command, f"run={path}")
    assert said in error and ("4 symbols" not in said or str(path) in error)


def test_a_resumed_run_checks_what_it_resumes(tmp_path):
    """The identity is checked by `fit` as well, not only when a finished run is read."""
    path = killed(tmp_path, "method=md4", on=(callbacks, "append_row", 12))
    content = torch.load(path / "last.ckpt", weights_only=True)
    content["identity"]["vocab_size"] = 7
    torch.save(content, path / "last.ckpt")
    with pytest.raises(UserError, match="vocab_size=7"):
        toy_run(tmp_path, "method=md4")


def test_a_run_is_not_continued_by_other_code(tmp_path, refused):
    """One line, before anything of the run is touched."""
    path = killed(tmp_path, "method=md4", on=(callbacks, "append_row", 12))
    begun = json.loads((path / "begun.json").read_text())
    (path / "begun.json").write_text('{"code": "0ld"}')
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    error = refused(train.main, *TOY, "method=md4", f"output_dir={tmp_path}")
    assert "begun by code 0ld" in error and begun["code"] in error and "delete it to train it anew" in error
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert after["last.ckpt"] == before["last.ckpt"] and after["begun.json"] == before["begun.json"]
