"""Training in several processes under `torchrun`: the number of this process, and exchange with the others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

# The others wait while the first process prepares the videos.
TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together."""

    rank: int = 0  # of this process; only 0 writes files
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return the value that the first process gave; all processes must call this."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes; all must call this. `values` is overwritten."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def part(self, items: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the positions of this process's items, and the factor that makes the mean loss over them its share.

        Gradients are averaged over processes; the factor makes them those of the mean over all items, however many each
        process has. A process without items gets the first one with factor 0, so that it takes part in the step.
        """
        own = np.array_split(np.arange(len(items)), self.size)[self.rank]
        if not len(own):
            return np.zeros(1, np.int64), 0.0
        return own, len(own) * self.size / len(items)


ALONE = World()


@contextlib.contextmanager
def joined_world(device: str) -> Iterator[tuple[World, str]]:
    """Give this process's world and device; under torchrun `auto` and `cuda` become the GPU of its local number.

    Processes communicate through NCCL on GPUs, otherwise gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    if device in ("auto", "cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()
