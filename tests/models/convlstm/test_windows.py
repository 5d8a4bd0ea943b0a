"""Frames that the raw-video networks see, against the paper's figure 4, its bins, and equation 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.models.convlstm.windows import (
    BIN_EDGES,
    bounced_indices,
    length_batches,
    plain_batches,
    silent_windows,
    spread_indices,
    stateful_indices,
    stateful_length,
    stateless_indices,
    stepped_length,
    window_weights,
)


def test_short_videos_are_played_backwards_from_the_end_and_bounce() -> None:
    assert stateless_indices(4, 6).tolist() == [0, 1, 2, 3, 2, 1]
    assert stateless_indices(3, 10).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]
    assert stateless_indices(2, 5).tolist() == [0, 1, 0, 1, 0]
    assert stateless_indices(1, 3).tolist() == [0, 0, 0]


def test_clips_of_tests_are_the_middle() -> None:
    assert stateless_indices(6, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert stateless_indices(9, 5).tolist() == [2, 3, 4, 5, 6]
    assert stateless_indices(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert stateless_indices(15, 5).tolist() == [3, 5, 7, 9, 11]


@given(length=st.integers(1, 400), clip_len=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_three_cases(length: int, clip_len: int, seed: int) -> None:
    drawn = stateless_indices(length, clip_len, np.random.default_rng(seed))
    assert drawn.shape == (clip_len,)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < length
    step = 2 if length >= 2 * clip_len else 1
    if length < clip_len:
        assert drawn[:length].tolist() == list(range(length))
        assert np.array_equal(drawn, stateless_indices(length, clip_len))
        assert set(np.abs(np.diff(drawn)).tolist()) <= {0 if length == 1 else 1}
    else:
        assert set(np.diff(drawn).tolist()) <= {step}


def test_every_start_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert {int(stateless_indices(12, 8, rng)[0]) for _ in range(200)} == {0, 1, 2, 3, 4}
    assert {int(stateless_indices(18, 8, rng)[0]) for _ in range(200)} == {0, 1, 2, 3}
    assert {int(stateless_indices(18, 8, rng)[-1]) for _ in range(200)} == {14, 15, 16, 17}


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        *((46, 40), (300, 208), (24, 24), (31, 24), (64, 64), (79, 64), (111, 96), (112, 112), (207, 160), (208, 208)),
        *((23, 16), (8, 8), (7, 8), (1, 8), (301, 208), (5000, 208)),
    ],
)
def test_a_video_keeps_the_left_edge_of_its_bin(length: int, kept: int) -> None:
    assert stateful_length(length) == kept


def test_there_are_eleven_bins_of_whole_windows() -> None:
    assert len(BIN_EDGES) - 1 == 11
    assert {stateful_length(length) for length in range(24, 301)} == set(BIN_EDGES[:-1])
    assert all(edge % 8 == 0 for edge in BIN_EDGES[:-1])


@given(length=st.integers(1, 2000), whole=st.booleans())
def test_windows_of_a_video(length: int, whole: bool) -> None:
    windows = stateful_indices(length, whole=whole)
    assert windows.shape == (stateful_length(length, whole=whole) // 8, 8)
    assert windows.min() == 0
    assert windows.max() < length
    if length >= 8:
        assert windows.ravel().tolist() == list(range(windows.size))
    if whole and length > 300:
        assert windows.size == length // 8 * 8
    if length <= 300:
        assert np.array_equal(windows, stateful_indices(length))


def test_a_video_below_a_window_is_completed() -> None:
    assert stateful_indices(5).tolist() == [[0, 1, 2, 3, 4, 3, 2, 1]]


@given(length=st.integers(1, 700), step=st.integers(1, 9), whole=st.booleans())
def test_a_step_leaves_out_frames_as_if_they_had_not_been_filmed(length: int, step: int, whole: bool) -> None:
    filmed = np.arange(length)[::step]
    assert stepped_length(length, step) == len(filmed)
    wanted = filmed[stateful_indices(len(filmed), whole=whole)]
    assert np.array_equal(stateful_indices(length, whole=whole, step=step), wanted)


@given(length=st.integers(1, 400), count=st.integers(1, 60))
def test_a_spread_clip_goes_from_the_first_to_the_last_frame_in_even_steps(length: int, count: int) -> None:
    found = spread_indices(length, count)
    assert (found.dtype, len(found), found[0]) == (np.int64, count, 0)
    if count > 1:
        assert found[-1] == length - 1
        assert np.abs(found - np.arange(count) * (length - 1) / (count - 1)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("length", [0, -1])
def test_a_video_without_frames_is_an_error(length: int) -> None:
    for call in (
        lambda: stateful_indices(length),
        lambda: stateless_indices(length, 30),
        lambda: bounced_indices(length, 3),
    ):
        with pytest.raises(ValueError):
            call()


def test_weights_of_the_time_average_by_hand() -> None:
    assert window_weights(1).tolist() == [1.0]
    assert np.allclose(window_weights(3), [1 / 36, 8 / 36, 27 / 36], rtol=0, atol=1e-15)
    assert window_weights(26).sum() == pytest.approx(1, abs=1e-12)


def test_half_of_the_windows_rounded_down_are_silent() -> None:
    assert [silent_windows(n) for n in (1, 2, 3, 5, 14)] == [0, 1, 1, 2, 7]


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    seed=st.none() | st.integers(0, 9),
)
def test_batches_hold_one_length_and_every_video_once(lengths: list[int], batch: int, seed: int | None) -> None:
    rows = np.arange(100, 100 + len(lengths))
    kept = [stateful_length(length) for length in lengths]
    rng = None if seed is None else np.random.default_rng(seed)
    batches = length_batches(rows, kept, batch, rng)
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    for own in batches:
        assert 1 <= len(own) <= batch
        assert len({kept[row - 100] for row in own}) == 1
    full = sum(-(-kept.count(length) // batch) for length in set(kept))
    assert len(batches) == full


def test_batches_are_shuffled_by_the_generator_only() -> None:
    rows, kept = np.arange(40), [24] * 20 + [32] * 20
    first = [b.tolist() for b in length_batches(rows, kept, 3, np.random.default_rng(1))]
    again = [b.tolist() for b in length_batches(rows, kept, 3, np.random.default_rng(1))]
    other = [b.tolist() for b in length_batches(rows, kept, 3, np.random.default_rng(2))]
    assert first == again != other
    assert [b.tolist() for b in length_batches(rows, kept, 20)] == [list(range(20)), list(range(20, 40))]
    assert [len(b) for b in plain_batches(rows, 12, np.random.default_rng(0))] == [12, 12, 12, 4]
    assert plain_batches(rows, 40)[0].tolist() == rows.tolist()
