from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import VideoRecord, VideoSource
from har_pipeline.features.job import JobSummary, provenance, shard_of, unfinished
from har_pipeline.features.options import JobOptions, RawOptions
from har_pipeline.features.source_files import describe_file
from har_pipeline.features.store import FeatureStore


def records(folder: Path) -> list[VideoRecord]:
    for name in ("stored", "changed", "failed", "new"):
        (folder / name).write_bytes(name.encode())
    return [VideoRecord(video_id=path.name, label="a", path=path) for path in sorted(folder.iterdir())]


def test_what_is_left_to_do(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    rows = records(tmp_path / "videos")
    paths = [row.path for row in rows]
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    name = store.create_feature_set(RawOptions(size=8).spec())
    for row in rows:
        assert row.path is not None
        if row.video_id in ("stored", "changed"):
            source = VideoSource(
                clip_starts=np.zeros(1), clip_ends=np.ones(1), num_frames=1, fps=25.0, file=describe_file(row.path)
            )
            store.write(name, row.video_id, np.zeros((1, 64), np.uint8), source)
    store.record_failure(name, "failed", "is broken", describe_file(tmp_path / "videos/failed"))
    (tmp_path / "videos/changed").write_bytes(b"other")
    options = JobOptions()
    summary = JobSummary(feature_set=name)
    assert unfinished(summary, store, rows, paths, options) == {"new"}
    assert (summary.total, summary.already, summary.finished) == (4, 1, 3)
    assert (list(summary.failed), summary.failed_before) == (["changed"], {"failed": "is broken"})
    options = dataclasses.replace(options, retry_failed=True, replace_changed=True)
    summary = JobSummary(feature_set=name)
    assert unfinished(summary, store, rows, paths, options) == {"new", "failed", "changed"}
    assert (summary.already, summary.failed, summary.failed_before) == (1, {}, {})
    # A row that names no file has no known failure: it fails again, with its own reason.
    assert unfinished(JobSummary(feature_set=name), store, rows, [None] * 4, JobOptions()) >= {"failed"}


def test_shards_are_parts_of_the_whole() -> None:
    rows = [VideoRecord(video_id=i, label="a", path=Path(i)) for i in "cabed"]
    parts = [[row.video_id for row in shard_of(rows, JobOptions(shard=(k, 2)))] for k in (1, 2)]
    assert parts == [["a", "c", "e"], ["b", "d"]]


@pytest.mark.parametrize("options", [{"shard": (3, 2)}, {"shard": (0, 2)}, {"workers": 0}, {"time_limit_s": 0.0}])
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ExtractionError, match=next(iter(options))):
        JobOptions(**options)  # type: ignore[arg-type]


def test_provenance_names_versions_and_device() -> None:
    assert list(provenance("numpy")) == ["har_pipeline", "python", "numpy"]
    assert provenance("numpy", device="cpu x86_64")["device"] == "cpu x86_64"
