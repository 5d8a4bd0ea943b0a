"""The index of files: what it says is what the commits say, whatever happens to it or to them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_pipeline.core.records import FeatureSpec, VideoSource
from har_pipeline.features import file_index
from har_pipeline.features import store as store_module
from har_pipeline.features.store import FeatureStore

SPEC = FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=2)
NAMES = [f"v{number}" for number in range(6)]


def write(store: FeatureStore, name: str, size: int = 1) -> None:
    file = {"name": f"{name}.avi", "frames": "all", "size": f"{size} bytes"}
    source = VideoSource(clip_starts=np.arange(1), clip_ends=np.ones(1, int), num_frames=1, fps=25.0, file=file)
    assert store.write(SPEC.name, name, np.zeros((1, 2), np.float16), source)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each set has an index, which takes what was written just now, and is written again for a single line."""
    monkeypatch.setenv("HAR_CACHE", str(tmp_path / "cache"))
    for name, value in {"INDEXED_FROM": 1, "WORTH_LINES": 1, "SETTLED_NS": 0}.items():
        monkeypatch.setattr(file_index, name, value)
    return tmp_path / "cache" / "files"


@pytest.fixture
def store(tmp_path: Path, cache: Path) -> FeatureStore:
    made = FeatureStore(tmp_path / "store.zarr", create=True)
    made.create_feature_set(SPEC)
    for name in NAMES:
        write(made, name)
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the videos whose commits were read."""
    found: list[str] = []
    real = store_module.read_commit
    monkeypatch.setattr(store_module, "read_commit", lambda name, values: (found.append(name), real(name, values))[1])
    return found


def walk(store: FeatureStore) -> dict[str, dict[str, str] | None]:
    return dict(store.each_file(SPEC.name))


def of_commits(store: FeatureStore) -> dict[str, dict[str, str] | None]:
    return {name: commit["file"] if isinstance(commit, dict) else None for name, commit in store.commits(SPEC.name)}


def test_only_what_is_new_is_read_again(store: FeatureStore, reads: list[str], cache: Path) -> None:
    first = walk(store)
    assert (reads, [*first]) == (NAMES, NAMES)
    reads.clear()
    assert walk(store) == first
    assert reads == []
    store.delete(SPEC.name, "v2")
    write(store, "v2", 7)
    store.delete(SPEC.name, "v4")
    write(store, "a")
    second = walk(store)
    assert second["v2"] == {"name": "v2.avi", "frames": "all", "size": "7 bytes"}
    assert sorted(set(reads)) == ["a", "v2"]
    reads.clear()
    assert walk(store) == of_commits(store)
    assert [*walk(store)] == ["a", "v0", "v1", "v2", "v3", "v5"]
    assert len([*cache.iterdir()]) == 1


def test_few_videos_or_few_new_ones_write_nothing(
    store: FeatureStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "INDEXED_FROM", len(NAMES) + 2)
    walk(store)
    assert not cache.exists()
    monkeypatch.setattr(file_index, "INDEXED_FROM", 1)
    monkeypatch.setattr(file_index, "WORTH_LINES", len(NAMES) + 1)
    walk(store)
    assert [*cache.iterdir()] == []
    next(iter(store.each_file(SPEC.name)))  # a walk that is not finished
    assert [*cache.iterdir()] == []


def test_what_was_written_just_now_is_not_kept(
    store: FeatureStore, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        walk(store)
    assert reads == NAMES * 2


def test_an_index_of_another_store_is_not_read(store: FeatureStore, cache: Path, reads: list[str]) -> None:
    walk(store)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes().replace(b"store.zarr", b"other.zarr"))
    reads.clear()
    assert walk(store) == of_commits(store)
    assert reads[: len(NAMES)] == NAMES


def test_forgotten_indices_are_deleted(store: FeatureStore, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, age_s in {"old": file_index.FORGOTTEN_S + 60, "young": file_index.FORGOTTEN_S - 3600}.items():
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age_s,) * 2)
    walk(store)
    assert sorted(path.name for path in cache.iterdir() if len(path.name) < 10) == ["young"]


@pytest.mark.parametrize("place", ["file", "no home", "read-only"])
def test_without_a_cache_all_is_read(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "file":
        (tmp_path / "cache").touch()
    elif place == "read-only":
        monkeypatch.setattr(file_index, "tempfile", SimpleNamespace(NamedTemporaryFile=_refuse))
    else:
        monkeypatch.setattr(file_index, "user_cache", lambda: None)
    for _ in range(2):
        assert walk(store) == of_commits(store)


def _refuse(**_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_full_disk_costs_the_index_only(store: FeatureStore, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(store)
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    write(store, "v25")
    write(store, "v35")

    class Full:
        def __init__(self, **options: Any) -> None:
            self._file = tempfile.NamedTemporaryFile(**options)  # noqa: SIM115
            self.name = self._file.name

        def write(self, data: bytes) -> int:
            if b"v4" in data:
                raise OSError(28, "No space left on device")
            return self._file.write(data)

        def close(self) -> None:
            self._file.close()

    with monkeypatch.context() as patch:
        patch.setattr(file_index, "tempfile", SimpleNamespace(NamedTemporaryFile=Full))
        assert walk(store) == of_commits(store)
    assert {path: path.read_bytes() for path in cache.iterdir()} == kept
    assert walk(store) == of_commits(store)


def test_a_damaged_commit_is_told_of_with_an_index(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    walk(store)
    (Path(str(store.path)) / SPEC.name / "v3" / "zarr.json").write_text("{}")
    assert walk(store)["v3"] is None
    assert [record.message for record in caplog.records if "v3" in record.message]


changes = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "damage", "truncate"]), st.integers(0, 9), st.integers(1, 10**6)),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(rounds=st.lists(changes, min_size=1, max_size=4))
def test_it_always_says_what_the_commits_say(store: FeatureStore, cache: Path, rounds: list[list[tuple]]) -> None:
    for round_ in rounds:
        for what, number, value in round_:
            name = f"v{number}"
            indices = [path for path in cache.glob("*") if path.stat().st_size]
            if what == "write":
                there = set(store.video_ids(SPEC.name))
                if name in there:
                    store.delete(SPEC.name, name)
                    time.sleep(0.02)  # a tick of the file system's clock, for which `SETTLED_NS` is there
                write(store, name, value)
            elif what == "delete" and name in store.video_ids(SPEC.name):
                store.delete(SPEC.name, name)
            elif what == "damage" and indices:
                data = bytearray(indices[0].read_bytes())
                data[value % len(data)] ^= 1 << (value % 8)
                indices[0].write_bytes(data)
            elif what == "truncate" and indices:
                data = indices[0].read_bytes()
                indices[0].write_bytes(data[: value % len(data)])
        expected = of_commits(store)
        assert walk(store) == expected
        assert walk(store) == expected
