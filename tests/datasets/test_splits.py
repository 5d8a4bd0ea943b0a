from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from har_pipeline.core.errors import SplitError, UsageError
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.datasets.builders import build_manifest, kth_rule_records
from har_pipeline.datasets.official_lists import read_hmdb51_lists, read_ucf101_lists
from har_pipeline.datasets.protocols import PROTOCOLS, default_protocol
from har_pipeline.datasets.splits import (
    SplitChoice,
    check_split,
    choose_splits,
    describe_protocol,
    describe_splits,
    make_splits,
    odd_validation_share,
    protocol_splits,
    read_split_file,
    unlabelled_videos,
    unread_column,
    unused_videos,
    write_split_file,
)

KTH = kth_rule_records(Path("/kth"))


def video(video_id: str, label: str = "run", **columns: str) -> VideoRecord:
    extra = {key: value for key, value in columns.items() if key.startswith("x_")}
    rest = {key: value for key, value in columns.items() if key not in extra}
    return replace(VideoRecord(video_id=video_id, label=label, path=Path(f"/v/{video_id}"), extra=extra), **rest)


def crossed(column: str, values: Sequence[str], labels: Sequence[str] = ("run", "jump")) -> list[VideoRecord]:
    """One video of each class for each value of a column."""
    return [video(f"{value}-{label}", label, **{column: value}) for value in values for label in labels]


def of(records: Sequence[VideoRecord], ids: Sequence[str], column: str) -> set[str]:
    wanted = set(ids)
    return {getattr(record, column) for record in records if record.video_id in wanted}


def test_kth_original() -> None:
    (split,) = make_splits(KTH, "kth_original", val_fraction=0, manifest_sha256="abc")
    test = {f"person{n:02d}" for n in (2, 3, 5, 6, 7, 8, 9, 10, 22)}
    assert of(KTH, split.test, "subject") == test
    assert of(KTH, split.train, "subject") == {f"person{n:02d}" for n in range(1, 26)} - test
    assert (len(split.train), len(split.val), len(split.test)) == (383, 0, 216)
    assert (split.protocol, split.index, split.manifest_sha256) == ("kth_original", 0, "abc")


def test_kth_original_validation_takes_whole_persons_of_the_training_side() -> None:
    (split,) = make_splits(KTH, "kth_original", val_fraction=0.25)
    assert len(of(KTH, split.val, "subject")) == 4
    assert len(split.val) in (95, 96)
    assert len(split.train) + len(split.val) == 383
    assert not of(KTH, split.val, "subject") & of(KTH, split.train, "subject")


def test_kth_original_of_six_persons() -> None:
    records = [record for record in KTH if record.subject in {f"person{n:02d}" for n in range(1, 7)}]
    (split,) = make_splits(records, "kth_original", val_fraction=0)
    assert of(records, split.train, "subject") == {"person01", "person04"}
    with pytest.raises(SplitError, match="kth_original split 0: none of the 24 videos is in train"):
        make_splits([r for r in KTH if r.subject == "person02"], "kth_original")
    with pytest.raises(SplitError, match="none of the 48 videos is in test"):
        make_splits([r for r in KTH if r.subject in ("person01", "person04")], "kth_original")


def test_kth_random5() -> None:
    splits = make_splits(KTH, "kth_random5", seed=3)
    assert [split.index for split in splits] == [0, 1, 2, 3, 4]
    draws = [frozenset(of(KTH, split.test, "subject")) for split in splits]
    assert [len(draw) for draw in draws] == [9] * 5
    assert len(set(draws)) == 5
    assert draws == [frozenset(of(KTH, s.test, "subject")) for s in make_splits(KTH, "kth_random5", seed=3)]
    assert draws != [frozenset(of(KTH, s.test, "subject")) for s in make_splits(KTH, "kth_random5", seed=4)]


def test_sequences_of_one_file_stay_together() -> None:
    records = [replace(video(f"{file}_s{i}"), path=Path(f"/v/{file}")) for file in "abcdefgh" for i in range(4)]
    for seed in range(5):
        (split,) = make_splits(records, "holdout", seed=seed)
        parts = [of(records, ids, "path") for ids in (split.train, split.val, split.test)]
        assert sum(map(len, parts)) == 8
        assert all(parts)


UCF = [video(f"{label}{g}", label, group=f"g{g:02d}") for label in ("run", "jump") for g in range(1, 26)]


def test_ucf101_by_rule_and_by_lists() -> None:
    ruled = make_splits(UCF, "ucf101", val_fraction=0)
    assert [sorted(of(UCF, s.test, "group")) for s in ruled] == [
        [f"g{g:02d}" for g in groups] for groups in (range(1, 8), range(8, 15), range(15, 22))
    ]
    part = {i: {g: "test" if 7 * i - 6 <= g <= 7 * i else "train" for g in range(1, 26)} for i in (1, 2, 3)}
    listed = [replace(r, extra={f"x_split{i}": part[i][int((r.group or "")[1:])] for i in (1, 2, 3)}) for r in UCF]
    assert make_splits(listed, "ucf101", val_fraction=0) == ruled
    unused = [replace(r, extra={**r.extra, "x_split2": "unused"}) if r.group == "g25" else r for r in listed]
    assert len(make_splits(unused, "ucf101", val_fraction=0)[1].train) == 2 * (25 - 7 - 1)


def test_ucf101_validation_by_groups_over_all_classes() -> None:
    for split in make_splits(UCF, "ucf101", val_fraction=0.2):
        assert len(of(UCF, split.val, "group")) in (3, 4)
        assert not of(UCF, split.val, "group") & of(UCF, split.train, "group")


def test_hmdb51_needs_the_lists_and_keeps_films_together_within_a_class() -> None:
    with pytest.raises(SplitError, match="official lists"):
        make_splits([video("a", group="f")], "hmdb51")
    columns = {"x_split1": "train", "x_split2": "test", "x_split3": "train"}
    records = [
        video("a1", "run", group="film", **columns),
        video("a2", "run", group="other", x_split1="test", x_split2="train", x_split3="test"),
        video("b1", "jump", group="film", x_split1="test", x_split2="train", x_split3="test"),
        video("b2", "jump", group="third", **columns),
    ]
    tested = [split.test for split in make_splits(records, "hmdb51", val_fraction=0)]
    assert tested == [("a2", "b1"), ("a1", "b2"), ("a2", "b1")]
    leaking = [replace(record, group="film") for record in records]
    with pytest.raises(SplitError, match="group of class jump/film, run/film is in both train and test"):
        make_splits(leaking, "hmdb51", val_fraction=0)


NTU = [
    video(f"C{c}P{p}A{a}", f"A{a:03d}", subject=f"P{p:03d}", camera=f"C{c:03d}")
    for c in (1, 2, 3)
    for p in range(1, 41)
    for a in (1, 2)
]


def test_xsub() -> None:
    (split,) = make_splits(NTU, "xsub", val_fraction=0)
    train = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    assert of(NTU, split.train, "subject") == {f"P{p:03d}" for p in train}
    assert of(NTU, split.test, "subject") == {f"P{p:03d}" for p in range(1, 41) if p not in train}


def test_xview_shares_subjects_with_the_test_side_only() -> None:
    (split,) = make_splits(NTU, "xview")
    assert of(NTU, split.test, "camera") == {"C001"}
    assert of(NTU, split.train, "camera") == of(NTU, split.val, "camera") == {"C002", "C003"}
    assert len(of(NTU, split.val, "subject")) == 8
    assert not of(NTU, split.val, "subject") & of(NTU, split.train, "subject")
    mixed = replace(split, val=split.train[:1], train=split.train[1:])
    with pytest.raises(SplitError, match="is in both train and val"):
        check_split(mixed, NTU)


@pytest.mark.parametrize(
    ("protocol", "columns", "message"),
    [
        ("xsub", {"subject": "P041"}, "subject must be 1 to 40, not 'P041'"),
        ("kth_original", {"subject": "person26"}, "subject must be 1 to 25"),
        ("kth_original", {"subject": "anna"}, "needs a number in column subject; a has 'anna'"),
        ("kth_original", {}, "needs a number in column subject; a has ''"),
        ("xview", {"camera": "C004"}, "camera must be 1 to 3"),
        ("ucf101", {"group": "g26"}, "group must be 1 to 25"),
        ("leave_one_group_out", {}, "needs column 'group' in every row of the manifest; 1 of 1 have none: a"),
        ("leave_one_subject_out", {"subject": "s1"}, "at least two subjects; found only 's1'"),
        ("group_kfold", {}, "cannot make 5 folds of 1 subject, group or file"),
        ("column", {}, "column 'split' must contain train and test; it is empty"),
        ("column", {"split": "train"}, r"must contain train and test; found: \['train'\]"),
        ("holdout", {}, "cannot divide the videos: they are of one subject, group or file"),
    ],
)
def test_protocols_that_do_not_fit(protocol: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        make_splits([video("a", **columns)], protocol)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("loso", "leave_one_subject_out"),
        ("LOGO", "leave_one_group_out"),
        ("cross-subject", "xsub"),
        ("X-View", "xview"),
    ],
)
def test_protocols_are_known_by_other_names(name: str, protocol: str) -> None:
    assert SplitChoice(protocol=name).protocol == protocol
    if protocol == "leave_one_subject_out":
        splits = make_splits(crossed("subject", ["a", "b"]), name, val_fraction=0)
        assert {split.protocol for split in splits} == {protocol}


@pytest.mark.parametrize(
    ("name", "near"), [("hold-out2", "holdout"), ("kth", "kth_original"), ("leave_one_out", "leave_one")]
)
def test_unknown_protocols_name_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown protocol '{name}'; did you mean '{near}.*choose from: kth_original"):
        make_splits([video("a")], name)
    with pytest.raises(UsageError, match="unknown protocol 'twofold'; choose from"):
        SplitChoice(protocol="twofold")


def test_videos_without_a_label_are_in_no_split(tmp_path: Path) -> None:
    records = crossed("subject", ["a", "b", "c"])
    nameless = [video(f"n{n}", "", subject="d") for n in range(7)]
    splits = make_splits([*nameless, *records], "leave_one_subject_out", val_fraction=0)
    assert splits == make_splits(records, "leave_one_subject_out", val_fraction=0)
    note = "7 of 13 videos of the manifest have no label and are left out: n0, n1, n2, n3, n4, ..."
    assert unlabelled_videos([*records, *nameless]) == [note]
    assert unlabelled_videos(records) == unused_videos(splits, [*records, *nameless]) == []
    with pytest.raises(SplitError, match="none of the 7 videos of the manifest has a label: fill in the column label"):
        make_splits(nameless, "holdout")
    with pytest.raises(SplitError, match="1 test videos have no label in the manifest: n0"):
        check_split(replace(splits[0], test=("n0",)), [*records, *nameless])


@pytest.mark.parametrize(("name", "what"), [("m.csv", "a manifest"), ("film.mp4", "a video file"), ("", "a folder")])
def test_what_is_no_split_file_is_told(tmp_path: Path, name: str, what: str) -> None:
    if name:
        (tmp_path / name).write_text("video_id,path,label\n")
    with pytest.raises(SplitError, match=f"not a split file.*{what}|{what}, not a split file"):
        read_split_file(tmp_path / name)


@pytest.mark.parametrize("column", ["group", "subject"])
def test_leave_one_out(column: str) -> None:
    records = crossed(column, ["c", "a", "b"])
    splits = make_splits(records, f"leave_one_{column}_out", val_fraction=0)
    assert [split.test for split in splits] == [(f"{x}-jump", f"{x}-run") for x in "abc"]
    for split in make_splits(records, f"leave_one_{column}_out"):
        assert len(of(records, split.val, column)) == 1


def test_leave_one_group_out_may_share_subjects_but_leave_one_subject_out_no_groups() -> None:
    records = [replace(r, subject="anna") for r in crossed("group", ["a", "b", "c"])]
    assert len(make_splits(records, "leave_one_group_out")) == 3
    swapped = [replace(r, subject=r.group, group="scene") for r in records]
    with pytest.raises(SplitError, match="group scene is in both train and test"):
        make_splits(swapped, "leave_one_subject_out", val_fraction=0)


def test_group_kfold_tests_every_video_once() -> None:
    records = crossed("group", [f"g{i}" for i in range(10)])
    splits = make_splits(records, "group_kfold", num_folds=5, seed=1)
    assert Counter(i for split in splits for i in split.test) == Counter(r.video_id for r in records)
    assert [len(of(records, split.test, "group")) for split in splits] == [2] * 5
    with pytest.raises(SplitError, match="cannot make 11 folds of 10 subjects, groups or files"):
        make_splits(records, "group_kfold", num_folds=11)
    with pytest.raises(SplitError, match="cannot make 1 folds"):
        make_splits(records, "group_kfold", num_folds=1)
    single = [video(f"v{i}", f"class{i}") for i in range(5)]
    with pytest.raises(SplitError, match="no class has 2 videos"):
        make_splits(single, "group_kfold", num_folds=2)


def test_holdout_takes_the_same_share_of_every_class() -> None:
    sizes = {"run": 100, "jump": 40, "wave": 10}
    records = [video(f"{label}{i}", label) for label, size in sizes.items() for i in range(size)]
    (split,) = make_splits(records, "holdout", test_fraction=0.3, val_fraction=0.1)
    labels = {record.video_id: record.label for record in records}
    assert Counter(labels[i] for i in split.test) == {"run": 30, "jump": 12, "wave": 3}
    assert Counter(labels[i] for i in split.val) == {"run": 7, "jump": 3, "wave": 1}
    assert split == make_splits(records[::-1], "holdout", test_fraction=0.3, val_fraction=0.1)[0]


def test_a_large_share_leaves_every_class_a_training_video() -> None:
    records = [video(f"run{i}") for i in range(10)] + [video("jump0", "jump")]
    for seed in range(5):
        (split,) = make_splits(records, "holdout", test_fraction=0.8, val_fraction=0, seed=seed)
        assert "jump0" in split.train
        assert len(split.test) == 8


def test_folds_draw_their_validation_anew() -> None:
    same_side = [video(f"v{i}", x_split1="train", x_split2="train") for i in range(40)]
    tests = [video(f"t{i}", x_split1="test", x_split2="test") for i in range(2)]
    first, second = make_splits([*same_side, *tests], "ucf101")
    assert len(first.val) == len(second.val) == 8
    assert first.val != second.val


def test_shares_out_of_range() -> None:
    records = crossed("group", ["a", "b", "c"])
    for fraction in (-0.1, 1.0):
        with pytest.raises(SplitError, match=r"must be in \[0, 1\)"):
            make_splits(records, "holdout", val_fraction=fraction)
    with pytest.raises(SplitError, match="none of the 6 videos is in test"):
        make_splits(records, "holdout", test_fraction=0)
    with pytest.raises(SplitError, match=r"cannot divide .* of one subject, group or file, .*; use --val-fraction 0"):
        make_splits(crossed("group", ["a", "b"]), "leave_one_group_out")


def test_column() -> None:
    cells = {"a": "train", "b": "val", "c": "test", "d": "unused", "e": "train"}
    records = [video(i, split=cell) for i, cell in cells.items()]
    (split,) = make_splits(records, "column")
    assert (split.train, split.val, split.test) == (("a", "e"), ("b",), ("c",))
    own = [video(i, x_mine=cell.replace("val", "")) for i, cell in cells.items()]
    (split,) = make_splits(own, "column", column="x_mine", val_fraction=0.5)
    assert (len(split.train), len(split.val), split.test) == (1, 1, ("c",))
    with pytest.raises(SplitError, match="reads column split or one that starts with x_"):
        make_splits(records, "column", column="label")
    leaking = [replace(record, subject="anna") for record in records]
    with pytest.raises(SplitError, match="subject anna is in both"):
        make_splits(leaking, "column")


def test_a_class_without_training_videos_is_an_error() -> None:
    records = [video("a", "run", split="train"), video("b", "jump", split="test")]
    with pytest.raises(SplitError, match="class jump has test but no training videos"):
        make_splits(records, "column", val_fraction=0)


def test_check_split_of_a_users_file() -> None:
    records = crossed("subject", ["s1", "s2", "s3"])
    good = Split(protocol="mine", index=0, train=("s1-run", "s1-jump"), val=("s2-run",), test=("s3-run",))
    check_split(good, records)
    for part, ids, message in (
        ("test", ("s3-run", "none"), "1 test ids are not in the manifest, such as 'none'"),
        ("test", ("s2-jump",), "subject s2 is in both val and test"),
        ("val", ("s3-jump",), "subject s3 is in both val and test"),
        ("train", ("s2-jump", "s1-run"), "subject s2 is in both train and val"),
        ("test", (), "no test videos"),
        ("train", (), "no train videos"),
        ("train", ("s1-run", "s1-run"), "1 train ids appear more than once"),
    ):
        with pytest.raises(SplitError, match=message):
            check_split(replace(good, **{part: ids}), records)
    same_file = [replace(r, subject=None, path=Path("/v/one")) for r in records]
    with pytest.raises(SplitError, match="file /v/one is in both train and test"):
        check_split(good, same_file)


def test_protocols_read_the_options_that_they_declare() -> None:
    records = [replace(r, split="test" if r.group == "a" else "train") for r in crossed("group", "abcdefghij")]
    records = [replace(r, extra={"x_mine": "test" if r.group == "b" else "train"}) for r in records]
    others = {"num_folds": 2, "test_fraction": 0.6, "column": "x_mine"}
    for name in ("leave_one_group_out", "group_kfold", "holdout", "column"):
        usual = make_splits(records, name)
        reads = {option for option, value in others.items() if make_splits(records, name, **{option: value}) != usual}  # type: ignore[arg-type]
        assert reads == set(PROTOCOLS[name].reads)


LABELS = ("run", "jump", "wave")


@st.composite
def manifests(draw: st.DrawFn) -> list[VideoRecord]:
    """Rows with subjects and groups that may be missing and may cross each other."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(LABELS),
                st.none() | st.integers(0, 5).map(str),
                st.none() | st.integers(0, 5).map(str),
                st.integers(0, 20),
            ),
            min_size=4,
            max_size=40,
        )
    )
    return [
        VideoRecord(video_id=f"v{i}", label=label, subject=subject, group=group, path=Path(f"/v/{file}"))
        for i, (label, subject, group, file) in enumerate(rows)
    ]


@given(manifests(), st.sampled_from(["holdout", "group_kfold"]), st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 9))
def test_splits_never_leak(records: list[VideoRecord], protocol: str, val_fraction: float, seed: int) -> None:
    """The parts are disjoint, complete, pure in subject, group and file, and trainable, unless a protocol refuses."""
    try:
        splits = make_splits(records, protocol, val_fraction=val_fraction, num_folds=2, seed=seed)
    except SplitError as error:
        if not any(
            words in str(error) for words in ("cannot divide", "make 2 folds", "no training videos", "no class has")
        ):
            raise
        reject()  # hypothesis fails if that is nearly always so
    for split in splits:
        parts = (split.train, split.val, split.test)
        assert sorted(i for part in parts for i in part) == sorted(record.video_id for record in records)
        assert bool(split.val) == (val_fraction > 0)
        for column in ("subject", "group", "path"):
            values = [of(records, part, column) - {None} for part in parts]
            assert sum(map(len, values)) == len(set().union(*values))
        assert of(records, split.train, "label") == {record.label for record in records}


def test_description_names_the_tested_subjects() -> None:
    rows = describe_splits(make_splits(KTH, "kth_original", val_fraction=0), KTH)
    assert rows == [
        {
            "split": 0, "train": 383, "val": 0, "test": 216, "classes": 6,
            "tested": "person02, person03, person05, person06, person07, person08, person09, person10, person22",
        }
    ]  # fmt: skip
    by_file = [video(f"v{i}") for i in range(9)]
    assert describe_splits(make_splits(by_file, "holdout"), by_file)[0]["tested"] == ""
    many = crossed("group", [f"g{i:02d}" for i in range(24)])
    assert describe_splits(make_splits(many, "holdout", test_fraction=0.5), many)[0]["tested"].endswith(" and 3 more")


@pytest.mark.parametrize(
    ("records", "protocol", "said"),
    [
        (KTH, "kth_original", "1 split; train and test share no subject, group or file"),
        (NTU, "xview", "1 split; train and test share no file; 40 of 40 subjects are on both sides"),
        (
            [video(f"v{i}") for i in range(9)],
            "holdout",
            "no file; the manifest has no subject: one person may be on both",
        ),
        (
            crossed("group", ["a", "b"]),
            "logo",
            "2 splits; train and test share no group or file; the manifest has no subject",
        ),
        (
            [replace(one, subject="anna") for one in crossed("group", ["a", "b"])],
            "logo",
            "share no group or file; 1 of 1 subjects are on both sides",
        ),
        (
            [video(f"v{i}", subject="anna" if i else "") for i in range(9)] + [video("w", subject="ben")],
            "holdout",
            "no subject or file; 1 of 10 videos name no subject: one person may be on both sides",
        ),
        (KTH, "all", "1 split; all videos train and none tests"),
    ],
)
def test_a_line_says_what_train_and_test_share(records: list[VideoRecord], protocol: str, said: str) -> None:
    splits = make_splits(records, protocol, val_fraction=0)
    line = describe_protocol(splits, records, by_default=False)
    assert line.startswith(f"protocol {splits[0].protocol}: ")
    assert said in line
    assert describe_protocol(splits, records, by_default=True).startswith(
        f"protocol {splits[0].protocol} (the default): "
    )


SMALL = [
    VideoRecord(video_id=f"{label}-{person}", path=Path(f"{label}-{person}.avi"), label=label, subject=person)
    for label in ("boxing", "running")
    for person in ("p1", "p2", "p3")
]


def test_split_file_round_trip(tmp_path: Path) -> None:
    for split in make_splits(SMALL, "leave_one_subject_out", seed=7, manifest_sha256="f" * 64):
        write_split_file(tmp_path / "split.json", split)
        assert read_split_file(tmp_path / "split.json") == split
    values = json.loads((tmp_path / "split.json").read_text())
    assert set(values) == {"protocol", "index", "train", "val", "test", "seed", "manifest_sha256"}
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_a_split_file_by_hand_needs_little(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"protocol": "mine", "train": ["a"], "test": ["b"]}')
    assert read_split_file(tmp_path / "s.json") == Split(protocol="mine", index=0, train=("a",), test=("b",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: a", "not a split file: Expecting value"),
        ("[]", "not a JSON object"),
        ('{"protocol": "p", "train": ["a"]}', "missing test"),
        ('{"protocol": "p", "train": "abc", "test": ["b"]}', "train must be a list of video ids"),
        ('{"protocol": "p", "train": ["a"], "test": [1]}', "test must be a list of video ids"),
        ('{"protocol": "p", "train": ["a"], "test": ["b"], "index": "0"}', "must be integers"),
        ('{"protocol": "p", "train": ["a"], "test": ["b"], "tests": []}', "unknown entry 'tests'"),
        ('{"protocol": "p", "train": ["a"], "test": ["a"]}', "train and test share"),
    ],
)
def test_split_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SplitError, match=message):
        read_split_file(tmp_path / "s.json")
    with pytest.raises(SplitError, match="no such split file; create one with `har splits write`"):
        read_split_file(tmp_path / "none.json")


IDS = [f"v{number:02d}" for number in range(20)]
TWENTY = [VideoRecord(video_id=video_id, label="run", path=Path(f"/v/{video_id}")) for video_id in IDS]


def own_split(train: int, val: int, test: int, index: int = 0) -> Split:
    ends = train, train + val, train + val + test
    return Split(
        protocol="own",
        index=index,
        train=tuple(IDS[: ends[0]]),
        val=tuple(IDS[ends[0] : ends[1]]),
        test=tuple(IDS[ends[1] : ends[2]]),
        seed=0,
    )


def test_videos_in_no_part() -> None:
    assert unused_videos([own_split(10, 5, 5)], TWENTY) == []
    (text,) = unused_videos([own_split(10, 3, 5, 2)], TWENTY)
    assert text == "2 of 20 videos of the manifest are not used by own split 2: v18, v19"
    (text,) = unused_videos([own_split(1, 0, 1), own_split(5, 5, 4, 1)], TWENTY)
    assert text == ("6 of 20 videos of the manifest are not used by 2 splits of own: v14, v15, v16, v17, v18, ...")


@pytest.mark.parametrize(("val", "fraction"), [(0, 0.0), (6, 0.5), (2, 0.1), (0, 0.1), (9, 0.5), (3, 0.5)])
def test_validation_shares_that_are_near(val: int, fraction: float) -> None:
    assert odd_validation_share([own_split(12 - val, val, 1)], fraction) == []


def test_validation_shares_that_are_far() -> None:
    (text,) = odd_validation_share([own_split(6, 6, 1)], 0.1)
    assert text == (
        "--val-fraction 0.1: 6 of 12 training videos (50 %) are used for validation: subjects and groups are not divided"
    )
    (text,) = odd_validation_share([own_split(10, 2, 1), own_split(9, 3, 2, 1)], 0.5)
    assert text == (
        "--val-fraction 0.5: 2 of 12 training videos (17 %) of split 0 are used for validation: "
        "subjects and groups are not divided (so in 1 of 2 splits)"
    )


def test_a_column_that_no_split_reads() -> None:
    half = [replace(record, split="train" if number < 12 else "test") for number, record in enumerate(TWENTY)]
    (text,) = unread_column([own_split(13, 0, 7)], half)
    assert "--protocol column" in text
    assert unread_column([own_split(13, 0, 7), own_split(10, 2, 8, 1)], half) == []
    assert unread_column([own_split(13, 0, 7)], [replace(record, split="train") for record in half]) == []
    assert unread_column([own_split(13, 0, 7)], TWENTY) == []


def test_a_builder_s_own_column_is_that_of_its_protocol() -> None:
    records = kth_rule_records(Path("/kth"))
    assert unread_column(make_splits(records, "kth_original"), records) == []
    assert len(unread_column(make_splits(records, "kth_random5"), records)) == 1


def test_every_protocol_says_what_it_does() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.help.endswith("."), name


def test_a_choice_is_one_split_all_or_a_file(tmp_path: Path) -> None:
    records = crossed("group", ["a", "b", "c"])
    three = SplitChoice(protocol="leave_one_group_out", val_fraction=0.0, split="all")
    every = make_splits(records, "leave_one_group_out", val_fraction=0)
    assert choose_splits(records, three) == (every, [])
    assert choose_splits(records, replace(three, split="1")) == ([every[1]], [])
    assert (three.every, replace(three, split="1").every) == (True, False)
    with pytest.raises(ValueError, match=r"split must be all or one of \[0, 1, 2\], .* not '3'"):
        choose_splits(records, replace(three, split="3"))
    write_split_file(tmp_path / "own.json", replace(every[2], manifest_sha256="a"))
    file = SplitChoice(split_file=tmp_path / "own.json")
    chosen, (note,) = choose_splits(records, file, manifest_sha256="b")
    assert chosen == [replace(every[2], manifest_sha256="b")]
    assert "was written for another manifest" in note
    assert not file.every
    assert three.unread(records) == ["num_folds", "test_fraction", "column"]
    assert "protocol" in file.unread(records)


def test_a_choice_out_of_range() -> None:
    for values in ({"num_folds": 1}, {"test_fraction": 0.95}, {"val_fraction": -0.1}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(values))):
            SplitChoice(**values)  # type: ignore[arg-type]


@pytest.mark.needs_real_data
def test_real_ucf101_lists_equal_the_rule(real_data: Path) -> None:
    listed = read_ucf101_lists(real_data / "splits/ucf101")
    with_lists = [video(stem, stem.split("_")[1], group=stem.split("_")[-2], **parts) for stem, parts in listed.items()]
    without = [replace(record, extra={}) for record in with_lists]
    splits = make_splits(with_lists, "ucf101", val_fraction=0)
    assert splits == make_splits(without, "ucf101", val_fraction=0)
    assert [(len(s.train), len(s.test)) for s in splits] == [(9537, 3783), (9586, 3734), (9624, 3696)]


@pytest.mark.needs_real_data
def test_real_hmdb51_lists_pass_the_checks(real_data: Path, tmp_path: Path) -> None:
    lists = real_data / "splits/hmdb51"
    for label, name in read_hmdb51_lists(lists):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / name).touch()
    records = build_manifest("hmdb51", tmp_path, splits=lists, split_index=1)
    splits = make_splits(records, "hmdb51", val_fraction=0)
    assert [(len(s.train), len(s.test)) for s in splits] == [(3570, 1530)] * 3
    assert all(0.15 < len(s.val) / 3570 < 0.25 for s in make_splits(records, "hmdb51"))


@pytest.mark.needs_real_data
def test_real_ut_interaction_has_ten_folds(real_data: Path) -> None:
    records = build_manifest("ut_interaction", real_data / "clips/ut_interaction_set1")
    splits = make_splits(records, "leave_one_group_out")
    assert [of(records, s.test, "group") for s in splits] == [{f"seq{n:02d}"} for n in range(1, 11)]
    assert sum(len(s.test) for s in splits) == 60
    assert all(of(records, s.test, "label") == {r.label for r in records} for s in (splits[0], splits[9]))


def test_the_split_of_a_file_names_the_manifest_it_is_used_with(tmp_path: Path) -> None:
    (split,) = make_splits(SMALL, "holdout", manifest_sha256="f" * 64)
    write_split_file(tmp_path / "split.json", split)
    (chosen,), notes = choose_splits(SMALL, SplitChoice(split_file=tmp_path / "split.json"), "0" * 64)
    assert chosen.manifest_sha256 == "0" * 64
    assert "was written for another manifest" in notes[0]


def ntu(*subjects: int) -> list[VideoRecord]:
    ids = [f"S001C001P{subject:03d}R001A{action:03d}" for subject in subjects for action in (1, 2)]
    return [video(one, one[-4:], subject=one[9:12]) for one in ids]


def test_the_default_protocol_is_ntu_rgb_d_s_for_its_ids_only() -> None:
    assert default_protocol(ntu(1, 2, 3, 6)) == "xsub"
    # Of NTU RGB+D 120, of one side of the protocol only, of another data set with subjects.
    for records in (ntu(1, 3, 41), ntu(1, 2), ntu(3, 6), SMALL, [*ntu(1, 3), *SMALL]):
        assert default_protocol(records) == "holdout"
    assert [split.protocol for split in protocol_splits(ntu(1, 2, 3, 6), SplitChoice())] == ["xsub"]
    assert SplitChoice().unread(ntu(1, 2, 3, 6)) == ["num_folds", "test_fraction", "column"]
    assert SplitChoice().unread(SMALL) == ["num_folds", "column"]


def test_validation_videos_are_taken_by_default_where_they_are_read() -> None:
    assert SplitChoice().with_validation(True).val_fraction == 0.2
    assert SplitChoice().with_validation(False).val_fraction == 0.0
    assert SplitChoice(val_fraction=0.1).with_validation(True).val_fraction == 0.1
    assert SplitChoice(val_fraction=0.0).with_validation(True).val_fraction == 0.0


def test_one_of_several_splits_is_noted_unless_it_was_asked_for() -> None:
    folds = SplitChoice(protocol="leave_one_group_out", val_fraction=0.0)
    records = crossed("group", ["a", "b", "c"])
    (one,), (note,) = choose_splits(records, folds)
    assert one.index == 0
    assert (
        "leave_one_group_out has 3 splits and this is split 0 only; its result is the mean over all (--split all)"
        in note
    )
    assert choose_splits(records, replace(folds, split="0"))[1] == []


@pytest.mark.parametrize("protocol", ["holdout", "group_kfold"])
def test_unknown_people_and_groups_are_noted(protocol: str) -> None:
    choice = SplitChoice(protocol=protocol, split="0", num_folds=2, val_fraction=0.0)
    unknown = [video(f"{label}{number}", label) for label in "ab" for number in range(6)]
    (note,) = choose_splits(unknown, choice)[1]
    assert note.startswith("the manifest has no subject or group: one person or scene may appear in both")
    assert choose_splits([replace(one, group=one.video_id) for one in unknown], choice)[1] == []
