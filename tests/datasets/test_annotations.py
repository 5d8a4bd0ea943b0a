"""Manifests from files that say what is seen in which seconds of videos."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from dataset_trees import tree
from har_command import har

from har_pipeline.core.errors import ManifestError, UsageError
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.builders import build_manifest
from har_pipeline.datasets.manifests import read_manifest

DATABASE = {
    "aaa": {
        "duration": 20.0,
        "subset": "training",
        "resolution": "320x240",
        "url": "https://example.org/aaa",
        "annotations": [
            {"label": "Long jump", "segment": [1.5, 4.25]},
            {"label": "Pole vault", "segment": [10, 30.5]},
            {"label": "Long jump", "segment": [25.0, 26.0]},
            {"label": "Long jump", "segment": [5.0, 5.0]},
            {"label": "Long jump", "segment": [9.0, 8.0]},
            {"label": "Long jump", "segment": [-1.0, 8.0]},
            {"label": "Long jump", "segment": [1.5, 4.25]},
            {"label": "Pole vault", "segment": [1.5, 4.25]},
            {"label": "Long jump", "segment": ["1", None]},
            {"label": "Long jump"},
        ],
    },
    "-b_b": {
        "duration": 8.0,
        "subset": "validation",
        "annotations": [{"label": "Pole vault", "segment": [0.0, 8.0]}],
    },
    "ccc": {"duration": 9.0, "subset": "testing", "annotations": []},
    "gone": {"duration": 9.0, "subset": "training", "annotations": [{"label": "Long jump", "segment": [0.0, 3.0]}]},
    "bad": {"duration": 9.0, "subset": "training", "annotations": [{"label": "Long jump", "segment": [3.0, 1.0]}]},
}
NOTES = [
    "left out: aaa: Long jump from 25 s to 26 s: begins after the video's 20 s",
    "left out: aaa: Long jump from 5 s to 5 s: is empty",
    "left out: aaa: Long jump from 9 s to 8 s: is reversed",
    "left out: aaa: Long jump from -1 s to 8 s: begins before the video",
    "left out: aaa: Long jump from 1.5 s to 4.25 s: is there twice",
    "left out: aaa: Long jump from ? to ?: its times are no two numbers",
    "left out: aaa: Long jump from ? to ?: its times are no two numbers",
    "left out: bad: Long jump from 3 s to 1 s: is reversed",
]
KEPT = "kept: aaa: Pole vault from 10 s to 30.5 s: ends after the video's 20 s, and so with the video"
ROWS = [
    ("train__v_aaa_1.5-4.25", "Long jump", 1.5, 4.25, "train"),
    ("train__v_aaa_1.5-4.25_2", "Pole vault", 1.5, 4.25, "train"),
    ("train__v_aaa_10-30.5", "Pole vault", 10.0, 30.5, "train"),
    ("v-b_b_0-8", "Pole vault", 0.0, 8.0, "val"),
    ("v_ccc", "", None, None, "test"),
]


def rows_of(records: list[VideoRecord]) -> list[tuple[object, ...]]:
    return [(one.video_id, one.label, one.start_s, one.end_s, one.split) for one in records]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = tree(tmp_path / "videos", "train/v_aaa.mp4", "-b_b.mkv", "v_ccc.webm", "other.mp4", "bad.mp4")
    (tmp_path / "net.json").write_text(json.dumps({"version": "1.3", "taxonomy": [], "database": DATABASE}))
    return videos.parent


def test_activitynet(folder: Path) -> None:
    said: list[str] = []
    records = build_manifest("activitynet", folder / "videos", annotations=folder / "net.json", on_note=said.append)
    assert rows_of(records) == ROWS
    assert records[0].path == folder / "videos/train/v_aaa.mp4"
    missing = [f"missing: gone: no file of this name below {folder / 'videos'}"]
    assert sorted(said) == sorted([*NOTES, KEPT, *missing])


def build(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    asked = ("manifest", "build", "activitynet", "videos", "--annotations", "net.json", "-o", "m.csv")
    return har(*asked, *more, cwd=folder)


def test_the_command_lists_what_is_odd_and_the_manifest_is_read(folder: Path) -> None:
    said = build(folder).stderr
    assert all(line in said for line in (*NOTES, KEPT, "missing: gone: no file of this name"))
    assert "NOTE: rows that net.json gives no label: 1 of 5." in said
    assert f"left out: {folder / 'videos/other.mp4'}: no annotation names it" in said
    assert rows_of(read_manifest(folder / "m.csv")) == ROWS
    assert "5 rows" in har("manifest", "check", "m.csv", cwd=folder).stdout
    made = json.loads(build(folder, "--json").stdout)
    assert (made["videos"], len(made["annotations"]), made["unlabelled"]) == (5, 10, ["v_ccc"])


def test_update_keeps_rows_and_adds_segments(folder: Path) -> None:
    build(folder)
    out, net = folder / "m.csv", folder / "net.json"
    out.write_text(out.read_text().replace("Long jump", "Jump"))
    database = json.loads(net.read_text())
    database["database"]["-b_b"]["annotations"].insert(0, {"label": "Long jump", "segment": [1.0, 2.0]})
    net.write_text(json.dumps(database))
    assert "added: 1: v-b_b_1-2" in build(folder, "--update").stderr
    rows = {row[0]: row for row in rows_of(read_manifest(out))}
    assert len(rows) == 6
    assert rows["train__v_aaa_1.5-4.25"][1] == "Jump"
    assert rows["v-b_b_1-2"] == ("v-b_b_1-2", "Long jump", 1.0, 2.0, "val")
    assert rows["v-b_b_0-8"] == ROWS[3]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_segments_of_csv(tmp_path: Path, delimiter: str) -> None:
    videos = tree(tmp_path / "videos", "day 1/a.mp4", "day 2/a.mp4", "b.avi", "c.avi")
    lines = [
        ("Video", "label", "t-start", "t-end", "Subset"),
        ("day 1/a.mp4", "run", "0", "1.50", "training"),
        ("day 2\\a", "walk", "1:02.5", "0:01:04", "testing"),
        ("b.avi", "run", "3", "", ""),
        ("b", "sit", "", "2", ""),
        ("c", "", "", "", ""),
        ("c", "run", "soon", "2", ""),
        ("", "run", "1", "2", ""),
    ]
    table = tmp_path / "labels.csv"
    table.write_text("# by hand\n" + "\n".join(delimiter.join(line) for line in lines) + "\n\n")
    said: list[str] = []
    records = build_manifest("segments", videos, annotations=table, on_note=said.append)
    assert rows_of(records) == [
        ("b_0-2", "sit", None, 2.0, None),
        ("b_3-end", "run", 3.0, None, None),
        ("c", "", None, None, None),
        ("day-x201__a_0-1.5", "run", 0.0, 1.5, "train"),
        ("day-x202__a_62.5-64", "walk", 62.5, 64.0, "test"),
    ]
    assert said == [
        "left out: labels.csv: line 9 names no video",
        "left out: c: run from ? to 2 s: its times are no two numbers",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("video,start,end,label\n", "no segments below the header"),
        ("video,first,last,label\na,1,2,run\n", r"has no column start and end; found: video, first, last, label"),
        (
            "video,start,end,label\nnone.mp4,1,2,run\n",
            "holds none of the 1 videos that .*labels.csv names, such as none.mp4",
        ),
        ("video,start,end,label\na,2,1,run\n", "no segment of the videos below .* can be used"),
        ("video,start,end,label\nsame,1,2,run\n", "x/same.mp4 and y/same.mp4 may both be same: name it"),
        ('video,start,end,label\n"a,1,2,run\n', "not valid CSV"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    videos = tree(tmp_path / "videos", "a.mp4", "x/same.mp4", "y/same.mp4")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        build_manifest("segments", videos, annotations=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[1]", "is not of ActivityNet's form"),
        ('{"database": {}}', "is not of ActivityNet's form"),
        ('{"database": {"a": []}}', "a: has no list of annotations"),
        ('{"database": {"a": {"annotations": 3}}}', "a: has no list of annotations"),
    ],
)
def test_bad_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(ManifestError, match=message):
        build_manifest("activitynet", tree(tmp_path / "videos", "a.mp4"), annotations=tmp_path / "net.json")


def test_annotations_are_needed_and_read_by_two_layouts_only(tmp_path: Path) -> None:
    videos = tree(tmp_path / "videos", "a.mp4")
    with pytest.raises(UsageError, match="activitynet needs --annotations FILE"):
        build_manifest("activitynet", videos)
    with pytest.raises(UsageError, match="annotations is an option of activitynet and segments, not of folder"):
        build_manifest("folder", videos, annotations=tmp_path / "a.json")
    with pytest.raises(ManifestError, match=r"^[^:]*none\.json: no such file of annotations"):
        build_manifest("activitynet", videos, annotations=tmp_path / "none.json")
