"""Holes of zero bytes in a packet, as an unfinished download or a block that was never written leaves them."""

from __future__ import annotations

import re
from typing import Any

# Their arithmetic coders take any bytes for pictures. Zeros in a row are sound: a coder that is never surprised writes them.
_ANY_BYTES = ("vp8", "vp9", "av1", "libdav1d")
_MANY = bytes(256)
# Within a NAL unit no three zeros follow each other (ITU-T H.264, 7.4.1). A unit's length may begin with three, and before a
# start code, 00 00 01, any number may stand.
_UNITS = ("h264", "hevc", "vvc")
_FEW = bytes(8)
_WITHIN_UNIT = re.compile(rb"\0{8}[^\0\1]")


def has_hole(codec: str, packet: Any) -> bool:
    """Return whether a packet has zeros where sound data of its codec has none; those at its end are padding.

    codec: by FFmpeg's name; of others than these, False: their decoders notice holes. packet: PyAV's, or its bytes.
    """
    if codec in _UNITS:
        data = bytes(packet)
        return _FEW in data and _WITHIN_UNIT.search(data) is not None
    return codec in _ANY_BYTES and _MANY in bytes(packet).rstrip(b"\0")
