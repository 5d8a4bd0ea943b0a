from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.datasets import identity
from har_pipeline.datasets.identity import one_name_per_file
from har_pipeline.datasets.splits import SplitChoice, check_split, choose_splits, make_splits


def videos(folder: Path, *names: str) -> list[VideoRecord]:
    """A record for each name, with a file of its own content unless the name exists already."""
    records = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            path.write_bytes(name.encode() * 5)
        label, stem = path.parent.name, path.stem
        records.append(VideoRecord(video_id=f"{label}-{stem}", label=label, path=path))
    return records


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hard_link(path: Path, target: Path) -> None:
    os.link(target, path)


def copy(path: Path, target: Path) -> None:
    path.write_bytes(target.read_bytes())


KINDS = pytest.mark.parametrize("other_name", [link, hard_link, copy])


def names(records: list[VideoRecord]) -> list[str]:
    return [record.path.name for record in one_name_per_file(records) if record.path]


@KINDS
def test_names_of_one_file(tmp_path: Path, other_name: type) -> None:
    first, other = videos(tmp_path, "run/a.avi", "run/b.avi")
    other_name(tmp_path / "run/c.avi", tmp_path / "run/a.avi")
    records = [*videos(tmp_path, "run/c.avi"), first, other]
    assert names(records) == ["a.avi", "a.avi", "b.avi"]


def test_files_of_one_size_are_told_by_their_content(tmp_path: Path) -> None:
    """Files that agree at their beginning, middle and end are read to the end."""
    content = bytearray(os.urandom(10 * 65536))
    (tmp_path / "run").mkdir()
    for name, at in (
        ("a", None),
        ("b", None),
        ("early", 5),
        ("middle", 5 * 65536),
        ("late", -5),
        ("between", 3 * 65536),
    ):
        changed = content.copy()
        if at is not None:
            changed[at] ^= 1
        (tmp_path / f"run/{name}.avi").write_bytes(changed)
    records = videos(tmp_path, *(f"run/{name}.avi" for name in ("a", "b", "early", "middle", "late", "between")))
    assert names(records) == ["a.avi", "a.avi", "early.avi", "middle.avi", "late.avi", "between.avi"]


def test_content_is_read_only_where_sizes_agree_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    usual = identity.open if hasattr(identity, "open") else open
    monkeypatch.setattr(
        identity, "open", lambda path, mode: read.append(Path(path).name) or usual(path, mode), raising=False
    )
    records = videos(tmp_path, "run/long.avi", "run/a.avi", "run/b.avi")
    for _ in range(2):
        one_name_per_file(records)
    assert sorted(read) == ["a.avi", "b.avi"]
    os.utime(tmp_path / "run/a.avi", (1, 1))
    one_name_per_file(records)
    assert sorted(read) == ["a.avi", "a.avi", "b.avi"]


def test_empty_absent_and_unreadable_files_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"run/{name}.avi").touch()
    gone = [VideoRecord(video_id=name, label="run", path=tmp_path / f"none/{name}") for name in ("x", "y")]
    records = [*videos(tmp_path, "run/a.avi", "run/b.avi"), *gone]
    assert one_name_per_file(records) == records
    copies = videos(tmp_path, "run/c.avi")
    copy(tmp_path / "run/d.avi", tmp_path / "run/c.avi")
    copies += videos(tmp_path, "run/d.avi")

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(identity, "open", refuse, raising=False)
    assert one_name_per_file(copies) == copies


def test_folders_of_depth_frames_are_one_by_links_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"same")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    records = [VideoRecord(video_id=name, label="run", depth_path=tmp_path / name) for name in "abc"]
    paths = [record.depth_path for record in one_name_per_file(records)]
    assert paths == [tmp_path / "a", tmp_path / "b", tmp_path / "a"]


@KINDS
def test_one_file_on_both_sides_of_a_split_is_refused(tmp_path: Path, other_name: type) -> None:
    records = videos(tmp_path, *(f"{label}/{n}.avi" for label in ("run", "jump") for n in (1, 2, 3)))
    other_name(tmp_path / "run/4.avi", tmp_path / "run/1.avi")
    records = [replace(r, split="train") for r in records] + [
        replace(r, split="test") for r in videos(tmp_path, "run/4.avi", "jump/5.avi")
    ]
    message = r"file .*1\.avi is in both train and test, as run-1 and run-4"
    with pytest.raises(SplitError, match=f"column split 0: {message}"):
        make_splits(records, "column", val_fraction=0)
    own = Split(protocol="mine", index=0, train=("run-1", "jump-1"), test=("run-4",))
    with pytest.raises(SplitError, match=f"mine split 0: {message}"):
        check_split(own, records)


@KINDS
def test_drawn_splits_keep_the_names_of_a_file_together(tmp_path: Path, other_name: type) -> None:
    records = videos(tmp_path, *(f"{label}/{n}.avi" for label in ("run", "jump") for n in range(6)))
    for n in range(6):
        other_name(tmp_path / f"run/copy{n}.avi", tmp_path / f"run/{n}.avi")
    records += videos(tmp_path, *(f"run/copy{n}.avi" for n in range(6)))
    for seed in range(5):
        for protocol in ("holdout", "group_kfold"):
            for split in make_splits(records, protocol, seed=seed, num_folds=2):
                for part in (split.train, split.val, split.test):
                    assert {i for i in part if i.startswith("run-") and "copy" not in i} == {
                        i.replace("copy", "") for i in part if "copy" in i
                    }


@KINDS
def test_published_lists_are_taken_with_a_note(tmp_path: Path, other_name: type) -> None:
    """A published protocol cannot be changed, but the reader is told."""
    records = videos(tmp_path, *(f"{label}/{n}.avi" for label in ("run", "jump") for n in (1, 2)))
    other_name(tmp_path / "run/9.avi", tmp_path / "run/1.avi")
    records += videos(tmp_path, "run/9.avi", "jump/9.avi")
    records = [replace(r, subject=f"P{1 + 2 * ('9' in r.video_id):03d}") for r in records]
    _, notes = choose_splits(records, SplitChoice(protocol="xsub", val_fraction=0))
    assert notes == [
        "1 test videos of xsub are copies of training or validation videos (the same content under another name), which "
        "makes the accuracy too high: run-9 = run-1"
    ]


def test_a_hundred_thousand_names_take_seconds(tmp_path: Path) -> None:
    videos(tmp_path, "run/a.avi")
    records = [VideoRecord(video_id=f"v{n}", label="run", path=tmp_path / f"gone/{n}.avi") for n in range(100_000)]
    start = time.process_time()
    one_name_per_file(records)
    assert time.process_time() - start < 10
