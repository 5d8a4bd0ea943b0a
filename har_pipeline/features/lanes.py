"""What the engine keeps of each feature set being made: its extractor, its batches, and the videos under way."""

from __future__ import annotations

import math
import platform
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
import torch

from har_pipeline.core.records import FeatureSpec
from har_pipeline.features.job import JobSummary, Outcome, provenance
from har_pipeline.features.seen import Seen
from har_pipeline.features.store import FeatureWriter
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.video.clip_worker import ClipPlan, Done, View
from har_pipeline.video.flow.cache import FlowCache
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import Crop, num_crops, parse_resize

FRAMES_PER_SLOT = 32
# The longest aspect ratio of frames that are sent uncropped.
LONGEST_ASPECT = 2.5


@dataclass(slots=True, kw_only=True)
class ExtractSummary(JobSummary):
    """What an extraction did for one feature set."""

    padded: int = 0  # done videos that are shorter than their clips, so that frames stand in for missing ones
    clips: int = 0
    seen: Seen = field(default_factory=Seen)  # of the done videos
    stages: dict[str, float] = field(default_factory=dict)  # of the whole job, as in `Progress`
    bound_by: str = "nothing"  # the stage that took the whole job most of its time
    device: str
    precision: str
    weights: str
    flow_cache: str = ""  # what kept computed flow from being stored

    def take(self, outcome: Outcome) -> None:
        """Count the outcome of a video."""
        JobSummary.take(self, outcome)  # `super()` does not know a class with slots
        if outcome.reason is None:
            self.padded += outcome.padded
            self.clips += outcome.rows
            self.seen = self.seen.with_video(*outcome.seen)


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at one video in one lane: rows arrive in order; it is over when all are written, or it is cancelled."""

    video_id: str
    plan: ClipPlan
    thread: Executor  # writes its rows
    writer: Future[FeatureWriter]
    crop_rows: np.ndarray  # of a clip whose other crops are not computed yet
    file: Mapping[str, str]  # as in `FeatureRecord`
    content: str  # the file's sha256 where flow is cached
    rows: int = 0
    last_row: np.ndarray | None = None
    done: Done | None = None
    cancelled: bool = False
    flows: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # of the last chunk, by frame pair


class ClipBatch:
    """One batch of constant shape being filled: `clips` (B, T, H, W, C) and the attempt that owns each row."""

    def __init__(self, size: int, clip_len: int, shape: tuple[int, int], flow: bool, device: torch.device) -> None:
        # Flow is made on the device and stays there; frames come from shared memory.
        self.clips = torch.zeros(
            (size, clip_len, *shape, 2 if flow else 3),
            dtype=torch.float32 if flow else torch.uint8,
            device=device if flow else "cpu",
            pin_memory=device.type == "cuda" and not flow,
        )
        self.owners: list[Attempt] = []
        # numpy copies frames in one thread: torch would wake those of the net for each.
        self._frames = None if flow else self.clips.numpy()

    def add(self, source: np.ndarray | torch.Tensor, clip: np.ndarray, crop: Crop, owner: Attempt) -> None:
        """Put one crop of a clip into the next row.

        source: (n, H, W, C) frames, or flow fields on the device; clip: (T,) row numbers into it.
        """
        row, (height, width) = len(self.owners), self.clips.shape[2:4]
        window = (slice(crop.top, crop.top + height), slice(crop.left, crop.left + width))
        if self._frames is None:
            assert isinstance(source, torch.Tensor)
            fields = source[clip][:, *window]
            self.clips[row].copy_(_mirrored(fields) if crop.mirrored else fields)
        else:
            for place, number in enumerate(clip.tolist()):
                frame = source[number][window]
                self._frames[row, place] = frame[:, ::-1] if crop.mirrored else frame
        self.owners.append(owner)

    @property
    def full(self) -> bool:
        """Whether every row has an owner."""
        return len(self.owners) == len(self.clips)


class Flight:
    """A batch that the device works on, and its features on their way to the host."""

    def __init__(self, batch: ClipBatch, features: torch.Tensor, dtype: torch.dtype) -> None:
        """features: (B, D) or (B, M, D) float32 on the device. dtype: of the rows that are wanted."""
        self.batch, self.features = batch, features
        # A copy that is asked for when it is wanted would wait for the next batch's net, which has been started by then.
        asynchronous = features.device.type == "cuda"
        with torch.inference_mode():
            self._largest = torch.stack(torch.aminmax(features)).abs().max().to("cpu", non_blocking=asynchronous)
            self._rows = features.to(dtype).to("cpu", non_blocking=asynchronous)
        self._done: torch.cuda.Event | None = None
        if asynchronous:
            self._done = torch.cuda.Event(blocking=True)  # else waiting would take a core from the decode workers
            self._done.record(torch.cuda.current_stream(features.device))

    def rows(self) -> tuple[np.ndarray, bool]:
        """Wait for the rows, of which those without an owner are filling, and say whether all are known to be finite."""
        if self._done is not None:
            self._done.synchronize()
        # False for NaN.
        return self._rows.numpy(), bool(self._largest <= torch.finfo(self._rows.dtype).max)


def view_of(number: int, spec: FeatureSpec) -> View:
    """Return what the decode workers cut for the feature set that is number `number` of a job."""
    flow = spec.flow != ""
    whole = flow or num_crops(parse_resize(spec.resize)) > 1
    return View(number, spec.clips, spec.resize, flow=flow, whole=whole, method=spec.resize_method)


class Lane:
    """One feature set being made: an extractor, what it wants of each video, and its batches."""

    def __init__(
        self,
        extractor: Extractor,
        spec: FeatureSpec,
        batch_size: int | None,
        flow: FlowSpec,
        cache: FlowCache | None,
    ) -> None:
        self.extractor, self.spec, self.cache = extractor, spec, cache
        self.flow = flow if spec.flow else None
        self.resize = parse_resize(spec.resize, spec.resize_method)
        self.crops = num_crops(self.resize)
        # As stored; crops are averaged before.
        self.dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
        self.whole = view_of(0, spec).whole
        cuda = extractor.device.type == "cuda"
        clip_len = spec.clips.clip_len
        size = batch_size or max(1, (512 if cuda else 16) // clip_len if clip_len > 1 else 64 if cuda else 16)
        self.batches = deque(
            ClipBatch(size, clip_len, self.resize.shape, self.flow is not None, extractor.device) for _ in range(2)
        )
        # The device works on one batch while the next is filled; a CPU's rows are finished at once.
        self.in_flight: Flight | None = None
        self.sound = False  # whether it has given finite features
        device = torch.cuda.get_device_name(extractor.device) if cuda else platform.machine()
        self.provenance = provenance(
            "torch", "torchvision", "numpy", "av", *extractor.net.packages, device=f"{extractor.device.type} {device}"
        )

    @property
    def slot_bytes(self) -> int:
        """Bytes that a chunk of this lane's frames may need."""
        frames = max(FRAMES_PER_SLOT, self.spec.clips.clip_len + (self.flow is not None))
        if not self.whole:
            return frames * math.prod(self.resize.shape) * 3
        scaled = self.resize.scaled
        width, height = (round(scaled * LONGEST_ASPECT), scaled) if isinstance(scaled, int) else scaled
        return frames * width * height * 3


def _mirrored(fields: torch.Tensor) -> torch.Tensor:
    """Return flow (T, H, W, 2) with left and right exchanged: to the right becomes to the left."""
    return fields.flip(2) * torch.tensor([-1.0, 1.0], device=fields.device)
