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
) -> Path:
    """Write numbered frames into a video file; `times` (in 1/fps s) makes their rate vary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.bit_rate = 2_000_000
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, width, height, seed), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_mp4(source: Path, target: Path, degrees: int) -> Path:
    """Copy an MP4 with the display matrix of its first track set to a clockwise turn, as a phone writes it."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = bytearray(source.read_bytes())
    box = data.index(b"tkhd") + 4
    start = box + (52 if data[box] else 40)  # version 1 has three longer fields before the matrix
    data[start : start + len(matrix)] = matrix
    target.write_bytes(data)
    return target


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
