"""What a decode worker does to frames of a video, in CPU time: some of them against all, one way of scaling against another.

Each way runs in a process of its own, in turns, `--rounds` times; ratios are medians over the rounds. Prints JSON, with
page faults. Without VIDEO a film of 1920x1080 px is drawn, H.264, `--frames` of them.

- `all`: every frame decoded, converted to RGB and scaled (`stretch-224`), with freed memory kept, as a worker does;
- `all, swscale`: every frame decoded, then converted and scaled in one pass (`--resize-method swscale`);
- `few`: every frame decoded, 40 spread over the video converted and scaled, as for a net's default clips;
- `few, all converted`: the same 40 chosen after all were converted;
- `all, memory given back`: as `all`, with the C library's own settings;
- `decoded`: nothing but decoding.

    python benchmarks/frames.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from har_pipeline import FrameReader, keep_freed_memory, parse_resize, resize_frame, write_video

WAYS = ("all", "all, swscale", "few", "few, all converted", "all, memory given back", "decoded")
FEW = 40
MODE = parse_resize("stretch-224")
SIZE = (224, 224)


def drawn(frames: int) -> Iterator[np.ndarray]:
    """Yield (1080, 1920, 3) uint8 frames whose detail weakens with its fineness, as in photographs, and that move."""
    rng = np.random.default_rng(0)
    picture = np.zeros((1088, 2560, 3), np.float32)
    for octave in range(2, 9):
        step = 2**octave
        coarse = rng.normal(size=(-(-1088 // step), -(-2560 // step), 3)).astype(np.float32) * step
        picture += coarse.repeat(step, 0).repeat(step, 1)[:1088, :2560]
    picture = (picture - picture.min()) / np.ptp(picture) * 255
    for number in range(frames):
        left = 2 * number % 640
        yield np.ascontiguousarray(picture[:1080, left : left + 1920].astype(np.uint8))


def work(path: Path, way: str) -> dict[str, float]:
    """Read a video once and return the CPU seconds and page faults, and the frames that were met."""
    if way != "all, memory given back":
        keep_freed_memory()
    count = sum(1 for _ in FrameReader(path))
    chosen = set(np.linspace(0, count - 1, FEW).round().astype(int).tolist())
    wants = {"few": chosen.__contains__, "decoded": lambda number: False}.get(way)
    reader = FrameReader(path, wants=wants)
    started, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    if way == "all, swscale":
        for _, picture in reader.pictures():
            picture.rgb(SIZE)
    else:
        for number, frame in reader:
            if way != "few, all converted" or number in chosen:
                resize_frame(frame, MODE)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"cpu_s": time.process_time() - started, "frames": count, "faults": faults}


def levels_apart(path: Path) -> float:
    """Return the mean absolute difference of frames scaled in the two ways, of 0 to 255 levels."""
    wants = range(0, 10**9, 25).__contains__
    area = (resize_frame(frame, MODE).astype(int) for _, frame in FrameReader(path, wants=wants))
    swscale = (picture.rgb(SIZE).astype(int) for _, picture in FrameReader(path, wants=wants).pictures())
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(area, swscale, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--frames", type=int, default=200, help="frames that are drawn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(work(arguments.video, arguments.way)))
        return
    with tempfile.TemporaryDirectory() as folder:
        video = arguments.video or Path(folder) / "drawn.mp4"
        if arguments.video is None:
            write_video(video, drawn(arguments.frames), codec="libx264", bit_rate=8_000_000)
        measure(video, arguments.rounds, drawn=arguments.video is None)


def measure(video: Path, rounds: int, *, drawn: bool) -> None:
    """Print what the ways take, one process each, in turns."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, str(video), "--way", way]
            found[way].append(json.loads(subprocess.check_output(command, text=True)))
    seconds = {way: [one["cpu_s"] for one in all_of] for way, all_of in found.items()}
    frames = int(found["all"][0]["frames"])

    def ratio(slower: str, faster: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)), 2)

    result = {
        "benchmark": "frames",
        "video": "1920x1080 px, H.264, drawn" if drawn else "given",
        "frames": frames,
        "rounds": rounds,
        "cpu_ms_per_frame": {way: round(1000 * statistics.median(own) / frames, 3) for way, own in seconds.items()},
        "page_faults_per_frame": {
            way: round(statistics.median(one["faults"] for one in all_of) / frames, 1) for way, all_of in found.items()
        },
        "levels_apart": round(levels_apart(video), 2),
        "ratios": {
            "converting_all_times_few": ratio("few, all converted", "few"),
            "area_times_swscale": ratio("all", "all, swscale"),
            "giving_memory_back_times_keeping": ratio("all, memory given back", "all"),
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
