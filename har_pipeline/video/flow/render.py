"""A video of a video's optical flow, in the usual colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.video.encode import write_video
from har_pipeline.video.flow.compute import compute_flow
from har_pipeline.video.flow.picture import flow_to_rgb
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import Resize, scale_frame, scale_to
from har_pipeline.video.stream_worker import read_frames

FRAMES_PER_BLOCK = 16
BIT_RATE = 4_000_000


def write_flow_video(
    source: Path,
    target: Path,
    spec: FlowSpec,
    *,
    device: str = "cpu",
    short_side: int | None = None,
    max_px: float = 10.0,
    on_note: Callable[[str], None] = lambda text: None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the flow of a video as pictures, one per frame pair at the source's mean rate; returns their number.

    short_side: px to which frames are scaled first, keeping the aspect ratio; max_px: flow of full saturation. Where the
    frame size changes, frames are stretched to the first one's. on_note: called with what is odd about the source; on_frame:
    with the pictures made, and how many there should be by the file's header, 0 if it does not say.
    Memory does not grow with the video. Raises: VideoError if the source cannot be read or has fewer than two frames.
    """
    rates: list[float] = []
    counts: list[int] = []
    read = read_frames(source, on_open=rates.append, on_count=counts.append, on_note=on_note)
    first = next(read)

    def pictures() -> Iterator[np.ndarray]:
        last = _even(_scaled(first, short_side))
        height, width = last.shape[:2]
        frames = (
            scale_to(_scaled(frame, short_side), height, width)
            if frame.shape != first.shape
            else _even(_scaled(frame, short_side))
            for frame in read
        )
        done, total = 0, max(0, counts[0] - 1)
        on_frame(0, total)
        while block := list(islice(frames, FRAMES_PER_BLOCK)):
            stack = np.stack([last, *block])
            for flow in compute_flow(stack[:-1], stack[1:], spec, device).cpu().numpy():
                yield flow_to_rgb(flow, max_px)
            last = block[-1]
            done += len(block)
            on_frame(done, max(done, total))

    try:
        return write_video(target, pictures(), fps=rates[0], bit_rate=BIT_RATE)
    except ValueError as error:
        raise VideoError(f"{source}: {error}") from error


def _scaled(frame: np.ndarray, short_side: int | None) -> np.ndarray:
    return frame if short_side is None else scale_frame(frame, Resize(1, short_side, "center"))


def _even(frame: np.ndarray) -> np.ndarray:
    # Most codecs store colours at half the resolution and need even sides.
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
