from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_pipeline.synthetic.dataset import render_video
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.local import trajectories
from har_pipeline.video.local.motion import flow_between, flow_method
from har_pipeline.video.local.points import Points, joined
from har_pipeline.video.local.trajectories import camera_motion, dense_trajectories, without_camera

WIDTHS = {"trajectory": 30, "hog": 96, "hof": 108, "mbh": 192}
IDENTITY = np.eye(3)


@cache
def texture(seed: int, height: int = 500, width: int = 600) -> np.ndarray:
    """Return a (height, width, 3) uint8 picture with detail of 1 to 8 px."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height, width)).astype(np.float32)
    detail = np.sum([px * cv2.GaussianBlur(noise, (0, 0), px) for px in (1, 2, 4, 8)], axis=0)
    grey = cv2.normalize(detail, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def camera(x: float, y: float, zoom: float, degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """Return the motion (3, 3) of px that turns and grows the view about its centre and moves it."""
    angle = math.radians(degrees)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return shift(x, y) @ shift(*centre) @ turned @ shift(-centre[0], -centre[1])


def view(picture: np.ndarray, motion: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle (height, width, 3) of `picture` after all px were moved by `motion`, in px of the view."""
    to_view = motion @ shift((width - picture.shape[1]) / 2, (height - picture.shape[0]) / 2)
    return cv2.warpAffine(picture, to_view[:2], (width, height), flags=cv2.INTER_CUBIC)


def with_object(frame: np.ndarray, picture: np.ndarray, x: float, y: float, side: int = 60) -> np.ndarray:
    """Return the frame with a square of `picture` on it, upper left corner at (x, y)."""
    height, width = frame.shape[:2]
    placed = cv2.warpAffine(picture[:side, :side], shift(x, y)[:2], (width, height), flags=cv2.INTER_LINEAR)
    cover = cv2.warpAffine(np.ones((side, side), np.float32), shift(x, y)[:2], (width, height))[..., None]
    return np.rint(frame * (1 - cover) + placed * cover).clip(0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other beside other load take most of the time of these small frames."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def found_in(frames: Iterable[np.ndarray], compensate: bool = True) -> Points:
    """Return all trajectories of a video, in the order found, after a check of all shapes."""
    points = joined(list(dense_trajectories(frames, compensate=compensate)))
    n = len(points)
    assert points.tracks.shape == (n, 16, 2)
    assert points.tracks.dtype == points.scales.dtype == np.float32
    assert points.first.dtype == points.end.dtype == np.int64
    assert (points.end - points.first == 16).all()
    for name, width in WIDTHS.items():
        block = points.blocks[name]
        assert block.shape == (n, width)
        assert block.dtype == np.float32
        assert np.isfinite(block).all()
        assert block.any(axis=1).all()
    return points


def same(one: Points, other: Points) -> bool:
    names = ("first", "end", "tracks", "scales")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names) and all(
        np.array_equal(one.blocks[name], other.blocks[name]) for name in WIDTHS
    )


def panned(frames: int, u: float, v: float, height: int = 120, width: int = 160) -> list[np.ndarray]:
    picture = texture(1)
    return [view(picture, shift(u * t, v * t), height, width) for t in range(frames)]


@pytest.mark.parametrize(("u", "v"), [(1.3, -0.7), (-2.0, 3.0), (0.5, 0.25), (-6.4, 0.0)])
def test_tracks_of_a_translated_picture_follow_it_to_parts_of_a_px(u: float, v: float) -> None:
    points = found_in(panned(18, u, v), compensate=False)
    assert len(points) > 200
    exact = points.tracks[:, :1] + np.arange(16)[:, None] * np.array([u, v])
    error = np.linalg.norm(points.tracks - exact, axis=2).max(axis=1)
    for scale in np.unique(points.scales):
        chosen = error[points.scales == scale]
        assert np.median(chosen) < 0.25, scale
        assert np.percentile(chosen, 90) < 1, scale
    steps = points.blocks["trajectory"].reshape(-1, 15, 2)
    np.testing.assert_allclose(np.median(steps, axis=(0, 1)), np.array([u, v]) / math.hypot(u, v) / 15, atol=0.002)


def test_a_translated_picture_is_the_camera_s_motion_and_leaves_nothing() -> None:
    assert len(found_in(panned(18, 1.3, -0.7))) == 0


@pytest.mark.parametrize("compensate", [True, False])
def test_an_object_before_a_still_background_is_followed_and_nothing_else(compensate: bool) -> None:
    still, picture, u, v = view(texture(1), IDENTITY, 120, 160), texture(2), 2.5, 0.5
    points = found_in([with_object(still, picture, 20 + u * t, 30 + v * t) for t in range(20)], compensate)
    middles = np.array([(49.5 + u * t, 59.5 + v * t) for t in range(20)])
    assert from_object(points, middles).min(axis=1).max() < 38
    within = (from_object(points, middles)[:, 0] < 22) & (points.scales == 32)
    assert within.sum() > 60
    moved = points.tracks[within, -1] - points.tracks[within, 0]
    np.testing.assert_allclose(moved, np.broadcast_to((15 * u, 15 * v), moved.shape), atol=1)
    np.testing.assert_allclose(np.median(moved, axis=0), (15 * u, 15 * v), atol=0.15)


def from_object(points: Points, middles: np.ndarray) -> np.ndarray:
    """Return how far each place of the tracks is from the object's middle, along x or y, whichever is more: (n, 16) px.

    The object reaches to 30 px; what is up to 8 px beside it moves with it in the flow.
    """
    return np.abs(points.tracks - middles[points.first[:, None] + np.arange(16)]).max(axis=2)


def small_scene(frames: int) -> list[np.ndarray]:
    """Return frames of a camera that pans while an object moves."""
    wall = panned(frames, 1.5, -0.5)
    return [with_object(frame, texture(2), 70 - 2 * t, 20 + 2 * t) for t, frame in enumerate(wall)]


@cache
def moving_camera(frames: int = 20) -> tuple[list[np.ndarray], np.ndarray]:
    """Return frames of a camera that pans, zooms and turns past a textured wall, before which an object moves.

    And where the object's middle is in each of them, (frames, 2) px.
    """
    wall, thing = texture(1), texture(2)
    step = camera(2.0, -1.0, 1.004, 0.3, (160, 120))
    motion, shown, middles = IDENTITY, [], []
    for t in range(frames):
        x, y = 120.0 - 2.0 * t, 80.0 + 2.0 * t
        shown.append(with_object(view(wall, motion, 240, 320), thing, x, y))
        middles.append((x + 29.5, y + 29.5))
        motion = step @ motion
    return shown, np.array(middles)


def test_what_a_moving_camera_sees_moving_is_gone_but_for_what_moves_itself() -> None:
    frames, middles = moving_camera()
    everything, rest = found_in(frames, compensate=False), found_in(frames)
    of_wall = from_object(everything, middles).min(axis=1) >= 38
    assert of_wall.sum() > 2000
    assert (from_object(rest, middles).min(axis=1) < 38).mean() > 0.99
    on_object, still_on_object = (
        np.count_nonzero(from_object(points, middles).max(axis=1) < 25) for points in (everything, rest)
    )
    assert on_object > 100
    assert still_on_object > 0.95 * on_object


def test_steps_and_flow_histograms_are_those_of_the_object_beside_the_wall() -> None:
    frames, _ = moving_camera()
    points = found_in(frames)
    small = points.scales == 32
    # The object goes (-2, 2) px/frame in the view, the wall about (2, -1) near its middle.
    steps = points.blocks["trajectory"][small].reshape(-1, 15, 2).mean(axis=(0, 1))
    assert math.degrees(math.atan2(steps[1], steps[0])) == pytest.approx(math.degrees(math.atan2(3, -4)), abs=6)
    directions = points.blocks["hof"][small].reshape(-1, 12, 9)[..., :8].sum(axis=(0, 1))
    assert directions.argmax() == 3  # 135 degrees: left and down


def test_the_homography_is_that_of_the_camera() -> None:
    step = camera(3.0, -2.0, 1.01, 1.0, (160, 120))
    wall = texture(1)
    before, now = (cv2.cvtColor(view(wall, motion, 240, 320), cv2.COLOR_RGB2GRAY) for motion in (IDENTITY, step))
    flow = flow_between(flow_method(), before, now)
    found = camera_motion(before, flow)
    places = np.stack(np.meshgrid(np.arange(0, 320, 40.0), np.arange(0, 240, 40.0)), axis=-1)
    difference = cv2.perspectiveTransform(places, found) - cv2.perspectiveTransform(places, step)
    assert np.abs(difference).max() < 0.3
    assert np.median(np.linalg.norm(without_camera(flow, found), axis=2)) < 0.1


def test_a_contrasted_object_is_not_the_background_while_it_is_smaller() -> None:
    wall = view(texture(1), IDENTITY, 240, 320)
    faint = (110 + 0.1 * wall).astype(np.uint8)
    before, now = (
        cv2.cvtColor(with_object(faint, texture(2), x, 40, side=150), cv2.COLOR_RGB2GRAY) for x in (60.0, 66.0)
    )
    flow = flow_between(flow_method(), before, now)
    corner = np.array([[[300.0, 20.0], [20.0, 220.0]]])
    assert np.abs(cv2.perspectiveTransform(corner, camera_motion(before, flow)) - corner).max() < 0.5


@pytest.mark.parametrize(("height", "width"), [(240, 320), (16, 16)])
def test_without_matches_that_agree_the_camera_stands_still(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (height, width), dtype=np.uint8)
    scattered = rng.normal(scale=30, size=(height, width, 2)).astype(np.float32)
    np.testing.assert_array_equal(camera_motion(grey, scattered), IDENTITY)
    np.testing.assert_array_equal(camera_motion(np.zeros_like(grey), np.zeros_like(scattered)), IDENTITY)


def test_a_homography_that_turns_the_frame_over_is_no_camera_s_motion() -> None:
    grey = texture(1)[:240, :320, 0]
    y, x = np.mgrid[:240, :320].astype(np.float32)
    folded = np.stack([320 - 2 * x, np.zeros_like(y)], axis=-1)
    np.testing.assert_array_equal(camera_motion(grey, folded), IDENTITY)


def slow_track(
    greys: list[np.ndarray], flows: list[np.ndarray], x: float, y: float
) -> tuple[list[tuple[float, float]], dict[str, np.ndarray]]:
    """Return the places of a track of the first scale from (x, y) on, and its descriptors, each as its definition says it."""
    height, width = greys[0].shape
    cells = {name: np.zeros((3, 2, 2, bins)) for name, bins in (("hog", 8), ("hof", 9), ("mbh_x", 8), ("mbh_y", 8))}
    places, steps = [(x, y)], []

    def put(cell: np.ndarray, dx: float, dy: float, still: float | None = None) -> None:
        length = math.hypot(dx, dy)
        if still is not None and length <= still:
            cell[8] += 1
            return
        place = math.atan2(dy, dx) % (2 * math.pi) / (math.pi / 4)
        share = place - math.floor(place)
        cell[math.floor(place) % 8] += length * (1 - share)
        cell[math.floor(place + 1) % 8] += length * share

    def slope(values: np.ndarray, row: int, column: int) -> tuple[float, float]:
        across = float(values[row, column + 1]) - float(values[row, column - 1]) if 0 < column < width - 1 else 0.0
        down = float(values[row + 1, column]) - float(values[row - 1, column]) if 0 < row < height - 1 else 0.0
        return across, down

    for t in range(15):
        left = min(max(round(x) - 16, 0), width - 32)
        top = min(max(round(y) - 16, 0), height - 32)
        for row in range(top, top + 32):
            for column in range(left, left + 32):
                at = (t // 5, (row - top) // 16, (column - left) // 16)
                put(cells["hog"][at], *slope(greys[t], row, column))
                put(cells["hof"][at], float(flows[t][row, column, 0]), float(flows[t][row, column, 1]), still=0.4)
                put(cells["mbh_x"][at], *slope(flows[t][..., 0], row, column))
                put(cells["mbh_y"][at], *slope(flows[t][..., 1], row, column))
        around = flows[t][round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
        step = np.median(around, axis=(0, 1))
        x, y = x + float(step[0]), y + float(step[1])
        places.append((x, y))
        steps.append(step)

    def normalised(name: str, floor: float) -> np.ndarray:
        mean = cells[name].reshape(-1) / (5 * 16 * 16) + floor / (16 * 16)
        return np.sqrt(mean / mean.sum())

    return places, {
        "trajectory": np.concatenate(steps) / np.linalg.norm(steps, axis=1).sum(),
        "hog": normalised("hog", 0.05),
        "hof": normalised("hof", 0.05),
        "mbh": np.concatenate([normalised("mbh_x", 0.0005), normalised("mbh_y", 0.0005)]),
    }


def test_descriptors_are_those_of_the_direct_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    frames = panned(16, 0.0, 0.0, 72, 80)
    frames = [np.clip(f + rng.normal(scale=3, size=f.shape), 0, 255).astype(np.uint8) for f in frames]
    noise = rng.normal(scale=12, size=(15, 72, 80, 2)).astype(np.float32)
    flows = [cv2.GaussianBlur(flow, (0, 0), 4) + np.array([0.9, 0.2], np.float32) for flow in noise]
    given_flow = iter(flows)
    monkeypatch.setattr(trajectories, "flow_between", lambda method, before, now: next(given_flow))
    points = found_in(frames, compensate=False)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    first_scale = np.nonzero(points.scales == 32)[0]
    assert len(first_scale) > 20
    for number in first_scale[:: len(first_scale) // 5]:
        places, blocks = slow_track(greys, flows, *map(float, points.tracks[number, 0]))
        np.testing.assert_allclose(points.tracks[number], places, atol=1e-4)
        for name, block in blocks.items():
            np.testing.assert_allclose(points.blocks[name][number], block, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(("frames", "ends"), [(0, []), (1, []), (14, []), (15, []), (16, [16]), (17, [16, 17])])
def test_the_first_trajectories_end_with_the_sixteenth_frame(frames: int, ends: list[int]) -> None:
    first, *others = dense_trajectories(panned(frames, 4.0, 0.0), compensate=False)
    found = [*([first] if len(first) else []), *others]
    assert [np.unique(points.end).tolist() for points in found] == [[end] for end in ends]


def still_video(frame: np.ndarray, frames: int = 18) -> list[np.ndarray]:
    return [frame] * frames


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_nothing_to_see_gives_nothing(grey: int) -> None:
    assert len(found_in(still_video(np.full((64, 96, 3), grey, np.uint8)))) == 0


def test_a_still_picture_gives_nothing_even_with_the_camera_s_noise() -> None:
    picture = view(texture(1), IDENTITY, 120, 160)
    assert len(found_in(still_video(picture))) == 0
    rng = np.random.default_rng(0)
    noisy = [np.clip(picture + rng.normal(scale=3, size=picture.shape), 0, 255).astype(np.uint8) for _ in range(20)]
    assert len(found_in(noisy, compensate=False)) == 0


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 110),
    kind=st.sampled_from(["noise", "pan", "flash"]),
    seed=st.integers(0, 99),
)
def test_any_size_and_any_content_has_a_defined_result(height: int, width: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if kind == "pan":
        frames = panned(18, 1.5, -0.5, height, width)
    elif kind == "noise":
        frames = list(rng.integers(0, 256, (18, height, width, 3), dtype=np.uint8))
    else:
        frames = [np.full((height, width, 3), 255 * (t % 2), np.uint8) for t in range(18)]
    points = found_in(frames)
    assert (points.tracks >= -0.5).all()
    assert (points.tracks <= np.array([width - 0.5, height - 0.5])).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (31, 31), (33, 97), (121, 161)])
def test_small_and_odd_frames_that_move_have_trajectories(height: int, width: int) -> None:
    points = found_in(panned(18, 0.6, 0.3, height, width), compensate=False)
    assert len(points)
    assert points.scales.min() == 32


def test_scales_are_as_many_as_the_frame_holds() -> None:
    points = found_in(panned(17, 2.0, 1.0, 128, 160), compensate=False)
    np.testing.assert_allclose(np.unique(points.scales), [32, 32 * 2**0.5, 64, 64 * 2**0.5, 128], rtol=1e-6)


def handed_over(frames: list[np.ndarray], how: str) -> Iterator[np.ndarray]:
    """Yield the frames as a reader may hand them over."""
    buffer = np.empty_like(frames[0])
    for frame in frames:
        if how == "in one buffer":
            buffer[:] = frame
            yield buffer
            buffer[:] = 77
        elif how == "read-only":
            frame = frame.copy()
            frame.flags.writeable = False
            yield frame
        elif how == "parts of larger ones":
            yield np.pad(frame, ((3, 2), (1, 4), (0, 0)))[3:-2, 1:-4]
        elif how == "channels last to first":
            yield np.ascontiguousarray(frame[..., ::-1])[..., ::-1]
        else:
            yield frame


@pytest.mark.parametrize(
    "how", ["one by one", "in one buffer", "read-only", "parts of larger ones", "channels last to first"]
)
def test_how_frames_are_handed_over_changes_nothing(how: str) -> None:
    frames = small_scene(17)
    copies = [frame.copy() for frame in frames]
    assert same(found_in(handed_over(frames, how)), found_in(frames))
    assert all(np.array_equal(frame, copy) for frame, copy in zip(frames, copies, strict=True))


def test_a_trajectory_depends_on_its_own_frames_alone() -> None:
    """Nothing of before is left over: what begins in frame 20 also begins in a video that begins there."""
    frames = small_scene(36)
    late, whole = found_in(frames[20:]), found_in(frames)
    from_20 = [row.tobytes() for row in whole.blocks["mbh"][whole.first == 20]]
    assert len(from_20) >= 5
    assert set(from_20) <= {row.tobytes() for row in late.blocks["mbh"][late.first == 0]}


def test_the_number_of_threads_changes_nothing() -> None:
    frames = small_scene(17)
    results = []
    for number in (1, 2, 4):
        cv2.setNumThreads(number)
        results.append(found_in(frames))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def peak(frames: int) -> int:
    """Return the most bytes that arrays take, with the frames drawn one by one and nothing kept of what is found."""
    picture = texture(1)

    def drawn() -> Iterator[np.ndarray]:
        for t in range(frames):
            yield view(picture, shift(20 * math.sin(t / 5), 15 * math.cos(t / 7)), 64, 96)

    tracemalloc.start()
    try:
        for _ in dense_trajectories(drawn(), compensate=False):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_video() -> None:
    peak(17)
    assert peak(90) < 1.2 * peak(35)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros((60, 81, 3), np.uint8), "frame 1 "),
        (np.zeros((60, 80, 3), np.float32), "frame 1 is float32"),
        (np.zeros((60, 80), np.uint8), "frame 1 is uint8"),
    ],
)
def test_frames_that_are_none_are_refused(second: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(dense_trajectories([np.zeros((60, 80, 3), np.uint8), second]))


def moves(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return whether tracks along x, with steps changed, are kept: (n,) bool for steps (n, 15)."""
    x = np.cumsum(np.pad(change(np.ones((1, 15))), ((0, 0), (1, 0))), axis=1)
    return trajectories._moves(np.stack([x, np.zeros_like(x)], axis=2).astype(np.float32))


def test_tracks_that_stand_still_jump_or_slip_are_dropped() -> None:
    assert moves(lambda steps: steps).all()
    assert not moves(lambda steps: 0.3 * steps).any()  # spread 1.4 px
    assert moves(lambda steps: 0.4 * steps).all()  # 1.8 px
    assert not moves(lambda steps: 12 * steps).any()  # 55 px
    jump = np.zeros((1, 15))
    jump[0, 7] = 1
    assert not moves(lambda steps: 0.5 * steps + 30 * jump).any()
    assert moves(lambda steps: 0.5 * steps + 15 * jump).all()  # a fast hand
    assert moves(lambda steps: 2 * steps + 30 * jump).all()


def test_tracks_of_a_rendered_person_follow_the_limbs() -> None:
    video = render_video(1, "handwaving", "d1", flow=True)
    assert video.flow is not None
    points = found_in(video.frames)
    assert len(points) > 200
    errors, nearest = [], []
    for first, track in zip(points.first, points.tracks, strict=True):
        for t in range(15):
            x, y = np.rint(track[t]).astype(int)
            exact = video.flow[first + t]
            near = exact[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4].reshape(-1, 2)
            errors.append(np.linalg.norm(near - (track[t + 1] - track[t]), axis=1).min())
            nearest.append(np.linalg.norm(near, axis=1).max())
    # The camera stands. Each step is that of something within 3 px, and something within 3 px of each track moves.
    assert np.median(errors) < 0.3
    assert np.mean(np.reshape(nearest, (-1, 15)).max(axis=1) > 1) > 0.95


@pytest.mark.needs_real_data
@pytest.mark.parametrize("name", ["kth/boxing/person01_boxing_d1_uncomp.avi", "ut_interaction_set1/0_1_4.avi"])
def test_tracks_of_real_people_are_where_something_moves(name: str, real_data: Path) -> None:
    frames = [cv2.resize(frame, (160, 120)) for _, frame in islice(FrameReader(real_data / "clips" / name), 70)]
    points = found_in(frames)
    assert len(points) > 50
    greys = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1).astype(float) for frame in frames]
    change = []
    for first, track in zip(points.first, points.tracks, strict=True):
        x, y = np.rint(track[8]).astype(int)
        seen = np.stack(greys[first : first + 16])[:, max(y - 6, 0) : y + 7, max(x - 6, 0) : x + 7]
        change.append(np.ptp(seen, axis=0).max())
    assert np.mean(np.array(change) > 30) > 0.9
