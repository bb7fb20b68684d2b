"""The exact law of a sampler's own code: its steps are taken over all states at once instead of drawn."""

import math

import torch
from oracle import F64, WORLD, Exact, index, sequences
from torch.nn import functional as F

from dlm.process import GenMaskedDiffusion
from dlm.sampling.core import Generation, conditional

DRAWS = 27000


def recorded(monkeypatch, sampler, process, denoise, length=3, **options):
    """What a grid sampler hands to the loop: the times it tells the network, its chances and its law."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "evolve", lambda self, times, chance, law: seen.append((times, chance, law)))
        patch.setattr(Generation, "finish", lambda self, t, step: seen.append(t))
        given = torch.zeros(1, length, dtype=torch.long)
        sampler(process, denoise, given, given == 0, torch.Generator().manual_seed(0), **options)
    (times, chance, law), *finish = seen
    return times, chance, law, finish


def position_laws(process, denoise, recording, step, states):
    """[M L S]: the law of every position of every state after one step."""
    times, chance, law, _ = recording
    m, length = states.shape
    k = torch.full((m,), step)
    logits = denoise(states, times[step].expand(m))
    struck = law(logits.flatten(0, 1), states.flatten(), k.repeat_interleave(length)).unflatten(0, (m, length))
    struck = F.pad(struck, (0, process.num_states - struck.shape[-1]))
    if process.mask_id is not None:
        to_mask = F.one_hot(torch.full_like(states, process.mask_id), process.num_states).to(F64)
        struck = torch.where((states == process.mask_id)[..., None], struck, to_mask)
    p = chance(states, k)[..., None]
    return (1 - p) * F.one_hot(states, process.num_states) + torch.where(p > 0, p * struck, 0.0)


def kernel(laws, states):
    """[M M], row = from: positions move independently."""
    m, length = states.shape
    return torch.stack([laws[:, i].gather(1, states[:, i].expand(m, m)) for i in range(length)]).prod(0)


def start_law(process, states):
    """The prior over all states [M]."""
    quantiles = (torch.arange(6000, dtype=F64)[:, None] + 0.5) / 6000
    prior = process.prior(quantiles).flatten().bincount(minlength=process.num_states).to(F64) / 6000
    return prior[states].prod(-1)


@torch.no_grad()
def grid_law(monkeypatch, sampler, process, denoise, length=3, **options):
    """The law of a grid sampler over all clean sequences [N], and the mass it leaves on masks for `finish`."""
    states = sequences(process.num_states, length)
    recording = recorded(monkeypatch, sampler, process, denoise, length, **options)
    law = start_law(process, states)
    for step in range(len(recording[0])):
        law = law @ kernel(position_laws(process, denoise, recording, step, states), states)
    clean = (states < process.vocab_size).all(1)
    left = 1 - law[clean].sum()
    if recording[3]:
        logits = denoise(states, torch.full((len(states),), recording[3][0], dtype=F64))
        end = F.pad(conditional(logits, states, states), (0, process.num_states - process.vocab_size))
        stay = F.one_hot(states, process.num_states).to(F64)
        hidden = torch.zeros_like(states) == 1 if process.mask_id is None else states == process.mask_id
        law = law @ kernel(torch.where(hidden[..., None], end, stay), states)
    return law[clean], left


def total_variation(law, other):
    return float((law - other).abs().sum() / 2)


# --- what its tests share ----------------------------------------------------------------------------------------


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
