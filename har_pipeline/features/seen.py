"""How much of its video a feature set saw: the part from the first to the last frame read, and the share of frames read."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from har_pipeline.core.records import ClipSpec, FeatureSpec
from har_pipeline.features.options import EXTRACTOR, MOTION
from har_pipeline.video.clips import shares_seen
from har_pipeline.video.local.spec import HANDCRAFTED

# Below this share of its frames, from the first to the last one read, a video is told of.
LITTLE = 0.5
# What reads every frame, whatever the clips of its spec say.
_WHOLE = (*HANDCRAFTED, EXTRACTOR, MOTION)


@dataclass(frozen=True, slots=True)
class Seen:
    """How much of the videos of a feature set was seen, as shares of each video's frames; 0 without a video."""

    videos: int = 0
    span_mean: float = 0.0  # from the first frame read to the last one
    span_min: float = 0.0
    read_mean: float = 0.0  # frames read
    read_min: float = 0.0
    little: int = 0  # videos of which less than half is spanned

    def with_video(self, span: float, read: float) -> Seen:
        """Return this with one more video."""
        count = self.videos + 1
        return Seen(
            videos=count,
            span_mean=self.span_mean + (span - self.span_mean) / count,
            span_min=min(span, self.span_min) if self.videos else span,
            read_mean=self.read_mean + (read - self.read_mean) / count,
            read_min=min(read, self.read_min) if self.videos else read,
            little=self.little + (span < LITTLE),
        )

    def describe(self) -> str:
        """Return the shares in words, empty without a video."""
        if not self.videos:
            return ""
        span, read = with_least(self.span_mean, self.span_min), with_least(self.read_mean, self.read_min)
        return f"clips span {span} of a video and read {read} of its frames"

    def note(self, clips: ClipSpec) -> str:
        """Return what is to be said of videos that were hardly seen, empty if there is none. clips: of the feature set."""
        if not self.little:
            return ""
        few = f"the clips span less than half of {self.little:,} of {self.videos:,} videos"
        return f"{few}: {_spread(clips)} spreads the clips over the whole video"


def with_least(mean: float, least: float) -> str:
    """Return a mean share in words, with the least one where that is another: `52 % (least 3.1 %)`."""
    words, fewest = percent(mean), percent(least)
    return words if words == fewest else f"{words} (least {fewest})"


def percent(share: float) -> str:
    """Return a share as a user reads it: `100 %`, `52 %`, `3.1 %`."""
    value = 100 * share
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def seen_of_video(spec: FeatureSpec, num_frames: int, fps: float) -> tuple[float, float]:
    """Return (span, read) of a video: the share of its frames from the first to the last one read, and that of frames read.

    num_frames, fps: of the video, as in `VideoSource`.
    """
    if spec.extractor in _WHOLE or num_frames < 1:
        return 1.0, 1.0
    return _shares(num_frames, spec.clips, fps if spec.fps is not None else 0.0, spec.fps)


# Most videos of a data set have one of few lengths.
@functools.lru_cache(maxsize=4096)
def _shares(num_frames: int, clips: ClipSpec, fps: float, target_fps: float | None) -> tuple[float, float]:
    return shares_seen(num_frames, clips, fps, target_fps)


def seen_of_set(spec: FeatureSpec, lengths: Iterable[tuple[int, float]]) -> Seen:
    """Return how much of the videos of a feature set was seen. lengths: (frames, frame rate) of each."""
    seen = Seen()
    for num_frames, fps in lengths:
        seen = seen.with_video(*seen_of_video(spec, num_frames, fps))
    return seen


def little_seen(spec: FeatureSpec, num_frames: int, fps: float) -> str:
    """Return what is to be said of a video to predict of which the clips span less than half, empty otherwise."""
    span, _ = seen_of_video(spec, num_frames, fps)
    if span >= LITTLE:
        return ""
    return (
        f"{spec.extractor} sees {percent(span)} of it only, by its clips ({spec.clips.describe()}): for a run that sees all of "
        f"it, extract with {_spread(spec.clips)} and train again"
    )


def _spread(clips: ClipSpec) -> str:
    """Return the options that spread clips over a whole video; a single one does not span it, wherever it lies."""
    return f"--sampling uniform{' --num-clips 10' if clips.num_clips == 1 else ''}"
