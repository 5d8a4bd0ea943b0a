"""A new video -> ranked classes, from a run folder alone: same net, same frames, same head as in training."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.evaluation.plots import save_topk_bars
from har_pipeline.features.engine import Progress
from har_pipeline.features.extract import ExtractOptions, extract_many
from har_pipeline.features.frames import RawSummary, options_of, store_raw_frames
from har_pipeline.features.reduce import source_spec
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureTable, joined_features
from har_pipeline.inference.load import Run, VideoRun, load_run, load_video_run
from har_pipeline.models.device import pick_device, pick_precision
from har_pipeline.models.extractors import build_extractor, find_net
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.training.batches import Batch, Frames, class_probabilities
from har_pipeline.training.networks.loop import video_probabilities
from har_pipeline.video.clips import sparse_clip_indices
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.flow.spec import parse_flow


@dataclass(frozen=True, slots=True)
class Prediction:
    """The classes of one video, best first. probabilities: (K,) in the order of the run's classes; error: or why none.

    frames: (F, S, S, C) uint8, what a network on raw video was shown; None of a head. notes: what was odd about the file.
    """

    path: Path
    top: tuple[tuple[str, float], ...]
    probabilities: np.ndarray | None
    error: str | None = None
    frames: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def extractor_for(
    spec: FeatureSpec, *, weights: str | None = None, mean_cube: Path | None = None, device: str = "auto"
) -> Extractor:
    """Return the extractor that makes features of `spec`; `weights` and `mean_cube` name files where these were used.

    Raises: FeatureMismatchError if the weights are not those of the spec.
    """
    net = find_net(spec.extractor)
    seed = 0
    if spec.weights.startswith("random:"):
        weights, seed = "random", int(spec.weights.removeprefix("random:"))
    elif weights is None:
        digits = spec.weights.removeprefix("sha256:")
        of_stream = {name: w for name, w in net.weights.items() if w.stream == spec.stream and w.sha256}
        weights = next((name for name, w in of_stream.items() if digits.startswith(w.sha256)), None)
        if weights is None:
            raise FeatureMismatchError(
                f"the features were made with {net.name} weights {spec.weights[:23]}..., which are not published ones: "
                "give the file with --weights PATH"
            )
    extractor = build_extractor(
        spec.extractor,
        layer=spec.layer,
        stream=spec.stream,
        weights=weights,
        device=device,
        precision=spec.precision,
        seed=seed,
        mean_cube=mean_cube,
    )
    if extractor.weights != spec.weights:
        raise FeatureMismatchError(f"weights {extractor.weights} are not those of the run, {spec.weights}")
    if extractor.preprocess.describe() != spec.preprocess:
        way_out = "give its mean cube with --mean-cube" if "cube" in spec.preprocess else "leave --mean-cube out"
        raise FeatureMismatchError(f"frames are prepared as {spec.preprocess} in the run: {way_out}")
    return extractor


def predict_videos(
    paths: Sequence[Path],
    run_dir: Path,
    *,
    top: int = 3,
    weights: str | Sequence[str | None] | None = None,
    mean_cube: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Run, list[Prediction]]:
    """Return the run and, for each video file in order, its classes; a file that cannot be read gets its error.

    A run of several streams makes them in one pass over each file; weights: then one for each stream, in the run's order
    (None = the published ones), or None for all. mean_cube: for the streams whose net was run with one.
    Raises: RunError if the run folder is incomplete; FeatureMismatchError if its weights cannot be had.
    """
    run = load_run(run_dir)
    projections = [run.projection(number) for number in range(len(run.streams))]
    specs = [
        stream.spec if projection is None else source_spec(stream.spec, len(projection.mean))
        for stream, projection in zip(run.streams, projections, strict=True)
    ]
    files = [weights] * len(specs) if weights is None or isinstance(weights, str) else list(weights)
    if len(files) != len(specs) or (isinstance(weights, str) and len(specs) > 1):
        raise RunError(f"{run_dir} has {len(specs)} streams: give --weights once for each, in the order of the run")
    # Two streams of a run may have been reduced from one and the same feature set.
    wanted: dict[str, tuple[Extractor, ExtractOptions]] = {}
    for spec, file in zip(specs, files, strict=True):
        cube = mean_cube if len(specs) == 1 or "cube" in spec.preprocess else None
        if spec.name not in wanted:
            extractor = extractor_for(spec, weights=file, mean_cube=cube, device=device)
            wanted[spec.name] = (extractor, _options(spec, workers))
    records = [
        VideoRecord(video_id=f"video{i:06d}", label="unknown", path=path.expanduser().resolve())
        for i, path in enumerate(paths)
    ]
    with tempfile.TemporaryDirectory(prefix="har_predict_") as folder:
        store = FeatureStore(Path(folder) / "store.zarr", create=True)
        failed: dict[str, str] = {}
        for one_rate in _by_frame_rate(wanted):
            for summary in extract_many(records, store, one_rate, on_progress):
                failed.update(summary.failed)
        for spec in specs:
            store.spec(spec.name).require_equal(spec, str(run_dir))
        predictions = []
        for path, record in zip(paths, records, strict=True):
            if reason := failed.get(record.video_id):
                predictions.append(Prediction(path, (), None, reason))
                continue
            streams = []
            for spec, projection in zip(specs, projections, strict=True):
                found = store.read(spec.name, record.video_id)
                if projection is not None:
                    found = dataclasses.replace(found, features=projection.apply(found.features, spec.dtype))
                streams.append(found)
            probabilities = predict_scores(run, joined_features(streams))
            # Each stream reads the file itself and may note the same.
            notes = tuple(dict.fromkeys(text for found in streams for text in found.decode_notes))
            best = tuple(top_k(run.classes, probabilities, top))
            predictions.append(Prediction(path, best, probabilities, notes=notes))
    return run, predictions


def _options(spec: FeatureSpec, workers: int | None) -> ExtractOptions:
    return ExtractOptions(
        clips=spec.clips,
        fps=spec.fps,
        resize=spec.resize,
        flow=parse_flow(spec.flow) if spec.flow else None,
        dtype=spec.dtype,  # type: ignore[arg-type]
        workers=workers,
    )


def _by_frame_rate(
    wanted: Mapping[str, tuple[Extractor, ExtractOptions]],
) -> list[list[tuple[Extractor, ExtractOptions]]]:
    """Return what can be made in one pass each: one pass over a file has one frame rate."""
    rates: dict[float | None, list[tuple[Extractor, ExtractOptions]]] = {}
    for extractor, options in wanted.values():
        rates.setdefault(options.fps, []).append((extractor, options))
    return list(rates.values())


def save_picture(path: Path, predictions: Sequence[Prediction], frames_per_video: int = 4) -> None:
    """Draw, for each video that could be read, frames spread over it and its best classes as bars (PNG).

    Source: Orozco 2020, figure 7.
    """
    rows = []
    for prediction in predictions:
        if prediction.error is None:
            frames = _shown_frames(prediction, frames_per_video)
            rows.append((frames, prediction.top, prediction.path.name))
    if rows:
        save_topk_bars(path, rows)


def _shown_frames(prediction: Prediction, count: int) -> np.ndarray:
    if prediction.frames is None:
        return sample_frames(prediction.path, count)
    chosen = prediction.frames[np.linspace(0, len(prediction.frames) - 1, count).round().astype(int)]
    return chosen if chosen.shape[-1] == 3 else np.repeat(chosen, 3, axis=-1)


def sample_frames(path: Path, count: int) -> np.ndarray:
    """Return (count, H, W, 3) uint8 RGB frames spread evenly over a video, by reading it once."""
    info = probe(path)
    wanted = set(np.linspace(0, max(0, info.packet_frames - 2), count).round().astype(int).tolist())
    frames = [frame.copy() for index, frame in FrameReader(path, info=info) if index in wanted]
    return np.stack(frames)


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
    where = pick_device(device)
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


def predict_scores(run: Run, features: np.ndarray) -> np.ndarray:
    """Return (K,) float64 class probabilities of one video from its (N, D) features, made as the run's spec says.

    Raises: RunError if there is no clip, D is not the run's, or a feature is not finite.
    """
    wanted = len(run.head.input_mean)
    if features.ndim != 2 or not len(features) or features.shape[1] != wanted:
        raise RunError(f"{run.path}: the head reads features (N >= 1, {wanted}), but got {features.shape}")
    if not np.isfinite(features).all():
        raise RunError(f"{run.path}: a feature of the video is not finite")
    if run.config.num_steps is not None:
        features = features[sparse_clip_indices(len(features), run.config.num_steps)]
    batch = Batch(
        torch.from_numpy(np.ascontiguousarray(features, np.float32))[None].to(run.head.input_mean.device),
        torch.tensor([len(features)]),
        torch.zeros(1, dtype=torch.int64),
    )
    return class_probabilities(run.head, [batch])[0]


def top_k(classes: Sequence[str], probabilities: np.ndarray, k: int = 3) -> list[tuple[str, float]]:
    """Return the k most probable (class, probability), best first; fewer if there are fewer classes."""
    order = np.argsort(-np.asarray(probabilities), kind="stable")[:k]
    return [(classes[number], float(probabilities[number])) for number in order]
