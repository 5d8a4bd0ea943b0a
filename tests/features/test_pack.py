from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file

from har_pipeline.core.errors import RunError, StoreError
from har_pipeline.core.records import FeatureRecord, VideoSource
from har_pipeline.features import pack as pack_module
from har_pipeline.features.pack import PackedStore, default_pack_path, open_features, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams, load_features
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig

CLASSES = ("boxing", "walking", "running")


def drawn(lengths: list[int], *, dim: int = 6, dtype: str = "float16") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return {f"v{number:03}": rng.standard_normal((length, dim)).astype(dtype) for number, length in enumerate(lengths)}


def assert_same_record(one: FeatureRecord, other: FeatureRecord) -> None:
    for field in dataclasses.fields(FeatureRecord):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        else:
            assert (mine, type(mine)) == (theirs, type(theirs)), field.name


@pytest.fixture
def packed(tmp_path: Path) -> tuple[FeatureStore, str, PackedStore]:
    """A store of 9 videos of 1 to 5 clips, its feature set's name, and its pack."""
    store, name = feature_store(tmp_path / "store.zarr", drawn([3, 1, 5, 2, 4, 1, 3, 2, 5]))
    pack_features(store, name, tmp_path / "store.pack")
    return store, name, PackedStore(tmp_path / "store.pack")


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    dtype=st.sampled_from(["float16", "float32"]),
    dim=st.integers(1, 6),
)
def test_a_pack_holds_what_the_store_holds(lengths: list[int], dtype: str, dim: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, name = feature_store(Path(folder) / "s.zarr", drawn(lengths, dim=dim, dtype=dtype))
        summary = pack_features(store, name, Path(folder) / "s.pack")
        assert (summary.videos, summary.clips, summary.written) == (len(lengths), sum(lengths), True)
        pack = open_features(Path(folder) / "s.pack")
        assert isinstance(pack, PackedStore)
        assert pack.feature_sets() == [name]
        assert pack.spec(name) == store.spec(name)
        assert pack.video_ids(name) == store.video_ids(name)
        for video_id in store.video_ids(name):
            assert_same_record(pack.read(name, video_id), store.read(name, video_id))
        # The library reads what was written without it, and finds it laid out as its own files are.
        flat = load_file(pack.file(name))
        np.testing.assert_array_equal(
            flat["features"], np.concatenate([store.read(name, v).features for v in pack.video_ids(name)])
        )
        assert flat["offsets"].tolist() == np.cumsum([0, *lengths]).tolist()
        assert load_torch_file(pack.file(name))["features"].numpy().tobytes() == flat["features"].tobytes()
        with safe_open(pack.file(name), "np") as file:
            assert json.loads(file.metadata()["har_pipeline_pack"]) == pack.info(name)


def test_what_extraction_said_of_a_video_is_kept(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "store.zarr", drawn([2]))
    source = VideoSource(
        clip_starts=np.array([4, 9]),
        clip_ends=np.array([9, 15]),
        num_frames=13,
        fps=29.97,
        padded=True,
        decode_notes=("short", "tail missing"),
        provenance={"decoder": "pyav"},
    )
    store.write(name, "odd", np.ones((2, 6), np.float16), source)
    store.record_failure(name, "bad", "empty file")
    pack_features(store, name, tmp_path / "p.pack")
    pack = PackedStore(tmp_path / "p.pack")
    for video_id in ("odd", "v000"):
        assert_same_record(pack.read(name, video_id), store.read(name, video_id))
    np.testing.assert_array_equal(pack.read(name, "odd").clip_times_s, np.array([[4, 9], [9, 15]]) / 29.97)
    assert pack.failures(name) == {"bad": "empty file"}


def test_packed_features_cannot_be_written_to(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    _, name, pack = packed
    with pytest.raises(ValueError, match="read-only"):
        pack.read(name, "v000").features[0, 0] = 1


def test_training_from_a_pack_gives_the_same_run(tmp_path: Path) -> None:
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    records, ids = manifest(labels), list(features)
    splits = [split_of(ids[i::2], ids[1 - i :: 2], index=i) for i in range(2)]
    config = TrainConfig(epochs=3, units=8, device="cpu", temporal_jitter=0.2)
    reduced = reduce_features(store, name, splits[0], ReduceOptions(dim=4)).feature_set
    for feature_set in (name, reduced):
        pack_features(store, feature_set, tmp_path / "store.pack")
    for kind in ("zarr", "pack"):
        opened = open_features(tmp_path / f"store.{kind}")
        run_jobs(opened, [name[:5]], records, plan_jobs(splits, tmp_path / kind / "both"), config)
        run_jobs(opened, [reduced], records, plan_jobs(splits[:1], tmp_path / kind / "reduced"), config)
    for run in ("both/split0", "both/split1", "reduced"):
        one, other = tmp_path / "zarr" / run, tmp_path / "pack" / run
        files = {path.name for path in one.iterdir()}
        assert files == {path.name for path in other.iterdir()}
        assert ("reduction.safetensors" in files) == (run == "reduced")
        for file in files - {"run.json", "history.csv"}:  # they tell dates and seconds
            assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_kill_leaves_no_pack_or_the_older_one(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "store.zarr", drawn([3, 1, 5]))
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from har_pipeline.features.pack import pack_features\n"
        "from har_pipeline.features.store import FeatureStore\n"
        "def stop(stage, done, total):\n"
        "    if done == 2: os.kill(os.getpid(), 9)\n"
        "pack_features(FeatureStore(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), stop)\n"
    )
    path = tmp_path / "store.pack"
    command = [sys.executable, "-c", code, str(store.path), name, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert PackedStore(path).feature_sets() == []
    with pytest.raises(StoreError, match="has no feature set"):
        PackedStore(path).spec(name)
    with pytest.raises(StoreError, match="har features pack"):
        PackedStore(path).resolve("")
    assert len(list(path.iterdir())) == 2
    assert pack_features(store, name, path).written
    assert {node.name for node in path.iterdir()} == {"pack.json", f"{name}.safetensors"}
    source = VideoSource(clip_starts=np.arange(2), clip_ends=np.arange(2) + 1, num_frames=2, fps=25.0)
    store.write(name, "w", np.ones((2, 6), np.float16), source)
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert PackedStore(path).video_ids(name) == ["v000", "v001", "v002"]
    assert pack_features(store, name, path).videos == 4
    assert {node.name for node in path.iterdir()} == {"pack.json", f"{name}.safetensors"}


def test_a_disk_that_is_full_leaves_the_older_copy(
    packed: tuple[FeatureStore, str, PackedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name, pack = packed
    store.delete(name, "v001")

    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module, "_header", fail)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); choose another place"):
        pack_features(store, name, pack.path)
    assert {node.name for node in pack.path.iterdir()} == {"pack.json", f"{name}.safetensors"}
    assert len(PackedStore(pack.path).video_ids(name)) == 9
    monkeypatch.undo()
    assert pack_features(store, name, pack.path).videos == 8


def test_packing_needs_memory_for_one_video_at_a_time(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "store.zarr", drawn([20] * 30, dim=4096))
    total, largest = 30 * 20 * 4096 * 2, 20 * 4096 * 2
    tracemalloc.start()
    pack_features(store, name, tmp_path / "store.pack")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * largest < total / 3


def test_what_is_up_to_date_is_not_packed_again(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    store, name, pack = packed
    before = pack.file(name).stat().st_ino
    again = pack_features(store, name, pack.path)
    assert (again.written, again.videos, again.clips) == (False, 9, 26)
    assert pack.file(name).stat().st_ino == before
    os.utime(store.path / name)  # as after copying a store
    assert not pack_features(store, name, pack.path).written


def test_videos_that_came_and_went_are_noticed(
    packed: tuple[FeatureStore, str, PackedStore], caplog: pytest.LogCaptureFixture
) -> None:
    store, name, pack = packed
    source = VideoSource(clip_starts=np.arange(2), clip_ends=np.arange(2) + 1, num_frames=2, fps=25.0)
    for video_id in ("w1", "w2"):
        store.write(name, video_id, np.ones((2, 6), np.float16), source)
    store.delete(name, "v003")
    assert pack.describe(name)["state"] == "the store differs: videos 2 gained, 1 lost"
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(pack.read(name, "v000").features, store.read(name, "v000").features)
        pack.read(name, "v001")
    assert [record.getMessage() for record in caplog.records] == [
        f"{pack.path / name}: packed from 9 videos; the store has 10 now: run `har features pack` on {store.path} again"
    ]
    labels = dict.fromkeys(("v000", "w1"), CLASSES[0])
    with pytest.raises(RunError, match=r"w1.*the store has it now, the pack does not: run `har features pack` again"):
        load_features(FeatureStreams(pack, [name]), manifest(labels), list(labels), CLASSES)
    assert pack_features(store, name, pack.path).videos == 10
    fresh = PackedStore(pack.path)
    assert fresh.describe(name)["state"] == "up to date"
    assert fresh.video_ids(name) == store.video_ids(name)


def test_other_features_of_a_packed_video_are_an_error(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    store, name, pack = packed
    source = VideoSource(clip_starts=np.arange(1), clip_ends=np.arange(1) + 1, num_frames=1, fps=25.0)
    store.delete(name, "v004")
    store.write(name, "v004", np.ones((1, 6), np.float16), source)
    with pytest.raises(StoreError, match=r"other features of 1 packed videos now \(v004\): run `har features pack`"):
        pack.read(name, "v000")
    pack_features(store, name, pack.path)
    np.testing.assert_array_equal(PackedStore(pack.path).read(name, "v004").features, np.ones((1, 6)))


def test_a_store_without_changes_is_compared_by_its_date_alone(
    packed: tuple[FeatureStore, str, PackedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name, pack = packed
    monkeypatch.setattr(FeatureStore, "checksums", lambda *_: pytest.fail("read every commit"))
    pack.read(name, "v000")
    store.delete(name, "v000")
    with pytest.raises(pytest.fail.Exception, match="read every commit"):
        PackedStore(pack.path).read(name, "v000")


def test_a_file_system_that_keeps_whole_seconds_gives_no_date_to_trust(
    packed: tuple[FeatureStore, str, PackedStore], tmp_path: Path
) -> None:
    store, name, _ = packed
    os.utime(store.path / name, (10**9, 10**9))
    pack_features(store, name, tmp_path / "other.pack")
    store.delete(name, "v000")
    os.utime(store.path / name, (10**9, 10**9))
    found = PackedStore(tmp_path / "other.pack").differences(name, store)
    assert found.lost == ("v000",)


def test_a_pack_stands_alone(packed: tuple[FeatureStore, str, PackedStore], tmp_path: Path) -> None:
    store, name, pack = packed
    expected = store.read(name, "v002")
    moved = tmp_path / "elsewhere" / "away.pack"
    moved.parent.mkdir()
    pack.path.rename(moved)
    shutil.rmtree(store.path)
    assert_same_record(PackedStore(moved).read(name, "v002"), expected)
    assert PackedStore(moved).describe(name)["state"] == "the store is missing, so it cannot be compared"


def header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_a_flipped_byte_is_found_in_every_tensor(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    _, name, pack = packed
    path = pack.file(name)
    data = path.read_bytes()
    for position in range(header_bytes(path), len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            assert any(damage is not None for damage in PackedStore(pack.path).verify(name)), position
        except StoreError:
            continue
    path.write_bytes(data)
    assert all(damage is None for damage in PackedStore(pack.path).verify(name))


def test_training_notices_a_flipped_byte(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    store, name, pack = packed
    path = pack.file(name)
    data = bytearray(path.read_bytes())
    data[data.index(store.read(name, "v008").features.tobytes())] ^= 1
    path.write_bytes(data)
    labels = dict.fromkeys(pack.video_ids(name), CLASSES[0])
    with pytest.raises(StoreError, match=r"features of v008 differ from their checksum; run `har features pack` again"):
        load_features(FeatureStreams(PackedStore(pack.path), [name]), manifest(labels), list(labels), CLASSES)
    assert pack_features(store, name, pack.path).written
    load_features(FeatureStreams(PackedStore(pack.path), [name]), manifest(labels), list(labels), CLASSES)


@pytest.mark.parametrize("kept", [0, 4, 300, -20])
def test_a_cut_or_lost_file_is_an_error_that_names_it(packed: tuple[FeatureStore, str, PackedStore], kept: int) -> None:
    store, name, pack = packed
    path = pack.file(name)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=rf"{path.name}: damaged.*run `har features pack` again"):
        PackedStore(pack.path).read(name, "v000")
    path.unlink()
    with pytest.raises(StoreError, match="har features pack"):
        PackedStore(pack.path).read(name, "v000")
    assert pack_features(store, name, pack.path).written
    PackedStore(pack.path).read(name, "v000")


def test_bytes_after_the_end_are_noticed(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    _, name, pack = packed
    with pack.file(name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(StoreError, match="damaged"):
        PackedStore(pack.path).read(name, "v000")


def test_a_spec_that_was_changed_by_hand_is_noticed(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    _, name, pack = packed
    data, layer = pack.file(name).read_bytes(), pack.spec(name).layer
    changed = data.replace(f'\\"layer\\": \\"{layer}\\"'.encode(), f'\\"layer\\": \\"{"x" * len(layer)}\\"'.encode())
    assert changed != data
    pack.file(name).write_bytes(changed)
    with pytest.raises(StoreError, match=r"safetensors: damaged .*the header differs from its checksum"):
        PackedStore(pack.path).spec(name)


def test_a_flipped_byte_of_the_header_changes_no_feature(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    store, name, pack = packed
    path = pack.file(name)
    data, size = path.read_bytes(), header_bytes(path)
    noticed = 0
    for position in range(size):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            assert_same_record(PackedStore(pack.path).read(name, "v004"), store.read(name, "v004"))
        except StoreError:
            noticed += 1
    assert noticed > size / 2


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "store.zarr", drawn([2, 2]))
    (tmp_path / "file").write_text("x")
    for taken in (tmp_path, tmp_path / "file", store.path):
        with pytest.raises(StoreError, match="exists and is not a pack"):
            pack_features(store, name, taken)
    chunk = next(p for p in (store.path / name / "v001").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    with pytest.raises(StoreError, match="v001"):
        pack_features(store, name, tmp_path / "store.pack")
    assert PackedStore(tmp_path / "store.pack").feature_sets() == []
    for video_id in ("v000", "v001"):
        store.delete(name, video_id)
    with pytest.raises(StoreError, match="no features to pack"):
        pack_features(store, name, tmp_path / "store.pack")


def test_what_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a feature store"):
        open_features(tmp_path)
    (tmp_path / "pack.json").write_text('{"har_pipeline_pack": 1}')
    with pytest.raises(StoreError, match="format 1, not 3: run `har features pack` again, which replaces it"):
        open_features(tmp_path)
    (tmp_path / "pack.json").write_text("[")
    with pytest.raises(StoreError, match="not valid JSON"):
        open_features(tmp_path)


def test_default_names() -> None:
    assert default_pack_path(Path("data/store.zarr")) == Path("data/store.pack")
    assert default_pack_path(Path("features.v2")) == Path("features.v2.pack")


def test_a_pack_is_pickled_as_its_path(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    _, name, pack = packed
    pack.read(name, "v000")
    pickled = pickle.dumps(pack)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).spec(name) == pack.spec(name)


def test_the_unfinished_pack_of_another_process_is_no_obstacle(packed: tuple[FeatureStore, str, PackedStore]) -> None:
    store, name, pack = packed
    fresh = pack.path.with_name("fresh.pack")
    fresh.mkdir()
    (fresh / ".pack.partial-elsewhere.1.0123abcd.json").touch()
    assert pack_features(store, name, fresh).written
