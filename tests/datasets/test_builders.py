from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from dataset_trees import tree
from hypothesis import example, given
from hypothesis import strategies as st
from paths import ROOT
from typer.testing import CliRunner, Result

from har_pipeline.cli import app
from har_pipeline.core.errors import ManifestError, UsageError
from har_pipeline.core.kinds import VIDEO_SUFFIXES
from har_pipeline.core.records import VideoRecord, check_video_id
from har_pipeline.datasets.builders import (
    BUILDERS,
    UTD_MHAD_LABELS,
    build_manifest,
    escape_id,
    kth_rule_records,
    left_out,
)
from har_pipeline.datasets.manifests import read_manifest, write_manifest
from har_pipeline.datasets.official_lists import read_hmdb51_lists


def table(records: list[VideoRecord], *columns: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(record, column) for column in columns) for record in records]


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=16))
@example("-x41")
@example("Chanta!____THAT")
@example("con")
@example("nul.a/b")
@example("run/a.")
def test_ids_are_legal(text: str) -> None:
    assert check_video_id(escape_id(text))


@given(st.from_regex(r"[A-Za-z0-9][^/]{0,15}", fullmatch=True))
@example("a-x41")
@example("a-x2Dx41")
@example("aé!")
def test_ids_without_folders_can_be_turned_back(text: str) -> None:
    """Every text gets an id of its own: the escapes can be undone."""
    codes = re.split("((?:-x[0-9A-F]{2})+)", escape_id(text))
    undone = [bytes.fromhex(part.replace("-x", "")).decode() if part.startswith("-x") else part for part in codes]
    assert "".join(undone) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run/a.b", "run__a.b"),
        ("run/my clip", "run__my-x20clip"),
        ("ü", "ü"),
        ("Z\u0075\u0308rich/2", "Z\u00fcrich__2"),  # as a Mac spells it
        ("走/跑步 1", "走__跑步-x201"),
        ("नमस्ते", "नमस्ते"),
        ("العدو.1", "العدو.1"),
        ("\u0308a", "v\u0308a"),
        ("a\u202eb\u200d", "a-xE2-x80-xAEb-xE2-x80-x8D"),
        ("😀run", "v-xF0-x9F-x98-x80run"),
        ("_run/a", "v_run__a"),
        ("a\udcff", "a-xFF"),
        ("nul.d/a", "vnul.d__a"),
        ("run/a..", "run__a.-x2E"),
    ],
)
def test_ids_by_example(text: str, expected: str) -> None:
    assert escape_id(text) == expected


@pytest.mark.parametrize("letter", ["a", "跑", "é", "😀"])
def test_ids_that_would_be_too_long_end_in_a_hash(letter: str) -> None:
    assert escape_id("a" * 200) == "a" * 200
    first, second = escape_id(f"{letter * 300}1"), escape_id(f"{letter * 300}2")
    assert first != second
    for name in (first, second):
        assert re.fullmatch(r".+-[0-9a-f]{10}", check_video_id(name))
        assert 185 < len(name.encode()) <= 200
    assert first[:40] == escape_id(letter * 300)[:40]


def test_folder(tmp_path: Path) -> None:
    root = tree(tmp_path, "run/a.avi", "run/day 1/a.MP4", "jump/a.avi", "jump/notes.txt", "jump/.a.avi", ".git/x.avi")
    records = build_manifest("folder", root)
    assert table(records, "video_id", "label", "path", "subject", "group") == [
        ("jump__a", "jump", root / "jump/a.avi", None, None),
        ("run__a", "run", root / "run/a.avi", None, None),
        ("run__day-x201__a", "run", root / "run/day 1/a.MP4", None, None),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("Train", "valid", "TEST"),
        ("videos_train", "videos_val", "videos_test"),
    ],
)
def test_folders_of_parts(tmp_path: Path, names: tuple[str, str, str]) -> None:
    """As Kinetics and mmaction2 lay them out."""
    train, val, test = names
    root = tree(tmp_path, f"{train}/run/a.avi", f"{val}/run/a.avi", f"{test}/jump/deep/b.avi", "lists/readme.txt")
    assert sorted(table(build_manifest("folder", root), "video_id", "label", "split")) == sorted(
        [
            (f"{train}__run__a", "run", "train"),
            (f"{val}__run__a", "run", "val"),
            (f"{test}__jump__deep__b", "jump", "test"),
        ]
    )


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train/a.avi",), ["train"]),  # of trains
        (("train/a.avi", "plane/b.avi"), ["plane", "train"]),
        (("train/old/a.avi", "plane/new/b.avi"), ["plane", "train"]),
        (("videos/run/a.avi",), ["videos"]),
    ],
)
def test_folders_that_are_no_parts(tmp_path: Path, names: tuple[str, ...], labels: list[str]) -> None:
    records = build_manifest("folder", tree(tmp_path, *names))
    assert sorted(record.label for record in records) == labels
    assert {record.split for record in records} == {None}


def test_parts_beside_other_folders_are_told_of(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "train/a/x.mp4", "test/a/y.mp4", "other/a/z.mp4")
    done = CliRunner().invoke(app, ["manifest", "build", "folder", str(root), "-o", str(tmp_path / "m.csv")])
    assert done.exit_code == 0, done.output
    assert "the folders test, train look like parts of a split, but other folders stand beside them" in done.stderr


def test_a_file_beside_class_folders_has_no_label(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/run/a.avi", "test/b.avi", "c.avi")
    assert table(build_manifest("folder", root), "video_id", "label", "split") == [
        ("c", "", None),
        ("test__b", "", "test"),
        ("train__run__a", "run", "train"),
    ]
    hmdb = tree(tmp_path / "hmdb", "wave/a.avi", "b.avi")
    records = build_manifest("hmdb51", hmdb)
    assert table(records, "video_id", "label") == [("wave__a", "wave")]
    assert left_out(hmdb, records) == [hmdb / "b.avi"]


def built(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["manifest", "build", *map(str, arguments)])
    found = 1 if isinstance(done.exception, ManifestError) else done.exit_code
    assert found == code, done.output
    return done


def test_a_flat_folder_makes_a_manifest_without_labels(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "a.mp4", "b.GIF", "c.MTS", "d.txt")
    manifest = tmp_path / "m.csv"
    done = built("folder", root, "-o", manifest)
    assert "NOTE: videos in no class folder, whose label is empty: all." in done.stderr
    assert "left out: " in done.stderr
    assert "3 rows, 0 classes" in done.stdout
    assert manifest.read_text().splitlines() == [
        "video_id,path,label", "a,data/a.mp4,", "b,data/b.GIF,", "c,data/c.MTS,"
    ]  # fmt: skip
    assert [record.label for record in read_manifest(manifest)] == ["", "", ""]


def test_all_files_without_a_class_folder_are_told_at_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "run/a.mp4", *(f"loose{n}.mp4" for n in range(12)))
    done = built("folder", root, "-o", tmp_path / "m.csv")
    assert "NOTE: videos in no class folder, whose label is empty: 12 of 13." in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("no label")] == [
        *(f"no label: {root / name}.mp4" for name in sorted(f"loose{n}" for n in range(12))[:10]),
        "no label: 2 more",
    ]
    listed = json.loads(built("folder", root, "-o", tmp_path / "m.csv", "--json").stdout)
    assert (len(listed["unlabelled"]), listed["written"]) == (12, False)


def test_a_manifest_that_differs_is_not_overwritten(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "run/a.mp4", "jump/b.mp4")
    manifest = root / "m.csv"
    built("folder", root, "-o", manifest)
    first = manifest.read_bytes()
    assert "2 rows, 2 classes, as it was" in built("folder", root, "-o", manifest).stdout
    manifest.write_bytes(first.replace(b"jump\n", b"leap\n"))
    edited = manifest.read_bytes()
    done = built("folder", root, "-o", manifest, code=1)
    assert re.search(r"m\.csv exists \(a manifest\) and differs .*--update .*--overwrite", str(done.exception))
    assert manifest.read_bytes() == edited
    built("folder", root, "-o", manifest, "--overwrite")
    assert manifest.read_bytes() == first
    video = root / "run/a.mp4"
    video.write_bytes(b"film")
    assert "(a video file)" in str(built("folder", root, "-o", video, code=1).exception)
    assert video.read_bytes() == b"film"
    assert "name a file, such as" in built("folder", root, "-o", root, code=2).stderr
    assert "give one of them" in built("folder", root, "-o", manifest, "--update", "--overwrite", code=2).stderr


def test_update_keeps_what_was_edited(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "run/a.mp4", "jump/b.mp4", "jump/c.mp4")
    manifest = root / "m.csv"
    built("folder", root, "-o", manifest)
    manifest.write_text(
        "# checked by hand\nvideo_id,path,label,subject,start_frame,end_frame,x_mood\n"
        "zoe,run/a.mp4,run,p1,,,calm\nb1,jump/b.mp4,leap,p2,,9,\nb2,jump/b.mp4,jump,,9,,\njump__c,jump/c.mp4,jump,p3,,,wild\n"
    )
    (root / "jump/c.mp4").unlink()
    tree(root, "run/d.mp4")
    done = built("folder", root, "-o", manifest, "--update")
    assert manifest.read_text() == (
        "# checked by hand\nvideo_id,path,label,subject,start_frame,end_frame,x_mood\n"
        "zoe,run/a.mp4,run,p1,,,calm\nb1,jump/b.mp4,leap,p2,0,9,\nb2,jump/b.mp4,jump,,9,,\nrun__d,run/d.mp4,run,,,,\n"
    )
    assert done.stderr.splitlines()[-3:] == [
        "added: 1: run__d",
        "removed: 1: jump__c",
        "kept: 3 rows; other than the folder's names say, and kept: label in 1",
    ]
    before = manifest.read_bytes()
    assert "as it was" in built("folder", root, "-o", manifest, "--update").stdout
    assert manifest.read_bytes() == before
    listed = json.loads(built("folder", root, "-o", manifest, "--update", "--json").stdout)
    assert (listed["added"], listed["removed"], listed["edited"]) == ([], [], {"label": 1})


def test_update_fills_new_columns_and_leaves_emptied_cells_empty(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", *(f"Class/v_Class_g0{n}_c01.avi" for n in (1, 2, 3)))
    manifest = root / "m.csv"
    built("ucf101", root, "-o", manifest)
    manifest.write_text(manifest.read_text().replace("g01_c01.avi,Class,g01", "g01_c01.avi,,g01"))
    done = built("ucf101", root, "-o", manifest, "--splits", ucf101_lists(tmp_path / "lists"), "--update")
    assert table(read_manifest(manifest), "label", "group", "split") == [
        ("", "g01", "test"),
        ("Class", "g02", "train"),
        ("Class", "g03", "train"),
    ]
    assert "kept: 3 rows; other than the folder's names say, and kept: label in 1" in done.stderr
    sequences = tmp_path / "kth"
    tree(sequences, "person01_boxing_d1_uncomp.avi")
    listed = tmp_path / "00sequences.txt"
    listed.write_text("person01_boxing_d1 frames 1-9, 10-19\n")
    built("kth", sequences, "-o", manifest, "--overwrite")
    done = built("kth", sequences, "-o", manifest, "--update", "--sequences", listed)
    assert "removed: 1: person01_boxing_d1" in done.stderr
    assert [record.video_id for record in read_manifest(manifest)] == ["person01_boxing_d1_s1", "person01_boxing_d1_s2"]


def test_update_finds_moved_files_by_their_id(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    built("folder", tree(tmp_path / "old", "run/a.mp4"), "-o", manifest)
    text = manifest.read_text().replace("label", "label,subject").replace("a.mp4,run", "a.mp4,run,p1")
    manifest.write_text(text)
    (tmp_path / "old").rename(tmp_path / "new")
    done = built("folder", tmp_path / "new", "-o", manifest, "--update")
    assert "moved: 1: run__a" in done.stderr
    (record,) = read_manifest(manifest)
    assert (record.subject, record.path) == ("p1", tmp_path.resolve() / "new/run/a.mp4")


def test_parts_are_told_on_the_command_line_and_drive_the_protocol_column(tmp_path: Path) -> None:
    names = [f"{part}/{label}/{n}.avi" for part in ("train", "test") for label in ("run", "jump") for n in (1, 2)]
    root = tree(tmp_path / "data", *names)
    manifest = tmp_path / "m.csv"
    done = CliRunner().invoke(app, ["manifest", "build", "folder", str(root), "-o", str(manifest)])
    assert done.exit_code == 0, done.output
    assert done.stderr == (
        "folders named after parts (test, train) fill the column split, the folders below them are the classes; "
        "--protocol column trains and tests on these parts\n"
    )
    shown = CliRunner().invoke(
        app, ["splits", "show", str(manifest), "--protocol", "column", "--val-fraction", "0", "--json"]
    )
    (split,) = json.loads(shown.stdout)
    assert (split["train"], split["test"], split["classes"]) == (4, 4, 2)


def test_names_that_differ_in_case_only_get_no_ids(tmp_path: Path) -> None:
    root = tree(tmp_path, "run/a.avi", "run/A.avi")
    with pytest.raises(ManifestError, match=r"both get the id 'run__a', but for upper and lower case"):
        build_manifest("folder", root)


def test_folder_follows_links_once_and_lists_dead_ones(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "run/a.avi")
    disk = tree(tmp_path / "disk", "b.avi")
    (root / "jump").symlink_to(disk)
    (disk / "back").symlink_to(disk)
    (root / "run/dead.avi").symlink_to(tmp_path / "nothing.avi")
    assert [record.video_id for record in build_manifest("folder", root)] == ["jump__b", "run__a", "run__dead"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["run/a.txt"], r"no video files below it \(known endings: .3g2, .3gp, .asf, .avi"),
        (["run/a.avi", "run/a.mp4"], r"a.avi and .*a.mp4 both get the id 'run__a'; rename or move one"),
        (["run/a/b.avi", "run/a__b.avi"], "both get the id 'run__a__b'"),
    ],
)
def test_folder_errors(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build_manifest("folder", tree(tmp_path, *names))


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    root = tree(tmp_path, "run/a.avi")
    with pytest.raises(UsageError, match="unknown data set 'imagenet'; choose from: folder, kth"):
        build_manifest("imagenet", root)
    with pytest.raises(UsageError, match="unknown data set 'UCF-101'; did you mean 'ucf101'"):
        build_manifest("UCF-101", root)
    with pytest.raises(UsageError, match="sequences is an option of kth, not of folder"):
        build_manifest("folder", root, sequences=root / "x")
    with pytest.raises(UsageError, match="splits is an option of ucf101 and hmdb51, not of kth"):
        build_manifest("kth", root, splits=root)


@pytest.mark.parametrize("dataset", BUILDERS)
def test_every_builder_tells_of_missing_and_empty_folders(dataset: str, tmp_path: Path) -> None:
    annotations = tmp_path / "labels.json" if BUILDERS[dataset].needs else None
    (tmp_path / "labels.json").write_text('{"database": {"a": {}}}')
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no such folder"):
        build_manifest(dataset, tmp_path / "none", annotations=annotations)
    with pytest.raises(ManifestError, match=str(tmp_path)):
        build_manifest(dataset, tmp_path / "empty", annotations=annotations)


def test_command_line_offers_every_builder() -> None:
    from har_pipeline.cli.manifest import Layout

    assert get_args(Layout) == tuple(BUILDERS)


def test_kth(tmp_path: Path) -> None:
    root = tree(tmp_path, "boxing/person01_boxing_d1_uncomp.avi", "person25_running_d4.avi", "other.avi")
    records = build_manifest("kth", root)
    assert table(records, "video_id", "label", "subject", "group", "scenario", "end_frame") == [
        ("person01_boxing_d1", "boxing", "person01", "person01", "d1", None),
        ("person25_running_d4", "running", "person25", "person25", "d4", None),
    ]
    assert left_out(root, records) == [root / "other.avi"]


def test_kth_sequences(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "person01_boxing_d1_uncomp.avi")
    path = tmp_path / "00sequences.txt"
    path.write_bytes(
        b"\r\n person01_boxing_d1\t\tframes\t1-95, 96-185 \t\r\n"
        b"person01_boxing_d2 frames 1-9\r\nperson13_handclapping_d3\t*missing*\r\n"
    )
    records = build_manifest("kth", root, sequences=path)
    assert table(records, "video_id", "start_frame", "end_frame", "subject") == [
        ("person01_boxing_d1_s1", 0, 95, "person01"),
        ("person01_boxing_d1_s2", 95, 185, "person01"),
    ]
    tree(root, "person02_boxing_d1_uncomp.avi")
    with pytest.raises(ManifestError, match="has no line for person02_boxing_d1"):
        build_manifest("kth", root, sequences=path)


def test_kth_rule_is_what_is_stored(tmp_path: Path) -> None:
    """data_manifests/kth.csv can be made again from the rule, byte for byte."""
    stored = ROOT / "data_manifests/kth.csv"
    write_manifest(tmp_path / "kth.csv", kth_rule_records(tmp_path.resolve()))
    assert (tmp_path / "kth.csv").read_bytes() == stored.read_bytes()
    records = read_manifest(stored, root=tmp_path, check_files=False)
    assert len(records) == 599
    assert Counter(record.label for record in records) == {
        "boxing": 100, "handclapping": 99, "handwaving": 100, "jogging": 100, "running": 100, "walking": 100
    }  # fmt: skip
    assert Counter(record.split for record in records) == {"train": 16 * 24 - 1, "test": 9 * 24}


def test_kth_rule_agrees_with_the_builder(tmp_path: Path) -> None:
    ruled = kth_rule_records(tmp_path.resolve())
    tree(tmp_path, *(record.path.relative_to(tmp_path.resolve()).as_posix() for record in ruled if record.path))
    built = build_manifest("kth", tmp_path)
    columns = ("video_id", "path", "label", "subject", "group", "scenario")
    assert table(built, *columns) == sorted(table(ruled, *columns))


@pytest.mark.parametrize(
    "names",
    [
        ("basketball/v_shooting_01/v_shooting_01_02.mpg", "biking/v_biking_25/v_biking_25_01.mpg"),
        ("UCF11/basketball/v_shooting_01/v_shooting_01_02.mpg", "UCF11/biking/v_biking_25/v_biking_25_01.mpg"),
        ("basketball/v_shooting_01_02.mpg", "biking/v_biking_25_01.mpg"),
    ],
    ids=["as distributed", "one folder deeper", "without group folders"],
)
def test_ucf11(tmp_path: Path, names: tuple[str, ...]) -> None:
    records = build_manifest("ucf11", tree(tmp_path, *names))
    assert table(records, "video_id", "label", "group") == [
        ("basketball__v_shooting_01_02", "basketball", "g01"),
        ("biking__v_biking_25_01", "biking", "g25"),
    ]


def test_ucf11_flat(tmp_path: Path) -> None:
    records = build_manifest("ucf11", tree(tmp_path, "v_walk_dog_07_03.mpg"))
    assert table(records, "label", "group") == [("walk_dog", "g07")]


def ucf101_lists(folder: Path) -> Path:
    folder.mkdir()
    a, b, c = (f"Class/v_Class_g0{n}_c01.avi" for n in (1, 2, 3))
    for number, (train, test) in enumerate((((b, c), (a,)), ((a, c), (b,)), ((a, b), (c,))), 1):
        (folder / f"trainlist0{number}.txt").write_bytes("".join(f"{name} 1\r\n" for name in train).encode())
        (folder / f"testlist0{number}.txt").write_bytes("".join(f"{name}\r\n" for name in test).encode())
    return folder


def test_ucf101(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "data",
        *(f"Class/v_Class_g0{n}_c01.avi" for n in (1, 2, 4)),
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    )
    plain = build_manifest("ucf101", root)
    assert table(plain, "video_id", "label", "group", "split") == [
        ("v_Class_g01_c01", "Class", "g01", None),
        ("v_Class_g02_c01", "Class", "g02", None),
        ("v_Class_g04_c01", "Class", "g04", None),
        ("v_HandStandPushups_g01_c01", "HandstandPushups", "g01", None),
    ]
    listed = build_manifest("ucf101", root, splits=ucf101_lists(tmp_path / "lists"), split_index=2)
    assert [record.split for record in listed] == ["train", "test", "unused", "unused"]
    assert [record.extra["x_split1"] for record in listed] == ["test", "train", "unused", "unused"]
    assert listed[0].extra == {"x_split1": "test", "x_split2": "train", "x_split3": "train"}


def test_official_list_errors(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", "Class/v_Class_g01_c01.avi")
    lists = ucf101_lists(tmp_path / "lists")
    with pytest.raises(UsageError, match="are 1, 2 and 3, not 4"):
        build_manifest("ucf101", root, splits=lists, split_index=4)
    (lists / "testlist03.txt").unlink()
    with pytest.raises(ManifestError, match=r"testlist03\.txt: no such list"):
        build_manifest("ucf101", root, splits=lists)
    with pytest.raises(ManifestError, match=r"trainlist01\.txt is a file of another kind, not the folder of the"):
        build_manifest("ucf101", root, splits=lists / "trainlist01.txt")
    with pytest.raises(ManifestError, match="none is absent, not the folder of the data set's official lists"):
        build_manifest("hmdb51", root, splits=tmp_path / "none")
    with pytest.raises(ManifestError, match="lists is a folder, not the list itself"):
        build_manifest("kth", root, sequences=lists)
    with pytest.raises(ManifestError, match="no list such as wave_test_split1"):
        build_manifest("hmdb51", root, splits=lists)
    (lists / "wave_test_split1.txt").write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(ManifestError, match="line 2 must end in the flag 0, 1 or 2"):
        build_manifest("hmdb51", root, splits=lists)
    (lists / "wave_test_split1.txt").write_text("a.avi 1\n")
    with pytest.raises(ManifestError, match="name none of the 1 files"):
        build_manifest("hmdb51", root, splits=lists)


def test_hmdb51(tmp_path: Path) -> None:
    names = ("My_Film!_wave_u_nm_np1_fr_goo_5.avi", "My_Film!_wave_f_cm_np10_ba_med_11.avi", "odd.avi")
    root = tree(tmp_path / "data", *(f"wave/{name}" for name in names))
    lists = tmp_path / "lists"
    lists.mkdir()
    for number in (1, 2, 3):
        (lists / f"wave_test_split{number}.txt").write_text(f"{names[0]} {number - 1} \n{names[1]} 1 \n\n")
    records = build_manifest("hmdb51", root, splits=lists, split_index=3)
    assert table(records, "video_id", "label", "group", "split") == [
        ("wave__My_Film-x21_wave_f_cm_np10_ba_med_11", "wave", "My_Film!", "train"),
        ("wave__My_Film-x21_wave_u_nm_np1_fr_goo_5", "wave", "My_Film!", "test"),
        ("wave__odd", "wave", "odd", "unused"),
    ]
    assert records[1].extra == {"x_split1": "unused", "x_split2": "train", "x_split3": "test"}


def test_ntu_joins_colour_and_depth(tmp_path: Path) -> None:
    both, colour, depth = "S001C002P003R002A013", "S001C001P001R001A001", "S017C003P020R001A060"
    root = tree(
        tmp_path,
        f"nturgb+d_rgb/{both}_rgb.avi",
        f"nturgb+d_rgb/{colour}_rgb.avi",
        f"nturgb+d_ir/{colour}_ir.avi",
        f"nturgb+d_depth/{both}/Depth-00000001.png",
        f"nturgb+d_depth_masked/{both}/MDepth-00000001.png",
        f"nturgb+d_depth_masked/{depth}/MDepth-00000001.png",
    )
    masked = root / "nturgb+d_depth_masked"
    records = build_manifest("ntu", root)
    assert table(records, "video_id", "label", "subject", "camera", "path", "depth_path") == [
        (colour, "A001", "P001", "C001", root / f"nturgb+d_rgb/{colour}_rgb.avi", None),
        (both, "A013", "P003", "C002", root / f"nturgb+d_rgb/{both}_rgb.avi", masked / both),
        (depth, "A060", "P020", "C003", None, masked / depth),
    ]
    assert records[2].extra == {"x_setup": "S017", "x_replication": "R001"}
    tree(tmp_path, f"copy/{colour}_rgb.avi")
    with pytest.raises(ManifestError, match=f"are both {colour}"):
        build_manifest("ntu", root)


def test_ut_interaction(tmp_path: Path) -> None:
    records = build_manifest("ut_interaction", tree(tmp_path, "0_1_4.avi", "58_10_1.avi", "9_2_2.avi"))
    assert table(records, "video_id", "label", "group") == [
        ("ut00_s01_punch", "punch", "seq01"),
        ("ut09_s02_kick", "kick", "seq02"),
        ("ut58_s10_hug", "hug", "seq10"),
    ]


def test_utd_mhad(tmp_path: Path) -> None:
    root = tree(tmp_path, "a1_s1_t4_depth.mat", "a27_s8_t1_depth.mat", "a27_s8_t1_inertial.mat")
    records = build_manifest("utd_mhad", root)
    assert table(records, "video_id", "label", "subject", "split", "path", "depth_path") == [
        ("a1_s1_t4", "swipe_left", "s1", "train", None, root / "a1_s1_t4_depth.mat"),
        ("a27_s8_t1", "squat", "s8", "test", None, root / "a27_s8_t1_depth.mat"),
    ]
    assert len(set(UTD_MHAD_LABELS)) == 27
    strays = [f"a{action}_s1_t1_depth.mat" for action in (0, 28, 99)]
    tree(tmp_path, *strays)
    assert build_manifest("utd_mhad", root) == records
    assert left_out(root, records) == [root / name for name in (strays[0], "a27_s8_t1_inertial.mat", *strays[1:])]
    tree(tmp_path, "copy/a1_s1_t4_depth.mat")
    with pytest.raises(ManifestError, match="both get the id 'a1_s1_t4'"):
        build_manifest("utd_mhad", root)


def test_what_fits_no_rule_is_listed(tmp_path: Path) -> None:
    name = "S001C001P003R001A001"
    root = tree(
        tmp_path / "ntu",
        f"nturgb+d_depth_masked/{name}/MDepth-00000001.png",
        f"nturgb+d_depth_masked/{name}/notes.txt",
        f"nturgb+d_depth_masked/{name[:-3]}099_x/MDepth-00000001.png",
        f"nturgb+d_ir/deep/{name}_ir.avi",
        "readme.txt",
        ".hidden/readme.txt",
    )
    expected = [root / "nturgb+d_depth_masked" / f"{name[:-3]}099_x", root / "nturgb+d_ir", root / "readme.txt"]
    assert left_out(root, build_manifest("ntu", root)) == expected

    root = tree(tmp_path / "folder", "run/a.avi", "run/deep/a.txt", "run/a.txt", "jump/more/b.avi")
    (root / "walk").mkdir()
    (root / "run/also").symlink_to(root / "jump")
    records = build_manifest("folder", root)
    assert left_out(root, records) == [root / "run/a.txt", root / "run/deep", root / "walk"]
    assert left_out(root, records, known=(root / "walk", root / "run/a.txt", None)) == [root / "run/deep"]


def test_what_is_left_out_is_told_on_the_command_line(tmp_path: Path) -> None:
    root = tree(tmp_path, "a1_s1_t1_depth.mat", "a99_s1_t1_depth.mat")
    (root / "empty").mkdir()
    (root / "made").mkdir()
    command = ["manifest", "build", "utd_mhad", str(root), "-o", str(root / "made/manifest.csv")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        f"left out: {root}/a99_s1_t1_depth.mat: its name does not follow utd_mhad's rule",
        f"left out: {root}/empty: nothing in it is taken by utd_mhad's rule",
    ]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["left_out"] == [f"{root}/a99_s1_t1_depth.mat", f"{root}/empty"]


@pytest.mark.needs_real_data
def test_real_hmdb51_lists(real_data: Path, tmp_path: Path) -> None:
    """All 6,766 names of the official lists as empty files."""
    lists = real_data / "splits/hmdb51"
    listed = read_hmdb51_lists(lists)
    root = tree(tmp_path, *(f"{label}/{name}" for label, name in listed))
    records = build_manifest("hmdb51", root, splits=lists)
    assert len(records) == 6766
    assert len({record.label for record in records}) == 51
    for number in (1, 2, 3):
        parts = Counter(record.extra[f"x_split{number}"] for record in records)
        assert parts == {"train": 51 * 70, "test": 51 * 30, "unused": 6766 - 51 * 100}
        sides = [{(r.label, r.group) for r in records if r.extra[f"x_split{number}"] == p} for p in ("train", "test")]
        assert not sides[0] & sides[1]  # within a class the lists keep films together, so a film is read rightly
    assert not [record.group for record in records if re.search(r"_np\d", record.group or "")]
    assert len({(record.label, record.group) for record in records}) < 0.4 * len(records)


@pytest.mark.needs_real_data
@pytest.mark.parametrize(
    ("dataset", "folder", "videos", "classes"),
    [
        ("ucf101", "clips/ucf101", 17, 4),
        ("hmdb51", "clips/hmdb51", 6, 3),
        ("kth", "clips/kth", 3, 3),
        ("ntu", "clips/ntu_rgb", 3, 3),
        ("ucf11", "clips/ucf11", 1, 1),
        ("ut_interaction", "clips/ut_interaction_set1", 60, 6),
        ("utd_mhad", "depth/utd_mhad", 4 * 27 * 4 - 1, 27),
    ],
)
def test_real_folders(real_data: Path, tmp_path: Path, dataset: str, folder: str, videos: int, classes: int) -> None:
    records = build_manifest(dataset, real_data / folder)
    assert (len(records), len({record.label for record in records})) == (videos, classes)
    assert left_out(real_data / folder, records) == []
    path = tmp_path / "manifest.csv"
    write_manifest(path, records, root=real_data / folder)
    assert read_manifest(path) == records


def test_the_documented_endings_are_those_of_the_code() -> None:
    text = (ROOT / "data_manifests/README.md").read_text(encoding="utf-8")
    listed = re.search(r"Video endings, in upper or lower case: ([^.]+)\.", text)
    assert listed is not None
    assert re.split(r",\s+", listed[1]) == sorted(ending[1:] for ending in VIDEO_SUFFIXES)
