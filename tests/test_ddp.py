"""Two processes on the CPU are one run: the same losses, the same scores, one record, one set of files."""

import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TOY, composed, curve, die, rows, same_weights, toy_run, weights

from dlm import callbacks, config, fit, lm, train
from dlm.noise import Stream, uniforms
from dlm.run import RunDirectory

TRAINED = ("train/loss", "train/nelbo", "lr", "targets")
SCORED = ("tune/nll", "tune/se", "tune/se_draws", "report/nll", "report/se")
UNEVEN = "evaluation.batch_size=3"  # 8 windows: two batches for one process, one for the other


def on_two(output_dir, *overrides):
    """Fit with two forked processes (Lightning would restart pytest itself to make others)."""
    cfg = composed(
        *TOY, UNEVEN, f"output_dir={output_dir}", *overrides, "trainer.devices=2", "trainer.strategy=ddp_fork"
    )
    data = train.build_data(cfg)
    run, steps = RunDirectory(config.run_path(cfg)), fit.plan_steps(cfg, data)
    run.create()
    model = train.build_model(cfg, data.source.fingerprint, steps)
    fit.fit_trunk(cfg, run, data, model, steps, main=False)
    fit.fit_branches(cfg, run, data, steps)
    return run.path


def close(one, other, keys, tolerance):
    left, right = curve(one, *keys), curve(other, *keys)
    assert left.keys() == right.keys() and left
    for step, row in left.items():
        for key, value in row.items():
            assert math.isclose(value, right[step][key], rel_tol=tolerance), (step, key, value, right[step][key])


@pytest.mark.parametrize("method", ["md4", "genmd4", "shuffle", "arm", "dfm_uniform"])
def test_two_processes_are_one(method, tmp_path):
    """At an equal global batch: losses and weights to 1e-5, and as many rows and files as one process writes."""
    one = toy_run(tmp_path / "one", f"method={method}", UNEVEN)
    two = on_two(tmp_path / "two", f"method={method}")
    close(one, two, TRAINED, 1e-5)
    close(one, two, SCORED, 1e-4)
    assert same_weights(one, two, atol=1e-5)
    assert len(rows(one)) == len(rows(two))
    assert len(rows(one, "windows.jsonl")) == len(rows(two, "windows.jsonl"))
    assert {p.name for p in two.iterdir()} == {"metrics.jsonl", "windows.jsonl", "best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("method", ["md4", "shuffle", "arm"])
def test_equal_weights_score_equally(method, tmp_path):
    """With a learning rate of zero: to 1e-12, window by window, each counted once, none added for padding."""
    one = toy_run(tmp_path / "one", f"method={method}", UNEVEN, "optim.lr=0", "steps=4")
    two = on_two(tmp_path / "two", f"method={method}", "optim.lr=0", "steps=4")
    close(one, two, SCORED, 1e-12)
    left, right = rows(one, "windows.jsonl"), rows(two, "windows.jsonl")
    assert left == right and all(len(row["nll"]) == 8 for row in right)


def test_branches_of_two_processes_are_those_of_one(tmp_path):
    """The forks, the cooled-down weights and their losses, to 1e-5."""
    options = ("method=md4", "steps=12", "branches.epochs=[0.5,0.75]")
    one, two = toy_run(tmp_path / "one", UNEVEN, *options), on_two(tmp_path / "two", *options)
    left, right = rows(one, "branches.jsonl"), rows(two, "branches.jsonl")
    assert [row["step"] for row in left] == [row["step"] for row in right] == [8, 12]
    for a, b in zip(left, right, strict=True):
        assert a["targets"] == b["targets"] and math.isclose(a["tune/nll"], b["tune/nll"], rel_tol=1e-5)
    for name in ("cooled-0.5", "cooled-0.75"):
        mine, theirs = weights(one, f"snapshots/{name}"), weights(two, f"snapshots/{name}")
        assert all((mine[k] - theirs[k]).abs().max() <= 1e-5 for k in mine)


def test_processes_destroy_different_rows_differently(tmp_path, monkeypatch):
    """Together they draw exactly the noise of the global batch."""
    original = lm.LanguageModel.training_noise

    def recorded(self, batch):
        places, noise = original(self, batch)
        torch.save((batch["rows"], places, noise), tmp_path / f"{batch['step']}-{self.global_rank}.pt")
        return places, noise

    monkeypatch.setattr(lm.LanguageModel, "training_noise", recorded)
    on_two(tmp_path / "run", "steps=3")
    for step in range(3):
        (rows0, t0, noise0), (rows1, t1, noise1) = (torch.load(tmp_path / f"{step}-{rank}.pt") for rank in (0, 1))
        assert [*rows0, *rows1] == [0, 1, 2, 3]
        assert not set(t0.tolist()) & set(t1.tolist()) and not (noise0 == noise1).any()
        whole = uniforms(0, Stream.CORRUPTION, [4 * step + row for row in range(4)], 1, 8)
        assert torch.equal(torch.cat([noise0, noise1], 1), whole.transpose(0, 1))


def test_a_run_moves_from_one_process_to_two_and_back(tmp_path, monkeypatch):
    """Stopped after step 5 on one, after step 10 on two, finished on one: the losses of a run never stopped."""
    whole = toy_run(tmp_path / "whole", UNEVEN)

    def dying(path, row):
        append(path, row)
        if row["step"] == last:
            die()

    append, last = callbacks.append_row, 7
    monkeypatch.setattr(callbacks, "append_row", dying)
    pid = os.fork()
    if pid == 0:
        toy_run(tmp_path / "moved", UNEVEN)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 9
    last = 11
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        on_two(tmp_path / "moved")
    last = -1
    moved = toy_run(tmp_path / "moved", UNEVEN)
    close(whole, moved, TRAINED, 1e-5)
    close(whole, moved, SCORED, 1e-4)
    assert same_weights(whole, moved, atol=1e-5)


def test_dropout_differs_between_processes(tmp_path, monkeypatch):
    """Each seeds its own stream by the rows it holds; the networks stay in step all the same."""
    original = torch.manual_seed
    log = tmp_path / "seeds"

    def recorded(seed):
        with open(log, "a") as file:
            file.write(f"{seed}\n")
        return original(seed)

    monkeypatch.setattr(lm.torch, "manual_seed", recorded)
    path = on_two(tmp_path / "run", "method=arm", "backbone.dropout=0.3", "steps=4")
    per_step = [s for s in log.read_text().split()]
    assert len(set(per_step)) >= 8, "four steps on each of two processes"
    assert all(value.isfinite().all() for value in weights(path).values())


def command_line(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dlm.train", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_command_line_starts_its_own_second_process(tmp_path):
    """From `python -m dlm.train` to one record: evaluated by a process that waits for no other."""
    one = toy_run(tmp_path / "one", UNEVEN)
    out = command_line(*TOY, UNEVEN, f"output_dir={tmp_path}/two", "trainer.devices=2", "trainer.strategy=ddp")
    assert out.count("training ") == out.count("finished ") == 1
    (two,) = (tmp_path / "two/adhoc/local/runs").iterdir()
    assert two.name == one.name
    close(one, two, TRAINED, 1e-5)
    left, right = (RunDirectory(path).read_record() for path in (one, two))
    assert left["targets"] == right["targets"] and left["best"]["step"] == right["best"]["step"]
    assert math.isclose(
        left["likelihood"]["bound"]["nats_per_token"], right["likelihood"]["bound"]["nats_per_token"], rel_tol=1e-4
    )
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn", "dp"])
def test_strategies_that_would_lose_the_record_are_refused(strategy, tmp_path, refused):
    """A forked trainer's counters die with it; the record would say nought."""
    error = refused(
        train.main, *TOY, f"output_dir={tmp_path}", "trainer.devices=2", f"trainer.strategy={strategy}"
    )
    assert strategy in error and "ddp" in error


def test_batches_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(Exception, match="batch_size=3 does not divide over 2 processes"):
        on_two(tmp_path, "batch_size=3")


@pytest.mark.slow
def test_a_sweep_starts_each_job_once(tmp_path):
    """Through the process launcher, each job itself on two processes; a failing job does not stop the others."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dlm.train", "-m", "hydra/launcher=process", *TOY, UNEVEN),
            *(f"output_dir={tmp_path}", "trainer.devices=2", "trainer.strategy=ddp"),
            *("method=md4", "batch_size=5,4"),
        ],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    started = [line for line in done.stdout.splitlines() if line.startswith("job ")]
    assert len(started) == 2, done.stdout
    finished = list(tmp_path.rglob("record.json"))
    assert len(finished) == 1 and done.stdout.count("\nfinished ") == done.stdout.count("\ntraining ") - 1 == 1
    assert done.returncode != 0 and "batch_size=5" in done.stderr
