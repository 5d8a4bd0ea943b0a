"""Several workers over one queue: the loop that they share, in threads, and in processes, one of which is killed."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from video_files import make_video

from har_pipeline.core.errors import ExtractionError, StoreError
from har_pipeline.core.records import VideoRecord
from har_pipeline.features.extract import NetRecipe, extract, extract_with
from har_pipeline.features.frames import store_raw_frames
from har_pipeline.features.job import Outcome, Report, Spent
from har_pipeline.features.options import ExtractOptions, RawOptions
from har_pipeline.features.places import META
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.work import Begun, Made, Message, Order, serve
from har_pipeline.features.workers import Death, LocalProcesses, at_work
from har_pipeline.video.process import Task

# Ends the video "long".
LONG_ENOUGH = threading.Event()


class _Die(BaseException):
    """Ends a thread as a signal ends a process."""


@dataclasses.dataclass(frozen=True)
class Pretended:
    """A job whose videos say by their ids what happens."""

    size: int = 8  # of the frames that it claims to make

    @property
    def made(self) -> tuple[Made, ...]:
        return (Made(RawOptions(size=self.size).spec()),)

    def prepare(self, device: str) -> Pretended:
        if device == "broken":
            raise _Die("no such thing")
        return Pretended(size=int(device)) if device.isdigit() else self

    def run(
        self, store: FeatureStore, tasks: Iterable[Task], cores: int, report: Report, spend: Callable[[Spent], None]
    ) -> None:
        for task in tasks:
            if task.video_id == "poison":
                raise _Die("signal 11")
            if task.video_id == "long":
                assert LONG_ENOUGH.wait(60)
            if task.video_id == "full disk":
                raise StoreError("no space left on device")
            if task.video_id == "bug":
                raise KeyError("a mistake")
            report(Outcome(video_id=task.video_id, rows=3))
            spend(Spent(clips=3))


class Threads:
    """A pool of threads, which `_Die` ends as a kill ends a process."""

    def __init__(self, devices: Sequence[str], order: Callable[[Order], Order] = lambda order: order) -> None:
        self.devices, self._order = devices, order
        self._outbox: queue.Queue[tuple[Hashable, Message | Death]] = queue.Queue()
        self._inboxes: list[queue.Queue[Task | None]] = []
        self.closed = False

    def start(self, order: Order) -> Hashable:
        worker = len(self._inboxes)
        self._inboxes.append(queue.Queue())
        threading.Thread(target=self._work, args=(worker, self._order(order)), daemon=True).start()
        return worker

    def _work(self, worker: int, order: Order) -> None:
        try:
            serve(order, 1, self._inboxes[worker].get, lambda message: self._outbox.put((worker, message)))
        except _Die as error:
            self._outbox.put((worker, Death(str(error))))

    def send(self, worker: Hashable, task: Task | None) -> None:
        assert isinstance(worker, int)
        self._inboxes[worker].put(task)

    def receive(self) -> list[tuple[Hashable, Message | Death]]:
        return [self._outbox.get(timeout=60)]

    def where(self, worker: Hashable) -> str:
        return f"thread {worker}"

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore(tmp_path / "store.zarr", create=True)
    made.create_feature_set(RawOptions(size=8).spec())
    return made


def named(*ids: str) -> list[Task]:
    values = {"start_frame": 0, "end_frame": None, "time_limit_s": 1.0, "memory_limit_gb": 1.0}
    return [Task(video_id=one, path=Path(f"{one}.avi"), **values) for one in ids]


def done_by(pool: Threads, store: FeatureStore, tasks: Sequence[Task]) -> tuple[dict[str, str | None], int]:
    """Return each video's reason to fail, None if it is done, and the clips in all."""
    found: dict[str, str | None] = {}
    clips = 0

    def report(message: object) -> None:
        assert isinstance(message, Outcome)
        assert message.video_id not in found
        found[message.video_id] = message.reason

    def spend(spent: Spent) -> None:
        nonlocal clips
        clips += spent.clips

    with at_work(pool, Pretended(), store) as workers:
        workers.do(tasks, report, spend)
    assert pool.closed
    return found, clips


def test_all_workers_share_the_videos_and_are_counted(store: FeatureStore) -> None:
    ids = [f"v{number}" for number in range(20)]
    found, clips = done_by(Threads(["cpu"] * 3), store, named(*ids))
    assert found == dict.fromkeys(ids)
    assert clips == 3 * len(ids)


def test_nothing_to_do_ends_at_once(store: FeatureStore) -> None:
    assert done_by(Threads(["cpu"]), store, []) == ({}, 0)


def test_a_video_that_kills_workers_fails_with_its_reason_in_the_store(store: FeatureStore, caplog) -> None:
    found, _ = done_by(Threads(["cpu", "cpu"]), store, named("a", "b", "poison", "c", "d", "e", "f"))
    reason = "poison.avi: 3 workers that worked on it died, the last one: signal 11"
    assert found == {**dict.fromkeys("abcdef"), "poison": reason}
    (name,) = store.feature_sets()
    assert store.failures(name) == {"poison": reason}
    assert len(caplog.records) == 3
    assert "died: signal 11; others do its videos" in caplog.text


@pytest.mark.parametrize(
    ("video", "error", "text"),
    [
        ("full disk", StoreError, "thread [01]: no space left on device"),
        ("bug", ExtractionError, "thread [01]: KeyError: 'a mistake'"),
    ],
)
def test_what_is_no_video_s_fault_ends_the_job(video: str, error: type[Exception], text: str, store) -> None:
    with pytest.raises(error, match=text):
        done_by(Threads(["cpu", "cpu"]), store, named("a", video, "b"))


def test_workers_that_cannot_start_end_the_job(store: FeatureStore) -> None:
    with pytest.raises(ExtractionError, match=r"no worker can be started, 3 died before .*: no such thing"):
        done_by(Threads(["broken"]), store, named("a"))


def test_workers_must_make_the_same(store: FeatureStore) -> None:
    try:
        with pytest.raises(
            ExtractionError, match=r"workers would make different features, raw_frames.* give --precision"
        ):
            done_by(Threads(["16", "32", "8"]), store, named("long"))  # it is not over before the second one is ready
    finally:
        LONG_ENOUGH.set()


def test_workers_must_have_our_version(store: FeatureStore, monkeypatch) -> None:
    monkeypatch.setattr("har_pipeline.features.work.version", lambda name: "0.0.1")
    with pytest.raises(
        ExtractionError, match=r"thread 0 has har-pipeline 0\.0\.1, this machine .*: install one version"
    ):
        done_by(Threads(["cpu"]), store, named("a"))


def test_workers_must_see_the_store(store: FeatureStore, tmp_path: Path) -> None:
    gone = Threads(["cpu"], lambda order: dataclasses.replace(order, store=tmp_path / "elsewhere.zarr"))
    with pytest.raises(StoreError, match=r"thread 0: .*elsewhere\.zarr: is not there: .* all workers share"):
        done_by(gone, store, named("a"))
    other = Threads(["cpu"], lambda order: dataclasses.replace(order, mark=order.mark - 5))
    with pytest.raises(StoreError, match=r"thread 0: .*store\.zarr: is another store here: .* all workers share"):
        done_by(other, store, named("a"))
    folder = Threads(["cpu"], lambda order: dataclasses.replace(order, folder=str(tmp_path / "home")))
    with pytest.raises(ExtractionError, match=r"thread 0: .*home: cannot be entered here .*: start `har` in a folder"):
        done_by(folder, store, named("a"))
    assert (store.path / META).is_file()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("workers")
    records = [
        VideoRecord(video_id=f"v{i}", label="a", path=make_video(folder / f"v{i}.avi", 9 + i, seed=i)) for i in range(7)
    ]
    (folder / "bad.avi").write_bytes(b"no video")
    return [*records, VideoRecord(video_id="bad", label="a", path=folder / "bad.avi")]


class Killing(LocalProcesses):
    """Kills the first worker that has begun with a video."""

    killed = 0

    def receive(self) -> list[tuple[Hashable, Message | Death]]:
        found = super().receive()
        for worker, message in found:
            if isinstance(message, Begun) and not self.killed:
                self.killed += 1
                self._children[worker].process.kill()  # type: ignore[index]
        return found


def contents(store: FeatureStore, name: str) -> dict[str, np.ndarray]:
    assert not [damage for damage in store.verify(name) if damage is not None]
    return {one: store.read(name, one, check=True).features for one in store.video_ids(name)}


def test_processes_make_the_same_frames_although_one_is_killed(records, tmp_path: Path, caplog) -> None:
    options = RawOptions(stream="rgb", size=16, workers=1)
    alone = store_raw_frames(records, FeatureStore(tmp_path / "alone.zarr", create=True), options)
    store, pool = FeatureStore(tmp_path / "store.zarr", create=True), Killing(["cpu", "cpu"])
    summary = store_raw_frames(records, store, options, pool=pool)
    assert pool.killed == 1
    assert "killed by signal 9 (out of memory?); others do its videos" in caplog.text
    assert (summary.done, summary.frames, summary.failed) == (alone.done, alone.frames, alone.failed)
    assert list(summary.failed) == ["bad"]
    assert store.failures(summary.feature_set) == summary.failed
    expected = contents(FeatureStore(tmp_path / "alone.zarr"), alone.feature_set)
    found = contents(store, summary.feature_set)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[one], expected[one]) for one in expected)
    again = store_raw_frames(records, store, options, pool=LocalProcesses(["cpu", "cpu"]))
    assert (again.done, again.already, list(again.failed_before)) == (0, 7, ["bad"])


def test_processes_make_the_same_features(records, tmp_path: Path) -> None:
    recipe = NetRecipe(name="efficientnet_lite0", weights="random")
    net = recipe.build("cpu")
    clips = dataclasses.replace(net.input.clips, num_clips=3)
    options = ExtractOptions(clips=clips, workers=1, batch_size=2)
    alone = extract(records, FeatureStore(tmp_path / "alone.zarr", create=True), net, options)
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    (summary,) = extract_with(LocalProcesses(["cpu", "cpu"]), records, store, [(recipe, options)])
    assert summary.device == "2 x cpu"
    assert (summary.done, summary.clips, summary.failed) == (alone.done, alone.clips, alone.failed)
    expected, found = (
        contents(FeatureStore(tmp_path / name), alone.feature_set) for name in ("alone.zarr", "store.zarr")
    )
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[one], expected[one]) for one in expected)
