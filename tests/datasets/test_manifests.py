from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.records import RESERVED_ID_PATTERN, VideoRecord
from har_pipeline.datasets.manifests import check_manifest, manifest_sha256, read_manifest, write_manifest

HEADER = "video_id,path,label\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with run/a.avi, run/b.avi and a depth folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "depth_a").mkdir()
    for name in ("a", "b"):
        (tmp_path / "run" / f"{name}.avi").touch()
    return tmp_path


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_all_columns_are_read(data: Path) -> None:
    columns = "video_id,path,label,subject,group,camera,scenario,start_frame,end_frame,depth_path,split,x_mood"
    path = written(data, f"{columns}\na,run/a.avi,run,p1,g1,c1,d1,5,9,depth_a,train,calm\nb,run/b.avi,run,,,,,,,,,\n")
    folder = data.resolve()
    first, second = read_manifest(path)
    assert first == VideoRecord(
        video_id="a",
        label="run",
        path=folder / "run/a.avi",
        depth_path=folder / "depth_a",
        subject="p1",
        group="g1",
        camera="c1",
        scenario="d1",
        start_frame=5,
        end_frame=9,
        split="train",
        extra={"x_mood": "calm"},
    )
    assert second == VideoRecord(video_id="b", label="run", path=folder / "run/b.avi")


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfvideo_id,path,label\na,run/a.avi,run\n",
        b"video_id,path,label\r\na,run/a.avi,run\r\n",
        b"video_id,path,label\ra,run/a.avi,run",
        b"# made by hand\n\nvideo_id,path,label\n\n\na, run/a.avi , run \n\n",
        b'video_id,path,label\na,"run/a.avi","run"\n',
    ],
    ids=["bom", "crlf", "cr", "comments and blanks", "quotes"],
)
def test_ways_of_writing_the_same_row(data: Path, text: bytes) -> None:
    assert read_manifest(written(data, text)) == [
        VideoRecord(video_id="a", label="run", path=data.resolve() / "run/a.avi")
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,run/none.avi,run", "'run/none.avi' does not exist"),
        ("a,run,run", "'run' is a folder"),
        ("a,/run/a.avi,run", "is absolute"),
        ("a,../outside.avi,run", "is outside the root"),
        ("a,run/../../outside.avi,run", "is outside the root"),
        ("a,,run", "one of path and depth_path"),
        (",run/a.avi,run", "video_id ''"),
        ("a b,run/a.avi,run", "video_id 'a b'"),
        ("a,run/a.avi", "number of cells differs from the header: 2, not 3"),
        ("a,run/a.avi,run,more", "number of cells differs"),
        ('a,run/a.avi,"r\nun"', "label contains a line break"),
        (f"a,{'x' * 5000}.avi,run", "does not exist"),
    ],
)
def test_wrong_rows_are_named_by_their_line(data: Path, row: str, message: str) -> None:
    path = written(data, f"# comment\n{HEADER}\nb,run/b.avi,run\n{row}\n")
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert "manifest.csv:row 5: " in str(error.value)  # with a line break in a cell: the line in which it begins
    assert message in str(error.value)
    assert "1 of 2 rows are wrong" in str(error.value)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("-1", "", "negative"),
        ("5", "5", "not above"),
        ("9", "3", "not above"),
        ("1.5", "", "start_frame '1.5' is not a whole number"),
        ("", "--3", "end_frame '--3' is not a whole number"),
        ("²", "", "start_frame '²' is not a whole number"),
        ("", "9" * 5000, "is not a whole number"),
    ],
)
def test_bad_ranges(data: Path, start: str, end: str, message: str) -> None:
    path = written(data, f"video_id,path,label,start_frame,end_frame\na,run/a.avi,run,{start},{end}\n")
    with pytest.raises(ManifestError, match="row 2: ") as error:
        read_manifest(path)
    assert message in str(error.value)


def test_rows_in_seconds(data: Path) -> None:
    columns = "video_id,path,label,start_frame,end_frame,start_s,end_s"
    rows = "a,run/a.avi,run,,,1.50,12\nb,run/a.avi,run,,,,0.04\nc,run/a.avi,run,7,,,\nd,run/a.avi,run,,,.5,\n"
    records = read_manifest(written(data, f"{columns}\n{rows}"))
    assert [(one.start_frame, one.end_frame, one.start_s, one.end_s) for one in records] == [
        (0, None, 1.5, 12.0),
        (0, None, None, 0.04),
        (7, None, None, None),
        (0, None, 0.5, None),
    ]
    write_manifest(data / "again.csv", records)
    assert (data / "again.csv").read_text() == (
        "video_id,path,label,start_frame,start_s,end_s\n"
        "a,run/a.avi,run,,1.5,12\nb,run/a.avi,run,,,0.04\nc,run/a.avi,run,7,,\nd,run/a.avi,run,,0.5,\n"
    )
    assert read_manifest(data / "again.csv") == records


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (",,-1,", "start_s -1.0 is negative"),
        (",,5,5.0", "end_s 5.0 is not above start_s 5.0"),
        (",,9,3", "end_s 3.0 is not above start_s 9.0"),
        (",,,0", "end_s 0.0 is not above start_s 0"),
        (",,00:01:30,", "start_s '00:01:30' is not a number of seconds, such as 12.5"),
        (",,nan,", "start_s 'nan' is not a number of seconds"),
        (",,,1e3", "end_s '1e3' is not a number of seconds"),
        (",,," + "9" * 400, "is not above"),
        ("0,,1.5,", "its range is given in frames (start_frame) and in seconds: give one of the two"),
        (",9,1.5,", "its range is given in frames (end_frame) and in seconds: give one of the two"),
        ("3,,,2", "its range is given in frames (start_frame) and in seconds"),
    ],
)
def test_bad_times(data: Path, cells: str, message: str) -> None:
    header = "video_id,path,label,start_frame,end_frame,start_s,end_s"
    with pytest.raises(ManifestError, match="row 2: ") as error:
        read_manifest(written(data, f"{header}\na,run/a.avi,run,{cells}\n"))
    assert message in str(error.value)


def test_a_record_is_given_in_frames_or_in_seconds() -> None:
    with pytest.raises(ValueError, match="a: its range is given in frames and in seconds"):
        VideoRecord(video_id="a", label="run", path=Path("/a"), end_frame=5, start_s=1.0)


@pytest.mark.parametrize(("name", "meant"), [("t_start", "start_s"), ("end_time", "end_s")])
def test_other_names_of_times(data: Path, name: str, meant: str) -> None:
    with pytest.raises(ManifestError, match=f"unknown column '{name}'; did you mean '{meant}'"):
        read_manifest(written(data, f"video_id,path,label,{name}\na,run/a.avi,run,1\n"))


def test_duplicate_ids_name_both_rows(data: Path) -> None:
    with pytest.raises(ManifestError, match=r"row 4: duplicate video_id 'a' \(first in row 2\)"):
        read_manifest(written(data, f"{HEADER}a,run/a.avi,run\nb,run/b.avi,run\na,run/b.avi,run\n"))


@pytest.mark.parametrize("second", ["Clip-1", "CLIP-1"])
def test_ids_that_differ_in_case_only_are_refused(data: Path, second: str) -> None:
    """File systems that fold case would give both one folder of the store, and each other's features."""
    manifest = written(data, f"video_id,path,label\nclip-1,run/a.avi,run\n{second},run/a.avi,run\n")
    with pytest.raises(
        ManifestError, match=rf"row 3: video_id '{second}' differs from 'clip-1' \(row 2\) in upper and"
    ):
        read_manifest(manifest)
    records = [VideoRecord(video_id=one, label="run", path=data / "run/a.avi") for one in ("clip-1", second)]
    with pytest.raises(ManifestError, match=rf"'{second}' differs from 'clip-1'"):
        write_manifest(data / "m.csv", records)


@pytest.mark.parametrize("reserved", ["zarr.json", "ZARR.json", "con", "NUL.avi", "com1", "Lpt9.x.y", "clip."])
def test_reserved_ids_are_refused(data: Path, reserved: str) -> None:
    with pytest.raises(ManifestError, match=f"row 2: video_id '{reserved}' is reserved"):
        read_manifest(written(data, f"video_id,path,label\n{reserved},run/a.avi,run\n"))


@pytest.mark.parametrize("free", ["zarr", "zarr.json2", "console", "nullify.avi", "com", "a.con", "com1_x"])
def test_ids_like_reserved_ones_are_free(free: str) -> None:
    assert VideoRecord(video_id=free, label="run", path=Path("a")).video_id == free


def test_a_row_may_begin_with_a_hash(data: Path) -> None:
    """44 files of HMDB-51 do, when the path is the first column."""
    (data / "#a.avi").touch()
    (record,) = read_manifest(written(data, "# a comment\npath,video_id,label\n#a.avi,a,run\n"))
    assert record.path == data.resolve() / "#a.avi"


def test_a_comment_below_the_header_is_named(data: Path) -> None:
    with pytest.raises(ManifestError, match=r"row 2: number of cells .*; comments stand above the header only"):
        read_manifest(written(data, "video_id,path,label\n# was wrong\na,run/a.avi,run\n"))


def test_all_problems_are_counted_and_the_first_listed(data: Path) -> None:
    path = written(data, HEADER + "".join(f"v{i},run/{i}.avi,run\n" for i in range(25)) + "a,run/a.avi,run\n")
    with pytest.raises(ManifestError) as error:
        read_manifest(path, max_errors=3)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("25 of 26 rows are wrong:")
    assert [line.split(": ")[0].strip() for line in lines[1:4]] == [f"manifest.csv:row {n}" for n in (2, 3, 4)]
    assert lines[4:] == ["  and 22 more"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("video_id,path,lable", "unknown column 'lable'; did you mean 'label'"),
        ("video_id,path,label,mood", "own columns start with 'x_'"),
        ("video_id,path,class", r"unknown column 'class'; did you mean 'label'\? \(own columns start with 'x_'\)"),
        (
            "id,filename,action",
            "'id'; did you mean 'video_id'.*'filename'; did you mean 'path'.*'action'; did you mean 'la",
        ),
        ("video_id,path,label,class", "unknown column 'class'; own columns start with 'x_'"),
        ("Video ID,path,Label", "unknown column 'Video ID'; did you mean 'video_id'.*'Label'; did you mean 'label'"),
        ("video_id|path|label", "unknown column"),
        ("video_id,path,label,path", "duplicate column 'path'"),
        ("path,label", "missing the required column video_id"),
        ("video_id,path", "missing the required column label"),
        ("video_id,label,subject", r"missing the required column path \(or depth_path\)"),
    ],
)
def test_wrong_headers(data: Path, header: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(written(data, f"{header}\na,run/a.avi,run\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"# only a comment\n", "empty file"),
        (HEADER.encode(), "no rows"),
        ("video_id,path,label\na,run/ä.avi,run\n".encode("latin-1"), "UTF-8"),
        (
            b'video_id,path,label\nb,run/b.avi,run\na,"run/a.avi,run\nc,run/a.avi,run\n',
            "manifest.csv: not valid CSV: a quotation mark that opens after row 2 is never closed",
        ),
        (b'video_id,path,label\na,"run"/a.avi,run\n', "manifest.csv:row 2: not valid CSV"),
    ],
)
def test_files_that_are_no_manifest(data: Path, content: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(written(data, content))


def test_missing_manifest_and_folder_instead_of_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest; create one with `har manifest build`"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(
        ManifestError, match=r"is a folder, not a manifest \(a CSV file\); create a manifest of it with"
    ):
        read_manifest(tmp_path)


def test_without_file_checks_missing_files_pass_but_nothing_else(data: Path) -> None:
    path = written(data, f"{HEADER}a,run/none.avi,run\n")
    assert read_manifest(path, check_files=False)[0].path == data.resolve() / "run/none.avi"
    for row in ("a,../x.avi,run", "a b,run/a.avi,run", "a,/x.avi,run"):
        with pytest.raises(ManifestError):
            read_manifest(written(data, f"{HEADER}{row}\n"), check_files=False)


def test_links_inside_the_root_may_point_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.avi").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "run").symlink_to(tmp_path / "disk")
    records = read_manifest(written(root, f"{HEADER}a,run/a.avi,run\n"))
    assert records[0].path == root.resolve() / "run/a.avi"
    write_manifest(root / "again.csv", records)
    assert read_manifest(root / "again.csv") == records


def test_manifest_outside_the_data_names_its_root(data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    records = [VideoRecord(video_id="a", label="run", path=data.resolve() / "run/a.avi")]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "manifest.csv"
    write_manifest(elsewhere, records, root=data)
    assert elsewhere.read_text() == f"# root: {data.resolve()}\nvideo_id,path,label\na,run/a.avi,run\n"
    assert read_manifest(elsewhere) == records
    inside = data / "manifest.csv"
    write_manifest(inside, records, root=data)
    assert inside.read_text() == "video_id,path,label\na,run/a.avi,run\n"


@pytest.mark.parametrize("root", ["da\0ta", "~nobody-of-this-name/data", "a\x1bb"])
def test_a_root_that_is_no_folder_name_is_refused(tmp_path: Path, root: str) -> None:
    path = written(tmp_path, f"# root: {root}\n{HEADER}a,run/a.avi,run\n")
    with pytest.raises(ManifestError, match=r"in line 1: .*give it with --root"):
        read_manifest(path, check_files=False)


def test_root_argument_goes_before_the_stated_root_and_row_numbers_stay(data: Path, tmp_path: Path) -> None:
    path = written(tmp_path, f"# root: /gone\n{HEADER}a,run/a.avi,run\nb,run/c.avi,run\n")
    with pytest.raises(ManifestError, match="root /gone is not a folder; give the data's folder with --root"):
        read_manifest(path)
    with pytest.raises(ManifestError, match=r"row 4: file 'run/c\.avi'"):
        read_manifest(path, root=data)
    assert read_manifest(path, check_files=False)[0].path == Path("/gone/run/a.avi")


def test_relative_stated_root_is_relative_to_the_manifest(data: Path) -> None:
    (data / "lists").mkdir()
    path = written(data / "lists", f"# root: ..\n{HEADER}a,run/a.avi,run\n")
    assert read_manifest(path)[0].path == data.resolve() / "run/a.avi"


def test_records_named_by_way_of_a_link_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.avi").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    path = tmp_path / "link/manifest.csv"
    write_manifest(path, [VideoRecord(video_id="a", label="run", path=tmp_path / "link/a.avi")])
    assert path.read_text().splitlines()[1] == "a,a.avi,run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": Path("/elsewhere/a.avi")}, "is outside the root"),
        ({"label": " run"}, "has blanks at an end"),
        ({"label": "r\nun"}, "line break"),
        ({"label": "run\udcff"}, "not UTF-8"),
        ({"extra": {"mood": "calm"}}, "own column 'mood' must start with 'x_'"),
        ({"extra": {"label": "other"}}, "own column 'label' must start with 'x_'"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(data: Path, change: dict[str, object], message: str) -> None:
    record = VideoRecord(video_id="a", label="run", path=data.resolve() / "run/a.avi")
    path = written(data, "as it was")
    with pytest.raises(ManifestError, match=message):
        write_manifest(path, [replace(record, **change)])  # type: ignore[arg-type]
    assert path.read_text() == "as it was"
    assert sorted(file.name for file in data.iterdir()) == ["depth_a", "manifest.csv", "run"]


def test_no_records_and_repeated_ids_are_not_written(data: Path) -> None:
    record = VideoRecord(video_id="a", label="run", path=data.resolve() / "run/a.avi")
    with pytest.raises(ManifestError, match="no videos"):
        write_manifest(data / "m.csv", [])
    with pytest.raises(ManifestError, match="duplicate video_id 'a'"):
        write_manifest(data / "m.csv", [record, record])


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12).map(str.strip)
NAMES = CELLS.filter(lambda text: text not in ("", ".", "..") and "/" not in text)
OPTIONAL = CELLS.map(lambda text: text or None)


@st.composite
def records_of(draw: st.DrawFn) -> list[VideoRecord]:
    legal = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9_-])?", fullmatch=True)
    free = legal.filter(lambda text: not RESERVED_ID_PATTERN.fullmatch(text))
    ids = draw(st.lists(free, min_size=1, unique_by=str.casefold))
    records = []
    for video_id in ids:
        start, timed = draw(st.integers(0, 99)), draw(st.booleans())
        start_s = draw(st.none() | st.floats(0, 1e12))
        after = st.floats(start_s or 0.0, 1e300, exclude_min=True)
        kinds = draw(st.sampled_from([("path",), ("depth_path",), ("path", "depth_path")]))
        files = {kind: Path("/root") / draw(NAMES) / draw(NAMES) for kind in kinds}
        record = VideoRecord(
            video_id=video_id,
            label=draw(CELLS),
            subject=draw(OPTIONAL),
            group=draw(OPTIONAL),
            camera=draw(OPTIONAL),
            scenario=draw(OPTIONAL),
            split=draw(OPTIONAL),
            start_frame=0 if timed else start,
            end_frame=None if timed else draw(st.none() | st.integers(start + 1, 200)),
            start_s=start_s if timed else None,
            end_s=draw(st.none() | after) if timed else None,
            extra=draw(st.dictionaries(st.sampled_from(["x_a", "x_b"]), NAMES)),
            path=files.get("path"),
            depth_path=files.get("depth_path"),
        )
        records.append(record)
    return records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records_of())
def test_round_trip(tmp_path: Path, records: list[VideoRecord]) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(path, records, root=Path("/root"))
    assert read_manifest(path, check_files=False) == records
    first = path.read_bytes()
    write_manifest(path, read_manifest(path, check_files=False), root=Path("/root"))
    assert path.read_bytes() == first
    assert manifest_sha256(path) == hashlib.sha256(first).hexdigest()


def test_only_columns_in_use_are_written(data: Path) -> None:
    records = [
        VideoRecord(video_id="a", label="run", depth_path=data.resolve() / "depth_a", end_frame=4, extra={"x_b": "1"}),
        VideoRecord(video_id="b", label="run", depth_path=data.resolve() / "depth_a", extra={"x_a": "2"}),
    ]
    write_manifest(data / "m.csv", records)
    assert (data / "m.csv").read_text() == (
        "video_id,label,start_frame,end_frame,depth_path,x_a,x_b\na,run,0,4,depth_a,,1\nb,run,,,depth_a,2,\n"
    )


EXPECTED = ("ä", "Läufe")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_what_spreadsheets_write_is_read(data: Path, delimiter: str, encoding: str) -> None:
    rows = [
        ("# root: run", "", ""),
        ("video_id", "path", "label"),
        ("ä", "a.avi", "Läufe"),
        ("", "", ""),
        ("b", "b.avi", ""),
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    first, second = read_manifest(written(data, mark + text.encode(encoding)))
    assert (first.video_id, first.label, first.path) == (*EXPECTED, data.resolve() / "run/a.avi")
    assert (second.video_id, second.label) == ("b", "")


def test_the_first_line_that_excel_writes_is_passed_over(data: Path) -> None:
    for text in (
        "sep=;\nvideo_id;path;label\na;run/a.avi;one,two\n",
        '"# it, is"\nsep=;\nvideo_id;path;label\na;run/a.avi;"one,two"\n',
    ):
        assert [record.label for record in read_manifest(written(data, text))] == ["one,two"]


@pytest.mark.parametrize("encoding", ["cp1252", "mac-roman"])
def test_letters_of_another_encoding_are_not_guessed(data: Path, encoding: str) -> None:
    path = written(data, f"{HEADER}a,run/a.avi,run\r\nb,run/b.avi,Läufe\r\n".encode(encoding))
    with pytest.raises(
        ManifestError, match=r"line 3 holds bytes of another encoding; save it as UTF-8 \(Excel: CSV UTF-8"
    ):
        read_manifest(path)


def test_utf_16_without_its_mark_is_refused(data: Path) -> None:
    with pytest.raises(ManifestError, match="not UTF-8 text; save it as UTF-8"):
        read_manifest(written(data, f"{HEADER}a,run/a.avi,run\n".encode("utf-16-le")))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [("clip.mp4", b"\x00", "a video file"), ("split.json", b'{"protocol": "x", "train": []}', "a split file")],
)
def test_other_files_are_told_by_what_they_are(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{name} is {what}, not a manifest"):
        read_manifest(tmp_path / name)


def test_summary_counts(data: Path) -> None:
    rows = "a,run/a.avi,run,p1,g1,train\nb,run/b.avi,jump,p1,g2,test\nc,run/b.avi,run,p2,,\nd,run/b.avi,,,,\n"
    summary = check_manifest(written(data, f"video_id,path,label,subject,group,split\n{rows}"))
    assert (summary.rows, summary.unlabelled) == (4, 1)
    assert summary.classes == {"jump": 1, "run": 2}
    assert (summary.subjects, summary.groups, summary.cameras) == (2, 2, 0)
    assert summary.splits == {"test": 1, "train": 1}
    with pytest.raises(ManifestError, match="row 2"):
        check_manifest(written(data, f"{HEADER}a,run/none.avi,run\n"))


def test_names_that_look_alike_are_alike(tmp_path: Path) -> None:
    """A Mac writes an accent as a character of its own."""
    composed, decomposed = (unicodedata.normalize(form, "Z\u00fcrich") for form in ("NFC", "NFD"))
    assert composed != decomposed
    (tmp_path / "m.csv").write_text(
        f"video_id,path,label,subject\na,a.avi,{composed},{decomposed}\nb,b.avi,{decomposed},{composed}\n",
        encoding="utf-8",
    )
    records = read_manifest(tmp_path / "m.csv", check_files=False)
    assert {record.label for record in records} == {record.subject for record in records} == {composed}
