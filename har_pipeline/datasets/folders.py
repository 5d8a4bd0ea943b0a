"""Files and folders below a data set's root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.kinds import is_video_name, what_is


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, subfolders, files) below `root`, sorted by name; follows links to folders, leaves out hidden names.

    Each folder is visited once, so that circular links end. The caller may remove subfolders that it need not enter.
    Raises: ManifestError if `root` is not a folder.
    """
    if not root.is_dir():
        missing = not root.exists()
        raise ManifestError(f"{root}: no such folder" if missing else f"{root} is {what_is(root)}, not a folder")
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), folders, sorted(name for name in files if not name.startswith("."))


def videos_below(root: Path) -> list[Path]:
    """Return all files with a video's ending, sorted, dead links included: they have to be reported later."""
    found = [folder / name for folder, _, files in walk(root.expanduser().resolve()) for name in files]
    return sorted(path for path in found if is_video_name(path.name))
