"""A made-up study, from its files to the page: nothing dropped, nothing invented, no torch."""

import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dlm.errors import UserError
from dlm.files import read_lines
from dlm.report.study import latest, load_study
from dlm.report.style import spread
from dlm.study.command import load

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "super-data-learners" / "report.py"
WINDOWS = 96
FIGURES = {
    *("f1-loss-epochs", "f2-loss-compute", "f3-crossings", "f3-crossings-budget", "f4-loss-budget"),
    *("f6-repetition", "f8-likelihoods", "f13-lead"),
}

# arm: (label, baseline, epochs, knots of the true curve as {epoch: nats}); linear in log epoch between the knots
ARM = {1: 3.4, 4: 3.05, 12: 2.78, 20: 2.71, 40: 2.76, 60: 3.6}
REG = {1: 3.45, 4: 3.1, 20: 2.83, 70: 2.67, 110: 2.9, 160: 3.7}
MD4 = {1: 3.5, 10: 3.2, 45: 3.05, 200: 2.783, 300: 2.72, 500: 2.66, 560: 2.63, 700: 2.65}
SHUFFLE = {1: 3.6, 10: 3.3, 60: 3.1, 200: 2.95, 560: 2.76, 700: 2.75}
DFM = {1: 3.5, 10: 3.22, 45: 3.06, 200: 2.79, 560: 2.64, 700: 2.655}
ARMS = {
    "arm": ("ARM", True, 60, ARM),
    "arm-reg": ("ARM, regularised", True, 160, REG),
    "md4": ("MD4", False, 700, MD4),
    "shuffle": ("Shuffle", False, 700, SHUFFLE),
    "dfm_mask": ("Flow matching", False, 700, DFM),
}
CONTROL = {
    "arm": ({0.5: 3.2, 4: 2.6, 24: 2.05}, 24),
    "arm-reg": ({0.5: 3.3, 4: 2.7, 24: 2.1}, 24),
    "md4": ({0.5: 3.4, 4: 3.1, 24: 2.6}, 24),
}
GRID = [0.5, 1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 60, 80, 110, 160, 200, 260, 330, 420, 500, 560, 630, 700]


def run_name(cell, arm, seed):
    return f"{cell}-{arm}-s{seed}-{hashlib.sha256(f'{cell}{arm}{seed}'.encode()).hexdigest()[:8]}"


def fake_study(root, *, scale="laptop", seeds=(0,), unfinished=(), noise=0.12, grid=GRID, windows=WINDOWS):
    """A study directory with realistic curves: two baselines and three processes in two cells.

    `unfinished` arms of the scarce cell have no record. The true curves are piecewise linear in log epoch, so the
    crossings are known.
    """
    study = Path(root) / "outputs" / "super-data-learners" / scale
    cells = [
        {"cell": "scarce-8k", "role": "scarce", "unique_tokens": 8192},
        {"cell": "control-128k", "role": "control", "unique_tokens": 131072},
    ]
    shapes = {("scarce-8k", arm): (knots, epochs) for arm, (_, _, epochs, knots) in ARMS.items()}
    shapes |= {("control-128k", arm): shape for arm, shape in CONTROL.items()}
    plan = {
        "study": "super-data-learners",
        "scale": scale,
        "command": f"make experiment NAME=super-data-learners SCALE={scale}",
        "started": "2026-01-05T09:30:00+00:00",
        "budget_minutes": 15,
        "workers": 2,
        "cells": cells,
        "arms": [
            {"arm": arm, "label": label, "baseline": baseline, "description": f"{label}, as configured"}
            for arm, (label, baseline, _, _) in ARMS.items()
        ],
        "runs": [],
        "hardware": {"cpu": "an invented processor", "cores": 2, "memory_gb": 8},
        "seconds": {"data": 4.0, "calibrate": 11.0, "train": 690.0, "evaluate": 95.0, "total": 800.0},
    }
    unique = {cell["cell"]: cell["unique_tokens"] for cell in cells}
    difficulty = {
        split: np.random.default_rng(k).normal(0, 0.25, windows) for k, split in enumerate(("tune", "report"))
    }
    for (cell, arm), (knots, epochs) in shapes.items():
        for seed in seeds:
            name = run_name(cell, arm, seed)
            planned = {
                "run": name,
                "cell": cell,
                "arm": arm,
                "seed": seed,
                "epochs": epochs,
                "predicted_seconds": 60.0,
            }
            plan["runs"].append(planned)
            finished = not (arm in unfinished and cell == "scarce-8k")
            write_run(study / "runs" / name, planned, knots, unique[cell], difficulty, noise, grid, finished)
    study.mkdir(parents=True, exist_ok=True)
    (study / "plan.json").write_text(json.dumps(plan))
    return study


def write_run(directory, planned, knots, unique, difficulty, noise, grid, finished):
    directory.mkdir(parents=True)
    arm, cell, seed = planned["arm"], planned["cell"], planned["seed"]
    exact = ARMS[arm][1]
    rng = np.random.default_rng(int(hashlib.sha256(directory.name.encode()).hexdigest()[:8], 16))
    x, y = np.log(list(knots)), list(knots.values())
    metrics, windows, report = [], [], {}
    for epoch in (e for e in grid if min(knots) <= e <= planned["epochs"]):
        step, tokens = int(epoch * unique / 2048), int(epoch * unique)
        level = float(np.interp(np.log(epoch), x, y))
        spent = {"step": step, "epoch": epoch, "tokens": tokens, "flops": tokens * 2.49e6}
        metrics.append(spent | {"train/loss": level - 0.1, "lr": 2e-3, "tokens_per_second": 22_000.0})
        row = spent | {"targets": tokens if exact else tokens // 2, "seconds": tokens / 22_000}
        for split in ("tune", "report"):
            offset = difficulty[split] - difficulty[split].mean()
            own = rng.normal(0, noise, len(offset))
            nll = level + offset + own - own.mean() * 0.7
            windows.append({"step": step, "split": split, "nll": nll.round(5).tolist()})
            row |= {f"{split}/nll": float(nll.mean()), f"{split}/se": float(nll.std(ddof=1) / len(nll) ** 0.5)}
        metrics.append(row)
        report[step] = row
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metrics))
    (directory / "windows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in windows))
    (directory / "config.yaml").write_text(
        f"method: {{_target_: dlm.lm.{arm}, weight_decay: {1.0 if arm == 'arm-reg' else 0.1}}}\n"
        f"backbone: {{dim: 96, layers: 3, causal: {str(exact).lower()}}}\n"
        f"seed: {seed}\ndata: {{unique_tokens: {unique}}}\n"
    )
    if not finished:
        return
    best = min(report.values(), key=lambda r: r["tune/nll"])

    def score(kind, shift=0.0, scale=1.0):
        nats, se = best["report/nll"] + shift, best["report/se"] * scale
        bits = {"bits_per_char": nats / np.log(2), "se_bits": se / np.log(2)}
        return {"kind": kind, "nats_per_token": nats, "se": se, "windows": 96, "draws": 1 if exact else 16} | bits

    stopped = {"arm": "stopped at epoch 60: tune loss 3.60 is 0.89 nats above its best 2.71 at epoch 20"}
    kind = "exact" if exact else "bound (exact-count NELBO)"
    likelihood = {"bound": score(kind), "left_to_right": None if exact else score("exact", 0.03, 1.6)}
    if arm == "md4":
        likelihood["extra"] = {"last checkpoint": score(kind, 0.02)}
    audit = {
        "paragraphs": 2071,
        "characters": 368_962,
        "leak": {"windows_of_50": 41_210, "verbatim_in_train": 0.0},
    }
    record = {
        "run": directory.name, "study": "super-data-learners", "scale": "laptop", "cell": cell, "arm": arm,
        "method": arm, "seed": seed, "unique_tokens": unique, "params": 342_240, "params_non_embedding": 332_256,
        "steps": step, "epochs": epoch, "tokens": tokens, "flops": tokens * 2.49e6, "seconds": tokens / 22_000,
        "tokens_per_second": 22_000.0, "bound_kind": kind,
        "stopped": stopped.get(arm) if cell.startswith("scarce") else None,
        "best": {"step": best["step"], "epoch": best["epoch"]}, "likelihood": likelihood,
        "samples": ["The statement is executed <when> the module\nis first imported", "A class body & more"],
        "data": {"fingerprint": "sha256:5f3a9c", "audit": audit},
        "versions": {"python": "3.13.0", "torch": "2.13.0", "dlm": "0.1.0"}, "hardware": "cpu, one thread",
        "command": f"python -m dlm.train method={arm} seed={seed}",
    }  # fmt: skip
    (directory / "record.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def report():
    """The experiment's report, imported by path as the runner does."""
    return load(SCRIPT)


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    """One study with its report, for tests that only read."""
    study = fake_study(tmp_path_factory.mktemp("study"), unfinished=("dfm_mask",))
    return report.main(study)


def results_of(page):
    return json.loads((page.parent / "results.json").read_text())


def pair(results, process, baseline, cell="scarce-8k"):
    return next(
        c for c in results["comparisons"] if (c["cell"], c["process"], c["baseline"]) == (cell, process, baseline)
    )


class Tags(HTMLParser):
    """Checks that tags nest, and gathers the text."""

    VOID = frozenset({"meta", "br", "img", "link", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_parses_and_holds_the_verdict(written):
    tags = Tags()
    tags.feed(written.read_text())
    assert tags.open == []
    text = " ".join(" ".join(tags.text).split())
    for line in results_of(written)["verdict"]:
        assert line in text
    assert "upper bound" in text and "sha256:5f3a9c" in text
    assert written.read_text().count("<svg") == written.read_text().count("<figure ") == len(FIGURES)
    assert "<when>" not in written.read_text()  # samples are escaped


def test_everything_promised_is_written(written):
    for ending in ("svg", "png", "csv"):
        assert {p.stem for p in (written.parent / "figures").glob(f"*.{ending}")} == FIGURES
    assert (written.parent / "curves.csv").read_text().startswith("run,cell,unique_tokens,arm,seed,finished,step")


def test_planted_crossings_are_recovered(written):
    results = results_of(written)
    against_arm, against_reg = pair(results, "md4", "arm"), pair(results, "md4", "arm-reg")
    # MD4 passes 3.05 at 45 and then falls; ARM rises from 2.76 at 40 to 3.6 at 60
    assert against_arm["x1"]["status"] == "clear" and 40 < against_arm["x1"]["epoch"] < 60
    assert against_arm["x1"]["observed_to"] == 60
    assert any("stopped at epoch 60" in note for note in against_arm["x1"]["notes"])
    assert against_arm["x2"]["status"] == "clear" and 300 < against_arm["x2"]["epoch"] < 420
    assert against_arm["x2"]["low"] <= against_arm["x2"]["epoch"] <= against_arm["x2"]["high"]
    assert against_reg["x2"]["epoch"] > against_arm["x2"]["epoch"]
    assert against_reg["x1"]["epoch"] > against_arm["x1"]["epoch"]
    assert pair(results, "shuffle", "arm")["x2"]["status"] == "not reached"


def test_the_control_cell_is_judged_by_the_absence_of_crossings(written):
    lines = [line for line in results_of(written)["verdict"] if line.startswith("control-128k")]
    assert len(lines) == 1 and "as expected" in lines[0]


def test_an_unfinished_run_is_shown_as_missing(written):
    results = results_of(written)
    assert [m["run"] for m in results["missing"]] == [run_name("scarce-8k", "dfm_mask", 0)]
    assert "last evaluation at epoch 700" in results["missing"][0]["why"]
    assert pair(results, "dfm_mask", "arm")["missing"] == "no finished run of Flow matching"
    assert any("Flow matching: against ARM: no finished run" in line for line in results["verdict"])
    assert run_name("scarce-8k", "dfm_mask", 0) in written.read_text()
    table = load_study(written.parent).table
    assert set(table.loc[table.arm == "dfm_mask", "finished"]) == {False}


def test_a_run_that_never_started_is_missing_too(report, tmp_path):
    study = fake_study(tmp_path, grid=GRID[::3], windows=8)
    directory = study / "runs" / run_name("scarce-8k", "arm", 0)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    results = report.compute(load_study(study))
    assert results["missing"] == [{"run": directory.name, "why": "not started"}]
    assert "no finished run of ARM" in pair(results, "md4", "arm")["missing"]


def test_nothing_finished_still_makes_a_page(report, tmp_path):
    study = fake_study(tmp_path, windows=8)
    for record in study.glob("runs/*/record.json"):
        record.unlink()
    page = report.main(study)
    assert len(results_of(page)["missing"]) == 8
    assert "unfinished" in page.read_text()


def test_verdict_lines_need_only_the_written_results(report, written):
    results = results_of(written)
    assert report.verdict_lines(results) == results["verdict"]


def test_a_resumed_run_keeps_the_last_of_each_step(tmp_path):
    study = fake_study(tmp_path, windows=8)
    directory = study / "runs" / run_name("scarce-8k", "arm", 0)
    before = load_study(study).of("scarce-8k", "arm")[0].curve
    lines = read_lines(directory / "metrics.jsonl")
    last = [row for row in lines if "report/nll" in row][-1]
    nll = [9.0] * 8
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last | {"report/nll": 9.0}) + "\n")
    with (directory / "windows.jsonl").open("a") as file:
        file.write(json.dumps({"step": last["step"], "split": "report", "nll": nll}) + "\n")
    run = load_study(study).of("scarce-8k", "arm")[0]
    assert len(run.curve.epochs) == len(before.epochs)
    assert run.curve.report[-1].tolist() == nll
    assert run.evaluations[-1]["report/nll"] == 9.0


def test_training_rows_do_not_hide_evaluations_of_the_same_step():
    rows = [{"step": 2, "v": 1}, {"step": 1, "v": 0}, {"step": 2, "v": 2}]
    assert latest(rows, "step") == [{"step": 1, "v": 0}, {"step": 2, "v": 2}]


def test_a_torn_last_line_is_tolerated(tmp_path):
    study = fake_study(tmp_path, windows=8)
    path = study / "runs" / run_name("scarce-8k", "md4", 0) / "windows.jsonl"
    whole = len(read_lines(path))
    with path.open("a") as file:
        file.write('{"step": 99999, "split": "tu')
    assert len(read_lines(path)) == whole
    load_study(study)


def test_a_corrupt_line_is_named(report, tmp_path):
    study = fake_study(tmp_path, windows=8)
    path = study / "runs" / run_name("scarce-8k", "md4", 0) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:5: corrupt"):
        report.main(study)


def test_missing_studies_and_plans_are_named(report, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        report.main(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"plan\.json does not exist"):
        report.main(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="has no 'study'"):
        report.main(tmp_path)


def test_mixed_data_are_refused(report, tmp_path):
    study = fake_study(tmp_path, windows=8)
    path = study / "runs" / run_name("scarce-8k", "md4", 0) / "record.json"
    record = json.loads(path.read_text())
    record["data"]["fingerprint"] = "sha256:other"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="sha256:other"):
        report.main(study)


def test_mixed_windows_are_refused(report, tmp_path):
    study = fake_study(tmp_path, windows=8)
    path = study / "runs" / run_name("scarce-8k", "md4", 0) / "windows.jsonl"
    path.write_text("".join(json.dumps(r | {"nll": r["nll"][:5]}) + "\n" for r in read_lines(path)))
    with pytest.raises(UserError, match="same held-out windows"):
        report.main(study)


def test_a_diverged_run_is_missing_not_fatal(tmp_path):
    study = fake_study(tmp_path, windows=8)
    path = study / "runs" / run_name("scarce-8k", "md4", 0) / "windows.jsonl"
    rows = read_lines(path)
    rows[-1]["nll"][0] = float("nan")
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [run.problem for run in load_study(study).missing] == [
        "finished, but without finite losses per held-out window"
    ]


def test_directories_outside_the_plan_are_named(tmp_path):
    study = fake_study(tmp_path, windows=8)
    (study / "runs" / "from-an-earlier-plan").mkdir()
    assert load_study(study).unplanned == ["from-an-earlier-plan"]


@pytest.fixture
def words(report, monkeypatch):
    """The report without its figures, for tests of what it says."""
    monkeypatch.setattr(report, "EVIDENCE", {})
    return report


def test_runs_dropped_to_fit_the_minutes_are_named_and_not_called_missing(words, tmp_path):
    study = fake_study(tmp_path, windows=8)
    assert "to stay within the minutes" not in words.main(study).read_text()
    plan = json.loads((study / "plan.json").read_text())
    dropped = plan["runs"].pop()
    (study / "plan.json").write_text(json.dumps(plan | {"dropped": [dropped | {"predicted_seconds": 200.0}]}))
    page = words.main(study)
    text = page.read_text()
    assert "Not run, to stay within the minutes asked for" in text
    assert f"{dropped['run']}: about 3 min 20 s" in text
    assert results_of(page)["missing"] == [] and "No planned run is missing." in text


def test_only_the_smoke_scale_or_too_few_evaluations_bring_a_caution(words, written, tmp_path):
    assert not results_of(written)["smoke"]
    assert "proves the machinery" not in written.read_text() and 'class="warning"' not in written.read_text()
    page = words.main(fake_study(tmp_path, grid=[0.5, 1, 8, 24], windows=8))  # at the laptop scale
    assert results_of(page)["verdict"][0].startswith("Too few evaluations")
    assert "proves the machinery" not in page.read_text() and 'class="warning"' in page.read_text()


def test_the_verdict_has_one_line_per_cell_and_process_against_every_baseline(written):
    verdict = results_of(written)["verdict"]
    assert [line.split(":")[0].split(" (")[0] for line in verdict[:-1]] == [
        "scarce-8k, MD4",
        "scarce-8k, Shuffle",
        "scarce-8k, Flow matching",
        "control-128k, MD4",
    ]
    found = r"X1 epoch \S+ \[.+?\].*?, X2 epoch \S+ \[.+?\].*?"
    assert re.search(f"against ARM: {found}; against ARM, regularised: {found}", verdict[0])
    assert "X2 not reached within 700 epochs of the process" in verdict[1]
    assert "X1 not reached within 24 epochs of both" in verdict[3]


def test_labels_are_spread_no_more_than_needed():
    assert spread([0.0, 1.0, 5.0], 0.5) == [0.0, 1.0, 5.0]
    assert spread([1.0, 1.0, 5.0], 1.0) == pytest.approx([0.5, 1.5, 5.0])
    assert all(np.diff(spread([0, 0, 0, 0.1, 3], 0.4)) >= 0.4 - 1e-9)


def call(code_or_script, *arguments):
    command = [sys.executable, *code_or_script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_reports_never_import_torch_and_name_a_lost_study_in_one_line(tmp_path):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""
    lost = call(["-c", code], tmp_path / "lost")
    assert lost.returncode == 1
    assert lost.stderr.strip() == f"{tmp_path / 'lost'} is not a directory: no such study"


def test_the_command_line_prints_the_verdict_with_several_seeds_and_the_smoke_warning(tmp_path):
    study = fake_study(tmp_path, scale="smoke", seeds=(0, 1), grid=[0.5, 1, 8, 24], windows=16)
    done = call([str(SCRIPT)], study)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("report.html") and "scarce-8k, MD4" in done.stdout
    assert "proves the machinery" in done.stdout.splitlines()[0]
    assert 'class="warning"' in (study / "report.html").read_text()
    results = results_of(study / "report.html")
    assert results["smoke"] and pair(results, "md4", "arm")["x1"]["seeds"] == [2, 2]
