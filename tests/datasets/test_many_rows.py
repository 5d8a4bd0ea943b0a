"""Manifests of many rows: read and split as the plain way does it, with few looks at the disk and little memory for a row."""

from __future__ import annotations

import copy
import csv
import dataclasses
import gc
import os
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_pipeline.core import records as records_module
from har_pipeline.core.errors import ManifestError, SplitError
from har_pipeline.core.records import (
    RESERVED_ID_PATTERN,
    VIDEO_ID_PATTERN,
    VideoRecord,
    folded_id,
)
from har_pipeline.datasets import manifests
from har_pipeline.datasets.manifests import ASKED_OF_FOLDER, check_manifest, read_manifest
from har_pipeline.datasets.splits import describe_splits, make_splits, unused_videos
from har_pipeline.datasets.units import SOURCES, Columns, Source, source_of, take_share, units

COLUMNS = ("video_id", "path", "label", "subject", "start_frame", "end_frame", "start_s", "x_mood", "x_note")


def read_plainly(text: str, base: Path, name: str) -> list[VideoRecord] | str:
    """Return the rows of a manifest without comments, or the lines of the error; all of it is in memory at once."""
    numbered = [(n, line) for n, line in enumerate(re.split(r"\r\n|\n|\r", text), 1)]
    lines = [(n, line + "\n") for n, line in numbered if line.strip(', "\t')]
    numbers = [n for n, _ in lines]
    reader = csv.DictReader((line for _, line in lines), strict=True)
    rows, last = [], numbers[0]
    try:
        for row in reader:
            last = numbers[min(reader.line_num, len(numbers)) - 1]
            rows.append((last, row))
    except csv.Error as error:
        if "unexpected end" in str(error):
            return f"not valid CSV: a quotation mark that opens after row {last} is never closed"
        return f"row {numbers[min(max(reader.reader.line_num, 1), len(numbers)) - 1]}: not valid CSV: {error}"
    if not rows:
        return "no rows below the header"
    found: list[VideoRecord] = []
    wrong: list[str] = []
    seen: dict[str, tuple[str, int]] = {}
    for number, row in rows:
        try:
            record = plain_record(row, base)
            first, place = seen.setdefault(folded_id(record.video_id), (record.video_id, number))
            if place != number:
                raise ValueError(manifests._duplicate(first, record.video_id, f"row {place}"))
            found.append(record)
        except ValueError as error:
            hint = "; comments stand above the header only" if dict(lines)[number].startswith("#") else ""
            first_line = number - str([*row.values()]).count(r"\n")
            wrong.append(f"  {name}:row {first_line}: {error}{hint}")
    if not wrong:
        return found
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    return f"{len(wrong)} of {len(rows)} rows are wrong:\n" + "\n".join(wrong[:20]) + more


def plain_record(row: dict[str | Any, str | Any], base: Path) -> VideoRecord:
    if None in row or None in row.values():
        count = len(COLUMNS) + len(row.get(None) or ()) - [*row.values()].count(None)
        raise ValueError(f"number of cells differs from the header: {count}, not {len(COLUMNS)}")
    cells = {key: value.strip() for key, value in row.items()}
    for key, value in cells.items():
        if re.search(r"[\x00-\x1f\x7f]", value):
            raise ValueError(f"{key} contains a line break or another control character")
    for key in ("start_frame", "end_frame"):
        if cells[key] and not re.fullmatch(r"-?[0-9]{1,9}", cells[key]):
            raise ValueError(f"{key} {cells[key]!r} is not a whole number")
    if cells["start_s"] and not re.fullmatch(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", cells["start_s"]):
        raise ValueError(f"start_s {cells['start_s']!r} is not a number of seconds, such as 12.5")
    if cells["start_s"] and (given := [key for key in ("start_frame", "end_frame") if cells[key]]):
        raise ValueError(f"its range is given in frames ({given[0]}) and in seconds: give one of the two")
    path = None
    if text := cells["path"]:
        if text.startswith("/"):
            raise ValueError(f"path {text!r} is absolute: write it relative to the root {base}")
        path = Path(os.path.normpath(base / text))
        if not path.is_relative_to(base):
            raise ValueError(f"path {text!r} is outside the root {base}")
        if text.lower().endswith(".mat"):
            raise ValueError(
                f"path {text!r} is a depth file: name it in the column depth_path, which `har frames` reads"
            )
    return VideoRecord(
        video_id=cells["video_id"],
        label=cells["label"],
        path=path,
        subject=cells["subject"] or None,
        start_frame=int(cells["start_frame"] or 0),
        end_frame=int(cells["end_frame"]) if cells["end_frame"] else None,
        start_s=float(cells["start_s"]) if cells["start_s"] else None,
        extra={key: value for key, value in cells.items() if key.startswith("x_") and value},
    )


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in '",\r\n') else cell


CELLS = {
    "video_id": st.sampled_from(["a", "A", "b1", "B1", "c.d", "e\u0301", "con", "zarr.json", "", " g ", "#h"])
    | st.from_regex(r"[a-z]{1,3}[0-9]{0,2}", fullmatch=True),
    "path": st.sampled_from(
        ["a.avi", "run/b.avi", "../x.avi", "/abs.avi", "a/../b.avi", "x.MAT", ".", "", "a//b", "c\nd"]
    ),
    "label": st.sampled_from(["run", "jump", "", 'say "hi"', "a,b", " walk ", "e\u0301te\u0301"]),
    "subject": st.sampled_from(["", "1", "2", "p\x7f", "p\u00a0q", "p\u2028q"]),
    "start_frame": st.sampled_from(["", "", "0", "5", "-1", "x", "1.5"]),
    "end_frame": st.sampled_from(["", "", "9", "3", "1e3"]),
    "start_s": st.sampled_from(["", "", "", "1.5", "-2", ".", "nan"]),
    "x_mood": st.sampled_from(["", "calm", "wild"]),
    "x_note": st.sampled_from(["", "n\t", "wild"]),
}
GOOD = {**CELLS, "path": st.sampled_from(["a.avi", "run/b.avi"]), "subject": st.sampled_from(["", "1"])}
GOOD |= dict.fromkeys(("start_frame", "end_frame", "start_s"), st.just(""))


@st.composite
def texts(draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    lines = [",".join(COLUMNS)]
    for _ in range(draw(st.integers(0, 6))):
        cells = draw(st.sampled_from([CELLS, GOOD, GOOD]))
        row = ",".join(quoted(draw(cells[name])) for name in COLUMNS)
        lines.append(draw(st.sampled_from([row, row, row, row, row + ",more", row[:-3], ',,"",', "  ", row + '"'])))
    return "".join(line + draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])) for line in lines)


@settings(max_examples=200)
@given(text=texts())
def test_rows_are_read_as_all_at_once(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve() / "m.csv"
        path.write_bytes(text.encode())
        expected = read_plainly(text, path.parent, path.name)
        if isinstance(expected, list):
            assert read_manifest(path, check_files=False) == expected
        else:
            with pytest.raises(ManifestError) as caught:
                read_manifest(path, check_files=False)
            assert str(caught.value).endswith(expected)


def written(folder: Path, rows: int, folders: int = 3, own: str = "x_split1,x_split2") -> Path:
    """A manifest of empty files in some folders."""
    cells = ",".join("train" for _ in own.split(","))
    lines = [f"video_id,path,label,subject,split,{own}"]
    for number in range(rows):
        place = folder / f"class{number % folders}"
        place.mkdir(exist_ok=True)
        (place / f"{number}.avi").touch()
        lines.append(f"v{number},{place.name}/{number}.avi,{place.name},p{number % 4},train,{cells}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "m.csv"


def test_files_of_a_folder_are_looked_at_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 300)
    looks: Counter[str] = Counter()
    for name in ("stat", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda p, *a, n=name, real=real, **k: (looks.update([n]), real(p, *a, **k))[1])
    assert check_manifest(path).rows == 300
    assert looks["scandir"] == 3
    assert looks["stat"] <= 3 * ASKED_OF_FOLDER + 20


def test_a_file_that_a_listing_does_not_name_is_looked_at(tmp_path: Path) -> None:
    path = written(tmp_path, 3 * (ASKED_OF_FOLDER + 3))
    last, other = tmp_path / "class0" / f"{3 * ASKED_OF_FOLDER + 3}.avi", tmp_path / "class0/other.avi"
    last.rename(other)
    last.symlink_to(other)
    assert check_manifest(path).rows == 3 * (ASKED_OF_FOLDER + 3)
    other.unlink()  # the link stays
    with pytest.raises(ManifestError, match=f"1 of .* rows are wrong(.|\n)*{last.name}' does not exist"):
        check_manifest(path)
    last.unlink()
    last.mkdir()
    with pytest.raises(ManifestError, match=f"{last.name}' is a folder"):
        check_manifest(path)


def test_rows_share_what_is_equal_and_hold_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 40)
    monkeypatch.setattr(records_module, "Path", None)  # none is made, neither here nor for splits
    found = read_manifest(path)
    assert len({id(record.extra) for record in found}) == 1
    for name in ("label", "subject", "split"):
        values = [getattr(record, name) for record in found]
        assert len({id(value) for value in values}) == len(set(values))
    for protocol in ("holdout", "leave_one_subject_out", "group_kfold"):
        make_splits(found, protocol, val_fraction=0.2, num_folds=2)


def test_a_check_holds_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 12)
    alive = []

    def folded(video_id: str) -> str:
        alive.append(sum(type(thing) is VideoRecord for thing in gc.get_objects()))
        return folded_id(video_id)

    gc.collect()
    before = sum(type(thing) is VideoRecord for thing in gc.get_objects())
    monkeypatch.setattr(manifests, "folded_id", folded)
    check_manifest(path)
    assert max(alive) - before <= 2


def test_paths_through_the_folder_above_stay_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "run").mkdir(parents=True)
    (root / "run/a.avi").touch()
    path = root / "m.csv"
    for text in ("../data/run/a.avi", "run/../run/a.avi", "run//a.avi", "./run/a.avi"):
        path.write_text(f"video_id,path,label\na,{text},run\n", encoding="utf-8")
        assert [record.files for record in read_manifest(path)] == [(str(root / "run/a.avi"),)]
    for text, reason in {
        "../data": "is a folder",
        "run/..": "is a folder",
        "run/.": "is a folder",
        "../run/a.avi": "is outside the root",
        "../../data/run/a.avi": "is outside the root",
        "/../data": "is absolute",
        f"{root}/run/a.avi": "is absolute",
    }.items():
        path.write_text(f"video_id,path,label\na,{text},run\n", encoding="utf-8")
        with pytest.raises(ManifestError, match=f"path '{re.escape(text)}' {reason}"):
            read_manifest(path)


def test_blanks_of_any_kind_at_the_ends_of_cells_are_taken_off() -> None:
    blanks = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    assert [blank for blank in blanks if blank.isprintable()] == [" "]  # so the others are found by one look


def test_a_record_keeps_its_paths_as_text() -> None:
    given = {"video_id": "a", "label": "run", "path": "/v/a.avi", "depth_path": "/v/a.mat", "split": "naive\u0301"}
    record = VideoRecord(**given)  # type: ignore[arg-type]
    assert (record.path, record.depth_path) == (Path("/v/a.avi"), Path("/v/a.mat"))
    assert record == VideoRecord(**{**given, "path": Path("/v/a.avi")})  # type: ignore[arg-type]
    assert record.split == "naiv\u00e9"
    for copied in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), dataclasses.replace(record)):
        assert type(copied) is VideoRecord
        assert copied == record
        assert hash(copied.video_id) == hash(record.video_id)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.label = "walk"  # type: ignore[misc]
    with pytest.raises(ValueError, match="end_frame 3 is not above"):
        dataclasses.replace(record, start_frame=5, end_frame=3)


@given(st.from_regex(r"(?i)(con|nul|com1|zarr\.json|v)?[a-z\u017f\u212a0-9._-]{0,6}\n?", fullmatch=True))
def test_usual_ids_are_legal_and_not_reserved(text: str) -> None:
    usual = VIDEO_ID_PATTERN.fullmatch(text) and not RESERVED_ID_PATTERN.fullmatch(text)
    assert bool(records_module._USUAL_ID.fullmatch(text)) == bool(usual)


def test_cycles_are_searched_for_again_after_reading(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    read_manifest(path)
    assert gc.isenabled()
    with pytest.raises(ManifestError):
        read_manifest(tmp_path / "none.csv")
    assert gc.isenabled()
    gc.disable()
    try:
        read_manifest(path)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_wrong_rows_beyond_those_listed_are_counted_only(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video_id,path,label\n" + "a b,x.avi,run\n" * 50, encoding="utf-8")
    with pytest.raises(ManifestError, match="50 of 50 rows are wrong") as caught:
        read_manifest(path, check_files=False, max_errors=2)
    assert str(caught.value).count("\n") == 3
    assert str(caught.value).endswith("and 48 more")


# Splits


def test_an_id_that_stands_twice_is_refused() -> None:
    records = videos("1234", [""] * 4, "abab")
    with pytest.raises(SplitError, match="1 ids appear more than once among the videos, such as 'v002'"):
        make_splits([*records, records[2]], "all", val_fraction=0)


def test_classes_are_those_of_the_split() -> None:
    records = videos("1234567", [""] * 7, "abababc")
    records = [dataclasses.replace(r, split="test" if r.video_id in ("v000", "v001") else "train") for r in records]
    records[-1] = dataclasses.replace(records[-1], split="unused")
    records.append(dataclasses.replace(records[0], video_id="nameless", label=""))
    (split,) = make_splits(records, "column", val_fraction=0)
    assert describe_splits([split], records)[0]["classes"] == 2
    assert unused_videos([split], records) == ["1 of 8 videos of the manifest are not used by column split 0: v006"]


def videos(subjects: Sequence[str], groups: Sequence[str], labels: Sequence[str]) -> list[VideoRecord]:
    rows = enumerate(zip(subjects, groups, labels, strict=True))
    return [
        VideoRecord(video_id=f"v{n:03}", label=label, path=Path(f"/v/{n}"), subject=s or None, group=g or None)
        for n, (s, g, label) in rows
    ]


def plain_units(records: Sequence[VideoRecord], sources: Sequence[Source]) -> list[int]:
    """Number the connected parts of videos that share a source, one video after the other."""
    number = [-1] * len(records)
    shared = [{(s, v) for s in sources if (v := source_of(record, s)) is not None} for record in records]
    for start in range(len(records)):
        reached, new = {start}, [start]
        while new and number[start] < 0:
            one = new.pop()
            near = {i for i in range(len(records)) if shared[i] & shared[one]} - reached
            reached |= near
            new += near
        if number[start] < 0:
            free = max(number) + 1
            for i in reached:
                number[i] = free
    return number


def plain_share(side: Sequence[VideoRecord], fraction: float, seed: int) -> tuple[list[str], list[str]] | None:
    """Draw a share with sums over all classes for each unit; None where none can be divided."""
    side = sorted(side, key=lambda r: r.video_id)
    unit = np.array(plain_units(side, SOURCES))
    labels = np.unique([r.label for r in side], return_inverse=True)[1]
    counts = np.zeros((unit.max() + 1, labels.max() + 1))
    np.add.at(counts, (unit, labels), 1)
    total = counts.sum(axis=0)
    wanted, taken, chosen = fraction * total, np.zeros(len(total)), []
    order = np.random.default_rng(seed).permutation(len(counts))
    for i in order:
        nearer = np.abs(taken + counts[i] - wanted).sum() < np.abs(taken - wanted).sum()
        if nearer and (taken + counts[i] < total).all():
            taken += counts[i]
            chosen.append(int(i))
    if not chosen:
        possible = [int(i) for i in order if (counts[i] < total).all()]
        if not possible:
            return None
        chosen = [min(possible, key=lambda i: float(np.abs(counts[i] - wanted).sum()))]
    out = np.isin(unit, chosen)
    return [r.video_id for r, o in zip(side, out, strict=True) if not o], [
        r.video_id for r, o in zip(side, out, strict=True) if o
    ]


@st.composite
def sides(draw: Callable[[st.SearchStrategy[Any]], Any]) -> list[VideoRecord]:
    count = draw(st.integers(1, 40))
    some = [st.just(""), st.sampled_from(["", "1", "2", "3"]), st.integers(0, 20).map(str)]
    subjects, groups = (draw(st.lists(draw(st.sampled_from(some)), min_size=count, max_size=count)) for _ in range(2))
    return videos(subjects, groups, draw(st.lists(st.sampled_from("abcde"), min_size=count, max_size=count)))


@settings(max_examples=150)
@given(side=sides(), fraction=st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7]), seed=st.integers(0, 3))
def test_a_share_is_drawn_as_over_all_classes(side: list[VideoRecord], fraction: float, seed: int) -> None:
    assert units(side, SOURCES) == plain_units(side, SOURCES)
    expected = plain_share(side, fraction, seed)
    columns, rows = Columns(side), np.arange(len(side))
    if expected is None:
        with pytest.raises(SplitError, match="cannot divide"):
            take_share(columns, rows, fraction, seed, "here", SOURCES, "another")
    else:
        found = take_share(columns, rows, fraction, seed, "here", SOURCES, "another")
        assert tuple(columns.ids[part].tolist() for part in found) == expected
