from __future__ import annotations

import numpy as np
import pytest
from drawn_scores import BOTH, A, B, drawn, fused, pair, repeats, scores_of
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.fusion import (
    FLOOR,
    apply_temperature,
    calibrate,
    fit_temperature,
    learn_weights,
    negative_log_likelihood,
    product_rule,
    sum_rule,
    weighted_rule,
)
from har_pipeline.evaluation.fusion_table import fuse
from har_pipeline.evaluation.members import Member, join


def test_sum_by_hand() -> None:
    np.testing.assert_allclose(sum_rule(BOTH), [[0.4, 0.5, 0.1], [0.15, 0.3, 0.55]])


def test_product_by_hand() -> None:
    # 0.12, 0.21, 0.01 and 0.02, 0.05, 0.24, each divided by its sum.
    expected = [[12 / 34, 21 / 34, 1 / 34], [2 / 31, 5 / 31, 24 / 31]]
    np.testing.assert_allclose(product_rule(BOTH), expected)


def test_weighted_by_hand() -> None:
    # 1.5 : 1 -> (3 a + 2 b) / 5.
    expected = [[0.44, 0.46, 0.1], [0.16, 0.34, 0.5]]
    np.testing.assert_allclose(weighted_rule(BOTH, [1.5, 1]), expected)
    np.testing.assert_allclose(weighted_rule(BOTH, [0, 2]), B)


def test_three_runs() -> None:
    three = np.stack([A, B, A])
    np.testing.assert_allclose(sum_rule(three)[0], [1.4 / 3, 1.3 / 3, 0.3 / 3])
    np.testing.assert_allclose(product_rule(three)[0], np.array([72, 63, 1]) / 136)


def test_the_floor_lets_the_other_runs_decide_between_vetoed_classes() -> None:
    first, second = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 0.9, 0.1]])
    fused = product_rule(np.stack([first, second]))
    # a: 1 * floor, b: floor * 0.9, c: floor * 0.1.
    np.testing.assert_allclose(fused, [[0.5, 0.45, 0.05]])
    fused = product_rule(np.stack([first, second]), floor=0.2)
    np.testing.assert_allclose(fused, [[0.2 / 0.42, 0.18 / 0.42, 0.04 / 0.42]])
    assert FLOOR < 1e-9
    assert np.isfinite(product_rule(np.zeros((2, 1, 3)))).all()


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [0, 0], [-1, 2], [np.nan, 1]])
def test_weights_that_cannot_be(weights: list[float]) -> None:
    with pytest.raises(RunError, match="weights"):
        weighted_rule(BOTH, weights)


def test_members_are_joined_by_id_and_classes_by_name() -> None:
    first = Member(name="rgb", scores=scores_of(A, "ab"))
    # The same videos in another order, its columns in another order.
    turned = scores_of(B[::-1, [2, 0, 1]], "ba", classes="cab")
    second = Member(
        name="flow",
        scores=Scores(
            video_ids=("v1", "v0"),
            labels=turned.labels,
            classes=turned.classes,
            probabilities=turned.probabilities,
            part=turned.part,
            fold=turned.fold,
            seed=turned.seed,
        ),
    )
    found = fused([first, second], "sum")
    assert found.video_ids == ("v0", "v1")
    assert found.labels == ("a", "b")
    assert found.classes == ("a", "b", "c")
    np.testing.assert_allclose(found.probabilities, sum_rule(BOTH))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["sum", "product", "weighted", "learned"]))
def test_shuffled_rows_fuse_identically(seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    labels = "".join(rng.choice(list("abc"), 12))
    parts = ["val"] * 4 + ["test"] * 8
    scores = [scores_of(drawn(rng, labels, 1.0), labels, part=parts) for _ in range(2)]
    plain = [Member(name=str(i), scores=one) for i, one in enumerate(scores)]
    mixed = [Member(name=str(i), scores=one.select(rng.permutation(12))) for i, one in enumerate(scores)]
    weights = [1.5, 1] if rule == "weighted" else None
    expected, found = fused(plain, rule, weights), fused(mixed, rule, weights)
    assert found.video_ids == expected.video_ids
    assert found.labels == expected.labels
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_a_missing_video_is_reported_and_left_out() -> None:
    whole, part = scores_of(A, "ab"), scores_of(B, "ab").select([1])
    joined = join([Member(name="rgb", scores=whole), Member(name="flow", scores=part)])
    assert [key[3] for key in joined.keys] == ["v1"]
    assert joined.missing["test"] == {"rgb": (), "flow": ("v0",)}
    table, _ = fuse([Member(name="rgb", scores=whole), Member(name="flow", scores=part)])
    assert table.missing == {"rgb": (), "flow": ("v0",)}
    assert table.num_videos == 1


def test_what_does_not_fit_is_an_error() -> None:
    first = Member(name="rgb", scores=scores_of(A, "ab"))

    def check(scores: Scores, message: str) -> None:
        with pytest.raises(RunError, match=message):
            join([first, Member(name="flow", scores=scores)])

    check(scores_of(B, "ab", classes="abd"), r"flow and rgb have different classes \(differing: c, d\)")
    check(scores_of(B, "aa"), "v1 is 'b' in rgb but 'a' in flow")
    check(scores_of(B, "ab", fold=1), r"no test video is in the same fold of all runs.*folds \[0\].*folds \[1\]")
    check(scores_of(B, "ab", first=7), "no test video is in the same fold of all runs")
    check(scores_of(B - 0.5, "ab"), "flow: the scores of v0 are not probabilities")
    check(scores_of(2 * B, "ab"), "apply a softmax")
    check(scores_of(np.concatenate([B, B]), "abab").select([0, 1, 0]), "duplicate v0")
    check(scores_of(B, "az"), r"labels \['z'\]")
    with pytest.raises(RunError, match="two runs or more"):
        join([first])
    with pytest.raises(RunError, match="duplicate run name"):
        join([first, first])
    with pytest.raises(RunError, match="there are: sum, product"):
        fused([first, Member(name="flow", scores=scores_of(B, "ab"))], "mean")
    with pytest.raises(RunError, match="one weight per run"):
        fused([first, Member(name="flow", scores=scores_of(B, "ab"))], "weighted")
    with pytest.raises(RunError, match="must not have the name 'sum'"):
        fuse([first, Member(name="sum", scores=scores_of(B, "ab"))])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_runs_of_different_splits_leak(order: tuple[int, int]) -> None:
    clean = Member(name="rgb", scores=scores_of(A, "ab"), learned_from={0: frozenset({"v7"}), 1: frozenset({"v1"})})
    leaky = Member(name="flow", scores=scores_of(B, "ab").select([0]), learned_from={0: frozenset({"v1", "v8"})})
    with pytest.raises(RunError, match=r"flow learned from 1 videos that rgb tests in fold 0 \(v1\)"):
        join([(clean, leaky)[i] for i in order])
    # In another fold the same video may have been learned from.
    found = fused([clean, Member(name="flow", scores=scores_of(B, "ab"), learned_from={0: frozenset({"v8"})})])
    assert len(found.video_ids) == 2


def test_repeats_stay_apart() -> None:
    first = Member(name="rgb", scores=repeats([A, B], "ab", [3, 4]))
    second = Member(name="flow", scores=repeats([B, B], "ab", [4, 3]))
    found = fused([first, second], "sum")
    assert found.seed == (3, 3, 4, 4)
    np.testing.assert_allclose(found.probabilities, np.concatenate([sum_rule(BOTH), B]))
    # One with a single repeat pairs with each of the other's.
    alone = fused([first, Member(name="idt", scores=scores_of(B, "ab", seed=9))], "sum")
    assert alone.seed == (3, 3, 4, 4)
    np.testing.assert_allclose(alone.probabilities, found.probabilities)
    assert fused([Member(name="x", scores=scores_of(A, "ab", seed=5)), second]).seed == (3, 3, 4, 4)
    idt = Member(name="y", scores=scores_of(B, "ab"))
    assert fused([Member(name="x", scores=scores_of(A, "ab", seed=5)), idt]).seed == (5, 5)


def test_learned_weights_have_the_highest_likelihood() -> None:
    members = pair(5, strengths=(2, 1), val=400)
    joined = join(members)
    val = joined.rows("val")
    values, labels = joined.probabilities[:, val], joined.labels[val]
    learned = learn_weights(values, labels)

    def penalised(first: float) -> float:
        fused = weighted_rule(values, [first, 1 - first])
        # The imaginary video of each member is the logarithm of its weight.
        return len(labels) * negative_log_likelihood(fused, labels) - np.log(first) - np.log(1 - first)

    grid = np.linspace(0.01, 0.99, 99)
    best = grid[np.argmin([penalised(value) for value in grid])]
    assert learned[0] == pytest.approx(best, abs=0.011)


def test_learning_needs_validation_videos() -> None:
    members = [Member(name="rgb", scores=scores_of(A, "ab")), Member(name="flow", scores=scores_of(B, "ab"))]
    for options in ({"learn": True}, {"calibrated": True}):
        with pytest.raises(RunError, match="train with --val-fraction"):
            fuse(members, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_calibration_finds_the_temperature_and_lowers_the_validation_loss(factor: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(4), size=4000)
    labels = np.array([rng.choice(4, p=row) for row in true])
    skewed = apply_temperature(true, 1 / factor)
    temperature = fit_temperature(skewed, labels)
    assert temperature == pytest.approx(factor, rel=0.08)
    before = negative_log_likelihood(skewed, labels)
    after = negative_log_likelihood(apply_temperature(skewed, temperature), labels)
    assert after <= before
    assert after < before - 0.02 or factor == 1
    np.testing.assert_allclose(apply_temperature(true, 1.0), true)


def test_calibrated_rows_keep_their_classes() -> None:
    joined = join(pair(8))
    fitted, temperatures = calibrate(joined)
    assert np.array_equal(fitted.probabilities.argmax(axis=2), joined.probabilities.argmax(axis=2))
    assert len(temperatures[0, 0]) == 2
    val = joined.rows("val")
    for before, after in zip(joined.probabilities, fitted.probabilities, strict=True):
        assert negative_log_likelihood(after[val], joined.labels[val]) <= negative_log_likelihood(
            before[val], joined.labels[val]
        )


def test_few_validation_videos_do_not_claim_certainty() -> None:
    # Twelve videos, all right: the likelihood alone would have the lowest temperature there is.
    probabilities = np.full((12, 6), 0.08)
    probabilities[:, 0] = 0.6
    labels = np.zeros(12, np.int64)
    temperature = fit_temperature(probabilities, labels)
    assert 0.25 < temperature < 1
    confident = apply_temperature(probabilities, temperature)[0, 0]
    assert confident < 13 / 14
    # With many such videos there is more to go by.
    assert fit_temperature(np.repeat(probabilities, 100, axis=0), np.zeros(1200, np.int64)) < temperature
