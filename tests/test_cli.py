"""What a person can get wrong: one line that names it, exit status 2, and finished results untouched."""

import json
import shutil

import pytest
import torch
from conftest import TOY, composed

from dlm import evaluate, experiment, sample, speed, train
from dlm.run import RunDirectory

SMALL = [override for override in TOY if not override.startswith("data")]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(
        "\n\n".join(f"paragraph {i}: " + "lorem ipsum dolor sit amet " * (1 + i % 7) for i in range(99))
    )
    return path


# --- train --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=md5"], ["md5", "method"]),
        (["backbone=gigantic"], ["gigantic"]),
        (["data=wikipedia"], ["wikipedia"]),
        (["trainer=tpu"], ["tpu"]),
        (["optim.learning_rate=1"], ["learning_rate"]),
        (["lr=1"], ["lr"]),
        (["optim.lr=fast"], ["fast"]),
        (["steps"], ["steps"]),
        (["data.unique_tokens=999999"], ["999999", "512"]),
        (["data.unique_tokens=4"], ["unique_tokens=4", "seq_len=8"]),
        (["data.name=zipf"], ["zipf"]),
        (["backbone.max_len=4"], ["max_len=4", "8 tokens"]),
        (["backbone.dim=17"], ["dim=17"]),
        (["backbone.time=sometimes"], ["sometimes"]),
        (["method=shuffle", "backbone.time=none"], ["time"]),
        (["method=arm", "backbone.causal=false"], ["causal"]),
        (["method.process._target_=dlm.process.Nothing"], ["Nothing"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["batch_size=5", "trainer.accumulate=2"], ["batch_size=5"]),
        (["steps=0"], ["steps=0"]),
        (["steps=null", "epochs=0"], ["epochs=0"]),
        (["seed=-1"], ["seed=-1"]),
        (["evaluation.windows=0"], ["windows=0"]),
        (["evaluation.batch_size=0"], ["batch_size=0"]),
        (["evaluation.first_epoch=0"], ["first_epoch=0"]),
        (["evaluation.final_draws=0"], ["final_draws=0"]),
        (["trainer.log_every=0"], ["log_every=0"]),
        (["backbone.heads=0"], ["heads=0"]),
        (["trainer.precision=fp8"], ["fp8"]),
        (["trainer.compile=perhaps"], ["perhaps"]),
        (["trainer.accelerator=abacus"], ["abacus"]),
        (["trainer.strategy=carrier-pigeon"], ["carrier-pigeon"]),
        (["logger=wandb", "logger.mode=loud"], ["loud"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_train_refuses(arguments, said, tmp_path, refused):
    error = refused(train.main, *TOY, f"output_dir={tmp_path}", *arguments)
    assert all(word in error for word in said), error
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU whose absence is tested")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_gpu_that_is_not_there(trainer, tmp_path, refused):
    assert "CUDA" in refused(train.main, *TOY, f"output_dir={tmp_path}", f"trainer={trainer}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"\xff\xfe\x00text", "UTF-8"),
        (b"a\0b", "binary"),
    ],
    ids=["missing", "empty", "blank", "not-utf8", "binary"],
)
def test_text_files_that_cannot_be_read(content, said, tmp_path, refused):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    data = ["data=file", f"data.path={path}", f"data.cache_dir={tmp_path}/cache"]
    error = refused(train.main, *SMALL, f"output_dir={tmp_path}", *data)
    assert said in error and str(path) in error


def test_text_files_that_were_not_named_or_are_too_small(tmp_path, text, refused):
    common = [*SMALL, f"output_dir={tmp_path}", "data=file", f"data.cache_dir={tmp_path}/cache"]
    assert "data.path" in refused(train.main, *common)
    assert str(tmp_path) in refused(train.main, *common, f"data.path={tmp_path}")
    error = refused(train.main, *common, f"data.path={text}", "data.unique_tokens=10000000")
    assert "data.unique_tokens=10000000" in error and "training tokens" in error
    assert "seq_len=100000" in refused(train.main, *common, f"data.path={text}", "seq_len=100000")


def test_a_directory_that_cannot_be_written(tmp_path, refused):
    """Below a regular file, so that not even root can make it; and a cache that cannot be."""
    (tmp_path / "file").write_text("")
    error = refused(train.main, *TOY, f"output_dir={tmp_path}/file/outputs")
    assert f"{tmp_path}/file/outputs" in error and "write" in error
    error = refused(
        experiment.main, "name=super-data-learners", "scale=smoke", f"output_dir={tmp_path}/file/outputs"
    )
    assert f"{tmp_path}/file/outputs" in error
    error = refused(
        train.main, *SMALL, f"output_dir={tmp_path}", "data=pydoc", f"data.cache_dir={tmp_path}/file/c"
    )
    assert f"{tmp_path}/file" in error


def test_hydra_commands_speak_in_one_line_as_well(tmp_path, refused, called):
    """Sweeps and flags go through Hydra, whose errors are many lines."""
    assert "md5" in refused(train.main, "-m", *TOY, f"output_dir={tmp_path}", "method=md4,md5", "seed=0")
    assert "lrr" in refused(train.main, "-m", *TOY, f"output_dir={tmp_path}", "optim.lrr=1,2")


def test_a_sweep_in_this_process(tmp_path, called):
    out = called(train.main, "-m", *TOY, f"output_dir={tmp_path}", "method=md4,arm", "seed=0,1", "steps=2")
    assert len(list(tmp_path.rglob("record.json"))) == 4 and out.count("finished ") == 4


# --- evaluate and sample ------------------------------------------------------------------------------------


@pytest.fixture
def copied(md4_run, tmp_path):
    """A finished run of one's own, to be damaged."""
    return shutil.copytree(md4_run, tmp_path / "run")


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("command", [evaluate.main, sample.main], ids=["evaluate", "sample"])
def test_runs_that_cannot_be_read(command, copied, tmp_path, refused):
    assert "run=" in refused(command)
    assert str(tmp_path / "absent") in refused(command, f"run={tmp_path}/absent")
    assert str(tmp_path) in refused(command, f"run={tmp_path}")
    assert "checkpint" in refused(command, f"run={copied}", "checkpint=best")
    assert "last.ckpt" in refused(command, f"run={copied}", "checkpoint=last")
    assert "verbose" in refused(command, f"run={copied}", "verbose")
    record = contents(copied)
    best = copied / "best.ckpt"
    for damage in (best.read_bytes()[:5000], b""):
        best.write_bytes(damage)
        error = refused(command, f"run={copied}")
        assert str(best) in error and ("truncated" in error or "corrupt" in error)
    best.unlink()
    assert str(best) in refused(command, f"run={copied}")
    assert {k: v for k, v in record.items() if k != "best.ckpt"} == contents(copied)


@pytest.mark.parametrize("command", [evaluate.main, sample.main], ids=["evaluate", "sample"])
def test_runs_whose_data_changed(command, tmp_path, text, refused):
    """Another text under the same name is not what the run was trained on; nor is none."""
    data = ["data=file", f"data.path={text}", f"data.cache_dir={tmp_path}/cache", "seq_len=16", "steps=2"]
    run = train.train(composed(*SMALL, f"output_dir={tmp_path}", *data))
    text.write_text(text.read_text().replace("amet", "team"))
    assert "trained with data=" in refused(command, f"run={run}")
    text.unlink()
    assert str(text) in refused(command, f"run={run}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["split=test"], ["test"]),
        (["draws=many"], ["many"]),
        (["draws=0"], ["draws"]),
        (["windows=0"], ["windows"]),
        (["batch_size=0"], ["batch_size"]),
        (["batchsize=3"], ["batchsize"]),
        (["split="], ["split= has no value"]),
    ],
    ids=str,
)
def test_evaluate_refuses(arguments, said, copied, refused):
    before = contents(copied)
    error = refused(evaluate.main, f"run={copied}", *arguments)
    assert all(word in error for word in said), error
    assert before == contents(copied)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sampler=euler"], ["euler", "ancestral"]),
        (["sampler=autoregressive"], ["autoregressive"]),
        (["sampler=ordered", "policy=wisest"], ["wisest"]),
        (["policy=margin"], ["policy=margin", "ancestral"]),
        (["sampler=first_hitting", "steps=4"], ["steps=4", "first_hitting"]),
        (["sampler=ordered", "per_step=0"], ["per_step"]),
        (["steps=0"], ["steps"]),
        (["grid=log"], ["log"]),
        (["temperature=0"], ["temperature=0"]),
        (["top_p=2"], ["top_p=2"]),
        (["times=[1,0.5]"], ["times", "descend"]),
        (["times=[1,0]", "grid=cosine"], ["times", "grid=cosine"]),
        (["times=[1,0]", "steps=3"], ["steps=3", "times"]),
        (["sampler=tau_leap", "increment=midpoint"], ["midpoint"]),
        (["sampler=tau_leap", "corrector=1"], ["corrector=1", "flow matching"]),
        (["corrector=1"], ["corrector=1", "ancestral"]),
        (["sampler=remdm", "remask=loop"], ["loop"]),
        (["sampler=thinning"], ["thinning", "remdm"]),
        (["sampler=ordered", "per_step=9"], ["per_step=9", "8 tokens"]),
        (["sampler=ordered", "steps=4", "per_step=2"], ["steps=4", "per_step=2"]),
        (["sampler=ordered", "policy=left_to_right", "noise=gumbel"], ["left_to_right", "gumbel"]),
        (["sampler=ordered", "policy=margin", "noise_scale=1"], ["noise_scale"]),
        (["sampler=ordered", "policy=entropy", "score_scale=log"], ["score_scale=log"]),
        (["sampler=ordered", "selection=value", "policy=margin"], ["selection=value"]),
        (["sampler=ordered", "policy=given"], ["policy=given", "place"]),
        (["sampler=ordered", "place=1"], ["place=1"]),
        (["sampler=ordered", "policy=margin", "ties=top"], ["left, random", "top"]),
        (["sampler=ordered", "reveal=binomial"], ["reveal=binomial", "steps="]),
        (["sampler=ordered", "selection=value", "remask=cap"], ["remask", "true or false, not cap"]),
        (["sampler=ordered", "policy=margin", "remask=true"], ["remask=true", "selection=value"]),
        (["sampler=remdm", "remask=true"], ["cap or rescale", "rue"]),
        (["sampler=ancestral", "ties=random"], ["ties=random"]),
        (["values=likely"], ["sampled or greedy", "likely"]),
        (["values=greedy", "temperature=0.5"], ["values=greedy", "temperature"]),
        (["page=/nowhere/at/all.html"], ["/nowhere/at/all.html"]),
        (["n=0"], ["n must"]),
        (["n=few"], ["few"]),
        (["--prompt"], ["--prompt"]),
        (["--prompt", "0 1 [MASK:99]"], ["101 of the model's 8"]),
        (["--prompt", "[MASK:0]"], ["[MASK:0]"]),
        (["--prompt=0 9 1"], ["token 9"]),
    ],
    ids=str,
)
def test_sample_refuses(arguments, said, md4_run, refused):
    error = refused(sample.main, f"run={md4_run}", *arguments)
    assert all(word in error for word in said), error


def test_sample_fills_in_and_continues(md4_run, arm_run, shuffle_run, called, refused, capsys):
    out = called(
        sample.main, f"run={md4_run}", "n=3", "sampler=ordered", "policy=margin", "--prompt", "3 [MASK:6] 3"
    )
    samples = [line.split() for line in out.splitlines() if not line.startswith("---")]
    assert len(samples) == 3 and all(len(s) == 8 and s[0] == s[-1] == "3" for s in samples)
    assert out.count("6 network evaluations") == 3
    out = called(sample.main, f"run={arm_run}", "n=2", "--prompt=0 1 2")
    assert all(line.startswith("0 1 2 ") for line in out.splitlines() if not line.startswith("---"))
    assert "only continue" in refused(sample.main, f"run={arm_run}", "--prompt", "[MASK] 1 2")
    called(sample.main, f"run={shuffle_run}", "steps=4", "n=1")
    assert out == called(sample.main, f"run={arm_run}", "n=2", "--prompt=0 1 2"), "the seed decides"


def test_sample_draws_its_page_and_can_be_watched(md4_run, arm_run, shuffle_run, tmp_path, called, monkeypatch):
    """A page of a masked, a uniform and an autoregressive generation, and plain frames where there is no terminal:
    watching changes no sample."""
    for run in (md4_run, arm_run, shuffle_run):
        file = tmp_path / f"{run.name}.html"
        plain = called(sample.main, f"run={run}", "n=2", f"page={file}")
        assert "network evaluation" in file.read_text() and f"page={file}" in file.read_text()
        watched = called(sample.main, f"run={run}", "n=2", "--watch")
        assert watched.endswith(plain) and watched.startswith("step    0  ") == (run != arm_run)
    masks = called(sample.main, f"run={md4_run}", "n=1", "sampler=ordered", "--watch")
    assert masks.count("░") == 8 * 9 // 2, "one token at a time"


def test_a_biased_rule_and_a_heuristic_are_said(md4_run, shuffle_run, capsys, monkeypatch, tmp_path):
    for arguments, said in [
        ([f"run={md4_run}", "sampler=ordered", "selection=value"], "not the model's own law"),
        ([f"run={shuffle_run}", "steps=3", "--prompt", "1 [MASK:7]"], "heuristic"),
    ]:
        monkeypatch.setattr("sys.argv", ["sample", *arguments, "n=1", f"page={tmp_path}/page.html"])
        sample.main()
        assert said in capsys.readouterr().err and said in (tmp_path / "page.html").read_text().replace(
            "&#39;", "'"
        )


def test_an_interrupted_show_ends_quietly(md4_run, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dlm.trajectory.Screen.show", interrupt)
    monkeypatch.setattr("sys.argv", ["sample", f"run={md4_run}", "--watch"])
    with pytest.raises(SystemExit) as stop:
        sample.main()
    assert stop.value.code == 130 and "Traceback" not in capsys.readouterr().err


def test_results_survive_every_mistake(md4_run):
    """The run that all these commands were aimed at is as it was finished."""
    record = RunDirectory(md4_run).read_record()
    assert record["steps"] == 12 and json.dumps(record)


# --- experiment and speed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["super-data-learners"]),
        (["name=super-learners"], ["super-learners", "super-data-learners"]),
        (["name=super-data-learners", "scale=planet"], ["planet", "smoke", "laptop"]),
        (["name=super-data-learners", "scale=smoke", "arms=md5"], ["md5", "genmd4"]),
        (["name=super-data-learners", "scale=smoke", "stage=half"], ["half", "plan"]),
        (["name=super-data-learners", "scale=smoke", "workers=0"], ["workers"]),
        (["name=super-data-learners", "scale=smoke", "workers=two"], ["two"]),
        (["name=super-data-learners", "scale=smoke", "seeds=a"], ["a", "seeds"]),
        (["name=super-data-learners", "scale=smoke", "minutes=-1"], ["minutes"]),
        (["experiment=x"], ["experiment=x"]),
        (
            ["name=super-data-learners", "scale=smoke", "stage=report"],
            ["super-data-learners/smoke", "no such study"],
        ),
    ],
    ids=str,
)
def test_experiment_refuses(arguments, said, tmp_path, refused):
    error = refused(experiment.main, f"output_dir={tmp_path}", *arguments)
    assert all(word in error for word in said), error
    assert not list(tmp_path.rglob("runs"))


def test_speed_refuses(refused):
    assert "md5" in refused(speed.main, "method=md5")
    assert "abacus" in refused(speed.main, "trainer.accelerator=abacus")
