"""Sentences on odd splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.datasets.builders import kth_rule_records
from har_pipeline.datasets.splits import make_splits, odd_validation_share, unread_column, unused_videos

IDS = [f"v{number:02d}" for number in range(20)]
RECORDS = [VideoRecord(video_id=video_id, label="run", path=Path(f"/v/{video_id}")) for video_id in IDS]


def split(train: int, val: int, test: int, index: int = 0) -> Split:
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
    assert unused_videos([split(10, 5, 5)], RECORDS) == []
    (text,) = unused_videos([split(10, 3, 5, 2)], RECORDS)
    assert text == "2 of 20 videos of the manifest are in no part of own split 2: v18, v19"
    (text,) = unused_videos([split(1, 0, 1), split(5, 5, 4, 1)], RECORDS)
    assert text == ("6 of 20 videos of the manifest are in no part of 2 splits of own: v14, v15, v16, v17, v18, ...")


@pytest.mark.parametrize(("val", "fraction"), [(0, 0.0), (6, 0.5), (2, 0.1), (0, 0.1), (9, 0.5), (3, 0.5)])
def test_validation_shares_that_are_near(val: int, fraction: float) -> None:
    assert odd_validation_share([split(12 - val, val, 1)], fraction) == []


def test_validation_shares_that_are_far() -> None:
    (text,) = odd_validation_share([split(6, 6, 1)], 0.1)
    assert text == (
        "--val-fraction 0.1: 6 of 12 training videos (50 %) are for validation, for subjects and groups stay whole"
    )
    (text,) = odd_validation_share([split(10, 2, 1), split(9, 3, 2, 1)], 0.5)
    assert text == (
        "--val-fraction 0.5: 2 of 12 training videos (17 %) of split 0 are for validation, for subjects and groups stay "
        "whole (in 1 of 2 splits the share is far from it)"
    )


def test_a_column_that_no_split_reads() -> None:
    half = [replace(record, split="train" if number < 12 else "test") for number, record in enumerate(RECORDS)]
    (text,) = unread_column([split(13, 0, 7)], half)
    assert "--protocol column" in text
    assert unread_column([split(13, 0, 7), split(10, 2, 8, 1)], half) == []
    assert unread_column([split(13, 0, 7)], [replace(record, split="train") for record in half]) == []
    assert unread_column([split(13, 0, 7)], RECORDS) == []


def test_a_builder_s_own_column_is_that_of_its_protocol() -> None:
    records = kth_rule_records(Path("/kth"))
    assert unread_column(make_splits(records, "kth_original"), records) == []
    assert len(unread_column(make_splits(records, "kth_random5"), records)) == 1
