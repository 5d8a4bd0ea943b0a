from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from har_pipeline.core.errors import ExtractionError
from har_pipeline.features import pca
from har_pipeline.features.pca import Fit, Projection, fit_exact, fit_randomised, in_blocks


def rows_of(n: int, d: int, *, seed: int = 0, dtype: str = "float32", decay: float = 0.9) -> np.ndarray:
    """Rows far from zero whose deviations fall off as decay ** k along random directions."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((d, d)))[0]
    rows = rng.standard_normal((n, d)) * 5 * decay ** np.arange(d) @ directions.T + 20 * rng.random(d)
    return rows.astype(dtype)


def fit(rows: np.ndarray, dim: int, spill_dir: Path | None = None, cuts: tuple[int, ...] = ()) -> Fit:
    return fit_exact(lambda: np.split(rows, cuts), dim, *rows.shape, spill_dir)


def projection(fitted: Fit, *, whiten: bool = False, l2: bool = False) -> Projection:
    return Projection(fitted.mean, fitted.components, fitted.explained_variance, whiten, l2)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("n", "d", "dim"), [(500, 40, 12), (41, 40, 40), (40, 40, 39), (60, 300, 20), (60, 300, 59)])
@pytest.mark.parametrize("whiten", [False, True])
def test_agrees_with_scikit_learn_up_to_sign(n: int, d: int, dim: int, dtype: str, whiten: bool) -> None:
    rows = rows_of(n, d, dtype=dtype, decay=0.97)
    fitted = fit(rows, dim)
    theirs = PCA(dim, svd_solver="full", whiten=whiten).fit(rows.astype(np.float64))
    signs = np.sign((fitted.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(fitted.components * signs[:, None], theirs.components_, atol=1e-4)
    np.testing.assert_allclose(fitted.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(fitted.explained_variance, theirs.explained_variance_, rtol=1e-6)
    ratio = fitted.explained_variance / fitted.total_variance
    np.testing.assert_allclose(ratio, theirs.explained_variance_ratio_, rtol=1e-6)
    new = rows_of(7, d, seed=1, dtype=dtype)
    mine = projection(fitted, whiten=whiten).apply(new, "float64")
    expected = theirs.transform(new.astype(np.float64))
    assert np.linalg.norm(mine * signs - expected) <= 1e-4 * np.linalg.norm(expected)


@settings(max_examples=30)
@given(
    n=st.integers(5, 60),
    d=st.integers(2, 40),
    data=st.data(),
)
def test_how_rows_are_cut_changes_nothing(n: int, d: int, data: st.DataObject) -> None:
    """Incremental equals full: one block, or any cuts, on either side of n = D."""
    rows = rows_of(n, d, seed=n * d, decay=0.8)
    dim = data.draw(st.integers(1, min(n - 1, d, 6)))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=5))))
    full, cut = fit(rows, dim), fit(rows, dim, cuts=cuts)
    np.testing.assert_allclose(cut.components, full.components, atol=1e-7)
    np.testing.assert_allclose(cut.explained_variance, full.explained_variance, rtol=1e-9)
    np.testing.assert_allclose(cut.mean, full.mean, rtol=1e-12)
    np.testing.assert_allclose(full.components @ full.components.T, np.eye(dim), atol=1e-9)


def test_gram_and_covariance_are_one_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Blocks of 7 rows, so that pairs of blocks occur.
    monkeypatch.setattr(pca, "BLOCK_BYTES", 7 * 8 * 50)
    rows = rows_of(40, 50)
    gram = fit(rows, 10, tmp_path, cuts=(3, 19))
    covariance = pca._fit_covariance(lambda: [rows[:9], rows[9:]], 10, 40, 50)
    np.testing.assert_allclose(gram.components, covariance.components, atol=1e-9)
    np.testing.assert_allclose(gram.explained_variance, covariance.explained_variance, rtol=1e-9)
    assert gram.total_variance == pytest.approx(covariance.total_variance, rel=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_variance_far_from_zero_is_not_lost() -> None:
    rows = rows_of(400, 6, dtype="float64") + 1e8
    theirs = PCA(6, svd_solver="full").fit(rows - 1e8)
    cut = fit(rows, 6, cuts=tuple(range(10, 400, 10)))
    np.testing.assert_allclose(cut.explained_variance, theirs.explained_variance_, rtol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(300, 30), (25, 120)])
def test_signs_are_fixed(n: int, d: int) -> None:
    """The largest value of each component is positive, whichever way the rows point."""
    rows = rows_of(n, d)
    for fitted in (fit(rows, 8), fit(-rows, 8), fit_randomised(lambda: [rows], 8, n, d, seed=3)):
        largest = np.abs(fitted.components).argmax(axis=1)
        assert (fitted.components[np.arange(8), largest] > 0).all()
    np.testing.assert_allclose(fit(rows, 8).components, fit(-rows, 8).components, atol=1e-9)


@pytest.mark.parametrize(("n", "d", "largest"), [(30, 100, 29), (100, 30, 30), (30, 30, 29)])
def test_a_dimension_too_large_says_the_maximum(n: int, d: int, largest: int) -> None:
    rows = rows_of(n, d, decay=1.0)
    assert fit(rows, largest).components.shape == (largest, d)
    for solve in (lambda: fit(rows, largest + 1), lambda: fit_randomised(lambda: [rows], largest + 1, n, d, seed=0)):
        with pytest.raises(ExtractionError, match=rf"--dim {largest + 1}: {n} training rows .* 1 to {largest} comp"):
            solve()


@pytest.mark.parametrize("d", [30, 100])
def test_repeated_rows_lower_the_maximum(d: int) -> None:
    rows = np.repeat(rows_of(11, d, decay=1.0), 6, axis=0)
    assert fit(rows, 10).components.shape == (10, d)
    with pytest.raises(ExtractionError, match=r"10 directions only .* 10 is the maximum"):
        fit(rows, 14)
    with pytest.raises(ExtractionError, match="10 is the maximum"):
        fit_randomised(lambda: [rows], 14, 66, d, seed=0)
    with pytest.raises(ExtractionError, match="training rows are all equal"):
        fit(np.ones((20, d), np.float32), 2)


@pytest.mark.parametrize(("n", "d"), [(400, 60), (50, 200)])
def test_the_randomised_fit_is_near_the_exact_one_and_repeatable(n: int, d: int) -> None:
    rows = rows_of(n, d, decay=0.8)
    exact = fit(rows, 10)

    def randomised(seed: int) -> Fit:
        return fit_randomised(lambda: np.split(rows, [17, 33]), 10, n, d, seed)

    np.testing.assert_allclose(randomised(0).components, exact.components, atol=1e-3)
    np.testing.assert_allclose(randomised(0).explained_variance, exact.explained_variance, rtol=1e-4)
    assert randomised(0).total_variance == pytest.approx(exact.total_variance, rel=1e-9)
    assert np.array_equal(randomised(1).components, randomised(1).components)
    assert not np.array_equal(randomised(0).components, randomised(1).components)


def test_whitened_training_rows_have_unit_variance_and_l2_rows_unit_norm() -> None:
    rows = rows_of(200, 20)
    fitted = fit(rows, 8)
    whitened = projection(fitted, whiten=True).apply(rows, "float64")
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(8), atol=1e-8)
    both = projection(fitted, whiten=True, l2=True).apply(rows, "float64")
    np.testing.assert_allclose(both, whitened / np.linalg.norm(whitened, axis=1, keepdims=True), rtol=1e-12)
    at_mean = projection(fitted, l2=True).apply(fitted.mean[None], "float32")
    assert np.array_equal(at_mean, np.zeros((1, 8)))


def test_a_projection_beyond_float16_is_an_error() -> None:
    rows = rows_of(200, 20, dtype="float64") * 1e4
    plain = projection(fit(rows, 8))
    with pytest.raises(ExtractionError, match=r"not finite in float16: .*--whiten"):
        plain.apply(rows, "float16")
    assert np.isfinite(plain.apply(rows, "float32")).all()
    with pytest.raises(ExtractionError, match=r"shape \(3, 19\) cannot be projected: \(N, 20\)"):
        plain.apply(np.zeros((3, 19)), "float32")


@given(lengths=st.lists(st.integers(0, 9), max_size=12))
def test_blocks_keep_rows_in_order_and_are_bounded(lengths: list[int]) -> None:
    rows = np.arange(2 * sum(lengths), dtype=np.float16).reshape(-1, 2)
    arrays = np.split(rows, np.cumsum(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pca, "BLOCK_BYTES", 4 * 2 * 8)
        blocks = list(in_blocks(iter(arrays)))
    assert [len(block) for block in blocks[:-1]] == [4] * (len(blocks) - 1)
    assert all(1 <= len(block) <= 4 for block in blocks)
    assert np.array_equal(np.concatenate([rows[:0], *blocks]), rows)


@pytest.mark.parametrize(("n", "d"), [(60_000, 40), (150, 16_000)])
@pytest.mark.parametrize("seed", [None, 0])
def test_memory_does_not_hold_the_rows(
    n: int, d: int, seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either side of n = D, the most that is held at a time is a small share of the rows in float64."""
    monkeypatch.setattr(pca, "BLOCK_BYTES", 2**18)

    def videos() -> Iterator[np.ndarray]:
        for number in range(10 * n // 150):
            yield np.random.default_rng(number).standard_normal((15, d), dtype=np.float32)

    def blocks() -> Iterator[np.ndarray]:
        return in_blocks(videos())

    tracemalloc.start()
    try:
        if seed is None:
            fit_exact(blocks, 2, n, d, tmp_path)
        else:
            fit_randomised(blocks, 2, n, d, seed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * n * d * 8


@pytest.mark.parametrize("dim", [256, 512, 1024, pytest.param(2048, marks=pytest.mark.exhaustive)])
def test_the_dimensions_of_the_paper(dim: int) -> None:
    """Few directions more than dim, as cheap as it gets: rows on the axes, whose variances are known."""
    scales = np.linspace(9, 1, 2049)

    def blocks() -> Iterator[np.ndarray]:
        # Each axis once forwards and once back: the scatter is diag(2 scales^2).
        yield np.diag(scales).astype(np.float32)[:, : dim + 1][: dim + 1]
        yield -np.diag(scales).astype(np.float32)[:, : dim + 1][: dim + 1]

    fitted = fit_exact(blocks, dim, 2 * (dim + 1), dim + 1)
    expected = 2 * scales[:dim].astype(np.float32).astype(np.float64) ** 2 / (2 * dim + 1)
    np.testing.assert_allclose(fitted.explained_variance, expected, rtol=1e-9)
    np.testing.assert_allclose(fitted.components, np.eye(dim, dim + 1), atol=1e-6)
