"""Views of a sequence: what an autoregressive model reads instead of it, and in which order.

All leave the targets clean, so that what is learned stays -log p(x^i | what was read).  Disturbed inputs and
several orders are used in training alone; held-out scores and samples read every token, from left to right.  Their
noise comes as uniforms addressed by (seed, step, row), and a function of it decides: the same rows are disturbed
alike on every machine.  A `Permutation` is part of the model: it reads every text in that one order, always.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.noise import Stream, generator

ALL = "all"


@dataclass(frozen=True)
class MaskedInputs:
    """Each input token is hidden behind the extra symbol with probability `p`, the start symbol never.

    With `spread`, p is the largest of probabilities that differ between sequences: U(0, p), evenly over a batch
    (p = 0.5 in MIR, Xu et al. 2026).

    Raises:
        UserError: for a p outside [0, 1].
    """

    p: float = 0.15
    spread: bool = False

    def __post_init__(self) -> None:
        check_share("method.inputs.p", self.p)

    def __call__(
        self, x0: Int[Tensor, "B L"], places: Float[Tensor, " B"], noise: Float[Tensor, "2 B L"], vocab_size: int
    ) -> Int[Tensor, "B L"]:
        """What is read of x0; `places` are uniform on [0, 1), the first `noise` says where."""
        rate = self.p * places[:, None] if self.spread else self.p
        return torch.where(noise[0] < rate, vocab_size, x0)


@dataclass(frozen=True)
class ReplacedInputs:
    """Each input token is replaced with probability `p` by a uniformly random one, perhaps itself.

    5 % is the best single augmentation of Chen et al. 2026.

    Raises:
        UserError: for a p outside [0, 1].
    """

    p: float = 0.05

    def __post_init__(self) -> None:
        check_share("method.inputs.p", self.p)

    def __call__(
        self, x0: Int[Tensor, "B L"], places: Float[Tensor, " B"], noise: Float[Tensor, "2 B L"], vocab_size: int
    ) -> Int[Tensor, "B L"]:
        """What is read of x0; the first `noise` says where, the second which token."""
        return torch.where(noise[0] < self.p, (noise[1] * vocab_size).long(), x0)


@dataclass(frozen=True)
class Orders:
    """The orders in which training sequences are read, one drawn for each.

    From left to right and `count` - 1 fixed random permutations, equally often (Prabhudesai et al. 2025, fixed
    orders); count="all" permutes every sequence anew (sigma-GPT, Pannatier et al. 2024). A share `reversed` of the
    sequences is read from right to left instead. The fixed orders depend on `seed` alone, not on a run's.

    Raises:
        UserError: for no order at all, or a share outside [0, 1].
    """

    count: int | str = 1
    reversed: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count != ALL and (not isinstance(self.count, int) or self.count < 1):
            raise UserError(f"method.orders.count={self.count} must be 1 or more, or {ALL}")
        check_share("method.orders.reversed", self.reversed)

    @property
    def several(self) -> bool:
        return self.count != 1 or self.reversed > 0

    @property
    def fixed(self) -> bool:
        """Whether the orders can be listed."""
        return self.count != ALL

    def listed(self, length: int) -> tuple[Int[Tensor, "K L"], Float[Tensor, " K"]]:
        """The fixed orders, from left to right first, and how often each is drawn.

        order[k, j] is the position that order k reveals j-th.
        """
        return listed(self, length)

    def draw(self, noise: Float[Tensor, "2 B L"]) -> Int[Tensor, "B L"]:
        """One order per row: chosen by the first number of the first `noise`, permuted by the second."""
        rows, length = noise.shape[1:]
        u, raster = noise[0, :, 0].contiguous(), torch.arange(length, device=noise.device)
        if self.fixed:
            orders, share = (part.to(noise.device) for part in self.listed(length))
            chosen = torch.searchsorted(share.cumsum(0), u.double(), right=True)
            return orders[chosen.clamp(max=len(orders) - 1)]
        back = (u < self.reversed)[:, None]
        return torch.where(back, raster.flip(0).expand(rows, length), noise[1].argsort(1))


@cache
def listed(orders: Orders, length: int) -> tuple[Int[Tensor, "K L"], Float[Tensor, " K"]]:
    assert isinstance(orders.count, int)
    raster = torch.arange(length)
    random = [
        torch.from_numpy(generator(orders.seed, Stream.ORDERS, k).permutation(length))
        for k in range(1, orders.count)
    ]
    share = torch.full((orders.count,), (1 - orders.reversed) / orders.count, dtype=torch.float64)
    if orders.reversed == 0:
        return torch.stack([raster, *random]), share
    backwards = torch.tensor([orders.reversed], dtype=torch.float64)
    return torch.stack([raster, *random, raster.flip(0)]), torch.cat([share, backwards])


SWAPS: dict[str, Callable[[int], int]] = {
    "identity": lambda length: 0,
    "much_closer": lambda length: round(math.sqrt(length)),
    "closer": lambda length: round(length / 10),
}
"""How many random transpositions lead from reading order to an order of that closeness."""
UNIFORM = "uniform"
CLOSENESS = (*SWAPS, UNIFORM)


@dataclass(frozen=True)
class Permutation:
    """One fixed order in which every text is read, as if it had been written so (Kim et al. 2025, section 3.2).

    Their pi-learner is an autoregressive model of pi(x). pi is a uniformly random permutation, or reading order
    after so many random transpositions of two different positions: L/10 ("closer", 205 of 2,048) or sqrt(L)
    ("much_closer", 45), to the nearest whole number. Those of one seed are the first so many of one sequence of
    transpositions; the order depends on `seed` and L alone, not on a run's seed.

    Raises:
        UserError: for another closeness, or a negative seed.
    """

    closeness: str = "closer"
    seed: int = 0
    length: int | None = field(default=None, compare=False)  # of the only texts that it may order

    def __post_init__(self) -> None:
        if self.closeness not in CLOSENESS:
            raise UserError(f"closeness is one of {', '.join(CLOSENESS)}, not {self.closeness!r}")
        if self.seed < 0:
            raise UserError(f"the seed {self.seed} of a permutation is negative")

    @property
    def moves(self) -> bool:
        """Whether it is more than reading order."""
        return self.closeness != "identity"

    def order(self, length: int) -> Int[Tensor, " L"]:
        """order[j] is the position that is read j-th. Raises UserError for another length than its own."""
        if self.length not in (None, length):
            raise UserError(f"a model of permuted text reads texts of {self.length} tokens, not of {length}")
        return permuted(self, length)


@cache
def permuted(permutation: Permutation, length: int) -> Int[Tensor, " L"]:
    draws = generator(permutation.seed, Stream.ORDERS, 0)  # those of `Orders` begin at 1
    if permutation.closeness == UNIFORM:
        return torch.from_numpy(draws.permutation(length))
    order = torch.arange(length)
    for _ in range(SWAPS[permutation.closeness](length) if length > 1 else 0):
        pair = torch.from_numpy(draws.choice(length, 2, replace=False))
        order[pair] = order[pair.flip(0)]
    return order


def check_share(name: str, value: float) -> None:
    """Raises UserError for what is no share."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value} must be in [0, 1]")
