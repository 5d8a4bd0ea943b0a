"""Writes frames to compressed video files and depth maps to 16-bit PNG files, never leaving half a file behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.files import new_file


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float = 25.0,
    codec: str = "mpeg4",
    *,
    bit_rate: int = 900_000,
    pixel_format: str = "yuv420p",
    container_options: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write frames to a video file and return how many were written.

    frames: (H, W, 3) uint8 RGB, all of one size, which is even where `pixel_format` halves the colour's resolution;
    fps: frames/s; codec, pixel_format: FFmpeg's names; bit_rate: bit/s, for codecs that use it (KTH's own files have
    about 900,000). The suffix of `path` sets the container; container_options: FFmpeg's, such as `movflags`. The file
    appears under its name only when it is complete; missing folders are created.
    Raises: ValueError if there is no frame, a frame has another shape or dtype, fps is not positive, or the codec is
    none for video; VideoError if codec or suffix is unknown, the codec refuses the frames, or the file cannot be written.
    """
    path = Path(path)
    if not fps > 0:
        raise ValueError(f"{path}: fps must be positive, not {fps}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if av.Codec(codec, "w").type != "video":
            raise ValueError(f"{path}: {codec!r} is not a video codec")
        rate = Fraction(fps).limit_denominator(1001)
        with new_file(path) as partial:
            return _encode(partial, path, frames, rate, codec, bit_rate, pixel_format, container_options)
    except VideoError:
        raise
    except (av.FFmpegError, av.codec.codec.UnknownCodecError, OSError) as error:
        raise VideoError(
            f"{path}: cannot write with codec {codec!r}, pixel format {pixel_format!r}: {error}; "
            "check the codec's name, the file's suffix, that the frame size is even, and the disk"
        ) from error


def _encode(
    partial: Path,
    path: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    codec: str,
    bit_rate: int,
    pixel_format: str,
    container_options: Mapping[str, str],
) -> int:
    """Encode all frames into `partial`; messages name `path`. Returns the number of frames."""
    size: tuple[int, ...] | None = None
    count = 0
    try:
        container = av.open(str(partial), "w", container_options=dict(container_options))
    except ValueError as error:
        raise VideoError(
            f"{path}: cannot write: no container format has the suffix {path.suffix!r}, try .avi"
        ) from error
    with container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)  # as the codec was checked to be one for video
        # One thread: the same frames give the same file on every machine.
        stream.codec_context.thread_count = 1
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"{path}: frame {count} is {frame.dtype} {frame.shape}, not uint8 (H, W, 3)")
            if size is None:
                size = frame.shape
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixel_format
                stream.bit_rate = bit_rate
            elif frame.shape != size:
                raise ValueError(f"{path}: frame {count} is {frame.shape}, the first was {size}")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if not count:
            raise ValueError(f"{path}: there is no frame to write")
        container.mux(stream.encode(None))
    return count


def browser_clip(frames: Iterable[np.ndarray], fps: float, *, bit_rate: int = 160_000) -> bytes:
    """Return an MP4 file that browsers play: H.264, yuv420p, its index before the frames.

    frames, fps, bit_rate: as in `write_video`; the sides are even. Raises: as `write_video`.
    """
    # In a file, because the index is moved to the front by reading the file again.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames, fps, "libx264", bit_rate=bit_rate, container_options={"movflags": "faststart"})
        return path.read_bytes()


def jpeg(rgb: np.ndarray, quality: int = 70) -> bytes:
    """Return an (H, W, 3) uint8 RGB picture as a JPEG file; quality: 0 to 100."""
    return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def write_depth_png(path: Path, depth_mm: np.ndarray) -> None:
    """Write one (H, W) uint16 depth map, mm, to a 16-bit PNG file, whole or not at all.

    Raises: ValueError if the map is not uint16 (H, W); VideoError if the file cannot be written.
    """
    path = Path(path)
    if depth_mm.dtype != np.uint16 or depth_mm.ndim != 2:
        raise ValueError(f"{path}: the depth map is {depth_mm.dtype} {depth_mm.shape}, not uint16 (H, W)")
    _write_image(path, ".png", depth_mm, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def write_picture(path: Path, rgb: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 RGB picture to a .png or .jpg file, whole or not at all.

    Raises: VideoError if the file cannot be written.
    """
    _write_image(path, path.suffix, rgb[..., ::-1], [])


def _write_image(path: Path, suffix: str, image: np.ndarray, settings: list[int]) -> None:
    _, encoded = cv2.imencode(suffix, image, settings)
    try:
        with new_file(path) as partial:
            partial.write_bytes(encoded.tobytes())
    except OSError as error:
        raise VideoError(f"{path}: cannot write the picture: {error}") from error
