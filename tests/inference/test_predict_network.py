from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depth_files import write_folder
from raw_runs import DepthSet, make_depth_set, walking_body
from typer.testing import CliRunner
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError, VideoError
from har_pipeline.evaluation.scores import read_scores, select_part
from har_pipeline.inference.predict import predict
from har_pipeline.models.config import NetworkName
from har_pipeline.video.camera import live_frames


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> DepthSet:
    return make_depth_set(tmp_path_factory.mktemp("depth"))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("convlstm-stateful", {}),
        ("convlstm-stateless", {}),
        ("convlstm-stateful", {"motion": True, "frame_step": 2}),
        ("convlstm-stateless", {"motion": True, "clip": "whole"}),
    ],
)
def test_files_get_the_probabilities_of_the_runs_own_test(
    depth_set: DepthSet, model: NetworkName, options: dict[str, Any]
) -> None:
    run = depth_set.train(model, **options)
    own = select_part(read_scores(run / "scores.csv"), "test")
    paths = [*(depth_set.path(video_id) for video_id in own.video_ids), depth_set.folder / "gone"]
    predictions = predict(paths, run, workers=1)
    assert [prediction.path for prediction in predictions] == paths
    found = [prediction.probabilities for prediction in predictions[:-1]]
    np.testing.assert_allclose(np.stack(found), own.probabilities, atol=1e-6)  # type: ignore[arg-type]
    assert predictions[-1].probabilities is None
    assert "gone" in str(predictions[-1].error)
    assert predictions[0].frames is not None
    assert predictions[0].frames.shape == (26, 48, 48, 1)


@pytest.mark.usefixtures("pictures_drawn")
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
    short = write_folder(tmp_path / "short", walking_body(0, 7, 0))
    done = CliRunner().invoke(app, ["predict", "--live", str(short), "--run", str(depth_set.train())])
    assert isinstance(done.exception, RunError)
    assert "fewer than the 8 frames" in str(done.exception)


def test_live_names_no_class_without_foreground(depth_set: DepthSet, tmp_path: Path) -> None:
    frames = np.zeros((20, 40, 60), np.uint16)
    empty = write_folder(tmp_path / "empty", frames)
    command = ["predict", "--run", str(depth_set.train()), "--live"]
    done = CliRunner().invoke(app, [*command, str(empty)])
    assert done.exit_code == 1
    assert isinstance(done.exception, VideoError), done.output
    assert str(done.exception) == f"{empty}: no window has any foreground: all depth values are 0"
    assert done.stdout.splitlines() == [
        f"frame {number:5d}  no foreground yet, all depth values are 0: no class" for number in (8, 16)
    ]
    late = write_folder(tmp_path / "late", np.concatenate([frames[:8], walking_body(0, 8, 0)]))
    done = CliRunner().invoke(app, [*command, str(late), "--json"])
    assert done.exit_code == 0, done.output
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    shared = {name: first[name] for name in ("frames", "so_far", "this_window", "notes")}
    assert shared == {"frames": 8, "so_far": [], "this_window": None, "notes": []}
    assert len(second["so_far"]) == 2
    assert second["this_window"]["label"] in {"goes", "grows"}


def test_what_was_odd_about_a_file_is_told(depth_set: DepthSet, tmp_path: Path) -> None:
    run = str(depth_set.train())
    odd = write_folder(tmp_path / "odd", walking_body(0, 16, 0))
    (odd / "MDepth-00000003.png").unlink()
    (odd / "MDepth-00000007.png").write_bytes(b"no png")
    missing = "a PNG is missing in the numbering: MDepth-00000003.png"
    damaged = "a PNG cannot be decoded: MDepth-00000007.png is not a PNG file"
    for arguments in ([str(odd)], ["--live", str(odd)]):
        done = CliRunner().invoke(app, ["predict", "--run", run, *arguments])
        assert done.exit_code == 0, done.output
        assert done.stderr.splitlines() == [f"NOTE: {odd}: {missing}", f"NOTE: {odd}: {damaged}"]
        done = CliRunner().invoke(app, ["predict", "--run", run, "--json", *arguments])
        told = json.loads(done.stdout)
        assert (told[0] if isinstance(told, list) else told)["notes"] == [missing, damaged]


@pytest.mark.parametrize(
    ("frames", "model", "notes"),
    [
        (1, "convlstm-stateless", ["1 frame: shown 30 times, so nothing moves"]),
        (1, "convlstm-stateful", ["1 frame: shown 8 times, so nothing moves"]),
        (
            7,
            "convlstm-stateful",
            ["7 frames: played backwards and forwards to fill the 8 that the network sees at once"],
        ),
        (8, "convlstm-stateful", []),
    ],
)
def test_a_short_video_is_noted(
    depth_set: DepthSet, tmp_path: Path, frames: int, model: NetworkName, notes: list[str]
) -> None:
    short = write_folder(tmp_path / "short", walking_body(0, frames, 0))
    (prediction,) = predict([short], depth_set.train(model), workers=1)
    assert prediction.notes == tuple(notes)


def test_a_damaged_colour_file_is_noted_live(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.avi", 40)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    notes: list[str] = []
    frames = list(live_frames(str(cut), "rgb", notes.append))
    assert 20 <= len(frames) < 37
    assert f"40 frames are announced, {len(frames)} could be decoded" in notes


@pytest.mark.usefixtures("pictures_drawn")
def test_of_a_job_live_needs_one_run_and_files_get_their_mean(depth_set: DepthSet, tmp_path: Path) -> None:
    job, run, video = tmp_path / "job", depth_set.train(), depth_set.path("v8")
    shutil.copytree(run, job / "seed0/split1")
    done = CliRunner().invoke(app, ["predict", "--live", "x.avi", "--run", str(job)])
    assert isinstance(done.exception, RunError)
    assert str(done.exception) == f"{job} is not a single run: har predict --live needs one, such as {job}/seed0/split1"
    (alone,), (of_job,) = predict([video], run), predict([video], job)
    np.testing.assert_array_equal(of_job.probabilities, alone.probabilities)  # type: ignore[arg-type]
    shutil.copytree(run, job / "seed1/split1")
    picture = tmp_path / "p.png"
    done = CliRunner().invoke(app, ["predict", str(video), "--run", str(job), "--picture", str(picture)])
    assert (done.exit_code, picture.stat().st_size > 1000) == (0, True), done.output
    done = CliRunner().invoke(app, ["predict", str(video), "--run", str(job), "--annotate", str(tmp_path / "x.mp4")])
    assert f"{job} reads depth: --annotate is for colour videos" in str(done.exception)
    done = CliRunner().invoke(app, ["predict", "x.avi", "--run", str(tmp_path / "none")])
    assert "none does not exist" in str(done.exception)


def test_live_frames(depth_set: DepthSet, tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.avi", 9)
    colour = list(live_frames(str(video), "rgb"))
    assert len(colour) == 9
    assert colour[0].shape == (120, 160, 3)
    depth = list(live_frames(str(depth_set.path("v8")), "depth"))
    assert len(depth) == 28
    assert depth[0].dtype == np.uint16
    with pytest.raises(VideoError, match="camera 7 gives colour, this run reads depth"):
        live_frames("7", "depth")
    with pytest.raises(VideoError, match="camera 99 cannot be opened"):
        next(live_frames("99", "rgb"))
