"""Files in object storage, by addresses such as s3://bucket/store.zarr, with the part of pathlib that a feature store uses.

There are no folders and no renames: a file is its key, written whole or not at all, and a folder is what begins with its
name and a slash. A file can be put on the condition that there is none of its name, or that it is still the one that was
seen (`put`); that is all that several writers can agree by.

Credentials and endpoints are taken from the environment (AWS_*, GOOGLE_*, AZURE_*), as obstore reads them. Errors are those
of the operating system, with a reason in words: `FileNotFoundError`, `FileExistsError`, `PermissionError`, or another
`OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from har_pipeline.core.errors import StoreError, UsageError

if TYPE_CHECKING:
    from typing import Self

    from obstore.store import ObjectStore

# What an address may begin with. gs and gcs, az and azure ... are the same to obstore.
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "memory")
REQUEST_S = 300
RETRIES = 10

log = logging.getLogger(__name__)

# What distinguishes the content of a file from others, as `put` takes it: an e-tag, and a version where there are any.
Tag: TypeAlias = tuple[str | None, str | None]


class StorePath(Protocol):
    """A path on a disk or an address in object storage."""

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def parent(self) -> Self:
        """What is before the last part."""

    def __truediv__(self, other: str, /) -> Self: ...

    def with_name(self, name: str, /) -> Self:
        """Return the path with another last part."""

    def exists(self) -> bool:
        """Return whether a file or a folder is there."""

    def is_dir(self) -> bool:
        """Return whether a folder is there."""

    def is_file(self) -> bool:
        """Return whether a file is there."""

    def absolute(self) -> Self:
        """Return the path from the root."""

    def resolve(self) -> Self:
        """Return the path from the root, without links."""

    def stat(self) -> Any:
        """Return size and times of a file. Raises: FileNotFoundError."""

    def read_bytes(self) -> bytes:
        """Return the content of a file. Raises: FileNotFoundError."""

    def iterdir(self) -> Iterator[Self]:
        """Give the files and folders in a folder."""

    def unlink(self) -> None:
        """Delete a file."""

    def mkdir(self, *, parents: bool = ..., exist_ok: bool = ...) -> None:
        """Make a folder, where folders are made."""


def store_path(address: StorePath | str) -> StorePath:
    """Return a path, or an address in object storage if it has the form SCHEME://BUCKET/...; file:// is a path.

    Raises: UsageError if this version knows no such address.
    """
    if not isinstance(address, str):
        return address
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return Path(address)
    if scheme == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme not in SCHEMES or not rest.strip("/"):
        raise UsageError(
            f"{address}: no address of a store; object storage is {', '.join(f'{one}://' for one in SCHEMES)} "
            "with the name of a bucket and a path in it"
        )
    return ObjectPath(f"{scheme}://{rest.strip('/')}")


class ObjectPath:
    """A file or a folder in object storage. root: address of the store; key: path within it."""

    def __init__(self, root: str, key: str = "") -> None:
        self._root, self._key = root, key

    def __str__(self) -> str:
        return f"{self._root}/{self._key}".rstrip("/")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, other: str) -> ObjectPath:
        return ObjectPath(self._root, f"{self._key}/{other}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """What is before the last part."""
        if self._key:
            return ObjectPath(self._root, self._key.rpartition("/")[0])
        return ObjectPath(self._root.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """Return the address with another last part."""
        if self._key:
            return self.parent / name
        return ObjectPath(f"{self._root.rpartition('/')[0]}/{name}")

    def absolute(self) -> ObjectPath:
        """Return the address itself."""
        return self

    def resolve(self) -> ObjectPath:
        """Return the address itself."""
        return self

    def relative_to(self, other: ObjectPath) -> str:
        """Return the path below another one."""
        return str(self).removeprefix(f"{other}/")

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there when a file is in it."""

    def stat(self) -> os.stat_result:
        """Return size and time of a file. Raises: FileNotFoundError."""
        with self._answers() as client:
            import obstore

            meta = obstore.head(client, self._key)
        seconds = int(meta["last_modified"].timestamp())
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, meta["size"], seconds, seconds, seconds))

    def is_file(self) -> bool:
        """Return whether a file is there."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether a folder is there."""
        return next(self._listed(1), None) is not None

    def exists(self) -> bool:
        """Return whether a file or a folder is there."""
        return (bool(self._key) and self.is_file()) or self.is_dir()

    def iterdir(self) -> Iterator[ObjectPath]:
        """Give the files and folders in a folder, in no order."""
        with self._answers() as client:
            import obstore

            found = obstore.list_with_delimiter(client, self._key or None)
        for key in (*found["common_prefixes"], *(meta["path"] for meta in found["objects"])):
            yield ObjectPath(self._root, key)

    def files(self) -> Iterator[tuple[str, str]]:
        """Give all files below a folder, their paths within it and e-tags, in no order."""
        start = f"{self._key}/" if self._key else ""
        for meta in self._listed():
            yield meta["path"].removeprefix(start), meta["e_tag"] or str(meta["last_modified"])

    def times(self) -> Iterator[tuple[str, float]]:
        """Give all files below a folder, their paths within it and when they were written, as `read` has it, in no order."""
        start = f"{self._key}/" if self._key else ""
        for meta in self._listed():
            yield meta["path"].removeprefix(start), meta["last_modified"].timestamp()

    def _listed(self, at_once: int = 1000) -> Iterator[Any]:
        with self._answers() as client:
            import obstore

            for metas in obstore.list(client, self._key or None, chunk_size=at_once):
                yield from metas

    def read_bytes(self) -> bytes:
        """Return the content of a file. Raises: FileNotFoundError."""
        return self.read()[0]

    def read(self, at_most: int | None = None) -> tuple[bytes, Tag, float]:
        """Return the content of a file, its tag, and when it was written, in seconds since 1970 by the storage's clock.

        Raises: FileNotFoundError; ValueError if it has more than `at_most` bytes.
        """
        with self._answers() as client:
            import obstore

            found = obstore.get(client, self._key)
            meta = found.meta
            if at_most is not None and meta["size"] > at_most:
                raise ValueError(f"{self.name} has {meta['size']:,} bytes")
            return bytes(found.bytes()), (meta["e_tag"], meta["version"]), meta["last_modified"].timestamp()

    def download(self, path: Path) -> None:
        """Write the content of a file into a local one. Raises: FileNotFoundError."""
        with self._answers() as client, path.open("wb") as file:
            import obstore

            for part in obstore.get(client, self._key).stream():
                file.write(part)

    def tag(self) -> Tag | None:
        """Return the tag of a file, None if there is none."""
        try:
            with self._answers() as client:
                import obstore

                meta = obstore.head(client, self._key)
        except FileNotFoundError:
            return None
        return meta["e_tag"], meta["version"]

    def put(self, content: bytes | Path, *, absent: bool = False, replacing: Tag | None = None) -> Tag:
        """Write a file, whole or not at all, and return its tag. content: or a local file that has it.

        absent: only if there is none. replacing: only if it still has this tag. Raises: FileExistsError if it is otherwise.
        """
        mode: Any = "create" if absent else "overwrite"
        if replacing is not None:
            mode = {key: one for key, one in zip(("e_tag", "version"), replacing, strict=True) if one is not None}
        with self._answers() as client:
            import obstore

            done = obstore.put(client, self._key, content, mode=mode)
            return done["e_tag"], done["version"]

    def unlink(self) -> None:
        """Delete a file; one that is missing is not an error."""
        with contextlib.suppress(FileNotFoundError), self._answers() as client:
            import obstore

            obstore.delete(client, self._key)

    def now(self) -> float:
        """Return the time by the storage's own clock, in seconds since 1970. self: a file that may be written for it."""
        self.put(b"")
        seconds = self.stat().st_mtime
        self.unlink()
        return seconds

    @contextlib.contextmanager
    def _answers(self) -> Iterator[ObjectStore]:
        """Give the client; what it raises becomes an `OSError` with a reason in words.

        obstore is imported within: `_client` says first how to get it.
        """
        client = _client(self._root)
        try:
            yield client
        except OSError as error:  # obstore raises FileNotFoundError, without a number
            raise self._error(error) if error.errno is None else error from error
        except Exception as error:
            if not type(error).__module__.startswith("obstore"):
                raise
            raise self._error(error) from error

    def _error(self, error: Exception) -> OSError:
        kind, text = type(error).__name__, str(error)
        if any(word in text for word in ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")):
            number, reason = errno.ENXIO, "there is no such bucket"
        elif kind == "FileNotFoundError":
            number, reason = errno.ENOENT, os.strerror(errno.ENOENT)
        elif kind in ("AlreadyExistsError", "PreconditionError"):
            number, reason = errno.EEXIST, os.strerror(errno.EEXIST)
        elif re.search(r"169\.254\.|metadata\.google|MissingCredentials|No credentials", text):
            number, reason = (
                errno.EACCES,
                "no credentials: docs/object-storage.md says which variables they are read from",
            )
        elif kind in ("PermissionDeniedError", "UnauthenticatedError") or re.search(r"status code: 40[13]\b", text):
            number, reason = errno.EACCES, "access denied: check the credentials and what they may do"
        elif kind == "NotSupportedError" or "501 Not Implemented" in text:
            number, reason = errno.ENOTSUP, "this storage has no conditional writing, without which writers cannot meet"
        elif re.search(r"error sending request|timed out|connect", text):
            number, reason = errno.EHOSTUNREACH, "no answer: check the network, and the endpoint if you set one"
        else:
            number, reason = errno.EIO, " ".join(text.partition("\n\nDebug")[0].split())[:300]
        return OSError(number, reason, str(self))


@functools.cache
def _client(root: str) -> ObjectStore:
    """Return the client of an address; one for each process, made when it is needed.

    Raises: StoreError if the package is missing, or the address or its settings in the environment are wrong.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import MemoryStore, from_url
    except ImportError as error:
        raise StoreError(f"{root}: object storage needs obstore: pip install 'har-pipeline[cloud]'") from error
    if root.startswith("memory://"):
        return MemoryStore()
    _check_endpoint(root)
    try:
        return from_url(
            root,
            client_options={"allow_http": True, "timeout": timedelta(seconds=REQUEST_S)},
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=REQUEST_S)},
        )
    except (BaseError, ValueError, TypeError) as error:
        reason = " ".join(str(error).partition("\n\nDebug")[0].split())
        raise StoreError(f"{root}: no address of object storage as it is set up ({reason})") from error


def _check_endpoint(root: str) -> None:
    """Raise a StoreError if an endpoint of S3 in the environment is no address: obstore panics at the first request."""
    if not root.startswith(("s3://", "s3a://")):
        return
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?(/\S*)?", value):
            raise StoreError(f"{root}: {name} is {value!r}, not an address such as http://HOST:PORT")


# Putting folders


LEASE_S, LOOK_S, ATTEMPTS, RESENDS = 300.0, 2.0, 5, 2


def publish_objects(staged: Path, final: ObjectPath, marker: str) -> bool:
    """Put the files of the folder `staged`, `marker` last, and delete it; False if another writer's `marker` is there already.

    The marker is the commit: what has none does not exist. It is put only if there is none, so that of several writers one
    commits. All of them put the other files under the same names, so that a commit must not end up beside the files of
    another writer:

    - A file is put if there is none. Of one that is there and equal the time is renewed, by a put on the condition that it is
      unchanged; that is the usual case, since features are the same whoever computes them.
    - One that differs is another writer's. It is left alone until that one has committed, or for `LEASE_S` after it was put;
      then it is replaced, on the condition that it is unchanged.
    - Who took longer than half the lease looks, before and after the commit, whether its files are still its own, and so does
      after losing who replaced another's. A commit beside the wrong files is withdrawn, and all is put again.

    A request whose answer was lost is put again, `RESENDS` times: whatever became of the first, it is one of the cases above.
    What is left is a writer that sleeps for the lease between two requests, and then dies, as the one that replaced its files
    does, before either looks: whoever reads compares with the checksum.
    Raises: OSError.
    """
    for _ in range(RESENDS):
        try:
            return _publish(staged, final, marker)
        except OSError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EIO):
                raise
            log.warning("%s; once more", error)
            time.sleep(LOOK_S)
    return _publish(staged, final, marker)


def _publish(staged: Path, final: ObjectPath, marker: str) -> bool:
    files = sorted(path for path in staged.rglob("*") if path.is_file() and path != staged / marker)
    commit = (staged / marker).read_bytes()
    for _ in range(ATTEMPTS):
        started, tags, replaced = time.monotonic(), dict[ObjectPath, Tag](), False
        for path in files:
            place = final / path.relative_to(staged).as_posix()
            claimed = _claim(place, path.read_bytes(), final / marker)
            if claimed is None:
                return _is_own_commit(final / marker, commit)
            tags[place], others = claimed
            replaced |= others
        if time.monotonic() - started > LEASE_S / 2 and not _all_own(tags):
            continue
        try:
            (final / marker).put(commit, absent=True)
            won = True
        except FileExistsError:
            won = _is_own_commit(final / marker, commit)  # an answer that was lost
        slow = time.monotonic() - started > LEASE_S / 2
        if won and not (slow and not _all_own(tags)):
            return True
        if not won and not (replaced and _any_own(tags)):
            return False
        (final / marker).unlink()
    raise OSError(errno.EBUSY, "other writers write the same video again and again", str(final))


# How many bytes `remove_abandoned` keeps in memory at a time, of which it may have to put some back.
HELD_BYTES = 2**28


def remove_abandoned(root: ObjectPath, nodes: Mapping[str, Iterable[str]], marker: str, age_s: float) -> list[str]:
    """Delete what `publish_objects` put and its writer, who died, did not commit; returns the nodes that are gone.

    nodes: path below `root` of what was published -> its files. age_s: how long ago they must have been put, more than
    `LEASE_S`. It takes half the lease, so that no living writer loses anything:

    - A file is replaced by an empty one, on the condition that it is unchanged. Another writer leaves that one alone for the
      lease, as it does all that is not its own, and before the lease is over it is deleted.
    - Who has renewed the file meanwhile with the same content, which an e-tag does not tell, commits within half the lease,
      or looks before and after its commit whether its files are still its own, and then puts all again. So half the lease
      is waited before a file is deleted; if there is a commit by then, the file is put back.

    What is left is a request to delete that is sent again because its answer was lost, while another writes the very same
    video: whoever reads compares with the checksum. Raises: OSError.
    """
    rest, removed = list(nodes.items()), []
    while rest:
        started, held, taken = time.monotonic(), 0, dict[str, tuple[list[_Emptied], bool]]()
        before = (root / os.urandom(8).hex()).now() - max(age_s, LEASE_S)
        while rest and held < HELD_BYTES and time.monotonic() - started < LEASE_S / 8:
            node, files = rest.pop(0)
            taken[node] = emptied, _ = _empty(root / node, files, marker, before)
            held += sum(len(one.content) for one in emptied)
        if any(emptied for emptied, _ in taken.values()):
            time.sleep(LEASE_S / 2)
        for node, (emptied, dead) in taken.items():
            in_time = time.monotonic() - started < 3 / 4 * LEASE_S
            if dead and in_time and not (root / node / marker).is_file():
                for one in emptied:
                    one.place.unlink()
                removed.append(node)
                continue
            for one in emptied:
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    one.place.put(one.content, replacing=one.tag)
    return removed


class _Emptied(NamedTuple):
    """A file that was replaced by an empty one."""

    place: ObjectPath
    content: bytes  # before
    tag: Tag  # now


def _empty(node: ObjectPath, files: Iterable[str], marker: str, before: float) -> tuple[list[_Emptied], bool]:
    """Empty the files of a node that were put before a time, in s since 1970; returns them, and whether all of them are."""
    emptied: list[_Emptied] = []
    if (node / marker).is_file():
        return emptied, False
    for file in files:
        place = node / file
        try:
            content, tag, written = place.read()
            if written >= before:
                return emptied, False
            emptied.append(_Emptied(place, content, place.put(b"", replacing=tag)))
        except FileNotFoundError:
            continue
        except FileExistsError:
            return emptied, False
    return emptied, True


def _all_own(tags: dict[ObjectPath, Tag]) -> bool:
    return all(place.tag() == tag for place, tag in tags.items())


def _any_own(tags: dict[ObjectPath, Tag]) -> bool:
    return any(place.tag() == tag for place, tag in tags.items())


def _is_own_commit(marker: ObjectPath, commit: bytes) -> bool:
    try:
        return marker.read_bytes() == commit
    except FileNotFoundError:
        return False


def _claim(place: ObjectPath, content: bytes, marker: ObjectPath) -> tuple[Tag, bool] | None:
    """Put one file as `publish_objects` says.

    Returns its tag and whether it replaced another writer's, None if another has committed.
    """
    told = False
    ahead_s: float | None = None  # how much the storage's clock is ahead of this machine's
    while True:
        with contextlib.suppress(FileExistsError):
            return place.put(content, absent=True), False
        if marker.is_file():
            return None
        try:
            there, tag, written = place.read()
        except FileNotFoundError:
            continue
        if there != content and ahead_s is None:
            ahead_s = place.with_name(f"{place.name}.{os.urandom(8).hex()}").now() - time.time()
        if there == content or (ahead_s is not None and time.time() + ahead_s - written > LEASE_S):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                return place.put(content, replacing=tag), there != content
        else:
            if not told:
                log.warning(
                    "%s: another writer has put other content there; waiting for it to end, %.0f s at most",
                    place,
                    LEASE_S,
                )
                told = True
            time.sleep(LOOK_S)
