"""What a path leads to, in words: for messages about a path that was given where another kind of thing is wanted."""

from __future__ import annotations

import json
import os
from pathlib import Path

from har_pipeline.core.objects import ObjectPath, StorePath

# Endings of files that are taken for videos where a folder is searched. A file that is named itself may have any.
VIDEO_SUFFIXES = frozenset(
    (
        *(".avi", ".divx", ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".ogv", ".flv", ".f4v", ".3gp", ".3g2"),
        *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".wmv", ".asf", ".y4m", ".gif"),
    )
)

# The file that tells a folder, and what the folder is.
_FOLDERS = (
    ("run.json", "a run folder"),
    ("fusion.json", "a result of `har fuse`"),
    ("pack.json", "a pack of features"),
    ("job.json", "an unfinished run"),
)


def is_video_name(name: str) -> bool:
    """Return whether a file of this name is taken for a video, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def what_is(path: StorePath | str) -> str:
    """Return what a path leads to, as in `X is ...`: a feature store, a run folder, a manifest, a video file, absent."""
    if isinstance(path, ObjectPath):
        return next(
            (what for name, what in _FOLDERS if (path / name).is_file()), "a folder" * path.is_dir() or "absent"
        )
    path = Path(str(path))
    try:
        if os.path.isdir(path):  # pathlib's raises on names that are too long
            return _what_folder(path)
        if not os.path.exists(path):
            return "absent"
        if is_video_name(path.name):
            return "a video file"
        with open(path, "rb") as file:
            return _what_file(file.read(65536))
    except OSError:
        return "unreadable"


def _what_folder(path: Path) -> str:
    for name, what in _FOLDERS:
        if (path / name).is_file():
            return what
    if (path / "zarr.json").is_file():
        try:
            attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
            return "a feature store" if "har_pipeline_store" in attributes else "a Zarr group"
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            return "a Zarr group"
    return "a folder of runs" if any(path.glob("s[pe]*[0-9]/run.json")) else "a folder"


def _what_file(start: bytes) -> str:
    text = start.decode("utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")
    header = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if "video_id" in header and "label" in header:
        return "a manifest"
    if '"protocol"' in text and '"train"' in text and text.lstrip().startswith("{"):
        return "a split file"
    return "a file of another kind" if header else "an empty file"
