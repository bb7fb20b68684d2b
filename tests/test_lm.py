"""Models before any training, and the noise they are trained under: a function of (seed, step, row)."""

import math

import pytest
import torch
from conftest import METHODS, TOY, composed

from dlm import train
from dlm.errors import UserError
from dlm.lm import FlowMatchingLM, Optimisation
from dlm.noise import Stream, generator, lattice
from dlm.process import GenMaskedDiffusion, MaskedDiffusion
from dlm.process.masked import ANY_ORDER

F64 = torch.float64


def built(method, *overrides):
    cfg = composed(*TOY, f"method={method}", *overrides)
    data = train.build_data(cfg)
    return train.build_model(cfg, data.source.fingerprint, total_steps=10), data


def batch_of(data, rows, step, size=None):
    x0 = data.windows("tune")[torch.as_tensor(rows) % 8]
    return {
        "x0": x0, "target": torch.ones_like(x0, dtype=torch.bool), "step": step,
        "rows": torch.as_tensor(rows), "size": size or len(rows),
    }  # fmt: skip


def scored(model, data, draws):
    x0 = data.windows("report")
    target = torch.ones_like(x0, dtype=torch.bool)
    with torch.no_grad():
        return model.eval().nll_draws(x0, target, torch.arange(len(x0)), draws) / x0.shape[1]


# --- the start ----------------------------------------------------------------------------------------------

MODELS = {method: built(method)[0] for method in METHODS}
WITHOUT_NOISE = [m for m, model in MODELS.items() if model.bound_kind in ("exact", ANY_ORDER)]
PATHS = [m for m, model in MODELS.items() if isinstance(model, FlowMatchingLM) and m not in WITHOUT_NOISE]
ON_AVERAGE = sorted(set(METHODS) - {*WITHOUT_NOISE, *PATHS, "sedd_uniform"})


@pytest.mark.parametrize("method", WITHOUT_NOISE)
def test_the_bound_starts_at_ln_v_exactly(method):
    """A uniform network costs ln V at every mask, so these estimators have no variance there."""
    model, data = built(method)
    nats = scored(model, data, 64)
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(4)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ON_AVERAGE)
def test_the_bound_starts_at_ln_v_on_average(method):
    """Within 5 standard errors over windows, and the few thousandths of a nat that the cut at t_min costs."""
    model, data = built(method, "data.held_out=64")
    windows = scored(model, data, 512).mean(1)
    se = windows.std() / math.sqrt(len(windows))
    assert se < 0.03
    assert abs(windows.mean() - math.log(4)) < 5 * se + 0.01, (windows.mean(), se)


def test_no_method_is_left_out():
    """A flow from a source of tokens means the posterior, a score of one the noise itself: a network that knows
    nothing is far from either at small t."""
    assert {"md4", "aoarm", "arm", "dfm_mask"} <= set(WITHOUT_NOISE) and {"shuffle", "genmd4"} <= set(ON_AVERAGE)
    assert set(PATHS) == {"dfm_uniform", "dfm_unigram"}


@pytest.mark.parametrize("method", METHODS)
def test_the_training_loss_starts_at_ln_v(method):
    """The mean over 8 large batches within 5 standard errors; cross-entropies exactly."""
    model, data = built(method)
    with torch.no_grad():
        steps = [model.training_step(batch_of(data, list(range(256)), step), 0) for step in range(8)]
    loss, nelbo = (torch.stack([s[key] for s in steps]).double() for key in ("loss", "nelbo"))
    if method == "sedd_uniform":
        return
    if method in PATHS:
        torch.testing.assert_close(loss, torch.full_like(loss, math.log(4)), rtol=0, atol=1e-6)
        return  # its path bound is looser, by up to a nat
    se = nelbo.std() / math.sqrt(len(nelbo))
    assert abs(nelbo.mean() - math.log(4)) < 5 * se + 0.02, (nelbo.mean(), se)
    if method == "dfm_mask":  # half of the targets are masked: half of ln V
        assert abs(loss.mean() - math.log(4) / 2) < 0.02
    elif method == "arm_mir":  # 0.4 of the disturbed sequence's loss beside the clean one's
        torch.testing.assert_close(loss, 1.4 * nelbo, rtol=1e-6, atol=0)
    elif method == "d3pm_absorb":  # and a share of cross-entropy beside it
        assert (loss > nelbo).all()
    elif method == "mdm_focal":  # a (1 - p) (T + 2) / 3 times ln V: the mean of i (T - i + 1) over levels
        assert abs(loss.mean() - 0.25 * 0.75 * 22 / 3 * math.log(4)) < 5 * loss.std() / math.sqrt(len(loss)) + 0.02
    elif not method.startswith("genmd4"):  # what is differentiated is the bound itself
        torch.testing.assert_close(loss, nelbo, rtol=1e-6, atol=0)


def test_the_same_seed_gives_every_method_the_same_network():
    reference = dict(built("arm")[0].backbone.named_parameters())
    for method in METHODS:
        ours = dict(built(method)[0].backbone.named_parameters())
        assert all(torch.equal(ours[name], p) for name, p in reference.items()), method
    other = dict(built("arm", "seed=1")[0].backbone.named_parameters())
    assert not torch.equal(other["embed.weight"], reference["embed.weight"])


# --- noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["md4", "genmd4", "shuffle"])
@pytest.mark.parametrize("split", [(8,), (4, 4), (2, 2, 2, 2), (1, 7)], ids=str)
def test_noise_does_not_depend_on_how_rows_are_divided(method, split):
    """Two processes of four rows draw what one of eight draws: times and corruption, to the bit."""
    model, data = built(method)
    whole = model.training_noise(batch_of(data, list(range(8)), step=5))
    parts = [model.training_noise(batch_of(data, part.tolist(), 5, 8)) for part in torch.arange(8).split(split)]
    assert torch.equal(torch.cat([times for times, _ in parts]), whole[0])
    assert torch.equal(torch.cat([noise for _, noise in parts], 1), whole[1])
    assert whole[1].shape == (2 if method == "genmd4" else 1, 8, 8)


@pytest.mark.parametrize("method", ["md4", "genmd4"])
def test_noise_differs_wherever_it_should(method):
    """Between rows, steps, seeds and draws; and no two steps share a row's noise under another number."""
    model, data = built(method)
    blocks = []
    for seed in (0, 1):
        model.seed = seed
        for step in range(3):
            times, noise = model.training_noise(batch_of(data, list(range(4)), step))
            blocks += [row for draw in noise for row in draw]
            assert len({round(t, 12) for t in times.tolist()}) == 4
    flat = torch.stack(blocks)
    assert len(flat.unique(dim=0)) == len(flat)
    assert flat.min() >= 0 and flat.max() < 1 and abs(flat.mean() - 0.5) < 0.1


def test_times_are_a_rotated_lattice():
    """Evenly spread over the global batch, each entry uniform; not tied to the row from step to step."""
    places = lattice(0.93, range(8), 8)
    torch.testing.assert_close(places.sort().values.diff(), torch.full((7,), 1 / 8, dtype=F64))
    assert places.min() >= 0 and places.max() < 1
    model, data = built("md4")
    first = torch.stack([model.training_noise(batch_of(data, [0], step, 4))[0][0] for step in range(400)])
    assert abs(first.mean() - 0.5) < 5 / math.sqrt(12 * 400)
    assert first.min() < 0.05 and first.max() > 0.95


@pytest.mark.parametrize("size", [49, 98, 1024])
def test_a_lattice_has_one_point_per_row_however_it_is_divided(size):
    """T73: `size` rows over 4 processes x 3 micro-batches are frac(U + g / size), each row once; a fixed slot is
    uniform over steps (Kolmogorov-Smirnov, 5 % level of 1.36 / sqrt(n) widened to 1.95, seed 0)."""
    offset = 0.6180339887
    shares = [[g for g in range(size) if g % 12 == part] for part in range(12)]
    divided = {g: t.item() for share in shares for g, t in zip(share, lattice(offset, share, size), strict=True)}
    assert sorted(divided) == list(range(size))
    together = lattice(offset, range(size), size)
    expected = (offset + torch.arange(size, dtype=F64) / size) % 1
    torch.testing.assert_close(together, expected, atol=1e-12, rtol=0)
    assert [divided[g] for g in range(size)] == together.tolist()
    steps = 1000
    slot = torch.tensor(
        [lattice(generator(0, Stream.TIME, n).random(), [size // 2], size).item() for n in range(steps)]
    )
    gap = (slot.sort().values - (torch.arange(steps) + 0.5) / steps).abs().max()
    assert gap < 1.95 / math.sqrt(steps)


def masks(model, batch):
    places, noise = model.training_noise(batch)
    process = model.process
    return process.corrupt(batch["x0"], process.times(places), noise[0]) == process.mask_id


def test_methods_are_trained_on_identical_masks():
    """MD4, masked flow matching and GenMD4 at its start destroy the same tokens at the same (seed, step)."""
    drawn = {}
    for method in ("md4", "dfm_mask", "genmd4"):
        model, data = built(method)
        if isinstance(model.process, GenMaskedDiffusion):
            model.process.t_min = 0.0  # otherwise its times are rescaled by a thousandth
        drawn[method] = torch.cat([masks(model, batch_of(data, list(range(4)), step)) for step in range(20)])
    assert torch.equal(drawn["md4"], drawn["dfm_mask"])
    assert (drawn["md4"] != drawn["genmd4"]).float().mean() < 1e-3  # w = softplus(raw) is 1 to a rounding
    assert 0.3 < drawn["md4"].float().mean() < 0.7


def test_evaluation_noise_is_keyed_by_the_window():
    """Not by its place in a batch, the number of the batch, the checkpoint or the training seed."""
    for method in ("md4", "shuffle", "genmd4", "dfm_uniform"):
        model, data = built(method)
        with torch.no_grad():
            for p in model.backbone.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        x0, index = data.windows("report"), torch.arange(8)
        target = torch.ones_like(x0, dtype=torch.bool)
        with torch.no_grad():
            model.eval()
            whole = model.nll_draws(x0, target, index, 3)
            some = torch.tensor([6, 2])
            picked = model.nll_draws(x0[some], target[some], index[some], 3)
            model.seed += 1
            other_run = model.nll_draws(x0, target, index, 3)
        torch.testing.assert_close(picked, whole[some], rtol=1e-5, atol=1e-5)
        assert torch.equal(other_run, whole)
        assert whole.std(1).min() > 0, method


def test_dropout_has_a_stream_of_its_own():
    """The same step drops the same units whatever was drawn before; another step drops others."""
    model, data = built("arm", "backbone.dropout=0.5")
    with torch.no_grad():
        model.backbone.head.weight.normal_()
    model.train()
    batch = batch_of(data, list(range(4)), step=3)
    first = model.training_step(batch, 0)["loss"].item()
    torch.rand(100)
    assert model.training_step(batch, 0)["loss"].item() == first
    assert model.training_step(batch | {"step": 4}, 0)["loss"].item() != first


# --- optimiser ----------------------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    """Warm-up, plateau, and 1 - sqrt over the last share; a constant rate if there is no cool-down."""
    optim = Optimisation(warmup_steps=4, cooldown=0.25)
    factors = [optim.factor(step, 100) for step in (0, 1, 3, 4, 74, 75, 99)]
    assert factors == pytest.approx([0.25, 0.5, 1, 1, 1, 1, 1 - math.sqrt(24 / 25)])
    assert optim.factor(100, 100) == 0
    assert Optimisation(warmup_steps=0).factor(0, 10) == Optimisation(warmup_steps=0).factor(10**6, 10) == 1


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "override", "said"),
    [
        ("arm", "backbone.causal=false", "causal=true"),
        ("md4", "backbone.causal=true", "causal=false"),
        ("shuffle", "backbone.time=none", "time=additive"),
        ("genmd4", "backbone.time=none", "time=additive"),
        ("md4", "method._target_=dlm.lm.UniformDiffusionLM", "not MaskedDiffusion"),
        ("md4", "+method.predict=x0", "predict"),
    ],
)
def test_contradictions_between_method_and_backbone_are_refused(method, override, said):
    with pytest.raises((UserError, *train.config.CONFIG_ERRORS)) as error:
        built(method, override)
    assert said in train.config.one_line(error.value)


def test_a_checkpoint_of_something_else_is_refused():
    model, _ = built("md4")
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    for key, other in (("vocab_size", 5), ("method", "AutoregressiveLM"), ("predicts", "x"), ("data", "0" * 16)):
        with pytest.raises(UserError, match=f"{key}={other}"):
            model.on_load_checkpoint({"identity": checkpoint["identity"] | {key: other}})


def test_losses_count_only_targets():
    """Given tokens neither cost nor are destroyed, and the mean is over targets."""
    for method in METHODS:
        model, data = built(method)
        batch = batch_of(data, list(range(64)), step=0)
        half = batch["target"].clone()
        half[:, :4] = False
        with torch.no_grad():
            bound = model.bound(batch["x0"], half, *model.training_noise(batch))
            loss = model.training_step(batch | {"target": half}, 0)["nelbo"]
        assert (bound.nelbo[:, :4] == 0).all(), method
        torch.testing.assert_close(loss, bound.nelbo.sum() / half.sum())


def test_masks_at_the_ends_of_time():
    """t = t_max masks everything, so the last place of the lattice is the hardest question."""
    process = MaskedDiffusion(4)
    t = process.times(torch.tensor([0.0, 1 - 2.0**-53], dtype=F64))
    assert t[0] == 1 and 0 < t[1] < 1e-15


@pytest.mark.parametrize("method", ["arm", "md4", "aoarm", "genmd4", "shuffle", "dfm_mask", "dfm_uniform"])
def test_scored_counts_the_positions_that_carried_a_loss(method):
    """Every target where the network answers for all, the masked ones in masked processes: also in GenMD4, whose
    reconstruction term touches every position and whose two corruptions count twice."""
    model, data = built(method)
    batch = batch_of(data, range(4), 0, 4)
    found = int(model.training_step(batch, 0)["scored"])
    targets = batch["target"].numel()
    if method in ("arm", "shuffle", "dfm_uniform"):
        assert found == targets
    else:
        draws = 2 if method == "genmd4" else 1
        assert 0 < found < draws * targets
    if method in ("md4", "dfm_mask"):
        assert found == int(masks(model, batch).sum())
