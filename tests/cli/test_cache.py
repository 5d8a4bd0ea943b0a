"""Where the home folder and every cache are unusable: commands that need none do not notice, others say the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from paths import python_path
from train_split import train_split

from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.training.options import TrainConfig


def har(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with a file in the place of the home folder and of every cache."""
    taken = cwd / "taken"
    taken.touch()
    unusable = dict.fromkeys(("HOME", "HAR_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"), str(taken))
    command = [sys.executable, "-c", "from har_pipeline.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**python_path(), **unusable}
    )


@pytest.mark.slow
@pytest.mark.exhaustive
def test_commands_that_need_no_cache_do_not_notice(tmp_path: Path) -> None:
    features, labels = blobs(["x", "y"], 4)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if v[-1] in "01"], [v for v in labels if v[-1] in "23"])
    train_split(store, name, manifest(labels), split, TrainConfig(head="mean_pool", device="cpu"), tmp_path / "run")
    write_manifest(tmp_path / "m.csv", manifest(labels), root=Path("/nowhere"))
    for command in (
        ("models",),
        ("splits", "show", "m.csv"),
        ("train", "m.csv", "store.zarr", "--head", "mean_pool", "--device", "cpu", "-o", "again"),
        ("evaluate", "run"),  # draws, for which matplotlib looks for a cache of its own
    ):
        done = har(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert "cache" not in done.stderr.lower(), command
        assert "Traceback" not in done.stderr, command
    assert (tmp_path / "run/confusion.png").exists()
    assert (tmp_path / "taken").read_bytes() == b""


def test_a_command_that_needs_weights_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"video")
    (tmp_path / "m.csv").write_text("video_id,path,label\na,a.avi,x\n")
    done = har("extract", "m.csv", "store.zarr", "--extractor", "vgg16", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}{os.sep}taken/weights: cannot be used as the cache of weights")
    assert "set HAR_CACHE to a folder that can be written" in line
