"""Plans of tasks: cells of sequences, arms that write them differently, and how finished runs are decoded."""

import json
from dataclasses import fields

import pytest
import yaml
from conftest import ROOT, TOY, composed
from omegaconf import OmegaConf

from dlm import config
from dlm.build import build_model, outline
from dlm.decode import __main__ as decode
from dlm.decode import imbalance
from dlm.errors import UserError
from dlm.run import RunDirectory
from dlm.speed import Bench
from dlm.study import corpora, evaluate, table
from dlm.study.calibrate import calibrate
from dlm.study.command import Command
from dlm.study.decoding import COMMANDS, about, decodings, settings_of
from dlm.study.launch import Deadline
from dlm.study.plan import Plan
from dlm.study.scale import read_scale, tokens_of

METHODS = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
SCALE = {
    "workers": 2, "seeds": [0, 1], "calibrate": False, "seconds_per_run": 1,
    "base": [o for o in TOY if not o.startswith(("steps", "evaluation.left", "seq_len", "data.sequences"))],
    "arms": [
        {"arm": "short", "group": "order", "overrides": ["method=md4", "seq_len=4"]},
        {"arm": "long", "group": "order", "overrides": ["method=md4", "seq_len=12"], "replicate": False},
    ],
    "cells": [
        {"cell": "puzzles", "sequences": 64, "epochs": {"default": 2}},
        {"cell": "more", "sequences": 80, "epochs": {"default": 2}},
        {"cell": "text", "role": "task", "unique_tokens": 256, "overrides": ["data.sequences=64"],
         "epochs": {"default": 2}},
    ],
    "decode": [
        {"policy": ["random", "margin"], "per_step": [1, 2], "puzzles": 8, "seconds": 5},
        {"arms": ["short"], "cells": ["more"], "run_seeds": [0], "noise": "gumbel", "policy": "margin",
         "seconds": 7},
        {"command": "imbalance", "arms": ["long"], "cells": ["puzzles"]},
    ],
}  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Write a scale as a study; the plan of it."""

    def make(settings=SCALE, **command):
        folder = tmp_path / "experiments" / "tasks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.py").write_text("")
        (folder / "small.yaml").write_text(yaml.safe_dump(settings))
        real = config.bundled
        monkeypatch.setattr(config, "bundled", lambda name: folder.parent if name == "experiments" else real(name))
        return Plan(Command("tasks", "small", output_dir=str(tmp_path / "outputs"), **command), dry=True)

    return make


def changed(*path_and_value):
    """SCALE with one thing changed, or removed where the value is None."""
    *way, last, value = path_and_value
    settings = json.loads(json.dumps(SCALE))
    place = settings
    for key in way:
        place = place[key]
    place.pop(last) if value is None else place.__setitem__(last, value)
    return settings


# --- sequences ------------------------------------------------------------------------------------------------


def test_arms_that_write_differently_take_equal_steps(study):
    """As many sequences, hence steps, whatever their length; the tokens are of each arm's own length."""
    plan = study()
    jobs = {job.arm: job for job in plan.jobs if job.cell == "puzzles" and job.seed == 0}
    for arm, length in (("short", 4), ("long", 12)):
        cfg = plan.compose(jobs[arm].overrides)
        assert (cfg.data.sequences, cfg.seq_len, cfg.epochs) == (64, length, 2)
        assert jobs[arm].cost.tokens == 64 * length * 2
        assert jobs[arm].cost.tokens / length / cfg.batch_size == 32, "steps"
    cell = plan.settings["cells"]
    assert [tokens_of(c, 12) for c in cell] == [64 * 12, 80 * 12, 256]


def test_a_plan_of_tasks_says_so(study):
    plan = study()
    plan.directory.mkdir(parents=True)
    plan.write()
    written = json.loads((plan.directory / "plan.json").read_text())
    assert [cell["role"] for cell in written["cells"]] == ["task"] * 3
    assert written["cells"][0]["sequences"] == 64 and "unique_tokens" not in written["cells"][0]
    assert [arm["group"] for arm in written["arms"]] == ["order", "order"]


def test_decodings_are_part_of_the_prediction(study):
    """5 s for each run of sequences: four of `short`, two of `long`; 7 s once; two workers."""
    assert study().measuring_seconds == (5 * 6 + 7) / 2


def test_each_arm_of_sequences_has_data_of_its_own(study, capsys):
    """Fingerprints by cell and arm; by cell for text. plan.json keeps them, and other data are refused."""
    plan = study()
    found = corpora.prepare(plan)
    out = capsys.readouterr().out
    assert "puzzles, short: 64 sequences of 4 tokens" in out and "puzzles, long: 64 sequences of 12 tokens" in out
    assert set(found) == {"puzzles", "more", "text"} and isinstance(found["text"], str)
    by_arm = found["puzzles"]
    assert isinstance(by_arm, dict) and set(by_arm) == {"short", "long"} and len(set(by_arm.values())) == 2
    plan.directory.mkdir(parents=True)
    plan.write(found)
    assert corpora.prepare(study(), quiet=True) == found, "nothing has changed"
    only = study(only="short")
    of_short = corpora.prepare(only, quiet=True)
    assert of_short["puzzles"] == {"short": by_arm["short"]}
    only.write(of_short)
    kept = json.loads((plan.directory / "plan.json").read_text())["data"]
    assert kept["puzzles"] == found["puzzles"], "what is known of other arms stays"
    kept["puzzles"]["long"] = "0ther"
    content = json.loads((plan.directory / "plan.json").read_text()) | {"data": kept}
    (plan.directory / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the corpus has changed: puzzles, long, began with data 0ther"):
        corpora.prepare(study(), quiet=True)
    corpora.prepare(study(only="short"), quiet=True)


def test_too_few_sequences_are_refused(study):
    """The toy source takes any number of sequences; one that does not give them is named with its arm."""
    settings = changed("cells", 0, "overrides", ["data.unique_tokens=200"])
    with pytest.raises(UserError, match=r"cell 'puzzles' wants 64 sequences; the data of short have 50"):
        corpora.prepare(study(settings), quiet=True)


# --- contradictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("cells", 0, "sequences", None),
            "cell 'puzzles': needs one of unique_tokens and sequences",
        ),
        (
            ("cells", 0, "unique_tokens", 64),
            "cell 'puzzles': needs one of unique_tokens and sequences",
        ),
        (("cells", 0, "sequences", 0), "cell 'puzzles': sequences must be positive, not 0"),
        (("cells", 0, "sequences", "many"), "cell 'puzzles': sequences must be of type int"),
        (("cells", 1, "sequences", 64), "two times the same cell of the same overrides and sequences: 64"),
        (("cells", 0, "overrides", ["data.sequences=5"]), "sequences: 64, but data.sequences=5"),
        (("cells", 0, "role", "puzzle"), "role is one of scarce, control, task, not 'puzzle'"),
        (("decode", 0, "polcy", ["random"]), "decode block 1: unknown key 'polcy'"),
        (("decode", 0, "puzzles", "all"), "decode block 1: puzzles must be of type int"),
        (("decode", 0, "policy", ["random", 5]), "decode block 1: policy must be of type str or list, not 5"),
        (("decode", 0, "seconds", -1), "decode block 1: seconds must be zero or more"),
        (("decode", 1, "arms", ["medium"]), "decode block 2: there is no arm 'medium'; there are: short, long"),
        (("decode", 1, "cells", ["text"]), "decode block 2: there is no cell of sequences 'text'"),
        (("decode", 2, "command", "guess"), "decode block 3: command is one of decode, imbalance, not 'guess'"),
        (("decode", 2, "policy", "random"), "decode block 3: unknown key 'policy'"),
        (("decode", 0, "margin"), "decode block 1: expected a mapping, not 'margin'"),
        (("cells", SCALE["cells"][2:]), "decode block 1: no cell of this scale counts sequences"),
    ],
    ids=str,
)
def test_contradictions_are_refused(change, said, tmp_path):
    """In one line that names the file and the place."""
    settings = changed(*change)
    if change[:2] == ("cells", SCALE["cells"][2:]):
        settings["decode"] = settings["decode"][:1]
    file = tmp_path / "scale.yaml"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError) as error:
        read_scale(file, METHODS)
    assert said in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


# --- decoding -------------------------------------------------------------------------------------------------


def test_blocks_are_about_arms_cells_and_seeds(study):
    blocks = study().settings["decode"]
    assert [about(blocks, "puzzles", "short", s) for s in (0, 1)] == [blocks[:1]] * 2
    assert about(blocks, "more", "short", 0) == blocks[:2] and about(blocks, "more", "short", 1) == blocks[:1]
    assert about(blocks, "puzzles", "long", 0) == [blocks[0], blocks[2]]
    assert about(blocks, "text", "short", 0) == []
    assert settings_of(blocks[1]) == {"noise": "gumbel", "policy": "margin"}, "what dlm.decode is told"


def finished(directory, cell, arm, seed):
    path = directory / "runs" / f"{cell}-{arm}-s{seed}"
    path.mkdir(parents=True)
    (path / "record.json").write_text("{}")
    (path / "config.yaml").write_text("trainer: {accelerator: cpu}")
    return {"run": path.name, "cell": cell, "arm": arm, "seed": seed}


def test_finished_runs_are_decoded_once(study, monkeypatch, tmp_path):
    """One process per run and command, with the blocks that are about it; a second call does what is missing or
    has changed since. A run that is not finished, and text, are left alone."""
    plan = study()
    directory, started = plan.directory, []
    runs = [finished(directory, "more", "short", 0), finished(directory, "puzzles", "long", 0)]
    runs.append(finished(directory, "text", "short", 0))
    runs.append({"run": "unfinished", "cell": "more", "arm": "long", "seed": 0})
    (directory / "plan.json").write_text(json.dumps({"runs": runs}))

    def run_tasks(tasks, launcher, deadline):
        started.extend(tasks)
        return [task for task in tasks if "imbalance" in task.name or not task.done()]

    monkeypatch.setattr(evaluate, "run_tasks", run_tasks)
    failed = evaluate.evaluate(plan.command, plan.file, Deadline(None))
    assert [task.name for task in failed] == ["puzzles-long-s0.imbalance-0"]
    assert [task.name for task in started] == [
        "more-short-s0.decode",
        "puzzles-long-s0.decode",
        "puzzles-long-s0.imbalance-0",
    ]
    run = directory / "runs" / "more-short-s0"
    assert started[0].command[1:] == ["-m", "dlm.decode", f"run={run}", f"grids={run / 'grids.json'}"]
    assert started[2].command[1:3] == ["-m", "dlm.decode.imbalance"] and started[0].seconds == 12
    assert json.loads((run / "grids.json").read_text()) == [
        {"policy": ["random", "margin"], "per_step": [1, 2], "puzzles": 8},
        {"noise": "gumbel", "policy": "margin"},
    ]
    started.clear()
    evaluate.evaluate(plan.command, plan.file, Deadline(None))
    assert [task.name for task in started] == ["puzzles-long-s0.imbalance-0"], "the one that failed"
    started.clear()
    (run / "snapshots").mkdir()
    (run / "snapshots" / "epoch-1.ckpt").write_text("")
    study(changed("decode", 1, "seconds", 99))
    evaluate.evaluate(plan.command, plan.file, Deadline(None))
    assert [task.name for task in started] == ["more-short-s0.decode", "puzzles-long-s0.imbalance-0"], (
        "new weights"
    )
    started.clear()
    study(changed("decode", 0, "puzzles", 16))
    evaluate.evaluate(plan.command, plan.file, Deadline(None))
    assert [task.name for task in started] == [
        "more-short-s0.decode",
        "puzzles-long-s0.decode",
        "puzzles-long-s0.imbalance-0",
    ]


def test_other_commands_are_told_their_settings(tmp_path, monkeypatch):
    monkeypatch.setitem(COMMANDS, "imbalance", {"latents": list, "exact": bool})
    block = {"command": "imbalance", "cells": ["a"], "latents": [3, 6], "exact": True, "seconds": 5}
    (one,) = decodings(RunDirectory(tmp_path), [block])
    assert one.line() == ["dlm.decode.imbalance", f"run={tmp_path}", "latents=3,6", "exact=true"]
    assert not one.done() and one.note() and one.done()


# --- the shipped scales of the order study --------------------------------------------------------------------

ORDER = ROOT / "experiments" / "sudoku-order"
SCALES = sorted(path.stem for path in ORDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def plans():
    """{scale: its dry plan, with every optional arm}: no data, no network, no GPU."""
    found = {}
    for scale in SCALES:
        optional = yaml.safe_load((ORDER / f"{scale}.yaml").read_text()).get("optional_arms", [])
        arms = ",".join(arm["arm"] for arm in optional)
        found[scale] = Plan(Command(ORDER.name, scale, arms, output_dir="outputs-of-nobody"), dry=True)
    return found


def test_the_commands_take_the_keys_of_blocks():
    """dlm.decode and dlm.decode.imbalance, but for what the study sets itself."""
    for command, kind in (("decode", decode.Command), ("imbalance", imbalance.Command)):
        assert set(COMMANDS[command]) == {field.name for field in fields(kind)} - {"run", "grids", "proxy"}


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_plan(scale, plans):
    """Runs under names of their own, of configurations that `dlm.train` accepts; nothing is made for it."""
    plan = plans[scale]
    assert len({job.run for job in plan.jobs}) == len(plan.jobs) and not plan.directory.exists()
    for job in {(job.cell, job.arm): job for job in plan.jobs}.values():
        cfg = plan.compose(job.overrides)
        assert (config.run_name(cfg), cfg.epochs, cfg.branches.epochs) == (job.run, job.epochs, job.branches)
        size, layout = outline(cfg)
        assert size is not None or "text" in job.cell
        assert layout.tokens is None or len(layout.tokens) == size
        assert layout.slots is None or len(layout.slots) == cfg.seq_len
        config.check_positive(cfg)
        assert cfg.batch_size % cfg.trainer.devices == 0
        assert all(epoch <= job.epochs for epoch in cfg.evaluation.snapshots)


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_a_cell_see_the_same_number_of_sequences(scale, plans):
    """... in an epoch; and unless the scale gives an arm epochs of its own, the same number of steps."""
    plan = plans[scale]
    for cell in plan.settings["cells"]:
        steps = set()
        for job in {job.arm: job for job in plan.jobs if job.cell == cell["cell"]}.values():
            cfg = plan.compose(job.overrides)
            assert job.cost.tokens / job.epochs == pytest.approx(tokens_of(cell, cfg.seq_len))
            if job.arm not in cell["epochs"]:
                steps.add(job.cost.tokens / cfg.seq_len / cfg.batch_size)
        assert len(steps) <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_every_block_is_a_command(scale, plans, tmp_path):
    """dlm.decode accepts each as it is written, and there are runs that it is about, with the splits it names."""
    plan = plans[scale]
    grids = tmp_path / "grids.json"
    for block in plan.settings["decode"]:
        jobs = [job for job in plan.jobs if block in about([block], job.cell, job.arm, job.seed)]
        assert jobs, block
        if block["command"] == "imbalance":
            assert {job.cell.partition("-2")[0] for job in jobs} == {"nae-sat"}
            continue
        grids.write_text(json.dumps([settings_of(block)]))
        (command,) = decode.commands(decode.Command(grids=str(grids)), [])
        decode.check(command)
        causal = {plan.compose(job.overrides).backbone.causal for job in jobs}
        assert len(causal) == 1, "an order is for masked diffusion, and for it alone"
        assert causal == {False} or not set(block) & {"policy", "noise", "per_step", "steps"}
    decoded = {(job.cell, job.arm) for job in plan.jobs for b in plan.settings["decode"]
               if b["command"] == "decode" and about([b], job.cell, job.arm, job.seed)}  # fmt: skip
    assert decoded == {(job.cell, job.arm) for job in plan.jobs if job.cell != "text"}


@pytest.mark.parametrize("scale", SCALES)
def test_a_dry_run_prints_its_cost(scale, plans, capsys):
    plan = plans[scale]
    if plan.jobs[0].cost.on_gpu or not plan.settings.get("calibrate", True):
        calibrate(plan)
        table.show(plan)
        out = capsys.readouterr().out
        assert f"{len(plan.jobs)} runs" in out and "predicted" in out
        assert ("GPU-hours" in out) == plan.jobs[0].cost.on_gpu


def test_the_published_sizes(plans):
    """6M of masked diffusion and 42M of autoregression, to a tenth."""
    sizes = {job.arm: job.cost.params / 1e6 for job in plans["gpu"].jobs if job.cell == "sudoku-9x9"}
    assert sizes["mdm"] == pytest.approx(6.3, rel=0.1) and sizes["arm-solver"] == pytest.approx(6.3, rel=0.1)
    assert sizes["mdm-prefix"] == pytest.approx(5.6, rel=0.1)
    assert sizes["arm-solver-42m"] == sizes["arm-row-42m"] == pytest.approx(42, rel=0.1)


def test_parameters_of_puzzles_are_counted_with_their_layout(plans):
    """As the network itself has them, embeddings of rows, columns and boxes included."""
    plan = plans["smoke"]
    for job in {(job.cell, job.arm): job for job in plan.jobs if job.cell != "text"}.values():
        cfg = plan.compose(job.overrides)
        size, layout = outline(cfg)
        model = build_model(OmegaConf.merge(cfg, {"vocab_size": size}), "", 1, layout)  # pyright: ignore
        assert job.cost.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("data", ["sudoku data.size=4 data.format=joint data.order=solver", "zebra", "nae_sat"])
def test_speeds_are_measured_without_making_puzzles(data, tmp_path):
    """On random tokens of the data's own vocabulary and layout; nothing is written."""
    small = ["backbone.dim=16", "backbone.depth=1", "backbone.heads=2", "batch_size=2", "trainer.threads=1"]
    method = "arm" if "joint" in data else "aoarm"
    cfg = composed(*f"data={data}".split(), f"method={method}", *small)
    if "cache_dir" in cfg.data:
        cfg.data.cache_dir = str(tmp_path / "cache")
    bench = Bench(cfg)
    assert bench.train_step() == 1 and bench.score() > 0
    size, layout = outline(cfg)
    assert bench.model.vocab_size == size and (bench.model.backbone.parts is None) == (layout.tokens is None)
    assert not list(tmp_path.iterdir())
