"""Seeking that gives the very frames of reading from the start, or says that it cannot.

Frames are numbered as they are decoded, so a seek is exact only if it is known how many frames the skipped packets hold.
`probe` meets all packets without decoding them, and `PacketLog` makes a table of them where each is known to hold one
picture: all have a time stamp of their own, none is marked, their data is whole as far as its structure tells, and no header
changes. The number of a frame is then the rank of its time stamp. Decoding begins at packets after which nothing refers to
what was before: H.264's IDR pictures, HEVC's IDR and CRA pictures, MPEG-4's I-VOPs, key frames of VP9, each picture of Motion
JPEG. Pictures that are shown before such a one but come after it are left out: an earlier entry serves them.

`Course` checks what a seek gives: each packet by its place, size and time stamp, each frame by its time stamp. At the first
disagreement, damaged frame or message of the decoder it raises `Unproved`, and the file is read from the start. What is not
seen is damage inside packets that are skipped, so short skips, which save little, are not made.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np

from har_pipeline.video.holes import has_hole

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
# Fewer packets than these are decoded, not skipped.
WORTH_PACKETS = 100
# Side data of a packet that gives the stream another header.
_CHANGES = ("new_extradata", "param_change")
# Of MPEG-4: shorter packets may say that their picture is not coded.
_CODED_BYTES = 12
# First bytes of the NAL units that are known, whatever their priority: the kind is in the low bits, or in the middle.
_H264_PICTURES, _H264_ENTRIES, _H264_HEADERS, _H264_OTHERS = (
    frozenset(kind + (priority << 5) for kind in kinds for priority in range(4))
    for kinds in ((1, 5), (5,), (7, 8), (6, 9, 12))
)
_H264_KNOWN = _H264_PICTURES | _H264_HEADERS | _H264_OTHERS
_HEVC_PICTURES, _HEVC_ENTRIES, _HEVC_HEADERS, _HEVC_OTHERS = (
    frozenset(kind << 1 for kind in kinds)
    for kinds in ((*range(10), 19, 20, 21), (19, 20, 21), (32, 33, 34), (35, 38, 39, 40))
)
_HEVC_KNOWN = _HEVC_PICTURES | _HEVC_HEADERS | _HEVC_OTHERS


class Unproved(Exception):
    """Frames that a seek gave could not be proved to be those of reading from the start."""


def exactly(path: Path, work: Callable[[bool], T]) -> T:
    """Return what `work` returns with seeking allowed, or, where that cannot be proved exact, without."""
    try:
        return work(True)
    except Unproved as reason:
        logger.debug("%s: read from the start, since seeking is not proved exact: %s", path, reason)
        return work(False)


@dataclass(frozen=True, slots=True)
class PacketTable:
    """P packets that hold one picture each, in the order of decoding, except for `shown`."""

    pts: np.ndarray  # (P,) int64, time stamps in the stream's units
    dts: list[int | None]
    place: np.ndarray  # (P,) int64, bytes from the file's start
    size: np.ndarray  # (P,) int64, bytes
    entries: np.ndarray  # (R,) int64, packets at which decoding may begin
    shown: np.ndarray  # (P,) int64, the time stamps in the order of display

    def entry_for(self, number: int) -> int:
        """Return the last packet from which decoding gives the frame of this number."""
        fits = np.searchsorted(self.pts[self.entries], self.shown[number], side="right")
        return int(self.entries[fits - 1])


@dataclass(frozen=True, slots=True)
class _Content:
    """What the data of a packet says of itself."""

    entry: bool  # whether nothing after it refers to what was before
    header: bytes = b""  # of the stream, as far as it is repeated here


_PLAIN, _ENTRY = _Content(False), _Content(True)


class PacketLog:
    """Collects the packets of a stream; `table` has them if each is known to hold one picture."""

    def __init__(self, container: str, codec: str, extradata: bytes | None) -> None:
        self._codec = codec
        self._content = _content_reader(codec, extradata or b"") if container in _CONTAINERS else None
        self._pts, self._place, self._size, self._entries = array("q"), array("q"), array("q"), array("q")
        self._dts: list[int | None] = []
        self._header = b""

    def add(self, packet: Any) -> None:
        """Take the next packet; after one that is in doubt, no further ones are looked at."""
        if self._content is None:
            return
        data = bytes(packet)
        found = None
        marked = packet.is_corrupt or packet.is_discard or any(map(packet.has_sidedata, _CHANGES))
        if not marked and packet.pts is not None and packet.pos is not None and packet.pos >= 0:
            found = self._content(data)
        if found is not None and not self._pts:
            self._header = found.header
        strange = found is None or (found.header and found.header != self._header)
        if found is None or strange or has_hole(self._codec, data):
            self._content = None
            return
        if found.entry and packet.is_keyframe and found.header == self._header:
            self._entries.append(len(self._pts))
        self._pts.append(packet.pts)
        self._dts.append(packet.dts)
        self._place.append(packet.pos)
        self._size.append(packet.size)

    def table(self) -> PacketTable | None:
        """Return the packets, None if they are in doubt, or if there is nothing to skip."""
        if self._content is None or len(self._pts) < WORTH_PACKETS or not self._entries or self._entries[0] != 0:
            return None
        pts = np.frombuffer(self._pts, np.int64)
        # What comes before an entry is shown before it; else decoding could not begin there.
        latest = np.maximum.accumulate(pts)
        entries = np.array(
            [number for number in self._entries if not number or latest[number - 1] < pts[number]], np.int64
        )
        shown = np.sort(pts)
        if (np.diff(shown) <= 0).any() or shown[0] != pts[0]:
            return None
        return PacketTable(
            pts, self._dts, np.frombuffer(self._place, np.int64), np.frombuffer(self._size, np.int64), entries, shown
        )


def _content_reader(codec: str, extradata: bytes) -> Callable[[bytes], _Content | None] | None:
    """Return what reads packets of a codec: None for one that is not whole, or not one picture. None: of an unknown codec."""
    if not hasattr(av.Packet, "has_sidedata"):  # of older versions of PyAV
        return None
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return partial(_of_h264, (extradata[4] & 3) + 1)
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return partial(_of_hevc, (extradata[21] & 3) + 1)
    return {"mpeg4": _of_mpeg4, "vp9": _of_vp9, "mjpeg": _of_mjpeg}.get(codec)


def _units(data: bytes, length_bytes: int) -> list[bytes] | None:
    """Return the NAL units of a packet, None if their lengths do not make up the packet."""
    units, place = [], 0
    while place < len(data):
        start = place + length_bytes
        place = start + int.from_bytes(data[place:start])
        if place > len(data) or place < start + 2:
            return None
        units.append(data[start:place])
    return units or None


def _of_h264(length_bytes: int, data: bytes) -> _Content | None:
    units = _units(data, length_bytes)
    firsts = {unit[0] for unit in units or ()}
    if units is None or not firsts <= _H264_KNOWN:
        return None
    return _content(units, firsts, _H264_PICTURES, _H264_ENTRIES, _H264_HEADERS)


def _of_hevc(length_bytes: int, data: bytes) -> _Content | None:
    units = _units(data, length_bytes)
    firsts = {unit[0] for unit in units or ()}
    if units is None or not firsts <= _HEVC_KNOWN or any(unit[1] >> 3 for unit in units):  # of a further layer
        return None
    # An entry may ask that pictures that are not yet shown are not shown at all.
    if firsts & _HEVC_ENTRIES and any(unit[0] in _HEVC_ENTRIES and unit[2:3] and unit[2] & 64 for unit in units):
        return None
    return _content(units, firsts, _HEVC_PICTURES, _HEVC_ENTRIES, _HEVC_HEADERS)


def _content(
    units: Sequence[bytes], firsts: Set[int], pictures: Set[int], entries: Set[int], headers: Set[int]
) -> _Content | None:
    """Return what NAL units of a packet are, by the values that their first bytes have."""
    shown = firsts & pictures
    if not shown:
        return None
    content = _ENTRY if shown <= entries else _PLAIN
    if not firsts & headers:
        return content
    return replace(content, header=b"".join(unit for unit in units if unit[0] in headers))


def _of_mpeg4(data: bytes) -> _Content | None:
    place = data.find(b"\0\0\1\xb6")
    if place < 0 or len(data) < max(_CODED_BYTES, place + 5) or data.find(b"\0\0\1\xb6", place + 4) >= 0:
        return None
    # The layer's header, with the size of the pictures, up to the next start code; 0x20 to 0x2f begin it.
    header = b""
    for part in data[:place].split(b"\0\0\1")[1:]:
        header += part if part[:1] and 0x20 <= part[0] <= 0x2F else b""
    return _Content(data[place + 4] >> 6 == 0, header)


def _of_vp9(data: bytes) -> _Content | None:
    """Source: VP9 bitstream specification 0.6, annex B (superframes) and section 6.2."""
    frames, place = [], 0
    mark = data[-1]
    if mark & 0xE0 == 0xC0:
        count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
        index = data[-(2 + count * width) :]
        if len(index) < 2 + count * width or index[0] != mark:
            return None
        for number in range(count):
            length = int.from_bytes(index[1 + number * width : 1 + (number + 1) * width], "little")
            frames.append(data[place : place + length])
            place += length
        if place + len(index) != len(data) or not all(frames):
            return None
    else:
        frames = [data]
    shown, entry, header = 0, False, b""
    for number, frame in enumerate(frames):
        bits = f"{int.from_bytes(frame[:10].ljust(10, bytes(1))):080b}"
        if bits[:4] != "1000":  # the mark of a frame, and profile 0
            return None
        again, inter, is_shown, resilient = (bit == "1" for bit in bits[4:8])
        shown += again or is_shown
        if again:
            continue
        if not inter:
            entry |= number == 0
            header = frame[4:9]  # the size, and the colours
            if frame[1:4] != b"\x49\x83\x42":
                return None
            continue
        at = 8 + (0 if is_shown else 1) + (0 if resilient else 2)
        if not is_shown and bits[8] == "1":  # an intra frame that is no key frame has a size of its own
            return None
        if bits[at + 8 + 12] != "1":  # the size is not that of the first reference
            return None
    return _Content(entry, header) if shown == 1 else None


def _of_mjpeg(data: bytes) -> _Content | None:
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 < len(data) and data[place] == 0xFF:
        if data[place + 1] in (0xC0, 0xC1, 0xC2):
            return _Content(True, data[place + 4 : place + 9])
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


class Course:
    """The way through a file that decodes what is wanted and skips the rest, and the checks that it is right.

    Until something was skipped, a disagreement just ends all skipping (`trusted`); afterwards it raises `Unproved`.
    """

    def __init__(self, table: PacketTable, wants: Callable[[int], bool], first: int, stop: int | None) -> None:
        """wants: as in `FrameReader`; frames from number `first` on, up to `stop`, can be wanted."""
        self.table, self.trusted, self.skipped = table, True, False
        self.stop = len(table.shown) if stop is None else min(stop, len(table.shown))
        self._wants, self._asked = wants, first
        # The next number to be read, and whether it is wanted; None: none is. The file's last frame is always read, since
        # its end is what a file that was cut off lacks.
        self.next: int | None
        self._wanted = False
        self._fed = 0  # packets, up to which the decoder was given all
        self._number = 0  # of the next frame
        self._begun = True  # whether a frame came since the last skip
        self._look()

    def passed(self, number: int) -> None:
        """Take that a frame was read; if it was the wanted one, look for the next."""
        if self.trusted and number == self.next:
            self._look()

    def _look(self) -> None:
        self.next = next((number for number in range(self._asked, self.stop) if self._wants(number)), None)
        self._wanted = self.next is not None
        self._asked = self.stop if self.next is None else self.next + 1
        if self.next is None and self.stop == len(self.table.shown) and self._number < self.stop:
            self.next = self.stop - 1

    def wants(self, number: int) -> bool:
        """Return whether a frame is wanted; to be asked once for each frame, in order."""
        if number < self._asked:
            return self._wanted and number == self.next
        return self._wants(number)

    @property
    def finished(self) -> bool:
        """Whether the rest of the file can be skipped."""
        if not self.trusted or self.next is not None or self.stop - self._number < WORTH_PACKETS:
            return False
        self.skipped = True
        return True

    def skip(self, container: Any, stream: Any) -> Iterator[Any] | None:
        """Return the packets from the next wanted frame's entry on, None if nothing is to be skipped.

        Raises: Unproved if the container does not lead there.
        """
        if not self.trusted or self.next is None:
            return None
        entry = self.table.entry_for(self.next)
        if entry - self._fed < WORTH_PACKETS:
            return None
        self.skipped = True
        before = int(self.table.entries[np.searchsorted(self.table.entries, entry) - 1])
        for target in (int(self.table.pts[entry]), self.table.dts[entry], int(self.table.pts[before])):
            if target is None:
                continue
            container.seek(target, stream=stream)
            packets = container.demux(stream)
            for packet in packets:
                place = -1 if packet.pos is None else packet.pos
                if place not in self.table.place[: entry + 1]:
                    break
                if place == self.table.place[entry]:
                    self._fed, self._begun = entry, False
                    self._number = int(np.searchsorted(self.table.shown, self.table.pts[entry]))
                    return chain([packet], packets)
        raise Unproved(f"the container does not lead to packet {entry}")

    def met(self, packet: Any) -> None:
        """Check the next packet that the decoder is given. Raises: Unproved if it is another one than in the table."""
        number = self._fed
        self._fed += 1
        if number >= len(self.table.pts):
            self.doubt("the file has more packets")
        elif (packet.pos, packet.size, packet.pts) != (
            self.table.place[number],
            self.table.size[number],
            self.table.pts[number],
        ):
            self.doubt(f"packet {number} is another one")

    def number_of(self, frame: Any) -> int | None:
        """Return the number of a decoded frame, None if it is to be left out.

        Raises: Unproved if it is not the expected one.
        """
        number, pts = self._number, frame.pts
        if not self.trusted:
            self._number += 1
            return number
        expected = self.table.shown[number] if number < len(self.table.shown) else None
        if not self._begun and pts is not None and pts < expected:
            return None
        self._begun = True
        if pts != expected:
            self.doubt(f"the frame at {pts} is not number {number}")
        self._number += 1
        return number

    def ended(self) -> None:
        """Take the end of the file. Raises: Unproved if it comes too early after a skip."""
        if self.skipped and self._number < self.stop:
            self.doubt("the file ends early")

    def doubt(self, reason: str) -> None:
        """End all skipping. Raises: Unproved if something was skipped."""
        self.trusted = False
        if self.skipped:
            raise Unproved(reason)
