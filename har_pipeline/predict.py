"""A new video -> ranked classes, from a run folder alone: same net, same frames, same head as in training."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.evaluation.plots import save_topk_bars
from har_pipeline.features.engine import Progress
from har_pipeline.features.extract import ExtractOptions, extract_many
from har_pipeline.features.reduce import source_spec
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import joined_features
from har_pipeline.inference.load import Run, load_run
from har_pipeline.inference.predict import predict_scores, top_k
from har_pipeline.models.extractors import build_extractor, find_net
from har_pipeline.models.extractors.base import Extractor
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
        dtype=spec.dtype,
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
