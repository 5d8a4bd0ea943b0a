"""The pictures of `har features show`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from feature_sets import blobs, feature_store
from typer.testing import CliRunner

from har_pipeline.cli import app

pytestmark = pytest.mark.usefixtures("pictures_drawn")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    features, labels = blobs(["boxing", "running", "walking"], 4, dim=6)
    feature_store(folder / "store.zarr", features)
    rows = [f"{video_id},{label.replace('running', '_run$ning')},{video_id}.avi" for video_id, label in labels.items()]
    (folder / "manifest.csv").write_text("video_id,label,path\n" + "\n".join(rows) + "\n")
    return folder


def show(work: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["features", "show", str(work / "store.zarr"), *arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout, f"{result.stderr}{result.exception or ''}"


def is_drawn(path: Path) -> bool:
    picture = cv2.imread(str(path))
    return picture is not None and min(picture.shape[:2]) > 300 and len(np.unique(picture)) > 20


def test_a_feature_sequence_is_drawn(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (video_id,) = [line.split(",")[0] for line in (work / "manifest.csv").read_text().splitlines()[1:2]]
    out, _ = show(work, "--features", "drawn", "--video", video_id)
    assert out == "written: features.png\n"
    assert is_drawn(tmp_path / "features.png")
    show(work, "--video", video_id, "-o", str(tmp_path / "new/one.svg"))
    assert "<svg" in (tmp_path / "new/one.svg").read_text()
    _, err = show(work, "--video", "nobody", code=1)
    assert "has no features of 'nobody'" in err


@pytest.mark.parametrize("how", ["pca", "tsne"])
def test_a_set_is_drawn_as_points(work: Path, tmp_path: Path, how: str) -> None:
    out, err = show(
        work, "--projection", how, "--manifest", str(work / "manifest.csv"), "-o", str(tmp_path / "set.png")
    )
    assert out == f"written: {tmp_path / 'set.png'}\n"
    assert err == ""
    assert is_drawn(tmp_path / "set.png")


def test_videos_of_one_side_only_are_told_of(work: Path, tmp_path: Path) -> None:
    lines = (work / "manifest.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join([*lines[:-2], "other,boxing,videos/other.avi"]) + "\n")
    command = ("--projection", "pca", "-o", str(tmp_path / "set.png"), "--manifest")
    _, err = show(work, *command, str(tmp_path / "some.csv"))
    assert "NOTE: 2 videos that" in err
    assert "does not list: left out" in err
    assert "NOTE: 1 video of" in err
    (tmp_path / "none.csv").write_text("\n".join([lines[0], "other,boxing,videos/other.avi"]) + "\n")
    _, err = show(work, *command, str(tmp_path / "none.csv"), code=1)
    assert "lists none of the 12 videos of drawn-rgb-" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "a", "--projection", "pca", "--manifest", "m.csv"], "give one of them"),
        (["-o", "x.png"], "give --video or --projection"),
        (["--projection", "umap", "--manifest", "m.csv"], "choose pca or tsne"),
        (["--projection", "pca"], "--manifest"),
        (["--manifest", "m.csv"], "--manifest is for --projection"),
        (["--video", "a", "-o", "x.txt"], "a picture ends in .png, .svg, .pdf"),
    ],
)
def test_options_that_do_not_go_together(work: Path, arguments: list[str], message: str) -> None:
    _, err = show(work, *arguments, code=2)
    assert message in " ".join(err.replace("│", " ").split())
