"""What a decode worker does to frames of a video, in CPU time: some of them against all, freed memory kept against given back.

Each way runs in a process of its own, in turns, `--rounds` times; ratios are medians over the rounds. Prints JSON.

- `all`: every frame decoded, converted to RGB and scaled (`stretch-224`), with freed memory kept, as a worker does;
- `few`: every frame decoded, 40 spread over the video converted and scaled, as for a net's default clips;
- `few, all converted`: the same 40 chosen after all were converted;
- `all, memory given back`: as `all`, with the C library's own settings.

    python benchmarks/frames.py VIDEO --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from har_pipeline import FrameReader, keep_freed_memory, parse_resize, resize_frame

WAYS = ("all", "few", "few, all converted", "all, memory given back")
FEW = 40


def work(path: Path, way: str) -> dict[str, float]:
    """Read a video once and return the CPU seconds, and the frames that were met."""
    if way != "all, memory given back":
        keep_freed_memory()
    mode = parse_resize("stretch-224")
    count = sum(1 for _ in FrameReader(path))
    chosen = set(np.linspace(0, count - 1, FEW).round().astype(int).tolist())
    reader = FrameReader(path, wants=chosen.__contains__ if way == "few" else None)
    started = time.process_time()
    for number, frame in reader:
        if way != "few, all converted" or number in chosen:
            resize_frame(frame, mode)
    return {"cpu_s": time.process_time() - started, "frames": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(work(arguments.video, arguments.way)))
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    frames = 0
    for _ in range(arguments.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, str(arguments.video), "--way", way]
            found = json.loads(subprocess.check_output(command, text=True))
            seconds[way].append(found["cpu_s"])
            frames = int(found["frames"])

    def ratio(slower: str, faster: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)), 2)

    result = {
        "benchmark": "frames",
        "frames": frames,
        "rounds": arguments.rounds,
        "cpu_ms_per_frame": {way: round(1000 * statistics.median(own) / frames, 3) for way, own in seconds.items()},
        "ratios": {
            "converting_all_times_few": ratio("few, all converted", "few"),
            "giving_memory_back_times_keeping": ratio("all, memory given back", "all"),
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
