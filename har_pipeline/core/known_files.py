"""Where weights files and mean cubes were used last, by their hash: a run names what it needs by hash only.

The index is one JSON file in the cache of weights, which several processes may write. It is a memory and no authority:
what it points to is hashed again before use, and where it cannot be written nothing is remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.files import file_sha256, weights_cache, write_json

INDEX = "used_files.json"
# Far more than anybody uses; the ones used longest ago go first.
MOST_ENTRIES = 1000
_LOCK_WAIT_S = 5.0


def index_file() -> Path:
    """Return where the index is. Raises: WeightsError as `weights_cache`."""
    return weights_cache() / INDEX


def remember(path: Path, sha256: str) -> None:
    """Note that a file or folder with this hash (in hex) is being used; nothing happens where that cannot be written."""
    from filelock import FileLock, Timeout

    with contextlib.suppress(OSError, Timeout, WeightsError):
        index, path = index_file(), Path(os.path.abspath(path))  # a link's own name may tell what the file is
        about = path.stat()
        entry = {"path": str(path), "size": about.st_size, "mtime": about.st_mtime}
        if _read(index).get(sha256) == entry:
            return
        index.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(index.with_suffix(".lock"), timeout=_LOCK_WAIT_S):
            entries = _read(index)
            entries.pop(sha256, None)  # to the end: it was used last
            entries[sha256] = entry
            write_json(index, dict(list(entries.items())[-MOST_ENTRIES:]))


def used_last(sha256: str) -> Path | None:
    """Return where a file with this hash (in hex) was used last, None if that was never noted."""
    with contextlib.suppress(WeightsError):
        path = _read(index_file()).get(sha256, {}).get("path")
        return Path(path) if isinstance(path, str) else None
    return None


def find_used(sha256: str, hash_of: Callable[[Path], str] = file_sha256) -> Path | None:
    """Return the file with this hash (in hex) where it was used last, None if it is not there or is another one now.

    hash_of: of what is no plain file, such as a model's folder.
    """
    path = used_last(sha256)
    with contextlib.suppress(OSError, WeightsError):
        if path is not None and hash_of(path) == sha256:
            return path
    return None


def _read(index: Path) -> dict[str, Any]:
    """Return the entries of the index; none of one that is missing or damaged, which the next use replaces."""
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {sha256: entry for sha256, entry in values.items() if isinstance(entry, dict)}
