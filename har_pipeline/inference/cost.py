"""What a network on raw video costs: seconds per video, and the accuracy that live decisions lose."""

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
from har_pipeline.evaluation.members import Member
from har_pipeline.evaluation.run_folder import files_sha256, read_run
from har_pipeline.evaluation.scores import select_part
from har_pipeline.features.frames import options_of, raw_task
from har_pipeline.inference.live import file_of, live_scores
from har_pipeline.inference.load import NetworkRun, load_network
from har_pipeline.inference.predict import predict_scores
from har_pipeline.models.device import device_name, pick_device, pick_precision
from har_pipeline.video.frame_worker import prepare_video

DRAWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTimes:
    """Seconds per video, one video at a time."""

    videos: int  # number of videos timed
    mean_frames: float  # frames per video
    whole_s: float  # mean of reading the file, crop, scaling, and the network
    whole_median_s: float
    network_s: float  # mean of frames to the device, and the network
    network_median_s: float
    device: str  # as `device_name` says it
    threads: int  # CPU threads of torch
    precision: str
    failed: Mapping[str, str] = field(default_factory=dict)  # video_id -> why it cannot be read

    def to_dict(self) -> dict[str, Any]:
        """Return the times as a plain dict, ready for JSON."""
        return asdict(self)


def time_videos(
    run: NetworkRun | Path | str,
    records: Sequence[VideoRecord],
    *,
    videos: int = DRAWN,
    device: str = "auto",
    seed: int = 0,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> VideoTimes:
    """Return the times of up to `videos` test videos of a run, drawn at random, after one untimed video.

    run: of a network on raw video; records: rows with the files of its test videos. on_video: called with the videos timed
    and their total.
    Raises: RunError if the run is of a head, no test video is among the records, or none can be read.
    Source: Sanchez-Caballero 2020, table 5: 0.21 s stateless, 0.89 s stateful on a GTX 1080, over 10 000 random videos of
    NTU RGB+D; it does not say whether reading files is part of it.
    """
    run = load_network(run)
    run.require_part("test")
    tested, where = set(run.split.test), pick_device(device)
    found = sorted((record for record in records if record.video_id in tested), key=lambda record: record.video_id)
    if not found:
        raise RunError(
            f"{run.path}: the manifest has none of the run's {len(tested)} test videos; is it the run's own?"
        )
    drawn = np.random.default_rng(seed).permutation(len(found))[:videos].tolist()
    run.network.to(where)
    times: list[tuple[float, float, int]] = []
    failed: dict[str, str] = {}
    for done, number in enumerate([drawn[0], *drawn]):
        on_video(max(0, done - 1), len(drawn))
        try:
            times.append(_time_one(run, found[number]))
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
        device=device_name(where),
        threads=torch.get_num_threads(),
        precision=pick_precision(run.config.arithmetic, where),
        failed=dict(sorted(failed.items())),
    )


def _time_one(run: NetworkRun, record: VideoRecord) -> tuple[float, float, int]:
    options = options_of(run.spec)
    task = raw_task(options, record, file_of(record, options.stream))
    start = time.perf_counter()
    frames = prepare_video(task).frames
    prepared = time.perf_counter()
    # The result is on the host, so the device has finished when the clock is read.
    predict_scores(run, frames.reshape(len(frames), -1))
    end = time.perf_counter()
    return end - start, end - prepared, len(frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCost:
    """What live decisions cost in accuracy."""

    comparison: Comparison  # the run's own decisions (first) and the live ones (second)
    failed: Mapping[str, str]  # video_id -> why it could not be read again

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
    """Return what cropping by past frames only, as a live camera must, costs a stateful run; see `live.live_scores`.

    On the device and at the precision of the training, nothing but the crop differs from the run's own scores. Videos that
    cannot be read are on neither side. on_video: called with the videos done and their total.
    Raises: RunError as `live_scores`, if the run has no scores of that part, or was trained with other files.
    """
    run = read_run(run_dir)
    own = select_part(run.scores(), part)
    files = files_sha256(records, run.split, run.spec.stream)
    if run.info.get("files_sha256", files) != files:
        raise RunError(
            f"{run.path} was trained with other files than the manifest names, or other parts of them: the decisions cannot "
            "be compared"
        )
    live, failed = live_scores(run_dir, records, part=part, device=device, on_video=on_video)
    members = Member(name="whole video", scores=own), Member(name="live", scores=live)
    return LiveCost(comparison=compare_members(*members, part=part), failed=failed)
