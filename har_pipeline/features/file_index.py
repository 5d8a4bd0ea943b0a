"""Which files the videos of a large local feature set were read from, kept so that a resumed job need not read each commit.

The index lies in the user's cache folder. A line of it counts only while the video's zarr.json is the very file that the line
was made of, by inode, size and time of change; else the commit is read. So an index that is missing, damaged, old or of
another store costs time only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from har_pipeline.core.files import user_cache
from har_pipeline.core.objects import StorePath
from har_pipeline.features.places import META

# Videos from which on there is an index: fewer are read within a fraction of a second.
INDEXED_FROM = 2000
# New lines for which the index is written again: fewer commits are rather read again.
WORTH_LINES = 500
# What changed less than so many ns ago may change again within one tick of the clock.
SETTLED_NS = 2 * 10**9
# Indices that nobody has used for so many seconds are deleted.
FORGOTTEN_S = 60 * 24 * 3600
log = logging.getLogger(__name__)


@contextmanager
def file_index(group: StorePath, num_videos: int) -> Iterator[FileIndex | None]:
    """Give the index of a feature set, None where there is none to be; it is written at the end if that is worth it."""
    folder = user_cache() if num_videos >= INDEXED_FROM else None
    if folder is None or not isinstance(group, Path):
        yield None
        return
    place = os.path.realpath(group)
    index = FileIndex(folder / "files" / hashlib.sha256(os.fsencode(place)).hexdigest()[:32], place)
    try:
        yield index
        index.save()
    finally:
        index.close()


class FileIndex:
    """The lines of one feature set, in the order of the videos' names, in which it has to be asked.

    A line is a checksum of the rest, the state of the zarr.json, the name and the file as JSON, between tabs.
    """

    def __init__(self, path: Path, group: str) -> None:
        self._path, self._group = path, group
        self._first = f"har_pipeline files 1 {group!r}\n".encode(errors="backslashreplace")
        self._old: IO[bytes] | None = None
        # The line that was read last: its name, state and file, and where it ends.
        self._name, self._state, self._file, self._end = b"", b"", b"", 0
        self._kept = len(self._first)  # where the last line ends that is known to hold
        self._new: IO[bytes] | None = None
        self._added = 0
        try:
            self._old = path.open("rb")
            if self._old.readline() != self._first:
                self._forget()
            else:
                self._end = len(self._first)
                os.utime(path)
        except OSError as error:
            log.debug("%s: %s", path, error)

    def state(self, name: str) -> bytes:
        """Return the state of a video's zarr.json, empty if it cannot be looked at or has only just been written."""
        try:
            found = os.stat(f"{self._group}/{name}/{META}")
        except (OSError, ValueError):
            return b""
        changed = max(found.st_mtime_ns, found.st_ctime_ns)
        if changed > time.time_ns() - SETTLED_NS:
            return b""
        return b"%d %d %d %d" % (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def known(self, name: str, state: bytes) -> dict[str, str] | None:
        """Return the file of a video whose zarr.json has a state, None if it is not known. Names are asked in their order."""
        wanted = os.fsencode(name)
        while self._old is not None and self._name < wanted:
            self._advance(self._old)
        if self._old is None or not state or self._name != wanted or self._state != state:
            return None
        self._write(wanted, state, self._file)
        self._kept = self._end
        file: dict[str, str] = json.loads(self._file)
        return file

    def _advance(self, old: IO[bytes]) -> None:
        try:
            line = old.readline()
        except OSError as error:
            log.debug("%s: %s", self._path, error)
            line = b""
        checksum, _, rest = line.rstrip(b"\n").partition(b"\t")
        parts = rest.split(b"\t")
        if len(parts) != 3 or b"%08x" % zlib.crc32(rest) != checksum or parts[1] <= self._name:
            self._forget()  # at its end, or damaged
            return
        self._state, self._name, self._file = parts
        self._end += len(line)

    def _forget(self) -> None:
        if self._old is not None:
            self._old.close()
            self._old = None

    def add(self, name: str, state: bytes, file: Mapping[str, str]) -> None:
        """Take a video's file, which its commit says."""
        if not state:
            return
        self._added += 1
        if self._new is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._new = tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=".new-", delete=False)  # noqa: SIM115
                self._copy_kept(self._new)
            except OSError as error:
                self._drop(error)
        self._write(os.fsencode(name), state, json.dumps(file).encode())

    def _copy_kept(self, new: IO[bytes]) -> None:
        """Copy what was found to hold so far, or is of videos that are gone."""
        new.write(self._first)
        left = self._kept - len(self._first)
        if not left:
            return  # there may be no file
        with self._path.open("rb") as old:
            old.seek(len(self._first))
            while left and (part := old.read(min(left, 2**20))):
                new.write(part)
                left -= len(part)

    def _write(self, name: bytes, state: bytes, file: bytes) -> None:
        if self._new is None:
            return
        rest = b"\t".join((state, name, file))
        try:
            self._new.write(b"%08x\t%s\n" % (zlib.crc32(rest), rest))
        except OSError as error:
            self._drop(error)

    def save(self) -> None:
        """Write the index if enough is new. After the last video."""
        if self._new is None or self._added < WORTH_LINES:
            return
        try:
            self._new.close()
            os.replace(self._new.name, self._path)
            self._new = None
            for entry in os.scandir(self._path.parent):
                if entry.stat().st_mtime < time.time() - FORGOTTEN_S:
                    os.unlink(entry.path)
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError | None = None) -> None:
        """Delete what is being written, for an error or because it is not needed."""
        if error is not None:
            log.debug("%s: %s", self._path, error)
        new, self._new = self._new, None
        if new is not None:
            with suppress(OSError):
                new.close()
            with suppress(OSError):
                os.unlink(new.name)

    def close(self) -> None:
        """Close the files; what was not saved is gone."""
        self._forget()
        self._drop()
