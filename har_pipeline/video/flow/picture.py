"""Flow as colours: direction is the hue, speed the saturation."""

from __future__ import annotations

import numpy as np

# Hues from red over yellow, green, cyan, blue and magenta back to red, and the number of colours in each of the six
# stretches, by how well the eye distinguishes them. Source: Baker et al. 2007, "A Database and Evaluation Methodology for
# Optical Flow", whose colour code the field uses.
_CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255))
_STRETCHES = (15, 6, 4, 11, 13, 6)
_TOO_FAST_SHADE = 0.75


def colour_wheel() -> np.ndarray:
    """Return the (55, 3) float32 RGB colours of the wheel, in [0, 255]."""
    wheel = []
    for corner, following, count in zip(_CORNERS, (*_CORNERS[1:], _CORNERS[0]), _STRETCHES, strict=True):
        start, change = np.array(corner), np.subtract(following, corner)
        # Integers, truncated in both directions, as in the published table.
        wheel += [start + np.sign(change) * (np.abs(change) * step // count) for step in range(count)]
    return np.array(wheel, np.float32)


_WHEEL = colour_wheel()


def flow_to_rgb(flow: np.ndarray, max_px: float) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 RGB of a flow (H, W, 2) px, x then y.

    No motion is white; colours are saturated at `max_px` and darker beyond. Right is red, down yellow, left cyan, up violet.
    Raises: ValueError if the flow has another shape or max_px is not above 0.
    """
    if flow.ndim != 3 or flow.shape[2] != 2 or not max_px > 0:
        raise ValueError(f"flow is {flow.shape}, not (H, W, 2), or max_px {max_px} is not above 0")
    x, y = np.moveaxis(flow.astype(np.float32) / np.float32(max_px), -1, 0)
    speed = np.hypot(x, y)[..., None]
    position = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(_WHEEL) - 1)
    before = np.floor(position).astype(np.intp)
    share = (position - before)[..., None]
    hue = (1 - share) * _WHEEL[before] + share * _WHEEL[(before + 1) % len(_WHEEL)]
    colour = np.where(speed <= 1, 255 - speed * (255 - hue), hue * _TOO_FAST_SHADE)
    return np.floor(colour).astype(np.uint8)
