"""Fisher vectors and bags of words fitted on a split's training videos only, one row per video; see `fitted` and `fisher`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError
from har_pipeline.core.records import EncodingSpec, FeatureSpec, Split
from har_pipeline.features import fitted
from har_pipeline.features.fisher import Encoder, blocks_of, encoded_dim, fit_encoder, points_in
from har_pipeline.features.fitted import FitSummary, OnProgress
from har_pipeline.features.options import EncodeOptions
from har_pipeline.features.store import FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSummary(FitSummary):
    """What a job did."""

    encoding: str
    size: int  # Gaussians or words of each block
    blocks: tuple[str, ...]  # names
    without_rows: int  # training videos none of whose rows has a value
    unconverged: tuple[str, ...]  # blocks whose mixture still changed when its fit ended


def encoded_spec(source: FeatureSpec, split: Split, options: EncodeOptions) -> FeatureSpec:
    """Return the spec of `source` encoded on a split.

    Raises: FeatureMismatchError if `source` is a fitted set itself, or of whole numbers, as pixels are.
    """
    fitted.require_unfitted(source, "encode")
    if not source.dtype.startswith("float"):
        raise FeatureMismatchError(
            f"{source.name}: {source.dtype} pixels are no descriptors: encode extracted features"
        )
    fisher = options.encoding == "fisher"
    encoding = EncodingSpec(
        source=source.name,
        encoding=options.encoding,
        size=options.gaussians if fisher else options.words,
        components=options.components if fisher else None,
        sample=options.sample,
        seed=options.seed,
        protocol=split.protocol,
        split=split.index,
        train_ids_sha256=fitted.train_ids_sha256(split),
    )
    return dataclasses.replace(source, feature_dim=encoded_dim(blocks_of(source), encoding), encoding=encoding)


def encode_features(
    store: FeatureStore,
    feature_set: str,
    split: Split,
    options: EncodeOptions | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> EncodeSummary:
    """Fit an encoding on rows drawn from the split's training videos and write every video's encoded row that is missing.

    `feature_set` may be any unique prefix. Validation and test videos are encoded, never fitted on. Videos are read one
    by one; the memory holds one of them, the sample, and a fit's (sample, Gaussians) float64 matrices.
    Raises: StoreError if features are damaged, or missing without `allow_missing`; ExtractionError if a feature is not
    finite, or there are fewer rows than Gaussians or words; FeatureMismatchError if the set cannot be encoded.
    """
    options = options or EncodeOptions()
    source = store.resolve(feature_set)
    spec = encoded_spec(store.spec(source), split, options)
    summary, facts = fitted.derive_fitted(
        store,
        spec,
        split,
        lambda: _fit(store, spec, split, options, on_progress),
        "encode",
        on_progress,
        options.name,
    )
    assert spec.encoding is not None
    try:
        blocks = {str(name): dict(one) for name, one in facts["blocks"].items()}
        return EncodeSummary(
            **dataclasses.asdict(summary),
            encoding=spec.encoding.encoding,
            size=spec.encoding.size,
            blocks=tuple(blocks),
            without_rows=int(facts["without_rows"]),
            unconverged=tuple(name for name, one in blocks.items() if one.get("converged") is False),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise fitted.damaged_facts(store, spec, error) from error


def _fit(
    store: FeatureStore, spec: FeatureSpec, split: Split, options: EncodeOptions, on_progress: OnProgress
) -> tuple[Encoder, dict[str, Any]]:
    """Return an encoder and the facts stored with it."""
    assert spec.encoding is not None
    source = spec.encoding.source
    videos = fitted.training_videos(store, source, split, options.allow_missing)
    share = options.sample // len(videos.ids)
    if not share:
        raise ExtractionError(
            f"--sample {options.sample}: fewer rows than the {len(videos.ids)} training videos, each of which gives at least "
            "one"
        )
    drawn, without = [], 0
    for number, features in enumerate(videos.features(on_progress)):
        rows = points_in(features)
        without += not len(rows)
        if len(rows) > share:
            # A generator for each video: its rows do not depend on how many another one has.
            generator = np.random.default_rng((options.seed, number))
            rows = rows[np.sort(generator.choice(len(rows), share, replace=False))]
        drawn.append(rows)
    sample = np.concatenate(drawn)
    del drawn
    try:
        encoder, blocks = fit_encoder(sample, blocks_of(store.spec(source)), spec.encoding)
    except ExtractionError as error:
        raise ExtractionError(f"{source}: {error}") from error
    return encoder, {**videos.facts(len(sample)), "without_rows": without, "blocks": blocks}
