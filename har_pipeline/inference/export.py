"""A trained run as one ONNX file, for programs without torch, compared with the run itself before it is kept.

Of a head, `features` (videos, steps, D) float32 and `lengths` (videos,) int64 become `probabilities` (videos, K) float32.
Videos have any number of steps; what follows a video's length is not read. Several streams stand side by side in D.
With its extractor, `clips` (videos, clips, T, H, W, 3) uint8 RGB, cut and scaled as the feature spec says (of flow (..., 2)
float32, px/frame), stand in the place of `features`.
Of convnet3d, a network on raw video, `frames` (videos, T, H, W, C) uint8 become the clip's probabilities.
The file's metadata hold `classes` and `spec` (JSON), `input`, and which run, net, options and version made it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from har_pipeline import __version__
from har_pipeline.core.errors import RunError
from har_pipeline.core.files import new_file
from har_pipeline.core.records import FeatureSpec
from har_pipeline.features.fitted import source_spec
from har_pipeline.features.options import MOTION
from har_pipeline.features.pca import Projection
from har_pipeline.inference.load import HeadRun, NetworkRun, load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.inference.sources import extractor_for
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.models.heads.for_onnx import for_onnx
from har_pipeline.video.local.spec import HANDCRAFTED
from har_pipeline.video.preprocess import num_crops, parse_resize

# How far a probability may be from the run's own.
TOLERANCE = 1e-4
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """What was exported."""

    path: Path
    inputs: Mapping[str, tuple[str, ...]]  # name -> its axes, and its type at the end
    classes: tuple[str, ...]
    difference: float  # the largest between a probability of ONNX Runtime's and the run's own
    size: int  # bytes


def export_onnx(
    run: HeadRun | NetworkRun | Path | str,
    path: Path,
    *,
    with_extractor: bool = False,
    weights: str | None = None,
    mean_cube: Path | None = None,
) -> ExportedModel:
    """Write a run as an ONNX file; see the module for its inputs.

    with_extractor: of the head of a single stream, the net that makes its features too. weights, mean_cube: the extractor's
    files, as in `predict`.
    Raises: RunError if the packages are not installed, the run cannot be said in ONNX, or ONNX Runtime's probabilities are
    further than 1e-4 from the run's; FeatureMismatchError if the extractor's weights cannot be found. Nothing is written then.
    """
    runtime = _runtime()
    run = load_run(run) if isinstance(run, Path | str) else run
    if isinstance(run, NetworkRun):
        if with_extractor or weights or mean_cube:
            raise RunError(f"{run.path} is a network on raw video and has no extractor: omit its options")
        model = _network_model(run)
    elif with_extractor:
        model = _whole_model(run, weights, mean_cube)
    elif weights or mean_cube:
        raise RunError("weights and a mean cube are those of the extractor: they belong to --with-extractor")
    else:
        model = _head_model(run)
    with new_file(path) as partial:
        _write(model, partial, _metadata(run, model))
        difference = _difference(runtime, model, partial)
        if not difference <= TOLERANCE:
            raise RunError(
                f"{run.path}: ONNX Runtime's probabilities are up to {difference:.2g} from the run's, more than {TOLERANCE:g}: "
                "the file is not kept"
            )
        size = partial.stat().st_size
    return ExportedModel(path=path, inputs=model.axes, classes=run.classes, difference=difference, size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What is exported."""

    module: nn.Module
    axes: Mapping[str, tuple[str, ...]]  # of each input the names of its dynamic axes, its fixed sizes, and its type
    says: str  # what the input is
    # Inputs with the probabilities (B, K) that the run gives for them. The first pair also traces the module, which takes a
    # size of 1 for a fixed one.
    pairs: Sequence[tuple[Arrays, np.ndarray]]


class _Head(nn.Module):
    """features (B, N, D), lengths (B,) -> probabilities (B, K)."""

    def __init__(self, run: HeadRun) -> None:
        super().__init__()
        self.head, self.num_steps = for_onnx(run.head), run.config.num_steps
        self.rows_per_clip = run.spec.rows_per_clip

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if self.num_steps is not None:
            features, lengths = _steps(features, lengths, self.num_steps, self.rows_per_clip)
        return self.head(features, lengths).softmax(dim=1)


def _steps(
    features: torch.Tensor, lengths: torch.Tensor, count: int, rows_per_clip: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` evenly spaced clips of each video, as `video.clips.sparse_clip_indices` takes them, and their rows."""
    last = lengths[:, None] // rows_per_clip - 1
    taken = last // 2 if count == 1 else torch.arange(count) * last // (count - 1)
    rows = (taken[..., None] * rows_per_clip + torch.arange(rows_per_clip)).flatten(1)
    taken_features = features.gather(1, rows[..., None].expand(-1, -1, features.shape[2]))
    return taken_features, torch.full_like(lengths, count * rows_per_clip)


def _head_model(run: HeadRun) -> _Model:
    dim = sum(run.head.stream_dims)
    # Near to what the head was trained on, so that the comparison is of probabilities that differ from class to class.
    mean, scale = run.head.input_mean.numpy(), run.head.input_scale.numpy()
    spread = 1 / np.where(scale > 0, scale, 1)
    if run.head.input_op:
        mean, spread = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    rng = np.random.default_rng(0)
    pairs = []
    for clips in ([5, 2, 3], [1], [11, 4]):
        lengths = [run.spec.rows_per_clip * count for count in clips]
        features = [(mean + spread * rng.standard_normal((length, dim))).astype(np.float32) for length in lengths]
        pairs.append(
            (
                {"features": _padded(features), "lengths": np.array(lengths, np.int64)},
                np.stack([predict_scores(run, video) for video in features]),
            )
        )
    axes = {"features": ("videos", "steps", str(dim), "float32"), "lengths": ("videos", "int64")}
    says = f"features: {', '.join(one.feature_set for one in run.streams)}, side by side; lengths: steps of each video"
    if run.spec.rows_per_clip > 1:
        says += f", {run.spec.rows_per_clip} tokens for each of its clips"
    return _Model(module=_Head(run), axes=axes, says=says, pairs=pairs)


def _padded(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Return (B, Nmax, ...) of arrays (N, ...), with ones after their end: nothing there may count."""
    longest = max(map(len, videos))
    return np.stack([np.concatenate([v, np.ones((longest - len(v), *v.shape[1:]), v.dtype)]) for v in videos])


class _Whole(nn.Module):
    """clips (B, N, T, H, W, C), lengths (B,) -> probabilities (B, K)."""

    def __init__(self, extractor: Extractor, kept: str, fit: Projection | None, dtype: str, head: _Head) -> None:
        super().__init__()
        self.net, self.preprocess, self.head = extractor.module, extractor.preprocess, head
        self.tokens = head.rows_per_clip
        # The type that features are stored in before they are reduced, and after.
        self.kept, self.reduced = getattr(torch, kept), getattr(torch, dtype)
        self.fit = fit
        if fit is not None:
            scale = fit.explained_variance**-0.5 if fit.whiten else np.ones(len(fit.components))
            self.register_buffer("mean", torch.from_numpy(np.array(fit.mean)))
            self.register_buffer("components", torch.from_numpy(fit.components.T * scale))

    def forward(self, clips: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        videos, count = clips.shape[:2]
        features = self.net(self.preprocess(clips.flatten(0, 1), torch.float32)).float().to(self.kept)
        if self.tokens > 1:
            features, count, lengths = features.flatten(0, 1), count * self.tokens, lengths * self.tokens
        if self.fit is not None:
            features = (features.double() - self.mean) @ self.components
            if self.fit.l2:
                norms = features.norm(dim=1, keepdim=True)
                features = features / torch.where(norms > 0, norms, 1.0)
            features = features.to(self.reduced)
        return self.head(features.float().unflatten(0, (videos, count)), lengths)


def _whole_model(run: HeadRun, weights: str | None, mean_cube: Path | None) -> _Model:
    if len(run.streams) > 1:
        raise RunError(f"{run.path} reads {len(run.streams)} streams: with its extractor a run of one can be exported")
    fit, spec = run.fit(), run.spec
    if spec.encoding is not None:
        raise RunError(f"{run.path} reads {spec.encoding.encoding} vectors of whole videos: export the head alone")
    if spec.extractor in HANDCRAFTED or spec.extractor == MOTION:
        raise RunError(f"{run.path} reads features of {spec.extractor}, which no network makes: export the head alone")
    if spec.precision != "fp32":
        raise RunError(
            f"{run.path}: its net computed in {spec.precision}, which ONNX Runtime does not on a CPU: extract "
            "with --precision fp32 and train again, or export the head alone"
        )
    if num_crops(parse_resize(spec.resize)) > 1:
        raise RunError(f"{run.path} reads means over several crops of each clip: export the head alone")
    assert fit is None or isinstance(fit, Projection)
    source: FeatureSpec = spec if fit is None else source_spec(spec, fit.source_dim)
    extractor = extractor_for(source, weights=weights, mean_cube=mean_cube, device="cpu")
    flow = spec.stream == "flow"
    shape = (spec.clips.clip_len, *parse_resize(spec.resize).shape, 2 if flow else 3)
    rng = np.random.default_rng(0)

    def drawn(count: int) -> np.ndarray:
        if flow:
            return rng.normal(0, 3, (count, *shape)).astype(np.float32)
        # Pictures are smooth: noise of single px is nothing that a net knows.
        coarse = rng.integers(0, 256, (count, 1, -(-shape[1] // 16), -(-shape[2] // 16), 3), np.uint8)
        fine = coarse.repeat(shape[0], 1).repeat(16, 2).repeat(16, 3)
        return np.ascontiguousarray(fine[:, :, : shape[1], : shape[2]])

    pairs = []
    for lengths in ([2, 1], [1]):
        clips = [drawn(length) for length in lengths]
        expected = []
        for video in clips:
            with np.errstate(over="ignore"):
                rows = extractor(torch.from_numpy(video)).cpu().numpy().astype(source.dtype)
            rows = rows.reshape(-1, rows.shape[-1])  # tokens are rows of their own
            expected.append(predict_scores(run, rows if fit is None else fit.apply(rows, spec.dtype)))
        pairs.append(({"clips": _padded(clips), "lengths": np.array(lengths, np.int64)}, np.stack(expected)))
    axes = {
        "clips": ("videos", "clips", *map(str, shape), "float32" if flow else "uint8"),
        "lengths": ("videos", "int64"),
    }
    pixels = f"optical flow (x, y) in px/frame, {spec.flow}" if flow else "RGB frames, 0 to 255"
    says = f"clips: {pixels}, {spec.resize}, as the spec samples them; lengths: clips of each video"
    return _Model(
        module=_Whole(extractor, source.dtype, fit, spec.dtype, _Head(run)), axes=axes, says=says, pairs=pairs
    )


class _Network(nn.Module):
    """frames (B, T, H, W, C) uint8 -> probabilities (B, K)."""

    def __init__(self, run: NetworkRun) -> None:
        super().__init__()
        self.network = run.network

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        logits, _ = self.network(frames.movedim(-1, 2).to(torch.float32) / 255)
        return logits.softmax(dim=1)


def _network_model(run: NetworkRun) -> _Model:
    if not run.network.votes:
        raise RunError(
            f"{run.path}: the steps of {run.config.model} are written for training and live decisions, and ONNX has no "
            "ConvLSTM; of the networks on raw video convnet3d is exported, and every head of `har train`"
        )
    channels, height, width = run.frame_shape
    shape = (run.network.clip_len, height, width, channels)
    rng = np.random.default_rng(0)
    pairs = []
    for videos in (2, 1):
        frames = rng.integers(0, 256, (videos, *shape), np.uint8)
        with torch.inference_mode():
            logits, _ = run.network(torch.from_numpy(frames).movedim(-1, 2).to(torch.float32).div_(255))
        pairs.append(({"frames": frames}, logits.double().softmax(1).numpy()))
    axes = {"frames": ("videos", *map(str, shape), "uint8")}
    says = f"frames: one clip of each video, {run.spec.stream}, {run.spec.resize}; {run.spec.preprocess}"
    return _Model(module=_Network(run), axes=axes, says=says, pairs=pairs)


def _runtime() -> Any:
    """Return ONNX Runtime. Raises: RunError with the line that installs what is missing."""
    try:
        return [importlib.import_module(name) for name in PACKAGES][PACKAGES.index("onnxruntime")]
    except ImportError as error:
        raise RunError(f"an ONNX file needs {', '.join(PACKAGES)}: pip install 'har-pipeline[onnx]'") from error


def _metadata(run: HeadRun | NetworkRun, model: _Model) -> dict[str, str]:
    specs = [stream.spec.to_dict() for stream in run.streams]
    return {
        "classes": json.dumps(list(run.classes), ensure_ascii=False),
        "spec": json.dumps(specs[0] if len(specs) == 1 else specs),
        "feature_set": ", ".join(stream.feature_set for stream in run.streams),
        "options": json.dumps(dict(run.info["options"])),
        "input": model.says,
        "run": run.path.absolute().name,
        "finished": str(run.info.get("finished", "")),
        "har_pipeline": __version__,
    }


def _write(model: _Model, path: Path, metadata: Mapping[str, str]) -> None:
    import onnx_ir as ir

    given, _ = model.pairs[0]
    with _quiet():
        try:
            program = torch.onnx.export(
                model.module.eval(),
                tuple(torch.from_numpy(array) for array in given.values()),
                dynamo=True,
                verbose=False,
                input_names=list(model.axes),
                output_names=["probabilities"],
                dynamic_shapes=tuple(_dynamic(axes, number) for number, axes in enumerate(model.axes.values())),
            )
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            raise RunError(f"torch cannot say this model in ONNX ({type(error).__name__}: {reason[0]})") from error
        assert program is not None
        for value, axes in zip(program.model.graph.inputs, model.axes.values(), strict=True):
            value.shape = ir.Shape([int(axis) if axis.isdigit() else axis for axis in axes[:-1]])
        program.model.graph.outputs[0].shape = ir.Shape(["videos", len(model.pairs[0][1][0])])
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)


def _dynamic(axes: Sequence[str], number: int) -> dict[int, Any]:
    """Return the axes that may have any size; a name may be given to one input only, others are found to be the same."""
    names = {place: name for place, name in enumerate(axes[:-1]) if not name.isdigit()}
    return names if number == 0 else dict.fromkeys(names, torch.export.Dim.DYNAMIC)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notes to itself: on its optimisations, and on parts of torch that it will lose."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _difference(runtime: Any, model: _Model, path: Path) -> float:
    """Return the largest difference between the file's probabilities and the run's; infinity for one that is no number."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for given, expected in model.pairs:
        (found,) = session.run(None, given)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        largest = max(largest, float(np.abs(found - expected).max()))
    return largest
