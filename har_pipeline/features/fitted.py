"""Feature sets made from another one by what was fitted on a split's training videos: a PCA, an encoding.

The fit is stored first, as a whole; then each video is derived and committed separately. A job that was killed resumes with
the stored fit, so that its result is the same, bit for bit. Training on another split refuses the set, whose fit may know test
videos, and a run keeps a copy of the fit.
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
from har_pipeline.core.records import EncodingSpec, FeatureRecord, FeatureSpec, ReductionSpec, Split
from har_pipeline.features.derived import derive_videos, whole_video
from har_pipeline.features.fisher import Encoder, encoder_arrays, encoder_of, points_in
from har_pipeline.features.options import EncodeOptions, made_by
from har_pipeline.features.pca import Components, Projection
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.store import FeatureStore

# Called with what is being done (`fit`, then `project` or `encode`), the videos done and their total.
OnProgress = Callable[[str, int, int], None]
# What turns the features of a video into those of the derived set.
Fit = Projection | Encoder

NO_ROWS = "no row of its features has a value, as of a video where nothing moves: encoded as zeros"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSummary:
    """What a job did."""

    feature_set: str
    source: str  # the feature set that it was made from
    dim: int
    fitted: bool  # False if a stored fit was used
    num_train: int  # training videos of the fit
    num_rows: int  # their clips, or of an encoding the rows drawn from them
    missing: tuple[str, ...]  # training videos that had no features
    total: int  # videos of the source
    already: int  # derived before
    done: int  # derived now
    seconds: float


def train_ids_sha256(split: Split) -> str:
    """Return the sha256 (hex) of the split's training ids, sorted, one a line."""
    return hashlib.sha256("\n".join(sorted(split.train)).encode()).hexdigest()


def require_unfitted(spec: FeatureSpec, what: str) -> None:
    """Check that features were made from files. what: that is to be done with them: `reduce`, `encode`.

    Raises: FeatureMismatchError naming their source.
    """
    if spec.fit is not None:
        state = "reduced" if spec.reduction else "encoded"
        raise FeatureMismatchError(f"{spec.name} is {state} already: {what} its source, {spec.fit.source}")


def source_spec(spec: FeatureSpec, feature_dim: int) -> FeatureSpec:
    """Return the spec of the D-dimensional features that a derived set was made from.

    Raises: FeatureMismatchError if that is not the feature set which the spec names.
    """
    source = dataclasses.replace(spec, feature_dim=feature_dim, reduction=None, encoding=None)
    if spec.fit is None or spec.fit.source != source.name:
        raise FeatureMismatchError(f"{spec.name} was not made from {source.name}")
    return source


def require_same_training_videos(feature_set: str, spec: FeatureSpec, split: Split) -> None:
    """Check that features of `spec`, if fitted or made by a net of ours, know exactly the videos that `split` trains on.

    Raises: FeatureMismatchError naming both splits and the command to run: what was fitted on a test video leaks it, and so
    does a net that learned it.
    """
    trained = spec.trained_on
    if trained is not None and trained.train_ids_sha256 != train_ids_sha256(split):
        mine, theirs = _both_splits(trained.protocol, trained.split, split)
        raise FeatureMismatchError(
            f"{feature_set} was made by a net that was trained on the training videos of {mine} (ids "
            f"{trained.train_ids_sha256[:10]}), but {theirs} trains on {len(split.train)} others (ids "
            f"{train_ids_sha256(split)[:10]}), so the net may know test videos. Train a net for this split: `har "
            f"train-video MANIFEST --model {spec.extractor} --protocol {split.protocol} --split {split.index}"
            f"{'' if split.val else ' --val-fraction 0'}`, with the --val-fraction and --seed of `har train`, and extract with "
            "its --weights"
        )
    fit = spec.fit
    if fit is None or fit.train_ids_sha256 == train_ids_sha256(split):
        return
    mine, theirs = _both_splits(fit.protocol, fit.split, split)
    what, command = "components", "Reduce"
    if isinstance(fit, EncodingSpec):
        what, command = "Gaussians" if fit.encoding == "fisher" else "words", "Encode"
    raise FeatureMismatchError(
        f"{feature_set} was fitted on the training videos of {mine} (ids {fit.train_ids_sha256[:10]}), but {theirs} "
        f"trains on {len(split.train)} others (ids {train_ids_sha256(split)[:10]}), so its {what} may know test "
        f"videos. {command} for this split: `{_command(fit)} "
        f"--manifest MANIFEST --protocol {split.protocol} --split {split.index}`, with the --val-fraction and --seed "
        "of `har train`; --patience and --val-fraction take validation videos away from the training ones "
        "(--val-fraction 0.2 where --patience is given without it)"
    )


def _both_splits(protocol: str, number: int, split: Split) -> tuple[str, str]:
    """Return how a message calls the split of a fit, and another one."""
    mine, theirs = f"{protocol} split {number}", f"{split.protocol} split {split.index}"
    return (f"another {mine}", f"this {theirs}") if mine == theirs else (mine, theirs)


def _command(fit: ReductionSpec | EncodingSpec) -> str:
    """Return the command that makes such a feature set."""
    if isinstance(fit, ReductionSpec):
        return f"har features reduce STORE --features {fit.source} --dim {fit.dim}"
    size = "--gaussians" if fit.encoding == "fisher" else "--words"
    more = f" --components {fit.components}" * (fit.components is not None)
    more += f" --sample {fit.sample}" * (fit.sample != EncodeOptions().sample)
    return f"har features encode STORE --features {fit.source} --encoding {fit.encoding} {size} {fit.size}{more}"


def read_fit(store: FeatureReader, feature_set: str, spec: FeatureSpec) -> Fit | None:
    """Return the fit of a feature set, None if it has none. Raises: StoreError if it is missing or damaged."""
    return None if spec.fit is None else fit_of(store.read_fit(feature_set), spec)


def fit_of(arrays: Mapping[str, np.ndarray], spec: FeatureSpec) -> Fit:
    """Return the fit of features of `spec`, of arrays as `fit_arrays` gives them. Raises: StoreError if they do not fit."""
    return encoder_of(arrays, spec) if spec.encoding else projection_of(arrays, spec)


def projection_of(arrays: Mapping[str, np.ndarray], spec: FeatureSpec) -> Projection:
    """Return the projection of reduced features, see `fit_of`."""
    reduction = spec.reduction
    assert reduction is not None
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


def fit_arrays(fit: Components | Encoder) -> dict[str, np.ndarray]:
    """Return what is stored of a fit: of a PCA mean (D,) float64, components (dim, D) float32 and explained_variance (dim,)
    float64; of an encoding see `fisher.encoder_arrays`.
    """
    if isinstance(fit, Encoder):
        return encoder_arrays(fit)
    return {
        "mean": fit.mean,
        # float32 halves a run folder; its rounding is far below that of float16 features.
        "components": fit.components.astype(np.float32),
        "explained_variance": fit.explained_variance,
    }


def derived_record(record: FeatureRecord, fit: Fit, dtype: str) -> FeatureRecord:
    """Return a video's record with what a fit makes of its features, as `dtype`.

    Raises: ExtractionError if they do not fit, or are not finite.
    """
    features = fit.apply(record.features, dtype)
    if isinstance(fit, Projection):
        return dataclasses.replace(record, features=features)
    return whole_video(record, features, *([] if len(points_in(record.features)) else [NO_ROWS]))


@dataclass(frozen=True, slots=True)
class TrainingVideos:
    """The training videos of a split that have features in a set."""

    store: FeatureStore
    source: str
    split: Split
    ids: tuple[str, ...]  # sorted
    missing: tuple[str, ...]  # training videos without features, sorted
    lengths: Mapping[str, int]  # video_id -> rows, of all videos of the set

    @property
    def num_rows(self) -> int:
        """Rows of the training videos."""
        return sum(self.lengths[video_id] for video_id in self.ids)

    def features(self, on_progress: OnProgress) -> Iterator[np.ndarray]:
        """Yield the (N, D) features of each. Raises: ExtractionError if a feature is not finite."""
        for number, video_id in enumerate(self.ids):
            on_progress("fit", number, len(self.ids))
            features = self.store.read(self.source, video_id).features
            if not np.isfinite(features).all():
                raise ExtractionError(f"{self.source}: {video_id}: a feature is not finite; extract the video again")
            yield features
        on_progress("fit", len(self.ids), len(self.ids))

    def facts(self, num_rows: int) -> dict[str, Any]:
        """Return what is stored beside a fit on so many rows."""
        return {
            "source": self.source,
            "protocol": self.split.protocol,
            "split": self.split.index,
            "seed": self.split.seed,
            "manifest_sha256": self.split.manifest_sha256,
            "train_ids_sha256": train_ids_sha256(self.split),
            "num_train": len(self.ids),
            "missing": list(self.missing),
            "num_rows": num_rows,
            "features_sha256": features_sha256(self.store, self.source, self.ids),
        }


def features_sha256(store: FeatureStore, source: str, ids: Sequence[str]) -> str:
    """Return the sha256 (hex) of the checksums of videos' features in a set: of what a fit was made on."""
    checksums = store.checksums(source)
    return hashlib.sha256("\n".join(f"{one} {checksums.get(one, '')}" for one in sorted(ids)).encode()).hexdigest()


def _of_other_features(store: FeatureStore, spec: FeatureSpec, split: Split, facts: Mapping[str, Any]) -> bool:
    """Return whether training videos have been extracted again since a fit, whose facts are given."""
    if spec.fit is None or "features_sha256" not in facts:
        return False  # of a version that did not keep it
    ids = sorted(set(split.train) - set(facts["missing"]))
    return bool(facts["features_sha256"] != features_sha256(store, spec.fit.source, ids))


def training_videos(store: FeatureStore, source: str, split: Split, allow_missing: bool) -> TrainingVideos:
    """Return the training videos to fit on. Raises: StoreError if there are none, or some lack without `allow_missing`."""
    rows_per_clip = store.spec(source).rows_per_clip
    lengths = {video_id: rows_per_clip * clips for video_id, clips in store.num_clips(source).items()}
    ids = tuple(sorted(video_id for video_id in split.train if video_id in lengths))
    missing = tuple(sorted(set(split.train) - lengths.keys()))
    if not ids or (missing and not allow_missing):
        raise StoreError(
            f"{source}: no features of {len(missing)} of the {len(split.train)} training videos, such as "
            f"{list(missing[:3])}. Run `{made_by(store.spec(source))}` on the manifest, or leave them out with "
            "--allow-missing"
        )
    return TrainingVideos(store, source, split, ids, missing, lengths)


def derive_fitted(
    store: FeatureStore,
    spec: FeatureSpec,
    split: Split,
    fit: Callable[[], tuple[Fit | Components, dict[str, Any]]],
    stage: str,
    on_progress: OnProgress,
    called: str | None = None,
) -> tuple[FitSummary, dict[str, Any]]:
    """Store a fit, if there is none yet, and write every video that the set of `spec` lacks; return also the fit's facts.

    A fit on features that have been extracted again since is replaced, with all that was derived by it.
    fit: called for the fit and its facts (`TrainingVideos.facts` and more). stage: what `on_progress` is told of a video.
    called: the set's name, see `FeatureStore.give_name`. Raises: what `fit` raises; ExtractionError if a video cannot be
    derived; StoreError if anything stored is damaged, or another set has the name.
    """
    started, name = time.perf_counter(), spec.name
    assert spec.fit is not None
    if called is not None:
        store.require_free(called, name)
    store.remove_debris()
    facts = store.fit_attributes(name)
    stale = facts is not None and _of_other_features(store, spec, split, facts)
    fitted = facts is None or stale
    if facts is None or stale:
        made, facts = fit()
        if stale:
            store.discard_fit(name)
        # If two processes fitted, both read the first one's fit below.
        store.write_fit(name, fit_arrays(made), facts)
        facts = store.fit_attributes(name) or facts
    stored = fit_of(store.read_fit(name), spec)
    store.create_feature_set(spec, called)
    total, written = derive_videos(
        store,
        spec.fit.source,
        name,
        lambda record: derived_record(record, stored, spec.dtype),
        lambda done, total: on_progress(stage, done, total),
    )
    try:
        summary = FitSummary(
            feature_set=name,
            source=spec.fit.source,
            dim=spec.feature_dim,
            fitted=fitted,
            num_train=int(facts["num_train"]),
            num_rows=int(facts["num_rows"]),
            missing=tuple(facts["missing"]),
            total=total,
            already=total - written,
            done=written,
            seconds=round(time.perf_counter() - started, 3),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_facts(store, spec, error) from error
    return summary, facts


def damaged_facts(store: FeatureStore, spec: FeatureSpec, error: Exception) -> StoreError:
    """Return the error to raise where what was stored beside a fit cannot be understood."""
    what, again = ("reduction", "reduce") if spec.reduction else ("encoding", "encode")
    return StoreError(
        f"{store.path}: what was written beside the {what} of {spec.name} is damaged ({error!r}); delete it with "
        f"the feature set of that name, and {again} again"
    )
