"""PCA fitted on a split's training videos only, and the feature set of all videos projected with it.

The fit is stored first, as a whole; then each video is projected and committed separately. A job that was killed resumes
with the stored fit, so that its result is the same, bit for bit. A run trained on reduced features keeps a copy of the fit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, StoreError
from har_pipeline.core.records import FeatureRecord, FeatureSpec, ReductionSpec, Split, VideoSource
from har_pipeline.features.derived import derive_videos
from har_pipeline.features.pca import Fit, Projection, check_dim, fit_exact, fit_randomised, in_blocks
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.store import FeatureStore, writing_to

# Called with what is being done (`fit` or `project`), the videos done and their total.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceOptions:
    """How to reduce; see `ReductionSpec`."""

    dim: int
    whiten: bool = False
    l2: bool = False
    seed: int | None = None  # of the randomised solver; None: the exact one
    allow_missing: bool = False  # leave out training videos that have no features


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceSummary:
    """What a job did."""

    feature_set: str
    source: str  # the feature set that was reduced
    dim: int
    explained: float  # share of the training rows' variance that is kept
    fitted: bool  # False if a stored fit was used
    num_train: int  # training videos of the fit
    num_rows: int  # their clips
    missing: tuple[str, ...]  # training videos that had no features
    total: int  # videos of the source
    already: int  # projected before
    done: int  # projected now
    seconds: float


def train_ids_sha256(split: Split) -> str:
    """Return the sha256 (hex) of the split's training ids, sorted, one a line."""
    return hashlib.sha256("\n".join(sorted(split.train)).encode()).hexdigest()


def reduced_spec(source: FeatureSpec, split: Split, options: ReduceOptions) -> FeatureSpec:
    """Return the spec of `source` reduced on a split. Raises: FeatureMismatchError if `source` is reduced itself."""
    if source.reduction is not None:
        raise FeatureMismatchError(f"{source.name} is reduced already: reduce its source, {source.reduction.source}")
    if options.dim < 1:
        raise ExtractionError(f"--dim must be at least 1, not {options.dim}")
    reduction = ReductionSpec(
        source=source.name,
        dim=options.dim,
        whiten=options.whiten,
        l2=options.l2,
        solver="exact" if options.seed is None else f"randomised:{options.seed}",
        protocol=split.protocol,
        split=split.index,
        train_ids_sha256=train_ids_sha256(split),
    )
    return dataclasses.replace(source, feature_dim=options.dim, reduction=reduction)


def source_spec(spec: FeatureSpec, feature_dim: int) -> FeatureSpec:
    """Return the spec of the D-dimensional features that `spec` reduces.

    Raises: FeatureMismatchError if that is not the feature set which the reduction names.
    """
    source = dataclasses.replace(spec, feature_dim=feature_dim, reduction=None)
    if spec.reduction is None or spec.reduction.source != source.name:
        raise FeatureMismatchError(f"{spec.name} was not made from {source.name}")
    return source


def require_same_training_videos(feature_set: str, spec: FeatureSpec, split: Split) -> None:
    """Check that features of `spec`, if reduced or made by a net of ours, know exactly the videos that `split` trains on.

    Raises: FeatureMismatchError naming both splits and the command to run: components fitted on a test video leak it, and so
    does a net that learned it.
    """
    trained = spec.trained_on
    if trained is not None and trained.train_ids_sha256 != train_ids_sha256(split):
        mine, theirs = f"{trained.protocol} split {trained.split}", f"{split.protocol} split {split.index}"
        if mine == theirs:
            mine, theirs = f"another {mine}", f"this {theirs}"
        raise FeatureMismatchError(
            f"{feature_set} was made by a net that was trained on the training videos of {mine} (ids "
            f"{trained.train_ids_sha256[:10]}), but {theirs} trains on {len(split.train)} others (ids "
            f"{train_ids_sha256(split)[:10]}), so the net may know test videos. Train a net for this split: `har "
            f"train-video MANIFEST --model {spec.extractor} --protocol {split.protocol} --split {split.index}`, with the "
            "--val-fraction and --seed of `har train`, and extract with its --weights"
        )
    reduction = spec.reduction
    if reduction is None or reduction.train_ids_sha256 == train_ids_sha256(split):
        return
    mine, theirs = f"{reduction.protocol} split {reduction.split}", f"{split.protocol} split {split.index}"
    if mine == theirs:
        mine, theirs = f"another {mine}", f"this {theirs}"
    raise FeatureMismatchError(
        f"{feature_set} was fitted on the training videos of {mine} (ids {reduction.train_ids_sha256[:10]}), but {theirs} "
        f"trains on {len(split.train)} others (ids {train_ids_sha256(split)[:10]}), so its components may know test "
        f"videos. Reduce for this split: `har features reduce STORE --features {reduction.source} --dim {reduction.dim} "
        f"--manifest MANIFEST --protocol {split.protocol} --split {split.index}`, with the --val-fraction and --seed "
        "of `har train`; --patience and --val-fraction take validation videos away from the training ones "
        "(--val-fraction 0.2 where --patience is given without it)"
    )


def read_projection(store: FeatureReader, feature_set: str, reduction: ReductionSpec) -> Projection:
    """Return the projection of a reduced feature set. Raises: StoreError if it is missing or damaged."""
    return projection_of(store.read_reduction(feature_set), reduction)


def projection_of(arrays: Mapping[str, np.ndarray], reduction: ReductionSpec) -> Projection:
    """Return the projection of arrays as `projection_arrays` gives them. Raises: StoreError if they do not fit."""
    try:
        mean, components, variance = (arrays[name] for name in ("mean", "components", "explained_variance"))
    except KeyError as error:
        raise StoreError(f"the reduction to {reduction.dim} values has no array {error}; reduce again") from error
    if components.shape != (reduction.dim, len(mean)) or variance.shape != (reduction.dim,):
        raise StoreError(
            f"components {components.shape}, variances {variance.shape}: not of a reduction to {reduction.dim}"
        )
    return Projection(
        mean.astype(np.float64),
        components.astype(np.float64),
        variance.astype(np.float64),
        reduction.whiten,
        reduction.l2,
    )


def projection_arrays(fit: Fit | Projection) -> dict[str, np.ndarray]:
    """Return mean (D,) float64, components (dim, D) float32 and explained_variance (dim,) float64."""
    return {
        "mean": fit.mean,
        # float32 halves a run folder; its rounding is far below that of float16 features.
        "components": fit.components.astype(np.float32),
        "explained_variance": fit.explained_variance,
    }


def reduce_features(
    store: FeatureStore,
    feature_set: str,
    split: Split,
    options: ReduceOptions,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> ReduceSummary:
    """Fit a PCA on all clips of the split's training videos and write every video's projection that is missing.

    `feature_set` may be any unique prefix. Validation and test videos are projected, never fitted on. Videos are read
    one by one; see `fit_exact` for the memory.
    Raises: StoreError if features are damaged, or missing without `allow_missing`; ExtractionError if a feature is not
    finite, the training clips do not allow the dimension, or a projection exceeds the dtype; FeatureMismatchError if the
    feature set is reduced already.
    """
    started = time.perf_counter()
    source = store.resolve(feature_set)
    spec = reduced_spec(store.spec(source), split, options)
    store.remove_debris()
    facts = store.reduction_attributes(spec.name)
    fitted = facts is None
    if facts is None:
        arrays, facts = _fit(store, source, spec, split, options, on_progress)
        # If two processes fitted, both read the first one's components below.
        store.write_reduction(spec.name, arrays, facts)
        facts = store.reduction_attributes(spec.name) or facts
    assert spec.reduction is not None
    projection = read_projection(store, spec.name, spec.reduction)
    store.create_feature_set(spec)
    total, missing = derive_videos(
        store,
        source,
        spec.name,
        lambda record: _projected(record, projection, spec.dtype),
        lambda done, total: on_progress("project", done, total),
    )
    try:
        return ReduceSummary(
            feature_set=spec.name,
            source=source,
            dim=spec.feature_dim,
            explained=float(facts["explained"]),
            fitted=fitted,
            num_train=int(facts["num_train"]),
            num_rows=int(facts["num_rows"]),
            missing=tuple(facts["missing"]),
            total=total,
            already=total - missing,
            done=missing,
            seconds=round(time.perf_counter() - started, 3),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{store.path}: what was written beside the reduction of {spec.name} is damaged ({error!r}); delete it with "
            "the feature set of that name, and reduce again"
        ) from error


def _fit(
    store: FeatureStore,
    source: str,
    spec: FeatureSpec,
    split: Split,
    options: ReduceOptions,
    on_progress: OnProgress,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a fit and the facts stored with it."""
    lengths = store.num_clips(source)
    ids = sorted(video_id for video_id in split.train if video_id in lengths)
    missing = sorted(set(split.train) - lengths.keys())
    if not ids or (missing and not options.allow_missing):
        raise StoreError(
            f"{source}: no features of {len(missing)} of the {len(split.train)} training videos, such as {missing[:3]}. "
            "Run `har extract` on the manifest, or leave them out with --allow-missing"
        )
    feature_dim = store.spec(source).feature_dim
    num_rows = sum(lengths[video_id] for video_id in ids)
    check_dim(options.dim, num_rows, feature_dim)

    def blocks() -> Iterator[np.ndarray]:
        return in_blocks(_training_features(store, source, ids, on_progress))

    if options.seed is None:
        with writing_to(store.path):
            fit = fit_exact(blocks, options.dim, num_rows, feature_dim, spill_dir=store.path)
    else:
        fit = fit_randomised(blocks, options.dim, num_rows, feature_dim, options.seed)
    facts = {
        "source": source,
        "protocol": split.protocol,
        "split": split.index,
        "seed": split.seed,
        "manifest_sha256": split.manifest_sha256,
        "train_ids_sha256": train_ids_sha256(split),
        "num_train": len(ids),
        "missing": missing,
        "num_rows": num_rows,
        "total_variance": fit.total_variance,
        "explained": float(fit.explained_variance.sum() / fit.total_variance),
    }
    return projection_arrays(fit), facts


def _training_features(
    store: FeatureStore, source: str, ids: Sequence[str], on_progress: OnProgress
) -> Iterator[np.ndarray]:
    for number, video_id in enumerate(ids):
        on_progress("fit", number, len(ids))
        features = store.read(source, video_id).features
        if not np.isfinite(features).all():
            raise ExtractionError(f"{source}: {video_id}: a feature is not finite; extract the video again")
        yield features
    on_progress("fit", len(ids), len(ids))


def _projected(record: FeatureRecord, projection: Projection, dtype: str) -> tuple[np.ndarray, VideoSource]:
    return projection.apply(record.features, dtype), record
