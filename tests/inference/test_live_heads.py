"""Heads that decide while frames come: what `har predict` says of the same frames, and drops where the net is too slow."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_sets import split_of
from har_command import har
from paths import python_path
from train_split import train_split
from video_files import make_video

from har_pipeline.core.errors import RunError, VideoError
from har_pipeline.core.records import ClipSpec, VideoRecord
from har_pipeline.features.extract import extract
from har_pipeline.features.fitted import derived_record
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.live import Decision, decide_live
from har_pipeline.inference.live_heads import HeadRecogniser, window_grid
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.inference.predict import predict, predict_scores
from har_pipeline.inference.sources import HeadSources
from har_pipeline.models.extractors import build_extractor
from har_pipeline.training.options import TrainConfig
from har_pipeline.video.camera import is_camera, live_frames, newest_frames, opened, paced
from har_pipeline.video.clips import clip_indices

FRAMES = 30


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("live")
    return [
        VideoRecord(video_id=f"v{i}", label="ab"[i % 2], path=make_video(folder / f"v{i}.avi", FRAMES, seed=i))
        for i in range(4)
    ]


def trained(
    folder: Path, records: list[VideoRecord], name: str = "efficientnet_lite0", dim: int | None = None, **how: Any
) -> HeadRun:
    store = FeatureStore(folder / "store.zarr", create=True)
    net = build_extractor(name, weights=how.pop("weights", None), device="cpu")
    made = extract(records, store, net, ExtractOptions(workers=1, **how)).feature_set
    ids = [record.video_id for record in records]
    split = split_of(ids[:2], ids[2:])
    if dim is not None:
        made = reduce_features(store, made, split, ReduceOptions(dim=dim)).feature_set
    train_split(store, made, records, split, TrainConfig(head="lstm", units=6, epochs=3, device="cpu"), folder / "run")
    run = load_run(folder / "run")
    assert isinstance(run, HeadRun)
    return run


def decided(recogniser: HeadRecogniser, path: Path | None, **how: Any) -> list[Decision]:
    return list(decide_live(recogniser, live_frames(str(path), "rgb"), **how))


def of_frames(folder: Path, run: HeadRun, video: VideoRecord, start: int, stop: int) -> np.ndarray:
    """Return what a run says of the frames [start, stop) of a file, extracted anew."""
    fit, spec = run.fit(), run.spec
    store = FeatureStore(folder / f"{start}-{stop}.zarr", create=True)
    weights = "random" if spec.weights.startswith("random") else None
    net = build_extractor(spec.extractor, weights=weights, device="cpu")
    options = ExtractOptions(clips=spec.clips, fps=spec.fps, resize=spec.resize, dtype=spec.dtype, workers=1)
    part = VideoRecord(video_id="part", label="a", path=video.path, start_frame=start, end_frame=stop)
    made = store.read(extract([part], store, net, options).feature_set, "part")
    return predict_scores(run, (made if fit is None else derived_record(made, fit, spec.dtype)).features)


@pytest.mark.parametrize(
    "clips",
    [
        ClipSpec(sampling="first", num_clips=7, clip_stride=2),
        ClipSpec(sampling="uniform", num_clips=6),
        ClipSpec(sampling="uniform", num_clips=4, clip_len=8, frame_interval=3),
        ClipSpec(sampling="uniform", num_clips=1, clip_len=8),
        ClipSpec(sampling="dense", num_clips=None, clip_len=16, clip_stride=8),
        ClipSpec(sampling="sparse", num_clips=5, clip_len=4, clip_stride=3),
        ClipSpec(sampling="sparse", num_clips=1, clip_len=4, clip_stride=3),
        ClipSpec(sampling="segments", num_clips=3),
        ClipSpec(sampling="segments", num_clips=4, clip_len=5),
        ClipSpec(sampling="segments", num_clips=1, clip_len=64, padding="loop"),
    ],
    ids=lambda clips: f"{clips.sampling}-{clips.num_clips}x{clips.clip_len}",
)
@pytest.mark.parametrize("frames", [None, 2.0, 50.0, 101.3])
def test_a_windows_places_are_the_clips_of_its_frames(clips: ClipSpec, frames: float | None) -> None:
    fixed = clips.sampling == "first" or (clips.num_clips == 1 and clips.sampling != "segments")
    if fixed and frames is not None:
        with pytest.raises(RunError, match=r"run: it reads \d+ frames of a video, however long"):
            window_grid(clips, frames, 100.0, "run")
        return
    grid = window_grid(clips, frames, 100.0, "run")
    starts = grid.first + grid.step * np.arange(grid.count)
    expected = starts[:, None] + clips.frame_interval * np.arange(clips.clip_len)
    assert np.array_equal(clip_indices(grid.frames, clips), expected)
    if not fixed and frames in (None, 101.3):  # shorter ones may not hold the clips
        assert grid.frames == pytest.approx(
            frames or 100.0, abs=max(3, clips.num_clips or 8, clips.clip_stride) / 2 + 1
        )


def test_clips_drawn_at_random_have_no_grid() -> None:
    with pytest.raises(RunError, match="drawn at random"):
        window_grid(ClipSpec(sampling="segments", num_clips=3, segment_seed=1), None, 100.0, "run")


@pytest.mark.parametrize(
    ("how", "dim"),
    [
        ({"clips": ClipSpec(sampling="uniform", num_clips=4)}, None),
        ({"clips": ClipSpec(sampling="uniform", num_clips=4), "dtype": "float32"}, 3),
        ({"clips": ClipSpec(sampling="first", num_clips=5, clip_stride=2)}, None),
        ({"clips": ClipSpec(sampling="segments", num_clips=3), "fps": 10.0}, None),
    ],
    ids=["uniform", "reduced", "first", "other-rate"],
)
def test_a_frame_net_live_says_what_predict_says_of_the_same_frames(
    tmp_path: Path, records: list[VideoRecord], how: dict[str, Any], dim: int | None
) -> None:
    run = trained(tmp_path, records, dim=dim, **how)
    window = None if run.spec.clips.sampling == "first" else 0.6
    recogniser = HeadRecogniser(run, fps=25.0, window_s=window, device="cpu")
    found = decided(recogniser, records[3].path)
    assert len(found) >= 2
    assert len({decision.probabilities.tobytes() for decision in found}) > 1
    grid, rate = recogniser.grid, (run.spec.fps or 25.0) / 25.0
    # Those that begin with a frame of the source, not between two, and end within it.
    starts = {number: number * grid.step / rate for number in range(len(found))}
    whole = [n for n, start in starts.items() if start % 1 == 0 and start + recogniser.window_frames <= FRAMES]
    assert len(whole) >= 2
    for number in {whole[0], whole[len(whole) // 2], whole[-1]}:
        start = int(starts[number])
        expected = of_frames(tmp_path, run, records[3], start, start + recogniser.window_frames)
        np.testing.assert_allclose(found[number].probabilities, expected, atol=1e-4)
    assert recogniser.windows == len(found)
    recogniser.reset()
    again = decided(recogniser, records[3].path)
    assert [one.probabilities.tolist() for one in again] == [one.probabilities.tolist() for one in found]


@pytest.mark.slow
def test_a_clip_net_live_says_what_predict_says_of_a_file_of_one_window(
    tmp_path: Path, records: list[VideoRecord]
) -> None:
    clips = ClipSpec(sampling="uniform", num_clips=3, clip_len=8)
    run = trained(tmp_path, records, "r3d_18", weights="random", clips=clips, dtype="float32")
    recogniser = HeadRecogniser(run, fps=25.0, window_s=FRAMES / 25, device="cpu")
    assert recogniser.grid.frames == FRAMES
    (found,) = decided(recogniser, records[3].path)
    assert records[3].path is not None
    (expected,) = predict([records[3].path], run, device="cpu", workers=1)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert (found.frames, found.dropped) == (FRAMES, 0)
    assert found.latency_s > 0
    assert found.frames_per_s > 0


class Slow:
    """A net of one feature that takes its time: the mean of the last frame."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.seen = seconds, list[int]()

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        self.seen.append(int(clips[0, -1].float().mean()))
        return torch.full((1, 1280), float(self.seen[-1]))


def numbered(count: int, fps: float) -> Iterator[np.ndarray]:
    return paced((np.full((60, 80, 3), number, np.uint8) for number in range(count)), fps)


def test_a_slow_net_drops_frames_and_counts_them_rather_than_falling_behind(
    tmp_path: Path, records: list[VideoRecord]
) -> None:
    run = trained(tmp_path, records, clips=ClipSpec(sampling="first", num_clips=3))
    recogniser = HeadRecogniser(run, fps=100.0, device="cpu")
    slow = Slow(0.05)
    recogniser._net = slow  # type: ignore[assignment]
    found = list(decide_live(recogniser, numbered(100, 100.0), drop=True))
    # 100 frames take the net 5 s and come within 1 s: without drops the last would be decided 4 s late.
    assert found[-1].dropped > 50
    assert len(slow.seen) + found[-1].dropped == 100
    assert slow.seen[-1] == 99
    assert slow.seen == sorted(set(slow.seen))
    assert max(one.latency_s for one in found) < 3
    assert [one.dropped for one in found] == sorted(one.dropped for one in found)
    assert all(0 < one.frames_per_s < 1000 for one in found)
    # A file waits.
    recogniser.reset()
    slow.seconds, slow.seen = 0.0, []
    every = list(decide_live(recogniser, numbered(10, 1e6)))
    assert slow.seen == list(range(10))
    assert [one.frames for one in every] == list(range(3, 11))
    assert every[-1].dropped == 0


def test_a_slow_net_of_clips_still_gets_whole_ones(
    tmp_path: Path, records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, records, clips=ClipSpec(num_clips=2))
    # As if it had been trained on clips, of a net that is slow.
    object.__setattr__(run.spec, "clips", ClipSpec(sampling="dense", num_clips=None, clip_len=8, clip_stride=4))
    slow = Slow(0.1)
    monkeypatch.setattr(HeadSources, "__init__", lambda self, *arguments: None)
    monkeypatch.setattr(HeadSources, "extractor", lambda self, spec: slow)
    recogniser = HeadRecogniser(run, fps=100.0, window_s=0.2, device="cpu")
    assert (recogniser.grid.count, recogniser.capacity) == (4, 12)
    found = list(decide_live(recogniser, numbered(200, 100.0), drop=True))
    # 49 clips take the net 4.9 s and come within 2 s: without drops the last would be decided 2.9 s late.
    assert found[-1].dropped > 20
    assert len(found) >= 2
    assert all((last - 7) % 4 == 0 for last in slow.seen)
    assert max(one.latency_s for one in found) < 2.5


def test_clips_that_lost_a_frame_are_not_computed(tmp_path: Path, records: list[VideoRecord]) -> None:
    run = trained(tmp_path, records, clips=ClipSpec(sampling="dense", num_clips=None, clip_stride=2))
    recogniser = HeadRecogniser(run, fps=25.0, window_s=7 / 25, device="cpu")
    assert (recogniser.grid.step, recogniser.grid.count) == (2, 4)
    slow = Slow(0.0)
    recogniser._net = slow  # type: ignore[assignment]
    frames = {number: np.full((60, 80, 3), number, np.uint8) for number in range(20)}
    assert recogniser.keep(1, frames[1]) is None
    taken = []
    for number in (0, 2, 8, 10):
        image = recogniser.keep(number, frames[number])
        assert image is not None
        taken.append(recogniser.take(number, image))
    # The places of frames 4 and 6 have the feature of frame 2.
    assert taken == [False, False, True, True]
    assert [int(row[0]) for row in recogniser._ring] == [2, 2, 8, 10]


def test_the_thread_that_reads_ends_and_passes_errors_on() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2, 3), np.uint8)
        raise VideoError("the camera is gone")

    came = newest_frames(broken(), lambda number, frame: frame, 4)
    assert next(came).number == 0
    with pytest.raises(VideoError, match="the camera is gone"):
        next(came)
    closed = []

    def endless() -> Iterator[np.ndarray]:
        try:
            while True:
                time.sleep(0.001)
                yield np.zeros((2, 2, 3), np.uint8)
        finally:
            closed.append(True)

    came = newest_frames(opened(endless()), lambda number, frame: frame, 4)
    next(came)
    came.close()
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name == "har-camera"]


def test_frames_of_a_url_come(tmp_path: Path, records: list[VideoRecord]) -> None:
    assert records[0].path is not None
    folder = records[0].path.parent

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v0.avi"
        assert is_camera(url)
        rates: list[float] = []
        frames = list(live_frames(url, "rgb", on_open=rates.append))
        server.shutdown()
        thread.join()
    assert rates == [25.0]
    assert len(frames) == FRAMES
    assert np.abs(frames[7].astype(int) - next(islice_of(folder / "v0.avi", 7)).astype(int)).mean() < 3
    with pytest.raises(VideoError, match="gives colour, this run reads depth"):
        live_frames(url, "depth")
    assert not is_camera(str(folder / "v0.avi"))
    assert is_camera("0")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("99", "camera 99 cannot be opened: check that it is connected"),
        ("http://127.0.0.1:9/x", "check that the address"),
    ],
)
def test_what_cannot_be_opened_is_one_line(source: str, says: str) -> None:
    code = (
        "from har_pipeline.core.errors import errors_as_lines\nfrom har_pipeline.video.camera import live_frames\n"
        f"with errors_as_lines():\n    next(live_frames({source!r}, 'rgb'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=python_path())
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def islice_of(path: Path, number: int) -> Iterator[np.ndarray]:
    for at, frame in enumerate(live_frames(str(path), "rgb")):
        if at == number:
            yield frame


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("efficientnet_lite0", {"resize": "short256-ten224"}, "reads means over several crops"),
        ("efficientnet_lite0", {"resize_method": "swscale"}, "reads frames that swscale scales before they are RGB"),
        ("efficientnet_lite0", {"clips": ClipSpec(num_clips=3)}, "omit --window"),
    ],
)
def test_runs_that_cannot_decide_live_are_refused(
    tmp_path: Path, records: list[VideoRecord], name: str, how: dict[str, Any], why: str
) -> None:
    run = trained(tmp_path, records, name, **{"clips": ClipSpec(num_clips=2), **how})
    with pytest.raises(RunError, match=why):
        HeadRecogniser(run, fps=25.0, window_s=1.0, device="cpu")


def test_the_command_prints_decisions_with_their_latency(tmp_path: Path, records: list[VideoRecord]) -> None:
    trained(tmp_path, records, clips=ClipSpec(sampling="uniform", num_clips=3))
    video, common = records[3].path, ("predict", "--run", "run", "--device", "cpu", "--live")
    done = har(*common, video, "--window", "0.6", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines
    assert all("last 0.6 s: " in line and " ms " in line and line.endswith("0 dropped") for line in lines)
    rows = [
        json.loads(line) for line in har(*common, video, "--json", "--window", "0.6", cwd=tmp_path).stdout.splitlines()
    ]
    assert [row["frames"] for row in rows] == [15, 22, 29]
    assert all(row["latency_ms"] > 0 and row["frames_per_s"] > 0 and row["dropped"] == 0 for row in rows)
    assert len(rows[0]["so_far"]) == 2
    slowly = har(*common, video, "--json", "--window", "0.6", "--realtime", cwd=tmp_path)
    assert json.loads(slowly.stdout.splitlines()[-1])["frames"] <= 29
    assert "fewer than the 101 frames of one window" in har(*common, video, cwd=tmp_path, code=1).stderr
    assert "--window SECONDS" in har(*common, video, "--horizon", "3", cwd=tmp_path, code=2).stderr
    assert "belongs to --live" in har("predict", video, "--run", "run", "--realtime", cwd=tmp_path, code=2).stderr


def test_the_frames_of_a_url_that_all_came_too_fast_are_told_from_too_few(
    tmp_path: Path, records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, records, clips=ClipSpec(sampling="uniform", num_clips=3))
    monkeypatch.setattr("har_pipeline.inference.live.newest_frames", drops_all)
    common = ("predict", "--run", "run", "--device", "cpu", "--live", records[3].path, "--realtime")
    done = har(*common, "--window", "0.6", cwd=tmp_path, code=1)
    assert f"{FRAMES} frames came faster than they can be taken" in done.stderr
    assert "fewer than" not in done.stderr
    assert "fewer than the 101 frames" in har(*common, cwd=tmp_path, code=1).stderr


def drops_all(frames: Iterator[np.ndarray], keep: Any, capacity: int) -> Iterator[Any]:
    for _ in frames:
        pass
    yield from ()


def test_a_url_without_live_and_an_empty_folder_are_named(tmp_path: Path, records: list[VideoRecord]) -> None:
    trained(tmp_path, records, clips=ClipSpec(sampling="uniform", num_clips=3))
    url = "http://127.0.0.1:9/x.mp4"
    assert f"{url}: a URL is read with --live" in har("predict", url, "--run", "run", cwd=tmp_path, code=1).stderr
    (tmp_path / "none").mkdir()
    assert (
        "none: is a folder without video files" in har("predict", "none", "--run", "run", cwd=tmp_path, code=1).stderr
    )
