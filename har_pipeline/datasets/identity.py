"""Which files of a manifest are one file under several names: links of any kind, and copies."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from array import array
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from har_pipeline.core.records import VideoRecord

if TYPE_CHECKING:
    import numpy as np

_SAMPLE_BYTES = 65536


def one_name_per_file(records: Sequence[VideoRecord]) -> list[VideoRecord]:
    """Return the records with the same path for all names of a file, the first of them.

    Names are of one file if they lead to the same inode, or if size and content agree. Content is read only of files whose
    size another file has too: its beginning, middle and end, and all of it where these agree as well. A folder of depth
    frames is told by its inode only. Files that are empty, absent or unreadable keep their names: features are trained on
    where the videos are not.
    """
    # In the order of the rows, in which files of a folder mostly stand together, and not in that of a set.
    name_of = _other_names(dict.fromkeys(text for record in records for text in record.files))
    if not name_of:
        return list(records)
    renamed = []
    for record in records:
        if name_of.keys().isdisjoint(record.files):
            renamed.append(record)
            continue
        names = {
            column: Path(name_of[str(path)])
            for column in ("path", "depth_path")
            if (path := getattr(record, column)) is not None and str(path) in name_of
        }
        renamed.append(replace(record, **names))  # type: ignore[arg-type]
    return renamed


def _other_names(paths: Collection[str]) -> dict[str, str]:
    """Return path -> the first in order of those of the same file, where that is another one."""
    import numpy as np  # here: the CLI lists the protocols in its help, which waits for no numpy

    there: list[str] = []
    numbers = array(
        "Q"
    )  # device, inode and size of each, 0 of what is no plain file; a million results of stat are large
    for path in paths:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        there.append(path)
        numbers.extend((found.st_dev, found.st_ino, found.st_size if stat.S_ISREG(found.st_mode) else 0))
    devices, inodes, sizes = np.array(numbers, np.uint64).reshape(-1, 3).T
    other: dict[str, str] = {}
    for links in _alike(there, np.arange(len(there)), devices, inodes):
        other |= dict.fromkeys(links[1:], links[0])
    kept = sizes > 0
    if other:
        kept &= np.fromiter((path not in other for path in there), bool, len(there))
    groups = _alike(there, np.flatnonzero(kept), sizes[kept])
    for whole in (False, True):
        parts: dict[tuple[int, str], list[str]] = {}
        for number, group in enumerate(groups):
            for path in group:
                parts.setdefault((number, _digest(path, _state(path), whole)), []).append(path)
        groups = [part for part in parts.values() if len(part) > 1]
    same = {path: copies[0] for copies in groups for path in copies[1:]}
    return {**{path: same.get(name, name) for path, name in other.items()}, **same}


def _alike(paths: Sequence[str], rows: np.ndarray, *keys: np.ndarray) -> list[list[str]]:
    """Return the paths that have the same in all keys, as lists of two or more in the order of their parts.

    rows: (n,) int64 those of `paths` that the keys (n,) are of.
    """
    import numpy as np

    order = np.lexsort(keys)
    differs = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    ends = np.flatnonzero(np.append(differs, True)) + 1
    starts = np.append(0, ends)[:-1]
    more = ends - starts > 1
    spans = zip(starts[more].tolist(), ends[more].tolist(), strict=True)
    groups = [[paths[row] for row in rows[order[start:end]].tolist()] for start, end in spans]
    return [sorted(group, key=lambda path: path.split(os.sep)) for group in groups]


def _state(path: str) -> tuple[int, ...]:
    """Return what changes when a file is written again; nothing of one that is gone by now."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=2**18)
def _digest(path: str, state: tuple[int, ...], whole: bool) -> str:
    """Return a hash of a file's content, or of a sample of it; of a file that cannot be read, its name.

    state: as the file was when it was last looked at, so that one which has changed is read again.
    """
    if not state:
        return path
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
        return path
