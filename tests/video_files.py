"""Makes small video files for tests; frame i carries the number i in its top row of blocks."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BLOCK = 16
BITS = 8


def numbered_frame(number: int, width: int = 160, height: int = 120, seed: int = 0) -> np.ndarray:
    """Return (height, width, 3) uint8: moving blocks, and `number` in binary, black and white, at the top."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 215, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    frame = np.roll(coarse.repeat(8, 0).repeat(8, 1)[:height, :width], 2 * number, axis=1).copy()
    for bit in range(BITS):
        frame[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if number >> bit & 1 else 0
    return frame


def read_number(frame: np.ndarray) -> int:
    """Return the number drawn by `numbered_frame`, at the frame's own scale."""
    scale = frame.shape[1] / 160
    middle = round(BLOCK / 2 * scale)
    xs = [round((bit + 0.5) * BLOCK * scale) for bit in range(BITS)]
    return sum(int(frame[middle, x].mean() > 128) << bit for bit, x in enumerate(xs))


def make_video(
    path: Path,
    num_frames: int = 30,
    *,
    codec: str = "mpeg4",
    width: int = 160,
    height: int = 120,
    pixel_format: str = "yuv420p",
    fps: int = 25,
    seed: int = 0,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    noise: np.random.Generator | None = None,
) -> Path:
    """Write numbered frames into a video file; `times` (in 1/fps s) makes their rate vary, `noise` their packets large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.bit_rate = 2_000_000
        for number in range(num_frames):
            picture = numbered_frame(number, width, height, seed)
            if noise is not None:
                picture = np.clip(picture + noise.integers(-30, 30, picture.shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_mp4(source: Path, target: Path, degrees: int) -> Path:
    """Copy an MP4 with the display matrix of its first track set to a clockwise turn, as a phone writes it."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    return set_matrix(source, target, cos, sin, -sin, cos)


def truncate(source: Path, target: Path, share: float) -> Path:
    """Copy the leading share of a file's bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def make_audio(path: Path) -> Path:
    """Write a file that has sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44100)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damage_packets(source: Path, target: Path, numbers: list[int]) -> Path:
    """Copy a video file with the data of some packets overwritten by noise."""
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    for number in numbers:
        position, size = packets[number]
        data[position : position + size] = np.random.default_rng(number).bytes(size)
    target.write_bytes(data)
    return target


def set_matrix(source: Path, target: Path, a: float, b: float, c: float, d: float) -> Path:
    """Copy an MP4 with another display matrix of its first track: x' = a x + c y, y' = b x + d y."""
    matrix = struct.pack(
        ">9i", *(round(v * 65536) for v in (a, b)), 0, *(round(v * 65536) for v in (c, d)), 0, 0, 0, 1 << 30
    )
    data = bytearray(source.read_bytes())
    box = data.index(b"tkhd") + 4
    start = box + (52 if data[box] else 40)  # version 1 has three longer fields before the matrix
    data[start : start + len(matrix)] = matrix
    target.write_bytes(data)
    return target


def merge_streams(sources: Sequence[Path], target: Path, cover: bool = False) -> Path:
    """Write the video streams of several files into one, without encoding them again; `cover`: the first is a picture."""
    with av.open(str(target), "w") as out:
        inputs = [av.open(str(source)) for source in sources]
        streams = [out.add_stream_from_template(one.streams.video[0]) for one in inputs]
        for stream in streams:
            stream.disposition = av.stream.Disposition.default
        if cover:
            streams[0].disposition = av.stream.Disposition.attached_pic
        for one, stream in zip(inputs, streams, strict=True):
            for packet in one.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
            one.close()
    return target


def join(sources: Sequence[Path], target: Path) -> Path:
    """Put files one after the other, as transport streams may be."""
    target.write_bytes(b"".join(source.read_bytes() for source in sources))
    return target


def zero_out(source: Path, target: Path, share: float, count: int = 2000) -> Path:
    """Copy a file with `count` bytes, from this share of it on, set to zero: a block that was never written."""
    data = bytearray(source.read_bytes())
    start = int(len(data) * share)
    data[start : start + count] = bytes(count)
    target.write_bytes(data)
    return target
