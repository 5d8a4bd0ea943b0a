"""Holes: noticed where a codec's sound data has no zeros in a row, and not taken for one where it may."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from video_files import make_video

from har_pipeline.video.decode import FrameReader, probe
from har_pipeline.video.holes import has_hole


@pytest.mark.parametrize(
    ("codec", "data", "found"),
    [
        ("h264", b"\x65\x88" + bytes(8) + b"\x42", True),
        ("h264", b"\x65\x88" + bytes(7) + b"\x42", False),
        ("hevc", b"\x26\x01" + bytes(500) + b"\x42" + bytes(9), True),
        ("h264", b"\x65\x88" + bytes(300) + b"\x01\x65", False),  # zeros before a start code
        ("h264", b"\x65\x88" + bytes(300), False),  # padding
        ("vp9", b"\x82" + bytes(255) + b"\x42", False),
        ("vp9", b"\x82" + bytes(256) + b"\x42", True),
        ("vp8", b"\x82" + bytes(300), False),
        ("rawvideo", bytes(1000) + b"\x42", False),
        ("mpeg4", bytes(1000) + b"\x42", False),
    ],
)
def test_what_counts_as_a_hole(codec: str, data: bytes, found: bool) -> None:
    assert has_hole(codec, data) is found


@pytest.mark.parametrize("container", ["mp4", "ts"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize(
    "options",
    [{}, {"crf": "0"}, {"crf": "51"}, {"x264-params": "nal-hrd=cbr:vbv-maxrate=400:vbv-bufsize=400:bitrate=400"}],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_sound_data_has_none(tmp_path: Path, codec: str, container: str, options: dict[str, str], noisy: bool) -> None:
    noise = np.random.default_rng(0) if noisy else None
    path = make_video(tmp_path / f"a.{container}", 8, codec=codec, options=options, noise=noise)
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        assert not any(has_hole(stream.codec_context.name, packet) for packet in video.demux(stream))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_small_hole_in_a_picture_is_noted(tmp_path: Path, codec: str) -> None:
    """The decoder takes most of them for pictures."""
    path = make_video(tmp_path / "a.mp4", 12, codec=codec, noise=np.random.default_rng(0))
    with av.open(str(path)) as video:
        places = [(packet.pos, packet.size) for packet in video.demux(video=0) if packet.size > 400]
    assert len(places) == 12
    for place, size in places:
        data = bytearray(path.read_bytes())
        data[place + size - 100 : place + size - 84] = bytes(16)
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(data)
        reader = FrameReader(broken)
        assert list(reader)
        assert any("hole of zero bytes" in note for note in reader.notes), (place, reader.notes)
        assert probe(broken).table is None
