import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.clips import clip_indices, is_padded, max_frame_needed, resampled_indices
from har_pipeline.records import ClipSpec


@pytest.mark.parametrize(
    ("num_frames", "fields", "expected"),
    [
        (10, {"num_clips": 3}, [[0], [1], [2]]),
        (2, {"num_clips": 4}, [[0], [1], [1], [1]]),
        (2, {"num_clips": 5, "padding": "loop"}, [[0], [1], [0], [1], [0]]),
        (10, {"num_clips": 2, "clip_len": 3, "clip_stride": 4}, [[0, 1, 2], [4, 5, 6]]),
        (6, {"num_clips": 2, "clip_len": 3, "clip_stride": 4}, [[0, 1, 2], [4, 5, 5]]),
        (6, {"num_clips": 2, "clip_len": 3, "clip_stride": 4, "padding": "loop"}, [[0, 1, 2], [4, 5, 0]]),
        (10, {"num_clips": 2, "clip_len": 3, "frame_interval": 2}, [[0, 2, 4], [1, 3, 5]]),
        (4, {"num_clips": 1, "clip_len": 4, "frame_interval": 2}, [[0, 2, 3, 3]]),
        (4, {"num_clips": 1, "clip_len": 4, "frame_interval": 3, "padding": "loop"}, [[0, 3, 2, 1]]),
        (1, {"num_clips": 2, "clip_len": 2}, [[0, 0], [0, 0]]),
    ],
)
def test_first(num_frames, fields, expected):
    indices = clip_indices(num_frames, ClipSpec(sampling="first", **fields))
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize(
    ("num_frames", "fields", "expected"),
    [
        (9, {"num_clips": 3}, [[0], [4], [8]]),
        (10, {"num_clips": 1}, [[0]]),
        (3, {"num_clips": 5}, [[0], [0], [1], [2], [2]]),
        (10, {"num_clips": 3, "clip_len": 4}, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]),
        (10, {"num_clips": 2, "clip_len": 3, "frame_interval": 2}, [[0, 2, 4], [5, 7, 9]]),
        (2, {"num_clips": 2, "clip_len": 3}, [[0, 1, 1], [0, 1, 1]]),
        (2, {"num_clips": 2, "clip_len": 3, "padding": "loop"}, [[0, 1, 0], [0, 1, 0]]),
        (9, {"num_clips": 3, "clip_stride": 7}, [[0], [4], [8]]),
    ],
)
def test_uniform(num_frames, fields, expected):
    assert clip_indices(num_frames, ClipSpec(sampling="uniform", **fields)).tolist() == expected


@pytest.mark.parametrize(
    ("num_frames", "fields", "expected"),
    [
        (4, {}, [[0], [1], [2], [3]]),
        (5, {"clip_stride": 2}, [[0], [2], [4]]),
        (6, {"clip_stride": 2}, [[0], [2], [4]]),
        (8, {"clip_len": 4, "clip_stride": 4}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (7, {"clip_len": 4, "clip_stride": 4}, [[0, 1, 2, 3]]),
        (7, {"clip_len": 3, "frame_interval": 2, "clip_stride": 1}, [[0, 2, 4], [1, 3, 5], [2, 4, 6]]),
        (2, {"clip_len": 4}, [[0, 1, 1, 1]]),
        (3, {"clip_len": 4, "frame_interval": 2, "padding": "loop"}, [[0, 2, 1, 0]]),
    ],
)
def test_dense(num_frames, fields, expected):
    assert clip_indices(num_frames, ClipSpec(sampling="dense", num_clips=None, **fields)).tolist() == expected


@pytest.mark.parametrize("num_frames", [0, -1])
def test_a_video_without_frames_is_refused(num_frames):
    with pytest.raises(ValueError, match="at least one frame"):
        clip_indices(num_frames, ClipSpec())


@pytest.mark.parametrize(
    ("num_frames", "source", "target", "expected"),
    [
        (4, 25.0, None, [0, 1, 2, 3]),
        (4, 25.0, 25.0, [0, 1, 2, 3]),
        (6, 30.0, 15.0, [0, 2, 4]),
        (7, 30.0, 15.0, [0, 2, 4, 6]),
        (3, 10.0, 20.0, [0, 0, 1, 1, 2, 2]),
        (6, 25.0, 10.0, [0, 2, 5]),
        (5, 30.0, 25.0, [0, 1, 2, 3, 4]),
        (7, 30.0, 25.0, [0, 1, 2, 3, 4, 6]),
        (1, 25.0, 1.0, [0]),
        (5, 25.0, 75.0, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]),
    ],
)
def test_resampled_indices(num_frames, source, target, expected):
    indices = resampled_indices(num_frames, source, target)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize(("source", "target"), [(0.0, 25.0), (25.0, 0.0), (25.0, -1.0), (float("nan"), 25.0)])
def test_rates_that_are_none_are_refused(source, target):
    with pytest.raises(ValueError, match="above 0"):
        resampled_indices(10, source, target)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ClipSpec(), 40),
        (ClipSpec(num_clips=1, clip_len=16), 16),
        (ClipSpec(num_clips=3, clip_len=4, frame_interval=2, clip_stride=5), 17),
        (ClipSpec(sampling="uniform", num_clips=3), None),
        (ClipSpec(sampling="dense", num_clips=None), None),
    ],
)
def test_max_frame_needed(spec, expected):
    assert max_frame_needed(spec) == expected


@pytest.mark.parametrize(
    ("num_frames", "spec", "expected"),
    [
        (40, ClipSpec(), False),
        (39, ClipSpec(), True),
        (17, ClipSpec(num_clips=3, clip_len=4, frame_interval=2, clip_stride=5), False),
        (16, ClipSpec(num_clips=3, clip_len=4, frame_interval=2, clip_stride=5), True),
        (7, ClipSpec(sampling="uniform", num_clips=20, clip_len=4, frame_interval=2), False),
        (6, ClipSpec(sampling="uniform", num_clips=20, clip_len=4, frame_interval=2), True),
        (4, ClipSpec(sampling="dense", num_clips=None, clip_len=4), False),
        (3, ClipSpec(sampling="dense", num_clips=None, clip_len=4), True),
    ],
)
def test_is_padded(num_frames, spec, expected):
    assert is_padded(num_frames, spec) is expected


@st.composite
def specs(draw):
    sampling = draw(st.sampled_from(["first", "uniform", "dense"]))
    return ClipSpec(
        sampling=sampling,
        clip_len=draw(st.integers(1, 20)),
        frame_interval=draw(st.integers(1, 6)),
        clip_stride=draw(st.integers(1, 20)),
        num_clips=None if sampling == "dense" else draw(st.integers(1, 30)),
        padding=draw(st.sampled_from(["repeat_last", "loop"])),
    )


@given(num_frames=st.integers(1, 300), spec=specs())
def test_clips_have_the_asked_shape_and_lie_in_the_video(num_frames, spec):
    indices = clip_indices(num_frames, spec)
    assert indices.shape[1] == spec.clip_len
    assert len(indices) == spec.num_clips if spec.num_clips else len(indices) >= 1
    assert indices.min() == 0
    assert indices.max() < num_frames


@given(num_frames=st.integers(1, 300), spec=specs())
def test_clips_run_forward_unless_they_loop(num_frames, spec):
    indices = clip_indices(num_frames, spec)
    if spec.padding == "repeat_last" or not is_padded(num_frames, spec):
        assert (np.diff(indices, axis=1) >= 0).all()
        assert (np.diff(indices[:, 0]) >= 0).all()
    if not is_padded(num_frames, spec):
        assert (np.diff(indices, axis=1) == spec.frame_interval).all()
    elif spec.padding == "repeat_last":
        assert (indices == num_frames - 1).any()


@given(num_frames=st.integers(1, 300), spec=specs())
def test_padding_agrees_with_is_padded(num_frames, spec):
    """Only a video that is long enough gives the same clips whatever the padding, and as part of a longer one."""
    if spec.sampling == "first" and not is_padded(num_frames, spec):
        assert (clip_indices(num_frames, spec) == clip_indices(num_frames + 100, spec)).all()
        assert clip_indices(num_frames, spec).max() == max_frame_needed(spec) - 1
    if is_padded(num_frames, spec) and spec.sampling == "first":
        assert (clip_indices(num_frames, spec) != clip_indices(num_frames + 1000, spec)).any()


@given(num_frames=st.integers(1, 300), spec=specs())
def test_uniform_clips_hold_the_first_and_the_last_frame(num_frames, spec):
    indices = clip_indices(num_frames, spec)
    if spec.sampling != "uniform":
        return
    assert indices[0, 0] == 0
    if spec.num_clips > 1 and not is_padded(num_frames, spec):
        assert indices[-1, -1] == num_frames - 1
        steps = np.diff(indices[:, 0])
        assert steps.max() - steps.min() <= 1


@given(num_frames=st.integers(1, 200), spec=specs().filter(lambda s: s.sampling == "dense"))
def test_dense_clips_leave_no_room_for_one_more(num_frames, spec):
    span = (spec.clip_len - 1) * spec.frame_interval + 1
    count = len(clip_indices(num_frames, spec))
    assert count == 1 or (count - 1) * spec.clip_stride + span <= num_frames
    assert count * spec.clip_stride + span > num_frames


@given(
    st.integers(1, 300), st.sampled_from([10.0, 23.976, 25.0, 29.97, 30.0, 60.0]), st.sampled_from([5.0, 25.0, 50.0])
)
def test_resampled_frames_are_the_ones_on_screen(num_frames, source, target):
    indices = resampled_indices(num_frames, source, target)
    times = np.arange(len(indices)) / target
    slack = 2e-3 / source  # rates are rounded numbers, so a frame may begin a little late
    assert indices[0] == 0
    assert indices[-1] < num_frames
    assert (np.diff(indices) >= 0).all()
    assert (indices / source <= times + slack).all()
    assert ((indices + 1) / source > times - slack).all()
    assert len(indices) / target >= num_frames / source - slack
    assert (len(indices) - 1) / target < num_frames / source + slack
