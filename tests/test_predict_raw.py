from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from raw_runs import DepthSet, make_depth_set
from typer.testing import CliRunner
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.errors import RunError, VideoError
from har_pipeline.predict_raw import predict_raw
from har_pipeline.scores import read_scores, select_part
from har_pipeline.video.live import live_frames


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> DepthSet:
    return make_depth_set(tmp_path_factory.mktemp("depth"))


@pytest.mark.parametrize("model", ["convlstm-stateful", "convlstm-stateless"])
def test_files_get_the_probabilities_of_the_runs_own_test(depth_set: DepthSet, model: str) -> None:
    run = depth_set.train(model)  # type: ignore[arg-type]
    own = select_part(read_scores(run / "scores.csv"), "test")
    paths = [*(depth_set.path(video_id) for video_id in own.video_ids), depth_set.folder / "gone"]
    loaded, predictions = predict_raw(paths, run, workers=1)
    assert loaded.classes == own.classes
    assert [prediction.path for prediction in predictions] == paths
    found = [prediction.probabilities for prediction in predictions[:-1]]
    np.testing.assert_allclose(np.stack(found), own.probabilities, atol=1e-6)  # type: ignore[arg-type]
    assert predictions[-1].probabilities is None
    assert "gone" in str(predictions[-1].error)
    assert predictions[0].frames is not None
    assert predictions[0].frames.shape == (26, 48, 48, 1)


def test_command_line(depth_set: DepthSet, tmp_path: Path) -> None:
    run, video = str(depth_set.train()), str(depth_set.path("v8"))
    picture = tmp_path / "picture.png"
    done = CliRunner().invoke(app, ["predict", video, "--run", run, "--picture", str(picture), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)[0]
    assert {row["label"] for row in answer["top"]} == {"goes", "grows"}
    assert picture.stat().st_size > 1000

    done = CliRunner().invoke(app, ["predict", "--live", video, "--run", run, "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frames"] for line in lines] == [8, 16, 24]
    assert sum(row["probability"] for row in lines[-1]["so_far"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give video files, or --live"),
        (["VIDEO", "--live", "VIDEO"], "give video files, or --live"),
        (["VIDEO", "--horizon", "3"], "--horizon belongs to --live"),
        (["--live", "VIDEO", "--picture", "p.png"], "do not go with --live"),
    ],
)
def test_options_that_do_not_fit(depth_set: DepthSet, arguments: list[str], message: str) -> None:
    shown = [str(depth_set.path("v8")) if part == "VIDEO" else part for part in arguments]
    done = CliRunner().invoke(app, ["predict", "--run", str(depth_set.train()), *shown])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_too_short_for_a_decision(depth_set: DepthSet, tmp_path: Path) -> None:
    from depth_files import write_folder
    from raw_runs import walking_body

    short = write_folder(tmp_path / "short", walking_body(0, 7, 0))
    done = CliRunner().invoke(app, ["predict", "--live", str(short), "--run", str(depth_set.train())])
    assert isinstance(done.exception, RunError)
    assert "fewer than the 8 frames" in str(done.exception)


def test_live_frames(depth_set: DepthSet, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.avi", 9)
    colour = list(live_frames(str(video), "rgb"))
    assert len(colour) == 9
    assert colour[0].shape == (120, 160, 3)
    depth = list(live_frames(str(depth_set.path("v8")), "depth"))
    assert len(depth) == 28
    assert depth[0].dtype == np.uint16
    with pytest.raises(VideoError, match="camera 7: cameras give colour, and this run reads depth"):
        live_frames("7", "depth")
    with pytest.raises(VideoError, match="camera 99 cannot be opened"):
        next(live_frames("99", "rgb"))
