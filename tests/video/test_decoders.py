"""Decoders beside PyAV that are not installed everywhere: torchcodec on the CPU, and its way to NVDEC with a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from paths import python_path
from video_files import damage_packets, join, make_video, merge_streams, set_matrix

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import Decoder
from har_pipeline.video import decode
from har_pipeline.video.decode import FrameReader, require_decoder
from har_pipeline.video.seek import WORTH_PACKETS

# Prints, for each file, how the frames that a decoder gives differ from PyAV's, and what is said of them.
COMPARE = """
import json, sys
from pathlib import Path
import torchcodec
if torchcodec.ffmpeg_major_version is None:
    sys.exit("torchcodec does not load with the FFmpeg of PyAV")
from har_pipeline.video.decode import FrameReader
for path in map(Path, sys.argv[2:]):
    ours, theirs = FrameReader(path), FrameReader(path, decoder=sys.argv[1])
    count, levels, alike = 0, 0.0, True
    for (i, a), (j, b) in zip(ours, theirs, strict=True):
        alike &= i == j == count and a.shape == b.shape and b.flags.c_contiguous and b.dtype == "uint8"
        if alike and (a != b).any():
            levels = max(levels, float(abs(a.astype("int16") - b).mean()))
        count += 1
    alike &= ours.frames_decoded == theirs.frames_decoded and ours.ticks == theirs.ticks
    print(json.dumps([count if alike else -1, levels, ours.notes, theirs.notes, theirs.decoder_used]), flush=True)
"""


# torchcodec itself, with the FFmpeg that PyAV brings.


# Frames, -1 if they are not alike; the mean difference of the worst one, in levels of 255; notes of PyAV's pass and of the
# other one; who decoded.
Compared = tuple[int, float, list[str], list[str], str]


def compared(folder: Path, paths: list[Path], decoder: str = "torchcodec") -> list[Compared]:
    """Run `COMPARE` where torchcodec finds PyAV's FFmpeg, under the names that its libraries have elsewhere."""
    pytest.importorskip("torchcodec")
    wheel = Path(av.__file__).parents[1] / "av.libs"
    for library in wheel.glob("lib*.so.*"):
        name, version = library.name.split(".so.")
        plain = folder / f"{name.partition('-')[0]}.so.{version.partition('.')[0]}"
        if not plain.exists():
            plain.symlink_to(library)
    environment = {**python_path(), "LD_LIBRARY_PATH": f"{folder}:{wheel}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMPARE, decoder, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    if "torchcodec does not load" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-2000:]
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(paths)
    return found


KINDS: dict[str, dict[str, Any]] = {
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264.mp4": {"codec": "libx264", "width": 164, "height": 122},
    "open_gop.mkv": {"codec": "libx264", "options": {"bf": "3", "g": "8", "x264-params": "open-gop=1:log-level=-1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "mpeg1.mpg": {"codec": "mpeg1video"},
    "stream.h264": {"codec": "libx264"},
    "gray.mkv": {"codec": "ffv1", "pixel_format": "gray"},
    "odd_size.avi": {"codec": "ffv1", "width": 161, "height": 121, "pixel_format": "yuv444p"},
    "tall.ts": {"codec": "libx264", "width": 120, "height": 160},
}
LEFT_TO_PYAV = {
    "deep.mkv": "torchcodec's colours are others for yuv420p10le frames",
    "mirrored.mp4": "torchcodec does not know all display matrices",
    "damaged.avi": "torchcodec shows damaged frames as good ones",
    "two_sizes.ts": "torchcodec shows damaged frames as good ones",  # joined, which leaves a gap in the stream
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    """What one process found of all files: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("torchcodec")
    for name, fields in KINDS.items():
        make_video(folder / name, 24, **fields)
    join([make_video(folder / "wide.ts", 24, codec="libx264"), folder / "tall.ts"], folder / "two_sizes.ts")
    merge_streams([folder / "tall.ts", folder / "h264.mp4"], folder / "two_streams.mp4")
    make_video(folder / "deep.mkv", 24, codec="libx264", pixel_format="yuv420p10le")
    set_matrix(folder / "h264.mp4", folder / "mirrored.mp4", -1, 0, 0, 1)
    damage_packets(folder / "mpeg4.avi", folder / "damaged.avi", [5])
    names = [*KINDS, "two_streams.mp4", *LEFT_TO_PYAV]
    return dict(zip(names, compared(folder, [folder / name for name in names]), strict=True))


def test_torchcodec_gives_pyavs_frames_bit_for_bit(results: dict[str, Compared]) -> None:
    for name in (*KINDS, "two_streams.mp4"):
        frames, levels, ours, theirs, used = results[name]
        assert (frames, levels, used) == (24, 0, "torchcodec"), (name, theirs)
        assert ours == theirs, name


def test_torchcodec_leaves_to_pyav_what_it_gets_wrong(results: dict[str, Compared]) -> None:
    for name, reason in LEFT_TO_PYAV.items():
        frames, levels, ours, theirs, used = results[name]
        assert frames > 0
        assert (levels, used) == (0, "pyav"), name
        assert theirs == [f"{reason}: PyAV read from frame 0 on", *ours]


@pytest.mark.needs_real_data
@pytest.mark.exhaustive
def test_torchcodec_gives_pyavs_frames_of_all_real_clips(tmp_path: Path, real_data: Path) -> None:
    clips = [p for p in sorted((real_data / "clips").rglob("*")) if p.suffix in {".avi", ".mpg", ".mp4", ".mkv"}]
    odd = [p for p in sorted((real_data / "odd").iterdir()) if p.suffix != ".md"]
    assert len(clips) >= 90
    paths = [*clips, *odd]
    for path, (frames, levels, ours, theirs, used) in zip(paths, compared(tmp_path, paths), strict=True):
        assert frames > 0, path
        assert levels == 0, path
        left = path.name in ("matrix_transpose.mp4", "matrix_vflip.mp4", "matrix_zero.mp4", "turned_midstream.ts")
        assert used == ("pyav" if left else "torchcodec"), (path, theirs)
        assert ours == [note for note in theirs if "PyAV read" not in note], path


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nvdec_gives_the_same_frames_but_for_colours(tmp_path: Path) -> None:
    """Of a file whose packets prove the numbers, and of one that is scanned."""
    paths = [make_video(tmp_path / f"{n}.mp4", n, codec="libx264", width=320, height=240) for n in (24, 150)]
    for path, (frames, levels, ours, theirs, used) in zip(paths, compared(tmp_path, paths, "nvdec"), strict=True):
        assert (frames, used, theirs) == (int(path.stem), "nvdec", ours), path
        assert levels < 3, path


# A stand-in for torchcodec: what is said where it cannot be used, and who reads on where it fails.


class Demuxer:
    """As torchcodec's building blocks, over PyAV. Times are those of the packets, or off by `late` s."""

    def __init__(self, file: Any, *, streams: int, late: float = 0.0, end: int = 1000) -> None:
        self.container = av.open(file)
        self.stream = self.container.streams[streams]
        self.streams, self.late, self.left = (self,), late, end

    def make_decoder(self, device: str, *, num_ffmpeg_threads: int) -> Demuxer:
        assert num_ffmpeg_threads == 1
        self.device = device
        return self

    def __iter__(self) -> Iterator[av.Packet]:
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def decode(self, packet: av.Packet | None) -> list[Any]:
        frames = self.stream.decode(packet)[: self.left]
        self.left -= len(frames)
        return [SimpleNamespace(pts_seconds=f.pts * float(self.stream.time_base) + self.late, frame=f) for f in frames]

    def drain(self) -> list[Any]:
        return self.decode(None)


class ColorConverter:
    """Breaks at the frame of number `broken`, counting those that it was asked for."""

    def __init__(self, device: str, *, broken: int = -1) -> None:
        self.device, self.asked, self.broken = device, 0, broken

    def convert(self, raw: Any) -> Any:
        self.asked += 1
        if self.asked == self.broken + 1:
            raise RuntimeError("the GPU is gone\nand more lines")
        return SimpleNamespace(data=torch.from_numpy(raw.frame.to_ndarray(format="rgb24")).permute(2, 0, 1))


def put_torchcodec(monkeypatch: pytest.MonkeyPatch, *, ffmpeg: int | None = 8, **fields: Any) -> None:
    package, codec = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    vars(package).update(__version__="0.17.0", ffmpeg_major_version=ffmpeg, decoders=codec)
    vars(codec).update({"Demuxer": Demuxer, "ColorConverter": ColorConverter, "VideoPacketDecoder": Demuxer, **fields})
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", codec)


@pytest.mark.parametrize("name", ["torchcodec", "nvdec"])
def test_without_torchcodec_or_its_ffmpeg_nothing_is_begun(
    tmp_path: Path, name: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = f"; without --decoder {name} PyAV reads the files, into another feature set"

    def says() -> str:
        with pytest.raises(ExtractionError) as caught:
            require_decoder(name)
        text = str(caught.value)
        assert text.endswith(ending)
        assert "\n" not in text
        return text.removesuffix(ending)

    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert says() == f"--decoder {name} needs the package: pip install 'har-pipeline[torchcodec]'"
    put_torchcodec(monkeypatch, ffmpeg=None)
    assert says().startswith("torchcodec finds no FFmpeg (shared libraries of version 4 to 9")
    put_torchcodec(monkeypatch)
    monkeypatch.delattr(sys.modules["torchcodec.decoders"], "VideoPacketDecoder")
    assert says() == "torchcodec 0.17.0 is too old: pip install -U 'torchcodec>=0.17'"
    for module in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "torchcodec.py").write_text("raise RuntimeError('Could not load libtorchcodec. Likely\\n causes: ...')")
    monkeypatch.syspath_prepend(tmp_path)
    assert says() == "torchcodec cannot be loaded here (Could not load libtorchcodec. Likely)"


def test_nvdec_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    put_torchcodec(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ExtractionError, match=r"--decoder nvdec needs an NVIDIA GPU, and torch finds none; without --deco"
    ):
        require_decoder("nvdec")
    require_decoder("torchcodec")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"bf": "2", "g": "25"}
    return make_video(
        tmp_path_factory.mktemp("decoders") / "a.mp4", WORTH_PACKETS + 20, codec="libx264", options=options
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    put_torchcodec(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def frames_of(path: Path, decoder: Decoder, **limits: Any) -> tuple[list[tuple[int, np.ndarray]], FrameReader]:
    reader = FrameReader(path, decoder=decoder, **limits)
    return list(reader), reader


def same(one: list[tuple[int, np.ndarray]], other: list[tuple[int, np.ndarray]]) -> bool:
    return [n for n, _ in one] == [n for n, _ in other] and all(
        (a == b).all() for (_, a), (_, b) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("limits", [{}, {"start": 7, "stop": 31}, {"wants": lambda number: number % 50 == 49}])
@pytest.mark.usefixtures("gpu")
def test_what_the_packets_prove_is_not_scanned_for_the_gpu(
    video: Path, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, reader = frames_of(video, "pyav", **limits)
    looked_at: list[Any] = []
    matrix = decode._display_matrix

    def looked(frame: Any) -> Any:
        looked_at.append(frame)
        return matrix(frame)

    monkeypatch.setattr(decode, "_display_matrix", looked)
    theirs, other = frames_of(video, "nvdec", **limits)
    assert same(ours, theirs)
    assert (other.notes, other.decoder_used, other.frames_decoded) == ([], "nvdec", reader.frames_decoded)
    assert other.ticks == reader.ticks
    assert len(looked_at) == 1


@pytest.mark.usefixtures("gpu")
def test_other_files_are_scanned_for_the_gpu(tmp_path: Path) -> None:
    """Those whose packets prove nothing, here since they are few; damage is then found."""
    short = make_video(tmp_path / "short.mp4", 20, codec="libx264")
    assert same(frames_of(short, "nvdec")[0], frames_of(short, "pyav")[0])
    damaged = damage_packets(make_video(tmp_path / "b.avi", 20), tmp_path / "damaged.avi", [5])
    theirs, reader = frames_of(damaged, "nvdec")
    assert same(theirs, frames_of(damaged, "pyav")[0])
    assert reader.decoder_used == "pyav"
    assert reader.notes[0] == "nvdec shows damaged frames as good ones: PyAV read from frame 0 on"


@pytest.mark.parametrize(
    ("fault", "used", "note"),
    [
        (
            {ColorConverter: {"broken": 9}},
            "nvdec, then pyav",
            "nvdec failed (the GPU is gone): PyAV read from frame 9 on",
        ),
        ({Demuxer: {"end": 40}}, "nvdec, then pyav", "nvdec ends early: PyAV read from frame 40 on"),
        ({Demuxer: {"late": 0.04}}, "pyav", "nvdec delivers another frame than number 0: PyAV read from frame 0 on"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_pyav_takes_over_from_the_frame_where_another_decoder_fails(
    video: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[type, dict[str, Any]], used: str, note: str
) -> None:
    for kind, fields in fault.items():
        monkeypatch.setattr(sys.modules["torchcodec.decoders"], kind.__name__, partial(kind, **fields))
    ours = frames_of(video, "pyav")[0]
    theirs, reader = frames_of(video, "nvdec")
    assert same(theirs, ours)
    assert (reader.decoder_used, reader.notes) == (used, [note])
    put_torchcodec(monkeypatch)
    assert same(list(reader), ours)
    assert (reader.decoder_used, reader.notes) == ("nvdec", [])
