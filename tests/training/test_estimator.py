"""Heads as scikit-learn classifiers."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from feature_sets import blobs
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import har_pipeline
from har_pipeline.models.config import HeadName
from har_pipeline.training.estimator import HeadClassifier
from har_pipeline.training.options import TrainConfig

# Both look for what is not installed (pandas) or not switched on (array API), and are skipped for every estimator then.
MAY_BE_SKIPPED = {"check_array_api_input", "check_classifier_data_not_an_array"}
SMALL = {"units": 8, "epochs": 15, "learning_rate": 2e-2, "device": "cpu"}


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head, marks=pytest.mark.exhaustive)
        if head in ("bilstm", "stacked_lstm", "attention", "attentive", "gru", "res_lstm")
        else head
        for head in get_args(HeadName)
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning", "ignore::UserWarning")
def test_scikit_learns_own_checks(head: HeadName) -> None:
    # Normalised by themselves, the two values of scikit-learn's blobs say no more than which one is larger.
    wider = {"input_projection": 16, "learning_rate": 5e-3} if head == "attentive" else {}
    rounding = {
        "check_methods_subset_invariance": "float32 products of another batch differ by 2e-7, and it allows 1e-7"
    }
    results = check_estimator(
        HeadClassifier(head, **{**SMALL, **wider}),
        on_skip=None,
        on_fail="raise",
        expected_failed_checks=rounding if head == "attentive" else {},
    )
    assert len(results) > 40
    known = MAY_BE_SKIPPED | (rounding.keys() if head == "attentive" else set())
    assert {result["check_name"] for result in results if result["status"] != "passed"} <= known


def videos(dim: int = 6) -> tuple[list[np.ndarray], np.ndarray]:
    features, labels = blobs(("boxing", "running", "walking"), 8, dim=dim)
    return list(features.values()), np.array(list(labels.values()))


@pytest.mark.parametrize("head", get_args(HeadName))
def test_videos_of_unlike_length(head: HeadName) -> None:
    X, y = videos()
    clf = HeadClassifier(head=head, **SMALL).fit(X, y)
    assert clf.classes_.tolist() == ["boxing", "running", "walking"]
    probabilities = clf.predict_proba(X)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert clf.score(X, y) > 0.9
    assert (clf.predict(X) == clf.classes_[probabilities.argmax(axis=1)]).all()
    np.testing.assert_allclose(clf.predict_proba(X[3:4])[0], probabilities[3], atol=1e-6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X), probabilities)


def test_arrays_of_videos_are_lists_of_arrays() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 5, 4)).astype(np.float32), np.arange(12) % 2
    clf = HeadClassifier("res_lstm", **SMALL).fit(X, y)
    again = clone(clf).fit(list(X), y)
    np.testing.assert_array_equal(clf.predict_proba(X), again.predict_proba(list(X)))
    single = HeadClassifier("lstm", **SMALL).fit(X[:, 0], y)
    one_clip = clone(single).fit(X[:, :1], y)
    np.testing.assert_array_equal(single.predict_proba(X[:, 0]), one_clip.predict_proba(X[:, :1]))


def test_object_arrays_are_lists_of_arrays() -> None:
    X, y = videos()
    ragged = np.empty(len(X), object)
    ragged[:] = X
    found = HeadClassifier("gru", **SMALL).fit(ragged, y).predict_proba(ragged)
    np.testing.assert_array_equal(found, HeadClassifier("gru", **SMALL).fit(X, y).predict_proba(X))
    assert cross_val_score(HeadClassifier("gru", **SMALL), ragged, y, cv=2).min() > 0.5


def test_it_is_what_train_config_says() -> None:
    parameters = inspect.signature(HeadClassifier).parameters
    of_streams = {"mid_fusion", "fusion_op"}
    options = dataclasses.asdict(TrainConfig())
    assert set(parameters) == set(options) - of_streams
    assert {name: one.default for name, one in parameters.items()} == {name: options[name] for name in parameters}


def test_early_stopping_reads_the_videos_given_for_it() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3, 6)), np.arange(20) % 2
    clf = HeadClassifier("lstm", **{**SMALL, "epochs": 40}, patience=2)
    with pytest.raises(ValueError, match="need validation videos"):
        clf.fit(X, y)
    clf.fit(X, y, validation=(rng.standard_normal((10, 3, 6)), np.arange(10) % 2))
    assert clf.n_iter_ == clf.best_epoch_ + 2 < 40
    with pytest.raises(ValueError, match=r"validation labels .7. are not among"):
        clf.fit(X, y, validation=(X[:2], [0, 7]))


def test_it_works_in_cross_validation() -> None:
    X, y = videos()
    padded = np.stack([video[np.arange(4) % len(video)] for video in X])
    assert cross_val_score(HeadClassifier("mean_pool"), padded, y, cv=4).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda X, y: (X, y[:-1]), "24 videos, y 23 labels"),
        (lambda X, y: ([*X[:-1], X[-1][:, :5]], y), r"X\[23\] has 5 features, but HeadClassifier is expecting 6"),
        (lambda X, y: ([*X[:-1], np.full((2, 6), np.nan)], y), r"X\[23\] contains NaN"),
        (lambda X, y: ([*X[:-1], np.zeros((0, 6))], y), "0 sample"),
        (lambda X, y: (np.zeros((24, 2, 3, 6)), y), "4 axes"),
        (lambda X, y: (X, np.full(24, "boxing")), "one class only"),
    ],
)
def test_data_that_cannot_be_fitted(change, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HeadClassifier("mean_pool").fit(*change(*videos()))


def test_options_are_checked_when_fitted() -> None:
    X, y = videos()
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        HeadClassifier(dropout=1.5).fit(X, y)


def test_one_class_is_named_plainly() -> None:
    X, _ = videos()
    with pytest.raises(ValueError, match=r"y has one class only, 'boxing'; a classifier needs two"):
        HeadClassifier(**SMALL).fit(X, np.array(["boxing"] * len(X)))


def test_the_package_gives_it_without_loading_it_before() -> None:
    code = (
        "import sys, har_pipeline; assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules), 'heavy'; "
        "from har_pipeline import HeadClassifier; print(HeadClassifier().units)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("320\n", 0), done.stderr
    assert har_pipeline.HeadClassifier is HeadClassifier
    with pytest.raises(AttributeError, match="HeadClasifier"):
        har_pipeline.HeadClasifier  # noqa: B018
