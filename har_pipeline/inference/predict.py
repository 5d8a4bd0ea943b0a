"""New videos -> ranked classes, from run folders alone: same frames, same nets, same heads or networks as in training."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from har_pipeline.core.errors import RunError, VideoError
from har_pipeline.core.records import TIME_LIMIT_S, WHOLE, Span, VideoRecord
from har_pipeline.datasets.folders import videos_below
from har_pipeline.evaluation.plots import Example, TimelineRow, save_timelines, save_topk_bars
from har_pipeline.evaluation.tables import write_csv
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureTable, take_clips
from har_pipeline.inference.ensemble import (
    Classifier,
    PlainRule,
    class_probabilities_of,
    load_classifier,
    runs_of,
)
from har_pipeline.inference.load import HeadRun, NetworkRun
from har_pipeline.inference.sources import Files, FrameSources, HeadSources, Job
from har_pipeline.inference.timeline import Timeline, Windows, timeline_of
from har_pipeline.models.device import pick_precision
from har_pipeline.training.batches import FeatureBatch, Frames, class_probabilities
from har_pipeline.training.networks.loop import sampling_of, video_probabilities
from har_pipeline.video.clips import sparse_clip_indices
from har_pipeline.video.decode import FrameReader, probe, tail_note
from har_pipeline.video.seek import exactly
from har_pipeline.video.timing import in_frames

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The classes of one video, or why there are none."""

    path: Path
    top: tuple[tuple[str, float], ...]  # (class, probability), best first
    probabilities: np.ndarray | None  # (K,) float64 in the order of the classes; None after an error
    error: str | None = None  # why the file cannot be read
    # (F, S, S, C) uint8, the frames that a network on raw video was shown; None for a head, windows, and several runs on
    # colour videos.
    frames: np.ndarray | None = None
    notes: tuple[str, ...] = ()  # what was odd about the file
    timeline: Timeline | None = None  # with windows: the classes of each moment; `probabilities` are their mean then


@dataclass(frozen=True, slots=True)
class _Asked:
    """A file, the rows that it is read as, and, with windows, when each of them begins and ends."""

    path: Path
    records: tuple[VideoRecord, ...]
    spans_s: np.ndarray | None = None  # (W, 2) float64
    error: str | None = None
    notes: tuple[str, ...] = ()


def predict(
    paths: Sequence[Path],
    run: Classifier | Path | str | Sequence[Path | str],
    *,
    rule: PlainRule = "product",
    windows: Windows | None = None,
    top: int = 3,
    weights: str | Sequence[str] | None = None,
    mean_cube: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Prediction]:
    """Return the classes of each video file or depth folder, in order; a file that cannot be read gets its error.

    run: a run, a job, a fusion, or several of them, see `load_classifier`. Features that several runs share are made once.
    rule: how the probabilities of several are fused. windows: classify windows that slide over each file, which is read once
    from its start to its end, in memory that does not grow with it; colour videos only.
    weights: files of the extractors' weights where they are neither published, nor in the cache, nor where they were used
    last: `FILE`, which its hash assigns if there are several streams, or `STREAM=FILE` with a stream or (the start of) the
    name of a feature set; mean_cube: the same for a mean cube. Both are for heads only.
    on_progress: called with the videos or windows done and their total.
    Raises: RunError if a run is incomplete or the options do not fit it; FeatureMismatchError if the extractor's weights
    cannot be found.
    """
    classifier = load_classifier(run) if isinstance(run, Path | str) else run
    classifier = load_classifier(classifier, rule) if isinstance(classifier, Sequence) else classifier
    runs = runs_of(classifier)
    heads = [one for one in runs if isinstance(one, HeadRun)]
    networks = [one for one in runs if isinstance(one, NetworkRun)]
    depth = {one.spec.stream == "depth" for one in runs}
    if len(depth) > 1:
        raise RunError("some of the runs read depth, others colour: no file is both")
    if windows is not None and True in depth:
        raise RunError(
            f"{runs[0].path} reads depth: windows are for colour videos; har predict --live decides as frames come"
        )
    files = Files([weights] if isinstance(weights, str) else list(weights or ()), mean_cube)
    if not heads and (files.weights or mean_cube):
        raise RunError(f"{runs[0].path} contains all weights of its network: omit --weights and --mean-cube")
    head_sources = HeadSources(heads, files, device)
    frame_sources = FrameSources(networks, device)
    asked = [_asked(number, path, True in depth, windows) for number, path in enumerate(paths)]
    records = [record for one in asked for record in one.records]
    limit_s = TIME_LIMIT_S + max((float(one.spans_s[-1, 1]) for one in asked if one.spans_s is not None), default=0.0)
    job = Job(
        records=records, windows=windows is not None, workers=workers, time_limit_s=limit_s, on_progress=on_progress
    )
    sources: list[HeadSources | FrameSources] = [
        *([head_sources] if heads else []),
        *([frame_sources] if networks else []),
    ]
    with tempfile.TemporaryDirectory(prefix="har_predict_") as folder:
        store = FeatureStore(Path(folder) / "store.zarr", create=True)
        for source in sources if records else ():
            source.fill(store, job)
        return [_predicted(classifier, sources, one, top) for one in asked]


def _predicted(
    classifier: Classifier, sources: Sequence[HeadSources | FrameSources], asked: _Asked, top: int
) -> Prediction:
    """Return what a classifier says of a file, whose rows the sources have read."""
    failed = {video_id: reason for source in sources for video_id, reason in source.failed.items()}
    reasons = [failed[record.video_id] for record in asked.records if record.video_id in failed]
    if asked.error or len(reasons) == len(asked.records):
        return Prediction(asked.path, (), None, asked.error or reasons[0])
    kept = [number for number, record in enumerate(asked.records) if record.video_id not in failed]
    # What is odd about a file with windows stands at the first of them.
    notes = list(asked.notes)
    notes += [text for source in sources for text in source.notes.get(asked.records[0].video_id, ())]
    rows, frames = [], None
    for number in kept:
        found: dict[Path, np.ndarray] = {}
        for source in sources:
            for run, read in source.read(asked.records[number].video_id):
                found[run.path] = predict_scores(run, read.features)[None]
                notes += read.decode_notes
                shown = run is classifier or run.spec.stream == "depth"  # which has no picture of its own
                if isinstance(run, NetworkRun) and shown and asked.spans_s is None:
                    channels, height, width = run.frame_shape
                    frames = read.features.reshape(-1, height, width, channels)
        rows.append(class_probabilities_of(classifier, found)[0])
    if reasons:
        notes.append(f"{len(reasons)} of {len(asked.records)} windows could not be read: {reasons[0]}")
    probabilities, timeline = rows[0], None
    if asked.spans_s is not None:
        timeline = timeline_of(classifier.classes, asked.spans_s[kept], np.stack(rows))
        probabilities = timeline.mean
    best = tuple(top_k(classifier.classes, probabilities, top))
    # Several rows and streams may note the same.
    said = tuple(dict.fromkeys(notes))
    return Prediction(asked.path, best, probabilities, frames=frames, notes=said, timeline=timeline)


def _asked(number: int, path: Path, depth: bool, windows: Windows | None) -> _Asked:
    """Return the rows of a file. A file that cannot be read fails later without windows, and here with them."""
    name, place = f"video{number:06d}", path.expanduser().resolve()
    if depth:
        return _Asked(path, (VideoRecord(video_id=name, label="unknown", depth_path=place),))
    if place.is_dir() and not videos_below(place):
        return _Asked(path, (), error=f"{place}: is a folder without video files")
    if windows is None:
        return _Asked(path, (VideoRecord(video_id=name, label="unknown", path=place),))
    try:
        info = probe(place)
        notes = tuple(tail_note(info, info.packet_frames))
    except VideoError as error:
        return _Asked(path, (), error=str(error))
    spans = windows.spans(info.packet_frames, info.timing)
    records = tuple(
        VideoRecord(video_id=f"{name}.{row:07d}", label="unknown", path=place, start_frame=start, end_frame=stop)
        for row, (start, stop) in enumerate(spans.tolist())
    )
    return _Asked(path, records, info.timing.begin_s(spans), notes=notes)


def predict_scores(run: HeadRun | NetworkRun, features: np.ndarray) -> np.ndarray:
    """Return (K,) float64 class probabilities of one video from its (N, D) features, or (L, C * H * W) uint8 frames.

    Of M tokens a clip the features are (N * M, D).

    They are computed on the device of the head or network. Raises: RunError if there is no row, D is not the run's, or a
    feature is not finite.
    """
    wanted = sum(run.head.stream_dims) if isinstance(run, HeadRun) else math.prod(run.frame_shape)
    if features.ndim != 2 or not len(features) or features.shape[1] != wanted:
        raise RunError(f"{run.path}: expected features (N >= 1, {wanted}), but got {features.shape}")
    if isinstance(run, NetworkRun):
        device, first = next(run.network.parameters()).device, np.zeros(1, np.int64)
        table = FeatureTable(("video",), first, features, np.array([0, len(features)], np.int64))
        precision, sampling = pick_precision(run.config.arithmetic, device), sampling_of(run.config)
        frames, classes = Frames(table, run.frame_shape, device), len(run.classes)
        return video_probabilities(run.network, frames, first, classes, precision=precision, sampling=sampling)[0]
    if not np.isfinite(features).all():
        raise RunError(f"{run.path}: a feature of the video is not finite")
    rows_per_clip = run.spec.rows_per_clip
    if len(features) % rows_per_clip:
        raise RunError(f"{run.path}: {len(features)} rows are no whole clips of {rows_per_clip} tokens")
    if run.config.num_steps is not None:
        clips = sparse_clip_indices(len(features) // rows_per_clip, run.config.num_steps)
        features = take_clips(features, clips, rows_per_clip)
    batch = FeatureBatch(
        torch.from_numpy(np.ascontiguousarray(features, np.float32))[None].to(run.head.input_mean.device),
        torch.tensor([len(features)]),
        torch.zeros(1, dtype=torch.int64),
    )
    return class_probabilities(run.head, [batch], 1)[0]


def top_k(classes: Sequence[str], probabilities: np.ndarray, k: int = 3) -> list[tuple[str, float]]:
    """Return the k most probable (class, probability), best first; fewer if there are fewer classes."""
    order = np.argsort(-np.asarray(probabilities), kind="stable")[:k]
    return [(classes[number], float(probabilities[number])) for number in order]


def write_predictions(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Write a row for each video as CSV: video, error, its best class, that one's probability, and those of all classes."""
    rows = (
        [str(one.path), one.error, *(one.top[0] if one.top else (None, None)), *_cells(one, len(classes))]
        for one in predictions
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, ["video", "error", "predicted", "probability", *classes], rows)


def _cells(prediction: Prediction, count: int) -> list[float | None]:
    return [None] * count if prediction.probabilities is None else prediction.probabilities.tolist()


def save_timeline(path: Path, predictions: Sequence[Prediction]) -> None:
    """Draw the timelines of the videos that have one (PNG)."""
    rows = [
        TimelineRow(one.path.name, one.timeline.edges_s, one.timeline.probabilities, one.timeline.spans())
        for one in predictions
        if one.timeline
    ]
    if rows:
        classes = next(one.timeline.classes for one in predictions if one.timeline)
        save_timelines(path, rows, classes)


def save_picture(path: Path, predictions: Sequence[Prediction], frames_per_video: int = 4) -> None:
    """Draw, for each video that could be read, frames spread over it and its best classes as bars (PNG).

    Source: Orozco 2020, figure 7.
    """
    read = [one for one in predictions if one.error is None]
    if read:
        save_topk_bars(path, [Example(_shown_frames(one, frames_per_video), one.top, one.path.name) for one in read])


def _shown_frames(prediction: Prediction, count: int) -> np.ndarray:
    if prediction.frames is None:
        return sample_frames(prediction.path, count)
    chosen = prediction.frames[np.linspace(0, len(prediction.frames) - 1, count).round().astype(int)]
    return chosen if chosen.shape[-1] == 3 else np.repeat(chosen, 3, axis=-1)


def sample_frames(path: Path, count: int, span: Span = WHOLE) -> np.ndarray:
    """Return (count, H, W, 3) uint8 RGB frames spread evenly over a video, or a span of it, by reading it once.

    Fewer if the file ends before it should.
    """
    info = probe(path)
    span = in_frames(span, path, info.timing, info.packet_frames)
    start, stop = span.start_frame, span.end_frame
    last = max(start, info.packet_frames - 2 if stop is None else stop - 1)
    wanted = set(np.linspace(start, last, count).round().astype(int).tolist())

    def read(seek: bool) -> list[np.ndarray]:
        reader = FrameReader(path, start=start, stop=last + 1, info=info, wants=wanted.__contains__, seek=seek)
        return [frame.copy() for _, frame in reader]

    return np.stack(exactly(path, read))
