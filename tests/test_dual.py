"""The dual objective: its two parts by themselves, and one network that answers as both."""

import itertools
import math

import pytest
import torch
from test_augment import shaken
from test_lm import batch_of, built

from dlm import config, evaluate, likelihood
from dlm.errors import UserError

F64 = torch.float64


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_loss_is_that_of_its_two_parts(share):
    """Causal rows pay what the autoregressive model pays, the others what MD4 pays at the stretched times: values
    and gradients, by models that have one part alone."""
    model, data = shaken("dual", f"method.causal_share={share}")
    arm, md4 = shaken("arm")[0], shaken("md4")[0]
    batch = batch_of(data, list(range(8)), 3)
    batch["target"][:, :2] = False
    places, noise = model.training_noise(batch)
    causal = places < share
    assert int(causal.sum()) == round(8 * share)
    x0, target = batch["x0"], batch["target"]
    whole = model.bound(x0, target, places, noise)
    expected, total = torch.zeros(x0.shape, dtype=F64), torch.zeros(())
    if causal.any():
        part = arm.bound(x0[causal], target[causal], places[causal], noise[:, causal])
        expected[causal], total = part.nelbo.detach().double(), part.objective.sum()
    if not causal.all():
        times = (places[~causal] - share) / (1 - share)
        part = md4.bound(x0[~causal], target[~causal], times, noise[:, ~causal])
        expected[~causal], total = part.nelbo.detach().double(), total + part.objective.sum()
    torch.testing.assert_close(whole.nelbo.detach().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.objective.sum().double(), total.double(), rtol=1e-5, atol=1e-6)
    whole.objective.sum().backward()
    total.backward()
    for name, p in model.backbone.named_parameters():
        parts = [dict(m.backbone.named_parameters())[name].grad for m in (arm, md4)]
        both = sum(g for g in parts if g is not None)
        torch.testing.assert_close(p.grad, both, rtol=1e-4, atol=1e-5, msg=name)
    nll = expected[causal]
    assert (nll[:, 2:] > 0).all() and (expected[:, :2] == 0).all()


def test_masked_times_are_evenly_spread_over_all_of_time():
    """The rest of the lattice, stretched: 4 of 8 rows, a quarter apart, and uniform over steps to 5 standard
    errors of 400 means."""
    model, data = shaken("dual")
    means = []
    for step in range(400):
        places, _ = model.training_noise(batch_of(data, list(range(8)), step))
        times = ((places[~model.causal_rows(places)] - 0.5) / 0.5).sort().values
        assert len(times) == 4 and times.min() >= 0 and times.max() < 1
        torch.testing.assert_close(times.diff(), torch.full((3,), 0.25, dtype=F64))
        means.append(times[0])
    assert abs(torch.stack(means).mean() - 0.125) < 5 * 0.25 / math.sqrt(12 * 400)


def test_one_network_answers_as_both():
    """Its causal likelihood is an autoregressive model's with the same weights, its bound and its chain rule
    MD4's; both exact ones are laws: they sum to one over 16 strings."""
    model, data = shaken("dual")
    arm, md4 = (shaken(m)[0].eval() for m in ("arm", "md4"))
    x0, index = data.windows("report"), torch.arange(8)
    target = torch.ones_like(x0, dtype=torch.bool)
    kinds = model.eval().likelihoods()
    assert model.bound_kind == "exact" and next(iter(kinds)) == "causal"
    assert set(kinds) == {"causal", *md4.likelihoods()}
    with torch.no_grad():
        assert torch.equal(model.nll_draws(x0, target, index, 1), arm.nll_draws(x0, target, index, 1))
        for name, kind in md4.likelihoods().items():
            ours, theirs = (k.draws(model.backbone, x0, target, index, 3, 0) for k in (kinds[name], kind))
            assert torch.equal(ours, theirs), name
        strings = torch.tensor(list(itertools.product(range(4), repeat=2)))
        every, index = torch.ones_like(strings, dtype=torch.bool), torch.arange(16)
        laws = [
            kinds[name].draws(model.backbone, strings, every, index, 1, 0)[:, 0] for name in ("causal", "margin")
        ]
    assert all(abs((-nll).exp().sum() - 1) < 1e-5 for nll in laws) and not torch.equal(*laws)


def test_it_samples_as_both():
    model, _ = shaken("dual")
    arm, md4 = (shaken(m)[0].eval() for m in ("arm", "md4"))
    model.eval()
    assert list(model.samplers) == ["autoregressive", *md4.samplers]
    given = torch.zeros(4, 8, dtype=torch.long)
    free = torch.ones_like(given, dtype=torch.bool)
    for name, other in (("autoregressive", arm), ("ordered", md4)):
        ours, theirs = (m.sample(given, free, torch.Generator().manual_seed(0), name).x for m in (model, other))
        assert torch.equal(ours, theirs), name


def test_a_temperature_and_a_counter_reach_the_causal_network():
    """Wrapped as the scorer wraps them: divided logits, and one row per sequence."""
    model, data = shaken("dual")
    x0 = data.windows("report")
    target = torch.ones_like(x0, dtype=torch.bool)
    counted = likelihood.Counted(likelihood.tempered(model.eval().backbone, 2.0))
    with torch.no_grad():
        nll = model.likelihoods()["causal"].draws(counted, x0, target, torch.arange(8), 1, 0)[:, 0]
        before = torch.cat([torch.full((8, 1), 4), x0[:, :-1]], 1)
        logits = model.backbone(before, causal=True) / 2
        by_hand = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x0, reduction="none").sum(1)
    torch.testing.assert_close(nll, by_hand.double(), rtol=1e-5, atol=1e-5)
    assert counted.rows == 8


def test_its_record_block_names_both():
    model, data = shaken("dual")
    settings = evaluate.Settings(draws=2, left_to_right_windows=2, samples=1)
    block = evaluate.measure(model, data, settings)["likelihood"]
    assert block["bound"]["kind"] == "exact" and list(block["extra"]) == ["any-order NELBO"]


def test_flops_are_counted_by_the_shares():
    model, _ = built("dual", "method.causal_share=0.25")
    full, half = (model.backbone.flops_per_token(8, causal) for causal in (False, True))
    assert model.flops_per_token(8) == pytest.approx(0.25 * half + 0.75 * full)
    assert model.flops_per_token(8, causal=False) == full > model.flops_per_token(8)
    mir, arm = built("arm_mir")[0], built("arm")[0]
    assert mir.flops_per_token(8) == 2 * arm.flops_per_token(8) == 2 * arm.backbone.flops_per_token(8)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.causal_share=1.5", "causal_share=1.5"),
        ("backbone.causal=true", "causal=false"),
        ("backbone.time=additive", "time=none"),
        ("+method.process.steps=16", "without steps"),
    ],
)
def test_what_makes_no_sense_is_refused(override, said):
    with pytest.raises((UserError, *config.CONFIG_ERRORS)) as error:
        built("dual", override)
    assert said in config.one_line(error.value)
