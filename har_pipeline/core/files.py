"""Files and folders that appear whole or not at all, locks, JSON, hashes, and the cache folder.

What is written gets a temporary name and is renamed into place when complete, so that a kill at any moment
leaves the old content or none. The temporary name tells host and process, so that debris of dead processes can be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import HarError


def staging_name() -> str:
    """Return a name that no other writer uses and that tells host and process."""
    return f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:12]}"


def partial_path(path: Path) -> Path:
    """Return a path of this writer's own beside `path`, hidden and with the same suffix, for what is not complete yet."""
    return path.with_name(f".{path.stem}.partial-{staging_name()}{path.suffix}")


@contextlib.contextmanager
def new_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a path to write a file to; on success it replaces `path`, after an error nothing of it is left.

    sync: wait until the content is on the disk before the file gets its name, so that a power cut loses nothing either.
    """
    partial = partial_path(path)
    try:
        yield partial
        if sync:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it replaces `path`, after an error nothing of it is left.

    What killed processes of this host left of the same folder is removed first.
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
    """Rename the folder `staged` to `path`, and delete the folder that was there; after an error the old one is back."""
    replaced = partial_path(path)
    if path.exists():
        path.rename(replaced)
    try:
        staged.rename(path)
    except OSError:
        if replaced.exists():
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def publish(staged: Path, final: Path, marker: str) -> bool:
    """Rename the folder `staged` to `final`; if another process has done so before, delete it and return False.

    marker: the file that a finished folder holds. Raises: OSError if `final` exists without it.
    """
    try:
        staged.rename(final)
    except OSError:
        if not (final / marker).exists():
            raise
        shutil.rmtree(staged, ignore_errors=True)
        return False
    return True


def remove_debris(folder: Path, stem: str = "") -> int:
    """Delete what killed processes of this host left in a staging folder, or, with a stem, of that file or folder.

    Returns how many files and folders that were.
    """
    start = f".{stem}.partial-{socket.gethostname()}" if stem else socket.gethostname()
    named = re.compile(rf"{re.escape(start)}\.(\d+)\.[0-9a-f]{{12,32}}(\.[^.]*)?")
    removed = 0
    for node in folder.iterdir() if folder.is_dir() else ():
        match = named.fullmatch(node.name)
        if match and not process_lives(int(match[1])):
            remove(node)
            removed += 1
    return removed


def remove(node: Path) -> None:
    """Delete a file or a folder with all it holds; one that is missing or cannot be deleted is not an error."""
    if node.is_dir():
        shutil.rmtree(node, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            node.unlink()


def process_lives(pid: int) -> bool:
    """Return whether a process of this number runs on this host, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, created if missing; gives False at once if another process holds it.

    The lock ends with the process, however that ends. The holder may delete the file before it lets go.
    """
    with contextlib.ExitStack() as stack:
        held, linked = True, False
        while held and not linked:
            file = stack.enter_context(open(path, "a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                held = False
            # The holder before may have deleted the file after it was opened here.
            linked = os.fstat(file.fileno()).st_nlink > 0
        if held:
            file.truncate(0)
            file.write(
                f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now().astimezone():%Y-%m-%d %H:%M}"
            )
            file.flush()
        yield held


def lock_owner(path: Path) -> str:
    """Return who holds the lock file `path`: process, host and since when, in words."""
    with contextlib.suppress(OSError, ValueError):
        if text := path.read_text(encoding="utf-8").strip():
            return text
    return "another process"


def recover_folder(path: Path, marker: str) -> bool:
    """Give `path` its folder back where a process of this host was killed between the two renames of `replace_folder`.

    marker: the file that a finished folder holds; of the old folder and the new one the newer is taken. Returns whether
    there was one.
    """
    if path.exists() or not path.parent.is_dir():
        return False
    start = re.escape(f".{path.stem}.partial-{socket.gethostname()}")
    named = re.compile(rf"{start}\.(\d+)\.[0-9a-f]{{12,32}}{re.escape(path.suffix)}")
    found = [(named.fullmatch(node.name), node / marker) for node in path.parent.iterdir()]
    whole = [file for match, file in found if match and not process_lives(int(match[1])) and file.is_file()]
    if not whole:
        return False
    max(whole, key=lambda file: file.stat().st_mtime_ns).parent.rename(path)
    return True


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all, line ends as they are in `text`."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all: indented, keys in the order given."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path, error: type[HarError], hint: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises: `error`, with `hint` at its end, if it cannot be read or holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}); {hint}") from reason
    except ValueError as reason:
        raise error(f"{path}: not valid JSON ({reason}); {hint}") from reason
    if not isinstance(values, dict):
        raise error(f"{path}: not a JSON object; {hint}")
    return values


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_cache() -> Path:
    """Return the folder of downloaded weights, in the user's cache folder; HAR_CACHE moves it."""
    import platformdirs

    return Path(os.environ.get("HAR_CACHE") or platformdirs.user_cache_dir("har_pipeline")) / "weights"
