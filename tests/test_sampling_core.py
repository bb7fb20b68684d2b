"""The parts that all samplers share: addressed noise, draws, warps, grids, the loop and its count of calls."""

import itertools
import math

import pytest
import torch
from oracle import F64

from dlm import sampling
from dlm.errors import UserError
from dlm.process import MaskedDiffusion, ScoreMaskedDiffusion, UniformDiffusion
from dlm.sampling.core import Generation, conditional
from dlm.sampling.noise import ORDER, VALUE, WHERE, RowNoise

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(seen, law):
    wanted = law * seen.sum()
    return float(((seen - wanted) ** 2 / wanted).sum())


# --- noise --------------------------------------------------------------------------------------------------


def test_noise_is_uniform_and_unlike_itself():
    """300 rows x 20 steps x 3 purposes x 30 positions: chi-square of 100 cells (99 degrees, 170 once in 1e5), and
    no correlation between neighbours in any of the four directions beyond 5 standard errors."""
    noise = RowNoise(seeded(), 300, 30, CPU)
    row = torch.arange(300)
    steps = [[noise.rows(row, torch.full((300,), step), p) for p in (WHERE, VALUE, ORDER)] for step in range(20)]
    u = torch.stack([torch.stack(purposes, 1) for purposes in steps], 1)  # row, step, purpose, position
    assert u.shape == (300, 20, 3, 30) and (u >= 0).all() and (u < 1).all()
    assert len(u.unique()) == u.numel()
    assert chi_square((100 * u).long().flatten().bincount(minlength=100).to(F64), torch.full((100,), 0.01)) < 170
    centred = (u - 0.5) * math.sqrt(12)
    for axis in range(4):
        one, two = centred.narrow(axis, 0, u.shape[axis] - 1), centred.narrow(axis, 1, u.shape[axis] - 1)
        assert abs(float((one * two).mean())) < 5 / math.sqrt(one.numel()), axis


def test_noise_is_addressed():
    """The same at one address however it is asked for; another seed or row is another sequence."""
    few, many = RowNoise(seeded(), 3, 8, CPU), RowNoise(seeded(), 50, 8, CPU)
    steps = torch.tensor([4, 0, 9])
    rows = many.rows(torch.arange(3), steps, VALUE)
    assert torch.equal(few.rows(torch.arange(3), steps, VALUE), rows)
    assert few.at(torch.tensor([1]), torch.tensor([0]), VALUE, torch.tensor([5])) == rows[1, 5]
    assert not torch.equal(RowNoise(seeded(1), 3, 8, CPU).rows(torch.arange(3), steps, VALUE), rows)


# --- draws --------------------------------------------------------------------------------------------------


def test_draws_follow_their_law():
    """200 000 draws from 20 outcomes, seed 0: chi-square with 19 degrees below 60 (once in 2e5 such samples)."""
    law = torch.arange(1, 21, dtype=F64)
    u = torch.rand(200_000, dtype=F64, generator=seeded())
    seen = sampling.draw(law.expand(200_000, -1), u).bincount(minlength=20).to(F64)
    assert chi_square(seen, law / law.sum()) < 60
    wrong = law.pow(1.05)
    assert chi_square(seen, wrong / wrong.sum()) > 60, "a temperature of 0.95 would be noticed"


@pytest.mark.parametrize(("u", "outcome"), [(0.0, 1), (1 - 2.0**-53, 100_001), (1e-12, 1)])
def test_what_is_impossible_is_never_drawn(u, outcome):
    """At both ends of the uniform, and where the tail is far below float32's resolution of the whole."""
    law = torch.full((100_003,), 1e-13, dtype=F64)
    law[0] = law[-1] = 0.0
    law[1] = 1.0
    assert sampling.draw(law[None], torch.tensor([u], dtype=F64)).item() == outcome


def race_law(p, eps):
    """The law of argmin (eps + Exp(1)) / p_i, a race in which nobody finishes before eps / p_i."""
    p, order = p.sort(descending=True)
    start, total = eps / p, p.cumsum(0)
    leaves = -torch.expm1(-total * torch.cat([start.diff(), torch.full((1,), torch.inf, dtype=F64)]))
    alive = torch.cat([torch.ones(1, dtype=F64), (1 - leaves).cumprod(0)[:-1]])
    share = (alive * leaves / total).flip(0).cumsum(0).flip(0)
    return torch.empty_like(p).scatter(0, order, p * share)


def test_truncated_race_has_its_closed_law():
    """T70: with s_k = eps/p_k and P_k the sum of the k largest, Pr(i) = p_i sum_{k>=i} S_k e_k / P_k; against 4e5
    races of 5 classes at eps = 0.02 to 5 standard errors, and against p itself at eps = 0 (1e-14)."""
    p = torch.tensor([0.05, 0.4, 0.3, 0.05, 0.2], dtype=F64)
    law = race_law(p, 0.02)
    times = (0.02 - torch.rand(400_000, 5, dtype=F64, generator=seeded()).log()) / p
    seen = times.argmin(1).bincount(minlength=5) / 400_000
    assert ((seen - law).abs() < 5 * (law * (1 - law) / 400_000).sqrt()).all()
    assert ((law - p).abs() > 10 * (law * (1 - law) / 400_000).sqrt()).any(), "the truncation would be noticed"
    torch.testing.assert_close(race_law(p, 0.0), p, rtol=0, atol=1e-14)


def test_the_sampler_reveals_at_the_nominal_rate():
    """T71: a Zipf vocabulary of 50257 in 1000 steps: the share revealed in the first step is 1/T, and the drawn
    tokens have the law's entropy, within 5 standard errors (262 144 positions). A float32 race over tokens and
    mask together would reveal at 0.64/T and lose two nats (the closed law)."""
    vocab, steps = 50_257, 1000
    p = 1 / torch.arange(1, vocab + 1, dtype=F64)
    p = p / p.sum()
    entropy = -float((p * p.log()).sum())
    joint = race_law(torch.cat([p / steps, torch.tensor([1 - 1 / steps], dtype=F64)]), 2.0**-24)
    unmasked = joint[:-1].sum()
    cooled = joint[:-1] / unmasked
    assert 0.6 < unmasked * steps < 0.68 and -float((cooled * cooled.log()).sum()) < entropy - 2

    process, shape = MaskedDiffusion(vocab), (64, 4096)

    def net(x, t, where):
        return p.log().expand(int(where.sum()), -1)

    given = torch.zeros(shape, dtype=torch.long)
    run = Generation(process, net, given, torch.ones(shape, dtype=torch.bool), seeded())
    t = torch.tensor([1.0], dtype=F64)
    run.evolve(t, lambda x, k: process.event_prob(x, t[k], t[k] - 1 / steps), conditional)
    tokens = run.x[run.x < vocab]
    n, rate = run.x.numel(), 1 / steps
    assert abs(len(tokens) / n - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    surprise = -p[tokens].log()
    assert abs(float(surprise.mean()) - entropy) < 5 * float(surprise.std()) / math.sqrt(len(tokens))


# --- warps --------------------------------------------------------------------------------------------------


def test_temperature_is_a_power_of_the_race():
    """T72: exp(l) / (-log U)^T, l + T Gumbel(U) and Gumbel(U) added to `warp(T)` of l choose the same of 5000 x 40
    for the same U, exactly; `draw` after `warp(T)` has the law of these races (chi-square with 5 degrees below 35,
    once in 6e5)."""
    u = torch.rand(5000, 40, dtype=F64, generator=seeded())
    logits = torch.randn(5000, 40, dtype=F64, generator=seeded(1))
    for temperature in (0.3, 1.0, 2.5):
        race = (logits.exp() / (-u.log()) ** temperature).argmax(-1)
        gumbel = -torch.log(-u.log())
        assert torch.equal(race, (logits + temperature * gumbel).argmax(-1))
        assert torch.equal(race, (sampling.warp(temperature)(logits) + gumbel).argmax(-1))
    row = torch.randn(6, dtype=F64, generator=seeded(2))
    u = torch.rand(100_000, 6, dtype=F64, generator=seeded(3))
    law = sampling.warp(0.7)(row).softmax(-1)
    assert chi_square((row.exp() / (-u.log()) ** 0.7).argmax(-1).bincount(minlength=6).to(F64), law) < 35
    u = torch.rand(100_000, dtype=F64, generator=seeded(4))
    assert chi_square(sampling.draw(law.expand(100_000, -1), u).bincount(minlength=6).to(F64), law) < 35


def test_nucleus_is_the_smallest_set_with_the_mass():
    """T77: the token that crosses top_p stays; ties are broken by index; temperature 1, top_p 1 change nothing."""
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]], dtype=F64).log()

    def kept(p):
        return torch.isfinite(sampling.warp(top_p=p)(logits)).tolist()

    assert kept(0.4) == [[True, False, False], [False, False, True]]
    assert kept(0.6) == [[True, True, False], [True, False, True]]
    assert kept(0.9) == [[True, True, True], [True, True, True]]
    assert torch.equal(sampling.warp()(logits), logits)
    torch.testing.assert_close(sampling.warp(temperature=2.0)(logits), logits / 2, rtol=0, atol=0)
    for wrong in ({"temperature": 0.0}, {"temperature": -1}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
            sampling.warp(**wrong)


def test_a_warp_leaves_the_rate_of_revealing_alone():
    """Unnormalised scores reveal at Z times the nominal rate; temperature and top_p change the law of the token
    and not Z: the probability of staying a mask is the same (1e-14)."""
    process, logits = ScoreMaskedDiffusion(5), torch.randn(6, 5, dtype=F64, generator=seeded())
    x, t = torch.full((6,), 5), torch.full((6,), 0.8, dtype=F64)
    plain = process.event(logits, x, t, t - 0.3)
    for reshape in (sampling.warp(0.5), sampling.warp(top_p=0.6)):
        run = Generation(process, everywhere, *blank(1, 6), seeded(), reshape)
        warped = process.event(run.warped(logits), x, t, t - 0.3)
        torch.testing.assert_close(warped[:, 5], plain[:, 5], rtol=0, atol=1e-14)
        law = warped[:, :5] / warped[:, :5].sum(-1, keepdim=True)
        torch.testing.assert_close(law, reshape(logits).softmax(-1), rtol=0, atol=1e-14)
        assert (law - logits.softmax(-1)).abs().max() > 0.1


# --- grids --------------------------------------------------------------------------------------------------


def test_time_grids():
    """Uniform; cosine, whose alphas grow by small steps first; any times; all end at exactly zero."""
    assert sampling.time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = sampling.time_grid(64, "cosine")
    steps = -cosine.diff()
    assert cosine[0] == 1 and cosine[-1] == 0 and (steps.diff() > 0).all()
    assert sampling.time_grid(None, [1, 0.9, 0.2, 0]).tolist() == [1.0, 0.9, 0.2, 0.0]
    assert len(sampling.time_grid()) == 65
    for steps, grid, said in [
        (4, "log", "log"),
        (0, "uniform", "steps"),
        (4, [1.0, 0.0], "contradict"),
        (None, [1.0, 0.5], "descend"),
        (None, [1.0, 0.2, 0.5, 0.0], "descend"),
        (None, [2.0, 0.0], "descend"),
        (None, [0.0], "descend"),
    ]:
        with pytest.raises(UserError, match=said):
            sampling.time_grid(steps, grid)


# --- the loop -----------------------------------------------------------------------------------------------


class Counted:
    """A network that gives every position the same law, and remembers how it was asked."""

    def __init__(self, vocab=5):
        self.logits = torch.randn(vocab, dtype=F64, generator=seeded())
        self.rows, self.positions, self.times = [], [], []

    def __call__(self, x, t, where):
        self.rows.append(len(x))
        self.positions.append(int(where.sum()))
        self.times.append(t.tolist())
        return self.logits.expand(self.positions[-1], -1)


def blank(rows, length):
    return torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.bool)


def test_the_network_is_asked_only_where_something_changes():
    """Masked ancestral sampling in more steps than tokens: every token is asked for once, a row's evaluations are
    its distinct steps, and rows wait for each other's: no more calls than the busiest row has."""
    net = Counted()
    sample = sampling.ancestral(MaskedDiffusion(5), net, *blank(3, 8), seeded(), steps=200)
    assert sum(net.positions) == 24 and sum(net.rows) == sample.evaluations.sum()
    for row in range(3):
        assert sample.evaluations[row] == len(sample.fixed_at[row].unique())
    assert len(net.rows) == sample.evaluations.max() <= 8
    together = torch.tensor([times for times in net.times if len(times) == 3])
    assert (together.diff(dim=0) < 0).all() and (together != together[:, :1]).any(), "each at its own time"


def test_thinning_asks_a_uniform_process_about_a_few_positions():
    """64 steps of 16 positions: the plain posterior is asked 1024 times a row; the bound on what may change is the
    exact mean of what is asked, to 5 standard errors of 200 rows."""
    net, process = Counted(), UniformDiffusion(5)
    sample = sampling.ancestral(process, net, *blank(200, 16), seeded(), steps=64)
    grid = sampling.time_grid(64)
    x = torch.zeros(64, 1, dtype=torch.long)
    mean = float(process.event_prob(x, grid[:-1], grid[1:]).sum()) * 16
    asked = sum(net.positions) / 200
    assert abs(asked - mean) < 5 * math.sqrt(mean / 200) and mean < 1024 / 5
    assert (sample.evaluations <= 64).all() and sample.evaluations.float().mean() < 58


@pytest.mark.parametrize("ahead", [1, 7, 1000])
def test_looking_ahead_changes_nothing(ahead, monkeypatch):
    """Rows waiting at their own steps give the very sample of rows in step, however far ahead they look."""
    for process in (MaskedDiffusion(5), UniformDiffusion(5)):
        wanted = sampling.ancestral(process, Counted(), *blank(6, 8), seeded(), steps=40)
        with monkeypatch.context() as patch:
            patch.setattr("dlm.sampling.core.LOOK_AHEAD", ahead * 6 * 8)
            other = sampling.ancestral(process, Counted(), *blank(6, 8), seeded(), steps=40)
        assert all(torch.equal(a, b) for a, b in zip(wanted[:3], other[:3], strict=True))


def test_expected_evaluations():
    """T69: over all T^L reveal patterns, a row is evaluated sum_i [1 - (1 - du_i)^L] times: at every step in which
    something changes (1e-12), and the counter of `ancestral` agrees within 5 standard errors of 4000 rows. A
    sampler that caches mu instead must also evaluate before it knows that nothing changes: 1 + the sum without its
    last term, which is (1 - du_T)^L more."""
    grid, length = sampling.time_grid(None, [1.0, 0.7, 0.45, 0.1, 0.0]), 3
    du = -grid.diff()
    patterns = torch.tensor(list(itertools.product(range(4), repeat=length)))
    mass = du[patterns].prod(1)
    distinct = torch.tensor([len(set(row)) for row in patterns.tolist()], dtype=F64)
    cached = torch.tensor([1 + len(set(row) - {3}) for row in patterns.tolist()], dtype=F64)
    formula = (1 - (1 - du) ** length).sum()
    assert abs(mass.sum() - 1) < 1e-12 and abs((mass * distinct).sum() - formula) < 1e-12
    caching = 1 + (1 - (1 - du[:-1]) ** length).sum()
    assert abs((mass * cached).sum() - caching) < 1e-12
    assert abs(caching - formula - (1 - du[-1]) ** length) < 1e-12
    given, free = blank(4000, length)
    counted = sampling.ancestral(MaskedDiffusion(5), Counted(), given, free, seeded(), grid=grid.tolist())
    spread = float((mass * distinct**2).sum() - formula**2)
    assert abs(float(counted.evaluations.double().mean() - formula)) < 5 * math.sqrt(spread / 4000)


def test_watching_shows_every_state():
    """The first state is the prior, the last the sample, and a token moves only when its row's step says so."""
    frames = []
    for sampler in (
        sampling.ancestral,
        sampling.tau_leap,
        sampling.first_hitting,
        sampling.ordered,
        sampling.remdm,
    ):
        frames.clear()
        options = {"steps": 6} if sampler is not sampling.first_hitting else {}
        watch = lambda step, x: frames.append((step.clone(), x.clone()))  # noqa: E731
        sample = sampler(MaskedDiffusion(5), everywhere, *blank(2, 8), seeded(), watch=watch, **options)
        assert (frames[0][1] == 5).all() and torch.equal(frames[-1][1], sample.x)
        final = torch.stack([x for _, x in frames])
        moved = (final[1:] != final[:-1]).any(1).any(1)
        assert moved.any() and len(frames) > 2


def everywhere(x, t, where=None):
    shape = x.shape if where is None else (int(where.sum()),)
    return torch.linspace(0, 1, 5, dtype=F64).expand(*shape, 5)
