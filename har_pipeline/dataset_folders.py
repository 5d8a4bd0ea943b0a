"""The files and folders of a data set, by name: which there are, and which of them no manifest names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.records import VideoRecord

VIDEO_SUFFIXES = frozenset(
    (".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".webm", ".wmv", ".flv", ".3gp", ".ts")
)


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, subfolders, files) below `root`, by name; links to folders are followed, hidden names left out.

    Each folder is visited once, so that links in a circle end. The caller may drop subfolders that it need not enter.
    Raises: ManifestError if `root` is no folder.
    """
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder")
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
    """Return all files with a video ending, sorted; a dead link is one of them, for it has to be noticed later."""
    found = [folder / name for folder, _, files in walk(root.expanduser().resolve()) for name in files]
    return sorted(path for path in found if path.suffix.lower() in VIDEO_SUFFIXES)


def left_out(root: Path, records: Sequence[VideoRecord], known: Iterable[Path | None] = ()) -> list[Path]:
    """Return what lies below `root` and stands in no record: it does not follow the data set's naming rule.

    A folder of which no record names anything is listed as a whole, also an empty one; of any other those files that
    stand in no record. known: other files or folders that are no news, such as official lists; hidden names never are.
    """
    root = root.expanduser().resolve()
    named = {path for record in records for path in (record.path, record.depth_path) if path is not None}
    named |= {path.expanduser().resolve() for path in known if path is not None}
    # Resolved, for a linked folder is entered by one of its names only.
    holding = {os.path.realpath(folder) for folder in {folder for path in named for folder in path.parents}}
    found: list[Path] = []
    for folder, folders, files in walk(root):
        below = [name for name in folders if folder / name not in named]
        folders[:] = [name for name in below if os.path.realpath(folder / name) in holding]
        found += [folder / name for name in below if name not in folders]
        found += [folder / name for name in files if folder / name not in named]
    return sorted(found)
