"""Which file a stored video was read from, so that features of another file of the same video_id are not taken for it.

A file is told by its name, its size and the part of it that is read, which survive a move to another folder or machine.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from har_pipeline.core.records import WHOLE, Span, VideoRecord
from har_pipeline.features.store import FeatureStore


def describe_file(path: Path | str, span: Span = WHOLE) -> dict[str, str]:
    """Return name, size (bytes, or the number of files in a folder) and frames, or times, of what is read; no size where it is
    absent.
    """
    found = {"name": os.path.basename(path), "frames": span.describe_span()}
    try:
        status = os.stat(path)
        is_folder = stat.S_ISDIR(status.st_mode)
        size = f"{len(os.listdir(path))} files" if is_folder else f"{status.st_size} bytes"
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


def compare_files(
    store: FeatureStore,
    feature_set: str,
    records: Sequence[VideoRecord],
    paths: Sequence[Path | str | None],
    replace: bool,
) -> tuple[set[str], dict[str, str]]:
    """Return the ids of all videos of a set, and video_id -> reason for those that were read from other files than `paths`,
    those of the records.

    replace: delete the latter instead, so that they are extracted again. Stores of older versions do not say what was read;
    their videos count as unchanged. The store is walked once.
    """
    rows = {record.video_id: row for row, record in enumerate(records)}
    there: set[str] = set()
    changed = {}
    for video_id, before in store.each_file(feature_set):
        there.add(video_id)
        row = rows.get(video_id)
        path = None if row is None else paths[row]
        if row is None or path is None or before is None:
            continue
        now = describe_file(path, records[row])
        if before == now or not differ(before, now):
            continue
        if replace:
            store.delete(feature_set, video_id)
            there.remove(video_id)
            continue
        changed[video_id] = (
            f"under this id {store.path} holds features of another file, {words(before)}; the manifest names "
            f"{words(now)}: use another store or another id, or re-extract them with --replace-changed"
        )
    return there, changed


def known_failures(
    failures: Mapping[str, tuple[str, Mapping[str, str]]],
    records: Sequence[VideoRecord],
    paths: Sequence[Path | str | None],
) -> dict[str, str]:
    """Return video_id -> reason of the records whose very files failed before. failures: `FeatureStore.failure_records`.

    A file in their place may do better, and so may one that was absent then.
    """
    known = {}
    for record, path in zip(records, paths, strict=True) if failures else ():
        if path is None or record.video_id not in failures:
            continue
        reason, before = failures[record.video_id]
        now = describe_file(path, record)
        came = "size" in now and bool(before) and "size" not in before
        if not came and not differ(before, now):
            known[record.video_id] = reason
    return known
