"""Child processes, and what Ctrl-C and the termination signal do to a command that has some: it ends with one line."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import FrameType
from typing import Any, NoReturn, TypeVar

from har_pipeline.core.errors import TERMINATED

Task = TypeVar("Task")
Made = TypeVar("Made")


@contextlib.contextmanager
def interrupts_kept_back() -> Iterator[None]:
    """Start child processes in this context, and neither Ctrl-C nor SIGTERM does anything to them: their parent ends them.

    Else each would print a traceback of its own, even while it imports. A signal that comes meanwhile is handled when the
    context ends: a child that has read only half of what it needs would print one too.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Start interpreters in this context, and files in the current folder do not stand in for installed modules there."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextlib.contextmanager
def working_on(
    tasks: Sequence[Task],
    work: Callable[[Task], Made],
    workers: int,
    initializer: Callable[..., None],
    *arguments: Any,
) -> Iterator[dict[Future[Made], Task]]:
    """Give the futures of all tasks, worked on in fresh processes; after an error no task goes on, running ones included.

    initializer: called with `arguments` in each process.
    """
    context = multiprocessing.get_context("spawn")
    with _isolated():  # it starts a process of its own
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=initializer, initargs=arguments)
    try:
        with interrupts_kept_back(), _isolated():
            futures = {pool.submit(work, task): task for task in tasks}
        yield futures
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_in_order_when_terminated() -> None:
    """Let SIGTERM, as `kill` or a batch system sends it, end this program as Ctrl-C does, with exit code 143."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)
