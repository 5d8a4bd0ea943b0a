"""Checkpoints: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from har_pipeline.core.errors import RunError
from har_pipeline.training import checkpoint
from har_pipeline.training.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path) is None
    for number in range(2):
        save_checkpoint(path, {"epoch": number, "weights": {"a": torch.full((2,), number)}, "history": [{"loss": 0.5}]})
    state = load_checkpoint(path)
    assert state is not None
    assert state["epoch"] == 1
    assert state["weights"]["a"].tolist() == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})

    def half(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04cut"])
def test_a_damaged_one_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint\.pt: damaged"):
        load_checkpoint(tmp_path / "checkpoint.pt")
