"""Stored raw frames as clips on a device."""

from __future__ import annotations

import numpy as np
import torch

from har_pipeline.features.table import MEMORY_FRACTION, FeatureTable


class Frames:
    """The frames of a table's videos, on the device if they fit there, otherwise in the host's memory.

    table: features (sum L, H * W * C) uint8; shape: (C, H, W). What a batch needs is gathered as uint8, and made float on
    the device.
    """

    def __init__(
        self,
        table: FeatureTable,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        memory_fraction: float = MEMORY_FRACTION,
    ) -> None:
        self.device, self.shape = device, shape
        self.lengths = table.lengths
        self._starts = table.offsets[:-1]
        self._flat = torch.from_numpy(table.features)
        self.labels = torch.from_numpy(table.labels).to(device)
        self.resident = device.type == "cpu"
        if device.type == "cuda":
            self.resident = table.features.nbytes <= memory_fraction * torch.cuda.mem_get_info(device)[0]
        if self.resident:
            self._flat = self._flat.to(device)

    def clips(self, rows: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        """Return (B, T, C, H, W) float32 in [0, 1]: of each video in `rows` (B,) the frames `indices` (B, T)."""
        channels, height, width = self.shape
        places = torch.from_numpy(self._starts[rows][:, None] + indices).flatten()
        pixels = self._flat[places.to(self._flat.device, non_blocking=True)].to(self.device, non_blocking=True)
        frames = pixels.view(*indices.shape, height, width, channels).movedim(-1, 2)
        return frames.to(torch.float32).div_(255)
