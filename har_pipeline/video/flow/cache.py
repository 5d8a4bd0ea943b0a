"""Flow fields on disk, computed once for several nets."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from pathlib import Path

import numpy as np

from har_pipeline.core.files import new_file
from har_pipeline.video.flow.spec import FlowSpec

_CHECKSUM_BYTES = 4


class FlowCache:
    """A folder with one file per frame pair: a float16 `.npy` (H, W, 2) followed by its CRC-32.

    The name is a hash of all that the flow depends on, so nothing is ever stale. Files are written atomically, so any
    number of processes may share the folder. A folder that cannot be written, or is full, costs nothing but the reuse:
    `problem` then says why, and no more is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.problem = ""

    def path(self, content: str, frames: tuple[int, int], spec: FlowSpec, size: tuple[int, int]) -> Path:
        """Return the file of one pair.

        content: identifies the video's content, such as its file's sha256; frames: the numbers of the two frames;
        size: their (height, width) in px.
        """
        key = json.dumps([content, *frames, spec.describe(), *size])
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def get(self, content: str, frames: tuple[int, int], spec: FlowSpec, size: tuple[int, int]) -> np.ndarray | None:
        """Return the flow (H, W, 2) float32 px/frame of a pair, or None if it is missing or damaged."""
        try:
            stored = self.path(content, frames, spec, size).read_bytes()
        except OSError:
            return None
        body, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
            return None
        try:
            flow = np.load(io.BytesIO(body), allow_pickle=False)
        except Exception:  # the reader raises whatever odd bytes lead it to
            return None
        return flow.astype(np.float32) if flow.shape == (*size, 2) and flow.dtype == np.float16 else None

    def put(
        self, content: str, frames: tuple[int, int], spec: FlowSpec, size: tuple[int, int], flow: np.ndarray
    ) -> None:
        """Store the flow (H, W, 2) of a pair, as `compute_flow` returns it; replaces an existing file.

        Raises: ValueError if the flow has another size, or values that are not float16's.
        """
        if self.problem:
            return
        rounded = flow.astype(np.float16)
        if flow.shape != (*size, 2) or not np.array_equal(rounded, flow):
            raise ValueError(f"flow {flow.shape} does not fit frames of {size}, or is not rounded to float16")
        path = self.path(content, frames, spec, size)
        body = io.BytesIO()
        np.save(body, rounded, allow_pickle=False)
        checksum = zlib.crc32(body.getvalue()).to_bytes(_CHECKSUM_BYTES, "little")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path, sync=False) as partial:
                partial.write_bytes(body.getvalue() + checksum)
        except OSError as error:
            self.problem = f"{self.folder}: flow is not kept any more ({error.strerror or error})"
