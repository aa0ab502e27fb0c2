"""Memory allocation of the `herdbook` process: glibc keeps the memory of freed tensors."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Make glibc reuse large freed blocks instead of returning them to the system.

    By default glibc maps every block above a threshold (128 kB, growing to at most 32 MB) anew, and each allocation
    faults its pages in. With large batches on a CPU this takes much of an update's time (CQL scores 30 actions per
    state). The setting affects the whole process, so only the command calls this function, never an import.

    Returns whether the setting was made: False if the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
