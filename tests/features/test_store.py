from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from har_pipeline.core.errors import FeatureMismatchError, StoreError
from har_pipeline.core.records import ClipSpec, FeatureSpec, VideoSource
from har_pipeline.features import nodes as nodes_module
from har_pipeline.features.set_names import spec_hash
from har_pipeline.features.store import FeatureStore

SPEC = FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=6)


def features(rows: int = 5, seed: int = 0, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float16)


def source(rows: int = 5) -> VideoSource:
    return VideoSource(
        clip_starts=np.arange(rows),
        clip_ends=np.arange(rows) + 1,
        num_frames=rows,
        fps=25.0,
        decode_notes=("a note",),
        provenance={"device": "test"},
    )


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    opened = FeatureStore(tmp_path / "store.zarr", create=True)
    opened.create_feature_set(SPEC)
    return opened


def test_what_was_written_is_read_back(store: FeatureStore) -> None:
    assert store.write(SPEC.name, "video.1", features(), source())
    record = store.read(SPEC.name, "video.1", check=True)
    np.testing.assert_array_equal(record.features, features())
    assert record.features.dtype == np.float16
    assert record.clip_starts.tolist() == [0, 1, 2, 3, 4]
    assert (record.num_frames, record.fps, record.decode_notes) == (5, 25.0, ("a note",))
    assert record.checksum == f"sha256:{hashlib.sha256(features().tobytes()).hexdigest()}"
    assert store.video_ids(SPEC.name) == ["video.1"]


def test_any_zarr_client_reads_the_features(store: FeatureStore) -> None:
    store.write(SPEC.name, "v", features(), source())
    array = zarr.open_group(store.path, mode="r")[SPEC.name]["v"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(array[...], features())
    assert array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ("clip", "feature")
    assert np.isnan(array.fill_value)
    assert list(zarr.open_group(store.path / SPEC.name, mode="r").array_keys()) == ["v"]
    store.write_fit("fit", {"mean": np.arange(4.0), "part": np.eye(3, dtype=np.float32)}, {"dim": 2})
    fit = zarr.open_group(store.path / "_reduction/fit", mode="r")
    for name, wanted in (("mean", np.arange(4.0)), ("part", np.eye(3))):
        np.testing.assert_array_equal(np.asarray(fit[name]), wanted)


def test_a_video_is_two_files_in_one_folder(store: FeatureStore) -> None:
    store.write(SPEC.name, "v", features(), source())
    assert {path.name for path in (store.path / SPEC.name / "v").rglob("*")} == {"zarr.json", "c.0.0"}


@pytest.mark.parametrize("chunk_rows", [5, 2])
def test_arrays_that_zarr_wrote_are_read_and_stay(store: FeatureStore, chunk_rows: int) -> None:
    """As versions before this one wrote them: chunks in folders, and none where all is the fill value."""
    store.write(SPEC.name, "v", features(), source())
    attributes = dict(zarr.open_array(store.path / SPEC.name / "v", mode="r").attrs)
    written = np.where(np.arange(5)[:, None] // chunk_rows == 1, np.float16("nan"), features())
    checksum = f"sha256:{hashlib.sha256(written.tobytes()).hexdigest()}"
    zarr.create_array(
        store.path / SPEC.name / "v",
        data=written,
        chunks=(chunk_rows, 6),
        fill_value=float("nan"),
        compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
        dimension_names=("clip", "feature"),
        attributes={**attributes, "checksum": checksum},
        overwrite=True,
    )
    names = {str(path.relative_to(store.path / SPEC.name / "v")) for path in store.path.glob(f"{SPEC.name}/v/c/*/*")}
    assert names == ({"c/0/0"} if chunk_rows == 5 else {"c/0/0", "c/2/0"})
    assert store.read(SPEC.name, "v", check=True).features.tobytes() == written.tobytes()
    assert not store.write(SPEC.name, "v", features(seed=1), source())
    assert list(store.verify(SPEC.name)) == [None]


def test_features_in_several_chunks(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "CHUNK_BYTES", 4 * 6 * 2)
    data = features(11)
    writer = store.writer(SPEC.name, "long", 11)
    for start, stop in ((0, 3), (3, 4), (4, 11)):
        writer.append(data[start:stop])
    assert store.video_ids(SPEC.name) == []
    assert writer.commit(source(11))
    record = store.read(SPEC.name, "long", check=True)
    np.testing.assert_array_equal(record.features, data)


def test_too_few_or_too_many_rows_are_refused(store: FeatureStore) -> None:
    writer = store.writer(SPEC.name, "v", 3)
    writer.append(features(2))
    with pytest.raises(StoreError, match="2 of 3"):
        writer.commit(source())
    with pytest.raises(StoreError, match="more features"):
        writer.append(features(2))
    assert store.video_ids(SPEC.name) == []


def test_what_has_no_commit_does_not_exist_and_is_swept(store: FeatureStore) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from har_pipeline.features.store import FeatureStore\n"
        "w = FeatureStore(sys.argv[1]).writer(sys.argv[2], 'v', 5)\n"
        "w.append(np.zeros((5, 6), np.float16))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.path), SPEC.name], check=False)
    assert done.returncode == -signal.SIGKILL
    assert store.video_ids(SPEC.name) == []
    with pytest.raises(StoreError, match="no features of 'v'"):
        store.read(SPEC.name, "v")
    assert store.remove_debris() == 1
    assert store.remove_debris() == 0


def test_debris_of_living_processes_and_other_hosts_stays(store: FeatureStore) -> None:
    writer = store.writer(SPEC.name, "v", 1)
    foreign = store.path / "_staging" / f"otherhost.{os.getpid() + 10**7}.abc"
    foreign.mkdir()
    assert store.remove_debris() == 0
    writer.append(features(1))
    assert writer.commit(source(1))


def test_the_first_commit_of_a_video_stays(store: FeatureStore) -> None:
    slow = store.writer(SPEC.name, "v", 5)
    slow.append(features(seed=1))
    assert store.write(SPEC.name, "v", features(seed=2), source())
    assert not slow.commit(source())
    np.testing.assert_array_equal(store.read(SPEC.name, "v", check=True).features, features(seed=2))
    assert not any(path.name != "zarr.json" for path in (store.path / "_staging").iterdir())


def test_a_flipped_byte_is_found(store: FeatureStore) -> None:
    for video_id in ("good", "bad"):
        store.write(SPEC.name, video_id, features(), source())
    chunk = next(
        path for path in (store.path / SPEC.name / "bad").rglob("*") if path.is_file() and path.name != "zarr.json"
    )
    data = bytearray(chunk.read_bytes())
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        chunk.write_bytes(flipped)
        damage = [d for d in store.verify(SPEC.name) if d is not None]
        assert [d.video_id for d in damage] == ["bad"], f"byte {position} of {len(data)} went unnoticed"
    store.delete(SPEC.name, "bad")
    assert store.video_ids(SPEC.name) == ["good"]


def test_a_lost_chunk_is_found(store: FeatureStore) -> None:
    store.write(SPEC.name, "v", features(), source())
    next(p for p in (store.path / SPEC.name / "v").rglob("*") if p.is_file() and p.name != "zarr.json").unlink()
    damage = [d for d in store.verify(SPEC.name) if d is not None]
    assert len(damage) == 1
    assert "checksum" in damage[0].reason


def test_damaged_metadata_is_an_error_that_names_the_video(store: FeatureStore) -> None:
    store.write(SPEC.name, "v", features(), source())
    (store.path / SPEC.name / "v" / "zarr.json").write_text('{"zarr_format": 3')
    with pytest.raises(StoreError, match=r"v: damaged"):
        store.read(SPEC.name, "v")


def test_the_name_guards_the_spec(store: FeatureStore) -> None:
    import json

    group = store.path / SPEC.name / "zarr.json"
    metadata = json.loads(group.read_text())
    metadata["attributes"]["spec"]["layer"] = "other"
    group.write_text(json.dumps(metadata))
    with pytest.raises(FeatureMismatchError, match="layer: 'pool' != 'other'"):
        store.create_feature_set(SPEC)


def test_another_dimension_is_refused(store: FeatureStore) -> None:
    with pytest.raises(FeatureMismatchError, match="D=6"):
        store.write(SPEC.name, "v", features(dim=7), source())


def test_prefixes(store: FeatureStore) -> None:
    other = FeatureSpec(extractor="net", weights="random:1", layer="pool", feature_dim=6)
    store.create_feature_set(other)
    assert store.resolve(SPEC.name[:-1]) == SPEC.name
    with pytest.raises(StoreError, match=r"2 feature sets start.*" + other.name):
        store.resolve("net")
    with pytest.raises(StoreError, match="no feature set starts"):
        store.resolve("vgg")
    assert store.feature_sets() == sorted([SPEC.name, other.name])
    store.give_name(other.name, "tuned-pool")
    assert store.resolve("tuned") == other.name
    store.write(SPEC.name, "v", features(), source())
    with pytest.raises(StoreError, match=rf"{other.name} \([^)]*, no videos\)") as raised:
        store.resolve("")
    assert str(raised.value).count("no videos") == 1


def test_failures_are_kept_until_the_video_succeeds(store: FeatureStore) -> None:
    store.record_failure(SPEC.name, "v", "empty file")
    store.record_failure(SPEC.name, "v", "still empty")
    assert store.failures(SPEC.name) == {"v": "still empty"}
    with pytest.raises(StoreError, match="still empty"):
        store.read(SPEC.name, "v")
    assert store.feature_sets() == [SPEC.name]
    store.write(SPEC.name, "v", features(), source())
    assert store.failures(SPEC.name) == {}
    store.clear_failure(SPEC.name, "v")
    assert store.failures(SPEC.name) == {}


def test_opening_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureStore(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="choose another path"):
        FeatureStore(tmp_path, create=True)
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="not a feature store of format"):
        FeatureStore(tmp_path / "foreign.zarr", create=True)


def _write_many(path: Path, seed: int, start: float) -> None:
    opened = FeatureStore(path, create=True)
    name = opened.create_feature_set(SPEC)
    time.sleep(max(0.0, start - time.time()))
    for i in range(25):
        opened.write(name, f"v{i}", features(seed=i), source())
        opened.write(name, f"own{seed}-{i}", features(seed=i), source())


def test_processes_write_one_store_without_locks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "store.zarr"
    FeatureStore(path, create=True)
    start = time.time() + 2
    writers = [context.Process(target=_write_many, args=(path, seed, start)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    opened = FeatureStore(path)
    assert len(opened.video_ids(SPEC.name)) == 25 + 3 * 25
    assert all(damage is None for damage in opened.verify(SPEC.name))
    for i in range(25):
        np.testing.assert_array_equal(opened.read(SPEC.name, f"v{i}").features, features(seed=i))


def test_spec_name_is_stable() -> None:
    assert SPEC.name == "net-rgb-" + SPEC.name[-10:]
    assert FeatureSpec.from_dict(SPEC.to_dict()) == SPEC
    assert FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=6, fps=5.0).name != SPEC.name


def test_sparse_clips_of_older_versions_are_another_set_and_are_not_read() -> None:
    spec = dataclasses.replace(SPEC, clips=ClipSpec(sampling="sparse", num_clips=4))
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    of_old = {**dataclasses.asdict(spec), "clips": dataclasses.asdict(spec.clips)}
    del of_old["reduction"]
    assert spec_hash(of_old) not in spec.name
    with pytest.raises(ValueError, match="of an older version, which rounded their places: extract it again"):
        FeatureSpec.from_dict(of_old)
    assert spec_hash(SPEC.to_dict()) in SPEC.name
