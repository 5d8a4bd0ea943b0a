"""Which frames make which clip."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.records import ClipSpec
from har_pipeline.video.clips import (
    clip_indices,
    flow_pairs,
    is_padded,
    max_frame_needed,
    resampled_indices,
    segment_centers,
    shares_seen,
    sparse_clip_indices,
)
from har_pipeline.video.timing import Timing


def spec(
    sampling: str, clip_len: int, interval: int, stride: int, num: int | None, padding: str = "repeat_last"
) -> ClipSpec:
    return ClipSpec(
        sampling=sampling,
        clip_len=clip_len,
        frame_interval=interval,
        clip_stride=stride,
        num_clips=num,
        padding=padding,
    )


@pytest.mark.parametrize(
    ("num_frames", "clips", "expected"),
    [
        (5, spec("first", 1, 1, 1, 3), [[0], [1], [2]]),
        (2, spec("first", 1, 1, 1, 4), [[0], [1], [1], [1]]),
        (2, spec("first", 1, 1, 1, 5, "loop"), [[0], [1], [0], [1], [0]]),
        (9, spec("first", 3, 2, 4, 2), [[0, 2, 4], [4, 6, 8]]),
        (7, spec("first", 3, 2, 4, 2), [[0, 2, 4], [4, 6, 6]]),
        (7, spec("first", 3, 2, 4, 2, "loop"), [[0, 2, 4], [4, 6, 1]]),
        (10, spec("uniform", 2, 1, 1, 3), [[0, 1], [4, 5], [8, 9]]),
        (10, spec("uniform", 4, 1, 1, 1), [[0, 1, 2, 3]]),
        (3, spec("uniform", 3, 1, 1, 2), [[0, 1, 2], [0, 1, 2]]),
        (2, spec("uniform", 3, 1, 1, 2), [[0, 1, 1], [0, 1, 1]]),
        (2, spec("uniform", 3, 2, 1, 1, "loop"), [[0, 0, 0]]),
        (20, spec("sparse", 4, 1, 2, 3), [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]]),
        (9, spec("sparse", 8, 1, 1, 3), [list(range(8)), list(range(8)), list(range(1, 9))]),
        (20, spec("sparse", 4, 1, 2, 1), [[8, 9, 10, 11]]),
        (10, spec("segments", 1, 1, 1, 3), [[1], [5], [8]]),
        (2, spec("segments", 1, 1, 1, 4), [[0], [0], [1], [1]]),
        (10, spec("segments", 5, 1, 1, 3), [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [5, 6, 7, 8, 9]]),
        (100, spec("segments", 64, 1, 1, 1), [list(range(18, 82))]),
        (101, spec("segments", 64, 1, 1, 1), [list(range(18, 82))]),
        (3, spec("segments", 5, 1, 1, 1, "loop"), [[0, 1, 2, 0, 1]]),
        (7, spec("dense", 3, 1, 2, None), [[0, 1, 2], [2, 3, 4], [4, 5, 6]]),
        (8, spec("dense", 3, 1, 2, None), [[0, 1, 2], [2, 3, 4], [4, 5, 6]]),
        (8, spec("dense", 3, 3, 1, None), [[0, 3, 6], [1, 4, 7]]),
        (2, spec("dense", 3, 1, 2, None), [[0, 1, 1]]),
        (1, spec("dense", 3, 1, 2, None, "loop"), [[0, 0, 0]]),
    ],
)
def test_clip_indices(num_frames: int, clips: ClipSpec, expected: list[list[int]]) -> None:
    found = clip_indices(num_frames, clips)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_the_published_defaults_take_the_first_forty_frames_and_repeat_the_last() -> None:
    assert clip_indices(28, ClipSpec()).ravel().tolist() == [*range(28), *[27] * 12]
    assert clip_indices(300, ClipSpec()).ravel().tolist() == list(range(40))


@pytest.mark.parametrize("num_frames", [16, 23, 24, 25, 100, 300])
def test_dense_clips_of_lakhal(num_frames: int) -> None:
    """K_v = floor(l_v / r) - 1 for clips of 16 frames and a stride r of 8."""
    found = clip_indices(num_frames, ClipSpec(sampling="dense", clip_len=16, clip_stride=8, num_clips=None))
    assert len(found) == num_frames // 8 - 1


@pytest.mark.parametrize(
    ("num_clips", "num_samples", "expected"),
    [
        (10, 4, [0, 3, 6, 9]),
        (9, 4, [0, 2, 5, 8]),
        (3, 3, [0, 1, 2]),
        (2, 5, [0, 0, 0, 0, 1]),
        (1, 3, [0, 0, 0]),
        (7, 1, [3]),
    ],
)
def test_sparse_clip_indices(num_clips: int, num_samples: int, expected: list[int]) -> None:
    assert sparse_clip_indices(num_clips, num_samples).tolist() == expected


@given(st.integers(1, 2000), st.integers(2, 300))
def test_sparse_clips_are_lakhals_sigma(num_clips: int, num_samples: int) -> None:
    """sigma(t) = 1 + floor((t - 1)(K - 1) / (T - 1)) for t = 1 ... T, counted from 1."""
    sigma = [1 + math.floor((t - 1) * Fraction(num_clips - 1, num_samples - 1)) for t in range(1, num_samples + 1)]
    assert sparse_clip_indices(num_clips, num_samples).tolist() == [place - 1 for place in sigma]


@given(st.integers(1, 400), st.integers(1, 60), st.none() | st.integers(0, 9))
def test_segments_are_equal_parts_of_the_video(num_frames: int, num_segments: int, seed: int | None) -> None:
    """Of part i, which begins at i F / N, the middle frame, or with a seed any frame that lies in it."""
    found = segment_centers(num_frames, num_segments, seed).tolist()
    part = Fraction(num_frames, num_segments)
    if seed is None:
        assert found == [math.floor((i + Fraction(1, 2)) * part) for i in range(num_segments)]
    for i, frame in enumerate(found):
        assert math.floor(i * part) <= frame < (i + 1) * part


def test_random_segments_stay_in_their_parts_and_depend_on_the_seed() -> None:
    def drawn(seed: int) -> np.ndarray:
        return clip_indices(100, ClipSpec(sampling="segments", num_clips=5, segment_seed=seed))[:, 0]

    assert (drawn(0) // 20 == np.arange(5)).all()
    assert (drawn(0) == drawn(0)).all()
    assert len({tuple(drawn(seed).tolist()) for seed in range(10)}) == 10


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 8), st.sampled_from(["repeat_last", "loop"]))
def test_flow_has_as_many_fields_at_the_same_times_as_rgb_has_frames(
    num_frames: int, clip_len: int, num_clips: int, padding: str
) -> None:
    rgb = clip_indices(num_frames, spec("uniform", clip_len, 1, 1, num_clips, padding))
    first, second = np.split(flow_pairs(rgb, num_frames), 2, axis=1)
    assert first.shape == second.shape == rgb.shape
    assert second.max() < num_frames
    if num_frames > 1:
        assert (second == first + 1).all()
        assert (first == np.minimum(rgb, num_frames - 2)).all()
    else:
        assert (first == 0).all()
        assert (second == 0).all()


@pytest.mark.parametrize("num_frames", [0, -1])
def test_a_video_without_frames_is_refused(num_frames: int) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        clip_indices(num_frames, ClipSpec())
    with pytest.raises(ValueError, match="at least one frame"):
        resampled_indices(num_frames, Timing(25), None)


sizes = st.integers(1, 12)
specs = st.one_of(
    st.builds(
        spec,
        st.sampled_from(["first", "uniform"]),
        sizes,
        sizes,
        sizes,
        sizes,
        st.sampled_from(["repeat_last", "loop"]),
    ),
    st.builds(spec, st.just("dense"), sizes, sizes, sizes, st.none(), st.sampled_from(["repeat_last", "loop"])),
)


@given(st.integers(1, 200), specs)
def test_every_clip_is_in_range_and_runs_forward_unless_padded(num_frames: int, clips: ClipSpec) -> None:
    found = clip_indices(num_frames, clips)
    assert found.shape[1] == clips.clip_len
    assert found.shape[0] == (clips.num_clips or len(found)) >= 1
    assert found.min() >= 0
    assert found.max() < num_frames
    regular = bool((np.diff(found, axis=1) == clips.frame_interval).all())
    if clips.sampling == "first" and clips.clip_len == 1:
        regular = bool((found[:, 0] == np.arange(len(found)) * clips.clip_stride).all())
    if not is_padded(num_frames, clips):
        assert regular
    if clips.clip_len > 1 and clips.padding == "repeat_last":
        assert is_padded(num_frames, clips) == (not regular) or clips.sampling == "first"


@given(st.integers(1, 200), specs)
def test_uniform_spans_the_video_and_dense_leaves_no_room(num_frames: int, clips: ClipSpec) -> None:
    found = clip_indices(num_frames, clips)
    if is_padded(num_frames, clips):
        return
    if clips.sampling == "uniform" and len(found) > 1:
        assert found[0, 0] == 0
        assert found[-1, -1] == num_frames - 1
        gaps = np.diff(found[:, 0])
        assert gaps.max() - gaps.min() <= 1 + (len(found) > 2)
    if clips.sampling == "dense":
        assert found[-1, -1] < num_frames <= found[-1, -1] + clips.clip_stride


@given(st.integers(1, 200), st.integers(0, 50), specs)
def test_the_leading_frames_suffice_for_clips_of_a_longer_video(num_frames: int, more: int, clips: ClipSpec) -> None:
    needed = max_frame_needed(clips)
    if clips.sampling != "first":
        assert needed is None
        return
    assert needed is not None
    assert (clip_indices(needed, clips) == clip_indices(needed + more, clips)).all()
    assert clip_indices(needed + more, clips).max() == needed - 1
    assert is_padded(num_frames, clips) == (num_frames < needed)


@pytest.mark.parametrize(
    ("num_frames", "source", "target", "expected"),
    [
        (6, 30.0, 10.0, [0, 3]),
        (7, 30.0, 10.0, [0, 3, 6]),
        (4, 10.0, 20.0, [0, 0, 1, 1, 2, 2, 3, 3]),
        (5, 25.0, 25.0, [0, 1, 2, 3, 4]),
        (5, 25.0, 10.0, [0, 2]),
        (6, 25.0, 10.0, [0, 2, 5]),
        (1, 25.0, 1.0, [0]),
        (3, 25.0, None, [0, 1, 2]),
    ],
)
def test_resampled_indices(num_frames: int, source: float, target: float | None, expected: list[int]) -> None:
    found = resampled_indices(num_frames, Timing(source), target)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("rates", [(29.97, 30000 / 1001), (30000 / 1001, 29.97)])
def test_a_rounded_rate_is_the_same_rate(rates: tuple[float, float]) -> None:
    assert resampled_indices(300, Timing(rates[0]), rates[1]).tolist() == list(range(300))


@given(st.integers(1, 3000), st.fractions(1, 120, max_denominator=1001), st.fractions(1, 120, max_denominator=1001))
def test_resampling_shows_the_frame_on_screen_at_each_time(num_frames: int, source, target) -> None:
    found = resampled_indices(num_frames, Timing(float(source)), float(target))
    assert found[0] == 0
    assert (np.diff(found) >= 0).all()
    assert found[-1] < num_frames
    assert abs(len(found) - num_frames * target / source) <= 1 + 1e-3 * target / source
    for k, frame in enumerate(found.tolist()):
        position = k * source / target
        assert frame <= position + 1e-3
        assert position < frame + 1 + 1e-9


@pytest.mark.parametrize("rates", [(0.0, 10.0), (25.0, 0.0), (25.0, -1.0), (float("nan"), 10.0)])
def test_a_rate_that_is_none_is_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        resampled_indices(10, Timing(rates[0]), rates[1])


@pytest.mark.parametrize(
    ("num_frames", "clips", "rates", "span", "read"),
    [
        (1000, ClipSpec(), (25.0, None), 0.04, 0.04),
        (1000, ClipSpec(sampling="uniform"), (25.0, None), 1.0, 0.04),
        (20, ClipSpec(), (25.0, None), 1.0, 1.0),
        (640, spec("uniform", 64, 1, 1, 10, "loop"), (25.0, None), 1.0, 1.0),
        (100, spec("uniform", 10, 2, 1, 1), (25.0, None), 0.19, 0.10),
        # Of a video resampled to half of its frames the other half is not read; to twice as many, all frames are read.
        (1000, spec("dense", 1, 1, 1, None), (50.0, 25.0), 1.0, 0.5),
        (1000, spec("dense", 1, 1, 1, None), (25.0, 50.0), 1.0, 1.0),
        (1000, ClipSpec(), (50.0, 25.0), 0.08, 0.04),
        # A file that states no rate.
        (1000, ClipSpec(), (0.0, 25.0), 0.04, 0.04),
    ],
)
def test_what_share_of_a_video_is_seen(
    num_frames: int, clips: ClipSpec, rates: tuple[float, float | None], span: float, read: float
) -> None:
    assert shares_seen(num_frames, clips, *rates) == pytest.approx((span, read))
