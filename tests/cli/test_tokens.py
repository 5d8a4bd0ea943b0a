"""V-JEPA's way of evaluating from the command line: token features of a frozen net, and an attentive probe on them."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from har_command import har
from pixel_nets import pixel_extractor
from video_files import make_video

from har_pipeline.features.store import FeatureStore
from har_pipeline.inference import sources
from har_pipeline.inference.export import export_onnx
from har_pipeline.inference.live import decide_live
from har_pipeline.inference.live_heads import HeadRecogniser
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.inference.predict import predict, predict_scores
from har_pipeline.models import extractors
from har_pipeline.video.camera import live_frames


def tiny(name: str, *, tokens: bool, **_: Any) -> Any:
    return pixel_extractor(name, tokens=tokens, scale=1 / 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, their tokens in a store, and a run of an attentive probe, all made by commands."""
    folder = tmp_path_factory.mktemp("tokens")
    rows = []
    for i in range(12):
        make_video(folder / f"v{i:02d}.avi", 12 + i, seed=i)
        rows.append({"video_id": f"v{i:02d}", "path": f"v{i:02d}.avi", "label": "ab"[i % 2]})
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "build_extractor", tiny)
        clips = ("--num-clips", 3, "--sampling", "uniform", "--dtype", "float32", "--name", "eight")
        har("extract", "m.csv", "s.zarr", "--extractor", "vgg16", "--tokens", "--workers", 1, *clips, cwd=folder)
    trained = ("--protocol", "holdout", "--head", "attentive", "--epochs", 2, "--device", "cpu", "-o", "run")
    har("train", "m.csv", "s.zarr", *trained, cwd=folder)
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch) -> HeadRun:
    monkeypatch.setattr(sources, "build_extractor", tiny)
    found = load_run(made / "run")
    assert isinstance(found, HeadRun)
    return found


def test_the_features_commands_read_tokens(made: Path) -> None:
    (row,) = json.loads(har("features", "list", "s.zarr", "--json", cwd=made).stdout)
    assert (row["videos"], row["dim"], row["tokens"]) == (12, 3, 8)
    shown = har("features", "show", "s.zarr", "--video-id", "v00", cwd=made).stdout
    assert "3 for each of the 8 tokens of a clip" in shown
    assert "[24, 3]" in shown
    har("features", "show", "s.zarr", "--video", "v00", "-o", "v00.png", cwd=made)
    assert "12 videos checked, 0 damaged" in har("features", "verify", "s.zarr", cwd=made).stdout
    assert "12 videos, 36 clips" in har("features", "pack", "s.zarr", cwd=made).stdout
    trained = ("--protocol", "holdout", "--head", "attentive", "--epochs", 2, "--device", "cpu", "-o", "packed")
    har("train", "m.csv", "s.pack", *trained, cwd=made)
    first, second = (load_run(made / name).scores().probabilities for name in ("run", "packed"))
    np.testing.assert_array_equal(first, second)


def test_a_head_of_steps_is_refused_in_one_line(made: Path) -> None:
    trained = ("--protocol", "holdout", "--head", "attention", "-o", "other")
    said = har("train", "m.csv", "s.zarr", *trained, cwd=made, code=1).stderr
    assert "8 tokens a clip, which are no steps in time as attention reads them: use --head attentive" in said
    assert "Traceback" not in said
    assert not (made / "other").exists()


def test_files_are_predicted_as_stored_tokens_are(made: Path, run: HeadRun) -> None:
    features = FeatureStore(made / "s.zarr").read(run.streams[0].feature_set, "v05").features
    (found,) = predict([made / "v05.avi"], run, device="cpu", workers=1)
    np.testing.assert_allclose(found.probabilities, predict_scores(run, features), atol=1e-6)


def test_a_running_video_is_decided_as_its_frames_are(made: Path, run: HeadRun) -> None:
    recogniser = HeadRecogniser(run, fps=25.0, window_s=0.44, device="cpu")
    frames = partial(live_frames, str(made / "v11.avi"), "rgb")
    assert list(decide_live(recogniser, frames()))
    rows = np.concatenate(recogniser._ring)
    assert rows.shape == (3 * 8, 3)
    np.testing.assert_array_equal(recogniser.probabilities, predict_scores(run, rows))


def test_net_and_probe_are_one_onnx_model(made: Path, run: HeadRun, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert export_onnx(run, tmp_path / "model.onnx", with_extractor=True).difference <= 1e-4
