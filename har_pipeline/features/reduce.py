"""PCA fitted on a split's training videos only, and the feature set of all videos projected with it; see `fitted`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import FeatureSpec, ReductionSpec, Split
from har_pipeline.features import fitted
from har_pipeline.features.fitted import FitSummary, OnProgress
from har_pipeline.features.pca import Fit, check_dim, fit_exact, fit_randomised, in_blocks
from har_pipeline.features.store import FeatureStore, writing_to


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceOptions:
    """How to reduce; see `ReductionSpec`."""

    dim: int
    whiten: bool = False
    l2: bool = False
    seed: int | None = None  # of the randomised solver; None: the exact one
    allow_missing: bool = False  # leave out training videos that have no features
    name: str | None = None  # for the feature set, see `FeatureStore.give_name`


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceSummary(FitSummary):
    """What a job did."""

    explained: float  # share of the training rows' variance that is kept


def reduced_spec(source: FeatureSpec, split: Split, options: ReduceOptions) -> FeatureSpec:
    """Return the spec of `source` reduced on a split. Raises: FeatureMismatchError if `source` is a fitted set itself."""
    fitted.require_unfitted(source, "reduce")
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
        train_ids_sha256=fitted.train_ids_sha256(split),
    )
    return dataclasses.replace(source, feature_dim=options.dim, reduction=reduction)


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
    feature set is reduced or encoded already.
    """
    source = store.resolve(feature_set)
    spec = reduced_spec(store.spec(source), split, options)
    summary, facts = fitted.derive_fitted(
        store,
        spec,
        split,
        lambda: _fit(store, source, split, options, on_progress),
        "project",
        on_progress,
        options.name,
    )
    try:
        explained = float(facts["explained"])
    except (KeyError, TypeError, ValueError) as error:
        raise fitted.damaged_facts(store, spec, error) from error
    return ReduceSummary(**dataclasses.asdict(summary), explained=explained)


def _fit(
    store: FeatureStore, source: str, split: Split, options: ReduceOptions, on_progress: OnProgress
) -> tuple[Fit, dict[str, Any]]:
    """Return a fit and the facts stored with it."""
    videos = fitted.training_videos(store, source, split, options.allow_missing)
    feature_dim, num_rows = store.spec(source).feature_dim, videos.num_rows
    check_dim(options.dim, num_rows, feature_dim)

    def blocks() -> Iterator[np.ndarray]:
        return in_blocks(videos.features(on_progress))

    if options.seed is None:
        with writing_to(store.path):
            fit = fit_exact(blocks, options.dim, num_rows, feature_dim, spill_dir=store.folder)
    else:
        fit = fit_randomised(blocks, options.dim, num_rows, feature_dim, options.seed)
    explained = float(fit.explained_variance.sum() / fit.total_variance)
    return fit, {**videos.facts(num_rows), "total_variance": fit.total_variance, "explained": explained}
