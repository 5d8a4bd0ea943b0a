from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from har_pipeline.synthetic.dataset import render_video
from har_pipeline.synthetic.motion import ACTIONS
from har_pipeline.synthetic.scene import SCENARIOS
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.person import PersonFrame, PersonWindow, still_note
from har_pipeline.video.preprocess import Resize, parse_resize, scale_frame

WINDOW = parse_resize("short60-person34x54")


def follow(frames: np.ndarray, resize: Resize = WINDOW) -> list[PersonFrame]:
    window = PersonWindow(resize)
    found = [one for number, frame in enumerate(frames) for one in window.push(number, frame)]
    found += window.finish()
    assert [one.number for one in found] == list(range(len(frames)))
    assert window.moving == sum(one.moving for one in found)
    return found


def walker(count: int, speed: float = 2.0, start: float = 20.0) -> np.ndarray:
    """(count, 120, 160, 3) uint8: a dark bar 16 px wide and 80 high that crosses a bright, noisy field."""
    rng = np.random.default_rng(0)
    frames = rng.integers(148, 152, (count, 120, 160, 3)).astype(np.uint8)
    for number, frame in enumerate(frames):
        left = round(start + speed * number) - 8
        if left < 160 and left + 16 > 0:
            frame[20:100, max(left, 0) : left + 16] = 40
    return frames


def test_the_mode_says_how_large_the_window_is() -> None:
    assert Resize(54, 60, person=(34, 54)) == WINDOW
    assert WINDOW.shape == (54, 34)
    with pytest.raises(ValueError, match="does not fit into a short side of 50"):
        parse_resize("short50-person34x54")
    with pytest.raises(ValueError, match="write stretch-<size>"):
        parse_resize("short50-person0x54")


def test_a_walker_stays_in_the_middle_of_the_window() -> None:
    for one in follow(walker(50))[15:40]:
        assert one.window.shape == (54, 34)
        assert one.window.dtype == np.uint8
        assert one.moving
        dark = np.flatnonzero((one.window < 90).any(axis=0))
        assert abs(dark.mean() - 16.5) <= 1.0


def test_the_window_is_cut_out_of_the_scaled_frame() -> None:
    frames = walker(30)
    scaled = [cv2.cvtColor(scale_frame(frame, WINDOW), cv2.COLOR_RGB2GRAY) for frame in frames]
    for one in follow(frames):
        places = np.lib.stride_tricks.sliding_window_view(scaled[one.number], one.window.shape)
        assert (places == one.window).all(axis=(2, 3)).any()


def test_without_movement_the_window_stays() -> None:
    """As in the empty frames of KTH's long sequences: first the middle of the frame, then where the person left it."""
    crossing = walker(120, speed=3.0, start=-40.0)
    frames = np.concatenate([np.repeat(crossing[:1], 20, axis=0), crossing])
    found = follow(frames)
    moving = np.array([one.moving for one in found])
    assert not moving[:28].any()
    assert moving[38:85].all()
    assert not moving[100:].any()
    middle = cv2.cvtColor(scale_frame(frames[0], WINDOW), cv2.COLOR_RGB2GRAY)[3:57, 23:57]
    np.testing.assert_array_equal(found[0].window, middle)
    np.testing.assert_array_equal(
        found[-1].window, cv2.cvtColor(scale_frame(frames[-1], WINDOW), cv2.COLOR_RGB2GRAY)[3:57, -34:]
    )


def test_somebody_whose_arms_alone_move_is_seen_as_a_whole() -> None:
    frames = np.full((40, 120, 160, 3), 150, np.uint8)
    frames[:, 20:100, 60:76] = 40
    for number, frame in enumerate(frames):
        frame[40:46, 76 : 80 + number % 8 * 4] = 40
    for one in follow(frames)[10:30]:
        dark = one.window < 90
        # The trunk is 8 px wide in the window; no arm reaches its edge.
        assert (dark.mean(axis=0) > 0.5).sum() == 8
        assert not dark[:, [0, -1]].any()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_short_videos_give_a_window_for_every_frame(count: int) -> None:
    assert len(follow(walker(count, start=80.0))) == count


def test_a_video_of_nothing_shows_its_middle() -> None:
    frames = np.full((12, 120, 160, 3), 90, np.uint8)
    assert not any(one.moving for one in follow(frames))


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (300, 100), (20, 400)])
def test_frames_of_any_size_are_scaled_to_the_short_side(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, *size, 3)).astype(np.uint8)
    assert {one.window.shape for one in follow(frames)} == {(54, 34)}


def test_frames_that_change_their_size_are_stretched_to_the_first() -> None:
    frames = list(walker(20))
    frames[10:] = [cv2.resize(frame, (320, 200)) for frame in frames[10:]]
    assert {one.window.shape for one in follow(frames)} == {(54, 34)}  # type: ignore[arg-type]


def test_it_answers_a_few_frames_late_and_keeps_no_more() -> None:
    window = PersonWindow(WINDOW)
    for number, frame in enumerate(walker(60)):
        found = window.push(number, frame)
        assert [one.number for one in found] == ([number - window.delay] if number >= window.delay else [])
        assert len(window._frames) <= window.delay + 1
    assert len(window.finish()) == window.delay


def test_a_light_that_changes_is_no_movement() -> None:
    frames = np.clip(walker(1).astype(np.int16) + 6 * (np.arange(30) % 3)[:, None, None, None], 0, 255).astype(np.uint8)
    assert not any(one.moving for one in follow(frames))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("action", ACTIONS)
def test_it_is_centred_on_the_person_of_the_embedded_set(action: str, scenario: str) -> None:
    video = render_video(4, action, scenario)
    found = follow(video.frames)
    errors = []
    for one, person in zip(found, video.person, strict=True):
        columns = person.sum(axis=0)
        if columns.sum() > 150 and not columns[[0, -1]].any():
            centre = (columns * (np.arange(160) + 0.5)).sum() / columns.sum() / 2 - 0.5
            grey = cv2.cvtColor(scale_frame(video.frames[one.number], WINDOW), cv2.COLOR_RGB2GRAY)
            left = cv2.minMaxLoc(cv2.matchTemplate(grey, one.window, cv2.TM_SQDIFF))[2][0]
            # Where the frame ends the window cannot be centred.
            errors.append(abs(left - min(max(centre - 16.5, 0), 80 - 34)))
    assert len(errors) > 5
    assert np.mean(errors) < 5
    assert np.percentile(errors, 95) < 8


def test_a_video_where_nothing_moves_is_noted() -> None:
    assert still_note(1) == ""
    assert still_note(0) == "nothing moves: the window around the person shows the middle of the frame"


@pytest.mark.needs_real_data
def test_a_jogger_of_kth_is_followed_and_empty_frames_are_found(real_data: Path) -> None:
    path = real_data / "clips" / "kth" / "jogging" / "person01_jogging_d1_uncomp.avi"
    found = follow(np.stack([frame.copy() for _, frame in FrameReader(path)]))
    moving = np.array([one.moving for one in found])
    # Seen on a contact sheet: four runs with empty fields between them.
    assert 0.3 < moving.mean() < 0.6
    assert np.count_nonzero(np.diff(moving.astype(int)) == 1) >= 4
    # The jogger is the darkest thing of the field; at first and at last only a leg or an arm is in the picture.
    inside = np.convolve(moving, np.ones(9), "same") == 9
    assert all(one.window.min() < 60 for one, sure in zip(found, inside, strict=True) if sure)
