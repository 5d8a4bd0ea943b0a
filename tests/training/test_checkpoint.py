"""Checkpoints: whole or not there. Tensor files: what comes back, and who may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from malice import Malice, malicious_pickle
from safetensors.torch import load_file

from har_pipeline.core.errors import RunError
from har_pipeline.training import checkpoint
from har_pipeline.training.checkpoint import load_checkpoint, save_checkpoint, write_tensors


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


def test_tensors_and_arrays_come_back(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    given = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "single": torch.tensor(3),
        "array": array,
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    write_tensors(tmp_path / "file.safetensors", given)
    found = load_file(tmp_path / "file.safetensors")
    assert found["array"].dtype == torch.float64
    for name, value in given.items():
        assert torch.equal(found[name], torch.tensor(value) if isinstance(value, np.ndarray) else value)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "file.safetensors", {"one": torch.ones(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_flipped_byte_is_noticed_and_the_way_out_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    parameter = torch.nn.Parameter(torch.ones(50))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    save_checkpoint(path, {"weights": {"a": parameter.detach()}, "optimizer": optimizer.state_dict()})
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(RunError, match=r"checkpoint\.pt: damaged .*delete it, or give --overwrite"):
            load_checkpoint(path)


def test_one_of_an_older_version_is_read(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt") == {"epoch": 3}


@pytest.mark.parametrize("kind", ["pickle", "torch", "sealed"])
def test_no_code_of_one_is_run(tmp_path: Path, kind: str) -> None:
    path, marker = tmp_path / "checkpoint.pt", tmp_path / "ran"
    if kind == "pickle":
        path.write_bytes(malicious_pickle(marker))
    elif kind == "torch":
        torch.save({"epoch": Malice(marker)}, path)
    else:
        save_checkpoint(path, {"epoch": Malice(marker)})
    with pytest.raises(RunError, match=r"checkpoint\.pt: damaged") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()
