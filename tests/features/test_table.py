from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from feature_sets import blobs, feature_store, manifest

from har_pipeline.core.errors import RunError, StoreError
from har_pipeline.features import table as feature_table
from har_pipeline.features.table import FeatureStreams, FeatureTable, feature_statistics, load_features, take_steps
from har_pipeline.training.batches import FeatureBatch, FeatureBatches
from har_pipeline.video.clips import sparse_clip_indices

LENGTHS = (3, 1, 5, 2)


def table_of(lengths: tuple[int, ...] = LENGTHS, dim: int = 4, dtype: str = "float16") -> FeatureTable:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((sum(lengths), dim)).astype(dtype)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return FeatureTable(tuple(f"v{i}" for i in range(len(lengths))), np.arange(len(lengths)), features, offsets)


def test_load_keeps_the_order_asked_for_and_the_stored_values(tmp_path: Path) -> None:
    features, labels = blobs(["run", "box"], 3, dtype="float16")
    store, name = feature_store(tmp_path / "s", features)
    ids = ["run-2", "box-0", "run-0"]
    table = load_features(FeatureStreams(store, [name]), manifest(labels), ids, ["box", "run"])
    assert table.video_ids == tuple(ids)
    assert table.labels.tolist() == [1, 0, 1]
    assert table.features.dtype == np.float16
    for row, video_id in enumerate(ids):
        clips = table.features[table.offsets[row] : table.offsets[row + 1]]
        assert np.array_equal(clips, features[video_id])
        assert table.lengths[row] == len(features[video_id])


def test_missing_features_name_the_ids_their_reason_and_the_way_out(tmp_path: Path) -> None:
    features, labels = blobs(["a", "b"], 2)
    store, name = feature_store(tmp_path / "s", {k: v for k, v in features.items() if k != "b-1"})
    store.record_failure(name, "b-1", "no video stream")
    with pytest.raises(RunError, match=r"1 video \(b-1\) of the 4.*no video stream.*--retry-failed.*--allow-missing"):
        load_features(FeatureStreams(store, [name]), manifest(labels), list(labels), ["a", "b"])
    table = load_features(FeatureStreams(store, [name]), manifest(labels), list(labels), ["a", "b"], allow_missing=True)
    assert table.video_ids == ("a-0", "a-1", "b-0")


def test_all_missing_is_an_error_even_when_missing_is_allowed(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "s", {"other": np.ones((1, 2), np.float32)})
    with pytest.raises(RunError, match="none of the 1 videos"):
        load_features(FeatureStreams(store, [name]), manifest({"x": "a"}), ["x"], ["a"], allow_missing=True)


def test_steps_are_taken_evenly_and_repeat_where_a_video_is_short() -> None:
    offsets = np.array([0, 5, 7, 10])
    features = np.arange(20, dtype=np.float16).reshape(10, 2)
    table = FeatureTable(("a", "b", "c"), np.array([0, 1, 0]), features, offsets)
    taken = take_steps(table, 3)
    assert taken.offsets.tolist() == [0, 3, 6, 9]
    assert taken.features[:, 0].tolist() == [0, 4, 8, 10, 10, 12, 14, 16, 18]
    assert (taken.video_ids, taken.labels.tolist(), taken.features.dtype) == (table.video_ids, [0, 1, 0], np.float16)
    assert take_steps(table, None) is table
    assert take_steps(taken, 3) is taken


def test_an_id_outside_the_manifest_is_an_error(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "s", {"x": np.ones((1, 2), np.float32)})
    with pytest.raises(RunError, match=r"\(y\) not in the manifest"):
        load_features(FeatureStreams(store, [name]), manifest({"x": "a"}), ["x", "y"], ["a"])


def test_every_float16_is_finite_or_not_as_numpy_says() -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    ours = [feature_table._all_finite(numbers[i : i + 1]) for i in range(len(numbers))]
    np.testing.assert_array_equal(ours, np.isfinite(numbers))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_names_its_video(tmp_path: Path, bad: float) -> None:
    broken = np.ones((2, 3), np.float32)
    broken[1, 2] = bad
    store, name = feature_store(tmp_path / "s", {"good": np.ones((2, 3), np.float32), "broken": broken})
    with pytest.raises(RunError, match=r"^broken: a feature is not finite"):
        load_features(FeatureStreams(store, [name]), manifest({"good": "a", "broken": "a"}), ["good", "broken"], ["a"])


@pytest.mark.parametrize("fraction", [1e-12, 1e-8])
def test_features_beyond_the_budget_become_an_equal_memory_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    features, labels = blobs(["a", "b"], 6, dim=16)
    store, name = feature_store(tmp_path / "s", features)
    # 1e-12 of this leaves no room for any video, 1e-8 for some of them.
    monkeypatch.setattr(feature_table, "available_memory", lambda: 10**11)
    spill = tmp_path / "spill"
    arguments = (FeatureStreams(store, [name]), manifest(labels), list(labels), ["a", "b"])
    mapped = load_features(*arguments, memory_fraction=fraction, spill_dir=spill)
    assert isinstance(mapped.features, np.memmap)
    assert list(spill.iterdir()) == []
    kept = load_features(*arguments)
    assert not isinstance(kept.features, np.memmap)
    assert np.array_equal(mapped.features, kept.features)
    for first, second in zip(FeatureBatches(mapped).batches(4), FeatureBatches(kept).batches(4), strict=True):
        assert torch.equal(first.features, second.features)


def test_available_memory_is_plausible() -> None:
    assert 2**24 < feature_table.available_memory() < 2**50


def test_batches_hold_each_video_once_padded_with_zeros() -> None:
    table = table_of()
    batches = list(FeatureBatches(table).batches(3))
    assert [batch.labels.tolist() for batch in batches] == [[0, 1, 2], [3]]
    assert [tuple(batch.features.shape) for batch in batches] == [(3, 5, 4), (1, 2, 4)]
    for batch in batches:
        assert batch.features.dtype == torch.float32
        for features, length, label in zip(batch.features, batch.lengths, batch.labels, strict=True):
            start, end = table.offsets[label], table.offsets[label + 1]
            assert np.array_equal(features[:length].numpy(), table.features[start:end].astype(np.float32))
            assert not features[length:].any()


def test_batches_follow_the_given_rows() -> None:
    batches = list(FeatureBatches(table_of()).batches(2, rows=np.array([3, 0, 2])))
    assert [batch.labels.tolist() for batch in batches] == [[3, 0], [2]]
    assert [batch.lengths.tolist() for batch in batches] == [[2, 3], [5]]


def test_shuffling_is_a_permutation_that_the_generator_decides() -> None:
    table = table_of(tuple([2] * 40))

    def order(generator: torch.Generator) -> list[int]:
        return [
            label for batch in FeatureBatches(table).batches(7, generator=generator) for label in batch.labels.tolist()
        ]

    generator = torch.Generator().manual_seed(1)
    first, second = order(generator), order(generator)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != list(range(40))
    assert order(torch.Generator().manual_seed(1)) == first


def test_statistics_are_those_of_the_chosen_videos_only() -> None:
    table = table_of(dtype="float32")
    rows = np.array([0, 2])
    clips = np.concatenate([table.features[0:3], table.features[4:9]]).astype(np.float64)
    mean, deviation = feature_statistics(table, rows)
    np.testing.assert_allclose(mean, clips.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, clips.std(axis=0), rtol=1e-10)


def test_a_constant_feature_has_exactly_no_deviation() -> None:
    constants = np.linspace(0.1, 1234.567, 50).astype(np.float32)
    table = table_of((700, 701, 702, 703), dim=50, dtype="float32")
    table.features[:] = constants
    mean, deviation = feature_statistics(table, np.arange(4))
    assert not deviation.any()
    np.testing.assert_allclose(mean, constants, rtol=1e-12)


def ragged(videos: int, longest: int = 40) -> FeatureTable:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, longest + 1, videos)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # A row holds its own number, so that a batch tells which clips it took.
    rows = np.arange(offsets[-1], dtype=np.float32)[:, None] + np.zeros(2, np.float32)
    return FeatureTable(tuple(map(str, range(videos))), np.arange(videos), rows, offsets)


def test_large_sets_are_shuffled_with_little_padding() -> None:
    table = ragged(400)

    def epoch(seed: int) -> list[FeatureBatch]:
        return list(FeatureBatches(table).batches(10, generator=torch.Generator().manual_seed(seed)))

    batches = epoch(0)
    labels = [label for batch in batches for label in batch.labels.tolist()]
    assert sorted(labels) == list(range(400))
    assert [len(batch.labels) for batch in batches] == [10] * 40
    padded = sum(batch.features.shape[0] * batch.features.shape[1] for batch in batches)
    plain = sum(
        10 * int(table.lengths[batch].max()) for batch in np.random.default_rng(0).permutation(400).reshape(40, 10)
    )
    assert padded < 1.15 * table.lengths.sum() < 1.5 * table.lengths.sum() < plain
    assert labels != [label for batch in epoch(1) for label in batch.labels.tolist()]
    assert labels == [label for batch in epoch(0) for label in batch.labels.tolist()]
    longest = [int(batch.lengths.max()) for batch in batches]
    assert longest != sorted(longest)


def test_jitter_keeps_a_share_of_the_clips_in_order_and_others_each_time() -> None:
    table = ragged(30)
    batches = FeatureBatches(table)
    seen: dict[int, set[tuple[float, ...]]] = {video: set() for video in range(30)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in batches.batches(7, generator=generator, jitter=0.4):
            for features, length, video in zip(
                batch.features, batch.lengths.tolist(), batch.labels.tolist(), strict=True
            ):
                clips = features[:length, 0].tolist()
                assert length == max(1, math.ceil(round(0.6 * table.lengths[video], 9)))
                assert clips == sorted(set(clips))
                assert table.offsets[video] <= clips[0] <= clips[-1] < table.offsets[video + 1]
                assert not features[length:].any()
                seen[video].add(tuple(clips))
    long = [video for video in range(30) if table.lengths[video] > 10]
    assert all(len(seen[video]) == 8 for video in long)
    # Every clip has its turn: over eight epochs nearly all have been kept once.
    kept = {clip for video in long for clips in seen[video] for clip in clips}
    assert len(kept) > 0.97 * table.lengths[long].sum()


@pytest.mark.parametrize("num_steps", [None, 3, 20])
def test_crop_keeps_a_sub_video_from_another_place_each_time(num_steps: int | None) -> None:
    """Lakhal 2018, section 3.3, first strategy: clips in a row, then sigma(t) on them."""
    table = ragged(30)
    starts: dict[int, set[float]] = {video: set() for video in range(30)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        for batch in FeatureBatches(table).batches(7, generator=generator, crop=0.4, num_steps=num_steps):
            for features, length, video in zip(
                batch.features, batch.lengths.tolist(), batch.labels.tolist(), strict=True
            ):
                clips = features[:length, 0].tolist()
                kept = max(1, math.ceil(round(0.6 * table.lengths[video], 9)))
                taken = range(kept) if num_steps is None else sparse_clip_indices(kept, num_steps)
                first = clips[0] - taken[0]
                assert clips == [first + step for step in taken]
                assert table.offsets[video] <= first <= first + kept - 1 < table.offsets[video + 1]
                assert not features[length:].any()
                starts[video].add(first)
    for video, own in starts.items():
        places = table.lengths[video] - math.ceil(round(0.6 * table.lengths[video], 9)) + 1
        assert len(own) == places


def test_without_a_generator_there_is_no_jitter() -> None:
    table = ragged(9)
    for batch in FeatureBatches(table).batches(3, jitter=0.5, crop=0.5, num_steps=2):
        assert batch.lengths.tolist() == table.lengths[batch.labels.tolist()].tolist()


def test_on_a_cpu_the_features_are_where_they_were() -> None:
    table = table_of()
    batches = FeatureBatches(table)
    assert batches.resident
    assert batches._flat.data_ptr() == table.features.ctypes.data


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fraction", [0.5, 0.0])
def test_batches_on_a_gpu_are_those_of_the_cpu(fraction: float) -> None:
    table = ragged(40)
    on_gpu = FeatureBatches(table, "cuda", memory_fraction=fraction)
    assert on_gpu.resident == (fraction > 0)
    for one, other in zip(on_gpu.batches(7), FeatureBatches(table).batches(7), strict=True):
        assert one.features.device.type == "cuda"
        assert torch.equal(one.features.cpu(), other.features)
        assert torch.equal(one.labels.cpu(), other.labels)


def test_features_that_differ_from_their_checksum_are_not_learned_from(tmp_path: Path) -> None:
    features, labels = blobs(("boxing", "running"), 2)
    store, name = feature_store(tmp_path / "store.zarr", features)
    records, ids = manifest(labels), list(labels)
    load_features(FeatureStreams(store, [name]), records, ids, ("boxing", "running"))
    zarr.open_array(store.path / name / ids[2], mode="r+")[0, 0] = 7
    with pytest.raises(StoreError, match=rf"{ids[2]}: features differ from their checksum"):
        load_features(FeatureStreams(store, [name]), records, ids, ("boxing", "running"))
