"""Samplers that walk down a grid, as exact laws: their own steps enumerated over all states of the world."""

import math

import pytest
import torch
from oracle import F64, WORLD, Exact, index, random_network, sequences
from sampler_laws import grid_law, kernel, position_laws, recorded, total_variation

from dlm import sampling
from dlm.build import build_processes
from dlm.errors import UserError
from dlm.process import FlowMatching, GenMaskedDiffusion, MaskedDiffusion, ScoreMaskedDiffusion, UniformDiffusion
from dlm.process.schedule import Cosine, Geometric, Kappa, LogLinear
from dlm.sampling.diffusion import remasking

DRAWS = 27000
MD4, UNIFORM, DFM_MASK, DFM_UNIFORM = (
    MaskedDiffusion(3),
    UniformDiffusion(3),
    FlowMatching(3, "mask"),
    FlowMatching(3, "uniform"),
)


def genmd4():
    process = GenMaskedDiffusion(3)
    with torch.no_grad():
        process.schedule.raw.copy_(torch.tensor([0.1, 0.9, 2.3]))
    return process


def exact(process):
    """The exact network, asked where every state has a probability; scores with Z = 1."""
    oracle = Exact(process, WORLD, "posterior" if process.predicts == "score" else None)
    constant = math.log(3) if process.predicts == "score" else 0.0

    def net(x, t, where=None):
        logits = oracle(x, t.clamp(1e-9, 1 - 1e-9)).log_softmax(-1) + constant
        return logits if where is None else logits[where]

    return net


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


def agrees(x, law, bound=60.0):
    """Pearson's chi-square over the strings expected more than 5 times, the rest pooled (26 degrees at most).

    60 is exceeded once in 6000 samples.
    """
    seen = index(x, 3).bincount(minlength=27).to(F64)
    wanted = law * len(x)
    often = wanted > 5
    pooled = [*zip(seen[often], wanted[often], strict=True), (seen[~often].sum(), wanted[~often].sum())]
    return sum(float((s - w) ** 2 / w) for s, w in pooled if w > 0) < bound


def blank(rows=DRAWS):
    return torch.zeros(rows, 3, dtype=torch.long), torch.ones(rows, 3, dtype=torch.bool)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("process", [UNIFORM, genmd4(), MD4, DFM_UNIFORM], ids=lambda p: type(p).__name__)
def test_thinning_is_the_plain_posterior(process, monkeypatch):
    """(1 - event_prob) delta + event_prob event is Bayes' rule written out, at every step of a grid (1e-12):
    uniform from q(z | y) q_s(y | c), GenMD4 from rho_v = (s/t)^{w_v}, MD4 and flow matching as mixtures."""
    net, grid = random_network(process, WORLD, seed=2), sampling.time_grid(5)
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
    """T44, T74: total variation to the data, with each process's own exact network, is c/T: from T = 32 to 64 it
    halves (ratio 2 +- 0.2)."""
    process, sampler, options = FIRST_ORDER[name]
    laws = [grid_law(monkeypatch, sampler, process, exact(process), steps=t, **options)[0] for t in (32, 64)]
    distance = [total_variation(law, WORLD.p) for law in laws]
    assert 1.8 < distance[0] / distance[1] < 2.2 and distance[1] < 0.03


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


def test_the_wrong_network_never_converges(monkeypatch):
    """T74, negative control: fed the leave-one-out posterior, the flow sampler stays 0.1 away at 64 steps."""
    wrong = Exact(DFM_UNIFORM, WORLD, "leave-one-out")
    law, _ = grid_law(
        monkeypatch, sampling.ancestral, DFM_UNIFORM, lambda x, t: wrong(x, t.clamp(max=0.999)), steps=64
    )
    assert total_variation(law, WORLD.p) > 0.1


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


# --- corrector and remasking --------------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", [0.0, 2.0])
@pytest.mark.parametrize("source", ["mask", "uniform", (0.5, 0.3, 0.2)], ids=str)
def test_a_corrected_step_keeps_the_marginals(source, corrector, monkeypatch):
    """T39: from the true p_t, one step of size h ends O(h^2) from the true p_{t-h} with and without the corrector:
    the distance falls by four as h halves (ratio 4 +- 0.3). Without the noise it adds, a corrector's forward half
    would be O(h) away."""
    process = FlowMatching(3, source, schedule=Kappa(2))
    states, net, t = sequences(process.num_states, 3), exact(process), 0.6

    def truth(time):
        q = process.log_q(
            states.repeat(27, 1),
            WORLD.clean.repeat_interleave(len(states), 0),
            torch.full((27 * len(states),), time, dtype=F64),
        )
        return WORLD.p @ q.sum(-1).exp().reshape(27, -1)

    distance, half = [], []
    for h in (0.02, 0.01):
        options = {"grid": [t, t - h, 0.0], "corrector": corrector}
        recording = recorded(monkeypatch, sampling.tau_leap, process, net, **options)
        laws = position_laws(process, net, recording, 0, states)
        distance.append(total_variation(truth(t) @ kernel(laws, states), truth(t - h)))
        plain = recorded(monkeypatch, sampling.tau_leap, process, net, grid=[t, t - h * (1 + corrector), 0.0])
        laws = position_laws(process, net, plain, 0, states)
        half.append(total_variation(truth(t) @ kernel(laws, states), truth(t - h)))
    assert abs(distance[0] / distance[1] - 4) < 0.3
    if corrector:
        assert abs(half[0] / half[1] - 2) < 0.3


def test_the_corrector_ends_clean(monkeypatch):
    """A corrected mask sampler has masks left only where Euler has: its last step adds none."""
    net = random_network(DFM_MASK, WORLD, seed=4)
    for steps in (1, 2, 9):
        _, left = grid_law(monkeypatch, sampling.tau_leap, DFM_MASK, net, steps=steps, corrector=5.0)
        close(left, 0.0, 1e-14)


@pytest.mark.parametrize("remask", ["cap", "rescale"])
@pytest.mark.parametrize("schedule", [Cosine(), Kappa(2), LogLinear(), Geometric(1e-4, 20.0)], ids=str)
def test_remasking_keeps_every_marginal(schedule, remask, monkeypatch):
    """T75: alpha_t (1 - sigma) + (1 - alpha_t) reveal = alpha_s at every step of random grids, with all
    probabilities in [0, 1] (1e-15); and the sampler applies those."""
    process = MaskedDiffusion(3, schedule)
    for seed in range(5):
        inner = torch.rand(7, dtype=F64, generator=seeded(seed)).sort(descending=True).values
        times = torch.cat([torch.ones(1, dtype=F64), inner, torch.zeros(1, dtype=F64)])
        eta = [0.0, 0.01, 0.3, 0.9, 1.0][seed]
        erase, reveal = remasking(process, times, remask, eta)
        alpha = schedule.alpha(times)
        alpha[-1] = 1.0
        close(alpha[:-1] * (1 - erase) + (1 - alpha[:-1]) * reveal, alpha[1:], 1e-15)
        assert (
            (erase >= 0).all() and (erase <= 1).all() and (reveal >= -1e-16).all() and (reveal <= 1 + 1e-15).all()
        )
        assert (erase > 0).any() == (eta > 0) and erase[-1] == 0, "nothing is masked at the end"
        options = {"grid": times.tolist(), "remask": remask, "eta": eta}
        _, chance, _, _ = recorded(monkeypatch, sampling.remdm, process, None, **options)
        k = torch.arange(8)
        close(chance(torch.full((8, 3), 3), k)[:, 0], reveal, 0)
        close(chance(torch.zeros(8, 3, dtype=torch.long), k)[:, 0], erase, 0)


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
    ids=str,
)
def test_contradictions_are_refused(process, sampler, options, said):
    with pytest.raises(UserError, match=said):
        sampler(process, random_network(process, WORLD), *blank(2), seeded(), **options)
