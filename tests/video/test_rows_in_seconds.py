"""Rows given in seconds: every reader reads the frames that begin within them, of files of a constant rate and of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decode_tasks import cut, numbers, task_for
from depth_files import moving_body, write_ffv1, write_folder, write_mat
from video_files import make_video, read_number

from har_pipeline.core.records import ClipSpec, Span, VideoRecord
from har_pipeline.features.job import file_of
from har_pipeline.inference.predict import sample_frames
from har_pipeline.video.clip_worker import Done
from har_pipeline.video.decode import probe
from har_pipeline.video.depth import read_depth_span
from har_pipeline.video.frame_worker import RawTask, prepare_video
from har_pipeline.video.local.worker import VideoFrames
from har_pipeline.video.preview import preview
from har_pipeline.video.process import Failed
from har_pipeline.video.stream_worker import read_frames

ALL = ClipSpec(sampling="dense", num_clips=None)
# Of a file of 25 frames/s: the frames 10 to 14.
ROW = Span(start_s=0.4, end_s=0.6)
FRAMES = list(range(10, 15))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("seconds") / "v.mp4", 30, codec="libx264", options={"bf": "2"})


def row(path: Path, span: Span = ROW) -> VideoRecord:
    return VideoRecord(video_id="v", label="a", path=path, start_s=span.start_s, end_s=span.end_s)


def clips_of(path: Path) -> list[int]:
    _, clips, end = cut(task_for(path, ALL, start_s=ROW.start_s, end_s=ROW.end_s))
    assert isinstance(end, Done), end
    return [number for clip in numbers(clips) for number in clip]


def prepared(path: Path) -> list[int]:
    limits = {"time_limit_s": 60.0, "memory_limit_gb": 4.0, "max_frames": 1000}
    raw = {"stream": "rgb", "size": 160, "aspect": "stretch", "causal": False, "fps": 30.0}
    return prepare_video(RawTask(video_id="v", path=path, start_s=0.4, end_s=0.6, **limits, **raw)).numbers.tolist()


READERS: dict[str, Callable[[Path], list[int]]] = {
    "clips": clips_of,
    "raw frames": prepared,
    "handcrafted": lambda path: [read_number(frame) for frame in VideoFrames(path, 120, ROW, max_frames=99)],
    "live": lambda path: [read_number(frame) for frame in read_frames(path, "rgb", ROW)],
    "pictures": lambda path: [read_number(frame) for frame in sample_frames(path, 5, ROW)],
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_the_row(video: Path, reader: str) -> None:
    assert READERS[reader](video) == FRAMES


def test_the_preview_shows_the_row(video: Path) -> None:
    frames = VideoRecord(video_id="v", label="a", path=video, start_frame=10, end_frame=15)
    assert preview(row(video), clip=False) == preview(frames, clip=False)


def test_times_are_those_of_the_time_stamps(tmp_path: Path) -> None:
    """Frames at 0, 40, 80 ms ..., then one a second later; the first one at 2 s."""
    times = [50 + n + 25 * (n >= 12) for n in range(30)]
    path = make_video(tmp_path / "v.mkv", 30, codec="libx264", times=times)
    assert probe(path).timing.times_s is not None
    for reader in READERS.values():
        assert reader(path) == [10, 11]
    _, clips, _ = cut(task_for(path, ALL, start_s=0.44, end_s=1.52))
    assert numbers(clips) == [[11], [12]]


def test_a_row_that_the_file_does_not_hold_fails_with_its_times(video: Path) -> None:
    _, _, end = cut(task_for(video, ALL, start_s=1.2))
    assert isinstance(end, Failed)
    assert end.reason == f"{video}: the row starts at 1.2 s, the file ends at 1.2 s"
    _, _, end = cut(task_for(video, ALL, start_s=0.41, end_s=0.43))
    assert isinstance(end, Failed)
    assert end.reason == f"{video}: the row has no frame: none begins from 0.41 s to 0.43 s"


def test_a_row_that_ends_after_the_file_is_noted(video: Path) -> None:
    _, clips, end = cut(task_for(video, ALL, start_s=1.0, end_s=2.0))
    assert numbers(clips) == [[25], [26], [27], [28], [29]]
    assert isinstance(end, Done)
    assert end.notes == ("frames up to 50 are wanted, the file has 30",)


def test_rows_of_other_times_are_other_videos(video: Path) -> None:
    first, second = (file_of(task_for(video, ALL, start_s=start)) for start in (0.4, 0.44))
    assert first["frames"] == "from 0.4 s to the end"
    assert first != second


@pytest.mark.parametrize("kind", ["folder", "mat", "ffv1"])
def test_depth_is_read_in_seconds(tmp_path: Path, kind: str) -> None:
    frames = moving_body()
    write = {"folder": write_folder, "mat": write_mat, "ffv1": lambda path, data: write_ffv1(path, data, fps=30)}
    path = write[kind](tmp_path / {"folder": "f", "mat": "a.mat", "ffv1": "a.mkv"}[kind], frames)
    video = read_depth_span(path, Span(start_s=0.1, end_s=0.2))
    assert np.array_equal(video.frames, frames[3:6])
    assert video.numbers.tolist() == [3, 4, 5]
