"""Noise that is a function of what it is for.

Every random number of training and evaluation is addressed by (seed, stream, key): the n-th row of the training
stream, the n-th window of a split.  It therefore does not depend on the number of processes, the batch size, the
device or what was drawn before, and an interrupted run continues exactly.  Philox is counter-based: each address
has an independent stream of its own (Salmon et al. 2011).
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Stream(IntEnum):
    """Independent streams; adding a draw to one never moves another."""

    TIME = 1  # one offset per global batch, for the lattice of times
    CORRUPTION = 2  # one address per training row
    EVALUATION = 3  # one address per held-out window
    DROPOUT = 5
    INITIALISATION = 6
    ORDERS = 7  # one fixed permutation of the positions per number
    VIEW = 8  # one address per training row: how its sequence is written down


def generator(seed: int, stream: Stream, key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[(int(stream) << 56) ^ seed, key]))


def uniforms(seed: int, stream: Stream, keys: Iterable[int], *shape: int) -> Float[Tensor, "N *shape"]:
    """Float64 uniforms on [0, 1), one block of `shape` per key."""
    return torch.from_numpy(np.stack([generator(seed, stream, int(key)).random(shape) for key in keys]))


def stream_seed(seed: int, stream: Stream, key: int = 0) -> int:
    """A seed for a library that wants one (torch's global generator)."""
    return int(generator(seed, stream, key).integers(2**62))


def lattice(offset: float, rows: Iterable[int], size: int) -> Float[Tensor, " B"]:
    """frac(offset + g / size): the rows of a global batch of `size` share one rotated lattice of times.

    Each entry alone is uniform on [0, 1), so every row is unbiased; together they are evenly spread
    (the low-discrepancy sampler of Kingma et al. 2021), however the rows are divided among processes.
    """
    return torch.tensor([(offset + g / size) % 1.0 for g in rows], dtype=torch.float64)
