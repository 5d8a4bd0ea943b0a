"""Which file a stored video was read from, so that features of another file of the same video_id are not taken for it.

A file is told by its name, its size and the part of it that is read, which survive a move to another folder or machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from har_pipeline.core.records import WHOLE, Span, VideoRecord
from har_pipeline.features.store import FeatureStore


def describe_file(path: Path, span: Span = WHOLE) -> dict[str, str]:
    """Return name, size (bytes, or the number of files in a folder) and frames, or times, of what is read; no size where it is
    absent.
    """
    found = {"name": path.name, "frames": span.describe_span()}
    try:
        size = f"{len(os.listdir(path))} files" if path.is_dir() else f"{path.stat().st_size} bytes"
    except OSError:
        return found
    return {**found, "size": size}


def differ(stored: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether two descriptions are of different files; what one of them does not say is not compared."""
    return any(stored[key] != now[key] for key in stored.keys() & now.keys())


def words(file: Mapping[str, str]) -> str:
    """Return a description as text."""
    size = f" ({file['size']})" if "size" in file else ""
    return f"{file['name']}{size}, frames {file['frames']}"


def changed_videos(
    store: FeatureStore,
    feature_set: str,
    records: Sequence[VideoRecord],
    paths: Sequence[Path | None],
    replace: bool,
) -> dict[str, str]:
    """Return video_id -> reason for the stored videos that were read from other files than `paths`, those of the records.

    replace: delete them instead, so that they are extracted again. Stores of older versions do not say what was read;
    their videos count as unchanged.
    """
    stored = store.files(feature_set)
    changed = {}
    for record, path in zip(records, paths, strict=True):
        video_id = record.video_id
        if path is None or video_id not in stored:
            continue
        before, now = stored[video_id], describe_file(path, record)
        if not differ(before, now):
            continue
        if replace:
            store.delete(feature_set, video_id)
            continue
        changed[video_id] = (
            f"under this id {store.path} holds features of another file, {words(before)}; the manifest names "
            f"{words(now)}: use another store or another id, or re-extract them with --replace-changed"
        )
    return changed


def known_failures(
    store: FeatureStore, feature_set: str, records: Sequence[VideoRecord], paths: Sequence[Path | None]
) -> dict[str, str]:
    """Return video_id -> reason of the records whose very files failed before.

    A file in their place may do better, and so may one that was absent then.
    """
    reasons, files = store.failures(feature_set), store.failed_files(feature_set)
    known = {}
    for record, path in zip(records, paths, strict=True):
        if path is None or record.video_id not in reasons:
            continue
        before, now = files[record.video_id], describe_file(path, record)
        came = "size" in now and bool(before) and "size" not in before
        if not came and not differ(before, now):
            known[record.video_id] = reasons[record.video_id]
    return known
