from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.text import did_you_mean, printable, unknown


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


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("LSTM", "lstm"),
        ("res-lstm", "res_lstm"),
        ("lstmm", "lstm"),
        ("loso", "leave_one_subject_out"),
        ("vgg", "vgg16"),
        ("efficentnet", "efficientnet_lite0"),
        ("telepathy", ""),
        ("", ""),
        ("-", ""),
    ],
)
def test_a_wrong_name_leads_to_one_like_it(word: str, meant: str) -> None:
    names = ["lstm", "res_lstm", "leave_one_subject_out", "vgg16", "efficientnet_lite0", "i3d"]
    assert did_you_mean(word, names) == (f"did you mean {meant!r}? " if meant else "")
    assert unknown("net", word, names).endswith(
        "choose from: lstm, res_lstm, leave_one_subject_out, vgg16, efficientnet_lite0, i3d"
    )


@given(st.text(), st.lists(st.text()))
def test_any_word_may_be_wrong(word: str, names: list[str]) -> None:
    assert isinstance(did_you_mean(word, names), str)
