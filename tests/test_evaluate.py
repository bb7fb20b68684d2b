"""`python -m dlm.evaluate likelihood=...`: every likelihood of a run, resumable, precise, however work is cut."""

import json
import math
import multiprocessing
import os
import shutil
import socket
import sys

import pytest
import torch
from conftest import die, in_fork, toy_run, trained

from dlm import config, evaluate
from dlm.likelihood import Kind
from dlm.noise import Stream, uniforms
from dlm.run import RunDirectory
from dlm.scoring import Ranks, Scorer

flow_run = trained("dfm_uniform")
genmd4_run = trained("genmd4")
score_run = trained("sedd_uniform")
CHAIN_RULES = {"left_to_right", "top_probability", "margin", "log_ratio", "entropy"}
OF_MASKS = {"exact_count", "random_order", "mixture", "order_variance", "square_defect"} | CHAIN_RULES


@pytest.fixture
def copied(md4_run, tmp_path):
    """A finished run of one's own, to write into."""
    return shutil.copytree(md4_run, tmp_path / "run")


def results(run):
    """{name: what was written about it}."""
    return {r["name"]: r for r in (json.loads(p.read_text()) for p in (run / "likelihoods").glob("*.json"))}


def ledgers(run):
    """{file: its rows}."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run / "likelihoods").glob("*.jsonl")
    }


def sharpened(run, factor=2.5):
    """The same network with all logits times `factor`."""
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["state_dict"]["backbone.head.weight"] *= factor
    torch.save(content, run / "best.ckpt")
    return run


# -- every likelihood ----------------------------------------------------------------------------------------


def test_all_likelihoods_of_a_mask_predictor(copied, called):
    """One line and one file each, every number with its kind and cost; 5 windows of 8 tokens.

    Kinds made of the same random orders agree: the mixture is below their mean, the variance names that mean.
    """
    record = (copied / "record.json").read_bytes()
    out = called(evaluate.main, f"run={copied}", "likelihood=all", "windows=5", "draws=4", "orders=3", "steps=6")
    found = results(copied)
    assert set(found) == OF_MASKS | {"continuous", "steps"} == {line.split()[0] for line in out.splitlines()}
    rows = {"exact_count": 20, "steps": 20, "square_defect": 60, "continuous": 20}
    for name, row in found.items():
        value = row["nats_per_token"] if "nats_per_token" in row else row["value"]
        assert math.isfinite(value) and math.isfinite(row["se"]) and row["windows"] == 5 and row["seconds"] >= 0
        assert (row["kind"] == "exact") == (name in CHAIN_RULES)
        assert row["kind"].startswith(("exact", "bound (")) == ("nats_per_token" in row)
        assert row["network_rows"] == rows.get(name, 5 * 8 * (1 if name in CHAIN_RULES else 3)), name
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert f"{value:.4f} ± {row['se']:.4f}" in line and row["kind"] in line
        assert f"{row['network_rows']} network rows" in line and "nats" in line
        assert ("bits per character" in line) == ("bits_per_char" in row) == ("nats_per_token" in row)
    assert found["mixture"]["nats_per_token"] <= found["random_order"]["nats_per_token"]
    assert found["mixture"]["se_draws"] is None and "unknown" in out
    assert found["order_variance"]["mean_nats_per_token"] == found["random_order"]["nats_per_token"]
    assert found["steps"]["kind"] == "bound (6-step bound)" and found["steps"]["grid"] == "uniform"
    assert (copied / "record.json").read_bytes() == record


@pytest.mark.parametrize(
    ("fixture", "names"),
    [
        ("arm_run", {"left_to_right"}),
        ("shuffle_run", {"continuous", "flow_path", "steps"}),
        ("flow_run", {"continuous", "flow_path", "steps"}),
        ("genmd4_run", {"continuous", "steps"}),
    ],
)
def test_all_likelihoods_of_the_others(fixture, names, tmp_path, called, refused, request):
    """What a model cannot have is refused in a line that lists what it has; the headline is the record's."""
    run = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "run")
    error = refused(evaluate.main, f"run={run}", "likelihood=mixture")
    assert "mixture" in error and all(name in error for name in names)
    options = [] if names == {"left_to_right"} else ["draws=2"]  # nothing of an ARM is drawn
    called(evaluate.main, f"run={run}", "likelihood=all", *options)
    found, record = results(run), RunDirectory(run).read_record()
    assert set(found) == names
    headline = found[next(n for n in ("continuous", "left_to_right") if n in found)]
    assert headline["kind"] == record["likelihood"]["bound"]["kind"]
    for key in ("nats_per_token", "se", "bits_per_char"):
        assert headline[key] == pytest.approx(record["likelihood"]["bound"][key], rel=1e-6)
    if fixture == "flow_run":
        path = record["likelihood"]["extra"]["flow path bound"]
        assert found["flow_path"]["nats_per_token"] == pytest.approx(path["nats_per_token"], rel=1e-6)
    if fixture == "arm_run":
        assert "left_to_right" in refused(evaluate.main, f"run={run}", "likelihood=bound")


def test_a_mask_predictor_is_scored_in_any_fixed_order(copied, called):
    """One file per order; in reading order it is left_to_right to the bit, in others something else."""
    called(evaluate.main, f"run={copied}", "likelihood=left_to_right", "windows=5")
    for order in (["closeness=identity"], ["closeness=uniform"], ["closeness=uniform", "permutation_seed=3"]):
        called(evaluate.main, f"run={copied}", "likelihood=permuted", "windows=5", *order)
    files = {file.name: json.loads(file.read_text()) for file in (copied / "likelihoods").glob("*.json")}
    names = [f"permuted-{order}-report-best.json" for order in ("identity-0", "uniform-0", "uniform-3")]
    assert set(files) == {"left_to_right-report-best.json", *names}
    same, one, other = (files[name] for name in names)
    plain = files["left_to_right-report-best.json"]["nats_per_token"]
    assert same["nats_per_token"] == plain and len({plain, one["nats_per_token"], other["nats_per_token"]}) == 3
    assert (other["closeness"], other["permutation_seed"], other["kind"]) == ("uniform", 3, "exact")


def test_a_model_of_permuted_text_has_one_likelihood_in_its_own_order(tmp_path, called, refused):
    own = ["method.permutation.closeness=uniform", "method.permutation.seed=1"]
    run = toy_run(tmp_path, "method=arm_permuted", *own)
    called(evaluate.main, f"run={run}", "likelihood=permuted", "closeness=uniform", "permutation_seed=1")
    called(evaluate.main, f"run={run}", "likelihood=all")
    (row,) = results(run).values()
    record = RunDirectory(run).read_record()
    assert row["nats_per_token"] == pytest.approx(record["likelihood"]["bound"]["nats_per_token"], rel=1e-6)
    assert record["bound_kind"] == "exact" and row["name"] == "permuted"
    assert "its own" in refused(evaluate.main, f"run={run}", "likelihood=permuted", "closeness=closer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["likelihood=permuted"], ["closeness", "much_closer"]),
        (["likelihood=permuted", "closeness=near"], ["near", "closer"]),
        (["likelihood=bound", "closeness=closer"], ["closeness=closer", "likelihood=permuted"]),
        (["likelihood=permuted", "permutation_seed=1"], ["permutation_seed=1", "closeness"]),
        (["likelihood=perplexity"], ["perplexity", "exact_count", "mixture"]),
        (["likelihood=margin,flow_path"], ["flow_path", "margin"]),
        (["likelihood=bound", "steps=4"], ["steps=4", "likelihood=steps"]),
        (["steps=4"], ["steps=4", "likelihood=steps"]),
        (["likelihood=steps", "steps=0"], ["steps=0"]),
        (["likelihood=steps", "grid=log"], ["log"]),
        (["likelihood=bound", "orders=4"], ["orders=4", "mixture"]),
        (["likelihood=mixture", "orders=2"], ["orders=2"]),
        (["likelihood=margin", "draws=4"], ["draws=4"]),
        (["likelihood=margin", "precision=0.1"], ["precision", "exact"]),
        (["likelihood=order_variance", "precision=0.1"], ["precision", "order_variance"]),
        (["likelihood=order_variance", "calibrate=true"], ["calibrate", "order_variance"]),
        (["likelihood=bound", "precision=0"], ["precision"]),
        (["likelihood=bound", "max_draws=64"], ["max_draws=64", "precision"]),
        (["likelihood=bound", "precision=0.1", "max_draws=8"], ["max_draws=8", "two rounds"]),
        (["likelihood=bound", "left_to_right_windows=3"], ["left_to_right_windows"]),
        (["calibrate=true", "split=tune"], ["calibrate", "tune"]),
        (["calibrate=maybe"], ["maybe"]),
    ],
    ids=str,
)
def test_contradictions_are_refused_in_one_line(arguments, said, copied, refused):
    error = refused(evaluate.main, f"run={copied}", *arguments)
    assert all(word in error for word in said), error
    assert not (copied / "likelihoods").exists()


def test_a_run_that_cannot_be_written_to_is_refused_in_one_line(copied, refused):
    (copied / "likelihoods").write_text("in the way")
    assert "cannot write" in refused(evaluate.main, f"run={copied}", "likelihood=bound")


# -- the same numbers however the work is cut ----------------------------------------------------------------

MIXED = "likelihood=exact_count,margin,mixture,square_defect"
FAST = ("draws=3", "orders=3")


def numbers(run):
    return {name: row.get("nats_per_token", row.get("value")) for name, row in results(run).items()}


def test_batches_do_not_matter_and_nothing_is_computed_twice(copied, tmp_path, called, monkeypatch):
    """One window at a time, five, or all: equal to 1e-6; more windows only add to the same files."""
    other = shutil.copytree(copied, tmp_path / "other")
    called(evaluate.main, f"run={copied}", MIXED, *FAST, "batch_size=1", "windows=3")
    before = ledgers(copied)
    called(evaluate.main, f"run={copied}", MIXED, *FAST, "batch_size=1")
    called(evaluate.main, f"run={other}", MIXED, *FAST, "batch_size=5")
    assert numbers(copied) == pytest.approx(numbers(other), abs=1e-6)
    after = ledgers(copied)
    assert {file: len(rows) for file, rows in after.items()} == dict.fromkeys(before, 1 + 8)
    assert all(after[file][: len(rows)] == rows for file, rows in before.items())
    assert {row["window"] for row in after[next(iter(after))][1:]} == set(range(8))

    def asked(*_):
        raise AssertionError("the network was asked again")

    monkeypatch.setattr(evaluate.Scorer, "_entries", asked)
    called(evaluate.main, f"run={copied}", MIXED, *FAST)
    assert ledgers(copied) == after


def test_a_killed_evaluation_continues_where_it_was(copied, tmp_path, called):
    """Killed after two batches, with half a line written: the same numbers to the bit, no window twice."""
    whole, arguments = shutil.copytree(copied, tmp_path / "whole"), (MIXED, *FAST, "batch_size=3")
    called(evaluate.main, f"run={whole}", *arguments)

    def work():
        gather, calls = Ranks.gather, []

        def dying(self, mine):
            calls.append(1)
            return die() if len(calls) > 3 else gather(self, mine)  # the first shares what the ledger holds

        Ranks.gather = dying
        sys.argv = ["dlm", f"run={copied}", *arguments]
        config.entry(evaluate.main)

    assert in_fork(work) == -9
    ((file, rows),) = ledgers(copied).items()
    assert len(rows) == 1 + 6 and not results(copied)
    with open(copied / "likelihoods" / file, "ab") as torn:
        torn.write(b'{"temperature": 1.0, "rou')
    called(evaluate.main, f"run={copied}", *arguments)
    assert numbers(copied) == numbers(whole)
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert {f: strip(r) for f, r in ledgers(copied).items()} == {f: strip(r) for f, r in ledgers(whole).items()}


def test_another_checkpoint_is_another_ledger(copied, tmp_path, called):
    """What was drawn from a network says nothing about another; settings and splits are kept apart as well."""
    fresh = sharpened(shutil.copytree(copied, tmp_path / "fresh"))
    called(evaluate.main, f"run={copied}", "likelihood=bound", "draws=3")
    old = numbers(copied)
    sharpened(copied)
    for run in (copied, fresh):
        called(evaluate.main, f"run={run}", "likelihood=bound", "draws=3")
    assert numbers(copied) == numbers(fresh) != old
    assert len(ledgers(copied)) == 2 and len(ledgers(fresh)) == 1
    called(evaluate.main, f"run={fresh}", "likelihood=bound", "draws=4")
    called(evaluate.main, f"run={fresh}", "likelihood=bound", "draws=3", "split=tune")
    assert len(ledgers(fresh)) == 3


def test_two_processes_are_one(copied, tmp_path, called):
    """As torchrun starts them: windows shared, the same numbers to 1e-6, every window once, one of them prints."""
    one = shutil.copytree(copied, tmp_path / "one")
    arguments = (MIXED, *FAST, "windows=7", "batch_size=2", "calibrate=true")
    printed = called(evaluate.main, f"run={one}", *arguments)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ |= {key: str(value) for key, value in place.items()}
        sys.argv = ["dlm", f"run={copied}", *arguments]
        with open(tmp_path / f"{rank}.txt", "w") as sys.stdout:
            config.entry(evaluate.main)

    assert both(work) == [0, 0]
    assert numbers(copied) == pytest.approx(numbers(one), abs=1e-6)
    ours, theirs = ledgers(copied), ledgers(one)
    assert {f: len(rows) for f, rows in ours.items()} == {f: len(rows) for f, rows in theirs.items()}
    assert not (tmp_path / "1.txt").read_text()
    first = (tmp_path / "0.txt").read_text().splitlines()
    assert [line[:30] for line in first] == [line[:30] for line in printed.splitlines()]


def both(work):
    """Run work(0) and work(1) in two forked processes at once; their exit codes."""
    processes = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


# -- precision and calibration -------------------------------------------------------------------------------


def test_rounds_are_drawn_until_the_error_is_small_enough(copied, called):
    """The error asked for is reached, said and paid for; what is left is called the text's."""
    out = called(evaluate.main, f"run={copied}", "likelihood=bound,left_to_right", "precision=0.01")
    found = results(copied)
    drawn = found["exact_count"]
    assert 0.003 < drawn["se_draws"] <= 0.01 < drawn["se"]
    assert drawn["draws"] == 8 * drawn["rounds"] and drawn["network_rows"] == 8 * drawn["draws"]
    assert found["left_to_right"]["draws"] == 1 and found["left_to_right"]["rounds"] == 1
    (said,) = [line for line in out.splitlines() if "precision=0.01 reached" in line]
    text = math.sqrt(drawn["se"] ** 2 - drawn["se_draws"] ** 2)
    assert f"{text:.4f} is the finite text of 8 windows" in said
    out = called(evaluate.main, f"run={copied}", "likelihood=bound", "precision=0.0001", "max_draws=64")
    assert "not reached before max_draws" in out and results(copied)["exact_count"]["draws"] == 64


def test_the_error_at_which_drawing_stops_is_the_true_one(copied):
    """A likelihood of uniform noise: 60 windows' worth of rounds stop within a factor 1.6 of the draws that its
    variance asks for, and the mean is within 4 of its errors of the truth."""
    model, data, _ = evaluate.load_run(copied)

    def draws(denoise, x0, target, index, draws, seed):
        return 8 * uniforms(seed, Stream.EVALUATION, index.tolist(), draws)

    scorer = Scorer(model, data, 4)
    found = scorer.precise(Kind("noise", "noise", draws), 5, "report", 1.0, 0.02, 10**6)
    needed = 1 / 12 / 8 / 0.02**2
    assert needed / 1.6 < found.draws < 1.6 * needed and found.score.se_draws <= 0.02
    assert abs(found.score.nll - 0.5) < 4 * 0.02
    assert found.columns == found.rounds == found.draws // 5


@pytest.mark.parametrize("fixture", ["md4_run", "arm_run", "shuffle_run"])
def test_calibration_undoes_a_factor_on_the_logits(fixture, tmp_path, called, request):
    """A network whose logits are multiplied by 2.5 asks for 2.5 times the temperature (to 2 per cent, in fp32),
    and gives the same number there; on the tune split, calibration never loses."""
    temperatures, values = [], []
    for factor in (1.0, 2.5):
        run = shutil.copytree(request.getfixturevalue(fixture), tmp_path / f"{factor}")
        out = called(evaluate.main, f"run={sharpened(run, factor)}", "calibrate=true")
        (found,) = results(run).values()
        before, after = found["tune"]
        assert after <= before and found["uncalibrated"]["temperature"] == 1.0
        assert "calibrated on tune" in out and f"temperature {found['temperature']:.4f}" in out
        temperatures.append(found["temperature"])
        values.append(found["nats_per_token"])
    assert temperatures[1] / temperatures[0] == pytest.approx(2.5, rel=0.02)
    assert values[1] == pytest.approx(values[0], abs=1e-3)


def test_finite_time_processes_have_their_own_steps(tmp_path, called, refused):
    """Their bound is their own T steps'; other steps are refused."""
    run = toy_run(tmp_path, "method=d3pm_uniform")
    steps = RunDirectory(run).read_config()["method"]["process"]["steps"]
    called(evaluate.main, f"run={run}", "likelihood=bound", "draws=2")
    (found,) = results(run).values()
    assert found["kind"] == f"bound ({steps}-step bound)" and found["steps"] == steps
    block = RunDirectory(run).read_record()["likelihood"]["bound"]
    assert found["nats_per_token"] == pytest.approx(block["nats_per_token"], rel=1e-6)
    assert f"{steps} steps" in refused(evaluate.main, f"run={run}", "likelihood=steps", "steps=3")


def test_an_infinite_bound_says_so_and_stops(score_run, tmp_path, called, monkeypatch):
    """A score network whose step cannot lead to the data: one line, null in the JSON, whatever the precision."""
    run = shutil.copytree(score_run, tmp_path / "run")
    monkeypatch.setattr(
        "dlm.process.ScoreUniformDiffusion.step_kl", lambda self, logits, x0, *_: torch.full(x0.shape, torch.inf)
    )
    out = called(evaluate.main, f"run={run}", "likelihood=steps", "windows=4", "precision=0.1", "steps=4")
    assert "infinite" in out and "4-step bound" in out
    found = results(run)["steps"]
    assert found["nats_per_token"] is None and "NaN" not in json.dumps(found)


def test_scores_are_not_tempered(score_run, refused):
    for likelihood in ("bound", "all"):
        line = refused(evaluate.main, f"run={score_run}", "calibrate=true", f"likelihood={likelihood}")
        assert "calibrate" in line and "ratios" in line


def test_numbers_of_another_configuration_are_not_mixed_in(copied, called):
    """What decides numbers beside the checkpoint's content: a changed config.yaml opens another ledger."""
    called(evaluate.main, f"run={copied}", "likelihood=bound", "windows=2")
    before = set(ledgers(copied))
    config = copied / "config.yaml"
    config.write_text(config.read_text() + "# edited\n")
    called(evaluate.main, f"run={copied}", "likelihood=bound", "windows=2")
    assert len(set(ledgers(copied)) - before) == 1


@pytest.mark.parametrize("option", ["steps=5", "orders=5", "draws=3", "precision=0.1"])
def test_all_likelihoods_take_no_option_that_none_of_them_has(option, arm_run, refused):
    assert option.split("=")[0] in refused(evaluate.main, f"run={arm_run}", "likelihood=all", option)
