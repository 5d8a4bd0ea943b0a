"""Random shift and zoom of training frames, against overfitting to a few people; ours, the papers have none."""

from __future__ import annotations

import math

import numpy as np
import torch


def draw_views(count: int, amount: float, rng: np.random.Generator, *, flips: bool = False) -> np.ndarray:
    """Return (count, 4) float64, a row per video: zoom in y and x, shift in y and x as shares of the frame.

    Zooms are log-uniform between 1 / (1 + amount) and 1 + amount, shifts uniform between -amount and amount; y and x
    are drawn separately. With flips half of the videos are upside down and half are mirrored, independently: their zoom is
    negative. Otherwise frames are never mirrored: left and right distinguish classes.
    """
    zoom = np.exp(rng.uniform(-1, 1, (count, 2)) * math.log1p(amount))
    if flips:
        zoom *= rng.choice([-1.0, 1.0], (count, 2))
    return np.concatenate([zoom, rng.uniform(-amount, amount, (count, 2))], axis=1)


def take_views(clips: torch.Tensor, views: np.ndarray) -> torch.Tensor:
    """Return clips (B, T, C, H, W) as seen in `views` (B, 4), one view per video.

    Each pixel is the nearest source pixel, because depth must not be interpolated; 0 outside the frame.
    """
    height, width = clips.shape[-2:]
    rows, columns = (
        torch.from_numpy(_source(size, views[:, axis], views[:, 2 + axis])).to(clips.device)
        for axis, size in enumerate((height, width))
    )
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    videos = torch.arange(len(clips), device=clips.device)[:, None, None]
    pixels = clips.permute(0, 3, 4, 1, 2)[
        videos, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    ]
    return (pixels * inside[..., None, None]).permute(0, 3, 4, 1, 2)


def _source(size: int, zoom: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return (B, size) int64: the source pixel that each pixel shows, possibly outside 0 ... size - 1."""
    centre = (size - 1) / 2
    seen = (np.arange(size) - centre - size * shift[:, None]) / zoom[:, None] + centre
    return np.rint(seen).astype(np.int64)
