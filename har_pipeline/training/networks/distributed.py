"""Training in several processes under `torchrun`: who am I, and what do the others say."""

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

# Others wait while the first process prepares the videos.
TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together: this one's number and how many there are. Only number 0 writes files."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return the value that the first process gave; all must call it."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes; all must call it. `values` is overwritten."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def part(self, items: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the positions of this process's items, and the factor that makes the mean loss over them its share.

        Gradients are averaged over processes: with the factor they are those of the mean over all items, however many
        each process has. A process that has none gets the first one with factor 0, so that it takes part in the step.
        """
        own = np.array_split(np.arange(len(items)), self.size)[self.rank]
        if not len(own):
            return np.zeros(1, np.int64), 0.0
        return own, len(own) * self.size / len(items)


ALONE = World()


@contextlib.contextmanager
def joined_world(device: str) -> Iterator[tuple[World, str]]:
    """Give this process's world, and its device: under torchrun that of its number, otherwise as given.

    `auto` and `cuda` become the GPU of the local number. Processes talk through NCCL on GPUs, otherwise gloo.
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
