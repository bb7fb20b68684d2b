"""Networks that are tables of free logits, trained by a process's own loss, and the quadrature of their bounds."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlm.process import Process
from dlm.process.destroyers import number
from dlm.toy.information import Language


class TimeTable(nn.Module):
    """Free logits for every state, position and token, at `knots` times, linear between them."""

    def __init__(self, process: Process, length: int, knots: int):
        super().__init__()
        self.num_states, self.knots = process.num_states, knots if process.time_dependent else 1
        shape = (self.knots, process.num_states**length, length, process.vocab_size)
        self.logits = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, where: Tensor | None = None) -> Tensor:
        row, place = number(x_t, self.num_states), t.double() * (self.knots - 1)
        left = place.floor().long().clamp(max=max(self.knots - 2, 0))
        part = (place - left)[:, None, None]
        right = (left + 1).clamp(max=self.knots - 1)
        logits = self.logits[left, row] * (1 - part) + self.logits[right, row] * part
        return logits if where is None else logits[where]


def train(
    process: Process, language: Language, settings: dict[str, Any], seed: int, in_order: bool = False
) -> Iterator[tuple[int, TimeTable]]:
    """A table trained by the process's own loss on fresh sequences; yields (steps, network) at every checkpoint.

    `in_order` asks for the next token alone (MashLastToken's bound): the same table, the same number of questions.
    """
    rng = torch.Generator().manual_seed(seed)
    net = TimeTable(process, language.length, settings["knots"])
    batch, last = settings["batch"], settings["checkpoints"][-1]
    adam = torch.optim.Adam(net.parameters(), lr=settings["learning_rate"])
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: 0.5 * (1 + math.cos(math.pi * n / last)))
    for n in range(1, last + 1):
        x0 = language.clean[torch.multinomial(language.p, batch, replacement=True, generator=rng)]
        lattice = (torch.arange(batch) + torch.rand(1, generator=rng, dtype=torch.float64)) / batch
        if in_order:
            loss = next_token_loss(net, process, x0, lattice)
        else:
            noise = torch.rand(process.noise_draws, *x0.shape, generator=rng, dtype=torch.float64)
            loss = process.loss(
                net, x0, process.times(lattice), torch.ones_like(x0, dtype=torch.bool), noise
            ).objective
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
        decay.step()
        if n in settings["checkpoints"]:
            yield n, net


def next_token_loss(net: TimeTable, process: Process, x0: Tensor, lattice: Tensor) -> Tensor:
    """One term of MashLastToken's bound: L times -log mu(next | prefix), the length of the prefix uniform."""
    length = x0.shape[1]
    position = (lattice * length).long().clamp(max=length - 1)[:, None]
    shown = torch.where(torch.arange(length) < position, x0, process.mask_id)
    log_mu = net(shown, lattice).gather(1, position[..., None].expand(-1, -1, process.vocab_size))[:, 0]
    return length * F.cross_entropy(log_mu, x0.gather(1, position)[:, 0], reduction="none")


def nodes(process: Process, count: int = 32) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre in s, t = s^2 (3 - 2s): nodes and weights on (t_min, t_max), dense at both ends."""
    # the eigenvalues of the Jacobi matrix are the nodes on (-1, 1), and the eigenvectors' heads give the weights
    off = torch.arange(1, count, dtype=torch.float64)
    off = off / (4 * off**2 - 1).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    s, weight = (x + 1) / 2, vectors[0] ** 2
    span = process.t_max - process.t_min
    return process.t_min + span * s**2 * (3 - 2 * s), weight * span * 6 * s * (1 - s)
