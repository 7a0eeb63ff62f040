"""Items as JSON records: what a line of `get -o json` becomes when it is put again."""

from __future__ import annotations

import json

import pytest

from easq.client.records import Record, read_record


def line(**record: object) -> bytes:
    return json.dumps(record).encode()


def test_the_tags_of_the_service_are_left_out() -> None:
    tags = {
        "requestId": "r",
        "ts@source": "1",
        "deliveryCount": "2",
        "Header:Content-Type": "text/plain",
        "Header:X": "y",
        "a": "b",
    }
    text = line(n=0, index="7", data="é", tags=tags, priority=2)
    assert read_record(text, keep_tags=False) == Record("é".encode(), {"a": "b"}, 2, "text/plain")
    again = read_record(text, keep_tags=True)
    assert again.tags == {"requestId": "r", "ts@source": "1", "a": "b"}


def test_binary_data_is_base64() -> None:
    assert read_record(line(data="/wA=", encoding="base64"), keep_tags=False).data == b"\xff\x00"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (line(), "no data"),
        (line(data=7), "no data"),
        (line(data="x", encoding="hex"), "neither utf8 nor base64"),
        (line(data="!", encoding="base64"), "not base64"),
        (b'{"data": "\\ud800"}', "no UTF-8"),
        (line(data="x", tags=["a"]), "not an object of texts"),
        (line(data="x", tags={"a": 1}), "not an object of texts"),
        (line(data="x", tags={"_a": "b"}), "the wire's own"),
        (line(data="x", tags={"Header:Content-Type": "a\nb"}), "no header may carry"),
        (line(data="x", priority=-1), "not a whole number"),
        (line(data="x", priority=True), "not a whole number"),
    ],
)
def test_what_is_no_record_is_named(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_record(text, keep_tags=False)
