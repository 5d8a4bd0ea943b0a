"""Options for extracting features and preparing raw frames; imports nothing heavy, so that the CLI can read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from har_pipeline.core.errors import ExtractionError, UsageError
from har_pipeline.core.options import check_options, option
from har_pipeline.core.records import (
    MAX_FRAMES,
    MEMORY_LIMIT_GB,
    TIME_LIMIT_S,
    Aspect,
    ClipSpec,
    Decoder,
    Encoding,
    FeatureSpec,
    FeatureType,
    RawStream,
    ResizeMethod,
)
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.local.spec import HANDCRAFTED, layer_blocks

EXTRACTOR, MOTION = "raw_frames", "motion_maps"

# Part of the feature spec, and so of the names of feature sets: never reworded.
_PREPROCESS = {
    "depth": "box of the movement, nearest px, 1st to 99th percentile of the video's foreground to 255..51, background 0",
    "causal depth": "box of the last 300 frames' movement, nearest px, 1st to 99th percentile of their foreground to 255..51, "
    "background 0",
    "rgb": "whole frame, mean over px where it shrinks, bilinear where it grows",
    "person": "grey window that follows the person by movement and what stands out from its row, stays without movement",
    "pair": "whole frame, grey, its aspect kept, in the middle of its own repeated edges",
}
Window = Literal["person", "pair"]
# Resize modes. person: Baccouche 2011, where KTH's 160x120 px down-sampled by 2 have a short side of 60 px. pair: for videos
# that are cut to two people, lying.
WINDOWS: dict[Window, str] = {"person": "short60-person34x54", "pair": "fit-54x34"}


NAME = "Name for the feature set, by which `--features` finds it: letters, digits, dots, hyphens, underscores."
RESIZE_METHOD = (
    "What scales frames of RGB. area: OpenCV's mean over what a pixel covers; bilinear, bicubic: Pillow's, as the transforms "
    "of torchvision and timm scale images; swscale: FFmpeg's in the pass that converts to RGB, several times as fast on large "
    "frames. Pixels differ by one or two levels on average."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a job goes over the videos of a manifest; changes no number. Raises: ExtractionError if a value is out of range."""

    # (k, n): do the k-th of n parts only, k from 1.
    shard: tuple[int, int] = (1, 1)
    name: str | None = option(None, NAME)
    workers: int | None = option(
        None,
        "Worker processes, of about 150 MB each. Default: one for each core; one for four beside a net on the CPU, which more "
        "only slow down; all cores but one beside a GPU.",
        min=1,
        panel="Workers and limits",
    )
    time_limit_s: float = option(
        TIME_LIMIT_S,
        "Time limit for reading one video, in seconds; inf: none.",
        min=0.001,
        name="time_limit",
        panel="Workers and limits",
    )
    memory_limit_gb: float = option(
        MEMORY_LIMIT_GB,
        "Memory limit of one worker process, in GB (on Linux); a video that needs more fails. inf: none.",
        min=0.5,
        name="memory_limit",
        panel="Workers and limits",
    )
    max_frames: int = option(
        MAX_FRAMES,
        "Most frames that one video may have, also at --fps; a longer one fails.",
        min=1,
        panel="Workers and limits",
    )
    retry_failed: bool = option(False, "Try videos again that failed before.")
    replace_changed: bool = option(False, "Make again what comes from a file that has changed since.")

    def __post_init__(self) -> None:
        check_options(self, ExtractionError)
        k, n = self.shard
        if not 1 <= k <= n:
            raise ExtractionError(f"shard {k}/{n}: give k/n with 1 <= k <= n")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Where the work of a job is done; changes no number. Raises: UsageError if options do not go together."""

    engine: Literal["local", "ray"] = option(
        "local",
        "local: this machine. ray: workers of a Ray cluster, or of this machine alone without --ray-address.",
        panel="Several machines",
    )
    ray_address: str | None = option(
        None,
        "Ray cluster to use: auto (the one that runs on this machine) or HOST:PORT. Default: RAY_ADDRESS.",
        panel="Several machines",
    )
    ray_workers: int | None = option(
        None, "Ray workers. Default: one for each GPU; without GPUs, one a node.", min=1, panel="Several machines"
    )
    ray_gpus: float | None = option(
        None,
        "GPUs of each Ray worker; 0.5: two workers share one. Default: 1 where the cluster has GPUs.",
        min=0,
        panel="Several machines",
    )

    def __post_init__(self) -> None:
        check_options(self, UsageError)
        given = [name for name in ("ray_address", "ray_workers", "ray_gpus") if getattr(self, name) is not None]
        if given and self.engine != "ray":
            raise UsageError(f"{given[0]} belongs to engine ray")
        if self.ray_gpus is not None and self.ray_gpus > 1 and self.ray_gpus % 1:
            raise UsageError("ray_gpus must be a whole number above 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions(JobOptions):
    """How to extract. What changes the numbers goes into the feature spec; the rest only changes the speed.

    Raises: ExtractionError if a value is out of range.
    """

    # None: the net's own.
    clips: ClipSpec | None = None
    # How flow is computed, for extractors that read it.
    flow: FlowSpec | None = None
    fps: float | None = option(
        None, "Frame rate to resample to, by frame number. Default: the video's own.", above=0, panel="Clips of a video"
    )
    resize: str | None = option(
        None,
        "How frames are resized and cropped, such as stretch-224, short256-center224 or stretch-340x256-ten224. "
        "Default: the net's own.",
        panel="Frames",
    )
    flow_cache: Path | None = option(
        None, "Folder that keeps computed flow for other nets and later jobs.", panel="Optical flow"
    )
    batch_size: int | None = option(None, "Clips per batch. Default: by device.", min=1, panel="Workers and limits")
    resize_method: ResizeMethod | None = option(
        None, f"{RESIZE_METHOD} Default: area; of timm: and hf: nets, what they were trained with.", panel="Frames"
    )
    decoder: Decoder = option(
        "auto",
        "Video decoder. auto: PyAV. For comparison: decord, torchcodec. On an NVIDIA GPU: nvdec. These make feature sets of "
        "their own, and leave files that they get wrong to PyAV.",
        panel="Frames",
    )
    dtype: FeatureType = option("float16", "Type of the stored features.")

    def __post_init__(self) -> None:
        JobOptions.__post_init__(self)
        if self.resize_method == "swscale" and self.decoder not in ("auto", "pyav"):
            raise ExtractionError(f"resize_method=swscale takes frames of PyAV, not of {self.decoder}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawOptions(JobOptions):
    """How raw frames are prepared, and how fast. Raises: ExtractionError if a value is out of range."""

    stream: RawStream = option("depth", "Files to read: depth = depth_path in the manifest, rgb = path.")
    size: int = option(64, "Width and height of the frames, in pixels.", min=8, max=1024)
    aspect: Aspect = option("stretch", "stretch: to a square (as published); keep: keep the aspect ratio, pad with 0.")
    # Depth as a live recogniser sees it, by `depth.CausalDepth`.
    causal: bool = option(False, "Crop depth by the past frames only, as live recognition has to.")
    # See `video.person`.
    window: Window | None = option(
        None,
        "rgb: small grey frames, whatever --size and --aspect say. person: 34x54 px that follow the movement, of frames with a "
        "short side of 60 px (Baccouche 2011); pair: the whole frame, of a video that is cut to two people, within 54x34 px.",
    )
    resize_method: ResizeMethod = option("area", RESIZE_METHOD)
    # Sets the times of frames and changes no pixel. Default: Kinect's.
    fps: float = option(30.0, "Frame rate of depth folders and .mat files, which do not state theirs.", min=0.1)

    def __post_init__(self) -> None:
        JobOptions.__post_init__(self)
        if self.causal and self.stream != "depth":
            raise ExtractionError(f"causal is for depth: {self.stream} frames are not cropped")
        if self.window and self.stream != "rgb":
            raise ExtractionError("window is for rgb: depth is cropped to the movement")
        if self.resize_method != "area" and (self.stream != "rgb" or self.window):
            raise ExtractionError(f"resize_method={self.resize_method} is for stream=rgb, without a window")
        if self.resize_method == "swscale" and self.aspect != "stretch":
            raise ExtractionError("resize_method=swscale is for aspect=stretch")

    @property
    def channels(self) -> int:
        """C."""
        return 1 if self.stream == "depth" or self.window else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame."""
        if self.window is None:
            return self.channels, self.size, self.size
        height, width = {"person": (54, 34), "pair": (34, 54)}[self.window]
        return self.channels, height, width

    def spec(self) -> FeatureSpec:
        """Return the spec of the feature set that these options make."""
        crop = "" if self.stream == "rgb" else "causal-box-" if self.causal else "box-"
        how = self.window or ("causal depth" if self.causal else self.stream)
        return FeatureSpec(
            extractor=EXTRACTOR,
            weights="none",
            layer="pixels",
            feature_dim=math.prod(self.shape),
            stream=self.stream,
            clips=ClipSpec(sampling="dense", num_clips=None),
            resize=WINDOWS[self.window] if self.window else f"{crop}{self.aspect}-{self.size}",
            resize_method=self.resize_method,
            preprocess=_PREPROCESS[how],
            precision="exact",
            dtype="uint8",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions(JobOptions):
    """How the handcrafted extractors describe videos. Raises: ExtractionError if a value is out of range or unknown."""

    extractor: str = "idt"
    # Descriptors joined by +; empty: the extractor's own.
    layer: str = ""
    short_side: int = option(
        240,
        "harris3d_hof, idt: scale frames down to this shorter side, in pixels; smaller ones stay.",
        min=16,
        max=4320,
        panel="Handcrafted extractors",
    )
    max_points: int = option(
        10_000,
        "harris3d_hof, idt: most descriptors kept of a video; of more, a uniform sample.",
        min=1,
        max=1_000_000,
        panel="Handcrafted extractors",
    )
    dtype: FeatureType = "float16"

    def __post_init__(self) -> None:
        JobOptions.__post_init__(self)
        layer_blocks(self.extractor, self.layer_name)  # raises, if there is no such layer

    @property
    def layer_name(self) -> str:
        """The descriptors joined by +."""
        return "+".join(layer_blocks(self.extractor, self.layer or HANDCRAFTED[self.extractor].default_layer))

    def spec(self) -> FeatureSpec:
        """Return the spec of the feature set that these options make."""
        return FeatureSpec(
            extractor=self.extractor,
            weights="none",
            layer=self.layer_name,
            feature_dim=sum(layer_blocks(self.extractor, self.layer_name).values()),
            clips=ClipSpec(sampling="dense", num_clips=None),
            resize=f"within-{self.short_side}",
            preprocess=f"{HANDCRAFTED[self.extractor].method};at most {self.max_points} rows",
            dtype=self.dtype,
        )


def describe_handcrafted() -> list[dict[str, Any]]:
    """Return one row for each handcrafted extractor: what `har models` prints and docs/extractors.md shows."""
    return [
        {
            "extractor": one.name,
            "stream": "rgb",
            "finds": one.finds,
            "resize": LocalOptions(extractor=one.name).spec().resize,
            "layers": dict(one.blocks),
            "default_layer": one.default_layer,
            "preprocess": one.method,
            "source": one.source,
        }
        for one in HANDCRAFTED.values()
    ]


def made_by(spec: FeatureSpec) -> str:
    """Return the command that makes features of a spec."""
    if spec.fit is not None:
        return "har features reduce" if spec.reduction else "har features encode"
    if spec.extractor in HANDCRAFTED:
        return f"har extract --extractor {spec.extractor} --layer {spec.layer}"
    return {EXTRACTOR: "har frames", MOTION: "har features motion"}.get(spec.extractor, "har extract")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How all rows of a video become one. Raises: ExtractionError if a value is out of range."""

    encoding: Encoding = option(
        "fisher",
        "fisher: Fisher vector, of a mixture of Gaussians on PCA (Wang and Schmid 2013); words: a histogram of the nearest "
        "words, its root.",
    )
    gaussians: int = option(256, "fisher: Gaussians of each block of columns (HOG, HOF ...).", min=1)
    components: int | None = option(
        None, "fisher: most principal components of a block. Default: half of its values.", min=1
    )
    words: int = option(4000, "words: words of each block of columns.", min=1)
    sample: int = option(
        256_000, "Most rows to fit on, an equal share of each training video, drawn with --seed.", min=1
    )
    seed: int = 0
    allow_missing: bool = option(False, "Leave out videos that have no features, or no frames.")
    name: str | None = option(None, NAME)

    def __post_init__(self) -> None:
        check_options(self, ExtractionError)

    def unread(self) -> tuple[str, ...]:
        """Return the options that the encoding does not read."""
        return ("words",) if self.encoding == "fisher" else ("gaussians", "components")


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionOptions:
    """How motion maps are made of raw frames. Raises: ExtractionError if a value is out of range."""

    size: int = option(32, "Width and height of a map, in pixels.", min=1, max=1024)
    parts: int = option(3, "Equal parts of the video, a map for each.", min=1, max=100)
    name: str | None = option(None, NAME)

    def __post_init__(self) -> None:
        check_options(self, ExtractionError)
