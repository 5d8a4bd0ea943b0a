"""Decoders beside PyAV, on request: decord, torchcodec, and NVIDIA's through torchcodec. Each delivers pixels only.

PyAV, or the packets, say which frames a file has and whether it is sound (`decode.FrameReader`). Each of these decoders says
which files it would get wrong, which PyAV then reads. Their pixels are not PyAV's in every case, so each makes feature sets of
its own. decord: up to 2 levels in some MPEG-4 files, none in most. torchcodec: none in all files tried, as long as both have
FFmpeg 8. NVIDIA's: colours are converted on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import Decoder

if TYPE_CHECKING:
    from har_pipeline.video.decode import VideoInfo

DECORD_BLOCK = 16
# Containers in which decord's frame numbers were found to be wrong.
_NOT_FOR_DECORD = ("mpeg", "mpegvideo", "mpegts")
# Pixel formats that torchcodec and PyAV turn into the same RGB. In others they place the chroma samples differently.
_SAME_COLOURS = ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "gray")
# A frame's time stamp in s, None if the decoder does not give it, and what converts it to (H, W, 3) uint8 RGB.
Shot = tuple[float | None, Callable[[], np.ndarray]]


class DecoderFailure(Exception):
    """A decoder gave up; the message says why, in one line."""


class OtherDecoder(Protocol):
    """A decoder that delivers the pixels of files which PyAV found to be sound."""

    name: Decoder
    by_packets: bool  # whether a file whose packets prove the frames' numbers is not scanned with PyAV
    one_size: bool  # whether frames of other sizes are scaled to the first one's

    def unfit(self, info: VideoInfo) -> str:
        """Return why the decoder would be wrong about a file, or nothing."""

    def frames(self, info: VideoInfo, count: int) -> Generator[Shot, None, None]:
        """Yield the first `count` frames in the order of display. Raises: DecoderFailure."""


def other_decoder(decoder: Decoder) -> OtherDecoder | None:
    """Return the decoder that stands beside PyAV, None for PyAV. Raises: ExtractionError if it cannot be used here."""
    if decoder == "decord":
        return Decord()
    return TorchCodec(decoder) if decoder in ("torchcodec", "nvdec") else None


def _missing(decoder: str, problem: str) -> ExtractionError:
    return ExtractionError(f"{problem}; without --decoder {decoder} PyAV reads the files, into another feature set")


def _in_short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__


class Decord:
    """decord: misnumbers some MPEG-1 files, repeats the last decodable frame, and shows damaged frames as good ones."""

    name: Decoder = "decord"
    by_packets = False
    one_size = True

    def __init__(self) -> None:
        """Raises: ExtractionError if decord is not installed or cannot be loaded."""
        try:
            import decord
        except ImportError as error:
            raise _missing("decord", "decord is not installed (wheels: x86-64 Linux and Windows only)") from error
        except (OSError, RuntimeError) as error:  # a library that it was built for is missing
            raise _missing("decord", f"decord cannot be loaded here ({_in_short(error)})") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord

    def unfit(self, info: VideoInfo) -> str:
        """Return why decord would be wrong about a file, or nothing."""
        if info.container in _NOT_FOR_DECORD:
            return f"decord misnumbers the frames of {info.container} files"
        if info.width % 2 or info.height % 2 or info.pixel_format.endswith(("le", "be")):
            return f"decord's colours are off for {info.pixel_format} frames of {info.width}x{info.height} px"
        if info.notes:
            return "decord chooses among several video streams by another rule"
        return ""

    def frames(self, info: VideoInfo, count: int) -> Generator[Shot, None, None]:
        """Yield the first `count` frames. Raises: DecoderFailure."""
        try:
            # By the whole path, which cannot be taken for an address. A name that is not UTF-8 is a ValueError.
            video = self._decord.VideoReader(str(info.path.absolute()), num_threads=1)
            # Blocks from the first frame on, since decord's seeks are not exact.
            for block in range(0, count, DECORD_BLOCK):
                numbers = range(block, min(block + DECORD_BLOCK, count))
                for frame in video.get_batch(numbers).asnumpy():
                    yield None, partial(np.asarray, frame)
        except (self._decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
            raise DecoderFailure(_in_short(error)) from error


class TorchCodec:
    """torchcodec, frame after frame: on the CPU, or as `nvdec` on the CUDA device that torch takes by default.

    NVDEC takes what the GPU knows (H.264, HEVC, VP9, AV1 and others); torchcodec decodes the rest on the CPU and converts
    colours on the GPU all the same.
    """

    def __init__(self, name: Decoder) -> None:
        """name: `torchcodec` or `nvdec`. Raises: ExtractionError if torchcodec, FFmpeg or the GPU is missing."""
        try:
            import torchcodec
            import torchcodec.decoders as codec
        except ImportError as error:
            raise _missing(
                name, f"--decoder {name} needs the package: pip install 'har-pipeline[torchcodec]'"
            ) from error
        except (OSError, RuntimeError) as error:  # an older one says at once that it finds no FFmpeg
            raise _missing(name, f"torchcodec cannot be loaded here ({_in_short(error)})") from error
        if not hasattr(codec, "VideoPacketDecoder"):
            raise _missing(name, f"torchcodec {torchcodec.__version__} is too old: pip install -U 'torchcodec>=0.17'")
        if torchcodec.ffmpeg_major_version is None:
            raise _missing(
                name,
                "torchcodec finds no FFmpeg (shared libraries of version 4 to 9, which PyAV does not share): install it, such "
                "as by apt install ffmpeg or conda install -c conda-forge ffmpeg",
            )
        if name == "nvdec":
            import torch

            if not torch.cuda.is_available():
                raise _missing(name, "--decoder nvdec needs an NVIDIA GPU, and torch finds none")
        self.name = name
        self.by_packets = name == "nvdec"  # for the CPU nothing would be gained
        self.one_size = False
        self._codec: Any = codec
        self._device = "cuda" if name == "nvdec" else "cpu"

    def unfit(self, info: VideoInfo) -> str:
        """Return why torchcodec would be wrong about a file, or nothing."""
        if self._device == "cpu" and info.pixel_format not in _SAME_COLOURS:
            return f"torchcodec's colours are others for {info.pixel_format} frames"
        return ""

    def frames(self, info: VideoInfo, count: int) -> Generator[Shot, None, None]:
        """Yield the first `count` frames. Raises: DecoderFailure."""
        # Through an open file, since torchcodec then opens no other one that it may name.
        with info.path.open("rb") as file:
            try:
                demuxer = self._codec.Demuxer(file, streams=info.stream)
                decoder = demuxer.streams[0].make_decoder(self._device, num_ffmpeg_threads=1)
                converter = self._codec.ColorConverter(self._device)
                met = 0
                for packet in demuxer:
                    for frame in decoder.decode(packet):
                        yield frame.pts_seconds, partial(_rgb, converter, frame)
                        met += 1
                        if met == count:
                            return
                for frame in decoder.drain()[: count - met]:
                    yield frame.pts_seconds, partial(_rgb, converter, frame)
            except (RuntimeError, ValueError) as error:
                raise DecoderFailure(_in_short(error)) from error


def _rgb(converter: Any, frame: Any) -> np.ndarray:
    """Return (H, W, 3) uint8. Raises: DecoderFailure."""
    try:
        data = converter.convert(frame).data
        return np.ascontiguousarray(data.permute(1, 2, 0).cpu().numpy())
    except RuntimeError as error:
        raise DecoderFailure(_in_short(error)) from error
