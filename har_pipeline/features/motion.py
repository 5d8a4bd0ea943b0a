"""Depth motion maps: one vector for each video, where and how much its raw frames change; no network.

The absolute differences of successive frames are summed over equal parts of the video, each sum is scaled down by the mean
over areas, and the joined maps are divided by their norm. A linear head on them is the baseline that a network on raw video
has to beat: `har features motion`, then `har train --head ridge --logistic-c 50 --no-standardise`.
Source: Yang 2012 (depth motion maps); the parts are ours.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError
from har_pipeline.core.records import ClipSpec, FeatureRecord, FeatureSpec
from har_pipeline.features.derived import derive_videos, whole_video
from har_pipeline.features.frames import frame_shape, options_of
from har_pipeline.features.options import EXTRACTOR, MOTION, MotionOptions
from har_pipeline.features.store import FeatureStore

# Part of the feature spec, and so of the names of feature sets: never reworded.
_PREPROCESS = (
    "|differences| of successive frames of {source}, summed over {parts} equal parts, mean over areas, unit norm"
)
_MADE = re.compile(re.escape(_PREPROCESS).replace(r"\{source\}", r"(\S+)").replace(r"\{parts\}", r"(\d+)"))
_LAYER = re.compile(r"(\d+)x(\d+)x\2")


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionSummary:
    """What a job did."""

    feature_set: str
    source: str  # the raw frames
    dim: int
    total: int  # videos of the source
    already: int  # made before
    done: int  # made now
    seconds: float


def motion_spec(source: FeatureSpec, options: MotionOptions) -> FeatureSpec:
    """Return the spec of the motion maps of a raw-frame set. Raises: FeatureMismatchError if `source` is none."""
    channels, side, width = frame_shape(source)
    if side != width:
        raise FeatureMismatchError(f"{source.name}: motion maps are made of square frames, not of {width}x{side} px")
    if source.fit is not None:
        raise FeatureMismatchError(f"{source.name} is reduced: motion maps are made of the frames themselves")
    if options.size > side:
        raise ExtractionError(f"--size {options.size}: a map is no larger than the frames, {side} px")
    return dataclasses.replace(
        source,
        extractor=MOTION,
        layer=f"{options.parts}x{options.size}x{options.size}",
        feature_dim=options.parts * options.size**2 * channels,
        clips=ClipSpec(sampling="uniform", num_clips=1),
        preprocess=_PREPROCESS.format(source=source.name, parts=options.parts),
        precision="fp64",
        dtype="float32",
    )


def motion_options(spec: FeatureSpec) -> tuple[FeatureSpec, MotionOptions]:
    """Return the spec of the raw frames that motion maps were made of, and how.

    Raises: FeatureMismatchError if `spec` is of no motion maps, or of frames as `har frames` no longer makes them.
    """
    layer, made = _LAYER.fullmatch(spec.layer), _MADE.fullmatch(spec.preprocess)
    if spec.extractor != MOTION or layer is None or made is None:
        raise FeatureMismatchError(f"{spec.name}: features of {spec.extractor}, not motion maps")
    options = MotionOptions(parts=int(layer[1]), size=int(layer[2]))
    # Of the source's spec only the size of a row is not kept: it follows from the rest.
    source = options_of(dataclasses.replace(spec, extractor=EXTRACTOR)).spec()
    if source.name != made[1] or motion_spec(source, options) != spec:
        raise FeatureMismatchError(f"{spec.name} was made of {made[1]}, which `har frames` does not make")
    return source, options


def motion_map(frames: np.ndarray, options: MotionOptions) -> np.ndarray:
    """Return (parts * size * size * C,) float32 of frames (L, S, S, C) uint8: unit norm, or zeros if nothing moves.

    The L - 1 differences are divided into parts as `numpy.array_split` does, the longer parts first; with fewer differences
    than parts the last ones are zeros.
    """
    changes = np.abs(np.diff(frames.astype(np.int16), axis=0))
    shrink = _area_weights(frames.shape[1], options.size)
    maps = [
        np.einsum("ij,jkc,lk->ilc", shrink, part.sum(axis=0, dtype=np.float64), shrink, optimize=True)
        for part in np.array_split(changes, options.parts)
    ]
    joined = np.stack(maps).ravel()
    norm = float(np.linalg.norm(joined))
    return (joined / norm if norm > 0 else joined).astype(np.float32)


def _area_weights(side: int, size: int) -> np.ndarray:
    """Return (size, side) float64, rows summing to 1: the share of each source px in the area of a pixel."""
    edges = np.arange(size + 1) * side / size
    left, right = edges[:-1, None], edges[1:, None]
    px = np.arange(side)
    shared = np.clip(np.minimum(right, px + 1) - np.maximum(left, px), 0, None)
    return shared * size / side


def motion_features(
    store: FeatureStore,
    feature_set: str,
    options: MotionOptions | None = None,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> MotionSummary:
    """Write the motion maps of all videos of a raw-frame set that the store lacks, as a feature set of one row per video.

    `feature_set` may be any unique prefix. on_video: called with the videos done and their total.
    Raises: FeatureMismatchError if the features are no raw frames; StoreError if they are damaged.
    """
    started, options = time.perf_counter(), options or MotionOptions()
    source = store.resolve(feature_set)
    frames = store.spec(source)
    spec = motion_spec(frames, options)
    store.remove_debris()
    store.create_feature_set(spec, options.name)
    total, done = derive_videos(
        store, source, spec.name, lambda record: motion_record(record, frames, options), on_video
    )
    return MotionSummary(
        feature_set=spec.name,
        source=source,
        dim=spec.feature_dim,
        total=total,
        already=total - done,
        done=done,
        seconds=round(time.perf_counter() - started, 3),
    )


def motion_record(record: FeatureRecord, frames: FeatureSpec, options: MotionOptions) -> FeatureRecord:
    """Return the record with (1, D) float32, the motion map of a video's raw frames."""
    channels, height, width = frame_shape(frames)
    values = motion_map(record.features.reshape(-1, height, width, channels), options)
    return whole_video(record, values[None])
