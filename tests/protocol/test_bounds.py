"""Limits that are checked before decoding: bombs are refused, valid messages are not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easq.model import Frame
from easq.protocol.attributes import ConsumerLine
from easq.protocol.bounds import MAX_VALUES, check_fields, fields, load_json
from easq.protocol.frames import (
    MAX_TAGS,
    decode_attributes,
    decode_frame,
    decode_frames,
    encode_attributes,
    encode_frame,
    encode_frames,
)
from easq.protocol.operations import Codec

MANY = 2 * MAX_VALUES
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text('"\\[]{},é\n', max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
)


def entry(key: bytes) -> bytes:
    """Return one tag without a value, as in the protobuf of a frame."""
    return b"\x12" + bytes([len(key) + 2]) + b"\x0a" + bytes([len(key)]) + key


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" + b"{}," * MANY + b"{}]",
        b'[{"index":1,"tags":{"a":[' + b"[]," * MANY + b"[]]}}]",
        b"[" + b'"",' * MANY + b'""]',
        b"[" + b"1," * MANY + b"1]",
        b'{"a":' * MANY,
        b'["\\"' + b'",[],"' * MANY + b'"]',
    ],
    ids=["objects", "lists", "texts", "numbers", "nested", "escapes"],
)
def test_json_of_many_values_is_refused(bomb: bytes) -> None:
    with pytest.raises(ValueError, match="more than 250000 values of JSON"):
        load_json(bomb)
    with pytest.raises(ValueError, match="more than 250000 values of JSON"):
        decode_frames(bomb, Codec.JSON)
    with pytest.raises(ValueError, match="more than 250000 values of JSON"):
        decode_attributes(bomb, Codec.JSON)


def test_brackets_and_commas_in_texts_are_no_values() -> None:
    text = '{"a\\",[[["' * MANY
    assert load_json(json.dumps([text, text]).encode()) == [text, text]


@settings(max_examples=50)
@given(documents)
def test_a_document_is_read_as_the_library_reads_it(document: object) -> None:
    data = json.dumps(document, ensure_ascii=False).encode()
    assert load_json(data) == document
    # the same with a message that is large enough to be counted
    assert load_json(b" " * 20_000 + data) == document


@pytest.mark.parametrize(
    ("letter", "mib", "read"), [("\u4e2d", 17, True), ("\u4e2d", 33, False), ("\U0001f600", 17, False)]
)
def test_text_whose_letters_take_more_than_a_byte_is_bounded(letter: str, mib: int, read: bool) -> None:
    data = json.dumps(letter, ensure_ascii=False).encode()[:-1] + b" " * (mib << 20) + b'"'
    if read:
        assert len(load_json(data)) == (mib << 20) + 1
    else:
        with pytest.raises(ValueError, match="bytes of JSON that is not ASCII"):
            load_json(data)


def test_more_frames_than_were_asked_for_are_refused() -> None:
    listing = [Frame(1), Frame(2), Frame(3)]
    for codec in (Codec.PROTOBUF, Codec.JSON):
        data = encode_frames(listing, codec)
        assert decode_frames(data, codec, most=3) == listing
        with pytest.raises(ValueError, match=r"^more than 2 frames$"):
            decode_frames(data, codec, most=2)


def test_empty_frames_without_number_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 200000 frames"):
        decode_frames(b"\x0a\x00" * 200_001, Codec.PROTOBUF, most=10**9)


def test_too_many_tags_are_refused() -> None:
    """Cases: one protobuf frame, one JSON frame, and many frames with few tags each."""
    tags = b"".join(entry(b"%05x" % number) for number in range(MAX_TAGS + 1))
    with pytest.raises(ValueError, match="more than 8192 fields in one message"):
        decode_frame(tags, Codec.PROTOBUF)
    text = json.dumps({"index": 1, "tags": {str(number): "" for number in range(MAX_TAGS + 1)}})
    with pytest.raises(ValueError, match="more than 8192 tags in one frame"):
        decode_frame(text.encode(), Codec.JSON)
    few = tags[: 1000 * len(entry(b"00000"))]
    frame = b"\x0a" + bytes([len(few) & 127 | 128, len(few) >> 7]) + few
    with pytest.raises(ValueError, match="more than 250000 tags"):
        decode_frames(frame * 300, Codec.PROTOBUF)


def test_as_many_tags_as_a_service_takes_are_read() -> None:
    frame = Frame(1, {f"{number:x}": "" for number in range(MAX_TAGS - 2)}, b"d" * 100_000)
    for codec in (Codec.PROTOBUF, Codec.JSON):
        assert decode_frame(encode_frame(frame, codec), codec) == frame


def test_attributes_without_number_are_refused() -> None:
    pairs = b"".join(b"\x0a\x08\x0a\x06%06x" % number for number in range(MAX_VALUES + 1))
    with pytest.raises(ValueError, match="more than 250000 fields"):
        decode_attributes(pairs, Codec.PROTOBUF)
    many = {f"stream.{number}": "x" for number in range(10_000)}
    for codec in (Codec.PROTOBUF, Codec.JSON):
        assert decode_attributes(encode_attributes(many, codec), codec) == many


def test_a_line_of_a_consumer_is_bounded() -> None:
    with pytest.raises(ValueError, match="a line of more than 65536 characters"):
        ConsumerLine.parse("Id: a.b, " * 1_000_000)


@given(st.binary(max_size=60))
def test_whatever_bytes_are_looked_at_the_fields_lie_in_them_or_they_are_refused(data: bytes) -> None:
    try:
        found = list(fields(data))
    except ValueError:
        return
    assert all(0 <= begin <= end <= len(data) for _, begin, end in found)


def test_the_fields_of_a_frame() -> None:
    data = encode_frame(Frame(5, {"a": "b"}, b"data", "m"), Codec.PROTOBUF)
    assert [(number, data[begin:end]) for number, begin, end in fields(data)] == [
        (1, b""),
        (2, b"\x0a\x01a\x12\x01b"),
        (3, b"data"),
        (4, b"m"),
    ]
    # other kinds that a later version of the service may send
    assert [number for number, _, _ in fields(b"\x29" + bytes(8) + b"\x35" + bytes(4))] == [5, 6]


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\x08", b"\x29\0", b"\x0b", b"\xff" * 11])
def test_fields_that_are_cut_off_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a field of wire type|a truncated field|a truncated number"):
        list(fields(data))


def test_what_is_small_is_not_counted() -> None:
    check_fields(b"\x08\x01" * 100, 1)
