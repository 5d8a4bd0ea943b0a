"""Improved dense trajectories on one core: frames/s and where they go, memory by the length of a video, and flow. Prints JSON.

- `speed`: at 320x240, a rendered person, enlarged, before a still camera and before one that pans. The videos run forwards
  and backwards until they are as long as asked. Each measurement has a process of its own, which hands the frames over one
  by one and keeps none of the points. `stages` are shares of the time, of the shortest length, in a second run.
- `flow`: of pairs of rendered frames, whose flow is exact, the mean error in px where something moves by more than half a px
  and elsewhere, and the CPU time of a pair of 320x240 px, for what the trajectories use (`dis_to_1_px`), OpenCV's own
  setting of DIS, and Farneback's method as the papers set it.

    python benchmarks/trajectories.py --seconds 10 60
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import multiprocessing
import pstats
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np

from har_pipeline import dense_trajectories, render_video

WIDTH, HEIGHT = 320, 240
FPS = 25
MARGIN = 40
# Functions whose time is reported, each with all that it calls.
STAGES = {
    "flow": "<method 'calc' of 'cv2.DenseOpticalFlow' objects>",
    "camera": "camera_motion",
    "without_camera": "without_camera",
    "start": "_start",
    "follow": "_follow",
    "describe": "_count",
}
Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]


def film(camera: str, count: int) -> Iterator[np.ndarray]:
    """Yield `count` frames (240, 320, 3) uint8; the camera is `still` or `pans`."""
    rendered = render_video(1, "handwaving", "d1").frames
    there_and_back = np.concatenate([rendered, rendered[-2:0:-1]])
    size = (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)
    for number in range(count):
        large = cv2.resize(there_and_back[number % len(there_and_back)], size, interpolation=cv2.INTER_CUBIC)
        turn = number / 20
        x, y = (MARGIN * math.sin(turn), MARGIN / 2 * math.cos(turn)) if camera == "pans" else (0, 0)
        yield cv2.getRectSubPix(large, (WIDTH, HEIGHT), (size[0] / 2 + x, size[1] / 2 + y))


def peak_mib() -> float:
    """Return the largest memory this process has had so far."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def measure(camera: str, seconds: int) -> dict[str, float]:
    cv2.setNumThreads(1)
    frames = film(camera, FPS * seconds)
    first = next(frames)  # renders the video

    def all_frames() -> Iterator[np.ndarray]:
        yield first
        yield from frames

    before, wall, cpu = peak_mib(), time.perf_counter(), time.process_time()
    found = sum(len(points) for points in dense_trajectories(all_frames()))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "frames_per_s": round(FPS * seconds / wall, 1),
        "frames_per_cpu_s": round(FPS * seconds / cpu, 1),
        "trajectories_per_frame": round(found / (FPS * seconds), 1),
        "peak_mib": round(peak_mib(), 1),
        "peak_mib_before": round(before, 1),
    }


def stages(camera: str, seconds: int) -> dict[str, float]:
    """Return the share of the time of each stage; the rest is reading of frames, scales and selection."""
    cv2.setNumThreads(1)
    frames = list(film(camera, FPS * seconds))
    profile = cProfile.Profile()
    profile.enable()
    for _ in dense_trajectories(frames):
        pass
    profile.disable()
    stats = pstats.Stats(profile)
    by_name = {name: spent[3] for (_, _, name), spent in stats.stats.items()}  # type: ignore[attr-defined]
    total = stats.total_tt  # type: ignore[attr-defined]
    return {stage: round(by_name[name] / total, 3) for stage, name in STAGES.items()}


def flows() -> dict[str, Flow]:
    fine, medium = (cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) for _ in range(2))
    fine.setFinestScale(0)
    farneback = cv2.FarnebackOpticalFlow.create(7, math.sqrt(0.5), False, 10, 2, 7, 1.5, 0)
    return {
        "dis_to_1_px": lambda before, now: fine.calc(before, now, None),  # type: ignore[call-overload]
        "dis_medium": lambda before, now: medium.calc(before, now, None),  # type: ignore[call-overload]
        "farneback": lambda before, now: farneback.calc(before, now, None),  # type: ignore[call-overload]
    }


def flow_errors(subjects: int, every: int) -> dict[str, dict[str, float]]:
    """Compare on the rendered set's first subjects, which train: a pair of every so many frames."""
    cv2.setNumThreads(1)
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in flows()}
    for subject in range(1, subjects + 1):
        for action in ("boxing", "handwaving", "walking", "running"):
            video = render_video(subject, action, "d3", flow=True)
            assert video.flow is not None
            for number in range(0, len(video.frames) - 1, every):
                before, now = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video.frames[number : number + 2])
                exact = video.flow[number]
                moves = np.linalg.norm(exact - np.median(exact, axis=(0, 1)), axis=2) > 0.5
                for name, method in flows().items():
                    error = np.linalg.norm(method(before, now) - exact, axis=2)
                    if moves.any():
                        errors[name].append((float(error[moves].mean()), float(error[~moves].mean())))
    pair = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in film("pans", 2)]
    return {
        name: {
            "error_px_where_it_moves": round(float(np.mean([moving for moving, _ in errors[name]])), 3),
            "error_px_elsewhere": round(float(np.mean([rest for _, rest in errors[name]])), 3),
            "cpu_ms_per_pair": round(cpu_ms(method, pair), 1),
        }
        for name, method in flows().items()
    }


def cpu_ms(method: Flow, pair: list[np.ndarray], rounds: int = 10) -> float:
    method(pair[0], pair[1])
    started = time.process_time()
    for _ in range(rounds):
        method(pair[0], pair[1])
    return (time.process_time() - started) * 1000 / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help=f"lengths of the video, at {FPS} fps")
    parser.add_argument("--subjects", type=int, default=4, help="whose flow is compared")
    parser.add_argument("--every", type=int, default=9, help="frames between the pairs whose flow is compared")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    speed: dict[str, dict[str, object]] = {}
    for camera in ("still", "pans"):
        speed[camera] = {}
        for seconds in options.seconds:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                speed[camera][f"{seconds} s"] = pool.submit(measure, camera, seconds).result()
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            speed[camera]["stages"] = pool.submit(stages, camera, min(options.seconds)).result()
    result = {
        "benchmark": "trajectories",
        "size": f"{WIDTH}x{HEIGHT}",
        "threads": 1,
        "speed": speed,
        "flow": flow_errors(options.subjects, options.every),
        "opencv": cv2.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
