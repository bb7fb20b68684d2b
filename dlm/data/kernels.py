"""Where kernels that numba compiled are kept.

Numba's own key is the time stamp of the file that holds a kernel, which misses a change in another file that the
kernel calls. So they are kept by the content of all files that hold kernels; what a kernel takes from outside, a
table or a constant, stands in one of these too.
"""

import hashlib
import os
from pathlib import Path

from numba.core import config

FOLDERS = tuple(Path(__file__).parent / name for name in ("sudoku", "zebra"))


def kernel_cache() -> Path:
    """Where kernels compiled from these very sources are kept."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in folder.glob("*.py")):
        content = path.read_bytes()
        digest.update(content if b"njit" in content else b"")
    return FOLDERS[0] / "__pycache__" / f"kernels-{digest.hexdigest()[:12]}"


def keep_kernels() -> None:
    """Keep what is compiled from here on, unless NUMBA_CACHE_DIR says where or nothing can be written there."""
    if not config.CACHE_DIR and os.access(FOLDERS[0], os.W_OK):  # pyright: ignore[reportAttributeAccessIssue]
        config.CACHE_DIR = str(kernel_cache())  # pyright: ignore[reportAttributeAccessIssue]
