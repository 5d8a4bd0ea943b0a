from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from depth_files import write_folder
from raw_runs import SIZE, DepthSet, make_depth_set, walking_body

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import VideoRecord
from har_pipeline.inference.live import StatefulRecogniser, decide_live, live_scores
from har_pipeline.models.convlstm.windows import stateful_indices, window_weights
from har_pipeline.video.depth import CausalDepth, read_depth

LONG = 44


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> DepthSet:
    return make_depth_set(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def run(depth_set: DepthSet) -> Path:
    return depth_set.train()


def by_hand(recogniser: StatefulRecogniser, frames: np.ndarray) -> np.ndarray:
    """Return (n, K) probabilities of each whole window, with the state carried on."""
    prepared = CausalDepth(SIZE).push(frames)
    state, rows = None, []
    for start in range(0, len(frames) - 7, 8):
        clip = torch.from_numpy(prepared[start : start + 8]).float()[None, :, None] / 255
        with torch.no_grad():
            logits, state = recogniser.run.network(clip, state)
        rows.append(logits.double().softmax(1)[0].numpy())
    return np.stack(rows)


def test_probabilities_so_far_are_the_weighted_mean_of_the_windows(run: Path) -> None:
    recogniser = StatefulRecogniser(run)
    frames = walking_body(0, LONG, 1)
    windows = by_hand(recogniser, frames)
    assert recogniser.push(frames[:7]).tolist() == [0.5, 0.5]
    assert recogniser.windows == 0
    for done in range(1, 6):
        found = recogniser.push(frames[8 * done - 1 : 8 * done + 7])
        assert recogniser.windows == done
        np.testing.assert_allclose(found, window_weights(done) @ windows[:done], atol=1e-6)
        np.testing.assert_allclose(recogniser.latest, windows[done - 1], atol=1e-6)
    assert np.abs(windows - windows[0]).max() > 1e-5


@pytest.mark.parametrize(("motion", "step"), [(True, 1), (True, 2), (False, 3)])
def test_motion_and_steps_live_are_those_of_the_run(depth_set: DepthSet, motion: bool, step: int) -> None:
    """By hand, and however the frames are grouped; the crop knows the frames between the steps."""
    run = depth_set.train(motion=motion, frame_step=step)
    frames = walking_body(0, 18 * step, 1)
    prepared = CausalDepth(SIZE).push(frames)[::step]
    recogniser = StatefulRecogniser(run)
    clips = torch.from_numpy(prepared[:16])[None, :, None].float() / 255
    rows, state = [], None
    for clip in clips.split(8, dim=1):
        with torch.inference_mode():
            logits, state = recogniser.run.network(clip, state)
        rows.append(logits.double().softmax(1)[0].numpy())
    # The motion of a window's first frame is that against the last frame of the window before.
    recogniser.push(frames[: 7 * step + 1])
    assert recogniser.windows == 1
    assert np.array_equal(recogniser.latest, rows[0])
    grouped = [recogniser.push(frames[first : first + 5]) for first in range(7 * step + 1, len(frames), 5)][-1]
    assert recogniser.windows == 2
    np.testing.assert_allclose(grouped, window_weights(2) @ np.stack(rows), atol=1e-12)
    recogniser.reset()
    assert np.array_equal(recogniser.push(frames), grouped)
    assert np.array_equal(recogniser.latest, rows[1])


@pytest.mark.parametrize("step", [2, 4])
def test_live_scores_see_the_windows_of_the_run(depth_set: DepthSet, step: int) -> None:
    """Also of a video that is too short for a window, which is played backwards: 20 to 29 frames are 5 to 8 steps of 4."""
    run = depth_set.train(motion=True, frame_step=step)
    scores, failed = live_scores(run, depth_set.records)
    assert failed == {}
    for video_id, row in zip(scores.video_ids, scores.probabilities, strict=True):
        frames = read_depth(depth_set.path(video_id)).frames
        numbers = stateful_indices(len(frames), step=step).ravel()
        played = range(numbers[-1] + 1) if len(frames) > 7 * step else numbers.repeat(step)
        assert np.array_equal(row, StatefulRecogniser(run).push(frames[played]))


def test_grouping_of_frames_does_not_matter(run: Path) -> None:
    frames = walking_body(1, LONG, 2)
    together = StatefulRecogniser(run).push(frames)
    recogniser = StatefulRecogniser(run)
    for start, stop in ((0, 0), (0, 3), (3, 20), (20, 21), (21, LONG)):
        one_by_one = recogniser.push(frames[start:stop])
    assert np.array_equal(together, one_by_one)


def test_no_later_frame_changes_a_decision(run: Path) -> None:
    frames = walking_body(0, 24, 3)
    other = frames.copy()
    other[16:] = walking_body(1, 24, 4)[16:]
    decisions = [list(decide_live(StatefulRecogniser(run), iter(video))) for video in (frames, other)]
    assert [decision.frames for decision in decisions[0]] == [8, 16, 24]
    for first, second in zip(*(d[:2] for d in decisions), strict=True):
        assert np.array_equal(first.probabilities, second.probabilities)
    assert not np.array_equal(decisions[0][2].probabilities, decisions[1][2].probabilities)


def test_reset_leaves_nothing_of_the_video_before(run: Path) -> None:
    frames = walking_body(1, 24, 5)
    used = StatefulRecogniser(run)
    used.push(walking_body(0, 29, 6))
    used.reset()
    assert used.probabilities.tolist() == used.latest.tolist() == [0.5, 0.5]
    assert np.array_equal(used.push(frames), StatefulRecogniser(run).push(frames))


def test_a_horizon_weighs_the_last_windows_only(run: Path) -> None:
    frames = walking_body(0, LONG, 7)
    recogniser = StatefulRecogniser(run, horizon=2)
    windows = by_hand(recogniser, frames)
    np.testing.assert_allclose(recogniser.push(frames), window_weights(2) @ windows[-2:], atol=1e-6)
    recogniser.reset()
    np.testing.assert_allclose(recogniser.push(frames[:8]), windows[0], atol=1e-6)


@pytest.mark.parametrize("horizon", [pytest.param(None, marks=pytest.mark.exhaustive), 5])
def test_memory_does_not_grow(run: Path, horizon: int | None) -> None:
    recogniser = StatefulRecogniser(run, horizon=horizon)
    frames = walking_body(0, 40, 8)

    def show(times: int) -> int:
        for _ in range(times):
            recogniser.push(frames)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = show(10)  # more than the frames that the causal crop remembers
        after = show(20)
    finally:
        tracemalloc.stop()
    assert recogniser.windows == 150
    assert np.isfinite(recogniser.probabilities).all()
    # 800 frames of a crop, kept, would be 1.8 MB.
    assert after - before < 50_000


def test_live_scores_are_those_of_each_video_alone(depth_set: DepthSet, run: Path) -> None:
    scores, failed = live_scores(run, depth_set.records)
    assert failed == {}
    assert scores.video_ids == ("v6", "v7", "v8", "v9")
    assert set(scores.part) == {"test"}
    for video_id, row in zip(scores.video_ids, scores.probabilities, strict=True):
        frames = read_depth(depth_set.path(video_id)).frames[:24]
        np.testing.assert_array_equal(row, StatefulRecogniser(run).push(frames))


def test_no_class_is_named_before_there_is_foreground(run: Path) -> None:
    empty, body = np.zeros((20, 40, 60), np.uint16), walking_body(1, 24, 9)
    recogniser = StatefulRecogniser(run)
    windows = by_hand(recogniser, np.concatenate([empty, body]))
    assert np.abs(windows[0] - 0.5).max() > 1e-3, "the network itself does decide on nothing"
    assert recogniser.push(empty).tolist() == recogniser.latest.tolist() == [0.5, 0.5]
    assert (recogniser.windows, recogniser.seen_foreground) == (2, False)
    # The first body stands in a window that is not whole yet.
    assert recogniser.push(body[:3]).tolist() == [0.5, 0.5]
    assert not recogniser.seen_foreground
    np.testing.assert_allclose(recogniser.push(body[3:]), window_weights(5) @ windows, atol=1e-6)
    assert recogniser.seen_foreground
    recogniser.push(empty)
    assert recogniser.seen_foreground
    recogniser.reset()
    assert not recogniser.seen_foreground
    found = [decision.seen_foreground for decision in decide_live(recogniser, iter(np.concatenate([empty, body])))]
    assert found == [False, False, True, True, True]


def test_live_scores_count_a_video_without_foreground_as_failed(depth_set: DepthSet, run: Path, tmp_path: Path) -> None:
    empty = write_folder(tmp_path / "empty", np.zeros((30, 40, 60), np.uint16))
    files = {
        "v7": VideoRecord(video_id="v7", label="grows", depth_path=empty),
        "v8": VideoRecord(video_id="v8", label="goes", path=tmp_path / "v8.avi"),
    }
    scores, failed = live_scores(run, [files.get(record.video_id, record) for record in depth_set.records])
    assert scores.video_ids == ("v6", "v9")
    assert failed["v7"] == f"{empty}: no window has any foreground: all depth values are 0"
    assert failed["v8"] == "its row names no file of the stream depth"


def test_live_scores_go_on_after_a_video_that_cannot_be_read(depth_set: DepthSet, run: Path, tmp_path: Path) -> None:
    broken = VideoRecord(video_id="v7", label="grows", depth_path=tmp_path / "gone")
    records = [broken if record.video_id == "v7" else record for record in depth_set.records]
    scores, failed = live_scores(run, records)
    assert scores.video_ids == ("v6", "v8", "v9")
    assert list(failed) == ["v7"]
    assert "gone" in failed["v7"]
    with pytest.raises(RunError, match=r"1 test videos of .* are not in the manifest: v9"):
        live_scores(run, depth_set.records[:-1])


def test_the_causal_crop_alone_separates_live_scores_from_the_runs_own(depth_set: DepthSet, tmp_path: Path) -> None:
    # A body that fills the same box at the same distances from its first frame on has the same crop live.
    frames = np.zeros((24, 40, 60), np.uint16)
    frames[:, 5:30, 10:40] = np.random.default_rng(0).integers(2000, 3000, (25, 30))
    path = write_folder(tmp_path / "v9", frames)
    records = [*depth_set.records[:-1], VideoRecord(video_id="v9", label="grows", depth_path=path)]
    run = DepthSet(tmp_path, records).train()
    live, _ = live_scores(run, records)
    from har_pipeline.evaluation.scores import read_scores, select_part

    own = select_part(read_scores(run / "scores.csv"), "test")
    assert own.video_ids == live.video_ids
    np.testing.assert_allclose(live.probabilities[-1], own.probabilities[-1], atol=1e-5)
    assert np.abs(live.probabilities[:-1] - own.probabilities[:-1]).max() > 1e-4


def test_wrong_runs_and_frames(depth_set: DepthSet, run: Path) -> None:
    with pytest.raises(RunError, match="has no state and needs the whole video"):
        StatefulRecogniser(depth_set.train("convlstm-stateless"))
    with pytest.raises(RunError, match="horizon must be at least 1"):
        StatefulRecogniser(run, horizon=0)
    for frames in (np.zeros((1, 8, 8), np.uint8), np.zeros((8, 8), np.uint16), np.zeros((1, 8, 8, 3), np.uint16)):
        with pytest.raises(RunError, match=r"reads depth frames \(n, H, W\) uint16"):
            StatefulRecogniser(run).push(frames)
    with pytest.raises(RunError, match="not list"):
        StatefulRecogniser(run).push([np.zeros((8, 8), np.uint16)])  # type: ignore[arg-type]


def test_the_size_of_the_frames_stays_until_a_reset(run: Path) -> None:
    recogniser = StatefulRecogniser(run)
    recogniser.push(np.ones((2, 40, 30), np.uint16))
    with pytest.raises(RunError, match=r"frames of \(30, 40\) px .* after frames of \(40, 30\): reset"):
        recogniser.push(np.ones((2, 30, 40), np.uint16))
    recogniser.reset()
    recogniser.push(np.ones((2, 30, 40), np.uint16))
