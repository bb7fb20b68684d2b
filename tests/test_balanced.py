"""MD4 with rejection of often-met states: proper, unbiased where it reports, flatter where it trains."""

import pytest
import torch
from oracle import F64, TWO_STRINGS, WORLD, Exact, Table, random_network, sequences

from dlm.errors import UserError
from dlm.process import MaskedDiffusion
from dlm.process.balanced import BalancedDiffusion
from dlm.toy.lattice import Lattice

LATTICE = Lattice(3, 3)


def batch(n, seed=0, world=WORLD):
    rng = torch.Generator().manual_seed(seed)
    x0 = world.clean[torch.multinomial(world.p, n, replacement=True, generator=rng)]
    t = 1 - torch.rand(n, generator=rng, dtype=F64)
    noise = torch.rand(2, *x0.shape, generator=rng, dtype=F64)
    return x0, t, torch.ones_like(x0, dtype=torch.bool), noise


def experienced(power=1.0, seed=0):
    """A process that has met 20,000 corruptions of the world."""
    process = BalancedDiffusion(3, power=power, buckets=1 << 16)
    x0, t, _, noise = batch(20_000, seed)
    process.count(process.corrupt(x0, t, noise[0]))
    process.end_of_step()
    return process


def test_states_have_buckets_of_their_own():
    """The 64 states of three positions, and the 9 of two, hash to as many buckets, of the 65,536."""
    process = BalancedDiffusion(3)
    assert len(process.bucket(LATTICE.states).unique()) == 64
    assert len(process.bucket(sequences(3, 2)).unique()) == 9
    x = torch.randint(1000, (20_000, 32), generator=torch.Generator().manual_seed(0))
    load = process.bucket(x).bincount(minlength=1 << 16)
    assert load.max() < 10  # Poisson of mean 0.3: even


def test_the_first_batch_is_md4_and_the_report_always_is():
    """With no counts nothing is rejected; with counts the objective shrinks; `nelbo` stays MD4's, to the bit."""
    x0, t, target, noise = batch(400)
    net = random_network(MaskedDiffusion(3), WORLD)
    plain = MaskedDiffusion(3).loss(net, x0, t, target, noise)
    fresh = BalancedDiffusion(3).loss(net, x0, t, target, noise)
    assert torch.equal(fresh.objective, plain.objective) and fresh.scored == plain.scored
    bound = experienced().loss(net, x0, t, target, noise)
    assert torch.equal(bound.nelbo, plain.nelbo)
    kept = bound.objective == plain.objective
    assert 0.1 < kept.double().mean() < 0.9 and (bound.objective[~kept] == 0).all()
    assert bound.scored < plain.scored


def test_counts_advance_only_in_training_passes():
    """Not in evaluation mode, not without gradients; else once per masked row; they are saved with the weights."""
    x0, t, target, noise = batch(50)
    net = random_network(MaskedDiffusion(3), WORLD)
    process = BalancedDiffusion(3)
    process.loss(net, x0, t, target, noise)
    net.logits.requires_grad_()
    process.eval().loss(net, x0, t, target, noise)
    process.end_of_step()
    assert process.visited.sum() == 0
    process.train().loss(net, x0, t, target, noise)
    assert process.visited.sum() == 0, "not before the optimiser has stepped"
    process.end_of_step()
    assert process.visited.sum() == (process.corrupt(x0, t, noise[0]) == 3).any(1).sum() > 30
    resumed = BalancedDiffusion(3)
    resumed.load_state_dict(process.state_dict())
    again = [p.loss(net, *batch(50, seed=1)[:3], batch(50, seed=1)[3]) for p in (process, resumed)]
    assert torch.equal(again[0].objective, again[1].objective) and torch.equal(process.visited, resumed.visited)


def test_the_exact_network_is_stationary_on_the_reweighted_objective():
    """T80: the gradient of E[kept * objective], enumerated over data, masks and what is kept, is 0 (1e-13) at the
    exact conditionals and not at others, though the weights of the states have changed."""
    process = experienced()
    states = LATTICE.states
    for net, still in ((Exact(process, WORLD), True), (random_network(process, WORLD), False)):
        table = Table(4, 3, 3)
        table.logits = net(states, torch.full((64,), 0.5, dtype=F64)).detach().requires_grad_()
        total = torch.zeros((), dtype=F64)
        for t in (0.2, 0.7):
            wide = torch.full((64,), t, dtype=F64)
            for x0, p in zip(WORLD.clean, WORLD.p, strict=True):
                q = process.log_q(states, x0.expand(64, 3), wide).sum(1).exp()
                ce = -table(states, wide).log_softmax(-1)[:, torch.arange(3), x0]
                weight = process.schedule.unmask_rate(wide) * process.keep_prob(states)
                total = total + p * (q * weight * torch.where(LATTICE.hidden, ce, 0.0).sum(1)).sum()
        (grad,) = torch.autograd.grad(total, table.logits)
        assert grad.abs().max() < 1e-13 if still else grad.abs().max() > 1e-3
    weights = process.keep_prob(states)
    assert weights.min() < 0.1 and weights.max() == 1 and (weights > 0).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_visits_that_train_are_flatter(power):
    """Kept visits are n * min(1, (m/n)^power) (5 s.e.): power 1 caps them at the median m, power 0 keeps all."""
    process = experienced(power)
    x0, t, target, noise = batch(20_000, seed=2)
    net = Table(4, 3, 3)
    bound = process.loss(net, x0, t, target, noise)
    whole = MaskedDiffusion(3).loss(net, x0, t, target, noise)
    x_t = process.corrupt(x0, t, noise[0])
    masked = (x_t == 3).any(1)
    where = LATTICE.index(x_t[masked])
    kept = (bound.objective == whole.objective)[masked]
    met, used = where.bincount(minlength=64).double(), where[kept].bincount(minlength=64).double()
    expected = met * process.keep_prob(LATTICE.states)
    assert ((used - expected).abs() <= 5 * expected.clamp(min=1).sqrt()).all()
    peak = float(used.max() / process.visited[process.visited > 0].median())
    low, high = {0.0: (20.0, 99.0), 0.5: (3.0, 20.0), 1.0: (0.9, 1.25)}[power]
    assert low < peak < high, peak


def test_a_batch_is_judged_alike_however_it_is_divided():
    """Four micro-batches of one optimiser step keep the rows, and leave the counts, of the whole batch."""
    net = random_network(MaskedDiffusion(3), WORLD)
    net.logits.requires_grad_()
    x0, t, target, noise = batch(400, seed=7)
    whole, parts = experienced(), experienced()
    together = whole.loss(net, x0, t, target, noise).objective
    rows = torch.arange(400).chunk(4)
    apart = torch.cat([parts.loss(net, x0[r], t[r], target[r], noise[:, r]).objective for r in rows])
    assert torch.equal(together, apart) and (together == 0).any()
    for process in (whole, parts):
        process.end_of_step()
    assert torch.equal(whole.visited, parts.visited) and whole.visited.sum() > 15_000


def test_two_strings_train_their_states_alike():
    """T58: where MD4 meets _1 and 0_ 2 : 1, the kept visits approach 1 : 1 (s.e. 0.04)."""
    process, kept = BalancedDiffusion(2), torch.zeros(9)
    lattice = Lattice(2, 2)
    table = Table(3, 2, 2)
    table.logits.requires_grad_()
    for seed in range(40):
        x0, t, target, noise = batch(500, seed, TWO_STRINGS)
        bound = process.loss(table, x0, t, target, noise)
        process.end_of_step()
        kept += lattice.index(process.corrupt(x0, t, noise[0]))[bound.objective > 0].bincount(minlength=9)
    ratio = float(kept[lattice.state("_1")] / kept[lattice.state("0_")])
    assert 0.85 < ratio < 1.15, ratio


def test_nonsense_is_refused():
    with pytest.raises(UserError):
        BalancedDiffusion(3, power=-1.0)
