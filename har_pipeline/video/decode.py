"""Probing and sequential reading of video files: PyAV by default, others on request, with the same frame numbers.

`auto` is PyAV: as fast as decord on UCF-101 (0.25 ms of CPU time a frame), with nearly equal pixels, and it flags frames
patched up from a damaged stream, which others show as good ones. So the others (`decoders`) are for comparison, or for a GPU
that decodes: they deliver pixels after PyAV has found the file sound, or after its packets proved the frames' numbers.
Frames are numbered in the order of display, as the decoder delivers them; a frame that cannot be decoded has no number.

As the ffmpeg program does, the best video stream is read, pictures attached to the file (covers) never are, and the display
matrix is applied. Only the named file is opened: formats that name further files, such as playlists, are refused, and so is
every network.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from har_pipeline.core.errors import VideoError
from har_pipeline.core.kinds import what_is
from har_pipeline.core.records import Decoder, Span
from har_pipeline.video.decoders import DecoderFailure, OtherDecoder, other_decoder
from har_pipeline.video.holes import has_hole
from har_pipeline.video.seek import Course, PacketLog, PacketTable
from har_pipeline.video.timing import Timing, display_ticks, in_frames, joined_ticks, timing_of

# A worker has one core. PyAV scales with a thread for each core of the machine since version 17, before with one.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
# Scalers that are kept from frame to frame, one for each size that a view asks for.
_MOST_SCALERS = 16
# Containers and raw streams that hold their own frames. Not listed are playlists and what else names further files (hls,
# dash, concat, sdp, imf, webm_dash_manifest), devices, numbered pictures, and formats that merely guess.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "live_flv", "asf", "mpeg", "mpegts", "mpegvideo", "ogg", "mxf",
    "gxf", "nut", "nuv", "rm", "swf", "dv", "wtv", "ivf", "obu", "av1", "gif", "apng", "h261", "h263", "h264", "hevc", "vvc",
    "m4v", "mjpeg", "vc1", "vc1test", "cavsvideo", "dirac", "dnxhd", "yuv4mpegpipe", "4xm", "bink", "smk", "roq", "flic", "nsv",
    "pva", "pmp", "mlv", "dhav", "kux", "ivr", "xmv", "avs2", "avs3", "evc", "webp_pipe",
    "vmd", "film_cpk", "idcin", "cine", "smjpeg", "moflex", "ipmovie", "c93", "dxa", "thp",
)  # fmt: skip
# PyAV reads metadata that is not UTF-8, as some HMDB-51 files hold it, only when told to, or from version 19 on always.
_OPENING: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# Headers that announce one frame too many are too common to note.
_MISCOUNT = 1
# Containers whose header says the duration but not the number of frames. A file whose streams all end before this share of
# it was cut off.
_DURATION_SHARE = 0.9
_DURATION_IN_HEADER = ("matroska,webm", "flv", "asf", "mov,mp4,m4a,3gp,3g2,mj2")
# The name (GUID) of an ASF file's properties, which stand near its start.
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD_BYTES = 2**16
# Sine of one degree, the turn that ffmpeg takes for none.
_ANGLE_SLACK = 0.0175
# The ffmpeg program prefers a stream that the file marks as the default one to others with this many px more.
_DEFAULT_STREAM_PX = 5_000_000


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The header of a file's video stream, and what its packets say."""

    path: Path
    width: int  # px as stored, before the turn that the file may ask for
    height: int
    timing: Timing = field(compare=False)
    header_fps: float  # 0 if the header does not say
    tick_s: float  # unit of the time stamps
    expected_s: float  # duration by the header or its index, 0 if unknown or an estimate
    end_s: float  # by the last packet of any stream
    container_frames: int  # the header's count, 0 if it has none
    packet_frames: int  # packets with a picture to be shown, nearly always the number of decodable frames
    hidden_packets: int  # packets without one
    share_read: float  # of the file's bytes, of a format that says nothing else of its length (GIF)
    filled: bool  # some of them are fillers, whose places in time no frame takes
    codec: str
    container: str
    pixel_format: str
    stream: int = 0  # index of the stream in the file
    notes: tuple[str, ...] = ()  # on the choice of the stream
    pixel_aspect: float = 1.0  # width of a pixel over its height, as the header says; `FrameReader` does not apply it
    table: PacketTable | None = field(default=None, compare=False, repr=False)  # None: packets cannot be skipped

    @property
    def fps(self) -> float:
        """Frames/s, the mean where the rate varies; 25 where the file does not say."""
        return self.timing.fps

    @property
    def announced_frames(self) -> int:
        """How many frames the file should have.

        The header's count less the hidden packets; without a count, by the duration or the size of the file if reading ended
        early, else the packets.
        """
        if self.container_frames:
            return self.container_frames - self.hidden_packets
        if self.end_s < self.expected_s * _DURATION_SHARE - _MISCOUNT / self.fps:
            return max(self.packet_frames, round(self.expected_s * self.fps))
        if self.share_read < _DURATION_SHARE:  # the rest could not be read
            return round(self.packet_frames / self.share_read)
        return self.packet_frames

    def timing_of_frames(self, ticks: list[int | None]) -> Timing:
        """Return the timing of the frames that could be decoded, by their time stamps in the order of display."""
        if self.filled:
            return Timing(self.fps)  # see `probe`
        found = joined_ticks(ticks, self.container, self.tick_s)
        return timing_of(found, self.tick_s, self.header_fps)


def probe(path: Path) -> VideoInfo:
    """Return the header of the file's video stream; packets are counted and their time stamps read, nothing is decoded.

    Raises: VideoError if the file is missing, empty, a folder, no video, holds no frame, or has no video stream.
    """
    with _open(path) as (container, stream, notes):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        context = stream.codec_context
        name = container.format.name
        tick_s = float(stream.time_base or 0)
        # The frames of a GIF are counted by FFmpeg, as far as it comes.
        counted = stream.frames > 0 and name != "gif"
        expected_s = _expected_s(path, container, stream) if name in _DURATION_IN_HEADER else 0.0
        log: PacketLog | None = PacketLog(name, context.name, context.extradata)
        indexed = sum(entry.size > 0 for entry in _index(stream)) if name == "avi" else 0
        end_s, end_byte, hidden, fillers = 0.0, 0, 0, 0
        pts: list[int | None] = []
        dts: list[int | None] = []
        try:
            with _complaints() as messages:
                # All streams where their ends matter: sound may last longer than the pictures.
                for packet in container.demux(stream) if counted else container.demux():
                    if not counted and packet.pts is not None and packet.time_base is not None:
                        end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    if packet.stream.index != stream.index:
                        continue
                    if _is_filler(packet, context.name):
                        fillers += 1
                    elif packet.size and packet.is_discard:  # by an MP4's edit list
                        hidden += 1
                    elif packet.size:
                        if name == "gif":  # of which the last packet takes in what follows
                            end_byte = (packet.pos or 0) + len(bytes(packet).rstrip(b"\0"))
                        pts.append(packet.pts)
                        dts.append(packet.dts)
                        if log is not None:
                            log.add(packet)
            if messages:  # of the reader of the container, such as on bytes that it leaps over
                log = None
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            log = None  # a damaged tail: what follows cannot be read, and is reported when frames are missing
        if not pts:
            raise VideoError(f"{path}: the video stream holds no frame")
        if indexed > (found := len(pts) + hidden + fillers):
            # The reader looks for the next one behind bytes that are none, and says nothing.
            log = None
            notes += (f"the file's index lists {indexed} pictures, of which {found} are found: it is damaged",)
        # Fillers leave gaps in the time stamps that are none on the screen.
        ticks = [] if fillers else display_ticks(pts, dts, name, tick_s)
        return VideoInfo(
            path=path,
            width=context.width,
            height=context.height,
            timing=timing_of(ticks, tick_s, rate),
            header_fps=rate,
            tick_s=tick_s,
            expected_s=expected_s,
            end_s=end_s,
            container_frames=stream.frames if counted else 0,
            packet_frames=len(pts),
            share_read=min(1.0, end_byte / path.stat().st_size) if end_byte else 1.0,
            hidden_packets=hidden + fillers,
            filled=fillers > 0,
            codec=context.name,
            container=name,
            pixel_format=str(context.pix_fmt),
            stream=stream.index,
            notes=notes,
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            table=None if log is None or hidden or fillers else log.table(),
        )


def probe_again(path: Path) -> VideoInfo:
    """As `probe`, but of the file that was looked at last, if it is the same still: rows of one file follow each other."""
    try:
        found = path.stat()
    except OSError:
        return probe(path)
    return _probe_once(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=1)
def _probe_once(path: Path, state: tuple[int, ...]) -> VideoInfo:
    return probe(path)


def _expected_s(path: Path, container: Any, stream: Any) -> float:
    """Return how long the file says that it lasts; read before its packets, which add to the index."""
    found = (container.duration or 0) / 1e6
    if container.format.name == "asf":  # FFmpeg does not believe the header of a file that was cut off
        found = max(found, _asf_duration_s(path))
    # A Matroska file may have its index (cues) before its frames.
    return max([found, *(float(entry.timestamp * stream.time_base) for entry in _index(stream))])


def _index(stream: Any) -> Sequence[Any]:
    """Return what the index of a stream lists before any packet is read; PyAV before 17 does not give it."""
    return getattr(stream, "index_entries", None) or ()


def _asf_duration_s(path: Path) -> float:
    """Return the duration in the header of an ASF or WMV file, 0 if it is not found."""
    with path.open("rb") as file:
        head = file.read(_ASF_HEAD_BYTES)
    start = head.find(_ASF_PROPERTIES)
    fields = head[start + 24 : start + 88]  # after the object's name and size
    if start < 0 or len(fields) < 64:
        return 0.0
    duration, _, preroll_ms = struct.unpack("<QQQ", fields[40:64])
    return max(0.0, duration / 1e7 - preroll_ms / 1e3)


def _is_filler(packet: Any, codec: str) -> bool:
    """Whether a packet is the one byte that MPEG-4 in AVI stores for a frame moved into an earlier packet.

    All of UT-Interaction has them.
    """
    return codec == "mpeg4" and packet.size == 1


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Give an open container, the video stream to read, and a note where there was a choice."""
    try:
        _refuse_others(path)
    except OSError as error:  # the name is too long, or a folder or the file must not be read
        raise VideoError(f"{path}: cannot be read ({error.strerror or error})") from error
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
    try:
        container = av.open(f"file:{path.absolute()}", container_options=options, **_OPENING)
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        if (what := what_is(path)) in ("a manifest", "a split file"):
            raise VideoError(f"{path}: is {what}, not a video file") from error
        raise VideoError(f"{path}: is not a readable video ({error.strerror or error})") from error
    with container:
        found = [stream for stream in container.streams.video if not _is_picture(stream)]
        if not found:
            kinds = sorted({"picture" if _is_picture(stream) else stream.type for stream in container.streams})
            raise VideoError(f"{path}: has no video stream (only {', '.join(kinds) or 'nothing'})")
        best = max(found, key=_rank)
        context = best.codec_context
        if context is None or not context.width:
            raise VideoError(f"{path}: the video stream cannot be decoded (unknown codec or size)")
        sizes = (
            f"{len(found)} video streams: the one of {context.width}x{context.height} px is read (stream {best.index})"
        )
        yield container, best, (sizes,) if len(found) > 1 else ()


def _refuse_others(path: Path) -> None:
    """Raise VideoError for what is no file that holds its own frames, OSError for what cannot be read."""
    if not path.exists():
        raise VideoError(f"{path}: the file does not exist")
    if path.is_dir():
        raise VideoError(f"{path}: is a folder, not a video file")
    if not path.is_file():
        raise VideoError(f"{path}: is no regular file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    if _names_other_files(path):
        raise VideoError(f"{path}: is a playlist or description that names other files; only video files are read")


def _names_other_files(path: Path) -> bool:
    """Whether a file begins as a playlist, a session description or the like does."""
    with path.open("rb") as file:
        head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"#extm3u", b"ffconcat", b"v=0", b"<?xml", b"<mpd", b"<asx", b"[playlist]", b"[reference]"))


def _is_picture(stream: Any) -> bool:
    """Whether a stream is a picture attached to the file, such as a cover."""
    return stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)


def _rank(stream: Any) -> tuple[int, int]:
    """Return what the best stream has most of, as the ffmpeg program chooses it; of equals the first."""
    context = stream.codec_context
    area = context.width * context.height if context is not None else 0
    default = bool(stream.disposition & av.stream.Disposition.default)
    return area + _DEFAULT_STREAM_PX * (default and area > 0), -stream.index


@dataclass(slots=True)
class _Decoding:
    """How the decoding of a file went so far: the frames met, and the frame numbers of problems."""

    frames: int = 0
    ticks: list[int | None] = field(default_factory=list)  # time stamp of each frame
    broken: list[int] = field(default_factory=list)
    patched: list[int] = field(default_factory=list)
    reported: list[int] = field(default_factory=list)
    report: str = ""  # the first thing that the decoder or the container reader complained of
    torn: list[int] = field(default_factory=list)
    holes: list[int] = field(default_factory=list)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)  # (width, height) px -> first frame
    matrix: str = ""  # what is odd about the display matrix
    stopped: str = ""

    @property
    def damaged(self) -> bool:
        """Whether anything told of damage."""
        return bool(self.broken or self.patched or self.reported or self.torn or self.holes or self.stopped)

    def skip_to(self, number: int, table: PacketTable) -> None:
        """Take the frames up to `number` for met."""
        self.ticks += table.shown[self.frames : number].tolist()
        self.frames = max(self.frames, number)

    def notes(self) -> list[str]:
        notes = []
        if self.broken:
            count = f"{len(self.broken)} packet{'s' if len(self.broken) > 1 else ''} could not be decoded"
            notes.append(f"{count}, the first near frame {self.broken[0]}; frames that build on them may be wrong")
        if self.patched:
            notes.append(f"frames patched up by the decoder, their data is damaged: {_listed(self.patched)}")
        if self.torn:
            notes.append(f"packets that are damaged or follow a gap in the stream, near frames {_listed(self.torn)}")
        if self.holes:
            notes.append(
                f"packets with a hole of zero bytes, as of a block never written, near frames {_listed(self.holes)}"
            )
        if self.reported:
            notes.append(f"frames near which the decoder reported errors: {_listed(self.reported)} ({self.report})")
        if len(self.sizes) > 1:
            named = ", ".join(
                f"{width}x{height} px from frame {n}" for (width, height), n in list(self.sizes.items())[:4]
            )
            notes.append(f"the frame size changes: {named}{' ...' if len(self.sizes) > 4 else ''}")
        if self.matrix:
            notes.append(self.matrix)
        if self.stopped:
            notes.append(f"reading stopped after {self.frames} frames ({self.stopped})")
        return notes


def _listed(numbers: list[int]) -> str:
    distinct = list(dict.fromkeys(numbers))
    return ", ".join(map(str, distinct[:10])) + (" ..." if len(distinct) > 10 else "")


def _decode(path: Path, state: _Decoding, course: Course | None = None) -> Generator[Any, None, None]:
    """Yield PyAV's frames, not converted, and keep `state` up to date: `state.frames` includes the frame yielded.

    course: says what can be skipped. Raises: Unproved if it finds that frames may not be those of reading all.
    """
    with _open(path) as (container, stream, _):
        stream.thread_type = "NONE"  # a worker has one core
        packets = container.demux(stream)
        try:
            while True:
                if course is not None:
                    if state.damaged:
                        course.doubt("the file is damaged")
                    if course.finished:
                        state.skip_to(course.stop, course.table)
                        return
                with _complaints() as messages:
                    if course is not None:
                        packets = course.skip(container, stream) or packets
                    packet = next(packets, None)
                    if packet is None:
                        if course is not None:
                            course.ended()
                        return
                    if packet.is_corrupt:
                        state.torn.append(state.frames)
                    if has_hole(stream.codec_context.name, packet):
                        state.holes.append(state.frames)
                    if packet.size == 0 and packet.dts is not None:
                        continue  # an AVI's dropped frame: given to the decoder it would end the stream
                    if course is not None and packet.size:
                        course.met(packet)
                    try:
                        frames = packet.decode()
                    except av.error.MemoryError:  # says nothing about the file
                        raise
                    except av.error.FFmpegError:
                        state.broken.append(state.frames)
                        continue
                if messages:
                    state.reported.append(state.frames)
                    state.report = state.report or " ".join(str(messages[0][2]).split())[:120]
                for frame in frames:
                    if course is not None:
                        number = course.number_of(frame)
                        if number is None:
                            continue
                        state.skip_to(number, course.table)
                    if frame.is_corrupt:
                        state.patched.append(state.frames)
                    state.sizes.setdefault((frame.width, frame.height), state.frames)
                    state.ticks.append(frame.pts)
                    state.frames += 1
                    yield frame
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            state.stopped = error.strerror or type(error).__name__
            if course is not None:
                course.doubt(state.stopped)


@contextmanager
def _complaints() -> Iterator[list[Any]]:
    """Collect the errors that FFmpeg logs: of some codecs the only sign of damage, such as FFV1's checksums."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


class Picture:
    """A decoded frame that is not converted yet; `shape` is (H, W) px as displayed."""

    def __init__(
        self, frame: Any, reformatters: dict[tuple[int, int] | None, VideoReformatter], state: _Decoding
    ) -> None:
        self._frame, self._reformatters, self._state = frame, reformatters, state
        self._made: dict[tuple[int, int] | None, np.ndarray] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) px as displayed."""
        across, down = self._frame.width, self._frame.height
        return (across, down) if _turn(self._frame, self._state)[0] else (down, across)

    def rgb(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB as displayed; size: (H, W) px that FFmpeg scales it to in the same pass."""
        if size not in self._made:
            if len(self._reformatters) > _MOST_SCALERS:  # of a file whose frames change their size again and again
                self._reformatters.clear()
            reformatter = self._reformatters.setdefault(size, VideoReformatter())
            self._made[size] = _to_rgb(self._frame, reformatter, self._state, size)
        return self._made[size]


def _to_rgb(
    frame: Any, reformatter: VideoReformatter, state: _Decoding, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB, turned and mirrored as the file's display matrix says; size: (H, W) to scale to, in px.

    FFmpeg's scaler gives the pixels that decord and OpenCV's reader give; kept from frame to frame it is as fast as OpenCV's
    colour conversion, which differs by about a level. Where it scales too, a frame that shrinks is averaged over areas, others
    are interpolated linearly, as `preprocess.scale_frame` does.
    """
    turned, across, down = _turn(frame, state)
    height, width = (frame.height, frame.width) if size is None else size[::-1] if turned else size
    shrinks = height <= frame.height and width <= frame.width and (height, width) != (frame.height, frame.width)
    method = Interpolation.AREA if shrinks else Interpolation.BILINEAR
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation=method, **_ONE_THREAD).to_ndarray()
    if turned:
        rgb = rgb.swapaxes(0, 1)
    return np.ascontiguousarray(rgb[::down, ::across])


def _display_matrix(frame: Any) -> Any | None:
    # Not `frame.side_data`: the frame keeps that, and it the frame, whose 3 MB of 1080p then wait for Python's collector.
    return SideDataContainer(frame).get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-arg]  # its stub lacks the frame


def _turn(frame: Any, state: _Decoding) -> tuple[bool, int, int]:
    """Return how a frame is displayed: whether rows become columns, then the steps along rows and columns, 1 or -1.

    Of its display matrix, if that is a quarter turn, a reflection, or both; else it stays as it is.
     3x3 int32, row vectors: x' = a x + c y, y' = b x + d y with the matrix (a b u; c d v; x y w), fixed point.
    """
    matrix = _display_matrix(frame)
    if matrix is None:
        return False, 1, 1
    values = np.frombuffer(bytes(matrix), np.int32)[[0, 1, 3, 4]].astype(float)
    values /= max(1.0, np.abs(values).max())
    whole = np.rint(values)
    if np.abs(values - whole).max() > _ANGLE_SLACK:
        whole[:] = 0
    a, b, c, d = whole
    if (abs(a), abs(b), abs(c), abs(d)) == (1, 0, 0, 1):
        return False, int(a), int(d)
    if (abs(a), abs(b), abs(c), abs(d)) == (0, 1, 1, 0):
        return True, int(c), int(b)
    state.matrix = "the display matrix is no quarter turn or reflection, and is left out"
    return False, 1, 1


def read_gray16(path: Path, span: Span, *, max_frames: int) -> tuple[np.ndarray, int, Timing, list[str]]:
    """Return a span of a 16-bit gray video (FFV1, PNG ...), (F, H, W) uint16, its first frame, the timing, and notes.

    Raises: VideoError if the file cannot be opened, is not 16-bit gray, has frames of several sizes or more than max_frames,
    or fewer than half of its frames can be decoded.
    """
    info = probe(path)
    if not info.pixel_format.startswith("gray16"):
        raise VideoError(
            f"{path}: the frames are {info.pixel_format}; depth must be 16-bit gray (gray16le), such as FFV1"
        )
    span = in_frames(span, path, info.timing, info.packet_frames)
    start, stop = span.start_frame, span.end_frame
    state, images = _Decoding(), list[np.ndarray]()
    with closing(_decode(path, state)) as frames:
        for frame in islice(frames, stop):
            if len(state.sizes) > 1:
                raise VideoError(f"{path}: {state.notes()[-1]}; depth frames must have one size")
            if len(images) == max_frames:
                raise VideoError(too_many_frames(path, max_frames))
            if state.frames > start:
                images.append(frame.to_ndarray(format="gray16le"))
    if not images:
        raise VideoError("; ".join([f"{path}: no frame could be decoded from frame {start} on", *state.notes()]))
    whole = stop is None and state.frames != info.packet_frames
    timing = info.timing_of_frames(state.ticks) if whole else info.timing
    notes = [*info.notes, *state.notes(), *timing.notes, *tail_note(info, state.frames, stop)]
    return np.stack(images), start, timing, notes


def require_decoder(decoder: Decoder) -> None:
    """Check that a decoder can be used here. Raises: ExtractionError with the way out."""
    other_decoder(decoder)


class FrameReader:
    """Iterates over (number, frame) of the file's frames `[start, stop)`; frame is (H, W, 3) uint8 RGB as displayed.

    Reading is sequential from the first frame, since seeking is inexact in many files, unless `seek` is given; memory does
    not grow with the video but for a few bytes a frame.
    A frame is (H, W) px as displayed, which may change within a file: quarter turns and reflections of the display matrix are
    applied, pixel aspect ratios are not. After the iteration `notes` says what was odd, `decoder_used` who decoded,
    `frames_decoded` how many frames were met, skipped ones included, and `ticks` their time stamps.
    PyAV takes over wherever another decoder would be wrong or fails, with a note.
    wants: whether a frame, by its number, is to be yielded; None: all are. The others are decoded, as later ones build on
    them, but not converted to RGB. It is asked once for each frame, in order, and ahead of reading.
    seek: skip what is not wanted where it is many frames and the packets prove that the results are the same, see `seek`;
    damage in what is skipped is not noted. Run in `exactly`, for the iteration may then raise Unproved.
    Raises: ValueError if the range is empty; on iteration, VideoError if the file cannot be opened or holds no frame.
    """

    def __init__(
        self,
        path: Path,
        *,
        decoder: Decoder = "auto",
        start: int = 0,
        stop: int | None = None,
        info: VideoInfo | None = None,
        wants: Callable[[int], bool] | None = None,
        seek: bool = False,
    ) -> None:
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"{path}: [{start}, {stop}) is no range of frames")
        self.path, self.start, self.stop, self.info = path, start, stop, info
        self._decoder: Decoder = "pyav" if decoder == "auto" else decoder
        self.decoder_used: str = self._decoder
        self.notes: list[str] = []
        self.ticks: list[int | None] = []
        self.frames_decoded = 0
        self._seek = seek and self._decoder == "pyav"
        self._wants = wants or (lambda number: True)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        self.notes, self.frames_decoded, self.decoder_used = [], 0, self._decoder
        if (other := other_decoder(self._decoder)) is not None:
            problem = yield from self._read_other(other)
            if not problem:
                return
            self.decoder_used = f"{other.name}, then pyav" if self.frames_decoded else "pyav"
            self.notes.append(f"{problem}: PyAV read from frame {self.frames_decoded} on")
        for number, picture in self._read_pyav(max(self.start, self.frames_decoded)):
            yield number, picture.rgb()

    def pictures(self) -> Iterator[tuple[int, Picture]]:
        """Iterate over (number, picture) in place of converted frames; PyAV reads, since others convert their frames."""
        self.notes, self.frames_decoded, self.decoder_used = [], 0, "pyav"
        return self._read_pyav(self.start)

    def _read_pyav(self, first: int) -> Generator[tuple[int, Picture], None, None]:
        """Yield the frames from number `first` on. Raises: VideoError if the file holds no frame at all."""
        state, reformatters = _Decoding(), dict[tuple[int, int] | None, VideoReformatter]()
        self.ticks = state.ticks
        table = (self.info or probe(self.path)).table if self._seek else None
        course = None if table is None else Course(table, self._wants, first, self.stop)
        wants = self._wants if course is None else course.wants
        with closing(_decode(self.path, state, course)) as frames:
            try:
                for frame in frames:
                    self.frames_decoded = number = state.frames
                    if number > first and wants(number - 1):
                        yield number - 1, Picture(frame, reformatters, state)
                    if course is not None:
                        course.passed(number - 1)
                    if number == self.stop:
                        break
                self.frames_decoded = state.frames
            finally:
                self.notes += state.notes()
        if not state.frames:
            raise VideoError("; ".join([f"{self.path}: no frame could be decoded", *self.notes]))

    def _read_other(self, other: OtherDecoder) -> Generator[tuple[int, np.ndarray], None, str]:
        """Yield frames from another decoder as long as they are right; return why not all of them are, or nothing."""
        info = self.info or probe(self.path)
        if reason := other.unfit(info):
            return reason
        proved = info.table if other.by_packets else None
        state = _Decoding()
        self.ticks = state.ticks
        turned = False
        with closing(_decode(self.path, state)) as frames:
            for frame in islice(frames, self.stop if proved is None else 1):
                turned |= _display_matrix(frame) is not None
        if other.one_size and len(state.sizes) > 1:
            return f"{other.name} scales frames of other sizes to the first one's"
        if turned:
            return f"{other.name} does not know all display matrices"
        if state.damaged or not state.frames:
            return f"{other.name} shows damaged frames as good ones"
        if proved is not None:
            state.skip_to(len(proved.shown) if self.stop is None else min(self.stop, len(proved.shown)), proved)
        try:
            with closing(other.frames(info, state.frames)) as shots:
                for number, (time_s, convert) in enumerate(shots):
                    # Of files that were scanned, decoders guess missing time stamps in different ways.
                    if proved is not None and time_s is not None and not _at(time_s, proved.shown[number], info.tick_s):
                        return f"{other.name} delivers another frame than number {number}"
                    image = convert() if number >= self.start and self._wants(number) else None
                    self.frames_decoded = number + 1
                    if image is not None:
                        yield number, image
        except DecoderFailure as error:
            return f"{other.name} failed ({error})"
        if self.frames_decoded < state.frames:
            return f"{other.name} ends early"
        self.notes += state.notes()
        return ""


def _at(time_s: float, tick: int, tick_s: float) -> bool:
    """Return whether a time is that of a time stamp."""
    return abs(time_s - tick * tick_s) <= tick_s / 2


def too_many_frames(path: Path, max_frames: int, fps: float | None = None) -> str:
    """Return why a video is not read that has more frames than a job allows, perhaps only after resampling to `fps`."""
    rate = f" at {fps:g} frames/s" if fps else ""
    return (
        f"{path}: has more than {max_frames} frames{rate}, the most for one video; raise it with --max-frames, or give the "
        "row an end_frame"
    )


def tail_note(info: VideoInfo, frames_found: int, end_frame: int | None = None) -> list[str]:
    """Return the notes on a file whose reading ended after `frames_found` frames, counted from the file's first.

    end_frame: where the manifest row ends. A header that announces one frame too many gets no note.
    Raises: VideoError if fewer than half of the announced frames (up to `end_frame`) could be decoded.
    """
    announced = info.announced_frames if end_frame is None else min(end_frame, info.announced_frames)
    if frames_found < announced - _MISCOUNT:
        text = f"{announced} frames are announced, {frames_found} could be decoded"
        if frames_found * 2 < announced - _MISCOUNT:
            raise VideoError(f"{info.path}: {text}: the file is truncated or damaged")
        return [text]
    if end_frame is not None and frames_found < end_frame - _MISCOUNT:
        return [f"frames up to {end_frame} are wanted, the file has {frames_found}"]
    return []
