"""Depth video: reading it (folders of PNGs, `.mat` arrays, 16-bit video files), and the square crops that networks see.

Preparation: crop to the movement area, scale to S x S px by the nearest pixel, map millimetres to brightness. Depth is
never interpolated: averaging a hand with the empty background would create a surface that does not exist.
Whole videos go through `prepare_depth`, live ones through `CausalDepth`, which knows the past only.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import MAX_FRAMES, Aspect, Span
from har_pipeline.video.decode import read_gray16, too_many_frames
from har_pipeline.video.timing import Timing, in_frames

KINECT_FPS = 30.0
# A patch of fewer than this share of a frame's foreground does not widen the box; see `movement_box`.
STRAY_SHARE = 0.01
NEAR_SHARE, FAR_SHARE = 0.01, 0.99
NEAREST_VALUE, FARTHEST_VALUE = 255, 51
_PNG_NAME = re.compile(r"M?Depth-(\d+)\.png")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}


@dataclass(frozen=True, slots=True)
class DepthVideo:
    """A depth video as read."""

    frames: np.ndarray  # (F, H, W) uint16, mm; 0 = no measurement or masked background
    numbers: np.ndarray  # (F,) int64, 0-based in the file, with gaps where frames are missing
    timing: Timing
    notes: tuple[str, ...] = ()  # what was odd

    @property
    def fps(self) -> float:
        """Frames/s, the mean where the rate varies."""
        return self.timing.fps


class Box(NamedTuple):
    """A rectangle of px: rows `[top, bottom)`, columns `[left, right)`."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class DepthRange:
    """The distances, mm, that get the brightest and the darkest value of the foreground."""

    near: int
    far: int


def read_depth(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    fps: float = KINECT_FPS,
    max_frames: int = MAX_FRAMES,
) -> DepthVideo:
    """Read the frames `[start, stop)` of a depth video, as `read_depth_span` does."""
    return read_depth_span(path, Span(start_frame=start, end_frame=stop), fps=fps, max_frames=max_frames)


def read_depth_span(path: Path, span: Span, *, fps: float = KINECT_FPS, max_frames: int = MAX_FRAMES) -> DepthVideo:
    """Read a span of a depth video.

    path: a folder of 16-bit PNGs `MDepth-00000001.png` ... (NTU RGB+D; numbered from 1, or from 0), a `.mat` file with
    `d_depth` (H, W, T) uint16 (UTD-MHAD), or a 16-bit gray video such as FFV1 in Matroska. fps: of the first two, which
    do not say; both data sets were recorded at 30. A missing or damaged PNG is left out with a note, as an undecodable
    frame of a video is.
    Raises: VideoError naming the file if there is nothing to read, the depth is not 16-bit gray, frames differ in size,
    there are more than max_frames, or fewer than half of the frames can be read.
    """
    if not path.exists():
        raise VideoError(f"{path}: does not exist")
    if path.is_dir():
        video = _read_folder(path, span, Timing(fps), max_frames)
    elif path.suffix.lower() == ".mat":
        video = _read_mat(path, span, Timing(fps), max_frames)
    else:
        frames, first, timing, notes = read_gray16(path, span, max_frames=max_frames)
        video = DepthVideo(frames, first + np.arange(len(frames)), timing, tuple(notes))
    if not len(video.frames):
        end = "end" if span.end_frame is None else span.end_frame
        raise VideoError(f"{path}: has no frame in [{span.start_frame}, {end})")
    return video


def _read_folder(path: Path, span: Span, timing: Timing, max_frames: int) -> DepthVideo:
    files = {int(match[1]): name for name in os.listdir(path) if (match := _PNG_NAME.fullmatch(name))}
    if not files:
        raise VideoError(f"{path}: the folder holds no depth frames (MDepth-00000001.png ...)")
    first = min(1, min(files))
    span = in_frames(span, path, timing, max(files) - first + 1)
    start, stop = span.start_frame, span.end_frame
    last = max(files) if stop is None else min(max(files), first + stop - 1)
    wanted = range(first + start, last + 1)
    if not wanted:
        raise VideoError(f"{path}: the row starts at frame {start}, the folder ends before it, at {max(files) - first}")
    present = [number for number in files if number in wanted]
    if 2 * len(present) < len(wanted):
        raise VideoError(
            f"{path}: only {len(present)} of {len(wanted)} frames are there: PNGs are missing in the numbering from "
            f"{wanted[0]} to {wanted[-1]}"
        )
    if len(present) > max_frames:
        raise VideoError(too_many_frames(path, max_frames))
    frames: np.ndarray | None = None
    good: list[int] = []
    missing: list[str] = []
    broken: list[str] = []
    for number in wanted:
        if number not in files:
            missing.append(f"MDepth-{number:08d}.png")
            continue
        png = path / files[number]
        try:
            image = _decode_png(png)
        except _BrokenPng as error:
            broken.append(f"{png.name} {error}")
            continue
        if frames is None:
            frames = np.empty((len(present), *image.shape), np.uint16)
        if image.shape != frames.shape[1:]:
            raise VideoError(
                f"{path}: frames differ in size (height, width): {files[first + good[0]]} has {frames.shape[1:]}, {png.name} "
                f"{image.shape}"
            )
        frames[len(good)] = image
        good.append(number - first)
    notes = [
        f"{len(names)} PNGs {problem}, the first {names[0]}" if len(names) > 1 else f"a PNG {one}: {names[0]}"
        for names, problem, one in (
            (missing, "are missing in the numbering", "is missing in the numbering"),
            (broken, "cannot be decoded", "cannot be decoded"),
        )
        if names
    ]
    if frames is None or 2 * len(good) < len(wanted):
        raise VideoError(f"{path}: only {len(good)} of {len(wanted)} frames can be read: {'; '.join(notes)}")
    return DepthVideo(frames[: len(good)], np.array(good, np.int64), timing, tuple(notes))


class _BrokenPng(Exception):
    """The bytes of a PNG are damaged."""


def _decode_png(path: Path) -> np.ndarray:
    """Return (H, W) uint16. Raises: _BrokenPng if the bytes are damaged; VideoError if it is no 16-bit gray PNG."""
    data = path.read_bytes()
    if not data:
        raise _BrokenPng("is empty")
    if not data.startswith(_PNG_SIGNATURE):
        raise _BrokenPng("is not a PNG file")
    # Checked here, for decoders differ in what they make of a damaged file; some return the rest as zeros.
    place, kinds = len(_PNG_SIGNATURE), []
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _BrokenPng("is damaged (checksum)" if end + 4 <= len(data) else "is cut off")
        kinds.append(data[place + 4 : place + 8])
        place = end + 4
    if not kinds or kinds[0] != b"IHDR" or kinds[-1] != b"IEND":
        raise _BrokenPng("is cut off")
    bits, colour = data[24], data[25]
    if (bits, colour) != (16, 0):
        kind = _PNG_COLOURS.get(colour, f"colour type {colour}")
        raise VideoError(f"{path}: is a PNG of {bits} bits, {kind}; depth is 16 bits, gray")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise _BrokenPng("cannot be decoded")
    return image


def _read_mat(path: Path, span: Span, timing: Timing, max_frames: int) -> DepthVideo:
    from scipy.io import loadmat, whosmat

    if not path.stat().st_size:
        raise VideoError(f"{path}: the file is empty")
    try:
        # The headers alone, before anything large is read. MATLAB may store whole numbers of class double as uint16, as
        # UTD-MHAD's files do; scipy then reads uint16, which is checked below.
        for name, shape, kind in whosmat(path):
            if name == "d_depth" and (len(shape) != 3 or kind not in ("uint16", "double")):
                raise VideoError(f"{path}: d_depth is {kind} {shape}, not uint16 (height, width, frames)")
            if name == "d_depth" and shape[2] > max_frames:
                raise VideoError(too_many_frames(path, max_frames))
        arrays = loadmat(path, variable_names=["d_depth"])
    except (VideoError, MemoryError):
        raise
    except NotImplementedError as error:
        raise VideoError(f"{path}: is a MATLAB 7.3 file; save it with `save -v7`") from error
    except Exception as error:  # the reader raises whatever a damaged byte leads it to
        raise VideoError(f"{path}: is not a readable MATLAB file ({type(error).__name__}: {error})") from error
    depth = arrays.get("d_depth")
    if depth is None:
        raise VideoError(f"{path}: has no array d_depth, so it is no UTD-MHAD depth file")
    if not isinstance(depth, np.ndarray) or depth.ndim != 3 or depth.dtype.kind != "u" or depth.dtype.itemsize != 2:
        kind = f"{getattr(depth, 'dtype', type(depth).__name__)} {getattr(depth, 'shape', '')}"
        raise VideoError(f"{path}: d_depth is {kind}, not uint16 (height, width, frames)")
    if not depth.size:
        raise VideoError(f"{path}: d_depth {depth.shape} holds no frame")
    span = in_frames(span, path, timing, depth.shape[2])
    start = span.start_frame
    frames = np.ascontiguousarray(np.moveaxis(depth, 2, 0)[start : span.end_frame], dtype=np.uint16)
    return DepthVideo(frames, start + np.arange(len(frames)), timing)


def movement_box(frames: np.ndarray) -> Box | None:
    """Return the box of the foreground over all frames (F, H, W) uint16, None if there is no foreground at all.

    A patch of connected foreground px with less than 1 % of its frame's foreground does not count: such specks flicker
    around the body in real Kinect depth, and widen the box of 5 % of the UTD-MHAD videos by more than 5 px. The rule never
    cuts a limb that is joined to the body, nor a second person.
    Source: Sanchez-Caballero 2020, section 4 and figure 3, "cropped to the movement area of the action".
    """
    return _union([box for frame in frames if (box := _frame_box(frame)) is not None])


def _frame_box(frame: np.ndarray) -> Box | None:
    mask = (frame > 0).view(np.uint8)
    # Labelling costs ten times as much as this rectangle, and a masked frame is mostly empty.
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return None
    inside = np.ascontiguousarray(mask[y : y + height, x : x + width])
    _, _, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    patches = stats[1:]
    areas = patches[:, cv2.CC_STAT_AREA]
    patches = patches[areas >= STRAY_SHARE * areas.sum()]
    if not len(patches):
        return None
    left, top = x + patches[:, cv2.CC_STAT_LEFT], y + patches[:, cv2.CC_STAT_TOP]
    bottom, right = top + patches[:, cv2.CC_STAT_HEIGHT], left + patches[:, cv2.CC_STAT_WIDTH]
    return Box(int(top.min()), int(bottom.max()), int(left.min()), int(right.max()))


def _union(boxes: list[Box]) -> Box | None:
    if not boxes:
        return None
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    return Box(min(tops), max(bottoms), min(lefts), max(rights))


def crop_and_scale(frames: np.ndarray, box: Box, size: int, aspect: Aspect) -> np.ndarray:
    """Return (F, size, size) of the frames' dtype: the box of frames (F, H, W), scaled by the nearest pixel.

    stretch: each side is scaled by its own factor. keep: both by the longer side's, centred, 0 on both sides of it.
    The paper says only "re-scales them to 64x64 pixels" of crops that are not square (figure 3), which is `stretch`.
    Source: Sanchez-Caballero 2020, section 4.
    """
    height, width = box.bottom - box.top, box.right - box.left
    spans = (max(height, width),) * 2 if aspect == "keep" else (height, width)
    rows, columns = (
        (np.floor((np.arange(size) + 0.5) * span / size - (span - side) / 2).astype(np.int64), side)
        for span, side in zip(spans, (height, width), strict=True)
    )
    inside_rows, inside_columns = ((index >= 0) & (index < side) for index, side in (rows, columns))
    out = np.zeros((len(frames), size, size), frames.dtype)
    chosen = frames[:, (rows[0][inside_rows] + box.top)[:, None], columns[0][inside_columns] + box.left]
    out[:, np.flatnonzero(inside_rows)[:, None], np.flatnonzero(inside_columns)] = chosen
    return out


def _histogram(frame: np.ndarray) -> np.ndarray:
    """Return the (65536,) int64 counts of the foreground's mm."""
    return np.bincount(frame[frame > 0], minlength=2**16)


def depth_range(histogram: np.ndarray) -> DepthRange | None:
    """Return the 1st and the 99th percentile of the foreground, from its (65536,) counts per mm; None without foreground.

    Not the extremes: the nearest px of a UTD-MHAD video are specks 200 mm before its 1st percentile, the depth of a body.
    """
    total = int(histogram[1:].sum())
    if not total:
        return None
    counts = np.cumsum(histogram[1:])
    near, far = (int(np.searchsorted(counts, share * total)) + 1 for share in (NEAR_SHARE, FAR_SHARE))
    return DepthRange(near, far)


def depth_to_brightness(depth: np.ndarray, limits: DepthRange) -> np.ndarray:
    """Return uint8 of depth's shape: near = 255, far = 51, linear between and clipped; 0 stays 0.

    The darkest body is 51 above the background, so that distant outlines stay clear. The limits are a video's, not a
    frame's, so that what approaches gets brighter. The paper does not say how it normalises.
    """
    span = max(1, limits.far - limits.near)
    share = np.clip((depth.astype(np.float32) - limits.near) / span, 0.0, 1.0)
    values = np.rint(NEAREST_VALUE - (NEAREST_VALUE - FARTHEST_VALUE) * share).astype(np.uint8)
    values[depth == 0] = 0
    return values


def prepare_depth(frames: np.ndarray, size: int = 64, aspect: Aspect = "stretch") -> np.ndarray:
    """Return (F, size, size) uint8, what a network sees of frames (F, H, W) uint16 mm; 0 is background.

    Cropped to `movement_box`, scaled by `crop_and_scale`, brightness by `depth_to_brightness` between the video's
    `depth_range`. Raises: VideoError if no frame has foreground.
    """
    histogram = np.zeros(2**16, np.int64)
    for frame in frames:
        histogram += _histogram(frame)
    box, limits = movement_box(frames), depth_range(histogram)
    if box is None or limits is None:
        raise VideoError("no frame has any foreground: all depth values are 0")
    return depth_to_brightness(crop_and_scale(frames, box, size, aspect), limits)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of one frame: its box, its depths and their counts."""

    box: Box | None
    values: np.ndarray
    counts: np.ndarray


class CausalDepth:
    """`prepare_depth` for frames as they come: box and depth range are those of the last `memory` frames, this one included.

    So no later frame changes an earlier output, and the state is bounded; in a video of at most `memory` frames, the last
    output is that of `prepare_depth`. The output is 0 until there is foreground. memory: frames; 300 is the longest video
    of NTU RGB+D.
    The box is not widened in advance: on UTD-MHAD's training subjects its overlap (intersection over union) with the whole
    video's box is 0.83 over the first half of a video and 0.99 over the second; widening it by 10 % or more gains 0.02 in
    the first half and loses more in the second.
    Raises: ValueError if size or memory is below 1.
    """

    def __init__(self, size: int = 64, aspect: Aspect = "stretch", *, memory: int = 300) -> None:
        if size < 1 or memory < 1:
            raise ValueError(f"size and memory must be at least 1, not {size} and {memory}")
        self.size, self.aspect, self.memory = size, aspect, memory
        self.reset()

    def reset(self) -> None:
        """Forget all frames: another video begins."""
        self._seen: deque[_Seen] = deque()
        self._histogram = np.zeros(2**16, np.int64)

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Return (n, size, size) uint8 for the next frames (n, H, W) uint16 mm, whatever their grouping into calls."""
        out = np.zeros((len(frames), self.size, self.size), np.uint8)
        for number, frame in enumerate(frames):
            histogram = _histogram(frame)
            values = np.flatnonzero(histogram).astype(np.uint16)
            counts = histogram[values].astype(np.int32)
            if len(self._seen) == self.memory:
                oldest = self._seen.popleft()
                self._histogram[oldest.values] -= oldest.counts
            self._seen.append(_Seen(_frame_box(frame), values, counts))
            self._histogram[values] += counts
            box = _union([seen.box for seen in self._seen if seen.box is not None])
            limits = depth_range(self._histogram)
            if box is not None and limits is not None:
                cropped = crop_and_scale(frame[None], box, self.size, self.aspect)
                out[number] = depth_to_brightness(cropped, limits)[0]
        return out
