"""Samplers that walk down a grid, as exact laws: their own steps enumerated over all states of the world."""

import itertools
import math

import pytest
import torch
from oracle import F64, WORLD, Exact, average, random_network, sequences, step_bound
from sampler_laws import (
    agrees,
    blank,
    close,
    exact,
    genmd4,
    grid_law,
    position_laws,
    recorded,
    seeded,
    total_variation,
)

from dlm import sampling
from dlm.build import build_processes
from dlm.errors import UserError
from dlm.process import FlowMatching, MaskedDiffusion, ScoreMaskedDiffusion, UniformDiffusion
from dlm.process.schedule import Cosine, Kappa

MD4, UNIFORM, DFM_MASK, DFM_UNIFORM = (
    MaskedDiffusion(3),
    UniformDiffusion(3),
    FlowMatching(3, "mask"),
    FlowMatching(3, "uniform"),
)


# --- the loop draws what the rules say ----------------------------------------------------------------------

CASES = {
    "md4": (MD4, sampling.ancestral, {}),
    "md4 cosine grid": (MD4, sampling.ancestral, {"grid": "cosine"}),
    "uniform": (UNIFORM, sampling.ancestral, {}),
    "genmd4": (genmd4(), sampling.ancestral, {}),
    "dfm uniform": (DFM_UNIFORM, sampling.ancestral, {}),
    "scores, Z not 1": (ScoreMaskedDiffusion(3), sampling.ancestral, {}),
    "tau md4": (MD4, sampling.tau_leap, {}),
    "tau dfm, kappa = tau^2": (FlowMatching(3, "mask", schedule=Kappa(2)), sampling.tau_leap, {}),
    "tau uniform": (UNIFORM, sampling.tau_leap, {}),
    "tau genmd4": (genmd4(), sampling.tau_leap, {}),
    "corrector, mask": (DFM_MASK, sampling.tau_leap, {"corrector": 1.5}),
    "corrector, uniform": (DFM_UNIFORM, sampling.tau_leap, {"corrector": 1.5}),
    "remdm cap": (MD4, sampling.remdm, {"eta": 0.2}),
    "remdm rescale": (DFM_MASK, sampling.remdm, {"remask": "rescale", "eta": 0.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_samplers_have_the_law_of_their_steps(name, monkeypatch):
    """T43: 4 steps of a random network, 27000 draws against the product of the enumerated steps (chi-square),
    which sums to 1 (1e-12)."""
    process, sampler, options = CASES[name]
    net = random_network(process, WORLD, seed=5)
    law, _ = grid_law(monkeypatch, sampler, process, net, steps=4, **options)
    close(law.sum(), 1.0, 1e-12)
    sample = sampler(process, net, *blank(), seeded(3), steps=4, **options)
    assert agrees(sample.x, law)
    assert (sample.evaluations <= 5).all()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_sampler_is_no_further_than_its_bound(steps, monkeypatch):
    """T43: the enumerated law p_T of T ancestral steps with exact conditionals has KL(p || p_T) <= L_T - H, with
    equality at T = 1 and strictly after it (1e-12)."""
    law, _ = grid_law(monkeypatch, sampling.ancestral, MD4, exact(MD4), steps=steps)
    divergence = float((WORLD.p * (WORLD.p / law).log()).sum())
    grid = torch.linspace(0, 1, steps + 1, dtype=F64)
    gap = float(average(WORLD, step_bound(MD4, Exact(MD4, WORLD), WORLD, grid)) - WORLD.entropy)
    close(law.sum(), 1.0, 1e-12)
    if steps == 1:
        close(divergence, gap, 1e-12)
    assert 1e-3 < divergence <= gap + 1e-12 and (steps == 1 or divergence < gap - 1e-3)


@pytest.mark.parametrize("process", [UNIFORM, genmd4(), MD4, DFM_UNIFORM], ids=lambda p: type(p).__name__)
def test_thinning_is_the_plain_posterior(process, monkeypatch):
    """(1 - event_prob) delta + event_prob event is Bayes' rule written out, at every step of a grid (1e-12):
    uniform from q(z | y) q_s(y | c), GenMD4 from rho_v = (s/t)^{w_v}, MD4 and flow matching as mixtures."""
    net, grid = random_network(process, WORLD, seed=2), sampling.time_grid(5, t_max=process.t_max)
    states = sequences(process.num_states, 3)
    recording = recorded(monkeypatch, sampling.ancestral, process, net, steps=5)
    eye = torch.eye(process.num_states, dtype=F64)
    for step in range(5):
        t, s = grid[step], grid[step + 1]
        mu = net(states, t.expand(len(states))).softmax(-1)
        if process is UNIFORM:
            keep, kept = (1 - t) / (1 - s), 1 - s
            bayes = (keep * eye[states] + (1 - keep) / 3) * (kept * mu + (1 - kept) / 3)
            wanted = bayes / bayes.sum(-1, keepdim=True)
        elif process is DFM_UNIFORM:
            wanted = s / t * eye[states] + (1 - s / t) * mu
        else:
            w = process.schedule.w.detach().double() if process is not MD4 else torch.ones(3, dtype=F64)
            reveal = mu * (1 - (s / t) ** w)
            hidden = torch.cat([reveal, 1 - reveal.sum(-1, keepdim=True)], -1)
            wanted = torch.where((states == 3)[..., None], hidden, eye[states])
        with torch.no_grad():
            got = position_laws(process, net, recording, step, states)
        close(got, wanted, 1e-12)


@pytest.mark.parametrize("sampler", [sampling.ancestral, sampling.tau_leap, sampling.remdm])
def test_a_process_is_sampled_from_where_it_starts_in_its_own_steps(sampler):
    """The network is first asked at t_max, never beyond; a process of T steps takes T unless told otherwise."""
    asked = []
    cut = MaskedDiffusion(3, t_max=0.6) if sampler is sampling.remdm else UniformDiffusion(3, t_max=0.6)
    stepped = MaskedDiffusion(3, steps=7)
    for process in (cut, stepped):
        net = random_network(process, WORLD)

        def watched(x_t, t, where=None, net=net):
            asked.extend(t.tolist())
            return net(x_t, t, where)

        asked.clear()
        sampler(process, watched, *blank(), seeded(0))
        assert max(asked) <= process.t_max
    assert {round(7 * t, 9) for t in asked} <= set(range(1, 8))


PROCESSES = build_processes(3)


@pytest.mark.parametrize("name", PROCESSES)
def test_rates_stay_below_the_bound_that_thins_them(name):
    """sum_y R_t(y) <= rate_bound for random networks, every method, state and time; zero where nothing can move;
    and reached by a network that is sure of another token, unless the network is not normalised (infinite)."""
    process = PROCESSES[name]
    net, states = random_network(process, WORLD, seed=3), sequences(process.num_states, 3)
    for t in (0.05, 0.3, 0.9):
        times = torch.full((len(states),), t, dtype=F64)
        bound = process.rate_bound(states, times)
        assert (process.rates(net(states, times), states, times).sum(-1) <= bound * (1 + 1e-12)).all()
        if process.mask_id is not None:
            assert ((bound == 0) == (states != process.mask_id)).all()
        if bound.isfinite().all():
            fastest = process.schedule.w.argmax() if hasattr(process.schedule, "w") else torch.tensor(0)
            other = torch.where(states == fastest, (fastest + 1) % 3, fastest)
            sure = torch.nn.functional.one_hot(other, 3).to(F64).log()
            close(process.rates(sure, states, times).sum(-1) / bound.clamp(min=1e-300), bound > 0, 1e-9)


# --- how fast they converge ---------------------------------------------------------------------------------

FIRST_ORDER = {
    "md4": (MD4, sampling.ancestral, {}),
    "md4, cosine grid": (MD4, sampling.ancestral, {"grid": "cosine"}),
    "scores": (ScoreMaskedDiffusion(3), sampling.ancestral, {}),
    "genmd4": (genmd4(), sampling.ancestral, {}),
    "uniform": (UNIFORM, sampling.ancestral, {}),
    "dfm uniform": (DFM_UNIFORM, sampling.ancestral, {}),
    "tau md4": (MD4, sampling.tau_leap, {}),
    "tau md4, cosine": (MaskedDiffusion(3, Cosine()), sampling.tau_leap, {}),
    "tau dfm, exact increment": (
        FlowMatching(3, "mask", schedule=Cosine()),
        sampling.tau_leap,
        {"increment": "exact"},
    ),
    "tau genmd4": (genmd4(), sampling.tau_leap, {}),
    "tau uniform": (UNIFORM, sampling.tau_leap, {}),
    "tau dfm uniform": (DFM_UNIFORM, sampling.tau_leap, {}),
    "corrector, mask": (DFM_MASK, sampling.tau_leap, {"corrector": 0.5}),
    "corrector, uniform": (DFM_UNIFORM, sampling.tau_leap, {"corrector": 0.5}),
}


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_more_steps_halve_the_distance(name, monkeypatch):
    """T44, T74: total variation to the data, with each process's own exact network, is c/T: it halves when T
    doubles, with masks at T = 8, 16, 32, 64 (ratio 2 +- 0.1), with uniform noise from 32 to 64 (2 +- 0.2)."""
    process, sampler, options = FIRST_ORDER[name]
    steps, margin = ((32, 64), 0.2) if process.mask_id is None else ((8, 16, 32, 64), 0.1)
    laws = [grid_law(monkeypatch, sampler, process, exact(process), steps=t, **options)[0] for t in steps]
    distance = [total_variation(law, WORLD.p) for law in laws]
    assert all(abs(a / b - 2) < margin for a, b in itertools.pairwise(distance)), distance
    assert distance[-1] < 0.03


def test_remasking_converges_at_first_order_only_for_a_fixed_total(monkeypatch):
    """Remasking at a fixed chance per step erases without end as steps are added: every step then reveals a number
    of tokens together that does not shrink, and the distance falls like T^-1/2 (ratio 1.2 to 1.6). A chance of
    1/T, which tends to a chain of jumps, has order one (ratio 2 +- 0.2)."""
    ratio = {}
    for total in (None, 3.0):
        distance = []
        for steps in (32, 64):
            eta = 0.3 if total is None else total / steps
            law, _ = grid_law(monkeypatch, sampling.remdm, MD4, exact(MD4), steps=steps, eta=eta)
            distance.append(total_variation(law, WORLD.p))
        ratio[total] = distance[0] / distance[1]
    assert 1.8 < ratio[3.0] < 2.2 and 1.2 < ratio[None] < 1.6


def network(process, kind):
    """The exact network of that kind, asked where every state has a probability."""
    oracle = Exact(process, WORLD, kind)
    return lambda x, t, where=None: oracle(x, t.clamp(max=0.999), where)


@pytest.mark.parametrize("process", [DFM_UNIFORM, UNIFORM], ids=["flow", "uniform diffusion"])
def test_the_wrong_network_never_converges(process, monkeypatch):
    """T74: with the posterior mu* the flow sampler, and with the leave-one-out posterior c the plug-in reverse of
    uniform diffusion, come 4 times as close in 4 times the steps (16 to 64: ratio 4 +- 0.3). Cross-wired, the flow
    fed c and the plug-in fed mu*, they stay more than 0.1 away at 16 and at 64 steps, within 10% of each other."""
    distance = {}
    for kind in ("posterior", "leave-one-out"):
        laws = [
            grid_law(monkeypatch, sampling.ancestral, process, network(process, kind), steps=n)[0]
            for n in (16, 64)
        ]
        distance[kind == process.predicts] = [total_variation(law, WORLD.p) for law in laws]
    assert abs(distance[True][0] / distance[True][1] - 4) < 0.3, distance
    assert min(distance[False]) > 0.1 and abs(distance[False][0] / distance[False][1] - 1) < 0.1, distance


# --- increments ---------------------------------------------------------------------------------------------


def test_euler_is_ancestral_for_a_linear_mask(monkeypatch):
    """T47: h / t is the exact increment of the linear schedule: the same laws (1e-14), the same draws."""
    net = random_network(MD4, WORLD, seed=1)
    one, other = (grid_law(monkeypatch, s, MD4, net, steps=8)[0] for s in (sampling.tau_leap, sampling.ancestral))
    close(one, other, 1e-14)
    x, y = (s(MD4, net, *blank(50), seeded(), steps=8).x for s in (sampling.tau_leap, sampling.ancestral))
    assert torch.equal(x, y)


@pytest.mark.parametrize("schedule", [Cosine(), Kappa(3)], ids=str)
def test_the_exact_increment_leaves_nothing_behind(schedule, monkeypatch):
    """Plain Euler leaves masks for a last parallel draw where kappa is not linear; the exact increment never does,
    and is the ancestral sampler (1e-14)."""
    process = FlowMatching(3, "mask", schedule=schedule)
    net = random_network(process, WORLD, seed=1)
    _, left = grid_law(monkeypatch, sampling.tau_leap, process, net, steps=16)
    law, none = grid_law(monkeypatch, sampling.tau_leap, process, net, steps=16, increment="exact")
    close(none, 0.0, 1e-14)
    close(law, grid_law(monkeypatch, sampling.ancestral, process, net, steps=16)[0], 1e-14)
    assert left > 1e-3


def test_exponential_jumps_leave_half_as_many_again(monkeypatch):
    """T48: jumps with probability 1 - exp(-h lambda), lambda frozen at the left end, leave n prod exp(-1/(n-i)) =
    n exp(1 - H_n) -> e^{1 - gamma} = 1.526 times the share 1/n that the sampler's own increments leave for the
    last step (1e-12)."""
    for n in (4, 16, 64):
        times, chance, _, _ = recorded(
            monkeypatch, sampling.tau_leap, DFM_MASK, random_network(DFM_MASK, WORLD), steps=n
        )
        mask = torch.full((n, 3), 3)
        ours = (1 - chance(mask, torch.arange(n))[:-1, 0]).prod()
        close(n * ours, 1.0, 1e-12)
        rate = DFM_MASK.schedule.unmask_rate(times)[:-1]
        frozen = n * torch.exp(-(rate / n).sum())
        harmonic = sum(1 / k for k in range(1, n + 1))
        close(frozen, n * math.exp(1 - harmonic), 1e-12)
    assert abs(float(frozen) - math.exp(1 - 0.5772156649)) < 0.02


# --- what does not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "sampler", "options", "said"),
    [
        (UNIFORM, sampling.tau_leap, {"increment": "exact"}, "increment=exact"),
        (genmd4(), sampling.tau_leap, {"increment": "exact"}, "increment=exact"),
        (MD4, sampling.tau_leap, {"increment": "midpoint"}, "midpoint"),
        (MD4, sampling.tau_leap, {"corrector": 1.0}, "flow matching"),
        (DFM_MASK, sampling.tau_leap, {"corrector": -1.0}, "corrector=-1.0"),
        (DFM_MASK, sampling.tau_leap, {"corrector": 1.0, "increment": "exact"}, "euler"),
        (UNIFORM, sampling.remdm, {}, "mask predictor"),
        (genmd4(), sampling.remdm, {}, "mask predictor"),
        (MD4, sampling.remdm, {"remask": "loop"}, "loop"),
        (MD4, sampling.remdm, {"eta": 1.5}, "eta=1.5"),
        (MD4, sampling.ancestral, {"grid": [1.0, 0.0], "steps": 3}, "contradict"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_contradictions_are_refused(process, sampler, options, said):
    with pytest.raises(UserError, match=said):
        sampler(process, random_network(process, WORLD), *blank(2), seeded(), **options)
