"""What waiting for the disk costs when features are committed: the same videos with and without, in turn, in one run.

Prints JSON: median milliseconds per committed video with HAR_FSYNC unset and 0, per failure record, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from har_pipeline import FeatureSpec, FeatureStore, VideoSource


def milliseconds(work: Callable[[int], object], times: int) -> float:
    """Return the median duration of `work` in ms."""
    durations = []
    for number in range(times):
        started = time.perf_counter()
        work(number)
        durations.append(time.perf_counter() - started)
    return 1000 * statistics.median(durations)


def measure(folder: Path, videos: int, clips: int, dim: int) -> tuple[float, float]:
    """Return the ms that a commit of (clips, dim) float16 features and a failure record take."""
    spec = FeatureSpec(extractor="drawn", weights="random:0", layer="none", feature_dim=dim)
    store = FeatureStore(folder / "store.zarr", create=True)
    name = store.create_feature_set(spec)
    features = np.random.default_rng(0).normal(size=(clips, dim)).astype(np.float16)
    starts = np.arange(clips)
    source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=clips, fps=25.0)
    commit = milliseconds(lambda number: store.write(name, f"v{number}", features, source), videos)
    failure = milliseconds(lambda number: store.record_failure(name, f"w{number}", "no video stream"), videos)
    return commit, failure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="Where to write; default: the temporary folder.")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"fsync": [], "none": []}
    for number in range(2 * options.rounds):
        kind = ("fsync", "none")[number % 2]
        os.environ["HAR_FSYNC"] = "0" if kind == "none" else "1"
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        found[kind].append(measure(folder, options.videos, options.clips, options.dim))
        shutil.rmtree(folder)
    commit, failure = ({k: statistics.median(v[i] for v in rounds) for k, rounds in found.items()} for i in (0, 1))
    result = {
        "videos": options.videos,
        "shape": [options.clips, options.dim],
        "rounds": options.rounds,
        "commit_ms": {kind: round(value, 3) for kind, value in commit.items()},
        "commit_ratio": round(commit["fsync"] / commit["none"], 3),
        "failure_ms": {kind: round(value, 3) for kind, value in failure.items()},
        "failure_ratio": round(failure["fsync"] / failure["none"], 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
