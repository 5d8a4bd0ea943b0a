from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from har_pipeline.errors import RunError
from har_pipeline.fusion import (
    FLOOR,
    Member,
    apply_temperature,
    calibrate,
    fit_temperature,
    fuse,
    join,
    learn_weights,
    negative_log_likelihood,
    product_rule,
    sum_rule,
    weighted_rule,
)
from har_pipeline.fusion_table import fusion_table
from har_pipeline.metrics import mcnemar, wilson_interval
from har_pipeline.records import Scores
from har_pipeline.scores import stack_scores

A = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
B = np.array([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
BOTH = np.stack([A, B])


def scores_of(
    probabilities: np.ndarray,
    labels: str,
    *,
    classes: str = "abc",
    part: str | list[str] = "test",
    fold: int = 0,
    seed: int = 0,
    first: int = 0,
) -> Scores:
    count = len(labels)
    return Scores(
        video_ids=tuple(f"v{first + i}" for i in range(count)),
        labels=tuple(labels),
        classes=tuple(classes),
        probabilities=np.asarray(probabilities, np.float64),
        part=(part,) * count if isinstance(part, str) else tuple(part),
        fold=(fold,) * count,
        seed=(seed,) * count,
    )


def drawn(rng: np.random.Generator, labels: str, strength: float, classes: str = "abc") -> np.ndarray:
    """Probabilities that lean to the true class with the given strength."""
    logits = rng.standard_normal((len(labels), len(classes)))
    logits[np.arange(len(labels)), [classes.index(label) for label in labels]] += strength
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


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
    fused = fuse([first, second], "sum")
    assert fused.video_ids == ("v0", "v1")
    assert fused.labels == ("a", "b")
    assert fused.classes == ("a", "b", "c")
    np.testing.assert_allclose(fused.probabilities, sum_rule(BOTH))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["sum", "product", "weighted", "learned"]))
def test_shuffled_rows_fuse_identically(seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    labels = "".join(rng.choice(list("abc"), 12))
    parts = ["val"] * 4 + ["test"] * 8
    scores = [scores_of(drawn(rng, labels, 1.0), labels, part=parts) for _ in range(2)]
    plain = [Member(name=str(i), scores=one) for i, one in enumerate(scores)]
    mixed = [Member(name=str(i), scores=one.select(rng.permutation(12))) for i, one in enumerate(scores)]
    weights = [1.5, 1] if rule == "weighted" else None
    expected, found = fuse(plain, rule, weights), fuse(mixed, rule, weights)
    assert found.video_ids == expected.video_ids
    assert found.labels == expected.labels
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_a_missing_video_is_reported_and_left_out() -> None:
    whole, part = scores_of(A, "ab"), scores_of(B, "ab").select([1])
    joined = join([Member(name="rgb", scores=whole), Member(name="flow", scores=part)])
    assert [key[3] for key in joined.keys] == ["v1"]
    assert joined.missing["test"] == {"rgb": (), "flow": ("v0",)}
    table, _ = fusion_table([Member(name="rgb", scores=whole), Member(name="flow", scores=part)])
    assert table.missing == {"rgb": (), "flow": ("v0",)}
    assert table.num_videos == 1


def test_what_does_not_fit_is_an_error() -> None:
    first = Member(name="rgb", scores=scores_of(A, "ab"))

    def check(scores: Scores, message: str) -> None:
        with pytest.raises(RunError, match=message):
            join([first, Member(name="flow", scores=scores)])

    check(scores_of(B, "ab", classes="abd"), r"flow and rgb know different classes \(differing: c, d\)")
    check(scores_of(B, "aa"), "v1 is 'b' in rgb but 'a' in flow")
    check(scores_of(B, "ab", fold=1), r"no test video stands in all runs.*folds \[0\].*folds \[1\]")
    check(scores_of(B, "ab", first=7), "no test video stands in all runs")
    check(scores_of(B - 0.5, "ab"), "flow: the scores of v0 are no probabilities")
    check(scores_of(2 * B, "ab"), "apply a softmax")
    check(scores_of(np.concatenate([B, B]), "abab").select([0, 1, 0]), "v0 stands twice")
    check(scores_of(B, "az"), r"labels \['z'\]")
    with pytest.raises(RunError, match="two runs or more"):
        join([first])
    with pytest.raises(RunError, match="named twice"):
        join([first, first])
    with pytest.raises(RunError, match="there are: sum, product"):
        fuse([first, Member(name="flow", scores=scores_of(B, "ab"))], "mean")
    with pytest.raises(RunError, match="one weight per run"):
        fuse([first, Member(name="flow", scores=scores_of(B, "ab"))], "weighted")
    with pytest.raises(RunError, match="must not be named 'sum'"):
        fusion_table([first, Member(name="sum", scores=scores_of(B, "ab"))])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_runs_of_different_splits_leak(order: tuple[int, int]) -> None:
    clean = Member(name="rgb", scores=scores_of(A, "ab"), learned_from={0: frozenset({"v7"}), 1: frozenset({"v1"})})
    leaky = Member(name="flow", scores=scores_of(B, "ab").select([0]), learned_from={0: frozenset({"v1", "v8"})})
    with pytest.raises(RunError, match=r"flow learned from 1 videos that rgb tests in fold 0 \(v1\)"):
        join([(clean, leaky)[i] for i in order])
    # In another fold the same video may have been learned from.
    fused = fuse([clean, Member(name="flow", scores=scores_of(B, "ab"), learned_from={0: frozenset({"v8"})})])
    assert len(fused.video_ids) == 2


def repeats(probabilities: list[np.ndarray], labels: str, seeds: list[int]) -> Scores:
    return stack_scores([scores_of(p, labels, seed=seed) for p, seed in zip(probabilities, seeds, strict=True)])


def test_repeats_stay_apart() -> None:
    first = Member(name="rgb", scores=repeats([A, B], "ab", [3, 4]))
    second = Member(name="flow", scores=repeats([B, B], "ab", [4, 3]))
    fused = fuse([first, second], "sum")
    assert fused.seed == (3, 3, 4, 4)
    np.testing.assert_allclose(fused.probabilities, np.concatenate([sum_rule(BOTH), B]))
    # One with a single repeat pairs with each of the other's.
    alone = fuse([first, Member(name="idt", scores=scores_of(B, "ab", seed=9))], "sum")
    assert alone.seed == (3, 3, 4, 4)
    np.testing.assert_allclose(alone.probabilities, fused.probabilities)
    assert fuse([Member(name="x", scores=scores_of(A, "ab", seed=5)), second]).seed == (3, 3, 4, 4)
    idt = Member(name="y", scores=scores_of(B, "ab"))
    assert fuse([Member(name="x", scores=scores_of(A, "ab", seed=5)), idt]).seed == (5, 5)


def test_accuracy_of_repeats_is_their_mean_and_videos_count_once() -> None:
    right, wrong = np.array([[0.8, 0.1, 0.1]] * 10), np.array([[0.1, 0.9, 0.0]] * 10)
    half = np.concatenate([right[:5], wrong[:5]])
    first = Member(name="rgb", scores=repeats([right, half], "a" * 10, [0, 1]))
    second = Member(name="flow", scores=repeats([wrong, wrong], "a" * 10, [0, 1]))
    table, _ = fusion_table([first, second], weights=[1, 0], chosen="weighted")
    row = table.row("rgb")
    assert row.top1.value == 0.75
    assert row.sd == pytest.approx(np.std([1, 0.5], ddof=1))
    assert (table.num_videos, table.num_rows) == (10, 20)
    # Ten videos, not twenty rows.
    assert row.top1 == wilson_interval(7.5, 10)
    against = table.row("flow").against_best
    assert table.best == "weighted"
    assert against is not None
    assert (against.first_only, against.second_only) == (10, 0)
    assert against.p_value == pytest.approx(2 / 2**10)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first, second = np.array([1, 1, 1, 1, 1, 0, 1, 0]), np.array([1, 0, 0, 0, 0, 1, 0, 0])
    test = mcnemar(first, second)
    assert (test.first_only, test.second_only) == (5, 1)
    # 2 * (C(6, 0) + C(6, 1)) / 2^6
    assert test.p_value == pytest.approx(14 / 64)
    assert mcnemar(second, first).p_value == pytest.approx(14 / 64)
    assert mcnemar(first, first).p_value == 1
    assert test.describe_p() == "p = 0.22"
    assert mcnemar(np.ones(100), np.zeros(100)).describe_p() == "p < 0.0001"
    assert mcnemar(first.astype(bool), second.astype(bool)) == test
    with pytest.raises(ValueError, match="paired"):
        mcnemar(first, second[:4])


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_scipy(more: int, less: int) -> None:
    test = mcnemar(np.array([1] * more + [0] * less + [1, 0]), np.array([0] * more + [1] * less + [1, 0]))
    assert (test.first_only, test.second_only) == (more, less)
    assert test.p_value == pytest.approx(binomtest(more, more + less).pvalue if more + less else 1)


def pair(seed: int, *, strengths: tuple[float, float] = (1.5, 1.5), val: int = 40, test: int = 60) -> list[Member]:
    rng = np.random.default_rng(seed)
    labels = "".join(rng.choice(list("abc"), val + test))
    parts = ["val"] * val + ["test"] * test
    return [
        Member(
            name=name,
            scores=scores_of(drawn(rng, labels, strength), labels, part=parts),
            learned_from={0: frozenset({"t"})},
        )
        for name, strength in zip(("rgb", "flow"), strengths, strict=True)
    ]


@given(st.integers(0, 1000))
def test_the_oracle_is_right_where_any_run_is(seed: int) -> None:
    table, _ = fusion_table(pair(seed))
    oracle = table.row("oracle")
    assert all(oracle.top1.value >= row.top1.value for row in table.rows if row.kind == "run")
    assert oracle.against_best is None
    joined = join(pair(seed))
    rows = joined.rows("test")
    right = joined.probabilities[:, rows].argmax(axis=2) == joined.labels[rows]
    assert oracle.top1.value == pytest.approx(right.any(axis=0).mean())


def changed_tests(member: Member) -> Member:
    """The same run with other probabilities and labels of its test videos."""
    scores = member.scores
    test = np.array(scores.part) == "test"
    probabilities = scores.probabilities.copy()
    probabilities[test] = probabilities[test][::-1, ::-1]
    labels = tuple("c" if is_test else label for label, is_test in zip(scores.labels, test, strict=True))
    changed = Scores(
        video_ids=scores.video_ids,
        labels=labels,
        classes=scores.classes,
        probabilities=probabilities,
        part=scores.part,
        fold=scores.fold,
        seed=scores.seed,
    )
    return Member(name=member.name, scores=changed, learned_from=member.learned_from)


def test_weights_and_temperatures_see_validation_rows_only() -> None:
    members = pair(3, strengths=(2.5, 0.5))
    first, _ = fusion_table(members, learn=True, calibrated=True)
    second, _ = fusion_table([changed_tests(member) for member in members], learn=True, calibrated=True)
    assert first.learned_weights == second.learned_weights
    assert first.temperatures == second.temperatures
    assert first.row("rgb").top1 != second.row("rgb").top1
    weights = first.learned_weights["fold 0 seed 0"]
    assert sum(weights) == pytest.approx(1)
    assert weights[0] > 0.7


def test_each_fold_has_weights_from_its_own_validation_rows() -> None:
    one, two = pair(1, strengths=(3, 0)), pair(2, strengths=(0, 3))
    members = []
    for first, second in zip(one, two, strict=True):
        other = second.scores
        moved = Scores(
            video_ids=tuple(f"w{i}" for i in range(len(other.video_ids))),
            labels=other.labels,
            classes=other.classes,
            probabilities=other.probabilities,
            part=other.part,
            fold=(1,) * len(other.fold),
            seed=other.seed,
        )
        members.append(Member(name=first.name, scores=stack_scores([first.scores, moved])))
    table, _ = fusion_table(members, learn=True)
    assert table.learned_weights["fold 0 seed 0"][0] > 0.7
    assert table.learned_weights["fold 1 seed 0"][0] < 0.3
    assert table.learned_weights["fold 0 seed 0"] == fusion_table(one, learn=True)[0].learned_weights["fold 0 seed 0"]


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
            fusion_table(members, **options)  # type: ignore[arg-type]


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


def test_a_useless_second_run_is_said_to_be_no_better() -> None:
    labels = "abc" * 10
    sure = np.full((30, 3), 0.05)
    sure[np.arange(30), ["abc".index(label) for label in labels]] = 0.9
    sure[0] = sure[0][[1, 0, 2]]
    even = scores_of(np.full((30, 3), 1 / 3), labels)
    members = [Member(name="rgb", scores=scores_of(sure, labels)), Member(name="flow", scores=even)]
    table, _ = fusion_table(members)
    assert table.best_run == "rgb"
    assert "no better than the best run alone, rgb: 96.7% against 96.7%" in table.verdict


def test_the_verdict_tells_chance_from_gain() -> None:
    def table_of(count: int) -> str:
        labels = "a" * count
        first, second = np.tile([0.45, 0.5, 0.05], (count, 1)), np.tile([0.4, 0.1, 0.5], (count, 1))
        good = np.tile([0.9, 0.05, 0.05], (20, 1))
        members = [
            Member(name=name, scores=scores_of(np.concatenate([good, own]), "a" * 20 + labels))
            for name, own in (("rgb", first), ("flow", second))
        ]
        return fusion_table(members)[0].verdict

    assert "too few to tell that from chance" in table_of(3)
    assert "3 videos gained, 0 lost, p = 0.25" in table_of(3)
    assert "is better than the best run alone" in table_of(8)


def test_flow_and_rgb_get_the_papers_weights_unless_told() -> None:
    members = pair(4)
    streams = [Member(name=m.name, scores=m.scores, stream=m.name) for m in members]
    table, fused = fusion_table(streams, chosen="weighted")
    assert table.weights == (1.0, 1.5)
    joined = join(streams)
    np.testing.assert_allclose(fused.probabilities, weighted_rule(joined.probabilities, [1, 1.5]))
    assert any("flow counts 1.5" in text for text in table.notes)
    assert fusion_table(streams, weights=[2, 1])[0].weights == (2, 1)
    with pytest.raises(RunError, match="no rule 'weighted'"):
        fusion_table(members, chosen="weighted")
    assert any("leakage could not be checked" in text for text in table.notes)
    assert not fusion_table(members)[0].notes


def test_the_table_goes_to_json() -> None:
    table, _ = fusion_table(pair(6), weights=[1, 1], learn=True)
    values = json.loads(json.dumps(table.to_dict()))
    assert [row["name"] for row in values["rows"]] == ["rgb", "flow", "sum", "product", "weighted", "learned", "oracle"]
    best = [row for row in values["rows"] if row["name"] == table.best]
    assert best[0]["against_best"] is None
    assert max(row["top1"]["value"] for row in values["rows"] if row["kind"] == "rule") == best[0]["top1"]["value"]
    # Equal weights are the sum.
    rows = {row["name"]: row for row in values["rows"]}
    assert rows["weighted"]["top1"] == rows["sum"]["top1"]


def test_a_video_tested_in_two_folds_counts_once_in_the_test() -> None:
    members = [
        Member(name=name, scores=stack_scores([scores_of(own, "ab"), scores_of(own, "ab", fold=1)]))
        for name, own in (("rgb", A), ("flow", B))
    ]
    table, _ = fusion_table(members)
    assert (table.num_videos, table.num_rows, table.folds) == (2, 4, (0, 1))
    # Two videos, whatever the number of rows.
    tests = [row.against_best for row in table.rows if row.against_best is not None]
    assert tests
    assert all(test.first_only + test.second_only <= 2 for test in tests)


def unfinished_pair() -> list[Member]:
    """Two repeats of two folds of three videos; `flow` lacks the second fold of its second repeat."""
    rng = np.random.default_rng(0)

    def scores(folds: list[tuple[int, int]]) -> Scores:
        return stack_scores(
            [scores_of(drawn(rng, "abc", 1.0), "abc", fold=fold, seed=seed, first=3 * fold) for fold, seed in folds]
        )

    every = [(0, 0), (1, 0), (0, 1), (1, 1)]
    return [Member(name="rgb", scores=scores(every)), Member(name="flow", scores=scores(every[:3]))]


def test_videos_that_one_repeat_lacks_are_left_out_of_all() -> None:
    joined = join(unfinished_pair())
    assert joined.missing["test"] == {"rgb": (), "flow": ("v3", "v4", "v5")}
    assert {(seed, video_id) for _, _, seed, video_id in joined.keys} == {
        (s, f"v{i}") for s in (0, 1) for i in range(3)
    }
    table, scores = fusion_table(unfinished_pair())
    assert (table.num_videos, table.num_rows, table.seeds) == (3, 6, (0, 1))
    assert set(scores.video_ids).isdisjoint(table.missing["flow"])


def test_repeats_that_another_run_lacks_are_left_out_with_a_note() -> None:
    first = Member(name="rgb", scores=repeats([A, B, A], "ab", [0, 1, 2]))
    second = Member(name="flow", scores=repeats([A, B], "ab", [0, 1]))
    table, _ = fusion_table([first, second])
    assert (table.seeds, table.num_videos, table.num_rows) == ((0, 1), 2, 4)
    assert not any(table.missing.values())
    assert any(text.startswith("rgb: the repeats of the seeds 2 are left out") for text in table.notes)


def test_a_run_of_one_repeat_has_no_deviation_between_repeats() -> None:
    first = Member(name="rgb", scores=repeats([A, B], "ab", [0, 1]))
    table, _ = fusion_table([first, Member(name="alone", scores=scores_of(B, "ab"))])
    assert table.row("alone").sd is None
    assert table.row("rgb").sd is not None
    assert any("alone has one repeat, which stands for each of the 2 repeats" in text for text in table.notes)


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


def test_few_validation_videos_are_said_to_be_few() -> None:
    few, many = (fusion_table(pair(3, val=val), calibrated=True)[0].notes for val in (12, 40))
    assert any("rest on 12 validation videos a fold" in text for text in few)
    assert not any("validation videos" in text for text in many)
