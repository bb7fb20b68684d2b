"""The one network: what it may see, and every fast path against the plain one."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dlm import backbone as backbone_module
from dlm.attention import causal_mask, plain_attention, resolve_attention, rotate, rotations
from dlm.backbone import Transformer
from dlm.errors import UserError

V, L, B = 11, 12, 3
each_shape = pytest.mark.parametrize(
    "options",
    [{}, {"mlp": "gelu"}, {"tie": True}, {"time": "additive"}, {"time": "adaln"}, {"causal": True}],
    ids=lambda o: "-".join(map(str, o.values())) or "plain",
)


def network(dtype=torch.float64, seed=0, shaken=True, **options):
    """A small network whose zero-initialised weights are shaken, so that every path carries signal."""
    torch.manual_seed(seed)
    net = Transformer(V, **({"max_len": L, "dim": 16, "depth": 2, "heads": 2} | options))
    if shaken:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.2 * torch.randn_like(p))
    net.rope = rotations(net.max_len + 1, net.dim // net.heads).to(dtype)
    return net.to(dtype).eval()


def tokens(rows=B, length=L, seed=1, size=V + 1):
    return torch.randint(size, (rows, length), generator=torch.Generator().manual_seed(seed))


def times(net, rows=B):
    return torch.linspace(0.1, 0.9, rows, dtype=net.embed.weight.dtype)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


# --- the start ----------------------------------------------------------------------------------------------


@each_shape
def test_an_untrained_network_predicts_uniformly(options):
    net = network(shaken=False, **options)
    logits = net(tokens(), times(net))
    if net.tie:  # its head is the embedding, which cannot be zero: nearly uniform
        assert (logits.softmax(-1) - 1 / V).abs().max() < 0.05
    else:
        assert torch.equal(logits, torch.zeros(B, L, V))


@pytest.mark.parametrize("time", ["none", "additive", "adaln"])
def test_the_same_seed_gives_the_same_shared_weights(time):
    """Telling the time takes nothing from the stream that the other weights are drawn from."""
    plain, told = network(shaken=False), network(shaken=False, time=time)
    shared = dict(told.named_parameters())
    for name, p in plain.named_parameters():
        assert torch.equal(p, shared[name]), name


def test_conditioning_starts_silent_or_counts_itself():
    """adaLN's modulation starts at zero, so times change nothing yet; its parameters are all accounted for."""
    net = network(shaken=False, time="adaln")
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "modulation" not in name:
                p.add_(0.2 * torch.randn_like(p))
    x = tokens()
    assert torch.equal(net(x, times(net)), net(x, times(net).flip(0)))
    for time in ("none", "additive", "adaln"):
        size = sum(p.numel() for p in network(time=time).parameters())
        extra = size - sum(p.numel() for p in network().parameters())
        assert network(time=time).conditioning_parameters == extra


@pytest.mark.parametrize("time", ["additive", "adaln"])
def test_a_conditioned_network_knows_the_time_row_by_row(time):
    net, x = network(time=time), tokens()
    t = times(net)
    moved = net(x, torch.cat([t[:1], t[1:] + 0.05]))
    plain = net(x, t)
    assert torch.equal(plain[0], moved[0]) and (plain[1:] - moved[1:]).abs().amin((1, 2)).max() > 0
    assert (plain[1:] - moved[1:]).abs().amax((1, 2)).min() > 1e-6
    with pytest.raises(UserError, match="time"):
        net(x)


# --- what it sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize("place", range(0, L, 3))
def test_causal_means_causal(place, attention):
    """A token moves the logits at and after itself, never before; without `causal` it moves all."""
    x = tokens()
    y = x.clone()
    y[:, place] = (y[:, place] + 1) % V
    net = network(causal=True, attention=attention)
    change = (net(x) - net(y)).abs().amax((0, 2))
    assert (change[:place] == 0).all() and (change[place:] > 1e-6).all()
    both = network(attention=attention)
    assert ((both(x) - both(y)).abs().amax((0, 2)) > 1e-6).all()


def test_what_stands_behind_a_mask_does_not_leak():
    """The network sees ids only: two sequences that agree where visible have equal logits; the mask is a token."""
    net, mask = network(), V
    x, y = tokens(size=V), tokens(seed=2, size=V)
    hidden = tokens(seed=3) % 2 == 0
    y = torch.where(hidden, y, x)
    assert (x != y).any()
    assert torch.equal(net(x.masked_fill(hidden, mask)), net(y.masked_fill(hidden, mask)))
    assert net(x.masked_fill(hidden, mask)).shape[-1] == V, "the mask is never predicted"


def test_rows_of_a_batch_do_not_meet():
    net, x = network(), tokens()
    assert relative(net(x)[1:2], net(x[1:2])) < 1e-12


def test_attention_depends_on_distances_only():
    """RoPE: the scores q_i . k_j of equal vectors are those of (i + 3, j + 3)."""
    rope = rotations(L, 8).double()
    q, k = (torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    wide = rotate(torch.stack([q, k])[:, None].expand(1, L, 2, 1, 8), rope)[0, :, :, 0].unbind(1)
    score = wide[0] @ wide[1].T
    torch.testing.assert_close(score[:-3, :-3], score[3:, 3:], rtol=0, atol=1e-6)
    assert score[0].std() > 0.1, "and on those it does depend"
    torch.testing.assert_close(wide[0].norm(dim=-1), q.norm().expand(L), rtol=0, atol=1e-6)


# --- fast paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
@pytest.mark.parametrize("pieces", [[1] * L, [5, 1, 1, 5], [L]], ids=str)
def test_cached_reading_is_reading_it_all(dtype, tolerance, attention, pieces):
    net, x = network(dtype, causal=True, attention=attention), tokens()
    cache = net.new_cache(B)
    parts = [net(piece, cache=cache) for piece in x.split(pieces, 1)]
    assert relative(torch.cat(parts, 1), net(x)) < tolerance
    assert cache.length == L


@each_shape
def test_the_head_works_only_where_it_is_asked(options):
    net, x = network(**options), tokens()
    where = tokens(seed=4) % 3 == 0
    assert relative(net(x, times(net), where), net(x, times(net))[where]) < 1e-12
    nobody = torch.zeros_like(where)
    assert net(x, times(net), nobody).shape == (0, V)


@each_shape
def test_cross_entropy_is_that_of_the_logits(options):
    net, x, x0 = network(**options), tokens(), tokens(seed=5, size=V)
    where = tokens(seed=4) % 3 == 0
    wanted = F.cross_entropy(net(x, times(net))[where], x0[where], reduction="none")
    assert relative(net.cross_entropy(x, times(net), x0, where), wanted) < 1e-12


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("none", [False, True], ids=["some", "none"])
def test_chunked_cross_entropy_is_the_plain_one(tie, none, monkeypatch):
    """Values and gradients in float32 to 1e-5, and where no position is scored."""
    x, x0, where = tokens(), tokens(seed=5, size=V), tokens(seed=4) % 3 == 0
    where = where & (not none)

    def both(limit):
        monkeypatch.setattr(backbone_module, "CHUNKED_HEAD_FROM", limit)
        net = network(torch.float32, tie=tie)
        nll = net.cross_entropy(x, None, x0, where)
        (nll * torch.linspace(1, 2, len(nll))).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        return nll.detach(), grads

    (plain, plain_grad), (chunked, chunked_grad) = both(1 << 60), both(0)
    torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chunked_grad, plain_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", [L, 3])
def test_plain_attention_is_the_fused_kernel(causal, queries):
    """Values and gradients in float32 to 1e-5, also when the last few positions look back over a cache."""
    q, k, v = torch.randn(3, B, 2, L, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    q = q[:, :, -queries:]
    mask = causal_mask(queries, L, q.device) if causal else None

    def outcome(attend):
        inputs = [w.clone().requires_grad_() for w in (q, k, v)]
        out = attend(*inputs)
        out.pow(2).sum().backward()
        return [out.detach(), *(w.grad for w in inputs)]

    plain = outcome(lambda q, k, v: plain_attention(q, k, v, causal))
    fused = outcome(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_attention_is_chosen_by_rule():
    q = torch.zeros(1, 1, 4, 2)
    assert resolve_attention("auto", q) == "sdpa" and resolve_attention("plain", q) == "plain"
    assert resolve_attention("auto", q.bfloat16()) == "plain"
    assert resolve_attention("auto", torch.zeros(1, 1, 513, 2, dtype=torch.bfloat16)) == "sdpa"


@pytest.mark.parametrize("options", [{"causal": True}, {"time": "adaln"}], ids=str)
def test_bf16_is_close_to_fp32(options):
    """Loss within 1 %, gradients within an angle of cosine 0.99."""
    x, x0 = tokens(8), tokens(8, seed=5, size=V)
    where = torch.ones_like(x, dtype=torch.bool)

    def outcome(enabled):
        net = network(torch.float32, dim=64, **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = net.cross_entropy(x, times(net, 8), x0, where).mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters()])

    (exact, exact_grad), (half, half_grad) = outcome(False), outcome(True)
    assert half != exact, "autocast did nothing"
    assert abs(half - exact) < 0.01 * exact
    assert F.cosine_similarity(half_grad, exact_grad, dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"causal": True}, {"time": "adaln"}], ids=str)
def test_compiled_blocks_are_the_eager_ones(options):
    """Values and gradients to 1e-5; the parameters keep their names."""

    def outcome(compiled):
        net = network(torch.float32, **options)
        if compiled:
            for block in net.blocks:
                block.compile()
        net(tokens(), times(net)).pow(2).mean().backward()
        return net(tokens(), times(net)).detach(), {n: p.grad for n, p in net.named_parameters()}

    (eager, eager_grad), (fast, fast_grad) = outcome(False), outcome(True)
    torch.testing.assert_close(fast, eager, rtol=1e-5, atol=1e-5)
    assert eager_grad.keys() == fast_grad.keys()
    for name, grad in eager_grad.items():
        torch.testing.assert_close(fast_grad[name], grad, rtol=1e-4, atol=1e-5, msg=name)


# --- limits and counts --------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"13 tokens exceeds backbone\.max_len=12"):
        network()(tokens(length=L + 1))
    net = network(causal=True)
    cache = net.new_cache(B)
    net(tokens(), cache=cache)
    with pytest.raises(UserError, match=r"exceeds backbone\.max_len"):
        net(tokens(length=1), cache=cache)
    for wrong in ({"dim": 18, "heads": 4}, {"dim": 6, "heads": 2}):
        with pytest.raises(UserError, match=f"dim={wrong['dim']}"):
            network(**wrong)
    for wrong in ({"time": "now"}, {"attention": "flash"}, {"mlp": "relu"}):
        with pytest.raises(UserError, match=next(iter(wrong.values()))):
            network(**wrong)


@pytest.mark.parametrize(
    "options",
    [{}, {"mlp": "gelu", "tie": True}, {"causal": True}, {"time": "additive"}, {"time": "adaln"}],
    ids=str,
)
def test_flops_are_those_that_torch_counts(options):
    """Forward and backward, to 5 %; torch's counter knows no causal discount, so it is added back."""
    dim, depth, length = 96, 3, 64
    with torch.device("meta"):
        net = Transformer(97, max_len=length, dim=dim, depth=depth, heads=4, **options)
        x = torch.zeros(4, length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            net(x, None if net.time is None else torch.zeros(4)).sum().backward()
    counted = counter.get_total_flops() / x.numel()
    claimed = net.flops_per_token(length) + (6 * length * dim * depth if net.causal else 0)
    assert math.isclose(claimed, counted, rel_tol=0.05)
    assert math.isclose(net.flops_per_token(length, causal=False), counted, rel_tol=0.05)
    assert network(causal=True).flops_per_token(L) < network().flops_per_token(L)
