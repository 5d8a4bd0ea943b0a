"""Encodings: all rows of a video, such as its local descriptors, as one row of fixed size.

The columns of a row are divided into blocks (HOG, HOF ...), each is encoded by itself, and the results are joined. Rows of
zeros mean that nothing was found in the video; they count as no rows, and a video without rows is encoded as zeros.
Sources: Perronnin 2010 (improved Fisher vector), Sanchez 2013, equations 16 to 18; Wang and Schmid 2013, section 4.2 (PCA to
half, 256 Gaussians, blocks joined); Laptev 2008, section 4 (words); Arandjelovic 2012 (the root of a histogram).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from har_pipeline.core.errors import ExtractionError, StoreError, UsageError
from har_pipeline.core.records import EncodingSpec, FeatureSpec
from har_pipeline.features.pca import Projection, fit_exact, in_blocks
from har_pipeline.video.local.spec import HANDCRAFTED, layer_blocks

# The one block of features that no handcrafted extractor made.
WHOLE = "all"
# Rows at a time: 8 MB of posteriors of 256 Gaussians, 128 MB of distances to 4,000 words.
CHUNK_ROWS = 4096
# A mixture is done when the mean log likelihood of a row, in nats, gains less than this in a step.
EM_STEPS, EM_GAIN, KMEANS_STEPS = 50, 0.01, 100
# Added to each variance of a Gaussian, as a share of the variance of that component: a Gaussian on a few equal rows would
# otherwise have none.
VARIANCE_FLOOR = 1e-4


def blocks_of(spec: FeatureSpec) -> dict[str, int]:
    """Return the name and the number of columns of each block of a feature set's rows, in their order.

    Raises: StoreError if a handcrafted extractor has no such layer, or the rows have another size.
    """
    if spec.extractor not in HANDCRAFTED:
        return {WHOLE: spec.feature_dim}
    try:
        found = layer_blocks(spec.extractor, spec.layer)
    except UsageError as error:
        raise StoreError(f"{spec.name}: {error}") from error
    if spec.fit is None and sum(found.values()) != spec.feature_dim:
        raise StoreError(f"{spec.name}: {spec.layer} has {sum(found.values())} values, but its rows {spec.feature_dim}")
    return found


def kept_components(size: int, components: int | None) -> int:
    """Return how many principal components of a block of `size` values a Fisher vector keeps: half, or fewer if asked."""
    half = max(1, size // 2)
    return half if components is None else min(half, components)


def encoded_dim(sizes: Mapping[str, int], encoding: EncodingSpec) -> int:
    """Return D of the encoded row: 2 K D' for K Gaussians on D' components of a block, or the words of all blocks."""
    if encoding.encoding == "words":
        return encoding.size * len(sizes)
    return sum(2 * encoding.size * kept_components(size, encoding.components) for size in sizes.values())


def points_in(rows: np.ndarray) -> np.ndarray:
    """Return (n, D), those of (N, D) rows that are not all zero."""
    found = rows.any(axis=1)
    return rows if found.all() else rows[found]


@dataclass(frozen=True, slots=True)
class FisherBlock:
    """A mixture of K Gaussians, with diagonal covariances, of the principal components of a block."""

    projection: Projection
    weights: np.ndarray  # (K,) float64, sum 1
    means: np.ndarray  # (K, D') float64
    variances: np.ndarray  # (K, D') float64, above 0

    @property
    def size(self) -> int:
        """Columns of the block."""
        return len(self.projection.mean)

    @property
    def dim(self) -> int:
        """Values of the encoded block, 2 K D'."""
        return 2 * self.means.size

    def posteriors(self, points: np.ndarray) -> np.ndarray:
        """Return (n, K) float64, the probability of each Gaussian given each of (n, D') projected rows."""
        precisions = 1 / self.variances
        exponents = (
            np.square(points) @ precisions.T
            - 2 * points @ (self.means * precisions).T
            + (np.square(self.means) * precisions + np.log(self.variances)).sum(axis=1)
        )
        logs = np.log(self.weights) - 0.5 * exponents
        logs -= logs.max(axis=1, keepdims=True)
        found = np.exp(logs)
        return found / found.sum(axis=1, keepdims=True)

    def gradient(self, rows: np.ndarray) -> np.ndarray:
        """Return (2 K D',) float64: the normalised gradient of the mean log likelihood of (n, D) rows, n at least 1.

        First by the K means, then by the K standard deviations.
        """
        count, first, second = np.zeros(len(self.weights)), np.zeros_like(self.means), np.zeros_like(self.means)
        for chunk in _chunks(rows):
            points = self.projection.apply(chunk, "float64")
            shares = self.posteriors(points)
            count += shares.sum(axis=0)
            first += shares.T @ points
            second += shares.T @ np.square(points)
        deviations, counts = np.sqrt(self.variances), count[:, None]
        by_means = (first - counts * self.means) / deviations
        by_deviations = (second - 2 * first * self.means + counts * np.square(self.means)) / self.variances - counts
        scale = len(rows) * np.sqrt(self.weights)[:, None]
        return np.concatenate([(by_means / scale).ravel(), (by_deviations / (np.sqrt(2) * scale)).ravel()])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return (2 K D',) float64 of (n, D) rows: the signed roots of the gradient, of unit length."""
        gradient = self.gradient(rows)
        return unit(np.sign(gradient) * np.sqrt(np.abs(gradient)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is stored of the fit."""
        projection = self.projection
        return {
            "mean": projection.mean,
            "components": projection.components.astype(np.float32),
            "explained_variance": projection.explained_variance,
            "weights": self.weights,
            "means": self.means,
            "variances": self.variances,
        }


@dataclass(frozen=True, slots=True)
class WordsBlock:
    """Words: K rows of a block, each for the rows that are nearest to it."""

    words: np.ndarray  # (K, D) float32

    @property
    def size(self) -> int:
        """Columns of the block."""
        return int(self.words.shape[1])

    @property
    def dim(self) -> int:
        """Values of the encoded block, K."""
        return len(self.words)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return (K,) float64 of (n, D) rows: the root of the share of rows of each word, so that its length is 1."""
        words = self.words.astype(np.float64)
        lengths, counts = np.square(words).sum(axis=1), np.zeros(len(words))
        for chunk in _chunks(rows):
            nearest = (lengths - 2 * (chunk.astype(np.float64) @ words.T)).argmin(axis=1)
            counts += np.bincount(nearest, minlength=len(words))
        return np.sqrt(counts / len(rows))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is stored of the fit."""
        return {"words": self.words}


@dataclass(frozen=True, slots=True)
class Encoder:
    """What turns the (N, D) rows of a video into one, block by block."""

    blocks: Mapping[str, FisherBlock | WordsBlock]  # in the order of the columns

    @property
    def source_dim(self) -> int:
        """D."""
        return sum(block.size for block in self.blocks.values())

    def apply(self, features: np.ndarray, dtype: str = "float32") -> np.ndarray:
        """Return (1, D') of a video's (N, D) rows, each block of unit length; zeros if no row has a value.

        Raises: ExtractionError if D does not match or a feature is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.source_dim:
            raise ExtractionError(
                f"features of shape {features.shape} cannot be encoded: (N, {self.source_dim}) is needed"
            )
        if not np.isfinite(features).all():
            raise ExtractionError("a feature is not finite; extract the video again")
        rows = points_in(features)
        if not len(rows):
            return np.zeros((1, sum(block.dim for block in self.blocks.values())), dtype)
        parts = zip(self.blocks.values(), _columns(rows, [block.size for block in self.blocks.values()]), strict=True)
        return np.concatenate([block.encode(part) for block, part in parts])[None].astype(dtype)


def unit(vector: np.ndarray) -> np.ndarray:
    """Return a vector divided by its length, or as it is if that is 0."""
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def _columns(rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(sizes)[:-1], axis=1)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[first : first + CHUNK_ROWS] for first in range(0, len(rows), CHUNK_ROWS))


def fit_encoder(
    rows: np.ndarray, sizes: Mapping[str, int], encoding: EncodingSpec
) -> tuple[Encoder, dict[str, dict[str, float]]]:
    """Return the encoder of a sample of (n, D) rows, none of them all zero, and for each block what is known of its fit.

    The same rows, spec and number of threads give the same encoder, bit for bit.
    Raises: ExtractionError if there are fewer rows than Gaussians or words, or fewer directions than components.
    """
    what, option = ("Gaussians", "--gaussians") if encoding.encoding == "fisher" else ("words", "--words")
    if len(rows) < encoding.size:
        raise ExtractionError(
            f"{len(rows)} rows of the training videos are fewer than the {encoding.size} {what}: give {option} "
            f"{max(1, len(rows) // 10)} or so, or extract more training videos"
        )
    blocks: dict[str, FisherBlock | WordsBlock] = {}
    facts: dict[str, dict[str, float]] = {}
    for name, part in zip(sizes, _columns(rows, list(sizes.values())), strict=True):
        try:
            fit = _fit_mixture if encoding.encoding == "fisher" else _fit_words
            blocks[name], facts[name] = fit(part, encoding)
        except ExtractionError as error:  # of the PCA, whose option is another one here
            raise ExtractionError(f"block {name}: {str(error).replace('--dim', '--components')}") from error
    return Encoder(blocks), facts


def _fit_mixture(rows: np.ndarray, encoding: EncodingSpec) -> tuple[FisherBlock, dict[str, float]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    dim = kept_components(rows.shape[1], encoding.components)
    fit = fit_exact(lambda: in_blocks([rows]), dim, len(rows), rows.shape[1])
    projection = Projection(fit.mean, fit.components.astype(np.float32).astype(np.float64), fit.explained_variance)
    # The components divided by their deviations: a mixture does not depend on the scale of its axes, and in single precision,
    # which takes half of the time and memory, no axis drowns in the rounding of another.
    deviations = np.sqrt(fit.explained_variance)
    points = (projection.apply(rows, "float64") / deviations).astype(np.float32)
    model = GaussianMixture(
        encoding.size,
        covariance_type="diag",
        init_params="k-means++",
        max_iter=EM_STEPS,
        tol=EM_GAIN,
        reg_covar=VARIANCE_FLOOR,
        random_state=encoding.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the facts
        model.fit(points)
    weights = np.asarray(model.weights_, np.float64)
    means = deviations * np.asarray(model.means_, np.float64)
    variances = np.square(deviations) * np.maximum(np.asarray(model.covariances_, np.float64), VARIANCE_FLOOR)
    facts = {
        "explained": float(fit.explained_variance.sum() / fit.total_variance),
        "log_likelihood": float(model.lower_bound_),
        "steps": int(model.n_iter_),
        "converged": bool(model.converged_),
    }
    return FisherBlock(projection, weights / weights.sum(), means, variances), facts


def _fit_words(rows: np.ndarray, encoding: EncodingSpec) -> tuple[WordsBlock, dict[str, float]]:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        encoding.size, max_iter=KMEANS_STEPS, batch_size=CHUNK_ROWS, n_init=1, random_state=encoding.seed
    )
    model.fit(rows.astype(np.float32))
    return WordsBlock(model.cluster_centers_.astype(np.float32)), {"steps": int(model.n_iter_)}


def encoder_arrays(encoder: Encoder) -> dict[str, np.ndarray]:
    """Return what is stored of an encoder, named `<block>.<array>`."""
    return {
        f"{name}.{array}": values for name, block in encoder.blocks.items() for array, values in block.arrays().items()
    }


def encoder_of(arrays: Mapping[str, np.ndarray], spec: FeatureSpec) -> Encoder:
    """Return the encoder that made features of `spec`, of arrays as `encoder_arrays` gives them.

    Raises: StoreError if they do not fit.
    """
    assert spec.encoding is not None
    size = spec.encoding.size
    blocks: dict[str, FisherBlock | WordsBlock] = {}
    try:
        for name in blocks_of(spec):
            own = {key.removeprefix(f"{name}."): one for key, one in arrays.items() if key.startswith(f"{name}.")}
            if spec.encoding.encoding == "words":
                if own["words"].ndim != 2:
                    raise ValueError(f"words of shape {own['words'].shape}")
                blocks[name] = WordsBlock(own["words"])
                continue
            mean, components, explained = own["mean"], own["components"].astype(np.float64), own["explained_variance"]
            mixture = own["weights"], own["means"], own["variances"]
            shapes = components.shape, explained.shape, *(one.shape for one in mixture)
            dim = kept_components(len(mean), spec.encoding.components)
            if shapes != ((dim, len(mean)), (dim,), (size,), (size, dim), (size, dim)):
                raise ValueError(f"shapes {shapes}")
            blocks[name] = FisherBlock(Projection(mean, components, explained), *mixture)
        if sum(block.dim for block in blocks.values()) != spec.feature_dim:
            raise ValueError(f"not of {spec.feature_dim} values")
    except KeyError as error:
        raise StoreError(f"the encoding of {spec.name} has no array {error}; encode again") from error
    except (ValueError, TypeError, IndexError) as error:
        raise StoreError(f"the encoding of {spec.name} is damaged ({error}); encode again") from error
    return Encoder(blocks)
