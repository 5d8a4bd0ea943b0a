"""How much of their videos feature sets saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from pixel_nets import pixel_extractor
from video_files import make_video

from har_pipeline.core.records import ClipSpec, VideoRecord
from har_pipeline.features.extract import extract
from har_pipeline.features.options import ExtractOptions, LocalOptions, RawOptions
from har_pipeline.features.pack import open_features, pack_features
from har_pipeline.features.seen import Seen, little_seen, seen_of_set, seen_of_video
from har_pipeline.features.store import FeatureStore


@pytest.fixture
def records(tmp_path: Path) -> list[VideoRecord]:
    """Two videos, of 10 and of 40 frames; the second from its 5th frame on."""
    return [
        VideoRecord(video_id="short", label="a", path=make_video(tmp_path / "short.avi", 10)),
        VideoRecord(video_id="long", label="b", path=make_video(tmp_path / "long.avi", 45), start_frame=5),
    ]


def test_first_frames_of_long_videos_are_told_of(tmp_path: Path, records: list[VideoRecord]) -> None:
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    few = extract(records, store, pixel_extractor(), ExtractOptions(clips=ClipSpec(num_clips=8)))
    assert (few.seen.videos, few.seen.little) == (2, 1)
    assert (few.seen.span_mean, few.seen.span_min) == pytest.approx(((0.8 + 0.2) / 2, 0.2))
    assert few.seen.describe() == "clips span 50 % (least 20 %) of a video and read 50 % (least 20 %) of its frames"
    assert few.seen.note(ClipSpec(num_clips=8)).startswith(
        "the clips span less than half of 1 of 2 videos: --sampling uniform"
    )
    spread = ExtractOptions(clips=ClipSpec(sampling="uniform", num_clips=8))
    whole = extract(records, store, pixel_extractor(), spread)
    assert (whole.seen.span_min, whole.seen.little, whole.seen.note(ClipSpec())) == (1.0, 0, "")
    assert (whole.seen.read_mean, whole.seen.read_min) == pytest.approx(((0.8 + 0.2) / 2, 0.2))
    assert whole.seen.describe() == "clips span 100 % of a video and read 50 % (least 20 %) of its frames"
    # The store tells the same later, and so does its pack.
    for summary in (few, whole):
        pack_features(store, summary.feature_set, tmp_path / "store.pack")
        for opened in (store, open_features(tmp_path / "store.pack")):
            lengths = opened.lengths(summary.feature_set)
            assert lengths == {"short": (10, 25.0), "long": (40, 25.0)}
            found = seen_of_set(opened.spec(summary.feature_set), lengths.values())
            assert (found.span_min, found.little) == (summary.seen.span_min, summary.seen.little)
            assert found.read_mean == pytest.approx(summary.seen.read_mean)
    again = extract(records, store, pixel_extractor(), spread)
    assert (again.seen, again.seen.describe()) == (Seen(), "")


def test_a_video_of_which_little_was_seen_is_told_of() -> None:
    spec = RawOptions(stream="rgb").spec()
    assert little_seen(spec, 1000, 25.0) == ""
    first = dataclasses.replace(spec, extractor="vgg16", clips=ClipSpec())
    told = little_seen(first, 1000, 25.0)
    assert told.startswith("vgg16 sees 4.0 % of it only, by its clips (first, 40 frames): for a run that sees")
    assert told.endswith(": for a run that sees all of it, extract with --sampling uniform and train again")
    assert little_seen(first, 80, 25.0) == ""


@pytest.mark.parametrize("sampling", ["first", "uniform", "sparse", "segments"])
def test_one_clip_cannot_be_spread(sampling: Literal["first", "uniform", "sparse", "segments"]) -> None:
    """The way out is more clips: --sampling uniform alone would change nothing."""
    clips = ClipSpec(sampling=sampling, num_clips=1, clip_len=16)
    spec = dataclasses.replace(RawOptions(stream="rgb").spec(), extractor="i3d", clips=clips)
    assert "--sampling uniform --num-clips 10" in little_seen(spec, 1000, 25.0)
    told = Seen().with_video(*seen_of_video(spec, 1000, 25.0)).note(clips)
    assert told.endswith("--sampling uniform --num-clips 10 spreads the clips over the whole video")
    spread = dataclasses.replace(clips, sampling="uniform", num_clips=10)
    assert little_seen(dataclasses.replace(spec, clips=spread), 1000, 25.0) == ""


def test_what_reads_every_frame_sees_all() -> None:
    for spec in (RawOptions(stream="rgb").spec(), LocalOptions(extractor="idt").spec()):
        assert seen_of_video(spec, 1000, 25.0) == (1.0, 1.0)
