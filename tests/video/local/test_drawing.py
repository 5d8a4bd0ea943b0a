from __future__ import annotations

import numpy as np
import pytest

from har_pipeline.video.local.drawing import draw_points, local_descriptor_sheet
from har_pipeline.video.local.points import Points

GREY = 100


def corners(*places: tuple[int, float, float, float]) -> Points:
    """Interest points of (frame, x, y, sigma), with the 16 frames that a descriptor of tau 2 reads."""
    frames, x, y, sigma = np.array(places, float).reshape(-1, 4).T
    return Points(
        first=frames.astype(int) - 8,
        end=frames.astype(int) + 8,
        tracks=np.stack([x, y], axis=1)[:, None].astype(np.float32),
        scales=sigma.astype(np.float32),
        blocks={},
    )


def track(first: int) -> Points:
    """One trajectory of 16 frames from (10, 20) to the right, 2 px a frame."""
    places = np.stack([10 + 2 * np.arange(16), np.full(16, 20)], axis=1)[None].astype(np.float32)
    return Points(np.array([first]), np.array([first + 16]), places, np.array([32], np.float32), {})


def frame(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def changed(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of what was drawn. Lines are smoothed, so that their colour is mixed with the grey."""
    y, x = np.nonzero((drawn != GREY).any(axis=-1))
    return x, y


def near(drawn: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return whether each px is at least half of a colour, on grey."""
    way = np.array(colour) - GREY
    return (drawn.astype(int) - GREY) @ way > 0.5 * (way @ way)


def test_a_circle_has_the_radius_of_its_scale_and_a_colour_by_it() -> None:
    for sigma, colour in ((2.0, (255, 255, 0)), (5.6, (255, 150, 0)), (11.3, (255, 0, 60))):
        drawn = draw_points(frame(), corners((20, 40.0, 30.0, sigma)), 20)
        y, x = np.nonzero(near(drawn, colour))
        assert len(x) > 2 * sigma
        assert np.abs(np.hypot(x - 40, y - 30) - sigma).max() < 1.5
        x, y = changed(drawn)
        assert np.hypot(x - 40, y - 30).max() < sigma + 2
        assert (drawn[30, 40] == GREY).all()


def test_a_point_is_drawn_for_tau_before_and_after_its_frame() -> None:
    lives = [number for number in range(40) if changed(draw_points(frame(), corners((20, 40, 30, 4)), number))[0].size]
    assert lives == [18, 19, 20, 21, 22]


def test_a_trajectory_is_drawn_up_to_its_head() -> None:
    for number, head in ((5, 10), (12, 24), (20, 40)):
        drawn = draw_points(frame(), track(5), number)
        assert drawn[20, head].tolist() == [255, 0, 0]
        x, _ = changed(drawn)
        assert (x.min(), x.max()) == pytest.approx((9, head), abs=3)
    for number in (4, 21):
        assert not changed(draw_points(frame(), track(5), number))[0].size


def test_the_frame_is_not_changed_and_points_outside_do_no_harm() -> None:
    original = frame()
    drawn = draw_points(original, corners((3, 79.6, 59.9, 11), (3, -20.0, 500.0, 2)), 3)
    assert (original == GREY).all()
    assert changed(drawn)[0].size
    assert np.array_equal(draw_points(original, corners(), 0), original)


def test_the_sheet_shows_evenly_spaced_frames_large_enough() -> None:
    frames = [frame(30, 100) for _ in range(50)]
    sheet = local_descriptor_sheet(frames, corners((0, 50, 20, 4)), count=6)
    # Each 400 x 120 px, in rows of 4; the seventh and eighth are black.
    assert (sheet.shape, sheet.dtype) == ((240, 1600, 3), np.uint8)
    assert not sheet[120:, 800:].any()
    first = sheet[:120, :400]
    # The centre of px 50 of 100, enlarged by 4, is at 201.5, and sigma is 16 px.
    y, x = np.nonzero(near(first, (255, 150, 0))[30:])
    assert np.abs(np.hypot(x - 201.5, y + 30 - 81.5) - 16).max() < 1.5
    # Numbers are written, 0 and others; nothing else is alive in the second picture.
    assert (first[:24, :24] > 200).all(axis=-1).any()
    second = sheet[:120, 400:800]
    assert not np.array_equal(second[:24, :24], first[:24, :24])
    assert (second[24:] == GREY).all()


@pytest.mark.parametrize(("frames", "shown"), [(1, 1), (3, 3), (8, 8), (100, 8)])
def test_a_short_video_shows_each_frame_once(frames: int, shown: int) -> None:
    sheet = local_descriptor_sheet([frame(60, 320)] * frames, corners())
    columns = min(shown, 4)
    assert sheet.shape == (-(-shown // 4) * 60, columns * 320, 3)


def test_the_same_points_give_the_same_sheet_of_arrays_and_lists() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 24, 32, 3), dtype=np.uint8)
    points = corners((5, 10, 12, 4), (10, 20, 6, 2))
    assert np.array_equal(local_descriptor_sheet(frames, points), local_descriptor_sheet(list(frames), points))
