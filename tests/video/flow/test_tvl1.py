from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch

from har_pipeline.video.flow import tvl1
from har_pipeline.video.flow.spec import Tvl1Params
from har_pipeline.video.flow.tvl1 import compiled_step, median_5x5, median_network, tvl1_flow


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (height, width) float32, smooth, in [0, 255]."""
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(127 + 50 * smooth / smooth.std(), 0, 255).astype(np.float32)


def shifted_pair(x: float, y: float, height: int = 60, width: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two grey frames (1, height, width); what the first shows stands (x, y) px further in the second."""
    whole = texture(height + 40, width + 40)
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    moved = cv2.warpAffine(whole, matrix, whole.shape[::-1], flags=cv2.INTER_CUBIC)
    return tuple(torch.from_numpy(image[20:-20, 20:-20].copy())[None] for image in (whole, moved))


def end_point_error(flow: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (flow - other).square().sum(1).sqrt()


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, -2.0), (0.4, 0.3), (-1.75, 3.5), (4.0, -3.0)])
def test_a_shifted_image_gives_the_shift(shift: tuple[float, float]) -> None:
    flow = tvl1_flow(*shifted_pair(*shift), Tvl1Params(), compiled=False)
    assert flow.shape == (1, 2, 60, 80)
    assert flow.dtype == torch.float32
    error = end_point_error(flow, torch.tensor(shift).view(1, 2, 1, 1))[:, 10:-10, 10:-10]
    assert float(error.median()) < 0.06
    assert float(error.max()) < 0.3


def test_frames_that_do_not_differ_give_none() -> None:
    flat = torch.full((2, 20, 30), 77.0)
    assert not tvl1_flow(flat, flat, Tvl1Params(), compiled=False).any()
    assert not tvl1_flow(flat, flat + 40, Tvl1Params(), compiled=False).any()
    still, _ = shifted_pair(0, 0)
    assert not tvl1_flow(still, still, Tvl1Params(), compiled=False).any()


@pytest.mark.parametrize("per_look", [1, 4])
def test_a_pair_does_not_depend_on_its_batch(per_look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: many pairs at a time, looked at every few iterations, converged ones frozen and then left out."""
    monkeypatch.setattr(tvl1, "ITERATIONS_PER_LOOK", per_look)
    monkeypatch.setattr(tvl1, "looks_each_iteration", lambda device: False)
    pairs = [shifted_pair(*shift, 37, 53) for shift in ((0, 0), (3.0, 1.5), (0.2, 0.0), (-5.0, 2.0), (1.0, 1.0))]
    alone = torch.cat([tvl1_flow(*pair, Tvl1Params(), compiled=False) for pair in pairs])
    first, second = (torch.cat(frames) for frames in zip(*pairs, strict=True))
    together = tvl1_flow(first, second, Tvl1Params(), compiled=False)
    reverse = tvl1_flow(first.flip(0), second.flip(0), Tvl1Params(), compiled=False).flip(0)
    # Sums over a field may be ordered by the batch's size, and so the test of convergence may differ in its last digit.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(reverse, alone, rtol=0, atol=1e-4)


def test_each_pair_takes_the_iterations_that_it_takes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Tensor] = []
    plain = tvl1._step

    def counting(*arguments: torch.Tensor | float) -> tuple[torch.Tensor, ...]:
        taken.append(torch.as_tensor(arguments[6]).sum())
        return plain(*arguments)

    monkeypatch.setattr(tvl1, "_step", counting)
    pairs = [shifted_pair(0.0, 0.0, 30, 40), shifted_pair(4.0, 2.0, 30, 40)]
    totals = []
    for frames in [*pairs, tuple(torch.cat(both) for both in zip(*pairs, strict=True))]:
        taken.clear()
        tvl1_flow(*frames, Tvl1Params(), compiled=False)
        totals.append(int(sum(taken)))
    assert totals[0] < totals[1] / 3
    assert totals[2] == totals[0] + totals[1]


@pytest.mark.parametrize("size", [(3, 3), (3, 40), (15, 15), (16, 19), (19, 16), (17, 21), (31, 47)])
def test_odd_and_tiny_frames(size: tuple[int, int]) -> None:
    first, second = torch.from_numpy(texture(*size, seed=1))[None], torch.from_numpy(texture(*size, seed=2))[None]
    flow = tvl1_flow(first, second, Tvl1Params(), compiled=False)
    assert flow.shape == (1, 2, *size)
    assert torch.isfinite(flow).all()


@pytest.mark.parametrize(
    ("size", "scales"), [((19, 40), 1), ((20, 40), 2), ((120, 160), 5), ((32, 20), 2), ((32, 32), 4)]
)
def test_the_pyramid_ends_before_a_side_falls_below_16_px(size: tuple[int, int], scales: int) -> None:
    frame = torch.from_numpy(texture(*size))[None]
    seen = []
    params = Tvl1Params(num_warps=1, inner_iterations=1, outer_iterations=1)
    original = tvl1._one_scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tvl1, "_one_scale", lambda first, *rest: seen.append(first.shape) or original(first, *rest))
        tvl1_flow(frame, frame, params, compiled=False)
    assert len(seen) == scales
    assert min(min(shape[1:]) for shape in seen) >= 16


def test_scales_are_those_of_opencv() -> None:
    image = texture(57, 83)
    ours = tvl1._resize(torch.from_numpy(image)[None], (46, 66), (1.25, 1.25))[0].numpy()
    theirs = cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-2)
    larger = tvl1._resize(torch.from_numpy(image)[None], (71, 104), (57 / 71, 83 / 104))[0].numpy()
    np.testing.assert_allclose(larger, cv2.resize(image, (104, 71), interpolation=cv2.INTER_LINEAR), atol=1e-2)


def test_median_equals_opencv_and_torch() -> None:
    for fields in (torch.randn(2, 2, 23, 31), torch.randint(0, 4, (3, 2, 17, 40)).float(), torch.randn(1, 2, 3, 3)):
        padded = torch.nn.functional.pad(fields, (2, 2, 2, 2), mode="replicate")
        windows = padded.unfold(2, 5, 1).unfold(3, 5, 1).flatten(4)
        expected = windows.median(dim=-1).values
        assert torch.equal(median_network(fields), expected)
        assert torch.equal(median_5x5(fields), expected)


def test_median_network_on_every_kind_of_window() -> None:
    """A circuit of minima and maxima is right for all values if it is right for zeros and ones."""
    bits = np.random.default_rng(0).integers(0, 2, (60_000, 1, 5, 5))
    ones = np.random.default_rng(1).permuted(np.repeat([[1] * 12 + [0] * 13, [1] * 13 + [0] * 12], 30_000, 0), axis=1)
    windows = torch.from_numpy(np.concatenate([bits, ones.reshape(-1, 1, 5, 5)])).float()
    expected = (windows.sum((1, 2, 3)) >= 13).float()
    assert torch.equal(median_network(windows)[:, 0, 2, 2], expected)


def test_compiled_equals_plain() -> None:
    frames = shifted_pair(2.0, -1.0, 48, 64)
    plain = tvl1_flow(*frames, Tvl1Params(), compiled=False)
    torch.testing.assert_close(tvl1_flow(*frames, Tvl1Params(), compiled=True), plain, rtol=0, atol=0.02)


def test_without_a_compiler_it_runs_plainly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object, **__: object) -> object:
        def fail(*_: object) -> object:
            raise RuntimeError("no C++ compiler\nand more")

        return fail

    compiled_step.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.delenv("HAR_FLOW_COMPILE", raising=False)
    with caplog.at_level(logging.WARNING):
        assert compiled_step("cpu") is tvl1._step
    assert "no C++ compiler" in caplog.text
    compiled_step.cache_clear()
    monkeypatch.setenv("HAR_FLOW_COMPILE", "0")
    assert compiled_step("cpu") is tvl1._step
    compiled_step.cache_clear()


@pytest.mark.parametrize(
    "change", [{"tau": 0.0}, {"num_scales": 0}, {"scale_step": 1.0}, {"median_px": 3}, {"epsilon": float("nan")}]
)
def test_parameters_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Tvl1Params(**change)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    first, second = (
        torch.cat(f) for f in zip(shifted_pair(2, 1), shifted_pair(0, 0), shifted_pair(-3, 2), strict=True)
    )
    cpu = tvl1_flow(first, second, Tvl1Params(), compiled=False)
    for compiled in (False, True):
        gpu = tvl1_flow(first.cuda(), second.cuda(), Tvl1Params(), compiled=compiled).cpu()
        assert float(end_point_error(gpu, cpu).median()) < 0.01
        assert float(end_point_error(gpu, cpu).quantile(0.95)) < 0.05
