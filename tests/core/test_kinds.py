from __future__ import annotations

from pathlib import Path

import pytest

from har_pipeline.core.kinds import VIDEO_SUFFIXES, is_video_name, what_is


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("m.csv", "# root: x\nvideo_id,path,label\n", "a manifest"),
        ("m.txt", "video_id;path;label\n", "a manifest"),
        ("s.json", '{"protocol": "holdout", "train": []}', "a split file"),
        ("a.MP4", "", "a video file"),
        ("a.txt", "hello", "a file of another kind"),
        ("b.txt", "", "an empty file"),
        ("run/run.json", "{}", "a run folder"),
        ("fused/fusion.json", "{}", "a result of `har fuse`"),
        ("s.pack/pack.json", "{}", "a pack of features"),
        ("job/job.json", "{}", "an unfinished run"),
        ("s.zarr/zarr.json", '{"attributes": {"har_pipeline_store": 1}}', "a feature store"),
        ("z.zarr/zarr.json", '{"attributes": {}}', "a Zarr group"),
        ("odd.zarr/zarr.json", "[" * 9999, "a Zarr group"),
        ("folds/split0/run.json", "{}", "a folder of runs"),
        ("folder/a.txt", "", "a folder"),
    ],
)
def test_what_a_path_leads_to(tmp_path: Path, name: str, content: str, what: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert what_is(tmp_path / name.split("/")[0]) == what


def test_nothing_is_absent(tmp_path: Path) -> None:
    assert what_is(tmp_path / "none") == what_is(tmp_path / ("x" * 5000)) == "absent"


def test_videos_are_told_by_their_ending() -> None:
    assert all(is_video_name(f"a{ending.upper()}") for ending in VIDEO_SUFFIXES)
    assert not any(map(is_video_name, ("avi", ".avi", "a.txt", "a.avi.txt")))
