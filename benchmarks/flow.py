"""TV-L1 of this package against OpenCV's, in turns within one run, at 320x240 and 340x256. Prints JSON.

Both take the same frame pairs with the same parameters and give flow in host memory; ours on `--device` (`auto`: a GPU if
there is one), OpenCV's on the CPU, each with `--threads` threads; without opencv-contrib the rival is ours on the CPU.
Pairs are spread evenly over the video, by default a rendered one, whose exact flow gives both an end-point error. Ratios
are medians over the rounds. The median and the 95th percentile of the end-point difference say how far the two agree.

    python benchmarks/flow.py --video v_BenchPress_g01_c01.avi --pairs 16 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from har_pipeline import FlowSpec, FrameReader, compiled_step, compute_flow, opencv_method, render_video

SIZES = ((320, 240), (340, 256))
RIVAL = "opencv" if hasattr(cv2, "optflow") else "ours_on_cpu"


def read_frames(video: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return all frames, and the exact flow of a rendered video."""
    if video is not None:
        return np.stack([frame for _, frame in FrameReader(video)]), None
    rendered = render_video(1, "boxing", "d1", flow=True)
    return rendered.frames, rendered.flow


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames])


def opencv_flow(first: np.ndarray, second: np.ndarray, spec: FlowSpec) -> np.ndarray:
    method = opencv_method(spec)
    flow = np.empty((*first.shape[:3], 2), np.float32)
    for index, pair in enumerate(zip(first, second, strict=True)):
        before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pair)
        flow[index] = method.calc(before, after, None)  # type: ignore[call-overload]
    return flow


def measure(
    first: np.ndarray, second: np.ndarray, device: torch.device, compiled: bool, rounds: int, spec: FlowSpec
) -> tuple[dict[str, list[float]], np.ndarray, np.ndarray]:
    """Return the seconds of each round for all pairs, and both flows of the last one."""
    seconds: dict[str, list[float]] = {"ours": [], RIVAL: []}
    compute_flow(first, second, spec, device, compiled=compiled)  # the first call compiles and warms up
    for _ in range(rounds):
        started = time.perf_counter()
        ours = compute_flow(first, second, spec, device, compiled=compiled).cpu().numpy()
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = rival_flow(first, second, spec, compiled)
        seconds[RIVAL].append(time.perf_counter() - started)
    return seconds, ours, theirs.clip(-spec.bound_px, spec.bound_px)


def rival_flow(first: np.ndarray, second: np.ndarray, spec: FlowSpec, compiled: bool) -> np.ndarray:
    if RIVAL == "opencv":
        return opencv_flow(first, second, spec_of_opencv(spec))
    return compute_flow(first, second, spec, torch.device("cpu"), compiled=compiled).numpy()


def spec_of_opencv(spec: FlowSpec) -> FlowSpec:
    return FlowSpec(method="tvl1_opencv", bound_px=spec.bound_px, tvl1=spec.tvl1)


def error_px(flow: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(flow - other, axis=-1)


def result_of_size(
    frames: np.ndarray,
    exact: np.ndarray | None,
    size: tuple[int, int],
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, object]:
    numbers = np.unique(np.linspace(0, len(frames) - 2, options.pairs).astype(int))
    first, second = resized(frames[numbers], size), resized(frames[numbers + 1], size)
    seconds, ours, theirs = measure(first, second, device, not options.eager, options.rounds, FlowSpec())
    difference = error_px(ours, theirs)
    result: dict[str, object] = {
        "pairs": len(numbers),
        "pairs_per_s": {name: round(len(numbers) / statistics.median(values), 2) for name, values in seconds.items()},
        f"ours_times_{RIVAL}": round(
            statistics.median(b / a for a, b in zip(seconds["ours"], seconds[RIVAL], strict=True)), 2
        ),
        "difference_px": {
            "median": round(float(np.median(difference)), 4),
            "p95": round(float(np.percentile(difference, 95)), 4),
        },
    }
    if exact is not None:
        scale = np.array(size) / np.array(frames.shape[2:0:-1])
        true = np.stack([cv2.resize(field, size) for field in exact[numbers]]) * scale
        result["mean_error_px"] = {
            "ours": round(float(error_px(ours, true).mean()), 3),
            RIVAL: round(float(error_px(theirs, true).mean()), 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="default: a rendered one, enlarged")
    parser.add_argument("--pairs", type=int, default=16, help="a GPU wants 64 or more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    frames, exact = read_frames(options.video)
    sizes = {f"{w}x{h}": result_of_size(frames, exact, (w, h), device, options) for w, h in SIZES}
    compiled = not options.eager and hasattr(compiled_step(device.type), "_torchdynamo_orig_callable")
    result = {
        "benchmark": "flow",
        "video": options.video.name if options.video else "rendered: person01_boxing_d1",
        "rounds": options.rounds,
        "parameters": FlowSpec().describe(),
        "sizes": sizes,
        "compiled": compiled,
        "device": f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}",
        "threads": options.threads,
        "opencv": cv2.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
