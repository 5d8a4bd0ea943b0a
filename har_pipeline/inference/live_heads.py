"""Recognition while a video is running, by a head: the features of the last seconds in a ring, and the head over them.

The ring's places are a fixed number of frames apart, so that each frame or clip goes through the net once, and the window that
they span has the very clips that `har predict` would take of a file with those frames: a decision is what that would say of
it. (With a frame rate of its own the net is shown the frames by their number and the source's rate, not by time stamps, and
later windows may begin between two of its frames.)
Where the net is too slow, clips that lost a frame are not computed; the feature before stands in their places.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, FeatureSpec, RawStream
from har_pipeline.features.fitted import source_spec
from har_pipeline.features.options import MOTION
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.inference.sources import Files, HeadSources
from har_pipeline.video.local.spec import HANDCRAFTED
from har_pipeline.video.preprocess import num_crops, parse_resize, resize_frame

# How long a window is, unless the run's clips or the user say so, s.
WINDOW_S = 4.0
# As in `video.clips.resampled_indices`, frames.
_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the clips of a running video lie: one every `step` frames from `first` on; a window holds `count` of them."""

    first: int
    step: int
    count: int
    frames: int  # of a window


def window_grid(clips: ClipSpec, frames: float | None, default: float, where: str) -> Grid:
    """Return the grid whose windows, of about `frames` frames, hold the clips that `clips` takes of so many frames.

    frames None: as many as the clips say, else `default`. where: what the message of an error begins with.
    Raises: RunError if the clips are drawn at random, or of a fixed number of frames and `frames` is given.
    """
    span = (clips.clip_len - 1) * clips.frame_interval + 1
    if clips.segment_seed is not None:
        raise RunError(f"{where}: its clips are drawn at random in each video; live recognition needs fixed places")
    if clips.sampling == "first" or (clips.num_clips == 1 and clips.sampling != "segments"):
        step = clips.clip_stride if clips.sampling == "first" else span
        count = clips.num_clips or 1
        length = (count - 1) * step + span
        if frames is not None:
            raise RunError(
                f"{where}: it reads {length} frames of a video, however long that is, and so does a window: omit --window, or "
                "extract with --sampling uniform and several clips, and train again"
            )
        return Grid(0, step, count, length)
    wanted = default if frames is None else frames
    if clips.num_clips is None:
        count = max(1, round((wanted - span) / clips.clip_stride) + 1)
        return Grid(0, clips.clip_stride, count, (count - 1) * clips.clip_stride + span)
    if clips.sampling == "segments":
        # Shorter parts than a clip would move the clips at the ends of a window.
        step = max(span, round(wanted / clips.num_clips))
        return Grid(step // 2 - span // 2, step, clips.num_clips, clips.num_clips * step)
    stride = clips.clip_stride if clips.sampling == "sparse" else 1
    step = stride * max(1, round((wanted - span) / (clips.num_clips - 1) / stride))
    return Grid(0, step, clips.num_clips, (clips.num_clips - 1) * step + span)


class HeadRecogniser:
    """Classifies the last seconds of a video whose frames arrive one after the other, in constant memory.

    run: a folder of `har train` on features of one RGB net, or the loaded run. fps: of the frames that come. window_s: seconds
    that a decision covers, as nearly as the run's clips allow; None: the frames that these always read, else 4 s.
    weights, mean_cube, device: as in `predict`.
    Raises: RunError if the run reads something else, or its clips fit no window; FeatureMismatchError if the net's weights
    cannot be found.
    """

    stream: RawStream = "rgb"
    seen_foreground = True

    def __init__(
        self,
        run: HeadRun | Path | str,
        *,
        fps: float,
        window_s: float | None = None,
        weights: Sequence[str] = (),
        mean_cube: Path | None = None,
        device: str = "auto",
    ) -> None:
        found = run if isinstance(run, HeadRun) else load_run(run)
        if not isinstance(found, HeadRun):
            raise RunError(f"{found.path} is a network on raw video, not a head: use StatefulRecogniser")
        self.run, self._spec = found, _live_spec(found)
        # Of the frames that the net is shown.
        self._rate, self._fps = self._spec.fps or fps, fps
        self.grid = window_grid(
            self._spec.clips,
            None if window_s is None else window_s * self._rate,
            WINDOW_S * self._rate,
            str(found.path),
        )
        self._fit = found.fit()
        source = self._spec if self._fit is None else source_spec(self._spec, self._fit.source_dim)
        self._dtype, self._resize = source.dtype, parse_resize(source.resize, source.resize_method)
        self._net = HeadSources([found], Files(weights, mean_cube), device).extractor(source)
        self.reset()

    @property
    def window_s(self) -> float:
        """Seconds that a decision covers."""
        return self.grid.frames / self._rate

    @property
    def window_frames(self) -> int:
        """Frames of the source that a decision covers."""
        return math.ceil(self.window_s * self._fps - _SLACK)

    @property
    def capacity(self) -> int:
        """Frames that may wait: those of one clip and of what comes until the next."""
        clips = self._spec.clips
        reach = (clips.clip_len - 1) * clips.frame_interval + 1 + self.grid.step
        return min(reach, clips.clip_len * -(-reach // self.grid.step))

    def reset(self) -> None:
        """Forget all frames, before another video."""
        self._open: dict[int, dict[int, np.ndarray]] = {}  # clip -> its frames so far, by their place
        self._ring: deque[np.ndarray] = deque(maxlen=self.grid.count)
        self._last = -1  # the latest clip of the ring
        self.windows = 0
        self.probabilities = np.full(len(self.run.classes), 1 / len(self.run.classes))

    @property
    def latest(self) -> np.ndarray:
        """(K,) float64 probabilities of the last window: the same as `probabilities`."""
        return self.probabilities

    def keep(self, number: int, frame: np.ndarray) -> np.ndarray | None:
        """Return a frame (H, W, 3) uint8 as the net sees it, None if no clip needs it. Safe in another thread."""
        return resize_frame(frame, self._resize) if self._places(number) else None

    def _places(self, number: int) -> list[tuple[int, int]]:
        """Return the (clip, place in it) that a frame of the source has; several where clips overlap."""
        clips, grid = self._spec.clips, self.grid
        found = []
        for shown in self._shown(number):
            for place in range(clips.clip_len):
                clip, rest = divmod(shown - grid.first - place * clips.frame_interval, grid.step)
                if clip >= 0 and not rest:
                    found.append((clip, place))
        return found

    def _shown(self, number: int) -> range:
        """Return the numbers that a frame of the source has among those that the net is shown, see `resampled_indices`."""
        if self._spec.fps is None:
            return range(number, number + 1)
        step = self._fps / self._spec.fps
        return range(math.ceil((number - _SLACK) / step), math.ceil((number + 1 - _SLACK) / step))

    def take(self, number: int, image: np.ndarray) -> bool:
        """Take what was kept of a frame, in order; return whether there is a new decision. Frames may be missing."""
        decided = False
        for clip, place in sorted(self._places(number)):
            frames = self._open.setdefault(clip, {})
            frames[place] = image
            if place == self._spec.clips.clip_len - 1:
                # What is left of clips before this one lost its last frame.
                self._open = {other: kept for other, kept in self._open.items() if other > clip}
                if len(frames) == self._spec.clips.clip_len:
                    self._add(clip, np.stack([frames[at] for at in range(len(frames))]))
                    decided |= self._decide()
        return decided

    def _add(self, clip: int, frames: np.ndarray) -> None:
        row = self._net(torch.from_numpy(frames[None])).cpu().numpy()[0].astype(self._dtype)
        before = self._ring[-1] if self._ring else row
        for _ in range(min(clip - self._last - 1, self.grid.count)):
            self._ring.append(before)
        self._ring.append(row)
        self._last = clip

    def _decide(self) -> bool:
        if len(self._ring) < self.grid.count:
            return False
        rows = np.stack(self._ring)
        rows = rows.reshape(-1, rows.shape[-1])  # tokens are rows of their own
        self.probabilities = predict_scores(
            self.run, rows if self._fit is None else self._fit.apply(rows, self._spec.dtype)
        )
        self.windows += 1
        return True


def _live_spec(run: HeadRun) -> FeatureSpec:
    """Return the spec of a run's features. Raises: RunError if frames that come one by one do not make them."""
    spec = run.spec
    resize = parse_resize(spec.resize) if spec.extractor not in (MOTION, *HANDCRAFTED) else None
    problem = ""
    if len(run.streams) > 1:
        problem = f"reads {len(run.streams)} streams"
    elif resize is None:
        problem = f"reads features of {spec.extractor}, which needs whole videos"
    elif spec.stream != "rgb":
        problem = f"reads {'optical flow' if spec.stream == 'flow' else spec.stream}"
    elif resize.person:
        problem = "follows people with a look ahead"
    elif num_crops(resize) > 1:
        problem = "reads means over several crops of each clip"
    elif spec.resize_method == "swscale":
        problem = "reads frames that swscale scales before they are RGB, which a camera's are"
    if problem:
        raise RunError(f"{run.path} {problem}: live recognition by a head is for one net on colour frames")
    return spec
