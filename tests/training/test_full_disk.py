"""A full disk: one line that names the folder, and what is done is kept."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of

from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_run
from har_pipeline.training import sweep
from har_pipeline.training.axes import parse_axis
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.sweep import plan_points, run_sweep
from har_pipeline.training.sweep_table import write_sweep

CONFIG = TrainConfig(units=4, epochs=1, device="cpu")


@dataclasses.dataclass(frozen=True)
class Task:
    store: FeatureStore
    name: str
    records: list[VideoRecord]
    splits: list[Split]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    features, labels = blobs(("boxing", "running"), 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    parts = [[v for v in labels if int(v[-1]) % 3 == k] for k in range(3)]
    splits = [split_of([v for v in labels if v not in part], part, index=k) for k, part in enumerate(parts)]
    return Task(store, name, manifest(labels), splits)


def fail_in(folder: str, error: OSError | RuntimeError) -> Callable[[Path, bytes], int]:
    """Return a `Path.write_bytes` that fails below a folder, as a disk does that is full by then."""
    own = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if folder in str(path):
            own(path, content[:10])
            raise error
        return own(path, content)

    return write


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_job_keeps_its_finished_folds(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_jobs(task.splits, tmp_path / "job")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail_in("split1", FULL))
        with pytest.raises(OSError, match="No space left") as caught:
            run_jobs(task.store, [task.name], task.records, planned, CONFIG)
    assert caught.value.filename == str(tmp_path / "job/split1")
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["plan.json", "split0"]
    load_run(tmp_path / "job/split0")
    assert [one.kept for one in run_jobs(task.store, [task.name], task.records, planned, CONFIG)] == [
        True,
        False,
        False,
    ]


def test_a_sweep_ends_at_a_full_disk_and_goes_on_after_any_other_failure(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = plan_points([parse_axis("units", "2,3,4")], CONFIG, task.name, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail_in("units_3", FULL))
        with pytest.raises(OSError, match="No space left"):
            run_sweep(task.store, task.records, task.splits[:1], points, workers=1)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["units_2"]
    for error, text in (
        (RuntimeError("an unlucky number\nmore"), "RuntimeError: an unlucky number"),
        (OSError(errno.EIO, "Input/output error"), "OSError: [Errno 5] Input/output error"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fail_in("units_3", error))
            result = run_sweep(task.store, task.records, task.splits[:1], points, workers=1)
        assert list(result.failed) == ["units_3"]
        assert result.failed["units_3"].startswith(text)
        assert [len(made) for made in result.runs.values()] == [1, 0, 1]
    write_sweep(tmp_path / "out", result)
    assert "Input/output error" in (tmp_path / "out/sweep.json").read_text()
    assert errno.EROFS in sweep.NO_MORE_WRITES
