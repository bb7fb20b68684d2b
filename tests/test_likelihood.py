"""Scores through real networks: shapes, kinds, and agreement between estimators and exact values."""

import math

import pytest
import torch
from conftest import METHODS, TOY, composed

from dlm import evaluate, likelihood, train
from dlm.dual import DualLM
from dlm.errors import UserError
from dlm.lm import AutoregressiveLM


def shaken(method, *overrides):
    cfg = composed(*TOY, f"method={method}", *overrides)
    data = train.build_data(cfg)
    model = train.build_model(cfg, data.source.fingerprint, total_steps=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval(), data


def everything(data, split="report"):
    x0 = data.windows(split)
    return x0, torch.ones_like(x0, dtype=torch.bool), torch.arange(len(x0))


@pytest.mark.parametrize("method", METHODS)
def test_a_score_is_one_number_per_window_and_draw(method):
    """More draws are more columns; an exact score has one; given tokens lower it or leave it defined."""
    model, data = shaken(method)
    x0, target, index = everything(data)
    with torch.no_grad():
        nats = model.nll_draws(x0, target, index, 3)
        half = target.clone()
        half[:, :4] = False
        given = model.nll_draws(x0, half, index, 3)
    exact = model.bound_kind == "exact"
    assert nats.shape == given.shape == (len(x0), 1 if exact else 3)
    assert nats.dtype == torch.float64 and nats.isfinite().all() and given.isfinite().all()
    assert given.mean() < nats.mean()
    assert exact == isinstance(model, AutoregressiveLM | DualLM)


@pytest.mark.parametrize("method", ["md4", "aoarm", "dfm_mask"])
def test_left_to_right_asks_the_chain_rule(method):
    """One forward pass per token by hand, to 1e-5; a prompt is conditioned on."""
    model, data = shaken(method)
    x0, target, _ = everything(data)
    target = target.clone()
    target[:3, :5] = False
    by_hand = torch.zeros(len(x0), dtype=torch.float64)
    with torch.no_grad():
        for i in range(8):
            hidden = target & (torch.arange(8) >= i)
            logits = model.backbone(torch.where(hidden, 4, x0))
            nll = torch.nn.functional.cross_entropy(logits[:, i], x0[:, i], reduction="none")
            by_hand += torch.where(target[:, i], nll, 0.0)
        for rows in (1, 7, 128):
            exact = likelihood.left_to_right_nll(model.process, model.backbone, x0, target, rows=rows)
            torch.testing.assert_close(exact, by_hand, rtol=1e-5, atol=1e-5)


def test_a_bound_lies_above_the_model_it_bounds():
    """For a mask predictor the mean over orders of -log p is the bound; two tokens, both orders, by hand."""
    model, data = shaken("md4", "seq_len=2", "data.held_out=16")
    x0, target, index = everything(data)
    first, second, both = (torch.tensor(m) for m in ([True, False], [False, True], [True, True]))

    def nll(masked, i):
        logits = model.backbone(torch.where(masked, 4, x0))
        return torch.nn.functional.cross_entropy(logits[:, i], x0[:, i], reduction="none").double()

    with torch.no_grad():
        orders = torch.stack([nll(both, 0) + nll(second, 1), nll(both, 1) + nll(first, 0)])
        estimate = model.nll_draws(x0, target, index, 2000)
    se = estimate.std(1) / math.sqrt(2000)
    assert ((estimate.mean(1) - orders.mean(0)).abs() < 5 * se + 1e-6).all()
    mixture = -(torch.logsumexp(-orders, 0) - math.log(2))
    assert (orders.mean(0) >= mixture).all() and (orders.mean(0) > mixture + 1e-6).any()


def test_the_command_line_scores_what_it_is_asked_for(md4_run, called):
    """Another split, more draws, fewer windows; written beside the record, which is not touched."""
    record = (md4_run / "record.json").read_bytes()
    out = called(evaluate.main, f"run={md4_run}", "split=tune", "draws=3", "windows=5", "left_to_right_windows=2")
    lines = out.splitlines()
    assert len(lines) == 2 and "5 windows x 3 draws" in lines[0] and "bound (any-order NELBO)" in lines[0]
    assert "exact" in lines[1] and "2 windows x 1 draws" in lines[1]
    assert (md4_run / "likelihood-tune-best.json").is_file()
    assert (md4_run / "record.json").read_bytes() == record


def test_scores_do_not_depend_on_the_batch(md4_run, shuffle_run):
    for run in (md4_run, shuffle_run):
        model, data, _ = evaluate.load_run(run)
        one, many = (evaluate.score(model, data, model.headline, "report", None, 4, size) for size in (1, 7))
        assert one.per_window == pytest.approx(many.per_window, abs=1e-5)


def test_a_record_says_what_kind_each_number_is(md4_run, arm_run, shuffle_run):
    kinds = {md4_run: "bound (any-order NELBO)", arm_run: "exact", shuffle_run: "bound (uniform NELBO)"}
    settings = evaluate.Settings(draws=2, left_to_right_windows=2, samples=0)
    for run, kind in kinds.items():
        model, data, directory = evaluate.load_run(run)
        block = directory.read_record()["likelihood"]
        assert block["bound"]["kind"] == kind
        assert (block["left_to_right"] is not None) == (run == md4_run)
        again = evaluate.measure(model, data, settings)["likelihood"]["bound"]
        assert again["nats_per_token"] == pytest.approx(block["bound"]["nats_per_token"], rel=1e-6)


def test_a_split_without_windows_is_refused():
    model, data = shaken("md4", "data.held_out=1")
    data.source._streams["report"] = data.source._streams["report"][:3]
    with pytest.raises(UserError, match="report split"):
        evaluate.score(model, data, model.headline, "report", None, 1, 4)
