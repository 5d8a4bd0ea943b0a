"""Folders that appear whole or not at all: made under a name of their own in a staging folder, then renamed into place."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from pathlib import Path


def staging_name() -> str:
    """Return a name that no other process uses and that tells host and process."""
    return f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"


def publish(staged: Path, final: Path, marker: str) -> bool:
    """Rename `staged` to `final`; where another process has done so before, delete it and return False.

    marker: the file that a finished folder holds. Raises: OSError if `final` is there without it.
    """
    try:
        staged.rename(final)
    except OSError:
        if not (final / marker).exists():
            raise
        shutil.rmtree(staged, ignore_errors=True)
        return False
    return True


def remove_debris(staging: Path) -> int:
    """Delete what killed processes of this host left in a staging folder; returns how many folders."""
    removed = 0
    for node in staging.iterdir() if staging.is_dir() else ():
        host, _, rest = node.name.rpartition(".")[0].rpartition(".")
        if host == socket.gethostname() and rest.isdigit() and not _process_lives(int(rest)):
            shutil.rmtree(node, ignore_errors=True)
            removed += 1
    return removed


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
