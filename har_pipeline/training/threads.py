"""How many CPU threads a training takes: as many as there are free cores.

The threads of one operation wait for each other in a loop that burns a core. With one thread beside other load, a batch of a
ConvLSTM took a third of the CPU seconds that it took with two threads on two cores, which were never both there at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits

# Whoever sets one of these has chosen.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SAMPLE_S = 0.3
# A core is free if it is idle for this share of its time.
IDLE_SHARE = 0.75

# As torch was when this module was imported: another number since then is a choice of the caller.
_UNCHOSEN = torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class Threads:
    """The threads of a training, and why so many."""

    count: int
    cores: int  # which this process may use
    idle: float  # how many of them were idle, on average over `SAMPLE_S`

    def describe(self) -> str:
        """Return it as a line for the user."""
        threads, cores = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((self.count, "thread"), (self.cores, "core")))
        return f"{threads}: {self.idle:.1f} of {cores} idle (OMP_NUM_THREADS sets another number)"


def chosen_by_caller() -> bool:
    """Return whether the environment, or a call of `torch.set_num_threads`, says how many threads there are."""
    return any(os.environ.get(name) for name in VARIABLES) or torch.get_num_threads() != _UNCHOSEN


@contextmanager
def training_threads(device: torch.device) -> Iterator[Threads | None]:
    """Give torch and BLAS as many threads as cores are free, and afterwards what they had; yields them.

    None, and nothing is changed, if the caller has chosen or the training runs on a GPU.
    """
    if device.type != "cpu" or chosen_by_caller():
        yield None
        return
    found = free_threads()
    with threadpool_limits(found.count):
        try:
            torch.set_num_threads(found.count)
            yield found
        finally:
            torch.set_num_threads(_UNCHOSEN)


def continue_with(threads: int) -> None:
    """Take the number of threads that an interrupted training had, for sums in the same order; not against the caller."""
    if threads != torch.get_num_threads() and not any(os.environ.get(name) for name in VARIABLES):
        torch.set_num_threads(threads)


def free_threads() -> Threads:
    """Return how many threads have a core to themselves now; at least one, at most those torch has."""
    cores, idle = usable_cores(), idle_cores()
    whole = math.floor(min(idle, cores) + 1 - IDLE_SHARE)
    return Threads(count=max(1, min(whole, _UNCHOSEN)), cores=cores, idle=min(idle, float(cores)))


def usable_cores() -> int:
    """Return how many cores this process may use: those of its affinity, or the quota of its container, rounded up."""
    import joblib

    return int(joblib.cpu_count())


def idle_cores() -> float:
    """Return how many of the cores of this process's affinity are idle, measured while it waits."""
    import psutil

    shares = psutil.cpu_percent(interval=SAMPLE_S, percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(shares))
    return sum(1 - shares[core] / 100 for core in mine if core < len(shares))
