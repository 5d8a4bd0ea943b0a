from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("clip.avi", "clip.avi"),
        ("öffnen 开门 \u200dझ", "öffnen 开门 \u200dझ"),  # joiners belong to words
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31mred", "\\x9b31mred"),
        ("a\rb\x00\x7f\t", "a\\rb\\x00\\x7f\\t"),
        ("gpj.\u202eavi", "gpj.\\u202eavi"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("not-utf8-\udcff", "not-utf8-\\udcff"),
        ("a\nb", "a\\nb"),
        ("2 rows are wrong:\n  row 1\n  row 2", "2 rows are wrong:\n  row 1\n  row 2"),
    ],
)
def test_what_steers_a_terminal_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_every_text_can_be_printed(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert "\x1b" not in shown
    assert printable(shown) == shown
