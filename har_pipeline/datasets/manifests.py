"""Reading, checking and writing manifests: CSV files with one row per video (or per sequence of a video).

Columns, the id rule and the root rule are documented in data_manifests/README.md.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.files import write_text
from har_pipeline.core.kinds import what_is
from har_pipeline.core.memory import no_collections
from har_pipeline.core.records import NO_EXTRA, VideoRecord, folded_id, seconds_text
from har_pipeline.core.spreadsheets import delimiter_of, encoding_of
from har_pipeline.core.text import did_you_mean

PATH_COLUMNS = ("path", "depth_path")
TEXT_COLUMNS = ("subject", "group", "camera", "scenario", "split")
NUMBER_COLUMNS = ("start_frame", "end_frame")
TIME_COLUMNS = ("start_s", "end_s")
COLUMNS = ("video_id", "path", "label", *TEXT_COLUMNS[:4], *NUMBER_COLUMNS, *TIME_COLUMNS, "depth_path", "split")
OWN_PREFIX = "x_"
# Wrong rows that an error lists.
MAX_ERRORS = 20
# Different cells that are kept to be shared by rows.
MOST_SHARED = 2**16
# Files of a folder that are looked at one by one, before all of them are.
ASKED_OF_FOLDER = 20
_ROOT_LINE = "# root:"
_NUMBER = re.compile(r"-?[0-9]{1,9}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECONDS = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_NO_NAMES = ("", os.curdir, os.pardir)  # at the end of a path
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(
    path: Path, *, root: Path | None = None, check_files: bool = True, max_errors: int = MAX_ERRORS
) -> list[VideoRecord]:
    """Return the rows of a manifest, with absolute paths.

    The file's paths are relative to `root`, else to the folder in its first line `# root: FOLDER`, else to its own folder.
    check_files: whether to check that the files exist.
    Raises: ManifestError listing the first `max_errors` wrong rows by line number.
    """
    with no_collections():
        return list(_records(path, root, check_files, max_errors))


def _records(path: Path, root: Path | None, check_files: bool, max_errors: int) -> Iterator[VideoRecord]:
    """Give the rows of a manifest one after the other; the error on wrong ones comes after the last, see `read_manifest`."""
    lines = _Lines(path)
    base = (root or lines.root or path.parent).expanduser().resolve()
    if (check_files or root) and not base.is_dir():
        raise ManifestError(f"{path}: root {base} is not a folder; give the data's folder with --root")
    reader = csv.reader(lines, strict=True, delimiter=lines.delimiter)
    count, wrong, last = 0, 0, 0  # last: line of the row before
    problems: list[str] = []
    first_seen: dict[str, int] = {}  # id without case -> row
    spelled: dict[str, str] = {}  # the same -> id, where it is another
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        last = lines.number
        record_of = _RowReader(header, base, check_files)
        for row in reader:
            if not row:
                continue
            count += 1
            try:
                record = record_of(row)
                folded = folded_id(record.video_id)
                row_of_first = first_seen.setdefault(folded, lines.number)
                if row_of_first != lines.number:
                    first = spelled.get(folded, folded)
                    raise ValueError(_duplicate(first, record.video_id, f"row {row_of_first}"))
                if folded != record.video_id:
                    spelled[folded] = record.video_id
            except ValueError as error:
                wrong += 1
                if len(problems) < max_errors:
                    commented = "; comments stand above the header only" if lines.text.startswith("#") else ""
                    first_line = lines.number - sum(cell.count("\n") for cell in row)
                    problems.append(f"  {path.name}:row {first_line}: {error}{commented}")
            else:
                yield record
            last = lines.number
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise ManifestError(
                f"{path.name}: not valid CSV: a quotation mark that opens after row {last} is never closed"
            ) from error
        raise ManifestError(f"{path.name}:row {lines.number}: not valid CSV: {error}") from error
    if not count:
        raise ManifestError(f"{path}: no rows below the header")
    if problems or wrong:
        more = f"\n  and {wrong - max_errors} more" if wrong > max_errors else ""
        raise ManifestError(f"{path}: {wrong} of {count} rows are wrong:\n" + "\n".join(problems) + more)


def _duplicate(first: str, second: str, where: str) -> str:
    """Return what is wrong with two ids that are equal, or that file systems may take for equal."""
    if first == second:
        return f"duplicate video_id {second!r} (first in {where})"
    return (
        f"video_id {second!r} differs from {first!r} ({where}) in upper and lower case only; some file systems give both "
        "one folder: rename one"
    )


class _Lines:
    """The lines of a manifest from its header on but empty ones, read once.

    Raises: ManifestError if there is none, or the root that a comment names is none.
    """

    def __init__(self, path: Path) -> None:
        self._lines = enumerate(_open_text(path), 1)
        root_line: tuple[int, str] | None = None
        for number, text in self._lines:
            line = text.removesuffix("\n")
            if not _is_comment(line):
                if line.strip() and not _SEP_LINE.fullmatch(line.strip()):
                    break
            elif line.lstrip('"').startswith(_ROOT_LINE):
                root_line = number, line
        else:
            raise ManifestError(f"{path}: empty file")
        # Of the line given last.
        self.number, self.text = number, text
        # Between cells.
        self.delimiter = delimiter_of(line, COLUMNS)
        # The folder that a comment above the header names.
        self.root = (
            None if root_line is None else _root_of(path, *root_line, self.delimiter * text.count(self.delimiter))
        )

    def __iter__(self) -> Iterator[str]:
        yield self.text
        empty = f'{self.delimiter}" \t'
        for number, text in self._lines:
            # A spreadsheet writes empty rows as delimiters alone.
            if text[0].isalnum() or (text.strip() and text.strip(f"{empty}\n")):
                self.number, self.text = number, text
                yield text


def _root_of(path: Path, number: int, line: str, empty_cells: str) -> Path:
    """Return the folder that the comment in line `number` names. Raises: ManifestError if it is none."""
    # A spreadsheet fills lines up with empty cells, and quotes them.
    line = line.removesuffix(empty_cells)
    if line.startswith('"') and line.endswith('"'):
        line = line[1:-1].replace('""', '"')
    stated = line.removeprefix(_ROOT_LINE).strip()
    try:
        if _CONTROL.search(stated):
            raise ValueError("it contains a control character")
        return path.parent / Path(stated).expanduser()
    except (ValueError, RuntimeError) as error:  # the latter for the home of a user who does not exist
        raise ManifestError(f"{path}: root {stated!r} in line {number}: {error}; give it with --root") from error


def _is_comment(line: str) -> bool:
    """Return whether a line above the header is a comment; a spreadsheet may have quoted it."""
    return line.lstrip('"').startswith("#")


def _open_text(path: Path) -> io.TextIOWrapper:
    """Return a manifest's lines, each with `\n` for whatever ends it: of UTF-8, or as a byte order mark says.

    Raises: ManifestError if it is neither.
    """
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
        # Not splitlines, which also cuts at form feeds and Unicode separators and would shift the row numbers.
        return io.TextIOWrapper(io.BytesIO(content), encoding_of(content))
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


class _Shared(dict[Any, Any]):
    """What is made of cells, made once for all rows that have the same."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __missing__(self, cells: Any) -> Any:
        made = self._make(cells)
        if len(self) < MOST_SHARED:
            self[cells] = made
        return made


class _Folder:
    """A folder of paths, and the plain files in it, by a look into it if many are asked for: quicker than one at each file.

    What is not found may be there all the same: a link, or under a name that the file system takes for the same.
    """

    __slots__ = ("_asked", "_names", "prefix")

    def __init__(self, prefix: str) -> None:
        """prefix: of the paths in it, with the separator at its end."""
        self.prefix = prefix
        self._asked = 0
        self._names: set[str] | None = None

    def __contains__(self, name: str) -> bool:
        if self._names is None:
            self._asked += 1
            if self._asked <= ASKED_OF_FOLDER:
                return False
            self._names = self._listed()
        return name in self._names

    def _listed(self) -> set[str]:
        try:
            with os.scandir(self.prefix) as entries:
                return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        except OSError:
            return set()


_WHOLE = (0, None, None, None)


def _range_of(cells: tuple[str, ...]) -> tuple[int, int | None, float | None, float | None]:
    """Return the values of `NUMBER_COLUMNS` and `TIME_COLUMNS` in a row. Raises: ValueError if a cell is none."""
    given = {name: cell for name, cell in zip((*NUMBER_COLUMNS, *TIME_COLUMNS), cells, strict=True) if cell}
    if not given:
        return _WHOLE
    for name, cell in given.items():
        if name in NUMBER_COLUMNS and not _NUMBER.fullmatch(cell):
            raise ValueError(f"{name} {cell!r} is not a whole number")
        if name in TIME_COLUMNS and not _SECONDS.fullmatch(cell):
            raise ValueError(f"{name} {cell!r} is not a number of seconds, such as 12.5")
    frames = [name for name in NUMBER_COLUMNS if name in given]
    if frames and len(given) > len(frames):
        raise ValueError(f"its range is given in frames ({frames[0]}) and in seconds: give one of the two")
    start, end = (int(given[name]) if name in given else None for name in NUMBER_COLUMNS)
    start_s, end_s = (float(given[name]) if name in given else None for name in TIME_COLUMNS)
    return start or 0, end, start_s, end_s


class _RowReader:
    """Makes records of rows; equal cells of different rows become one string, as most columns hold few words."""

    def __init__(self, header: Sequence[str], base: Path, check_files: bool) -> None:
        self._header, self._check_files = header, check_files
        self._base, self._inside = base, os.path.join(base, "")
        place = {name: number for number, name in enumerate(header)}
        # Of a column that is not there: the empty cell that each row gets at its end.
        self._texts = itemgetter(*(place.get(name, len(header)) for name in ("label", *TEXT_COLUMNS)))
        self._places = itemgetter(*(place.get(name, len(header)) for name in ("video_id", *PATH_COLUMNS)))
        self._has_range = any(name in place for name in (*NUMBER_COLUMNS, *TIME_COLUMNS))
        self._range = itemgetter(*(place.get(name, len(header)) for name in (*NUMBER_COLUMNS, *TIME_COLUMNS)))
        self._own = {name: number for name, number in place.items() if name.startswith(OWN_PREFIX)}
        self._words = _Shared(str)
        self._labels = _Shared(self._one)
        self._extras = _Shared(
            lambda own: {name: cell for name, cell in zip(self._own, self._one(own), strict=True) if cell}
        )
        self._folders: dict[str, _Folder | None] = {}

    def __call__(self, row: Sequence[str]) -> VideoRecord:
        """Return one row as a record. Raises: ValueError saying what is wrong with it."""
        if len(row) != len(self._header):
            raise ValueError(f"number of cells differs from the header: {len(row)}, not {len(self._header)}")
        text = "".join(row)
        # No other blank is printable. One look at all is quicker than to strip and to search each cell.
        printable = text.isprintable()
        if " " in text or not printable:
            row = list(map(str.strip, row))
        if not printable:
            for name, cell in zip(self._header, row, strict=True):
                if _CONTROL.search(cell):
                    raise ValueError(f"{name} contains a line break or another control character")
        cells = [*row, ""]
        start_frame, end_frame, start_s, end_s = _range_of(self._range(cells)) if self._has_range else _WHOLE
        video_id, path, depth_path = self._places(cells)
        label, subject, group, camera, scenario, split = self._labels[self._texts(cells)]
        return VideoRecord(
            video_id=video_id,
            label=label or "",
            path=self._resolve(path, may_be_folder=False) if path else None,
            depth_path=self._resolve(depth_path, may_be_folder=True) if depth_path else None,
            subject=subject,
            group=group,
            camera=camera,
            scenario=scenario,
            split=split,
            extra=self._extras[tuple(cells[place] for place in self._own.values())] if self._own else NO_EXTRA,
            start_frame=start_frame,
            end_frame=end_frame,
            start_s=start_s,
            end_s=end_s,
        )

    def _one(self, cells: tuple[str, ...]) -> tuple[str | None, ...]:
        """Return the first string of those that are equal to each cell; None for an empty cell."""
        return tuple(self._words[cell] or None for cell in cells)

    def _resolve(self, text: str, may_be_folder: bool) -> str:
        """Return the path that a cell names, as text: see `VideoRecord`."""
        head, separator, name = text.rpartition(os.sep)
        try:
            folder = self._folders[head + separator]
        except KeyError:
            folder = self._folders[head + separator] = self._folder(head + separator)
        if folder is None or name in _NO_NAMES:
            path, known = self._inner(text), False
        else:
            path, known = folder.prefix + name, self._check_files and name in folder
        if self._check_files and not known:
            try:
                is_folder = stat.S_ISDIR(os.stat(path).st_mode)
            except (OSError, ValueError) as error:
                raise ValueError(f"file {text!r} does not exist under the root {self._base}") from error
            if is_folder and not may_be_folder:
                raise ValueError(
                    f"path {text!r} is a folder, not a video file (depth frames belong into the column depth_path)"
                )
        if not may_be_folder and text[-4:].lower() == ".mat":
            raise ValueError(
                f"path {text!r} is a depth file: name it in the column depth_path, which `har frames` reads"
            )
        return path

    def _folder(self, text: str) -> _Folder | None:
        """Return the folder that paths beginning with `text` are in; None if that is to be found out for each."""
        prefix = os.path.join(os.path.normpath(self._inside + text), "")
        return None if os.path.isabs(text) or not prefix.startswith(self._inside) else _Folder(prefix)

    def _inner(self, text: str) -> str:
        """Return the path that a cell names. Raises: ValueError if it is outside the root."""
        if os.path.isabs(text):
            raise ValueError(f"path {text!r} is absolute: write it relative to the root {self._base}")
        # Links are not resolved: a data set may be a tree of links, but its names must stay inside the root.
        path = os.path.normpath(self._inside + text)
        if not path.startswith(self._inside) and path != str(self._base):
            raise ValueError(f"path {text!r} is outside the root {self._base}")
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
    for text in _open_text(path):
        line = text.removesuffix("\n")
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
    labels: Counter[str] = Counter()
    splits: Counter[str | None] = Counter()
    subjects, groups, cameras = set(), set(), set()
    for record in _records(path, root, check_files=True, max_errors=MAX_ERRORS):
        labels[record.label] += 1
        splits[record.split] += 1
        subjects.add(record.subject)
        groups.add(record.group)
        cameras.add(record.camera)
    return ManifestSummary(
        rows=labels.total(),
        classes={label: count for label, count in sorted(labels.items()) if label},
        unlabelled=labels[""],
        subjects=len(subjects - {None}),
        groups=len(groups - {None}),
        cameras=len(cameras - {None}),
        splits=dict(sorted((split, count) for split, count in splits.items() if split)),
    )
