"""Batches: where the crops of clips go, and how the features of a batch come back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_nets import pixel_extractor
from video_files import make_video

from har_pipeline.core.records import VideoRecord
from har_pipeline.features.extract import extract
from har_pipeline.features.lanes import ClipBatch, Flight, _mirrored
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.preprocess import Crop

CPU = torch.device("cpu")
OWNER: Any = object()


def flight(values: Any, dtype: torch.dtype) -> Flight:
    return Flight(ClipBatch(1, 1, (2, 2), False, CPU), torch.as_tensor(values, dtype=torch.float32), dtype)


def videos(folder: Path, count: int) -> list[VideoRecord]:
    paths = [make_video(folder / f"v{number:02}.avi", 24, seed=number) for number in range(count)]
    return [VideoRecord(video_id=path.stem, label="a", path=path) for path in paths]


def test_a_batch_has_the_crops_of_its_clips() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    batch = ClipBatch(3, 2, (4, 5), False, CPU)
    clip = np.array([4, 1])
    for crop in (Crop(0, 0), Crop(2, 2), Crop(1, 0, mirrored=True)):
        assert not batch.full
        batch.add(frames, clip, crop, OWNER)
    assert batch.full
    found = batch.clips.numpy()
    assert (found[0] == frames[clip, :4, :5]).all()
    assert (found[1] == frames[clip, 2:6, 2:7]).all()
    assert (found[2] == frames[clip, 1:5, :5][:, :, ::-1]).all()


def test_flow_stays_on_the_device_and_is_mirrored_with_its_sign() -> None:
    flow = torch.randn(3, 4, 5, 2)
    batch = ClipBatch(2, 2, (4, 4), True, CPU)
    batch.add(flow, np.array([2, 0]), Crop(0, 1), OWNER)
    batch.add(flow, np.array([1, 1]), Crop(0, 0, mirrored=True), OWNER)
    assert batch.clips[0].equal(flow[[2, 0], :, 1:])
    assert batch.clips[1].equal(flow[[1, 1], :, :4].flip(2) * torch.tensor([-1.0, 1.0]))


def test_mirrored_flow_points_the_other_way() -> None:
    flow = torch.tensor([[[[1.0, 5.0], [2.0, 6.0]]]])
    assert _mirrored(flow).tolist() == [[[[-2.0, 6.0], [-1.0, 5.0]]]]


@pytest.mark.parametrize(
    ("value", "dtype", "finite"),
    [
        (65504.0, torch.float16, True),
        (-70000.0, torch.float16, False),
        (70000.0, torch.float32, True),
        (torch.inf, torch.float32, False),
        (-torch.inf, torch.float16, False),
        (torch.nan, torch.float32, False),
        (torch.nan, torch.float16, False),
    ],
)
def test_rows_are_known_to_be_finite_only_if_they_are(value: float, dtype: torch.dtype, finite: bool) -> None:
    rows, known = flight([[0.0, 1.0], [value, -2.0]], dtype).rows()
    assert known is finite
    assert rows.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert np.isfinite(rows).all() == finite


def test_rows_are_rounded_as_numpy_rounds() -> None:
    # Each float16, what lies between two of them, and just beside that, subnormal ones among them.
    halves = np.arange(2**15, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    beside = [np.nextafter(middles, np.float32(to), dtype=np.float32) for to in (0, np.inf)]
    values = np.concatenate([halves, middles, *beside])
    values = np.concatenate([values, -values])
    rows, known = flight(values[None], torch.float16).rows()
    assert known
    assert rows.tobytes() == values[None].astype(np.float16).tobytes()


class _LateFlight(Flight):
    """A device that looks at the frames of a batch as late as it may: when its rows are asked for."""

    net = pixel_extractor()

    def rows(self) -> tuple[np.ndarray, bool]:
        return Flight(self.batch, self.net(self.batch.clips), self._rows.dtype).rows()


def test_a_batch_is_not_filled_again_before_its_rows_have_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = videos(tmp_path, 6)
    found = []
    for number, kind in enumerate((Flight, _LateFlight)):
        monkeypatch.setattr("har_pipeline.features.engine.Flight", kind)
        store = FeatureStore(tmp_path / f"{number}.zarr", create=True)
        summary = extract(records, store, pixel_extractor(), ExtractOptions(batch_size=3, workers=2))
        assert summary.done == len(records)
        found.append(store.checksums(summary.feature_set))
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(records)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_many_batches_of_a_gpu_give_each_video_its_own_rows(tmp_path: Path, dtype: Any) -> None:
    # A copy that is not waited for, or memory that is filled again too early, would give other rows.
    records = videos(tmp_path, 24)
    found = []
    for device in ("cpu", "cuda"):
        net = dataclasses.replace(pixel_extractor(), device=torch.device(device))
        store = FeatureStore(tmp_path / f"{device}.zarr", create=True)
        summary = extract(records, store, net, ExtractOptions(dtype=dtype, batch_size=3, workers=2))
        assert summary.done == len(records)
        found.append([store.read(summary.feature_set, record.video_id).features for record in records])
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first.astype(np.float32), second.astype(np.float32), rtol=2e-3, atol=1e-2)
