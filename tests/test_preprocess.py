import numpy as np
import pytest
from PIL import Image

from har_pipeline.video.preprocess import Resize, parse_resize, resize_frame


def smooth_image(height: int, width: int) -> np.ndarray:
    """Return (height, width, 3) uint8 waves with a period of at least a third of the picture."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    waves = [np.sin(2 * np.pi * (fx * x + fy * y) + p) for fx, fy, p in ((1, 2, 0.0), (3, 1, 1.0), (2, -2, 2.0))]
    return np.round(127.5 + 110 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stretch-224", Resize(224)),
        ("stretch-1", Resize(1)),
        ("short256-center224", Resize(224, 256)),
        ("short128-center128", Resize(128, 128)),
    ],
)
def test_modes(text, expected):
    assert parse_resize(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "224", "stretch", "stretch-", "stretch-0", "stretch--5", "stretch-224x224", " stretch-224", "Stretch-224",
        "short256", "short256-center", "short256-center0", "short256-centre224", "short256-center224 ", "stretch-2.5",
    ],
)  # fmt: skip
def test_other_modes_are_refused(text):
    with pytest.raises(ValueError, match="write stretch-<size> or short<side>-center<size>"):
        parse_resize(text)


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(ValueError, match="crop of 225 px does not fit into a short side of 224 px"):
        parse_resize("short224-center225")


@pytest.mark.parametrize("mode", ["stretch-112", "stretch-33", "short64-center61", "short128-center112", "stretch-1"])
@pytest.mark.parametrize("size", [(120, 160), (121, 161), (161, 121), (7, 300), (1, 1), (3, 2), (112, 112)])
def test_sizes_of_odd_inputs(size, mode):
    resize = parse_resize(mode)
    result = resize_frame(np.full((*size, 3), 77, np.uint8), resize)
    assert result.shape == (resize.size, resize.size, 3)
    assert result.dtype == np.uint8
    assert (result == 77).all()


def test_a_frame_of_the_right_size_is_not_changed():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (resize_frame(frame, Resize(64)) == frame).all()
    assert (resize_frame(frame, Resize(64, 64)) == frame).all()


@pytest.mark.parametrize(
    "size", [(240, 320), (120, 160), (121, 161), (480, 640), (90, 400), (400, 90), (224, 300), (1080, 1920)]
)
def test_stretch_agrees_with_pillow_on_smooth_images(size):
    """Stated tolerance: a mean of 1 level. Both mix pixels differently, but a smooth image leaves no room for it."""
    image = smooth_image(*size)
    theirs = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    difference = np.abs(resize_frame(image, Resize(224)).astype(int) - theirs)
    assert difference.mean() <= 1.0
    assert difference.max() <= 12


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (480, 640), (120, 160)])
def test_short_side_agrees_with_pillow_on_smooth_images(size):
    image = smooth_image(*size)
    factor = 256 / min(size)
    height, width = (round(side * factor) for side in size)
    theirs = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 224) // 2, (width - 224) // 2
    difference = np.abs(resize_frame(image, Resize(224, 256)).astype(int) - theirs[top : top + 224, left : left + 224])
    assert difference.mean() <= 1.0


def test_fine_texture_is_averaged_and_does_not_alias():
    checkers = np.indices((448, 448)).sum(0) % 2 * 255
    frame = np.repeat(checkers[:, :, None], 3, axis=2).astype(np.uint8)
    result = resize_frame(frame, Resize(112)).astype(int)
    assert np.abs(result - 128).max() <= 1


def test_shrinking_by_two_is_the_mean_of_four_pixels():
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mean = frame.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(resize_frame(frame, Resize(32)) - mean).max() <= 0.5


def test_one_side_shrinks_while_the_other_grows():
    """Rows of stripes one px high average out; across the columns, a ramp stays a ramp."""
    frame = np.zeros((400, 50, 3), np.uint8)
    frame[::2] = 200
    assert np.abs(resize_frame(frame, Resize(100)).astype(int) - 100).max() <= 1
    ramp = np.broadcast_to(np.arange(50, dtype=np.uint8)[None, :, None] * 4, (400, 50, 3)).copy()
    result = resize_frame(ramp, Resize(100))
    assert (np.diff(result[0, :, 0].astype(int)) >= 0).all()
    assert (result == result[:1]).all()


def test_gray_stays_gray_and_channels_keep_their_order():
    gray = np.repeat(np.random.default_rng(2).integers(0, 256, (121, 161, 1), dtype=np.uint8), 3, axis=2)
    for mode in (Resize(96), Resize(96, 100), Resize(300)):
        result = resize_frame(gray, mode)
        assert (result == result[:, :, :1]).all()
    coloured = np.broadcast_to(np.array([10, 100, 200], np.uint8), (121, 161, 3)).copy()
    assert (resize_frame(coloured, Resize(96, 100)) == [10, 100, 200]).all()


@pytest.mark.parametrize(
    ("size", "top", "left"), [((60, 100), 10, 30), ((100, 60), 30, 10), ((60, 61), 10, 10), ((60, 63), 10, 11)]
)
def test_the_crop_is_centred_and_its_offset_rounded_down(size, top, left):
    height, width = size
    y, x = np.mgrid[:height, :width]
    frame = np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint8)
    result = resize_frame(frame, Resize(40, 60))
    assert (result == frame[top : top + 40, left : left + 40]).all()
