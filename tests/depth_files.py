"""Makes small depth videos for tests: a body of known px and millimetres, as PNG folder, `.mat` array or FFV1 file."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from scipy.io import savemat

from har_pipeline.video.encode import write_depth_png

HEIGHT, WIDTH = 48, 64


def moving_body(num_frames: int = 12, seed: int = 0) -> np.ndarray:
    """Return (F, 48, 64) uint16: a block 20 rows high and 8 columns wide that goes right by 2 px a frame, at 2 to 3 m."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((num_frames, HEIGHT, WIDTH), np.uint16)
    for number in range(num_frames):
        left = 10 + 2 * number
        frames[number, 14:34, left : left + 8] = rng.integers(2000, 3000, (20, 8))
    return frames


def write_folder(folder: Path, frames: np.ndarray, first: int = 1) -> Path:
    """Write frames as NTU RGB+D does, numbered from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        write_depth_png(folder / f"MDepth-{number:08d}.png", frame)
    return folder


def write_mat(path: Path, frames: np.ndarray) -> Path:
    """Write frames as UTD-MHAD does: an array of MATLAB's class double, whose whole numbers are stored as uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = BytesIO()
    savemat(plain, {"d_depth": np.moveaxis(frames, 0, 2)})
    header, matrix = plain.getvalue()[:128], bytearray(plain.getvalue()[128:])
    # The tag of the matrix and the tag of its flags, 8 bytes each, stand before the flags, whose low byte is the class.
    assert matrix[16] == 11, "uint16"
    matrix[16] = 6
    packed = zlib.compress(matrix)
    path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
    return path


def write_ffv1(
    path: Path, frames: np.ndarray, pixel_format: str = "gray16le", fps: int = 20, key_interval: int = 12
) -> Path:
    """Write frames as FFV1; of another pixel format, their low bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps, options={"g": str(key_interval)})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        for frame in frames:
            image = frame if pixel_format == "gray16le" else frame.astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=pixel_format)))
        container.mux(stream.encode(None))
    return path
