"""What the machinery tests share: tiny runs on toy data, in this process or in a fork that can be killed."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import hydra
import pytest
import torch

from dlm import config, train

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
TOY = [
    *("data=toy", "seq_len=8", "data.sequences=64", "data.held_out=8", "batch_size=4"),
    *("backbone.dim=16", "backbone.depth=1", "backbone.heads=2", "optim.warmup_steps=2", "optim.lr=1e-2"),
    *("logger=files", "trainer.threads=1", "trainer.progress=false", "trainer.log_every=1"),
    *("evaluation.windows=null", "evaluation.draws=2", "evaluation.first_epoch=0.25", "evaluation.per_octave=1"),
    *("evaluation.final_draws=2", "evaluation.left_to_right_windows=2", "evaluation.samples=1"),
    *("evaluation.sample_steps=4", "steps=12", "trainer.checkpoint_every=5"),
]


def composed(*overrides):
    """A configuration as `python -m dlm.train` would see it."""
    with hydra.initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def toy_run(output_dir, *overrides):
    """Train a toy run to its end in this process, and return its directory."""
    return train.train(composed(*TOY, f"output_dir={output_dir}", *overrides))


def rows(run, file="metrics.jsonl"):
    return [json.loads(line) for line in (Path(run) / file).read_text().splitlines()]


def curve(run, *keys):
    """{step: {key: value}} of the rows that hold all keys; the last row of a repeated step counts."""
    return {row["step"]: {k: row[k] for k in keys} for row in rows(run) if set(keys) <= set(row)}


def weights(run, checkpoint="best"):
    return torch.load(Path(run) / f"{checkpoint}.ckpt", weights_only=True)["state_dict"]


def same_weights(one, other, atol=0.0):
    """Equal to `atol`; to the bit if that is zero."""
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[k], other[k]) or (one[k] - other[k]).abs().max() <= atol for k in one)


def in_fork(work, *arguments):
    """Run `work` in a forked process; the exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def die(*_, **__):
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command line in this process; it must end in one line on stderr and status 2. Returns the line."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["dlm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            config.entry(main)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n"), error
        return error

    return call


@pytest.fixture
def called(monkeypatch, capsys):
    """Run a command line in this process that succeeds. Returns what it printed."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["dlm", *map(str, arguments)])
        capsys.readouterr()
        config.entry(main)
        return capsys.readouterr().out

    return call


def trained(method, *overrides):
    """A session-wide finished toy run of a method that tests may read but not change."""

    @pytest.fixture(scope="session")
    def run(tmp_path_factory):
        return toy_run(tmp_path_factory.mktemp("runs"), f"method={method}", *overrides)

    return run


md4_run = trained("md4")
arm_run = trained("arm")
shuffle_run = trained("shuffle")
