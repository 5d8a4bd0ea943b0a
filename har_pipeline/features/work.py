"""What a worker is asked to do, what it tells, and its side of the conversation, whatever carries the messages.

A worker prepares its job (nets on their device), says `Hello`, and takes videos as long as it is given any. It writes into
the store itself and tells of each video when it is there.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias

from har_pipeline.core import errors
from har_pipeline.core.errors import ExtractionError, HarError, StoreError
from har_pipeline.core.objects import StorePath
from har_pipeline.core.records import FeatureSpec
from har_pipeline.features.job import Noted, Outcome, Report, Spent
from har_pipeline.features.places import META
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.process import Task

# Clips and times are told no more often.
TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Made:
    """A feature set that a job makes, and with what."""

    spec: FeatureSpec
    device: str = "cpu"
    precision: str = "exact"
    weights: str = "none"


class Work(Protocol):
    """A job that is ready to be done, in this process or in a worker's."""

    @property
    def made(self) -> tuple[Made, ...]:
        """The feature sets that it makes."""

    def run(
        self,
        store: FeatureStore,
        tasks: Iterable[Any],
        cores: int,
        report: Report,
        spend: Callable[[Spent], None],
    ) -> None:
        """Do all tasks, which are taken one by one.

        cores: of the CPU, to decode with. report: called with each video that is in the store or has its failure there;
        spend: called now and then with what was spent since the last time. Raises: ExtractionError, StoreError.
        """


class Job(Protocol):
    """A job that can be sent to a worker."""

    def prepare(self, device: str) -> Work:
        """Return it ready to be done on a device; nothing is written. Raises: HarError if it cannot be done there."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told at its start."""

    job: Job
    store: StorePath
    mark: int  # of the store, as `mark_of`
    device: str
    folder: str = field(default_factory=os.getcwd)  # that relative paths are of


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker is ready."""

    made: tuple[Made, ...]
    version: str  # of this package
    host: str


@dataclass(frozen=True, slots=True)
class Begun:
    """The worker has begun with a video."""

    video_id: str


@dataclass(frozen=True, slots=True)
class Idle:
    """The worker has finished all that it was given."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What ended the worker's work and is no video's fault: the class of a `HarError` and its text."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: Exception) -> Trouble:
        """Return an error as a message."""
        if isinstance(error, HarError):
            return cls(type(error).__name__, str(error))
        text = (str(error).strip().splitlines() or ["no reason given"])[0]
        return cls(ExtractionError.__name__, f"{type(error).__name__}: {text}")

    def error(self, where: str) -> HarError:
        """Return the error again, with the place where it happened."""
        kind = getattr(errors, self.kind, ExtractionError)
        found: HarError = kind(f"{where}: {self.text}")
        return found


Message: TypeAlias = Hello | Begun | Outcome | Noted | Spent | Idle | Trouble


def mark_of(store: StorePath) -> int:
    """Return what tells a store from another one at the same path of another machine: when it was made, in seconds."""
    return int((store / META).stat().st_mtime)


def serve(order: Order, cores: int, receive: Callable[[], Task | None], send: Callable[[Message], None]) -> None:
    """Do the tasks that are received until an error, which is sent, or an `EOFError`: nobody sends any more.

    cores: of the CPU, for this worker. receive: waits for the next task; None: finish those that came.
    """
    try:
        work = _prepare(order)
        store = FeatureStore(order.store)
        send(Hello(work.made, version("har-pipeline"), socket.gethostname()))
        while True:
            task = receive()
            if task is not None:
                spender = _Spender(send)
                work.run(store, _received(task, receive, send), cores, send, spender.take)
                spender.flush()
            send(Idle())
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        send(Trouble.of(error))


def _prepare(order: Order) -> Work:
    try:
        os.chdir(order.folder)
    except OSError as error:
        raise ExtractionError(
            f"{order.folder}: cannot be entered here ({error.strerror}): start `har` in a folder that the workers see, too"
        ) from error
    try:
        mark = mark_of(order.store)
    except OSError as error:
        raise StoreError(
            f"{order.store}: is not there: the store must be on a file system that all workers share ({error.strerror})"
        ) from error
    if mark != order.mark:
        raise StoreError(f"{order.store}: is another store here: it must be on a file system that all workers share")
    return order.job.prepare(order.device)


def _received(task: Task | None, receive: Callable[[], Task | None], send: Callable[[Message], None]) -> Iterator[Task]:
    while task is not None:
        send(Begun(task.video_id))
        yield task
        task = receive()


class _Spender:
    """Sends what was spent, now and then."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send, self._spent = send, Spent()
        self._when = time.monotonic()

    def take(self, spent: Spent) -> None:
        """Take what was spent since the last time."""
        self._spent.add(spent)
        if time.monotonic() - self._when >= TELL_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send what is not sent."""
        self._send(self._spent)
        self._spent, self._when = Spent(), time.monotonic()
