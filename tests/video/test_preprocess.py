"""Resizing and cropping of frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from har_pipeline.core.records import ResizeMethod
from har_pipeline.video.preprocess import (
    Resize,
    crop_places,
    fit_frame,
    num_crops,
    parse_resize,
    resize_frame,
    scale_frame,
    scale_to,
    with_crops,
)


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
    [
        ("stretch-224", Resize(224, (224, 224))),
        ("short256-center224", Resize(224, 256)),
        ("short112-center112", Resize(112, 112)),
        ("stretch-340x256-ten224", Resize(224, (340, 256), "ten")),
        ("short256-three256", Resize(256, 256, "three")),
        ("fit-54x34", Resize(34, (54, 34), fit=(54, 34))),
    ],
)
def test_parse_resize(text: str, mode: Resize) -> None:
    assert parse_resize(text) == mode


@pytest.mark.parametrize(
    "text",
    ["", "224", "stretch-0", "stretch-x", "short256", "short256-center0", "stretch-224 ", "crop-9", "short256-five224"],
)
def test_an_unknown_mode_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write stretch-<size>"):
        parse_resize(text)


@pytest.mark.parametrize("text", ["short200-center224", "stretch-340x200-ten224"])
def test_a_crop_larger_than_the_frame_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        parse_resize(text)


def test_crops_of_a_mode_can_be_exchanged() -> None:
    assert with_crops("short256-center224", "ten") == "short256-ten224"
    assert with_crops("stretch-340x256-ten224", "center") == "stretch-340x256-center224"
    with pytest.raises(ValueError, match="leaves no room"):
        with_crops("stretch-224", "ten")


@pytest.mark.parametrize(
    ("text", "height", "width", "expected"),
    [
        ("short8-center4", 8, 11, [(2, 3)]),
        ("short8-three8", 8, 11, [(0, 0), (0, 1), (0, 3)]),
        ("short8-three4", 11, 8, [(0, 2), (3, 2), (7, 2)]),
        ("short8-ten4", 8, 10, [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3)]),
    ],
)
def test_crop_places(text: str, height: int, width: int, expected: list[tuple[int, int]]) -> None:
    resize = parse_resize(text)
    places = crop_places(resize, height, width)
    assert len(places) == num_crops(resize)
    assert [(crop.top, crop.left) for crop in places if not crop.mirrored] == expected
    mirrored = [(crop.top, crop.left) for crop in places if crop.mirrored]
    assert mirrored == (expected if resize.crops == "ten" else [])


def test_the_centre_crop_is_cut_from_the_scaled_frame(natural: np.ndarray) -> None:
    resize = parse_resize("stretch-340x256-center224")
    scaled = scale_frame(natural, resize)
    assert scaled.shape == (256, 340, 3)
    (place,) = crop_places(resize, 256, 340)
    assert (resize_frame(natural, resize) == scaled[place.top : place.top + 224, place.left : place.left + 224]).all()


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
    if isinstance(mode.scaled, tuple):
        expected = Image.fromarray(frame).resize((mode.size, mode.size), Image.Resampling.BILINEAR)
    else:
        scale = mode.scaled / min(frame.shape[:2])
        height, width = (round(side * scale) for side in frame.shape[:2])
        top, left = (height - mode.size) // 2, (width - mode.size) // 2
        whole = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
        expected = whole.crop((left, top, left + mode.size, top + mode.size))
    found = resize_frame(frame, mode)
    assert found.shape == (mode.size, mode.size, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    short=st.integers(1, 40),
    cut=st.integers(0, 39),
    seed=st.integers(0, 9),
)
def test_frames_are_those_of_torchvisions_transforms(
    method: ResizeMethod, height: int, width: int, short: int, cut: int, seed: int
) -> None:
    size = max(1, short - cut)
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image, how = Image.fromarray(frame), transforms.InterpolationMode(method)
    mode = parse_resize(f"short{short}-middle{size}", method)
    wanted = transforms.CenterCrop(size)(transforms.Resize(short, how)(image))
    assert np.array_equal(resize_frame(frame, mode), np.asarray(wanted))
    stretched = transforms.Resize((short, size), how)(image)
    assert np.array_equal(scale_to(frame, short, size, method), np.asarray(stretched))


def test_fine_stripes_do_not_alias_even_where_the_other_side_grows() -> None:
    stripes = np.zeros((50, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    found = resize_frame(stripes, parse_resize("stretch-100"))
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
    assert (resize_frame(square, parse_resize("stretch-224")) == square).all()


@pytest.mark.parametrize(
    ("size", "inner"),
    [((120, 160), (34, 45)), ((300, 220), (34, 25)), ((68, 300), (12, 54)), ((1, 500), (1, 54)), ((34, 54), (34, 54))],
)
def test_a_frame_that_is_fitted_keeps_its_shape_between_its_repeated_edges(
    size: tuple[int, int], inner: tuple[int, int]
) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    fitted = fit_frame(frame, 54, 34)
    assert (fitted.shape, fitted.dtype) == ((34, 54), np.uint8)
    top, left = (34 - inner[0]) // 2, (54 - inner[1]) // 2
    expected = cv2.cvtColor(scale_to(frame, *inner), cv2.COLOR_RGB2GRAY)
    rows, columns = (
        np.clip(np.arange(n) - at, 0, m - 1) for n, at, m in zip((34, 54), (top, left), inner, strict=True)
    )
    assert np.array_equal(fitted, expected[rows][:, columns])
    assert np.array_equal(resize_frame(frame, parse_resize("fit-54x34")), np.repeat(fitted[..., None], 3, axis=2))
