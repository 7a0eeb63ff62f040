"""Text from the network cannot control a terminal."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easq.render import payload


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("data1", "data1"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\rb", "a\\rb"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x1b]8;;http://evil\x1b\\x", "\\x1b]8;;http://evil\\x1b\\x"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f", "\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u200bb\u2066c\ufeff", "a\\u200bb\\u2066c\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("\u3164", "\\u3164"),
        ("a\U000e0101b\ufe00", "a\\U000e0101b\\ufe00"),
        ("❤\ufe0f", "❤\ufe0f"),
        ("訪問\u3000佇列 é 🎉", "訪問\u3000佇列 é 🎉"),
    ],
)
def test_escapes_what_a_terminal_would_obey_or_hide(text: str, shown: str) -> None:
    assert payload.escape(text) == shown


@given(st.text())
def test_nothing_but_visible_text_is_left(text: str) -> None:
    for char in payload.escape(text):
        assert char in "\n\t" or char.isprintable() or unicodedata.category(char) == "Zs"
    assert "\n" not in payload.one_line(text)
    assert "\t" not in payload.one_line(text)


@pytest.mark.parametrize(
    "char",
    [
        *"\u034f\u115f\u1160\u17b4\u180b\u200d\u2060\u3164\ufe00\ufeff\uffa0\ufff9\U000e0001\U000e0041\U000e0101"
    ],
)
def test_json_shows_what_hides_text(char: str) -> None:
    line = payload.json_safe(json.dumps({"x": f"a{char}b"}, ensure_ascii=False))
    assert line.isascii()
    assert json.loads(line) == {"x": f"a{char}b"}


@pytest.mark.parametrize(
    ("data", "drives"),
    [
        (b"a\tb\nc", False),
        ("\u00e9\U0001f389".encode(), False),
        (b"", False),
        (b"a\rb", True),
        (b"\x1b[2J", True),
        (b"\x7f", True),
        ("\x9b2J".encode(), True),
        (b"\x9b2J", True),
        (b"\x89PNG\r\n\x1a\n", True),
    ],
)
def test_what_drives_a_terminal(data: bytes, drives: bool) -> None:
    assert payload.drives_terminal(data) is drives


@given(st.text(alphabet=st.characters()))
def test_json_keeps_its_meaning_without_raw_control_characters(text: str) -> None:
    line = payload.json_safe(json.dumps({"x": text}, ensure_ascii=False))
    assert json.loads(line) == {"x": text}
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", line)
    line.encode("utf-8")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"data1", "data1"),
        (b"", ""),
        (b"\xff\xfe", "<binary 2 B, use -o raw>"),
        (b"a\0b", "<binary 3 B, use -o raw>"),
        (b"\0" * 10445, "<binary 10.2 KiB, use -o raw>"),
    ],
)
def test_a_payload_shows_as_text_or_as_a_remark(data: bytes, shown: str) -> None:
    assert payload.shown(data) == shown


def test_a_long_payload_is_cut_and_says_how_much_is_missing() -> None:
    assert payload.shown(b"abcdef" + b"x" * 2048, limit=6) == "abcdef… <2.0 KiB more, use -o raw>"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.00 B"),
        (3, "3.00 B"),
        (1023, "1023.00 B"),
        (1536, "1.50 KiB"),
        (5 * 2**30, "5.00 GiB"),
        (2**42, "4.00 TiB"),
    ],
)
def test_sizes_have_two_decimals(count: int, text: str) -> None:
    assert payload.size(count) == text


def test_a_cell_can_be_read_back() -> None:
    assert payload.cell("a\tb\\t\n") == "a\\tb\\\\t\\n"
