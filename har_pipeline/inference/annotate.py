"""A video with its classes: the best ones of each moment below the picture, and a timeline of the segments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.evaluation.plots import caption_picture, segment_colours
from har_pipeline.inference.predict import Prediction, top_k
from har_pipeline.inference.timeline import Segment
from har_pipeline.video.clips import resampled_indices
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.encode import write_video
from har_pipeline.video.preprocess import scale_to

# Pictures are made at least so wide, so that the text can be read, and no larger than this on their shorter side.
_NARROWEST, _LARGEST = 320, 720
_BITS_PER_PX = 0.12


def write_annotated(
    path: Path,
    prediction: Prediction,
    classes: tuple[str, ...],
    *,
    top: int = 3,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the video of a prediction with its `top` classes, of each moment where it has a timeline, and its segments.

    The suffix of `path` sets the container. Frames are read and written one by one. Sound is left out. on_frame: called with
    the frames read and how many there should be.
    Raises: VideoError if the video cannot be read again, or the file cannot be written.
    """
    info = probe(prediction.path)
    # Constant in rate, whatever the file's own is, because that is what containers take.
    shown = np.bincount(resampled_indices(info.packet_frames, info.timing, info.fps), minlength=info.packet_frames)
    times_s = info.timing.begin_s(np.arange(info.packet_frames + 1))
    duration_s, timeline = float(times_s[-1]), prediction.timeline
    segments = [Segment(0.0, duration_s, *prediction.top[0])] if timeline is None else timeline.segments()

    @functools.lru_cache(2)
    def caption(place: int, width: int, height: int) -> np.ndarray:
        best = list(prediction.top)[:top]
        if timeline is not None:
            probabilities = timeline.probabilities[place]
            best = [] if np.isnan(probabilities[0]) else top_k(classes, probabilities, top)
        return caption_picture(best, width, height)

    def frames() -> Iterator[np.ndarray]:
        bar: np.ndarray | None = None
        for number, frame in FrameReader(prediction.path, info=info):
            on_frame(number, max(number, info.packet_frames))
            count = int(shown[number]) if number < len(shown) else 0
            if not count:
                continue
            if bar is None:
                height, width = _size(*frame.shape[:2])
                line = 2 * max(10, height // 36)
                bar = _bar(segments, duration_s, width, 2 * max(4, height // 90))
            time_s = float(times_s[number])
            place = 0 if timeline is None else timeline.place(time_s)
            marked = bar.copy()
            column = min(width - 1, int(time_s / duration_s * width))
            marked[:, max(0, column - 1) : column + 1] = 255
            whole = np.concatenate([scale_to(frame, height, width), caption(place, width, top * line), marked])
            for _ in range(count):
                yield whole

    height, width = _size(info.height, info.width)
    rate = max(900_000, round(_BITS_PER_PX * height * width * info.fps))
    try:
        write_video(path, frames(), info.fps, "libx264", bit_rate=rate)
    except ValueError as error:
        raise VideoError(f"{path}: cannot be written ({error})") from error


def _size(height: int, width: int) -> tuple[int, int]:
    """Return the even height and width of the picture in the annotated video."""
    scale = max(_NARROWEST / width, min(1.0, _LARGEST / min(height, width)))
    return 2 * max(1, round(height * scale / 2)), 2 * max(1, round(width * scale / 2))


def _bar(segments: list[Segment], duration_s: float, width: int, height: int) -> np.ndarray:
    """Return (height, width, 3) uint8 of the segments in their colours, grey where nothing is known."""
    bar = np.full((height, width, 3), 64, np.uint8)
    colours = segment_colours([one.label for one in segments])
    for one in segments:
        red, green, blue = (int(colours[one.label][k : k + 2], 16) for k in (1, 3, 5))
        bar[:, int(one.start_s / duration_s * width) : int(np.ceil(one.end_s / duration_s * width))] = red, green, blue
    return bar
