"""W&B, offline: what a run says about itself, resumed runs that merge, a study's own run, uploads, workspaces."""

import importlib.util
import json
import subprocess
import sys
from functools import cache
from types import SimpleNamespace
from unittest.mock import MagicMock

import matplotlib.pyplot as plt
import pytest
import wandb
from conftest import TOY, composed, rows

from dlm import callbacks, tracking, train, workspace
from dlm.run import RunDirectory

LOGGED = ("logger=wandb", "logger.mode=offline")


@cache
def records(directory):
    """What an offline directory holds, as W&B's own reader prints it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def of_type(directory, kind):
    return [record[kind] for record in records(directory) if record["type"] == kind]


def merged(study):
    """{step: row}: the directories of one run in the order of their start, later ones over earlier ones."""
    return {
        r["item"]["_step"]: r["item"] for path in tracking.offline_runs(study) for r in of_type(path, "history")
    }


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that fails after step 8, with a checkpoint at 5, and is then run again to its end."""
    study = tmp_path_factory.mktemp("tracking")
    cfg = [*TOY, f"output_dir={study}", "method=arm", "study=s", "scale=laptop", "cell=c", "arm=plain", *LOGGED]
    cfg += ["branches.epochs=[0.5]", "branches.cooldown=0.25"]
    plain = callbacks.RunLog.on_train_batch_end

    def fail(self, trainer, *arguments):
        plain(self, trainer, *arguments)
        if trainer.global_step == 8:
            raise RuntimeError("the power is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.RunLog, "on_train_batch_end", fail)
        with pytest.raises(RuntimeError, match="power"):
            train.train(composed(*cfg))
    wandb.finish()
    return train.train(composed(*cfg))


def test_a_resumed_run_merges_without_gaps_or_doubles(interrupted):
    study = interrupted.parent.parent
    directories = tracking.offline_runs(study)
    assert len(directories) == 2 and len({of_type(d, "run")[0]["run_id"] for d in directories}) == 1
    first, second = (sorted(r["item"]["_step"] for r in of_type(d, "history")) for d in directories)
    assert first[-1] == 8 and second[0] == 6, "what is logged twice falls on the same steps"
    found, written = merged(study), {}
    for row in rows(interrupted):
        written[row["step"]] = written.get(row["step"], {}) | row
    assert {k: v for k, v in found.items() if "cooled/tune/nll" not in v}.keys() == written.keys()
    for step, row in written.items():
        for key in ("epoch", "tokens", "flops", "train/loss", "tune/nll"):
            assert found[step].get(key) == pytest.approx(row.get(key)), (step, key)


def test_cooled_branches_come_after_the_trunk_at_their_own_epoch(interrupted):
    (branch,) = rows(interrupted, "branches.jsonl")
    found = merged(interrupted.parent.parent)
    (last,) = [row for row in found.values() if "cooled/tune/nll" in row]
    assert last["_step"] == max(found) == 13
    assert (last["epoch"], last["cooled/tune/nll"]) == (0.5, pytest.approx(branch["tune/nll"]))


def test_a_run_says_what_it_is(interrupted):
    directory = tracking.offline_runs(interrupted.parent.parent)[-1]
    (run,) = of_type(directory, "run")
    assert (run["run_id"], run["run_group"], run["job_type"]) == (interrupted.name, "s/laptop", "train")
    assert run["tags"] == ["c", "plain", "AutoregressiveLM", "laptop", "seed 0", "32-true"]
    settings = run["config"]["update"]
    settings = {item["key"]: item["value_json"] for item in settings} if isinstance(settings, list) else settings
    record = json.loads((interrupted / "record.json").read_text())
    assert str(record["data"]["fingerprint"]) in str(settings["data_fingerprint"])
    axes = {m.get("glob_name") or m["name"]: m.get("step_metric") for m in of_type(directory, "metric")}
    assert {axes[name] for name in ("train/*", "tune/*", "report/*", "cooled/*", "tune/nll", "lr")} == {"epoch"}
    assert set(tracking.AXES) <= set(axes)


def test_trials_of_a_search_are_of_their_own_kind(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(tracking, "start", lambda *arguments: jobs.append(arguments[2:4]) or MagicMock())
    for scale in ("tuning", "tuning-gpu", "laptop"):
        cfg = composed(*TOY, "method=arm", "study=s", f"scale={scale}", "vocab_size=4", *LOGGED)
        tracking.wandb_logger(cfg, RunDirectory(tmp_path))
    assert jobs == [("s/tuning", "tune"), ("s/tuning-gpu", "tune"), ("s/laptop", "train")]


# --- the study's own run ------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study" / "laptop"
    (folder / "figures").mkdir(parents=True)
    plt.figure(figsize=(1, 1)).savefig(folder / "figures" / "curves.png")
    plt.close("all")
    (folder / "report.html").write_text("<p>the page</p>")
    best = [{"arm": "arm", "epoch": 16, "bound": {"kind": "exact"}}, {"arm": "md4", "epoch": 20.5, "seeds": 3}]
    results = {"fingerprint": "f00d", "verdict": ["one line.", "another."], "best": best, "labels": {}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def finished_run(study, name, day, uploaded=False, record=True):
    directory = study / "runs" / name / "wandb" / f"offline-run-202601{day:02d}_000000-{name}"
    directory.mkdir(parents=True)
    (directory / f"run-{name}.wandb").touch()
    if uploaded:
        (directory / f"run-{name}.wandb.synced").touch()
    if record:
        (study / "runs" / name / "record.json").write_text("{}")
    return directory


@pytest.mark.slow
def test_the_report_is_logged_once_and_again_when_it_changes(study, called):
    said = called(tracking.main, f"study={study}")
    assert "report-study-laptop" in said
    assert "already" in called(tracking.main, f"study={study}")
    results = json.loads((study / "results.json").read_text())
    (study / "results.json").write_text(json.dumps(results | {"verdict": ["changed"]}))
    called(tracking.main, f"study={study}")
    directories = tracking.offline_runs(study)
    assert len(directories) == 2
    for step, directory in enumerate(directories):
        (run,), (row,) = of_type(directory, "run"), of_type(directory, "history")
        assert run["run_id"] == "report-study-laptop" and run["job_type"] == "report"
        assert row["item"]["_step"] == step
        assert {"figures/curves", "tables/best", "report"} <= {key.split(".")[0] for key in row["item"]}
    (summary,) = [s["update"]["verdict"] for s in of_type(directories[0], "summary") if "verdict" in s["update"]]
    assert summary == "one line.\nanother."


def test_tables_have_one_type_per_column():
    rows = [{"a": 1, "b": {"x": 1}, "c": None}, {"a": 2.5, "b": 3, "c": "t", "d": True}]
    columns, data = tracking.tables({"best": rows, "other": [1, 2], "empty": []})["best"]
    assert columns == ["a", "b", "c", "d"]
    assert data == [[1.0, "{'x': 1}", None, None], [2.5, "3", "t", True]]


def test_without_a_report_there_is_nothing_to_log(tmp_path, refused):
    assert "make report" in refused(tracking.main, f"study={tmp_path}")
    assert "no study" in refused(tracking.main, f"study={tmp_path / 'nowhere'}")
    assert "report, sync or curves" in refused(tracking.main, f"study={tmp_path}", "do=dance")


# --- uploads and the terminal view --------------------------------------------------------------------------


def test_uploads_are_listed_first_and_need_a_login(study, called, refused, monkeypatch):
    late, early = finished_run(study, "b", 2), finished_run(study, "a", 1)
    resumed = study / "runs" / "a" / "wandb" / "offline-run-20260103_000000-a"
    resumed.mkdir()
    finished_run(study, "c", 4, uploaded=True)
    finished_run(study, "d", 5, record=False)
    said = called(tracking.main, f"study={study}", "do=sync", "dry_run=true").splitlines()
    assert said[:3] == [f"  {path.relative_to(study)}" for path in (early, late, resumed)]
    assert said[3].startswith("3 of 5") and "1 of unfinished runs" in said[3]
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert "wandb login" in refused(tracking.main, f"study={study}", "do=sync")

    uploads = []
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(
        subprocess, "run", lambda command: uploads.append(command) or SimpleNamespace(returncode=0)
    )
    called(tracking.main, f"study={study}", "do=sync")
    assert uploads[0][-3:] == list(map(str, (early, late, resumed))) and uploads[0][3:5] == ["sync", "--yes"]
    for path in (early, late, resumed):
        (path / "run-x.wandb.synced").touch()
    called(tracking.main, f"study={study}", "do=sync")
    assert len(uploads) == 1, "nothing is uploaded twice"


def test_curves_gathers_all_runs_in_one_folder(study, refused):
    assert "no W&B runs" in refused(tracking.main, f"study={study}", "do=curves")
    names = {finished_run(study, name, day).name for day, name in enumerate("abc", 1)}
    assert "no terminal" in refused(tracking.main, f"study={study}", "do=curves")
    assert {path.name for path in (study / "wandb").iterdir()} == names
    assert len(tracking.offline_runs(study)) == 3, "links are not counted twice"


# --- the workspace on the server ----------------------------------------------------------------------------


def test_the_workspace_can_be_built_without_a_server(study):
    command = workspace.Command(study=str(study), entity="someone")
    sent = workspace.workspace(command)._to_model().model_dump(by_alias=True)
    text = json.dumps(sent, default=str)
    for title, x, y, _ in workspace.CURVES:
        assert title in text and x in tracking.AXES and all(key in text for key in y)
    assert '"laptop"' in text and '"arm.value"' in text
    curves, media = (block for block in workspace.report(command).blocks if hasattr(block, "panels"))
    assert [panel.title for panel in curves.panels] == [title for title, *_ in workspace.CURVES]
    assert media.panels[0].media_keys == ["figures/curves"]


def test_the_workspace_is_printed_and_saved_only_with_a_login(study, called, refused, monkeypatch):
    said = called(workspace.main, f"study={study}", "--dry-run")
    assert all(title in said for title, *_ in workspace.CURVES)
    assert "no study" in refused(workspace.main, "study=nowhere")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert "wandb login" in refused(workspace.main, f"study={study}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install" in refused(workspace.main, f"study={study}", "--dry-run")
