"""What every process owes, tested on every method of conf/method: a new one is tested by existing.

A method names its process in a YAML file; each is instantiated at three tokens and enumerated on three positions.
"""

from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from oracle import (
    F64,
    SMALL,
    WORLD,
    Exact,
    Table,
    average,
    certain,
    enumerated_loss,
    expected_boundary,
    expected_nelbo,
    generator,
    integrand,
    model_law,
    mutual_information,
    noise_for,
    random_network,
    reachable,
    sequences,
    step_bound,
    step_law,
    tanh_sinh,
)

from dlm.errors import UserError
from dlm.process import FlowMatching, MaskedDiffusion, Process, UniformDiffusion
from dlm.process.divergence import generalised_kl
from dlm.process.parameterisation import converted, log_score

CONF = Path(__file__).parents[1] / "conf" / "method"


def composed(path):
    """The `process` node of a method, with the methods it builds on, or None."""
    config = OmegaConf.load(path)
    node = config.get("method", {}).get("process")
    for name in config.get("defaults", []):
        if name != "_self_" and isinstance(name, str):
            base = composed(path.parent / f"{name}.yaml")
            node = node if base is None else OmegaConf.merge(base, node or {})
    return node


PROCESSES = {path.stem: node for path in sorted(CONF.glob("*.yaml")) if (node := composed(path)) is not None}
STEPS = 6  # of every finite-time method, so that its sum can be enumerated
PROCESSES["sedd_normalised"] = {
    "_target_": "dlm.process.ScoreMaskedDiffusion",
    "vocab_size": "${vocab_size}",
    "normalise": True,
}
PROCESSES["dfm_skewed"] = {
    "_target_": "dlm.process.FlowMatching",
    "vocab_size": "${vocab_size}",
    "source": "skewed",
}
PROCESSES["dfm_uniform_kl"] = {
    "_target_": "dlm.process.FlowMatching",
    "vocab_size": "${vocab_size}",
    "source": "uniform",
    "objective": "generalised_kl",
}
PROCESSES["dfm_mask_kl"] = {
    "_target_": "dlm.process.FlowMatching",
    "vocab_size": "${vocab_size}",
    "source": "mask",
    "objective": "generalised_kl",
}


@pytest.fixture(params=PROCESSES)
def build(request):
    """Makes the process over V tokens; learned schedules are moved off their starting point."""

    def build(vocab_size=3) -> Process:
        node = OmegaConf.to_container(OmegaConf.create(PROCESSES[request.param]), resolve=False)
        if "steps" in node:
            node["steps"] = STEPS
        if node.get("source") == "skewed":
            node["source"] = [0.2, 0.5, 0.3] if vocab_size == 3 else [0.3, 0.7]
        config = OmegaConf.create({"vocab_size": vocab_size, "process": node})
        process = hydra.utils.instantiate(config.process).double()
        process.observe(torch.tensor([9, 4, 1])[:vocab_size])
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in process.parameters():
                parameter += torch.rand(parameter.shape, generator=rng, dtype=F64) - 0.3
        return process.requires_grad_(False)

    return build


@pytest.fixture
def process(build):
    return build()


def tight(process):
    """Whether the best bound is the entropy; a path bound pays for a mixture that is not Markov, T steps for
    what is revealed together."""
    return process.bound_kind != "flow path bound" and process.steps is None


def close(a, b, tol, rtol=0.0):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=a.dtype), rtol=rtol, atol=tol)


def times(process, *fractions):
    return [process.t_min + f * (process.t_max - process.t_min) for f in fractions]


def cases(process, n=200, seed=0):
    """Random (logits, x0, x_t, t) with q(x_t | x0) > 0."""
    rng = torch.Generator().manual_seed(seed)
    t = process.t_min + (process.t_max - process.t_min) * torch.rand(n, generator=rng, dtype=F64)
    x0 = torch.randint(process.vocab_size, (n, 4), generator=rng)
    x_t = process.corrupt(x0, t, torch.rand(n, 4, generator=rng, dtype=F64))
    return torch.randn(n, 4, process.vocab_size, generator=rng, dtype=F64), x0, x_t, t


# -- the destroying process ---------------------------------------------------------------------------------


def test_log_q_is_a_distribution(process):
    """sum_x_t q(x_t | x0) = 1, to 1e-13."""
    values, clean = torch.arange(process.num_states), torch.arange(process.vocab_size)
    for t in times(process, 0.01, 0.3, 0.9):
        x_t, x0 = values.repeat(len(clean))[:, None], clean.repeat_interleave(len(values))[:, None]
        q = process.log_q(x_t, x0, torch.full((len(x0),), t, dtype=F64)).exp().reshape(len(clean), -1)
        close(q.sum(1), torch.ones(len(clean), dtype=F64), 1e-13)


def test_corruption_samples_log_q(process):
    """Of K = 20000 equally spaced noises, exp(log_q) K lead from x0 to x_t: the law, to 2/K."""
    k = 20000
    noise = ((torch.arange(k, dtype=F64) + 0.5) / k)[:, None]
    for t in times(process, 0.02, 0.5, 0.97):
        for a in range(process.vocab_size):
            x0 = torch.full((k, 1), a)
            hits = process.corrupt(x0, torch.full((k,), t, dtype=F64), noise).flatten()
            share = hits.bincount(minlength=process.num_states).to(F64) / k
            states = torch.arange(process.num_states)[:, None]
            q = process.log_q(states, torch.full_like(states, a), torch.full((len(states),), t, dtype=F64)).exp()
            close(share, q[:, 0], 2 / k)


def test_positions_are_destroyed_independently(process):
    """Statistically: pair frequencies within 5 standard errors of q(x_t^1) q(x_t^2)."""
    n, t = 40000, times(process, 0.6)[0]
    noise = torch.rand(n, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    x0 = torch.tensor([[0, 1]]).expand(n, 2)
    x_t = process.corrupt(x0, torch.full((n,), t, dtype=F64), noise)
    pairs = sequences(process.num_states, 2)
    p = process.log_q(pairs, x0[: len(pairs)], torch.full((len(pairs),), t, dtype=F64)).sum(1).exp()
    seen = (x_t[:, 0] * process.num_states + x_t[:, 1]).bincount(minlength=len(pairs)) / n
    assert ((seen - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-12).all()


def test_prior_is_where_destruction_ends(process):
    """q(x_tmax | x0) is within alpha(t_max) of the prior's law, in every entry."""
    k = 6000
    prior = process.prior(((torch.arange(k, dtype=F64) + 0.5) / k)[:, None]).flatten()
    share = prior.bincount(minlength=process.num_states).to(F64) / k
    states = torch.arange(process.num_states)[:, None]
    t = torch.full((len(states),), process.t_max, dtype=F64)
    close(process.log_q(states, torch.zeros_like(states), t).exp()[:, 0], share, 2e-3)


# -- rates, events, posteriors ------------------------------------------------------------------------------


def test_conditional_rates_reverse_the_destruction(process):
    """T38: -dq_t(y|x0)/dt = sum_z q_t(z|x0) C(z -> y) - q_t(y|x0) sum_y' C(y -> y'), to 1e-7."""
    states = torch.arange(process.num_states)[:, None]
    for a in range(process.vocab_size):
        x0 = torch.full_like(states, a)

        def q(t, x0=x0):
            return process.log_q(states, x0, t.expand(len(states))).exp()[:, 0]

        for t in times(process, 0.05, 0.5, 0.95):
            t = torch.tensor(t, dtype=F64)
            matrix = generator(process, process.conditional_rates(x0, states, t.expand(len(states))).nan_to_num(0))
            h = 1e-5 * float(t)
            slope = (q(t + h) - q(t - h)) / (2 * h)
            close(matrix @ q(t), -slope, 1e-7)


def test_exact_rates_reverse_the_marginals(build):
    """T40: with the exact network R p_t = -dp_t/dt over all states of a 2 x 2 world, to 1e-7."""
    process = build(2)
    states = sequences(process.num_states, 2)
    n, m = len(SMALL.clean), len(states)

    def p(t):
        x0, x_t = SMALL.clean.repeat_interleave(m, 0), states.repeat(n, 1)
        return SMALL.p @ process.log_q(x_t, x0, t.expand(n * m)).sum(-1).exp().reshape(n, m)

    for t in times(process, 0.05, 0.5, 0.95):
        t = torch.tensor(t, dtype=F64)
        wide = t.expand(m)
        matrix = generator(process, process.rates(Exact(process, SMALL)(states, wide), states, wide))
        h = 1e-5 * float(t)
        close(matrix @ p(t), -(p(t + h) - p(t - h)) / (2 * h), 1e-7)


def test_rates_are_rates(process):
    """Not negative, zero at the present state; the conditional ones are the model's for a network sure of x0."""
    logits, x0, x_t, t = cases(process)
    model, true = process.rates(logits, x_t, t), process.conditional_rates(x0, x_t, t)
    for rates in (model, true):
        assert rates.shape == (*x_t.shape, process.num_states)
        assert (rates >= 0).all() and (rates.gather(-1, x_t[..., None]) == 0).all()
    close(process.rates(certain(process, x0, x_t, t), x_t, t), true, 1e-10, rtol=1e-10)


def test_posterior_is_a_distribution_of_event_and_event_prob(process):
    """p(x_s | x_t) >= 0 sums to 1 (1e-12), and is (1 - event_prob) delta + event_prob event; s = 0 included."""
    logits, _, x_t, t = cases(process)
    for fraction in (0.0, 0.4, 0.99):
        s = t * fraction
        p = process.posterior(logits, x_t, t, s)
        assert (p >= 0).all()
        close(p.sum(-1), torch.ones(x_t.shape, dtype=F64), 1e-12)
        chance = process.event_prob(x_t, t, s)
        assert ((chance >= 0) & (chance <= 1)).all()
        flat = [v.repeat_interleave(x_t.shape[1]) for v in (t, s)]
        event = process.event(logits.flatten(0, 1), x_t.flatten(), *flat).reshape(p.shape)
        close(event.sum(-1), torch.ones(x_t.shape, dtype=F64), 1e-12)
        stay = (1 - chance)[..., None] * torch.nn.functional.one_hot(x_t, process.num_states)
        close(p, stay + chance[..., None] * event, 1e-13)


def test_last_step_leaves_clean_tokens(process):
    """At s = 0 the posterior puts all its mass on the vocabulary, and a sure network's on x0."""
    logits, x0, x_t, t = cases(process)
    zero = torch.zeros_like(t)
    p = process.posterior(logits, x_t, t, zero)
    close(p[..., : process.vocab_size].sum(-1), torch.ones(x_t.shape, dtype=F64), 1e-12)
    sure = process.posterior(certain(process, x0, x_t, t), x_t, t, zero)
    tol = 1e-6 if process.predicts == "score" else 1e-12  # inverting a score loses what 1 / alpha multiplies
    close(sure.gather(-1, x0[..., None])[..., 0], torch.ones(x_t.shape, dtype=F64), tol)


def test_conditional_posterior_carries_q_t_to_q_s(process):
    """sum_z q_t(z | x0) p(x_s | z, x0) = q_s(x_s | x0), to 1e-12."""
    states = torch.arange(process.num_states)[:, None]
    wide = torch.ones(len(states), dtype=F64)
    for t, s in ((0.9, 0.4), (0.3, 0.01)):
        t, s = (v * wide for v in times(process, t, s))
        for a in range(process.vocab_size):
            x0 = torch.full_like(states, a)
            q_t, q_s = (process.log_q(states, x0, v).exp()[:, 0] for v in (t, s))
            p = process.posterior(certain(process, x0, states, t), states, t, s)[:, 0]
            close(process.conditional_posterior(x0, states, t, s)[:, 0], p, 1e-12)
            close(torch.where(q_t[:, None] > 0, q_t[:, None] * p, 0.0).sum(0), q_s, 1e-12)


def test_short_posteriors_follow_the_rates(process):
    """T47: p(x_{t-h} = y | x_t) / h -> R_y with an error O(h): one tenth of h, one tenth of the error."""
    logits, _, x_t, _ = cases(process)
    t = torch.full((len(x_t),), times(process, 0.5)[0], dtype=F64)
    rates = process.rates(logits, x_t, t)
    elsewhere = ~torch.nn.functional.one_hot(x_t, process.num_states).bool()
    errors = []
    for h in (1e-3, 1e-4):
        p = process.posterior(logits, x_t, t, t - h)
        errors.append(float(((p / h - rates) * elsewhere).abs().max()))
    assert errors[1] < 0.15 * errors[0] or errors[1] < 1e-9
    assert errors[1] < 1e-2


# -- the bound ----------------------------------------------------------------------------------------------


def test_closed_form_is_the_generalised_kl_of_the_rates(process):
    """The fast `integrand` = sum_y R_y - C_y + C_y log(C_y / R_y) on random inputs, to 1e-10 relative; >= 0."""
    logits, x0, x_t, t = cases(process)
    generic = generalised_kl(process.conditional_rates(x0, x_t, t), process.rates(logits, x_t, t), x_t)
    close(process.integrand(logits, x0, x_t, t), generic, 1e-11, rtol=1e-10)
    close(Process.integrand(process, logits, x0, x_t, t), generic, 0)
    assert (generic > -1e-12).all()


def test_closed_step_is_the_divergence_of_the_posteriors(process):
    """The fast `step_kl` = KL(q(x_s | x_t, x0) || p(x_s | x_t)) on random inputs, s = 0 too, to 1e-11; >= 0."""
    logits, x0, x_t, t = cases(process)
    for fraction in (0.0, 0.4, 0.99):
        s = t * fraction
        generic = Process.step_kl(process, logits, x0, x_t, t, s)
        if process.predicts == "score":
            assert (generic > -1e-12).all(), "scores of no distribution have no closed form"
            continue
        close(process.step_kl(logits, x0, x_t, t, s), generic, 1e-11, rtol=1e-10)
        assert (generic > -1e-12).all()
    if process.steps is not None:
        on_grid = process.times(torch.linspace(0, 0.999, len(t), dtype=F64))
        steps = process.step_kl(logits, x0, x_t, on_grid, process.before(on_grid))
        close(process.nelbo(logits, x0, x_t, on_grid), process.steps * steps, 1e-12)
        assert set((on_grid * process.steps).round().long().tolist()) == set(range(1, process.steps + 1))
        assert process.before(on_grid).min() == 0


def test_marginal_mixes_log_q(process):
    """q_t(. | p0) = sum_a p0(a) q_t(. | a), to 1e-13; and `log_evidence` is log q(x_t | a)."""
    logits, _, x_t, t = cases(process, 20)
    p0 = logits.softmax(-1)
    mixed = torch.zeros(*x_t.shape, process.num_states, dtype=F64)
    for y in range(process.num_states):
        evidence = process.log_evidence(torch.full_like(x_t, y), t)
        mixed[..., y] = (p0 * evidence.exp()).sum(-1)
        for a in range(process.vocab_size):
            close(evidence[..., a], process.log_q(torch.full_like(x_t, y), torch.full_like(x_t, a), t), 0)
    close(process.marginal(p0, t), mixed, 1e-13)


def test_parameterisations_are_exact_ways_between_the_three(process):
    """T18: `converted` gives the exact posterior and leave-one-out posterior, `log_score` the exact score.

    From the network that `predicts` names, wherever they are defined, to 1e-9.
    """
    states = sequences(process.num_states, 3)
    for t in times(process, 0.15, 0.6):
        wide = torch.full((len(states),), t, dtype=F64)
        own = Exact(process, WORLD)
        hidden = (
            torch.ones_like(states, dtype=torch.bool) if process.mask_id is None else states == process.mask_id
        )
        for meaning in ("posterior", "leave-one-out"):
            got = converted(own, process, meaning)(states, wide).softmax(-1)
            wanted = Exact(process, WORLD, meaning)(states, wide).softmax(-1)
            close(got[hidden], wanted[hidden], 1e-10)
        scores = log_score(process, own(states, wide), states, wide)
        close(scores[hidden], Exact(process, WORLD).log_scores(states, wide)[hidden], 1e-9)
    with pytest.raises(UserError, match="logits"):
        converted(own, process, "logits")
    if process.predicts != "score":
        assert converted(own, process, process.predicts) is own
    scores = converted(own, process, "score")(states, wide)
    close(scores[hidden], Exact(process, WORLD).log_scores(states, wide)[hidden], 1e-9)


def test_exact_network_reaches_the_entropy(process):
    """T03, T16, T27: integral + boundary - H is not negative, and is nothing but the cut at the ends.

    The integral is I(x0; x_tmin) - I(x0; x_tmax), to 1e-9; a path bound is only bounded below.
    """
    exact = Exact(process, WORLD)
    integral = average(WORLD, expected_nelbo(process, exact, WORLD, tanh_sinh(0.05, 60)))
    total = integral + average(WORLD, expected_boundary(process, exact, WORLD))
    assert total > WORLD.entropy - 1e-10
    if tight(process):
        assert total < WORLD.entropy + 1e-3
        first = mutual_information(process, WORLD, process.t_min)
        last = mutual_information(process, WORLD, process.t_max)
        close(integral, first - last, 1e-9)


def test_excess_vanishes_with_the_cut(process):
    """T25: integral + boundary -> H as t_min -> 0, and t_max -> 1 where the process cuts that end."""
    excess = []
    cut_late = process.t_max < 1
    for shrink in (30, 3):
        process.t_min = 1e-3 * shrink
        process.t_max = 1 - 1e-3 * shrink if cut_late else 1.0
        exact = Exact(process, WORLD)
        total = average(WORLD, expected_nelbo(process, exact, WORLD) + expected_boundary(process, exact, WORLD))
        excess.append(float(total - WORLD.entropy))
    assert excess[0] > -1e-6 and excess[1] > -1e-6
    if tight(process):
        assert excess[1] < 0.2 * excess[0] or excess[1] < 1e-5


def test_integrand_is_the_rate_at_which_information_is_lost(process):
    """T65: with the exact network the integrand is -dI(x0; x_t)/dt, to 1e-5; a path bound is above it."""
    for t in times(process, 0.1, 0.5, 0.9):
        before, after = (mutual_information(process, WORLD, t + h) for h in (-1e-4, 1e-4))
        slope = (before - after) / 2e-4
        at = torch.tensor([t], dtype=F64)
        ell = average(WORLD, integrand(process, Exact(process, WORLD), WORLD, at, process.integrand)[0])
        if process.bound_kind != "flow path bound":
            close(ell, slope, 1e-5)
        else:
            assert ell > slope


@pytest.mark.parametrize("fraction", [0.15, 0.6])
def test_exact_network_is_stationary(process, fraction):
    """T80: at the network that `predicts` names, bound and objective have gradient 0 (1e-13) in every logit; the
    objective of a process that is not `proper` has not (negative control)."""
    t = times(process, fraction)[0]
    table = exact_table(process, t)
    for part in (0, 1):
        loss = average(WORLD, enumerated_loss(process, table, WORLD, t)[part])
        if loss.requires_grad:
            (grad,) = torch.autograd.grad(loss, table.logits)
            if part == 1 and not process.proper:
                assert grad.abs().max() > 1e-3
                continue
            close(grad, torch.zeros_like(grad), 1e-13)


@pytest.mark.parametrize("fraction", [0.15, 0.6])
def test_the_other_posterior_is_not_stationary(process, fraction):
    """T80: where mu* and c differ, the wrong one has a gradient above 1e-3 (negative control)."""
    t = times(process, fraction)[0]
    table, right = exact_table(process, t), exact_table(process, t)
    if process.predicts == "score":
        table.logits = (table.logits + 0.3).detach().requires_grad_()  # scores of no distribution
    else:
        other = {"posterior": "leave-one-out", "leave-one-out": "posterior"}[process.predicts]
        table = exact_table(process, t, other)
    row, (x_t,), _ = reachable(process, WORLD, t)
    wide = torch.full((len(row),), t, dtype=F64)
    ell = process.nelbo(table(x_t, wide), WORLD.clean[row], x_t, wide)
    differ = (table.logits.softmax(-1) - right.logits.softmax(-1)).detach().abs()
    asked = torch.autograd.grad(ell.sum(), table.logits, retain_graph=True)[0] != 0
    if process.predicts != "score" and (differ * asked).max() < 1e-10:
        assert process.mask_id is not None, "only behind a mask are c and mu* the same"
        return
    loss = average(WORLD, enumerated_loss(process, table, WORLD, t)[1])
    (grad,) = torch.autograd.grad(loss, table.logits)
    assert grad.abs().max() > (1e-3 if process.predicts != "score" else 1e-5)  # hardly any noise at that time


def exact_table(process, t, kind=None):
    states = sequences(process.num_states, 3)
    table = Table(process.num_states, 3, process.vocab_size)
    wide = torch.full((len(states),), t, dtype=F64)
    table.logits = Exact(process, WORLD, kind)(states, wide).requires_grad_()
    return table


def test_random_networks_cannot_beat_the_entropy(process):
    """Gibbs' inequality: integral + boundary > H for networks that know nothing."""
    for seed in (0, 1):
        net = random_network(process, WORLD, seed)
        total = average(WORLD, expected_nelbo(process, net, WORLD) + expected_boundary(process, net, WORLD))
        assert total > WORLD.entropy + 0.05


def test_bound_is_valid_for_every_sequence(build):
    """T42: -log p(x) <= bound(x) for random networks, p the law of the model's own Markov chain (V = L = 2).

    To 1e-3, the error of solving its equation in 300 steps from a cut at 1e-6.

    In finite time the chain is the sampler's, T steps of the posterior.
    """
    process = build(2)
    process.t_min = 1e-6
    process.t_max = 1.0 if process.t_max == 1 else 1 - 1e-6
    for seed in (0, 1):
        net = random_network(process, SMALL, seed)
        if process.steps is None:
            law = model_law(process, net, SMALL)
        else:
            law = step_law(process, net, SMALL, torch.linspace(0, 1, process.steps + 1))
        close(law.sum(), 1.0, 1e-9)
        clean = torch.tensor([int((x * process.num_states ** torch.tensor([1, 0])).sum()) for x in SMALL.clean])
        bound = expected_nelbo(process, net, SMALL) + expected_boundary(process, net, SMALL)
        assert (-law[clean].log() <= bound + 1e-3).all()


def test_loss_is_the_integrand_over_all_corruptions(process):
    """E over corruptions of `loss` at time t = (t_max - t_min) integrand (+ what t does not touch), to 1e-11."""
    if type(process).loss.__qualname__.startswith("AnyOrder"):
        return  # it scores exact counts, not times: test_masked.py
    net, extra = random_network(process, WORLD, 3), []
    for t in times(process, 0.1, 0.5, 0.9):
        nelbo, _ = enumerated_loss(process, net, WORLD, t)
        span = process.t_max - process.t_min
        ell = integrand(process, net, WORLD, torch.tensor([t], dtype=F64))[0]
        extra.append(nelbo - span * ell)
    constant = extra[0]
    for e in extra:
        close(e, constant, 1e-11)
    boundary = expected_boundary(process, net, WORLD)
    assert constant.abs().max() < 1e-11 or (constant - boundary).abs().max() < 1e-11


def test_only_targets_are_destroyed_and_scored(process):
    """Positions outside `target` cost nothing, and the network sees them clean."""
    _, x0, _, t = cases(process)
    target = torch.tensor([True, False, True, False]).expand_as(x0)
    net = random_network(process, _wide_world(), 0)
    seen = []

    def watched(x_t, t, where=None):
        seen.append(x_t)
        return net(x_t, t, where)

    noise = torch.rand(process.noise_draws, *x0.shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    bound = process.loss(watched, x0, t, target, noise)
    assert (bound.nelbo[~target] == 0).all() and torch.isfinite(bound.nelbo).all()
    assert bound.objective.shape == (len(x0),)
    assert all((x_t == x0)[~target].all() for x_t in seen)


def _wide_world():
    return type("", (), {"length": 4, "vocab_size": 3})()


def test_network_passes_are_counted(process):
    """`network_passes` is how often one loss asks the network: what FLOPs are counted by."""
    _, x0, _, t = cases(process, 5)
    net, asked = random_network(process, _wide_world(), 0), []

    def watched(x_t, t, where=None):
        asked.append(1)
        return net(x_t, t, where)

    noise = torch.rand(process.noise_draws, *x0.shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    process.loss(watched, x0, t, torch.ones_like(x0, dtype=torch.bool), noise)
    assert len(asked) == process.network_passes


def test_asking_only_where_needed_changes_nothing(process):
    """A denoiser that offers `cross_entropy`, and logits at some positions, gives the loss of the plain one."""
    _, x0, _, t = cases(process)
    net = random_network(process, _wide_world(), 1)

    class Fused:
        def __call__(self, x_t, t, where=None):
            return net(x_t, t, where)

        def cross_entropy(self, x_t, t, x0, where):
            return torch.nn.functional.cross_entropy(net(x_t, t)[where], x0[where], reduction="none")

    noise = torch.rand(process.noise_draws, *x0.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
    target = torch.ones_like(x0, dtype=torch.bool)
    plain, fused = (process.loss(d, x0, t, target, noise) for d in (net, Fused()))
    close(plain.nelbo, fused.nelbo, 1e-12)
    close(plain.objective, fused.objective, 1e-12)


def test_training_in_float32_is_finite_at_every_time(build):
    """nelbo, objective and gradients are finite from t_min to t_max in float32, given tokens included."""
    process = build().float().requires_grad_()
    rng = torch.Generator().manual_seed(0)
    lattice = torch.cat([torch.zeros(1), torch.logspace(-7, -1, 20), 1 - torch.logspace(-6, -1, 20)])
    t = process.times(lattice)
    x0 = torch.randint(3, (len(t), 6), generator=rng)
    net = torch.nn.Embedding(process.num_states, 3)

    def denoise(x_t, t, where=None):
        return net(x_t) if where is None else net(x_t)[where]

    target = torch.arange(6).expand_as(x0) < 4
    bound = process.loss(denoise, x0, t, target, torch.rand(process.noise_draws, *x0.shape, generator=rng))
    assert torch.isfinite(bound.nelbo).all() and torch.isfinite(bound.objective).all()
    bound.objective.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [net.weight, *process.parameters()] if p.grad is not None)
    boundary = process.boundary(denoise, x0, torch.rand(x0.shape, generator=rng))
    assert torch.isfinite(boundary).all()


def test_steps_approach_the_continuous_bound(process):
    """T07, T11: the T-step bound of the posteriors tends to integral + boundary as 1/T."""
    if process.steps is not None:  # what it is trained by is that very sum
        grid = torch.linspace(0, 1, process.steps + 1, dtype=F64)
        net = random_network(process, WORLD, 2)
        close(expected_nelbo(process, net, WORLD), step_bound(process, net, WORLD, grid), 1e-10)
        return
    if not tight(process):
        assert process.bound_kind == "flow path bound", "its steps are the mixture's, its bound the path's"
        return
    process.t_min = 1e-9
    process.t_max = 1.0 if process.t_max == 1 else 1 - 1e-9
    net = random_network(process, WORLD, 2)
    if process.predicts == "score" and process.mask_id is None:
        table, clean = net, UniformDiffusion(3, process.schedule)

        def net(x_t, t, where=None):  # of scores that no distribution has, a step may be impossible
            return log_score(clean, table(x_t, t), x_t, t)

    continuous = average(WORLD, expected_nelbo(process, net, WORLD) + expected_boundary(process, net, WORLD))
    errors = []
    for steps in (32, 128):
        grid = torch.linspace(0, 1, steps + 1, dtype=F64) * process.t_max
        errors.append(float(average(WORLD, step_bound(process, net, WORLD, grid)) - continuous))
    assert abs(errors[1]) < 0.45 * abs(errors[0]) or abs(errors[1]) < 1e-6


def test_contract_covers_every_method():
    """Every YAML with a process is here, and the masked and flow families are among them."""
    assert {"md4", "genmd4", "shuffle", "dfm_mask", "dfm_uniform"} <= set(PROCESSES)
    assert noise_for(MaskedDiffusion(3), torch.tensor([[0]]), torch.tensor([[3]]), 0.5) < 0.5
    assert FlowMatching(3).num_states == 4
