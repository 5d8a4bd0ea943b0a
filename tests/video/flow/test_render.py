"""The video of a video's flow."""

from __future__ import annotations

from pathlib import Path

import pytest
from video_files import make_video

from har_pipeline.core.errors import VideoError
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.flow.render import write_flow_video
from har_pipeline.video.flow.spec import FlowSpec

SPEC = FlowSpec(method="farneback")


def test_one_picture_per_pair_at_the_videos_rate(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.avi", 20, fps=10)  # longer than a block; everything moves two px to the right
    out = tmp_path / "out.mp4"
    assert write_flow_video(source, out, SPEC, max_px=4) == 19
    assert (probe(out).fps, probe(out).packet_frames) == (10, 19)
    frame = next(iter(FrameReader(out)))[1]
    assert frame.shape == (120, 160, 3)
    red, green, blue = frame[40:, 20:-20].reshape(-1, 3).mean(axis=0)  # the wheel begins with red, to the right
    assert red > green + 40
    assert red > blue + 40


def test_frames_can_be_scaled(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.avi", 3)
    write_flow_video(source, tmp_path / "out.mp4", SPEC, short_side=61)
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height) == (80, 60)


def test_one_frame_has_no_flow(tmp_path: Path) -> None:
    source = make_video(tmp_path / "one.avi", 1)
    with pytest.raises(VideoError, match=r"one\.avi"):
        write_flow_video(source, tmp_path / "out.mp4", SPEC)
    assert not (tmp_path / "out.mp4").exists()
