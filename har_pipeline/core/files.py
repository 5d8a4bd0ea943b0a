"""Files and folders that appear whole or not at all, on the disk before they count; locks, JSON, hashes, the cache folder.

What is written gets a temporary name and is renamed into place when complete, so that a kill at any moment leaves the old
content or none; file and folder are flushed to the disk around the renaming, so that a power cut does no more than a kill.
HAR_FSYNC=0 in the environment leaves the flushing out, for who can make everything again and has a slow disk.

A temporary name tells its owner: host, machine (a hash over host, boot and, of containers, the table of process numbers),
process number, and a random token. Debris is removed by the next job in the same folder, but only if its owner is dead
beyond doubt, which is the case if a process of this very machine has ended, or if nothing in it was written for
`LEASE_DAYS`: writing is what renews the lease. Two containers that share a host name, or a machine that has booted since,
are other machines, so their debris goes by its age.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import HarError, WeightsError
from har_pipeline.core.objects import ObjectPath, StorePath

LEASE_DAYS = 7

# Owners as `staging_name` writes them; older versions wrote no machine. A suffix may follow.
_OWNER = r"(?P<host>[^./][^/]*?)\.(?:m(?P<machine>[0-9a-f]{8})\.)?(?P<pid>\d+)\.(?P<token>[0-9a-f]{12,32})(?:\.[^.]*)?"

# Files whose names tell no owner: Zarr's, and those of older versions. They go by their age alone.
_UNOWNED = re.compile(r"(?:\..+\.\d+|zarr\.[0-9a-f]+)\.partial(?:\.npy)?")

# Where folders cannot be flushed, as on some network file systems, there is nothing to wait for.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOSYS}


@functools.cache
def _machine() -> str:
    """Return 8 hex digits that processes share if one's number can be looked up by the other."""
    known = []
    with contextlib.suppress(OSError):  # Linux only
        known = [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join([socket.gethostname(), *(known or [str(uuid.getnode())])]).encode()).hexdigest()[:8]


@functools.lru_cache(1)
def _process_token(pid: int) -> str:
    """Return a token of this process; a fork, whose number is another, gets its own."""
    return uuid.uuid4().hex[:8]


def staging_name() -> str:
    """Return a name that no other writer uses and that tells its owner."""
    pid = os.getpid()
    return f"{socket.gethostname()[:64]}.m{_machine()}.{pid}.{_process_token(pid)}{uuid.uuid4().hex[:12]}"


def partial_path(path: Path) -> Path:
    """Return a path of this writer's own beside `path`, hidden and with the same suffix, for what is not complete yet."""
    return path.with_name(f".{path.stem}.partial-{staging_name()}{path.suffix}")


def finished_path(path: Path) -> Path:
    """Return a path of this writer's own beside `path` for a whole folder, which `recover_folder` finds after a kill."""
    return path.with_name(f".{path.name}.finished-{staging_name()}")


@contextlib.contextmanager
def new_file(path: StorePath, *, sync: bool = True) -> Iterator[Path]:
    """Give a path to write a file to; on success it replaces `path`, after an error nothing of it is left.

    What killed processes left in the same folder is removed first. sync: wait until the content is on the disk before the
    file gets its name, so that a power cut loses nothing either; False for what is checked when it is read, and can be lost.
    """
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="har-") as folder:
            partial = Path(folder) / path.name
            yield partial
            path.put(partial)
        return
    assert isinstance(path, Path)
    _sweep(os.getpid(), path.parent.absolute())
    partial = partial_path(path)
    try:
        yield partial
        if sync:
            sync_file(partial)
        partial.replace(path)
        if sync:
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a lost disk has its own error already
            partial.unlink(missing_ok=True)


@functools.lru_cache(4096)
def _sweep(pid: int, folder: Path) -> None:
    """Remove the debris of a folder, once in each process."""
    with contextlib.suppress(OSError):
        remove_debris(folder, "*")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it replaces `path`, after an error nothing of it is left.

    What killed processes left of the same folder is removed first.
    """
    partial = partial_path(path)
    remove_debris(path.parent, path.stem)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(staged: Path, path: Path) -> None:
    """Rename the folder `staged` to `path`, and delete the folder that was there; after an error the old one is back.

    After a kill between the two renames `path` is missing; `recover_folder` brings the old one back.
    """
    sync_tree(staged)
    for copy in _replaced(path) if path.exists() else ():
        remove(copy)  # a kill came before its deletion
    replaced = path.with_name(f".{path.name}.replaced-{staging_name()}")
    if path.exists():
        path.rename(replaced)
    try:
        staged.rename(path)
    except OSError:
        if replaced.exists():
            replaced.rename(path)
        raise
    sync_folder(path.parent)
    if replaced.exists():
        # Under this name it is debris: what is half deleted must not be recovered.
        trash = partial_path(path)
        replaced.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def recover_folder(path: Path, marker: str) -> bool:
    """Bring back the folder that a killed `replace_folder` took away and put nothing in the place of.

    marker: the file that a whole folder holds. Of the old folder and one of a `finished_path` the newer is taken. Returns
    whether `path` was missing and is there again. Nothing happens while the process that replaces it lives.
    """
    if path.exists():
        return False
    whole = [copy for copy in _replaced(path) if (copy / marker).is_file()]
    if not whole:
        return False
    try:
        max(whole, key=lambda copy: (copy / marker).stat().st_mtime_ns).rename(path)
    except OSError:  # another process was first, or nothing can be written here
        return path.exists()
    sync_folder(path.parent)
    return True


def _replaced(path: Path) -> list[Path]:
    """Return what `path` was before replacements, or was about to become, of processes that no longer live here."""
    named = re.compile(rf"{re.escape(f'.{path.name}.')}(?:replaced|finished)-{_OWNER}")
    found = [(node, named.fullmatch(node.name)) for node in path.parent.iterdir()] if path.parent.is_dir() else []
    return [node for node, match in found if match and not _lives_here(match)]


def publish(staged: Path, final: Path, marker: str) -> bool:
    """Rename the folder `staged` to `final`; if another process has done so before, delete it and return False.

    marker: the file that a finished folder holds. Raises: OSError if `final` exists without it.
    """
    sync_tree(staged)
    try:
        staged.rename(final)
    except OSError:
        if not (final / marker).exists():
            raise
        shutil.rmtree(staged, ignore_errors=True)
        return False
    sync_folder(final.parent)
    return True


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk, unless HAR_FSYNC is 0."""
    if os.environ.get("HAR_FSYNC") == "0":
        return
    with open(path, "rb" if os.name == "posix" else "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, unless HAR_FSYNC is 0 or the file system cannot tell."""
    if os.environ.get("HAR_FSYNC") == "0" or os.name != "posix":
        return
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def sync_tree(folder: Path) -> None:
    """Wait until all that a folder holds is on the disk; see `sync_file`."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def remove_debris(folder: Path, stem: str = "") -> int:
    """Delete what dead writers left in a staging folder or, with a stem, of that file or folder (`*`: of any).

    Returns how many files and folders that were. What belongs to a living process stays, see above.
    """
    start = "" if not stem else rf"\.{'.+' if stem == '*' else re.escape(stem)}\.partial-"
    named = re.compile(f"{start}{_OWNER}")
    removed = 0
    for node in folder.iterdir() if folder.is_dir() else ():
        match = named.fullmatch(node.name)
        unowned = stem == "*" and _UNOWNED.fullmatch(node.name) and not node.is_dir()
        if (match and _ended_here(match)) or ((match or unowned) and _lease_is_over(node)):
            remove(node)
            removed += 1
    return removed


def _is_here(owner: re.Match[str]) -> bool:
    return owner["machine"] == _machine()


def _lives_here(owner: re.Match[str]) -> bool:
    return _is_here(owner) and not _ended_here(owner)


def _ended_here(owner: re.Match[str]) -> bool:
    """Whether the owner was a process of this machine and has ended. One whose number is in use again may not have."""
    if not _is_here(owner):
        return False
    pid = int(owner["pid"])
    return not owner["token"].startswith(_process_token(pid)) if pid == os.getpid() else not process_lives(pid)


def _lease_is_over(node: Path) -> bool:
    """Return whether nothing in a file or folder was written for `LEASE_DAYS`."""
    newest = 0.0
    with contextlib.suppress(OSError):  # what vanishes meanwhile
        newest = max(one.lstat().st_mtime for one in (node, *(node.rglob("*") if node.is_dir() else ())))
    return bool(newest) and time.time() - newest > LEASE_DAYS * 86400


def remove(node: Path) -> None:
    """Delete a file or a folder with all it holds; one that is missing or cannot be deleted is not an error."""
    if node.is_dir() and not node.is_symlink():
        shutil.rmtree(node, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            node.unlink()


def process_lives(pid: int) -> bool:
    """Return whether a process of this number runs on this host, whoever owns it."""
    import psutil

    return bool(psutil.pid_exists(pid))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, created if missing; gives False at once if another process holds it, see `lock_owner`.

    The lock ends with the process, however that ends; the file may stay.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # the lock holds all the same
            # Empty, or of the owner before; other content is how filelock locks where the system cannot.
            if path.read_bytes()[:1] in (b"", b"{"):
                path.write_text(json.dumps(owner), encoding="utf-8")
        yield True
    finally:
        lock.release()


def lock_owner(path: Path) -> str:
    """Return in words who holds the lock file `path`, such as `process 12 on host since 2026-01-31 10:00:00 UTC`."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.fromisoformat(owner["since"]).astimezone(UTC)
        return f"process {int(owner['pid'])} on {owner['host']} since {since:%Y-%m-%d %H:%M:%S} UTC"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def write_text(path: StorePath, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all, line ends as they are in `text`."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def holds_other(path: Path, text: str) -> bool:
    """Return whether a path is taken by anything else than a file of this text, which a person may have edited."""
    return os.path.lexists(path) and not (path.is_file() and path.read_bytes() == text.encode())


def write_json(path: StorePath, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all: indented, keys in the order given."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: StorePath, error: type[HarError], hint: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises: `error`, with `hint` at its end, if it cannot be read or holds none."""
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}); {hint}") from reason
    except (ValueError, RecursionError) as reason:  # the latter where arrays are nested too deep
        raise error(f"{path}: not valid JSON ({reason}); {hint}") from reason
    if not isinstance(values, dict):
        raise error(f"{path}: not a JSON object; {hint}")
    return values


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_OTHER_CACHE = "set HAR_CACHE to a folder that can be written, or give the file with --weights FILE"


def user_cache() -> Path | None:
    """Return the folder of what is kept between jobs, in the user's cache folder; HAR_CACHE moves it. None: there is none."""
    if folder := os.environ.get("HAR_CACHE"):
        return Path(os.path.expanduser(folder))
    import platformdirs

    try:
        folder = platformdirs.user_cache_dir("har_pipeline")
    except RuntimeError:  # older ones return a path that begins with ~
        folder = ""
    return Path(folder) if os.path.isabs(folder) else None


def weights_cache() -> Path:
    """Return the folder of downloaded weights. Raises: WeightsError naming HAR_CACHE if the user has no home folder."""
    folder = user_cache()
    if folder is None:
        raise WeightsError(f"the user has no home folder to keep weights in; {_OTHER_CACHE}")
    return folder / "weights"


def cached_weights(name: str) -> Path:
    """Return where a downloaded weights file is, or where it is to be written: in the folder `weights_cache`.

    Raises: WeightsError naming HAR_CACHE if the file is not there and cannot be written there.
    """
    path = weights_cache() / name
    try:
        try:
            path.stat()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
    except OSError as error:
        raise WeightsError(
            f"{path.parent}: cannot be used as the cache of weights ({error.strerror}); {_OTHER_CACHE}"
        ) from error
    return path
