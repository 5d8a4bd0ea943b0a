"""Filmstrips and clips of a manifest's rows."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from depth_files import moving_body, write_folder
from video_files import make_video, read_number, truncate, turn_mp4

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import VideoRecord
from har_pipeline.video import preview as module
from har_pipeline.video.preview import preview


def record(path: Path, **more: object) -> VideoRecord:
    return VideoRecord(video_id="v", label="a", path=path, **more)  # type: ignore[arg-type]


def strip_of(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def clip_frames(data: bytes) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream


def test_a_filmstrip_is_of_evenly_spaced_frames(tmp_path: Path) -> None:
    strip = strip_of(preview(record(make_video(tmp_path / "v.avi", 101))).strip)
    assert strip.shape == (120, 6 * 160 + 5 * 2, 3)
    numbers = [read_number(strip[:, 162 * k : 162 * k + 160]) for k in range(6)]
    assert numbers == [0, 20, 40, 60, 80, 100]


def test_a_row_of_a_longer_file_shows_its_own_frames(tmp_path: Path) -> None:
    made = preview(record(make_video(tmp_path / "v.avi", 60), start_frame=20, end_frame=31))
    strip = strip_of(made.strip)
    assert [read_number(strip[:, 162 * k : 162 * k + 160]) for k in range(6)] == [20, 22, 24, 26, 28, 30]
    assert [read_number(frame) for frame in clip_frames(made.clip)[0]] == list(range(20, 31))


def test_a_clip_is_for_browsers_and_holds_four_seconds_of_the_middle(tmp_path: Path) -> None:
    data = preview(record(make_video(tmp_path / "v.avi", 200, fps=25))).clip
    frames, stream = clip_frames(data)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert float(stream.average_rate or 0) == 25
    assert [read_number(frame) for frame in frames] == list(range(50, 150))
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first"
    assert len(data) < 150_000


def test_a_fast_video_is_thinned_to_the_speed_it_was_filmed_at(tmp_path: Path) -> None:
    frames, stream = clip_frames(preview(record(make_video(tmp_path / "v.avi", 120, fps=100))).clip)
    assert float(stream.average_rate or 0) == 25
    assert [read_number(frame) for frame in frames] == list(range(0, 120, 4))


def test_no_clip_unless_asked_for(tmp_path: Path) -> None:
    made = preview(record(make_video(tmp_path / "v.avi", 5)), clip=False)
    assert made.clip == b""
    assert len(made.strip) > 0


@pytest.mark.parametrize(("width", "height"), [(640, 360), (98, 200), (1280, 24), (34, 18)])
def test_pictures_are_small_and_keep_their_shape(tmp_path: Path, width: int, height: int) -> None:
    made = preview(record(make_video(tmp_path / "v.avi", 6, width=width, height=height)))
    frames, _ = clip_frames(made.clip)
    tall, wide = frames[0].shape[:2]
    assert tall <= 160
    assert wide <= 320
    assert tall % 2 == wide % 2 == 0
    strip = strip_of(made.strip)
    assert strip.shape[0] <= 120
    if height > 24:
        assert wide / tall == pytest.approx(width / height, rel=0.1)
        assert (strip.shape[1] - 10) / 6 / strip.shape[0] == pytest.approx(width / height, rel=0.1)


def test_a_phone_video_is_upright(tmp_path: Path) -> None:
    lying = make_video(tmp_path / "v.mp4", 6, width=320, height=240)
    made = preview(record(turn_mp4(lying, tmp_path / "turned.mp4", 90)))
    assert clip_frames(made.clip)[0][0].shape == (160, 120, 3)
    assert strip_of(made.strip).shape == (120, 6 * 90 + 10, 3)


def test_pixels_that_are_not_square_are_shown_square(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((96, 96, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    made = preview(record(path))
    assert clip_frames(made.clip)[0][0].shape == (96, 192, 3)
    lying = make_video(tmp_path / "plain.mp4", 6, width=96, height=64)
    assert clip_frames(preview(record(lying)).clip)[0][0].shape == (64, 96, 3)


def test_depth_is_shown_in_grey(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "depth", moving_body(12))
    made = preview(VideoRecord(video_id="v", label="a", depth_path=folder))
    strip = strip_of(made.strip)
    assert strip.shape == (48, 6 * 64 + 10, 3)
    assert strip[:, :64].max() > 150
    assert len(clip_frames(made.clip)[0]) == 12


def test_what_cannot_be_shown_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.avi").write_text("no video")
    for path, why in ((tmp_path / "none.avi", "does not exist"), (tmp_path / "text.avi", "not a readable video")):
        with pytest.raises(VideoError, match=why):
            preview(record(path))
    with pytest.raises(VideoError, match="from frame 50"):
        preview(record(make_video(tmp_path / "v.avi", 10), start_frame=50))
    monkeypatch.setattr(module, "MAX_DEPTH_FRAMES", 5)
    folder = write_folder(tmp_path / "depth", moving_body(12))
    with pytest.raises(VideoError, match="more than 5 frames"):
        preview(VideoRecord(video_id="v", label="a", depth_path=folder))
    empty = write_folder(tmp_path / "empty", np.zeros((3, 8, 8), np.uint16))
    with pytest.raises(VideoError, match="no frame that is shown has any foreground"):
        preview(VideoRecord(video_id="v", label="a", depth_path=empty))


def test_a_file_that_ends_early_shows_what_is_there(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "v.avi", 60, noise=np.random.default_rng(0))
    made = preview(record(truncate(whole, tmp_path / "cut.avi", 0.7)))
    assert strip_of(made.strip).shape[0] == 120
    assert clip_frames(made.clip)[0]


@pytest.mark.needs_real_data
def test_real_videos_and_depth_are_shown(real_data: Path) -> None:
    """UT-Interaction's files hold fillers in the places of frames; UTD-MHAD's depth is in MATLAB files."""
    video = sorted((real_data / "clips/ut_interaction_set1").glob("*.avi"))[0]
    made = preview(record(video))
    assert strip_of(made.strip).shape[0] == 120
    frames, _ = clip_frames(made.clip)
    assert 20 < len(frames) <= 120
    depth = sorted((real_data / "depth/utd_mhad").glob("*_depth.mat"))[0]
    made = preview(VideoRecord(video_id="v", label="a", depth_path=depth))
    assert strip_of(made.strip).std() > 10
    assert len(clip_frames(made.clip)[0]) > 20
