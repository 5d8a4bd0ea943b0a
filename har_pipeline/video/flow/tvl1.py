"""TV-L1 optical flow of many frame pairs at once, in PyTorch, on CPU and CUDA.

The energy, the threshold and the dual iteration are those of Zach, Pock and Bischof 2007, "A duality based approach for
realtime TV-L1 optical flow"; the pyramid, the warps, the median filter and the stopping rule follow OpenCV's
`DualTVL1OpticalFlow`, against which it is tested. A pair in a batch is frozen where it would stop alone, so that its flow
does not depend on the others.

Fields of P pairs at one scale of H x W are flat, (P, 2, H*W): the neighbour above is W places earlier, the one to the
left one place. The dual variables are 0 in the last column (x) or row (y), so a shift of the flat field needs no case
for the border.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from har_pipeline.video.flow.spec import Tvl1Params

log = logging.getLogger(__name__)
MIN_SCALE_PX = 16

# On a GPU convergence is checked only every few iterations, because each check waits for the device.
ITERATIONS_PER_LOOK = 4
_FLOAT_EPSILON = float(np.finfo(np.float32).eps)
Step = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(slots=True)
class _Pairs:
    """The pairs of one warp that have not converged; float32 unless noted."""

    index: torch.Tensor  # (P,) int64: their numbers in the batch
    flow: torch.Tensor  # (P, 2, N), x then y, as the dual variables
    dual_x: torch.Tensor
    dual_y: torch.Tensor
    slope: torch.Tensor  # (P, 2, N): gradient of the warped frame
    # (P, 2, N) and (P, 1, N): offset + ratio . flow is the step along the slope that equal brightness requires.
    ratio: torch.Tensor
    offset: torch.Tensor
    active: torch.Tensor  # (P, 1, 1) bool

    def keep(self, rows: torch.Tensor) -> _Pairs:
        """Return the pairs of the given row numbers."""
        return _Pairs(*(getattr(self, name)[rows] for name in self.__slots__))


@torch.no_grad()
def tvl1_flow(first: torch.Tensor, second: torch.Tensor, params: Tvl1Params, compiled: bool) -> torch.Tensor:
    """Return the flow of grey frames (P, H, W), values in [0, 255], as (P, 2, H, W) float32 px, x then y.

    H, W: at least 3. compiled: run the inner iteration through `torch.compile` (see `compiled_step`).
    Memory: about 500 bytes per pixel and pair.
    """
    step = compiled_step(first.device.type) if compiled else _step
    firsts, seconds = [first.float()], [second.float()]
    while len(firsts) < params.num_scales:
        height, width = (round(size * params.scale_step) for size in firsts[-1].shape[1:])
        if min(height, width) < MIN_SCALE_PX:
            break
        ratios = (1 / params.scale_step, 1 / params.scale_step)
        firsts.append(_resize(firsts[-1], (height, width), ratios))
        seconds.append(_resize(seconds[-1], (height, width), ratios))
    flow = first.new_zeros(len(first), 2, *firsts[-1].shape[1:], dtype=torch.float32)
    for scale in range(len(firsts) - 1, -1, -1):
        size = firsts[scale].shape[1:]
        if flow.shape[2:] != size:
            ratios = (flow.shape[2] / size[0], flow.shape[3] / size[1])
            flow = _resize(flow, (size[0], size[1]), ratios) / params.scale_step
        flow = _one_scale(firsts[scale], seconds[scale], flow, params, step)
    return flow


def _one_scale(
    first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor, params: Tvl1Params, step: Step
) -> torch.Tensor:
    """Return the refined flow (P, 2, H, W) of frames (P, H, W); warps share the dual variables."""
    count, height, width = first.shape
    flat = (count, 2, height * width)
    sources = _pad_for_warp(torch.stack((second, *_central_gradient(second)), dim=1))
    flow = flow.reshape(flat)
    dual_x, dual_y = torch.zeros_like(flow), torch.zeros_like(flow)
    for _ in range(params.num_warps):
        warped = _warp(sources, flow.view(count, 2, height, width)).reshape(count, 3, -1)
        slope = warped[:, 1:].flatten().view(flat)  # with the plain strides that the compiled step expects
        inverse = -1 / slope.square().sum(1, keepdim=True).clamp(min=_FLOAT_EPSILON)
        residual = warped[:, :1] - first.reshape(count, 1, -1) - (slope * flow).sum(1, keepdim=True)
        pairs = _Pairs(
            index=torch.arange(count, device=flow.device),
            flow=flow,
            dual_x=dual_x,
            dual_y=dual_y,
            slope=slope,
            ratio=slope * inverse,
            offset=residual * inverse,
            active=torch.ones(count, 1, 1, dtype=torch.bool, device=flow.device),
        )
        flow, dual_x, dual_y = _one_warp(pairs, (height, width), params, step)
    return flow.view(count, 2, height, width)


def _one_warp(
    pairs: _Pairs, size: tuple[int, int], params: Tvl1Params, step: Step
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return flow, dual_x and dual_y (P, 2, N) after the iterations of one warp, each pair as long as it needs."""
    height, width = size
    device = pairs.flow.device
    inner_x = (torch.arange(width, device=device) < width - 1).float().repeat(height)
    inner_y = (torch.arange(height, device=device) < height - 1).float().repeat_interleave(width)
    tolerance = torch.tensor(params.epsilon**2 * height * width, device=device)
    done = (pairs.flow.clone(), pairs.dual_x.clone(), pairs.dual_y.clone()) if len(pairs.index) > 1 else None
    per_look = 1 if looks_each_iteration(device) else ITERATIONS_PER_LOOK
    left = len(pairs.index)
    for _ in range(params.outer_iterations):
        if params.median_px > 1:
            filtered = median_5x5(pairs.flow.view(left, 2, height, width)).reshape(left, 2, -1)
            pairs.flow = torch.where(pairs.active, filtered, pairs.flow)
        for iteration in range(1, params.inner_iterations + 1):
            pairs.flow, pairs.dual_x, pairs.dual_y, pairs.active = step(
                pairs.flow, pairs.dual_x, pairs.dual_y, pairs.slope, pairs.ratio, pairs.offset, pairs.active,
                inner_x, inner_y, tolerance, width, *_constants(params),
            )  # fmt: skip
            if iteration % per_look and iteration < params.inner_iterations:
                continue
            going = int(pairs.active.sum())
            if going == 0:
                break
            if done is not None and 1 < going <= left // 2:  # for a single pair the step would be compiled again
                _put_back(done, pairs)
                pairs = pairs.keep(pairs.active.flatten().nonzero().flatten())
                left = going
        if going == 0:
            break
    if done is None:
        return pairs.flow, pairs.dual_x, pairs.dual_y
    _put_back(done, pairs)
    return done


def looks_each_iteration(device: torch.device) -> bool:
    """Return whether checking for convergence costs nothing."""
    return device.type == "cpu"


def _put_back(done: tuple[torch.Tensor, torch.Tensor, torch.Tensor], pairs: _Pairs) -> None:
    """Write the state of `pairs` to their rows in the batch."""
    for target, values in zip(done, (pairs.flow, pairs.dual_x, pairs.dual_y), strict=True):
        target.index_copy_(0, pairs.index, values)


def _step(
    flow: torch.Tensor,
    dual_x: torch.Tensor,
    dual_y: torch.Tensor,
    slope: torch.Tensor,
    ratio: torch.Tensor,
    offset: torch.Tensor,
    active: torch.Tensor,
    inner_x: torch.Tensor,
    inner_y: torch.Tensor,
    tolerance: torch.Tensor,
    width: int,
    limit: float,
    theta: float,
    tau_theta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return flow, dual_x, dual_y and active after one iteration; inactive pairs do not change.

    Shapes as in `_Pairs`; inner_x, inner_y: (N,) float32, 0 in the last column or row, else 1; tolerance: () float32,
    the squared change of a whole field, px^2, below which a pair has converged.
    Source: Zach et al. 2007, equations 9 to 15; the three cases of the threshold are one clamp.
    """
    along = (offset + ratio[:, :1] * flow[:, :1] + ratio[:, 1:] * flow[:, 1:]).clamp(-limit, limit)
    divergence = dual_x - F.pad(dual_x, (1, 0))[..., :-1] + dual_y - F.pad(dual_y, (width, 0))[..., :-width]
    new = flow + along * slope + theta * divergence
    change = (new - flow).square().sum((1, 2), keepdim=True)
    right = (F.pad(new, (0, 1))[..., 1:] - new) * inner_x
    below = (F.pad(new, (0, width))[..., width:] - new) * inner_y
    scale = 1 / (1 + tau_theta * (right.square() + below.square()).sqrt())
    return (
        torch.where(active, new, flow),
        torch.where(active, (dual_x + tau_theta * right) * scale, dual_x),
        torch.where(active, (dual_y + tau_theta * below) * scale, dual_y),
        active & (change > tolerance),
    )


@functools.cache
def compiled_step(device_type: str) -> Step:
    """Return the inner iteration as one compiled kernel, or as plain PyTorch where `torch.compile` fails.

    The kernel serves every frame size. It is tried once per process; the environment variable HAR_FLOW_COMPILE=0 forces
    plain PyTorch. The two round differently.
    """
    if os.environ.get("HAR_FLOW_COMPILE", "1") == "0":
        return _step
    # torch's messages while it compiles are of no use to the user.
    for name in ("torch.utils.cpp_extension", "torch._inductor"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # On a CPU each pair has its own thread; the C++ wrapper releases Python's lock while the kernel runs.
    options: dict[str, str | int | bool | Callable[..., Any]] | None = None
    if device_type == "cpu":
        options = {"cpp.threads": 1, "cpp_wrapper": True}
    step: Step = torch.compile(_step, dynamic=True, options=options)
    started, threads = time.perf_counter(), torch.get_num_threads()
    try:
        # The kernel is valid for the number of threads that it was compiled with: on a CPU that of a pair's own thread,
        # or each of them would compile it again, at the same time, which torch does not allow.
        if device_type == "cpu":
            torch.set_num_threads(1)
        # On a CPU pairs come one by one. On a GPU three, a number that no other size here has: equal sizes would be
        # compiled in as equal.
        _try_step(step, device_type, 1 if device_type == "cpu" else 3)
    except Exception as error:  # what a missing or broken compiler raises is not documented
        log.warning("optical flow runs without torch.compile, slower: %s", str(error).strip().split("\n")[0][:200])
        return _step
    finally:
        torch.set_num_threads(threads)
    log.info("optical flow: compiled in %.1f s", time.perf_counter() - started)
    return step


@torch.no_grad()
def _try_step(step: Step, device_type: str, count: int) -> None:
    """Run one iteration on `count` small pairs, which compiles it."""
    height, width = 96, 128
    fields = [torch.rand(count, 2, height * width, device=device_type) for _ in range(5)]
    offset = torch.rand(count, 1, height * width, device=device_type)
    active = torch.ones(count, 1, 1, dtype=torch.bool, device=device_type)
    inner_x, inner_y = (torch.ones(height * width, device=device_type) for _ in range(2))
    tolerance = torch.tensor(0.5, device=device_type)
    params = Tvl1Params()
    step(*fields, offset, active, inner_x, inner_y, tolerance, width, *_constants(params))


def _constants(params: Tvl1Params) -> tuple[float, float, float]:
    """Return the last arguments of a step: limit, theta, tau / theta."""
    return params.lambda_ * params.theta, params.theta, params.tau / params.theta


def _resize(images: torch.Tensor, size: tuple[int, int], ratios: tuple[float, float]) -> torch.Tensor:
    """Return images (..., H, W) sampled bilinearly at `size`; ratios: source px per target px, (y, x); no smoothing."""
    for dim, (target, ratio) in enumerate(zip(size, ratios, strict=True), start=-2):
        length = images.shape[dim]
        at = ((torch.arange(target, dtype=torch.float64) + 0.5) * ratio - 0.5).clamp(0, length - 1)
        low = at.floor().long().clamp(max=max(length - 2, 0))
        share = (at - low).float().to(images.device)
        low = low.to(images.device)
        before, after = images.index_select(dim, low), images.index_select(dim, (low + 1).clamp(max=length - 1))
        images = before + (after - before) * (share[:, None] if dim == -2 else share)
    return images


def _central_gradient(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the x and y derivatives of images (P, H, W), padded with the border's pixels."""
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (
        0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]),
        0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]),
    )


def _warp(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Return images (P, C, H', W') sampled bicubically where the flow (P, 2, H, W) points; 0 beyond the border.

    H' and W' are those of `_pad_for_warp`.
    """
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    half_height, half_width = (images.shape[2] - 1) / 2, (images.shape[3] - 1) / 2
    grid = torch.stack((x / half_width - 1, y / half_height - 1), dim=-1)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=True)


def _pad_for_warp(images: torch.Tensor) -> torch.Tensor:
    """Return images (P, C, H, W) with zeros below and to the right, up to a power of two and one more.

    `grid_sample` takes positions as fractions of the image's size; with such a size they are exact, so that a flow of 0
    points exactly to the same pixel. Otherwise two equal frames would differ, most of all at their border.
    """
    height, width = ((1 << (side - 1).bit_length()) + 1 for side in images.shape[2:])
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))


def median_5x5(fields: torch.Tensor) -> torch.Tensor:
    """Return the median of each pixel's 5x5 neighbourhood in fields (P, C, H, W), padded with the border's pixels."""
    if fields.device.type != "cpu":
        return median_network(fields)
    planes = fields.contiguous().numpy().reshape(-1, *fields.shape[2:])
    return torch.from_numpy(np.stack([cv2.medianBlur(plane, 5) for plane in planes])).view(fields.shape)


def median_network(fields: torch.Tensor) -> torch.Tensor:
    """Return what `median_5x5` returns, by minima and maxima of whole planes, on any device.

    Sorts the five columns of a window, which neighbouring windows share, then its rows of equal rank. The median is then
    on one of the three middle anti-diagonals, and on the lower of them only its maximum, on the upper only its minimum is
    possible: the others have more than 12 values above or below them.
    """
    height, width = fields.shape[2:]
    padded = F.pad(fields, (2, 2, 2, 2), mode="replicate")
    ranked = _sort_five([padded[:, :, i : i + height] for i in range(5)])
    rows = [_sort_five([row[..., i : i + width] for i in range(5)]) for row in ranked]
    lower = torch.maximum(torch.maximum(rows[0][3], rows[1][2]), torch.maximum(rows[2][1], rows[3][0]))
    upper = torch.minimum(torch.minimum(rows[1][4], rows[2][3]), torch.minimum(rows[3][2], rows[4][1]))
    middle = _sort_five([rows[i][4 - i] for i in range(5)])
    low, high = torch.minimum(lower, upper), torch.maximum(lower, upper)
    # The fourth of seven: five sorted values and two more.
    return torch.minimum(middle[3], torch.minimum(torch.maximum(middle[2], low), torch.maximum(middle[1], high)))


def _sort_five(planes: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return five planes sorted pixel by pixel, by nine exchanges."""
    planes = list(planes)
    for i, j in ((0, 1), (3, 4), (2, 4), (2, 3), (0, 3), (0, 2), (1, 4), (1, 3), (1, 2)):
        planes[i], planes[j] = torch.minimum(planes[i], planes[j]), torch.maximum(planes[i], planes[j])
    return planes
