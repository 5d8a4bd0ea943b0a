"""Files that say what is seen in which seconds of videos: JSON of ActivityNet's form, and CSV as annotation tools write it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.records import seconds_text
from har_pipeline.core.spreadsheets import LINE_END, decoded, delimiter_of

OnNote = Callable[[str], None]
# A label, and when it begins and ends, as a file says it; times may be NaN.
_Found = tuple[str, float | None, float | None]

_SUBSETS = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "val"),
    **dict.fromkeys(("testing", "test"), "test"),
}
# What tools call the columns.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "video": ("video", "video_id", "path", "file", "filename", "file_name", "filepath", "video_name", "youtube_id", "media"),
    "start": ("start", "start_s", "start_time", "t_start", "time_start", "start_sec", "begin", "onset", "from"),
    "end": ("end", "end_s", "end_time", "t_end", "time_end", "end_sec", "stop", "offset", "to"),
    "label": ("label", "class", "action", "activity", "category", "label_name", "class_name"),
    "split": ("split", "subset", "part", "set"),
    "duration": ("duration", "duration_s", "video_duration"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """What is seen in a part of a video."""

    label: str  # empty: not known
    start_s: float | None  # None: from the beginning
    end_s: float | None  # None: to the end


@dataclass(frozen=True, slots=True)
class AnnotatedVideo:
    """A video as an annotation file names it, with its usable segments; one of which nothing is said is a whole segment."""

    name: str
    split: str | None
    segments: tuple[Segment, ...]


def read_activitynet(path: Path, on_note: OnNote) -> list[AnnotatedVideo]:
    """Return the videos of a file `{"database": {ID: {"subset", "duration", "annotations": [{"label", "segment"}]}}}`.

    on_note: called with what is said of segments that are left out or odd.
    Raises: ManifestError if the file is not of this form.
    """
    text = _text_of(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not valid JSON: {error}") from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not database:
        raise ManifestError(f'{path}: is not of ActivityNet\'s form: {{"database": {{ID: {{"annotations": [...]}}}}}}')
    videos = []
    for name, entry in database.items():
        listed = entry.get("annotations", []) if isinstance(entry, dict) else None
        if not isinstance(listed, list):
            raise ManifestError(f"{path}: {name}: has no list of annotations")
        found: list[_Found] = []
        for one in listed:
            segment, label = (one.get("segment"), one.get("label", "")) if isinstance(one, dict) else (None, "")
            times = segment if isinstance(segment, list) and len(segment) == 2 else [math.nan, math.nan]
            found.append((str(label).strip(), _number(times[0]), _number(times[1])))
        duration = _number(entry.get("duration"))
        segments = _usable(name, found, None if math.isnan(duration) else duration, on_note)
        videos.append(AnnotatedVideo(name, _split_of(entry.get("subset")), segments))
    return videos


def read_segments(path: Path, on_note: OnNote) -> list[AnnotatedVideo]:
    """Return the videos of a CSV file with a row for each segment: video, start, end, label, in columns of any order.

    split and duration are read where they are there. Times are seconds, `12.5`, or `[hours:]minutes:seconds`; a row without
    times is a whole video. on_note: as `read_activitynet`.
    Raises: ManifestError if a column is missing or the file is no CSV.
    """
    numbered = [
        (number, line)
        for number, line in enumerate(LINE_END.split(_text_of(path)), 1)
        if line.strip() and not line.startswith("#")
    ]
    if not numbered:
        raise ManifestError(f"{path}: empty file")
    numbers, lines = zip(*numbered, strict=True)
    delimiter = delimiter_of(lines[0].lower(), [name for names in _NAMES.values() for name in names])
    try:
        header, *rows = list(csv.reader(lines, strict=True, delimiter=delimiter))
    except csv.Error as error:
        raise ManifestError(f"{path}: not valid CSV: {error}") from error
    places = _columns(path, header)
    by_video: dict[str, list[_Found]] = {}
    splits: dict[str, str | None] = {}
    durations: dict[str, float | None] = {}
    for number, cells in zip(numbers[1:], rows, strict=False):
        row = {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()}
        if not row["video"]:
            on_note(f"left out: {path.name}: line {number} names no video")
            continue
        by_video.setdefault(row["video"], []).append((row["label"], _seconds(row["start"]), _seconds(row["end"])))
        splits.setdefault(row["video"], _split_of(row.get("split")))
        duration = _seconds(row.get("duration", ""))
        durations.setdefault(row["video"], None if duration is None or math.isnan(duration) else duration)
    if not by_video:
        raise ManifestError(f"{path}: no segments below the header")
    return [
        AnnotatedVideo(name, splits[name], _usable(name, found, durations[name], on_note))
        for name, found in by_video.items()
    ]


def _text_of(path: Path) -> str:
    try:
        return decoded(path.read_bytes())
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such file of annotations") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from error


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Return column -> its place in the header. Raises: ManifestError naming those that are missing."""
    called = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in header]
    places = {
        column: next(place for place, name in enumerate(called) if name in names)
        for column, names in _NAMES.items()
        if any(name in names for name in called)
    }
    if missing := [name for name in ("video", "start", "end", "label") if name not in places]:
        raise ManifestError(
            f"{path}: has no column {' and '.join(missing)}; found: {', '.join(header)}. A file with start_frame and "
            "end_frame is a manifest as it is"
        )
    return places


def _number(value: Any) -> float:
    """Return a number of JSON, NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else math.nan


def _seconds(text: str) -> float | None:
    """Return the seconds that a cell says, None for an empty one, NaN for what is no time."""
    if not text:
        return None
    try:
        *longer, seconds = text.split(":")
        return sum((int(part) * 60.0**power for power, part in enumerate(reversed(longer), 1)), float(seconds))
    except (ValueError, OverflowError):
        return math.nan


def _split_of(subset: Any) -> str | None:
    """Return what the column `split` holds of a subset's name."""
    text = subset.strip() if isinstance(subset, str) else ""
    return _SUBSETS.get(text.lower(), text) or None


def _usable(name: str, found: Sequence[_Found], duration_s: float | None, on_note: OnNote) -> tuple[Segment, ...]:
    """Return the segments of a video that are parts of it, without any annotation all of it; say why others are left out."""
    if not found:
        return (Segment("", None, None),)
    kept: list[Segment] = []
    for label, start_s, end_s in found:
        first, last = start_s or 0.0, math.inf if end_s is None else end_s
        where = f"{name}: {label or 'no label'} from {_shown(start_s)} to {_shown(end_s)}"
        segment = Segment(label, start_s, end_s)
        if math.isnan(first) or math.isnan(last):
            on_note(f"left out: {where}: its times are no two numbers")
        elif first < 0:
            on_note(f"left out: {where}: begins before the video")
        elif last <= first:
            on_note(f"left out: {where}: is {'empty' if last == first else 'reversed'}")
        elif duration_s is not None and first >= duration_s:
            on_note(f"left out: {where}: begins after the video's {seconds_text(duration_s)} s")
        elif segment in kept:
            on_note(f"left out: {where}: is there twice")
        else:
            kept.append(segment)
            if duration_s is not None and duration_s < last < math.inf:
                on_note(f"kept: {where}: ends after the video's {seconds_text(duration_s)} s, and so with the video")
    return tuple(kept)


def _shown(time_s: float | None) -> str:
    return "?" if time_s is None or math.isnan(time_s) else f"{seconds_text(time_s)} s"
