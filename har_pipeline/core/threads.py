"""Threads of one operation that have nothing to do."""

from __future__ import annotations

import os

# Rounds that an idle thread of GNU's OpenMP, which PyTorch brings on Linux, waits in a loop before it sleeps: a tenth of a
# millisecond. Its own 300,000 take several, longer than most operations.
SPINS = "10000"


def let_idle_threads_sleep() -> None:
    """Let threads sleep that wait for the next operation, unless the environment says how they wait; before torch is loaded.

    By default they burn a core meanwhile, which beside other load multiplies the CPU seconds (`benchmarks/threads.py`
    compares the two ways). No result depends on it.
    """
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
