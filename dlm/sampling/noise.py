"""Uniform noise of a sampler, addressed instead of drawn in turn.

Every uniform is a function of (seed, row, step, purpose, position).  So a row comes out the same in a batch of any
size and company, its steps may be evaluated together with other steps of other rows, and nothing is ever drawn
for a position that does not need it.  The function is SplitMix64 (Steele et al. 2014; its mixer is Stafford's
thirteenth): each row counts on from a point of its own on one sequence of 2^64 states.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

WHERE, VALUE, ORDER = range(3)
"""What a uniform decides: whether a position changes, to what, and its place in an order. One of each per step."""

GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit integers, which wrap around in torch
MIX1, MIX2 = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


class Numbered(torch.Generator):
    """A generator for rows that have numbers of their own (of the puzzles they are): their noise is a function of
    (seed, number), whatever rows are beside them. Rows of any other generator are numbered as they stand."""

    def __new__(cls, seed: int, numbers: Int[Tensor, " B"]):
        return super().__new__(cls)

    def __init__(self, seed: int, numbers: Int[Tensor, " B"]):
        self.manual_seed(seed)
        self.numbers = numbers


class RowNoise:
    """Float64 uniforms on [0, 1) for rows of `length` positions; the seed is the generator's next number."""

    def __init__(self, generator: torch.Generator, rows: int, length: int, device: torch.device):
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
        numbers = generator.numbers if isinstance(generator, Numbered) else torch.arange(rows)
        origin = mix(seed.to(device) + GAMMA * (numbers.to(device) + 1))
        self.origin, self.length, self.device = mix(origin ^ MIX1), length, device

    def at(
        self, row: Int[Tensor, "*N"], step: Int[Tensor, "*N"], purpose: int, position: Int[Tensor, "*N"]
    ) -> Float[Tensor, "*N"]:
        """One uniform for each (row, step, position); step -1 is the start."""
        count = ((step + 1) * 3 + purpose) * self.length + position
        bits = mix(self.origin[row] + GAMMA * count)
        return (shift(bits, 11)).double() * 2.0**-53

    def rows(self, row: Int[Tensor, " R"], step: Int[Tensor, " R"], purpose: int) -> Float[Tensor, "R L"]:
        """The uniforms of whole rows."""
        return self.at(row[:, None], step[:, None], purpose, torch.arange(self.length, device=self.device))


def shift(bits: Int[Tensor, "*N"], by: int) -> Int[Tensor, "*N"]:
    """The logical shift to the right; torch's own keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mix(bits: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """A bijection of 64 bits in which every input bit moves every output bit."""
    bits = (bits ^ shift(bits, 30)) * MIX1
    bits = (bits ^ shift(bits, 27)) * MIX2
    return bits ^ shift(bits, 31)
