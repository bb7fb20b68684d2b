"""Samplers that add noise again on the way, flow matching's corrector and remasking: the marginals stay."""

import pytest
import torch
from oracle import F64, WORLD, random_network, sequences
from sampler_laws import close, exact, grid_law, kernel, position_laws, recorded, seeded, total_variation

from dlm import sampling
from dlm.process import FlowMatching, MaskedDiffusion
from dlm.process.schedule import Cosine, Geometric, Kappa, Linear, LogLinear
from dlm.sampling.diffusion import remasking

DFM_MASK = FlowMatching(3, "mask")


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Kappa(2), LogLinear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", [{"steps": 1}, {"steps": 3}, {"grid": [1.0, 0.0]}], ids=str)
def test_no_mask_is_left_by_any_number_of_steps(schedule, grid):
    """The last step reveals everything, the only one included, where nothing was visible at its start."""
    process = MaskedDiffusion(3, schedule)
    given, free = torch.zeros(20, 3, dtype=torch.long), torch.ones(20, 3, dtype=torch.bool)
    for remask in ("cap", "rescale"):
        x = sampling.remdm(process, random_network(process, WORLD), given, free, seeded(), remask=remask, **grid).x
        assert (x < 3).all()


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
