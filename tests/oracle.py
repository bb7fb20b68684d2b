"""An enumerated world: so few sequences that every expectation is a finite sum, in float64.

Three tokens, three positions, a random data distribution.  The exact denoiser of any process follows from its own
`log_q` by Bayes' rule, networks are tables of random logits, integrals over time are quadratures with errors below
1e-11, and the model's law is the solution of its own master equation.  Nothing here is sampled.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

F64 = torch.float64


def sequences(size, length):
    """All size^length sequences [N L], the first position varying slowest."""
    return torch.tensor(list(itertools.product(range(size), repeat=length))).reshape(-1, length)


def index(x, size):
    """The row of x in `sequences(size, L)`."""
    place = size ** torch.arange(x.shape[-1] - 1, -1, -1)
    return (x * place).sum(-1)


def dirichlet(size, concentration=0.5, seed=0):
    return torch.tensor(np.random.default_rng(seed).dirichlet([concentration] * size), dtype=F64)


@dataclass
class World:
    """A data distribution p over all V^L sequences `clean`."""

    vocab_size: int
    length: int
    p: torch.Tensor

    def __post_init__(self):
        self.clean = sequences(self.vocab_size, self.length)

    @property
    def entropy(self):
        return -torch.special.xlogy(self.p, self.p).sum()

    def marginal_entropy(self, positions):
        """H(x^S) in nats for the positions S."""
        kept = index(self.clean[:, list(positions)], self.vocab_size)
        p = torch.zeros(self.vocab_size ** len(positions), dtype=F64).index_add(0, kept, self.p)
        return -torch.special.xlogy(p, p).sum()


def random_world(vocab_size=3, length=3, seed=0, concentration=0.5):
    return World(vocab_size, length, dirichlet(vocab_size**length, concentration, seed))


WORLD = random_world()
SMALL = random_world(2, 2, seed=5)
TWO_STRINGS = World(2, 2, torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=F64))  # p(01) = p(11) = 1/2: zeros in the data


# -- networks ---------------------------------------------------------------------------------------------


class Table:
    """A network that is a table: logits [S^L L V] per state, drifting with time when `drift` is not zero."""

    def __init__(self, num_states, length, vocab_size, seed=0, drift=0.0, scale=1.0):
        rng = np.random.default_rng(seed)
        shape = (num_states**length, length, vocab_size)
        self.num_states = num_states
        self.logits = torch.tensor(scale * np.log(rng.dirichlet([1.0] * vocab_size, shape[:2])), dtype=F64)
        self.drift = drift * torch.tensor(rng.normal(size=shape), dtype=F64)

    def __call__(self, x_t, t, where=None):
        row = index(x_t, self.num_states)
        logits = self.logits[row] + torch.cos(3 * t)[:, None, None].to(F64) * self.drift[row]
        return logits if where is None else logits[where]


def random_network(process, world, seed=0, drift=None):
    drift = 0.5 * process.time_dependent if drift is None else drift
    return Table(process.num_states, world.length, world.vocab_size, seed, drift)


class Exact:
    """The network every process dreams of, from its own log_q by Bayes' rule.

    kind "posterior": p(x0^i | x_t); "leave-one-out": p(x0^i | x_t^{-i}); "score": p_t(y, x_t^{-i}) / p_t(x_t), as
    the process takes it.
    """

    def __init__(self, process, world, kind=None):
        self.process, self.world, self.kind = process, world, kind or process.predicts

    def log_joint(self, x_t, t):
        """log q(x_t^i | x0^i) for all x0: [B N L]."""
        batch, n = len(x_t), len(self.world.clean)
        x0 = self.world.clean.repeat(batch, 1)
        with torch.no_grad():
            log_q = self.process.log_q(x_t.repeat_interleave(n, 0), x0, t.repeat_interleave(n))
        return log_q.reshape(batch, n, -1)

    def probs(self, x_t, t):
        log_q = self.log_joint(x_t, t)
        length = x_t.shape[1]
        if self.kind == "posterior":
            total = log_q.sum(-1, keepdim=True).expand(-1, -1, length)
        else:
            others = ~torch.eye(length, dtype=torch.bool)
            total = torch.where(others, log_q[:, :, None, :], 0.0).sum(-1)
        joint = total + self.world.p.log()[None, :, None]
        top = joint.amax(1, keepdim=True)
        weight = torch.exp(joint - torch.where(top.isfinite(), top, 0.0))
        onehot = F.one_hot(self.world.clean, self.world.vocab_size).to(F64)
        mass = torch.einsum("bnl,nlv->blv", weight, onehot)
        empty = mass.sum(-1, keepdim=True) == 0  # a state that data never lead to: any answer will do
        return torch.where(empty, 1.0, mass) / torch.where(empty, 1.0, mass).sum(-1, keepdim=True)

    def log_scores(self, x_t, t):
        """log p_t(y, x_t^{-i}) / p_t(x_t) from the marginals, for every token y: [B L V]."""
        batch, length = x_t.shape
        v = self.world.vocab_size
        there = x_t[:, None, None].repeat(1, length, v, 1)
        for i in range(length):
            there[:, i, :, i] = torch.arange(v)
        wide = t.repeat_interleave(length * v)
        numerator = self.log_joint(there.reshape(-1, length), wide).sum(-1) + self.world.p.log()
        here = self.log_joint(x_t, t).sum(-1) + self.world.p.log()
        return numerator.logsumexp(-1).reshape(batch, length, v) - here.logsumexp(-1)[:, None, None]

    def __call__(self, x_t, t, where=None):
        t = t.to(F64)
        if self.kind != "score":
            logits = self.probs(x_t, t).log()
        elif self.process.mask_id is None:
            logits = self.log_scores(x_t, t)
        else:  # s_v = r exp(logit_v) / V behind a mask; any answer will do elsewhere
            r = (self.process.schedule.alpha(t) / self.process.schedule.u(t))[:, None, None]
            masked = (x_t == self.process.mask_id)[..., None]
            logits = torch.where(masked, self.log_scores(x_t, t) - r.log() + math.log(self.world.vocab_size), 0.0)
        return logits if where is None else logits[where]


# -- quadrature: nodes and weights on (a, b) --------------------------------------------------------------


def gauss_legendre(n=80, power=1):
    """Gauss-Legendre in s with t = a + (b - a) s^power: powers 4 and 6 tame singularities at t = a."""

    def rule(a=0.0, b=1.0):
        x, w = np.polynomial.legendre.leggauss(n)
        s, w = (x + 1) / 2, w / 2
        t, w = a + (b - a) * s**power, w * (b - a) * power * s ** (power - 1)
        return torch.tensor(t, dtype=F64), torch.tensor(w, dtype=F64)

    return rule


def tanh_sinh(step=0.1, reach=30):
    """Double-exponential: for integrable singularities at both ends; nodes stay inside [1e-16, 1 - 1e-12]."""

    def rule(a=0.0, b=1.0):
        k = torch.arange(-reach, reach + 1, dtype=F64) * step
        inner = math.pi / 2 * torch.sinh(k)
        s = torch.sigmoid(2 * inner)  # = (1 + tanh) / 2, accurate near 0
        w = step * math.pi / 2 * torch.cosh(k) / (2 * torch.cosh(inner) ** 2)
        t = (a + (b - a) * s).clamp(1e-16, 1 - 1e-12)
        return t, w * (b - a)

    return rule


# -- expectations -----------------------------------------------------------------------------------------


def reachable(process, world, t, draws=1):
    """All (x0, x_t) with q > 0 at the scalar time t: x0 row [N], states `draws` x [N L], weight q [N]."""
    states = sequences(process.num_states, world.length)
    n, m = len(world.clean), len(states)
    x0 = world.clean.repeat_interleave(m, 0)
    x_t = states.repeat(n, 1)
    q = process.log_q(x_t, x0, torch.full((n * m,), float(t), dtype=F64)).sum(-1).exp()
    live = q.detach() > 0
    row = torch.arange(n).repeat_interleave(m)[live]
    x_t, q = x_t[live], q[live]
    if draws == 1:
        return row, [x_t], q
    pairs = [(i, j) for r in range(n) for i in torch.where(row == r)[0] for j in torch.where(row == r)[0]]
    i, j = torch.tensor(pairs).T
    return row[i], [x_t[i], x_t[j]], q[i] * q[j]


def integrand(process, denoise, world, t, nelbo=None):
    """E_q sum_i ell_t^i for every time and clean sequence: [T N]."""
    nelbo = nelbo or process.nelbo
    states = sequences(process.num_states, world.length)
    steps, n, m = len(t), len(world.clean), len(states)
    logits = denoise(states.repeat(steps, 1), t.repeat_interleave(m)).reshape(steps, 1, m, world.length, -1)
    logits = logits.expand(-1, n, -1, -1, -1).flatten(0, 2)
    x0 = world.clean[None, :, None].expand(steps, -1, m, -1).flatten(0, 2)
    x_t = states[None, None].expand(steps, n, -1, -1).flatten(0, 2)
    wide = t.repeat_interleave(n * m)
    q = process.log_q(x_t, x0, wide).sum(-1).exp()
    ell = nelbo(logits, x0, x_t, wide).sum(-1)
    return torch.where(q > 0, q * ell, 0.0).reshape(steps, n, m).sum(-1)


def expected_nelbo(process, denoise, world, rule=None, nelbo=None):
    """The integral over (t_min, t_max), or the mean over the grid of `steps`, without boundary terms: [N]."""
    t, weight = (rule or tanh_sinh())(process.t_min, process.t_max)
    if process.steps is not None:
        t = torch.arange(1, process.steps + 1, dtype=F64) / process.steps
        weight = torch.full_like(t, 1 / process.steps)
    return (weight[:, None] * integrand(process, denoise, world, t, nelbo)).sum(0)


def average(world, per_sequence):
    """sum_x p(x) value(x), where 0 times anything is 0."""
    return torch.where(world.p > 0, world.p * per_sequence, 0.0).sum()


def expected_boundary(process, denoise, world):
    """The boundary terms for every clean sequence, averaged over their own corruption exactly: [N]."""
    row, (z,), q = reachable(process, world, process.t_min)
    x0 = world.clean[row]
    value = process.boundary(denoise, x0, noise_for(process, x0, z, process.t_min)).sum(-1)
    return torch.zeros(len(world.clean), dtype=F64).index_add(0, row, q * value)


NOISE = torch.cat(
    [
        10.0 ** torch.linspace(-36, -0.005, 1081, dtype=F64),
        (torch.arange(300, dtype=F64) + 0.5) / 300,
        1 - 10.0 ** torch.linspace(-15, -1, 57, dtype=F64),
    ]
)


def noise_for(process, x0, x_t, t):
    """Uniform noise [N L] that makes `corrupt` turn x0 into x_t at time t."""
    v = process.vocab_size
    clean = torch.arange(v).repeat_interleave(len(NOISE))[:, None]
    noise = NOISE.repeat(v)[:, None]
    reached = process.corrupt(clean, torch.full((len(clean),), float(t), dtype=F64), noise).reshape(v, -1)
    table = torch.full((v, process.num_states), torch.nan, dtype=F64)
    for a in range(v):
        for s in range(process.num_states):
            hits = torch.where(reached[a] == s)[0]
            if len(hits):
                table[a, s] = NOISE[hits[0]]
    noise = table[x0, x_t]
    assert not noise.isnan().any(), "no noise leads to a state of positive probability"
    return noise


def enumerated_loss(process, denoise, world, t, target=None):
    """E over all corruptions of `process.loss` at the scalar time t: nelbo [N] and objective [N].

    GenMD4's objective weighs its corruptions by q as constants: its gradient is the estimator's expectation.
    """
    row, states, q = reachable(process, world, t, process.noise_draws)
    x0 = world.clean[row]
    noise = torch.stack([noise_for(process, x0, x_t, t) for x_t in states])
    times = torch.full((len(x0),), float(t), dtype=F64)
    target = torch.ones_like(x0, dtype=torch.bool) if target is None else target.expand_as(x0)
    bound = process.loss(denoise, x0, times, target, noise)
    zero, q = torch.zeros(len(world.clean), dtype=F64), q.detach()
    return zero.index_add(0, row, q * bound.nelbo.sum(-1)), zero.index_add(0, row, q * bound.objective)


def mutual_information(process, world, t):
    """I(x0; x_t) in nats, from the joint table."""
    states = sequences(process.num_states, world.length)
    n, m = len(world.clean), len(states)
    x0, x_t = world.clean.repeat_interleave(m, 0), states.repeat(n, 1)
    with torch.no_grad():
        q = process.log_q(x_t, x0, torch.full((n * m,), float(t), dtype=F64)).sum(-1).exp().reshape(n, m)
    marginal = world.p @ q
    return (world.p[:, None] * (torch.special.xlogy(q, q) - torch.special.xlogy(q, marginal))).sum()


def sure(x0, vocab_size):
    """Logits [B L V] of a posterior that is certain of x0."""
    return F.one_hot(x0, vocab_size).to(F64).log()


def certain(process, x0, x_t, t):
    """Logits [B L V] of a network that is certain of x0, in the terms of the process."""
    if process.predicts != "score":
        return sure(x0, process.vocab_size)
    if process.mask_id is not None:
        return sure(x0, process.vocab_size) + math.log(process.vocab_size)
    log_q = process.marginal(F.one_hot(x0, process.vocab_size).to(F64), t).log()
    return log_q - log_q.gather(-1, x_t[..., None])


def step_bound(process, denoise, world, grid):
    """sum over grid steps of E KL( q(x_s | x_t, x0) || p(x_s | x_t) ): the T-step bound [N], grid from 0 up."""
    total = torch.zeros(len(world.clean), dtype=F64)
    states = sequences(process.num_states, world.length)
    n, m = len(world.clean), len(states)
    x0, x_t = world.clean.repeat_interleave(m, 0), states.repeat(n, 1)
    for s, t in itertools.pairwise(grid):
        ts, ss = (torch.full((n * m,), float(v), dtype=F64) for v in (t, s))
        q = process.log_q(x_t, x0, ts).sum(-1).exp()
        logits = denoise(states, ts[:m]).repeat(n, 1, 1)
        true = process.posterior(certain(process, x0, x_t, ts), x_t, ts, ss)
        model = process.posterior(logits, x_t, ts, ss)
        live = true > 0
        kl = torch.where(live, true * (torch.where(live, true, 1) / torch.where(live, model, 1)).log(), 0.0)
        total = total + torch.where(q > 0, q * kl.sum((-1, -2)), 0.0).reshape(n, m).sum(1)
    return total


# -- the model's own law ----------------------------------------------------------------------------------


def generator(process, rates):
    """The matrix [M M], column = from, of single-position jumps with `rates` [M L S] out of every state."""
    size, length = process.num_states, rates.shape[1]
    states = sequences(size, length)
    jumps = states[:, None, None, :].repeat(1, length, size, 1)
    for position in range(length):
        jumps[:, position, :, position] = torch.arange(size)
    start = torch.arange(len(states))[:, None, None].expand(-1, length, size)
    flow = rates * (jumps != states[:, None, None]).any(-1)
    matrix = torch.zeros(len(states), len(states), dtype=F64)
    matrix.index_put_((index(jumps, size), start), flow, accumulate=True)
    return matrix - torch.diag(matrix.sum(0))


def model_law(process, denoise, world, steps=300, a=1e-7, b=1 - 1e-7):
    """The law at t = a of the model's Markov chain started from the prior at t = b, over all states [M].

    Frozen generators at the midpoints of a logit-spaced grid: second order in the step.
    """
    states = sequences(process.num_states, world.length)
    quantiles = (torch.arange(6000, dtype=F64)[:, None] + 0.5) / 6000
    prior = process.prior(quantiles).flatten().bincount(minlength=process.num_states).to(F64) / 6000
    law = prior[states].prod(-1)
    grid = torch.sigmoid(torch.linspace(math.log(b / (1 - b)), math.log(a / (1 - a)), steps + 1, dtype=F64))
    for t, s in itertools.pairwise(grid):
        # the midpoint in log t below one half and in log(1 - t) above it, where the rates are flattest
        mid = (t * s).sqrt() if t < 0.5 else 1 - ((1 - t) * (1 - s)).sqrt()
        times = torch.full((len(states),), float(mid), dtype=F64)
        rates = process.rates(denoise(states, times), states, times)
        law = torch.linalg.matrix_exp((t - s) * generator(process, rates)) @ law
    return law


def step_law(process, denoise, world, grid):
    """The law over all states [M] of a sampler that takes the posterior's steps down a grid of times from 0 up."""
    states = sequences(process.num_states, world.length)
    quantiles = (torch.arange(6000, dtype=F64)[:, None] + 0.5) / 6000
    prior = process.prior(quantiles).flatten().bincount(minlength=process.num_states).to(F64) / 6000
    law = prior[states].prod(-1)
    for t, s in itertools.pairwise(reversed(list(grid))):
        t, s = (torch.full((len(states),), float(v), dtype=F64) for v in (t, s))
        p = process.posterior(denoise(states, t), states, t, s)
        kernel = torch.ones(len(states), len(states), dtype=F64)
        for position in range(world.length):
            kernel = kernel * p[:, position][:, states[:, position]]
        law = law @ kernel
    return law


# -- orders and subsets of a masked sequence -----------------------------------------------------------------


def conditional_nll(denoise, x0, masked, mask_id, t=0.5):
    """-log mu^i(x0^i | x0 with `masked` masked) at every position: [N L]."""
    x_t = torch.where(masked, mask_id, x0)
    log_mu = denoise(x_t, torch.full((len(x0),), t, dtype=F64)).log_softmax(-1)
    return -log_mu.gather(-1, x0[..., None])[..., 0]


def subset_costs(denoise, world, t=0.5):
    """C_S(x) = sum_{i in S} -log mu^i(x^i | x with S masked): {S: [N]} for the non-empty S."""
    costs = {}
    for size in range(1, world.length + 1):
        for chosen in itertools.combinations(range(world.length), size):
            masked = torch.zeros(world.length, dtype=torch.bool)
            masked[list(chosen)] = True
            nll = conditional_nll(denoise, world.clean, masked.expand_as(world.clean), world.vocab_size, t)
            costs[chosen] = (nll * masked).sum(-1)
    return costs


def order_log_likelihoods(denoise, world):
    """log p(x | sigma) for every order sigma of revealing: [L! N]."""
    rows = []
    for order in itertools.permutations(range(world.length)):
        masked = torch.ones(world.length, dtype=torch.bool)
        total = torch.zeros(len(world.clean), dtype=F64)
        for position in order:
            nll = conditional_nll(denoise, world.clean, masked.expand_as(world.clean), world.vocab_size)
            total = total - nll[:, position]
            masked[position] = False
        rows.append(total)
    return torch.stack(rows)


def order_moments(denoise, world):
    """By dynamic programming over subsets: p_rand(x), and mean and variance over orders of log p(x | sigma)."""
    n, length = world.clean.shape
    full = frozenset(range(length))
    mass = {frozenset(): torch.ones(n, dtype=F64)}
    first, second = {frozenset(): torch.zeros(n, dtype=F64)}, {frozenset(): torch.zeros(n, dtype=F64)}
    for size in range(1, length + 1):
        for chosen in itertools.combinations(range(length), size):
            s = frozenset(chosen)
            masked = torch.zeros(length, dtype=torch.bool)
            masked[list(chosen)] = True
            logp = -conditional_nll(denoise, world.clean, masked.expand_as(world.clean), world.vocab_size)
            rest = [(logp[:, i], s - {i}) for i in chosen]
            mass[s] = sum(lp.exp() * mass[r] for lp, r in rest) / size
            first[s] = sum(lp + first[r] for lp, r in rest) / size
            second[s] = sum(lp**2 + 2 * lp * first[r] + second[r] for lp, r in rest) / size
    return mass[full], first[full], second[full] - first[full] ** 2


def ordered_law(denoise, world, choose):
    """The law of revealing one position at a time, the next from `choose(probs [L V], candidates [L]) -> [L]`.

    A rule sees only the state.  Over all V^L sequences: [N].
    """
    v, length = world.vocab_size, world.length
    law = {tuple([v] * length): torch.ones((), dtype=F64)}
    for _ in range(length):
        following = {}
        for state, mass in law.items():
            x = torch.tensor(state)[None]
            probs = denoise(x, torch.full((1,), 0.5, dtype=F64)).softmax(-1)[0]
            picks = choose(probs, x[0] == v)
            for i in range(length):
                if picks[i] > 0:
                    for a in range(v):
                        to = (*state[:i], a, *state[i + 1 :])
                        following[to] = following.get(to, 0) + mass * picks[i] * probs[i, a]
        law = following
    return torch.stack([law.get(tuple(x.tolist()), torch.zeros((), dtype=F64)) for x in world.clean])
