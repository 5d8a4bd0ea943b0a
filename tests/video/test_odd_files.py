"""Sound files that are read wrongly easily: pictures in the file, display matrices, other sizes and rates, holes, lies."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from decode_tasks import cut, numbers, task_for
from video_files import (
    join,
    make_audio,
    make_video,
    merge_streams,
    set_matrix,
    truncate,
    zero_out,
)

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import ClipSpec
from har_pipeline.video.clip_worker import Done, View
from har_pipeline.video.decode import FrameReader, probe, tail_note
from har_pipeline.video.preprocess import Resize, resize_frame, scale_to
from har_pipeline.video.process import Failed

ALL = ClipSpec(sampling="dense", num_clips=None)


@pytest.fixture(params=["pyav", "decord"])
def decoder(request: pytest.FixtureRequest) -> str:
    if request.param == "decord":
        pytest.importorskip("decord")
    return request.param


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("odd") / "upright.mp4", 10, codec="libx264")


def frames_of(path: Path, decoder: str = "pyav") -> tuple[list[np.ndarray], list[str]]:
    reader = FrameReader(path, decoder=decoder)
    return [frame for _, frame in reader], reader.notes


# Streams.


def test_a_picture_attached_to_the_file_is_not_the_video(tmp_path: Path, upright: Path, decoder: str) -> None:
    picture = make_video(tmp_path / "cover.mov", 1, codec="mjpeg", pixel_format="yuvj420p", width=320, height=320)
    path = merge_streams([picture, upright], tmp_path / "a.mp4", cover=True)
    info = probe(path)
    assert (info.width, info.packet_frames, info.fps) == (160, 10, 25.0)
    found, _ = frames_of(path, decoder)
    assert all((a == b).all() for a, b in zip(found, frames_of(upright)[0], strict=True))
    assert info.notes == ()


def test_a_file_with_nothing_but_a_picture_has_no_video(tmp_path: Path) -> None:
    picture = make_video(tmp_path / "cover.mov", 1, codec="mjpeg", pixel_format="yuvj420p")
    path = merge_streams([picture], tmp_path / "a.mp4", cover=True)
    with pytest.raises(VideoError, match=r"a\.mp4: has no video stream \(only picture\)"):
        probe(path)


def test_of_several_streams_the_largest_is_read_by_every_decoder(tmp_path: Path, upright: Path, decoder: str) -> None:
    large = make_video(tmp_path / "large.mp4", 8, codec="libx264", width=320, height=240)
    path = merge_streams([upright, large], tmp_path / "two.mp4")
    info = probe(path)
    assert (info.width, info.packet_frames) == (320, 8)
    assert info.notes == ("2 video streams: the one of 320x240 px is read (stream 1)",)
    found, _ = frames_of(path, decoder)
    assert all((a == b).all() for a, b in zip(found, frames_of(large)[0], strict=True))


# Display matrices.

MATRICES = {
    "as is": ((1, 0, 0, 1), lambda f: f),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda f: f[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda f: f[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
    "counterclockwise": ((0, -1, 1, 0), lambda f: np.rot90(f)),
    "transposed": ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
    "transposed on the other diagonal": ((0, -1, -1, 0), lambda f: np.rot90(f, 2).swapaxes(0, 1)),
    "scaled": ((2, 0, 0, 2), lambda f: f),
    "almost straight": ((0.9999, 0.0121, -0.0121, 0.9999), lambda f: f),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_whole_display_matrix_is_applied(tmp_path: Path, upright: Path, decoder: str, name: str) -> None:
    matrix, expected = MATRICES[name]
    found, notes = frames_of(set_matrix(upright, tmp_path / "m.mp4", *matrix), decoder)
    assert (found[3] == expected(frames_of(upright)[0][3])).all()
    assert not [note for note in notes if "matrix" in note]


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0.5, -0.5, 1), (1, 0, 0, 0.5), (1, 1, 0, 0)])
def test_a_matrix_that_is_neither_turn_nor_reflection_is_left_out(tmp_path: Path, upright: Path, matrix) -> None:
    found, notes = frames_of(set_matrix(upright, tmp_path / "m.mp4", *matrix))
    assert (found[3] == frames_of(upright)[0][3]).all()
    assert notes == ["the display matrix is no quarter turn or reflection, and is left out"]


# Sizes that change.


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("turned")
    parts = [
        make_video(folder / "wide.ts", 12, codec="libx264", width=160, height=120),
        make_video(folder / "tall.ts", 12, codec="libx264", width=120, height=160, seed=1),
    ]
    return join(parts, folder / "both.ts"), *parts


def test_every_frame_has_its_own_size(turned: tuple[Path, Path, Path], decoder: str) -> None:
    both, wide, tall = turned
    found, notes = frames_of(both, decoder)
    expected = frames_of(wide)[0] + frames_of(tall)[0]
    assert [frame.shape for frame in found] == [frame.shape for frame in expected]
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert "the frame size changes: 160x120 px from frame 0, 120x160 px from frame 12" in notes


@pytest.mark.parametrize("resize", ["stretch-160", "short120-center112"])
def test_cropped_frames_of_a_size_that_changes_are_those_of_the_parts(turned, resize: str) -> None:
    both, wide, tall = turned
    _, clips, end = cut(task_for(both, ALL, views=(View(0, ALL, resize),)))
    parts = [clip for part in (wide, tall) for clip in cut(task_for(part, ALL, views=(View(0, ALL, resize),)))[1]]
    assert len(clips) == len(parts) == 24
    assert all((a == b).all() for a, b in zip(clips, parts, strict=True))
    assert "the frame size changes" in "; ".join(end.notes)


def test_whole_frames_keep_their_shape_within_a_clip(turned) -> None:
    spec = ClipSpec(sampling="dense", clip_len=4, clip_stride=4, num_clips=None)
    both, _, tall = turned
    view = View(0, spec, "short120-three112", whole=True)
    _, clips, end = cut(task_for(both, spec, views=(view,)), frames_per_slot=9)
    assert [clip.shape[1:3] for clip in clips] == [(120, 160)] * 3 + [(160, 120)] * 3
    alone = cut(task_for(tall, spec, views=(view,)), frames_per_slot=9)[1]
    assert all((a == b).all() for a, b in zip(clips[3:], alone, strict=True))
    assert not [note for note in end.notes if "different sizes" in note]


def test_a_frame_of_another_size_than_the_clips_first_is_stretched(turned) -> None:
    spec = ClipSpec(sampling="dense", clip_len=4, clip_stride=5, num_clips=None)
    both, wide, tall = turned
    _, clips, end = cut(task_for(both, spec, views=(View(0, spec, "short120-three112", whole=True),)))
    # The clips start at 0, 5, 10, 15 ...: the third one has two frames of each kind.
    expected = frames_of(wide)[0][10:] + [scale_to(frame, 120, 160) for frame in frames_of(tall)[0][:2]]
    assert (clips[2] == np.stack(expected)).all()
    assert "1 clips with frames of different sizes: stretched to the size of the first" in end.notes


def test_flow_from_one_size_to_another_is_that_of_the_stretched_frame(turned) -> None:
    both, wide, tall = turned
    _, clips, _ = cut(task_for(both, ALL, views=(View(0, ALL, "short120-center112", flow=True, whole=True),)))
    first, second = clips[11]
    assert (first == frames_of(wide)[0][11]).all()
    assert (second == scale_to(frames_of(tall)[0][0], 120, 160)).all()


# Frame rates.


def test_the_rate_is_that_of_the_time_stamps(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "a.mkv", 100, codec="libx264", fps=1000, times=[round(k * 1000 / 30) for k in range(100)]
    )
    plain = make_video(tmp_path / "b.mp4", 100, codec="libx264", fps=30)
    info = probe(path)
    assert info.header_fps > 100
    assert info.fps == 30
    assert "which is used" in info.timing.notes[0]
    at_12 = [numbers(cut(task_for(one, ALL, fps=12.0))[1]) for one in (path, plain)]
    assert at_12[0] == at_12[1]


def test_a_rate_that_varies_is_resampled_by_time(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 160, 1160, 1200, 1240, 1280, 1320]  # a second without frames
    path = make_video(tmp_path / "a.mkv", 10, codec="libx264", fps=1000, times=times)
    plans, clips, end = cut(task_for(path, ALL, fps=10.0))
    expected = [max(k for k, t in enumerate(times) if t <= 100 * n + 1) for n in range(len(clips))]
    assert [number for clip in numbers(clips) for number in clip] == expected
    assert len(clips) == 14 or len(clips) == 15
    assert "times follow the time stamps" in "; ".join(end.notes)
    (plan,) = plans
    assert plan.clip_times_s[0, 0] == 0
    assert plan.clip_times_s[6, 0] == pytest.approx(0.16)


def test_clip_times_follow_the_time_stamps(tmp_path: Path) -> None:
    times = [0, 40, 80, 400, 440, 480]
    path = make_video(tmp_path / "a.mkv", 6, codec="libx264", fps=1000, times=times)
    (plan,), _, _ = cut(task_for(path, ALL))
    assert np.allclose(plan.clip_times_s[:, 0] * 1000, times)
    assert np.allclose(plan.clip_times_s[:-1, 1] * 1000, times[1:])


# Half a file, and holes.


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.flv"])
@pytest.mark.parametrize("share", [0.2, 0.4])
def test_less_than_half_of_a_file_without_a_frame_count_fails(tmp_path: Path, name: str, share: float) -> None:
    codec = {"a.mkv": "mpeg4", "a.webm": "libvpx", "a.flv": "flv"}[name]
    whole = make_video(tmp_path / name, 60, codec=codec)
    path = truncate(whole, tmp_path / f"cut_{name}", share)
    _, _, end = cut(task_for(path, ALL))
    assert isinstance(end, Failed)
    assert "truncated or damaged" in end.reason or "holds no frame" in end.reason


def test_most_of_a_file_without_a_frame_count_gets_a_note(tmp_path: Path) -> None:
    path = truncate(make_video(tmp_path / "a.mkv", 60, codec="mpeg4"), tmp_path / "b.mkv", 0.75)
    info = probe(path)
    (note,) = tail_note(info, info.packet_frames)
    assert note.startswith("60 frames are announced, 4")


def test_sound_that_lasts_longer_than_the_pictures_is_no_damage(tmp_path: Path, upright: Path) -> None:
    import av

    sound = make_audio(tmp_path / "s.m4a")
    with av.open(str(tmp_path / "a.mkv"), "w") as out, av.open(str(upright)) as video, av.open(str(sound)) as audio:
        pictures = out.add_stream_from_template(video.streams.video[0])
        tones = out.add_stream_from_template(audio.streams.audio[0])
        for container, stream in ((video, pictures), (audio, tones)):
            for _ in range(3 if stream is tones else 1):
                for packet in container.demux(0):
                    if packet.size and (stream is pictures or packet.pts is not None):
                        packet.stream = stream
                        out.mux(packet)
    info = probe(tmp_path / "a.mkv")
    assert tail_note(info, info.packet_frames) == []


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("a.webm", {"codec": "libvpx-vp9", "options": {"b": "8000k", "cpu-used": "8"}}, "hole of zero bytes"),
        ("a.mkv", {"codec": "ffv1", "pixel_format": "yuv444p"}, "CRC mismatch"),
        ("a.ts", {"codec": "libx264"}, "frames patched up"),
        ("b.ts", {"codec": "mpeg2video"}, "damaged"),
    ],
)
def test_a_hole_in_the_data_is_noted(tmp_path: Path, name: str, fields: dict, text: str) -> None:
    rng = np.random.default_rng(0)
    path = make_video(tmp_path / name, 20, width=640, height=480, noise=rng, **fields)
    for share in (0.1, 0.4, 0.7):
        broken = zero_out(path, tmp_path / f"{share}_{name}", share)
        found, notes = frames_of(broken)
        sound = frames_of(path)[0]
        if len(found) == len(sound) and all((a == b).all() for a, b in zip(found, sound, strict=True)):
            continue
        info = probe(broken)
        said = [*notes, *info.timing.notes]
        assert said, share
    assert text in "; ".join(said) or len(found) < len(sound)


# What may be opened, and how much memory that may take.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile secret.ts\n"),
        ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 49170 RTP/AVP 96\n"),
        ("a.mpd", '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>secret.ts</BaseURL></MPD>'),
        ("video.avi", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"),
    ],
)
def test_no_other_file_is_opened(tmp_path: Path, name: str, text: str, decoder: str) -> None:
    make_video(tmp_path / "secret.ts", 10, codec="libx264")
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(VideoError, match=r"is not a readable video|names other files"):
        list(FrameReader(path, decoder=decoder))


def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.avi")
    with pytest.raises(VideoError, match="no regular file"):
        probe(tmp_path / "a.avi")


def test_a_header_that_announces_more_frames_than_memory_holds(tmp_path: Path) -> None:
    data = bytearray(make_video(tmp_path / "a.avi", 10).read_bytes())
    data[48:52] = struct.pack("<I", 2**31 - 1)
    header = data.index(b"strh") + 8
    data[header + 32 : header + 36] = struct.pack("<I", 2**31 - 1)
    movi = data.index(b"movi")
    for name, content in (("few.avi", data), ("none.avi", data[: movi + 4])):
        path = tmp_path / name
        path.write_bytes(content)
        _, _, end = cut(task_for(path, ALL, memory_limit_gb=1.0, fps=25.0))
        assert isinstance(end, Failed), name
        assert "truncated or damaged" in end.reason or "holds no frame" in end.reason


def test_a_rate_that_makes_too_many_frames_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 4, codec="libx264", fps=1, times=[0, 1_000_000, 2_000_000, 3_000_000])
    _, _, end = cut(task_for(path, ALL, fps=25.0, memory_limit_gb=1.0))
    assert isinstance(end, Failed)
    assert "has more than 100000 frames at 25 frames/s" in end.reason
    assert "--max-frames" in end.reason


def test_too_many_frames_are_refused_and_may_be_allowed(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 12)
    assert "has more than 11 frames" in cut(task_for(path, ALL, max_frames=11))[2].reason
    assert isinstance(cut(task_for(path, ALL, max_frames=12))[2], Done)
    assert isinstance(cut(task_for(path, ALL, max_frames=4, end_frame=4))[2], Done)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 1, codec="ffv1", width=8000, height=6000)
    _, _, end = cut(task_for(path, ALL, memory_limit_gb=0.5))
    assert isinstance(end, Failed)
    assert "needs more memory than the limit of 0.5 GB; raise it with --memory-limit" in end.reason
    assert isinstance(cut(task_for(path, ALL))[2], Done)


def test_no_time_limit_is_none(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 3)
    assert isinstance(cut(task_for(path, ALL, time_limit_s=float("inf")))[2], Done)


# Real files.


@pytest.mark.needs_real_data
def test_real_odd_files(real_data: Path, decoder: str) -> None:
    odd = real_data / "odd"
    if not odd.is_dir():
        pytest.skip("no odd files")

    def clips(name: str, **changes: object) -> list[np.ndarray]:
        return cut(task_for(odd / name, ALL, decoder=decoder, **changes))[1]

    def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
        return len(a) == len(b) and all((x == y).all() for x, y in zip(a, b, strict=True))

    assert same(clips("cover_art.mp4"), clips("cover_art_removed.mp4"))
    assert probe(odd / "cover_art.mp4").fps == 25.0
    shown = {
        name: frames_of(odd / f"matrix_{name}.mp4", decoder)[0][0] for name in ("none", "vflip", "transpose", "zero")
    }
    assert (shown["vflip"] == shown["none"][::-1]).all()
    assert (shown["transpose"] == shown["none"].swapaxes(0, 1)).all()
    assert (shown["zero"] == shown["none"]).all()
    info = probe(odd / "two_video_streams.mp4")
    assert (info.width, info.height, info.packet_frames) == (480, 270, 390)
    assert frames_of(odd / "two_video_streams.mp4", decoder)[0][0].shape == (270, 480, 3)
    rates = [cut(task_for(odd / name, ALL, decoder=decoder, fps=15.0)) for name in ("rate_1000.mkv", "rate_30.mp4")]
    assert rates[0][0][0].clip_bounds[:5, 0].tolist() == [0, 1, 3, 5, 7]
    assert (rates[0][0][0].clip_bounds == rates[1][0][0].clip_bounds).all()
    assert probe(odd / "rate_1000.mkv").fps == pytest.approx(30, abs=0.04)
    turned = frames_of(odd / "turned_midstream.ts", decoder)[0]
    expected = [resize_frame(frame, Resize(160, (160, 160))) for frame in turned]
    assert [frame.shape[:2] for frame in turned] == [(120, 160)] * 25 + [(160, 120)] * 25
    assert same([clip[0] for clip in clips("turned_midstream.ts")], expected)


def test_a_wmv_that_was_cut_off_fails(tmp_path: Path) -> None:
    for name, codec in (("a.wmv", "wmv2"), ("a.asf", "mjpeg")):
        fields = {"pixel_format": "yuvj420p"} if codec == "mjpeg" else {}
        whole = make_video(tmp_path / name, 60, codec=codec, **fields)
        assert frames_of(whole)[1] == []
        assert tail_note(probe(whole), 60) == []
        for share in (0.2, 0.4):
            _, _, end = cut(task_for(truncate(whole, tmp_path / f"cut_{name}", share), ALL))
            assert isinstance(end, Failed), (name, share)
        info = probe(truncate(whole, tmp_path / f"most_{name}", 0.75))
        assert "frames are announced" in tail_note(info, info.packet_frames)[0]


def test_a_gif_that_cannot_be_read_to_its_end_fails_or_is_noted(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.gif", 30, codec="gif", pixel_format="rgb8", fps=10)
    found = len(frames_of(whole)[0])
    assert tail_note(probe(whole), found) == []
    for share, fails in ((0.25, True), (0.8, False)):
        path = truncate(whole, tmp_path / "cut.gif", share)
        path.write_bytes(path.read_bytes() + bytes(whole.stat().st_size - path.stat().st_size))
        _, _, end = cut(task_for(path, ALL))
        assert isinstance(end, Failed) if fails else "frames are announced" in "; ".join(end.notes)


def test_an_impossible_rate_is_not_believed(tmp_path: Path) -> None:
    data = bytearray(make_video(tmp_path / "a.avi", 10).read_bytes())
    header = data.index(b"strh") + 8
    data[header + 20 : header + 28] = struct.pack("<II", 1, 2**31 - 1)
    (tmp_path / "fast.avi").write_bytes(data)
    timing = probe(tmp_path / "fast.avi").timing
    assert timing.fps == 25.0
    assert "25 frames/s are assumed" in timing.notes[0]
