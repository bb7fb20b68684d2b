"""Where slots stand and what tokens are made of, told by the data and learned by the network."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Layout(NamedTuple):
    """What is known of slots and tokens beside their numbers. Every column has an embedding table of its own."""

    slots: Int[Tensor, "L K"] | None = None  # where the token that a slot predicts stands: row, column, box
    tokens: Int[Tensor, "V K"] | None = None  # what a token is made of: its cell, its value


NO_LAYOUT = Layout()


class Columns(nn.Module):
    """The sum of one embedding per column of a table of small whole numbers, of variance one in all."""

    table: Tensor

    def __init__(self, table: Int[Tensor, "N K"], dim: int):
        super().__init__()
        sizes = table.amax(0) + 1
        first = sizes.cumsum(0) - sizes  # each column's rows of the one weight
        self.register_buffer("table", (table + first).long(), persistent=False)
        self.weight = nn.Parameter(torch.empty(int(sizes.sum()), dim))
        nn.init.normal_(self.weight, std=table.shape[1] ** -0.5)

    def forward(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        return F.embedding(self.table[rows], self.weight).sum(-2)


def with_extra(tokens: Int[Tensor, "V K"]) -> Int[Tensor, "V+1 K"]:
    """The extra symbol is made of parts that no token has."""
    return torch.cat([tokens, tokens.amax(0, keepdim=True) + 1])
