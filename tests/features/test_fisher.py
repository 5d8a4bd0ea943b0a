"""Fisher vectors and words against slow formulas, hand-made mixtures and finite differences."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from har_pipeline.core.errors import ExtractionError, StoreError
from har_pipeline.core.records import EncodingSpec, FeatureSpec
from har_pipeline.features import fisher
from har_pipeline.features.fisher import (
    Encoder,
    FisherBlock,
    WordsBlock,
    blocks_of,
    encoded_dim,
    encoder_arrays,
    encoder_of,
    fit_encoder,
)
from har_pipeline.features.pca import Projection

HASH = "0" * 64


def encoding_of(encoding: str = "fisher", size: int = 3, **changes: object) -> EncodingSpec:
    values = {"source": "s", "encoding": encoding, "size": size, "sample": 1000, "seed": 0}
    return EncodingSpec(**values | changes, protocol="holdout", split=0, train_ids_sha256=HASH)  # type: ignore[arg-type]


def block_of(means: np.ndarray, variances: np.ndarray, weights: np.ndarray) -> FisherBlock:
    """A mixture of the rows as they are: a PCA that keeps them."""
    size = means.shape[1]
    return FisherBlock(Projection(np.zeros(size), np.eye(size), np.ones(size)), weights, means, variances)


def drawn_block(seed: int = 0, gaussians: int = 4, dim: int = 3) -> FisherBlock:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 1, gaussians)
    return block_of(
        rng.standard_normal((gaussians, dim)), rng.uniform(0.3, 2, (gaussians, dim)), weights / weights.sum()
    )


def mean_log_likelihood(block: FisherBlock, rows: np.ndarray) -> float:
    """Of rows under the mixture, sum by sum."""
    total = 0.0
    for row in rows:
        density = 0.0
        for weight, mean, variance in zip(block.weights, block.means, block.variances, strict=True):
            exponent = sum((x - m) ** 2 / v for x, m, v in zip(row, mean, variance, strict=True))
            density += weight * math.exp(-exponent / 2) / math.sqrt(math.prod(2 * math.pi * v for v in variance))
        total += math.log(density)
    return total / len(rows)


def test_two_gaussians_by_hand() -> None:
    """At 0 and 20 with deviation 1 and 2: rows at 1 and 22 belong to one each, as good as wholly."""
    block = block_of(np.array([[0.0], [20.0]]), np.array([[1.0], [4.0]]), np.array([0.5, 0.5]))
    found = block.gradient(np.array([[1.0], [22.0]]))
    # (x - mu) / sigma = 1 of both, over 2 sqrt(1/2); ((x - mu) / sigma)^2 - 1 = 0 of both.
    np.testing.assert_allclose(found, [1 / math.sqrt(2), 1 / math.sqrt(2), 0, 0], atol=1e-6)
    # With twice the distance the deviations matter: 4 - 1 over 2 sqrt(2 / 2).
    found = block.gradient(np.array([[2.0], [24.0]]))
    np.testing.assert_allclose(found, [math.sqrt(2), math.sqrt(2), 1.5, 1.5], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_gradient_of_the_log_likelihood(seed: int) -> None:
    """By central differences, each divided by the root of its Fisher information: sqrt(w) / sigma, sqrt(2 w) / sigma."""
    block, rng = drawn_block(seed), np.random.default_rng(seed + 10)
    rows = 1.5 * rng.standard_normal((7, 3))
    found = block.gradient(rows).reshape(2, 4, 3)
    step = 1e-6
    for k in range(4):
        for d in range(3):
            for kind in (0, 1):
                sides = []
                for sign in (1, -1):
                    means, deviations = block.means.copy(), np.sqrt(block.variances)
                    (means, deviations)[kind][k, d] += sign * step
                    moved = dataclasses.replace(block, means=means, variances=np.square(deviations))
                    sides.append(mean_log_likelihood(moved, rows))
                slope = (sides[0] - sides[1]) / (2 * step)
                scale = math.sqrt(block.variances[k, d] / block.weights[k] / (1 + kind))
                assert found[kind, k, d] == pytest.approx(slope * scale, rel=1e-5, abs=1e-8)


def test_it_is_the_published_formula_in_chunks_and_with_a_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equations 16 to 18 of Sanchez 2013 in loops; power and length afterwards."""
    rng, mixture = np.random.default_rng(5), drawn_block(1, gaussians=3, dim=2)
    axes = np.linalg.qr(rng.standard_normal((5, 5)))[0][:2]
    block = dataclasses.replace(mixture, projection=Projection(rng.standard_normal(5), axes, np.ones(2)))
    rows = rng.standard_normal((50, 5)).astype(np.float32)
    by_means, by_deviations = np.zeros((3, 2)), np.zeros((3, 2))
    for row in rows.astype(np.float64):
        point = axes @ (row - block.projection.mean)
        densities = [
            weight * np.prod(np.exp(-((point - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance))
            for weight, mean, variance in zip(block.weights, block.means, block.variances, strict=True)
        ]
        for k, density in enumerate(densities):
            share, away = density / sum(densities), (point - block.means[k]) / np.sqrt(block.variances[k])
            by_means[k] += share * away / np.sqrt(block.weights[k])
            by_deviations[k] += share * (away**2 - 1) / np.sqrt(2 * block.weights[k])
    plain = np.concatenate([by_means.ravel(), by_deviations.ravel()]) / 50
    monkeypatch.setattr(fisher, "CHUNK_ROWS", 7)
    np.testing.assert_allclose(block.gradient(rows), plain, rtol=1e-6, atol=1e-9)
    rooted = np.sign(plain) * np.abs(plain) ** 0.5
    np.testing.assert_allclose(block.encode(rows), rooted / np.linalg.norm(rooted), rtol=1e-6, atol=1e-9)


def test_what_the_mixture_expects_has_no_gradient() -> None:
    """Rows drawn from it: by the law of large numbers; and a far row has finite posteriors."""
    block = drawn_block(3, gaussians=2, dim=2)
    rng = np.random.default_rng(0)
    own = rng.choice(2, 200_000, p=block.weights)
    rows = block.means[own] + np.sqrt(block.variances[own]) * rng.standard_normal((200_000, 2))
    assert np.abs(block.gradient(rows)).max() < 0.02
    assert np.isfinite(block.gradient(np.full((1, 2), 1e6))).all()


def test_words_are_the_root_of_the_shares_of_rows() -> None:
    words = WordsBlock(np.array([[0, 0], [10, 0], [0, 10]], np.float32))
    rows = np.array([[1, 1], [9, 2], [8, -1], [0, 1]], np.float32)
    np.testing.assert_allclose(words.encode(rows), np.sqrt([0.5, 0.5, 0]))
    far = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    found = WordsBlock(far[:20]).encode(far)
    nearest = np.square(far[:, None] - far[None, :20]).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(found, np.sqrt(np.bincount(nearest, minlength=20) / 3000))


def test_rows_of_zeros_count_as_none() -> None:
    encoder = Encoder({"a": drawn_block(0), "b": WordsBlock(np.eye(2, dtype=np.float32))})
    rows = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float16)
    padded = np.concatenate([np.zeros((2, 5), np.float16), rows, np.zeros((1, 5), np.float16)])
    assert np.array_equal(encoder.apply(padded), encoder.apply(rows))
    nothing = encoder.apply(np.zeros((1, 5), np.float16))
    assert (nothing.shape, nothing.any(), encoder.source_dim) == ((1, 2 * 4 * 3 + 2), False, 5)
    one = encoder.apply(rows[:1], "float16")
    assert (one.shape, str(one.dtype)) == ((1, 26), "float16")
    # Each block has unit length.
    assert np.linalg.norm(one[0, :24].astype(float)) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(one[0, 24:].astype(float)) == pytest.approx(1, abs=1e-3)


def test_rows_that_do_not_fit_are_refused() -> None:
    encoder = Encoder({"all": drawn_block()})
    with pytest.raises(ExtractionError, match=r"shape \(2, 4\) cannot be encoded: \(N, 3\) is needed"):
        encoder.apply(np.ones((2, 4)))
    with pytest.raises(ExtractionError, match="not finite"):
        encoder.apply(np.array([[1, np.nan, 0]]))


def test_a_fit_finds_the_gaussians_of_a_sample() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[0, 0, 0, 0], [8, 0, 0, 0], [0, 8, 0, 0]], float)
    rows = (centres[rng.integers(0, 3, 3000)] + rng.standard_normal((3000, 4))).astype(np.float32)
    encoder, facts = fit_encoder(rows, {"all": 4}, encoding_of())
    block = encoder.blocks["all"]
    assert isinstance(block, FisherBlock)
    assert (block.dim, block.means.shape) == (2 * 3 * 2, (3, 2))
    np.testing.assert_allclose(block.weights, 1 / 3, atol=0.03)
    np.testing.assert_allclose(block.variances, 1, atol=0.15)
    found = block.means @ block.projection.components + block.projection.mean
    for centre in centres:
        assert np.abs(found - centre)[:, :2].max(axis=1).min() < 0.2
    assert facts["all"]["converged"]
    again, _ = fit_encoder(rows, {"all": 4}, encoding_of())
    other, _ = fit_encoder(rows, {"all": 4}, encoding_of(seed=1))
    mine = encoder_arrays(encoder)
    assert all(np.array_equal(one, encoder_arrays(again)[name]) for name, one in mine.items())
    assert not all(np.array_equal(one, encoder_arrays(other)[name]) for name, one in mine.items())


def test_equal_rows_leave_no_gaussian_without_a_variance() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((6, 4)), 50, axis=0)
    block = fit_encoder(rows, {"all": 4}, encoding_of(size=6))[0].blocks["all"]
    assert isinstance(block, FisherBlock)
    assert (block.variances >= 0.999 * fisher.VARIANCE_FLOOR * block.projection.explained_variance).all()
    assert np.isfinite(block.encode(rows)).all()


@pytest.mark.parametrize(
    ("rows", "encoding", "message"),
    [
        (np.ones((4, 4)), encoding_of(size=5), r"4 rows .* fewer than the 5 Gaussians: give --gaussians 1 or so"),
        (np.ones((4, 4)), encoding_of("words", 5), r"fewer than the 5 words: give --words 1 or so"),
        (
            np.random.default_rng(0).random((3, 20)),
            encoding_of(),
            r"block all: --components 10: 3 training rows .* 1 to 2",
        ),
        (np.eye(20)[[0, 1, 2] * 9], encoding_of(), r"block all: --components 10: .* vary in 2 directions only"),
        (np.ones((9, 4)), encoding_of(), "block all: the training rows are all equal"),
    ],
)
def test_too_few_rows_are_told_with_the_way_out(rows: np.ndarray, encoding: EncodingSpec, message: str) -> None:
    with pytest.raises(ExtractionError, match=message):
        fit_encoder(rows, {"all": rows.shape[1]}, encoding)


def spec_of(extractor: str, layer: str, dim: int, encoding: EncodingSpec | None = None) -> FeatureSpec:
    return FeatureSpec(extractor=extractor, weights="none", layer=layer, feature_dim=dim, encoding=encoding)


def test_the_columns_of_handcrafted_extractors_fall_into_blocks() -> None:
    whole = blocks_of(spec_of("idt", "trajectory+hog+hof+mbh", 426))
    assert whole == {"trajectory": 30, "hog": 96, "hof": 108, "mbh": 192}
    assert encoded_dim(whole, encoding_of(size=256)) == 109_056  # Wang and Schmid 2013: 2 x 256 x (15 + 48 + 54 + 96)
    assert encoded_dim(whole, encoding_of("words", 4000)) == 16_000
    assert encoded_dim(whole, encoding_of(components=20)) == 2 * 3 * (15 + 20 + 20 + 20)
    assert blocks_of(spec_of("harris3d_hof", "hof", 90)) == {"hof": 90}
    assert blocks_of(spec_of("vgg16", "fc6", 4096)) == {"all": 4096}
    with pytest.raises(StoreError, match=r"has no layer 'hog\+sift'; it has: trajectory, hog, hof, mbh"):
        blocks_of(spec_of("idt", "hog+sift", 426))
    with pytest.raises(StoreError, match="hog has 96 values, but its rows 95"):
        blocks_of(spec_of("idt", "hog", 95))


@pytest.mark.parametrize("kind", ["fisher", "words"])
def test_stored_arrays_give_the_same_encoder(kind: str) -> None:
    encoding = encoding_of(kind, 4)
    rows = np.random.default_rng(0).standard_normal((200, 162)).astype(np.float32)
    sizes = blocks_of(spec_of("harris3d_hof", "hog+hof", 162))
    encoder, _ = fit_encoder(rows, sizes, encoding)
    arrays, spec = encoder_arrays(encoder), spec_of("harris3d_hof", "hog+hof", encoded_dim(sizes, encoding), encoding)
    assert np.array_equal(encoder_of(arrays, spec).apply(rows), encoder.apply(rows))
    name = "hof.means" if kind == "fisher" else "hof.words"
    with pytest.raises(StoreError, match="has no array"):
        encoder_of({key: one for key, one in arrays.items() if key != name}, spec)
    with pytest.raises(StoreError, match="is damaged"):
        encoder_of({**arrays, name: arrays[name][:-1]}, spec)
