"""Random numbers for compiled loops: SplitMix64 (Steele et al. 2014), its whole state one 64-bit word in an array.

A stream is keyed by integers hashed into its first state, so the stream of one puzzle depends on nothing else.
"""

import numpy as np
from numba import njit

STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S27, S30, S31, S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@njit(cache=True, nogil=True)
def mixed(z: np.uint64) -> np.uint64:
    """Stafford's 64-bit mixer, a bijection."""
    z = (z ^ (z >> S30)) * FIRST
    z = (z ^ (z >> S27)) * SECOND
    return z ^ (z >> S31)


@njit(cache=True, nogil=True)
def keyed(seed: np.uint64, shard: np.uint64, index: np.uint64) -> np.uint64:
    """The first state of the stream (seed, shard, index)."""
    return mixed(mixed(mixed(seed + STEP) ^ (shard + STEP)) ^ (index + STEP))


@njit(cache=True, nogil=True)
def below(state: np.ndarray, n: int) -> np.int64:
    """A uniform integer in 0..n-1 (its bias is n / 2^32); moves the state on."""
    state[0] += STEP
    return np.int64(((mixed(state[0]) >> S32) * np.uint64(n)) >> S32)


@njit(cache=True, nogil=True)
def shuffle(state: np.ndarray, items: np.ndarray) -> None:
    """Fisher and Yates, in place."""
    for last in range(len(items) - 1, 0, -1):
        other = below(state, last + 1)
        items[last], items[other] = items[other], items[last]
