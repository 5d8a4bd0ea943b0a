"""A new video -> ranked classes, from a run folder alone: same frames, same net, same head or network as in training."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.records import FeatureRecord, FeatureSpec, VideoRecord
from har_pipeline.evaluation.plots import Example, save_topk_bars
from har_pipeline.features.extract import extract_many, feature_spec
from har_pipeline.features.fitted import derived_record, source_spec
from har_pipeline.features.frames import options_of, store_raw_frames
from har_pipeline.features.local import extract_local, local_options
from har_pipeline.features.motion import motion_features, motion_options
from har_pipeline.features.options import MOTION, ExtractOptions
from har_pipeline.features.seen import little_seen
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureTable, joined_features
from har_pipeline.inference.load import HeadRun, NetworkRun, load_run
from har_pipeline.models.convlstm.windows import stepped_length
from har_pipeline.models.device import pick_device, pick_precision
from har_pipeline.models.extractors import build_extractor, find_net
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.training.batches import FeatureBatch, Frames, class_probabilities
from har_pipeline.training.networks.loop import sampling_of, video_probabilities
from har_pipeline.video.clips import sparse_clip_indices
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.flow.spec import parse_flow
from har_pipeline.video.local.spec import HANDCRAFTED

OnProgress = Callable[[int, int], None]

# Why videos failed, and what reads the features of the others.
Stored = tuple[Mapping[str, str], Callable[[str], FeatureRecord]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The classes of one video, or why there are none."""

    path: Path
    top: tuple[tuple[str, float], ...]  # (class, probability), best first
    probabilities: np.ndarray | None  # (K,) float64 in the order of the run's classes; None after an error
    error: str | None = None  # why the file cannot be read
    # (F, S, S, C) uint8, the frames that a network on raw video was shown; None for a head.
    frames: np.ndarray | None = None
    notes: tuple[str, ...] = ()  # what was odd about the file


def predict(
    paths: Sequence[Path],
    run: HeadRun | NetworkRun | Path | str,
    *,
    top: int = 3,
    weights: str | Sequence[str | None] | None = None,
    mean_cube: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Prediction]:
    """Return the classes of each video file or depth folder, in order; a file that cannot be read gets its error.

    weights: files of the extractors' weights, one for each stream of the run (None: published weights); mean_cube: of the
    streams whose extractor used one. Both are for heads only. A run of several streams reads each file once.
    on_progress: called with the videos done and their total.
    Raises: RunError if the run is incomplete or the options do not fit it; FeatureMismatchError if the extractor's weights
    cannot be found.
    """
    run = load_run(run) if isinstance(run, Path | str) else run
    stream = "depth_path" if run.spec.stream == "depth" else "path"
    records = [
        VideoRecord(video_id=f"video{i:06d}", label="unknown", **{stream: path.expanduser().resolve()})  # type: ignore[arg-type]
        for i, path in enumerate(paths)
    ]
    with tempfile.TemporaryDirectory(prefix="har_predict_") as folder:
        store = FeatureStore(Path(folder) / "store.zarr", create=True)
        if isinstance(run, HeadRun):
            failed, read = _store_features(run, records, store, weights, mean_cube, device, workers, on_progress)
        elif weights or mean_cube:
            raise RunError(f"{run.path} contains all weights of its network: omit --weights and --mean-cube")
        else:
            failed, read = _store_frames(run, records, store, device, workers, on_progress)
        predictions = []
        for path, record in zip(paths, records, strict=True):
            if reason := failed.get(record.video_id):
                predictions.append(Prediction(path, (), None, reason))
                continue
            stored = read(record.video_id)
            probabilities = predict_scores(run, stored.features)
            best = tuple(top_k(run.classes, probabilities, top))
            frames = None
            if isinstance(run, NetworkRun):
                channels, height, width = run.frame_shape
                frames = stored.features.reshape(-1, height, width, channels)
            predictions.append(Prediction(path, best, probabilities, frames=frames, notes=stored.decode_notes))
    return predictions


def _store_features(
    run: HeadRun,
    records: Sequence[VideoRecord],
    store: FeatureStore,
    weights: str | Sequence[str | None] | None,
    mean_cube: Path | None,
    device: str,
    workers: int | None,
    on_progress: OnProgress,
) -> Stored:
    """Extract the features that a head reads, one pass over the files for each frame rate."""
    fits = [run.fit(number) for number in range(len(run.streams))]
    specs = [
        stream.spec if fit is None else source_spec(stream.spec, fit.source_dim)
        for stream, fit in zip(run.streams, fits, strict=True)
    ]
    files = [weights] * len(specs) if weights is None or isinstance(weights, str) else list(weights)
    if len(files) != len(specs) or (isinstance(weights, str) and len(specs) > 1):
        raise RunError(f"{run.path} has {len(specs)} streams: give --weights once for each, in the order of the run")
    # By name: two streams may have been made from the same feature set.
    wanted: dict[str, tuple[Extractor, ExtractOptions]] = {}
    failed: dict[str, str] = {}
    for spec, file in zip(specs, files, strict=True):
        if spec.extractor == MOTION:
            if file is not None:
                raise RunError(f"{run.path} reads motion maps, which no network makes: omit --weights")
            failed |= _store_motion_maps(spec, records, store, workers, on_progress)
        elif spec.extractor in HANDCRAFTED:
            if file is not None:
                raise RunError(f"{run.path} reads features of {spec.extractor}, which has no weights: omit --weights")
            local = dataclasses.replace(local_options(spec), workers=workers)
            described = extract_local(records, store, local, lambda now: on_progress(now.finished, now.total))
            failed |= described.failed
        elif spec.name not in wanted:
            cube = mean_cube if len(specs) == 1 or "cube" in spec.preprocess else None
            extractor = extractor_for(spec, weights=file, mean_cube=cube, device=device)
            flow = parse_flow(spec.flow) if spec.flow else None
            same = {name: getattr(spec, name) for name in ("clips", "fps", "resize", "dtype")}
            wanted[spec.name] = extractor, ExtractOptions(**same, flow=flow, workers=workers)
            feature_spec(*wanted[spec.name]).require_equal(spec, str(run.path))
    for rate in {options.fps: None for _, options in wanted.values()}:
        one_pass = [one for one in wanted.values() if one[1].fps == rate]
        made = extract_many(records, store, one_pass, lambda now: on_progress(now.done + now.failed, now.total))
        for summary in made:
            failed.update(summary.failed)

    def read(video_id: str) -> FeatureRecord:
        streams = []
        for spec, fit in zip(specs, fits, strict=True):
            found = store.read(spec.name, video_id)
            streams.append(found if fit is None else derived_record(found, fit, spec.dtype))
        # Each stream reads the file itself and may note the same.
        little = (little_seen(spec, found.num_frames, found.fps) for spec, found in zip(specs, streams, strict=True))
        said = (*(text for found in streams for text in found.decode_notes), *filter(None, little))
        notes = tuple(dict.fromkeys(said))
        return dataclasses.replace(streams[0], features=joined_features(streams), decode_notes=notes)

    return failed, read


def _store_motion_maps(
    spec: FeatureSpec,
    records: Sequence[VideoRecord],
    store: FeatureStore,
    workers: int | None,
    on_progress: OnProgress,
) -> dict[str, str]:
    """Prepare raw frames and make the motion maps of `spec` of them; return video_id -> why it failed."""
    frames, how = motion_options(spec)
    options = dataclasses.replace(options_of(frames), workers=workers)
    summary = store_raw_frames(records, store, options, lambda state: on_progress(state.finished, state.total))
    motion_features(store, summary.feature_set, how)
    return summary.failed


def _store_frames(
    run: NetworkRun,
    records: Sequence[VideoRecord],
    store: FeatureStore,
    device: str,
    workers: int | None,
    on_progress: OnProgress,
) -> Stored:
    """Prepare the frames that a network reads."""
    run.network.to(pick_device(device))
    options = dataclasses.replace(options_of(run.spec), workers=workers)
    summary = store_raw_frames(records, store, options, lambda state: on_progress(state.finished, state.total))

    def read(video_id: str) -> FeatureRecord:
        stored = store.read(summary.feature_set, video_id)
        notes = (*stored.decode_notes, *_repeated(run, len(stored.features)))
        return dataclasses.replace(stored, decode_notes=notes)

    return summary.failed, read


def extractor_for(
    spec: FeatureSpec, *, weights: str | None = None, mean_cube: Path | None = None, device: str = "auto"
) -> Extractor:
    """Return the extractor that makes features of `spec`; `weights` and `mean_cube`: files, if `spec` was made with them.

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
        raise FeatureMismatchError(f"weights {extractor.weights} differ from the run's, {spec.weights}")
    if extractor.preprocess.describe() != spec.preprocess:
        way_out = "extract its features and train it again: an older version prepared them otherwise"
        if mean_cube is not None:
            way_out = "omit --mean-cube"
        if "cube" in spec.preprocess:
            way_out = "give its mean cube with --mean-cube"
        raise FeatureMismatchError(f"the run's frames were prepared as {spec.preprocess}: {way_out}")
    return extractor


def predict_scores(run: HeadRun | NetworkRun, features: np.ndarray) -> np.ndarray:
    """Return (K,) float64 class probabilities of one video from its (N, D) features, or (L, C * H * W) uint8 frames.

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
    if run.config.num_steps is not None:
        features = features[sparse_clip_indices(len(features), run.config.num_steps)]
    batch = FeatureBatch(
        torch.from_numpy(np.ascontiguousarray(features, np.float32))[None].to(run.head.input_mean.device),
        torch.tensor([len(features)]),
        torch.zeros(1, dtype=torch.int64),
    )
    return class_probabilities(run.head, [batch])[0]


def top_k(classes: Sequence[str], probabilities: np.ndarray, k: int = 3) -> list[tuple[str, float]]:
    """Return the k most probable (class, probability), best first; fewer if there are fewer classes."""
    order = np.argsort(-np.asarray(probabilities), kind="stable")[:k]
    return [(classes[number], float(probabilities[number])) for number in order]


def _repeated(run: NetworkRun, num_frames: int) -> list[str]:
    """Return a note on a video that is shorter than a clip, or a stateful network's window."""
    sampling, clip_len = sampling_of(run.config), run.network.clip_len
    if stepped_length(num_frames, sampling.step) >= clip_len:
        return []
    if num_frames == 1:
        return [f"1 frame: shown {clip_len} times, so nothing moves"]
    if run.network.votes:
        return [f"{num_frames} frames: the last one shown again to fill the {clip_len} that the network sees at once"]
    if sampling.spread:
        return [f"{num_frames} frames: some shown repeatedly to fill the {clip_len} that the network sees at once"]
    return [f"{num_frames} frames: played backwards and forwards to fill the {clip_len} that the network sees at once"]


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


def sample_frames(path: Path, count: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Return (count, H, W, 3) uint8 RGB frames spread evenly over the frames [start, stop) of a video, by reading it once.

    Fewer if the file ends before it should.
    """
    info = probe(path)
    last = max(start, info.packet_frames - 2 if stop is None else stop - 1)
    wanted = set(np.linspace(start, last, count).round().astype(int).tolist())
    frames = [frame.copy() for index, frame in FrameReader(path, start=start, stop=stop, info=info) if index in wanted]
    return np.stack(frames)
