"""Drawn pictures that nets tell apart."""

from __future__ import annotations

import numpy as np
import torch


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 1, 224, 224, 3) uint8: smooth colour fields with some texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:224, :224] / 224
    frames = []
    for _ in range(count):
        a, b, c = rng.uniform(1, 9, 3), rng.uniform(0, 6, 3), rng.uniform(1, 9, 3)
        smooth = 128 + 100 * np.sin(a * x[..., None] + b + c * y[..., None])
        frames.append(np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(frames))[:, None]
