"""Which files of a manifest are one file under several names: links of any kind, and copies."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from har_pipeline.core.records import VideoRecord

_SAMPLE_BYTES = 65536


def one_name_per_file(records: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Return the records with the same path for all names of a file, the first of them.

    Names are of one file if they lead to the same inode, or if size and content agree. Content is read only of files whose
    size another file has too: its beginning, middle and end, and all of it where these agree as well. A folder of depth
    frames is told by its inode only. Files that are empty, absent or unreadable keep their names: features are trained on
    where the videos are not.
    """
    name_of = _first_names(
        {path for record in records for path in (record.path, record.depth_path) if path is not None}
    )
    renamed = []
    for record in records:
        names = {
            column: name_of[path]
            for column in ("path", "depth_path")
            if (path := getattr(record, column)) is not None and name_of[path] != path
        }
        renamed.append(replace(record, **names) if names else record)  # type: ignore[arg-type]
    return renamed


def _first_names(paths: Iterable[Path]) -> dict[Path, Path]:
    """Return each path with the first in order of those of the same file."""
    first: dict[Path, Path] = {}
    inodes: dict[tuple[int, int], Path] = {}
    files: dict[Path, os.stat_result] = {}
    for path in sorted(paths):
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            first[path] = path
            continue
        first[path] = inodes.setdefault((found.st_dev, found.st_ino), path)
        if first[path] is path and stat.S_ISREG(found.st_mode) and found.st_size:
            files[path] = found

    def alike(groups: Iterable[list[Path]], key: Callable[[Path], Hashable]) -> list[list[Path]]:
        parts: dict[tuple[int, Hashable], list[Path]] = {}
        for number, group in enumerate(groups):
            for path in group:
                parts.setdefault((number, key(path)), []).append(path)
        return [part for part in parts.values() if len(part) > 1]

    groups = alike([list(files)], lambda path: files[path].st_size)
    for whole in (False, True):
        groups = alike(groups, lambda path, whole=whole: _digest(path, _state(files[path]), whole))  # type: ignore[misc]
    same = {path: group[0] for group in groups for path in group}
    return {path: same.get(name, name) for path, name in first.items()}


def _state(found: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is written again."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=2**18)
def _digest(path: Path, state: tuple[int, ...], whole: bool) -> str:
    """Return a hash of a file's content, or of a sample of it; of a file that cannot be read, its name.

    state: as the file was when it was last looked at, so that one which has changed is read again.
    """
    size = state[2]
    try:
        with open(path, "rb") as file:
            if whole:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            for start in (0, max(0, (size - _SAMPLE_BYTES) // 2), max(0, size - _SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
            return digest.hexdigest()
    except OSError:
        return str(path)
