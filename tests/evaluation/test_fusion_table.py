"""The table of a fusion: every rule, each run alone, the oracle, paired tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drawn_scores import A, B, drawn, pair, repeats, scores_of
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.fusion import weighted_rule
from har_pipeline.evaluation.fusion_table import fuse
from har_pipeline.evaluation.members import Member, join
from har_pipeline.evaluation.scores import stack_scores
from har_pipeline.evaluation.statistics import wilson_interval


def test_accuracy_of_repeats_is_their_mean_and_videos_count_once() -> None:
    right, wrong = np.array([[0.8, 0.1, 0.1]] * 10), np.array([[0.1, 0.9, 0.0]] * 10)
    half = np.concatenate([right[:5], wrong[:5]])
    first = Member(name="rgb", scores=repeats([right, half], "a" * 10, [0, 1]))
    second = Member(name="flow", scores=repeats([wrong, wrong], "a" * 10, [0, 1]))
    table, _ = fuse([first, second], weights=[1, 0], chosen="weighted")
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


@given(st.integers(0, 1000))
def test_the_oracle_is_right_where_any_run_is(seed: int) -> None:
    table, _ = fuse(pair(seed))
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
    first, _ = fuse(members, learn=True, calibrated=True)
    second, _ = fuse([changed_tests(member) for member in members], learn=True, calibrated=True)
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
    table, _ = fuse(members, learn=True)
    assert table.learned_weights["fold 0 seed 0"][0] > 0.7
    assert table.learned_weights["fold 1 seed 0"][0] < 0.3
    assert table.learned_weights["fold 0 seed 0"] == fuse(one, learn=True)[0].learned_weights["fold 0 seed 0"]


def test_a_useless_second_run_is_said_to_be_no_better() -> None:
    labels = "abc" * 10
    sure = np.full((30, 3), 0.05)
    sure[np.arange(30), ["abc".index(label) for label in labels]] = 0.9
    sure[0] = sure[0][[1, 0, 2]]
    even = scores_of(np.full((30, 3), 1 / 3), labels)
    members = [Member(name="rgb", scores=scores_of(sure, labels)), Member(name="flow", scores=even)]
    table, _ = fuse(members)
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
        return fuse(members)[0].verdict

    assert "too few to tell that from chance" in table_of(3)
    assert "3 videos gained, 0 lost, p = 0.25" in table_of(3)
    assert "is better than the best run alone" in table_of(8)


def test_flow_and_rgb_get_the_papers_weights_unless_told() -> None:
    members = pair(4)
    streams = [Member(name=m.name, scores=m.scores, stream=m.name) for m in members]
    table, fused = fuse(streams, chosen="weighted")
    assert table.weights == (1.0, 1.5)
    joined = join(streams)
    np.testing.assert_allclose(fused.probabilities, weighted_rule(joined.probabilities, [1, 1.5]))
    assert any("flow counts 1.5" in text for text in table.notes)
    assert fuse(streams, weights=[2, 1])[0].weights == (2, 1)
    with pytest.raises(RunError, match="no rule 'weighted'"):
        fuse(members, chosen="weighted")
    assert any("leakage could not be checked" in text for text in table.notes)
    assert not fuse(members)[0].notes


def test_the_table_goes_to_json() -> None:
    table, _ = fuse(pair(6), weights=[1, 1], learn=True)
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
    table, _ = fuse(members)
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
    table, scores = fuse(unfinished_pair())
    assert (table.num_videos, table.num_rows, table.seeds) == (3, 6, (0, 1))
    assert set(scores.video_ids).isdisjoint(table.missing["flow"])


def test_repeats_that_another_run_lacks_are_left_out_with_a_note() -> None:
    first = Member(name="rgb", scores=repeats([A, B, A], "ab", [0, 1, 2]))
    second = Member(name="flow", scores=repeats([A, B], "ab", [0, 1]))
    table, _ = fuse([first, second])
    assert (table.seeds, table.num_videos, table.num_rows) == ((0, 1), 2, 4)
    assert not any(table.missing.values())
    assert any(text.startswith("rgb: the repeats of the seeds 2 are left out") for text in table.notes)


def test_a_run_of_one_repeat_has_no_deviation_between_repeats() -> None:
    first = Member(name="rgb", scores=repeats([A, B], "ab", [0, 1]))
    table, _ = fuse([first, Member(name="alone", scores=scores_of(B, "ab"))])
    assert table.row("alone").sd is None
    assert table.row("rgb").sd is not None
    assert any("alone has one repeat, which stands for each of the 2 repeats" in text for text in table.notes)


def test_few_validation_videos_are_said_to_be_few() -> None:
    few, many = (fuse(pair(3, val=val), calibrated=True)[0].notes for val in (12, 40))
    assert any("rest on 12 validation videos a fold" in text for text in few)
    assert not any("validation videos" in text for text in many)
