"""The calibrated linear SVM, against scikit-learn and held-out data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from har_pipeline.core.records import Scores
from har_pipeline.evaluation.fusion import negative_log_likelihood
from har_pipeline.evaluation.fusion_table import fuse
from har_pipeline.evaluation.members import Member
from har_pipeline.models.heads import fit_linear, fit_svm, pooling

OPTIONS = {"c": 100.0, "max_iterations": 5000}


def drawn(
    classes: int, per_class: int, dim: int = 60, noise: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of unit length around a place of each class: for training, and ten times as many to test."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((classes, dim))

    def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % classes
        found = places[labels] + noise * rng.standard_normal((count, dim))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), labels

    return *rows(classes * per_class), *rows(10 * classes * per_class)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_its_probabilities_are_better_on_held_out_videos_and_its_answers_the_same(classes: int, noise: float) -> None:
    """Of easy classes, whose plain decision values claim too little, and of hard ones."""
    features, labels, others, truth = drawn(classes, 15, noise=noise)
    plain, biases, _ = fit_linear(features, labels, num_classes=classes, kind="svm", **OPTIONS)
    scaled, offsets, converged, told = fit_svm(features, labels, num_classes=classes, **OPTIONS)
    assert converged
    assert told.all()
    scale = np.abs(scaled).sum() / np.abs(plain).sum()
    np.testing.assert_allclose(scaled, scale * plain, rtol=1e-12)
    np.testing.assert_allclose(offsets, scale * biases, rtol=1e-12)
    before, after = (softmax(others @ w.T + b) for w, b in ((plain, biases), (scaled, offsets)))
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert negative_log_likelihood(after, truth) < negative_log_likelihood(before, truth)


def test_certainty_is_near_the_share_that_is_right() -> None:
    features, labels, others, truth = drawn(5, 40)
    weights, biases, *_ = fit_svm(features, labels, num_classes=5, **OPTIONS)
    found = softmax(others @ weights.T + biases)
    right = float((found.argmax(axis=1) == truth).mean())
    assert 0.5 < right < 0.95
    assert found.max(axis=1).mean() == pytest.approx(right, abs=0.07)


def test_folds_do_not_divide_units() -> None:
    """Four copies of each video: folds that divide them would find held-out videos easy, and be too certain."""
    features, labels, others, truth = drawn(4, 6, noise=6)
    copies = np.repeat(features, 4, axis=0) + 1e-3 * np.random.default_rng(0).standard_normal((96, 60)).astype(
        np.float32
    )
    own, units = np.repeat(labels, 4), np.repeat(np.arange(24), 4)
    losses = {}
    for name, of in (("whole", units), ("divided", None)):
        weights, biases, *_ = fit_svm(copies, own, of, num_classes=4, **OPTIONS)
        losses[name] = negative_log_likelihood(softmax(others @ weights.T + biases), truth)
    assert losses["whole"] < 0.9 * losses["divided"]
    for train, held in pooling._folds(own, units, 0):
        assert not set(units[train]) & set(units[held])


def test_many_classes_of_two_videos_are_no_regression() -> None:
    features, labels, *_ = drawn(20, 2, noise=0.3)
    *_, told = fit_svm(features, labels, num_classes=20, **OPTIONS)
    assert told.all()


def test_the_same_seed_gives_the_same_weights() -> None:
    features, labels, *_ = drawn(3, 8)
    first, second = (fit_svm(features, labels, num_classes=3, seed=4, **OPTIONS) for _ in range(2))
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize(
    ("labels", "units", "told"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1, 2], None, [True, True, False]),  # a class of one video
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [False] * 3),  # of one group each
        ([0, 1, 2], None, [False] * 3),
        ([0, 1], None, [False] * 2),
        ([0, 0, 1], None, [False] * 2),  # whoever holds the only one out trains on one class
        ([0, 0, 1, 1], None, [True] * 2),
        ([0, 0, 1, 1, 2, 2], [0] * 6, [False] * 3),
    ],
)
def test_classes_that_cannot_be_held_out_are_named(
    labels: Sequence[int], units: Sequence[int] | None, told: Sequence[bool]
) -> None:
    rng, classes = np.random.default_rng(0), max(labels) + 1
    own = np.array(labels)
    features = (np.eye(classes, 20)[own] + 0.1 * rng.standard_normal((len(own), 20))).astype(np.float32)
    of = None if units is None else np.array(units)
    weights, biases, _, found = fit_svm(features, own, of, num_classes=classes, **OPTIONS)
    if labels == [0, 0, 1]:
        assert found.tolist() in ([False, False], [True, False])
    else:
        assert found.tolist() == list(told)
    assert np.isfinite(weights).all()
    if not found.any():
        plain, _, _ = fit_linear(features, own, num_classes=classes, kind="svm", **OPTIONS)
        assert np.array_equal(weights, plain)
    assert (softmax(features @ weights.T + biases).argmax(axis=1) == own).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_a_wide_problem_has_the_same_solution_in_the_span_of_its_videos(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal videos and videos of zeros too, whose Gram matrix is singular."""
    features, labels, others, _ = drawn(classes, 12, dim=500)
    features[3], features[5] = features[1], 0
    monkeypatch.setattr(pooling, "SPAN_COLUMNS", 33)
    rows, back = pooling.span(features)
    assert rows.shape[1] < len(features)
    np.testing.assert_allclose(rows @ rows.T, features.astype(float) @ features.T, atol=1e-10)
    own = np.random.default_rng(0).standard_normal((3, rows.shape[1]))
    np.testing.assert_allclose(features @ back(own).T, rows @ own.T, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(back(own), axis=1), np.linalg.norm(own, axis=1), rtol=1e-8)
    options = {"c": 10.0, "max_iterations": 100_000}
    plain = fit_svm(features, labels, num_classes=classes, **options)
    monkeypatch.setattr(pooling, "WIDE", 1000)
    wide = fit_svm(features, labels, num_classes=classes, **options)
    found, wanted = (others @ one[0].T + one[1] for one in (wide, plain))
    np.testing.assert_allclose(found, wanted, atol=5e-3 * np.abs(wanted).max())
    assert np.array_equal(found.argmax(axis=1), wanted.argmax(axis=1))


def test_videos_without_any_value_are_all_alike() -> None:
    weights, biases, _, told = fit_svm(np.zeros((9, 40), np.float32), np.arange(9) % 3, num_classes=3, **OPTIONS)
    assert told.all()
    np.testing.assert_allclose(softmax(np.zeros((1, 40)) @ weights.T + biases), 1 / 3, atol=0.05)


def scores_of(probabilities: np.ndarray, truth: np.ndarray) -> Scores:
    count, classes = probabilities.shape
    return Scores(
        video_ids=tuple(f"v{k}" for k in range(count)),
        labels=tuple(f"c{k}" for k in truth),
        classes=tuple(f"c{k}" for k in range(classes)),
        probabilities=probabilities,
        part=("test",) * count,
        fold=(0,) * count,
        seed=(0,) * count,
    )


def test_the_product_listens_to_it_as_much_as_it_deserves() -> None:
    """Beside a calibrated system: better than each, and than with plain decision values, which count too little."""
    features, labels, others, truth = drawn(6, 20, noise=2.5)
    weights, biases, *_ = fit_svm(features, labels, num_classes=6, **OPTIONS)
    plain = fit_linear(features, labels, num_classes=6, kind="svm", **OPTIONS)
    rng = np.random.default_rng(1)
    # What is seen is 1 for the true class and 0 for the others, plus noise of deviation 0.7: Bayes' probabilities.
    second = softmax((np.eye(6)[truth] + 0.7 * rng.standard_normal((len(truth), 6))) / 0.7**2)
    other = Member(name="second", scores=scores_of(second, truth))
    top1 = {}
    for name, values in (("calibrated", others @ weights.T + biases), ("plain", others @ plain[0].T + plain[1])):
        table, _ = fuse([Member(name="svm", scores=scores_of(softmax(values), truth)), other], chosen="product")
        top1[name] = table.row("product").top1.value
        alone = [table.row(one).top1.value for one in ("svm", "second")]
    assert top1["calibrated"] > max(alone)
    assert top1["calibrated"] > top1["plain"]
