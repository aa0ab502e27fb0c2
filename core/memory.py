"""Memory of the `herdbook` process: have glibc keep the memory that tensors free."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Make glibc reuse large freed blocks instead of returning each to the system.

    By default every block over 32 MB at most (128 kB at first) is mapped anew, and its pages are faulted in at each
    allocation: a large share of an update's time on a CPU where batches are wide (CQL scores 30 actions per state).
    It changes the whole process, so only the command calls it, never an import.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
