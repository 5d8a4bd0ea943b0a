"""Split files: written and read again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.datasets.splits import make_splits, read_split_file, write_split_file

RECORDS = [
    VideoRecord(video_id=f"{label}-{person}", path=Path(f"{label}-{person}.avi"), label=label, subject=person)
    for label in ("boxing", "running")
    for person in ("p1", "p2", "p3")
]


def test_split_file_round_trip(tmp_path: Path) -> None:
    for split in make_splits(RECORDS, "leave_one_subject_out", seed=7, manifest_sha256="f" * 64):
        write_split_file(tmp_path / "split.json", split)
        assert read_split_file(tmp_path / "split.json") == split
    values = json.loads((tmp_path / "split.json").read_text())
    assert set(values) == {"protocol", "index", "train", "val", "test", "seed", "manifest_sha256"}
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_a_split_file_by_hand_needs_little(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"protocol": "mine", "train": ["a"], "test": ["b"]}')
    assert read_split_file(tmp_path / "s.json") == Split(protocol="mine", index=0, train=("a",), test=("b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: a", "is not a split file: Expecting value"),
        ("[]", "holds no JSON object"),
        ('{"protocol": "p", "train": ["a"]}', "test is missing"),
        ('{"protocol": "p", "train": "abc", "test": ["b"]}', "train must be a list of video ids"),
        ('{"protocol": "p", "train": ["a"], "test": [1]}', "test must be a list of video ids"),
        ('{"protocol": "p", "train": ["a"], "test": ["b"], "index": "0"}', "must be whole numbers"),
        ('{"protocol": "p", "train": ["a"], "test": ["b"], "tests": []}', "unknown entry 'tests'"),
        ('{"protocol": "p", "train": ["a"], "test": ["a"]}', "train and test share"),
    ],
)
def test_split_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SplitError, match=message):
        read_split_file(tmp_path / "s.json")
    with pytest.raises(SplitError, match="no such split file; make one with `har splits write`"):
        read_split_file(tmp_path / "none.json")
