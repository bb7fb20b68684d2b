"""Scores against hand computations: the same for any order, sharding and number of processes."""

import math

import pytest
import torch
from conftest import composed

from dlm import train
from dlm.metrics import WindowNLL

F64 = torch.float64


def some_windows(count=23, draws=3):
    rng = torch.Generator().manual_seed(0)
    nats = 5 + torch.rand(count, draws, dtype=F64, generator=rng)
    tokens = torch.randint(1, 9, (count,), generator=rng)
    return nats, tokens, torch.arange(count) * 7


def scored(pieces, **kwargs):
    metric = WindowNLL(**kwargs)
    for piece in pieces:
        metric.update(*piece)
    return metric.compute()


def picked(windows, places):
    return tuple(w[places] for w in windows)


def test_order_and_batches_do_not_matter():
    """Not even in the last bit: windows are put in order before they are summed."""
    windows = some_windows()
    whole = scored([windows])
    shuffled = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    assert scored([picked(windows, part) for part in shuffled.split(5)]) == whole
    assert scored([picked(windows, torch.tensor([i])) for i in range(23)]) == whole


def test_shards_gathered_are_the_whole():
    """What torchmetrics does between processes: concatenate each state, rank by rank."""
    windows = some_windows()
    ranks = [WindowNLL(), WindowNLL()]
    for rank, metric in enumerate(ranks):
        metric.update(*picked(windows, torch.arange(rank, 23, 2)))
    whole = WindowNLL()
    for name in ("index", "mean", "variance", "tokens"):
        setattr(whole, name, [v for metric in ranks for v in getattr(metric, name)])
        assert whole._reductions[name] is not None
    whole._update_count = 1
    assert whole.compute() == scored([windows])


def test_standard_errors_by_hand():
    """Four windows of ten tokens, two draws each."""
    nats = torch.tensor([[20.0, 22.0], [30.0, 30.0], [25.0, 27.0], [24.0, 20.0]], dtype=F64)
    score = scored([(nats, torch.full((4,), 10), torch.arange(4))])
    means = [21.0, 30.0, 26.0, 22.0]
    average = sum(means) / 4
    spread = math.sqrt(sum((m - average) ** 2 for m in means) / 3 / 4) / 10
    draws = math.sqrt(2 / 2 + 0 / 2 + 2 / 2 + 8 / 2) / 40
    assert math.isclose(score.nll, average / 10, rel_tol=1e-14)
    assert math.isclose(score.se, spread, rel_tol=1e-12)
    assert math.isclose(score.se_draws, draws, rel_tol=1e-12)
    assert (score.windows, score.tokens) == (4, 40)
    assert score.per_window == pytest.approx([2.1, 3.0, 2.6, 2.2], abs=1e-14)


def test_windows_of_unequal_length_count_by_their_tokens():
    """The mean is per token, not per window; its error is that of a ratio."""
    nats, tokens = torch.tensor([[2.0], [30.0]], dtype=F64), torch.tensor([1, 10])
    score = scored([(nats, tokens, torch.arange(2))])
    assert math.isclose(score.nll, 32 / 11, rel_tol=1e-14) and score.se_draws == 0
    residual = [2 - 32 / 11, 30 - 320 / 11]
    assert math.isclose(score.se, math.sqrt(sum(r * r for r in residual) * 2) / 11, rel_tol=1e-12)


def test_sums_are_float64():
    """A sum that float32 would stop counting: 2^24 plus ones."""
    nats = torch.cat([torch.tensor([[2.0**24]]), torch.ones(1000, 1)])
    score = scored([(nats, torch.ones(1001, dtype=torch.long), torch.arange(1001))])
    assert score.nll * 1001 == 2.0**24 + 1000


def test_module_conversions_keep_the_metric_double():
    """Lightning casts modules; the score must not follow."""
    metric = torch.nn.ModuleDict({"m": WindowNLL()}).half()["m"]
    nats = torch.tensor([[1.0 + 2.0**-40]], dtype=F64)
    metric.update(nats, torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert metric.compute().nll == 1.0 + 2.0**-40


@pytest.mark.parametrize("method", ["arm", "md4", "aoarm", "dfm_mask"])
def test_a_uniform_model_has_perplexity_v(method):
    """T78: log2 V bits per token, perplexity V, no variance at all."""
    cfg = composed("data=toy", f"method={method}", "seq_len=8", "backbone.dim=16", "data.held_out=16")
    data = train.build_data(cfg)
    model = train.build_model(cfg, "none", total_steps=1).eval()
    x0 = data.windows("report")
    target, index = torch.ones_like(x0, dtype=torch.bool), torch.arange(len(x0))
    with torch.no_grad():
        score = scored([(model.nll_draws(x0, target, index, 4), target.sum(1), index)])
    assert math.isclose(math.exp(score.nll), 4, rel_tol=1e-6)
    bits, se = score.bits_per_char(1.0)
    assert math.isclose(bits, 2, rel_tol=1e-6) and se < 1e-6
    half, _ = score.bits_per_char(2.0)
    assert math.isclose(half, bits / 2)
