"""Plans: what they contain, what they cost, and which contradictions they refuse."""

import json
import math

import pytest
import yaml
from conftest import ROOT, composed
from omegaconf import OmegaConf

from dlm import config, experiment
from dlm.build import build_model
from dlm.errors import UserError
from dlm.study import table
from dlm.study.calibrate import calibrate
from dlm.study.command import Command
from dlm.study.cost import START_SECONDS
from dlm.study.plan import Plan
from dlm.study.scale import branches_of, epochs_of, read_scale, seeds_of

STUDY = ROOT / "experiments" / "super-data-learners"
SCALES = sorted(path.stem for path in STUDY.glob("*.yaml"))
METHODS = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}


NOWHERE = "outputs-of-nobody"  # a plan is joined with what the output folder already has


def planned(tmp_path=NOWHERE, dry=True, **settings):
    return Plan(Command(**{"name": STUDY.name, "scale": "smoke", "output_dir": str(tmp_path)} | settings), dry=dry)


@pytest.fixture(scope="module")
def plans():
    """{scale: its dry plan, at one seed}: no data, no network, no GPU."""
    return {scale: planned(scale=scale, seeds="0") for scale in SCALES}


# --- the shipped scales -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_plan(scale, plans):
    """Its arms in their cells, each run under a name of its own, each a configuration that `dlm.train` accepts."""
    plan, settings = plans[scale], read_scale(STUDY / f"{scale}.yaml", METHODS)
    wanted = [
        (cell["cell"], arm["arm"], 0)
        for cell in settings["cells"]
        for arm in settings["arms"]
        if cell["cell"] in arm.get("cells", [cell["cell"]])
    ]
    assert [(job.cell, job.arm, job.seed) for job in plan.jobs] == wanted
    assert len({job.run for job in plan.jobs}) == len(plan.jobs)
    budgets = {cell["cell"]: cell["unique_tokens"] for cell in settings["cells"]}
    for job in {job.cell: job for job in plan.jobs}.values():
        cfg = plan.compose(job.overrides)
        assert (config.run_name(cfg), config.run_path(cfg)) == (job.run, job.path)
        assert (cfg.study, cfg.scale, cfg.cell, cfg.arm) == (STUDY.name, scale, job.cell, job.arm)
        assert cfg.data.unique_tokens == budgets[job.cell] and cfg.epochs == job.epochs
        assert list(cfg.branches.epochs) == job.branches
        config.check_positive(cfg)
        config.check_branches(cfg)
    job = plan.jobs[-1]
    assert config.run_path(composed(*job.overrides)) == job.path, "the name that dlm.train will give it"


@pytest.mark.parametrize("scale", SCALES)
def test_a_dry_run_counts_without_the_device(scale, plans, monkeypatch, capsys, tmp_path):
    """Runs, FLOPs, hours and disk of every scale; GPU-hours follow from the assumed FLOP/s alone."""
    plan = plans[scale]
    if not plan.jobs[0].cost.on_gpu:
        return
    calibrate(plan)
    table.show(plan)
    out = capsys.readouterr().out
    assert f"{len(plan.jobs)} runs" in out and "GPU-hours" in out and "assumed" in out and "GB" in out
    least = sum(job.cost.flops for job in plan.jobs) / plan.settings["assume"]["flops_per_second"] / 3600
    assert least < plan.gpu_hours < 1.5 * least + 0.2
    for job in plan.jobs:
        assert 0 < job.cost.flops <= job.cost.flops_full < 1.5 * job.cost.flops


def test_arms_of_a_cell_differ_only_where_they_say(plans):
    """Same data, batches, backbone, optimiser and evaluation: otherwise it compares something else."""
    for scale in ("smoke", "laptop", "gpu"):
        plan = plans[scale]
        for cell in {job.cell for job in plan.jobs}:
            shared = []
            for job in plan.jobs:
                if job.cell == cell:
                    (arm,) = (a for a in plan.arms if a["arm"] == job.arm)
                    cfg = config.resolved(OmegaConf.merge(plan.compose(job.overrides), {"vocab_size": 97}))
                    for key in ("method", "arm", "epochs"):
                        cfg.pop(key)
                    for key in ("causal", "time"):
                        cfg["backbone"].pop(key)
                    cfg["branches"].pop("epochs")
                    for override in arm["overrides"]:
                        group, _, key = override.split("=")[0].partition(".")
                        if key and group in cfg:
                            cfg[group].pop(key)
                    shared.append(cfg)
            groups = ("backbone", "optim", "evaluation")
            keys = {g: set.intersection(*(set(c[g]) for c in shared)) for g in groups}
            for cfg in shared:
                for group, common in keys.items():
                    cfg[group] = {k: cfg[group][k] for k in common}
            assert all(cfg == shared[0] for cfg in shared)


# --- arms, seeds, budgets -----------------------------------------------------------------------------------


def test_further_arms_fewer_arms_and_seeds(plans):
    """A method becomes an arm by its name; the runs that were there before keep their names."""
    base = plans["smoke"]
    more = planned(arms="genmd4,md4", seeds="0,3")
    assert [arm["arm"] for arm in more.arms] == [*(arm["arm"] for arm in base.arms), "genmd4"]
    assert {job.run for job in base.jobs} < {job.run for job in more.jobs}
    once = {job.arm for job in more.jobs if job.seed == 3}
    assert once == {arm["arm"] for arm in more.arms if arm.get("replicate", True)} != {a["arm"] for a in more.arms}
    few = planned(only="md4,genmd4")
    assert {job.arm for job in few.jobs} == {"md4", "genmd4"}
    laptop = planned(scale="laptop", only="arm", arms="genmd4").arms[-1]
    assert laptop["label"] == "GenMD4", "optional arms come with their own settings"
    with pytest.raises(UserError, match=r"no arm 'md5'.*genmd4"):
        planned(only="md5")


def test_a_plan_is_printed_and_written_but_not_run(tmp_path, called, plans):
    arguments = [f"name={STUDY.name}", "scale=smoke", "stage=plan", f"output_dir={tmp_path}"]
    out = called(experiment.main, *arguments)
    directory = tmp_path / STUDY.name / "smoke"
    plan = json.loads((directory / "plan.json").read_text())
    jobs = plans["smoke"].jobs
    assert len(plan["runs"]) == len(jobs) and f"{len(jobs)} runs" in out and "predicted" in out
    assert not (directory / "runs").exists() and "DROPPED" not in out and not plan["dropped"]
    assert plan["cells"][0]["unique_tokens"] == plans["smoke"].settings["cells"][0]["unique_tokens"]
    for key in ("flops", "flops_full_attention", "tokens", "disk_bytes", "runs"):
        parts = [cell["predicted"][key] for cell in plan["cells"]]
        assert plan["totals"][key] == pytest.approx(sum(parts)) and min(parts) > 0
    assert plan["command"] == f"make experiment NAME={STUDY.name} SCALE=smoke"


def test_a_budget_drops_from_the_end_and_says_so(tmp_path, called, plans):
    """As many seconds as four runs of two workers take: the last runs of the plan go, by name."""
    plan = plans["smoke"]
    each, workers = plan.settings["seconds_per_run"], plan.workers
    common = [f"name={STUDY.name}", "scale=smoke", "stage=plan", f"output_dir={tmp_path}"]
    out = called(experiment.main, *common, f"minutes={4 * each / workers / 60 + 1e-6}")
    written = json.loads((tmp_path / STUDY.name / "smoke" / "plan.json").read_text())
    assert [(r["cell"], r["arm"]) for r in written["runs"]] == [(j.cell, j.arm) for j in plan.jobs[:4]]
    assert len(written["dropped"]) == out.count("DROPPED") == len(plan.jobs) - 4 > 0


# --- cost ---------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_real_model(plans):
    """Parameters and FLOPs counted without memory equal those of the network itself; a branch costs its tail."""
    plan = plans["smoke"]
    for job in {job.arm: job for job in plan.jobs if job.cell == "scarce-2k"}.values():
        cfg = OmegaConf.merge(plan.compose(job.overrides), {"vocab_size": 97})
        model = build_model(cfg, "", 1)
        assert job.cost.params == sum(p.numel() for p in model.parameters())
        tokens = 2048 * 16 + 0.15 * 2048 * (4 + 16)
        assert job.cost.tokens + job.cost.branch_tokens == pytest.approx(tokens)
        per_token = model.flops_per_token(cfg.seq_len)
        assert job.cost.flops == pytest.approx(tokens * per_token)
    by_arm = {job.arm: job.cost for job in plan.jobs}
    assert by_arm["arm"].flops < by_arm["arm"].flops_full and by_arm["md4"].flops == by_arm["md4"].flops_full


def test_half_of_a_dual_models_sequences_are_priced_as_causal(plans):
    """As the run itself will count them: 6 per weight, 12 L dim per layer of attention, less a quarter of that."""
    plan = plans["smoke"]
    overrides = [o for o in plan.jobs[0].overrides if not o.startswith("method=")]
    cost = plan.price(cfg := plan.compose([*overrides, "method=dual"]), 2048, 16)
    model = build_model(OmegaConf.merge(cfg, {"vocab_size": 97}), "", 1)
    assert cost.flops_per_token == pytest.approx(model.flops_per_token(cfg.seq_len))
    attention = 12 * cfg.seq_len * cfg.backbone.dim * cfg.backbone.depth
    assert cost.flops_full - cost.flops == pytest.approx(cost.trained_tokens * attention / 4)


def test_seconds_follow_from_rates(plans):
    cost = plans["smoke"].jobs[0].cost
    rate = {"tokens_per_second": 100.0, "scored_tokens_per_second": 1000.0}
    seconds, scoring = cost.seconds(rate)
    assert scoring == cost.scored_tokens / 1000
    assert seconds == START_SECONDS + (cost.tokens + cost.branch_tokens) / 100 + scoring
    assert cost.assumed_rate(1e9)["tokens_per_second"] * cost.flops_per_token == pytest.approx(1e9)


def test_predictions_respect_the_longest_run(plans):
    study = planned(workers=4)
    for job in study.jobs:
        job.seconds = 1.0
    study.jobs[3].seconds = 500.0
    assert study.training_seconds == 500.0
    study.jobs[3].seconds = 1.0
    assert study.training_seconds == len(study.jobs) / 4


def test_progress_is_read_from_the_curve(tmp_path):
    """Half of the trunk's epochs and no branch yet; then all of the trunk and the smaller branch."""
    job = planned(tmp_path).jobs[0]
    assert job.progress() == 0 and job.branches == [4, 16]
    job.path.mkdir(parents=True)
    rows = [json.dumps({"epoch": e}) + "\n" for e in (1, 8)]
    (job.path / "metrics.jsonl").write_text("".join(rows) + '{"epoch": 16, "tok')
    trunk, tails = 16, 0.15 * 20
    assert job.progress() == pytest.approx(8 / (trunk + tails))
    (job.path / "metrics.jsonl").write_text('{"epoch": 16}\n')
    (job.path / "branches.jsonl").write_text('{"epoch": 4}\n')
    assert job.progress() == pytest.approx((16 + 0.15 * 4) / (trunk + tails))
    (job.path / "record.json").write_text("{}")
    assert job.progress() == 1


# --- contradictions -----------------------------------------------------------------------------------------

PLAIN = {
    "seeds": [0, 1],
    "base": ["data=toy", "optim.lr=1e-3"],
    "arms": [
        {"arm": "arm", "overrides": ["method=arm"]},
        {"arm": "md4", "overrides": ["method=md4"], "cells": ["a"]},
    ],
    "cells": [
        {"cell": "a", "unique_tokens": 256, "epochs": {"default": 8, "arm": 4}, "branches": {"default": [2, 8]}},
        {"cell": "b", "unique_tokens": 512, "epochs": {"default": 8}},
    ],
}


def changed(path, value):
    """PLAIN with one thing changed; `path` is keys and indices, the last may be new."""
    settings = json.loads(json.dumps(PLAIN))
    *way, last = path
    place = settings
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return settings


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["sedes"], [0], "unknown key 'sedes'"),
        (["arms", 0, "lable"], "x", "arm 'arm': unknown key 'lable'"),
        (["cells", 0, "epoch"], {}, "cell 'a': unknown key 'epoch'"),
        (["cells"], None, "has no 'cells'"),
        (["seeds"], "0", "seeds must be of type list"),
        (["seeds"], [0.5], "seeds are whole numbers"),
        (["workers"], True, "workers must be of type int"),
        (["workers"], 0, "workers must be positive, not 0"),
        (["seeds"], [0, 0], "two times the same seed: 0"),
        (["evaluate"], {"itmes": 48}, "evaluate: unknown key 'itmes'"),
        (["evaluate"], {"items": "many"}, "evaluate: items must be of type int"),
        (["calibrate"], False, "needs seconds_per_run"),
        (["assume"], {"flops": 1}, "assume: unknown key 'flops'"),
        (["arms", 1, "arm"], "arm", "two times the same arm: arm"),
        (["cells", 1, "cell"], "a", "two times the same cell: a"),
        (["cells", 1, "unique_tokens"], 256, "two times the same cell of the same overrides"),
        (["arms", 1, "cells"], ["c"], "arm 'md4': there is no cell 'c'"),
        (["arms", 1, "replicate"], ["c"], "arm 'md4': there is no cell 'c'"),
        (["arms", 1, "group"], "best", "group is one of"),
        (["arms", 1, "tuned"], "md4", "the scale names no tuning"),
        (["arms", 0, "overrides"], [], "arm 'arm': names no method"),
        (["arms", 0, "overrides"], ["method=arm", "seed=3"], "the plan sets seed by itself"),
        (["arms", 0, "overrides"], ["method=arm", "dropout"], "'dropout' is no key=value"),
        (
            ["arms", 0, "overrides"],
            ["method=arm", "optim.lr=1", "optim.lr=2"],
            "optim.lr is given twice, as 1 and as 2",
        ),
        (["cells", 1, "overrides"], ["method=md4"], "arm 'arm': method=arm, but cell 'b' says md4"),
        (["cells", 1, "overrides"], ["data.unique_tokens=99"], "unique_tokens: 512, but data.unique_tokens=99"),
        (["cells", 1, "unique_tokens"], -1, "must be positive"),
        (["cells", 1, "role"], "test", "role is one of scarce, control, task, not 'test'"),
        (["cells", 0, "epochs"], {"arm": 3}, "epochs has no 'default'"),
        (["cells", 0, "epochs", "arn"], 3, "epochs for 'arn', which is no arm"),
        (["cells", 0, "epochs", "arm"], 0, "epochs of 'arm' must be a positive number"),
        (["cells", 0, "epochs", "arm"], math.inf, "epochs of 'arm' must be a positive number"),
        (["cells", 0, "branches", "md5"], [3], "branches for 'md5', which is no arm"),
        (["cells", 0, "branches", "arm"], [3, 5], "a branch of 'arm' ends at epoch 5, its trunk at 4"),
        (["cells", 0, "branches", "default"], [9], "a branch of 'default' ends at epoch 9, its trunk at 8"),
    ],
    ids=str,
)
def test_contradictions_are_refused(path, value, said, tmp_path):
    """In one line that names the file and the place."""
    file = tmp_path / "scale.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(UserError) as error:
        read_scale(file, METHODS)
    assert said in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_what_is_said_twice_alike_is_no_contradiction(tmp_path):
    file = tmp_path / "scale.yaml"
    file.write_text(
        yaml.safe_dump(changed(["arms", 0, "overrides"], ["method=arm", "optim.lr=1e-3", "optim.lr=0.001"]))
    )
    assert read_scale(file, METHODS)["arms"]
    file.write_text("a: [")
    with pytest.raises(UserError, match="not YAML"):
        read_scale(file, METHODS)


def test_epochs_branches_and_seeds_of_an_arm():
    cell = PLAIN["cells"][0]
    assert (epochs_of(cell, "arm"), epochs_of(cell, "md4")) == (4, 8)
    assert branches_of(cell, "arm") == [2], "of the default list, what its shorter trunk reaches"
    assert branches_of(cell, "md4") == [2, 8] and branches_of(PLAIN["cells"][1], "md4") == []
    for replicate, seeds in ((True, [0, 1]), (False, [0]), (["a"], [0, 1]), (["b"], [0])):
        assert seeds_of({"replicate": replicate}, cell, [0, 1]) == seeds


def test_a_table_reads_well():
    assert [table.count(n) for n in (12, 1234, 3.5e6, 2e9)] == ["12", "1.23k", "3.5M", "2G"]
    assert [table.clock(s) for s in (12, 1200, 36000)] == ["12 s", "20 minutes", "10.0 hours"]
    assert math.isclose(planned().gpu_hours, 0)
