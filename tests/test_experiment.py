"""A study that runs: what a failed run costs the others, what is done again, and what is kept."""

import json
import multiprocessing
import os
import shutil
import sys
from typing import ClassVar

import pytest
import yaml
from conftest import ROOT, TOY

from dlm import config, experiment, train
from dlm.errors import UserError
from dlm.run import RunDirectory
from dlm.study import calibrate, evaluate, launch
from dlm.study.command import Command
from dlm.study.plan import Plan

STUDY = ROOT / "experiments" / "super-data-learners"


# --- running --------------------------------------------------------------------------------------------------


class Forked:
    """Stands in for Popen: the same command line in a fork of this process, which has torch loaded already."""

    started: ClassVar[list] = []

    def __init__(self, command, env, stdout, stderr, preexec_fn, start_new_session):
        assert command[1] == "-m" and env["OMP_NUM_THREADS"] == "1" and start_new_session
        self.started.append(command)

        def child():
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            sys.argv = [command[2], *command[3:]]
            config.entry({"dlm.train": train.main, "dlm.measure": noted}[command[2]])

        self.process = multiprocessing.get_context("fork").Process(target=child)
        self.process.start()

    def poll(self):
        self.process.join(0.01)
        return self.process.exitcode

    def terminate(self):
        self.process.terminate()

    returncode = property(poll)


def noted():
    """Stands in for `dlm.measure`: leaves one row."""
    run = dict(argument.split("=", 1) for argument in sys.argv[1:])["run"]
    with open(f"{run}/measures.jsonl", "a") as file:
        file.write(json.dumps({"checkpoint": "best", "epoch": 1.0, "measure": "nll", "value": 1.0}) + "\n")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A study of two cells and three arms on toy data, one of which cannot run, beside the real report."""
    folder = tmp_path / "experiments" / "tiny"
    folder.mkdir(parents=True)
    for path in STUDY.glob("report*.py"):
        shutil.copy(path, folder / path.name)
    drop = ("steps", "evaluation.left")
    plan = {
        "workers": 2, "seeds": [0], "calibrate": False, "seconds_per_run": 1,
        "base": [override for override in TOY if not override.startswith(drop)],
        "arms": [
            {"arm": "arm", "label": "ARM", "baseline": True, "overrides": ["method=arm"]},
            {"arm": "md4", "label": "MD4", "overrides": ["method=md4"]},
            {"arm": "broken", "label": "broken", "overrides": ["method=md4", "backbone.max_len=4"]},
        ],
        "cells": [
            {"cell": "scarce", "role": "scarce", "unique_tokens": 256, "overrides": ["data.unique_tokens=256"],
             "epochs": {"default": 2, "md4": 4}},
            {"cell": "control", "role": "control", "unique_tokens": 512, "epochs": {"default": 1}},
        ],
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(plan))
    real = config.bundled
    monkeypatch.setattr(config, "bundled", lambda name: folder.parent if name == "experiments" else real(name))
    monkeypatch.setattr(launch.subprocess, "Popen", Forked)
    monkeypatch.setattr(Forked, "started", [])
    return ["name=tiny", "scale=small", f"output_dir={tmp_path}/outputs", "stage=data,plan,train,report"]


def test_a_failing_run_costs_no_other_and_is_reported(tiny, tmp_path, refused, called):
    """Four of six runs finish, the report shows all six, and the command ends in one line and status 2.

    A second call runs only what is missing, and the report alone runs nothing.
    """
    error = refused(experiment.main, *tiny)
    directory = tmp_path / "outputs" / "tiny" / "small"
    plan = json.loads((directory / "plan.json").read_text())
    assert "2 of 6 runs failed" in error and "broken" in error and str(directory / "logs") in error
    finished = {path.parent.name for path in directory.glob("runs/*/record.json")}
    assert finished == {run["run"] for run in plan["runs"] if run["arm"] != "broken"}
    broken = [run["run"] for run in plan["runs"] if run["arm"] == "broken"]
    assert all("max_len=4" in (directory / "logs" / f"{run}.log").read_text() for run in broken)
    html = (directory / "report.html").read_text()
    assert all(run in html for run in broken) and "Missing runs (2 of 6)" in html
    results = json.loads((directory / "results.json").read_text())
    assert {b["cell"] for b in results["best"]} == {"scarce", "control"}

    before = {path: path.stat().st_mtime_ns for path in directory.glob("runs/*/*")}
    Forked.started.clear()
    assert "2 of 6 runs failed" in refused(experiment.main, *tiny[:3], "stage=train")
    assert len(Forked.started) == 2, "only what is missing is run again"
    Forked.started.clear()
    assert str(directory / "report.html") in called(experiment.main, *tiny[:3], "stage=report")
    assert not Forked.started
    assert {p: t for p, t in before.items() if "broken" not in p.parent.name} == {
        path: path.stat().st_mtime_ns for path in directory.glob("runs/*/*") if "broken" not in path.parent.name
    }


@pytest.fixture
def good(tiny):
    """The same study without the arm that cannot run: the command line's beginning, and the scale's file."""
    file = config.bundled("experiments") / "tiny" / "small.yaml"
    plan = yaml.safe_load(file.read_text())
    plan["arms"] = [arm for arm in plan["arms"] if arm["arm"] != "broken"]
    file.write_text(yaml.safe_dump(plan))
    return tiny[:3], file


def runs_of(directory):
    return {run["run"] for run in json.loads((directory / "plan.json").read_text())["runs"]}


def test_arms_and_seeds_join_and_nothing_is_lost(good, tmp_path, called):
    """Another seed of one arm, alone, trains that seed alone; the plan keeps the finished runs of earlier calls.

    A run of settings that the scale's file no longer has is not kept: it would stand for another arm.
    """
    common, file = good
    directory = tmp_path / "outputs" / "tiny" / "small"
    called(experiment.main, *common, "stage=train")
    first = runs_of(directory)
    assert len(Forked.started) == len(first) == 4
    Forked.started.clear()
    called(experiment.main, *common, "stage=train", "only=md4", "seeds=3")
    assert len(Forked.started) == 2 and all("seed=3" in command for command in Forked.started)
    plan = json.loads((directory / "plan.json").read_text())
    assert first < runs_of(directory) and len(plan["runs"]) == 6
    assert {arm["arm"] for arm in plan["arms"]} == {"arm", "md4"} and plan["seconds"]["train"] > 0
    scale = yaml.safe_load(file.read_text())
    scale["arms"][0]["overrides"].append("optim.weight_decay=0.7")
    file.write_text(yaml.safe_dump(scale))
    called(experiment.main, *common, "stage=plan", "only=md4")
    kept = json.loads((directory / "plan.json").read_text())
    assert {run["arm"] for run in kept["runs"]} == {"md4"} and len(kept["runs"]) == 4


def test_a_limit_ends_what_is_running_and_the_same_command_resumes(good, tmp_path, called):
    """The long runs are stopped in their middle, without a record; the command says how to go on."""
    common, file = good
    scale = yaml.safe_load(file.read_text())
    scale["cells"] = [{"cell": "long", "role": "scarce", "unique_tokens": 256, "epochs": {"default": 100000}}]
    file.write_text(yaml.safe_dump(scale))
    out = called(experiment.main, *common, "stage=train,report", "limit=0.05")
    directory = tmp_path / "outputs" / "tiny" / "small"
    assert "resume with the same command" in out and "NAME=tiny SCALE=small" in out and "report:" not in out
    assert not list(directory.glob("runs/*/record.json")) and len(Forked.started) == 2
    assert not multiprocessing.active_children(), "what was running has ended"
    scale["cells"][0]["epochs"]["default"] = 2
    file.write_text(yaml.safe_dump(scale))
    assert out.count("FAILED") == 0 and called(experiment.main, *common, "stage=train").count("  done   ") == 2


def test_an_interrupted_command_ends_its_runs(good, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle of training: exit status 130, one line, no process left."""
    common, file = good
    scale = yaml.safe_load(file.read_text())
    scale["cells"] = [{"cell": "long", "role": "scarce", "unique_tokens": 256, "epochs": {"default": 100000}}]
    file.write_text(yaml.safe_dump(scale))
    monkeypatch.setattr(launch.Deadline, "passed", property(lambda self: interrupt() if Forked.started else False))

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["dlm", *common, "stage=train"])
    with pytest.raises(SystemExit) as stop:
        experiment.main()
    assert stop.value.code == 130 and "the same command resumes" in capsys.readouterr().err
    assert not multiprocessing.active_children()


def test_measures_are_taken_once(good, tmp_path, called):
    """Of finished runs with the wanted seeds, with the scale's settings; again when these change."""
    common, file = good
    directory = tmp_path / "outputs" / "tiny" / "small"
    called(experiment.main, *common, "stage=train", "seeds=0,1")
    scale = yaml.safe_load(file.read_text())
    scale["evaluate"] = {"seeds": [1], "items": 4, "checkpoints": ["best", "epoch-4"]}
    file.write_text(yaml.safe_dump(scale))
    Forked.started.clear()
    out = called(experiment.main, *common, "stage=evaluate")
    assert "measures of 4 runs: checkpoints=best,epoch-4 items=4" in out and out.count("  done   ") == 4
    assert all(command[4:] == ["checkpoints=best,epoch-4", "items=4"] for command in Forked.started)
    assert {path.parent.name.split("-")[2] for path in directory.glob("runs/*/measures.jsonl")} == {"s1"}
    assert "measures" not in called(experiment.main, *common, "stage=evaluate")
    scale["evaluate"]["items"] = 5
    file.write_text(yaml.safe_dump(scale))
    assert "measures of 4 runs" in called(experiment.main, *common, "stage=evaluate")


def test_measures_as_jobs_ask_for_the_device_that_trained(tmp_path, monkeypatch):
    """The machine that submits need not have one."""
    monkeypatch.setattr(evaluate, "gpus", lambda: 0)
    run = RunDirectory(tmp_path)
    for accelerator in ("gpu", "cpu"):
        run.config.write_text(f"trainer: {{accelerator: {accelerator}}}")
        assert evaluate.on_gpu(Command(launcher="slurm"), run) is (accelerator == "gpu")
        assert not evaluate.on_gpu(Command(), run)


def test_other_code_and_other_data_are_refused(good, tmp_path, called, refused):
    """One line each, before anything is trained; any_code=true is remembered in the plan."""
    common, _ = good
    directory = tmp_path / "outputs" / "tiny" / "small"
    called(experiment.main, *common, "stage=train", "only=arm")
    (record,) = list(directory.glob("runs/scarce-arm-*/record.json"))
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"code": "0ld"}))
    before = len(Forked.started)
    error = refused(experiment.main, *common, "stage=train")
    assert (
        record.parent.name in error
        and "0ld" in error
        and "any_code=true" in error
        and len(Forked.started) == before
    )
    called(experiment.main, *common, "stage=train", "any_code=true", "only=md4")
    assert (
        len(Forked.started) == before + 2 and json.loads((directory / "plan.json").read_text())["any_code"] is True
    )
    called(experiment.main, *common, "stage=train", "seeds=5", "only=md4")

    record.write_text(json.dumps(content | {"data": {"fingerprint": "0ther"}}))
    error = refused(experiment.main, *common, "stage=train", "seeds=7")
    assert "the corpus has changed" in error and "0ther" in error
    record.write_text(json.dumps(content))
    plan = json.loads((directory / "plan.json").read_text())
    (directory / "plan.json").write_text(json.dumps(plan | {"data": {"control": "0ther"}}))
    assert "control began with data 0ther" in refused(experiment.main, *common, "stage=data")


def test_a_corpus_too_small_is_refused_before_anything_trains(good, tmp_path, refused):
    common, file = good
    scale = yaml.safe_load(file.read_text())
    scale["cells"][1]["unique_tokens"] = 10**7
    scale["base"] = [o for o in scale["base"] if not o.startswith("data")] + ["data=pydoc"]
    file.write_text(yaml.safe_dump(scale))
    assert "10000000" in refused(experiment.main, *common, "stage=train") and not Forked.started


# --- slurm --------------------------------------------------------------------------------------------------


def test_without_slurm_one_line(good, refused, monkeypatch):
    common, file = good
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no srun" in refused(experiment.main, *common, "stage=train", "launcher=slurm")
    scale = yaml.safe_load(file.read_text()) | {"slurm": {"cluster": "local", "nodes": 2}}
    file.write_text(yaml.safe_dump(scale))
    assert "nodes follow from trainer.num_nodes" in refused(
        experiment.main, *common, "stage=train", "launcher=slurm"
    )


@pytest.mark.slow
def test_jobs_through_submitit(tiny, tmp_path, refused, monkeypatch):
    """The same study as jobs, on submitit's local executor: the good ones finish, the broken one is named."""
    monkeypatch.undo()  # a job is a real process, and knows the real studies alone
    file = tmp_path / "experiments" / "tiny" / "small.yaml"
    plan = yaml.safe_load(file.read_text()) | {"slurm": {"cluster": "local", "timeout_min": 5}}
    plan["cells"] = plan["cells"][1:]
    file.write_text(yaml.safe_dump(plan))
    real = config.bundled
    monkeypatch.setattr(config, "bundled", lambda name: file.parents[1] if name == "experiments" else real(name))
    error = refused(experiment.main, *tiny[:3], "stage=train", "launcher=slurm")
    directory = tmp_path / "outputs" / "tiny" / "small"
    assert "1 of 3 runs failed (control-broken" in error
    assert {path.parent.name.split("-")[1] for path in directory.glob("runs/*/record.json")} == {"arm", "md4"}
    assert len(json.loads((directory / "jobs" / "jobs.json").read_text())) == 3


# --- time ---------------------------------------------------------------------------------------------------


def test_calibration_reports_what_it_could_not_measure(tmp_path, monkeypatch):
    """An arm whose speed cannot be measured stops the study before anything is trained."""

    class Failing:
        returncode = 2

        def __init__(self, *_, **__): ...
        def communicate(self):
            return "", "warning\nerror: no such thing\n"

    study = Plan(Command(name=STUDY.name, scale="laptop", output_dir=str(tmp_path), only="arm"), dry=True)
    monkeypatch.setattr(launch.subprocess, "Popen", Failing)
    with pytest.raises(UserError, match="no such thing"):
        calibrate.calibrate(study)


def test_speeds_are_measured_once_per_network_and_kept(tmp_path, monkeypatch):
    """Seeds, budgets and weight decay do not change a speed; a second call measures nothing."""
    measured = []

    class Measuring:
        returncode = 0

        def __init__(self, command, **_):
            measured.append(command)

        def communicate(self):
            return json.dumps({"tokens_per_second": 1000.0, "scored_tokens_per_second": 2000.0}) + "\n", ""

    monkeypatch.setattr(launch.subprocess, "Popen", Measuring)
    for _ in range(2):
        study = Plan(
            Command(name=STUDY.name, scale="laptop", output_dir=str(tmp_path), only="arm,md4-plain"), dry=True
        )
        calibrate.calibrate(study)
        for job in study.jobs:
            training = (job.cost.tokens + job.cost.branch_tokens) / 1000
            assert job.seconds == pytest.approx(8 + training + job.cost.scored_tokens / 2000)
    assert len(measured) == 2 == study.workers, "two networks side by side, once"


def test_progress_says_how_much_time_is_left():
    """Half of what was left was done in a minute: another minute. Nothing done yet: no claim."""
    assert launch.progress_line(60, 0.5, 0.75) == " 75 % after 1.0 minutes, about 1.0 minutes left"
    assert "left" not in launch.progress_line(60, 0.5, 0.51)


def test_gpus_are_taken_in_turn(monkeypatch, tmp_path):
    task = launch.Task("run", [], tmp_path / "log", lambda: True, on_gpu=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for count, expected in ((1, [{}, {}, {}]), (2, ["0", "1", "0"])):
        monkeypatch.setattr(launch, "gpus", lambda: count)  # noqa: B023
        wanted = [{"CUDA_VISIBLE_DEVICES": e} if e else {} for e in expected]
        assert [launch.gpu_of(slot, task) for slot in range(3)] == wanted
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert launch.gpu_of(1, task) == {"CUDA_VISIBLE_DEVICES": "6"}


@pytest.mark.slow
def test_the_smoke_study_from_end_to_end(tmp_path, called):
    """Every run of the plan by the command line, its report, and a second call that finds nothing to do."""
    arguments = [f"name={STUDY.name}", "scale=smoke", f"output_dir={tmp_path}"]
    out = called(experiment.main, *arguments)
    directory = tmp_path / STUDY.name / "smoke"
    plan = json.loads((directory / "plan.json").read_text())
    assert out.count("  done   ") == 2 * len(plan["runs"]) and "FAILED" not in out, "trained and measured"
    results = json.loads((directory / "results.json").read_text())
    assert {(b["cell"], b["arm"]) for b in results["best"]} == {(r["cell"], r["arm"]) for r in plan["runs"]}
    assert results["smoke"] is True and results["verdict"]
    html = (directory / "report.html").read_text()
    assert "Verdict" in html and "No planned run is missing" in html and html.rstrip().endswith("</html>")
    assert all(line in out for line in results["verdict"])
    before = {path: path.stat().st_mtime_ns for path in directory.glob("runs/*/*")}
    again = called(experiment.main, *arguments)
    assert "  done   " not in again and again.count("finished") >= len(plan["runs"])
    assert before == {path: path.stat().st_mtime_ns for path in directory.glob("runs/*/*")}
    assert json.loads((directory / "results.json").read_text())["best"] == results["best"]
