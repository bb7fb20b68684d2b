"""Many small networks trained side by side on languages that can be listed, for laboratories.

    net = Ensemble(lattice, seeds, lr=5e-3, dim=32, depth=2, heads=2)        # or Tables(lattice, mu, lr)
    steps, tables = train(net, [MaskedDiffusion(2)], seeds, p, steps=600, batch=32, marks=16)

S networks make one pass over rows that come as S equal blocks; nothing else is shared, so each trains exactly as
it would alone.  What a network knows is its table of conditionals mu [N L V], N the states of the lattice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from dlm.backbone import Transformer
from dlm.noise import Stream, generator
from dlm.process import Process
from dlm.toy import lattice as la
from dlm.toy.lattice import Lattice


class Ensemble:
    """S Transformers of one shape, initialised by their seeds.

    Rotary attention knows distances only, so it cannot tell the positions of an all-masked string apart: each
    would get the same prediction. Here every position has symbols of its own; with `shared`, all positions share
    the symbols, and a start symbol before the string says where it begins.
    """

    def __init__(self, lattice: Lattice, seeds: Sequence[int], lr: float, shared: bool = False, **shape: Any):
        vocab_size, length = lattice.vocab_size, lattice.length
        symbols, places = (vocab_size + 1, length + 1) if shared else (length * (vocab_size + 1) - 1, length)
        nets = []
        for seed in seeds:
            torch.manual_seed(seed)
            nets.append(Transformer(symbols, places, attention="plain", **shape))
        self.lattice, self.size, self.lr, self.shared, self.net = lattice, len(nets), lr, shared, nets[0]
        stacked, _ = stack_module_state(nets)
        self.parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}

    def chosen(self, members: Sequence[int]) -> Ensemble:
        """A copy of some of the networks, repeats allowed."""
        copy = object.__new__(Ensemble)
        copy.__dict__ |= self.__dict__ | {"size": len(members)}
        rows = torch.tensor(members)
        copy.parameters = {name: v.detach()[rows].clone().requires_grad_() for name, v in self.parameters.items()}
        return copy

    def __call__(self, x_t: Int[Tensor, "S*B L"]) -> Float[Tensor, "S*B L V"]:
        masks = self.lattice.mask_id
        if self.shared:
            ids = torch.cat([torch.full_like(x_t[:, :1], masks + 1), x_t], 1)
        else:
            ids = x_t + (masks + 1) * torch.arange(self.lattice.length)
        each = vmap(lambda parameters, x: functional_call(self.net, parameters, (x,)))
        logits = each(self.parameters, ids.unflatten(0, (self.size, -1))).flatten(0, 1)
        return logits[:, -self.lattice.length :, : self.lattice.vocab_size]


class Tables:
    """Tables of free logits [S N L V], starting at mu: optimisation without a network."""

    def __init__(self, lattice: Lattice, mu: Float[Tensor, "S N L V"], lr: float):
        self.lattice, self.size, self.lr = lattice, len(mu), lr
        self.parameters = {"logits": mu.clamp(min=1e-6).log().float().requires_grad_()}

    def __call__(self, x_t: Int[Tensor, "S*B L"]) -> Float[Tensor, "S*B L V"]:
        rows = self.lattice.index(x_t).unflatten(0, (self.size, -1))
        return self.parameters["logits"][torch.arange(self.size)[:, None], rows].flatten(0, 1)


Net = Ensemble | Tables


def conditionals(net: Net) -> Float[Tensor, "S N L V"]:
    """mu in every state, zero at visible positions."""
    with torch.no_grad():
        mu = net(net.lattice.states.repeat(net.size, 1)).double().softmax(-1)
    return mu.unflatten(0, (net.size, -1)) * net.lattice.hidden[..., None]


def looks(steps: int, count: int) -> list[int]:
    """Steps to look at: 0, `count` evenly in the logarithm, the last."""
    return sorted({0, *(round(steps ** (i / (count - 1))) for i in range(count))})


def train(
    net: Net,
    processes: Sequence[Process],
    seeds: Sequence[int],
    p: Float[Tensor, "S M"],
    steps: int,
    batch: int,
    marks: int,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[list[int], list[Float[Tensor, "S N L V"]]]:
    """Train member i on `process.loss` over language p[i] with the noise of seeds[i]; the tables at the marks.

    One process for all members, or one each. `watch` sees the states [S*B] of every batch and the gradient
    [S*B L V] in their logits. Equal seeds mean equal uniforms. Adam; the learning rate falls to zero in the second
    half.
    """
    lattice, length = net.lattice, net.lattice.length
    rngs = [generator(seed, Stream.CORRUPTION, 0) for seed in seeds]
    edge = p.cumsum(1)[:, :-1].contiguous()
    optimiser = torch.optim.Adam(list(net.parameters.values()), lr=net.lr)
    at, tables = looks(steps, marks), [conditionals(net)]
    for step in range(1, steps + 1):
        uniform = torch.stack([torch.from_numpy(rng.random((2 * length + 1, batch))) for rng in rngs])
        offset = torch.stack([torch.from_numpy(rng.random(1)) for rng in rngs])
        x0 = lattice.states[lattice.clean[torch.searchsorted(edge, uniform[:, 0].contiguous())]].flatten(0, 1)
        t = processes[0].times(((offset + torch.arange(batch) / batch) % 1).flatten())
        noise = uniform[:, 1:].unflatten(1, (2, length)).permute(1, 0, 3, 2).flatten(1, 2)
        x_t = processes[0].corrupt(x0, t, noise[0])
        logits = net(x_t)
        logits.retain_grad()
        pieces = [v.chunk(len(processes)) for v in (x_t, logits, x0, t, torch.ones_like(x0, dtype=torch.bool))]
        parts = zip(processes, *pieces, noise.chunk(len(processes), 1), strict=True)
        objective = torch.cat([of.loss(answered(x, z), *rest).objective for of, x, z, *rest in parts])
        optimiser.zero_grad()
        (objective.sum() / (batch * length)).backward()
        for group in optimiser.param_groups:
            group["lr"] = net.lr * min(1.0, 2 * (1 - (step - 1) / steps))
        optimiser.step()
        for process in processes:
            process.end_of_step()
        if watch is not None and logits.grad is not None:
            watch(lattice.index(x_t), logits.grad)
        if step in at:
            tables.append(conditionals(net))
    return at, tables


def answered(asked: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"]) -> Callable[..., Tensor]:
    """A denoiser that was asked already, about the states that the first draw of noise leads to."""

    def denoise(x_t, t, where=None):
        assert torch.equal(x_t, asked), "this process asks about other states than the first draw's"
        return logits if where is None else logits[where]

    return denoise


def imitate(net: Net, mu: Float[Tensor, "N L V"], steps: int) -> None:
    """Fit every network to the conditionals mu in the states that they reach: how a biased start is made."""
    lattice = net.lattice
    optimiser = torch.optim.Adam(list(net.parameters.values()), lr=net.lr)
    wanted = (la.visits(lattice, la.from_predictor(lattice, mu)) > 0)[:, None, None] * mu
    for _ in range(steps):
        log_mu = net(lattice.states.repeat(net.size, 1)).log_softmax(-1).unflatten(0, (net.size, -1))
        optimiser.zero_grad()
        (-(wanted * log_mu).sum()).backward()
        optimiser.step()
