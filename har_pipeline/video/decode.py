"""Probing and sequential reading of video files: PyAV by default, decord on request, with the same frame numbers.

`auto` is PyAV: as fast as decord on UCF-101 (0.25 ms of CPU time a frame), with nearly equal pixels, and it flags frames
patched up from a damaged stream, which decord shows as good ones. decord also misnumbers some MPEG-1 files, and repeats the
last decodable frame. So decord is a cross-check: it delivers pixels after PyAV has found the file sound.
Frames are numbered in the order of display, as the decoder delivers them; a frame that cannot be decoded has no number.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Decoder

DECORD_BLOCK = 16
# Containers in which decord's frame numbers were found to be wrong.
_NOT_FOR_DECORD = ("mpeg", "mpegvideo", "mpegts")
# Headers that announce one frame too many are too common to note.
_MISCOUNT = 1
# Matroska has no frame count; its duration gives one, but only roughly where the frame rate varies.
_DURATION_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The header of a file's first video stream."""

    path: Path
    width: int  # px as stored, before the turn that the file may ask for
    height: int
    fps: float  # mean frames/s; 25 where the file does not say
    duration_s: float  # 0 if unknown
    container_frames: int  # the header's count, 0 if it has none
    packet_frames: int  # packets with a picture to be shown, nearly always the number of decodable frames
    hidden_packets: int  # packets without one
    codec: str
    container: str
    pixel_format: str

    @property
    def announced_frames(self) -> int:
        """How many frames the file should have: the header's count less the hidden packets, else the packets."""
        return self.container_frames - self.hidden_packets if self.container_frames else self.packet_frames


def probe(path: Path) -> VideoInfo:
    """Return the header of the file's first video stream; packets are counted, nothing is decoded.

    Raises: VideoError if the file is missing, empty, a folder, no video, or has no video stream.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        context = stream.codec_context
        packets = hidden = 0
        try:
            for packet in container.demux(stream):
                if _is_hidden(packet, context.name):
                    hidden += 1
                elif packet.size:
                    packets += 1
        except av.error.FFmpegError:
            pass  # a damaged tail: what follows cannot be read, and is reported when frames are missing
        return VideoInfo(
            path=path,
            width=context.width,
            height=context.height,
            fps=float(rate) if rate else 25.0,
            duration_s=(container.duration or 0) / 1e6,
            container_frames=stream.frames,
            packet_frames=packets,
            hidden_packets=hidden,
            codec=context.name,
            container=container.format.name,
            pixel_format=str(context.pix_fmt),
        )


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether a packet yields no frame by design.

    MPEG-4 in AVI stores a one-byte filler for each frame moved into an earlier packet (as in all of UT-Interaction), and an
    MP4's edit list can hide frames.
    """
    return (codec == "mpeg4" and packet.size == 1) or (packet.size > 0 and packet.is_discard)


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
    except (av.error.FFmpegError, OSError) as error:
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


@dataclass(slots=True)
class _Decoding:
    """How the decoding of a file went so far: the frames met, and the frame numbers of problems."""

    frames: int = 0
    broken: list[int] = field(default_factory=list)
    patched: list[int] = field(default_factory=list)
    stopped: str = ""

    def notes(self) -> list[str]:
        notes = []
        if self.broken:
            count = f"{len(self.broken)} packet{'s' if len(self.broken) > 1 else ''} could not be decoded"
            notes.append(f"{count}, the first near frame {self.broken[0]}; frames that build on them may be wrong")
        if self.patched:
            listed = ", ".join(map(str, self.patched[:10])) + (" ..." if len(self.patched) > 10 else "")
            notes.append(f"frames patched up by the decoder, their data is damaged: {listed}")
        if self.stopped:
            notes.append(f"reading stopped after {self.frames} frames ({self.stopped})")
        return notes


def _decode(path: Path, state: _Decoding) -> Generator[Any, None, None]:
    """Yield PyAV's frames, not converted, and keep `state` up to date: `state.frames` includes the frame yielded."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # a worker has one core
        try:
            for packet in container.demux(stream):
                if packet.size == 0 and packet.dts is not None:
                    continue  # an AVI's dropped frame: given to the decoder it would end the stream
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    state.broken.append(state.frames)
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        state.patched.append(state.frames)
                    state.frames += 1
                    yield frame
        except av.error.FFmpegError as error:
            state.stopped = error.strerror or type(error).__name__


def _to_rgb(frame: Any, reformatter: VideoReformatter) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, turned as the file's display matrix says.

    FFmpeg's scaler gives the pixels that decord and OpenCV's reader give; kept from frame to frame it is as fast as OpenCV's
    colour conversion, which differs by about a level.
    """
    rgb = reformatter.reformat(frame, format="rgb24").to_ndarray()
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns))


@contextmanager
def _decoder_errors() -> Iterator[list[Any]]:
    """Collect the errors that the decoder logs: the only sign of an FFV1 frame that fails its checksum."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_level(level)


def read_gray16(path: Path, *, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, float, list[str]]:
    """Return the frames `[start, stop)` of a 16-bit gray video (FFV1, PNG ...), (F, H, W) uint16, its frames/s, and notes.

    Raises: VideoError if the file cannot be opened, is not 16-bit gray, or fewer than half of its frames can be decoded.
    """
    info = probe(path)
    if not info.pixel_format.startswith("gray16"):
        raise VideoError(
            f"{path}: the frames are {info.pixel_format}; depth must be 16-bit gray (gray16le), such as FFV1"
        )
    state, images = _Decoding(), []
    with _decoder_errors() as errors, closing(_decode(path, state)) as frames:
        for frame in islice(frames, stop):
            if errors and not frame.is_corrupt:
                state.patched.append(state.frames - 1)
            errors.clear()
            if state.frames > start:
                images.append(frame.to_ndarray(format="gray16le"))
    if not images:
        raise VideoError("; ".join([f"{path}: no frame could be decoded from frame {start} on", *state.notes()]))
    notes = [*state.notes(), *tail_note(info, state.frames, stop)]
    return np.stack(images), info.fps, notes


class FrameReader:
    """Iterates over (number, frame) of the file's frames `[start, stop)`; frame is (H, W, 3) uint8 RGB as displayed.

    Reading is sequential from the first frame, since seeking is inexact in many files; memory does not grow with the video.
    Turns in steps of 90 degrees are applied; pixel aspect ratios are not. After the iteration `notes` says what was odd,
    `decoder_used` who decoded, and `frames_decoded` how many frames were met, skipped ones included.
    With `decord`, PyAV takes over wherever decord would be wrong or fails, with a note.
    Raises: ValueError if the range is empty; on iteration, VideoError if the file cannot be opened or holds no frame.
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
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"{path}: [{start}, {stop}) is no range of frames")
        self.path, self.start, self.stop, self.info = path, start, stop, info
        self.decoder_used = "decord" if decoder == "decord" else "pyav"
        self.notes: list[str] = []
        self.frames_decoded = 0
        self._wants_decord = decoder == "decord"

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        self.notes, self.frames_decoded = [], 0
        if self._wants_decord:
            problem = yield from self._read_decord()
            if not problem:
                return
            self.decoder_used = "decord, then pyav" if self.frames_decoded else "pyav"
            self.notes.append(f"{problem}: PyAV read from frame {self.frames_decoded} on")
        yield from self._read_pyav(max(self.start, self.frames_decoded))

    def _read_pyav(self, first: int) -> Generator[tuple[int, np.ndarray], None, None]:
        """Yield the frames from number `first` on. Raises: VideoError if the file holds no frame at all."""
        state, reformatter = _Decoding(), VideoReformatter()
        with closing(_decode(self.path, state)) as frames:
            try:
                for frame in islice(frames, self.stop):
                    self.frames_decoded = state.frames
                    if state.frames > first:
                        yield state.frames - 1, _to_rgb(frame, reformatter)
            finally:
                self.notes += state.notes()
        if not state.frames:
            raise VideoError("; ".join([f"{self.path}: no frame could be decoded", *self.notes]))

    def _read_decord(self) -> Generator[tuple[int, np.ndarray], None, str]:
        """Yield frames from decord as long as they are right; return why not all of them are, or nothing.

        Raises: VideoError if decord is not installed.
        """
        try:
            import decord
        except ImportError as error:
            raise VideoError("decord is not installed (only x86-64 has wheels): use --decoder pyav") from error
        decord.logging.set_level(decord.logging.QUIET)
        info = self.info or probe(self.path)
        if info.container in _NOT_FOR_DECORD:
            return f"decord misnumbers the frames of {info.container} files"
        if info.width % 2 or info.height % 2 or info.pixel_format.endswith(("le", "be")):
            return f"decord's colours are off for {info.pixel_format} frames of {info.width}x{info.height} px"
        state = _Decoding()
        with closing(_decode(self.path, state)) as frames:
            for _ in islice(frames, self.stop):
                pass
        if state.notes():
            return "decord shows damaged frames as good ones"
        try:
            video = decord.VideoReader(str(self.path), num_threads=1)
            # Blocks from the first frame on, since decord's seeks are not exact; the scan knows where they end.
            for block in range(0, state.frames, DECORD_BLOCK):
                numbers = range(block, min(block + DECORD_BLOCK, state.frames))
                for number, frame in zip(numbers, video.get_batch(numbers).asnumpy(), strict=True):
                    self.frames_decoded = number + 1
                    if number >= self.start:
                        yield number, frame
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            text = str(error).strip().splitlines()
            return f"decord failed ({text[0][:120] if text else type(error).__name__})"
        return ""


def tail_note(info: VideoInfo, frames_found: int, end_frame: int | None = None) -> list[str]:
    """Return the notes on a file whose reading ended after `frames_found` frames, counted from the file's first.

    end_frame: where the manifest row ends. A header that announces one frame too many gets no note.
    Raises: VideoError if fewer than half of the announced frames (up to `end_frame`) could be decoded.
    """
    announced = info.announced_frames if end_frame is None else min(end_frame, info.announced_frames)
    if frames_found < announced - _MISCOUNT:
        text = f"{announced} frames are announced, {frames_found} could be decoded"
        if frames_found * 2 < announced - _MISCOUNT:
            raise VideoError(f"{info.path}: {text}: the file is truncated or damaged")
        return [text]
    if end_frame is not None:
        if frames_found < end_frame - _MISCOUNT:
            return [f"frames up to {end_frame} are wanted, the file has {frames_found}"]
        return []
    by_duration = round(info.duration_s * info.fps)
    if info.container.startswith("matroska") and frames_found < by_duration * _DURATION_SHARE - _MISCOUNT:
        return [f"{frames_found} frames could be decoded, {info.duration_s:.1f} s suggest about {by_duration}"]
    return []
