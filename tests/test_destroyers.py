"""The three destroyers, step by step: their laws, their limits, and what undoing them costs."""

import itertools
import math

import pytest
import torch
from oracle import F64, WORLD, Exact, Table, average, order_log_likelihoods

from dlm.process import MaskedDiffusion
from dlm.process.destroyers import (
    MashLastToken,
    MashOneRandomUnmaskedToken,
    ShuffleOneRandomToken,
    log_binomial,
    number,
    sequences,
)
from dlm.process.schedule import Cosine
from dlm.toy.channels import shuffle, shuffle_range

DESTROYERS = [MashLastToken, MashOneRandomUnmaskedToken, ShuffleOneRandomToken]


@pytest.fixture(params=DESTROYERS, ids=lambda d: d.__name__)
def destroyer(request):
    return request.param(3, 3)


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=tol)


def table(destroyer, k):
    """q(x_k | x0) from `log_q`: clean sequences [N] to all states [M]."""
    states, clean = sequences(destroyer.num_states, 3), sequences(3, 3)
    n, m = len(clean), len(states)
    log_q = destroyer.log_q(states.repeat(n, 1), clean.repeat_interleave(m, 0), torch.full((n * m,), k))
    return log_q.exp().reshape(n, m)


def test_the_law_of_k_steps_is_the_kth_power_of_one(destroyer):
    """T62: `log_q` = the rows of K^k at the clean sequences, k = 0..8, to 1e-13; each a distribution."""
    start = number(sequences(3, 3), destroyer.num_states)
    kernel, power = destroyer.matrix(), torch.eye(destroyer.num_states**3, dtype=F64)
    close(kernel.sum(1), torch.ones(len(kernel)), 1e-14)
    for k in range(9):
        close(table(destroyer, k), power[start], 1e-13)
        power = power @ kernel


def test_steps_have_the_probabilities_of_the_matrix(destroyer):
    """Over a lattice of noise that divides evenly into choices, `step` reaches y from x K(x, y) of the time."""
    states, n = sequences(destroyer.num_states, 3), 6
    lattice = (torch.arange(n, dtype=F64) + 0.5) / n
    noise = torch.cartesian_prod(lattice, lattice)
    x, wide = states.repeat_interleave(len(noise), 0), noise.repeat(len(states), 1)
    to = number(destroyer.step(x, wide), destroyer.num_states).reshape(len(states), -1)
    counted = torch.stack([row.bincount(minlength=len(states)) for row in to]).double() / n**2
    close(counted, destroyer.matrix(), 1e-12)


def test_the_last_uniforms_choose_the_last(destroyer):
    """Noise just below 1, in float32, is still a position and a token: nothing rounds out of range."""
    x = torch.zeros(1, 3, dtype=torch.long)
    y = destroyer.step(x, torch.full((1, 2), 1 - 2**-24))
    assert y[0, 2] == destroyer.num_states - 1 and (y[0, :2] == 0).all()
    gone = torch.full((1, 3), destroyer.num_states - 1)
    assert (destroyer.step(gone, torch.full((1, 2), 1 - 2**-24)) == gone).all()


def test_eigenvalues_of_shuffle():
    """T62: 1 - |S|/L with multiplicity (V-1)^|S| for every set S, to 1e-13 (K is symmetric)."""
    found = torch.linalg.eigvalsh(ShuffleOneRandomToken(3, 3).matrix())
    wanted = [1 - s / 3 for s in range(4) for _ in range(math.comb(3, s) * 2**s)]
    close(found, sorted(wanted), 1e-13)


def test_touched_positions_by_inclusion_and_exclusion():
    """T62: the occupancy chain = binom(L, m) sum_j (-1)^(m-j) binom(m, j) (j/L)^k, L = 5, k = 0..12, to 1e-13."""
    k = torch.arange(13)
    found = ShuffleOneRandomToken(2, 5).log_touched(k).exp()
    for row, steps in zip(found, k.tolist(), strict=True):
        wanted = [
            math.comb(5, m) * sum((-1) ** (m - j) * math.comb(m, j) * (j / 5) ** steps for j in range(m + 1))
            for m in range(6)
        ]
        close(row, wanted, 1e-13)


def test_shuffle_of_a_long_sequence():
    """L = 200: the law over the number of changed tokens sums to 1, to 1e-10, where alternating sums would not."""
    length, v = 200, 27
    destroyer = ShuffleOneRandomToken(v, length)
    d = torch.arange(length + 1)
    x = (torch.arange(length) < d[:, None]).long()
    many = log_binomial(length, d) + d.double() * math.log(v - 1)
    for k in (1, 150, 600):
        log_q = destroyer.log_q(x, torch.zeros_like(x), torch.full((length + 1,), k))
        close((many + log_q).logsumexp(0).exp(), 1.0, 1e-10)


def test_poissonised_shuffle_is_uniform_diffusion():
    """T61: sum_{k<80} Poisson(k; L lambda) q_k = uniform diffusion at alpha = e^-lambda, to 1e-14."""
    destroyer = ShuffleOneRandomToken(3, 3)
    process, k = destroyer.poissonised(Cosine()), torch.arange(80)
    for t in (0.2, 0.5, 0.9):
        close(mixture(destroyer, process, k, t), continuous(process, t), 1e-14)


def test_masked_diffusion_is_a_binomial_number_of_mashes():
    """T63: sum_k Binomial(k; L, u_t) q_k = masked diffusion's q_t, to 1e-14, on a curved schedule."""
    destroyer = MashOneRandomUnmaskedToken(3, 3)
    process, k = destroyer.poissonised(Cosine()), torch.arange(5)
    assert isinstance(process, MaskedDiffusion) and process.num_states == destroyer.num_states
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        close(mixture(destroyer, process, k, t), continuous(process, t), 1e-14)


def mixture(destroyer, process, k, t):
    alpha = process.schedule.alpha(torch.full(k.shape, t, dtype=F64))
    weight = destroyer.log_steps(k, alpha).exp()
    close(weight.sum(), 1.0, 1e-13)
    return sum(w * table(destroyer, int(n)) for n, w in zip(k, weight, strict=True))


def continuous(process, t):
    states, clean = sequences(process.num_states, 3), sequences(3, 3)
    n, m = len(clean), len(states)
    times = torch.full((n * m,), t, dtype=F64)
    log_q = process.log_q(states.repeat(n, 1), clean.repeat_interleave(m, 0), times)
    return log_q.sum(-1).exp().reshape(n, m)


def step_bound(destroyer, denoise, world):
    """sum_k E KL( q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k) ) by enumeration of all states, for every x0: [N].

    The model reverses a step by choosing a hidden position as the destroyer chose it, and drawing a token there.
    """
    states = sequences(destroyer.num_states, 3)
    kernel, mask = destroyer.matrix(), destroyer.mask_id
    mu = denoise(states, torch.full((len(states),), 0.5, dtype=F64)).softmax(-1)
    reverse = torch.zeros_like(kernel)  # [to x_{k-1}, from x_k]
    for row, z in enumerate(states):
        hidden = torch.where(z == mask)[0].tolist()
        choices = hidden[:1] if isinstance(destroyer, MashLastToken) else hidden
        for i, token in itertools.product(choices, range(3)):
            y = z.clone()
            y[i] = token
            reverse[number(y, destroyer.num_states), row] += mu[row, i, token] / len(choices)
    total = torch.zeros(len(world.clean), dtype=F64)
    for k in (1, 2, 3):
        before, now = table(destroyer, k - 1), table(destroyer, k)
        both = before[:, :, None] * kernel  # q(x_{k-1}, x_k | x0)
        true = both / torch.where(now > 0, now, 1.0)[:, None]
        ratio = torch.where(true > 0, true, 1.0) / torch.where(true > 0, reverse, 1.0)
        total += (both * ratio.log()).sum((1, 2))
    return total


@pytest.mark.parametrize("net", ["exact", "random"])
def test_the_bound_of_mashing_the_last_token_is_the_autoregressive_nll(net):
    """T63, T66: L steps of MashLastToken cost -log p(x | left to right) for every x and any network, to 1e-12;
    MashOneRandomUnmaskedToken costs the mean over all orders."""
    denoise = Exact(MaskedDiffusion(3), WORLD) if net == "exact" else Table(4, 3, 3, seed=2)
    log_p = order_log_likelihoods(denoise, WORLD)
    last = step_bound(MashLastToken(3, 3), denoise, WORLD)
    close(last, -log_p[0], 1e-12)
    close(step_bound(MashOneRandomUnmaskedToken(3, 3), denoise, WORLD), -log_p.mean(0), 1e-12)
    if net == "exact":
        close(average(WORLD, last), WORLD.entropy, 1e-12)


def test_twenty_five_shuffles():
    """T60: every entry of Shuffle^25 lies in [1/3 - (2/3) 2^-25, 1/3 + (1/3) 2^-25], both reached (1e-15), inside
    the interval (0.33333331, 0.33333335) that the essay quotes; 24 do not fit into it."""
    for n in range(1, 26):
        power = torch.linalg.matrix_power(shuffle().matrix, n)
        low, high = shuffle_range(n)
        close(power.min(), low, 1e-15)
        close(power.max(), high, 1e-15)
    assert low == pytest.approx(1 / 3 - 2 / 3 * 2**-25, abs=1e-16)
    assert 0.33333331 < low < high < 0.33333335
    assert not 0.33333331 < shuffle_range(24)[0] < shuffle_range(24)[1] < 0.33333335


def test_impossible_destroyers_are_refused():
    with pytest.raises(ValueError, match="L=0"):
        MashLastToken(3, 0)
    with pytest.raises(ValueError, match="too many"):
        ShuffleOneRandomToken(10, 4).matrix()
