"""One training at a time in a folder: a lock that lasts from before its data are read to its end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import lock_owner, locked

# Beside the folder that is trained into, or in it where nothing can be written beside it.
SUFFIX = ".har-lock"


@contextlib.contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder, or into one above or below it, as long as the context lasts.

    Raises: RunError that tells who does.
    """
    folder = folder.absolute()
    path = _lock_file(folder)
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path) as held:
            if not held:
                raise _taken(folder, path)
            try:
                above = (_lock_file(parent) for parent in folder.parents)
                below = (file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}*{SUFFIX}"))
                for other in (*above, *below):
                    if other != path and other.is_file() and not _free(other):
                        raise _taken(folder, other)
                yield
            finally:
                # Before it is let go, so that nobody else holds it by then.
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _lock_file(folder: Path) -> Path:
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        return folder / SUFFIX
    return folder.with_name(f".{folder.name}{SUFFIX}") if folder.name else folder / SUFFIX


def _free(lock: Path) -> bool:
    """Whether no training holds a lock; one that a killed process left is removed."""
    for _ in range(5):
        with contextlib.suppress(OSError), locked(lock) as held:
            if held:
                lock.unlink()
                return True
        time.sleep(0.05)  # another process may be looking just now
    return False


def _taken(folder: Path, lock: Path) -> RunError:
    return RunError(
        f"{folder}: another process is training there ({lock_owner(lock)}): wait for it, or choose another --out"
    )
