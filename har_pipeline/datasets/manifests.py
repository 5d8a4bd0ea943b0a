"""Reading, checking and writing manifests: CSV files with one row per video (or per sequence of a video).

Columns, the id rule and the root rule are documented in data_manifests/README.md.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.files import write_text
from har_pipeline.core.records import VideoRecord

PATH_COLUMNS = ("path", "depth_path")
TEXT_COLUMNS = ("subject", "group", "camera", "scenario", "split")
NUMBER_COLUMNS = ("start_frame", "end_frame")
COLUMNS = ("video_id", "path", "label", *TEXT_COLUMNS[:4], *NUMBER_COLUMNS, "depth_path", "split")
OWN_PREFIX = "x_"
_ROOT_LINE = "# root:"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Counts of a manifest without errors."""

    rows: int
    # Label -> rows.
    classes: dict[str, int]
    # How many different ones.
    subjects: int
    groups: int
    cameras: int
    # Value of the column split -> rows.
    splits: dict[str, int]


def manifest_sha256(path: Path) -> str:
    """Return the sha256 of the file in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(
    path: Path, *, root: Path | None = None, check_files: bool = True, max_errors: int = 20
) -> list[VideoRecord]:
    """Return the rows of a manifest, with absolute paths.

    The file's paths are relative to `root`, else to the folder in its first line `# root: FOLDER`, else to its own folder.
    check_files: whether to check that the files exist.
    Raises: ManifestError listing the first `max_errors` wrong rows by line number.
    """
    lines, stated_root = _read_lines(path)
    base = (root or stated_root or path.parent).expanduser().resolve()
    if (check_files or root) and not base.is_dir():
        raise ManifestError(f"{path}: root {base} is not a folder; give the data's folder with --root")
    reader = csv.DictReader((line for _, line in lines), strict=True)
    numbers = [number for number, _ in lines]
    try:
        header = list(reader.fieldnames or [])
        _check_header(path, header)
        rows = [(numbers[min(reader.line_num, len(numbers)) - 1], row) for row in reader]
    except csv.Error as error:
        number = numbers[min(max(reader.reader.line_num, 1), len(numbers)) - 1]  # DictReader's own lags behind
        raise ManifestError(f"{path.name}:row {number}: not valid CSV: {error}") from error
    if not rows:
        raise ManifestError(f"{path}: no rows below the header")
    records: list[VideoRecord] = []
    problems: list[str] = []
    first_seen: dict[str, tuple[str, int]] = {}  # id without case -> id, row
    texts = dict(lines)
    for number, row in rows:
        try:
            record = _record(row, base, check_files)
            first, row_of_first = first_seen.setdefault(record.video_id.casefold(), (record.video_id, number))
            if row_of_first != number:
                raise ValueError(_duplicate(first, record.video_id, f"row {row_of_first}"))
            records.append(record)
        except ValueError as error:
            commented = "; comments stand above the header only" if texts[number].startswith("#") else ""
            problems.append(f"  {path.name}:row {number}: {error}{commented}")
    if problems:
        more = f"\n  and {len(problems) - max_errors} more" if len(problems) > max_errors else ""
        listed = "\n".join(problems[:max_errors])
        raise ManifestError(f"{path}: {len(problems)} of {len(rows)} rows are wrong:\n{listed}{more}")
    return records


def _duplicate(first: str, second: str, where: str) -> str:
    """Return what is wrong with two ids that are equal, or that file systems may take for equal.

    Ids are ASCII, so that they have a single Unicode form.
    """
    if first == second:
        return f"duplicate video_id {second!r} (first in {where})"
    return (
        f"video_id {second!r} differs from {first!r} ({where}) in upper and lower case only; some file systems give both "
        "one folder: rename one"
    )


def _read_lines(path: Path) -> tuple[list[tuple[int, str]], Path | None]:
    """Return (line number, text) of all lines from the header on but blank ones, and the root named in a comment above it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; create one with `har manifest build`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a readable UTF-8 text file ({type(error).__name__})") from error
    root = None
    lines: list[tuple[int, str]] = []
    # Not splitlines, which also cuts at form feeds and Unicode separators and would shift the row numbers.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if lines or not line.startswith("#"):
            if line.strip():
                lines.append((number, line + "\n"))
        elif line.startswith(_ROOT_LINE):
            stated = line.removeprefix(_ROOT_LINE).strip()
            try:
                if _CONTROL.search(stated):
                    raise ValueError("it contains a control character")
                root = path.parent / Path(stated).expanduser()
            except (ValueError, RuntimeError) as error:  # the latter for the home of a user who does not exist
                raise ManifestError(
                    f"{path}: root {stated!r} in line {number}: {error}; give it with --root"
                ) from error
    if not lines:
        raise ManifestError(f"{path}: empty file")
    return lines, root


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if name not in COLUMNS and not name.startswith(OWN_PREFIX):
            near = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"own columns start with {OWN_PREFIX!r}"
            if ";" in name or "\t" in name:
                hint = "cells must be separated by commas"
            raise ManifestError(f"{path}: unknown column {name!r}; {hint}")
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise ManifestError(f"{path}: duplicate column {repeated[0]!r}")
    missing = [name for name in ("video_id", "label") if name not in header]
    if not any(name in header for name in PATH_COLUMNS):
        missing.append("path (or depth_path)")
    if missing:
        raise ManifestError(f"{path}: missing the required column {' and '.join(missing)}; found: {', '.join(header)}")


def _record(row: Mapping[str | None, str | None], base: Path, check_files: bool) -> VideoRecord:
    """Return one row as a record. Raises: ValueError saying what is wrong with it."""
    if None in row or None in row.values():
        raise ValueError("number of cells differs from the header")
    cells = {str(key): (value or "").strip() for key, value in row.items()}
    if broken := [key for key, value in cells.items() if _CONTROL.search(value)]:
        raise ValueError(f"{broken[0]} contains a line break or another control character")
    numbers: dict[str, int | None] = {}
    for name in NUMBER_COLUMNS:
        text = cells.get(name, "")
        if text and not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise ValueError(f"{name} {text!r} is not a whole number")
        numbers[name] = int(text) if text else None
    return VideoRecord(
        video_id=cells["video_id"],
        label=cells["label"],
        path=_resolve(cells.get("path", ""), base, check_files, may_be_folder=False),
        depth_path=_resolve(cells.get("depth_path", ""), base, check_files, may_be_folder=True),
        subject=cells.get("subject") or None,
        group=cells.get("group") or None,
        camera=cells.get("camera") or None,
        scenario=cells.get("scenario") or None,
        split=cells.get("split") or None,
        start_frame=numbers["start_frame"] or 0,
        end_frame=numbers["end_frame"],
        extra={key: value for key, value in cells.items() if key.startswith(OWN_PREFIX) and value},
    )


def _resolve(text: str, base: Path, check_files: bool, may_be_folder: bool) -> Path | None:
    if not text:
        return None
    if os.path.isabs(text):
        raise ValueError(f"path {text!r} is absolute: write it relative to the root {base}")
    # Links are not resolved: a data set may be a tree of links, but its names must stay inside the root.
    path = Path(os.path.normpath(base / text))
    if not path.is_relative_to(base):
        raise ValueError(f"path {text!r} is outside the root {base}")
    # os.path: pathlib's exists() raises on names that are too long.
    if check_files and not os.path.exists(path):
        raise ValueError(f"file {text!r} does not exist under the root {base}")
    if check_files and not may_be_folder and os.path.isdir(path):
        raise ValueError(f"path {text!r} is a folder, not a video file")
    return path


def write_manifest(path: Path, records: Sequence[VideoRecord], *, root: Path | None = None) -> None:
    """Write records as a manifest, atomically, with the columns that are in use.

    Paths are written relative to the manifest's folder if all files are below it, else relative to `root`, which the first
    line then names. Raises: ManifestError if there is no record, an id appears twice, a file is outside both folders, an
    own column does not start with `x_`, or a cell could not be read back unchanged.
    """
    if not records:
        raise ManifestError(f"{path}: no videos to write")
    known: dict[str, str] = {}
    for record in records:
        if first := known.get(record.video_id.casefold()):
            raise ManifestError(f"{path}: {_duplicate(first, record.video_id, 'an earlier record')}")
        known[record.video_id.casefold()] = record.video_id
    own = sorted({name for record in records for name in record.extra})
    if wrong := [name for name in own if not name.startswith(OWN_PREFIX)]:
        raise ManifestError(f"{path}: own column {wrong[0]!r} must start with {OWN_PREFIX!r}")
    folder = path.parent.resolve()
    files = [file for record in records for file in (record.path, record.depth_path) if file is not None]
    base, header = folder, ""
    if any(_relative(file, folder) is None for file in files):
        base = (root or folder).expanduser().resolve()
        header = f"{_ROOT_LINE} {base}\n"
        _check_cell(path, "first line", "root", str(base))
        if outside := [file for file in files if _relative(file, base) is None]:
            raise ManifestError(f"{path}: {outside[0]} is outside the root {base}")
    rows = [_row(record, base) for record in records]
    for row in rows:
        for name, value in row.items():
            _check_cell(path, row["video_id"], name, value)
    used = [name for name in (*COLUMNS, *own) if any(row.get(name) for row in rows)]
    text = io.StringIO(newline="")
    text.write(header)
    writer = csv.DictWriter(text, used, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def _relative(file: Path, base: Path) -> str | None:
    """Return the path of `file` relative to `base`, or None if outside. `file` may be named through a link to `base`."""
    absolute = Path(os.path.abspath(file))
    for candidate in (absolute, absolute.parent.resolve() / absolute.name):
        if candidate.is_relative_to(base):
            return candidate.relative_to(base).as_posix()
    return None


def _row(record: VideoRecord, base: Path) -> dict[str, str]:
    row = {"video_id": record.video_id, "label": record.label, **record.extra}
    for name in PATH_COLUMNS:
        file = getattr(record, name)
        row[name] = _relative(file, base) or "" if file else ""
    for name in TEXT_COLUMNS:
        row[name] = getattr(record, name) or ""
    row["start_frame"] = str(record.start_frame) if record.start_frame or record.end_frame else ""
    row["end_frame"] = str(record.end_frame) if record.end_frame is not None else ""
    return row


def _check_cell(path: Path, video_id: str, name: str, value: str) -> None:
    """Raise ManifestError if the reader would change the text or could not read it."""
    if value != value.strip() or _CONTROL.search(value):
        raise ManifestError(f"{path}: {video_id}: {name} {value!r} has blanks at an end, or a line break; rename it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"{path}: {video_id}: {name} {value!r} is not UTF-8; rename the file or folder") from error


def check_manifest(path: Path, *, root: Path | None = None) -> ManifestSummary:
    """Return the counts of a manifest after all checks. Raises: ManifestError as `read_manifest`."""
    records = read_manifest(path, root=root)

    def distinct(name: str) -> int:
        return len({getattr(record, name) for record in records} - {None})

    return ManifestSummary(
        rows=len(records),
        classes=dict(sorted(Counter(record.label for record in records).items())),
        subjects=distinct("subject"),
        groups=distinct("group"),
        cameras=distinct("camera"),
        splits=dict(sorted(Counter(record.split for record in records if record.split).items())),
    )
