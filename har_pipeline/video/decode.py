"""Probing and sequential reading of video files: PyAV by default, decord on request, with the same frame numbers.

`auto` is PyAV. Measured on the clips that this project is tested on: its YUV planes converted by OpenCV are read faster
than decord delivers RGB, it flags frames that a damaged stream made it patch up (decord shows them as good ones, whatever
its `fault_tol`), and it numbers MPEG-1 files right, where decord is several frames off.
Frames are numbered in the order of display, as the decoder delivers them; a frame that cannot be decoded has no number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import cv2
import numpy as np

from har_pipeline.errors import VideoError

Decoder = Literal["auto", "decord", "pyav"]

DECORD_BLOCK = 16
# Containers in which decord's frame numbers were found to be wrong.
_NOT_FOR_DECORD = ("mpeg", "mpegvideo", "mpegts")
_BT601 = (2, 4, 5, 6)  # FFmpeg's numbers: unspecified, FCC, BT.470BG, SMPTE 170M
_FULL_RANGE = 2
# Containers of the usual data sets announce up to this many frames more than any decoder delivers.
_MISCOUNT = 3


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file says of its video stream, without decoding it.

    fps: mean frames/s (25 where the file does not say); container_frames: the header's count, 0 if it has none;
    packet_frames: packets that hold data, nearly always the number of decodable frames; rotation: degrees, a multiple
    of 90, that the picture is turned counter-clockwise for display.
    """

    path: Path
    width: int
    height: int
    fps: float
    container_frames: int
    packet_frames: int
    codec: str
    container: str
    pixel_format: str

    @property
    def announced_frames(self) -> int:
        """How many frames the file should have: the header's count, else the number of packets."""
        return self.container_frames or self.packet_frames


def probe(path: Path) -> VideoInfo:
    """Return what the file says of its first video stream; packets are counted, nothing is decoded.

    Raises: VideoError if the file is missing, empty, a folder, no video, or has no video stream.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        context = stream.codec_context
        packets = 0
        try:
            packets = sum(1 for packet in container.demux(stream) if packet.size)
        except av.error.FFmpegError:
            pass  # a damaged tail: what follows cannot be read, and is reported when frames are missing
        return VideoInfo(
            path=path,
            width=context.width,
            height=context.height,
            fps=float(rate) if rate else 25.0,
            container_frames=stream.frames,
            packet_frames=packets,
            codec=context.name,
            container=container.format.name,
            pixel_format=str(context.pix_fmt),
        )


def _open(path: Path) -> Any:
    """Return an open container that has a video stream."""
    if not path.exists():
        raise VideoError(f"{path}: the file does not exist")
    if path.is_dir():
        raise VideoError(f"{path}: is a folder, not a video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    try:
        # Some HMDB-51 files hold metadata that is not UTF-8.
        container = av.open(str(path), metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: is not a readable video ({error.strerror or error})") from error
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        raise VideoError(f"{path}: has no video stream (only {', '.join(kinds) or 'nothing'})")
    context = container.streams.video[0].codec_context
    if context is None or not context.width:
        container.close()
        raise VideoError(f"{path}: the video stream cannot be decoded (unknown codec or size)")
    return container


class FrameReader:
    """Iterates over (number, frame) of the file's frames `[start, stop)`; frame is (H, W, 3) uint8 RGB as displayed.

    Reading is sequential from the first frame, since seeking is not exact in many files. After the iteration `notes` says
    what was odd, `decoder_used` who decoded, and `frames_decoded` how many frames were met, skipped ones included.
    Raises: VideoError, on iteration, if the file cannot be opened or decoded at all.
    """

    def __init__(
        self,
        path: Path,
        *,
        decoder: Decoder = "auto",
        start: int = 0,
        stop: int | None = None,
        info: VideoInfo | None = None,
    ) -> None:
        self.path, self.start, self.stop = path, start, stop
        self.notes: list[str] = []
        self.frames_decoded = 0
        info = info or probe(path)
        self.decoder_used: str = "decord" if decoder == "decord" else "pyav"
        if decoder == "decord" and info.container in _NOT_FOR_DECORD:
            self.decoder_used = "pyav"
            self.notes.append(f"decord misnumbers the frames of {info.container} files: PyAV was used")

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        frames = self._decord() if self.decoder_used == "decord" else self._pyav()
        for frame in frames:
            number = self.frames_decoded
            self.frames_decoded += 1
            if number >= self.start:
                yield number, frame
            if self.stop is not None and number + 1 >= self.stop:
                return

    def _pyav(self) -> Iterator[np.ndarray]:
        broken: list[int] = []
        patched: list[int] = []
        with _open(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            try:
                for packet in container.demux(stream):
                    try:
                        frames = packet.decode()
                    except av.error.FFmpegError:
                        broken.append(self.frames_decoded)
                        continue
                    for frame in frames:
                        if frame.is_corrupt:
                            patched.append(self.frames_decoded)
                        yield _to_rgb(frame)
            except av.error.FFmpegError as error:
                self.notes.append(f"reading stopped after {self.frames_decoded} frames ({error.strerror})")
            finally:
                if broken:
                    self.notes.append(f"{len(broken)} packets could not be decoded, the first near frame {broken[0]}")
                if patched:
                    listed = ", ".join(map(str, patched[:10])) + (" ..." if len(patched) > 10 else "")
                    self.notes.append(f"frames patched up by the decoder, their data is damaged: {listed}")

    def _decord(self) -> Iterator[np.ndarray]:
        try:
            import decord
        except ImportError as error:
            raise VideoError("decord is not installed here (it has x86-64 wheels only): use --decoder pyav") from error
        decord.logging.set_level(decord.logging.ERROR)
        try:
            video = decord.VideoReader(str(self.path), num_threads=1)
            end = len(video)
            if self.stop is not None and self.stop < end - _MISCOUNT:
                end = self.stop
            else:
                # Past the last decodable frame decord repeats it, up to the number of packets.
                end = min(self.stop or end, end, count_frames(self.path))
            for first in range(0, end, DECORD_BLOCK):
                yield from video.get_batch(range(first, min(first + DECORD_BLOCK, end))).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            text = str(error).strip().splitlines()
            raise VideoError(f"{self.path}: decord cannot decode it ({text[0][:120] if text else error})") from error


def count_frames(path: Path) -> int:
    """Return the number of decodable frames, by decoding all of them without converting any."""
    with _open(path) as container:
        count = 0
        for packet in container.demux(container.streams.video[0]):
            with contextlib.suppress(av.error.FFmpegError):
                count += len(packet.decode())
        return count


def _to_rgb(frame: Any) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, turned as the file's display matrix says.

    8-bit 4:2:0 in BT.601 and limited range, the usual case, goes through OpenCV, six times faster than FFmpeg's scaler
    and within about one level of it; all else through the scaler.
    """
    usual = frame.format.name == "yuv420p" and frame.colorspace in _BT601 and frame.color_range != _FULL_RANGE
    if usual and frame.width % 2 == 0 and frame.height % 2 == 0:
        rgb = cv2.cvtColor(frame.to_ndarray(format="yuv420p"), cv2.COLOR_YUV2RGB_I420)
    else:
        rgb = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def tail_note(info: VideoInfo, frames_found: int, end_frame: int | None = None) -> list[str]:
    """Return what to note of a file whose reading ended after `frames_found` frames; the usual miscount is no news.

    Raises: VideoError if fewer than half of the announced frames (up to `end_frame`) could be decoded.
    """
    announced = info.announced_frames if end_frame is None else min(end_frame, max(info.announced_frames, frames_found))
    text = f"{announced} frames are announced, {frames_found} could be decoded"
    if frames_found * 2 < announced - _MISCOUNT:
        raise VideoError(f"{info.path}: {text}: the file is truncated or damaged")
    return [text] if frames_found < announced - _MISCOUNT else []
