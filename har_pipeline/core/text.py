"""What users read: text of their files that steers no terminal, page or picture; names like a wrong one; numbers with nouns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

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


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, as `1 video` and `2 videos`; plural: default noun + s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'lstm'? ` for the choice that a wrong word resembles most, "" if it resembles none.

    Upper and lower case, `-` and `_` are alike. A choice's initials (`loso`) and what its beginning resembles (`vgg`) do too.
    """
    plain = {_plain(choice): choice for choice in choices}
    given = _plain(word)
    if not given:
        return ""
    initials = {"".join(part[0] for part in name.split("_") if part): name for name in plain if "_" in name}
    near = [name for name in (given, initials.get(given, "")) if name in plain]
    near += difflib.get_close_matches(given, plain, 1)
    near += [name for name in plain if len(given) > 1 and name.startswith(given)]
    beginnings = {name[: len(given)]: name for name in reversed([*plain])} if len(given) > 3 else {}
    near += [beginnings[start] for start in difflib.get_close_matches(given, beginnings, 1, 0.75)]
    return f"did you mean {plain[near[0]]!r}? " if near else ""


def unknown(what: str, word: str, choices: Collection[str]) -> str:
    """Return the message for a name that is none of the choices: what it may mean, and all that there are."""
    return f"unknown {what} {word!r}; {did_you_mean(word, choices)}choose from: {', '.join(choices)}"


def _plain(text: str) -> str:
    return text.strip().casefold().replace("-", "_").replace(" ", "_")
