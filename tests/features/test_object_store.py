"""Stores in object storage: the same files as in a folder; a video is there whole or not at all, whoever writes it."""

from __future__ import annotations

import json
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from object_storage import SPEC, in_memory, keys, new_store, rows, source
from obstore.store import LocalStore
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.core import objects
from har_pipeline.core.errors import FeatureMismatchError, StoreError, UsageError
from har_pipeline.core.objects import ObjectPath, store_path
from har_pipeline.core.records import FeatureSpec
from har_pipeline.features import leftovers as leftovers_module
from har_pipeline.features.leftovers import leftovers, remove_leftovers
from har_pipeline.features.pack import PackedStore, open_features, pack_features
from har_pipeline.features.store import FeatureStore, UnreadableError

NAME = SPEC.name


@pytest.fixture
def store() -> FeatureStore:
    return new_store(in_memory())


def test_an_address_is_a_path_or_in_object_storage(tmp_path: Path) -> None:
    assert store_path("s3://bucket/a/store.zarr/") == ObjectPath("s3://bucket/a/store.zarr")
    assert store_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert store_path("C:\\store.zarr") == Path("C:\\store.zarr")
    assert store_path(tmp_path) is tmp_path
    address = store_path("gs://bucket/a/store.zarr")
    assert (str(address / "x" / "y"), (address / "x" / "y").name) == ("gs://bucket/a/store.zarr/x/y", "y")
    assert (str((address / "x").parent), str(address.with_name("p"))) == (str(address), "gs://bucket/a/p")
    for wrong in ("ftp://host/x", "s3://", "s3:///", "http://host/x"):
        with pytest.raises(UsageError, match="no address of a store"):
            store_path(wrong)


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.exceptions", "obstore.store"):
        monkeypatch.setitem(sys.modules, name, None)
    path = store_path("s3://never-asked/store.zarr")
    assert isinstance(path, ObjectPath)
    for ask in (
        lambda: FeatureStore("s3://never-asked/store.zarr"),
        lambda: open_features("s3://never-asked/store.zarr"),
        path.stat,
        path.is_dir,
        path.read_bytes,
        path.tag,
        path.unlink,
        lambda: list(path.iterdir()),
        lambda: path.put(b""),
        lambda: path.download(Path("never-made")),
    ):
        with pytest.raises(StoreError, match=r"pip install 'har-pipeline\[cloud\]'"):
            ask()
    assert not Path("never-made").exists()


@pytest.mark.parametrize("endpoint", ["", "localhost:9000", "http://", "http://a b", "http://[::1", "ftp://host"])
def test_an_endpoint_that_is_no_address(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(
        StoreError, match=rf"AWS_ENDPOINT_URL is '{re.escape(endpoint)}', not an address such as http://"
    ):
        open_features("s3://never-asked/store.zarr")


@pytest.mark.parametrize(
    "endpoint",
    ["http://localhost:9000", "https://a.b-c.example/", "http://[::1]:9000", "http://h/below", "http://my_host:1"],
)
def test_an_endpoint_that_is_one(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    objects._client("s3://never-asked-either/store.zarr")
    objects._client.cache_clear()


def fill(store: FeatureStore) -> None:
    """Write what a store can hold."""
    for number, video_id in enumerate(("a", "b", "long")):
        store.write(NAME, video_id, rows(4 + number, seed=number), source(4 + number))
    store.record_failure(NAME, "broken", "no video stream", {"name": "b.avi"})
    store.record_failure(NAME, "mended", "empty")
    store.clear_failure(NAME, "mended")
    store.write_fit(NAME, {"mean": np.arange(4.0), "part": np.eye(3, dtype=np.float32)}, {"dim": 2})
    store.give_name(NAME, "first")
    store.give_name(NAME, "whole")


@pytest.fixture(params=["memory", "obstore's local store"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    address = in_memory()
    if request.param != "memory":
        client = LocalStore(tmp_path / "objects", mkdir=True)
        monkeypatch.setattr(objects, "_client", lambda root: client)
    return new_store(address)


def test_a_store_in_object_storage_is_read_as_one_in_a_folder(remote: FeatureStore, tmp_path: Path) -> None:
    local = new_store(tmp_path / "store.zarr")
    fill(local)
    fill(remote)
    for opened in (local, FeatureStore(str(remote.path))):
        assert opened.feature_sets() == [NAME]
        assert opened.video_ids(NAME) == ["a", "b", "long"]
        assert opened.failures(NAME) == {"broken": "no video stream"}
        assert opened.failed_files(NAME) == {"broken": {"name": "b.avi"}}
        assert (opened.names(), opened.resolve("whole"), opened.fits()) == ({"whole": NAME}, NAME, [NAME])
        assert opened.checksums(NAME) == local.checksums(NAME)
        assert opened.num_clips(NAME) == {"a": 4, "b": 5, "long": 6}
        assert list(opened.verify(NAME)) == [None] * 3
        np.testing.assert_array_equal(opened.read_fit(NAME)["mean"], np.arange(4.0))
        for number, video_id in enumerate(("a", "b", "long")):
            np.testing.assert_array_equal(opened.read(NAME, video_id).features, rows(4 + number, seed=number))
    with pytest.raises(StoreError, match="has no features of 'broken'; its extraction failed: no video stream"):
        remote.read(NAME, "broken")
    assert remote.read_fit(NAME).keys() == {"mean", "part"}


def test_both_have_the_same_files(tmp_path: Path, store: FeatureStore) -> None:
    """What copies the one is the other; only times of writing differ."""
    local = new_store(tmp_path / "store.zarr")
    fill(local)
    fill(store)
    there = keys(str(store.path))
    here = {str(path.relative_to(local.path)): path.read_bytes() for path in local.path.rglob("*") if path.is_file()}
    assert here.keys() == there.keys()
    for key, content in there.items():
        if key.endswith("zarr.json"):
            one, other = json.loads(content), json.loads(here[key])
            for values in (one, other):
                values["attributes"].pop("written", None)
            assert one == other
        else:
            assert content == here[key]
    client = objects._client(address := in_memory())
    for key, content in here.items():
        obstore.put(client, key, content)
    assert list(FeatureStore(address).verify(NAME)) == [None] * 3
    for key, content in there.items():
        path = tmp_path / "copy.zarr" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    copy = FeatureStore(tmp_path / "copy.zarr", create=True)
    assert list(copy.verify(NAME)) == [None] * 3
    assert copy.create_feature_set(SPEC) == NAME


def test_any_zarr_client_reads_it(store: FeatureStore) -> None:
    fill(store)
    opened = zarr.open_group(zarr.storage.ObjectStore(objects._client(str(store.path)), read_only=True), mode="r")
    np.testing.assert_array_equal(np.asarray(opened[f"{NAME}/b"]), rows(5, seed=1))
    assert sorted(opened[NAME].array_keys()) == ["a", "b", "long"]


def test_what_is_not_there_or_no_store_is_told(store: FeatureStore) -> None:
    with pytest.raises(StoreError, match=r"memory://nothing/s\.zarr is not a feature store \(no zarr\.json\)"):
        FeatureStore("memory://nothing/s.zarr")
    other = in_memory()
    ObjectPath(other, "notes.txt").put(b"")
    with pytest.raises(StoreError, match="is a folder, not a feature store: choose another path"):
        FeatureStore(other, create=True)
    with pytest.raises(StoreError, match="no feature set starts with 'vgg'"):
        store.resolve("vgg")
    with pytest.raises(FeatureMismatchError):
        store.write(NAME, "v", np.zeros((3, 7), np.float16), source(3))


def test_a_second_writer_leaves_the_first_ones_features(store: FeatureStore) -> None:
    slow = store.writer(NAME, "v", 5)
    slow.append(rows(seed=1))
    assert store.write(NAME, "v", rows(seed=2), source())
    assert not slow.commit(source())
    assert store.read(NAME, "v").features.tobytes() == rows(seed=2).tobytes()
    assert store.write_fit(NAME, {"mean": np.ones(3)}, {})
    assert not store.write_fit(NAME, {"mean": np.zeros(3)}, {})
    assert store.read_fit(NAME)["mean"].tolist() == [1, 1, 1]


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], bool], error: Exception) -> list[str]:
    """Make puts of some keys fail; returns the list of those that did."""
    put, failed = obstore.put, []

    def other(client: Any, key: str, *args: Any, **options: Any) -> Any:
        if fails(key):
            failed.append(key)
            raise error
        return put(client, key, *args, **options)

    monkeypatch.setattr(obstore, "put", other)
    return failed


@pytest.mark.parametrize("which", ["c.0.0", "zarr.json"])
def test_a_put_that_fails_leaves_nothing_that_a_reader_sees(
    store: FeatureStore, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = obstore.exceptions.GenericError("Generic S3 error: error sending request")
    monkeypatch.setattr(objects, "LOOK_S", 0.0)
    failed = failing(monkeypatch, lambda key: key.endswith(f"v/{which}"), error)
    with pytest.raises(StoreError, match=r"cannot be written \(no answer: check the network.*what is done is kept"):
        store.write(NAME, "v", rows(), source())
    assert len(failed) == 1 + objects.RESENDS
    monkeypatch.undo()
    assert store.video_ids(NAME) == []
    with pytest.raises(StoreError, match="no features of 'v'"):
        store.read(NAME, "v")
    assert store.write(NAME, "v", rows(), source())
    assert list(store.verify(NAME)) == [None]


@pytest.mark.parametrize("which", ["c.0.0", "zarr.json"])
@pytest.mark.parametrize("done", [False, True])
def test_an_answer_that_is_lost_once_costs_nothing(
    store: FeatureStore, which: str, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the storage has done what it was asked or not."""
    monkeypatch.setattr(objects, "LOOK_S", 0.0)
    put, lost = obstore.put, []

    def lose(client: Any, key: str, *args: Any, **options: Any) -> Any:
        if key.endswith(f"v/{which}") and not lost:
            lost.append(put(client, key, *args, **options) if done else None)
            raise obstore.exceptions.GenericError("error sending request")
        return put(client, key, *args, **options)

    monkeypatch.setattr(obstore, "put", lose)
    assert store.write(NAME, "v", rows(), source())
    assert lost
    assert list(store.verify(NAME)) == [None]


def test_equal_features_that_a_killed_writer_left_are_taken_at_once(store: FeatureStore) -> None:
    store.write(NAME, "v", rows(), source())
    ObjectPath(str(store.path), f"{NAME}/v/zarr.json").unlink()
    assert store.video_ids(NAME) == []
    assert store.write(NAME, "v", rows(), source())
    assert list(store.verify(NAME)) == [None]


def half_video(store: FeatureStore) -> ObjectPath:
    """Leave the chunk of a writer that died before its commit."""
    store.write(NAME, "v", rows(seed=7), source())
    node = ObjectPath(str(store.path), f"{NAME}/v")
    (node / "zarr.json").unlink()
    return node


@pytest.fixture
def next_week(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put is older than the lease of dead writers."""
    monkeypatch.setattr(leftovers_module, "LEASE_DAYS", -1)
    monkeypatch.setattr(ObjectPath, "now", lambda self: time.time() + 86400)


def test_what_a_killed_writer_left_is_listed_and_deleted_after_a_week(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    store.write(NAME, "whole", rows(), source())
    store.record_failure(NAME, "broken", "no video stream")
    half_video(store)
    store.write_fit(NAME, {"mean": np.ones(3)}, {})
    for node in (f"_reduction/{NAME}/zarr.json", "mine/notes/a.txt"):
        ObjectPath(str(store.path), node).put(b"")
    ObjectPath(str(store.path), f"_reduction/{NAME}/zarr.json").unlink()
    before = keys(str(store.path))
    assert leftovers(store) == remove_leftovers(store) == []  # they may be at work
    request.getfixturevalue("next_week")
    assert leftovers(store) == [f"_reduction/{NAME}", f"{NAME}/v"]
    assert leftovers(store, ["another"]) == []
    shown = CliRunner().invoke(app, ["features", "verify", str(store.path)])
    assert (
        f"before their commit, and so no videos: _reduction/{NAME}, {NAME}/v (2 in all); --delete removes it"
        in shown.stderr
    )
    assert (shown.exit_code, keys(str(store.path))) == (0, before)
    waits: list[float] = []
    monkeypatch.setattr(objects.time, "sleep", waits.append)
    assert "2 deleted" in CliRunner().invoke(app, ["features", "verify", str(store.path), "--delete"]).stderr
    gone = {f"_reduction/{NAME}/mean/zarr.json", f"_reduction/{NAME}/mean/c.0", f"{NAME}/v/c.0.0"}
    assert keys(str(store.path)).keys() == before.keys() - gone
    assert waits == [objects.LEASE_S / 2]
    assert list(store.verify(NAME)) == [None]


@pytest.mark.usefixtures("next_week")
@pytest.mark.parametrize("when", ["read", "put", "sleep"])
def test_a_writer_that_renewed_what_is_about_to_be_deleted_keeps_its_video(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It has its chunk in place, and commits after that was read, after it was emptied, or while the deletion waits."""
    half_video(store)
    assert store.write(NAME, "v", rows(seed=7), source())
    node, original, woken = ObjectPath(str(store.path), f"{NAME}/v"), {}, []
    commit = (node / "zarr.json").read_bytes()
    (node / "zarr.json").unlink()

    def wake(*args: Any, **options: Any) -> Any:
        found = original[when](*args, **options) if when != "sleep" else None
        if not woken and (when == "sleep" or args[0] == node / "c.0.0"):
            woken.append(when)
            (node / "zarr.json").put(commit)
        return found

    for name in ("read", "put"):
        original[name] = getattr(ObjectPath, name)
    monkeypatch.setattr(objects.time, "sleep", lambda _: None)
    monkeypatch.setattr(objects.time if when == "sleep" else ObjectPath, when, wake)
    assert remove_leftovers(store) == []
    assert woken == [when]
    assert list(store.verify(NAME)) == [None]
    assert store.read(NAME, "v").features.tobytes() == rows(seed=7).tobytes()


@pytest.mark.usefixtures("next_week")
def test_a_chunk_that_was_put_anew_is_not_deleted(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    node, read = half_video(store), ObjectPath.read

    def read_then_other(path: ObjectPath, *args: Any) -> Any:
        found = read(path, *args)
        if path == node / "c.0.0":
            path.put(b"another writer's")
        return found

    monkeypatch.setattr(ObjectPath, "read", read_then_other)
    assert remove_leftovers(store) == []
    assert read(node / "c.0.0")[0] == b"another writer's"


@pytest.mark.usefixtures("next_week")
def test_a_writer_whose_files_were_deleted_while_it_slept_puts_them_again(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, clock, put, slept = ObjectPath(str(store.path), f"{NAME}/v"), time.monotonic, ObjectPath.put, []

    def sleep_after(path: ObjectPath, *args: Any, **options: Any) -> Any:
        tag = put(path, *args, **options)
        if path == node / "c.0.0" and not slept:
            slept.append(path)
            assert remove_leftovers(store) == [f"{NAME}/v"]
            monkeypatch.setattr(objects.time, "monotonic", lambda: clock() + objects.LEASE_S)
        return tag

    monkeypatch.setattr(objects.time, "sleep", lambda _: None)
    monkeypatch.setattr(ObjectPath, "put", sleep_after)
    assert store.write(NAME, "v", rows(), source())
    assert slept
    assert list(store.verify(NAME)) == [None]


def test_other_features_that_a_killed_writer_left_are_replaced_after_the_lease(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_video(store)
    monkeypatch.setattr(objects, "LOOK_S", 0.01)
    monkeypatch.setattr(objects, "LEASE_S", 2.5)
    assert store.write(NAME, "v", rows(seed=8), source())
    assert store.read(NAME, "v").features.tobytes() == rows(seed=8).tobytes()
    assert {key for key in keys(str(store.path)) if "/v/" in key} == {f"{NAME}/v/c.0.0", f"{NAME}/v/zarr.json"}


def test_a_writer_waits_for_the_commit_of_another(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(NAME, "v", rows(seed=7), source())
    node = ObjectPath(str(store.path), f"{NAME}/v")
    commit = (node / "zarr.json").read_bytes()
    (node / "zarr.json").unlink()
    looks = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (node / "zarr.json").put(commit)

    monkeypatch.setattr(objects.time, "sleep", look)
    assert not store.write(NAME, "v", rows(seed=8), source())
    assert len(looks) == 3
    assert store.read(NAME, "v").features.tobytes() == rows(seed=7).tobytes()


def test_a_writer_that_was_replaced_while_it_slept_does_not_commit(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunk is gone when it wakes; it looks, because it slept longer than half the lease, and puts all again."""
    node, clock, slept = ObjectPath(str(store.path), f"{NAME}/v"), time.monotonic, []
    put = ObjectPath.put

    def sleep_after(path: ObjectPath, *args: Any, **options: Any) -> Any:
        tag = put(path, *args, **options)
        if path == node / "c.0.0" and not slept:
            slept.append(path)
            put(path, b"another writer's")
            monkeypatch.setattr(objects.time, "monotonic", lambda: clock() + objects.LEASE_S)
            monkeypatch.setattr(objects.time, "sleep", lambda _: (node / "c.0.0").unlink())
        return tag

    monkeypatch.setattr(ObjectPath, "put", sleep_after)
    assert store.write(NAME, "v", rows(seed=8), source())
    assert slept
    assert store.read(NAME, "v").features.tobytes() == rows(seed=8).tobytes()


@pytest.mark.parametrize("whose", ["own", "the other's"])
def test_a_commit_beside_the_files_of_another_is_withdrawn(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """A sleeper commits beside what replaced its chunk: the sleeper itself withdraws it, or who replaced the chunk does."""
    node, put, done = ObjectPath(str(store.path), f"{NAME}/v"), ObjectPath.put, []
    if whose == "own":
        clock = time.monotonic

        def put_and_sleep(path: ObjectPath, *args: Any, **options: Any) -> Any:
            tag = put(path, *args, **options)
            if path == node / "zarr.json" and not done:
                done.append(put(node / "c.0.0", b"another writer's"))
                monkeypatch.setattr(objects.time, "monotonic", lambda: clock() + objects.LEASE_S)
                monkeypatch.setattr(objects.time, "sleep", lambda _: (node / "c.0.0").unlink())
            return tag

        monkeypatch.setattr(ObjectPath, "put", put_and_sleep)
    else:
        store.write(NAME, "v", rows(seed=7), source())
        commit = (node / "zarr.json").read_bytes()
        (node / "zarr.json").unlink()
        monkeypatch.setattr(objects, "LEASE_S", -10.0)

        def commit_first(path: ObjectPath, *args: Any, **options: Any) -> Any:
            if path == node / "zarr.json" and not done:
                done.append(put(path, commit))
            return put(path, *args, **options)

        monkeypatch.setattr(ObjectPath, "put", commit_first)
    store.write(NAME, "v", rows(seed=8), source())
    assert done
    monkeypatch.undo()
    assert list(store.verify(NAME)) == [None]
    assert store.read(NAME, "v").features.tobytes() == rows(seed=8).tobytes()


def test_an_answer_that_was_lost_is_no_other_writer(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put = ObjectPath.put

    def lose(path: ObjectPath, *args: Any, **options: Any) -> Any:
        tag = put(path, *args, **options)
        if path.name == "zarr.json" and path.parent.name == "v":
            return put(path, *args, **options)
        return tag

    monkeypatch.setattr(ObjectPath, "put", lose)
    assert store.write(NAME, "v", rows(), source())


def test_many_writers_of_the_same_videos_end_with_one_whole_set_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writer with other features, in threads that take turns at every request."""
    address = in_memory()
    new_store(address)
    monkeypatch.setattr(objects, "LOOK_S", 0.01)

    def work(seed: int) -> None:
        opened = FeatureStore(address)
        for number in range(10):
            opened.write(NAME, f"v{number}", rows(seed=seed), source())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = FeatureStore(address)
    assert list(opened.verify(NAME)) == [None] * 10
    wanted = {rows(seed=seed).tobytes() for seed in range(4)}
    assert all(opened.read(NAME, f"v{number}").features.tobytes() in wanted for number in range(10))


def test_a_changed_chunk_is_noticed_by_every_reader(store: FeatureStore) -> None:
    store.write(NAME, "v", rows(seed=1), source())
    store.write(NAME, "w", rows(seed=2), source())
    other = keys(str(store.path))[f"{NAME}/w/c.0.0"]
    ObjectPath(str(store.path), f"{NAME}/v/c.0.0").put(other)
    with pytest.raises(StoreError, match="differ from their checksum"):
        store.read(NAME, "v")
    damage = [one for one in store.verify(NAME) if one]
    assert [one.video_id for one in damage] == ["v"]
    store.mend(NAME, damage[0])
    assert store.video_ids(NAME) == ["w"]


def test_a_deleted_video_is_written_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(NAME, "v", rows(seed=1), source())
    store.delete(NAME, "v")
    assert store.video_ids(NAME) == []
    monkeypatch.setattr(objects, "LEASE_S", -10.0)
    assert store.write(NAME, "v", rows(3, seed=2), source(3))
    assert store.read(NAME, "v").features.shape == (3, 6)


def test_discarding_a_fit_takes_the_features_that_it_made(store: FeatureStore) -> None:
    fill(store)
    store.discard_fit(NAME)
    assert (store.feature_sets(), store.fits()) == ([], [])
    store.create_feature_set(SPEC)
    assert store.video_ids(NAME) == []


def test_packs_are_written_to_and_read_from_object_storage(tmp_path: Path, store: FeatureStore) -> None:
    fill(store)
    local = new_store(tmp_path / "local.zarr")
    fill(local)
    for one, path in (
        (store, str(store.path.with_name("store.pack"))),
        (store, str(tmp_path / "p.pack")),
        (local, in_memory().replace("store.zarr", "p.pack")),
    ):
        summary = pack_features(one, NAME, store_path(path))
        assert (summary.written, summary.videos) == (True, 3)
        packed = open_features(path)
        assert isinstance(packed, PackedStore)
        assert packed.names() == {"whole": NAME}
        assert packed.read(NAME, "b").features.tobytes() == rows(5, seed=1).tobytes()
        assert list(packed.verify(NAME)) == [None] * 3
        assert not pack_features(one, NAME, store_path(path)).written
        found = packed.source(NAME)
        assert (found is None) == (one is local)
    store.write(NAME, "more", rows(seed=9), source())
    assert PackedStore(tmp_path / "p.pack").describe(NAME)["state"] == "the store differs: videos 1 gained"
    assert pack_features(store, NAME, tmp_path / "p.pack").written


def test_what_cannot_be_asked_is_unreadable_and_not_deleted(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(NAME, "v", rows(), source())
    get = obstore.get

    def refuse(client: Any, key: str, **options: Any) -> Any:
        if key.endswith("v/zarr.json"):
            raise obstore.exceptions.PermissionDeniedError("403")
        return get(client, key, **options)

    monkeypatch.setattr(obstore, "get", refuse)
    with pytest.raises(UnreadableError, match=r"v: cannot be read \(access denied"):
        store.read(NAME, "v")
    damage = [one for one in store.verify(NAME) if one]
    assert [(one.video_id, one.readable) for one in damage] == [("v", False)]


def test_another_spec_is_refused(store: FeatureStore) -> None:
    other = FeatureSpec(extractor="net", weights="random:1", layer="pool", feature_dim=6)
    assert store.create_feature_set(other) != NAME
    assert store.feature_sets() == sorted((NAME, other.name))
    store.give_name(NAME, "x")
    with pytest.raises(StoreError, match="'x' is the name of"):
        store.give_name(other.name, "x")


def test_an_opened_store_goes_to_another_process(store: FeatureStore) -> None:
    store.write(NAME, "v", rows(), source())
    copy = pickle.loads(pickle.dumps(store))
    assert copy.path == store.path
    assert copy.write(NAME, "w", rows(seed=1), source())
    assert copy.staged().parent != store.staged().parent
    assert store.video_ids(NAME) == ["v", "w"]
