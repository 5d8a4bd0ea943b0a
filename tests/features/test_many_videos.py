"""Stores of many videos: one walk and one look at each, in bounded memory, and on several processes with the same answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.core.errors import StoreError
from har_pipeline.core.records import FeatureSpec, VideoRecord, VideoSource
from har_pipeline.features import store as store_module
from har_pipeline.features.job import JobSummary, unfinished
from har_pipeline.features.options import JobOptions
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.places import content
from har_pipeline.features.source_files import describe_file
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import ROOM, Rows

SPEC = FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=6)
VIDEOS = 12


@pytest.fixture
def rows(tmp_path: Path) -> list[VideoRecord]:
    (tmp_path / "videos").mkdir()
    found = []
    for number in range(VIDEOS):
        path = tmp_path / f"videos/{number}.avi"
        path.write_bytes(bytes(number))
        found.append(VideoRecord(video_id=f"v{number:02}", label="run", path=path))
    return found


@pytest.fixture
def store(tmp_path: Path, rows: list[VideoRecord]) -> FeatureStore:
    opened = FeatureStore(tmp_path / "store.zarr", create=True)
    opened.create_feature_set(SPEC)
    for number, row in enumerate(rows):
        clips = np.arange(3)
        source = VideoSource(
            clip_starts=clips,
            clip_ends=clips + 1,
            num_frames=3,
            fps=25.0,
            decode_notes=("odd",) * (number == 4),
            file=describe_file(row.file),
        )
        opened.write(SPEC.name, row.video_id, np.full((3, 6), number, np.float16), source)
    return FeatureStore(opened.path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """What was looked at: function of os, path."""
    found: Counter[tuple[str, str]] = Counter()

    def counted(name: str) -> None:
        real: Callable[..., object] = getattr(os, name)

        def call(path: object = ".", *rest: object, **named: object) -> object:
            found[name, str(path)] += 1
            return real(path, *rest, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "listdir", "scandir"):
        counted(name)
    return found


def test_what_is_left_to_do_is_found_in_one_walk(
    store: FeatureStore, rows: list[VideoRecord], looks: Counter[tuple[str, str]]
) -> None:
    summary = JobSummary(feature_set=SPEC.name)
    assert unfinished(summary, store, rows, [row.file for row in rows], JobOptions()) == set()
    assert (summary.total, summary.already) == (VIDEOS, VIDEOS)
    group = str(store.path / SPEC.name)
    assert sum(count for (what, path), count in looks.items() if what != "stat" and path == group) == 1
    of_nodes = [count for (_, path), count in looks.items() if path.startswith(f"{group}/v")]
    of_files = [looks["stat", row.file] for row in rows]
    assert of_nodes == of_files == [1] * VIDEOS


def test_a_list_and_a_description_read_each_commit_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    real = store_module.read_metadata
    monkeypatch.setattr(
        store_module, "read_metadata", lambda node, kind: (read.update([Path(node).name]), real(node, kind))[1]
    )
    for command in ("list", "show"):
        result = CliRunner().invoke(app, ["features", command, str(store.path), "--json"])
        assert result.exit_code == 0, result.output
        assert {name: count for name, count in read.items() if name.startswith("v")} == {
            f"v{number:02}": 1 for number in range(VIDEOS)
        }
        read.clear()


def test_a_pack_tells_of_its_videos_as_the_store_does(store: FeatureStore, tmp_path: Path) -> None:
    pack_features(store, SPEC.name, tmp_path / "store.pack")
    packed = PackedStore(tmp_path / "store.pack")
    assert [*packed.stored(SPEC.name)] == [*store.stored(SPEC.name)]
    assert {video.video_id for video in store.stored(SPEC.name) if video.decode_notes} == {"v04"}


def test_a_damaged_commit_counts_as_there_and_is_told_of(
    store: FeatureStore, rows: list[VideoRecord], caplog: pytest.LogCaptureFixture
) -> None:
    assert store.folder is not None
    (store.folder / SPEC.name / "v03/zarr.json").write_text("{}", encoding="utf-8")
    (store.folder / SPEC.name / "v05/zarr.json").unlink()
    (store.folder / SPEC.name / "v06").mkdir(exist_ok=True)
    assert [*dict(store.each_file(SPEC.name))] == store.video_ids(SPEC.name)
    assert dict(store.each_file(SPEC.name))["v03"] is None
    summary = JobSummary(feature_set=SPEC.name)
    assert unfinished(summary, store, rows, [row.file for row in rows], JobOptions()) == {"v05"}
    assert [*store.files(SPEC.name)] == [f"v{number:02}" for number in range(VIDEOS) if number not in (3, 5)]
    assert [record.message for record in caplog.records if "v03" in record.message and "damaged" in record.message]
    assert len(caplog.records) == 1  # once


def test_processes_verify_as_one_does(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.folder is not None
    chunk = next((store.folder / SPEC.name / "v07").glob("c*"))
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (store.folder / SPEC.name / "v02/zarr.json").write_text("{", encoding="utf-8")
    alone = [*store.verify(SPEC.name)]
    monkeypatch.setattr(store_module, "SHARED_FROM", VIDEOS)
    monkeypatch.setattr(store_module, "VERIFIED_AT_ONCE", 5)
    assert [*store.verify(SPEC.name, workers=2)] == alone
    assert [damage.video_id for damage in alone if damage] == ["v02", "v07"]


def test_a_process_that_died_while_it_verified_is_told_of(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def __enter__(self) -> list[Dead]:
            return [self]

        def __exit__(self, *_: object) -> None: ...

        def result(self) -> None:
            raise BrokenProcessPool

    monkeypatch.setattr(store_module, "working_on", lambda *_: Dead())
    monkeypatch.setattr(store_module, "SHARED_FROM", 1)
    with pytest.raises(StoreError, match=r"store\.zarr: a process that checks features has died"):
        next(store.verify(SPEC.name, workers=2))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60), budget=st.sampled_from([0, 100, 10**6]))
def test_rows_are_collected_in_little_more_than_their_size(lengths: list[int], budget: int) -> None:
    parts = [np.full((n, 3), number, np.float16) for number, n in enumerate(lengths)]
    rows, most = Rows(budget, None), max(lengths)
    for number, part in enumerate(parts):
        rows.add(str(number), part)
        held = len(rows._rows)
        assert held <= (1 + ROOM) * sum(lengths[: number + 1]) + most
        assert held * 6 <= (1 + ROOM) * budget + most * 6
    joined = rows.join()
    assert np.array_equal(joined, np.concatenate(parts))
    assert joined.dtype == np.float16
    rows.close()


def test_a_file_that_is_longer_than_it_was_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "empty").touch()
    real = os.stat
    for seen in (1, 25_000, 25_600):
        told = os.stat_result((0o100644, 0, 0, 1, 0, 0, seen, 0, 0, 0))
        monkeypatch.setattr(os, "stat", lambda path, told=told: told)
        assert content(tmp_path / "long") == content(str(tmp_path / "long")) == bytes(range(256)) * 100
        assert content(tmp_path / "empty") == b""
    monkeypatch.setattr(os, "stat", real)
    with pytest.raises(ValueError, match="long has 25,600 bytes"):
        content(tmp_path / "long", 25_599)
