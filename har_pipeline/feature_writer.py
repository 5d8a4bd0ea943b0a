"""Writing one video's features: staged, then put into the store in one step; see `store` for the layout."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from har_pipeline.core.errors import StoreError
from har_pipeline.core.files import publish, staging_name
from har_pipeline.core.records import FeatureSpec, check_video_id

CHUNK_BYTES = 64 * 2**20
STAGING = "_staging"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """What a commit says of the video that features come from; see `FeatureRecord` for the fields."""

    clip_starts: np.ndarray
    clip_ends: np.ndarray
    num_frames: int
    fps: float
    padded: bool = False
    decode_notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] | None = None
    file: Mapping[str, str] | None = None


class FeatureWriter:
    """Writes one video's features in order; nothing is visible in the store before `commit` returns."""

    def __init__(self, store: Path, spec: FeatureSpec, video_id: str, num_clips: int) -> None:
        self._final = store / spec.name / check_video_id(video_id)
        self._staged = store / STAGING / staging_name()
        dtype = np.dtype(spec.dtype)
        rows = max(1, min(num_clips, CHUNK_BYTES // (spec.feature_dim * dtype.itemsize)))
        self._array = zarr.create_array(
            self._staged,
            shape=(num_clips, spec.feature_dim),
            chunks=(rows, spec.feature_dim),
            dtype=dtype,
            fill_value=float("nan") if dtype.kind == "f" else 0,
            compressors=[ZstdCodec(level=1, checksum=True)],
            dimension_names=("clip", "feature"),
        )
        self._buffer = np.empty((rows, spec.feature_dim), dtype)
        self._buffered = self._written = 0
        self._hash = hashlib.sha256()

    def append(self, rows: np.ndarray) -> None:
        """Add (n, D) features of the store's dtype after those already given. Raises: StoreError if there are too many."""
        if self._written + self._buffered + len(rows) > self._array.shape[0]:
            raise StoreError(f"{self._final.name}: more features than the {self._array.shape[0]} clips announced")
        self._hash.update(np.ascontiguousarray(rows, dtype=self._buffer.dtype).data)
        while len(rows):
            taken = min(len(rows), len(self._buffer) - self._buffered)
            self._buffer[self._buffered : self._buffered + taken] = rows[:taken]
            self._buffered += taken
            rows = rows[taken:]
            if self._buffered == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        self._array[self._written : self._written + self._buffered] = self._buffer[: self._buffered]
        self._written += self._buffered
        self._buffered = 0

    def commit(self, source: VideoSource) -> bool:
        """Make the features visible. Returns False if another process had committed this video before.

        Raises: StoreError if rows are missing.
        """
        if self._buffered:
            self._flush()
        if self._written != self._array.shape[0]:
            raise StoreError(f"{self._final.name}: {self._written} of {self._array.shape[0]} clips were written")
        self._array.update_attributes(
            {
                "complete": True,
                "checksum": f"sha256:{self._hash.hexdigest()}",
                "num_clips": self._written,
                "num_frames": int(source.num_frames),
                "fps": float(source.fps),
                "clip_starts": [int(start) for start in source.clip_starts],
                "clip_ends": [int(end) for end in source.clip_ends],
                "clip_times_s": [
                    [start / source.fps, end / source.fps]
                    for start, end in zip(source.clip_starts.tolist(), source.clip_ends.tolist(), strict=True)
                ],
                "padded": source.padded,
                "decode_notes": list(source.decode_notes),
                "provenance": dict(source.provenance or {}),
                "file": dict(source.file or {}),
                "written": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        return publish(self._staged, self._final, "zarr.json")

    def abort(self) -> None:
        """Forget what was written."""
        shutil.rmtree(self._staged, ignore_errors=True)
