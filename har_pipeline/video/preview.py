"""Small pictures of a manifest's row for people: a filmstrip of it, and a clip that a browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import VideoRecord
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.depth import depth_range, depth_to_brightness, read_depth_span
from har_pipeline.video.encode import browser_clip, jpeg
from har_pipeline.video.seek import exactly
from har_pipeline.video.timing import in_frames

STRIP_FRAMES = 6
# (height, width) px, the most for a frame.
STRIP_SIZE, CLIP_SIZE = (120, 214), (160, 320)
CLIP_S, CLIP_FPS = 4.0, 30.0
# Depth is read as a whole: about 0.4 GB of 424 x 512 px.
MAX_DEPTH_FRAMES = 1000
_SEPARATOR = 128


@dataclass(frozen=True, slots=True)
class Preview:
    """The pictures of a video."""

    strip: bytes  # a JPEG file: frames evenly spaced over the video, side by side
    clip: (
        bytes  # an MP4 file, see `encode.browser_clip`: the middle of the video at its own speed; b"" if not asked for
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    """The numbers, from 0, of the frames that are shown."""

    strip: tuple[int, ...]
    clip: tuple[int, ...]
    fps: float  # of the clip, frames/s


def preview(record: VideoRecord, *, clip: bool = True) -> Preview:
    """Return pictures of a row's frames, upright and with square px; of its video file, or else of its depth, in grey.

    The clip has at most 4 s, from the middle of the row, and at most 30 frames/s. Memory does not grow with a video file;
    depth is read as a whole.
    Raises: VideoError if there is no such file, it cannot be read, or depth has more than `MAX_DEPTH_FRAMES` frames.
    """
    if record.path is None:
        return _of_depth(record, clip=clip)
    path = record.path
    return exactly(path, lambda seek: _of_video(record, path, clip, seek))


def _of_video(record: VideoRecord, path: Path, clip: bool, seek: bool) -> Preview:
    info = probe(path)
    part = in_frames(record, path, info.timing, info.packet_frames)
    start, stop = part.start_frame, part.end_frame
    end = info.packet_frames if stop is None else min(stop, info.packet_frames)
    choice = _choice(end - start, info.fps, clip=clip)
    wanted, strip, moving = {*choice.strip, *choice.clip}, [], []
    size: tuple[int, int] = (0, 0)
    reader = FrameReader(
        path,
        start=start,
        stop=end if end > start else None,
        info=info,
        wants=lambda number: number - start in wanted,
        seek=seek,
    )
    for number, frame in reader:
        place = number - start
        if not any(size):
            turned = info.width != info.height and frame.shape[:2] == (info.width, info.height)
            aspect = float(np.clip(info.pixel_aspect, 0.25, 4))
            size = _square(frame.shape[0], frame.shape[1], 1 / aspect if turned else aspect)
        if place in choice.strip:
            strip.append(_fitted(frame, size, STRIP_SIZE))
        if place in choice.clip:
            moving.append(_fitted(frame, size, CLIP_SIZE, even=True))
    if not strip:
        raise VideoError(f"{path}: no frame could be read from frame {start} on")
    return _made(strip, moving, choice.fps)


def _of_depth(record: VideoRecord, *, clip: bool) -> Preview:
    path: Path | None = record.depth_path
    assert path is not None  # one of the two is set
    video = read_depth_span(path, record, max_frames=MAX_DEPTH_FRAMES)
    choice = _choice(len(video.frames), video.fps, clip=clip)
    shown = video.frames[list(choice.strip)]
    limits = depth_range(np.bincount(shown.ravel(), minlength=2**16))
    if limits is None:
        raise VideoError(f"{path}: no frame that is shown has any foreground: all depth values are 0")
    size = (int(shown.shape[1]), int(shown.shape[2]))

    def drawn(number: int, most: tuple[int, int], *, even: bool = False) -> np.ndarray:
        return _fitted(
            np.repeat(depth_to_brightness(video.frames[number], limits)[..., None], 3, 2), size, most, even=even
        )

    strip = [drawn(number, STRIP_SIZE) for number in choice.strip]
    return _made(strip, [drawn(number, CLIP_SIZE, even=True) for number in choice.clip], choice.fps)


def _choice(count: int, fps: float, *, clip: bool) -> _Choice:
    """Return which of `count` frames to show, at `fps` frames/s."""
    count = max(1, count)
    strip = dict.fromkeys(np.linspace(0, count - 1, STRIP_FRAMES).round().astype(int).tolist())
    if not clip:
        return _Choice(tuple(strip), (), fps)
    step = int(np.ceil(fps / CLIP_FPS))
    length = min(count, max(1, int(CLIP_S * fps)))
    first = (count - length) // 2
    return _Choice(tuple(strip), tuple(range(first, first + length, step)), fps / step)


def _square(height: int, width: int, pixel_aspect: float) -> tuple[int, int]:
    """Return (height, width) of a frame once its px are square; the shorter of the two sides of a px grows."""
    return (height, round(width * pixel_aspect)) if pixel_aspect >= 1 else (round(height / pixel_aspect), width)


def _fitted(frame: np.ndarray, size: tuple[int, int], most: tuple[int, int], *, even: bool = False) -> np.ndarray:
    """Return a frame, which is to look as if of `size`, scaled down to at most `most`; both are (height, width) px."""
    scale = min(1.0, most[0] / size[0], most[1] / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    if even:  # also where the side is rounded up: the limits are even
        height, width = (2 * max(8, (side + 1) // 2) for side in (height, width))
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _made(strip: Sequence[np.ndarray], moving: Sequence[np.ndarray], fps: float) -> Preview:
    gap = np.full((strip[0].shape[0], 2, 3), _SEPARATOR, np.uint8)
    joined = [picture for frame in strip for picture in (gap, frame)][1:]
    return Preview(jpeg(np.concatenate(joined, axis=1)), browser_clip(moving, fps) if moving else b"")
