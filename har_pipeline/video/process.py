"""One supervised child process that works through videos, so that a file that hangs or crashes a decoder costs only itself.

The child is a fresh interpreter that calls `main` of one module; tasks and messages travel through a socket. It confirms a
task before it works on it, so a death can be blamed: after the confirmation the video fails with the cause of death; before
it (the process could not start, or died idle) no video is lost, and a fresh process gets the task. The time limit of a
video is a kernel timer with the default action: SIGALRM ends the process even while a decoder hangs inside C code. It counts
the reading of the file only. The memory limit is the kernel's too (Linux): what a file makes a decoder ask for beyond it is
refused, and the video fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from har_pipeline.core.errors import ExtractionError, VideoError
from har_pipeline.core.memory import keep_freed_memory
from har_pipeline.core.records import Span
from har_pipeline.core.signals import interrupts_kept_back

# Processes that may die in a row before they begin a task; then the job ends.
MAX_STARTS = 3
# A process that closed its socket is gone at once; one that sent nonsense has to be ended.
EXIT_WAIT_S = 5.0
STDERR_TAIL_BYTES = 4096
# Limits above these are none: the system's calls do not take infinity.
_LONGEST_S = 1e8
_LARGEST_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Span):
    """One video for a worker, or a part of it."""

    video_id: str
    path: Path
    time_limit_s: float  # of reading; inf: none
    memory_limit_gb: float  # of the whole process, in GB (10^9 bytes); inf: none


@dataclass(frozen=True, slots=True)
class Failed:
    """The video cannot be used; `reason` names the file and says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Last:
    """The last message of a task."""

    message: Any


T = TypeVar("T", bound=Task)
M = TypeVar("M")
W = TypeVar("W", bound="Worker[Any, Any]")


def end_with_parent() -> None:
    """Let the system kill this process when its parent ends (Linux): no orphan outlives a killed job."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve(connection: Connection, work: Callable[[Any], Any], receive: Callable[[], Any] | None = None) -> None:
    """Work on tasks until the parent closes the connection: the child's side of `Worker`.

    work: returns the last message of its task, and may send others before; its exceptions become `Failed`.
    receive: returns the next task; None = the next message is one.
    """
    end_with_parent()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    keep_freed_memory()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            task = (receive or connection.recv)()
            connection.send(None)
            _limit_memory(task.memory_limit_gb)
            signal.setitimer(signal.ITIMER_REAL, task.time_limit_s if task.time_limit_s < _LONGEST_S else 0)
            try:
                result = work(task)
            except VideoError as error:
                result = Failed(str(error))
            except Exception as error:
                result = Failed(f"{task.path}: {_reason(error, task)}")
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(_Last(result))


def _reason(error: Exception, task: Task) -> str:
    if isinstance(error, MemoryError) or "Insufficient memory" in str(error):  # the latter is OpenCV's
        return f"reading needs more memory than the limit of {task.memory_limit_gb:g} GB; raise it with --memory-limit"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return f"{type(error).__name__}: {error}"


def _limit_memory(limit_gb: float) -> None:
    """Let this process allocate no more. Only Linux counts all memory that is allocated."""
    if sys.platform == "linux":
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = round(limit_gb * 1e9) if limit_gb < _LARGEST_GB else resource.RLIM_INFINITY
        if most != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > most):
            limit = most
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Stop a task's time limit while its process waits for the parent or sends to it, so that no message is cut in two."""
    remaining = signal.setitimer(signal.ITIMER_REAL, 0)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)


class Child:
    """A child process: a fresh interpreter that calls `main` of a module with the number of a socket and `arguments`.

    The other end of the socket is `connection`. fds: further files that the child inherits; environment: variables besides
    ours. Raises: ExtractionError if the process cannot be started.
    """

    def __init__(
        self,
        module: str,
        *arguments: int,
        fds: Sequence[int] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._module, self._arguments, self._fds, self._environment = module, arguments, fds, environment
        try:
            # Not a pipe, which blocks the child when nobody reads it. Parent and child share the position in the file.
            self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, see `close`
        except OSError as error:
            raise ExtractionError(f"no worker process can be started: {error}") from error
        self._spawn()

    def _spawn(self) -> None:
        try:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                # Not `-m`: the module would be imported twice, and its classes would not be those of its messages. The
                # parent's `sys.path` and `-P`: files in the current folder must not stand in for installed modules.
                call = ", ".join(map(str, (theirs.fileno(), *self._arguments)))
                path = [entry for entry in sys.path if isinstance(entry, str)]  # Python ignores others too
                code = f"import sys; sys.path[:] = {path!r}; from {self._module} import main; main({call})"
                with interrupts_kept_back():
                    self.process = subprocess.Popen(
                        [sys.executable, "-P", "-c", code],
                        pass_fds=(theirs.fileno(), *self._fds),
                        stdin=subprocess.DEVNULL,
                        stdout=self._stderr,
                        stderr=self._stderr,
                        env={**os.environ, **self._environment},
                    )
                self.connection = Connection(ours.detach())
        except OSError as error:
            self._stderr.close()
            raise ExtractionError(f"no worker process can be started: {error}") from error

    def cause_of_death(self, error: Exception) -> str:
        """Return why the process ended, after the connection raised `error`; one that still lives is killed."""
        try:
            code = self.process.wait(EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"sent no valid message ({type(error).__name__}: {error})"
        if code == -signal.SIGKILL:
            cause = f"killed by signal {-code} (out of memory?)"
        else:
            cause = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - STDERR_TAIL_BYTES))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"{cause}: {lines[-1].strip()}" if lines else cause

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self._stderr.close()


class Worker(Child, Generic[T, M]):
    """The parent's side: `start` a task, then `receive` its messages until `task` is None again.

    module, arguments, fds: as of `Child`. Raises: ExtractionError if the process cannot be started.
    """

    def __init__(self, module: str, *arguments: int, fds: Sequence[int] = ()) -> None:
        self.task: T | None = None
        self._begun = False
        self._starts = 0
        super().__init__(module, *arguments, fds=fds, environment={"OMP_NUM_THREADS": "1"})

    def start(self, task: T) -> None:
        """Give the idle worker a task."""
        if self.process.returncode is not None:  # the last video took the process with it
            self._spawn()
        self.task, self._begun = task, False
        self._stderr.seek(0)
        self._stderr.truncate()
        with contextlib.suppress(OSError):  # it died idle: `receive` replaces it
            self.connection.send(task)

    def receive(self) -> M | Failed | None:
        """Return the next message, or None if it was none for the caller.

        Raises: ExtractionError if one process after another dies before it begins the task.
        """
        try:
            message = self.connection.recv()
        except Exception as error:  # a death, perhaps in mid-message; or bytes that are no message
            return self._bury(error)
        if message is None:
            self._begun, self._starts = True, 0
        elif isinstance(message, _Last):
            self.task, message = None, message.message
        return message

    def _bury(self, error: Exception) -> Failed | None:
        """Blame the death on the task if it was begun, else hand the task to a fresh process."""
        task = self.task
        assert task is not None
        cause = self.cause_of_death(error)
        self.connection.close()
        if self._begun:
            self.task = None
            if self.process.returncode == -signal.SIGALRM:
                return Failed(f"{task.path}: reading took longer than the limit of {task.time_limit_s:g} s")
            return Failed(f"{task.path}: the process reading it died: {cause}")
        self._starts += 1
        if self._starts == MAX_STARTS:
            raise ExtractionError(f"no worker process can be started, {MAX_STARTS} died at the start: {cause}")
        self._spawn()
        self.start(task)
        return None


def run_tasks(
    make: Callable[[], W], num_workers: int, tasks: Iterable[Any]
) -> Generator[tuple[W, Any, Any], None, None]:
    """Yield (worker, task, message) for all messages of all tasks, in the order in which they come.

    A worker has its next task before its last message is yielded, so that it does not wait for the caller. A task is taken
    from `tasks` when a worker is free for it.
    Raises: ExtractionError if workers cannot be started.
    """
    waiting = iter(tasks)
    workers: list[W] = []
    try:
        while len(workers) < max(1, num_workers) and (task := next(waiting, None)) is not None:
            workers.append(make())
            workers[-1].start(task)
        while workers:
            by_connection: dict[object, W] = {worker.connection: worker for worker in workers}
            for connection in wait([worker.connection for worker in workers]):
                worker = by_connection[connection]
                task, message = worker.task, worker.receive()
                if message is None:
                    continue
                if worker.task is None:
                    following = next(waiting, None)
                    if following is not None:
                        worker.start(following)
                    else:
                        workers.remove(worker)
                        worker.close()
                yield worker, task, message
    finally:
        for worker in workers:
            worker.close()
