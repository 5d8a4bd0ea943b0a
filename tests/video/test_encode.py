from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from har_pipeline.core.errors import VideoError
from har_pipeline.video.encode import write_depth_png, write_video


def gradient_frames(count: int = 6, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Smooth frames whose red tells the column, green the row and blue the frame's number."""
    rows, columns = np.mgrid[0:height, 0:width]
    return [
        np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 20 + 30 * number)], -1).astype(
            np.uint8
        )
        for number in range(count)
    ]


def decode(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), stream


def test_frames_come_back_in_order_and_colour(tmp_path: Path) -> None:
    frames = gradient_frames()
    path = tmp_path / "new" / "folder" / "clip.avi"
    assert write_video(path, iter(frames), fps=25.0) == len(frames)
    decoded, stream = decode(path)
    assert decoded.shape == (6, 48, 64, 3)
    assert stream.codec_context.name == "mpeg4"
    assert stream.average_rate == 25
    assert np.abs(decoded.astype(int) - np.stack(frames)).mean() < 6
    assert [p.name for p in path.parent.iterdir()] == ["clip.avi"]


def test_a_lossless_codec_loses_nothing(tmp_path: Path) -> None:
    frames = [np.random.default_rng(n).integers(0, 256, (31, 33, 3), dtype=np.uint8) for n in range(3)]
    write_video(tmp_path / "exact.mkv", frames, codec="ffv1", pixel_format="bgr0")
    assert np.array_equal(decode(tmp_path / "exact.mkv")[0], np.stack(frames))


def test_a_broadcast_frame_rate_is_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "ntsc.mp4", gradient_frames(), fps=30000 / 1001)
    assert decode(tmp_path / "ntsc.mp4")[1].average_rate == Fraction(30000, 1001)


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    for name in ("first.avi", "second.avi"):
        write_video(tmp_path / name, gradient_frames())
    assert (tmp_path / "first.avi").read_bytes() == (tmp_path / "second.avi").read_bytes()


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 25.0, "no frame"),
        (gradient_frames(1), 0.0, "fps must be positive"),
        (gradient_frames(1), float("nan"), "fps must be positive"),
        ([np.zeros((48, 64, 3), np.float32)], 25.0, "frame 0 is float32"),
        ([np.zeros((48, 64), np.uint8)], 25.0, r"frame 0 is uint8 \(48, 64\)"),
        ([*gradient_frames(2), np.zeros((48, 48, 3), np.uint8)], 25.0, "frame 2 is"),
    ],
)
def test_bad_frames_are_named_and_leave_nothing(
    tmp_path: Path, frames: list[np.ndarray], fps: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.avi", frames, fps=fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "codec", "shape"),
    [
        ("clip.avi", "no-such-codec", (48, 64, 3)),
        ("clip.nosuffix", "mpeg4", (48, 64, 3)),
        ("c.mp4", "h264", (47, 63, 3)),
    ],
)
def test_what_the_encoder_refuses_is_a_video_error(
    tmp_path: Path, name: str, codec: str, shape: tuple[int, int, int]
) -> None:
    with pytest.raises(VideoError, match="cannot write") as caught:
        write_video(tmp_path / name, [np.zeros(shape, np.uint8)], codec=codec)
    assert str(caught.value).count("cannot write") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_audio_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a video codec"):
        write_video(tmp_path / "clip.avi", gradient_frames(), codec="aac")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write_video(path, gradient_frames())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="frame 1"):
        write_video(path, [*gradient_frames(1), np.zeros((2, 2, 3), np.uint8)])
    assert path.read_bytes() == before


def test_depth_keeps_all_sixteen_bits(tmp_path: Path) -> None:
    depth = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    write_depth_png(tmp_path / "depth.png", depth)
    back = cv2.imread(str(tmp_path / "depth.png"), cv2.IMREAD_UNCHANGED)
    assert back.dtype == np.uint16
    assert np.array_equal(back, depth)


def test_depth_of_another_kind_or_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not uint16"):
        write_depth_png(tmp_path / "depth.png", np.zeros((4, 4), np.float32))
    with pytest.raises(VideoError, match="cannot write"):
        write_depth_png(tmp_path / "absent" / "depth.png", np.zeros((4, 4), np.uint16))
