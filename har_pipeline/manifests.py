"""Reading, checking and writing manifests: CSV files with one row per video (or per sequence of a video).

Columns, the id rule and the root rule are documented in data_manifests/README.md.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.errors import ManifestError
from har_pipeline.records import VideoRecord

PATH_COLUMNS = ("path", "depth_path")
TEXT_COLUMNS = ("subject", "group", "camera", "scenario", "split")
NUMBER_COLUMNS = ("start_frame", "end_frame")
COLUMNS = ("video_id", "path", "label", *TEXT_COLUMNS[:4], *NUMBER_COLUMNS, "depth_path", "split")
OWN_PREFIX = "x_"
_ROOT_LINE = "# root: "


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Counts of a sound manifest; classes: label -> rows."""

    rows: int
    classes: dict[str, int]
    subjects: int
    groups: int
    cameras: int
    splits: dict[str, int]


def manifest_sha256(path: Path) -> str:
    """Return the sha256 of the file in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(
    path: Path, *, root: Path | None = None, check_files: bool = True, max_errors: int = 20
) -> list[VideoRecord]:
    """Return the rows of a manifest, paths made absolute.

    Paths are relative to `root`; without one to the folder in the file's first line `# root: FOLDER`, or to the
    manifest's own folder. `check_files=False` leaves out only the check that the files exist.
    Raises: ManifestError listing, with their line numbers, all rows that are wrong (at most `max_errors`).
    """
    lines, stated_root = _read_lines(path)
    base = (root or stated_root or path.parent).expanduser().resolve()
    reader = csv.DictReader((line for _, line in lines), strict=True)
    numbers = [number for number, _ in lines]
    try:
        header = list(reader.fieldnames or [])
        _check_header(path, header)
        rows = [(numbers[min(reader.line_num, len(numbers)) - 1], row) for row in reader]
    except csv.Error as error:
        raise ManifestError(f"{path}: line {reader.line_num} is not CSV: {error}") from error
    if not rows:
        raise ManifestError(f"{path}: has a header but no rows")
    records: list[VideoRecord] = []
    problems: list[str] = []
    first_seen: dict[str, int] = {}
    for number, row in rows:
        try:
            record = _record(row, base, check_files)
            if record.video_id in first_seen:
                raise ValueError(f"video_id {record.video_id!r} stands already in line {first_seen[record.video_id]}")
            first_seen[record.video_id] = number
            records.append(record)
        except ValueError as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        more = f"\n  and {len(problems) - max_errors} more" if len(problems) > max_errors else ""
        listed = "\n".join(problems[:max_errors])
        raise ManifestError(f"{path}: {len(problems)} of {len(rows)} rows are wrong:\n{listed}{more}")
    return records


def _read_lines(path: Path) -> tuple[list[tuple[int, str]], Path | None]:
    """Return (line number, text) of all lines but comments and blank ones, and the root that a comment names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; make one with `har manifest build`") from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: is not a UTF-8 text file ({type(error).__name__})") from error
    root = None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(_ROOT_LINE):
            root = Path(line.removeprefix(_ROOT_LINE).strip())
            root = root if root.is_absolute() else path.parent / root
        elif line.strip() and not line.startswith("#"):
            lines.append((number, line + "\n"))
    if not lines:
        raise ManifestError(f"{path}: is empty")
    return lines, root


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if name not in COLUMNS and not name.startswith(OWN_PREFIX):
            near = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"own columns start with {OWN_PREFIX!r}"
            raise ManifestError(f"{path}: unknown column {name!r}; {hint}")
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise ManifestError(f"{path}: column {repeated[0]!r} stands twice")
    missing = [name for name in ("video_id", "label") if name not in header]
    if not any(name in header for name in PATH_COLUMNS):
        missing.append("path (or depth_path)")
    if missing:
        raise ManifestError(f"{path}: the required column {' and '.join(missing)} is missing; there are: {', '.join(header)}")


def _record(row: Mapping[str | None, str | None], base: Path, check_files: bool) -> VideoRecord:
    """Return one row as a record. Raises: ValueError saying what is wrong with it."""
    if None in row or None in row.values():
        raise ValueError("has another number of cells than the header")
    cells = {str(key): (value or "").strip() for key, value in row.items()}
    numbers: dict[str, int | None] = {}
    for name in NUMBER_COLUMNS:
        text = cells.get(name, "")
        if text and not text.lstrip("-").isdigit():
            raise ValueError(f"{name} {text!r} is not a whole number")
        numbers[name] = int(text) if text else None
    return VideoRecord(
        video_id=cells["video_id"],
        label=cells["label"],
        path=_resolve(cells.get("path", ""), base, check_files),
        depth_path=_resolve(cells.get("depth_path", ""), base, check_files),
        subject=cells.get("subject") or None,
        group=cells.get("group") or None,
        camera=cells.get("camera") or None,
        scenario=cells.get("scenario") or None,
        split=cells.get("split") or None,
        start_frame=numbers["start_frame"] or 0,
        end_frame=numbers["end_frame"],
        extra={key: value for key, value in cells.items() if key.startswith(OWN_PREFIX)},
    )


def _resolve(text: str, base: Path, check_files: bool) -> Path | None:
    if not text:
        return None
    if Path(text).is_absolute():
        raise ValueError(f"path {text!r} is absolute: write it relative to the root {base}")
    # Links are not followed: a data set may be a tree of links, but its names must stay inside.
    path = Path(os.path.normpath(base / text))
    if not path.is_relative_to(base):
        raise ValueError(f"path {text!r} leads out of the root {base}")
    if check_files and not path.exists():
        raise ValueError(f"file {text!r} does not exist under {base}")
    return path


def write_manifest(path: Path, records: Sequence[VideoRecord], *, root: Path | None = None) -> None:
    """Write records as a manifest, atomically, with the columns that are in use.

    Paths are written relative to the manifest's folder if all files lie below it, else relative to `root`, which is then
    named in the first line. Raises: ManifestError if there is no record, or a file lies outside both.
    """
    if not records:
        raise ManifestError(f"{path}: no videos to write")
    folder = path.parent.resolve()
    files = [file for record in records for file in (record.path, record.depth_path) if file is not None]
    base = folder
    if not all(file.is_relative_to(folder) for file in files):
        base = (root or folder).expanduser().resolve()
        if outside := [file for file in files if not file.is_relative_to(base)]:
            raise ManifestError(f"{path}: {outside[0]} lies outside the root {base}")
    rows = [_row(record, base) for record in records]
    own = sorted({name for record in records for name in record.extra})
    used = [name for name in (*COLUMNS, *own) if any(row.get(name) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        if base != folder:
            file.write(f"{_ROOT_LINE}{base}\n")
        writer = csv.DictWriter(file, used, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def _row(record: VideoRecord, base: Path) -> dict[str, str]:
    row = {"video_id": record.video_id, "label": record.label, **record.extra}
    for name in PATH_COLUMNS:
        file = getattr(record, name)
        row[name] = file.relative_to(base).as_posix() if file else ""
    for name in TEXT_COLUMNS:
        row[name] = getattr(record, name) or ""
    row["start_frame"] = str(record.start_frame) if record.start_frame or record.end_frame else ""
    row["end_frame"] = str(record.end_frame) if record.end_frame is not None else ""
    return row


def check_manifest(path: Path, *, root: Path | None = None) -> ManifestSummary:
    """Read a manifest with all checks and return its counts. Raises: ManifestError as `read_manifest`."""
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
