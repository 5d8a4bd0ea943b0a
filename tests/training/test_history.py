"""Event files of training curves."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.training.history import Epoch, epoch_writer
from har_pipeline.training.options import TrainConfig

EPOCHS = [Epoch(1, 0.1, 0.5, 0.6, 0.7, 0.8, 1.0), Epoch(2, 0.1, 0.4, 0.7, None, None, 1.0)]


def test_without_a_folder_nothing_is_written_and_the_epochs_are_passed_on() -> None:
    told: list[Epoch] = []
    with epoch_writer(None, told.append) as report:
        assert report is not None
        report(EPOCHS[0])
    assert told == EPOCHS[:1]


def test_a_missing_package_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    features, labels = blobs(("boxing", "running"), 3)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if v[-1] != "2"], [v for v in labels if v[-1] == "2"])
    arguments = (store, name, manifest(labels), split, TrainConfig(head="mean_pool", device="cpu"), tmp_path / "run")
    with pytest.raises(RunError, match=r"pip install 'har-pipeline\[tensorboard\]'"):
        train_split(*arguments, tensorboard=True)
    assert not (tmp_path / "run").exists()
    train_split(*arguments)


def test_every_measure_of_an_epoch_is_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []
    closed: list[str] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            closed.append(self.folder)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    told: list[Epoch] = []
    with epoch_writer(tmp_path / "events", told.append) as report:
        assert report is not None
        for epoch in EPOCHS:
            report(epoch)
    assert told == EPOCHS
    assert closed == [str(tmp_path / "events")]
    assert {name for name, *_ in written} == {field.name for field in dataclasses.fields(Epoch)} - {"epoch"}
    assert [(value, step) for name, value, step in written if name == "train_loss"] == [(0.5, 1), (0.4, 2)]
    # Without validation videos there is no point on its curves.
    assert [(value, step) for name, value, step in written if name == "val_loss"] == [(0.7, 1)]


def test_the_package_itself_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with epoch_writer(tmp_path / "events", lambda epoch: None) as report:
        report(EPOCHS[0])
    (file,) = (tmp_path / "events").iterdir()
    assert b"val_accuracy" in file.read_bytes()
