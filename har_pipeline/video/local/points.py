"""What the handcrafted extractors find in a video: places in space and time, and a descriptor around each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Points:
    """n interest points or trajectories of a video with their descriptors."""

    # (n,) int64, the first frame that a descriptor reads and the frame after the last, numbered from 0 in the frames given
    first: np.ndarray
    end: np.ndarray
    # (n, L, 2) float32, x and y in px of the frames given: the track of a trajectory, one frame a row; L = 1 for a point,
    # which is in the middle of [first, end)
    tracks: np.ndarray
    # (n,) float32, standard deviation of the spatial Gaussian, or width of the square that is described, in px
    scales: np.ndarray
    # name of a descriptor, such as `hof` -> (n, D) float32
    blocks: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.first)


def no_points(places: int, sizes: Mapping[str, int]) -> Points:
    """Return `Points` of length 0, whose tracks have so many places; sizes: name of a descriptor -> its number of values."""
    return Points(
        first=np.empty(0, np.int64),
        end=np.empty(0, np.int64),
        tracks=np.empty((0, places, 2), np.float32),
        scales=np.empty(0, np.float32),
        blocks={name: np.empty((0, size), np.float32) for name, size in sizes.items()},
    )


def joined(parts: Sequence[Points]) -> Points:
    """Return all points of at least one part, in the given order."""
    return Points(
        first=np.concatenate([part.first for part in parts]),
        end=np.concatenate([part.end for part in parts]),
        tracks=np.concatenate([part.tracks for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        blocks={name: np.concatenate([part.blocks[name] for part in parts]) for name in parts[0].blocks},
    )
