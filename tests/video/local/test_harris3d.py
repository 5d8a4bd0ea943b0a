from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from paths import ROOT
from scipy import ndimage

from har_pipeline.synthetic.dataset import render_video
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.local.harris3d import CornerMeasure, K, Scale, interest_points
from har_pipeline.video.local.motion import flow_between, flow_method
from har_pipeline.video.local.points import Points, joined


def found(frames: np.ndarray) -> Points:
    return joined(list(interest_points(iter(frames))))


def middles(points: Points) -> np.ndarray:
    return (points.first + points.end) // 2


def rgb(grey: np.ndarray) -> np.ndarray:
    """(F, H, W) in [0, 255] -> (F, H, W, 3) uint8."""
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def texture(height: int, width: int, seed: int, deviation_px: float = 2.0) -> np.ndarray:
    """(H, W) float in [0, 1]: smooth random spots."""
    spots = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), deviation_px)
    return (spots - spots.min()) / np.ptp(spots)


def square_video(places: np.ndarray, height: int = 96, width: int = 160, side: int = 40) -> np.ndarray:
    """(F, H, W, 3) uint8: a textured square with its left edge at each frame's x, on plain grey."""
    square = 40 + 170 * texture(side, side, 0)
    frames = np.full((len(places), height, width), 120.0)
    for frame, x in zip(frames, places, strict=True):
        frame[28 : 28 + side, x : x + side] = square
    return rgb(frames)


def wobble(count: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    """(F, H, W) in [0, 255]: textures that come and go and are pushed about."""
    y, x = np.mgrid[:height, :width].astype(float)
    first, second = (texture(height, width, seed + number, 3.0) for number in range(2))
    frames = []
    for t in range(count):
        shift = 4 * math.sin(t / 3)
        moved = ndimage.map_coordinates(first, [y + 3 * math.cos(t / 4), x + shift], order=1, mode="nearest")
        frames.append(30 + 180 * (0.6 * moved + 0.4 * second * (0.5 + 0.5 * math.sin(t / 2.5))))
    return np.array(frames)


def measured(grey: np.ndarray) -> dict[Scale, np.ndarray]:
    """Scale -> (F, h, w)."""
    measure = CornerMeasure(*grey.shape[1:])
    maps = [one for frame in grey for one in measure.push(frame.astype(np.float32))]
    maps += measure.finish()
    assert len(maps) == len(grey)
    return {scale: np.stack([one[scale] for one in maps]) for scale in maps[0]}


def by_the_formula(grey: np.ndarray, space: float, time: float, step: int) -> np.ndarray:
    """Return Laptev's measure (F, H, W) float64 of grey frames in [0, 1], computed at full size in one piece.

    Derivatives in space are differences of px `step` before and after.
    """

    def smooth(values: np.ndarray, times: float) -> np.ndarray:
        deviations = [math.sqrt(times * one) for one in (time, space, space)]
        radii = [math.ceil(3 * one) for one in deviations]
        return ndimage.gaussian_filter(values, deviations, mode="nearest", radius=radii)

    def slope(values: np.ndarray, axis: int) -> np.ndarray:
        reach = step if axis else 1
        weights = np.zeros(2 * reach + 1)
        weights[[0, -1]] = -0.5 / reach, 0.5 / reach
        return ndimage.correlate1d(values, weights, axis=axis, mode="nearest")

    # The first and last frame go on; of what is derived of them, the first and last value.
    held = np.pad(grey.astype(float), ((2, 2), (0, 0), (0, 0)), mode="edge")
    image = smooth(held, 1)
    t, y, x = (slope(image, axis)[2:-2] * one**0.5 for axis, one in enumerate((time, space, space)))
    matrix = np.array([[smooth(one * other, 2) for one in (x, y, t)] for other in (x, y, t)])
    matrix = np.moveaxis(matrix, (0, 1), (-2, -1))
    return np.linalg.det(matrix) - K * np.trace(matrix, axis1=-2, axis2=-1) ** 3


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return wobble(20, 200, 240) / 255


@pytest.fixture(scope="module")
def streamed(volume: np.ndarray) -> dict[Scale, np.ndarray]:
    return measured(volume)


@pytest.mark.parametrize(
    ("level", "space", "time", "from_edge", "tolerance"),
    [
        (0, 4.0, 2.0, 0, 1e-5),
        (0, 4.0, 4.0, 0, 1e-5),
        (0, 8.0, 4.0, 12, 0.03),
        (1, 4.0, 4.0, 12, 0.03),
        (1, 8.0, 2.0, 12, 0.03),
        (2, 4.0, 2.0, 12, 0.03),
        (2, 8.0, 4.0, 16, 0.03),
    ],
)
def test_the_measure_is_the_direct_formula(
    volume: np.ndarray,
    streamed: dict[Scale, np.ndarray],
    level: int,
    space: float,
    time: float,
    from_edge: int,
    tolerance: float,
) -> None:
    """To the digits of float32 at full size; on a smaller image, whose edge reaches further, within 3 % of the largest."""
    ours = streamed[Scale(level, space, time)]
    step = 2**level
    direct = by_the_formula(volume, space * step**2, time, step)
    centres = [np.arange(side) * step + (step - 1) / 2 for side in ours.shape[1:]]
    direct = ndimage.map_coordinates(
        direct, np.meshgrid(np.arange(len(volume)), *centres, indexing="ij"), order=1, mode="nearest"
    )
    inside = (slice(None), *(slice(from_edge, side - from_edge) for side in ours.shape[1:]))
    np.testing.assert_allclose(ours[inside], direct[inside], rtol=0, atol=tolerance * direct[inside].max())


def test_the_measure_grows_with_the_sixth_power_of_contrast() -> None:
    grey = wobble(12, 60, 80) / 255
    half = measured(0.5 * grey + 0.25)
    for scale, whole in measured(grey).items():
        np.testing.assert_allclose(64 * half[scale], whole, rtol=0, atol=1e-4 * whole.max())


def test_points_are_where_a_square_turns_round() -> None:
    places = np.concatenate([20 + 2 * np.arange(25), 20 + 2 * np.arange(25)[::-1]])
    points = found(square_video(places))
    frames, (x, y) = middles(points), points.tracks[:, 0].T
    assert len(points) >= 10
    # The square stands still between frames 24 and 25 only, at x 68 to 107, y 28 to 67.
    assert np.abs(frames - 24.5).max() <= 3
    assert (np.abs(x - 87.5) < 20 + points.scales).all()
    assert (np.abs(y - 47.5) < 20 + points.scales).all()
    assert {float(round(scale**2)) for scale in points.scales.tolist()} >= {4.0, 8.0, 16.0}


def test_what_moves_steadily_has_no_points_not_even_where_the_video_is_cut() -> None:
    assert len(found(square_video(20 + 2 * np.arange(40)))) == 0


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 5, 8, 9, 13, 20])
@pytest.mark.parametrize("size", [(120, 160), (16, 16), (1, 1)])
def test_short_and_small_videos_are_defined(frames: int, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    check_shapes(found(noise), frames, size)


@pytest.mark.parametrize("size", [(11, 11), (11, 160), (21, 22), (23, 47), (120, 10), (33, 41)])
def test_odd_sizes_are_defined(size: tuple[int, int]) -> None:
    check_shapes(found(rgb(wobble(24, *size))), 24, size)


def check_shapes(points: Points, frames: int, size: tuple[int, int]) -> None:
    count = len(points)
    assert points.first.shape == points.end.shape == (count,)
    assert points.first.dtype == points.end.dtype == np.int64
    assert (points.tracks.shape, points.tracks.dtype) == ((count, 1, 2), np.float32)
    assert (points.scales.shape, points.scales.dtype) == ((count,), np.float32)
    assert {name: (block.shape, block.dtype) for name, block in points.blocks.items()} == {
        "hog": ((count, 72), np.float32),
        "hof": ((count, 90), np.float32),
    }
    x, y = points.tracks[:, 0].T
    assert ((x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])).all()
    assert ((middles(points) > 0) & (middles(points) < frames - 1)).all()
    for bins, block in ((4, points.blocks["hog"]), (5, points.blocks["hof"])):
        assert (block >= 0).all()
        sums = block.reshape(count, 18, bins).sum(axis=-1)
        # A cell outside the video is empty; those in the middle never are.
        assert ((np.abs(sums - 1) < 1e-5) | (sums == 0)).all()
        assert (sums[:, [4, 13]] > 0).all()


@pytest.mark.parametrize("value", [0, 90, 255])
def test_videos_that_show_nothing_or_stand_still_have_no_points(value: int) -> None:
    assert len(found(np.full((30, 48, 64, 3), value, np.uint8))) == 0
    still = rgb(np.repeat(255 * texture(48, 64, value)[None], 30, axis=0))
    assert len(found(still)) == 0


def test_the_noise_of_a_camera_has_no_points() -> None:
    noise = 128 + np.random.default_rng(0).normal(0, 8, (40, 60, 80))
    assert len(found(rgb(noise.clip(0, 255)))) == 0


def test_a_frame_of_another_size_or_type_is_an_error() -> None:
    frames = [np.zeros((20, 30, 3), np.uint8), np.zeros((20, 31, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"\(20, 31, 3\)"):
        list(interest_points(frames))
    for bad in (np.zeros((20, 30), np.uint8), np.zeros((20, 30, 3), np.float32)):
        with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
            list(interest_points([bad]))


def test_two_runs_are_equal_and_points_come_in_the_order_of_their_frames() -> None:
    frames = rgb(wobble(40, 60, 80))
    first, second = found(frames), joined(list(interest_points(list(frames))))
    assert len(first) > 50
    for one, other in ((first.first, second.first), (first.tracks, second.tracks), (first.scales, second.scales)):
        assert np.array_equal(one, other)
    for name, block in first.blocks.items():
        assert np.array_equal(block, second.blocks[name])
    assert (np.diff(middles(first)) >= 0).all()


def test_a_video_that_goes_on_has_the_same_points_before() -> None:
    frames = rgb(wobble(70, 60, 80))
    whole, part = found(frames), found(frames[:50])
    early = middles(whole) < 50 - CornerMeasure.delay - 2
    assert np.array_equal(whole.tracks[early], part.tracks[: early.sum()])
    assert np.array_equal(whole.blocks["hof"][early], part.blocks["hof"][: early.sum()])


@pytest.mark.parametrize("size", [(60, 80), (61, 83)])
def test_a_mirrored_video_has_mirrored_points(size: tuple[int, int]) -> None:
    frames = rgb(wobble(40, *size))
    points, mirrored = found(frames), found(np.ascontiguousarray(frames[:, :, ::-1]))

    def order(x: np.ndarray, points: Points) -> np.ndarray:
        return np.lexsort((x, points.tracks[:, 0, 1], points.scales, points.first, points.end))

    back = size[1] - 1 - mirrored.tracks[:, 0, 0]
    one, other = order(points.tracks[:, 0, 0], points), order(back.round(3), mirrored)
    assert len(points) == len(mirrored) > 50
    np.testing.assert_allclose(points.tracks[one, 0, 0], back[other], atol=1e-3)
    assert np.array_equal(points.first[one], mirrored.first[other])

    def turned(name: str, bins: list[int]) -> np.ndarray:
        cells = mirrored.blocks[name][other].reshape(-1, 2, 3, 3, len(bins))
        return cells[:, :, :, ::-1][..., bins].reshape(len(other), -1)

    # Frames of an odd width are cut into other squares of 2 px. The flow itself differs a little.
    difference = np.abs(points.blocks["hog"][one] - turned("hog", [0, 3, 2, 1]))
    assert difference.max() < 0.02 if size[1] % 2 == 0 else difference.mean() < 0.01
    assert np.abs(points.blocks["hof"][one] - turned("hof", [2, 1, 0, 3, 4])).mean() < 0.02


def test_descriptors_of_three_quarters_of_the_contrast_are_the_same() -> None:
    frames = rgb(wobble(40, 60, 80)) // 4
    bright, dark = found(4 * frames), found(3 * frames + 30)
    places = {key(dark, index): index for index in range(len(dark))}
    # What is strong enough is found in both, at the same place.
    both = [(index, places[key(bright, index)]) for index in range(len(bright)) if key(bright, index) in places]
    assert len(both) == len(dark) > 20
    one, other = (list(side) for side in zip(*both, strict=True))
    np.testing.assert_allclose(bright.blocks["hog"][one], dark.blocks["hog"][other], atol=0.02)
    assert np.abs(bright.blocks["hof"][one] - dark.blocks["hof"][other]).mean() < 0.05


def key(points: Points, index: int) -> tuple[float, ...]:
    return (*points.tracks[index, 0].tolist(), float(points.scales[index]), int(points.first[index]))


def test_descriptors_are_the_direct_formula() -> None:
    frames = rgb(wobble(40, 96, 128))
    points = found(frames)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    method = flow_method()
    flows = [flow_between(method, before, after) for before, after in pairwise(greys)]
    chosen = np.random.default_rng(0).choice(len(points), 12, replace=False)
    for index in chosen:
        for name, bins in (("hog", 4), ("hof", 5)):
            slow = slow_descriptor(points, int(index), greys, flows, name, bins)
            np.testing.assert_allclose(points.blocks[name][index], slow, atol=0.005, err_msg=name)


def slow_descriptor(
    points: Points, index: int, greys: list[np.ndarray], flows: list[np.ndarray], name: str, bins: int
) -> np.ndarray:
    """Return one block (18 * bins,), px by px."""
    height, width = greys[0].shape
    x, y = points.tracks[index, 0] + 0.5
    sigma, middle = float(points.scales[index]), int(middles(points)[index])
    edges = np.array([-9, -3, 3, 9]) * sigma
    cells = np.zeros((2, 3, 3, bins))
    for half, (start, end) in enumerate(((points.first[index], middle), (middle, points.end[index]))):
        for t in range(max(start, 0), min(end, len(greys))):
            votes = hog_votes(greys[t]) if name == "hog" else hof_votes(flows[t]) if t < len(flows) else None
            if votes is None:
                continue
            # Px are counted in squares of 2 x 2, of which a cell takes a share.
            squares = votes.reshape(height // 2, 2, width // 2, 2, bins).mean(axis=(1, 3))
            votes = squares.repeat(2, axis=0).repeat(2, axis=1)
            for row in range(3):
                for column in range(3):
                    # The share of each px that is inside the cell.
                    in_y = overlap(y + edges[row], y + edges[row + 1], height)
                    in_x = overlap(x + edges[column], x + edges[column + 1], width)
                    cells[half, row, column] += np.einsum("y,x,yxb->b", in_y, in_x, votes)
    sums = cells.sum(axis=-1, keepdims=True)
    return (cells / np.where(sums > 0, sums, 1)).ravel()


def overlap(start: float, end: float, size: int) -> np.ndarray:
    px = np.arange(size)
    return (np.minimum(px + 1, end) - np.maximum(px, start)).clip(0, 1)


def hog_votes(grey: np.ndarray) -> np.ndarray:
    """(H, W, 4): along x, at 45 degrees (y points down), along y, at 135."""
    padded = np.pad(grey.astype(float), 1, mode="reflect")
    x, y = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    return spread(x, y, math.pi, 4)


def hof_votes(flow: np.ndarray) -> np.ndarray:
    """(H, W, 5): right, down, left, up, no motion."""
    x, y = np.moveaxis(flow.astype(float), -1, 0)
    still = np.hypot(x, y) <= 0.4
    return np.concatenate([spread(x, y, 2 * math.pi, 4) * ~still[..., None], still[..., None]], axis=-1)


def spread(x: np.ndarray, y: np.ndarray, circle: float, bins: int) -> np.ndarray:
    place = np.arctan2(y, x) % circle / circle * bins
    low = np.floor(place)
    length, share = np.hypot(x, y), place - low
    return np.stack(
        [
            length * ((low % bins == number) * (1 - share) + ((low + 1) % bins == number) * share)
            for number in range(bins)
        ],
        axis=-1,
    )


def test_flow_of_a_square_that_moves_right_is_right_and_around_it_nothing_moves() -> None:
    places = np.concatenate([np.full(20, 40), 40 + 2 * np.arange(1, 21)])
    points = found(square_video(places))
    assert len(points)
    hof = points.blocks["hof"].reshape(-1, 2, 3, 3, 5)
    at = np.abs(points.tracks[:, 0] - (60, 48)).max(axis=1) < 8
    assert (middles(points)[at] >= 17).all()
    # From the point's frame on, in its middle cell; and far above, before.
    assert (hof[at, 1, 1, 1, 0] > 0.8).all()
    assert (hof[:, 0, 1, 1, 4] > 0.3).all()


def test_memory_does_not_grow_with_the_length() -> None:
    clip = rgb(wobble(40, 40, 48))

    def peak(count: int) -> int:
        tracemalloc.start()
        assert sum(len(points) for points in interest_points(clip[number % 40] for number in range(count))) > 0
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(120) < 1.05 * peak(45)


def test_points_are_where_the_exact_flow_shows_motion() -> None:
    near, chance = [], []
    for subject, action in ((3, "boxing"), (5, "handwaving"), (6, "walking")):
        video = render_video(subject, action, "d1", flow=True)
        assert video.flow is not None
        points = found(video.frames[:60])
        frames, (x, y) = middles(points), points.tracks[:, 0].round().astype(int).T
        # Faster than the background, which the camera moves, at some time from 3 frames before to 3 after: what turns
        # round stands still for a moment.
        speed = np.linalg.norm(video.flow[:63] - np.median(video.flow[:63], axis=(1, 2), keepdims=True), axis=-1)
        speed = ndimage.maximum_filter1d(speed, 6, axis=0)[:60]
        distance = np.stack([ndimage.distance_transform_edt(one < 0.5) for one in speed])
        near.append(distance[frames, y, x] <= 3)
        chance.append((distance <= 3).mean())
    share = np.concatenate(near).mean()
    assert share > 0.9
    assert share > 10 * np.mean(chance)


@pytest.mark.slow
def test_the_benchmark() -> None:
    command = [sys.executable, "benchmarks/interest_points.py", "--seconds", "1"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert set(result["sizes"]) == {"160x120", "320x240"}
    for found_there in result["sizes"].values():
        assert found_there["1 s"]["frames_per_s"] > 0
        assert found_there["1 s"]["peak_mib"] > found_there["1 s"]["peak_mib_before"] > 0


@pytest.mark.needs_real_data
def test_points_of_a_real_boxer_are_on_him(real_data: Path) -> None:
    reader = FrameReader(real_data / "clips/kth/boxing/person01_boxing_d1_uncomp.avi", stop=80)
    points = found(np.stack([frame for _, frame in reader]))
    assert len(points) > 80
    # He stands at x 60 to 90 and boxes to the left; everything else is grass.
    x = points.tracks[:, 0, 0]
    assert ((x > 55) & (x < 95)).mean() > 0.98
