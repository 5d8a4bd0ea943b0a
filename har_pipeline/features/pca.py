"""Principal components of more rows than fit in memory: exact from the covariance or the Gram matrix, or randomised.

All arithmetic is float64. Rows come in blocks that are read as often as needed; block borders change only the last digits.
Source: Lakhal 2018, section 4.1, which reduces clip descriptors to 256, 512, 1,024 and 2,048 values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg

from har_pipeline.core.errors import ExtractionError

BLOCK_BYTES = 128 * 2**20
POWER_PASSES, OVERSAMPLING = 4, 10

# Each call reads all rows again, in the same order: arrays (n, D).
Blocks = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of n rows of D features."""

    mean: np.ndarray  # (D,) float64
    components: (
        np.ndarray
    )  # (dim, D) float64, orthonormal rows, largest variance first, the largest magnitude of each positive
    explained_variance: np.ndarray  # (dim,) float64, divisor n - 1


@dataclass(frozen=True, slots=True)
class Projection(Components):
    """What turns (N, D) features into (N, dim) ones."""

    whiten: bool = False  # divide each projection by its standard deviation
    l2: bool = False  # then divide each row by its norm

    @property
    def source_dim(self) -> int:
        """D."""
        return len(self.mean)

    def apply(self, features: np.ndarray, dtype: str) -> np.ndarray:
        """Return (N, dim) projections of (N, D) features in the given dtype.

        Raises: ExtractionError if D does not match, a feature is not finite, or a projection exceeds the dtype.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ExtractionError(
                f"features of shape {features.shape} cannot be projected: (N, {len(self.mean)}) is needed"
            )
        rows = _block_rows(len(self.mean))
        projected = np.concatenate(
            [
                (features[first : first + rows].astype(np.float64) - self.mean) @ self.components.T
                for first in range(0, len(features), rows)
            ]
        )
        if self.whiten:
            projected /= np.sqrt(self.explained_variance)
        if self.l2:
            norms = np.linalg.norm(projected, axis=1, keepdims=True)
            projected /= np.where(norms > 0, norms, 1)
        with np.errstate(over="ignore"):
            stored = projected.astype(dtype)
        if not np.isfinite(stored).all():
            raise ExtractionError(
                f"a projection is not finite in {dtype}: reduce with --whiten or --l2, or extract with --dtype float32"
            )
        return stored


@dataclass(frozen=True, slots=True)
class Fit(Components):
    """Components, and what they leave out."""

    total_variance: float  # of all D directions, divisor n - 1
    num_rows: int  # n


def check_dim(dim: int, num_rows: int, feature_dim: int) -> None:
    """Raise ExtractionError, with the maximum, if `num_rows` rows of D features do not have `dim` components.

    Centred rows span at most one direction fewer than there are rows.
    """
    largest = min(num_rows - 1, feature_dim)
    if not 1 <= dim <= largest:
        raise ExtractionError(
            f"--dim {dim}: {num_rows} training rows of {feature_dim} features allow 1 to {largest} components"
        )


def fit_exact(blocks: Blocks, dim: int, num_rows: int, feature_dim: int, spill_dir: Path | None = None) -> Fit:
    """Return the first `dim` principal components: from the (n, n) Gram matrix if n < D, else the (D, D) covariance.

    Memory: that matrix in float64 and a few blocks. The Gram matrix pairs every block of rows with every other, so it keeps
    the rows in an unlinked file in `spill_dir`.
    Raises: ExtractionError if `dim` is above the rank of the centred rows; the message gives the maximum.
    """
    check_dim(dim, num_rows, feature_dim)
    if num_rows < feature_dim:
        return _fit_gram(blocks, dim, num_rows, feature_dim, spill_dir)
    return _fit_covariance(blocks, dim, num_rows, feature_dim)


def _fit_covariance(blocks: Blocks, dim: int, num_rows: int, feature_dim: int) -> Fit:
    scatter = np.zeros((feature_dim, feature_dim), order="F")
    mean, count = np.zeros(feature_dim), 0
    syrk = scipy.linalg.get_blas_funcs("syrk", dtype=np.float64)
    for block in blocks():
        rows = block.astype(np.float64)
        block_mean = rows.mean(axis=0)
        rows -= block_mean
        # The scatter about the joint mean is that about each mean plus one row for the distance between them
        # (Chan 1983); sums of plain squares would lose the variance of features far from zero.
        shift = (block_mean - mean) * np.sqrt(count * len(block) / (count + len(block)))
        scatter = syrk(1.0, np.vstack([rows, shift]).T, beta=1.0, c=scatter, lower=1, overwrite_c=1)
        count += len(block)
        mean += (block_mean - mean) * (len(block) / count)
    total = float(np.trace(scatter))
    values, vectors = _largest(scatter, dim, max(num_rows, feature_dim))
    return _finish(mean, vectors.T, values, total, num_rows)


def _fit_gram(blocks: Blocks, dim: int, num_rows: int, feature_dim: int, spill_dir: Path | None) -> Fit:
    with tempfile.TemporaryFile(dir=spill_dir) as file:
        mean, dtype = np.zeros(feature_dim), np.dtype(np.float64)
        for block in blocks():
            dtype = block.dtype
            mean += block.sum(axis=0, dtype=np.float64)
            file.write(np.ascontiguousarray(block).data)
        file.flush()
        mean /= num_rows
        stored = np.memmap(file, dtype, "r", shape=(num_rows, feature_dim))
        step = _block_rows(feature_dim)
        parts = [slice(first, min(first + step, num_rows)) for first in range(0, num_rows, step)]
        gram = np.zeros((num_rows, num_rows), order="F")
        for i, part in enumerate(parts):
            rows = stored[part] - mean
            gram[part, part] = rows @ rows.T
            for other in parts[:i]:
                gram[part, other] = rows @ (stored[other] - mean).T
        total = float(np.trace(gram))
        values, vectors = _largest(gram, dim, max(num_rows, feature_dim))
        components = np.zeros((dim, feature_dim))
        for part in parts:
            components += vectors[part].T @ (stored[part] - mean)
        return _finish(mean, components, values, total, num_rows)


def _largest(matrix: np.ndarray, dim: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `dim` largest eigenvalues, descending, and eigenvectors in columns, of a lower triangle it overwrites."""
    n = len(matrix)
    values, vectors = scipy.linalg.eigh(
        matrix, lower=True, overwrite_a=True, check_finite=False, subset_by_index=(n - dim, n - 1)
    )
    values, vectors = values[::-1], vectors[:, ::-1]
    _check_rank(values, size)
    return values, vectors


def _check_rank(values: np.ndarray, size: int) -> None:
    rank = int((values > values[0] * size * np.finfo(np.float64).eps).sum()) if values[0] > 0 else 0
    if not rank:
        raise ExtractionError("the training rows are all equal: they have no principal components")
    if rank < len(values):
        raise ExtractionError(
            f"--dim {len(values)}: the training rows vary in {rank} directions only (many are equal, as repeated frames "
            f"are); {rank} is the maximum"
        )


def _finish(mean: np.ndarray, components: np.ndarray, values: np.ndarray, total: float, num_rows: int) -> Fit:
    """Return the fit of unscaled components and the eigenvalues of the scatter; norms become 1 and signs fixed."""
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    components = components * (np.sign(largest) / np.linalg.norm(components, axis=1))[:, None]
    variance = values / (num_rows - 1)
    return Fit(mean, components, variance, total / (num_rows - 1), num_rows)


def fit_randomised(blocks: Blocks, dim: int, num_rows: int, feature_dim: int, seed: int) -> Fit:
    """Return approximate principal components from a random subspace, by passes over the rows.

    Memory: two (D, dim + 10) matrices and a block; never n or D squared. Close to `fit_exact` where variances fall off.
    Source: Halko 2011, algorithm 4.4, on the scatter matrix; scikit-learn's randomised solver is the same method.
    Raises: ExtractionError as `fit_exact` does.
    """
    check_dim(dim, num_rows, feature_dim)
    mean, total = _moments(blocks, num_rows, feature_dim)
    width = min(dim + OVERSAMPLING, feature_dim)
    basis = np.random.default_rng(seed).standard_normal((feature_dim, width))
    for _ in range(POWER_PASSES):
        basis = np.linalg.qr(_times_scatter(blocks, mean, basis))[0]
    image = _times_scatter(blocks, mean, basis)
    values, vectors = np.linalg.eigh(basis.T @ image)
    values = values[::-1][:dim]
    _check_rank(values, max(num_rows, feature_dim))
    return _finish(mean, (basis @ vectors[:, ::-1][:, :dim]).T, values, total, num_rows)


def _moments(blocks: Blocks, num_rows: int, feature_dim: int) -> tuple[np.ndarray, float]:
    """Return the mean (D,) and the sum of squared distances from it, in two passes."""
    mean = np.zeros(feature_dim)
    for block in blocks():
        mean += block.sum(axis=0, dtype=np.float64)
    mean /= num_rows
    return mean, sum(float(np.square(block - mean).sum()) for block in blocks())


def _times_scatter(blocks: Blocks, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    product = np.zeros_like(basis)
    for block in blocks():
        rows = block - mean
        product += rows.T @ (rows @ basis)
    return product


def _block_rows(feature_dim: int) -> int:
    return max(1, BLOCK_BYTES // (8 * feature_dim))


def in_blocks(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the rows of (n, D) arrays again, joined or cut into blocks of at most 128 MiB in float64."""
    waiting: list[np.ndarray] = []
    count = 0
    for array in arrays:
        limit = _block_rows(array.shape[1])
        while len(array):
            waiting.append(array[: limit - count])
            count += len(waiting[-1])
            array = array[len(waiting[-1]) :]
            if count == limit:
                yield np.concatenate(waiting)
                waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)
