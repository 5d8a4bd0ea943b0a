"""Reading, checking and writing manifests: CSV files with one row per video (or per sequence of a video).

Columns, the id rule and the root rule are documented in data_manifests/README.md.
"""

from __future__ import annotations

import csv
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
from har_pipeline.core.kinds import what_is
from har_pipeline.core.records import VideoRecord, folded_id, seconds_text
from har_pipeline.core.spreadsheets import LINE_END, decoded, delimiter_of
from har_pipeline.core.text import did_you_mean

PATH_COLUMNS = ("path", "depth_path")
TEXT_COLUMNS = ("subject", "group", "camera", "scenario", "split")
NUMBER_COLUMNS = ("start_frame", "end_frame")
TIME_COLUMNS = ("start_s", "end_s")
COLUMNS = ("video_id", "path", "label", *TEXT_COLUMNS[:4], *NUMBER_COLUMNS, *TIME_COLUMNS, "depth_path", "split")
OWN_PREFIX = "x_"
_ROOT_LINE = "# root:"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECONDS = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_SEP_LINE = re.compile(r"sep=[,;\t]")  # Excel's own

# What other programs call the columns.
_OTHER_NAMES = {
    **dict.fromkeys(("class", "class_name", "action", "category", "target", "y", "activity"), "label"),
    **dict.fromkeys(("file", "filename", "file_name", "filepath", "file_path", "video", "video_path"), "path"),
    **dict.fromkeys(("id", "name", "video_name", "clip", "clip_id", "key"), "video_id"),
    **dict.fromkeys(("person", "actor", "performer", "participant", "user"), "subject"),
    **dict.fromkeys(("scene", "sequence", "session", "source"), "group"),
    **dict.fromkeys(("part", "subset", "set", "usage"), "split"),
    **dict.fromkeys(("start", "first_frame", "begin"), "start_frame"),
    **dict.fromkeys(("end", "last_frame", "stop"), "end_frame"),
    **dict.fromkeys(("start_time", "start_sec", "start_seconds", "begin_s", "t_start", "from_s"), "start_s"),
    **dict.fromkeys(("end_time", "end_sec", "end_seconds", "stop_s", "t_end", "to_s"), "end_s"),
    **dict.fromkeys(("depth", "depth_file"), "depth_path"),
    **dict.fromkeys(("view", "cam"), "camera"),
}


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Counts of a manifest without errors."""

    rows: int
    # Label -> rows.
    classes: dict[str, int]
    # Rows without a label.
    unlabelled: int
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
    lines, stated_root, delimiter = _read_lines(path)
    base = (root or stated_root or path.parent).expanduser().resolve()
    if (check_files or root) and not base.is_dir():
        raise ManifestError(f"{path}: root {base} is not a folder; give the data's folder with --root")
    reader = csv.DictReader((line for _, line in lines), strict=True, delimiter=delimiter)
    numbers = [number for number, _ in lines]
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
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
            first, row_of_first = first_seen.setdefault(folded_id(record.video_id), (record.video_id, number))
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
    """Return what is wrong with two ids that are equal, or that file systems may take for equal."""
    if first == second:
        return f"duplicate video_id {second!r} (first in {where})"
    return (
        f"video_id {second!r} differs from {first!r} ({where}) in upper and lower case only; some file systems give both "
        "one folder: rename one"
    )


def _read_lines(path: Path) -> tuple[list[tuple[int, str]], Path | None, str]:
    """Return (line number, text) of all lines from the header on but empty ones, the root that a comment above it names, and
    the character between cells.
    """
    root_line: tuple[int, str] | None = None
    lines: list[tuple[int, str]] = []
    delimiter = ""
    # Not splitlines, which also cuts at form feeds and Unicode separators and would shift the row numbers.
    for number, line in enumerate(LINE_END.split(_text_of(path)), 1):
        if lines or not _is_comment(line):
            if not lines and _SEP_LINE.fullmatch(line.strip()):
                continue
            if not lines and line.strip():
                delimiter = delimiter_of(line, COLUMNS)
            # A spreadsheet writes empty rows as delimiters alone.
            if line.strip() and (not lines or line.strip(f'{delimiter}" \t')):
                lines.append((number, line + "\n"))
        elif line.lstrip('"').startswith(_ROOT_LINE):
            root_line = number, line
    if not lines:
        raise ManifestError(f"{path}: empty file")
    root = None
    if root_line is not None:
        number, line = root_line
        # A spreadsheet fills lines up with empty cells, and quotes them.
        line = line.removesuffix(delimiter * lines[0][1].count(delimiter))
        if line.startswith('"') and line.endswith('"'):
            line = line[1:-1].replace('""', '"')
        stated = line.removeprefix(_ROOT_LINE).strip()
        try:
            if _CONTROL.search(stated):
                raise ValueError("it contains a control character")
            root = path.parent / Path(stated).expanduser()
        except (ValueError, RuntimeError) as error:  # the latter for the home of a user who does not exist
            raise ManifestError(f"{path}: root {stated!r} in line {number}: {error}; give it with --root") from error
    return lines, root, delimiter


def _is_comment(line: str) -> bool:
    """Return whether a line above the header is a comment; a spreadsheet may have quoted it."""
    return line.lstrip('"').startswith("#")


def _text_of(path: Path) -> str:
    """Return a manifest's text: in UTF-8, or as a byte order mark says. Raises: ManifestError if it is neither."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; create one with `har manifest build`") from error
    except IsADirectoryError as error:
        found = what_is(path)
        way_out = "; create a manifest of it with `har manifest build`" if found == "a folder" else ""
        raise ManifestError(f"{path} is {found}, not a manifest (a CSV file){way_out}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    found = what_is(path)
    if found in ("a video file", "a split file"):
        raise ManifestError(f"{path} is {found}, not a manifest (a CSV file)")
    try:
        return decoded(content)
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    if wrong := [name for name in header if name not in COLUMNS and not name.startswith(OWN_PREFIX)]:
        listed = "; ".join(f"unknown column {name!r}; {_column_hint(name, header)}" for name in wrong)
        raise ManifestError(f"{path}: {listed}")
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise ManifestError(f"{path}: duplicate column {repeated[0]!r}")
    missing = [name for name in ("video_id", "label") if name not in header]
    if not any(name in header for name in PATH_COLUMNS):
        missing.append("path (or depth_path)")
    if missing:
        raise ManifestError(f"{path}: missing the required column {' and '.join(missing)}; found: {', '.join(header)}")


def _column_hint(name: str, header: Sequence[str]) -> str:
    """Return what to do about a column of an unknown name."""
    meant = _OTHER_NAMES.get(name.lower().replace(" ", "_").replace("-", "_"), "")
    hint = f"did you mean {meant!r}?" if meant else did_you_mean(name, COLUMNS).strip()
    own = f"own columns start with {OWN_PREFIX!r}"
    if not hint or any(f"did you mean {there!r}?" == hint for there in header):
        return own
    return f"{hint} ({own})" if meant else hint


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
    times: dict[str, float | None] = {}
    for name in TIME_COLUMNS:
        text = cells.get(name, "")
        if text and not _SECONDS.fullmatch(text):
            raise ValueError(f"{name} {text!r} is not a number of seconds, such as 12.5")
        times[name] = float(text) if text else None
    if given := [
        name for name in NUMBER_COLUMNS if numbers[name] is not None and any(v is not None for v in times.values())
    ]:
        raise ValueError(f"its range is given in frames ({given[0]}) and in seconds: give one of the two")
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
        start_s=times["start_s"],
        end_s=times["end_s"],
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
        raise ValueError(
            f"path {text!r} is a folder, not a video file (depth frames belong into the column depth_path)"
        )
    if not may_be_folder and text.lower().endswith(".mat"):
        raise ValueError(f"path {text!r} is a depth file: name it in the column depth_path, which `har frames` reads")
    return path


def write_manifest(path: Path, records: Sequence[VideoRecord], *, root: Path | None = None) -> None:
    """Write records as a manifest, atomically; see `manifest_text`."""
    text = manifest_text(path, records, root=root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def manifest_text(
    path: Path, records: Sequence[VideoRecord], *, root: Path | None = None, comments: Sequence[str] = ()
) -> str:
    """Return the manifest of records that `path` is to hold, with the columns that are in use.

    Paths are written relative to the manifest's folder if all files are below it, else relative to `root`, which a line
    above the header then names. comments: other lines to stand there.
    Raises: ManifestError if there is no record, an id appears twice, a file is outside both folders, an own column does not
    start with `x_`, or a cell could not be read back unchanged.
    """
    if not records:
        raise ManifestError(f"{path}: no videos to write")
    known: dict[str, str] = {}
    for record in records:
        if first := known.get(folded_id(record.video_id)):
            raise ManifestError(f"{path}: {_duplicate(first, record.video_id, 'an earlier record')}")
        known[folded_id(record.video_id)] = record.video_id
    own = sorted({name for record in records for name in record.extra})
    if wrong := [name for name in own if not name.startswith(OWN_PREFIX)]:
        raise ManifestError(f"{path}: own column {wrong[0]!r} must start with {OWN_PREFIX!r}")
    folder = path.parent.resolve()
    files = [file for record in records for file in (record.path, record.depth_path) if file is not None]
    base, header = folder, "".join(f"{line}\n" for line in comments)
    if any(_relative(file, folder) is None for file in files):
        base = (root or folder).expanduser().resolve()
        header += f"{_ROOT_LINE} {base}\n"
        _check_cell(path, "first line", "root", str(base))
        if outside := [file for file in files if _relative(file, base) is None]:
            raise ManifestError(f"{path}: {outside[0]} is outside the root {base}")
    rows = [_row(record, base) for record in records]
    for row in rows:
        for name, value in row.items():
            _check_cell(path, row["video_id"], name, value)
    used = [name for name in (*COLUMNS, *own) if name == "label" or any(row.get(name) for row in rows)]
    text = io.StringIO(newline="")
    text.write(header)
    writer = csv.DictWriter(text, used, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_comments(path: Path) -> list[str]:
    """Return the lines above a manifest's header that begin with `#`, apart from that which names the root."""
    comments = []
    for line in LINE_END.split(_text_of(path)):
        if line.strip() and not _is_comment(line) and not _SEP_LINE.fullmatch(line.strip()):
            break
        if _is_comment(line) and not line.lstrip('"').startswith(_ROOT_LINE):
            comments.append(line.strip('"'))
    return comments


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
    for name in TIME_COLUMNS:
        time_s = getattr(record, name)
        row[name] = "" if time_s is None else seconds_text(time_s)
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
        classes=dict(sorted(Counter(record.label for record in records if record.label).items())),
        unlabelled=sum(not record.label for record in records),
        subjects=distinct("subject"),
        groups=distinct("group"),
        cameras=distinct("camera"),
        splits=dict(sorted(Counter(record.split for record in records if record.split).items())),
    )
