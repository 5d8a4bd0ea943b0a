"""Local contrast normalisation of clips in space and time."""

from __future__ import annotations

import torch

SIDE = 7
# Deviation of the Gaussian weights, px and frames: a quarter of the side, so that the outermost weigh a quarter of the middle.
DEVIATION = SIDE / 4
# Below one grey level a contrast is rounding, not structure.
SMALLEST = 1 / 255


def local_contrast(clips: torch.Tensor) -> torch.Tensor:
    """Return clips (..., T, H, W) float, in [0, 1], less their local mean and divided by their local deviation; of that shape.

    With weights w that sum to 1 over a neighbourhood of 7x7x7: v = x - sum w x, s = sqrt(sum w v^2), y = v / max(c, s),
    where c is the mean of s over the clip, and at least one grey level of 255. Of a neighbourhood that reaches beyond the clip
    the part inside counts, with weights that again sum to 1. So a clip that shows nothing gives zeros, and no clip
    depends on frames around it.
    Source: Jarrett 2009, section 3.1, in 3D as in Baccouche 2011, section 4.2, which does not name the weights: Gaussian,
    as Jarrett's.
    """
    with torch.autocast(clips.device.type, enabled=False):
        x = clips.float() if clips.dtype != torch.float64 else clips
        v = x - _smoothed(x)
        s = _smoothed(v.square()).clamp(min=0).sqrt()
        c = s.mean(dim=(-3, -2, -1), keepdim=True).clamp(min=SMALLEST)
        return v / torch.maximum(s, c)


def _smoothed(x: torch.Tensor) -> torch.Tensor:
    """Return the weighted means over each px's neighbourhood: the Gaussian is a product, so one axis after the other."""
    frames, height, width = (_weights(size, x) for size in x.shape[-3:])
    x = height @ (x @ width.T)
    return (frames @ x.flatten(-2)).unflatten(-1, x.shape[-2:])


def _weights(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return (size, size), row i the weights of the neighbours of i along one axis, which sum to 1."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = place[:, None] - place
    weights = torch.exp(-0.5 * (distance / DEVIATION).square()) * (distance.abs() <= SIDE // 2)
    return weights / weights.sum(dim=1, keepdim=True)
