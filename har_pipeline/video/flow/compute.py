"""Optical flow of frame pairs by any method, clipped, rounded and on the device that reads it.

Flow is (x, y) in px/frame: what is at p in the first frame of a pair is at p + flow in the second. It is clipped to the
spec's bound and rounded to float16, with or without a cache (`flow.cache`), so that features do not depend on it.

A pair's flow does not depend on the other pairs: bit for bit on a CPU, where each pair is computed alone in a thread; on
a GPU, where the order of sums may depend on the batch size, within the methods' own tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from har_pipeline.core.errors import ExtractionError
from har_pipeline.video.flow.raft import load_raft, raft_flow
from har_pipeline.video.flow.spec import DIS_MIN_SIDES_PX, FlowSpec, Tvl1Params
from har_pipeline.video.flow.tvl1 import compiled_step, tvl1_flow

# Pixels of the pairs on a GPU at one time: 3 GB for TV-L1; RAFT's cost volume grows with their square.
TVL1_PIXELS_PER_CHUNK = 6_000_000
RAFT_PIXELS_PER_CHUNK = 600_000
MIN_SIDE_PX = 3
Frames = torch.Tensor | np.ndarray


def compute_flow(
    first: Frames, second: Frames, spec: FlowSpec, device: torch.device | str, *, compiled: bool = True
) -> torch.Tensor:
    """Return the flow of P frame pairs on `device`: (P, H, W, 2) float32 px/frame, x then y.

    first, second: (P, H, W, 3) uint8 RGB, H and W at least 3. Values are those of float16, in [-bound, bound].
    compiled: TV-L1 may use `torch.compile` (about 10 s in a machine's first call, less later).
    OpenCV's methods always run on the CPU. Memory is bounded: pairs are computed in chunks.
    Raises: ValueError for other frames; ExtractionError if OpenCV lacks the method or rejects the frames; WeightsError if
    RAFT's weights cannot be had.
    """
    device = torch.device(device)
    pairs = (torch.as_tensor(first), torch.as_tensor(second))
    _check_frames(*pairs)
    if not len(pairs[0]):
        return torch.zeros(*pairs[0].shape[:3], 2, device=device)
    if spec.method == "tvl1":
        flow = _tvl1(*pairs, spec.tvl1, device, compiled)
    elif spec.method in ("raft_small", "raft_large"):
        net = load_raft(spec.method, spec.raft_weights, device)
        chunks = _chunks(*pairs, device, RAFT_PIXELS_PER_CHUNK)
        flow = torch.cat([raft_flow(net, a.to(device), b.to(device), spec.raft_updates) for a, b in chunks])
    else:
        flow = torch.from_numpy(_opencv(pairs[0].cpu().numpy(), pairs[1].cpu().numpy(), spec)).to(device)
    return flow.clamp_(-spec.bound_px, spec.bound_px).half().float()


def _check_frames(first: torch.Tensor, second: torch.Tensor) -> None:
    for name, frames in (("first", first), ("second", second)):
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"{name} frames are {frames.dtype} {tuple(frames.shape)}, not uint8 (P, H, W, 3)")
    if first.shape != second.shape:
        raise ValueError(f"first frames are {tuple(first.shape)}, second {tuple(second.shape)}")
    if min(first.shape[1:3]) < MIN_SIDE_PX:
        raise ValueError(
            f"frames of {tuple(first.shape[1:3])} px are too small for flow: each side needs at least {MIN_SIDE_PX} px"
        )


def _chunks(
    first: torch.Tensor, second: torch.Tensor, device: torch.device, pixels: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut pairs into chunks of at most `pixels` pixels, on a CPU into single pairs."""
    count = 1 if device.type == "cpu" else max(pixels // (first.shape[1] * first.shape[2]), 1)
    return list(zip(first.split(count), second.split(count), strict=True))


def to_grey(frames: torch.Tensor) -> torch.Tensor:
    """Return grey frames (P, H, W) float32, whole numbers in [0, 255], from (P, H, W, 3) uint8 RGB.

    Source: ITU-R BT.601's weights in OpenCV's fixed point, whose `cvtColor` gives the same numbers.
    """
    red, green, blue = frames.int().unbind(-1)
    return ((9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15).float()


def _tvl1(
    first: torch.Tensor, second: torch.Tensor, params: Tvl1Params, device: torch.device, compiled: bool
) -> torch.Tensor:
    """Return the unclipped flow (P, H, W, 2) of RGB pairs."""

    def flow_of(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        before, after = (to_grey(frames.to(device, non_blocking=True)) for frames in pair)
        return tvl1_flow(before, after, params, compiled).permute(0, 2, 3, 1)

    chunks = _chunks(first, second, device, TVL1_PIXELS_PER_CHUNK)
    if device.type != "cpu":
        return torch.cat([flow_of(chunk) for chunk in chunks])
    if compiled:
        compiled_step("cpu")  # before there are threads that would each compile it
    return torch.cat(_one_thread_each(flow_of, chunks))


def _one_thread_each(
    work: Callable[[tuple[torch.Tensor, torch.Tensor]], torch.Tensor], chunks: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[torch.Tensor]:
    """Return the work's results, one chunk per thread, with as many threads as torch would use inside one operation.

    TV-L1 is thousands of short operations: threads that synchronise after each one lose more than they gain, and wait
    whenever another process has a core.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(min(threads, len(chunks)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(work, chunks))
        finally:
            torch.set_num_threads(threads)  # the workers' setting would also apply to later threads


def _opencv(first: np.ndarray, second: np.ndarray, spec: FlowSpec) -> np.ndarray:
    """Return the unclipped flow (P, H, W, 2) float32 by one of OpenCV's methods, a pair at a time."""
    method = opencv_method(spec)
    height, width = first.shape[1:3]
    shortest, longest = DIS_MIN_SIDES_PX
    if spec.method == "dis" and (min(height, width) < shortest or max(height, width) < longest):
        raise ExtractionError(
            f"frames of {height}x{width} px are too small for dis, which needs {shortest} px, and {longest} px on the longer "
            "side; use tvl1 or farneback"
        )
    flow = np.empty((*first.shape[:3], 2), np.float32)
    for index, pair in enumerate(zip(first, second, strict=True)):
        before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pair)
        try:
            flow[index] = method.calc(before, after, None)  # type: ignore[call-overload]
        except cv2.error as error:
            raise ExtractionError(
                f"OpenCV's {spec.method} rejects frames of {height}x{width} px: {error.err}"
            ) from error
    return flow


def opencv_method(spec: FlowSpec) -> cv2.DenseOpticalFlow:
    """Return OpenCV's object for the spec's method, whose `calc(grey, grey, None)` gives one pair's flow.

    Raises: ExtractionError if this OpenCV was built without it.
    """
    if spec.method == "dis":
        presets = {"ultrafast": 0, "fast": 1, "medium": 2}
        return cv2.DISOpticalFlow.create(presets[spec.dis_preset])
    if spec.method == "farneback":
        own = spec.farneback
        return cv2.FarnebackOpticalFlow.create(
            own.num_scales, own.scale_step, False, own.window_px, own.iterations, own.poly_px, own.poly_sigma, 0
        )
    if not hasattr(cv2, "optflow"):
        raise ExtractionError(
            "tvl1_opencv needs OpenCV's contributed modules: install opencv-contrib-python-headless instead of "
            "opencv-python-headless, or use tvl1"
        )
    p = spec.tvl1
    return cv2.optflow.DualTVL1OpticalFlow.create(
        p.tau, p.lambda_, p.theta, p.num_scales, p.num_warps, p.epsilon, p.inner_iterations, p.outer_iterations,
        p.scale_step, 0.0, p.median_px, False,
    )  # fmt: skip
