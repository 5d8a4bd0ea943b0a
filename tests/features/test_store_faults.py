"""Disks that fail, processes that are killed or meet, records that are damaged: what is done is kept, and told in a line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from feature_sets import blobs, feature_store, split_of
from paths import python_path
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.core import files as files_module
from har_pipeline.core.errors import StoreError
from har_pipeline.core.records import FeatureSpec, VideoSource
from har_pipeline.features import pack as pack_module
from har_pipeline.features import store as store_module
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore, UnreadableError

SPEC = FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=6)


KEPT = "what is done is kept: mend that, then run the same command again"


def write(store: FeatureStore, video_id: str, rows: int = 5) -> bool:
    source = VideoSource(clip_starts=np.arange(rows), clip_ends=np.arange(rows) + 1, num_frames=rows, fps=25.0)
    return store.write(SPEC.name, video_id, np.ones((rows, 6), np.float16), source)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    opened = FeatureStore(tmp_path / "store.zarr", create=True)
    opened.create_feature_set(SPEC)
    return opened


def verify(store: FeatureStore, *options: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    result = CliRunner().invoke(app, ["features", "verify", str(store.path), "--json", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


# Processes


def _fail_many(path: Path, start: float, rounds: int) -> None:
    opened = FeatureStore(path)
    time.sleep(max(0.0, start - time.time()))
    for number in range(rounds):
        opened.record_failure(SPEC.name, f"v{number}", "no video stream")
        if number % 3 == 0:
            opened.clear_failure(SPEC.name, f"v{number}")
            opened.record_failure(SPEC.name, f"v{number}", "no video stream")


def test_processes_that_meet_the_same_broken_videos_record_each_once(store: FeatureStore) -> None:
    context = multiprocessing.get_context("spawn")
    start = time.time() + 3
    processes = [context.Process(target=_fail_many, args=(store.path, start, 60)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    # One that was cleared by another process in the meantime is in order.
    assert set(store.failures(SPEC.name).values()) == {"no video stream"}
    assert {f"v{n}" for n in range(60) if n % 3} <= store.failures(SPEC.name).keys()
    assert not list(store.path.rglob("*partial*"))


def test_a_failure_is_recorded_though_another_process_clears_it_meanwhile(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, raised = Path.mkdir, []

    def cleared_between_its_looks(node: Path, *args: Any, **options: Any) -> None:
        if node.name == "v0" and len(raised) < 2:
            raised.append(node)
            raise FileExistsError(errno.EEXIST, "File exists", str(node))
        mkdir(node, *args, **options)

    monkeypatch.setattr(Path, "mkdir", cleared_between_its_looks)
    store.record_failure(SPEC.name, "v0", "no video stream")
    assert len(raised) == 2
    assert store.failures(SPEC.name) == {"v0": "no video stream"}


def test_failures_are_read_by_older_versions_and_their_records_here(store: FeatureStore) -> None:
    store.record_failure(SPEC.name, "new", "empty", {"name": "a.avi"})
    node = store.path / "_failures" / SPEC.name
    assert dict(zarr.open(node / "new", mode="r").attrs)["reason"] == "empty"
    zarr.create_group(node / "old", attributes={"reason": "cut", "file": {}, "written": ""}, overwrite=True)
    assert store.failures(SPEC.name) == {"new": "empty", "old": "cut"}


@pytest.mark.parametrize(
    "left", ["nothing", "zarr.0123456789abcdef0123456789abcdef.partial", ".zarr.partial-x.json", "zarr.json"]
)
def test_a_store_whose_making_was_killed_is_made(tmp_path: Path, left: str) -> None:
    path = tmp_path / "store.zarr"
    path.mkdir()
    if left != "nothing":
        (path / left).touch()
    opened = FeatureStore(path, create=True)
    opened.create_feature_set(SPEC)
    assert write(opened, "v")


def test_a_feature_set_whose_making_was_killed_is_made(store: FeatureStore) -> None:
    write(store, "v")
    for name in (SPEC.name, "_staging", "_failures", f"_failures/{SPEC.name}"):
        (store.path / name / "zarr.json").write_text("")
    fresh = FeatureStore(store.path)
    assert fresh.create_feature_set(SPEC) == SPEC.name
    assert fresh.read(SPEC.name, "v", check=True).features.shape == (5, 6)


def test_a_folder_without_metadata_is_in_nobodys_way(store: FeatureStore) -> None:
    (store.path / SPEC.name / "v" / "c" / "0").mkdir(parents=True)
    assert store.video_ids(SPEC.name) == []
    assert write(store, "v")
    assert store.video_ids(SPEC.name) == ["v"]


def test_a_folder_without_metadata_is_told_of_and_no_damage(store: FeatureStore) -> None:
    write(store, "v")
    (store.path / SPEC.name / "rump" / "c").mkdir(parents=True)
    (store.path / SPEC.name / "mine").mkdir()
    for delete in ([], ["--delete"]):
        code, found = verify(store, *delete)
        left = [f"{SPEC.name}/mine", f"{SPEC.name}/rump"]
        assert (code, found["checked"], found["damaged"], found["leftovers"]) == (0, 1, [], left)
    text = CliRunner().invoke(app, ["features", "verify", str(store.path)])
    assert (text.exit_code, text.stdout) == (0, "1 videos checked, 0 damaged\n")
    told = f"NOTE: without zarr.json, and so no videos and not checked: {left[0]}, {left[1]} (2 in all); move away"
    assert told in text.stderr


def test_what_zarr_left_of_killed_processes_goes_with_its_age(store: FeatureStore) -> None:
    node = store.path / "_failures" / SPEC.name / "v"
    node.mkdir()
    found = [store.path / "zarr.ab.partial", store.path / SPEC.name / "zarr.cd.partial"]
    for path in found:
        path.touch()
    assert store.remove_debris() == 0
    for path in found:
        os.utime(path, (1, 1))
    assert store.remove_debris() == 2


# Damaged records


@pytest.mark.parametrize("content", ["", "{", "[]", '{"zarr_format": 3}', "\0" * 300, '{"attributes": {"file": 3}}'])
def test_a_damaged_failure_record_costs_its_video_only(store: FeatureStore, content: str) -> None:
    for video_id in ("a", "b"):
        store.record_failure(SPEC.name, video_id, "empty file", {"name": f"{video_id}.avi"})
    write(store, "v")
    (store.path / "_failures" / SPEC.name / "a" / "zarr.json").write_text(content)
    failures = store.failures(SPEC.name)
    assert failures["b"] == "empty file"
    assert "the record of its failure is damaged" in failures["a"]
    # No file is of this name, so that the video is tried again.
    assert store.failed_files(SPEC.name) == {"a": {"name": ""}, "b": {"name": "b.avi"}}
    code, found = verify(store)
    assert (code, [(row["video_id"], row["kind"]) for row in found["damaged"]]) == (1, [("a", "failure")])
    assert found["checked"] == 1
    verify(store, "--delete")
    assert store.failures(SPEC.name) == {"b": "empty file"}
    assert verify(store)[0] == 0
    store.record_failure(SPEC.name, "a", "again")
    assert store.failures(SPEC.name)["a"] == "again"


def test_verify_goes_on_after_a_damaged_record(store: FeatureStore) -> None:
    for video_id in "abcd":
        write(store, video_id)
    (store.path / SPEC.name / "b" / "zarr.json").write_text("")
    values = json.loads((store.path / SPEC.name / "c" / "zarr.json").read_text())
    values["attributes"]["clip_starts"] = ["x"] * 5
    (store.path / SPEC.name / "c" / "zarr.json").write_text(json.dumps(values))
    code, found = verify(store, "--delete")
    assert (code, found["checked"]) == (1, 4)
    assert [row["video_id"] for row in found["damaged"]] == ["b", "c"]
    assert store.video_ids(SPEC.name) == ["a", "d"]


def test_a_damaged_reduction_is_found_and_mended(tmp_path: Path) -> None:
    features, labels = blobs(("a", "b"), 6, dim=8)
    store, name = feature_store(tmp_path / "s.zarr", features)
    split = split_of([v for v in labels if v[-1] < "4"], [v for v in labels if v[-1] >= "4"])
    reduced = reduce_features(store, name, split, ReduceOptions(dim=3)).feature_set
    before = {v: store.read(reduced, v).features.tobytes() for v in store.video_ids(reduced)}
    pack_features(store, reduced, tmp_path / "p.pack")
    chunk = next(p for p in (store.path / "_reduction" / reduced / "mean").rglob("*") if p.name == "c.0")
    chunk.write_bytes(chunk.read_bytes()[:-2])
    code, found = verify(store)
    assert (code, [(r["feature_set"], r["kind"]) for r in found["damaged"]]) == (1, [(reduced, "fit")])
    verify(store, "--delete")
    # What was projected with it is gone too: a second fit must not be mixed with the first.
    assert FeatureStore(store.path).feature_sets() == [name]
    assert verify(store)[0] == 0
    again = reduce_features(FeatureStore(store.path), name, split, ReduceOptions(dim=3))
    assert (again.feature_set, again.fitted) == (reduced, True)
    assert {v: store.read(reduced, v).features.tobytes() for v in store.video_ids(reduced)} == before
    # A pack has a copy of it, which verify reads too.
    path = PackedStore(tmp_path / "p.pack").file(reduced)
    mean = store.read_fit(reduced)["mean"].tobytes()
    path.write_bytes(path.read_bytes().replace(mean, mean[:-1] + bytes([mean[-1] ^ 1])))
    result = CliRunner().invoke(app, ["features", "verify", str(tmp_path / "p.pack")])
    assert result.exit_code == 1
    assert "reduction.mean differs from its checksum" in result.stderr


def test_the_reduction_of_a_set_that_is_not_there_yet_is_read_too(store: FeatureStore) -> None:
    store.write_fit("net-rgb-pca3-0123456789", {"mean": np.ones(3)}, {})
    assert verify(store)[0] == 0
    (store.path / "_reduction/net-rgb-pca3-0123456789/mean/zarr.json").write_text("")
    assert verify(store, "--delete")[0] == 1
    assert store.fits() == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE, errno.ENOMEM])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_cannot_be_read_now_is_not_deleted(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, number: int, wrapped: bool
) -> None:
    for video_id in ("bad", "sound", "unread"):
        write(store, video_id)
    chunk = next(p for p in (store.path / SPEC.name / "bad").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    array_of = store_module.array_of

    def fail(node: Path, values: Mapping[str, object]) -> np.ndarray:
        if node.name != "unread":
            return array_of(node, values)
        error = OSError(number, os.strerror(number))
        raise ExceptionGroup("while reading", [error]) if wrapped else error

    monkeypatch.setattr(store_module, "array_of", fail)
    code, found = verify(store, "--delete")
    assert (code, [row["video_id"] for row in found["damaged"]]) == (1, ["bad"])
    assert [row["video_id"] for row in found["unreadable"]] == ["unread"]
    assert os.strerror(number) in found["unreadable"][0]["reason"]
    assert store.video_ids(SPEC.name) == ["sound", "unread"]
    text = CliRunner().invoke(app, ["features", "verify", str(store.path), "--delete"])
    assert "2 videos checked, 0 damaged, 1 unreadable (not deleted)" in text.stdout
    monkeypatch.undo()
    assert verify(store)[0] == 0


def test_metadata_that_cannot_be_read_now_is_no_damage(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "v")
    store.record_failure(SPEC.name, "w", "empty")
    opened = os.open

    def fail(path: str, *arguments: int) -> int:
        if Path(path).parent.name in ("v", "w"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(UnreadableError, match="v: cannot be read"):
        store.read(SPEC.name, "v")
    code, found = verify(store, "--delete")
    assert (code, found["damaged"], len(found["unreadable"])) == (1, [], 2)
    monkeypatch.undo()
    assert store.read(SPEC.name, "v", check=True)
    assert store.failures(SPEC.name) == {"w": "empty"}


def test_what_cannot_be_looked_at_is_neither_absent_nor_damaged(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that this user may not enter: its video is listed, not read, not deleted, not replaced."""
    write(store, "v")
    real = os.stat

    def fail(path: str | Path, **options: Any) -> os.stat_result:
        if "/v/" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", fail)
    assert FeatureStore(store.path).video_ids(SPEC.name) == ["v"]
    code, found = verify(store, "--delete")
    assert (code, found["damaged"], [row["video_id"] for row in found["unreadable"]]) == (1, [], ["v"])
    with pytest.raises(StoreError, match="cannot be written"):
        write(store, "v")
    monkeypatch.undo()
    assert store.read(SPEC.name, "v", check=True)


# Disks


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def wrapped_no_space(*_: object, **__: object) -> None:
    raise ExceptionGroup("unhandled errors", [ValueError("a codec"), OSError(errno.EROFS, "Read-only file system")])


def staged(store: FeatureStore) -> list[str]:
    return [path.name for path in (store.path / "_staging").iterdir() if path.name != "zarr.json"]


@pytest.mark.parametrize(("fail", "says"), [(no_space, "No space left"), (wrapped_no_space, "Read-only file system")])
@pytest.mark.parametrize(
    "what", ["har_pipeline.features.nodes.ArrayWriter._write_chunk", "har_pipeline.features.store.publish"]
)
def test_a_disk_that_is_full_ends_in_one_line_and_leaves_no_half_commit(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, what: str, fail: Callable[..., None], says: str
) -> None:
    write(store, "done")
    monkeypatch.setattr(what, fail)
    line = rf"^{store.path}: cannot be written \({says}[^)]*\); {KEPT}$"
    with pytest.raises(StoreError, match=line):
        write(store, "v")
    with pytest.raises(StoreError, match=line):
        store.write_fit("r", {"mean": np.ones(3)}, {})
    monkeypatch.undo()
    assert staged(store) == []
    assert store.video_ids(SPEC.name) == ["done"]
    assert store.fit_attributes("r") is None
    assert write(store, "v")
    assert verify(store)[0] == 0


@pytest.mark.parametrize("fail", [no_space, wrapped_no_space])
def test_nor_a_failure_a_deletion_or_a_new_set(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None]
) -> None:
    write(store, "done")
    monkeypatch.setattr(files_module, "write_text", fail)
    monkeypatch.setattr(Path, "rename", fail)
    for call in (
        lambda: store.record_failure(SPEC.name, "v", "empty"),
        lambda: store.delete(SPEC.name, "done"),
        lambda: FeatureStore(store.path.with_name("new.zarr"), create=True),
        lambda: store.create_feature_set(
            FeatureSpec(extractor="other", weights="random:0", layer="pool", feature_dim=6)
        ),
    ):
        with pytest.raises(StoreError, match="cannot be written"):
            call()
    monkeypatch.undo()
    assert store.failures(SPEC.name) == {}
    assert store.video_ids(SPEC.name) == ["done"]


def test_a_real_limit_of_the_file_size(tmp_path: Path, store: FeatureStore) -> None:
    """The system itself refuses: files of this process end at 20 kB."""
    code = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from har_pipeline.core.errors import errors_as_lines\n"
        "from har_pipeline.core.records import VideoSource\n"
        "from har_pipeline.features.store import FeatureStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store, rows = FeatureStore(sys.argv[1]), 20000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "noise = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float16)\n"
        "source = VideoSource(clip_starts=np.arange(rows), clip_ends=np.arange(rows), num_frames=rows, fps=25.0)\n"
        "with errors_as_lines():\n"
        "    store.write(sys.argv[2], 'v', noise, source)\n"
    )
    write(store, "done")
    command = [sys.executable, "-c", code, str(store.path), SPEC.name]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=python_path())
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {store.path}: cannot be written (File too large); {KEPT}"]
    assert staged(store) == []
    assert store.video_ids(SPEC.name) == ["done"]


def test_a_store_that_vanishes_is_named_and_not_made_anew(store: FeatureStore) -> None:
    writer = store.writer(SPEC.name, "v", 5)
    write(store, "done")
    shutil.rmtree(store.path)
    for call in (
        lambda: store.writer(SPEC.name, "w", 5),
        lambda: store.record_failure(SPEC.name, "w", "empty"),
        lambda: store.write_fit("r", {"mean": np.ones(3)}, {}),
        lambda: store.delete(SPEC.name, "done") or store.read(SPEC.name, "done"),
        lambda: store.video_ids(SPEC.name),
    ):
        with pytest.raises(StoreError, match=rf"{store.path}"):
            call()
        assert not store.path.exists()
    with pytest.raises(StoreError, match="cannot be written"):
        writer.append(np.ones((5, 6), np.float16))
    assert not (store.path / SPEC.name).exists()


@pytest.mark.parametrize("fail", [no_space, wrapped_no_space])
def test_a_pack_on_a_full_disk_ends_in_one_line(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None]
) -> None:
    write(store, "v")
    monkeypatch.setattr(pack_module, "_write_set", fail)
    with pytest.raises(StoreError, match=r"p\.pack: cannot be written \(.*\); choose another place with -o"):
        pack_features(store, SPEC.name, tmp_path / "p.pack")
    monkeypatch.undo()
    assert pack_features(store, SPEC.name, tmp_path / "p.pack").written


# Packs of other versions


def test_a_pack_of_an_older_format_is_replaced(
    store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, "v")
    path = tmp_path / "store.pack"
    path.mkdir()
    (path / "pack.json").write_text('{"har_pipeline_pack": 1}')
    (path / "other-rgb-0123456789.safetensors").write_bytes(b"as it was")
    result = CliRunner().invoke(app, ["features", "pack", str(store.path)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "a pack of format 1, which this version does not read, is replaced" in caplog.text
    assert PackedStore(path).feature_sets() == [SPEC.name]
    assert PackedStore(path).read(SPEC.name, "v").features.shape == (5, 6)


@pytest.mark.parametrize("content", ['{"har_pipeline_pack": 99}', '{"har_pipeline_pack": "x"}'])
def test_a_pack_of_a_newer_format_stays(store: FeatureStore, tmp_path: Path, content: str) -> None:
    write(store, "v")
    (tmp_path / "pack.json").write_text(content)
    with pytest.raises(StoreError, match="of a newer version: choose another path"):
        pack_features(store, SPEC.name, tmp_path)
    assert (tmp_path / "pack.json").read_text() == content


def test_a_pack_of_the_last_format_is_read_and_its_times_are_starts_over_fps(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, "v")
    header, tensors = pack_module._header, pack_module._tensors

    def without_times(info: dict, given: dict, size: int = 0) -> bytes:
        info["sha256"].pop("clip_times_s", None)
        return header(info, {name: array for name, array in given.items() if name != "clip_times_s"}, size)

    path = tmp_path / "p.pack"
    pack_features(store, SPEC.name, path)
    file = PackedStore(path).file(SPEC.name)
    content = file.read_bytes()
    body_start = 8 + int.from_bytes(content[:8], "little")
    values = json.loads(content[8:body_start])
    metadata = values.pop("__metadata__")
    given = tensors(values, np.frombuffer(content[body_start:], np.uint8))
    head = without_times(json.loads(metadata["har_pipeline_pack"]), given)
    file.write_bytes(head + b"".join(array.tobytes() for name, array in given.items() if name != "clip_times_s"))
    (path / "pack.json").write_text('{"har_pipeline_pack": 2}')
    old = PackedStore(path).read(SPEC.name, "v")
    assert old.clip_times_s.tobytes() == store.read(SPEC.name, "v").clip_times_s.tobytes()
    assert not pack_features(store, SPEC.name, path).written
    write(store, "w")
    assert pack_features(store, SPEC.name, path).written
    assert json.loads((path / "pack.json").read_text()) == {"har_pipeline_pack": 3}


def test_a_pack_whose_marker_a_power_cut_emptied_is_made_again(store: FeatureStore, tmp_path: Path) -> None:
    write(store, "v")
    path = tmp_path / "p.pack"
    pack_features(store, SPEC.name, path)
    (path / "pack.json").write_text("")
    assert not pack_features(store, SPEC.name, path).written
    assert PackedStore(path).read(SPEC.name, "v")


def test_a_full_store_whose_own_metadata_are_lost_is_mended(store: FeatureStore) -> None:
    assert write(store, "v0")
    for content in (b"", None):
        meta = store.path / "zarr.json"
        meta.unlink() if content is None else meta.write_bytes(content)
        again = FeatureStore(store.path, create=True)
        assert again.video_ids(again.feature_sets()[0]) == ["v0"]


def test_features_in_the_folder_of_another_video_are_damage(store: FeatureStore) -> None:
    assert write(store, "v0")
    assert write(store, "v1")
    name = store.feature_sets()[0]
    folder = store.path / name
    (folder / "v0").rename(folder / "x")
    (folder / "v1").rename(folder / "v0")
    (folder / "x").rename(folder / "v1")
    found = [one for one in FeatureStore(store.path).verify(name) if one]
    assert [one.video_id for one in found] == ["v0", "v1"]
    assert "these are the features of 'v1'" in found[0].reason
