"""Training variants of the autoregressive model: what is read is disturbed, what is scored never is."""

import itertools
import math
from typing import Any

import pytest
import torch
from conftest import METHODS
from test_backbone import network, tokens
from test_lm import batch_of, built
from torch.nn import functional as F

from dlm import config, likelihood
from dlm.attention import rotations, seen_keys
from dlm.augment import CLOSENESS, MaskedInputs, Orders, Permutation, ReplacedInputs
from dlm.backbone import Transformer
from dlm.errors import UserError
from dlm.likelihood import Counted, tempered
from dlm.process import MaskedDiffusion

F64 = torch.float64
V, L = 3, 3
IN_READING_ORDER = ["arm_permuted", "method.permutation.closeness=identity"]
STRINGS = torch.tensor(list(itertools.product(range(V), repeat=L)))
EVERY = torch.ones_like(STRINGS, dtype=torch.bool)


def toy(seed=0, **options):
    """A causal network over V symbols and L positions, in float64 and far from uniform."""
    torch.manual_seed(seed)
    net = Transformer(V, max_len=L, dim=16, depth=2, heads=2, causal=True, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn_like(p))
    net.rope = rotations(L + 1, 8).double()
    return net.double().eval()


def shaken(method, *overrides) -> tuple[Any, Any]:
    model, data = built(method, *overrides)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model, data


# --- inputs -------------------------------------------------------------------------------------------------


def noise_of(rows, length, draws=2, seed=0):
    return torch.rand(draws, rows, length, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_inputs_are_masked_at_their_rate():
    """5 standard errors of 400 000 draws, seed 0; with `spread` the rate is p times the sequence's own place."""
    x0, noise, places = torch.zeros(4000, 100, dtype=torch.long), noise_of(4000, 100), torch.arange(4000) / 4000
    hidden = MaskedInputs(0.3)(x0, places, noise, 7) == 7
    assert abs(hidden.double().mean() - 0.3) < 5 * math.sqrt(0.21 / 400_000)
    spread = (MaskedInputs(0.5, spread=True)(x0, places, noise, 7) == 7).double().mean(1).view(40, 100).mean(1)
    wanted = 0.5 * places.double().view(40, 100).mean(1)
    assert ((spread - wanted).abs() < 5 * (wanted * (1 - wanted) / 10_000).sqrt()).all()
    assert (MaskedInputs(0.0)(x0, places, noise, 7) == 0).all() and (
        MaskedInputs(1.0)(x0, places, noise, 7) == 7
    ).all()


def test_inputs_are_replaced_by_uniform_tokens():
    """A share p of V tokens, each equally often, the old one too: p (V - 1) / V change."""
    x0 = torch.full((4000, 100), 2)
    read = ReplacedInputs(0.2)(x0, torch.zeros(4000), noise_of(4000, 100), 5)
    counts = read.flatten().bincount(minlength=5).double() / x0.numel()
    assert len(counts) == 5
    for token, share in enumerate(counts):
        wanted = 0.04 + 0.8 * (token == 2)
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / x0.numel())


@pytest.mark.parametrize("method", ["arm_masked_inputs", "arm_replaced_inputs", "arm_mir"])
def test_targets_are_clean_and_the_start_is_never_disturbed(method, monkeypatch):
    """What the network is asked for is x0, what it reads starts with the start symbol, given tokens stay; what it
    reads differs from x0 at the positions that the noise says, by hand."""
    model, data = shaken(method, "method.inputs.p=0.5")
    batch = batch_of(data, list(range(8)), 3)
    batch["target"][:, :2] = False
    places, noise = model.training_noise(batch)
    assert noise.shape == (4, 8, 8)
    asked = []
    original = type(model.backbone).cross_entropy

    def watched(self, x, t, x0, where, **how):
        asked.append((x, x0, where))
        return original(self, x, t, x0, where, **how)

    monkeypatch.setattr(type(model.backbone), "cross_entropy", watched)
    model.bound(batch["x0"], batch["target"], places, noise)
    assert len(asked) == model.network_passes == (2 if method == "arm_mir" else 1)
    rate = 0.5 * places[:, None] if method == "arm_mir" else 0.5
    where = (noise[0] < rate) & batch["target"]
    other = (noise[1] * 4).long() if method == "arm_replaced_inputs" else 4
    wanted = torch.where(where, other, batch["x0"])
    for x, x0, scored in asked:
        assert torch.equal(x0, batch["x0"]) and torch.equal(scored, batch["target"]) and (x[:, 0] == 4).all()
    assert torch.equal(asked[0][0][:, 1:], wanted[:, :-1]) and where.any()
    if method == "arm_mir":
        assert torch.equal(asked[1][0][:, 1:], batch["x0"][:, :-1])


def test_the_auxiliary_loss_is_added_to_the_clean_one():
    """loss = NLL(clean) + w NLL(disturbed), each by a model that has that loss alone; `nelbo` is the clean one."""
    model, data = shaken("arm_mir")
    batch = batch_of(data, list(range(8)), 3)
    both = model.training_step(batch, 0)
    model.auxiliary = None
    disturbed = model.training_step(batch, 0)
    clean = shaken("arm")[0].training_step(batch, 0)
    torch.testing.assert_close(both["loss"], clean["loss"] + 0.4 * disturbed["loss"])
    torch.testing.assert_close(both["nelbo"], clean["nelbo"])
    assert disturbed["nelbo"] != clean["nelbo"] and both["scored"] == 2 * clean["scored"]


# --- orders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(L))), ids=str)
def test_the_chain_rule_of_every_order_sums_to_one(order):
    """sum_x p(x | sigma) = 1 over all 27 strings, to 1e-12, and orders disagree."""
    net = toy()
    nll = likelihood.autoregressive_nll(net, STRINGS, EVERY, V, order=torch.tensor(order).expand(27, L)).sum(1)
    assert abs((-nll).exp().sum() - 1) < 1e-12
    raster = likelihood.autoregressive_nll(net, STRINGS, EVERY, V).sum(1)
    if order == tuple(range(L)):
        assert torch.equal(nll, raster)
    else:
        assert (nll - raster).abs().max() > 1e-3


def test_an_order_asks_for_one_token_after_another():
    """-log p of each position by hand: a slot reads the symbol revealed before it and scores the next."""
    net, order = toy(), torch.tensor([[2, 0, 1], [1, 2, 0]])
    x0 = torch.tensor([[0, 1, 2], [2, 1, 0]])
    got = likelihood.autoregressive_nll(net, x0, torch.ones_like(x0, dtype=torch.bool), V, order=order)
    for row, sigma in enumerate(order.tolist()):
        read = torch.tensor([[V, *(x0[row, i].item() for i in sigma[:-1])]])
        places = torch.tensor([[[0, sigma[0]], [sigma[0] + 1, sigma[1]], [sigma[1] + 1, sigma[2]]]])
        law = net(read, positions=places).log_softmax(-1)[0]
        for j, i in enumerate(sigma):
            torch.testing.assert_close(got[row, i], -law[j, x0[row, i]])


def test_given_tokens_are_read_and_not_scored_in_any_order():
    net, order = toy(), torch.tensor([2, 0, 1]).expand(27, L)
    target = EVERY.clone()
    target[:, 1] = False
    some = likelihood.autoregressive_nll(net, STRINGS, target, V, order=order)
    every = likelihood.autoregressive_nll(net, STRINGS, EVERY, V, order=order)
    assert torch.equal(some, every.masked_fill(~target, 0.0))


def test_the_mixture_of_orders_is_a_likelihood():
    """It sums to one, lies between the best and the worst order, and weighs a reversed share; by hand."""
    net, orders = toy(), Orders(4, reversed=0.4)
    listed, share = orders.listed(L)
    assert torch.equal(listed[0], torch.arange(L)) and torch.equal(listed[-1], torch.arange(L).flip(0))
    torch.testing.assert_close(share, torch.tensor([0.15] * 4 + [0.4], dtype=F64))
    kind = likelihood.autoregressive_kinds(V, orders.listed)["order_mixture"]
    index = torch.arange(27)
    p = (-kind.draws(Counted(tempered(net, 2.0)), STRINGS, EVERY, index, 1, 0)[:, 0]).exp()
    assert abs(p.sum() - 1) < 1e-12
    one = kind.draws(net, STRINGS, EVERY, index, 1, 0)[:, 0]
    each = torch.stack(
        [likelihood.autoregressive_nll(net, STRINGS, EVERY, V, order=o.expand(27, L)) for o in listed]
    )
    torch.testing.assert_close((-one).exp(), (share[:, None] * (-each.sum(2)).exp()).sum(0))


def test_orders_are_drawn_as_often_as_they_should():
    """K = 4 with a reversed share of 0.2: 5 standard errors of 20 000 rows; the fixed list has no duplicates here
    and starts from the left; "all" is uniform on the 6 permutations of three."""
    noise = noise_of(20_000, 8)
    orders = Orders(4, reversed=0.2)
    listed, share = orders.listed(8)
    drawn = orders.draw(noise)
    assert len(listed) == 5 and len(listed.unique(dim=0)) == 5 and (listed.sort(1).values == torch.arange(8)).all()
    for order, wanted in zip(listed, share.tolist(), strict=True):
        seen = (drawn == order).all(1).double().mean()
        assert abs(seen - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 20_000)
    every = Orders("all").draw(noise_of(20_000, 3))
    _, counts = every.unique(dim=0, return_counts=True)
    assert len(counts) == 6 and ((counts / 20_000 - 1 / 6).abs() < 5 * math.sqrt(5 / 36 / 20_000)).all()
    backwards = Orders(reversed=1.0).draw(noise)
    assert torch.equal(backwards, torch.arange(8).flip(0).expand(20_000, 8))
    assert torch.equal(Orders(16).listed(8)[0][:4], Orders(4).listed(8)[0]), "more orders keep the fewer"


def test_one_order_is_the_autoregressive_model_to_the_bit():
    """Losses and gradients of three steps of K = 1, and of inputs disturbed never, are those of arm."""

    def outcome(method, *overrides):
        model, data = shaken(method, *overrides)
        found = []
        for step in range(3):
            out = model.training_step(batch_of(data, list(range(8)), step), 0)
            out["loss"].backward()
            found += [out["loss"], out["nelbo"], *(p.grad.clone() for p in model.parameters())]
        return found

    reference = outcome("arm")
    for other in (
        ["arm_orders", "method.orders.count=1"],
        ["arm_masked_inputs", "method.inputs.p=0"],
        ["arm_replaced_inputs", "method.inputs.p=0"],
        ["arm_reversed", "method.orders.reversed=0"],
        IN_READING_ORDER,
    ):
        assert all(torch.equal(a, b) for a, b in zip(reference, outcome(*other), strict=True)), other


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("arm_")])
def test_a_row_of_noise_is_a_function_of_its_address(method):
    """The loss of every row, whichever process it is trained on; another step disturbs otherwise."""
    model, data = shaken(method)
    model.eval()  # attention is dropped per micro-batch, as dropout is
    whole = batch_of(data, list(range(8)), 5)
    target = whole["target"]
    together = model.bound(whole["x0"], target, *model.training_noise(whole)).nelbo
    for rows in ([0, 3], [1, 2, 4, 5, 6, 7]):
        part = batch_of(data, rows, 5, 8)
        alone = model.bound(part["x0"], part["target"], *model.training_noise(part)).nelbo
        torch.testing.assert_close(alone, together[rows], rtol=1e-5, atol=1e-5)
    later = model.bound(whole["x0"], target, *model.training_noise(whole | {"step": 6})).nelbo
    if model.auxiliary is None and model.noise_draws > 1:
        assert (later - together).abs().max() > 1e-3
    else:
        assert torch.equal(later, together)


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("arm_")])
def test_held_out_scores_never_see_the_noise(method):
    """The same network scores and samples as a plain autoregressive one, to the bit; a permutation is no noise."""
    model, data = shaken(*(IN_READING_ORDER if method == "arm_permuted" else [method]))
    plain, _ = shaken("arm")
    x0 = data.windows("report")
    target, index = torch.ones_like(x0, dtype=torch.bool), torch.arange(len(x0))
    with torch.no_grad():
        scores = [m.eval().nll_draws(x0, target, index, 1) for m in (model, plain)]
    samples = [m.sample(x0, target, torch.Generator().manual_seed(0)).x for m in (model, plain)]
    assert torch.equal(*scores) and torch.equal(*samples)
    assert model.bound_kind == "exact"
    assert ("order_mixture" in model.likelihoods()) == (method in ("arm_orders", "arm_reversed"))


# --- permuted text ------------------------------------------------------------------------------------------


def test_closeness_is_a_number_of_transpositions():
    """Of L = 128 and the published 2,048: sqrt(L) or L/10 swaps, each of which moves two positions at most and
    changes the sign; a seed's orders are the same for ever, another seed's others; the fewer are the first."""

    def odd(order):
        seen, swaps = set(), 0
        for start in range(len(order)):
            at, length = start, 0
            while at not in seen:
                seen.add(at)
                at, length = int(order[at]), length + 1
            swaps += max(length - 1, 0)
        return swaps

    for length, much_closer, closer in ((128, 11, 13), (2048, 45, 205)):
        for closeness, swaps in (("identity", 0), ("much_closer", much_closer), ("closer", closer)):
            for seed in range(3):
                order = Permutation(closeness, seed).order(length)
                moved = int((order != torch.arange(length)).sum())
                assert torch.equal(order.sort().values, torch.arange(length))
                assert moved <= 2 * swaps and odd(order) <= swaps and odd(order) % 2 == swaps % 2
                assert moved > swaps / 2 or swaps == 0
    orders = [Permutation(closeness, seed).order(128) for closeness in CLOSENESS[1:] for seed in range(3)]
    assert len(torch.stack(orders).unique(dim=0)) == 9 and Permutation("closer").order(128) is orders[3]
    after = Permutation("closer", 1).order(128)[Permutation("much_closer", 1).order(128).argsort()]
    assert int((after != torch.arange(128)).sum()) <= 4, "two swaps lie between them"


def test_a_uniform_permutation_is_uniform():
    """All 6 orders of three, 6,000 seeds: chi-square with 5 degrees below 30; one swap of three is a swap."""
    drawn = torch.stack([Permutation("uniform", seed).order(3) for seed in range(6000)])
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) == 6 and float(((counts - 1000) ** 2 / 1000).sum()) < 30
    swaps = torch.stack([Permutation("much_closer", seed).order(2) for seed in range(9)])
    assert (swaps == torch.tensor([1, 0])).all()
    assert Permutation("closer").order(1).tolist() == [0]


@pytest.mark.parametrize("closeness", ["much_closer", "uniform"])
def test_permuted_text_has_an_exact_likelihood(closeness):
    """sum_x p(x) = 1 over all 27 strings to 1e-12, and by hand: the plain network on x[pi]. Kinds of both sorts of
    model name their order."""
    net = toy(positions="learned")
    chosen = next(p for p in (Permutation(closeness, seed) for seed in range(99)) if p.order(L)[0] != 0)
    kind = likelihood.autoregressive_kinds(V, permutation=chosen)["permuted"]
    index = torch.arange(27)
    nll = kind.draws(net, STRINGS, EVERY, index, 1, 0)[:, 0]
    assert abs((-nll).exp().sum() - 1) < 1e-12
    read = STRINGS[:, chosen.order(L)]
    law = net(torch.cat([torch.full((27, 1), V), read[:, :-1]], 1)).log_softmax(-1)
    torch.testing.assert_close(nll, -law.gather(-1, read[..., None])[..., 0].sum(1))
    assert kind.bound == "exact"
    assert kind.settings == {"closeness": closeness, "permutation_seed": chosen.seed}


def test_a_mask_predictor_in_a_fixed_order_has_an_exact_likelihood():
    """sum_x p(x) = 1 to 1e-12 in any order, reading order is left_to_right to the bit, and one step by hand."""
    torch.manual_seed(3)
    net = toy(positions="both")
    net.causal = False
    process = MaskedDiffusion(V)
    index, times = torch.arange(27), torch.linspace(0, 1, 3, dtype=F64)

    def scored(permutation):
        found = likelihood.kinds(process, {}, times, permutation=permutation)
        return {name: found[name].draws(net, STRINGS, EVERY, index, 1, 0)[:, 0] for name in found if name in NAMES}

    NAMES = {"left_to_right", "permuted"}
    assert set(scored(None)) == {"left_to_right"}
    for seed in range(4):
        permutation = Permutation("uniform", seed)
        nll = scored(permutation)["permuted"]
        assert abs((-nll).exp().sum() - 1) < 1e-12
        by_hand, x = torch.zeros(27, dtype=F64), torch.full_like(STRINGS, V)
        for i in permutation.order(L).tolist():
            by_hand -= net(x).log_softmax(-1)[:, i].gather(-1, STRINGS[:, i, None])[:, 0]
            x[:, i] = STRINGS[:, i]
        torch.testing.assert_close(nll, by_hand)
    same = scored(Permutation("identity"))
    assert torch.equal(same["permuted"], same["left_to_right"])


def test_a_model_of_permuted_text_trains_scores_and_samples_in_its_order():
    """The loss of each position is what it costs where it is read; samples follow the model's own law: two tokens,
    16 strings, 40,000 samples, chi-square with 15 degrees below 55."""
    model, data = shaken("arm_permuted", "method.permutation.closeness=uniform", "method.permutation.seed=2")
    plain, _ = shaken("arm")
    order = model.permutation.order(8)
    assert (order != torch.arange(8)).any() and list(model.likelihoods()) == ["permuted"]
    batch = batch_of(data, list(range(8)), 0)
    noise = model.training_noise(batch)
    ours = model.bound(batch["x0"], batch["target"], *noise)
    theirs = plain.bound(batch["x0"][:, order], batch["target"], *noise)
    assert torch.equal(ours.nelbo[:, order], theirs.nelbo) and torch.equal(ours.objective, theirs.objective)
    with torch.no_grad():
        nll = model.nll_draws(batch["x0"], batch["target"], torch.arange(8), 1)
    torch.testing.assert_close(nll[:, 0], ours.nelbo.double().sum(1), rtol=1e-5, atol=1e-5)

    two, _ = shaken("arm_permuted", "method.permutation.closeness=much_closer", "seq_len=2", "data.held_out=64")
    assert two.permutation.order(2).tolist() == [1, 0]
    strings = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    with torch.no_grad():
        law = (
            -two.nll_draws(strings, torch.ones_like(strings, dtype=torch.bool), torch.arange(16), 1)[:, 0]
        ).exp()
    free = torch.ones(40_000, 2, dtype=torch.bool)
    sample = two.sample(torch.zeros(40_000, 2, dtype=torch.long), free, torch.Generator().manual_seed(0))
    seen = (4 * sample.x[:, 0] + sample.x[:, 1]).bincount(minlength=16).double()
    assert float(((seen - 40_000 * law) ** 2 / (40_000 * law)).sum()) < 55
    assert (sample.fixed_at == torch.tensor([1, 0])).all()


def test_a_prompt_that_is_read_first_is_kept_and_any_other_refused():
    model, data = shaken("arm_permuted", "method.permutation.closeness=uniform")
    order = model.permutation.order(8)
    given = data.windows("report")[:4]
    free = torch.ones_like(given, dtype=torch.bool)
    free[:, order[:3]] = False
    seen = []
    sample = model.sample(given, free, torch.Generator().manual_seed(0), watch=lambda step, x: seen.append(x))
    assert torch.equal(sample.x[~free], given[~free]) and (sample.fixed_at[~free] == -1).all()
    assert torch.equal(seen[-1], sample.x) and torch.equal(seen[0] == 4, free & (sample.fixed_at > 0))
    free[:, order[0]] = True
    with pytest.raises(UserError, match="reads first"):
        model.sample(given, free, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="texts of 8 tokens, not of 5"):
        model.sample(given[:, :5], free[:, :5], torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="one order, its own"):
        model.likelihoods(permutation=Permutation("closer", 7))
    assert model.likelihoods(permutation=Permutation("uniform"))


# --- positions and attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_raster_positions_change_nothing(attention):
    net, x = network(attention=attention), tokens()
    places = torch.arange(12)[None, :, None].expand(3, 12, 2)
    for causal in (False, True):
        assert torch.equal(net(x, positions=places, causal=causal), net(x, causal=causal))


def test_only_distances_between_positions_matter():
    """Contents and targets moved together by one change nothing; targets alone, or contents alone, do."""
    net, x = network(causal=True), tokens(length=8)
    places = torch.stack([torch.arange(8), torch.randperm(8, generator=torch.Generator().manual_seed(0))], -1)
    places = places.expand(3, 8, 2)
    plain = net(x, positions=places)
    torch.testing.assert_close(net(x, positions=places + 1), plain, rtol=1e-5, atol=1e-5)  # a float32 table
    for moved in ([0, 1], [1, 0]):
        assert (net(x, positions=places + torch.tensor(moved)) - plain).abs().max() > 1e-3


def test_the_flag_can_be_overridden():
    """`causal` of a call is the network's own flag, in logits, cross-entropy and FLOPs."""
    both, left = network(), network(causal=True)
    x, x0, where = tokens(), tokens(seed=5, size=11), tokens(seed=4) % 3 == 0
    assert torch.equal(both(x, causal=True), left(x)) and torch.equal(left(x, causal=False), both(x))
    assert torch.equal(both.cross_entropy(x, None, x0, where, causal=True), left.cross_entropy(x, None, x0, where))
    assert (
        both.flops_per_token(12, causal=True) == left.flops_per_token(12) < left.flops_per_token(12, causal=False)
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_dropped_at_its_rate_and_never_the_own_key(causal):
    torch.manual_seed(0)
    seen = seen_keys(200, 16, 0.3, causal, torch.device("cpu"))
    allowed = torch.ones(16, 16, dtype=torch.bool).tril() if causal else torch.ones(16, 16, dtype=torch.bool)
    others = allowed & ~torch.eye(16, dtype=torch.bool)
    assert seen.shape == (200, 1, 16, 16) and seen[..., torch.arange(16), torch.arange(16)].all()
    assert not (seen & ~allowed).any()
    kept = seen[:, 0][:, others].double()
    assert abs(kept.mean() - 0.7) < 5 * math.sqrt(0.21 / kept.numel())


@pytest.mark.parametrize("causal", [False, True])
def test_dropped_keys_are_not_seen(causal, monkeypatch):
    """Both ways of attending agree; with every other key dropped a slot knows its own token alone; evaluation sees
    everything."""
    nets = [network(causal=causal, attention=a, drop_attention=0.5) for a in ("sdpa", "plain")]
    x = tokens()
    plain = network(causal=causal)(x)
    assert all(torch.equal(net(x), plain) for net in nets[:1])
    torch.testing.assert_close(nets[1](x), plain, rtol=0, atol=1e-10)
    dropped = []
    for net in nets:
        torch.manual_seed(3)
        dropped.append(net.train()(x))
    torch.testing.assert_close(*dropped, rtol=0, atol=1e-10)
    assert (dropped[0] - plain).abs().max() > 1e-3
    nets[0].drop_attention = 1.0
    alone = nets[0](x)
    torch.testing.assert_close(alone[:, 5:6], nets[0].eval()(x[:, 5:6]), rtol=0, atol=1e-10)


def test_dropped_attention_follows_the_dropout_stream():
    """The same step drops the same keys whatever was drawn before; another step drops others."""
    model, data = shaken("arm_drop_attention", "backbone.drop_attention=0.5")
    batch = batch_of(data, list(range(4)), step=3)
    first = model.train().training_step(batch, 0)["loss"].item()
    torch.rand(100)
    assert model.training_step(batch, 0)["loss"].item() == first
    assert model.training_step(batch | {"step": 4}, 0)["loss"].item() != first


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "override", "said"),
    [
        ("arm_masked_inputs", "method.inputs.p=1.5", "method.inputs.p=1.5"),
        ("arm_replaced_inputs", "method.inputs.p=-0.1", "method.inputs.p=-0.1"),
        ("arm_orders", "method.orders.count=0", "count=0"),
        ("arm_orders", "method.orders.count=some", "count=some"),
        ("arm_reversed", "method.orders.reversed=2", "reversed=2"),
        ("arm_mir", "method.auxiliary=0", "auxiliary=0"),
        ("arm", "+method.auxiliary=0.4", "auxiliary=0.4"),
        ("arm_permuted", "method.permutation.closeness=near", "'near'"),
        ("arm_permuted", "method.permutation.seed=-1", "seed -1"),
        ("arm_permuted", "+method.orders={_target_: dlm.augment.Orders, count: 2}", "method.permutation fixes it"),
        ("arm_drop_attention", "backbone.drop_attention=1", "drop_attention=1"),
    ],
)
def test_what_makes_no_sense_is_refused(method, override, said):
    with pytest.raises((UserError, *config.CONFIG_ERRORS)) as error:
        built(method, override)
    assert said in config.one_line(error.value)


def test_no_loss_is_left_out():
    """-log softmax by hand on one method, so that the helpers above do not agree on a mistake."""
    net = toy()
    before = torch.cat([torch.full((27, 1), V), STRINGS[:, :-1]], 1)
    by_hand = F.cross_entropy(net(before).flatten(0, 1), STRINGS.flatten(), reduction="none").view(27, L)
    torch.testing.assert_close(likelihood.autoregressive_nll(net, STRINGS, EVERY, V), by_hand)
