"""The lattice of masked strings: solutions, paths, visits, the trembling hand."""

import math

import pytest
import torch
from oracle import F64, TWO_STRINGS, WORLD, Exact, Table, enumerated_loss, random_network

from dlm.likelihood.orders import order_moments
from dlm.process import AnyOrder, MaskedDiffusion
from dlm.toy import lattice as la
from dlm.toy.lattice import Lattice

SQUARE, CUBE = Lattice(2, 2), Lattice(2, 3)
HALVES = TWO_STRINGS.p  # p(01) = p(11) = 1/2


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=0, atol=tol)


def test_states_edges_and_labels():
    """(V+1)^L states; every edge reveals one position; labels are read back; every path ends in its string."""
    lattice = Lattice(3, 3)
    assert len(lattice.states) == 64 and len(lattice.clean) == 27
    assert [lattice.state(lattice.label(n)) for n in range(64)] == list(range(64))
    revealed = lattice.masks[:, None, None] - lattice.masks[lattice.child]
    assert (revealed == lattice.hidden[..., None]).all()
    state, position, token = lattice.steps
    ends = lattice.child[state[..., -1], position.expand_as(state)[..., -1], token[..., -1]]
    assert (ends == lattice.clean).all() and (state[..., 0] == lattice.root).all()
    close(la.uniform_edges(lattice).sum((1, 2)), (lattice.masks > 0).double(), 1e-15)


@pytest.mark.parametrize("world", [WORLD, TWO_STRINGS], ids=["dirichlet", "zeros"])
def test_the_balanced_solution_is_random_order_with_exact_conditionals(world):
    """T45: terminal law p to 1e-14, path masses p(x)/L!, conditionals by Bayes' rule, no variance over orders."""
    lattice = Lattice(world.vocab_size, world.length)
    edges = la.balanced(lattice, world.p)
    close(la.terminal(lattice, edges), world.p, 1e-14)
    close(la.path_masses(lattice, edges), world.p.expand(len(lattice.orders), -1) / len(lattice.orders), 1e-15)
    exact = la.conditionals(lattice, Exact(MaskedDiffusion(world.vocab_size), world))
    reached = la.visits(lattice, edges) > 0
    close(la.exact_conditionals(lattice, world.p)[reached], (exact * lattice.hidden[..., None])[reached], 1e-13)
    close(la.order_variance(lattice, edges)[world.p > 0], 0 * world.p[world.p > 0], 1e-25)


def test_any_law_over_paths_keeps_the_terminal_law():
    """The chain with a path law's edge flows has its terminal law (1e-14), whatever the law."""
    lattice = Lattice(3, 3)
    for seed in range(3):
        mass = torch.rand(6, 27, generator=torch.Generator().manual_seed(seed), dtype=F64) ** 4
        mass = mass / mass.sum()
        edges = la.from_paths(lattice, mass)
        close(la.terminal(lattice, edges), mass.sum(0), 1e-14)
        close(edges.sum((1, 2)), (lattice.masks > 0).double(), 1e-14)


@pytest.mark.parametrize("net", [random_network(MaskedDiffusion(3), WORLD), Exact(MaskedDiffusion(3), WORLD)])
def test_a_network_on_the_lattice_has_its_moments_over_orders(net):
    """T53: terminal law, NELBO and variance by paths = the dynamic programme of dlm.likelihood, to 1e-12."""
    lattice = Lattice(3, 3)
    edges = la.from_network(lattice, net)
    moments = order_moments(MaskedDiffusion(3), net, WORLD.clean)
    close(la.terminal(lattice, edges), moments.log_p_random.exp(), 1e-12)
    close(la.nelbo(lattice, edges), moments.nelbo, 1e-12)
    close(la.order_variance(lattice, edges), moments.variance, 1e-12)


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.9])
def test_factorised_solutions_hide_from_the_sampler_what_the_bound_sees(theta):
    """T56: p = 1/2, 1/2; NELBO = ln 2 - ln(1 - theta^2)/2; Var = artanh(theta)^2; Var p = theta^2/4, to 1e-13."""
    edges = la.from_predictor(SQUARE, la.factorised(SQUARE, theta))
    live = HALVES > 0
    close(la.terminal(SQUARE, edges), HALVES, 1e-13)
    close(la.nelbo(SQUARE, edges)[live], [math.log(2) - 0.5 * math.log(1 - theta**2)] * 2, 1e-13)
    close(la.order_variance(SQUARE, edges)[live], [math.atanh(theta) ** 2] * 2, 1e-13)
    p_of_order = 2 * la.path_masses(SQUARE, edges)
    close(p_of_order.var(0, correction=0)[live], [theta**2 / 4] * 2, 1e-13)
    a, b = (1 + theta) / 4, (1 - theta) / 4  # in the general family: P(0_), P(1_)
    close(la.visits(SQUARE, edges), la.visits(SQUARE, la.two_strings(a, b)), 1e-15)


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.9])
def test_factorised_solutions_of_length_three(theta):
    """T56 for 011 and 111: the middle visit stays at 1/2, NELBO = ln 2 - ln(1 - theta^2)/3, to 1e-13."""
    edges = la.from_predictor(CUBE, la.factorised(CUBE, theta))
    law = la.terminal(CUBE, edges)
    close(law[[3, 7]], [0.5, 0.5], 1e-13)
    close(law.sum(), 1.0, 1e-13)
    close(la.nelbo(CUBE, edges)[[3, 7]], [math.log(2) - math.log(1 - theta**2) / 3] * 2, 1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 1.0])
def test_the_order_family(lam):
    """T57: lambda = P(position 2 first) gives P(_1) = lambda, P(0_) = P(1_) = (1 - lambda)/2, P(_0) = 0, all exact
    and all with the data as terminal law; at 1/2 every path has mass 1/4."""
    edges = la.ordered(SQUARE, HALVES, torch.tensor([1 - lam, lam], dtype=F64))
    seen = la.visits(SQUARE, edges)
    wanted = {"_1": lam, "0_": (1 - lam) / 2, "1_": (1 - lam) / 2, "_0": 0.0}
    assert {name: float(seen[SQUARE.state(name)]) for name in wanted} == wanted
    assert la.terminal(SQUARE, edges).tolist() == HALVES.tolist()
    if lam == 0.5:
        assert la.path_masses(SQUARE, edges)[:, [1, 3]].flatten().tolist() == [0.25] * 4
        close(la.nelbo(SQUARE, edges)[[1, 3]], [math.log(2)] * 2, 1e-15)


def test_one_path_per_string_samples_perfectly_and_has_no_bound():
    """T57: a = 1/2, b = 0: terminal law exact, one path of mass 1/2 per string, NELBO infinite; theta = 1."""
    edges = la.two_strings(0.5, 0.0)
    assert la.terminal(SQUARE, edges).tolist() == HALVES.tolist()
    assert la.path_masses(SQUARE, edges)[:, [1, 3]].tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert torch.equal(edges, la.concentrated(SQUARE, HALVES, torch.tensor([0, 0, 0, 1])))
    for solution in (edges, la.from_predictor(SQUARE, la.factorised(SQUARE, 1.0))):
        assert la.nelbo(SQUARE, solution)[[1, 3]].tolist() == [math.inf] * 2


@pytest.mark.parametrize("process, fewest", [(MaskedDiffusion(2), 0), (AnyOrder(2), 1)], ids=["md4", "any-order"])
def test_training_meets_the_shared_parent_twice_as_often(process, fewest):
    """T58 (was derived only): q(_1) : q(0_) = 2 : 1, in integers, where `process.loss` runs over a grid of times
    and noises, and the shares of all states are `training_visits` (to 1e-4, the rule's error; exact for the
    any-order loss). The note's "3 times" is the ratio for p(01) = 1/3, as it is 1 : p(01) in general."""
    m = 32
    time, one, other = ((torch.arange(n, dtype=F64) + 0.5) / n for n in (m, 2 * m, 2 * m))
    t, *noise = torch.cartesian_prod(time, one, other).T
    if fewest:
        t, *noise = (v[noise[0] != noise[1]] for v in (t, *noise))  # ties have no order
    counted = torch.zeros(9, dtype=torch.long)

    def watched(x_t, t, where=None):
        counted.add_(SQUARE.index(x_t).bincount(minlength=9))
        return torch.zeros(*x_t.shape, 2)[where]

    for x0 in TWO_STRINGS.clean[[1, 3]]:
        wide = x0.expand(len(t), 2)
        process.loss(watched, wide, t, torch.ones_like(wide, dtype=torch.bool), torch.stack(noise, 1)[None])
    assert counted[SQUARE.state("_1")] == 2 * counted[SQUARE.state("0_")] > 0 == counted[SQUARE.state("_0")]
    close(counted / counted.sum(), la.training_visits(SQUARE, HALVES, fewest), 1e-14 if fewest else 1e-4)
    third = la.training_visits(SQUARE, torch.tensor([0, 1 / 3, 0, 2 / 3], dtype=F64), fewest)
    close(third[SQUARE.state("_1")] / third[SQUARE.state("0_")], 3.0, 1e-14)
    close(third.sum(), 1.0, 1e-15)


def test_edges_that_data_never_reach_get_no_gradient():
    """T58 (was derived only): the exact expectation of `process.loss` has gradient exactly 0 in the logits
    out of _0, the "?" edges, and not in those out of _1, 0_ and __, at every time."""
    process, table = MaskedDiffusion(2), Table(3, 2, 2, seed=1)
    table.logits.requires_grad_()
    for t in (0.1, 0.5, 1.0):
        _, objective = enumerated_loss(process, table, TWO_STRINGS, t)
        (grad,) = torch.autograd.grad((TWO_STRINGS.p * objective).sum(), table.logits)
        assert (grad[SQUARE.state("_0")] == 0).all()
        for name, position in (("__", 0), ("__", 1), ("_1", 0), ("0_", 1), ("1_", 1)):
            assert (t == 1.0 and name != "__") or grad[SQUARE.state(name), position].abs().min() > 1e-3


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
def test_the_trembling_hand(lam, eps):
    """T59: P(second token = 0) = eps/4 + [(1-eps)(1-lambda) + eps/2] eps/2 by edge, eps/2 by token, to 1e-15."""
    edges = la.ordered(SQUARE, HALVES, torch.tensor([1 - lam, lam], dtype=F64))
    wrong = [la.terminal(SQUARE, la.tremble(SQUARE, edges, eps, kind))[[0, 2]].sum() for kind in ("edge", "token")]
    close(wrong[0], eps / 4 + ((1 - eps) * (1 - lam) + eps / 2) * eps / 2, 1e-15)
    close(wrong[1], eps / 2, 1e-15)


def test_what_is_unknown_off_the_path_costs_a_trembling_hand():
    """T59 needs exact conditionals also where the order itself never leads: with lambda = 1 and a uniform guess in
    0_ and 1_, which only a slip can reach, the error at eps = 0.1 is 0.05 instead of 0.0275, to 1e-15."""
    law = torch.tensor([0.0, 1.0], dtype=F64)
    wrong = [
        la.terminal(SQUARE, la.tremble(SQUARE, edges, 0.1))[[0, 2]].sum()
        for edges in (la.ordered(SQUARE, HALVES, law), la.from_paths(SQUARE, law[:, None] * HALVES))
    ]
    close(torch.stack(wrong), [0.0275, 0.05], 1e-15)


def test_an_order_law_and_its_policy_are_one():
    """Exact conditionals under `order_policy` visit states as the path law does, to 1e-15, for a random law."""
    lattice = Lattice(3, 3)
    law = torch.rand(6, generator=torch.Generator().manual_seed(4), dtype=F64)
    law = law / law.sum()
    policy = la.order_policy(lattice, law)
    close(policy.sum(1), (lattice.masks > 0).double(), 1e-15)
    edges = la.from_predictor(lattice, la.exact_conditionals(lattice, WORLD.p), policy)
    paths = la.from_paths(lattice, law[:, None] * WORLD.p)
    close(la.visits(lattice, edges), la.visits(lattice, paths), 1e-15)
    close(edges, la.ordered(lattice, WORLD.p, law), 0)


def test_many_solutions_at_once_are_each_of_them():
    """A batch of solutions has the law, bound and variance of its members, to 1e-15."""
    stack = torch.stack([la.two_strings(0.3, 0.1), la.two_strings(0.25, 0.2)])
    for measure in (la.terminal, la.nelbo, la.order_variance, la.visits):
        together = measure(SQUARE, stack)
        for row, one in zip(together, stack, strict=True):
            torch.testing.assert_close(row, measure(SQUARE, one), rtol=0, atol=1e-15, equal_nan=True)
