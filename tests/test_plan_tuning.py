"""The search for an arm's settings: the best of equal searches, and what an arm makes of it."""

import json

import pytest
import yaml
from conftest import ROOT

from dlm import config, tuning
from dlm.errors import UserError
from dlm.files import write_json
from dlm.study.command import Command
from dlm.study.plan import Plan
from dlm.tuning import Search


def trial(search, wd, nll, dropout=0.0, seed=0, **more):
    overrides = [f"method={search}", f"optim.weight_decay={wd}", f"backbone.dropout={dropout}", "optim.lr=0.002"]
    found = {"search": search, "arm": f"{search}-wd{wd}", "overrides": overrides, "weight_decay": wd}
    return found | {"dropout": dropout, "lr": 0.002, "tune_nll": nll, "seed": seed, "epoch": 8.0} | more


PAIR = [trial("arm", 1, 2.0), trial("arm", 3, 1.9), trial("md4", 1, 2.4), trial("md4", 3, 2.5)]


def test_the_lowest_tune_loss_wins_and_ties_go_to_less_decay():
    assert Search("here", PAIR).best("arm")["weight_decay"] == 3
    assert Search("here", PAIR).best("md4")["weight_decay"] == 1
    tied = [trial("arm", 3, 1.9), trial("arm", 1, 1.9), trial("arm", 10, 1.9)]
    assert Search("here", tied).best("arm")["weight_decay"] == 1


def test_seeds_of_a_trial_are_averaged():
    """The single best run is a lucky seed of the worse settings."""
    lucky = [trial("arm", 1, 1.0, seed=0), trial("arm", 1, 3.0, seed=1)]
    steady = [trial("arm", 3, 1.8, seed=0), trial("arm", 3, 1.8, seed=1)]
    assert Search("here", lucky + steady).best("arm")["weight_decay"] == 3


@pytest.mark.parametrize(
    ("trials", "missing", "search", "said"),
    [
        (PAIR, 0, "udlm", "no search 'udlm'; there are: arm, md4"),
        (PAIR, 2, "arm", "2 trials are not finished"),
        (PAIR[:3], 0, "arm", "the searches are not equal: arm has 2 trials, md4 1"),
        ([*PAIR[:3], trial("md4", 4, 2.5)], 0, "arm", "not equal: arm has 2 trials, md4 2, 2 settings"),
    ],
)
def test_unequal_or_unfinished_searches_are_refused(trials, missing, search, said):
    with pytest.raises(UserError) as error:
        Search("here", trials, missing).best(search)
    assert said in str(error.value)


def finished(directory, *trials, planned=()):
    """A search's directory as its runs leave it."""
    arms = [{"arm": t["arm"], "overrides": t["overrides"]} for t in trials]
    runs = [{"run": f"r{i}", "arm": t["arm"], "cell": "c", "seed": 0} for i, t in enumerate(trials)]
    plan = {"command": "make it", "started": "2026-11-22T00:00:00+0000", "hardware": {"machine": "m", "cores": 1}}
    plan |= {"arms": arms, "runs": [*runs, *planned], "cells": [{"cell": "c"}]}
    write_json_in(directory / "plan.json", plan)
    for run, t in zip(runs, trials, strict=True):
        record = {"cell": "c", "best": {"tune_nll": t["tune_nll"], "epoch": 8.0}, "epochs": 16.0, "stopped": None}
        write_json_in(
            directory / "runs" / run["run"] / "record.json", record | {"seed": 0, "data": {"fingerprint": "f"}}
        )
        settings = {"optim": {"weight_decay": t["weight_decay"], "lr": t["lr"]}, "backbone": {"dropout": 0.0}}
        (directory / "runs" / run["run"] / "config.yaml").write_text(yaml.safe_dump(settings))


def write_json_in(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def test_the_command_writes_what_the_study_ships(tmp_path, called, refused):
    """All trials, best first, with the command that made them; not while some are missing."""
    finished(tmp_path / "search", *PAIR)
    out = called(tuning.main, tmp_path / "search", tmp_path / "tuning.json")
    assert "arm: 2 trials, best 1.9000" in out and "optim.weight_decay=3 " in out and "method" not in out
    found = json.loads((tmp_path / "tuning.json").read_text())
    assert [t["tune_nll"] for t in found["trials"]] == [1.9, 2.0, 2.4, 2.5] and found["command"] == "make it"
    assert found["fingerprint"] == "f" and found["cell"] == "c" and found["date"] == "2026-11-22"
    assert Search("x", found["trials"]).best("md4")["weight_decay"] == 1
    finished(tmp_path / "search", *PAIR, planned=[{"run": "r9", "arm": "arm-wd1"}])
    assert "1 of 5 trials are not finished: make it" in refused(
        tuning.main, tmp_path / "search", tmp_path / "t.json"
    )
    assert "usage" in refused(tuning.main, tmp_path / "search")


def test_shipped_trials_come_first_and_bad_ones_are_named(tmp_path):
    shipped, directory = tmp_path / "tuning.json", tmp_path / "search"
    assert tuning.find(shipped, directory) is None
    finished(directory, *PAIR)
    assert tuning.find(shipped, directory).where == str(directory)
    write_json(shipped, {"trials": PAIR})
    assert tuning.find(shipped, directory).where == str(shipped)
    write_json(shipped, {"trials": [{k: v for k, v in PAIR[0].items() if k != "lr"}]})
    with pytest.raises(UserError, match=r"tuning.json: trial 0 has no 'lr'"):
        tuning.find(shipped, directory)
    write_json(shipped, {"trials": [PAIR[0], PAIR[1] | {"tune_nll": None}]})
    with pytest.raises(UserError, match="trial 1: tune_nll must be a number, not None"):
        tuning.find(shipped, directory)
    for nothing in ({}, {"trials": []}, {"trials": 3}, {"trials": ["x"]}):
        write_json(shipped, nothing)
        with pytest.raises(UserError, match=r"tuning.json: has no list of trials"):
            tuning.find(shipped, directory)


def test_a_search_without_a_plan_is_one_line(tmp_path, refused):
    assert "plan.json does not exist" in refused(tuning.main, tmp_path, tmp_path / "t.json")
    write_json(tmp_path / "plan.json", {"runs": []})
    assert "plan.json: has no 'command'" in refused(tuning.main, tmp_path, tmp_path / "t.json")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose arms are tuned; returns how to plan it."""
    folder = tmp_path / "experiments" / "small"
    folder.mkdir(parents=True)
    (folder / "report.py").write_text("")
    arms = [
        {"arm": "arm", "overrides": ["method=arm"]},
        {"arm": "arm-reg", "overrides": ["method=arm"], "tuned": "arm"},
        {"arm": "masked-reg", "overrides": ["method=arm_masked_inputs"], "tuned": "arm"},
    ]
    scale = {"tuning": "search", "seeds": [0], "base": ["data=toy", "seq_len=8"], "arms": arms}
    scale["cells"] = [{"cell": "c", "unique_tokens": 64, "epochs": {"default": 2}}]
    real = config.bundled
    monkeypatch.setattr(config, "bundled", lambda name: folder.parent if name == "experiments" else real(name))

    def plan(dry=False, **changes):
        (folder / "tiny.yaml").write_text(yaml.safe_dump(scale | changes))
        return Plan(Command(name="small", scale="tiny", output_dir=str(tmp_path / "out")), dry=dry)

    return plan, tmp_path / "out" / "small" / "search", scale


def test_a_tuned_arm_takes_the_best_settings_but_keeps_its_method(study):
    plan, search, _ = study
    finished(search, *PAIR)
    made = plan()
    found = {job.arm: made.compose(job.overrides) for job in made.jobs}
    assert {arm: cfg.optim.weight_decay for arm, cfg in found.items()} == {
        "arm": 0.1,
        "arm-reg": 3,
        "masked-reg": 3,
    }
    assert "inputs" in found["masked-reg"].method and "arm-wd3 of" in made.tuned["arm-reg"]


def test_without_trials_only_a_dry_run_goes_on(study):
    plan, search, scale = study
    with pytest.raises(UserError, match="arm 'arm-reg' is tuned by 'search', which has no trials: stage=tune"):
        plan()
    assert plan(dry=True).tuned == {"arm-reg": "", "masked-reg": ""}
    finished(search, *PAIR, planned=[{"run": "r9", "arm": "arm-wd1"}])
    with pytest.raises(UserError, match="1 unfinished trials"):
        plan()
    finished(search, *PAIR)
    scale["arms"][1]["overrides"].append("optim.weight_decay=6")
    with pytest.raises(UserError, match="weight_decay=6, but its search found 3"):
        plan()


def test_shipped_searches_are_fair():
    """Every search that ships: the same trials for each family, so that `best` answers for all."""
    for file in (ROOT / "experiments").glob("*/tuning*.json"):
        search = tuning.find(file, file)
        for name in {t["search"] for t in search.trials}:
            assert search.best(name)["tune_nll"] > 0


def test_search_scales_are_fair():
    """Every scale that searches lists the same settings for each method, and differs in the method alone."""
    for file in (ROOT / "experiments").glob("*/tuning*.yaml"):
        tried = {}
        for arm in yaml.safe_load(file.read_text())["arms"]:
            method, *settings = arm["overrides"]
            tried.setdefault(method, []).append(settings)
        assert len(tried) == 2 and len({json.dumps(s) for s in tried.values()}) == 1, file
