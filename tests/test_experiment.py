"""A study from plan to report: what is planned, what is dropped, and what a failed run costs the others."""

import json
import multiprocessing
import os
import shutil
import sys
from typing import ClassVar

import pytest
import yaml
from conftest import ROOT, TOY
from omegaconf import OmegaConf

from dlm import config, experiment, train
from dlm import plan as plan_module
from dlm.errors import UserError
from dlm.plan import Command, Plan

STUDY = ROOT / "experiments" / "super-data-learners"
SMOKE = yaml.safe_load((STUDY / "smoke.yaml").read_text())
SCALES = sorted(path.stem for path in STUDY.glob("*.yaml"))


def planned(tmp_path, **settings):
    return Plan(Command(**{"name": STUDY.name, "scale": "smoke", "output_dir": str(tmp_path)} | settings))


# --- plans --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans():
    """{scale: (plan, {run: configuration})}, the configurations caught as they are composed."""
    found = {}
    for scale in SCALES:
        caught = []
        with pytest.MonkeyPatch.context() as patch:
            compose = plan_module.compose
            patch.setattr(plan_module, "compose", lambda *a, **k: caught.append(compose(*a, **k)) or caught[-1])  # noqa: B023
            study = planned("outputs", scale=scale)
        found[scale] = study, dict(zip([job.run for job in study.jobs], caught, strict=True))
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_composes(scale, plans):
    """Arms x cells x seeds, each under a name of its own, each a configuration that `dlm.train` accepts."""
    plan = yaml.safe_load((STUDY / f"{scale}.yaml").read_text())
    study, configs = plans[scale]
    wanted = [(c["cell"], a["arm"], s) for c in plan["cells"] for a in plan["arms"] for s in plan["seeds"]]
    assert [(job.cell, job.arm, job.seed) for job in study.jobs] == wanted
    assert len({job.run for job in study.jobs}) == len(study.jobs)
    budgets = {cell["cell"]: cell["unique_tokens"] for cell in plan["cells"]}
    for job in study.jobs:
        cfg = configs[job.run]
        assert (config.run_name(cfg), config.run_path(cfg)) == (job.run, job.path)
        assert (cfg.study, cfg.scale, cfg.cell, cfg.arm) == (STUDY.name, scale, job.cell, job.arm)
        assert cfg.data.unique_tokens == budgets[job.cell] and cfg.epochs == job.epochs


def test_arms_of_a_cell_differ_only_where_they_say(plans):
    """Same data, batches, backbone, optimiser and evaluation: otherwise it compares something else."""
    for scale in SCALES:
        plan = yaml.safe_load((STUDY / f"{scale}.yaml").read_text())
        study, configs = plans[scale]
        for cell in {job.cell for job in study.jobs}:
            shared = []
            for job in study.jobs:
                if job.cell == cell:
                    (arm,) = (a for a in plan["arms"] if a["arm"] == job.arm)
                    cfg = config.resolved(OmegaConf.merge(configs[job.run], {"vocab_size": 97}))
                    for key in ("method", "arm", "epochs"):
                        cfg.pop(key)
                    for key in ("causal", "time"):
                        cfg["backbone"].pop(key)
                    for override in arm["overrides"]:
                        group, _, key = override.split("=")[0].partition(".")
                        if key:
                            cfg[group].pop(key)
                    shared.append(cfg)
            keys = {g: set.intersection(*(set(c[g]) for c in shared)) for g in ("backbone", "optim", "evaluation")}
            for cfg in shared:
                for group, common in keys.items():
                    cfg[group] = {k: cfg[group][k] for k in common}
            assert all(cfg == shared[0] for cfg in shared)


def test_a_plan_is_printed_and_written_but_not_run(tmp_path, called, plans):
    out = called(experiment.main, f"name={STUDY.name}", "scale=smoke", "stage=plan", f"output_dir={tmp_path}")
    plan = json.loads((tmp_path / STUDY.name / "smoke" / "plan.json").read_text())
    count = len(SMOKE["arms"]) * len(SMOKE["cells"])
    assert len(plan["runs"]) == count and f"{count} runs" in out and "predicted" in out
    assert [run["run"] for run in plan["runs"]] == [job.run for job in plans["smoke"][0].jobs]
    assert not (tmp_path / STUDY.name / "smoke" / "runs").exists()
    assert (
        "DROPPED" not in out
        and not plan["dropped"]
        and plan["cells"][0]["unique_tokens"] == SMOKE["cells"][0]["unique_tokens"]
    )


def test_further_arms_and_seeds(tmp_path, plans, monkeypatch):
    """A method becomes an arm by its name; the runs that were there before keep their names."""
    base = plans["smoke"][0]
    more = planned(tmp_path, arms="genmd4,md4", seeds="0,3")
    assert [arm["arm"] for arm in more.arms] == [*(arm["arm"] for arm in base.arms), "genmd4"]
    assert len(more.jobs) == (len(base.arms) + 1) * len(SMOKE["cells"]) * 2
    assert {job.run for job in base.jobs} < {job.run for job in more.jobs}
    monkeypatch.setattr(Plan, "_jobs", lambda self: [])
    laptop = planned(tmp_path, scale="laptop", arms="genmd4").arms[-1]
    assert laptop["label"] == "GenMD4", "optional arms come with their own settings"


def test_a_budget_drops_from_the_end_and_says_so(tmp_path, called, plans):
    """100 s of work for two workers in 40 s: the last runs of the plan go, by name, into plan and output."""
    common = [f"name={STUDY.name}", "scale=smoke", "stage=plan", f"output_dir={tmp_path}"]
    out = called(experiment.main, *common, "minutes=0.6666666")
    plan = json.loads((tmp_path / STUDY.name / "smoke" / "plan.json").read_text())
    jobs = plans["smoke"][0].jobs
    kept = int(40 * SMOKE["workers"] / SMOKE["seconds_per_run"] - 1e-3)
    assert [run["run"] for run in plan["runs"]] == [job.run for job in jobs[:kept]]
    assert sorted(run["run"] for run in plan["dropped"]) == sorted(job.run for job in jobs[kept:])
    assert out.count("DROPPED") == len(jobs) - kept > 0
    assert sum(run["predicted_seconds"] for run in plan["runs"]) / SMOKE["workers"] <= 40


def test_predictions_respect_the_longest_run(tmp_path):
    study = planned(tmp_path, workers=4)
    for job in study.jobs:
        job.seconds = 1.0
    study.jobs[3].seconds = 500.0
    assert study.predicted_seconds == 500.0
    study.jobs[3].seconds = 1.0
    assert study.predicted_seconds == len(study.jobs) / 4


def test_progress_is_read_from_the_curve(tmp_path):
    job = planned(tmp_path).jobs[0]
    assert job.progress() == 0
    job.path.mkdir(parents=True)
    rows = [json.dumps({"epoch": e}) + "\n" for e in (1, 4)]
    (job.path / "metrics.jsonl").write_text("".join(rows) + '{"epoch": 8, "tok')
    assert job.progress() == 4 / job.epochs
    (job.path / "record.json").write_text("{}")
    assert job.progress() == 1


# --- running ------------------------------------------------------------------------------------------------


class Forked:
    """Stands in for Popen: the same command line in a fork of this process, which has torch loaded already."""

    started: ClassVar[list] = []

    def __init__(self, command, env, stdout, stderr, preexec_fn):
        assert command[:3] == [sys.executable, "-m", "dlm.train"] and env["OMP_NUM_THREADS"] == "1"
        self.started.append(command)

        def child():
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            sys.argv = ["dlm.train", *command[3:]]
            config.entry(train.main)

        self.process = multiprocessing.get_context("fork").Process(target=child)
        self.process.start()

    def poll(self):
        self.process.join(0.01)
        return self.process.exitcode

    returncode = property(poll)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A study of two cells and three arms on toy data, one of which cannot run, beside the real report."""
    folder = tmp_path / "experiments" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(STUDY / "report.py", folder / "report.py")
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
    monkeypatch.setattr(experiment.subprocess, "Popen", Forked)
    monkeypatch.setattr(Forked, "started", [])
    return ["name=tiny", "scale=small", f"output_dir={tmp_path}/outputs"]


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
    assert "2 of 6 runs failed" in refused(experiment.main, *tiny)
    assert len(Forked.started) == 2, "only what is missing is run again"
    Forked.started.clear()
    assert str(directory / "report.html") in called(experiment.main, *tiny, "stage=report")
    assert not Forked.started
    assert {p: t for p, t in before.items() if "broken" not in p.parent.name} == {
        path: path.stat().st_mtime_ns for path in directory.glob("runs/*/*") if "broken" not in path.parent.name
    }


def test_calibration_reports_what_it_could_not_measure(tmp_path, monkeypatch):
    """An arm whose speed cannot be measured stops the study before anything is trained."""

    class Failing:
        returncode = 2

        def __init__(self, *_, **__): ...
        def communicate(self):
            return "", "warning\nerror: no such thing\n"

    study = planned(tmp_path, scale="laptop")
    monkeypatch.setattr(experiment.subprocess, "Popen", Failing)
    with pytest.raises(UserError, match="no such thing"):
        experiment.calibrate(study)


@pytest.mark.slow
def test_the_smoke_study_from_end_to_end(tmp_path, called):
    """Every run of the plan by the command line, its report, and a second call that finds nothing to do."""
    arguments = [f"name={STUDY.name}", "scale=smoke", f"output_dir={tmp_path}"]
    out = called(experiment.main, *arguments)
    directory = tmp_path / STUDY.name / "smoke"
    plan = json.loads((directory / "plan.json").read_text())
    assert out.count("  done   ") == len(plan["runs"]) and "FAILED" not in out
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
