"""Child processes that share the work of a command; none is left when it ends, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

from har_pipeline.core.signals import interrupts_kept_back

Task = TypeVar("Task")
Made = TypeVar("Made")


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


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
    initializer: Callable[..., object],
    *arguments: Any,
) -> Iterator[dict[Future[Made], Task]]:
    """Give the futures of all tasks, worked on in fresh processes; after an error no task goes on, running ones included.

    initializer: called with `arguments` in each process.
    """
    context = multiprocessing.get_context("spawn")
    with interrupts_kept_back(), _isolated():  # it starts a process of its own
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(initializer, *arguments)
        )
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


def _start_worker(initializer: Callable[..., object], *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    """End this worker if its parent was killed: it would wait for its next task forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
