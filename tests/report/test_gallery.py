"""Which videos a report shows, and what becomes of those that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from depth_files import moving_body, write_folder
from drawn_scores import scores_of
from video_files import make_video

from har_pipeline.core.records import Scores, VideoRecord
from har_pipeline.evaluation.categories import Grouping
from har_pipeline.report.gallery import chosen_rows, shown_videos


def certain(said: str, labels: str, sure: list[float]) -> Scores:
    """Scores of videos that are classified as `said` with the probability `sure`; the classes are a, b and c."""
    values = np.array([[p if c == own else (1 - p) / 2 for c in "abc"] for own, p in zip(said, sure, strict=True)])
    return scores_of(values, labels)


def test_confident_mistakes_come_first_then_right_ones_of_all_classes() -> None:
    scores = certain("aabbcaaaa", "bcbbcaaaa", [0.5, 0.9, 0.8, 0.7, 0.6, 0.95, 0.94, 0.93, 0.92])
    shown = [scores.video_ids[row] for row in chosen_rows(scores, at_most=6)]
    assert shown == ["v1", "v0", "v5", "v2", "v4", "v6"]


def test_some_places_are_for_right_ones() -> None:
    scores = certain("a" * 40, "b" * 30 + "a" * 10, [0.9] * 40)
    rows = chosen_rows(scores, at_most=24)
    assert [scores.labels[row] for row in rows] == ["b"] * 18 + ["a"] * 6
    rows = chosen_rows(certain("a" * 30, "b" * 30, [0.9] * 30), at_most=24)
    assert len(rows) == 24
    assert len(chosen_rows(certain("ab", "ab", [0.9, 0.8]), at_most=24)) == 2
    assert chosen_rows(scores, at_most=0) == []


def test_a_video_of_several_repeats_is_shown_once_as_a_mistake_if_it_was_one() -> None:
    scores = certain("ab", "aa", [0.9, 0.6])
    twice = Scores(
        video_ids=("v", "v"),
        labels=scores.labels,
        classes=scores.classes,
        probabilities=scores.probabilities,
        part=scores.part,
        fold=scores.fold,
        seed=(0, 1),
    )
    assert chosen_rows(twice, at_most=24) == [1]


def test_each_video_has_its_pictures_or_its_problem(tmp_path: Path) -> None:
    scores = certain("aabac", "bbabb", [0.9, 0.8, 0.7, 0.6, 0.5])
    (tmp_path / "broken.avi").write_bytes(b"RIFF" + bytes(5000))
    records = {
        "v0": VideoRecord(video_id="v0", label="b", path=make_video(tmp_path / "v.avi", 30)),
        "v1": VideoRecord(video_id="v1", label="b", path=tmp_path / "gone.avi"),
        "v2": VideoRecord(video_id="v2", label="a", path=tmp_path / "broken.avi"),
        "v3": VideoRecord(video_id="v3", label="b", depth_path=write_folder(tmp_path / "depth", moving_body(12))),
    }
    shown = {
        one.video_id: one for one in shown_videos(scores, records, grouping=Grouping(name="g", group_of={"b": "B"}))
    }
    assert list(shown) == ["v0", "v1", "v2", "v3", "v4"]
    for video_id in ("v0", "v3"):
        assert shown[video_id].strip.startswith(b"\xff\xd8"), "a JPEG file"
        assert b"ftyp" in shown[video_id].clip[:16]
        assert shown[video_id].problem == ""
    for video_id, why in (("v1", "does not exist"), ("v2", "broken.avi"), ("v4", "the manifest does not list it")):
        assert why in shown[video_id].problem
        assert shown[video_id].strip == shown[video_id].clip == b""
    assert (shown["v0"].label, shown["v0"].group, shown["v2"].group, shown["v0"].right) == ("b", "B", "", False)
    assert [label for label, _ in shown["v0"].top] == ["a", "b", "c"]
    assert [round(value, 3) for _, value in shown["v0"].top] == [0.9, 0.05, 0.05]


def test_without_clips_the_gallery_is_of_filmstrips(tmp_path: Path) -> None:
    records = {"v0": VideoRecord(video_id="v0", label="b", path=make_video(tmp_path / "v.avi", 30))}
    (one,) = shown_videos(certain("b", "b", [0.9]), records, clips=False)
    assert one.right
    assert one.strip
    assert (one.clip, one.problem) == (b"", "")


def test_the_gallery_loads_no_torch() -> None:
    code = "import sys, har_pipeline.report.gallery; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
