"""Resizing and cropping of uint8 frames: numpy, OpenCV and Pillow only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from har_pipeline.core.records import Crops, ResizeMethod

_STRETCH = re.compile(r"stretch-(\d+)")
_PERSON = re.compile(r"short(\d+)-person(\d+)x(\d+)")
_FIT = re.compile(r"fit-(\d+)x(\d+)")
_CROPPED = re.compile(r"(?:stretch-(\d+)x(\d+)|short(\d+))-(center|middle|three|ten)(\d+)")

# Interpolated by Pillow, pixel for pixel as the transforms of torchvision and timm do with images of Pillow.
_OF_PILLOW: dict[ResizeMethod, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# One thread: a worker shares its core with the net.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True)
class Resize:
    """A parsed resize mode, in px: the frame is scaled, then squares of size x size or a window are cut out of it."""

    size: int
    scaled: tuple[int, int] | int  # (width, height) to stretch to; or of the shorter side, with the aspect kept
    crops: Crops = "center"  # three: along the longer side; ten: four corners, centre, and the mirror image of each
    person: tuple[int, int] | None = None  # (width, height) of the window of `video.person`, instead of squares
    fit: tuple[int, int] | None = None  # (width, height) that the whole frame is fitted into, instead of squares
    method: ResizeMethod = "area"  # as in `FeatureSpec`
    to_even: bool = False  # whether half a px of a centre's offset is rounded to an even number, not down

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what is cut out."""
        window = self.person or self.fit
        return (self.size, self.size) if window is None else window[::-1]

    def center(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the centre crop of a scaled frame of height x width px."""
        bottom, right = height - self.size, width - self.size
        return (round(bottom / 2), round(right / 2)) if self.to_even else (bottom // 2, right // 2)


def parse_resize(text: str, method: ResizeMethod = "area") -> Resize:
    """Return the mode written as `stretch-224`, `stretch-340x256-center224`, `short256-center224`, or with `three` or `ten`.

    `stretch-224` ignores the aspect ratio and crops nothing; 340x256 is width x height; three and ten name the crops. The crop
    `middle` is that of torchvision and timm: where `center` cuts off an odd number of px, it may lie one px further on.
    `short60-person34x54` is a grey window 34 wide and 54 high that follows the person, see `video.person`; `fit-54x34` is the
    whole frame, grey, within 54 x 34 px.
    method: what scales the frames, see `scale_frame`.
    Raises: ValueError if it is written otherwise, or the crop is larger than the scaled frame.
    """
    match = _STRETCH.fullmatch(text)
    if match and int(match[1]) > 0:
        return Resize(int(match[1]), scaled=(int(match[1]), int(match[1])), method=method)
    match = _PERSON.fullmatch(text)
    if match and int(match[2]) > 0 and int(match[3]) > 0:
        side, width, height = (int(part) for part in match.groups())
        if max(width, height) > side:
            raise ValueError(f"resize {text!r}: the window does not fit into a short side of {side} px")
        return Resize(height, scaled=side, person=(width, height))
    match = _FIT.fullmatch(text)
    if match and int(match[1]) > 0 and int(match[2]) > 0:
        return Resize(int(match[2]), scaled=(int(match[1]), int(match[2])), fit=(int(match[1]), int(match[2])))
    match = _CROPPED.fullmatch(text)
    if match and int(match[5]) > 0:
        size = int(match[5])
        scaled = (int(match[1]), int(match[2])) if match[1] else int(match[3])
        shortest = scaled if isinstance(scaled, int) else min(scaled)
        if size > shortest:
            raise ValueError(f"resize {text!r}: the crop of {size} px does not fit into a short side of {shortest} px")
        crops: Crops = "ten" if match[4] == "ten" else "three" if match[4] == "three" else "center"
        return Resize(size, scaled, crops, method=method, to_even=match[4] == "middle")
    raise ValueError(
        f"resize {text!r}: write stretch-<size>, stretch-<width>x<height>-<crops><size> or short<side>-<crops><size> with "
        "crops center, middle, three or ten, as in short256-center224; or short<side>-person<width>x<height>, or "
        "fit-<width>x<height>"
    )


def with_crops(text: str, crops: Crops) -> str:
    """Return the resize mode with other crops. Raises: ValueError if it cuts out nothing."""
    match = _CROPPED.fullmatch(text)
    if match is None:
        raise ValueError(f"resize {text!r} leaves no room for crops: give one such as short256-{crops}224")
    return f"{text[: match.start(4)]}{crops}{match[5]}"


@dataclass(frozen=True, slots=True)
class Crop:
    """A square of a scaled frame: its upper left corner in px, and whether it is mirrored (left and right exchanged)."""

    top: int
    left: int
    mirrored: bool = False


def crop_places(resize: Resize, height: int, width: int) -> list[Crop]:
    """Return where the crops of a scaled frame of height x width px lie; centres as `Resize.center` says.

    `ten`: upper left, upper right, lower left, lower right, centre, then the five mirrored (Lakhal 2018, section 3.3).
    """
    bottom, right = height - resize.size, width - resize.size
    center = Crop(*resize.center(height, width))
    if resize.crops == "center":
        return [center]
    if resize.crops == "three":
        if width >= height:
            return [Crop(center.top, left) for left in (0, center.left, right)]
        return [Crop(top, center.left) for top in (0, center.top, bottom)]
    five = [Crop(0, 0), Crop(0, right), Crop(bottom, 0), Crop(bottom, right), center]
    return [*five, *(Crop(crop.top, crop.left, mirrored=True) for crop in five)]


def num_crops(resize: Resize) -> int:
    """Return how many crops a frame gives."""
    return {"center": 1, "three": 3, "ten": 10}[resize.crops]


def resize_frame(frame: np.ndarray, resize: Resize) -> np.ndarray:
    """Return (size, size, 3) uint8, the centre crop of the scaled frame (H, W, 3) uint8; may be a view of that frame.

    Of a mode `fit` three equal grey channels (height, width, 3).
    """
    if resize.fit is not None:
        return np.repeat(fit_frame(frame, *resize.fit)[..., None], 3, axis=2)
    scaled = scale_frame(frame, resize)
    top, left = resize.center(*scaled.shape[:2])
    return scaled[top : top + resize.size, left : left + resize.size]


def fit_frame(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return (height, width) uint8, grey: the whole frame (H, W, 3) uint8 RGB, its aspect kept, as large as it fits.

    It is in the middle; beyond its edges these are repeated. Interpolated as `scale_frame` says.
    """
    factor = min(height / frame.shape[0], width / frame.shape[1])
    inner = [max(1, min(most, round(side * factor))) for side, most in zip(frame.shape, (height, width), strict=False)]
    grey = cv2.cvtColor(scale_to(frame, *inner), cv2.COLOR_RGB2GRAY)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    around = (top, height - inner[0] - top, left, width - inner[1] - left)
    return cv2.copyMakeBorder(grey, *around, cv2.BORDER_REPLICATE)


def scale_frame(frame: np.ndarray, resize: Resize) -> np.ndarray:
    """Return the scaled frame (H', W', 3) uint8, not yet cropped, from (H, W, 3) uint8; it may be that frame itself.

    A side that grows is interpolated linearly; along one that shrinks each new pixel is the mean of the px that it covers,
    against aliasing: within two levels (mean absolute difference) of Pillow's and torchvision's antialiased bilinear on
    natural images. The long side is rounded to whole px.

    The methods `bilinear` and `bicubic` are Pillow's, with the sizes of torchvision's transforms: the long side is cut to
    whole px.
    """
    return scale_to(frame, *scaled_shape(frame.shape, resize), resize.method)


def scaled_shape(shape: Sequence[int], resize: Resize) -> tuple[int, int]:
    """Return (height, width) px that a frame of a shape (height, width, ...) is scaled to; a scaled one keeps its own."""
    height, width = shape[:2]
    if isinstance(resize.scaled, int) and resize.method in _OF_PILLOW:
        long = resize.scaled * max(height, width) // min(height, width)
        return (long, resize.scaled) if height > width else (resize.scaled, long)
    if isinstance(resize.scaled, int):
        factor = resize.scaled / min(height, width)
        return max(resize.scaled, round(height * factor)), max(resize.scaled, round(width * factor))
    return resize.scaled[1], resize.scaled[0]


def scale_to(frame: np.ndarray, height: int, width: int, method: ResizeMethod = "area") -> np.ndarray:
    """Return the frame (H, W, 3) uint8 stretched to height x width px, as `scale_frame` interpolates."""
    if method in _OF_PILLOW:
        if frame.shape[:2] == (height, width):
            return frame
        return np.array(Image.fromarray(frame).resize((width, height), _OF_PILLOW[method]))
    # OpenCV takes one method for both sides, so a frame that shrinks along one and grows along the other goes twice.
    for size, interpolation in (
        ((min(height, frame.shape[0]), min(width, frame.shape[1])), cv2.INTER_AREA),
        ((height, width), cv2.INTER_LINEAR),
    ):
        if frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=interpolation)
    return frame
