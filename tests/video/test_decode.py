"""Which frames a file yields, with which numbers, and what is said of a file that is not sound."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import damage_packets, make_audio, make_video, numbered_frame, read_number, truncate, turn_mp4

from har_pipeline.core.errors import VideoError
from har_pipeline.video import decode
from har_pipeline.video.decode import FrameReader, VideoInfo, probe, tail_note
from har_pipeline.video.preprocess import scale_to
from har_pipeline.video.timing import Timing

DECODERS = ["pyav", "decord"]
KINDS = {
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264.mp4": {"codec": "libx264"},
    "h264_b_frames.mkv": {"codec": "libx264", "options": {"bf": "3", "g": "12"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "mpeg1.mpg": {"codec": "mpeg1video"},
    "ffv1_gray.mkv": {"codec": "ffv1", "pixel_format": "gray"},
    "ffv1_444.mkv": {"codec": "ffv1", "pixel_format": "yuv444p"},
    "odd_size.avi": {"codec": "ffv1", "width": 161, "height": 121, "pixel_format": "yuv444p"},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("decode")
    return {name: make_video(folder / name, 30, **fields) for name, fields in KINDS.items()}


def read(path: Path, decoder: str = "pyav", **limits: int) -> tuple[list[int], list[np.ndarray], FrameReader]:
    reader = FrameReader(path, decoder=decoder, **limits)
    pairs = list(reader)
    return [number for number, _ in pairs], [frame for _, frame in pairs], reader


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> str:
    if request.param == "decord":
        pytest.importorskip("decord")
    return request.param


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_numbered_in_the_order_of_display(videos, name, decoder) -> None:
    numbers, frames, reader = read(videos[name], decoder)
    assert numbers == list(range(30))
    assert [read_number(frame) for frame in frames] == numbers
    assert reader.frames_decoded == 30
    assert all(frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in frames)


@pytest.mark.parametrize("name", KINDS)
def test_decoders_agree(videos, name) -> None:
    pytest.importorskip("decord")
    _, ours, _ = read(videos[name], "pyav")
    _, theirs, _ = read(videos[name], "decord")
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a == b).all()


@pytest.mark.parametrize("name", ["ffv1_gray.mkv", "ffv1_444.mkv", "odd_size.avi"])
def test_lossless_pixels_come_back(videos, name) -> None:
    fields = KINDS[name]
    _, frames, _ = read(videos[name])
    expected = numbered_frame(7, fields.get("width", 160), fields.get("height", 120)).astype(float)
    if name == "ffv1_gray.mkv":
        expected = (expected @ [0.299, 0.587, 0.114])[..., None].repeat(3, axis=2)
    assert np.abs(frames[7] - expected).mean() < 1.5


def test_pixels_are_those_of_ffmpegs_scaler(videos) -> None:
    with av.open(str(videos["mpeg4.avi"])) as container:
        reference = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    _, frames, _ = read(videos["mpeg4.avi"])
    assert all((a == b).all() for a, b in zip(frames, reference, strict=True))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 30), (5, 9), (29, 30), (17, 99)])
def test_ranges(videos, decoder, start, stop) -> None:
    numbers, frames, _ = read(videos["h264_b_frames.mkv"], decoder, start=start, stop=stop)
    assert numbers == list(range(start, min(stop, 30)))
    assert [read_number(frame) for frame in frames] == numbers


def test_only_wanted_frames_are_converted(videos, decoder, monkeypatch) -> None:
    every = list(FrameReader(videos["h264_b_frames.mkv"], decoder=decoder))
    converted: list[int] = []
    convert = decode._to_rgb

    def counted(frame, reformatter, state, size=None):
        converted.append(state.frames - 1)
        return convert(frame, reformatter, state, size)

    monkeypatch.setattr(decode, "_to_rgb", counted)
    reader = FrameReader(videos["h264_b_frames.mkv"], decoder=decoder, start=2, wants=lambda number: number % 3 == 0)
    found = list(reader)
    assert [number for number, _ in found] == [number for number, _ in every[2:] if number % 3 == 0]
    assert all(np.array_equal(frame, every[number][1]) for number, frame in found)
    assert reader.frames_decoded == len(every)
    assert converted == ([number for number, _ in found] if decoder == "pyav" else [])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 2)])
def test_a_range_without_frames_is_refused(videos, start, stop) -> None:
    with pytest.raises(ValueError, match="no range"):
        FrameReader(videos["mpeg4.avi"], start=start, stop=stop)


def test_frames_that_were_read_do_not_wait_for_the_garbage_collector(videos, decoder) -> None:
    """Each holds its picture, 3 MB of 1080p."""
    gc.collect()
    gc.disable()
    try:
        most = 0
        for _ in FrameReader(videos["mpeg4.avi"], decoder=decoder):
            most = max(most, sum(type(one) is av.VideoFrame for one in gc.get_objects()))
    finally:
        gc.enable()
    assert most <= 3


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turns_are_applied(tmp_path, videos, decoder, degrees) -> None:
    turned = turn_mp4(videos["h264.mp4"], tmp_path / "turned.mp4", degrees)
    _, plain, _ = read(videos["h264.mp4"])
    _, frames, _ = read(turned, decoder)
    assert len(frames) == 30
    expected = np.rot90(plain[3], -degrees // 90)  # the matrix turns clockwise
    assert frames[3].shape == expected.shape
    assert np.abs(frames[3].astype(int) - expected).mean() <= 2


@pytest.mark.parametrize("size", [(51, 40), (240, 320), (100, 150)])
@pytest.mark.parametrize("name", ["ffv1_gray.mkv", "odd_size.avi"])
def test_frames_scaled_while_they_are_converted_are_close_to_scaling_afterwards(videos, name, size) -> None:
    """To half a level, where colours have the whole resolution: scaling first does not smooth them twice."""
    _, frames, plain = read(videos[name])
    reader = FrameReader(videos[name], start=1, wants=lambda number: number % 7 == 1)
    numbers = []
    for number, picture in reader.pictures():
        whole, scaled = frames[number], picture.rgb(size)
        assert picture.shape == whole.shape[:2]
        assert scaled.shape == (*size, 3)
        assert np.abs(scaled.astype(int) - scale_to(whole, *size)).mean() < 0.5
        np.testing.assert_array_equal(picture.rgb(), whole)
        np.testing.assert_array_equal(picture.rgb(picture.shape), whole)
        numbers.append(number)
    assert numbers == [1, 8, 15, 22, 29]
    assert (reader.frames_decoded, reader.notes, reader.ticks) == (30, plain.notes, plain.ticks)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turns_are_applied_to_scaled_frames(tmp_path, videos, degrees) -> None:
    turned = turn_mp4(videos["h264.mp4"], tmp_path / "turned.mp4", degrees)
    plain = [picture.rgb((40, 51)) for _, picture in FrameReader(videos["h264.mp4"], stop=2).pictures()]
    size = (51, 40) if degrees % 180 else (40, 51)
    for number, picture in FrameReader(turned, stop=2).pictures():
        np.testing.assert_array_equal(picture.rgb(size), np.rot90(plain[number], -degrees // 90))
        assert picture.rgb(size).flags.c_contiguous


def test_scalers_of_a_file_that_changes_its_size_again_and_again_are_not_kept(videos) -> None:
    state, reformatters = decode._Decoding(), {}
    frame = next(decode._decode(videos["h264.mp4"], state))
    for height in range(8, 108):
        assert decode.Picture(frame, reformatters, state).rgb((height, 8)).shape == (height, 8, 3)
    assert len(reformatters) < 20


def test_a_rate_that_varies_keeps_every_frame(tmp_path, decoder) -> None:
    times = [0, 1, 2, 5, 6, 7, 20, 21, 22, 40]
    path = make_video(tmp_path / "varying.mkv", 10, codec="libx264", times=times)
    numbers, frames, reader = read(path, decoder)
    assert numbers == [read_number(frame) for frame in frames] == list(range(10))
    assert reader.notes == []


def test_one_frame(tmp_path, decoder) -> None:
    numbers, frames, _ = read(make_video(tmp_path / "one.avi", 1), decoder)
    assert numbers == [0]
    assert frames[0].shape == (120, 160, 3)


def test_probe(videos) -> None:
    info = probe(videos["mpeg4_b_frames.avi"])
    assert (info.width, info.height, info.fps, info.codec, info.container) == (160, 120, 25.0, "mpeg4", "avi")
    assert info.packet_frames == info.announced_frames == 30
    info = probe(videos["h264_b_frames.mkv"])
    assert (info.expected_s, info.end_s) == (pytest.approx(1.2, abs=0.01), pytest.approx(1.2, abs=0.01))
    for path in videos.values():
        assert probe(path).packet_frames == 30, path


def test_frames_that_cannot_be_decoded_are_noted_not_replaced(tmp_path, videos, decoder) -> None:
    damaged = damage_packets(videos["mpeg4.avi"], tmp_path / "damaged.avi", [10, 11])
    numbers, frames, reader = read(damaged, decoder)
    assert numbers == list(range(28))
    assert [read_number(frame) for frame in frames[:10]] == list(range(10))
    assert any("2 packets could not be decoded, the first near frame 10" in note for note in reader.notes)
    if decoder == "decord":
        assert reader.decoder_used == "pyav"
        assert any("decord shows damaged frames as good ones" in note for note in reader.notes)


def test_patched_frames_are_noted(tmp_path, videos) -> None:
    source = videos["h264.mp4"]
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(source.read_bytes())
    position, size = packets[4]
    data[position + size // 2 : position + size] = bytes(size - size // 2)
    path = tmp_path / "patched.mp4"
    path.write_bytes(data)
    _, _, reader = read(path)
    assert any("damaged" in note or "could not be decoded" in note for note in reader.notes), reader.notes


@pytest.mark.parametrize("container", ["avi", "mp4", "mkv"])
def test_a_truncated_file_yields_its_sound_frames(tmp_path, container, decoder) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if container == "mp4" else {}
    source = make_video(tmp_path / f"whole.{container}", 60, options={"g": "5", **options})
    path = truncate(source, tmp_path / f"cut.{container}", 0.7)
    if container == "mp4":
        with pytest.raises(VideoError, match=r"cut\.mp4: is not a readable video"):
            read(path, decoder)
        return
    numbers, frames, _ = read(path, decoder)
    assert 20 < len(numbers) < 60
    assert [read_number(frame) for frame in frames[:-1]] == numbers[:-1]


@pytest.mark.skipif(not hasattr(av.VideoStream, "index_entries"), reason="PyAV before 17 does not give the index")
@pytest.mark.parametrize("codec", ["mpeg4", "ffv1"])
def test_a_picture_that_the_reader_of_an_avi_leaps_over_is_noted(tmp_path, codec: str) -> None:
    """The header of its piece is gone: the reader looks for the next one, and no packet is damaged."""
    source = make_video(tmp_path / "whole.avi", 20, codec=codec)
    with av.open(str(source)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    assert probe(source).notes == ()
    for place in places[1:]:
        data = bytearray(source.read_bytes())
        assert data[place - 8 : place - 4] == b"00dc"
        data[place - 8 : place] = bytes(8)
        path = tmp_path / "hole.avi"
        path.write_bytes(data)
        info = probe(path)
        assert info.packet_frames < 20
        assert any(note.startswith("the file's index lists 20 pictures, of which ") for note in info.notes)
        assert info.table is None


def test_a_missing_file_is_named(tmp_path) -> None:
    for action in (probe, lambda path: read(path)):
        with pytest.raises(VideoError, match=r"no\.avi: the file does not exist"):
            action(tmp_path / "no.avi")


def test_a_folder_is_no_video(tmp_path) -> None:
    with pytest.raises(VideoError, match="is a folder, not a video file"):
        probe(tmp_path)


def test_a_manifest_is_no_video(tmp_path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video_id,path,label\na,a.avi,x\n" * 20)
    with pytest.raises(VideoError, match=r"m\.csv: is a manifest, not a video file"):
        probe(path)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"hello\n" * 99, "is not a readable video")]
)
def test_files_that_are_no_videos(tmp_path, decoder, content, reason) -> None:
    path = tmp_path / "bad.avi"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"bad\.avi: {reason}"):
        read(path, decoder)


def test_sound_alone_is_no_video(tmp_path, decoder) -> None:
    path = make_audio(tmp_path / "sound.mp4")
    with pytest.raises(VideoError, match=r"has no video stream \(only audio\)"):
        read(path, decoder)


def test_names_that_are_longer_than_any_file_has(tmp_path) -> None:
    with pytest.raises(VideoError, match=r"aaa\.avi: cannot be read \(File name too long\)"):
        probe(tmp_path / ("a" * 300 + ".avi"))


def test_a_file_that_must_not_be_read_is_named(videos, monkeypatch) -> None:
    def refused(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(VideoError, match=r"mpeg4\.avi: cannot be read \(Permission denied\)"):
        probe(videos["mpeg4.avi"])


@pytest.mark.parametrize("name", [b"\xff.avi", b"concat:a.avi"])
def test_names_that_mean_something_else_elsewhere(tmp_path, videos, decoder, name, monkeypatch) -> None:
    """One that is not UTF-8, which decord does not take, and one that looks like a protocol of FFmpeg."""
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    path.write_bytes(videos["mpeg4.avi"].read_bytes())
    numbers, _, reader = read(path, decoder)
    assert numbers == list(range(30))
    if decoder == "decord" and name.startswith(b"\xff"):
        assert reader.decoder_used == "pyav"
        assert "decord failed ('utf-8' codec can't encode" in reader.notes[0]
    else:
        assert (reader.decoder_used, reader.notes) == (decoder, [])


def test_decord_leaves_to_pyav_what_it_gets_wrong(videos) -> None:
    pytest.importorskip("decord")
    for name, reason in {
        "mpeg1.mpg": "decord misnumbers the frames of mpeg files",
        "odd_size.avi": "decord's colours are off",
    }.items():
        _, _, reader = read(videos[name], "decord")
        assert reader.decoder_used == "pyav"
        (note,) = reader.notes
        assert reason in note


def test_a_failure_of_decord_is_taken_over_from_the_same_frame(videos, monkeypatch) -> None:
    decord = pytest.importorskip("decord")

    class Reader(decord.VideoReader):
        def get_batch(self, indices):
            if 16 in indices:
                raise decord.DECORDError("it broke")
            return super().get_batch(indices)

    monkeypatch.setattr(decord, "VideoReader", Reader)
    numbers, frames, reader = read(videos["mpeg4.avi"], "decord")
    assert numbers == [read_number(frame) for frame in frames] == list(range(30))
    assert reader.decoder_used == "decord, then pyav"
    assert reader.notes == ["decord failed (it broke): PyAV read from frame 16 on"]


def info_of(**changes: object) -> VideoInfo:
    fields: dict[str, object] = {
        "path": Path("v.avi"),
        "width": 320,
        "height": 240,
        "timing": Timing(25.0),
        "header_fps": 25.0,
        "tick_s": 0.04,
        "expected_s": 0.0,
        "end_s": 4.0,
        "container_frames": 100,
        "packet_frames": 100,
        "hidden_packets": 0,
        "share_read": 1.0,
        "filled": False,
        "codec": "mpeg4",
        "container": "avi",
        "pixel_format": "yuv420p",
    }
    return VideoInfo(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "found", "end_frame", "expected"),
    [
        ({}, 100, None, []),
        ({}, 99, None, []),  # a header that counts one too many is common
        ({}, 98, None, ["100 frames are announced, 98 could be decoded"]),
        ({"hidden_packets": 3}, 97, None, []),
        ({"container_frames": 0}, 97, None, ["100 frames are announced, 97 could be decoded"]),
        ({}, 60, 60, []),
        ({}, 60, 80, ["80 frames are announced, 60 could be decoded"]),
        ({}, 100, 120, ["frames up to 120 are wanted, the file has 100"]),
        ({"container_frames": 0, "expected_s": 6.0}, 100, None, ["150 frames are announced, 100 could be decoded"]),
        ({"container_frames": 0, "expected_s": 6.0, "end_s": 5.9}, 100, None, []),  # sound that lasts longer
        ({"container_frames": 0, "expected_s": 4.2}, 100, None, []),
    ],
)
def test_tail_note(changes, found, end_frame, expected) -> None:
    assert tail_note(info_of(**changes), found, end_frame) == expected


def test_less_than_half_of_a_file_is_a_failure() -> None:
    with pytest.raises(VideoError, match=r"v\.avi: 100 frames are announced, 40 could be decoded: the file is trunc"):
        tail_note(info_of(), 40)


@pytest.mark.needs_real_data
def test_real_clips_are_read_alike_by_both_decoders(real_data) -> None:
    pytest.importorskip("decord")
    paths = sorted(p for p in (real_data / "clips").rglob("*") if p.suffix in {".avi", ".mpg"})
    small = [p for p in paths if "ntu" not in str(p) and "ut_interaction" not in str(p)]
    small += [p for p in paths if "ut_interaction" in str(p)][::6]
    assert len(small) >= 30
    for path in small:
        ours, theirs = FrameReader(path), FrameReader(path, decoder="decord")
        last = -1
        for (i, a), (j, b) in zip(ours, theirs, strict=True):
            assert i == j == last + 1
            last = i
            assert np.abs(a.astype(np.int16) - b).mean() <= 2, f"{path}, frame {i}"
        assert ours.notes == [], path


@pytest.mark.needs_real_data
def test_real_clips_hold_the_frames_that_probe_counts(real_data) -> None:
    paths = sorted(p for p in (real_data / "clips").rglob("*") if p.suffix in {".avi", ".mpg"} and "ntu" not in str(p))
    for path in paths:
        info = probe(path)
        found = sum(1 for _ in FrameReader(path))
        assert abs(found - info.packet_frames) <= 1, path
        assert tail_note(info, found) == [], path
