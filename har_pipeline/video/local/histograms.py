"""Histograms of directions: of the gradients of a picture, of motion, or of the gradients of motion."""

from __future__ import annotations

import cv2
import numpy as np


def gradients(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how `values` (H, W), uint8 or float32, grow along x and along y: two (H, W) float32, per two px.

    Central differences without smoothing, [-1, 0, 1] (Dalal and Triggs 2005, section 6.2), mirrored at the border.
    """
    return cv2.Sobel(values, cv2.CV_32F, 1, 0, ksize=1), cv2.Sobel(values, cv2.CV_32F, 0, 1, ksize=1)


def oriented(x: np.ndarray, y: np.ndarray, bins: int, still: float | None = None) -> np.ndarray:
    """Return the vectors (x, y) sorted by direction: one plane per bin, (bins, H, W) float32, or (bins + 1, H, W).

    x, y: (H, W) float32. Bin b points to b * 360 / bins degrees (0 is along x, 90 along y). A vector's length is shared by
    the two bins beside it in proportion to their nearness, so the planes of a place sum to the length there.
    still: vectors up to this length count as 1 in a last plane, "no motion", and in no other.
    """
    length, place = cv2.cartToPolar(x, y)
    place *= np.float32(bins / (2 * np.pi))
    planes = np.empty((bins + (still is not None), *x.shape), np.float32)
    if still is not None:
        moves = length > still
        planes[bins] = ~moves
        length *= moves
    share = np.empty_like(length)
    for number in range(bins):
        np.abs(np.subtract(place, np.float32(number), out=share), out=share)
        if not number:
            np.minimum(share, np.float32(bins) - place, out=share)
        np.maximum(np.subtract(np.float32(1), share, out=share), np.float32(0), out=share)
        np.multiply(length, share, out=planes[number])
    return planes


def square_sums(planes: np.ndarray, side: int) -> np.ndarray:
    """Return the sums over all squares of `side` px inside the planes (B, H, W) float32: (H - side + 1, W - side + 1, B).

    float32; [y, x] is the square whose upper left px is (x, y). H and W are at least `side`.
    """
    height, width = (size - side + 1 for size in planes.shape[1:])
    size = (side, side)
    sums = [cv2.boxFilter(plane, -1, size, anchor=(0, 0), normalize=False)[:height, :width] for plane in planes]
    return cv2.merge(sums).reshape(height, width, len(planes))


def root_normalised(histograms: np.ndarray, floor: float) -> np.ndarray:
    """Return histograms (n, D) float32, not negative, with `floor` added to each bin, divided by their sum, square rooted.

    The square root after the L1 norm (RootSIFT, Arandjelovic and Zisserman 2012) makes the rows unit vectors whose dot
    product is the Hellinger kernel. The floor, above 0, keeps what is nothing but rounding from being enlarged; no row
    is all zero.
    """
    histograms = histograms + np.float32(floor)
    root: np.ndarray = np.sqrt(histograms / histograms.sum(axis=1, keepdims=True))
    return root
