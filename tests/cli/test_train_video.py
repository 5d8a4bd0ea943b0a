"""`har train-video`, `har lr-range` and what `har evaluate` adds for them, on a small tree with NTU RGB+D's names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from depth_files import moving_body, write_folder
from typer.testing import CliRunner

from har_pipeline.cli import app, train_video
from har_pipeline.cli.progress import training_bar
from har_pipeline.evaluation.run_folder import RunSummary, read_history
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_run
from har_pipeline.training.history import Epoch
from har_pipeline.training.jobs import Outcome, PlannedRun
from har_pipeline.training.networks.fit import BatchProgress

SUBJECTS = (1, 2, 3, 6)
FAST = ("--width", "0.05", "--epochs", "2", "--batch-size", "4", "--device", "cpu", "--workers", "1")


@pytest.fixture(scope="module")
def ntu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subjects 1 and 2 train and 3 and 6 test; actions 1 and 2 are a body that goes right, or left."""
    folder = tmp_path_factory.mktemp("ntu")
    for subject in SUBJECTS:
        for action in (1, 2):
            for camera in (1, 2):
                frames = moving_body(9 + subject + camera, seed=subject)
                name = f"S001C{camera:03d}P{subject:03d}R001A{action:03d}"
                write_folder(folder / "nturgb+d_depth_masked" / name, frames if action == 1 else frames[:, :, ::-1])
    har("manifest", "build", "ntu", str(folder), "-o", str(folder / "manifest.csv"))
    return folder


def har(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout, f"{result.stderr}{result.exception or ''}"


@pytest.fixture(scope="module")
def run(ntu: Path) -> Path:
    out, err = har("train-video", str(ntu / "manifest.csv"), "-o", str(ntu / "run"), *FAST)  # the ids are NTU RGB+D's
    assert "frames of 16 videos prepared" in err
    assert "epoch 2/2: loss" in err
    assert "0.05 times the paper's filters" in err
    assert "convlstm-stateful, test video accuracy" in out
    assert f"next: har evaluate {ntu / 'run'}" in out
    return ntu / "run"


def test_a_depth_tree_becomes_a_run(ntu: Path, run: Path) -> None:
    loaded = load_run(run)
    assert loaded.split.protocol == "xsub"
    subjects = {part: {v[9:12] for v in getattr(loaded.split, part)} for part in ("train", "val", "test")}
    assert subjects == {"train": {"001"}, "val": {"002"}, "test": {"003", "006"}} or subjects == {
        "train": {"002"},
        "val": {"001"},
        "test": {"003", "006"},
    }
    store = FeatureStore(ntu / "frames.zarr")
    (name,) = store.feature_sets()
    assert loaded.feature_set == name
    assert len(store.video_ids(name)) == 16
    assert loaded.spec.resize == "box-stretch-64"
    info = json.loads((run / "run.json").read_text())
    assert info["command"].startswith(f"har train-video {ntu}/manifest.csv -o {ntu}/run")
    assert (info["manifest"], info["store"]) == (f"{ntu}/manifest.csv", f"{ntu}/frames.zarr")
    assert info["started"] <= info["finished"]


def test_the_other_network_and_protocol_take_the_frames_that_are_there(ntu: Path, run: Path) -> None:
    command = ("train-video", str(ntu / "manifest.csv"), "--model", "convlstm-stateless", "--stream", "depth")
    _, err = har(*command, "--protocol", "xview", "-o", str(ntu / "view"), *FAST)
    assert "prepared" not in err
    assert load_run(ntu / "view").config.model == "convlstm-stateless"
    assert len(read_history(ntu / "view")["epoch"]) == 2
    # The same command again keeps the run, another one does not replace it.
    out, err = har(*command, "--protocol", "xview", "-o", str(ntu / "view"), *FAST)
    assert "already trained, kept" in err
    assert "epoch 1/2" not in err
    assert "convlstm-stateless, test video accuracy" in out
    _, err = har(*command, "--protocol", "xview", "-o", str(ntu / "view"), *FAST, "--epochs", "3", code=1)
    assert "was trained differently (epochs: 2 != 3)" in err
    assert "--overwrite" in err


def test_evaluating_with_times(ntu: Path, run: Path) -> None:
    out, _ = har(
        "evaluate", str(run), "--time", "--manifest", str(ntu / "manifest.csv"), "--device", "cpu", "--best-and-worst"
    )
    assert "worst  accuracy  most confused with" in out
    assert "8 videos of 15 frames on average, one at a time; cpu, " in out
    assert "network alone" in out
    times = json.loads((run / "timing.json").read_text())
    assert 0 < times["network_s"] < times["whole_s"] < 60
    assert times["videos"] == 8
    assert times["failed"] == {}
    text, _ = har(
        "evaluate", str(run), "--time", "--manifest", str(ntu / "manifest.csv"), "--time-videos", "2", "--json"
    )
    assert json.loads(text)["timing"]["videos"] == 2
    _, err = har("evaluate", str(run), "--time", code=2)
    assert "--manifest" in err
    assert (run / "best_and_worst.csv").is_file()


def test_missing_and_corrupt_files_cost_their_video_only(ntu: Path, tmp_path: Path) -> None:
    lines = (ntu / "manifest.csv").read_text().splitlines()
    broken = write_folder(ntu / "broken", moving_body(4))
    for path in broken.iterdir():
        path.write_bytes(b"no png")
    (ntu / "empty").mkdir()
    columns = lines[0].split(",")
    for number, name in enumerate(("broken", "empty", "absent")):
        cells = dict(zip(columns, lines[1 + number].split(","), strict=True))
        cells |= {"depth_path": name, "video_id": f"{name}-S001C001P001R001A001"}
        lines.append(",".join(cells[column] for column in columns))
    (ntu / "more.csv").write_text("\n".join(lines) + "\n")
    command = ("train-video", str(ntu / "more.csv"), "-o", str(tmp_path / "run"), *FAST, "--val-fraction", "0")
    _, err = har(*command, code=1)
    assert err.count("failed: ") == 3
    assert "no features of 3 videos" in err
    assert "`har frames`" in err
    assert not (tmp_path / "run").exists()
    _, err = har(*command, "--allow-missing")
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert len(info["summary"]["missing"]) == 3
    assert load_run(tmp_path / "run").split.val == ()


def test_folds_and_repeats(ntu: Path, run: Path, tmp_path: Path) -> None:
    store = ("--store", str(ntu / "frames.zarr"))
    command = (
        "train-video",
        str(ntu / "manifest.csv"),
        *store,
        "--protocol",
        "leave_one_subject_out",
        "--split",
        "all",
    )
    fast = (*command, "--val-fraction", "0", *FAST, "--epochs", "1", "-o", str(tmp_path / "job"))
    out, err = har(*fast, "--json")
    assert len(json.loads(out)) == 4
    _, err = har(*fast)
    assert "4 of 4 runs: already trained, kept" in err
    out, _ = har("evaluate", str(tmp_path / "job"))
    assert "mean over 4 splits" in out
    assert "all test videos of these splits pooled" in out
    har("fuse", str(tmp_path / "job"), str(tmp_path / "job"), "-o", str(tmp_path / "fused"), code=2)


@pytest.mark.usefixtures("pictures_drawn")
def test_a_range_test(ntu: Path, run: Path, tmp_path: Path) -> None:
    command = ("lr-range", str(ntu / "manifest.csv"), "--store", str(ntu / "frames.zarr"), "--device", "cpu")
    short = (*command, "--width", "0.05", "--batch-size", "4", "--steps", "12", "-o", str(tmp_path / "range"))
    out, _ = har(*short, "--model", "convlstm-stateful", "--json")
    result = json.loads(out)
    assert len(result["rates"]) == len(result["losses"]) == 12
    assert np.allclose(np.diff(np.log(result["rates"])), np.log(1e5) / 11)
    for name in ("lr_range.png", "lr_range.csv", "lr_range.json"):
        assert (tmp_path / "range" / name).stat().st_size > 100
    out, _ = har(*short, "--protocol", "group_kfold", "--num-folds", "2")
    assert "suggested learning rates" in out or "did not fall" in out


def test_stopped_by_hand_it_can_be_continued(
    ntu: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(job: PlannedRun, epoch: Epoch) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def bar(*arguments: object, **options: object) -> Iterator[tuple[object, ...]]:
        yield stop, lambda *given: None, lambda *given: None

    command = ("train-video", str(ntu / "manifest.csv"), "--store", str(ntu / "frames.zarr"), *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(train_video, "training_bar", bar)
        har(*command, "-o", str(tmp_path / "run"), code=130)
    assert [path.name for path in tmp_path.iterdir()] == [".run.partial"]
    _, err = har(*command, "-o", str(tmp_path / "run"))
    assert "epoch 1/2" not in err
    assert "epoch 2/2" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("silent", [False, True])
def test_one_of_several_processes_reports(ntu: Path, run: Path, silent: bool) -> None:
    job = PlannedRun(load_run(run).split, 0, run)
    info = json.loads((run / "run.json").read_text())["summary"]
    reported: list[Outcome] = []
    with training_bar([job], 2, reported.append, silent=silent) as (_, _, on_done):
        on_done(Outcome(job, RunSummary(**info, path=run), kept=True))
    assert len(reported) == (not silent)


def test_batches_say_how_long_it_takes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("har_pipeline.cli.progress.QUIET_S", 0.0)
    monkeypatch.setattr("har_pipeline.cli.progress.EVERY_S", 0.0)
    split = load_run(run).split
    for jobs in ([PlannedRun(split, 0, run)], [PlannedRun(split, seed, run / str(seed)) for seed in range(3)]):
        with training_bar(jobs, 2, lambda outcome: None) as (_, on_batch, _):
            for batch in range(1, 5):
                on_batch(jobs[0], BatchProgress(1, 2, batch, 10, 1.25, 0.5, 1e-3))
        err = capsys.readouterr().err
        where = "4 of 20 batches" if len(jobs) == 1 else "0 of 3 runs"
        name = "" if len(jobs) == 1 else "split 0, seed 0, "
        assert re.search(rf"^train: {where}, .*/s, .* left, {name}epoch 1/2: loss 1.250, 50.0%", err, re.M), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learning-rate", "1e-3"), "--learning-rate belongs to"),
        (("--patience", "9"), "--cycle-epochs and --patience belong to the published schedule"),
        (("--model", "convlstm-stateless", "--long-videos", "whole"), "--long-videos belongs to convlstm-stateful"),
        (("--split", "7"), "--split must be all or one of"),
    ],
)
def test_options_that_make_no_sense(ntu: Path, run: Path, arguments: tuple[str, ...], message: str) -> None:
    _, err = har("train-video", str(ntu / "manifest.csv"), "-o", str(ntu / "other"), *FAST, *arguments, code=2)
    assert message in " ".join(re.sub(r"[^\w-]+", " ", err).split())


def test_a_store_without_raw_frames(ntu: Path, run: Path) -> None:
    command = ("train-video", str(ntu / "manifest.csv"), "-o", str(ntu / "other"), *FAST)
    _, err = har(*command, "--features", "vgg16", code=1)
    assert "no raw-frame sets of depth start with 'vgg16'" in err
    _, err = har(*command, "--stream", "rgb", code=1)
    assert "no row of the manifest has a path" in err
