"""`python -m dlm.measure`: rows of a run's checkpoints, made once, resumed after a kill, refused in one line."""

import shutil

import pytest
from conftest import die, in_fork, rows, trained

from dlm import measure
from dlm.measure import MEASURES, Settings, measure_run
from dlm.measure import run as runs
from dlm.measure.__main__ import main

snapshots_run = trained("md4", "evaluation.snapshots=[0.25,0.5]", "branches.epochs=[0.5]")
genmd4_run, dual_run, orders_run = trained("genmd4"), trained("dual"), trained("arm_orders")
SMALL = {"windows": 2, "draws": 2, "items": 8, "samples": 2, "extractions": 2, "orders": 3, "order_windows": 2}
QUICK = Settings(**SMALL, order_tokens=4, chain_windows=2)
KEYS = {"checkpoint", "epoch", "cooled", "measure", "split", "value", "se", "n", "chance", "unit", "details"}
EVERY = {"nll", "train_nll", "membership_auc", "weight_norm", "natural_5", "copied_5", "common_substring"}
EVERY |= {"natural_common_substring", "sample_entropy", "distinct_3"}
LAW, ORDERS = {"temperature", "nll_calibrated"}, {"order_variance_train", "order_variance_report", "mixture"}
CHOICES = {"continuation", "infill", "reversal"}


@pytest.fixture
def copied(snapshots_run, tmp_path):
    """A finished run of one's own, with snapshots of the trunk and of a branch."""
    return shutil.copytree(snapshots_run, tmp_path / "run")


def plain(found):
    """Rows without what a clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("arm", {"top1", "extraction", "left_to_right"}),
        ("md4", {"top1", "extraction", "left_to_right"} | ORDERS),
        ("shuffle", set()),
        ("genmd4", set()),
        ("dual", {"top1", "extraction", "left_to_right"} | ORDERS),
        ("orders", {"top1", "extraction", "left_to_right", "mixture"}),
    ],
)
def test_every_model_has_the_measures_that_mean_something_for_it(method, expected, request, tmp_path):
    """Toy windows are 8 tokens: no 13-grams; its words have no brackets."""
    run = shutil.copytree(request.getfixturevalue(f"{method}_run"), tmp_path / "run")
    found = measure_run(run, QUICK, checkpoints="best", tell=lambda line: None)
    names = {row["measure"] for row in found} - {"copied_50", "natural_50", *CHOICES, "extraction_fast"}
    assert names == EVERY | LAW | expected
    assert all(set(row) >= KEYS for row in found)
    assert found == rows(run, "measures.jsonl")


def test_rows_of_all_checkpoints_carry_their_epoch(copied):
    found = measure_run(copied, QUICK, "nll,weight_norm,left_to_right", tell=lambda line: None)
    assert [(r["checkpoint"], r["measure"]) for r in found] == [
        *[(c, m) for c in ("epoch-0.25", "epoch-0.5", "cooled-0.5") for m in ("nll", "weight_norm")],
        *[("best", m) for m in ("nll", "weight_norm", "left_to_right")],
    ]
    assert [(r["epoch"], r["cooled"]) for r in found[:6:2]] == [(0.25, False), (0.5, False), (0.5, True)]
    assert len({r["value"] for r in found[1:6:2]}) == 3, "three different sets of weights"
    evaluated = {row["epoch"] for row in rows(copied) if "tune/nll" in row}
    assert found[-1]["epoch"] in evaluated, "the best is one of those that were scored"
    everywhere = Settings(**SMALL, chain_windows=2, chain_at="all")
    assert len(measure_run(copied, everywhere, "left_to_right", tell=lambda line: None)) == 4


def test_what_is_there_is_not_made_again_and_a_setting_remakes_what_depends_on_it(copied, called):
    quick = [f"{k}={v}" for k, v in SMALL.items()]
    first = called(main, f"run={copied}", *quick, "checkpoints=best", "measures=nll,top1,weight_norm")
    assert first.count("\n") == 4 and "weight_norm" in first and " s\n" in first
    file = copied / "measures.jsonl"
    content = file.read_bytes()
    again = called(main, f"run={copied}", *quick, "checkpoints=best", "measures=top1,nll", "batch_tokens=1")
    assert again.count("\n") == 1 and file.read_bytes() == content
    finer = called(main, f"run={copied}", *quick[1:], "windows=3", "checkpoints=best", "measures=nll,weight_norm")
    assert finer.count("\n") == 2 and finer.startswith("best        nll")
    assert file.read_bytes().startswith(content)


def test_another_configuration_is_measured_anew(copied):
    names, config = "weight_norm", copied / "config.yaml"
    (before,) = measure_run(copied, QUICK, names, "epoch-0.5", tell=lambda line: None)
    config.write_text(config.read_text() + "\n# changed\n")
    (after,) = measure_run(copied, QUICK, names, "epoch-0.5", tell=lambda line: None)
    assert before["key"] != after["key"] and before["value"] == after["value"]


def kill_after(run, count):
    """Measure, and die before the row after `count` of them; in a fork."""
    made = runs.append_row

    def append(path, row):
        if len(path.read_bytes().splitlines() if path.is_file() else []) == count:
            with open(path, "ab") as file:
                file.write(b'{"checkpoint": "be')
                file.flush()
            die()
        made(path, row)

    runs.append_row = append
    measure_run(run, QUICK, checkpoints="best", tell=lambda line: None)


def test_a_killed_command_continues_to_the_same_rows(copied, tmp_path):
    whole = shutil.copytree(copied, tmp_path / "whole")
    expected = measure_run(whole, QUICK, checkpoints="best", tell=lambda line: None)
    assert in_fork(kill_after, copied, 5) == -9
    assert len((copied / "measures.jsonl").read_bytes().splitlines()) == 6
    made = []
    found = measure_run(copied, QUICK, checkpoints="best", tell=made.append)
    assert plain(found) == plain(expected) == plain(rows(copied, "measures.jsonl"))
    assert not any(line.split()[1] in ("nll", "temperature", "top1") for line in made)


def test_a_measure_works_on_a_model_by_hand(md4_run):
    from dlm.evaluate import load_run

    model, data, _ = load_run(md4_run)
    found = MEASURES["nll"].of(measure.Subject(model, data))
    assert found.unit == "nats per token" and found.value > 0 and found.n == len(found.details["each"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which run?"),
        (["run=nowhere"], "nowhere is not a run directory"),
        (["run={run}", "measures=nll,perplexity"], "measures=perplexity: there is no 'perplexity', only nll"),
        (["run={run}", "checkpoints=epoch-3"], "checkpoints=epoch-3: there is no 'epoch-3', only"),
        (["run={run}", "chain_at=last"], "chain_at=last: there is no 'last', only"),
        (["run={run}", "items=0"], "items=0 must be at least 1"),
        (["run={run}", "orders=2"], "orders=2 must be at least 3"),
        (["run={run}", "items=few"], "few"),
        (["run={run}", "probes=all"], "do not understand 'probes=all'"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, words, md4_run, refused):
    assert words in refused(main, *(a.format(run=md4_run) for a in arguments))


def test_a_run_without_weights_is_refused(copied):
    shutil.rmtree(copied / "snapshots")
    (copied / "best.ckpt").unlink()
    with pytest.raises(measure.run.UserError, match="no checkpoint to measure"):
        measure_run(copied, QUICK)
