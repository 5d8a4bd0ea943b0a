"""Memory that the C library takes from the system."""

from __future__ import annotations

import ctypes
import platform
import sys


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for this process's next allocations.

    A block given back to the system costs a page fault per 4 KiB when the next layer asks for one: a quarter of VGG16's
    time on a CPU, a twelfth of a ConvLSTM's; of a decode worker's from nothing to a sixth (`benchmarks/frames.py`).
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: serve every request from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it
