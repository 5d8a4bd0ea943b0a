"""Text of CSV files as spreadsheets write them: their encodings, and what separates their cells."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection

DELIMITERS = (",", ";", "\t")
LINE_END = re.compile(r"\r\n|\n|\r")
_BLOCK_BYTES = 2**24
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WAY_OUT = "save it as UTF-8 (Excel: CSV UTF-8; LibreOffice: character set Unicode (UTF-8))"


def decoded(content: bytes) -> str:
    """Return a file's text. Raises: ValueError as `encoding_of`."""
    return content.decode(encoding_of(content))


def encoding_of(content: bytes) -> str:
    """Return a file's encoding: UTF-8, or what its byte order mark says. Others tell nothing of which one they are.

    Raises: ValueError naming the line and the way out if it is neither.
    """
    encoding = next((name for mark, name in _BOMS.items() if content.startswith(mark)), "utf-8")
    decoder = codecs.getincrementaldecoder(encoding)()
    characters = zeros = 0
    try:
        for start in range(0, len(content), _BLOCK_BYTES):  # a long file has its text in memory only in parts
            end = start + _BLOCK_BYTES
            text = decoder.decode(content[start:end], final=end >= len(content))
            characters, zeros = characters + len(text), zeros + text.count("\x00")
    except UnicodeDecodeError:
        number = len(re.findall(LINE_END.pattern.encode(), content[: _first_error(content, encoding)])) + 1
        raise ValueError(f"not UTF-8 text: line {number} holds bytes of another encoding; {_WAY_OUT}") from None
    if 4 * zeros > characters > 0:  # UTF-16 without its mark
        raise ValueError(f"not UTF-8 text; {_WAY_OUT}")
    return encoding


def _first_error(content: bytes, encoding: str) -> int:
    """Return the place of the first byte that is not of an encoding."""
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return len(content)


def delimiter_of(header: str, names: Collection[str]) -> str:
    """Return what separates the cells of a header: that of `,` `;` and tab which makes the most of the known names."""

    def known(delimiter: str) -> int:
        return sum(cell.strip(' "') in names for cell in header.split(delimiter))

    return max(DELIMITERS, key=known)  # the first of equal ones
