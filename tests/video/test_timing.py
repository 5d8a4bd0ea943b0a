"""Frame rates and times from time stamps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Span
from har_pipeline.video.timing import Timing, display_ticks, in_frames, joined_ticks, timing_of


@given(st.integers(2, 400), st.sampled_from([15.0, 24000 / 1001, 25.0, 30000 / 1001, 50.0, 120.0]), st.integers(0, 999))
def test_a_header_that_the_time_stamps_allow_is_believed(frames: int, fps: float, first: int) -> None:
    ticks = [first + round(n * 1000 / fps) for n in range(frames)]
    assert timing_of(ticks, 0.001, fps) == Timing(fps)


@pytest.mark.parametrize("header", [0.0, 600.0, 1000.0, 90000.0])
@pytest.mark.parametrize("fps", [15.0, 24000 / 1001, 25.0, 30000 / 1001, 30.0, 59.94005994005994, 60.0])
def test_else_a_usual_rate_is_found(header: float, fps: float) -> None:
    timing = timing_of([round(n * 1000 / fps) for n in range(300)], 0.001, header)
    assert timing.fps == pytest.approx(fps)
    assert timing.times_s is None
    assert "which is used" in timing.notes[0]


def test_a_rate_that_is_not_usual_is_fitted() -> None:
    assert timing_of([round(n * 1000 / 17.3) for n in range(300)], 0.001, 1000.0).fps == pytest.approx(17.3, abs=1e-3)


@given(st.lists(st.integers(1, 3000), min_size=8, max_size=60))
def test_times_follow_the_time_stamps_of_a_rate_that_varies(gaps: list[int]) -> None:
    ticks = np.cumsum([0, *gaps]).tolist()
    timing = timing_of(ticks, 0.001, 1000.0)
    if timing.times_s is not None:
        assert np.allclose(timing.times_s * 1000, ticks)
    assert np.abs(timing.begin_s(np.arange(len(ticks))) * timing.fps - np.array(ticks) / 1000 * timing.fps).max() <= 1


def test_frames_that_are_missing_leave_the_others_in_their_places() -> None:
    ticks = [n for n in range(50) if n not in (20, 21)]
    timing = timing_of(ticks, 0.04, 25.0)
    assert timing.fps == 25.0
    assert timing.times_s is not None
    assert np.allclose(timing.times_s, np.array(ticks) / 25)
    assert timing.notes == ("the time stamps skip 2 frames at 25 frames/s; times follow the time stamps",)


@pytest.mark.parametrize("ticks", [[], [0], [None, None], [0, None], [5, 5, 5]])
def test_without_time_stamps_the_header_is_believed(ticks: list[int | None]) -> None:
    assert timing_of(ticks, 0.001, 24.0) == Timing(24.0)
    assumed = timing_of(ticks, 0.001, 0.0)
    assert assumed.fps == 25.0
    assert assumed.notes == ("the header says no frame rate: 25 frames/s are assumed",)


def test_packets_are_ordered_by_display_within_each_part() -> None:
    pts, dts = [0, 3, 1, 2, 0, 3, 1, 2], [None, 0, 1, 2, -1, 0, 1, 2]
    assert display_ticks(pts, dts, "avi", 0.04) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert joined_ticks([0, 1, 2, 3, 0, 1, 2, 3], "avi", 0.04) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert display_ticks([0, None], [0, 1], "avi", 0.04) == [None, None]


def test_a_long_jump_is_a_joint_in_streams_only() -> None:
    ticks = [0, 1, 2, 1000, 1001]
    assert joined_ticks(ticks, "mpegts", 0.04) == [0, 1, 2, 3, 4]
    assert joined_ticks(ticks, "matroska,webm", 0.04) == ticks


def test_a_part_is_timed_from_its_own_start() -> None:
    timing = Timing(2.0, np.array([0.0, 0.1, 1.0, 1.5]))
    part = timing.part(1, 3)
    assert part.times_s is not None
    assert np.allclose(part.times_s, [0.0, 0.9])
    assert np.allclose(timing.begin_s(np.array([0, 3, 4])), [0.0, 1.5, 2.0])
    assert Timing(2.0).part(1, 3) == Timing(2.0)


# Rows in seconds.


def frames_of(span: Span, timing: Timing, frames: int) -> tuple[int, int | None]:
    found = in_frames(span, Path("a.mp4"), timing, frames)
    assert not found.timed
    return found.start_frame, found.end_frame


@given(st.lists(st.integers(20, 3000), min_size=2, max_size=60), st.data())
def test_a_row_in_seconds_has_the_frames_that_begin_within_it(gaps: list[int], data: st.DataObject) -> None:
    stamps_ms = np.cumsum([0, *gaps]).tolist()
    timing = timing_of([7000 + at for at in stamps_ms], 0.001, 25.0)
    start = data.draw(st.integers(0, stamps_ms[-1]))
    end = data.draw(st.integers(start + 1, stamps_ms[-1] + 1))
    inside = [number for number, at in enumerate(stamps_ms) if start <= at < end]
    span = Span(start_s=start / 1000 + 0.0005, end_s=end / 1000 + 0.0005)  # half the slack of 1 ms
    if inside:
        assert frames_of(span, timing, len(stamps_ms)) == (inside[0], inside[-1] + 1)
    else:
        with pytest.raises(VideoError, match="the row has no frame"):
            frames_of(span, timing, len(stamps_ms))


@pytest.mark.parametrize("fps", [24000 / 1001, 25.0, 30000 / 1001, 50.0, 120.0])
@pytest.mark.parametrize("tick_s", [1 / 90000, 0.001])
def test_times_rounded_to_milliseconds_mean_their_frames(fps: float, tick_s: float) -> None:
    timing = timing_of([round(n / fps / tick_s) for n in range(300)], tick_s, fps)
    for number in range(1, 299):
        for digits in (3, 6, 12):
            span = Span(start_s=round(number / fps, digits), end_s=round((number + 1) / fps, digits))
            assert frames_of(span, timing, 300) == (number, number + 1)


def test_frames_beyond_the_last_are_a_frame_apart() -> None:
    for timing in (Timing(25.0), timing_of(range(100), 0.04, 25.0)):
        assert frames_of(Span(start_s=0.0), timing, 100) == (0, None)
        assert frames_of(Span(start_s=3.96, end_s=4.0), timing, 100) == (99, 100)
        assert frames_of(Span(end_s=4.8), timing, 100) == (0, 120)
        assert frames_of(Span(end_s=1e300), timing, 100)[1] == 25_000_000_000


def test_a_row_in_seconds_without_a_frame_is_refused() -> None:
    timing = timing_of(range(100), 0.04, 25.0)
    with pytest.raises(VideoError, match=r"^a\.mp4: the row starts at 4 s, the file ends at 4 s$"):
        frames_of(Span(start_s=4.0), timing, 100)
    with pytest.raises(VideoError, match=r"^a\.mp4: the row has no frame: none begins from 1\.01 s to 1\.02 s$"):
        frames_of(Span(start_s=1.01, end_s=1.02), timing, 100)
    assert in_frames(Span(start_frame=3), Path("a.mp4"), timing, 2) == Span(start_frame=3)  # checked elsewhere
