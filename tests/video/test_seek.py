"""Seeking: the frames, numbers, time stamps and notes of reading from the start, of sound, odd and damaged files."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from decode_tasks import cut, numbers, task_for
from video_files import damage_packets, make_video, truncate, zero_out

from har_pipeline.core.errors import VideoError
from har_pipeline.core.kinds import is_video_name
from har_pipeline.core.records import ClipSpec, Span
from har_pipeline.inference.predict import sample_frames
from har_pipeline.video import decode, seek
from har_pipeline.video.clip_worker import Done
from har_pipeline.video.clips import clip_indices
from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.preprocess import parse_resize, resize_frame
from har_pipeline.video.seek import Unproved, exactly

Read = tuple[list[int], list[np.ndarray], int, list[int | None], list[str], str]
FRAMES = 240
X265 = "log-level=none:pools=none:frame-threads=1"
# File name -> how it is encoded, and whether it can be skipped through.
KINDS: dict[str, tuple[dict[str, object], bool]] = {
    "h264.mp4": ({"codec": "libx264", "options": {"g": "20", "preset": "ultrafast"}}, True),
    "h264_b.mp4": ({"codec": "libx264", "options": {"g": "25", "bf": "3", "b_strategy": "0"}}, True),
    "h264_pyramid.mkv": ({"codec": "libx264", "options": {"g": "30", "bf": "3", "x264-params": "b-pyramid=strict"}}, True),
    "h264_open.mp4": ({"codec": "libx264", "options": {"g": "20", "bf": "3", "x264-params": "open-gop=1"}}, False),
    "h264_refresh.mp4": ({"codec": "libx264", "options": {"x264-params": "intra-refresh=1:keyint=30"}}, False),
    "h264_one_gop.mp4": ({"codec": "libx264", "options": {"g": "250", "preset": "ultrafast"}}, False),
    "h264_varying.mp4": ({"codec": "libx264", "options": {"g": "20"}, "times": "varying"}, True),
    "h264.avi": ({"codec": "libx264", "options": {"g": "20", "bf": "0"}}, False),
    "h264.ts": ({"codec": "libx264", "options": {"g": "20"}}, False),
    "hevc_open.mp4": ({"codec": "libx265", "options": {"x265-params": f"{X265}:keyint=20:min-keyint=20"}}, True),
    "hevc_closed.mkv": ({"codec": "libx265", "options": {"x265-params": f"{X265}:keyint=20:open-gop=0"}}, True),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"g": "12"}}, True),
    "mpeg4_b.mp4": ({"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}, True),
    "mpeg4_b.mkv": ({"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}, True),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"g": "12"}}, True),
    "mpeg4_b.avi": ({"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}, True),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "cpu-used": "8"}}, True),
    "vp9_hidden.webm": ({"codec": "libvpx-vp9", "options": {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "12"}}, True),
    "vp8.webm": ({"codec": "libvpx", "options": {"g": "20"}}, False),
    "mjpeg.avi": ({"codec": "mjpeg", "pixel_format": "yuvj420p"}, True),
    "mjpeg.mkv": ({"codec": "mjpeg", "pixel_format": "yuvj420p"}, True),
    "mpeg1.mpg": ({"codec": "mpeg1video"}, False),
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips of a few packets, so that small files are skipped through."""
    monkeypatch.setattr(seek, "WORTH_PACKETS", 4)


class Videos(dict[str, Path]):
    """File name -> file, made when it is asked for: processes that share the tests make their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        fields = dict(KINDS[name][0])
        if "times" in fields:  # steps of 1 to 6 ticks of 1/25 s
            fields["times"] = np.cumsum([0, *np.random.default_rng(3).integers(1, 7, FRAMES - 1)]).tolist()
        self[name] = make_video(self.folder / name, FRAMES, width=96, height=64, **fields)  # type: ignore[arg-type]
        return self[name]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    return Videos(tmp_path_factory.mktemp("seek"))


def read(path: Path, wanted: Iterable[int], allowed: bool, **limits: int | None) -> Read:
    reader = FrameReader(path, info=probe(path), wants=set(wanted).__contains__, seek=allowed, **limits)  # type: ignore[arg-type]
    pairs = list(reader)
    found = [number for number, _ in pairs], [frame.copy() for _, frame in pairs]
    return *found, reader.frames_decoded, reader.ticks, reader.notes, reader.decoder_used


def same(path: Path, wanted: Iterable[int], **limits: int | None) -> Read:
    """Read with and without seeking, check that both give the same, and return it."""
    chosen = sorted(wanted)
    first = exactly(path, lambda allowed: read(path, chosen, allowed, **limits))
    second = read(path, chosen, False, **limits)
    assert first[0] == second[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert first[2:] == second[2:]
    return second


def packets_read(path: Path, wanted: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many packets were decoded with seeking."""
    met: list[object] = []
    before = seek.Course.met
    monkeypatch.setattr(seek.Course, "met", lambda self, packet: (met.append(packet.pos), before(self, packet))[1])
    read(path, wanted, True)
    monkeypatch.setattr(seek.Course, "met", before)
    return len(met)


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_reading_from_the_start(videos: Videos, name: str) -> None:
    path, rng = videos[name], np.random.default_rng(0)
    for count in (1, 6):
        found = same(path, rng.choice(FRAMES, count, replace=False).tolist())
        assert len(found[0]) == count
        assert found[2] == FRAMES
    for start, stop in ((0, 7), (150, 170), (FRAMES - 1, None), (230, FRAMES + 50)):
        same(path, range(FRAMES), start=start, stop=stop)
    same(path, [])


@pytest.mark.parametrize("name", KINDS)
def test_what_nobody_wants_is_skipped_where_that_is_exact(
    videos: Videos, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_at_most = packets_read(videos[name], [200], monkeypatch)
    if KINDS[name][1]:
        assert 0 < read_at_most <= 90
    else:
        assert read_at_most in (0, FRAMES)


def test_a_seek_is_made_only_where_it_saves_much(videos: Videos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seek, "WORTH_PACKETS", FRAMES)
    assert packets_read(videos["h264.mp4"], [200], monkeypatch) == FRAMES


@pytest.mark.parametrize(
    ("name", "step"), [("hevc_open.mp4", 3), *(pytest.param(name, 1, marks=pytest.mark.exhaustive) for name in KINDS)]
)
def test_every_frame_alone(videos: Videos, name: str, step: int) -> None:
    """Also those shown before an entry that they come after."""
    every = read(videos[name], range(FRAMES), False)[1]
    for number in range(0, FRAMES, step):
        _, (frame,), *_ = read(videos[name], [number], True)
        assert np.array_equal(frame, every[number])


# Of each codec one in every run.
USUAL = ("h264_b.mp4", "hevc_open.mp4", "mpeg4_b.mkv", "vp9.webm", "mjpeg.avi")
SKIPPED = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.exhaustive)
    for name, (_, skipped) in KINDS.items()
    if skipped
]


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("place", [100, 199, 200, FRAMES - 1])
def test_damage_in_what_is_read_gives_what_it_gave(videos: Videos, name: str, place: int, tmp_path: Path) -> None:
    path = damage_packets(videos[name], tmp_path / name, [place])
    before = outcome(path, range(190, 210), False)
    now = outcome(path, range(190, 210), True)
    if isinstance(before, str) or isinstance(now, str):
        assert now == before
    elif (place in (199, 200) and before[4]) or not before[4]:
        assert alike(now, before)


def outcome(path: Path, wanted: Iterable[int], allowed: bool) -> Read | str:
    chosen = sorted(wanted)
    try:
        return exactly(path, lambda seek: read(path, chosen, seek and allowed))
    except VideoError as error:
        return str(error)


def alike(first: Read, second: Read) -> bool:
    pixels = all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    return first[0] == second[0] and pixels and first[2:] == second[2:]


@pytest.mark.parametrize("name", SKIPPED)
def test_cut_off_and_holed_files(videos: Videos, name: str, tmp_path: Path) -> None:
    for share in (0.4, 0.9):
        made = [truncate(videos[name], tmp_path / f"cut{share}_{name}", share)]
        if name.startswith(("h264", "hevc", "vp9")):
            made.append(zero_out(videos[name], tmp_path / f"hole{share}_{name}", share, 600))
        for path in made:
            before, now = (outcome(path, range(0, FRAMES, 30), allowed) for allowed in (False, True))
            assert now == before if isinstance(before, str) or isinstance(now, str) else alike(now, before)


def test_a_disagreement_after_a_skip_is_logged_and_read_from_the_start(
    videos: Videos, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = videos["h264.mp4"]
    before = seek.PacketLog.table

    def wrong(self: seek.PacketLog) -> seek.PacketTable | None:
        table = before(self)
        assert table is not None
        table.shown[130:] += 1
        return table

    monkeypatch.setattr(seek.PacketLog, "table", wrong)
    with pytest.raises(Unproved):
        read(path, [200], True)
    with caplog.at_level(logging.DEBUG):
        assert exactly(path, lambda allowed: read(path, [200], allowed))[0] == [200]
    assert f"{path}: read from the start, since seeking is not proved exact" in caplog.text


def test_clips_are_those_of_reading_from_the_start(tmp_path: Path) -> None:
    """In worker processes, where skips are of 100 packets."""
    path = make_video(
        tmp_path / "v.mp4", 700, width=160, height=120, codec="libx264", options={"g": "50", "preset": "ultrafast"}
    )
    mode = parse_resize("stretch-160")
    every = [resize_frame(frame, mode) for _, frame in FrameReader(path)]
    for clips, span in (
        (ClipSpec(sampling="uniform", num_clips=3, clip_len=4), {}),
        (ClipSpec(sampling="first", num_clips=2, clip_len=4), {"start_s": 20.0, "end_s": 24.0}),
        (ClipSpec(sampling="segments", num_clips=2, clip_len=1), {"start_frame": 100}),
    ):
        plans, cuts, end = cut(task_for(path, clips, **span))
        assert isinstance(end, Done)
        first, last = span.get("start_frame", 0), 700
        if "start_s" in span:
            first, last = 500, 600
        assert (plans[0].num_frames, end.notes, end.decoder) == (last - first, (), "pyav")
        places = first + clip_indices(last - first, clips)
        assert numbers(cuts) == (places % 256).tolist()  # frames carry the last byte of their number
        assert all(np.array_equal(a, every[n]) for a, n in zip(np.concatenate(cuts), places.ravel(), strict=True))


def test_rows_of_one_file_look_at_its_packets_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, met = make_video(tmp_path / "v.mp4", 5), list[Path]()
    before = decode.probe
    monkeypatch.setattr(decode, "probe", lambda path: (met.append(path), before(path))[1])
    assert decode.probe_again(path).packet_frames == decode.probe_again(path).packet_frames == 5
    assert len(met) == 1
    make_video(path, 7)
    assert decode.probe_again(path).packet_frames == 7
    with pytest.raises(VideoError, match="does not exist"):
        decode.probe_again(tmp_path / "none.mp4")


def test_pictures_of_a_long_video_are_spread_over_it(videos: Videos) -> None:
    path = videos["h264_b.mp4"]
    every = read(path, range(FRAMES), False)[1]
    found = sample_frames(path, 3, Span(start_frame=120, end_frame=221))
    assert all(np.array_equal(a, every[n]) for a, n in zip(found, (120, 170, 220), strict=True))


@pytest.mark.needs_real_data
def test_real_files(real_data: Path) -> None:
    odd = [path for path in real_data.glob("odd/*") if is_video_name(path.name)]
    files = sorted(itertools.chain(real_data.glob("clips/*/*/*.avi"), odd))
    assert len(files) > 20
    for path in [*files[::12], *odd]:
        info = probe(path)
        same(path, np.linspace(0, info.packet_frames - 1, 6).astype(int).tolist())
        same(path, range(info.packet_frames), start=info.packet_frames // 2, stop=info.packet_frames // 2 + 5)
