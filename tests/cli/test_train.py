"""`har train` and `har evaluate` on stored features: folds, repeats, mid fusion, progress."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.cli.output import reporter
from har_pipeline.cli.progress import SHOWN_AT_MOST, sweep_table, training_table
from har_pipeline.core.records import Split, VideoSource
from har_pipeline.evaluation.run_folder import RunSummary
from har_pipeline.inference.load import load_run
from har_pipeline.training.history import Epoch
from har_pipeline.training.jobs import Outcome, PlannedRun, plan_jobs
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.sweep import Point

FAST = ("--units", "4", "--epochs", "2", "--device", "cpu", "--protocol", "group_kfold", "--num-folds", "2")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train_cli")
    features, labels = blobs(("boxing", "running", "walking"), 8, dim=6)
    store, name = feature_store(folder / "store.zarr", features)
    flow = store.create_feature_set(dataclasses.replace(store.spec(name), stream="flow", flow="drawn"))
    for video_id, array in features.items():
        starts = np.arange(len(array))
        source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=len(array), fps=25.0)
        store.write(flow, video_id, array + 1, source)
    rows = [f"{v},{label},videos/{v}.avi,s{v[-1]}" for v, label in labels.items()]
    (folder / "manifest.csv").write_text("video_id,label,path,subject\n" + "\n".join(rows) + "\n")
    return folder


def har(work: Path, command: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    if command == "train":
        arguments = (str(work / "manifest.csv"), str(work / "store.zarr"), *FAST, *arguments)
    result = CliRunner().invoke(app, [command, *arguments])
    if code != 1:
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    else:
        assert result.exit_code == 1
    return result.stdout, f"{result.stderr}{result.exception or ''}"


def test_folds_and_repeats_are_one_job_that_goes_on(work: Path, tmp_path: Path) -> None:
    command = ("--features", "drawn-rgb", "--split", "all", "--repeats", "2", "-o", str(tmp_path / "job"))
    out, err = har(work, "train", *command)
    lines = out.splitlines()
    folders = [f"{tmp_path / 'job'}/seed{seed}/split{fold}: " for seed in range(2) for fold in range(2)]
    assert [line[: len(folder)] for line, folder in zip(lines, folders, strict=False)] == folders
    accuracies = [float(re.findall(r"test video accuracy ([\d.]+)%", line)[0]) for line in lines[:4]]
    mean, sd = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert lines[4] == f"mean over 2 splits, 2 seeds: test video accuracy {mean:.1f}%, sd {sd:.1f}%"
    assert lines[5:] == [f"next: har evaluate {tmp_path / 'job'}"]
    assert "test video accuracy" not in err
    for seed in range(2):
        for fold in range(2):
            run = load_run(tmp_path / f"job/seed{seed}/split{fold}")
            assert (run.config.seed, run.split.index) == (seed, fold)
    # The folds themselves do not depend on the repeat.
    first, second = (load_run(tmp_path / f"job/seed{seed}/split0").split for seed in range(2))
    assert first == second
    (tmp_path / "job/seed1/split0/run.json").unlink()
    for path in (tmp_path / "job/seed1/split0").iterdir():
        path.unlink()
    out, err = har(work, "train", *command)
    assert "3 of 4 runs: already trained, kept (--overwrite trains them again)" in err
    assert out.count("test video accuracy") == 5
    out, err = har(work, "train", *command, "--json")
    assert len(json.loads(out)) == 4
    assert err.count("test video accuracy") == 4
    out, _ = har(work, "evaluate", str(tmp_path / "job"))
    assert "mean over 2 repeats, of each over its folds: video accuracy" in out
    result = json.loads(har(work, "evaluate", str(tmp_path / "job"), "--json")[0])
    assert list(result["repeats"]) == ["0", "1"]
    assert list(result["repeats"]["0"]["folds"]) == ["0", "1"]
    assert 0 <= result["sd_top1"] <= 1
    _, err = har(work, "train", *command, "--dropout", "0.5", code=1)
    assert "dropout: 0.0 != 0.5" in err


def test_a_single_run_is_kept_and_its_summary_shown_again(work: Path, tmp_path: Path) -> None:
    command = ("--features", "drawn-rgb", "-o", str(tmp_path / "run"))
    first, _ = har(work, "train", *command)
    again, err = har(work, "train", *command)
    assert again == first
    assert "already trained, kept (--overwrite trains it again)" in err
    _, err = har(work, "train", *command, "--units", "5", "--split", "1", code=1)
    assert "was trained differently (units: 4 != 5; the videos of the split)" in err
    assert "--overwrite" in err
    _, err = har(work, "train", *command, "--units", "5", "--overwrite")
    assert "kept" not in err
    assert load_run(tmp_path / "run").config.units == 5


def test_the_next_command_can_be_copied(work: Path, tmp_path: Path) -> None:
    """Whatever is in the names of files."""
    out, _ = har(work, "train", "--features", "drawn-rgb", "-o", str(tmp_path / "my run"))
    assert out.splitlines()[-1] == f"next: har evaluate '{tmp_path / 'my run'}'"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.avi").touch()
    out, _ = har(work, "manifest", "build", "folder", str(tmp_path / "videos"), "-o", str(tmp_path / "my m.csv"))
    assert out.endswith(f"next: har extract '{tmp_path / 'my m.csv'}' store.zarr\n")


def test_repeats_of_one_split(work: Path, tmp_path: Path) -> None:
    har(work, "train", "--features", "drawn-rgb", "--repeats", "2", "--seed", "3", "-o", str(tmp_path / "job"))
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["plan.json", "seed3", "seed4"]


def test_repeats_that_cannot_differ_and_clips_that_are_not_there_are_noted(work: Path, tmp_path: Path) -> None:
    command = ("--features", "drawn-rgb", "--repeats", "2", "--num-steps", "4", "-o")
    lengths = [len(clips) for clips in blobs(("boxing", "running", "walking"), 8, dim=6)[0].values()]
    _, err = har(work, "train", *command, str(tmp_path / "svm"), "--head", "svm")
    assert "NOTE: svm has a single optimum, whatever the seed" in err
    short = sum(length < 4 for length in lengths)
    assert 0 < short < 24
    assert f"NOTE: {short} of 24 videos have fewer than 4 clips: some of theirs are used repeatedly" in err
    _, err = har(work, "train", *command, str(tmp_path / "lstm"))
    assert "single optimum" not in err
    _, err = har(work, "train", *command, str(tmp_path / "one"), "--num-steps", "1")
    assert "fewer than" not in err


def test_mid_fusion_by_options(work: Path, tmp_path: Path) -> None:
    streams = ("--features", "drawn-rgb", "--features", "drawn-flow")
    har(
        work, "train", *streams, "--mid-fusion", "hidden", "--fusion-op", "product", "--head", "gru", "-o",
        str(tmp_path / "run"),
    )  # fmt: skip
    run = load_run(tmp_path / "run")
    assert [stream.spec.stream for stream in run.streams] == ["rgb", "flow"]
    assert (run.config.mid_fusion, run.config.fusion_op, run.config.head) == ("hidden", "product", "gru")
    out, _ = har(work, "evaluate", str(tmp_path / "run"))
    assert "video accuracy top-1" in out
    assert "need --mid-fusion" in har(work, "train", *streams, "-o", str(tmp_path / "no"), code=2)[1]
    assert (
        "needs several"
        in har(work, "train", *streams[:2], "--mid-fusion", "input", "-o", str(tmp_path / "no"), code=2)[1]
    )
    twice = ("--features", "drawn-rgb", "--features", "drawn-rgb", "--mid-fusion", "input")
    assert "is given twice" in har(work, "train", *twice, "-o", str(tmp_path / "no"), code=1)[1]
    pooled = ("--mid-fusion", "input", "--fusion-op", "concat", "--head", "mean_pool")
    assert "--fusion-op" not in har(work, "train", *streams, *pooled, "-o", str(tmp_path / "pooled"))[1]
    assert "choose one with --features" in har(work, "train", "-o", str(tmp_path / "no"), code=1)[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--head", "res_lstm", "--num-layers", "3", "--input-projection", "4"), {"num_layers": 3, "head": "res_lstm"}),
        (("--head", "vote", "--vote", "majority"), {"vote": "majority"}),
        (("--schedule", "step", "--schedule-epochs", "1", "--schedule-factor", "0.5"), {"schedule_factor": 0.5}),
        (("--label-smoothing", "0.1", "--clip-norm", "1", "--class-weights", "balanced"), {"clip_norm": 1.0}),
        (("--temporal-jitter", "0.25", "--optimizer", "adamw", "--weight-decay", "0.01"), {"temporal_jitter": 0.25}),
        (
            (
                "--precision",
                "bf16",
            ),
            {"precision": "bf16"},
        ),
        (("--schedule", "plateau"), {"schedule": "plateau"}),
    ],
)
def test_options_reach_the_run(
    work: Path, tmp_path: Path, options: tuple[str, ...], expected: dict[str, object]
) -> None:
    har(work, "train", "--features", "drawn-rgb", *options, "-o", str(tmp_path / "run"))
    config = load_run(tmp_path / "run").config
    assert {name: getattr(config, name) for name in expected} == expected


def test_options_out_of_range_are_usage_errors(work: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--clip-norm", "0"), "--clip-norm must be above 0"),
        (
            ("--head", "vote", "--num-layers", "2"),
            "--num-layers belongs to lstm gru bilstm attention",
        ),
        (("--schedule-factor", "2"), "--schedule-factor must be above 0 and below 1"),
        (("--average-last", "0.5", "--patience", "2"), "epochs --patience keeps the best one"),
        (("--head", "svm", "--output", "sigmoid"), "fitted by scikit-learn as a softmax its --output must be softmax"),
    ):
        _, err = har(work, "train", "--features", "drawn-rgb", *options, "-o", str(tmp_path / "run"), code=2)
        assert message in re.sub(r"[^\w-]+", " ", err)


def jobs_of(count: int) -> list[PlannedRun]:
    split = Split(protocol="holdout", index=0, train=("a",), test=("b",))
    return plan_jobs([dataclasses.replace(split, index=i) for i in range(count)], Path("out"))


def summary_of(job: PlannedRun) -> RunSummary:
    return RunSummary(
        path=job.folder, epochs=4, best_epoch=3, train_accuracy=1.0, val_accuracy=None, test_accuracy=0.875,
        num_train=9, num_val=0, num_test=8, missing=(), notes=(), seconds=1.5,
    )  # fmt: skip


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Rich take stderr for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")


def nothing(outcome: Outcome) -> None:
    """Report no result."""


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(3)
    with training_table(jobs, 4, reporter("lstm", False), live=True) as (on_epoch, on_done):
        on_done(Outcome(jobs[0], summary_of(jobs[0]), kept=True))
        on_done(Outcome(jobs[1], summary_of(jobs[1]), kept=False))
        on_epoch(jobs[2], Epoch(2, 0.1, 0.5, 0.625, 0.5, 0.75, 0.1))
    out, shown = capsys.readouterr()
    # Once the table is gone, each result once.
    assert [line.partition(":")[0] for line in out.splitlines()] == ["out/split0", "out/split1"]
    assert "2 of 3 runs finished" in shown
    for text in ("kept", "done", "training", "2/4", "62.5%", "75.0%", "87.5%"):
        assert text in shown, text


@pytest.mark.usefixtures("terminal")
def test_the_table_of_one_run_counts_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = jobs_of(1)
    with training_table([job], 4, nothing, live=True) as (on_epoch, _):
        for number in (1, 2, 3):
            on_epoch(job, Epoch(number, 0.1, 0.5, 0.625, None, None, 0.1))
    assert "3 of 4 epochs, " in capsys.readouterr().err


@pytest.mark.usefixtures("terminal")
def test_values_of_a_sweep_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    values = (("column", "[bold]x_a[/] \x1b[31m"),)
    point = Point(values=values, config=TrainConfig(), feature_set="", pca=None, folder=Path("out"))
    with sweep_table([point], 1, live=True):
        pass
    assert "[bold]x_a[/] \\x1b[31m" in capsys.readouterr().err


@pytest.mark.usefixtures("terminal")
def test_a_long_table_shows_the_runs_around_the_one_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(100)
    with training_table(jobs, 4, nothing, live=True) as (on_epoch, on_done):
        for job in jobs[:60]:
            on_done(Outcome(job, summary_of(job), kept=False))
        on_epoch(jobs[60], Epoch(2, 0.1, 0.5, 0.625, None, None, 0.1))
    last = capsys.readouterr().err.rsplit("split", 1)[1]
    assert "training" in last
    assert last.count("\n") < SHOWN_AT_MOST + 8


def test_elsewhere_a_line_for_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(2)
    with training_table(jobs, 4, reporter("lstm", False), live=False) as (on_epoch, on_done):
        on_epoch(jobs[0], Epoch(1, 0.1, 0.5, 0.625, None, None, 0.1))
        for number, job in enumerate(jobs):
            on_done(Outcome(job, summary_of(job), kept=number == 1))
    out, err = capsys.readouterr()
    described = "test video accuracy 87.5% on 8 videos (9 train, 0 val), 1.5 s"
    assert out.splitlines() == [
        f"out/split0: lstm, {described}",
        f"out/split1: lstm, {described}",
    ]
    assert not err


@pytest.mark.parametrize("runs", [1, 3])
def test_elsewhere_epochs_say_how_long_it_takes(
    runs: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("har_pipeline.cli.progress.QUIET_S", 0.0)
    monkeypatch.setattr("har_pipeline.cli.progress.EVERY_S", 0.0)
    jobs = jobs_of(runs)
    with training_table(jobs, 4, nothing, live=False) as (on_epoch, on_done):
        for job in jobs:
            for number in range(1, 5):
                on_epoch(job, Epoch(number, 0.1, 0.5, 0.625, None, None, 0.1))
            on_done(Outcome(job, summary_of(job), kept=False))
    err = capsys.readouterr().err
    if runs == 1:
        assert re.search(r"^train: 2 of 4 epochs, .* left, loss 0.500, 62.5%$", err, re.M)
    else:
        assert re.search(r"^train: 1 of 3 runs, .* left, split 1, seed 0, epoch 2/4, loss 0.500, 62.5%$", err, re.M)


def test_a_split_of_another_manifest_is_noted(work: Path, tmp_path: Path) -> None:
    har(
        work, "splits", "write", str(work / "manifest.csv"), "--protocol", "group_kfold", "--num-folds", "2", "-o",
        str(tmp_path),
    )  # fmt: skip
    options = ("--features", "drawn-rgb", "--split-file", str(tmp_path / "group_kfold-0.json"))
    assert "another manifest" not in har(work, "train", *options, "-o", str(tmp_path / "same"))[1]
    text = (work / "manifest.csv").read_text()
    other = tmp_path / "other.csv"
    other.write_text(text.replace("boxing-0,boxing", "boxing-0,running"))
    result = CliRunner().invoke(
        app, ["train", str(other), str(work / "store.zarr"), *FAST, *options, "-o", str(tmp_path / "other")]
    )
    assert result.exit_code == 0, result.output
    assert "NOTE: " in result.stderr
    assert "group_kfold-0.json was written for another manifest" in result.stderr


def notes_of(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return [line.removeprefix("NOTE: ") for line in result.stderr.splitlines() if line.startswith("NOTE: ")]


def test_split_options_without_effect_are_noted(work: Path, tmp_path: Path) -> None:
    manifest = str(work / "manifest.csv")
    train = ("train", manifest, str(work / "store.zarr"), "--features", "drawn-rgb", "--head", "mean_pool")
    out = ("-o", str(tmp_path / "run"), "--overwrite")
    assert notes_of(*train, *out, "--test-fraction", "0.4") == []
    assert notes_of(
        *train, *out, "--protocol", "group_kfold", "--split", "0", "--column", "split", "--test-fraction", "0.3"
    ) == ["the protocol group_kfold does not read --test-fraction, --column"]
    assert notes_of("splits", "show", manifest, "--num-folds", "5") == [
        "the protocol holdout does not read --num-folds"
    ]
    assert notes_of("splits", "write", manifest, "-o", str(tmp_path), "--protocol", "group_kfold") == []
    given = ("--protocol", "group_kfold", "--split", "0", "--val-fraction", "0.1", "--num-folds", "3")
    assert notes_of(*train, *out, "--split-file", str(tmp_path / "group_kfold-0.json"), *given) == [
        "--split-file replaces --protocol, --split, --num-folds, --val-fraction"
    ]


def test_odd_splits_are_noted(work: Path, tmp_path: Path) -> None:
    rows = [line.split(",") for line in (work / "manifest.csv").read_text().splitlines()[1:]]
    parts = {"s5": "val", "s6": "test", "s7": ""}
    lines = [",".join([*row, parts.get(row[3], "train")]) for row in rows]
    manifest = tmp_path / "own.csv"
    manifest.write_text("video_id,label,path,subject,split\n" + "\n".join(lines) + "\n")
    unused = "3 of 24 videos of the manifest are not used by column split 0: boxing-7, running-7, walking-7"
    train = ("train", str(manifest), str(work / "store.zarr"), "--features", "drawn-rgb", "--head", "mean_pool")
    column = ("--protocol", "column", "--val-fraction", "0.2")
    unread = "the protocol column does not read --val-fraction"
    assert notes_of(*train, *column, "-o", str(tmp_path / "column")) == [unread, unused]
    assert notes_of("splits", "show", str(manifest), *column) == [unread, unused]
    # One subject of three videos is the least that can be taken of 18 or 21.
    assert notes_of(*train, "--val-fraction", "0.05", "-o", str(tmp_path / "holdout")) == [
        "--val-fraction 0.05: 3 of 18 training videos (17 %) are used for validation: subjects and groups are not divided",
        "the manifest's column split names train and test videos; --protocol column uses them",
    ]


@pytest.mark.parametrize(
    ("options", "unread"),
    [
        (("--head", "res_lstm"), "--units"),
        (("--head", "svm", "--batch-size", "25"), "--units, --epochs, --batch-size"),
        (("--schedule-factor", "0.5"), "--schedule-factor"),
        (("--schedule", "step", "--schedule-factor", "0.5", "--num-layers", "2"), ""),
    ],
)
def test_options_that_the_head_does_not_read_are_noted(
    work: Path, tmp_path: Path, options: tuple[str, ...], unread: str
) -> None:
    err = har(work, "train", "--features", "drawn-rgb", *options, "-o", str(tmp_path / "run"))[1]
    assert re.findall(r"does not read (.*)", err) == ([unread] if unread else [])


def test_the_learning_rate_is_above_0_and_the_help_says_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err = har(work, "train", "--features", "drawn-rgb", "--learning-rate", "0", "-o", str(tmp_path / "run"), code=2)
    assert "must be above 0" in re.sub(r"\W+", " ", err)
    monkeypatch.setenv("COLUMNS", "200")
    (line,) = [line for line in har(work, "train", "--help")[0].splitlines() if "--learning-rate" in line]
    assert "Above 0" in line
    assert "x>=0" not in line


def test_a_run_remembers_its_command_and_where_everything_was(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    har(work, "train", "--features", "drawn-rgb", "--root", str(work), "-o", "my run")
    info = json.loads((tmp_path / "my run/run.json").read_text())
    fast = " ".join(FAST)
    assert info["command"] == (
        f"har train {work}/manifest.csv {work}/store.zarr {fast} --features drawn-rgb --root {work} -o 'my run'"
    )
    assert (info["manifest"], info["store"], info["root"]) == (f"{work}/manifest.csv", f"{work}/store.zarr", str(work))
    started, finished = (datetime.fromisoformat(info[name]) for name in ("started", "finished"))
    assert started <= finished
    assert started.utcoffset() == timedelta(0)
    assert (finished - started).total_seconds() == pytest.approx(info["summary"]["seconds"], abs=2)
    # Another command line for the same job keeps the run as it is.
    before = (tmp_path / "my run/run.json").read_bytes()
    _, err = har(work, "train", "--features", "drawn-rgb", "--out", str(tmp_path / "my run"))
    assert "already trained, kept" in err
    assert (tmp_path / "my run/run.json").read_bytes() == before
    har(work, "evaluate", "my run")


def test_a_command_line_steers_no_terminal(work: Path, tmp_path: Path) -> None:
    har(work, "train", "--features", "drawn-rgb", "-o", str(tmp_path / "a\x1b[2Jb"))
    info = json.loads((tmp_path / "a\x1b[2Jb/run.json").read_text())
    assert info["command"].endswith(r"a\x1b[2Jb'")
    assert info["root"] is None


def test_a_sweep_and_its_runs_remember_the_command(work: Path, tmp_path: Path) -> None:
    command = [str(work / "manifest.csv"), str(work / "store.zarr"), "--features", "drawn-rgb", "--units", "3,4"]
    command += ["--epochs", "1", "--device", "cpu", "--val-fraction", "0", "-o", str(tmp_path / "sweep")]
    command += ["--workers", "1"]
    har(work, "sweep", *command)
    for units in (3, 4):
        info = json.loads((tmp_path / f"sweep/units_{units}/run.json").read_text())
        assert info["command"] == " ".join(["har", "sweep", *command])
        assert info["manifest"] == f"{work}/manifest.csv"


def test_the_most_confident_mistakes_are_shown_and_results_go_where_asked(work: Path, tmp_path: Path) -> None:
    har(work, "train", "--features", "drawn-rgb", "--split", "all", "--repeats", "2", "-o", str(tmp_path / "job"))
    before = {path: path.read_bytes() for path in (tmp_path / "job").rglob("*.*") if path.is_file()}
    out, _ = har(work, "evaluate", str(tmp_path / "job"), "--out", str(tmp_path / "results"))
    assert {path: path.read_bytes() for path in (tmp_path / "job").rglob("*.*") if path.is_file()} == before
    assert f"written: {tmp_path / 'results'}/repeats.json" in out
    result = json.loads(har(work, "evaluate", str(tmp_path / "job"), "--out", str(tmp_path / "results"), "--json")[0])
    mistakes = [one for own in result["repeats"].values() for one in own["pooled"]["mistakes"]]
    assert mistakes
    first = max(mistakes, key=lambda one: one["probability"])
    assert "the most confident mistakes (" in out
    assert "of the mean class accuracy that of the mean of Jeffreys' posteriors" in out
    table = out.split("the most confident mistakes (")[1].splitlines()
    assert table[1].split("  ")[0] == "video_id"
    assert table[3].split()[:3] == [first["video_id"], first["label"], first["predicted"]]
    out, _ = har(work, "evaluate", str(tmp_path / "job/seed0/split0"), "--part", "test", "--out", str(tmp_path / "one"))
    assert "mistakes.csv" in out
    _, err = har(work, "evaluate", str(tmp_path / "job"), "--out", str(tmp_path / "job/seed0/split0"), code=1)
    assert "holds another run or fusion" in err


def test_rows_without_a_label_are_left_out_and_told_of(work: Path, tmp_path: Path) -> None:
    """In the run as well: its head is the one trained without these rows."""
    text = (work / "manifest.csv").read_text()
    mixed = tmp_path / "mixed.csv"
    mixed.write_text(text + "".join(f"n{n},,videos/n{n}.avi,s{n}\n" for n in range(7)))
    said = "NOTE: 7 of 31 videos of the manifest have no label and are left out: n0, n1, n2, n3, n4, ..."
    infos = []
    for number, manifest in enumerate((work / "manifest.csv", mixed)):
        command = [
            "train",
            manifest,
            work / "store.zarr",
            "--features",
            "drawn-rgb",
            *FAST,
            "-o",
            tmp_path / f"run{number}",
        ]
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 0, done.output
        assert done.stderr.count(said) == number
        infos.append(json.loads((tmp_path / f"run{number}/run.json").read_text()))
    assert [said.removeprefix("NOTE: ") in info["summary"]["notes"] for info in infos] == [False, True]
    assert (tmp_path / "run0/scores.csv").read_bytes() == (tmp_path / "run1/scores.csv").read_bytes()
    shown = CliRunner().invoke(app, ["splits", "show", str(mixed), "--protocol", "loso", "--val-fraction", "0"])
    assert said in shown.stderr
    line = "protocol leave_one_subject_out: 8 splits; train and test share no subject or file"
    assert shown.stdout.splitlines()[0] == line
    as_json = CliRunner().invoke(app, ["splits", "show", str(mixed), "--protocol", "loso", "--json"])
    assert len(json.loads(as_json.stdout)) == 8
    assert line in as_json.stderr
    none = tmp_path / "none.csv"
    none.write_text("video_id,label,path\n" + "".join(f"n{n},,n{n}.avi\n" for n in range(3)))
    _, error = har(work, "splits", "show", str(none), code=1)
    assert "none of the 3 videos of the manifest has a label" in error


def test_split_files_that_differ_are_not_overwritten(work: Path, tmp_path: Path) -> None:
    command = ("splits", "write", str(work / "manifest.csv"), "-o", str(tmp_path), "--protocol", "logo")
    _, error = har(work, *command, code=1)
    assert "leave_one_group_out needs column 'group'" in error
    command = (*command[:-1], "loso", "--val-fraction", "0")
    har(work, *command)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"leave_one_subject_out-{n}.json" for n in range(8)]
    har(work, *command)
    edited = files[2].read_text().replace('"seed": 0', '"seed": 5')
    files[2].write_text(edited)
    _, error = har(work, *command, code=1)
    assert "leave_one_subject_out-2.json exists and differs" in error
    assert "--overwrite" in error
    assert files[2].read_text() == edited
    har(work, *command, "--overwrite")
    assert '"seed": 0' in files[2].read_text()


def test_many_videos_are_told_of_packs(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_pipeline.features.pack.ADVISED_FROM", 24)
    command = ("--features", "drawn-rgb", "--head", "ridge")
    _, err = har(work, "train", *command, "-o", str(tmp_path / "a"))
    line = f"24 videos are read several times faster from a pack: `har features pack {work / 'store.zarr'}`, then train on "
    assert line + str(work / "store.pack") in err
    partial = tmp_path / "partial.csv"
    partial.write_text((work / "manifest.csv").read_text() + "absent,walking,videos/absent.avi,s0\n")
    failed = CliRunner().invoke(
        app, ["train", str(partial), str(work / "store.zarr"), *command, "-o", str(tmp_path / "c")]
    )
    assert "absent" in str(failed.exception)
    assert "faster from a pack" not in failed.stderr
    monkeypatch.setattr("har_pipeline.features.pack.ADVISED_FROM", 25)
    assert "faster from a pack" not in har(work, "train", *command, "-o", str(tmp_path / "b"))[1]
