"""A cooled-down branch is the run that would end there, to the bit; snapshots are the weights of that moment."""

import shutil

import pytest
import torch
from conftest import TOY, composed, curve, die, in_fork, rows, same_weights, toy_run, weights

from dlm import callbacks, config, evaluate, fit, version
from dlm.errors import UserError
from dlm.run import RunDirectory

TRUNK = ("steps=null", "epochs=2", "branches.epochs=[1,1.5,2]", "evaluation.snapshots=[0.5,2]")
COUNTS = ("step", "tokens", "targets", "flops")
LOSSES = ("tune/nll", "tune/se", "report/nll", "report/se", "report/se_draws")
METHODS = [("method=md4",), ("method=arm", "backbone.dropout=0.3"), ("method=genmd4",), ("method=shuffle",)]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("overrides", METHODS, ids=lambda overrides: overrides[0])
def test_a_branch_is_the_run_that_ends_there(overrides, tmp_path):
    """Weights, losses of every window and what it cost: from the fork as from scratch."""
    trunk = toy_run(tmp_path / "trunk", *overrides, *TRUNK)
    branches = {row["epoch"]: row for row in rows(trunk, "branches.jsonl")}
    assert sorted(branches) == [1, 1.5, 2] == RunDirectory(trunk).read_record()["branches"]
    for epoch, row in branches.items():
        options = (f"epochs={epoch}", "optim.cooldown=0.15", f"evaluation.snapshots=[{epoch}]", "steps=null")
        whole = toy_run(tmp_path / f"{epoch}", *overrides, *options)
        last = curve(whole, *COUNTS, *LOSSES)[row["step"]]
        assert {key: row[key] for key in (*COUNTS, *LOSSES)} == last
        windows = {r["split"]: r["nll"] for r in rows(whole, "windows.jsonl") if r["step"] == row["step"]}
        assert row["windows"] == windows
        assert equal(weights(trunk, f"snapshots/cooled-{epoch:g}"), weights(whole, f"snapshots/epoch-{epoch:g}"))


def test_the_rate_falls_only_in_the_branch(tmp_path):
    """A branch differs from the trunk at the same step, and the trunk is what it is without branches."""
    with_branches = toy_run(tmp_path / "with", "method=md4", *TRUNK)
    without = toy_run(tmp_path / "without", "method=md4", "steps=null", "epochs=2")
    assert same_weights(with_branches, without)
    assert curve(with_branches, "train/loss", "lr") == curve(without, "train/loss", "lr")
    assert curve(with_branches, *LOSSES) == curve(without, *LOSSES)
    assert not equal(weights(with_branches, "snapshots/cooled-2"), weights(with_branches, "snapshots/epoch-2"))
    assert not (with_branches / "forks").exists()


class Killer(fit.lightning.Callback):
    """Dies in the last step of the trunk or branch that it is given to."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == trainer.max_steps - 1:
            die()


def before_the_second_branch(*arguments):
    return arguments[3].epoch == 1.5 and die()


def in_the_second_branch(trainer, *arguments):
    return trainer.max_steps == 24 and trainer.callbacks.append(Killer())


def before_the_second_row(path, row):
    return path.name == "branches.jsonl" and row["epoch"] == 1.5 and die()


@pytest.mark.parametrize(
    ("module", "name", "dying"),
    [
        (fit, "fit_branch", before_the_second_branch),
        (fit, "fit", in_the_second_branch),
        (callbacks, "append_row", before_the_second_row),
    ],
)
def test_killed_at_a_branch_it_continues(module, name, dying, tmp_path):
    """The rows and weights of a run that was never interrupted, and no branch done twice."""
    options = ("method=md4", *TRUNK, "trainer.checkpoint_every=1")

    def child():
        original = getattr(module, name)

        def deadly(*arguments):
            dying(*arguments)
            return original(*arguments)

        setattr(module, name, deadly)
        toy_run(tmp_path / "killed", *options)

    assert in_fork(child) == -9
    killed, whole = toy_run(tmp_path / "killed", *options), toy_run(tmp_path / "whole", *options)

    def timeless(path):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path, "branches.jsonl")]

    assert timeless(killed) == timeless(whole)
    for name in RunDirectory(whole).checkpoints:
        file = RunDirectory(whole).checkpoint(name).relative_to(whole).with_suffix("")
        assert equal(weights(killed, file), weights(whole, file)), name


def test_an_over_fitted_trunk_carries_the_branches_it_has_reached(tmp_path):
    """The stopping rule ends the trunk before the last fork: that branch is left out, and the record says so."""
    run = toy_run(
        *(tmp_path, "method=arm", "steps=null", "epochs=200", "optim.lr=0.1", "data.sequences=4"),
        *("evaluation.overfit_margin=0.05", "evaluation.first_epoch=4", "branches.epochs=[8,200]"),
        "evaluation.per_octave=2",
    )
    record = RunDirectory(run).read_record()
    assert record["stopped"] and record["epochs"] < 170
    assert record["branches"] == [8] == [row["epoch"] for row in rows(run, "branches.jsonl")]


def test_snapshots_are_scored_like_any_checkpoint(tmp_path):
    run = toy_run(tmp_path, "method=md4", *TRUNK)
    assert RunDirectory(run).checkpoints == ["epoch-0.5", "epoch-2", "cooled-1", "cooled-1.5", "cooled-2", "best"]
    for name in ("epoch-2", "cooled-1"):
        model, data, _ = evaluate.load_run(run, name)
        score = evaluate.score(model, data, model.headline, "tune", None, 2, 16)
        row = {2: curve(run, *LOSSES)[32], 1: rows(run, "branches.jsonl")[0]}[int(name[-1])]
        assert score.nll == pytest.approx(row["tune/nll"], rel=1e-5)
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate.load_run(run, "epoch-7")


def test_a_record_says_what_its_numbers_depend_on(tmp_path):
    run = toy_run(tmp_path, "method=arm", *TRUNK)
    record = RunDirectory(run).read_record()
    assert record["code"] == version.code_version() and len(record["code"]) == 12
    assert record["passages"] == {"tune": list(range(8)), "report": list(range(8))}
    assert record["flops_full_attention"] > record["flops"]
    assert record["optim"]["weight_decay"] == 0.1
    shutil.rmtree(run / "snapshots")
    md4 = RunDirectory(toy_run(tmp_path, "method=md4", *TRUNK)).read_record()
    assert md4["flops_full_attention"] == md4["flops"] == record["flops_full_attention"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["branches.epochs=[3]"], "the trunk ends at epoch 2"),
        (["branches.epochs=[0]"], "must be positive"),
        (["branches.epochs=[1]", "branches.cooldown=1"], "in \\(0, 1\\)"),
        (["branches.epochs=[1]", "optim.cooldown=0.2"], "stays constant"),
        (["branches.epochs=[0.01]"], "none to branch from"),
        (["evaluation.snapshots=[-1]"], "must be positive"),
    ],
)
def test_branches_that_cannot_be(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        toy_run(tmp_path, "steps=null", "epochs=2", *overrides)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_branches_belong_to_a_runs_name():
    names = {
        config.run_name(composed(*TOY, f"branches.epochs={epochs}")) for epochs in ("[]", "[0.5]", "[0.25,0.5]")
    }
    assert len(names) == 3


def test_the_code_version_sees_code_and_not_prose():
    before = '"""One."""\ndef f(x):\n    """Two."""\n    return x + 1  # three\n'
    assert version.meaning(before) == version.meaning("def f(x):\n    return x + 1\n")
    assert version.meaning(before) != version.meaning(before.replace("+ 1", "+ 2"))
