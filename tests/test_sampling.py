"""What every sampler of every method owes: prompts stay, rows do not meet, a seed decides, calls are counted."""

import pytest
import torch
from conftest import METHODS, TOY, composed
from oracle import F64

from dlm import sampling, train
from dlm.errors import UserError


def shaken(method, *overrides):
    """A toy model with a signal: every weight moved; in float64, where batches of any size give the same."""
    cfg = composed(*TOY, f"method={method}", *overrides)
    data = train.build_data(cfg)
    model = train.build_model(cfg, data.source.fingerprint, total_steps=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval().double()


MODELS = {method: shaken(method) for method in METHODS}
PAIRS = [(method, sampler) for method, model in MODELS.items() for sampler in model.samplers]
each_sampler = pytest.mark.parametrize(("method", "sampler"), PAIRS)


def options(sampler):
    return {"steps": 6} if sampler in ("ancestral", "tau_leap", "remdm") else {}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blank(rows=5, length=8):
    return torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.bool)


@each_sampler
def test_prompts_never_change_and_everything_else_is_a_token(method, sampler):
    model = MODELS[method]
    given = torch.arange(40).reshape(5, 8) % 4
    free = torch.rand(5, 8, generator=seeded()) < 0.6
    if sampler == "autoregressive":
        free = torch.arange(8).expand(5, 8) >= 3
    sample = model.sample(given, free, seeded(), sampler, **options(sampler))
    assert torch.equal(sample.x[~free], given[~free])
    assert (sample.x >= 0).all() and (sample.x < 4).all(), "no mask is left"
    assert torch.equal(sample.fixed_at == -1, ~free)
    assert (sample.fixed_at[free] >= 0).all()
    assert torch.equal(given, torch.arange(40).reshape(5, 8) % 4), "what was given is not written to"
    nothing = model.sample(given, torch.zeros_like(free), seeded(), sampler, **options(sampler))
    assert torch.equal(nothing.x, given) and not nothing.evaluations.any()


@each_sampler
def test_a_row_is_a_function_of_the_seed_and_its_number(method, sampler):
    """Fewer rows, or other prompts in other rows, change nothing in a row: not its tokens, nor when they were
    fixed, nor how often the network was asked. Another seed changes everything."""
    model = MODELS[method]
    given, free = blank()
    other, holes = given.clone(), free.clone()
    other[4], holes[4, :5] = 3, False
    if method == "arm_permuted":  # its prompts are wherever it reads first
        holes = free
    samples = [
        model.sample(given, free, seeded(), sampler, **options(sampler)),
        model.sample(given[:2], free[:2], seeded(), sampler, **options(sampler)),
        model.sample(other, holes, seeded(), sampler, **options(sampler)),
    ]
    for again in samples[1:]:
        assert all(torch.equal(a[:2], b[:2]) for a, b in zip(samples[0][:3], again[:3], strict=True))
    assert not torch.equal(samples[0].x, model.sample(given, free, seeded(1), sampler, **options(sampler)).x)
    assert len(samples[0].x.unique(dim=0)) > 1, "rows are not copies of one another"


@each_sampler
def test_evaluations_are_counted(method, sampler, monkeypatch):
    """A row's count is the number of times it was given to the network; one per token where tokens come singly."""
    model, given, free = MODELS[method], *blank()
    free[0, 5:] = False
    if sampler == "autoregressive":
        free[:, 5:], free = True, torch.ones_like(free)
    asked = []
    original = type(model.backbone).forward

    def counted(self, x, t=None, where=None, cache=None, **how):
        asked.append(len(x))
        return original(self, x, t, where, cache, **how)

    monkeypatch.setattr(type(model.backbone), "forward", counted)
    sample = model.sample(given, free, seeded(), sampler, **options(sampler))
    counts, tokens = sample.evaluations, free.sum(1)
    assert counts.sum() == sum(asked)
    if sampler in ("first_hitting", "ordered", "autoregressive"):
        assert torch.equal(counts, tokens)
        for row in range(5):
            steps = sample.fixed_at[row][free[row]]
            assert sorted(steps.tolist()) == list(range(int(tokens[row]))), "one token a step"
    elif sampler != "thinning":
        assert (counts >= 1).all() and (counts <= 7).all(), "the seventh draws masks that survived"
        moved = torch.stack([sample.fixed_at == step for step in range(7)]).any(2).sum(0)
        assert (moved <= counts + (sampler == "remdm")).all()


@each_sampler
def test_a_cold_sampler_is_sure(method, sampler):
    """A temperature near zero and a nucleus of one token draw the same, the network's likeliest; in an order of
    its own, whatever the seed. Ratios have no law of a clean token to reshape: refused."""
    model = MODELS[method]
    cold, narrow = sampling.warp(1e-6), sampling.warp(top_p=1e-9)
    if method == "sedd_uniform":
        with pytest.raises(UserError, match="predicts ratios"):
            model.sample(*blank(), seeded(), sampler, warp=cold, **options(sampler))
        return
    hot = model.sample(*blank(), seeded(), sampler, **options(sampler))
    one, other = (model.sample(*blank(), seeded(), sampler, warp=w, **options(sampler)) for w in (cold, narrow))
    assert not torch.equal(hot.x, one.x) and torch.equal(one.x, other.x)
    if sampler in ("autoregressive", "ordered"):
        greedy = {} if sampler == "autoregressive" else {"policy": "margin"}
        a, b = (model.sample(*blank(), seeded(seed), sampler, warp=cold, **greedy).x for seed in (0, 1))
        assert torch.equal(a, b)


@each_sampler
def test_states_can_be_watched(method, sampler):
    """The last state told is the sample; prompts stand in every one."""
    given, free = blank(rows=2)
    given[:, :3], free[:, :3] = 2, False
    seen = []
    watch = lambda step, x: seen.append((step.clone(), x.clone()))  # noqa: E731
    sample = MODELS[method].sample(given, free, seeded(), sampler, watch=watch, **options(sampler))
    assert torch.equal(seen[-1][1], sample.x)
    assert all((x[:, :3] == 2).all() and len(step) == 2 for step, x in seen)


def test_samplers_that_a_model_has_not():
    for method, sampler in [("md4", "euler"), ("md4", "thinning"), ("shuffle", "ordered"), ("genmd4", "remdm")]:
        with pytest.raises(UserError, match=sampler):
            MODELS[method].sample(*blank(), seeded(), sampler)
    assert "thinning" in MODELS["genmd4"].samplers and "first_hitting" not in MODELS["genmd4"].samplers


def test_a_sequence_longer_than_the_model_is_refused():
    for method in ("md4", "arm", "shuffle"):
        with pytest.raises(UserError, match="max_len"):
            MODELS[method].sample(*blank(2, 4096), seeded(), **({} if method == "arm" else {"steps": 2}))


# --- left to right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [0, 3, 7])
def test_the_cache_changes_nothing(prompt):
    """The same generator, the same tokens, in float64."""
    model = MODELS["arm"]
    given, free = blank(rows=16)
    given[:, :prompt] = torch.randint(4, (16, prompt), generator=seeded())
    free[:, :prompt] = False
    fast, plain = (model.sample(given, free, seeded(), cached=cached) for cached in (True, False))
    assert torch.equal(fast.x, plain.x) and torch.equal(fast.x[:, :prompt], given[:, :prompt])
    assert (fast.evaluations == 8 - prompt).all()
    assert fast.x.unique(dim=0).shape[0] > 3


def test_left_to_right_samples_have_the_law_of_their_likelihood():
    """Two tokens, 16 strings, 40 000 samples, seed 0: chi-square with 15 degrees below 55 (once in 5e5)."""
    model = shaken("arm", "seq_len=2", "data.held_out=64")
    strings = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    with torch.no_grad():
        every, index = torch.ones_like(strings, dtype=torch.bool), torch.arange(len(strings))
        law = (-model.nll_draws(strings, every, index, 1)[:, 0]).exp()
    assert abs(law.sum() - 1) < 1e-5 and law.std() > 0.01
    x = model.sample(*blank(40_000, 2), seeded()).x
    seen = (4 * x[:, 0] + x[:, 1]).bincount(minlength=16).to(F64)
    assert float(((seen - 40_000 * law) ** 2 / (40_000 * law)).sum()) < 55


def test_a_causal_model_cannot_fill_in():
    given, free = blank()
    free[:, 4] = False
    with pytest.raises(UserError, match="only continue"):
        MODELS["arm"].sample(given, free, seeded())


@pytest.mark.parametrize("cached", [True, False])
def test_prompts_of_different_lengths_continue_in_one_batch(cached):
    """Six rows, prompts of 0 to 8 tokens: each comes out as in a batch whose prompts all have its length; the
    steps count from its own first free position, the evaluations are its free tokens, and what is watched shows
    every row's own state."""
    model, (given, free) = MODELS["arm"], blank(rows=6)
    given = torch.randint(4, given.shape, generator=seeded(3))
    begin = torch.tensor([3, 0, 8, 5, 7, 3])
    free = torch.arange(8) >= begin[:, None]
    seen = []
    watch = lambda step, x: seen.append((step.clone(), x.clone()))  # noqa: E731
    together = model.sample(given, free, seeded(), cached=cached, watch=watch)
    for row in range(6):
        alike = model.sample(given, free[row].expand(6, -1), seeded(), cached=cached)
        assert all(torch.equal(a[row], b[row]) for a, b in zip(together[:3], alike[:3], strict=True))
    assert torch.equal(together.evaluations, 8 - begin) and torch.equal(together.x[~free], given[~free])
    assert len(seen) == 8 and torch.equal(seen[-1][1], together.x)
    assert seen[4][0].tolist() == [1, 4, -1, -1, -1, 1]
    assert (seen[4][1][0, 5:] == 4).all() and torch.equal(seen[4][1][3, :5], given[3, :5])


# --- without chance -------------------------------------------------------------------------------------------


def test_greedy_takes_the_first_of_the_likeliest():
    """All mass on one token, whatever the uniform, both ends included; ties to the left; any shape."""
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 5.0], [-torch.inf, -torch.inf, 0.0]], dtype=F64)
    warped = sampling.greedy(logits)
    assert torch.equal(warped.softmax(-1), torch.eye(3, dtype=F64)[[1, 0, 2]])
    for u in (0.0, 0.5, 1 - 2.0**-53):
        assert sampling.draw(warped.softmax(-1), torch.full((3,), u, dtype=F64)).tolist() == [1, 0, 2]
    assert torch.equal(sampling.greedy(logits[None])[0], warped)


@each_sampler
def test_greedy_values_are_those_of_a_cold_sampler(method, sampler):
    if method == "sedd_uniform":
        with pytest.raises(UserError, match="predicts ratios"):
            MODELS[method].sample(*blank(), seeded(), sampler, warp=sampling.greedy, **options(sampler))
        return
    greedy, cold = (
        MODELS[method].sample(*blank(), seeded(), sampler, warp=w, **options(sampler))
        for w in (sampling.greedy, sampling.warp(1e-6))
    )
    assert all(torch.equal(a, b) for a, b in zip(greedy[:3], cold[:3], strict=True))
