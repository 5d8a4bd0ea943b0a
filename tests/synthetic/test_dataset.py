from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from har_pipeline.synthetic import dataset as synthetic
from har_pipeline.synthetic.dataset import RenderedVideo, ntu_name, render_video, write_dataset
from har_pipeline.synthetic.motion import ACTIONS, CADENCE_HZ, LOCOMOTION
from har_pipeline.synthetic.scene import SCENARIOS
from har_pipeline.video.encode import write_video

# Frames, and mean red, green and blue of frames 0, 20 and 40, of subject 1, walking, d1, seed 0, without noise.
FROZEN_FRAMES = 99
FROZEN_MEANS = [[125.212, 125.712, 124.587], [125.353, 125.912, 124.83], [125.087, 125.686, 124.596]]


@pytest.fixture(scope="module")
def clean_run() -> RenderedVideo:
    return render_video(1, "running", "d1", seed=3, flow=True, depth=True, noise=False)


def follow(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return what the next frame shows where the flow says that each pixel went."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(frame, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def test_videos_have_the_geometry_of_kth() -> None:
    for action in ACTIONS:
        video = render_video(2, action, "d2", seed=1)
        count = len(video.frames)
        assert 50 <= count <= 100
        assert video.frames.shape == (count, 120, 160, 3)
        assert video.frames.dtype == np.uint8
        assert video.person.shape == (count, 120, 160)
        assert video.video_id == f"person02_{action}_d2"
        assert video.depth_mm is None
        assert video.flow is None
        assert 0.02 < video.person[:40].mean() < 0.25


def test_the_same_arguments_give_the_same_bytes_and_others_do_not() -> None:
    first = render_video(4, "boxing", "d4", seed=5)
    np.random.default_rng().random(10)
    assert np.array_equal(first.frames, render_video(4, "boxing", "d4", seed=5).frames)
    assert np.array_equal(first.frames, render_video(4, "boxing", "d4", seed=5, depth=True, flow=True).frames)
    for subject, action, scenario, seed in [
        (5, "boxing", "d4", 5),
        (4, "handclapping", "d4", 5),
        (4, "boxing", "d1", 5),
        (4, "boxing", "d4", 6),
    ]:
        other = render_video(subject, action, scenario, seed=seed).frames
        assert np.abs(other[:40].astype(int) - first.frames[:40]).mean() > 2


def test_frozen_pixels() -> None:
    """A change here makes results incomparable: it needs another GENERATOR_VERSION."""
    video = render_video(1, "walking", "d1", noise=False)
    assert synthetic.GENERATOR_VERSION == "1"
    assert len(video.frames) == FROZEN_FRAMES
    means = video.frames[[0, 20, 40]].mean(axis=(1, 2))
    np.testing.assert_allclose(means, FROZEN_MEANS, atol=0.01)


def test_only_noise_is_left_out() -> None:
    noisy, clean = (render_video(3, "walking", "d1", noise=noise).frames.astype(int) for noise in (True, False))
    difference = (noisy - clean)[(clean > 20) & (clean < 235)]
    assert 0.9 < difference.std() < 2.7
    assert abs(difference.mean()) < 0.1


def test_flow_leads_each_point_of_the_person_to_itself(clean_run: RenderedVideo) -> None:
    assert clean_run.flow is not None
    assert clean_run.flow.shape == (len(clean_run.frames) - 1, 120, 160, 2)
    assert clean_run.flow.dtype == np.float32
    right, unmoved = [], []
    for frame in range(10, 30):
        now, after = clean_run.frames[frame].astype(np.float32), clean_run.frames[frame + 1].astype(np.float32)
        inside = cv2.erode(clean_run.person[frame].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        right.append(np.abs(follow(after, clean_run.flow[frame]) - now).mean(axis=-1)[inside])
        unmoved.append(np.abs(after - now).mean(axis=-1)[inside])
    # Points that a limb hides a frame later cannot be followed: they are few, and the median does not see them.
    assert np.median(np.concatenate(right)) < 3
    assert np.mean(np.concatenate(right)) < 0.25 * np.mean(np.concatenate(unmoved))


def test_background_flow_is_the_camera_jitter(clean_run: RenderedVideo) -> None:
    assert clean_run.flow is not None
    camera = synthetic._stage(1, "running", "d1", 3)[0].camera
    forward, backward = [], []
    for frame in range(0, 30):
        near = cv2.dilate(clean_run.person[frame : frame + 2].any(axis=0).astype(np.uint8), np.ones((31, 31))) > 0
        flow = clean_run.flow[frame]
        jitter = camera[frame + 1, :, 2] - camera[frame, :, 2]
        assert 0 < np.abs(jitter).max() < 1.0
        np.testing.assert_allclose(flow[~near], np.broadcast_to(jitter, flow[~near].shape), atol=1e-4)
        now, after = clean_run.frames[frame].astype(np.float32), clean_run.frames[frame + 1].astype(np.float32)
        forward.append(np.abs(follow(after, flow) - now)[~near].mean())
        backward.append(np.abs(follow(after, -flow) - now)[~near].mean())
    assert np.mean(forward) < 0.9 * np.mean(backward)


def test_zoom_is_in_the_background_flow() -> None:
    video = render_video(1, "boxing", "d2", flow=True)
    assert video.flow is not None
    corners = video.flow[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].mean(axis=0)
    assert np.sign(corners[0]) == np.sign(corners[2]) == -np.sign(corners[1]) == -np.sign(corners[3])


def test_depth_is_the_person_in_millimetres_and_nothing_else(clean_run: RenderedVideo) -> None:
    depth = clean_run.depth_mm
    assert depth is not None
    assert depth.shape == (len(clean_run.frames), 424, 512)
    assert depth.dtype == np.uint16
    seen = depth[depth > 0]
    assert seen.min() > 3500
    assert seen.max() < 7500
    # The depth camera sees the middle 145 columns of the same view, 3.53 times as large.
    scale = 424 / 120
    columns = ((np.arange(512) + (160 * scale - 512) / 2 + 0.5) / scale - 0.5).round().astype(int)
    rows = ((np.arange(424) + 0.5) / scale - 0.5).round().astype(int)
    expected = clean_run.person[20][np.ix_(rows, columns)]
    overlap = (expected & (depth[20] > 0)).sum() / (expected | (depth[20] > 0)).sum()
    assert overlap > 0.8


def heading(video: RenderedVideo) -> float:
    """Return the drift in px/frame of the person's middle column over the first frames."""
    middles = [np.nonzero(mask)[1].mean() for mask in video.person[:10]]
    return float(np.polyfit(np.arange(10), middles, 1)[0])


def test_people_go_left_and_right() -> None:
    drifts = [heading(render_video(subject, "jogging", "d1")) for subject in range(1, 9)]
    assert min(drifts) < -0.4
    assert max(drifts) > 0.4


def test_speed_follows_the_action_and_the_pose_does_not() -> None:
    speed, area = {}, {}
    for action in LOCOMOTION:
        videos = [render_video(subject, action, "d1") for subject in range(1, 9)]
        speed[action] = np.mean([abs(heading(video)) for video in videos])
        area[action] = np.mean([video.person[:40].mean() for video in videos])
    assert speed["walking"] < speed["jogging"] < speed["running"]
    assert max(area.values()) < 1.15 * min(area.values())
    assert set(CADENCE_HZ) == set(LOCOMOTION)


def test_other_clothes_only_in_d3() -> None:
    bodies = {d: synthetic._stage(1, "walking", d, 0)[0].body.textures for d in SCENARIOS}
    assert np.array_equal(bodies["d1"], bodies["d4"])
    assert np.array_equal(bodies["d1"], bodies["d2"])
    assert bodies["d3"].shape != bodies["d1"].shape or not np.array_equal(bodies["d3"], bodies["d1"])


@pytest.mark.parametrize(
    ("subject", "action", "scenario", "seed"),
    [
        (0, "boxing", "d1", 0),
        (26, "boxing", "d1", 0),
        (1, "sitting", "d1", 0),
        (1, "boxing", "d5", 0),
        (1, "boxing", "d1", -1),
    ],
)
def test_what_is_not_in_the_data_set_is_refused(subject: int, action: str, scenario: str, seed: int) -> None:
    with pytest.raises(ValueError, match=r"not|no action"):
        render_video(subject, action, scenario, seed)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    progress: list[tuple[int, int]] = []
    out = tmp_path_factory.mktemp("synth")
    manifest = write_dataset(out, num_subjects=1, seed=7, workers=2, on_progress=lambda *p: progress.append(p))
    assert progress == [(number, 24) for number in range(25)]
    return manifest


def test_the_manifest_names_every_video(written: Path) -> None:
    rows = list(csv.DictReader(written.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["video_id", "path", "label", "subject", "scenario"]
    assert len({row["video_id"] for row in rows}) == len(rows) == 24
    assert {(row["label"], row["scenario"]) for row in rows} == {(a, d) for a in ACTIONS for d in SCENARIOS}
    for row in rows:
        assert row["path"] == f"{row['label']}/{row['video_id']}_uncomp.avi"
        assert row["video_id"] == f"{row['subject']}_{row['label']}_{row['scenario']}"
        assert (written.parent / row["path"]).is_file()
    assert sorted(str(p.relative_to(written.parent)) for p in written.parent.rglob("*.avi")) == sorted(
        row["path"] for row in rows
    )
    facts = json.loads((written.parent / "dataset.json").read_text(encoding="utf-8"))
    assert facts["generator_version"] == synthetic.GENERATOR_VERSION
    assert (facts["seed"], facts["num_subjects"], facts["num_videos"]) == (7, 1, 24)


def test_a_file_decodes_to_what_was_rendered(written: Path) -> None:
    with av.open(str(written.parent / "running" / "person01_running_d3_uncomp.avi")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert stream.codec_context.name == "mpeg4"
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    rendered = render_video(1, "running", "d3", seed=7).frames
    assert decoded.shape == rendered.shape
    error = np.abs(decoded.astype(int) - rendered).mean(axis=(1, 2, 3))
    assert error.max() < 5
    moved = np.abs(decoded[:-1].astype(int) - rendered[1:]).mean(axis=(1, 2, 3))
    assert (error[:-1] < moved).all()


def test_files_do_not_depend_on_the_workers(written: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "here.avi", render_video(1, "boxing", "d2", seed=7).frames)
    there = written.parent / "boxing" / "person01_boxing_d2_uncomp.avi"
    assert (tmp_path / "here.avi").read_bytes() == there.read_bytes()


def test_depth_and_flow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "ACTIONS", ("boxing",))
    monkeypatch.setattr(synthetic, "SCENARIOS", ("d1",))
    manifest = write_dataset(tmp_path, num_subjects=1, depth=True, flow=True, workers=1)
    (row,) = csv.DictReader(manifest.read_text(encoding="utf-8").splitlines())
    video = render_video(1, "boxing", "d1", depth=True, flow=True)
    assert video.depth_mm is not None
    assert video.flow is not None
    assert row["depth_path"] == f"nturgb+d_depth_masked/{ntu_name(1, 'boxing', 'd1')}"
    folder = tmp_path / row["depth_path"]
    assert sorted(p.name for p in folder.iterdir()) == [f"MDepth-{n:08d}.png" for n in range(1, len(video.frames) + 1)]
    last = cv2.imread(str(folder / f"MDepth-{len(video.frames):08d}.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(last, video.depth_mm[-1])
    flow = np.load(tmp_path / row["x_flow_path"])
    assert flow.dtype == np.float16
    assert flow.shape == (len(video.frames) - 1, 120, 160, 2)
    np.testing.assert_allclose(flow, video.flow, atol=0.02)


def test_ntu_names() -> None:
    assert ntu_name(7, "walking", "d1") == "S001C001P007R001A001"
    assert ntu_name(25, "handclapping", "d4") == "S001C001P025R004A006"


def test_videos_that_are_decided_early() -> None:
    videos = {action: render_video(1, action, "d1", depth=True, decided_early=True) for action in ("boxing", "walking")}
    for action, video in videos.items():
        count = len(video.frames)
        assert 180 <= count <= 240
        assert video.action == action
        assert video.depth_mm is not None
        assert video.depth_mm.shape == (count, 424, 512)
        middles = np.array([np.nonzero(mask)[1].mean() for mask in video.person])
        acted = count // 3
        if action == "boxing":
            assert np.ptp(middles[: acted - 2]) < 6
        # Afterwards everybody crosses the view, raises the arms above the head, and ends within the picture.
        late = video.person[acted + 10 :]
        assert np.ptp(middles[acted + 10 :]) > 80
        tops = np.array([np.nonzero(mask.any(axis=1))[0][0] for mask in late])
        assert np.ptp(tops) > 10
        assert late.any(axis=(1, 2)).all()
        # No jump where the one movement becomes the other.
        assert np.abs(np.diff(middles[acted - 5 : acted + 15])).max() < 8
    assert not np.array_equal(videos["boxing"].frames[:50], render_video(1, "boxing", "d1").frames[:50])


def test_what_follows_the_action_is_drawn_alike_for_all_actions() -> None:
    """Means over people of speed, width of the path and arm height after the first third do not tell the action."""
    speeds: dict[str, list[float]] = {}
    for action in ACTIONS:
        for subject in range(1, 9):
            body = synthetic._stage(subject, action, "d1", 0, decided_early=True)[0].body
            pelvis = body.ends[len(body.ends) // 3 + 10 :, 0, 0, 0]
            speeds.setdefault(action, []).append(float(np.abs(np.diff(pelvis)).mean()))
    means = np.array([np.mean(values) for values in speeds.values()])
    spread = np.mean([np.std(values) for values in speeds.values()])
    assert np.ptp(means) < 2 * spread
    assert 1.5 < means.mean() < 3.5


def test_fewer_scenarios_make_a_smaller_set_of_the_same_files(written: Path, tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, num_subjects=1, seed=7, scenarios=["d3"], workers=1)
    rows = manifest.read_text(encoding="utf-8").splitlines()
    assert rows[0] == written.read_text(encoding="utf-8").splitlines()[0]
    assert rows[1:] == [row for row in written.read_text(encoding="utf-8").splitlines() if row.endswith("d3")]
    name = "boxing/person01_boxing_d3_uncomp.avi"
    assert (tmp_path / name).read_bytes() == (written.parent / name).read_bytes()
    facts = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    assert facts["scenarios"] == ["d3"]
    assert "decided_early" not in facts


@pytest.mark.parametrize(
    "options",
    [
        {"num_subjects": 0},
        {"num_subjects": 26},
        {"workers": 0},
        {"seed": -1},
        {"scenarios": []},
        {"scenarios": ["d1", "d5"]},
    ],
)
def test_bad_options_write_nothing(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not"):
        write_dataset(tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
