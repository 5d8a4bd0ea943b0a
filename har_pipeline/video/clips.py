"""Which frames make which clip: pure numpy, no I/O."""

from __future__ import annotations

import numpy as np

from har_pipeline.core.records import ClipSpec
from har_pipeline.video.timing import Timing

_SLACK = 1e-3  # frames


def clip_indices(num_frames: int, spec: ClipSpec) -> np.ndarray:
    """Return (N, clip_len) int64 frame numbers in [0, num_frames), one row per clip.

    `first` gives num_clips clips whatever the length, `dense` all that fit but at least one, `sparse` num_clips of the
    dense ones; frames past the end are replaced as `spec.padding` says. `uniform` spreads num_clips starts evenly from the
    first frame, so that the last clip ends with the video; clips of a short video overlap or repeat.
    `segments` takes one clip in each of num_clips equal parts of the video, see `segment_centers`.
    Raises: ValueError if num_frames is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"a video needs at least one frame, not {num_frames}")
    room = max(0, num_frames - _span(spec))
    if spec.num_clips is None:
        starts = np.arange(0, room + 1, spec.clip_stride)
    elif spec.sampling == "first":
        starts = np.arange(spec.num_clips) * spec.clip_stride
    elif spec.sampling == "sparse":
        dense = np.arange(0, room + 1, spec.clip_stride)
        starts = dense[sparse_clip_indices(len(dense), spec.num_clips)]
    elif spec.sampling == "segments":
        starts = np.clip(segment_centers(num_frames, spec.num_clips, spec.segment_seed) - _span(spec) // 2, 0, room)
    else:
        starts = np.asarray(np.round(np.linspace(0, room, spec.num_clips)), dtype=np.int64)
    indices = starts[:, None] + np.arange(spec.clip_len) * spec.frame_interval
    padded = indices % num_frames if spec.padding == "loop" else np.minimum(indices, num_frames - 1)
    return padded.astype(np.int64)


def sparse_clip_indices(num_clips: int, num_samples: int) -> np.ndarray:
    """Return which `num_samples` of `num_clips` clips to take: evenly spread, first and last included.

    (num_samples,) int64 clip numbers from 0, non-decreasing; clips repeat where num_clips < num_samples.
    Raises: ValueError if either is below 1.
    Source: Lakhal 2018, section 3.1: sigma(t) = 1 + floor((t - 1)(K - 1) / (T - 1)), counted from 1. It is not defined for
    T = 1, where we take the middle clip, of an even number the earlier one.
    """
    if num_clips < 1 or num_samples < 1:
        raise ValueError(f"cannot take {num_samples} of {num_clips} clips: both must be at least 1")
    if num_samples == 1:
        return np.array([(num_clips - 1) // 2], np.int64)
    return np.arange(num_samples, dtype=np.int64) * (num_clips - 1) // (num_samples - 1)


def segment_centers(num_frames: int, num_segments: int, seed: int | None = None) -> np.ndarray:
    """Return (num_segments,) int64 frame numbers, one in each of the equal parts of the video.

    seed None: the middle frame of each part, as at test time; else a frame drawn in each part, as in training, from the
    seed and the number of frames alone. Parts shorter than a frame share one.
    Source: Wang 2016 (TSN), section 3.1.
    """
    place = (
        np.full(num_segments, 0.5) if seed is None else np.random.default_rng([seed, num_frames]).random(num_segments)
    )
    return np.floor((np.arange(num_segments) + place) * num_frames / num_segments).astype(np.int64)


def flow_pairs(indices: np.ndarray, num_frames: int) -> np.ndarray:
    """Return (N, 2T) int64: the frames that the flow of the clips (N, T) starts from, then those that it leads to.

    The flow at frame i leads from i to i + 1, so a clip has as many flow fields as RGB frames, at the same times; the last
    frame of the video takes the flow before it. A video of one frame has zero flow.
    """
    first = np.minimum(indices, max(num_frames - 2, 0))
    return np.concatenate([first, np.minimum(first + 1, num_frames - 1)], axis=1)


def resampled_indices(num_frames: int, source: Timing, target_fps: float | None) -> np.ndarray:
    """Return (F',) int64 source frame numbers that play at `target_fps`: output frame k shows time k / target_fps.

    The frame on screen at that time is taken (the last one that began by then), so frames are dropped or repeated, never
    mixed, and F' = ceil(duration * target_fps). Times are compared with a slack of a thousandth of a source frame, because
    rates are often rounded (29.97 for 30000/1001). None keeps every frame.
    Raises: ValueError if num_frames is below 1 or a rate is not above 0.
    """
    if num_frames < 1:
        raise ValueError(f"a video needs at least one frame, not {num_frames}")
    if target_fps is None:
        return np.arange(num_frames, dtype=np.int64)
    count = num_resampled(num_frames, source, target_fps)
    if source.times_s is not None:
        shown = np.arange(count) / target_fps + source.slack_s
        return np.asarray(np.searchsorted(source.times_s[:num_frames], shown, side="right") - 1, np.int64)
    indices = np.floor(np.arange(count) * (source.fps / target_fps) + _SLACK).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def num_resampled(num_frames: int, source: Timing, target_fps: float | None) -> int:
    """Return F' of `resampled_indices`, which may be far more than memory holds. Raises: ValueError as that."""
    if target_fps is None:
        return num_frames
    if not source.fps > 0 or not target_fps > 0:
        raise ValueError(f"frame rates must be above 0: source {source.fps:g}, target {target_fps:g} frames/s")
    if source.times_s is None:
        return max(1, int(np.ceil((num_frames - _SLACK) / (source.fps / target_fps))))
    duration_s = float(source.begin_s(np.array(num_frames)))
    return max(1, int(np.ceil((duration_s - source.slack_s) * target_fps)))


def shares_seen(num_frames: int, spec: ClipSpec, fps: float, target_fps: float | None) -> tuple[float, float]:
    """Return the share of a video from the first to the last frame that its clips read, and the share of frames that they read.

    fps: of the video, read with target_fps only, to which it is then resampled; a changing rate is taken for a constant one.
    """
    resampled = target_fps is not None and fps > 0
    count = num_resampled(num_frames, Timing(fps), target_fps if resampled else None)
    indices = clip_indices(count, spec)
    read = np.zeros(count, np.bool_)
    read[indices] = True
    # Of a video resampled to fewer frames the others are not read; to more, some are read repeatedly.
    return (int(indices.max()) - int(indices.min()) + 1) / count, int(read.sum()) / max(count, num_frames)


def max_frame_needed(spec: ClipSpec) -> int | None:
    """Return how many leading frames suffice to build the clips of a longer video; None if that depends on its length."""
    if spec.sampling != "first" or spec.num_clips is None:
        return None
    return (spec.num_clips - 1) * spec.clip_stride + _span(spec)


def is_padded(num_frames: int, spec: ClipSpec) -> bool:
    """Return whether some clip of a video of this length holds frames that stand in for missing ones."""
    return num_frames < (max_frame_needed(spec) or _span(spec))


def _span(spec: ClipSpec) -> int:
    """Return the frames from a clip's first to its last."""
    return (spec.clip_len - 1) * spec.frame_interval + 1
