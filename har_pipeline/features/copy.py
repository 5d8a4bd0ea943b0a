"""Feature sets copied from one store to another, wherever the two lie; a copy that was interrupted goes on.

A video is read against its checksum and written as extraction writes it, so that a copy is whole or not there. What the
target has already is compared by checksums: an equal video is passed over, another one is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from har_pipeline.core.errors import HarError, StoreError
from har_pipeline.core.records import VideoSource
from har_pipeline.features.pack import PackedStore
from har_pipeline.features.places import in_order
from har_pipeline.features.store import FeatureStore

# Called with the videos done and their total.
OnVideo = Callable[[int, int], None]

# What `write_fit` adds to the attributes that it is given.
_COMMIT = ("complete", "checksum", "written")


@dataclass(slots=True, kw_only=True)
class CopySummary:
    """What copying one feature set did; counts are of videos."""

    feature_set: str
    done: int = 0
    already: int = 0  # were in the target, equal
    num_bytes: int = 0  # of the features that were copied
    failed: dict[str, str] = field(default_factory=dict)  # video_id -> reason


def copy_features(
    source: FeatureStore | PackedStore,
    feature_set: str,
    target: FeatureStore,
    on_video: OnVideo = lambda done, total: None,
) -> CopySummary:
    """Copy a feature set into another store, with its fit, its name if it has none there, and the reasons of failed videos.

    A video that cannot be read, or of which the target has other features, fails, and the others go on.
    Raises: StoreError if the target cannot be written, or has another fit or another set of the name; FeatureMismatchError.
    """
    if source.path.resolve() == target.path.resolve():
        raise StoreError(f"{target.path}: a store is not copied onto itself")
    summary = CopySummary(feature_set=feature_set)
    name = next((name for name, one in source.names().items() if one == feature_set), None)
    if feature_set in target.names().values():
        name = None  # it has one there
    _copy_fit(source, feature_set, target)
    target.create_feature_set(source.spec(feature_set), name)
    there, checksums = target.checksums(feature_set), source.checksums(feature_set)
    video_ids = source.video_ids(feature_set)
    summary.already = sum(video_id in there and there[video_id] == checksums.get(video_id) for video_id in video_ids)
    todo = [one for one in video_ids if not (one in there and there[one] == checksums.get(one))]
    on_video(summary.already, len(video_ids))

    others = StoreError(f"{target.path} has other features of it: delete them there, or choose another target")

    def copy(video_id: str) -> int | HarError:
        if video_id in there:
            return others
        try:
            record = source.read(feature_set, video_id, check=True)
        except HarError as error:
            return error
        made_of = VideoSource(
            clip_starts=record.clip_starts,
            clip_ends=record.clip_ends,
            clip_times_s=record.clip_times_s,
            num_frames=record.num_frames,
            fps=record.fps,
            padded=record.padded,
            decode_notes=record.decode_notes,
            provenance=record.provenance,
            file=record.file,
        )
        if target.write(feature_set, video_id, record.features, made_of):
            return record.features.nbytes
        try:  # another process was first, or what is there is damaged
            found = target.read(feature_set, video_id, check=True).checksum
        except HarError as error:
            return error
        return 0 if found == record.checksum else others

    # Several at a time where either is an answer to wait for.
    waits_for = source.path if isinstance(target.path, Path) else target.path
    for video_id, done in zip(todo, in_order(waits_for, copy, todo), strict=True):
        if isinstance(done, HarError):
            summary.failed[video_id] = str(done)
        else:
            summary.done += 1
            summary.num_bytes += done
        on_video(summary.already + summary.done + len(summary.failed), len(video_ids))
    _copy_failures(source, feature_set, target)
    return summary


def _copy_fit(source: FeatureStore | PackedStore, feature_set: str, target: FeatureStore) -> None:
    attributes = source.fit_attributes(feature_set)
    if attributes is None:
        return
    arrays = source.read_fit(feature_set)
    attributes = {key: value for key, value in attributes.items() if key not in _COMMIT}
    if target.fit_attributes(feature_set) is None and target.write_fit(feature_set, arrays, attributes):
        return
    there = target.read_fit(feature_set)
    if there.keys() != arrays.keys() or any(there[key].tobytes() != arrays[key].tobytes() for key in arrays):
        raise StoreError(f"{target.path}: {feature_set} was fitted there with another result: choose another target")


def _copy_failures(source: FeatureStore | PackedStore, feature_set: str, target: FeatureStore) -> None:
    known = target.failures(feature_set)
    of_files = source.failed_files(feature_set) if isinstance(source, FeatureStore) else {}
    for video_id, reason in source.failures(feature_set).items():
        if video_id not in known:
            target.record_failure(feature_set, video_id, reason, of_files.get(video_id))
