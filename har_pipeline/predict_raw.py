"""A new video -> ranked classes by a network on raw video, from its run folder alone."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from har_pipeline.core.records import VideoRecord
from har_pipeline.features.frames import RawSummary, options_of, store_raw_frames
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureTable
from har_pipeline.inference.load import VideoRun, load_video_run
from har_pipeline.inference.predict import top_k
from har_pipeline.models.device import pick_precision, resolve_device
from har_pipeline.predict import Prediction
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks.loop import video_probabilities


def predict_raw(
    paths: Sequence[Path],
    run_dir: Path,
    *,
    top: int = 3,
    device: str = "auto",
    workers: int | None = None,
    on_progress: Callable[[RawSummary], None] = lambda summary: None,
) -> tuple[VideoRun, list[Prediction]]:
    """Return the run and, for each video file or depth folder in order, its classes; what cannot be read gets its error.

    Frames are prepared and chosen as in the run's own test. `Prediction.frames` are those prepared; its notes tell of
    frames that could not be read, and of a video that is too short for the network.
    Raises: RunError if the run folder is incomplete, or of `har train`, or the device is absent.
    """
    run = load_video_run(run_dir)
    where = resolve_device(device)
    run.network.to(where)
    options = dataclasses.replace(options_of(run.spec), workers=workers)
    files = [path.expanduser().resolve() for path in paths]
    records = [
        VideoRecord(video_id=f"video{i:06d}", label="unknown", depth_path=file)
        if options.stream == "depth"
        else VideoRecord(video_id=f"video{i:06d}", label="unknown", path=file)
        for i, file in enumerate(files)
    ]
    predictions = []
    with tempfile.TemporaryDirectory(prefix="har_predict_") as folder:
        store = FeatureStore(Path(folder) / "store.zarr", create=True)
        summary = store_raw_frames(records, store, options, on_progress)
        for path, record in zip(paths, records, strict=True):
            if reason := summary.failed.get(record.video_id):
                predictions.append(Prediction(path, (), None, reason))
                continue
            stored = store.read(summary.feature_set, record.video_id)
            rows = stored.features
            table = FeatureTable((record.video_id,), np.zeros(1, np.int64), rows, np.array([0, len(rows)], np.int64))
            probabilities = video_probabilities(
                run.network,
                Frames(table, run.frame_shape, where),
                np.zeros(1, np.int64),
                len(run.classes),
                precision=pick_precision(run.config.precision, where),
                whole=run.config.long_videos == "whole",
            )[0]
            channels, height, width = run.frame_shape
            frames = rows.reshape(-1, height, width, channels)
            best = tuple(top_k(run.classes, probabilities, top))
            notes = (*stored.decode_notes, *_repeated(len(rows), run.network.clip_len))
            predictions.append(Prediction(path, best, probabilities, frames=frames, notes=notes))
    return run, predictions


def _repeated(num_frames: int, clip_len: int) -> list[str]:
    """Return what to note of a video that does not fill a clip, or a stateful network's window."""
    if num_frames >= clip_len:
        return []
    if num_frames == 1:
        return [f"1 frame: shown {clip_len} times, so nothing moves"]
    return [f"{num_frames} frames: played backwards and forwards to fill the {clip_len} that the network sees at once"]
