"""Which frames make which clip: pure numpy, no I/O."""

from __future__ import annotations

import numpy as np

from har_pipeline.records import ClipSpec

_SLACK = 1e-3  # frames


def clip_indices(num_frames: int, spec: ClipSpec) -> np.ndarray:
    """Return (N, clip_len) int64 frame numbers in [0, num_frames), one row per clip.

    `first` gives num_clips clips whatever the length, `dense` all that fit but at least one; frames past the end are
    replaced as `spec.padding` says. `uniform` spreads num_clips starts evenly, so that the first clip starts at 0 and
    the last one ends with the video; clips overlap or repeat where the video is short.
    Raises: ValueError if num_frames is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"a video needs at least one frame, not {num_frames}")
    span = (spec.clip_len - 1) * spec.frame_interval + 1
    room = max(0, num_frames - span)
    if spec.num_clips is None:
        starts = np.arange(0, room + 1, spec.clip_stride)
    elif spec.sampling == "first":
        starts = np.arange(spec.num_clips) * spec.clip_stride
    else:
        starts = np.asarray(np.round(np.linspace(0, room, spec.num_clips)), dtype=np.int64)
    indices = starts[:, None] + np.arange(spec.clip_len) * spec.frame_interval
    padded = indices % num_frames if spec.padding == "loop" else np.minimum(indices, num_frames - 1)
    return padded.astype(np.int64)


def resampled_indices(num_frames: int, source_fps: float, target_fps: float | None) -> np.ndarray:
    """Return (F',) int64 source frame numbers that play at `target_fps`: output frame k shows time k / target_fps.

    The frame on screen at that time is taken (the last one that began by then), so frames are dropped or repeated, never
    mixed, and F' = ceil(num_frames * target_fps / source_fps). Times are compared with a slack of a thousandth of a
    source frame, because rates are often rounded (29.97 for 30000/1001). None keeps every frame.
    Raises: ValueError if num_frames is below 1 or a rate is not above 0.
    """
    if num_frames < 1:
        raise ValueError(f"a video needs at least one frame, not {num_frames}")
    if target_fps is None:
        return np.arange(num_frames, dtype=np.int64)
    if not source_fps > 0 or not target_fps > 0:
        raise ValueError(f"frame rates must be above 0: source {source_fps:g}, target {target_fps:g} frames/s")
    step = source_fps / target_fps
    count = max(1, int(np.ceil((num_frames - _SLACK) / step)))
    indices = np.floor(np.arange(count) * step + _SLACK).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def max_frame_needed(spec: ClipSpec) -> int | None:
    """Return how many leading frames suffice to build the clips of a longer video; None if that depends on its length."""
    if spec.sampling != "first" or spec.num_clips is None:
        return None
    return (spec.num_clips - 1) * spec.clip_stride + (spec.clip_len - 1) * spec.frame_interval + 1


def is_padded(num_frames: int, spec: ClipSpec) -> bool:
    """Return whether some clip of a video of this length holds frames that stand in for missing ones."""
    span = (spec.clip_len - 1) * spec.frame_interval + 1
    return num_frames < (max_frame_needed(spec) or span)
