"""Decoding in a process of its own: which frames arrive, and what a bad file or a death costs."""

import mmap
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from decode_tasks import FRAME_BYTES, cut, numbers, receive, run, task_for
from video_files import damage_packets, make_video

from har_pipeline.core.files import file_sha256
from har_pipeline.core.records import ClipSpec
from har_pipeline.video.clip_worker import Chunk, ClipPlan, DecodeWorker, Done, View, _ClipCutter, _Sender
from har_pipeline.video.clips import clip_indices
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.preprocess import parse_resize, resize_frame
from har_pipeline.video.process import Failed


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("worker") / "numbered.avi", 30)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, video) -> Path:
    """30 packets, of which fewer can be decoded, and nothing in the file says so."""
    return damage_packets(video, tmp_path_factory.mktemp("worker") / "damaged.avi", [10, 11])


def bounds(clips) -> list[list[int]]:
    return np.stack([clips[:, 0], clips.max(axis=1) + 1], axis=1).tolist()


@pytest.mark.parametrize("frames_per_slot", [4, 5, 64])
@pytest.mark.parametrize(
    "clips",
    [
        ClipSpec(sampling="first", num_clips=12),
        ClipSpec(sampling="first", num_clips=40),
        ClipSpec(sampling="first", num_clips=40, padding="loop"),
        ClipSpec(sampling="first", num_clips=3, clip_len=4, frame_interval=2, clip_stride=5),
        ClipSpec(sampling="first", num_clips=9, clip_len=4, clip_stride=4, padding="loop"),
        ClipSpec(sampling="uniform", num_clips=7),
        ClipSpec(sampling="uniform", num_clips=5, clip_len=4),
        ClipSpec(sampling="uniform", num_clips=50, clip_len=4, frame_interval=3),
        ClipSpec(sampling="dense", num_clips=None),
        ClipSpec(sampling="dense", num_clips=None, clip_len=4),
        ClipSpec(sampling="dense", num_clips=None, clip_len=4, clip_stride=4, frame_interval=2),
    ],
)
def test_every_clip_holds_the_planned_frames(video, clips, frames_per_slot):
    plans, got, end = cut(task_for(video, clips), frames_per_slot)
    expected = clip_indices(30, clips)
    (plan,) = plans
    assert end == Done((), "pyav")
    assert (plan.num_frames, plan.fps) == (30, 25.0)
    assert plan.clip_bounds.tolist() == bounds(expected)
    assert numbers(got) == expected[: plan.num_unique].tolist()
    assert (expected[plan.num_unique - 1 :] == expected[-1]).all()


def test_clips_that_repeat_the_last_one_are_sent_once(video):
    plans, got, _ = cut(task_for(video, ClipSpec(num_clips=40)))
    assert len(plans[0].clip_bounds) == 40
    assert plans[0].num_unique == len(got) == 30


def test_loop_padding_stays_in_the_row(video):
    clips = ClipSpec(num_clips=1, clip_len=4, padding="loop")
    _, got, _ = cut(task_for(video, clips, start_frame=20, end_frame=23))
    assert numbers(got) == [[20, 21, 22, 20]]


@pytest.mark.parametrize(
    ("clips", "start", "end", "expected"),
    [
        (ClipSpec(sampling="dense", num_clips=None, clip_len=4, clip_stride=4), 5, 15, [[5, 6, 7, 8], [9, 10, 11, 12]]),
        (ClipSpec(sampling="uniform", num_clips=3), 5, 14, [[5], [9], [13]]),
        (ClipSpec(sampling="first", num_clips=2), 28, None, [[28], [29]]),
        (ClipSpec(sampling="uniform", num_clips=2), 29, None, [[29]]),
    ],
)
def test_a_row_covers_a_range_of_its_file(video, clips, start, end, expected):
    plans, got, last = cut(task_for(video, clips, start_frame=start, end_frame=end))
    assert numbers(got) == expected
    assert plans[-1].num_frames == (end or 30) - start
    assert plans[-1].clip_bounds[0, 0] == start
    assert last == Done((), "pyav")


def test_a_row_may_end_after_its_file(video):
    plans, got, end = cut(
        task_for(video, ClipSpec(sampling="dense", num_clips=None), start_frame=27, end_frame=30 + 20)
    )
    assert numbers(got) == [[27], [28], [29]]
    assert plans[-1].num_frames == 3
    assert isinstance(end, Done)


def test_a_row_that_starts_after_its_file_fails(video):
    plans, got, end = cut(task_for(video, ClipSpec(), start_frame=30))
    assert (plans, got) == ([], [])
    assert end == Failed(f"{video}: the row starts at frame 30, the file has 30")


def test_frame_rates_are_changed_within_the_row(video):
    dense = ClipSpec(sampling="dense", num_clips=None)
    plans, got, _ = cut(task_for(video, dense, fps=12.5, start_frame=3, end_frame=12))
    assert numbers(got) == [[3], [5], [7], [9], [11]]
    assert plans[0].num_frames == 9
    _, got, _ = cut(task_for(video, ClipSpec(num_clips=5), fps=50.0))
    assert numbers(got) == [[0], [0], [1], [1], [2]]


def test_the_first_clips_do_not_cost_the_whole_video(damaged):
    """Neither a second plan nor a note of what comes later: only the frames that the clips need are read."""
    plans, got, end = cut(task_for(damaged, ClipSpec(num_clips=8)))
    assert len(plans) == 1
    assert numbers(got) == [[i] for i in range(8)]
    assert end == Done((), "pyav")


@pytest.mark.parametrize(
    "clips",
    [
        ClipSpec(sampling="uniform", num_clips=6, clip_len=4),
        ClipSpec(sampling="dense", num_clips=None, clip_len=4),
        ClipSpec(sampling="first", num_clips=30),
    ],
)
def test_a_wrong_number_of_frames_gives_a_second_plan(damaged, clips):
    frames = [resize_frame(frame, parse_resize("stretch-160")) for _, frame in FrameReader(damaged)]
    assert len(frames) < 30
    plans, got, end = cut(task_for(damaged, clips))
    assert [plan.num_frames for plan in plans] == [30, len(frames)]
    expected = clip_indices(len(frames), clips)
    assert plans[1].clip_bounds.tolist() == bounds(expected)
    assert len(got) == plans[1].num_unique
    for clip, row in zip(got, expected, strict=False):
        assert all((picture == frames[i]).all() for picture, i in zip(clip, row, strict=True))
    assert isinstance(end, Done)
    assert any("2 packets could not be decoded" in note for note in end.notes)


def test_a_truncated_file_is_planned_by_the_frames_it_has(tmp_path, video):
    data = video.read_bytes()
    path = tmp_path / "truncated.avi"
    path.write_bytes(data[: int(len(data) * 0.8)])
    count = sum(1 for _ in FrameReader(path))
    assert 15 < count < 28
    plans, got, end = cut(task_for(path, ClipSpec(sampling="uniform", num_clips=4)))
    assert plans[-1].num_frames == count
    assert plans[-1].clip_bounds.tolist() == bounds(clip_indices(count, ClipSpec(sampling="uniform", num_clips=4)))
    assert len(got) == 4
    assert any(f"30 frames are announced, {count} could be decoded" in note for note in end.notes)


def test_a_cut_file_is_noticed_though_only_its_start_is_read(tmp_path, video):
    data = video.read_bytes()
    path = tmp_path / "cut.avi"
    path.write_bytes(data[: int(len(data) * 0.8)])
    _, got, end = cut(task_for(path, ClipSpec(num_clips=3)))
    assert numbers(got) == [[0], [1], [2]]
    assert any("30 frames are announced" in note for note in end.notes)
    path.write_bytes(data[: int(len(data) * 0.3)])
    _, _, end = cut(task_for(path, ClipSpec(num_clips=2)))
    assert isinstance(end, Failed)
    assert "truncated or damaged" in end.reason


def test_a_file_with_less_than_half_of_its_frames_fails(tmp_path, video):
    data = video.read_bytes()
    path = tmp_path / "truncated.avi"
    path.write_bytes(data[: int(len(data) * 0.5)])
    _, _, end = cut(task_for(path, ClipSpec(sampling="uniform", num_clips=4)))
    assert isinstance(end, Failed)
    assert str(path) in end.reason
    assert "truncated or damaged" in end.reason


def test_a_time_limit_ends_a_decode(tmp_path):
    path = make_video(tmp_path / "long.avi", 250)
    _, _, end = cut(task_for(path, ClipSpec(sampling="uniform", num_clips=4), time_limit_s=0.001))
    assert end == Failed(f"{path}: reading took longer than the limit of 0.001 s")


class _Parent:
    """A worker's connection that notes, at each call, the seconds left of the time limit: 0 where it stands still."""

    def __init__(self):
        self.left = {"poll": [], "recv": [], "send": []}

    def _note(self, call):
        self.left[call].append(signal.getitimer(signal.ITIMER_REAL)[0])

    def poll(self):
        self._note("poll")
        return False

    def recv(self):
        self._note("recv")
        return 0  # the slot, free again

    def send(self, message):
        self._note("send")


def test_waiting_for_a_free_slot_does_not_count():
    parent, frame = _Parent(), np.zeros((2, 2, 3), np.uint8)
    sender = _Sender(parent, mmap.mmap(-1, 12), num_slots=1)
    before = signal.setitimer(signal.ITIMER_REAL, 10_000)
    try:
        for number in range(2):
            sender.send(0, np.array([number]), [frame], np.array([[0]]))
            assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 10_000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
    assert {call: set(left) for call, left in parent.left.items()} == {"poll": {0}, "recv": {0}, "send": {0}}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "killed by signal 9 (out of memory?)"),
        (signal.SIGSEGV, "killed by signal 11 (Segmentation fault)"),
    ],
)
def test_a_crash_fails_the_video(video, number, reason):
    worker = DecodeWorker(FRAME_BYTES * 4, num_slots=1)
    try:
        worker.start(task_for(video, ClipSpec(sampling="dense", num_clips=None)))
        assert isinstance(receive(worker), ClipPlan)
        assert isinstance(receive(worker), Chunk)
        worker.process.send_signal(number)  # it waits for the slot, with most clips unsent
        assert receive(worker) == Failed(f"{video}: the process reading it died: {reason}")
        worker.release(0)
        _, got, end = run(worker, task_for(video, ClipSpec(num_clips=3)))
        assert (numbers(got), end) == ([[0], [1], [2]], Done((), "pyav"))
    finally:
        worker.close()


def test_a_worker_outlives_videos_that_fail(tmp_path, video):
    worker = DecodeWorker(FRAME_BYTES * 5)
    try:
        for path in (tmp_path / "missing.avi", video, tmp_path, video):
            _, got, end = run(worker, task_for(path, ClipSpec(num_clips=3)))
            if path == video:
                assert numbers(got) == [[0], [1], [2]]
                assert isinstance(end, Done)
            else:
                assert isinstance(end, Failed)
                assert str(path) in end.reason
        assert worker.process.poll() is None
    finally:
        worker.close()


def test_a_wrong_resize_mode_is_a_reason_not_a_crash(video):
    _, _, end = cut(task_for(video, ClipSpec(num_clips=3), views=(View(0, ClipSpec(num_clips=3), "round-7"),)))
    assert isinstance(end, Failed)
    assert "write stretch-<size>" in end.reason


def test_closing_ends_the_process(video):
    worker = DecodeWorker(FRAME_BYTES * 4, num_slots=1)
    worker.start(task_for(video, ClipSpec(sampling="dense", num_clips=None)))
    worker.close()
    assert worker.process.poll() is not None


def test_decord_cuts_the_same_clips(video):
    pytest.importorskip("decord")
    clips = ClipSpec(sampling="uniform", num_clips=5, clip_len=4)
    _, got, end = cut(task_for(video, clips, decoder="decord"))
    assert numbers(got) == clip_indices(30, clips).tolist()
    assert end == Done((), "decord")


def test_cached_flow_is_of_one_decoders_pixels(video):
    clips = ClipSpec(sampling="uniform", num_clips=1)
    known = [cut(task_for(video, clips, hash_content=True, decoder=one))[0][0].content for one in ("auto", "pyav")]
    assert known == [file_sha256(video)] * 2
    pytest.importorskip("decord")
    (plan,), _, _ = cut(task_for(video, clips, hash_content=True, decoder="decord"))
    assert plan.content == f"{file_sha256(video)} decord"


class FakeSender:
    """Keeps what is sent, and the most frames that it saw."""

    def __init__(self, capacity: int) -> None:
        self.slots = np.zeros((1, capacity * 3), np.uint8)
        self.sent: list[list[int]] = []

    def send(self, lane, numbers, frames, clips) -> None:
        assert len(frames) * 3 <= self.slots.shape[1]
        values = np.array([int(frame[0, 0, 0]) + 256 * int(frame[0, 0, 1]) for frame in frames])
        self.sent += values[clips].tolist()


@pytest.mark.parametrize(
    ("clip_len", "frame_interval", "clip_stride", "capacity"),
    [(1, 1, 1, 4), (4, 1, 1, 5), (4, 1, 4, 5), (4, 1, 9, 16), (4, 4, 1, 5), (16, 1, 8, 16)],
)
def test_memory_does_not_grow_with_the_video(clip_len, frame_interval, clip_stride, capacity):
    spec = ClipSpec(
        sampling="dense", num_clips=None, clip_len=clip_len, frame_interval=frame_interval, clip_stride=clip_stride
    )
    clips = clip_indices(3000, spec)
    sender = FakeSender(capacity)
    cutter = _ClipCutter(Path("v.avi"), View(0, spec, "stretch-1"), clips, sender)
    most = 0
    for i in range(3000):
        if cutter.wants(i):
            cutter.add(i, np.array([[[i % 256, i // 256, 0]]], np.uint8))
            most = max(most, len(cutter.frames))
    assert sender.sent == clips.tolist()
    assert not cutter.unsent
    assert most <= max(capacity, (clip_len - 1) * frame_interval + 1)


def test_a_worker_imports_no_torch():
    code = (
        "import sys, har_pipeline.video.clip_worker; print(sorted({'torch', 'torchvision', 'zarr'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert result.stdout.strip() == "[]"
