"""A head as a scikit-learn classifier, for features that are in memory already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from har_pipeline.features.table import FeatureTable, take_steps
from har_pipeline.training.batches import FeatureBatches
from har_pipeline.training.data import Parts
from har_pipeline.training.heads.fit import fit_head, probabilities_of
from har_pipeline.training.options import TrainConfig

# Every option of TrainConfig but those on several streams, as parameters that scikit-learn can read and set.
_Options: Any = dataclasses.make_dataclass(
    "_Options",
    [
        (option.name, option.type, dataclasses.field(default=option.default, kw_only=option.name != "head"))
        for option in dataclasses.fields(TrainConfig)
        if option.name not in ("mid_fusion", "fusion_op")
    ],
    eq=False,
    repr=False,
)


class HeadClassifier(ClassifierMixin, BaseEstimator, _Options):
    """A head that is fitted, asked and scored as a scikit-learn classifier: `HeadClassifier(head="res_lstm").fit(X, y)`.

    X: the features of V videos, a list of (N, D) arrays whose N may differ, an array (V, N, D), or (V, D) = one clip each.
    y: V labels. The parameters are the options of `TrainConfig`; those that need several streams are not here.
    classes_: (K,) labels, sorted; n_features_in_: D; head_: the fitted module; history_: its epochs.
    """

    def __sklearn_tags__(self) -> Any:
        """Say that arrays (V, N, D) are read too."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None) -> HeadClassifier:
        """Train a new head and return self. validation: (X, y) of other videos, for `patience` and `schedule="plateau"`.

        Raises: ValueError if an option is out of range, X or y is malformed or holds NaN, y has one class only, the
        validation labels are not among those of y, or validation videos are needed and there are none.
        """
        config = TrainConfig(**self.get_params())
        videos, y = self._videos(X, y)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {self.classes_.tolist()[0]!r}; a classifier needs two")
        others: list[np.ndarray] = []
        if validation is not None:
            others, val_y = self._videos(*validation, reset=False)
            if unknown := sorted(set(val_y.tolist()) - set(self.classes_.tolist())):
                raise ValueError(f"validation labels {unknown[:5]} are not among those of y")
            numbers = np.concatenate([numbers, np.searchsorted(self.classes_, val_y)])
        elif config.needs_validation:
            raise ValueError("patience and schedule='plateau' need validation videos: fit(X, y, validation=(X2, y2))")
        table = _table([*videos, *others], numbers)
        rows = np.arange(len(table.labels))
        parts = Parts(rows[: len(videos)], rows[len(videos) :], rows[:0])
        fitted = fit_head(table, parts, len(self.classes_), config)
        self.head_, self.history_, self.best_epoch_ = fitted.head.cpu(), fitted.history, fitted.best_epoch
        self.n_iter_ = len(fitted.history)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return (V, K) float64 class probabilities, columns in the order of `classes_`. Raises: as `fit`, of X."""
        check_is_fitted(self)
        videos, _ = self._videos(X, reset=False)
        table = take_steps(_table(videos, np.zeros(len(videos), np.int64)), self.num_steps)
        return probabilities_of(self.head_, FeatureBatches(table), np.arange(len(videos)))

    def predict(self, X: Any) -> np.ndarray:
        """Return (V,) the most probable label of each video."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _videos(self, X: Any, y: Any = None, *, reset: bool = True) -> tuple[list[np.ndarray], Any]:
        """Return V arrays (N, D) float32 and y (V,), both checked; with `reset` their D is kept as n_features_in_."""
        if isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1:
            X = list(X)
        if _is_one_clip_each(X):
            if y is None:
                array = validate_data(self, X, reset=reset, allow_nd=True, dtype=np.float32)
            else:
                array, y = validate_data(self, X, y, reset=reset, allow_nd=True, dtype=np.float32)
            if array.ndim != 2:
                raise ValueError(f"X has {array.ndim} axes: give (V, D), (V, N, D) or a list of (N, D) arrays")
            videos = list(array[:, None])
        else:
            videos = [check_array(video, dtype=np.float32, input_name=f"X[{i}]") for i, video in enumerate(X)]
            if y is not None:
                y = column_or_1d(y, warn=True)
                if len(y) != len(videos):
                    raise ValueError(f"X holds {len(videos)} videos, y {len(y)} labels")
        dim = videos[0].shape[1]
        if reset:
            self.n_features_in_ = dim
        for i, video in enumerate(videos):
            if video.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X[{i}] has {video.shape[1]} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input"
                )
        return videos, y


def _is_one_clip_each(X: Any) -> bool:
    """Whether X is meant as (V, D), and neither a list of (N, D) arrays nor one array (V, N, D)."""
    if isinstance(X, list | tuple):
        return not X or not all(getattr(video, "ndim", 0) == 2 for video in X)
    return getattr(X, "ndim", 0) != 3 or len(X) == 0


def _table(videos: Sequence[np.ndarray], labels: np.ndarray) -> FeatureTable:
    offsets = np.concatenate([[0], np.cumsum([len(video) for video in videos])]).astype(np.int64)
    ids = tuple(str(number) for number in range(len(videos)))
    return FeatureTable(ids, np.asarray(labels, np.int64), np.concatenate(videos), offsets)
