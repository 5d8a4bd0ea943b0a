"""Which file a stored video was read from: told apart by name, size and frames, never mixed up by the id alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from depth_files import moving_body, write_folder, write_mat

from har_pipeline.core.errors import ExtractionError, RunError
from har_pipeline.core.records import Span, VideoRecord
from har_pipeline.features.frames import RawSummary, prepare_frames, store_raw_frames
from har_pipeline.features.options import RawOptions
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.source_files import describe_file, differ, words
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams, load_features

IDS = ("a", "b")


@pytest.fixture
def records(tmp_path: Path) -> list[VideoRecord]:
    paths = [write_mat(tmp_path / f"{video_id}.mat", moving_body(12 + i, seed=i)) for i, video_id in enumerate(IDS)]
    return [VideoRecord(video_id=i, label=i, depth_path=path) for i, path in zip(IDS, paths, strict=True)]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store.zarr", create=True)


def frames(store: FeatureStore, records: list[VideoRecord], *, replace_changed: bool = False) -> RawSummary:
    return store_raw_frames(
        records, store, RawOptions(size=16, workers=1, replace_changed=replace_changed, stream="depth")
    )


def test_a_description_survives_a_move_and_tells_files_apart(tmp_path: Path) -> None:
    (tmp_path / "clip.avi").write_bytes(b"12345")
    here = describe_file(tmp_path / "clip.avi")
    assert here == {"name": "clip.avi", "size": "5 bytes", "frames": "0 to the end"}
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "clip.avi", tmp_path / "other")
    assert not differ(here, describe_file(tmp_path / "other/clip.avi"))
    assert not differ(here, describe_file(tmp_path / "gone/clip.avi"))  # its size is not known
    assert differ(here, describe_file(tmp_path / "gone/another.avi"))
    assert differ(here, describe_file(tmp_path / "clip.avi", Span(end_frame=7)))
    seconds = describe_file(tmp_path / "clip.avi", Span(start_s=0.5, end_s=7))
    assert seconds["frames"] == "from 0.5 s to 7 s"
    assert differ(here, seconds)
    assert differ(seconds, describe_file(tmp_path / "clip.avi", Span(start_s=0.5)))
    (tmp_path / "other/clip.avi").write_bytes(b"123456")
    assert differ(here, describe_file(tmp_path / "other/clip.avi"))
    assert describe_file(tmp_path / "other")["size"] == "1 files"
    assert words(here) == "clip.avi (5 bytes), frames 0 to the end"


def test_frames_of_another_file_are_not_taken_for_a_videos_own(records: list[VideoRecord], store: FeatureStore) -> None:
    name = frames(store, records).feature_set
    swapped = [
        dataclasses.replace(record, depth_path=other.depth_path)
        for record, other in zip(records, records[::-1], strict=True)
    ]
    summary = frames(store, swapped)
    assert (summary.done, summary.already, set(summary.failed)) == (0, 0, {"a", "b"})
    assert "another file, a.mat (" in summary.failed["a"]
    assert "the manifest names b.mat (" in summary.failed["a"]
    assert store.num_clips(name) == {"a": 12, "b": 13}  # nothing is lost
    with pytest.raises(ExtractionError, match=r"2 videos, the first: .* another file"):
        prepare_frames(swapped, store.path, "depth", workers=1)
    with pytest.raises(RunError, match=r"a: its features were made from a\.mat .*the manifest names b\.mat"):
        load_features(FeatureStreams(store, [name]), swapped, IDS, IDS)
    pack_features(store, name, store.path.with_suffix(".pack"))
    with pytest.raises(RunError, match="made from a"):
        load_features(FeatureStreams(PackedStore(store.path.with_suffix(".pack")), [name]), swapped, IDS, IDS)
    assert frames(store, swapped, replace_changed=True).done == 2
    assert store.num_clips(name) == {"a": 13, "b": 12}


def test_a_file_that_has_changed_is_noticed(records: list[VideoRecord], store: FeatureStore) -> None:
    name = frames(store, records).feature_set
    assert records[0].depth_path is not None
    write_mat(records[0].depth_path, moving_body(15))
    summary = frames(store, records)
    assert (summary.already, set(summary.failed)) == (1, {"a"})
    assert frames(store, records, replace_changed=True).done == 1
    assert store.num_clips(name)["a"] == 15


def test_a_failure_is_remembered_of_that_file_only(records: list[VideoRecord], store: FeatureStore) -> None:
    bad = records[0].depth_path
    assert bad is not None
    good = bad.read_bytes()
    bad.write_bytes(b"nothing")
    assert set(frames(store, records).failed) == {"a"}
    assert set(frames(store, records).failed_before) == {"a"}
    bad.write_bytes(good)
    assert frames(store, records).done == 1


def test_stores_of_older_versions_do_not_say(records: list[VideoRecord], store: FeatureStore) -> None:
    name = frames(store, records).feature_set
    for video_id in IDS:
        node = store.path / name / video_id / "zarr.json"
        node.write_text(node.read_text().replace('"file"', '"unread"'))
    other = [dataclasses.replace(record, depth_path=Path("/moved/else.mat")) for record in records]
    assert (frames(store, other).already, store.files(name)) == (2, {"a": {}, "b": {}})
    assert load_features(FeatureStreams(store, [name]), other, IDS, IDS).video_ids == IDS


def test_what_was_wrong_with_files_stays_known(tmp_path: Path, store: FeatureStore) -> None:
    folder = write_folder(tmp_path / "S1", moving_body(12))
    sorted(folder.iterdir())[3].unlink()
    records = [VideoRecord(video_id="a", label="a", depth_path=folder)]
    name = frames(store, records).feature_set
    assert frames(store, records).notes == {}
    (note,) = store.decode_notes(name)["a"]
    table = load_features(FeatureStreams(store, [name]), records, ["a"], ["a"])
    assert table.notes == (f"there is something to say of 1 of the 1 videos, such as a: {note}",)
    assert np.array_equal(table.features, store.read(name, "a").features)
    pack_features(store, name, tmp_path / "s.pack")
    assert PackedStore(tmp_path / "s.pack").decode_notes(name) == store.decode_notes(name)


def test_a_file_that_was_absent_is_tried_again_when_it_is_there(
    records: list[VideoRecord], store: FeatureStore
) -> None:
    path = records[0].depth_path
    assert path is not None
    away = path.rename(path.with_name("away"))
    assert "does not exist" in frames(store, records).failed["a"]
    assert set(frames(store, records).failed_before) == {"a"}
    away.rename(path)
    summary = frames(store, records)
    assert (summary.done, summary.failed, summary.failed_before) == (1, {}, {})
