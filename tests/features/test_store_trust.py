"""What comes from elsewhere: nothing but our own metadata is opened, and no number passes that its checksum does not fit."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numcodecs.zstd
import numpy as np
import pytest
import zarr
from feature_sets import feature_store
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from safetensors.numpy import save_file
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.core.errors import HarError, StoreError
from har_pipeline.core.records import FeatureSpec, VideoSource
from har_pipeline.features import nodes as nodes_module
from har_pipeline.features import store as store_module
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.set_names import spec_hash
from har_pipeline.features.store import FeatureStore

SPEC = FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=6)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    opened = FeatureStore(tmp_path / "store.zarr", create=True)
    opened.create_feature_set(SPEC)
    source = VideoSource(clip_starts=np.arange(5), clip_ends=np.arange(5) + 1, num_frames=5, fps=25.0)
    for video_id in ("v", "w"):
        opened.write(SPEC.name, video_id, np.arange(30).reshape(5, 6).astype(np.float16), source)
    opened.write_fit(SPEC.name, {"mean": np.arange(4.0), "components": np.ones((2, 4), np.float32)}, {"dim": 2})
    opened.record_failure(SPEC.name, "x", "broken", {"name": "x.avi"})
    return opened


def change(node: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((node / "zarr.json").read_text())
    edit(values)
    (node / "zarr.json").write_text(json.dumps(values))


def set_key(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update({key: value})


def set_attribute(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["attributes"].update({key: value})


def codec(*codecs: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
    return set_key("codecs", list(codecs))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "pickle": codec({"name": "numcodecs.pickle", "configuration": {"protocol": 5}}),
    "vlen": codec({"name": "vlen-utf8"}, ZSTD),
    "other compressor": codec(BYTES, {"name": "blosc", "configuration": {}}),
    "a codec more": codec(BYTES, {"name": "numcodecs.delta", "configuration": {"dtype": "<f2"}}, ZSTD),
    "sharding": codec({"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 6], "codecs": [BYTES]}}),
    "no checksum": codec(BYTES, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}),
    "codec is text": codec(BYTES, "zstd"),  # type: ignore[arg-type]
    "no codecs": codec(),
    "codec setting": codec(BYTES, {"name": "zstd", "configuration": 1}),
    "big endian": codec({"name": "bytes", "configuration": {"endian": "big"}}, ZSTD),
    "transformer": set_key("storage_transformers", [{"name": "remote", "configuration": {}}]),
    "object dtype": set_key("data_type", "object"),
    "dtype of an extension": set_key("data_type", {"name": "variable_length_utf8", "configuration": {}}),
    "other dtype": set_key("data_type", "float64"),
    "negative shape": set_key("shape", [-5, 6]),
    "huge shape": set_key("shape", [10**15, 6]),
    "shape is text": set_key("shape", "56"),
    "flat": set_key("shape", [30]),
    "other grid": set_key("chunk_grid", {"name": "rectangular", "configuration": {"chunk_shape": [5, 6]}}),
    "huge chunks": set_key("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**12, 6]}}),
    "no chunks": set_key("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 6]}}),
    "grid is none": set_key("chunk_grid", None),
    "keys elsewhere": set_key("chunk_key_encoding", {"name": "default", "configuration": {"separator": "../"}}),
    "fill value": set_key("fill_value", 1.0),
    "unknown key": set_key("plug_in", {"name": "x", "must_understand": False}),
    "Zarr v2": set_key("zarr_format", 2),
    "a group": set_key("node_type", "group"),
}


@pytest.fixture(autouse=True)
def nothing_is_opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded, where a test says so."""
    if "hostile" in request.fixturenames:
        monkeypatch.setattr(store_module, "array_of", lambda *_: pytest.fail("opened"))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_array_that_we_did_not_write_is_never_opened(store: FeatureStore, hostile: str) -> None:
    change(store.path / SPEC.name / "v", HOSTILE[hostile])
    for check in (False, True):
        with pytest.raises(StoreError, match=r"v: damaged \(") as raised:
            store.read(SPEC.name, "v", check=check)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("hostile", sorted(HOSTILE.keys() - {"other dtype", "flat"}))
def test_nor_one_of_a_reduction(store: FeatureStore, hostile: str) -> None:
    for name in ("components", "mean"):
        change(store.path / "_reduction" / SPEC.name / name, HOSTILE[hostile])
    with pytest.raises(StoreError, match=r"damaged \("):
        store.read_fit(SPEC.name)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.close, (os.open(self.path, os.O_CREAT | os.O_WRONLY),))


def zarr_v2(node: Path, **more: Any) -> None:
    node.mkdir(exist_ok=True)
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None}
    array |= {"order": "C", "filters": [{"id": "pickle", "protocol": 5}], **more}
    (node / ".zarray").write_text(json.dumps(array))
    (node / "0").write_bytes(pickle.dumps(1))
    (node / ".zattrs").write_text(json.dumps({"complete": True, "har_pipeline_store": 1, "spec": SPEC.to_dict()}))


@pytest.mark.parametrize("door", ["store", "set", "video", "failure", "reduction", "array of a reduction"])
def test_zarr_v2_beside_a_folder_called_zarr_json_is_never_opened(
    store: FeatureStore, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    path = store.path
    node = {
        "store": path,
        "set": path / SPEC.name,
        "video": path / SPEC.name / "v",
        "failure": path / "_failures" / SPEC.name / "x",
        "reduction": path / "_reduction" / SPEC.name,
        "array of a reduction": path / "_reduction" / SPEC.name / "mean",
    }[door]
    (node / "zarr.json").unlink()
    (node / "zarr.json").mkdir()
    zarr_v2(node)
    result = CliRunner().invoke(app, ["features", "verify", str(path)])
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, (HarError, SystemExit))
    if door == "store":
        with pytest.raises(StoreError, match="cannot be read as a Zarr v3 group"):
            FeatureStore(path)
    else:
        fresh = FeatureStore(path)
        if door == "set":
            assert fresh.feature_sets() == []
        elif door == "failure":
            assert "damaged" in fresh.failures(SPEC.name)["x"]
        elif door == "video":
            with pytest.raises(StoreError, match="damaged"):
                fresh.read(SPEC.name, "v")
        else:
            with pytest.raises(StoreError):
                fresh.read_fit(SPEC.name)


def test_zarr_v2_beside_a_sound_array_is_not_looked_at(store: FeatureStore) -> None:
    zarr_v2(store.path / SPEC.name / "v")
    assert store.read(SPEC.name, "v", check=True).features.shape == (5, 6)


@given(data=st.data())
def test_any_change_of_the_metadata_ends_in_one_line_or_in_the_same_numbers(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    opened, name = feature_store(folder / "s.zarr", {"v": np.arange(12, dtype=np.float16).reshape(3, 4)})
    good = opened.read(name, "v")
    node = data.draw(st.sampled_from([opened.path, opened.path / name, opened.path / name / "v"])) / "zarr.json"
    content = bytearray(node.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(max_size=6) | st.sampled_from([b"1e999", b"[[[[", b"null", b"9" * 30, b'"', b"-1"]))
        content[place : place + data.draw(st.integers(0, 6))] = piece
    node.write_bytes(content)
    try:
        record = FeatureStore(opened.path).read(name, "v", check=True)
    except StoreError:
        return
    for field in ("features", "clip_starts", "clip_ends", "clip_times_s"):
        np.testing.assert_array_equal(getattr(record, field), getattr(good, field))
    assert (record.fps, record.num_frames, record.padded) == (good.fps, good.num_frames, good.padded)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_starts", [1, 1, 2, 3, 4]),
        ("clip_ends", [1, 2, 3, 4, 6]),
        ("fps", 30.0),
        ("num_frames", 6),
        ("padded", True),
        ("clip_times_s", [[0, 1]] * 5),
        ("source_checksum", "sha256:0"),
    ],
)
def test_an_edit_of_what_numbers_depend_on_is_found(store: FeatureStore, key: str, value: object) -> None:
    change(store.path / SPEC.name / "v", set_attribute(key, value))
    with pytest.raises(StoreError, match=r"v: damaged \(its clips, times or frame rate differ from their checksum\)"):
        store.read(SPEC.name, "v")
    assert [d.video_id for d in store.verify(SPEC.name) if d] == ["v"]


@pytest.mark.parametrize("key", ["clip_starts", "fps", "complete", "num_clips", "checksum", "padded"])
def test_a_commit_that_lacks_something_costs_its_video_only(store: FeatureStore, key: str) -> None:
    change(store.path / SPEC.name / "v", lambda values: values["attributes"].pop(key))
    with pytest.raises(StoreError, match="v: damaged"):
        store.read(SPEC.name, "v")
    assert list(store.files(SPEC.name)) == list(store.checksums(SPEC.name)) == ["w"]
    with pytest.raises(StoreError, match="v: damaged"):
        store.num_clips(SPEC.name)


def test_stores_of_older_versions_stay_readable(store: FeatureStore) -> None:
    for key in ("source_checksum", "clip_times_s", "file"):
        change(store.path / SPEC.name / "v", lambda values, key=key: values["attributes"].pop(key, None))
        record = store.read(SPEC.name, "v", check=True)
        np.testing.assert_array_equal(record.clip_times_s, np.stack([np.arange(5), np.arange(5) + 1], axis=1) / 25.0)


def test_times_are_kept_as_they_were_given(tmp_path: Path, store: FeatureStore) -> None:
    """A variable frame rate: times are not starts over fps. They survive the store, a pack, and the pack's file."""
    times = np.array([[0.1, 0.30000000000000004], [0.7, 1.0]])
    source = VideoSource(
        clip_starts=np.arange(2), clip_ends=np.arange(2) + 1, num_frames=2, fps=7.0, clip_times_s=times
    )
    store.write(SPEC.name, "varied", np.ones((2, 6), np.float16), source)
    assert store.read(SPEC.name, "varied").clip_times_s.tobytes() == times.tobytes()
    pack_features(store, SPEC.name, tmp_path / "p.pack")
    packed = PackedStore(tmp_path / "p.pack")
    assert packed.read(SPEC.name, "varied").clip_times_s.tobytes() == times.tobytes()
    wrong = VideoSource(clip_starts=np.arange(2), clip_ends=np.arange(2), num_frames=2, fps=7.0)
    with pytest.raises(StoreError, match="2 clips are described, not 3"):
        store.write(SPEC.name, "other", np.ones((3, 6), np.float16), wrong)


def test_a_spec_that_its_name_was_not_made_from_is_refused(store: FeatureStore, caplog) -> None:
    change(store.path / SPEC.name, lambda values: values["attributes"]["spec"].update(layer="other"))
    fresh = FeatureStore(store.path)
    found = r"not the one that its name was made from \(the spec's hash is [0-9a-f]{10}, not " + SPEC.name[-10:]
    for opened in (fresh.spec, fresh.video_ids, fresh.checksums):
        with pytest.raises(StoreError, match=found):
            opened(SPEC.name)
    with pytest.raises(StoreError, match=found):
        fresh.read(SPEC.name, "v")
    assert list(fresh.damaged_sets()) == [SPEC.name]
    result = CliRunner().invoke(app, ["features", "verify", str(store.path), "--delete", "--json"])
    assert result.exit_code == 1
    assert [row["feature_set"] for row in json.loads(result.stdout)["unreadable"]] == [SPEC.name]
    assert (store.path / SPEC.name / "v" / "zarr.json").exists()


def newer_set(store: FeatureStore) -> str:
    """Write the group of a feature set as a later version may, with one more field in its spec."""
    values = {**SPEC.to_dict(), "colour": "linear"}
    name = f"net-rgb-{spec_hash(values)}"
    zarr.create_group(store.path / name, attributes={"spec": values})
    return name


def test_other_groups_are_named_and_passed_over(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    newer = newer_set(store)
    zarr.create_group(store.path / "results", attributes={"author": "someone"})
    zarr.create_array(store.path / "array", shape=(3,), dtype="f4")
    (store.path / "notes").mkdir()
    (store.path / "notes.txt").touch()
    fresh = FeatureStore(store.path)
    with caplog.at_level(logging.WARNING):
        assert fresh.feature_sets() == [SPEC.name]
        assert fresh.resolve("") == fresh.resolve("net") == SPEC.name
        assert fresh.damaged_sets() == {}
    told = " ".join(record.getMessage() for record in caplog.records)
    for name in (newer, "results", "array", "notes"):
        assert len(re.findall(rf"passed over: {re.escape(str(store.path / name))}:", told)) == 1
    assert "of another version" in told
    for command in ("list", "show", "verify"):
        result = CliRunner().invoke(app, ["features", command, str(store.path)])
        assert result.exit_code == 0, (result.output, result.exception)
        assert SPEC.name in result.stdout or command == "verify"
    with pytest.raises(StoreError, match="another version"):
        fresh.spec(newer)


def folding(opened: FeatureStore, folder: Path, name: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `other` another spelling of `name` for the file system, as macOS and Windows do."""
    (folder / other).symlink_to(folder / name, target_is_directory=True)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [found for found in listdir(path) if found != other])


def test_a_folder_that_is_spelled_otherwise_is_refused(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that folds letter case, video V would get the features of v."""
    folding(store, store.path / SPEC.name, "v", "V", monkeypatch)
    says = r"has 'v', and this file system takes 'V' for the same name"
    for call in (
        lambda: store.read(SPEC.name, "V"),
        lambda: store.delete(SPEC.name, "V"),
        lambda: store.writer(SPEC.name, "V", 5),
    ):
        with pytest.raises(StoreError, match=says):
            call()
    assert store.read(SPEC.name, "v", check=True).video_id == "v"
    assert (store.path / SPEC.name / "v").is_dir()


def test_nor_does_a_commit_pass_for_that_of_another_spelling(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.writer(SPEC.name, "V", 5)
    writer.append(np.zeros((5, 6), np.float16))
    folding(store, store.path / SPEC.name, "v", "V", monkeypatch)
    source = VideoSource(clip_starts=np.arange(5), clip_ends=np.arange(5) + 1, num_frames=5, fps=25.0)
    with pytest.raises(StoreError, match=r"'v'.*'V'"):
        writer.commit(source)


def test_nor_does_any_name_that_the_file_system_takes_for_another(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its rule is: Windows, for one, drops a dot at the end."""
    folding(store, store.path / SPEC.name, "v", "v.", monkeypatch)
    with pytest.raises(StoreError, match=r"this file system takes 'v\.' for the same name"):
        store.read(SPEC.name, "v.")


def test_nor_a_failure_or_a_feature_set(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folding(store, store.path / "_failures" / SPEC.name, "x", "X", monkeypatch)
    with pytest.raises(StoreError, match=r"'x'.*'X'"):
        store.record_failure(SPEC.name, "X", "other")
    store.clear_failure(SPEC.name, "X")
    assert store.failures(SPEC.name) == {"x": "broken"}
    other = SPEC.name.replace("net", "NET")
    folding(store, store.path, SPEC.name, other, monkeypatch)
    with pytest.raises(StoreError, match=f"'{SPEC.name}'.*'{other}'"):
        FeatureStore(store.path).spec(other)


@pytest.mark.parametrize("name", ["../store.zarr", "a/b", "..", ""])
def test_a_name_that_leads_elsewhere_is_no_name(store: FeatureStore, name: str) -> None:
    with pytest.raises(StoreError):
        store.read(SPEC.name, name)
    with pytest.raises(StoreError):
        store.spec(name)
    if name:
        with pytest.raises(StoreError):
            store.delete(SPEC.name, name)


@pytest.mark.parametrize("extractor", ["_failures", ".hidden", "a/b"])
def test_no_feature_set_takes_a_name_of_the_stores_own(store: FeatureStore, extractor: str) -> None:
    with pytest.raises(StoreError, match="no name of a feature set"):
        store.create_feature_set(FeatureSpec(extractor=extractor, weights="random:0", layer="pool", feature_dim=6))


def test_a_fifo_in_the_place_of_a_chunk_is_not_waited_for(store: FeatureStore) -> None:
    chunk = next(p for p in (store.path / SPEC.name / "v").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(StoreError, match="is no file"):
        store.read(SPEC.name, "v")


@pytest.mark.parametrize("num_bytes", [1, 255, 256, 257, 65791, 65792, 2**20])
def test_what_a_chunk_says_of_its_size_is_read_as_the_decoder_does(num_bytes: int) -> None:
    encoded = numcodecs.zstd.compress(b"x" * num_bytes, 1, True)
    assert nodes_module._zstd_size(bytes(encoded)[:18]) == num_bytes


@pytest.mark.parametrize("more", [b"x", numcodecs.zstd.compress(bytes(60), 1, True)])
def test_what_follows_in_a_chunk_is_damage(store: FeatureStore, more: bytes) -> None:
    chunk = store.path / SPEC.name / "v" / "c.0.0"
    chunk.write_bytes(chunk.read_bytes() + more)
    with pytest.raises(StoreError, match=r"v: damaged \(c\.0\.0"):
        store.read(SPEC.name, "v")


def test_a_chunk_that_would_take_more_memory_is_not_decoded(store: FeatureStore) -> None:
    """4 GB of zeros in a few kB, as the chunk of a video of 60 bytes."""
    chunk = next(p for p in (store.path / SPEC.name / "v").rglob("*") if p.is_file() and p.name != "zarr.json")
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (128 * 1024 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    size = (2**32).to_bytes(8, "little")
    chunk.write_bytes(b"\x28\xb5\x2f\xfd\xe0" + size + block * (2**15 - 1) + last)
    with pytest.raises(StoreError, match="is not of the chunks' size"):
        store.read(SPEC.name, "v")


def lying_pack(tmp_path: Path, entry: Mapping[str, Any]) -> Path:
    """Write a pack whose one tensor's header says `entry`."""
    path = tmp_path / "p.pack"
    path.mkdir()
    (path / "pack.json").write_text('{"har_pipeline_pack": 3}')
    header = json.dumps({"features": entry, "__metadata__": {"har_pipeline_pack": "{}", "sha256": "0"}}).encode()
    (path / "set.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return path


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F32", "shape": [10**12], "data_offsets": [0, 16]}, "does not fit"),
        ({"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}, "does not fit"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 16]}, "shape"),
        ({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}, "shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "does not fit"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}, "shape"),
        ({"dtype": "O", "shape": [4], "data_offsets": [0, 16]}, "KeyError"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "bytes of tensors"),
    ],
)
def test_a_packs_header_that_lies_is_refused_before_anything_is_taken(
    tmp_path: Path, entry: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(StoreError, match=rf"set\.safetensors: damaged \(.*{says}"):
        PackedStore(lying_pack(tmp_path, entry)).spec("set")


def test_a_packs_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = lying_pack(tmp_path, {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})
    file = path / "set.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(StoreError, match="a header of"):
        PackedStore(path).spec("set")
    save_file({"a": np.zeros(3)}, file)
    with pytest.raises(StoreError, match="damaged"):
        PackedStore(path).spec("set")


def test_nothing_in_the_package_unpickles_what_it_reads() -> None:
    """torch.load with weights_only, np.load without pickles, and no other door."""
    found = []
    for path in sorted((ROOT / "har_pipeline").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT)
        found += [(where, m) for m in re.findall(r"allow_pickle\s*=\s*True|joblib\.load|shelve|dill|cloudpickle", text)]
        found += [(where, m) for m in re.findall(r"(?:c?[pP]ickle)\.(?:loads?|Unpickler)", text)]
        for call in re.finditer(r"\b(torch\.load|np\.load|numpy\.load)\(", text):
            rest = text[call.start() : call.start() + 400].split("\n\n")[0]
            wanted = "weights_only=True" if call[1] == "torch.load" else "allow_pickle=False"
            if wanted not in rest:
                found.append((where, call[0]))
    assert found == []
