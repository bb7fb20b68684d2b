"""Samplers of real models: prompts stay, rows do not meet, draws follow the law, counts are right."""

import pytest
import torch
from conftest import METHODS, TOY, composed
from oracle import F64, WORLD, Exact, index

from dlm import sampling, train
from dlm.data.source import Source
from dlm.errors import UserError
from dlm.process import GenMaskedDiffusion, MaskedDiffusion, UniformDiffusion
from dlm.sample import parse_prompt


def shaken(method, *overrides):
    """A toy model with a signal: every weight moved."""
    cfg = composed(*TOY, f"method={method}", *overrides)
    data = train.build_data(cfg)
    model = train.build_model(cfg, data.source.fingerprint, total_steps=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


MODELS = {method: shaken(method) for method in METHODS}
PAIRS = [(method, sampler) for method, model in MODELS.items() for sampler in model.samplers]
each_sampler = pytest.mark.parametrize(("method", "sampler"), PAIRS)


def options(sampler):
    return {"steps": 6} if sampler in ("ancestral", "tau_leap") else {}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blank(rows=5, length=8):
    return torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.bool)


# --- draws --------------------------------------------------------------------------------------------------


def chi_square(seen, law):
    wanted = law * seen.sum()
    return float(((seen - wanted) ** 2 / wanted).sum())


def test_draws_follow_their_law():
    """200 000 draws from 20 outcomes, seed 0: chi-square with 19 degrees below 60 (once in 2e5 such samples)."""
    law = torch.arange(1, 21, dtype=F64)
    seen = sampling.draw(law.expand(200_000, -1), seeded()).bincount(minlength=20).to(F64)
    assert chi_square(seen, law / law.sum()) < 60
    wrong = law.pow(1.05)
    assert chi_square(seen, wrong / wrong.sum()) > 60, "a temperature of 0.95 would be noticed"


@pytest.mark.parametrize(("u", "outcome"), [(0.0, 1), (1 - 2.0**-53, 100_001), (1e-12, 1)])
def test_what_is_impossible_is_never_drawn(u, outcome, monkeypatch):
    """At both ends of the uniform, and where the tail is far below float32's resolution of the whole."""
    law = torch.full((100_003,), 1e-13, dtype=F64)
    law[0] = law[-1] = 0.0
    law[1] = 1.0
    monkeypatch.setattr(sampling.torch, "rand", lambda *shape, **_: torch.full(shape, u, dtype=F64))
    assert sampling.draw(law[None], seeded()).item() == outcome


def test_temperature_makes_greedy():
    """A temperature near zero takes the likeliest token everywhere; the law itself is left alone at one."""
    logits = torch.randn(1000, 7, generator=seeded())
    cold = sampling.draw(sampling.warp(1e-4)(logits).softmax(-1), seeded())
    assert torch.equal(cold, logits.argmax(-1))
    assert torch.equal(sampling.warp()(logits), logits.double())
    for wrong in ({"temperature": 0.0}, {"temperature": -1}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
            sampling.warp(**wrong)


@each_sampler
def test_greedy_samplers_take_the_likeliest_token(method, sampler):
    """With a cold warp every sampler that reveals tokens for good gives tokens the network finds likeliest."""
    model = MODELS[method]
    hot = model.sample(*blank(), seeded(), sampler, warp=sampling.warp(1.0), **options(sampler))
    cold = model.sample(*blank(), seeded(), sampler, warp=sampling.warp(1e-6), **options(sampler))
    assert not torch.equal(hot.x, cold.x)
    if sampler == "autoregressive":
        again = model.sample(*blank(), seeded(1), sampler, warp=sampling.warp(1e-6))
        assert torch.equal(cold.x, again.x)


# --- what every sampler owes -------------------------------------------------------------------------------


@each_sampler
def test_prompts_never_change_and_everything_else_is_a_token(method, sampler):
    model = MODELS[method]
    given = torch.arange(40).reshape(5, 8) % 4
    free = torch.rand(5, 8, generator=seeded()) < 0.6
    if method == "arm":
        free = torch.arange(8).expand(5, 8) >= 3
    sample = model.sample(given, free, seeded(), sampler, **options(sampler))
    assert torch.equal(sample.x[~free], given[~free])
    assert (sample.x >= 0).all() and (sample.x < 4).all(), "no mask is left"
    assert torch.equal(sample.fixed_at == -1, ~free)
    assert (sample.fixed_at[free] >= 0).all()
    assert torch.equal(given, torch.arange(40).reshape(5, 8) % 4), "what was given is not written to"
    nothing = model.sample(given, torch.zeros_like(free), seeded(), sampler, **options(sampler))
    assert torch.equal(nothing.x, given)


@each_sampler
def test_the_same_seed_gives_the_same_sample(method, sampler):
    one, two, three = (
        MODELS[method].sample(*blank(), seeded(seed), sampler, **options(sampler)).x for seed in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


@each_sampler
def test_rows_do_not_meet(method, sampler, monkeypatch):
    """With the draws made a function of the row alone, another row's prompt changes nothing in this one."""
    model = MODELS[method]
    calls = []

    def noise(x, generator):
        calls.append(1)
        return torch.rand(x.shape, dtype=F64, generator=seeded(len(calls)))

    def quantile(probs, generator):
        return probs.double().cumsum(-1).gt(0.6).long().argmax(-1)

    monkeypatch.setattr(sampling, "noise_like", noise)
    monkeypatch.setattr(sampling, "draw", quantile)
    given, free = blank()
    free[0, :2] = False
    if method == "arm":
        free[:, :2] = False
    other = given.clone()
    other[0, :2] = 3
    samples = []
    for prompt in (given, other):
        calls.clear()
        samples.append(model.sample(prompt, free, seeded(), sampler, **options(sampler)))
    one, two = samples
    assert torch.equal(one.x[1:], two.x[1:]) and torch.equal(one.fixed_at[1:], two.fixed_at[1:])
    assert torch.equal(one.evaluations[1:], two.evaluations[1:])
    assert len(one.x.unique()) > 1, "constant rows would show nothing"


@each_sampler
def test_evaluations_are_counted(method, sampler):
    """What each row needed: one per token, one per step in which it changed, or one per step."""
    given, free = blank()
    free[0, 5:] = False
    if method == "arm":
        free[:, 5:], free = True, torch.ones_like(free)
    sample = MODELS[method].sample(given, free, seeded(), sampler, **options(sampler))
    counts, tokens = sample.evaluations, free.sum(1)
    if sampler in ("first_hitting", "ordered", "autoregressive"):
        assert torch.equal(counts, tokens)
        for row in range(5):
            steps = sample.fixed_at[row][free[row]]
            assert sorted(steps.tolist()) == list(range(int(tokens[row]))), "one token a step"
    elif sampler == "tau_leap":
        assert ((counts == 6) | (counts == 7)).all(), "the seventh draws masks that survived"
    else:
        assert (counts >= 1).all() and (counts <= 6).all()
        moved = torch.stack([sample.fixed_at == step for step in range(6)]).any(2).sum(0)
        assert (moved <= counts).all()


@pytest.mark.parametrize("method", ["md4", "dfm_mask"])
def test_the_network_is_asked_only_when_something_changes(method, monkeypatch):
    """Ancestral sampling in more steps than tokens costs at most one call per token."""
    model, calls = MODELS[method], []
    original = type(model.backbone).forward

    def counted(self, x, t=None, where=None, cache=None):
        calls.append((len(x), int(where.sum())))
        return original(self, x, t, where, cache)

    monkeypatch.setattr(type(model.backbone), "forward", counted)
    sample = model.sample(*blank(rows=3), seeded(), "ancestral", steps=200)
    assert len(calls) <= 24 and sample.evaluations.max() <= 8
    assert sum(rows for rows, _ in calls) == sample.evaluations.sum()
    assert sum(positions for _, positions in calls) == 24, "each token is drawn once, its logits computed once"


@pytest.mark.parametrize("policy", list(sampling.POLICIES))
@pytest.mark.parametrize("per_step", [1, 3, 8, 100])
def test_several_tokens_at_a_time(policy, per_step):
    given, free = blank()
    free[2, 4:] = False
    sample = MODELS["md4"].sample(given, free, seeded(), "ordered", policy=policy, per_step=per_step)
    tokens = free.sum(1)
    assert torch.equal(sample.evaluations, -(-tokens // per_step))
    for row in range(5):
        counts = sample.fixed_at[row][free[row]].bincount()
        assert counts[:-1].eq(per_step).all() and counts.sum() == tokens[row]
    if policy == "left_to_right":
        wanted = torch.cat([torch.arange(int(n)) // per_step for n in tokens])
        assert torch.equal(sample.fixed_at[free], wanted)


def test_options_that_make_no_sense_are_refused():
    md4, shuffle = MODELS["md4"], MODELS["shuffle"]
    for model, sampler, wrong, said in [
        (md4, "ordered", {"policy": "wisest"}, "wisest"),
        (md4, "ordered", {"per_step": 0}, "per_step"),
        (md4, "ancestral", {"grid": "log"}, "log"),
        (md4, "euler", {}, "euler"),
        (shuffle, "ordered", {}, "ordered"),
        (shuffle, "first_hitting", {}, "first_hitting"),
    ]:
        with pytest.raises(UserError, match=said):
            model.sample(*blank(), seeded(), sampler, **wrong)
    with pytest.raises(UserError, match="mask predictor"):
        sampling.first_hitting(UniformDiffusion(4), shuffle.backbone, *blank(), seeded())
    with pytest.raises(UserError, match="mask predictor"):
        sampling.ordered(GenMaskedDiffusion(4), shuffle.backbone, *blank(), seeded())


# --- left to right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [0, 3, 7])
def test_the_cache_changes_nothing(prompt):
    """The same generator, the same tokens, in float64."""
    model = shaken("arm").double()
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
        law = (-model.token_nll(strings, torch.ones_like(strings, dtype=torch.bool)).double().sum(1)).exp()
    assert abs(law.sum() - 1) < 1e-5 and law.std() > 0.01
    x = model.sample(*blank(40_000, 2), seeded()).x
    assert chi_square((4 * x[:, 0] + x[:, 1]).bincount(minlength=16).to(F64), law / law.sum()) < 55


def test_a_causal_model_cannot_fill_in():
    given, free = blank()
    free[:, 4] = False
    with pytest.raises(UserError, match="only continue"):
        MODELS["arm"].sample(given, free, seeded())
    given, free = blank()
    free[1, :3] = False
    with pytest.raises(UserError, match="same length"):
        MODELS["arm"].sample(given, free, seeded())


# --- many steps ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("process", [MaskedDiffusion(3), UniformDiffusion(3), GenMaskedDiffusion(3)], ids=str)
def test_many_small_steps_draw_from_the_data(process):
    """512 ancestral steps with the exact network, 20 000 samples, seed 0: every string of the oracle's world
    within 5 standard errors of its probability, plus the O(1/T) that the steps cost."""
    oracle = Exact(process, WORLD)

    def net(x_t, t, where=None):  # many rows share few states
        states, back = torch.unique(x_t, dim=0, return_inverse=True)
        logits = oracle(states, t[:1].clamp(1e-6, 1 - 1e-6).expand(len(states)))[back]
        return logits if where is None else logits[where]

    count = 20_000
    x = sampling.ancestral(process, net, *blank(count, 3), seeded(), steps=512).x
    seen = index(x, 3).bincount(minlength=27).to(F64) / count
    se = (WORLD.p * (1 - WORLD.p) / count).sqrt()
    assert ((seen - WORLD.p).abs() < 5 * se + 0.003).all()


# --- prompts ------------------------------------------------------------------------------------------------


class Letters(Source):
    """Twenty letters to a sequence."""

    seq_len, vocab_size = 20, 128

    def tokens(self, split): ...
    def chars(self, split): ...
    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def picture(prompt):
    """The prompt as the model sees it, a free position as an underscore."""
    ids, free = parse_prompt(prompt, Letters())
    assert len(ids) == len(free)
    return "".join("_" if f else chr(i) for i, f in zip(ids.tolist(), free.tolist(), strict=True))


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        (None, "_" * 20),
        ("", "_" * 20),
        ("def [MASK:9] return", "def _________ return"),
        ("[MASK]x[MASK:2]", "_x__"),
        ("[MASK:3]", "___"),
        ("x = 1", "x = 1" + "_" * 15),
        ("[MASKED]", "[MASKED]" + "_" * 12),
        ("[mask:3]", "[mask:3]" + "_" * 12),
    ],
)
def test_prompts(prompt, seen):
    assert picture(prompt) == seen


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("def [MASK:12] return", "23 of the model's 20"),
        ("[MASK:0]", "MASK:0"),
        ("a[MASK:0]b[MASK]", "MASK:0"),
        ("x" * 20, "leaves no room"),
        ("x" * 30, "30 of the model's 20"),
        ("[MASK:21]", "21 of the model's 20"),
    ],
)
def test_prompts_that_do_not_fit(prompt, said):
    with pytest.raises(UserError, match=said):
        parse_prompt(prompt, Letters())
