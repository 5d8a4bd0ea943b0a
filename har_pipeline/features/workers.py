"""Several engine workers over one queue of videos: processes of this machine, or actors of a Ray cluster; one loop for both."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from typing import Protocol

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.processes import num_cores
from har_pipeline.features.job import Noted, Outcome, Report, Spent, file_of
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.video_queue import Lost, VideoQueue
from har_pipeline.features.work import Begun, Hello, Idle, Job, Made, Message, Order, Trouble, mark_of, serve
from har_pipeline.video.process import MAX_STARTS, Child, Task, end_with_parent

log = logging.getLogger(__name__)

# How long the loop waits for messages before it looks around.
WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Death:
    """A worker is gone."""

    cause: str


class Pool(Protocol):
    """Starts workers and carries messages; workers are any hashable values."""

    @property
    def devices(self) -> Sequence[str]:
        """The device of each worker to start."""

    def start(self, order: Order) -> Hashable:
        """Start a worker, which does not wait until it is ready. Raises: ExtractionError if it cannot be started."""

    def send(self, worker: Hashable, task: Task | None) -> None:
        """Send to a worker, which may be gone."""

    def receive(self) -> list[tuple[Hashable, Message | Death]]:
        """Wait for messages, at most about `WAIT_S`, and return them; a worker that is gone is told once, as the last."""

    def where(self, worker: Hashable) -> str:
        """Return what users call a worker."""

    def close(self) -> None:
        """End all workers."""


class Workers:
    """The workers of one job; `made` is known once the first is ready."""

    def __init__(self, pool: Pool, job: Job, store: FeatureStore) -> None:
        self.pool, self.store = pool, store
        self._job, self._mark = job, mark_of(store.path)
        self._hello: Hello | None = None
        self._ready: set[Hashable] = set()
        self._devices: dict[Hashable, str] = {}
        self._dead_starts = 0
        for device in pool.devices:
            self._start(device)

    def _start(self, device: str) -> None:
        worker = self.pool.start(Order(self._job, self.store.path, self._mark, device))
        self._devices[worker] = device

    @property
    def made(self) -> tuple[Made, ...]:
        """The feature sets that the job makes, as its first worker says. Raises: HarError if no worker can be started."""
        while self._hello is None:
            for worker, message in self.pool.receive():
                self._take_start(worker, message)
        return self._hello.made

    def _take_start(self, worker: Hashable, message: Message | Death) -> None:
        """Take a message of a worker that is not at work yet, or of one that is in trouble."""
        match message:
            case Hello():
                self._check(worker, message)
                self._ready.add(worker)
            case Death():
                log.warning("%s died: %s; others do its videos", self.pool.where(worker), message.cause)
                self._dead_starts += 1
                if self._dead_starts == MAX_STARTS:
                    raise ExtractionError(
                        f"no worker can be started, {MAX_STARTS} died before they began with a video: {message.cause}"
                    )
                self._replace(worker)
            case Trouble():
                raise message.error(self.pool.where(worker))

    def _replace(self, worker: Hashable) -> None:
        self._ready.discard(worker)
        self._start(self._devices.pop(worker))

    def _check(self, worker: Hashable, hello: Hello) -> None:
        """Check that a worker makes what this program asks for, and what the others make."""
        where, own = self.pool.where(worker), version("har-pipeline")
        if hello.version != own:
            raise ExtractionError(f"{where} has har-pipeline {hello.version}, this machine {own}: install one version")
        if self._hello is None:
            self._hello = hello
        for first, other in zip(self._hello.made, hello.made, strict=True):
            if first.spec != other.spec:
                raise ExtractionError(
                    f"workers would make different features, {first.spec.name} on {self._hello.host} and "
                    f"{other.spec.name} on {hello.host}: give --precision, and the same weights files to all machines"
                )

    def do(self, tasks: Sequence[Task], report: Report, spend: Callable[[Spent], None]) -> None:
        """Let the workers do all tasks. report, spend: as of `Work.run`.

        Raises: ExtractionError if no worker can be started; what ends the work of a worker, such as StoreError.
        """
        made = self.made
        queue = VideoQueue(tasks)
        for worker in self._ready:
            queue.join(worker)
        while not queue.over:
            for worker in self._ready:
                for gift in queue.to_give(worker):
                    self.pool.send(worker, gift)
            for worker, message in self.pool.receive():
                lost: list[Lost] = []
                match message:
                    case Begun():
                        self._dead_starts = 0
                        queue.begun(worker, message.video_id)
                    case Outcome():
                        queue.finished(worker, message.video_id, message.lane)
                        report(message)
                    case Noted():
                        report(message)
                    case Spent():
                        spend(message)
                    case Idle():
                        lost = queue.idle(worker)
                    case Death() if worker in self._ready:
                        lost = queue.lost(worker, message.cause)
                        self._take_start(worker, message)
                    case _:
                        self._take_start(worker, message)
                        if worker in self._ready:
                            queue.join(worker)
                for one in lost:
                    self._fail(one, made, report)

    def _fail(self, lost: Lost, made: Sequence[Made], report: Report) -> None:
        video_id = lost.task.video_id
        for lane in sorted(lost.lanes):
            self.store.record_failure(made[lane].spec.name, video_id, lost.reason, file_of(lost.task))
            report(Outcome(video_id=video_id, lane=lane, reason=lost.reason))

    @property
    def device(self) -> str:
        """The devices of all workers: `cuda:0, cuda:1`, `2 x cpu`."""
        counts = {device: list(self.pool.devices).count(device) for device in self.pool.devices}
        return ", ".join(f"{count} x {device}" if count > 1 else device for device, count in counts.items())


@contextmanager
def at_work(pool: Pool, job: Job, store: FeatureStore) -> Iterator[Workers]:
    """Start the workers of a job, and end them however the context ends."""
    try:
        yield Workers(pool, job, store)
    finally:
        pool.close()


class LocalProcesses:
    """Workers that are processes of this machine, one for each device."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._children: dict[Connection, Child] = {}
        self._names: dict[Connection, str] = {}

    @property
    def devices(self) -> Sequence[str]:
        """The device of each worker to start."""
        return self._devices

    def start(self, order: Order) -> Hashable:
        """Start a worker. Raises: ExtractionError if it cannot be started."""
        cores = max(1, num_cores() // len(self.devices))
        # Several nets on one CPU: threads that wait for each other must not burn the cores of the others. How many threads
        # there are is not changed, for the sums of a net depend on it.
        policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        child = Child("har_pipeline.features.workers", cores, environment={"OMP_WAIT_POLICY": policy})
        self._children[child.connection] = child
        self._names[child.connection] = f"worker {len(self._names) + 1} ({order.device})"
        self._send(child.connection, order)
        return child.connection

    def send(self, worker: Hashable, task: Task | None) -> None:
        """Send to a worker, which may be gone."""
        self._send(worker, task)

    def _send(self, worker: Hashable, what: Order | Task | None) -> None:
        assert isinstance(worker, Connection)
        with contextlib.suppress(OSError):  # `receive` tells of its death
            worker.send(what)

    def receive(self) -> list[tuple[Hashable, Message | Death]]:
        """Wait for messages, and return them."""
        found: list[tuple[Hashable, Message | Death]] = []
        for connection in wait(list(self._children), WAIT_S):
            assert isinstance(connection, Connection)
            try:
                found.append((connection, connection.recv()))
            except Exception as error:  # a death, perhaps in mid-message
                child = self._children.pop(connection)
                found.append((connection, Death(child.cause_of_death(error))))
                child.close()
        return found

    def where(self, worker: Hashable) -> str:
        """Return what users call a worker."""
        assert isinstance(worker, Connection)
        return self._names[worker]

    def close(self) -> None:
        """End all workers."""
        for child in self._children.values():
            child.close()
        self._children.clear()


def main(socket_fd: int, cores: int) -> None:
    """Work for the parent until it closes the connection: the child's side of `LocalProcesses`."""
    end_with_parent()
    connection = Connection(socket_fd)
    serve(connection.recv(), cores, connection.recv, connection.send)
