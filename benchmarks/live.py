"""Live decisions for as long as a camera runs: time per window, and memory, from the first minute to the last. Prints JSON.

RUN is of a stateful network on depth. Frames of NTU RGB+D's size, a body that walks back and forth, are pushed one by
one, as from a camera, as fast as they are processed, with the horizon that `har predict --live` uses for a camera. The
first minute of video is compared with the last one.

    python benchmarks/live.py RUN --minutes 60
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from har_pipeline import CAMERA_HORIZON, StatefulRecogniser

HEIGHT, WIDTH = 424, 512


def walking_body(seconds: int, fps: int) -> np.ndarray:
    """Return (seconds * fps, 424, 512) uint16 mm, ending where it begins."""
    frames = np.zeros((seconds * fps, HEIGHT, WIDTH), np.uint16)
    surface = np.random.default_rng(0).integers(0, 200, (200, 80), np.uint16)
    for number, frame in enumerate(frames):
        phase = 2 * np.pi * number / len(frames)
        left, nearness = int(200 + 150 * np.sin(phase)), int(400 * np.cos(phase))
        frame[150:350, left : left + 80] = surface + (2500 + nearness)
    return frames


def peak_mib() -> float:
    """Return the largest memory this process has had so far."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def seconds_of_windows(recogniser: StatefulRecogniser, frames: Iterator[np.ndarray]) -> list[float]:
    """Push single frames and return the seconds from each window's first frame to its decision."""
    found, windows, start = [], recogniser.windows, time.perf_counter()
    for frame in frames:
        recogniser.push(frame[None])
        if recogniser.windows > windows:
            windows, end = recogniser.windows, time.perf_counter()
            found.append(end - start)
            start = end
    return found


def measure(args: argparse.Namespace) -> dict[str, object]:
    recogniser = StatefulRecogniser(args.run, horizon=CAMERA_HORIZON)
    film = walking_body(10, args.fps)
    minute = [film[number % len(film)] for number in range(60 * args.fps)]
    first = seconds_of_windows(recogniser, iter(minute))
    peaks = [peak_mib()]
    rest: list[float] = []
    for _ in range(1, args.minutes):
        rest += seconds_of_windows(recogniser, iter(minute))
        peaks.append(peak_mib())
        print(f"minute {len(peaks)}: {peaks[-1]:.1f} MiB", file=sys.stderr)
    final = recogniser.probabilities
    all_of_them = first + rest
    return {
        "benchmark": "live",
        "minutes": args.minutes,
        "fps": args.fps,
        "windows": len(all_of_them),
        "seconds_per_window": statistics.median(all_of_them),
        "seconds_per_window_99_percent": float(np.quantile(all_of_them, 0.99)),
        "share_of_real_time": sum(all_of_them) / (60 * args.minutes),
        "peak_mib_first_minute": peaks[0],
        "peak_mib_last_minute": peaks[-1],
        "last_over_first_minute": statistics.median((rest or first)[-len(first) :]) / statistics.median(first),
        "finite": bool(np.isfinite(final).all() and abs(final.sum() - 1) < 1e-6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=int, default=60, help="of video, not of the clock")
    parser.add_argument("--fps", type=int, default=30)
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
