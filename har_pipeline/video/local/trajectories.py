"""Improved dense trajectories: points on a grid followed through 15 frames, with what is around them.

Sources: Wang, Klaeser, Schmid, Liu, "Dense Trajectories and Motion Boundary Descriptors for Action Recognition", IJCV 2013;
Wang, Schmid, "Action Recognition with Improved Trajectories", ICCV 2013. Thresholds are theirs and their public code's.
What is another way here:

- Flow is OpenCV's DIS (Kroeger 2016) down to single px, not Farneback's: in the same time it has a smaller error on rendered
  people, whose flow is exact, on their limbs and around them (benchmarks/trajectories.py).
- Matches for the camera's motion are corners that follow the flow, as theirs, but evenly spread. Features of a second
  kind (theirs are SURF's, which is not free) add nothing to these up to 20 px/frame: ORB and SIFT were tried.
- The flow without the camera's motion is not computed from a warped frame, which would double the time of the flow: it is the
  same flow, whose end is moved back by the homography. On a textured wall that a camera pans over by up to 20 px/frame it
  is off by 0.04 px instead of 0.02, and by as much on what moves before the wall.
- There is no human detector, so a person who fills most of the frame can be taken for the background.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from har_pipeline.video.local.histograms import gradients, oriented, root_normalised, square_sums
from har_pipeline.video.local.motion import STILL_PX, flow_between, flow_method
from har_pipeline.video.local.points import Points, joined, no_points
from har_pipeline.video.local.spec import HANDCRAFTED

STEPS = 15
GRID_PX = 5
SCALE = 2**0.5
MAX_SCALES = 8
# Smaller eigenvalue of the structure tensor, of the frame's largest: points where nothing can be followed are left out.
CORNER_SHARE = 0.001

# A volume around the track: px of its scale, cells along x and y, and along time.
VOLUME_PX = 32
CELLS = 2
CELL_PX = VOLUME_PX // CELLS
CELLS_IN_TIME = 3
CELLS_OF_VOLUME = CELLS_IN_TIME * CELLS**2
STEPS_OF_CELL = STEPS // CELLS_IN_TIME
GRADIENT_BINS = 8
# Added to the mean of each cell's bin: grey levels, px/frame, and px/frame per px. Theirs.
HOG_FLOOR = 0.05 / CELL_PX**2
HOF_FLOOR = 0.05 / CELL_PX**2
MBH_FLOOR = 0.0005 / CELL_PX**2

# A track in px of the frame: one that spreads less than this along x and along y stands still, ...
MIN_SPREAD_PX = 3**0.5
# ... one that spreads more has slipped, and so has one that jumps: a step of so many px, and of this share of its length.
MAX_SPREAD_PX = 50.0
MAX_STEP_PX = 20.0
MAX_STEP_SHARE = 0.7
# Steps up to this, after the camera's motion was removed, are what its estimate left, px.
CAMERA_STEP_PX = 1.0

# Matches for the camera's motion: theirs, but the corners' cells.
CORNER_CELL_PX = 10
RANSAC_PX = 1.0
MIN_MATCHES = 50
MIN_INLIERS = 25


def dense_trajectories(frames: Iterable[np.ndarray], *, compensate: bool = True) -> Iterator[Points]:
    """Yield the trajectories of one video with their descriptors, those that end in the same frame together.

    frames: (H, W, 3) uint8 RGB of one size, in order. compensate: remove the camera's motion.
    Tracks have 16 places. Scales are the width of the described square in px of the frames: 32, times the square root of 2
    for each further scale, as many as 8, as long as the square fits into the frame. Blocks:

    - `trajectory` (n, 30): the 15 steps (x, y) without the camera's motion, over the sum of their lengths;
    - `hog` (n, 96), `hof` (n, 108), `mbh` (n, 192, along x and then along y): histograms of 3 cells in time of 2 x 2 cells,
      of 8 directions (HOF: and no motion). L1 normalised, then square rooted, MBH each half by itself.

    Yields at least once: `Points` of length 0 if there are none, as in a still video or one of less than 16 frames. They come
    14 frames late. Memory does not grow with the number of frames: it is that of some 300 frames, tracks under way included.
    Raises: ValueError if a frame has another size or type.
    """
    found = _found(frames, compensate)
    yield next(found, _none())
    yield from found


def _none() -> Points:
    return no_points(STEPS + 1, HANDCRAFTED["idt"].blocks)


def _found(frames: Iterable[np.ndarray], compensate: bool) -> Iterator[Points]:
    method = flow_method()
    before: np.ndarray | None = None
    scales: list[_Scale] = []
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}, not uint8 (H, W, 3)")
        if before is not None and frame.shape[:2] != before.shape:
            raise ValueError(f"frame {number} has {frame.shape[:2]} px, those before have {before.shape}")
        now = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        if before is None:
            height, width = now.shape
            scales = _scales(height, width, CAMERA_STEP_PX if compensate else 0.0)
        else:
            flow = flow_between(method, before, now)
            own = without_camera(flow, camera_motion(before, flow)) if compensate else flow
            yield from _joined([scale.step(before, flow, own) for scale in scales])
        before = now
    for _ in range(STEPS - 1):
        yield from _joined([scale.described.next() for scale in scales])


def _joined(parts: list[Points]) -> Iterator[Points]:
    """Yield what there is in the parts, if anything, as one."""
    if found := [part for part in parts if len(part)]:
        yield joined(found)


def camera_motion(before: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the homography (3, 3) float64 from px of `before` to px of the next frame that most of the frame follows.

    before: (H, W) uint8; flow: (H, W, 2) float32, px/frame. Where too few corners agree, or what they agree on is no
    camera's motion, the identity.
    """
    starts = _corners(before)
    if len(starts) < MIN_MATCHES:
        return np.eye(3)
    x, y = starts.astype(np.intp).T
    homography, inliers = cv2.findHomography(starts, starts + flow[y, x], cv2.RANSAC, RANSAC_PX)
    if homography is None or inliers.sum() < MIN_INLIERS:
        return np.eye(3)
    height, width = before.shape
    edges = np.array([[[0, 0], [width, 0], [0, height], [width, height]]], np.float64)
    moved = np.linalg.norm(cv2.perspectiveTransform(edges, homography) - edges, axis=-1)
    # With corners that move less than this the frame keeps its shape, so the homography has an inverse all over it.
    return homography if (moved < min(height, width) / 4).all() else np.eye(3)


def _corners(grey: np.ndarray) -> np.ndarray:
    """Return the best corner of each cell of 10 px that has one, (n, 2) float32, x and y in px.

    The best corners of the whole frame would be those of what has most contrast, often the person's clothes. One a cell
    votes for its area.
    """
    rows, columns = (size // CORNER_CELL_PX for size in grey.shape)
    if not rows or not columns:
        return np.empty((0, 2), np.float32)
    strength = cv2.cornerMinEigenVal(grey, 3, ksize=3)
    cells = strength[: rows * CORNER_CELL_PX, : columns * CORNER_CELL_PX]
    cells = cells.reshape(rows, CORNER_CELL_PX, columns, CORNER_CELL_PX).swapaxes(1, 2).reshape(rows, columns, -1)
    row, column = np.nonzero(cells.max(axis=2) > CORNER_SHARE * strength.max())
    y, x = np.divmod(cells.argmax(axis=2)[row, column], CORNER_CELL_PX)
    return np.stack([column * CORNER_CELL_PX + x, row * CORNER_CELL_PX + y], axis=1).astype(np.float32)


def without_camera(flow: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Return the flow (H, W, 2) float32 less the camera's motion: its ends moved back by the homography `camera` (3, 3)."""
    height, width = flow.shape[:2]
    starts = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)
    return cv2.perspectiveTransform(flow + starts, np.linalg.inv(camera)) - starts


def _scales(height: int, width: int, min_step_px: float) -> list[_Scale]:
    """Return the scales of frames of this size; the first always, the others where a whole volume fits."""
    sizes = [(round(height / SCALE**n), round(width / SCALE**n)) for n in range(MAX_SCALES)]
    return [
        _Scale(h, w, _Descriptors(h, w, (width, height), VOLUME_PX * SCALE**n, min_step_px))
        for n, (h, w) in enumerate(sizes)
        if not n or min(h, w) >= VOLUME_PX
    ]


@dataclass
class _Scale:
    """The n tracks under way in one scale of the frames."""

    height: int
    width: int
    described: _Descriptors
    # (n,), steps done
    ages: np.ndarray = field(default_factory=lambda: np.empty(0, np.intp))
    # (n, 16, 2), px of this scale
    places: np.ndarray = field(default_factory=lambda: np.empty((0, STEPS + 1, 2), np.float32))
    # (n, 15, 2), px of this scale, without the camera's motion
    steps: np.ndarray = field(default_factory=lambda: np.empty((0, STEPS, 2), np.float32))

    def step(self, grey: np.ndarray, flow: np.ndarray, own: np.ndarray) -> Points:
        """Start tracks in a frame, follow all into the next, and return those whose descriptors have become complete.

        grey: (H, W) uint8; flow: (H, W, 2) float32, px/frame; own: the same without the camera's motion.
        """
        grey = cv2.resize(grey, (self.width, self.height), interpolation=cv2.INTER_AREA)
        flow, own = self._resized(flow), self._resized(own)
        self._start(grey)
        self._follow(flow, own)
        done = self.ages == STEPS
        points = self.described.push(grey, own, self.places[done], self.steps[done])
        self._keep(~done)
        return points

    def _resized(self, flow: np.ndarray) -> np.ndarray:
        ratio = np.array([self.width / flow.shape[1], self.height / flow.shape[0]], np.float32)
        return cv2.resize(flow, (self.width, self.height), interpolation=cv2.INTER_AREA) * ratio

    def _start(self, grey: np.ndarray) -> None:
        """Add a track in each cell of the grid that has none and shows something that can be followed."""
        rows, columns = self.height // GRID_PX, self.width // GRID_PX
        if not rows or not columns:
            return
        corner = cv2.cornerMinEigenVal(grey, 3, ksize=3)
        centres = corner[GRID_PX // 2 :: GRID_PX, GRID_PX // 2 :: GRID_PX][:rows, :columns]
        free = centres > CORNER_SHARE * corner.max()
        x, y = (self._now() // GRID_PX).astype(np.intp).T
        within = (x < columns) & (y < rows)
        free[y[within], x[within]] = False
        y, x = np.nonzero(free)
        places = np.zeros((len(x), STEPS + 1, 2), np.float32)
        places[:, 0] = np.stack([x, y], axis=1) * GRID_PX + GRID_PX // 2
        self.ages = np.concatenate([self.ages, np.zeros(len(x), np.intp)])
        self.places = np.concatenate([self.places, places])
        self.steps = np.concatenate([self.steps, np.zeros((len(x), STEPS, 2), np.float32)])

    def _now(self) -> np.ndarray:
        """Return where the tracks are, (n, 2) float32."""
        return self.places[np.arange(len(self.ages)), self.ages]

    def _follow(self, flow: np.ndarray, own: np.ndarray) -> None:
        """Move each track by the median flow around it; drop those that leave the frame."""
        place = self._now()
        x, y = np.rint(place).astype(np.intp).T
        flow, own = (cv2.merge([cv2.medianBlur(part, 3) for part in cv2.split(field)]) for field in (flow, own))
        tracks = np.arange(len(self.ages))
        place = place + flow[y, x]
        self.steps[tracks, self.ages] = own[y, x]
        self.ages += 1
        self.places[tracks, self.ages] = place
        self._keep(((place >= 0) & (place <= (self.width - 1, self.height - 1))).all(axis=1))

    def _keep(self, chosen: np.ndarray) -> None:
        self.ages, self.places, self.steps = self.ages[chosen], self.places[chosen], self.steps[chosen]


# Names of the histograms, with their directions.
_BINS = {"hog": GRADIENT_BINS, "hof": GRADIENT_BINS + 1, "mbh_x": GRADIENT_BINS, "mbh_y": GRADIENT_BINS}


@dataclass
class _Descriptors:
    """The m tracks of one scale that are done and show motion, while what is around them is counted.

    A frame is counted 14 frames late. Then all tracks through it are done, and it is known which of them show motion: few of
    a video whose camera stands, and only where these are something has to be counted.
    """

    height: int
    width: int
    # Width and height of the frames, px.
    frame_size: tuple[int, int]
    volume_px: float
    # Tracks whose longest step without the camera's motion is not longer are dropped, px of the frames.
    min_step_px: float
    # Grey levels and own motion of the frames that are still to be counted, and the number of the first of them.
    waiting: deque[tuple[np.ndarray, np.ndarray]] = field(default_factory=deque)
    number: int = 0
    # (m,), number of the first frame
    firsts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    # As those of `_Scale`.
    places: np.ndarray = field(default_factory=lambda: np.empty((0, STEPS + 1, 2), np.float32))
    steps: np.ndarray = field(default_factory=lambda: np.empty((0, STEPS, 2), np.float32))
    # name -> (m, cells in time, cells, bins)
    sums: dict[str, np.ndarray] = field(default_factory=lambda: _no_sums(0))

    def push(self, grey: np.ndarray, own: np.ndarray, places: np.ndarray, steps: np.ndarray) -> Points:
        """Take a frame and the tracks whose last step began in it; return the points that become complete."""
        self.waiting.append((grey, own))
        moves = _moves(self._in_frame(places))
        moves &= np.linalg.norm(steps * self._ratio(), axis=2).max(axis=1, initial=0) > self.min_step_px
        added = int(np.count_nonzero(moves))
        self.firsts = np.concatenate([self.firsts, np.full(added, self.number, np.int64)])
        self.places = np.concatenate([self.places, places[moves]])
        self.steps = np.concatenate([self.steps, steps[moves]])
        self.sums = {name: np.concatenate([self.sums[name], new]) for name, new in _no_sums(added).items()}
        return self.next() if len(self.waiting) == STEPS else _none()

    def next(self) -> Points:
        """Count the next frame, if one waits, and return the points for which it was the last."""
        if not self.waiting:
            return _none()
        grey, own = self.waiting.popleft()
        if len(self.firsts):
            self._count(grey, own)
        complete = self.firsts == self.number - (STEPS - 1)
        self.number += 1
        if not complete.any():
            return _none()
        points = self._points(complete)
        self.firsts, self.places, self.steps = self.firsts[~complete], self.places[~complete], self.steps[~complete]
        self.sums = {name: sums[~complete] for name, sums in self.sums.items()}
        return points

    def _count(self, grey: np.ndarray, own: np.ndarray) -> None:
        """Add what a frame shows in the cells around each track to its sums."""
        tracks, ages = np.arange(len(self.firsts)), self.number - self.firsts
        x, y = (np.rint(self.places[tracks, ages]).astype(np.intp) - VOLUME_PX // 2).T
        # A volume that would reach beyond the frame is moved inside; a frame smaller than it is continued by nothing.
        x = np.clip(x, 0, max(self.width - VOLUME_PX, 0))
        y = np.clip(y, 0, max(self.height - VOLUME_PX, 0))
        # The part of the frame with all volumes and one px around it, whose gradients are not used.
        left, top = max(x.min() - 1, 0), max(y.min() - 1, 0)
        part = np.s_[top : y.max() + VOLUME_PX + 1, left : x.max() + VOLUME_PX + 1]
        grey, own_x, own_y = (
            grey[part],
            np.ascontiguousarray(own[part][..., 0]),
            np.ascontiguousarray(own[part][..., 1]),
        )
        planes = {
            "hog": oriented(*gradients(grey), GRADIENT_BINS),
            "hof": oriented(own_x, own_y, GRADIENT_BINS, still=STILL_PX),
            "mbh_x": oriented(*gradients(own_x), GRADIENT_BINS),
            "mbh_y": oriented(*gradients(own_y), GRADIENT_BINS),
        }
        missing = ((0, 0), *((0, max(VOLUME_PX - size, 0)) for size in grey.shape))
        row, column = np.divmod(np.arange(CELLS**2), CELLS)
        y, x = y[:, None] - top + row * CELL_PX, x[:, None] - left + column * CELL_PX
        for name, of_px in planes.items():
            of_cells = square_sums(np.pad(of_px, missing) if np.any(missing) else of_px, CELL_PX)
            at = y * of_cells.shape[1] + x
            self.sums[name][tracks, ages // STEPS_OF_CELL] += of_cells.reshape(-1, of_cells.shape[2]).take(at, axis=0)

    def _points(self, chosen: np.ndarray) -> Points:
        steps, firsts = self.steps[chosen], self.firsts[chosen]
        means = {
            name: sums[chosen].reshape(len(firsts), -1) / np.float32(STEPS_OF_CELL * CELL_PX**2)
            for name, sums in self.sums.items()
        }
        steps = steps * self._ratio()
        mbh = [root_normalised(means[name], MBH_FLOOR) for name in ("mbh_x", "mbh_y")]
        return Points(
            first=firsts,
            end=firsts + STEPS + 1,
            tracks=self._in_frame(self.places[chosen]),
            scales=np.full(len(firsts), self.volume_px, np.float32),
            blocks={
                "trajectory": (steps / np.linalg.norm(steps, axis=2).sum(axis=1)[:, None, None]).reshape(-1, 2 * STEPS),
                "hog": root_normalised(means["hog"], HOG_FLOOR),
                "hof": root_normalised(means["hof"], HOF_FLOOR),
                "mbh": np.concatenate(mbh, axis=1),
            },
        )

    def _ratio(self) -> np.ndarray:
        """Return the px of the frames for one of this scale, (2,) float32, x and y."""
        return np.array(self.frame_size, np.float32) / np.array([self.width, self.height], np.float32)

    def _in_frame(self, places: np.ndarray) -> np.ndarray:
        return (places + np.float32(0.5)) * self._ratio() - np.float32(0.5)


def _no_sums(tracks: int) -> dict[str, np.ndarray]:
    return {name: np.zeros((tracks, CELLS_IN_TIME, CELLS**2, bins), np.float32) for name, bins in _BINS.items()}


def _moves(tracks: np.ndarray) -> np.ndarray:
    """Return which tracks (n, 16, 2), px of the frame, neither stand still nor slip: (n,) bool."""
    spread = tracks.std(axis=1).max(axis=1)
    lengths = np.linalg.norm(np.diff(tracks, axis=1), axis=2)
    longest = lengths.max(axis=1)
    jumps = (longest > MAX_STEP_PX) & (longest > MAX_STEP_SHARE * lengths.sum(axis=1))
    return (spread >= MIN_SPREAD_PX) & (spread <= MAX_SPREAD_PX) & ~jumps
