"""Which frames of a video a raw-video network sees, and which videos share a batch. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from har_pipeline.core.records import ClipSpec
from har_pipeline.models.config import Vote
from har_pipeline.video.clips import clip_indices

BIN_EDGES = (24, 32, 40, 48, 64, 80, 96, 112, 136, 160, 208, 300)
WEIGHT_POWER = 3


def bounced_indices(num_frames: int, count: int) -> np.ndarray:
    """Return (count,) int64 frame numbers 0, 1 ... num_frames - 1, num_frames - 2 ... 0, 1 ...: to the end and back.

    Raises: ValueError if either argument is below 1. Source: Sanchez-Caballero 2020, figure 4, case 1.
    """
    if num_frames < 1 or count < 1:
        raise ValueError(f"cannot take {count} frames of {num_frames}")
    period = max(1, 2 * (num_frames - 1))
    place = np.arange(count, dtype=np.int64) % period
    return np.minimum(place, period - place) if num_frames > 1 else place


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video a network sees, and how its clips vote; the defaults are the published ones."""

    # Stateful: all windows of videos of more than 300 frames, see `stateful_length`.
    whole: bool = False
    # Stateful: every step-th frame only, as if the others had not been filmed. Ours.
    step: int = 1
    # Stateless: the clip's frames are spread evenly over the whole video. Ours.
    spread: bool = False
    # Of a network whose clips vote: frames between them, and how many are drawn of a video in each epoch of training.
    stride: int = 4
    drawn: int = 4
    # Training videos are also seen upside down and mirrored.
    flips: bool = False
    # How the clips' probabilities become the video's, see `heads.pooling.vote`.
    vote: Vote = "majority"


PUBLISHED = Sampling()


def spread_indices(num_frames: int, count: int) -> np.ndarray:
    """Return (count,) int64 frame numbers from the first to the last frame, evenly; repeated where there are fewer frames."""
    return np.rint(np.linspace(0, num_frames - 1, count)).astype(np.int64)


def stateless_indices(num_frames: int, clip_len: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return (clip_len,) int64 frame numbers of the one clip that represents a video of `num_frames` frames.

    Below clip_len frames the video is played backwards from its end, and forwards again if that is too short; below twice
    clip_len the clip is consecutive frames, from there on every second frame. `rng` draws its start; None, as in testing,
    takes the middle. Raises: ValueError if either number is below 1.
    Source: Sanchez-Caballero 2020, figure 4 and section 4.1.
    """
    if num_frames < clip_len:
        return bounced_indices(num_frames, clip_len)
    step = 2 if num_frames >= 2 * clip_len else 1
    covered = step * (clip_len - 1) + 1
    spare = num_frames - covered
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return start + step * np.arange(clip_len, dtype=np.int64)


def voting_indices(num_frames: int, clip_len: int, stride: int) -> np.ndarray:
    """Return (n, clip_len) int64 frame numbers of a video's voting clips: those that `har extract` takes by default.

    A shorter video is completed with its last frame. Raises: ValueError if num_frames is below 1.
    """
    return clip_indices(num_frames, ClipSpec(sampling="dense", num_clips=None, clip_len=clip_len, clip_stride=stride))


def drawn_indices(num_frames: int, clip_len: int, rng: np.random.Generator) -> np.ndarray:
    """Return (clip_len,) int64 frame numbers of a clip in a row from a random place, completed as `voting_indices`."""
    start = int(rng.integers(max(0, num_frames - clip_len) + 1))
    return np.minimum(start + np.arange(clip_len, dtype=np.int64), num_frames - 1)


def stateful_length(num_frames: int, window: int = 8, *, whole: bool = False) -> int:
    """Return how many frames of a video the stateful network sees, a multiple of `window`: always the first ones.

    The largest bin edge that is not above num_frames: 46 -> 40, 64 -> 64, 300 -> 208. Videos of more than 300 frames,
    which NTU RGB+D does not have, keep 208 too, or with `whole` all whole windows. Below 24 frames: all whole windows, or
    one that is completed by playing backwards. The paper does not say which frames are dropped; a live camera can only
    keep the first. Raises: ValueError if num_frames is below 1.
    Source: Sanchez-Caballero 2020, section 4.2 and figure 9; windows of another length round its edges down.
    """
    if num_frames < 1:
        raise ValueError(f"a video of {num_frames} frames has no window")
    if whole and num_frames > BIN_EDGES[-1]:
        kept = num_frames
    else:
        below = [edge for edge in BIN_EDGES[:-1] if edge <= num_frames]
        kept = below[-1] if below else num_frames
    return max(window, kept // window * window)


def stateful_indices(num_frames: int, window: int = 8, *, whole: bool = False, step: int = 1) -> np.ndarray:
    """Return (n, window) int64 frame numbers of the windows of a video, in order; see `stateful_length`.

    step: only the frames 0, step, 2 step ... count.
    """
    there = stepped_length(num_frames, step)
    kept = stateful_length(there, window, whole=whole)
    return step * bounced_indices(there, kept).reshape(-1, window)


def stepped_length(num_frames: int, step: int) -> int:
    """Return how many frames are left of `num_frames` if only every step-th one counts, from the first."""
    return -(-num_frames // step)


def window_weights(num_windows: int) -> np.ndarray:
    """Return (num_windows,) float64 weights of the windows' predictions, (t / T)^3 for t = 1 ... T over their sum.

    Source: Sanchez-Caballero 2020, equation 1, whose weights do not sum to 1.
    """
    weights = (np.arange(1, num_windows + 1) / num_windows) ** WEIGHT_POWER
    return weights / weights.sum()


def silent_windows(num_windows: int) -> int:
    """Return how many windows at a video's start change no weights in training: half of them, rounded down."""
    return num_windows // 2


def length_batches(
    rows: np.ndarray, lengths: Sequence[int] | np.ndarray, batch_size: int, rng: np.random.Generator | None = None
) -> list[np.ndarray]:
    """Return batches of the video numbers `rows`, each once; all videos of a batch have the same length.

    lengths: of each row, in the same order. The last batch of a length may be smaller. `rng` shuffles the videos of a
    length and then the batches; None keeps the order of rows, short videos first.
    Source: Sanchez-Caballero 2020, section 4.2.
    """
    rows, lengths = np.asarray(rows, np.int64), np.asarray(lengths, np.int64)
    batches = []
    for length in np.unique(lengths):
        own = rows[lengths == length]
        if rng is not None:
            own = rng.permutation(own)
        batches += [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    if rng is None:
        return batches
    return [batches[number] for number in rng.permutation(len(batches))]


def plain_batches(rows: np.ndarray, batch_size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """Return batches of the video numbers `rows`, each once, shuffled by `rng`; the last one may be smaller."""
    rows = np.asarray(rows, np.int64)
    if rng is not None:
        rows = rng.permutation(rows)
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
