"""Seconds per video of a run on raw video: the whole path from the files, and the network alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from har_pipeline.core.errors import RunError, VideoError
from har_pipeline.core.records import VideoRecord
from har_pipeline.evaluation.compare import Comparison, compare_members
from har_pipeline.evaluation.fusion import Member
from har_pipeline.evaluation.run_folder import files_sha256, read_run, write_json
from har_pipeline.evaluation.scores import select_part
from har_pipeline.features.frames import options_of, raw_task
from har_pipeline.features.table import FeatureTable
from har_pipeline.inference.live import live_scores
from har_pipeline.inference.load import VideoRun
from har_pipeline.models.device import pick_device, pick_precision
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks.loop import video_probabilities
from har_pipeline.video.frame_worker import prepare_video

DRAWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTimes:
    """Seconds per video, one video at a time, over so many videos.

    whole_s: reading the file, crop, scaling, and the network; network_s: frames to the device and the network; means,
    and medians beside them. mean_frames: frames of a video. failed: video_id -> why a drawn one cannot be read.
    """

    videos: int
    mean_frames: float
    whole_s: float
    whole_median_s: float
    network_s: float
    network_median_s: float
    device: str
    threads: int
    precision: str
    failed: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the times as a plain dict, ready for JSON."""
        return asdict(self)


def time_videos(
    run: VideoRun, records: Sequence[VideoRecord], *, videos: int = DRAWN, device: str = "auto", seed: int = 0
) -> VideoTimes:
    """Return the times of up to `videos` test videos of a run, drawn at random; one more goes first and is not counted.

    records: rows with the files of the run's test videos. Raises: RunError if there is none of them, or none can be read.
    Source: Sanchez-Caballero 2020, table 5: 0.21 s stateless, 0.89 s stateful on a GTX 1080, over 10 000 random videos of
    NTU RGB+D; it does not say whether reading files is part of it.
    """
    tested, where = set(run.split.test), pick_device(device)
    found = sorted((record for record in records if record.video_id in tested), key=lambda record: record.video_id)
    if not found:
        raise RunError(
            f"{run.path}: the manifest has none of the run's {len(tested)} test videos; is it the run's own?"
        )
    drawn = np.random.default_rng(seed).permutation(len(found))[:videos].tolist()
    precision = pick_precision(run.config.precision, where)
    run.network.to(where)
    times: list[tuple[float, float, int]] = []
    failed: dict[str, str] = {}
    for number in [drawn[0], *drawn]:
        try:
            times.append(_time_one(run, found[number], where, precision))
        except VideoError as error:
            failed[found[number].video_id] = str(error)
    if len(times) < 2:
        raise RunError(
            f"{run.path}: the files of the drawn test videos cannot be read, the first: {min(failed.items())[1]}"
        )
    whole, network, frames = zip(*times[1:], strict=True)
    return VideoTimes(
        videos=len(whole),
        mean_frames=statistics.fmean(frames),
        whole_s=statistics.fmean(whole),
        whole_median_s=statistics.median(whole),
        network_s=statistics.fmean(network),
        network_median_s=statistics.median(network),
        device=torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        precision=precision,
        failed=dict(sorted(failed.items())),
    )


def _time_one(run: VideoRun, record: VideoRecord, device: torch.device, precision: str) -> tuple[float, float, int]:
    options = options_of(run.spec)
    path = record.depth_path if options.stream == "depth" else record.path
    if path is None:
        raise VideoError(f"its row names no file of the stream {options.stream}")
    task = raw_task(record, path, options)
    start = time.perf_counter()
    flat = prepare_video(task).frames
    flat = flat.reshape(len(flat), -1)
    prepared = time.perf_counter()
    table = FeatureTable((record.video_id,), np.zeros(1, np.int64), flat, np.array([0, len(flat)]))
    frames = Frames(table, run.frame_shape, device)
    whole = run.config.long_videos == "whole"
    # The result is on the host, so that nothing is still being computed when the clock is read.
    video_probabilities(run.network, frames, np.zeros(1, np.int64), len(run.classes), precision=precision, whole=whole)
    end = time.perf_counter()
    return end - start, end - prepared, len(flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCost:
    """The run's own decisions (first) and the live ones (second); failed: video_id -> why it could not be read again."""

    comparison: Comparison
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return both as a plain nested dict, ready for JSON."""
        return {**self.comparison.to_dict(), "failed": dict(self.failed)}


def measure_live_cost(
    run_dir: Path | str,
    records: Sequence[VideoRecord],
    *,
    part: str = "test",
    device: str = "auto",
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> LiveCost:
    """Return what the crop of a live camera, which knows the past only, costs a stateful run; see `live_scores`.

    Frames, windows and weights are those behind the run's own scores, so on the device and at the precision of the training
    nothing but the crop differs. Videos that cannot be read are on neither side. on_video: called with videos done and in
    all. Raises: RunError as `live_scores`, if the run has no scores of that part, or if it was trained with other files.
    """
    run = read_run(run_dir)
    own = select_part(run.scores(), part)
    files = files_sha256(records, run.split, run.spec.stream)
    if run.info.get("files_sha256", files) != files:
        raise RunError(
            f"{run.path} was trained with other files than the manifest names, or other parts of them: the answers cannot be "
            "compared"
        )
    live, failed = live_scores(run_dir, records, part=part, device=device, on_video=on_video)
    members = Member(name="whole video", scores=own), Member(name="live", scores=live)
    return LiveCost(comparison=compare_members(*members, part=part), failed=failed)


def write_live_cost(cost: LiveCost, folder: Path) -> Path:
    """Write live.json into `folder`, made where missing, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "live.json", cost.to_dict())
    return folder / "live.json"
