"""Space-time interest points, where image structure starts, stops or turns, with histograms of gradients and flow around.

From the papers: the measure, its local maxima, the scales and the sizes of the histograms. Laptev, "On Space-Time Interest
Points", IJCV 2005, sections 2 and 3 (measure, derivatives normalised by the scale, integration over twice the variance);
Laptev 2008, "Learning realistic human actions from movies", section 3.1 (fixed scales instead of scale selection; HOG and
HOF: 3 x 3 x 2 cells of 4 and 5 bins, each cell's histogram normalised); Wang 2009, "Evaluation of local spatio-temporal
features for action recognition", section 2 (k, the variances, the volume of 18 sigma x 18 sigma x 8 tau).

They leave open, and here it is:

- Threshold: absolute, as in the authors' program, on the measure of grey values in [0, 1]. Theirs is 1e-9, which finds next
  to nothing on people with clothes like the background: the measure falls with the sixth power of contrast. With 1e-10
  24 rendered videos have at least 50 points in 90 frames, with 1e-9 as few as 1, and as many of the points, 90 %, are on
  the person. What a camera's noise and a codec leave on a still background is below 1e-13.
- Flow: OpenCV's DIS, as for trajectories (`motion.flow_method`).
- Votes: a px gives its gradient's or flow's length to the two directions nearest to it, by nearness; one that moves by
  `STILL_PX` or less gives 1 to the bin "no motion". Gradients have no sign: dark on bright is bright on dark.
- Ends in time: the first and last frame's values go on. What that does to the measure would look like a start or stop, so
  that points nearer than 2 tau to an end are dropped. At the edges of a frame so are those nearer than `BORDER` px
  of the image that they were found in. A cell counts the part of it that lies in the video; without any, it is 0.

Large scales are computed on images of half and a quarter of the size, where the smallest variances are the same again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from har_pipeline.video.local.histograms import gradients, oriented
from har_pipeline.video.local.motion import STILL_PX, flow_between, flow_method
from har_pipeline.video.local.points import Points, joined, no_points
from har_pipeline.video.local.spec import HANDCRAFTED

# Variances of the Gaussians: px^2 of each image of the pyramid (so 4 to 128 of the frame), and frames^2.
SPACE, TIME = (4.0, 8.0), (2.0, 4.0)
LEVELS = 3
# The second-moment matrix is integrated over so many times the variance.
INTEGRATION = 2.0
K = 0.0005
THRESHOLD = 1e-10
BORDER = 5
# A described volume reaches this far around its point, in deviations, in px and in frames; cells along each side.
REACH_SPACE, REACH_TIME = 9.0, 4.0
CELLS_SPACE, CELLS_TIME = 3, 2
HOG_BINS, DIRECTIONS = 4, 4
# Where a Gaussian ends, in deviations.
CUT = 3.0
# Histograms are summed over squares of so many px before they are integrated: the smallest cell is 12 px wide.
SQUARE = 2
# Votes are counted in such parts, whole numbers, so that differences of sums are exact, however long a video is.
PARTS = 64


@dataclass(frozen=True, slots=True)
class Scale:
    """One pair of scales at which points are looked for."""

    level: int  # image of the pyramid
    space: float  # variance in px^2 of that image
    time: float  # variance in frames^2

    @property
    def sigma(self) -> float:
        """Return the spatial deviation in px of the frame."""
        return math.sqrt(self.space) * 2**self.level

    @property
    def reach(self) -> int:
        """Return how many frames are described before the point's frame, and from it on."""
        return round(REACH_TIME * math.sqrt(self.time))

    @property
    def margin(self) -> int:
        """Return how many frames from an end a point must be."""
        return math.ceil(2 * math.sqrt(self.time))


def interest_points(frames: Iterable[np.ndarray]) -> Iterator[Points]:
    """Yield the interest points of one video, in the order of their frames.

    frames: (H, W, 3) uint8 RGB, all of one size. Blocks: `hog` (n, 72) and `hof` (n, 90), cells in the order time, y, x, each
    with its bins and a sum of 1. Bins of HOG: brightness changes along x, diagonally down, along y, diagonally up. Bins of
    HOF: right, down, left, up, no motion. A point is in frame (first + end) / 2, so that `first` may lie before the video
    and `end` behind it. `scales` is sigma.
    Yields at least once: `Points` of length 0 if there are none, as in a still video or one of a few frames. Memory is about
    3 kB for each px of a frame, whatever the length.
    Raises: ValueError if a frame has another type or size than the first.
    """
    found = _found(frames)
    yield next(found, _none())
    yield from found


def _found(frames: Iterable[np.ndarray]) -> Iterator[Points]:
    search: _Search | None = None
    for frame in frames:
        search = search or _Search(frame.shape)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != search.shape:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, not uint8 (H, W, 3) of the first one's size")
        yield from search.push(frame)
    if search:
        yield from search.finish()


def _none() -> Points:
    return no_points(1, HANDCRAFTED["harris3d_hof"].blocks)


def _radius(variance: float) -> int:
    """Return the px or frames from the middle of a Gaussian to its last weight."""
    return math.ceil(CUT * math.sqrt(variance))


class CornerMeasure:
    """The Harris measure of a video's frames at every pair of scales; it answers `delay` frames late, in constant memory.

    Pairs of scales whose image has no px inside its border are left out.
    """

    delay = _radius(max(TIME)) + 1 + _radius(INTEGRATION * max(TIME))

    def __init__(self, height: int, width: int) -> None:
        sizes = [(math.ceil(height / 2**level), math.ceil(width / 2**level)) for level in range(LEVELS)]
        self.sizes = [size for size in sizes if min(size) > 2 * BORDER]
        # The smoothed images of the last frames, and the smoothed products of their derivatives.
        self._images = {
            (level, space): _Ring(_radius(max(TIME)) + 1, (1, *size))
            for level, size in enumerate(self.sizes)
            for space in SPACE
        }
        self._products = {
            Scale(level, space, time): _Ring(_radius(INTEGRATION * time), (6, *self.sizes[level]))
            for level, space in self._images
            for time in TIME
        }
        # Short Gaussians answer before long ones.
        self._measures: dict[Scale, deque[np.ndarray]] = {scale: deque() for scale in self._products}

    def push(self, grey: np.ndarray) -> Iterator[dict[Scale, np.ndarray]]:
        """Take the next frame (H, W) float32 in [0, 1]; yield the measures that have become certain, of 0 or 1 frames.

        Each is float32, of the size of its scale's image.
        """
        for place, image in self._smoothed(grey):
            self._add_image(place, image[None])
        yield from self._certain()

    def finish(self) -> Iterator[dict[Scale, np.ndarray]]:
        """Yield what is left after the last frame, whose values go on."""
        for step in range(self.delay):
            for place, ring in self._images.items():
                if step < ring.radius:
                    self._add_image(place, ring.last)
                else:
                    for scale in self._scales_at(place):
                        self._add_products(scale, self._products[scale].last)
            yield from self._certain()

    def _smoothed(self, grey: np.ndarray) -> Iterator[tuple[tuple[int, float], np.ndarray]]:
        """Yield level, spatial variance and the image smoothed by it, from fine to coarse: each is made of the one before."""
        image, has = grey, 0.0
        for level, (height, width) in enumerate(self.sizes):
            if level:
                # The mean of two px adds a variance of 1/4 px^2, and both are of px half the size.
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
                has = (SPACE[0] + 0.25) / 4
            fine = _blurred(image, SPACE[0] - has)
            yield (level, SPACE[0]), fine
            for before, space in pairwise(SPACE):
                image = _blurred(fine, space - before)
                yield (level, space), image
            image = fine

    def _scales_at(self, place: tuple[int, float]) -> list[Scale]:
        return [Scale(*place, time) for time in TIME]

    def _add_image(self, place: tuple[int, float], image: np.ndarray) -> None:
        """Take the next smoothed image (1, h, w) of a level; add the products of the frame that it completes."""
        ring = self._images[place]
        if not ring.push(image):
            return
        for scale in self._scales_at(place):
            smooth = _gaussian(scale.time, ring.radius)
            # Half the difference of the smoothed frames after and before.
            change = (np.roll(smooth, 1) - np.roll(smooth, -1)) / 2
            steady, moving = ring.weighted(smooth)[0], ring.weighted(change)[0]
            sigma, tau = math.sqrt(scale.space), math.sqrt(scale.time)
            x, y = (
                cv2.Sobel(steady, cv2.CV_32F, *order, ksize=1, scale=sigma / 2, borderType=cv2.BORDER_REPLICATE)
                for order in ((1, 0), (0, 1))
            )
            t = moving * np.float32(tau)
            products = np.stack([x * x, y * y, t * t, x * y, x * t, y * t])
            variance = INTEGRATION * scale.space
            self._add_products(scale, np.stack([_blurred(product, variance) for product in products]))

    def _add_products(self, scale: Scale, products: np.ndarray) -> None:
        ring = self._products[scale]
        if ring.push(products):
            xx, yy, tt, xy, xt, yt = ring.weighted(_gaussian(INTEGRATION * scale.time, ring.radius))
            determinant = xx * (yy * tt - yt * yt) - xy * (xy * tt - yt * xt) + xt * (xy * yt - yy * xt)
            trace = xx + yy + tt
            self._measures[scale].append(determinant - np.float32(K) * trace * trace * trace)

    def _certain(self) -> Iterator[dict[Scale, np.ndarray]]:
        while self._measures and all(self._measures.values()):
            yield {scale: waiting.popleft() for scale, waiting in self._measures.items()}


class _Ring:
    """The last 2 r + 1 arrays of a sequence that begins with copies of its first."""

    def __init__(self, radius: int, shape: tuple[int, ...]) -> None:
        self.radius = radius
        self._held = np.empty((2 * radius + 1, *shape), np.float32)
        self._pushed = 0

    @property
    def last(self) -> np.ndarray:
        return self._held[(self._pushed - 1) % len(self._held)]

    def push(self, values: np.ndarray) -> bool:
        """Take the next array and return whether the middle one is of the sequence, not a copy before it."""
        self._held[self._pushed % len(self._held) if self._pushed else ...] = values
        self._pushed += 1
        return self._pushed > self.radius

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Return the sum of the arrays, each times its weight of (2 r + 1,), from the oldest to the newest."""
        oldest = self._pushed % len(self._held)
        # Not by `@`, whose sums depend on the number of threads.
        held = self._held.reshape(len(self._held), -1)
        return np.einsum("n,np->p", np.roll(weights, oldest), held).reshape(self._held.shape[1:])


class _Volume:
    """Sums of histograms over any box of the last frames of a video."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._squares = tuple(math.ceil(side / SQUARE) for side in shape)
        self._method = flow_method()
        self._before: np.ndarray | None = None
        # Sums over all frames before a frame and all squares left of and above a corner; the last is of `_count` frames.
        empty = np.zeros((*(side + 1 for side in self._squares), HOG_BINS + DIRECTIONS + 1))
        self._sums = deque([empty], maxlen=CornerMeasure.delay + 3 + round(REACH_TIME * math.sqrt(max(TIME))))
        self._count = 0

    def push(self, grey: np.ndarray) -> None:
        """Take the next frame (H, W) uint8."""
        if self._before is not None:
            flow = flow_between(self._method, self._before, grey)
            self._add(self._before, oriented(flow[..., 0], flow[..., 1], DIRECTIONS, STILL_PX))
        self._before = grey

    def finish(self) -> None:
        """Count the last frame, which has no flow."""
        if self._before is not None:
            self._add(self._before, np.zeros((DIRECTIONS + 1, *self._before.shape), np.float32))

    def _add(self, grey: np.ndarray, motion: np.ndarray) -> None:
        signed = oriented(*gradients(grey), 2 * HOG_BINS)
        votes = [*(signed[:HOG_BINS] + signed[HOG_BINS:]), *motion]
        right, below = (-side % SQUARE for side in grey.shape[::-1])
        if right or below:
            votes = [cv2.copyMakeBorder(one, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0) for one in votes]
        squares = [cv2.resize(one, self._squares[::-1], interpolation=cv2.INTER_AREA) for one in votes]
        sums = np.zeros_like(self._sums[-1])
        whole = np.rint(np.stack(squares, axis=-1) * PARTS).astype(float)
        whole.cumsum(axis=0).cumsum(axis=1, out=sums[1:, 1:])
        sums += self._sums[-1]
        self._sums.append(sums)
        self._count += 1

    def describe(self, frame: int, reach: int, places: np.ndarray, sigma: np.ndarray) -> dict[str, np.ndarray]:
        """Return the blocks of n points of one frame, which is described from `frame - reach` to `frame + reach`.

        places: (n, 2), x and y in px of the frame; sigma: (n,) px.
        """
        steps = np.linspace(-REACH_SPACE, REACH_SPACE, CELLS_SPACE + 1)
        # Where the cells' edges are in squares from the left or upper edge; a px has its centre at its number plus 1/2.
        x, y = np.moveaxis((places[:, :, None] + 0.5 + steps * sigma[:, None, None]) / SQUARE, 1, 0)
        times = np.linspace(frame - reach, frame + reach, CELLS_TIME + 1).round().astype(int).tolist()
        halves = [self._until(end) - self._until(start) for start, end in pairwise(times)]
        corners = np.stack([_interpolated(sums, y, x) for sums in halves], axis=1)
        cells = np.diff(np.diff(corners, axis=2), axis=3).clip(min=0)
        hog, hof = np.split(cells, [HOG_BINS], axis=-1)
        return {"hog": _normalised(hog), "hof": _normalised(hof)}

    def _until(self, frame: int) -> np.ndarray:
        """Return the sums over the frames before a frame, which may lie outside the video."""
        return self._sums[min(max(frame, 0), self._count) - self._count - 1]


def _interpolated(sums: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the sums (n, rows, columns, bins) left of x (n, columns) and above y (n, rows), which may lie outside."""
    (top, below), (left, right) = (
        _neighbours(values, side - 1) for values, side in zip((y, x), sums.shape[:2], strict=True)
    )
    return np.sum(
        [
            sums[row[:, :, None], column[:, None, :]] * (share[:, :, None] * portion[:, None, :])[..., None]
            for row, share in (top, below)
            for column, portion in (left, right)
        ],
        axis=0,
    )


def _neighbours(values: np.ndarray, most: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the corners before and after each value, clipped to [0, most], and each one's share."""
    values = values.clip(0, most)
    before = np.minimum(values.astype(int), most - 1)
    share = values - before
    return (before, 1 - share), (before + 1, share)


def _normalised(cells: np.ndarray) -> np.ndarray:
    """Return (n, cells x bins) float32 from (n, ..., bins), each cell divided by its sum; 0 where nothing was counted."""
    total = cells.sum(axis=-1, keepdims=True)
    # Half of what one vote counts: less is rounding.
    empty = total < 0.5
    return np.where(empty, 0, cells / np.where(empty, 1, total)).reshape(len(cells), -1).astype(np.float32)


class _Search:
    """Looks for the points of one video's frames, which come in order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._measure = CornerMeasure(*shape[:2])
        self._volume = _Volume(shape[:2])
        self._maps: deque[dict[Scale, np.ndarray]] = deque(maxlen=3)
        # Frames taken, and measured.
        self._taken = self._measured = 0

    def push(self, frame: np.ndarray) -> Iterator[Points]:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        self._taken += 1
        self._volume.push(grey)
        for maps in self._measure.push(grey.astype(np.float32) / 255):
            yield from self._add(maps)

    def finish(self) -> Iterator[Points]:
        self._volume.finish()
        for maps in self._measure.finish():
            yield from self._add(maps)

    def _add(self, maps: dict[Scale, np.ndarray]) -> Iterator[Points]:
        """Take the measures of the next frame; yield the points of the one before it, if there are any."""
        self._maps.append(maps)
        self._measured += 1
        frame = self._measured - 2
        if len(self._maps) < 3:
            return
        found = [
            self._points(frame, scale, places)
            for scale in maps
            if scale.margin <= frame < self._taken - scale.margin and len(places := self._maxima(scale))
        ]
        if found:
            yield joined(found)

    def _maxima(self, scale: Scale) -> np.ndarray:
        """Return (n, 2), x and y in px of the frame, the local maxima of the middle measure in space and time."""
        before, middle, after = (maps[scale] for maps in self._maps)
        inside = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        strong = middle[inside] > THRESHOLD
        if not strong.any():
            return np.empty((0, 2))
        around = cv2.dilate(np.maximum(np.maximum(before, after), middle), np.ones((3, 3), np.uint8))
        y, x = np.nonzero(strong & (middle >= around)[inside])
        size = np.array(middle.shape[::-1])
        return (np.stack([x, y], axis=1) + BORDER + 0.5) * (np.array(self.shape[1::-1]) / size) - 0.5

    def _points(self, frame: int, scale: Scale, places: np.ndarray) -> Points:
        sigma = np.full(len(places), scale.sigma, np.float32)
        return Points(
            first=np.full(len(places), frame - scale.reach),
            end=np.full(len(places), frame + scale.reach),
            tracks=places[:, None].astype(np.float32),
            scales=sigma,
            blocks=self._volume.describe(frame, scale.reach, places, sigma),
        )


def _blurred(image: np.ndarray, variance: float) -> np.ndarray:
    side = 2 * _radius(variance) + 1
    return cv2.GaussianBlur(image, (side, side), math.sqrt(variance), borderType=cv2.BORDER_REPLICATE)


def _gaussian(variance: float, radius: int) -> np.ndarray:
    """Return the 2 radius + 1 weights of a Gaussian, 0 beyond its own radius."""
    place = np.arange(-radius, radius + 1)
    weights = np.exp(-(place**2) / (2 * variance)) * (np.abs(place) <= _radius(variance))
    return (weights / weights.sum()).astype(np.float32)
