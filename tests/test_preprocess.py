"""Resizing and cropping of frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from har_pipeline.video.preprocess import Resize, parse_resize, resize_frame


@pytest.fixture(scope="module")
def natural() -> np.ndarray:
    """(240, 320, 3) uint8 whose detail weakens with its fineness, as in photographs."""
    rng = np.random.default_rng(0)
    octaves = [
        cv2.resize(rng.normal(size=(240 >> k, 320 >> k, 3)), (320, 240), interpolation=cv2.INTER_CUBIC) * 2**k
        for k in range(7)
    ]
    image = np.sum(octaves, axis=0)
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "mode"),
    [("stretch-224", Resize(224)), ("short256-center224", Resize(224, 256)), ("short112-center112", Resize(112, 112))],
)
def test_parse_resize(text: str, mode: Resize) -> None:
    assert parse_resize(text) == mode


@pytest.mark.parametrize(
    "text", ["", "224", "stretch-0", "stretch-x", "short256", "short256-center0", "stretch-224 ", "crop-9"]
)
def test_an_unknown_mode_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write stretch-<size>"):
        parse_resize(text)


def test_a_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        parse_resize("short200-center224")


@pytest.mark.parametrize(
    "text", ["stretch-112", "stretch-224", "stretch-448", "short256-center224", "short128-center112"]
)
@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (121, 161), (100, 320)])
def test_agrees_with_pillow(natural: np.ndarray, text: str, shape: tuple[int, int]) -> None:
    frame = (
        np.ascontiguousarray(np.resize(natural, (320, 320, 3))[: shape[0], : shape[1]]) if shape[0] > 240 else natural
    )
    frame = np.ascontiguousarray(frame[: shape[0], : shape[1]])
    mode = parse_resize(text)
    if mode.short_side is None:
        expected = Image.fromarray(frame).resize((mode.size, mode.size), Image.Resampling.BILINEAR)
    else:
        scale = mode.short_side / min(frame.shape[:2])
        height, width = (round(side * scale) for side in frame.shape[:2])
        top, left = (height - mode.size) // 2, (width - mode.size) // 2
        whole = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
        expected = whole.crop((left, top, left + mode.size, top + mode.size))
    found = resize_frame(frame, mode)
    assert found.shape == (mode.size, mode.size, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 2


def test_fine_stripes_do_not_alias_even_where_the_other_side_grows() -> None:
    stripes = np.zeros((50, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    found = resize_frame(stripes, Resize(100))
    assert np.abs(found.astype(int) - 127).max() < 30


def test_the_crop_is_the_centre() -> None:
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[25:75, 75:125] = 200
    assert (resize_frame(frame, parse_resize("short100-center50")) == 200).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (3, 2)])
@pytest.mark.parametrize("text", ["stretch-16", "short16-center12"])
def test_tiny_frames(shape: tuple[int, int], text: str) -> None:
    frame = np.full((*shape, 3), (10, 20, 30), np.uint8)
    found = resize_frame(frame, parse_resize(text))
    assert found.shape == (parse_resize(text).size,) * 2 + (3,)
    assert (found == (10, 20, 30)).all()


def test_a_frame_of_the_right_size_is_left_alone(natural: np.ndarray) -> None:
    square = natural[:224, :224]
    assert (resize_frame(square, Resize(224)) == square).all()
