"""The command line, from a folder of videos to a prediction, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from har_command import har, har_process
from video_files import make_video


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 classes x 4 short videos, one empty file, with its manifest and features."""
    folder = tmp_path_factory.mktemp("work")
    for label, seed in (("left", 0), ("right", 50)):
        for i in range(4):
            make_video(folder / "videos" / label / f"{label}{i}.avi", 8, seed=seed + i)
    har("manifest", "build", "folder", "videos", "-o", "manifest.csv", cwd=folder)
    har_process("extract", "manifest.csv", "store.zarr", "--num-clips", 4, "--device", "cpu", cwd=folder)
    return folder


@pytest.mark.usefixtures("pictures_drawn")
def test_the_main_path(work: Path) -> None:
    checked = har("manifest", "check", "manifest.csv", cwd=work)
    assert (checked.stdout.splitlines()[0], checked.stderr) == (
        "ok: manifest.csv: 8 rows, 2 classes; all files are there",
        "",
    )
    shown = json.loads(har("features", "show", "store.zarr", "--json", cwd=work).stdout)
    assert (shown["videos"], shown["failures"]) == (8, {})
    assert shown["spec"]["weights"].startswith("sha256:57934424")
    har("features", "verify", "store.zarr", cwd=work)
    har("train", "manifest.csv", "store.zarr", "-o", "run", "--units", 8, "--epochs", 3, cwd=work)
    result = json.loads(har("evaluate", "run", "--json", cwd=work).stdout)
    assert set(result["classes"]) == {"left", "right"}
    assert (work / "run" / "confusion.png").stat().st_size > 1000
    video = work / "videos" / "left" / "left0.avi"
    predict = ("predict", video, "--run", "run", "--picture", "top.png", "--json")
    answer = json.loads(har(*predict, cwd=work).stdout)
    assert [row["label"] for row in answer[0]["top"]] in (["left", "right"], ["right", "left"])
    assert sum(row["probability"] for row in answer[0]["top"]) == pytest.approx(1)
    assert (work / "top.png").stat().st_size > 1000


def test_prediction_sees_the_features_that_training_saw(work: Path) -> None:
    """The probabilities of a test video in scores.csv are those that `har predict` gives for its file."""
    import csv

    har("train", "manifest.csv", "store.zarr", "-o", "same", "--units", 8, "--epochs", 2, cwd=work)
    with (work / "same" / "scores.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["split"] == "test")
    label, stem = row["video_id"].split("__")
    answer = json.loads(har("predict", f"videos/{label}/{stem}.avi", "--run", "same", "--json", cwd=work).stdout)
    for top in answer[0]["top"]:
        assert top["probability"] == pytest.approx(float(row[top["label"]]), abs=1e-4)


def test_all_folds(work: Path) -> None:
    command = ("train", "manifest.csv", "store.zarr", "-o", "folds", "--protocol", "group_kfold", "--split", "all")
    har(*command, "--head", "mean_pool", "--num-folds", 4, cwd=work)
    result = json.loads(har("evaluate", "folds", "--json", cwd=work).stdout)
    assert len(result["folds"]) == 4
    assert result["pooled"]["num_videos"] == 8
    again = har(*command, "--head", "mean_pool", "--num-folds", 4, cwd=work)
    assert "4 of 4 runs: already trained, kept" in again.stderr


def test_a_broken_video_gives_exit_code_1_and_its_reason(work: Path) -> None:
    (work / "bad").mkdir()
    make_video(work / "bad" / "a" / "good.avi", 5)
    (work / "bad" / "a" / "empty.avi").write_bytes(b"")
    har("manifest", "build", "folder", "bad", "-o", "bad.csv", cwd=work)
    done = har("extract", "bad.csv", "bad.zarr", "--num-clips", 2, "--weights", "random", "--json", cwd=work, code=1)
    assert "failed: a__empty" in done.stderr
    assert "the file is empty" in done.stderr
    assert "random weights: these features are for tests" in done.stderr
    assert json.loads(done.stdout)["done"] == 1
    har("predict", "bad/a/empty.avi", "--run", "nowhere", cwd=work, code=1)


def test_a_flipped_byte_is_found_and_mended(work: Path) -> None:
    har("extract", "manifest.csv", "flip.zarr", "--num-clips", 2, "--device", "cpu", cwd=work)
    chunk = next((work / "flip.zarr").glob("*/left__left0/c.0.0"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert "left__left0" in har("features", "verify", "flip.zarr", cwd=work, code=1).stderr
    har("features", "verify", "flip.zarr", "--delete", cwd=work, code=1)
    again = har("extract", "manifest.csv", "flip.zarr", "--num-clips", 2, "--device", "cpu", "--json", cwd=work)
    assert json.loads(again.stdout)["done"] == 1
    har("features", "verify", "flip.zarr", cwd=work)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("extract", "nowhere.csv", "s.zarr"), "har manifest build"),
        (("extract", "manifest.csv", "manifest.csv"), "choose another path"),
        (("extract", "manifest.csv", "manifest.csv/s.zarr"), "error: manifest.csv"),
        (("train", "manifest.csv", "store.zarr", "-o", "manifest.csv/run"), "manifest.csv"),
        (("train", "manifest.csv", "nowhere.zarr"), "har extract"),
        (("train", "manifest.csv", "store.zarr", "--features", "vgg"), "no feature set starts with 'vgg'"),
        (("evaluate", "videos"), "har train"),
        (("manifest", "build", "kth", "videos", "-o", "m.csv"), "person01_boxing_d1"),
        (("features", "list", "videos"), "not a feature store"),
    ],
)
def test_errors_name_the_way_out(work: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in har(*arguments, cwd=work, code=1).stderr


def test_usage_errors_give_exit_code_2(work: Path) -> None:
    har("extract", "manifest.csv", "s.zarr", "--shard", "3/2", cwd=work, code=2)
    har("extract", "manifest.csv", "s.zarr", "--sampling", "dense", "--num-clips", 4, cwd=work, code=2)
    har("train", "manifest.csv", "store.zarr", "--split", "7", cwd=work, code=2)
    har("train", "manifest.csv", "store.zarr", "--seed", -1, cwd=work, code=2)


def test_every_command_has_help(work: Path) -> None:
    commands = ["synth", "models", "extract", "train", "evaluate", "predict", "manifest build", "manifest check"]
    commands += ["splits show", "splits write", "features list", "features show", "features verify"]
    commands += ["features reduce", "features encode", "fuse", "compare", "sweep"]
    for command in commands:
        assert len(har(*command.split(), "--help", cwd=work).stdout) > 200


def test_options_have_the_defaults_of_the_dataclasses() -> None:
    import dataclasses
    import inspect

    from har_pipeline.cli import extract as extract_commands
    from har_pipeline.cli import train as train_commands
    from har_pipeline.features.options import ExtractOptions
    from har_pipeline.training.options import TrainConfig
    from har_pipeline.video.flow.spec import FlowSpec

    train = inspect.signature(train_commands.train).parameters
    for name, value in dataclasses.asdict(TrainConfig()).items():
        assert train[name].default == value, name
    options, extract = ExtractOptions(), inspect.signature(extract_commands.extract).parameters
    for name in ("fps", "resize", "batch_size", "workers", "retry_failed", "decoder", "dtype"):
        assert extract[name].default == getattr(options, name), name
    assert extract["time_limit"].default == options.time_limit_s
    assert (extract["flow_method"].default, extract["flow_bound"].default) == (FlowSpec().method, FlowSpec().bound_px)


def test_several_nets_and_streams_share_a_store(work: Path) -> None:
    done = har(
        "extract", "manifest.csv", "many.zarr", "--extractor", "efficientnet_lite0", "--extractor",
        "tsn_efficientnet_lite0", "--num-clips", "2", "--json", cwd=work,
    )  # fmt: skip
    rgb = json.loads(done.stdout)
    assert [row["feature_set"].split("-")[0] for row in rgb] == ["efficientnet_lite0", "tsn_efficientnet_lite0"]
    flow = har(
        "extract", "manifest.csv", "many.zarr", "--extractor", "tsn_efficientnet_lite0", "--stream", "flow",
        "--flow-method", "farneback", "--num-clips", "2", "--resize", "stretch-224", "--json", cwd=work,
    )  # fmt: skip
    assert json.loads(flow.stdout)["feature_set"].startswith("tsn_efficientnet_lite0-flow-")
    rows = json.loads(har("features", "list", "many.zarr", "--json", cwd=work).stdout)
    assert {row["videos"] for row in rows} == {rgb[0]["total"]}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--sampling", "dense", "--num-clips", "3"], "leave --num-clips out"),
        (["--extractor", "c3d", "--sampling", "uniform"], "needs --num-clips"),
        (["--crops", "ten"], "leaves no room for crops"),
        (["--segment-seed", "1"], "belongs to segments"),
        (["--clip-stride", "2"], "--clip-stride is for --sampling first, dense and sparse"),
        (
            ["--extractor", "c3d", "--sampling", "segments", "--num-clips", "3", "--clip-stride", "2"],
            "where clips begin",
        ),
        (["--extractor", "vgg16", "--extractor", "c3d", "--layer", "fc6"], "belong to one net"),
    ],
)
def test_options_that_do_not_go_together(work: Path, more: list[str], says: str) -> None:
    done = har("extract", "manifest.csv", "s.zarr", "--weights", "random", *more, cwd=work, code=2)
    assert says in " ".join(done.stderr.replace("│", " ").split())


def test_how_much_was_seen_is_said(work: Path) -> None:
    make_video(work / "long" / "a" / "long.avi", 60)
    make_video(work / "long" / "b" / "short.avi", 6)
    har("manifest", "build", "folder", "long", "-o", "long.csv", cwd=work)
    few = har("extract", "long.csv", "seen.zarr", "--sampling", "first", "--num-clips", 6, "--device", "cpu", cwd=work)
    assert "clips span 55 % (least 10 %) of a video and read 55 % (least 10 %) of its frames" in few.stdout
    (told,) = [line for line in few.stderr.splitlines() if "less than half" in line]
    assert told.startswith("NOTE: efficientnet_lite0-rgb-")
    assert told.endswith("--sampling uniform spreads the clips over the whole video")
    whole = har("extract", "long.csv", "seen.zarr", "--num-clips", 6, "--device", "cpu", "--json", cwd=work)
    assert "less than half" not in whole.stderr
    assert json.loads(whole.stdout)["seen"]["span_min"] == 1.0
    rows = {row["clips"]: row for row in json.loads(har("features", "list", "seen.zarr", "--json", cwd=work).stdout)}
    assert rows["first, 6 frames"]["span_min"] == pytest.approx(0.1)
    assert rows["uniform, 6 frames"]["read_min"] == pytest.approx(0.1)
    assert "55 % (least 10 %)" in har("features", "list", "seen.zarr", cwd=work).stdout
    shown = har("features", "show", "seen.zarr", "--video-id", "a__long", cwd=work).stdout
    assert "clips span 100 % of a video and read 55 % (least 10 %) of its frames" in shown


def test_flow_of_a_video_as_a_video(work: Path) -> None:
    video = next(path for path in sorted(work.rglob("*.avi")) if "bad" not in path.parts)
    done = har("flow", str(video), "-o", "flow.mp4", "--flow-method", "farneback", "--json", cwd=work)
    assert json.loads(done.stdout)["frames"] > 3
    assert (work / "flow.mp4").stat().st_size > 500


def test_flow_never_replaces_its_video(work: Path) -> None:
    video = next(path for path in sorted(work.rglob("*.avi")) if "bad" not in path.parts)
    before = video.read_bytes()
    har("flow", str(video), "-o", str(video), "--flow-method", "farneback", cwd=work, code=2)
    assert video.read_bytes() == before
    har("flow", str(video), "-o", "nowhere/flow.mp4", "--flow-method", "farneback", cwd=work, code=2)
    assert not (work / "nowhere").exists()


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "har_pipeline", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("har ")
