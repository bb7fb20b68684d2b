"""What of a text occurs verbatim in another: n-grams and longest common substrings, by the hashes of
`dlm.data.leak`, a part of a long stream at a time."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from dlm.data.leak import code_hashes, occurs

PART = 1 << 22  # of the searched stream, hashed at once


def codes(text: str) -> Int[np.ndarray, " U"]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def found(
    rows: Sequence[Int[np.ndarray, " L"]], stream: Int[np.ndarray, " U"], width: int
) -> list[Bool[np.ndarray, " N"]]:
    """For every row, which of its windows of `width` numbers, at all offsets, occur anywhere in the stream."""
    hashes = [code_hashes(row, width) for row in rows]
    wanted = np.unique(np.concatenate([*hashes, np.zeros(0, dtype=np.uint64)]))
    seen = np.zeros(len(wanted), dtype=bool)
    for start in range(0, max(len(stream) - width + 1, 0), PART):
        there = code_hashes(stream[start : start + PART + width - 1], width)
        seen |= np.isin(wanted, there[occurs(there, wanted)])
    return [occurs(row, wanted[seen]) for row in hashes]


def shares(rows: Sequence[Int[np.ndarray, " L"]], stream: Int[np.ndarray, " U"], width: int) -> list[float]:
    """The share of those windows, of every row that is long enough to have one."""
    return [float(row.mean()) for row in found(rows, stream, width) if len(row)]


def longest_common(rows: Sequence[Int[np.ndarray, " L"]], stream: Int[np.ndarray, " U"]) -> list[int]:
    """The length of the longest substring that each row shares with the stream.

    By bisection: whatever has a common substring has all shorter ones. Rows at the same length search together.
    """
    low, high = [0] * len(rows), [min(len(row), len(stream)) for row in rows]
    while any(a < b for a, b in zip(low, high, strict=True)):
        middle = [(a + b + 1) // 2 for a, b in zip(low, high, strict=True)]
        for width in sorted({m for m, a, b in zip(middle, low, high, strict=True) if a < b}):
            which = [i for i, m in enumerate(middle) if m == width and low[i] < high[i]]
            for i, windows in zip(which, found([rows[i] for i in which], stream, width), strict=True):
                if windows.any():
                    low[i] = width
                else:
                    high[i] = width - 1
    return low
