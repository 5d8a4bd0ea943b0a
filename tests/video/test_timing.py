"""Frame rates and times from time stamps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.video.timing import Timing, display_ticks, joined_ticks, timing_of


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
