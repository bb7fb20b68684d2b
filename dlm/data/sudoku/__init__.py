"""Sudoku of any size: boards, solutions, puzzles that are minimal, and what a human needs to solve them.

The compiled kernels are cached by the content of this whole folder: numba's own key is the time stamp of the file
that holds a kernel, which misses a change in another file that the kernel calls.
"""

import hashlib
import os
from pathlib import Path

from numba.core import config

FOLDER = Path(__file__).parent


def kernel_cache() -> Path:
    """Where kernels compiled from these very sources are kept."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.py")):
        digest.update(path.read_bytes())
    return FOLDER / "__pycache__" / f"kernels-{digest.hexdigest()[:12]}"


if not config.CACHE_DIR and os.access(FOLDER, os.W_OK):  # pyright: ignore[reportAttributeAccessIssue]
    config.CACHE_DIR = str(kernel_cache())  # pyright: ignore[reportAttributeAccessIssue]
