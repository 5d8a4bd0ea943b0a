"""A few clips of a long file: what nobody wants skipped, against everything decoded, in CPU time and wall time.

The file is rendered: noise over a moving picture, `--minutes` long, H.264 in MP4 with a key frame every 250 frames. Each way
runs in a process of its own, in turns, `--rounds` times, the look at header and packets included; ratios are medians over the
rounds. The frames, their number and the notes of both ways are compared. Prints JSON.

    python benchmarks/seek.py --minutes 20 --rounds 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline import FrameReader, write_video

WAYS = ("skipped", "all decoded")
FPS = 25
HEIGHT, WIDTH = 240, 320
BIT_RATE = 600_000


def pictures(count: int) -> Iterator[np.ndarray]:
    """Yield (240, 320, 3) uint8 frames: a picture that moves by 2 px a frame, under one of 16 patterns of noise."""
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 195, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    noise = rng.integers(0, 24, (16, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number in range(count):
        yield np.roll(picture, 2 * number, axis=1) + noise[number % 16]


def work(path: Path, way: str, wanted: set[int]) -> dict[str, Any]:
    """Read frames of a video; return the seconds that it took, and what was read."""
    started, cpu = time.perf_counter(), time.process_time()
    reader = FrameReader(path, wants=wanted.__contains__, seek=way == "skipped")
    digest = hashlib.sha256()
    for number, frame in reader:
        digest.update(number.to_bytes(8, "little") + frame.tobytes())
    seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - started}
    return {**seconds, "read": [digest.hexdigest(), reader.frames_decoded, reader.notes, len(wanted)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--clip-len", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count = round(arguments.minutes * 60 * FPS)
    starts = np.linspace(0, count - arguments.clip_len, arguments.clips).round().astype(int)
    wanted = set((starts[:, None] + np.arange(arguments.clip_len)).ravel().tolist())
    if arguments.way:
        print(json.dumps(work(arguments.video, arguments.way, wanted)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        write_video(path, pictures(count), FPS, "libx264", bit_rate=BIT_RATE)
        megabytes = path.stat().st_size / 1e6
        for _ in range(arguments.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, *sys.argv[1:], "--video", str(path), "--way", way]
                found[way].append(json.loads(subprocess.check_output(command, text=True)))
    if len({json.dumps(one["read"]) for own in found.values() for one in own}) != 1:
        raise SystemExit(f"the two ways read different frames: {found}")

    def ratio(of: str) -> float:
        pairs = zip(found["all decoded"], found["skipped"], strict=True)
        return round(statistics.median(slow[of] / fast[of] for slow, fast in pairs), 1)

    def median(of: str) -> dict[str, float]:
        return {way: round(statistics.median(one[of] for one in own), 3) for way, own in found.items()}

    result = {
        "benchmark": "seek",
        "frames": count,
        "minutes": arguments.minutes,
        "megabytes": round(megabytes, 1),
        "clips": arguments.clips,
        "clip_len": arguments.clip_len,
        "rounds": arguments.rounds,
        "same_frames": True,
        "cpu_s": median("cpu_s"),
        "wall_s": median("wall_s"),
        "ratios": {"cpu": ratio("cpu_s"), "wall": ratio("wall_s")},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
