"""Windows that slide over long videos: the timeline that they make, its segments, and one pass over the file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from feature_sets import split_of
from raw_runs import make_depth_set
from train_split import train_split
from typer.testing import CliRunner, Result
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, VideoRecord
from har_pipeline.features.extract import extract, extract_many
from har_pipeline.features.frames import store_raw_frames
from har_pipeline.features.options import ExtractOptions, RawOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference import sources
from har_pipeline.inference.predict import predict
from har_pipeline.inference.timeline import Windows, timeline_of
from har_pipeline.models.extractors import build_extractor
from har_pipeline.synthetic.dataset import render_video
from har_pipeline.training.options import TrainConfig, VideoTrainConfig
from har_pipeline.video.decode import probe
from har_pipeline.video.encode import write_video
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.timing import Timing

ACTIONS = ("handwaving", "running")


def har(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(value) for value in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def takes(action: str, subjects: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([render_video(subject, action, "d1").frames for subject in subjects])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`: a head on EfficientNet features; `net`: a network on frames; `joined.mp4`: handwaving, then running."""
    folder = tmp_path_factory.mktemp("windows")
    records = []
    for subject in range(1, 5):
        for action in ACTIONS:
            path = folder / f"{action}{subject}.mp4"
            write_video(path, takes(action, (subject,)))
            records.append(VideoRecord(video_id=path.stem, label=action, path=path))
    ids = [record.video_id for record in records]
    split = split_of(ids[:6], ids[6:])
    store = FeatureStore(folder / "store.zarr", create=True)
    net = build_extractor("efficientnet_lite0", device="cpu")
    clips = ExtractOptions(clips=ClipSpec(sampling="uniform", num_clips=6), dtype="float32")
    name = extract(records, store, net, clips).feature_set
    train_split(store, name, records, split, TrainConfig(head="mean_pool", device="cpu"), folder / "run")
    frames = store_raw_frames(records, store, RawOptions(stream="rgb", window="person", workers=1)).feature_set
    config = VideoTrainConfig(model="convnet3d", epochs=1, device="cpu")
    train_split(store, frames, records, split, config, folder / "net")
    waving, running = (takes(action, (5,)) for action in ACTIONS)
    write_video(folder / "joined.mp4", np.concatenate([waving, running]))
    (folder / "boundary.json").write_text(json.dumps(len(waving) / 25))
    return folder


def test_windows_cover_the_video_and_end_with_it() -> None:
    spans = Windows(length_s=2, hop_s=0.5).spans(101, Timing(25.0))
    assert spans[:2].tolist() == [[0, 50], [13, 63]]
    assert spans[-1].tolist() == [51, 101]
    assert (np.diff(spans[:, 0]) <= 13).all()
    assert Windows(length_s=2, hop_s=2).spans(100, Timing(25.0)).tolist() == [[0, 50], [50, 100]]
    assert Windows(length_s=60, hop_s=1).spans(7, Timing(25.0)).tolist() == [[0, 7]]
    assert Windows(length_s=0.001, hop_s=0.001).spans(3, Timing(25.0)).tolist() == [[0, 1], [1, 2], [2, 3]]
    # By the time stamps, where the rate varies.
    varying = Timing(4.0, np.array([0, 1, 1.1, 1.2, 3, 3.1]))
    assert Windows(length_s=1, hop_s=1).spans(6, varying).tolist()[:2] == [[0, 1], [1, 4]]
    for length, hop in ((1, 2), (0, 0), (1, 0), (np.inf, 1), (np.nan, 1)):
        with pytest.raises(RunError, match="both must be above 0"):
            Windows(length_s=length, hop_s=hop)


def test_a_moment_has_the_mean_of_its_windows() -> None:
    spans = np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])
    found = timeline_of(("a", "b"), spans, np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    assert found.edges_s.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.probabilities[:, 0], [1, 0.75, 0.25, 0])
    assert [(one.start_s, one.end_s, one.label, one.probability) for one in found.segments()] == [
        (0, 2, "a", pytest.approx(0.875)),
        (2, 4, "b", pytest.approx(0.875)),
    ]
    np.testing.assert_allclose(found.mean, [0.5, 0.5])
    assert [found.place(time) for time in (-1, 0, 1, 3.99, 9)] == [0, 0, 1, 3, 3]
    # Where a window could not be read there is nothing.
    gap = timeline_of(("a", "b"), spans[[0, 2]] + [[0, 0], [1, 1]], np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert gap.spans() == [(0, 2, "a"), (3, 5, "a")]
    np.testing.assert_allclose(gap.mean, [1, 0])


@pytest.mark.usefixtures("pictures_drawn")
def test_segments_of_two_actions_that_were_joined(work: Path, tmp_path: Path) -> None:
    hop, boundary = 0.4, json.loads((work / "boundary.json").read_text())
    out = tmp_path / "out"
    options = ["--window", 1.6, "--hop", hop, "--segments", out / "s.csv", "--csv", out / "p.csv"]
    done = har(
        "predict", work / "joined.mp4", "--run", work / "run", *options, "--annotate", out / "seen.mp4", "--json"
    )
    with open(out / "s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(ACTIONS)
    assert {row["video"] for row in rows} == {str(work / "joined.mp4")}
    info = probe(work / "joined.mp4")
    times = [float(rows[0]["start_s"]), float(rows[1]["end_s"])]
    assert times == [0, pytest.approx(info.packet_frames / 25, abs=1e-3)]
    assert rows[0]["end_s"] == rows[1]["start_s"]
    assert abs(float(rows[0]["end_s"]) - boundary) <= hop
    (answer,) = json.loads(done.stdout)
    assert [one["label"] for one in answer["segments"]] == list(ACTIONS)
    assert (out / "s.png").stat().st_size > 5000
    assert f"written: {out}/s.png" in done.stderr
    with open(out / "p.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row[ACTIONS[0]]) + float(row[ACTIONS[1]]) == pytest.approx(1)
    assert row["predicted"] == answer["top"][0]["label"]
    seen = probe(out / "seen.mp4")
    assert (seen.width, seen.packet_frames, seen.fps) == (320, info.packet_frames, 25)
    assert seen.height > 240


def test_windows_are_read_in_one_pass_and_are_what_cut_files_give(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "v.mp4", 60, codec="mpeg4")
    spans = [(0, 30), (10, 40), (20, 50), (30, 60)]
    records = [
        VideoRecord(video_id=f"w{i}", label="x", path=video, start_frame=start, end_frame=stop)
        for i, (start, stop) in enumerate(spans)
    ]
    nets = [
        (build_extractor("efficientnet_lite0", device="cpu"), ExtractOptions(clips=ClipSpec(num_clips=4), workers=1)),
        (
            build_extractor("tsn_efficientnet_lite0", stream="flow", device="cpu"),
            ExtractOptions(
                clips=ClipSpec(sampling="segments", num_clips=2, clip_len=5), flow=FlowSpec(method="farneback")
            ),
        ),
        (build_extractor("convnet3d", weights="random", device="cpu"), ExtractOptions()),
    ]
    one, many = (FeatureStore(tmp_path / f"{name}.zarr", create=True) for name in ("one", "many"))
    for store, at_once in ((one, True), (many, False)):
        for summary in extract_many(records, store, nets, rows_of_file_at_once=at_once):
            assert (summary.done, summary.failed) == (4, {})
    for name in one.feature_sets():
        for record in records:
            first, second = (store.read(name, record.video_id) for store in (one, many))
            np.testing.assert_array_equal(first.features, second.features)
            np.testing.assert_array_equal(first.clip_times_s, second.clip_times_s)
    read: list[int] = []
    real = sources.extract_many

    def counting(*arguments, **options):  # type: ignore[no-untyped-def]
        read.append(options["rows_of_file_at_once"])
        return real(*arguments, **options)

    monkeypatch.setattr(sources, "extract_many", counting)
    (found,) = predict([video], work / "run", windows=Windows(length_s=1.2, hop_s=0.4), device="cpu")
    assert read == [True]
    assert found.timeline is not None


def test_a_network_decides_on_windows_as_on_cut_files(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_FRAMES_AT_ONCE", 60)
    windows = Windows(length_s=1.6, hop_s=0.8)
    (found,) = predict([work / "joined.mp4"], work / "net", windows=windows, device="cpu", workers=1)
    info = probe(work / "joined.mp4")
    assert found.timeline is not None
    assert found.timeline.edges_s[-1] == pytest.approx(info.packet_frames / 25)
    assert not np.isnan(found.timeline.probabilities).any()
    assert found.frames is None


def test_a_file_that_ends_early_has_what_there_is(work: Path, tmp_path: Path) -> None:
    whole = (work / "joined.mp4").read_bytes()
    video = make_video(tmp_path / "v.avi", 100)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 3 // 4])
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(whole[: len(whole) // 2])
    options = ["--window", 1, "--hop", 0.5, "--segments", tmp_path / "s.csv", "--json"]
    done = har("predict", empty, cut, damaged, "--run", work / "run", *options, code=1)
    first, second, third = json.loads(done.stdout)
    assert "the file is empty" in first["error"]
    assert second["error"] is None
    assert any(text.startswith("100 frames are announced") for text in second["notes"])
    assert 2 < second["segments"][-1]["end_s"] < 4
    assert third["error"] is not None
    assert {row.split(",")[0] for row in (tmp_path / "s.csv").read_text().splitlines()[1:]} == {str(cut)}


def test_progress_counts_windows(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_pipeline.cli.progress.QUIET_S", 0.0)
    done = har("predict", work / "joined.mp4", "--run", work / "run", "--window", 1.6)
    lines = [line for line in done.stderr.splitlines() if line.startswith("predict: ")]
    assert any(" windows" in line for line in lines), done.stderr
    assert not any(" videos" in line for line in lines)


@pytest.mark.parametrize("more", [[], ["--window", 1]])
def test_a_folder_without_videos_is_told(work: Path, tmp_path: Path, more: list[object]) -> None:
    done = har("predict", tmp_path, "--run", work / "run", *more, code=1)
    assert f"failed: {tmp_path}: is a folder without video files" in done.stderr


def test_windows_are_for_colour(tmp_path: Path) -> None:
    depth = make_depth_set(tmp_path)
    done = har("predict", depth.path("v8"), "--run", depth.train(), "--window", 1, code=1)
    assert "reads depth: windows are for colour videos" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hop", 1], "need --window SECONDS"),
        (["--segments", "s.csv"], "need --window SECONDS"),
        (["--timeline", "s.png"], "need --window SECONDS"),
        (["--live", "0", "--window", 1, "--segments", "s.csv"], "do not go with --live"),
        (["--window", 1, "--hop", 2], "must not be longer than --window"),
        (["--annotate", "folder"], "give a file such as out.mp4"),
        (["--annotate", "seen.txt"], "ends in .mp4 or .avi"),
        (["OTHER", "--annotate", "x.mp4"], "give a folder, for several videos"),
    ],
)
def test_options_that_do_not_fit(work: Path, options: list[object], message: str) -> None:
    given = [work / "running1.mp4" if one == "OTHER" else one for one in options]
    videos = [] if "--live" in options else [work / "joined.mp4"]
    done = har("predict", *videos, *given, "--run", work / "run", code=2)
    assert message in " ".join(done.output.replace("│", " ").split())


def test_folders_and_patterns(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    for name in ("b.AVI", "a/c.avi"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(path.with_suffix(".avi"), 9).rename(path)
    (folder / "notes.txt").write_text("no video")
    (folder / "none").mkdir()
    run = ["--run", work / "run"]

    def videos(*given: object, code: int = 0) -> list[str]:
        return [one["video"] for one in json.loads(har("predict", *given, *run, "--json", code=code).stdout)]

    assert videos(folder) == [str(folder / "a/c.avi"), str(folder / "b.AVI")]
    assert videos(f"{folder}/**/*.avi") == [str(folder / "a/c.avi")]
    assert videos(folder / "a", folder / "none", code=1) == [str(folder / "a/c.avi"), str(folder / "none")]
    done = har("predict", f"{folder}/*.mp4", *run, code=1)
    assert "the file does not exist, and none matches" in done.stderr
    out = tmp_path / "seen"
    har("predict", folder, *run, "--annotate", out, "--picture", tmp_path / "p.png")
    assert sorted(path.name for path in out.iterdir()) == ["b.mp4", "c.mp4"]
