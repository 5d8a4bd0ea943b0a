"""Memory that the C library takes from the system, and Python's search for what nothing refers to."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
from collections.abc import Iterator


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for this process's next allocations.

    A block given back to the system costs a page fault per 4 KiB when the next layer asks for one: a quarter of VGG16's
    time on a CPU, a twelfth of a ConvLSTM's; of a decode worker's from nothing to a sixth (`benchmarks/frames.py`).
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: serve every request from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keep Python from searching for cycles while many objects are made that stay.

    Each search walks through all objects that there are: a tenth of the time in which 200,000 rows are read.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
