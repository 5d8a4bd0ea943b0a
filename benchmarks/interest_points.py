"""Space-time interest points on one core: frames/s at 160x120 and 320x240, and memory by the length of a video. Prints JSON.

The video is a rendered one, enlarged for the second size, that runs forwards and backwards until it is as long as asked.
Each measurement has a process of its own, which hands the frames over one by one and keeps none of the points.

    python benchmarks/interest_points.py --seconds 10 60
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np

from har_pipeline import interest_points, render_video

SIZES = ((160, 120), (320, 240))
FPS = 25


def film(size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """Yield `count` frames (H, W, 3) uint8."""
    rendered = render_video(1, "handwaving", "d3").frames
    there_and_back = np.concatenate([rendered, rendered[-2:0:-1]])
    for number in range(count):
        yield cv2.resize(there_and_back[number % len(there_and_back)], size, interpolation=cv2.INTER_CUBIC)


def peak_mib() -> float:
    """Return the largest memory this process has had so far."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def measure(size: tuple[int, int], seconds: int) -> dict[str, float]:
    cv2.setNumThreads(1)
    frames = film(size, count=FPS * seconds)
    first = next(frames)  # renders the video

    def all_frames() -> Iterator[np.ndarray]:
        yield first
        yield from frames

    before, wall, cpu = peak_mib(), time.perf_counter(), time.process_time()
    points = sum(len(found) for found in interest_points(all_frames()))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "frames_per_s": round(FPS * seconds / wall, 1),
        "frames_per_cpu_s": round(FPS * seconds / cpu, 1),
        "points_per_frame": round(points / (FPS * seconds), 1),
        "peak_mib": round(peak_mib(), 1),
        "peak_mib_before": round(before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help=f"lengths of the video, at {FPS} fps")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, object]] = {}
    for size in SIZES:
        for seconds in options.seconds:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                result = pool.submit(measure, size, seconds).result()
            found.setdefault(f"{size[0]}x{size[1]}", {})[f"{seconds} s"] = result
    print(
        json.dumps({"benchmark": "interest_points", "threads": 1, "sizes": found, "opencv": cv2.__version__}, indent=2)
    )


if __name__ == "__main__":
    main()
