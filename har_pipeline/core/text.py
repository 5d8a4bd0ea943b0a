"""Text of users' files, shown as text: a label or a file name steers no terminal, page or picture."""

from __future__ import annotations

import re

# Control characters, what ends a line elsewhere, what turns the direction of text, and halves of characters, which stand for
# bytes of a file name that are no UTF-8. A line break of our own lists is followed by two blanks.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\t|\n(?!  )"
)


def printable(text: str) -> str:
    r"""Return a text with every character that would steer a terminal written as an escape: `\x1b`, `\n`, `\u202e`.

    Line breaks before two blanks stay: they are those of a list.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)
