"""Text of CSV files as spreadsheets write them: their encodings, and what separates their cells."""

from __future__ import annotations

import re
from collections.abc import Collection

DELIMITERS = (",", ";", "\t")
LINE_END = re.compile(r"\r\n|\n|\r")
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WAY_OUT = "save it as UTF-8 (Excel: CSV UTF-8; LibreOffice: character set Unicode (UTF-8))"


def decoded(content: bytes) -> str:
    """Return a file's text: UTF-8, or what its byte order mark says. Other encodings tell nothing of which one they are.

    Raises: ValueError naming the line and the way out if it is neither.
    """
    encoding = next((name for mark, name in _BOMS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = len(re.findall(rb"\r\n|\n|\r", content[: error.start])) + 1
        raise ValueError(f"not UTF-8 text: line {number} holds bytes of another encoding; {_WAY_OUT}") from error
    if 4 * text.count("\x00") > len(text) > 0:  # UTF-16 without its mark
        raise ValueError(f"not UTF-8 text; {_WAY_OUT}")
    return text


def delimiter_of(header: str, names: Collection[str]) -> str:
    """Return what separates the cells of a header: that of `,` `;` and tab which makes the most of the known names."""

    def known(delimiter: str) -> int:
        return sum(cell.strip(' "') in names for cell in header.split(delimiter))

    return max(DELIMITERS, key=known)  # the first of equal ones
