from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_small

from har_pipeline.core.errors import ExtractionError, WeightsError
from har_pipeline.synthetic.dataset import RenderedVideo, render_video
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.flow import compute as flow_module
from har_pipeline.video.flow import raft
from har_pipeline.video.flow.compute import compute_flow, opencv_method, to_grey
from har_pipeline.video.flow.spec import RAFT_URLS, FarnebackParams, FlowSpec, Tvl1Params
from har_pipeline.video.flow.tvl1 import compiled_step

HAS_OPENCV_TVL1 = hasattr(cv2, "optflow")
needs_contrib = pytest.mark.skipif(not HAS_OPENCV_TVL1, reason="this OpenCV has no contributed modules")
RANDOM_RAFT = FlowSpec(method="raft_small", raft_weights="random", raft_updates=2)
QUICK_TVL1 = FlowSpec(tvl1=Tvl1Params(num_warps=1, outer_iterations=1))
CLIPS = (
    "ucf101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "ucf101/BenchPress/v_BenchPress_g01_c01.avi",
    "ucf101/Diving/v_Diving_g01_c01.avi",
    "ucf101/SoccerJuggling/v_SoccerJuggling_g23_c01.avi",
    "hmdb51/cartwheel/cartwheel.avi",
)


@pytest.fixture(scope="module")
def walking() -> RenderedVideo:
    return render_video(1, "walking", "d1", flow=True)


def pairs_of(video: RenderedVideo, numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    index = np.array(numbers)
    return video.frames[index], video.frames[index + 1]


def error_of(flow: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(flow - other, axis=-1)


# Over the frame, and over the person, px; no flow at all would be 0.22 and 1.78 px wrong.
@pytest.mark.parametrize(
    ("method", "frame_px", "person_px"),
    [
        ("tvl1", 0.16, 0.9),
        pytest.param("tvl1_opencv", 0.16, 0.9, marks=needs_contrib),
        ("farneback", 0.55, 1.4),
        ("dis", 0.3, 0.95),
    ],
)
def test_error_against_exact_flow(walking: RenderedVideo, method: str, frame_px: float, person_px: float) -> None:
    numbers = (12, 20, 28)
    flow = compute_flow(*pairs_of(walking, numbers), FlowSpec(method=method), "cpu", compiled=False)
    assert flow.shape == (3, 120, 160, 2)
    assert flow.dtype == torch.float32
    assert walking.flow is not None
    error = error_of(flow.numpy(), walking.flow[list(numbers)])
    assert error.mean() < frame_px
    assert error[walking.person[list(numbers)]].mean() < person_px


# Farneback's method falls short where there is little texture.
@pytest.mark.parametrize(("method", "tolerance_px"), [("tvl1", 0.1), ("farneback", 0.4), ("dis", 0.15)])
def test_flow_is_x_then_y_from_the_first_to_the_second(
    walking: RenderedVideo, method: str, tolerance_px: float
) -> None:
    wide = cv2.resize(walking.frames[0], (320, 240), interpolation=cv2.INTER_CUBIC)
    first, second = wide[20:140, 20:180], wide[18:138, 17:177]  # what was at (x, y) is now at (x + 3, y + 2)
    flow = compute_flow(first[None].copy(), second[None].copy(), FlowSpec(method=method), "cpu", compiled=False)
    np.testing.assert_allclose(np.median(flow[0, 12:-12, 12:-12].numpy(), axis=(0, 1)), (3, 2), atol=tolerance_px)


@needs_contrib
@pytest.mark.needs_real_data
@pytest.mark.parametrize("size", [(320, 240), (340, 256)])
@pytest.mark.parametrize("clip", CLIPS)
def test_tvl1_agrees_with_opencv_on_real_clips(real_data: Path, clip: str, size: tuple[int, int]) -> None:
    frames = [cv2.resize(frame, size) for _, frame in FrameReader(real_data / "clips" / clip, stop=12)][-2:]
    first, second = (frame[None] for frame in frames)
    ours = compute_flow(first, second, FlowSpec(), "cpu", compiled=False).numpy()
    theirs = compute_flow(first, second, FlowSpec(method="tvl1_opencv"), "cpu").numpy()
    error = error_of(ours, theirs)
    assert np.median(error) < 0.05  # what is asked for is 0.1 and 0.5
    assert np.percentile(error, 95) < 0.25


@needs_contrib
def test_opencv_gets_the_spec() -> None:
    params = Tvl1Params(tau=0.2, lambda_=0.1, theta=0.25, num_scales=3, num_warps=2, epsilon=0.02, inner_iterations=7)
    other = opencv_method(FlowSpec(method="tvl1_opencv", tvl1=params))
    assert (other.getTau(), other.getLambda(), other.getTheta()) == (0.2, 0.1, 0.25)
    assert (other.getScalesNumber(), other.getWarpingsNumber(), other.getInnerIterations()) == (3, 2, 7)
    default, own = opencv_method(FlowSpec(method="tvl1_opencv")), cv2.optflow.DualTVL1OpticalFlow.create()
    getters = [name for name in dir(own) if name.startswith("get") and name != "getDefaultName"]
    assert {name: getattr(default, name)() for name in getters} == {name: getattr(own, name)() for name in getters}


def test_farneback_and_dis_get_the_spec() -> None:
    default, own = opencv_method(FlowSpec(method="farneback")), cv2.FarnebackOpticalFlow.create()
    getters = [name for name in dir(own) if name.startswith("get") and name != "getDefaultName"]
    assert {name: getattr(default, name)() for name in getters} == {name: getattr(own, name)() for name in getters}
    for preset, constant in (("ultrafast", 0), ("fast", 1), ("medium", 2)):
        mine, theirs = opencv_method(FlowSpec(method="dis", dis_preset=preset)), cv2.DISOpticalFlow.create(constant)
        assert mine.getFinestScale() == theirs.getFinestScale()
        assert mine.getPatchStride() == theirs.getPatchStride()


def test_without_contributed_modules_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow", raising=False)
    with pytest.raises(ExtractionError, match="opencv-contrib-python-headless"):
        opencv_method(FlowSpec(method="tvl1_opencv"))


def test_grey_is_that_of_opencv() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    expected = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    assert np.array_equal(to_grey(torch.from_numpy(frames)).numpy(), expected)


@pytest.mark.parametrize("spec", [QUICK_TVL1, FlowSpec(method="farneback"), RANDOM_RAFT], ids=lambda spec: spec.method)
def test_a_pair_does_not_depend_on_its_batch(walking: RenderedVideo, spec: FlowSpec) -> None:
    first, second = (frames[:, ::2, ::2].copy() for frames in pairs_of(walking, (3, 4, 5, 40, 41)))
    together = compute_flow(first, second, spec, "cpu", compiled=False)
    for i in range(5):
        assert torch.equal(
            compute_flow(first[i : i + 1], second[i : i + 1], spec, "cpu", compiled=False)[0], together[i]
        )
    assert torch.equal(compute_flow(first[3:], second[3:], spec, "cpu", compiled=False), together[3:])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_number_of_threads_changes_nothing(walking: RenderedVideo, compiled: bool) -> None:
    pairs = pairs_of(walking, (3, 4, 5, 20, 21, 22))
    before = torch.get_num_threads()
    flows = []
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            flows.append(compute_flow(*pairs, QUICK_TVL1, "cpu", compiled=compiled))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(flows[0], flows[1])
    assert torch.equal(flows[0], flows[2])


def test_threads_share_one_compiled_kernel(walking: RenderedVideo) -> None:
    before, counters = torch.get_num_threads(), torch._dynamo.utils.counters["stats"]
    compiled_step.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    try:
        torch.set_num_threads(4)
        compute_flow(walking.frames[:4], walking.frames[1:5], FlowSpec(), torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert counters["unique_graphs"] == 1


def test_flow_is_clipped_and_rounded_to_float16(walking: RenderedVideo) -> None:
    pairs = pairs_of(walking, (20,))
    free = compute_flow(*pairs, FlowSpec(), "cpu", compiled=False)
    bounded = compute_flow(*pairs, FlowSpec(bound_px=0.5), "cpu", compiled=False)
    assert free.abs().max() > 1
    assert bounded.abs().max() == 0.5
    assert torch.equal(bounded, free.clamp(-0.5, 0.5))
    assert torch.equal(free, free.half().float())


def test_chunks_are_bounded_on_a_gpu_and_single_on_a_cpu() -> None:
    frames = torch.zeros(10, 100, 60, 3, dtype=torch.uint8)
    gpu = flow_module._chunks(frames, frames, torch.device("cuda"), 20_000)
    assert [len(first) for first, _ in gpu] == [3, 3, 3, 1]
    assert len(flow_module._chunks(frames, frames, torch.device("cuda"), 5)) == 10
    assert len(flow_module._chunks(frames, frames, torch.device("cpu"), 10**9)) == 10


def test_no_pair_gives_no_flow() -> None:
    none = np.zeros((0, 20, 30, 3), np.uint8)
    assert compute_flow(none, none, FlowSpec(), "cpu").shape == (0, 20, 30, 2)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (np.zeros((1, 20, 30, 3), np.float32), np.zeros((1, 20, 30, 3), np.uint8), "first frames are torch.float32"),
        (np.zeros((1, 20, 30, 3), np.uint8), np.zeros((1, 20, 30), np.uint8), "second frames"),
        (np.zeros((1, 20, 30, 3), np.uint8), np.zeros((2, 20, 30, 3), np.uint8), "second"),
        (np.zeros((1, 2, 30, 3), np.uint8), np.zeros((1, 2, 30, 3), np.uint8), "too small"),
    ],
)
def test_frames_are_checked(first: np.ndarray, second: np.ndarray, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        compute_flow(first, second, FlowSpec(), "cpu")


@pytest.mark.parametrize("size", [(3, 3), (12, 40), (40, 40), (31, 200)])
def test_dis_refuses_what_is_too_small_for_it(size: tuple[int, int]) -> None:
    frames = np.zeros((1, *size, 3), np.uint8)
    with pytest.raises(ExtractionError, match=f"{size[0]}x{size[1]} px are too small for dis"):
        compute_flow(frames, frames, FlowSpec(method="dis"), "cpu")


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize("size", [(32, 96), (96, 32), (61, 97)])
def test_dis_takes_what_is_just_large_enough(size: tuple[int, int], preset: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert compute_flow(frames[:1], frames[1:], FlowSpec(method="dis", dis_preset=preset), "cpu").shape == (1, *size, 2)


@pytest.mark.parametrize("size", [(3, 5), (41, 57), (128, 136), (131, 150)])
def test_raft_takes_frames_of_any_size(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    flow = compute_flow(frames[:1], frames[1:], RANDOM_RAFT, "cpu")
    assert flow.shape == (1, *size, 2)
    assert torch.isfinite(flow).all()


def test_raft_is_torchvisions() -> None:
    """Frames that need no padding, against the net called as its documentation says."""
    frames = torch.randint(0, 256, (2, 128, 136, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net = raft.load_raft("raft_small", "random", torch.device("cpu"))
    images = frames.permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        expected = net(images[:1], images[1:], num_flow_updates=2)[-1].permute(0, 2, 3, 1)
    found = compute_flow(frames[:1], frames[1:], RANDOM_RAFT, "cpu")
    torch.testing.assert_close(found, expected.clamp(-20, 20), rtol=2e-3, atol=2e-3)
    assert expected.abs().max() > 0.1


def test_raft_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = raft_small(weights=None)
    torch.save(net.state_dict(), tmp_path / "own.pth")
    loaded = raft.load_raft("raft_small", str(tmp_path / "own.pth"), torch.device("cpu"))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())
    digits = hashlib.sha256((tmp_path / "own.pth").read_bytes()).hexdigest()[:8]
    spec = FlowSpec(method="raft_small", raft_weights=str(tmp_path / "own.pth"))
    assert f"weights={digits}" in spec.describe()


def test_raft_weights_that_do_not_fit(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(WeightsError, match=r"none\.pth"):
        raft.load_raft("raft_small", str(tmp_path / "none.pth"), cpu)
    with pytest.raises(WeightsError, match=r"none\.pth"):
        FlowSpec(method="raft_small", raft_weights=str(tmp_path / "none.pth")).describe()
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match=r"noise\.pth: not the weights of raft_small"):
        raft.load_raft("raft_small", str(tmp_path / "noise.pth"), cpu)
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=r"small\.pth: not the weights of raft_large"):
        raft.load_raft("raft_large", str(tmp_path / "small.pth"), cpu)
    torch.save(Path, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match=r"code\.pth"):
        raft.load_raft("raft_small", str(tmp_path / "code.pth"), cpu)


def test_raft_weights_are_downloaded_checked_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    source = tmp_path / "server.pth"
    torch.save(raft_small(weights=None).state_dict(), source)
    digits = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    served = tmp_path / f"raft_small-{digits}.pth"
    source.rename(served)
    monkeypatch.setitem(RAFT_URLS, "raft_small", served.as_uri())
    assert raft.load_raft("raft_small", None, torch.device("cpu")) is not None
    raft.load_raft.cache_clear()
    cached = tmp_path / "weights" / served.name
    cached.write_bytes(cached.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="delete it"):
        raft.load_raft("raft_small", None, torch.device("cpu"))
    cached.unlink()
    served.write_bytes(b"something else")
    with pytest.raises(WeightsError, match="cannot download"):
        raft.load_raft("raft_small", None, torch.device("cpu"))
    assert list((tmp_path / "weights").iterdir()) == []


def test_raft_urls_are_torchvisions() -> None:
    assert {"raft_small": Raft_Small_Weights.DEFAULT.url, "raft_large": Raft_Large_Weights.DEFAULT.url} == RAFT_URLS
    assert "weights=01064c6d" in FlowSpec(method="raft_small").describe()


def test_describe_names_all_that_changes_the_numbers() -> None:
    assert FlowSpec().describe() == (
        "tvl1(tau=0.25,lambda=0.15,theta=0.3,num_scales=5,num_warps=5,epsilon=0.01,inner_iterations=30,"
        "outer_iterations=10,scale_step=0.8,median_px=5);bound=20;float16"
    )
    assert FlowSpec(bound_px=20).describe() == FlowSpec(bound_px=20.0).describe()
    assert FlowSpec(raft_updates=3, dis_preset="fast").describe() == FlowSpec().describe()
    specs = [
        FlowSpec(),
        FlowSpec(bound_px=15),
        FlowSpec(method="tvl1_opencv"),
        *(FlowSpec(tvl1=Tvl1Params(**{n: v})) for n, v in (("tau", 0.2), ("lambda_", 0.1), ("median_px", 1))),
        FlowSpec(method="farneback"),
        FlowSpec(method="farneback", farneback=FarnebackParams(window_px=15)),
        FlowSpec(method="dis"),
        FlowSpec(method="dis", dis_preset="fast"),
        FlowSpec(method="raft_small"),
        FlowSpec(method="raft_small", raft_updates=6),
        FlowSpec(method="raft_large"),
        RANDOM_RAFT,
    ]
    assert len({spec.describe() for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "horn"}, "no flow method 'horn'"),
        ({"bound_px": 0}, "bound_px"),
        ({"bound_px": math.nan}, "bound_px"),
        ({"dis_preset": "slow"}, "DIS preset"),
        ({"raft_updates": 0}, "raft_updates"),
    ],
)
def test_specs_are_checked(change: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        FlowSpec(**change)
    with pytest.raises(ValueError, match="poly_px"):
        FarnebackParams(poly_px=6)


def test_spec_cache_and_picture_load_no_torch() -> None:
    code = (
        "import sys, har_pipeline.video.flow.cache, har_pipeline.video.flow.picture; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
