"""The lines, records and rows of frames, attributes and acks."""

from __future__ import annotations

import pytest

from easq.model import Ack, Frame
from easq.render import rows

FRAME = Frame(
    6946744471463657472,
    {
        "ts@source": "1685802680575",
        "requestId": "e47b76e2-2648-40fe-9197-a268015cbd1f",
        "Header:Content-Type": "text/plain; charset=utf-8",
    },
    b"data1",
)


def test_the_line_of_the_sample_session() -> None:
    line = (
        b"[OK] [0 - 6946744471463657472] tags[Header:Content-Type=text/plain; charset=utf-8 "
        b"requestId=e47b76e2-2648-40fe-9197-a268015cbd1f ts@source=1685802680575] data1"
    )
    assert rows.frame_line(0, FRAME, terminal=False) == line
    assert rows.frame_line(0, FRAME, terminal=True) == line


def test_a_pipe_gets_the_bytes_and_a_terminal_what_is_safe() -> None:
    frame = Frame(1, {"k\x1b[2J": "a\nb\r"}, b"\x1b[2J\r\xc3\xa9")
    assert (
        rows.frame_line(0, frame, terminal=False) == b"[OK] [0 - 1] tags[k\x1b[2J=a\nb\r] \x1b[2J\r\xc3\xa9"
    )
    assert (
        rows.frame_line(0, frame, terminal=True)
        == b"[OK] [0 - 1] tags[k\\x1b[2J=a\\nb\\r] \\x1b[2J\\r\xc3\xa9"
    )


def test_the_record_of_a_frame() -> None:
    record = rows.frame_record(0, FRAME)
    assert list(record.items()) == [
        ("n", 0),
        ("index", "6946744471463657472"),
        ("request_id", "e47b76e2-2648-40fe-9197-a268015cbd1f"),
        ("tags", dict(FRAME.tags)),
        ("size", 5),
        ("encoding", "utf8"),
        ("data", "data1"),
        ("source_time", "2023-06-03T14:31:20.575Z"),
        ("sink_time", None),
        ("message", ""),
    ]


def test_bytes_that_are_no_text_are_base64() -> None:
    assert rows.payload_record(b"\xff\x00") == {"size": 2, "encoding": "base64", "data": "/wA="}


@pytest.mark.parametrize("text", ["", "x", "-5", "1e3", "９", "9" * 18, "9" * 400])
def test_a_time_that_is_none_is_null(text: str) -> None:
    assert rows.frame_record(0, Frame(1, {"ts@sink": text}))["sink_time"] is None


def test_attributes_are_sorted_lines() -> None:
    lines = rows.attribute_lines({"stream.length": "2", "meta.name": "q"})
    assert lines == ["meta.name : q", "stream.length : 2"]


def test_an_ack() -> None:
    ack = Ack(7, "r-7")
    assert rows.ack_line(ack) == "[OK] 7"
    assert rows.ack_record(0, ack, 3) == {"n": 0, "index": "7", "request_id": "r-7", "size": 3}
    assert rows.ack_row(0, ack, 3) == ("0", "7", "r-7", "3")


def test_a_row_cuts_the_payload() -> None:
    frame = Frame(3, {"a": "b"}, b"x" * 70)
    cut = "x" * 60 + "… <10 B more, use -o raw>"
    assert rows.frame_row(1, frame) == ("1", "3", "", "tags[a=b]", "70", cut)
