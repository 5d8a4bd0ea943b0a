"""Pickles that would run code when a careless reader opened them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path


class Malice:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def malicious_pickle(marker: Path) -> bytes:
    """Return a pickle that makes the folder `marker`; the test of the tests is that `pickle.loads` does."""
    return pickle.dumps(Malice(marker), protocol=2)
