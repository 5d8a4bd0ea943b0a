"""Where a store lies, a local folder or object storage, and what differs between the two.

Both have the same files, so that a copy of one is the other. In a folder a node is built aside and renamed into place;
in object storage, where there are no renames, it is put with its zarr.json last (`core/objects.publish_objects`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from har_pipeline.core import files
from har_pipeline.core.objects import ObjectPath, StorePath, publish_objects

META = "zarr.json"

# Requests under way at a time, each of which is a wait for an answer.
THREADS = 16
# Bytes that are asked for at the end of a file.
LEAST_READ = 4096

T = TypeVar("T")
R = TypeVar("R")


def content(path: StorePath | str, at_most: int | None = None) -> bytes:
    """Return the content of a file. path: a local one may be text, as to make a Path takes longer than to open a file.

    Raises: FileNotFoundError; ValueError if something else is there, or more than `at_most` bytes; OSError.
    """
    if isinstance(path, ObjectPath):
        return path.read(at_most)[0]
    name = str(path)
    status = os.stat(name)  # not Path.is_file, which calls a file that it may not look at absent
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{os.path.basename(name)} is no file")
    if at_most is not None and status.st_size > at_most:
        raise ValueError(f"{os.path.basename(name)} has {status.st_size:,} bytes")
    opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC)  # a Python file takes three times as long
    try:
        parts, left = [], status.st_size
        while part := os.read(opened, max(left, LEAST_READ)):  # it may have grown, or be longer than one call reads
            parts.append(part)
            left -= len(part)
    finally:
        os.close(opened)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def meta_of(node: StorePath | str) -> StorePath | str:
    """Return the path of a node's zarr.json, of a local one as text. node: a local one may be text, see `content`."""
    return node / META if isinstance(node, ObjectPath) else f"{node}/{META}"


@contextlib.contextmanager
def local_file(path: StorePath) -> Iterator[Path]:
    """Give the path of a file, or of a copy on this machine that is deleted afterwards, though what has mapped it keeps it."""
    if isinstance(path, Path):
        yield path
        return
    assert isinstance(path, ObjectPath)
    with tempfile.TemporaryDirectory(prefix="har-") as folder:
        copy = Path(folder) / path.name
        path.download(copy)
        yield copy


def is_there(path: StorePath | str) -> bool:
    """Return whether a file exists, or may: one that cannot be looked at now counts. path: a local one may be text."""
    try:
        path.stat() if isinstance(path, ObjectPath) else os.stat(str(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def entries(folder: StorePath) -> set[str]:
    """Return the names in a folder as they are spelled there."""
    if isinstance(folder, ObjectPath):
        return {path.name for path in folder.iterdir()}
    try:
        return set(os.listdir(str(folder)))
    except FileNotFoundError:
        return set()


def committed(folder: StorePath) -> list[str]:
    """Return the names of the nodes in a folder, sorted: of what has a zarr.json. Raises: OSError, as for a missing folder."""
    if isinstance(folder, ObjectPath):
        paths = (path.split("/") for path, _ in folder.files())
        return sorted(parts[0] for parts in paths if len(parts) == 2 and parts[1] == META)
    assert isinstance(folder, Path)
    # As text: to make a Path takes longer than to look at it.
    return sorted(name for name in os.listdir(folder) if is_there(os.path.join(folder, name, META)))


def candidates(folder: StorePath) -> list[str]:
    """Return the names of what may be nodes in a folder, sorted, without a look at each. Raises: OSError as `committed`."""
    return sorted(os.listdir(folder)) if isinstance(folder, Path) else committed(folder)


def put_file(path: StorePath, text: str, *, once: bool = False) -> None:
    """Write a text file, whole or not at all. once: leave one that is there and has content as it is."""
    if once and isinstance(path, ObjectPath):
        with contextlib.suppress(FileExistsError):
            path.put(text.encode(), absent=True)
    elif not (once and path.exists() and path.stat().st_size):
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, text)


def last_change(folder: StorePath) -> int:
    """Return a number that changes when a node is added to a folder or removed: of a local one the time in ns since 1970."""
    if isinstance(folder, Path):
        return folder.stat().st_mtime_ns
    assert isinstance(folder, ObjectPath)
    found = sorted(one for one in folder.files() if one[0].endswith(f"/{META}"))
    return int.from_bytes(hashlib.sha256(repr(found).encode()).digest()[:7], "big")


class Staging:
    """Where the nodes of a store are built before they appear in it. path: a folder of the store; else one of this machine."""

    def __init__(self, path: StorePath) -> None:
        self._path, self._folder = path, path if isinstance(path, Path) else None

    def __reduce__(self) -> tuple[type[Staging], tuple[StorePath]]:
        """Pickle without the folder, which is this process's own."""
        return Staging, (self._path,)

    def new(self) -> Path:
        """Return the path of a new node, which no other writer has."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="har-store-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / files.staging_name()


def publish(staged: Path, final: StorePath) -> bool:
    """Make a staged node visible. Returns False if another process has done so before; `staged` is gone then."""
    if isinstance(final, Path):
        return files.publish(staged, final, META)
    assert isinstance(final, ObjectPath)
    published = publish_objects(staged, final, META)
    files.remove(staged)
    return published


def in_order(path: StorePath, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Give work(item) of each item; in object storage several at a time, by threads, in the order of `items`."""
    if isinstance(path, Path):
        yield from map(work, items)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
