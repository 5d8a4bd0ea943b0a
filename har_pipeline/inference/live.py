"""Recognition while a video is running; here the stateful network's decision after every window of 8 frames.

Heads, whose windows slide, are in `live_heads`; `decide_live` takes both.

A live camera does not know the future. So depth is cropped and scaled by the frames so far (`video.depth.CausalDepth`),
whereas training and testing use the whole video; `cost.measure_live_cost` measures the difference. RGB frames are prepared
one by one in either case. Source: Sanchez-Caballero 2020, section 6, names this use as the next step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from har_pipeline.core.errors import RunError, VideoError
from har_pipeline.core.records import RawStream, Scores, VideoRecord
from har_pipeline.features.frames import options_of
from har_pipeline.inference.load import NetworkRun, load_network
from har_pipeline.models.convlstm.networks import NetworkState
from har_pipeline.models.convlstm.windows import WEIGHT_POWER, stateful_indices
from har_pipeline.models.device import pick_device, pick_precision
from har_pipeline.training.networks.loop import sampling_of
from har_pipeline.video.camera import every_frame, newest_frames
from har_pipeline.video.depth import CausalDepth
from har_pipeline.video.frame_worker import scale_rgb
from har_pipeline.video.stream_worker import read_frames

# The longest video that the published training shows the network: 208 frames.
CAMERA_HORIZON = 26
# Decisions that the rate of frames is measured over.
RATED = 10


class StatefulRecogniser:
    """Classifies a video whose frames arrive one after the other, in constant memory.

    run: a folder of `har train-video` with a stateful network, or the loaded run. The decision so far is the mean of the
    windows' probabilities with weights t^3, t = 1, 2 ... (equation 1 without its constant factor T^-3). horizon: number of
    latest windows in that mean, for endless streams, where a mean over all windows would no longer move; None: all.
    device, precision: as in training. Raises: RunError if the run is of another kind, or the device is absent.
    """

    def __init__(
        self,
        run: NetworkRun | Path | str,
        *,
        horizon: int | None = None,
        device: str = "auto",
        precision: str | None = None,
    ) -> None:
        self.run = load_network(run)
        if not self.run.network.stateful:
            raise RunError(
                f"{self.run.path}: the network has no state and needs the whole video; live recognition needs a run of "
                "--model convlstm-stateful"
            )
        if horizon is not None and horizon < 1:
            raise RunError(f"the horizon must be at least 1 window, not {horizon}")
        self.horizon = horizon
        self._device = pick_device(device)
        self._bf16 = pick_precision(precision or self.run.config.precision, self._device) == "bf16"
        self._network = self.run.network.to(self._device).eval()
        self._options = options_of(self.run.spec)
        if self._options.resize_method == "swscale":
            raise RunError(
                f"{self.run.path} reads frames that swscale scales before they are RGB, which a camera's are: live recognition "
                "needs frames of another --resize-method"
            )
        self._causal = (
            CausalDepth(self._options.size, self._options.aspect) if self._options.stream == "depth" else None
        )
        self.reset()

    @property
    def window_frames(self) -> int:
        """Frames from the first to the last one of a window, those included that the network does not see."""
        return (self._network.clip_len - 1) * self.run.config.frame_step + 1

    @property
    def capacity(self) -> int:
        """Frames that may wait: those of one window."""
        return self.window_frames

    @property
    def stream(self) -> RawStream:
        """`depth` or `rgb`: the frames that `push` takes."""
        return self._options.stream

    def reset(self) -> None:
        """Forget all frames, before another video or action."""
        self._state: NetworkState | None = None
        self._waiting: list[np.ndarray] = []
        self._arrived = 0
        self.windows = 0
        self._frame_size: tuple[int, ...] | None = None
        self._foreground = False
        # Without a horizon the weighted sum is enough; with one, each window is kept until it leaves the horizon.
        self._sum = np.zeros(len(self.run.classes))
        self._recent: deque[np.ndarray] = deque(maxlen=self.horizon or 1)
        if self._causal is not None:
            self._causal.reset()

    @property
    def seen_foreground(self) -> bool:
        """Whether any window since the last `reset` had foreground; always True for RGB."""
        return self._causal is None or self._foreground

    @property
    def latest(self) -> np.ndarray:
        """(K,) float64 probabilities of the last window alone; uniform whenever `probabilities` are."""
        return self._recent[-1] if self.windows and self.seen_foreground else self._nothing

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) float64 probabilities so far, in the order of the run's classes.

        Uniform before the first window and until there is foreground. Windows without foreground then count, as in a test.
        """
        if not self.windows or not self.seen_foreground:
            return self._nothing
        if self.horizon is None:
            return self._sum / self._sum.sum()
        weights = np.arange(1, len(self._recent) + 1) ** float(WEIGHT_POWER)
        return weights @ np.stack(self._recent) / weights.sum()

    @property
    def _nothing(self) -> np.ndarray:
        return np.full(len(self.run.classes), 1 / len(self.run.classes))

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Take the next frames and return `probabilities`. A run with a `frame_step` n shows its network every n-th of them.

        frames: depth (n, H, W) uint16 mm, 0 = background, or RGB (n, H, W, 3) uint8; n may be 0. Frames that do not fill a
        window wait for the next call. Raises: RunError if shape or dtype do not fit, or the size changes without a `reset`.
        """
        dtype, ndim = (np.uint8, 4) if self._causal is None else (np.uint16, 3)
        if not isinstance(frames, np.ndarray) or frames.dtype != dtype or frames.ndim != ndim:
            wanted = "RGB frames (n, H, W, 3) uint8" if self._causal is None else "depth frames (n, H, W) uint16"
            given = f"{frames.shape} {frames.dtype}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise RunError(f"{self.run.path} reads {wanted}, not {given}")
        if self._frame_size not in (None, frames.shape[1:3]):
            raise RunError(
                f"frames of {frames.shape[1:3]} px (height, width) after frames of {self._frame_size}: reset the recogniser "
                "before another video"
            )
        self._frame_size = frames.shape[1:3]
        step = self.run.config.frame_step
        seen = slice(-self._arrived % step, None, step)
        self._arrived += len(frames)
        if self._causal is not None:
            # The crop knows every frame.
            self._waiting += list(self._causal.push(frames)[seen, ..., None])
        else:
            how = self._options.size, self._options.aspect, self._options.resize_method
            self._waiting += [scale_rgb(frame, *how) for frame in frames[seen]]
        length = self._network.clip_len
        while len(self._waiting) >= length:
            self._decide(np.stack(self._waiting[:length]))
            del self._waiting[:length]
        return self.probabilities

    def keep(self, number: int, frame: np.ndarray) -> np.ndarray | None:
        """Return the frame: each counts."""
        return frame

    def take(self, number: int, image: np.ndarray) -> bool:
        """Take a single frame; return whether it ended a window."""
        before = self.windows
        self.push(image[None])
        return self.windows > before

    def _decide(self, window: np.ndarray) -> None:
        """Update the state with a window (T, S, S, C) uint8."""
        clips = torch.from_numpy(window).to(self._device).movedim(-1, 1)[None].to(torch.float32).div_(255)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits, self._state = self._network(clips, self._state)
        found = logits.double().softmax(1)[0].cpu().numpy()
        self.windows += 1
        self._foreground |= bool(window.any())
        self._recent.append(found)
        self._sum += found * float(self.windows) ** WEIGHT_POWER


class Recogniser(Protocol):
    """What decides while a video is running: `StatefulRecogniser`, `live_heads.HeadRecogniser`."""

    @property
    def capacity(self) -> int:
        """Frames that may wait to be taken before the oldest is dropped."""

    @property
    def probabilities(self) -> np.ndarray:
        """(K,) float64, of what was seen so far, or of the last window."""

    @property
    def latest(self) -> np.ndarray:
        """(K,) float64, of the last window alone."""

    @property
    def seen_foreground(self) -> bool:
        """Whether the probabilities name a class."""

    def keep(self, number: int, frame: np.ndarray) -> np.ndarray | None:
        """Return what is needed of a frame, None if nothing is; called in the thread that reads frames."""

    def take(self, number: int, image: np.ndarray) -> bool:
        """Take what was kept; return whether there is a new decision."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision after a window."""

    frames: int  # of the source so far
    probabilities: np.ndarray  # (K,) float64, of all windows so far; of a head the last one's
    latest: np.ndarray  # (K,) float64, of the last window alone
    seen_foreground: bool  # without foreground the probabilities are uniform and name no class
    latency_s: float  # from the arrival of the last frame to the decision
    frames_per_s: float  # of the source, over the last decisions
    dropped: int  # frames so far that were needed and came too fast


def decide_live(recogniser: Recogniser, frames: Iterator[np.ndarray], *, drop: bool = False) -> Iterator[Decision]:
    """Yield the decision after each window of a stream of single frames, (H, W) uint16 or (H, W, 3) uint8.

    drop: do not let the source wait, as with a camera: frames that come faster than they can be taken are dropped, the oldest
    first, rather than that decisions fall behind.
    """
    keep = recogniser.keep
    came = newest_frames(frames, keep, recogniser.capacity) if drop else every_frame(frames, keep)
    clock = deque([(time.perf_counter(), 0)], maxlen=RATED + 1)
    with closing(came):
        for one in came:
            if recogniser.take(one.number, one.image):
                now, seen = time.perf_counter(), one.number + 1
                since, before = clock[0]
                clock.append((now, seen))
                yield Decision(
                    frames=seen,
                    probabilities=recogniser.probabilities,
                    latest=recogniser.latest,
                    seen_foreground=recogniser.seen_foreground,
                    latency_s=now - one.came_s,
                    frames_per_s=(seen - before) / max(now - since, 1e-9),
                    dropped=one.dropped,
                )


def file_of(record: VideoRecord, stream: RawStream) -> Path:
    """Return the record's file of a stream. Raises: VideoError if there is none."""
    path = record.depth_path if stream == "depth" else record.path
    if path is None:
        raise VideoError(f"its row names no file of the stream {stream}")
    return path


def live_scores(
    run_dir: Path | str,
    records: Sequence[VideoRecord],
    *,
    part: str = "test",
    device: str = "auto",
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Scores, dict[str, str]]:
    """Return the scores of a run's videos by live decisions, and video_id -> reason for those that failed.

    Frames, windows and weights are those of the run's own scores, but frames are cropped and scaled by what was seen so far.
    A video without foreground fails, as in `har frames`.
    Raises: RunError if the network is not stateful, a video is not among the records, or all fail.
    """
    recogniser = StatefulRecogniser(run_dir, device=device)
    run = recogniser.run
    run.require_part(part)
    ids = {"val": run.split.val, "test": run.split.test}[part]
    by_id = {record.video_id: record for record in records}
    if absent := [video_id for video_id in ids if video_id not in by_id]:
        raise RunError(f"{len(absent)} {part} videos of {run.path} are not in the manifest: {', '.join(absent[:5])}")
    kept, rows, failed = [], [], {}
    for done, video_id in enumerate(ids, start=1):
        try:
            rows.append(_whole_video(recogniser, by_id[video_id]))
            kept.append(video_id)
        except VideoError as error:
            failed[video_id] = str(error)
        on_video(done, len(ids))
    if not kept:
        raise RunError(
            f"none of the {len(ids)} {part} videos could be read; the first: {next(iter(failed.values()), '')}"
        )
    scores = Scores(
        video_ids=tuple(kept),
        labels=tuple(by_id[video_id].label for video_id in kept),
        classes=run.classes,
        probabilities=np.stack(rows),
        part=(part,) * len(kept),
        fold=(run.split.index,) * len(kept),
        seed=(run.config.seed,) * len(kept),
    )
    return scores, failed


def _whole_video(recogniser: StatefulRecogniser, record: VideoRecord) -> np.ndarray:
    path = file_of(record, recogniser.stream)
    read = list(read_frames(path, recogniser.stream, record))
    if len({frame.shape for frame in read}) > 1:
        raise VideoError(f"{path}: the frame size changes, which live recognition does not allow")
    frames = np.stack(read)
    recogniser.reset()
    sampling = sampling_of(recogniser.run.config)
    windows = stateful_indices(len(frames), recogniser.run.network.clip_len, whole=sampling.whole, step=sampling.step)
    # Every frame up to the last one of the windows; a video that is too short for a window is played backwards too.
    seen = windows.flatten()
    forwards = bool((np.diff(seen) == sampling.step).all())
    probabilities = recogniser.push(frames[: seen[-1] + 1] if forwards else frames[np.repeat(seen, sampling.step)])
    if not recogniser.seen_foreground:
        raise VideoError(f"{path}: no window has any foreground: all depth values are 0")
    return probabilities
