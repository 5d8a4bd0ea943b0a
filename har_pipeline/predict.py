"""A new video -> ranked classes, from a run folder alone: same net, same frames, same head as in training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.engine import Progress
from har_pipeline.errors import FeatureMismatchError
from har_pipeline.evaluate import predict_scores, top_k
from har_pipeline.extract import ExtractOptions, extract
from har_pipeline.extractors import build_extractor, find_net
from har_pipeline.extractors.base import Extractor
from har_pipeline.records import FeatureSpec, VideoRecord
from har_pipeline.reduce import source_spec
from har_pipeline.report.plots import save_topk_bars
from har_pipeline.run_folder import Run, load_run
from har_pipeline.store import FeatureStore
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.flow_spec import parse_flow


@dataclass(frozen=True, slots=True)
class Prediction:
    """The classes of one video, best first. probabilities: (K,) in the order of the run's classes; error: or why none."""

    path: Path
    top: tuple[tuple[str, float], ...]
    probabilities: np.ndarray | None
    error: str | None = None


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
    weights: str | None = None,
    mean_cube: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Run, list[Prediction]]:
    """Return the run and, for each video file in order, its classes; a file that cannot be read gets its error.

    Raises: RunError if the run folder is incomplete; FeatureMismatchError if its weights cannot be had.
    """
    run = load_run(run_dir)
    projection = run.projection()
    spec = run.spec if projection is None else source_spec(run.spec, len(projection.mean))
    extractor = extractor_for(spec, weights=weights, mean_cube=mean_cube, device=device)
    records = [
        VideoRecord(video_id=f"video{i:06d}", label="unknown", path=path.expanduser().resolve())
        for i, path in enumerate(paths)
    ]
    options = ExtractOptions(
        clips=spec.clips,
        fps=spec.fps,
        resize=spec.resize,
        flow=parse_flow(spec.flow) if spec.flow else None,
        dtype=spec.dtype,
        workers=workers,
    )
    with tempfile.TemporaryDirectory(prefix="har_predict_") as folder:
        store = FeatureStore(Path(folder) / "store.zarr", create=True)
        summary = extract(records, store, extractor, options, on_progress)
        store.spec(summary.feature_set).require_equal(spec, str(run_dir))
        predictions = []
        for path, record in zip(paths, records, strict=True):
            if reason := summary.failed.get(record.video_id):
                predictions.append(Prediction(path, (), None, reason))
                continue
            features = store.read(summary.feature_set, record.video_id).features
            if projection is not None:
                features = projection.apply(features, spec.dtype)
            probabilities = predict_scores(run, features)
            predictions.append(Prediction(path, tuple(top_k(run.classes, probabilities, top)), probabilities))
    return run, predictions


def save_picture(path: Path, predictions: Sequence[Prediction], frames_per_video: int = 4) -> None:
    """Draw, for each video that could be read, frames spread over it and its best classes as bars (PNG).

    Source: Orozco 2020, figure 7.
    """
    rows = []
    for prediction in predictions:
        if prediction.error is None:
            frames = sample_frames(prediction.path, frames_per_video)
            rows.append((frames, prediction.top, prediction.path.name))
    if rows:
        save_topk_bars(path, rows)


def sample_frames(path: Path, count: int) -> np.ndarray:
    """Return (count, H, W, 3) uint8 RGB frames spread evenly over a video, by reading it once."""
    info = probe(path)
    wanted = set(np.linspace(0, max(0, info.packet_frames - 2), count).round().astype(int).tolist())
    frames = [frame.copy() for index, frame in FrameReader(path, info=info) if index in wanted]
    return np.stack(frames)
