"""From the files of a run directory to curves, branches and probes; runs that cannot be compared are refused."""

import json

import numpy as np
import pytest

from dlm.errors import UserError
from dlm.report.study import load_study

EPOCHS = (1, 4, 16)
WINDOWS = {"tune": 4, "report": 6}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(study, name, *, code="abc", passages=True, branches=(4, 16), arm="arm", **record):
    directory = study / "runs" / name
    directory.mkdir(parents=True)
    spent = [{"step": 10 * e, "epoch": e, "tokens": 100 * e, "flops": 1e6 * e} for e in EPOCHS]
    lines(directory / "metrics.jsonl", [row | {"report/nll": 2.0, "tune/nll": 2.0} for row in spent])
    losses = {split: np.linspace(1, 2, n) for split, n in WINDOWS.items()}
    lines(
        directory / "windows.jsonl",
        [
            {"step": r["step"], "split": s, "nll": (x / r["epoch"]).tolist()}
            for r in spent
            for s, x in losses.items()
        ],
    )
    cooled = [
        row
        | {"flops": row["flops"] + 5, "windows": {s: (x / 2 / row["epoch"]).tolist() for s, x in losses.items()}}
        for row in spent
        if row["epoch"] in branches
    ]
    lines(directory / "branches.jsonl", [{**cooled[0], "flops": -1.0}, *cooled] if cooled else [])
    (directory / "config.yaml").write_text("seed: 0\noptim: {lr: 0.1}\n")
    content = {"run": name, "data": {"fingerprint": "f"}, "bound_kind": "exact"} | record
    content |= {"code": code} if code else {}
    if passages:
        content["passages"] = {split: [i // 2 for i in range(n)] for split, n in WINDOWS.items()}
    (directory / "record.json").write_text(json.dumps(content))
    return {"run": name, "cell": "c", "arm": arm, "seed": 0}


def write_study(root, runs, **plan):
    content = {"study": "s", "scale": "x", "runs": runs, "cells": [{"cell": "c", "unique_tokens": 100}]}
    content["arms"] = [{"arm": "arm", "label": "ARM", "baseline": True}]
    (root / "plan.json").write_text(json.dumps(content | plan))
    return root


def test_a_run_has_its_trunk_its_branches_and_its_passages(tmp_path):
    run = load_study(write_study(tmp_path, [write_run(tmp_path, "r")])).compared[0]
    assert run.curve.epochs.tolist() == list(EPOCHS) and run.curve.report.shape == (3, 6)
    assert run.curve.report_passages.tolist() == [0, 0, 1, 1, 2, 2]
    assert run.curve.report_clusters.counts.tolist() == [2, 2, 2]
    cooled = run.curve.cooled
    assert cooled.epochs.tolist() == [4, 16] and cooled.flops.tolist() == [
        4e6 + 5,
        16e6 + 5,
    ]  # the last row counts
    assert cooled.report[0] == pytest.approx(run.curve.report[1] / 2)
    assert [row["epoch"] for row in run.branches] == [4, 16]
    assert run.config == {"seed": 0, "optim": {"lr": 0.1}}


def test_older_runs_have_neither_branches_nor_passages(tmp_path):
    planned = write_run(tmp_path, "r", code=None, passages=False, branches=())
    study = load_study(write_study(tmp_path, [planned]))
    run = study.compared[0]
    assert run.curve.cooled is None and run.curve.report_passages is None and run.measures == []
    assert (study.code, run.code) == ("unknown", "unknown")


def test_passages_must_fit_the_windows(tmp_path):
    planned = write_run(tmp_path, "r")
    record = json.loads((tmp_path / "runs" / "r" / "record.json").read_text())
    record["passages"]["report"].append(9)
    (tmp_path / "runs" / "r" / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"r: 7 passages for 6 held-out windows"):
        load_study(write_study(tmp_path, [planned]))


def test_runs_of_different_code_are_refused_unless_the_plan_allows_it(tmp_path):
    runs = [write_run(tmp_path, "r"), write_run(tmp_path, "s", code="def"), write_run(tmp_path, "t", code=None)]
    with pytest.raises(UserError, match=r"r is of code abc, s of code def"):
        load_study(write_study(tmp_path, runs))
    with pytest.raises(UserError, match=r"r is of code abc, t of code unknown"):
        load_study(write_study(tmp_path, [runs[0], runs[2]]))
    assert load_study(write_study(tmp_path, runs, any_code=True)).code == "mixed"
    assert load_study(write_study(tmp_path, runs[:1])).code == "abc"


def measure(checkpoint, value, epoch=1.0, cooled=False, name="top1", **more):
    return {
        "checkpoint": checkpoint, "epoch": epoch, "cooled": cooled, "measure": name, "split": "report",
        "value": value, "se": 0.1, "n": 64,
    } | more  # fmt: skip


def test_probes_are_the_last_measures_of_the_trunk(tmp_path):
    planned = write_run(tmp_path, "r")
    rows = [
        measure("epoch-16", 0.9, 16.0),
        measure("epoch-1", 0.2),
        measure("epoch-16", 0.5, 16.0, se=None),
        measure("cooled-16", 0.8, 16.0, True),
        measure("best", 0.7, 4.0),
        measure("epoch-4", None, 4.0),
        measure("epoch-4", 3.0, 4.0, name="nll"),
    ]
    lines(tmp_path / "runs" / "r" / "measures.jsonl", rows)
    study = load_study(write_study(tmp_path, [planned]))
    assert len(study.compared[0].measures) == 6
    (found,) = study.probes("c", "arm", "top1")
    assert (found.epochs.tolist(), found.values.tolist(), found.se.tolist()) == ([1, 16], [0.2, 0.5], [0.1, 0.0])
    assert (found.items, found.flops.tolist(), found.tokens.tolist()) == (64, [1e6, 16e6], [100, 1600])
    assert study.probes("c", "arm", "infill") == []


def test_a_broken_configuration_is_named(tmp_path):
    planned = write_run(tmp_path, "r")
    (tmp_path / "runs" / "r" / "config.yaml").write_text("a: [1\n")
    run = load_study(write_study(tmp_path, [planned])).compared[0]
    with pytest.raises(UserError, match=r"config\.yaml: not YAML"):
        _ = run.config
