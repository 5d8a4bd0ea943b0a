"""What the page is made of: numbers of runs, jobs, fusions and sweeps, and what is left out with its reason."""

from __future__ import annotations

CLASSES = ("a", "b", "c", "d", "e", "f")
VIDEOS = [f"v{n:02d}" for n in range(36)]
