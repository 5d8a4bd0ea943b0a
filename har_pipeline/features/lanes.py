"""What the engine keeps of each feature set being made: its extractor, its batches, and the videos under way."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch

from har_pipeline.core.records import FeatureSpec
from har_pipeline.features.store import FeatureWriter
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.video.clip_worker import Done, Plan, View
from har_pipeline.video.flow.cache import FlowCache
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import Crop, crop_places, num_crops, parse_resize

FRAMES_PER_SLOT = 32


# Frames that are sent uncropped may be this much longer than they are high (or the other way round).
LONGEST_ASPECT = 2.5


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at one video in one lane: rows arrive in order; it is over when all are written, or it is cancelled.

    crop_rows: rows of a clip whose other crops are not computed yet; flows: the flow of the last chunk, by frame pair;
    content: the file's sha256 where flow is cached; file: as in `FeatureRecord`.
    """

    video_id: str
    plan: Plan
    writer: Future[FeatureWriter]
    crop_rows: np.ndarray
    rows: int = 0
    last_row: np.ndarray | None = None
    done: Done | None = None
    cancelled: bool = False
    flows: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    content: str = ""
    file: Mapping[str, str] = field(default_factory=dict)


class Batch:
    """One batch of constant shape being filled: `clips` (B, T, S, S, C) and the attempt that owns each row."""

    def __init__(self, size: int, clip_len: int, side: int, flow: bool, device: torch.device) -> None:
        shape = (size, clip_len, side, side, 2 if flow else 3)
        pinned = device.type == "cuda" and not flow
        # Flow is made on the device and stays there; frames come from shared memory.
        self.clips = torch.zeros(
            shape,
            dtype=torch.float32 if flow else torch.uint8,
            device=device if flow else "cpu",
            pin_memory=pinned,
        )
        self.owners: list[Attempt] = []

    @property
    def full(self) -> bool:
        """Whether every row has an owner."""
        return len(self.owners) == len(self.clips)


class Lane:
    """One feature set being made: an extractor, what it wants of each video, and its batches."""

    def __init__(
        self,
        extractor: Extractor,
        spec: FeatureSpec,
        batch_size: int | None,
        flow: FlowSpec | None,
        cache: FlowCache | None,
    ) -> None:
        self.extractor, self.spec, self.feature_set, self.cache = extractor, spec, spec.name, cache
        self.resize = parse_resize(spec.resize)
        self.crops = num_crops(self.resize)
        self.flow = flow
        self.whole = self.flow is not None or self.crops > 1
        cuda = extractor.device.type == "cuda"
        clip_len = spec.clips.clip_len
        size = batch_size or max(1, (512 if cuda else 16) // clip_len if clip_len > 1 else 64 if cuda else 16)
        self.batches = deque(
            Batch(size, clip_len, self.resize.size, self.flow is not None, extractor.device) for _ in range(2)
        )
        # The device works on one batch while the next is filled; on a CPU the call below simply returns finished rows.
        self.in_flight: tuple[Batch, torch.Tensor] | None = None
        self.provenance = _provenance(extractor)
        self.failed: dict[str, str] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.done = self.clips_done = self.padded = 0

    def view(self, number: int) -> View:
        """Return what the decode workers shall cut for this lane."""
        return View(number, self.spec.clips, self.spec.resize, flow=self.flow is not None, whole=self.whole)

    @property
    def slot_bytes(self) -> int:
        """Bytes that a chunk of this lane's frames may need."""
        frames = max(FRAMES_PER_SLOT, self.spec.clips.clip_len + (self.flow is not None))
        if not self.whole:
            return frames * self.resize.size**2 * 3
        scaled = self.resize.scaled
        width, height = (round(scaled * LONGEST_ASPECT), scaled) if isinstance(scaled, int) else scaled
        return frames * width * height * 3

    def crop_views(self, frames: np.ndarray | torch.Tensor) -> list[Crop]:
        """Return the crops of scaled frames (n, H, W, C)."""
        return crop_places(self.resize, *frames.shape[1:3])


def _provenance(extractor: Extractor) -> dict[str, str]:
    packages = ("torch", "torchvision", "numpy", "av")
    device = torch.cuda.get_device_name(extractor.device) if extractor.device.type == "cuda" else platform.machine()
    return {
        "har_pipeline": version("har-pipeline"),
        "python": platform.python_version(),
        "device": f"{extractor.device.type} {device}",
        **{name: version(name) for name in packages},
    }
