"""Where the project's own folders are, for tests that run its scripts or start processes."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def python_path(*folders: Path) -> dict[str, str]:
    """Return the environment of a process that imports the project, the tests' helper modules and those in `folders`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT, TESTS, *folders))}
