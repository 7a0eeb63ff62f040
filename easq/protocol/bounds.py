"""Limits on the memory that a decoded message takes, checked before it is decoded.

60 MB of JSON may hold 20 million empty objects, and each takes 64 bytes or more in Python. So the values of JSON and
the fields of protobuf are counted before decoding. No valid message reaches the limits. All functions raise ValueError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

#: values in one JSON document, containers included; 10,000 items of 20 tags have fewer. An empty one may take 64 bytes,
#: a dict 232
MAX_VALUES = 250_000
#: frames of one list; each takes some 400 bytes in addition to its content
MAX_FRAMES = 200_000
#: most bytes of a document that is not ASCII, and of a document with characters above U+FFFF. Each character takes 2
#: bytes of memory, above U+FFFF 4 bytes; it is stored twice, in the text and in the decoded value
_MAX_WIDE_BYTES, _MAX_WIDEST_BYTES = 32 * 1024 * 1024, 16 * 1024 * 1024
_WIDEST = rb"[\xf0-\xff]"
#: a message up to this size, in bytes, is too small to exceed a limit, and is not counted
_SMALL_BYTES = 16 * 1024
#: a string, or a bracket, brace or comma, which precedes a value. Strings are matched as they may contain these signs
_TOKEN = rb'(?s)"(?:[^"\\]++|\\.)*+"?|[\[{,]'
#: most tokens for one value: a comma or bracket, the key, and the value
_TOKENS = 3

#: wire types of protobuf
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def load_json(data: bytes) -> Any:
    """Return the decoded JSON document `data`, which is in UTF-8."""
    if len(data) > _SMALL_BYTES:
        _check_json(data)
    try:
        return json.loads(data.decode("utf-8-sig", "surrogatepass"))
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error


def _check_json(data: bytes) -> None:
    if len(data) > _MAX_WIDEST_BYTES and not data.isascii():
        limit = _MAX_WIDEST_BYTES if re.search(_WIDEST, data) else _MAX_WIDE_BYTES
        if len(data) > limit:
            raise ValueError(f"more than {limit} bytes of JSON that is not ASCII")
    if sum(map(data.count, (b",", b"[", b"{"))) <= MAX_VALUES:
        return
    values = 0
    for tokens, found in enumerate(re.finditer(_TOKEN, data)):
        values += data[found.start()] != ord('"')
        if values > MAX_VALUES or tokens > _TOKENS * MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values of JSON")


def check_fields(data: bytes, most: int) -> None:
    """Raise ValueError if the protobuf message has more than `most` fields at its top level."""
    if len(data) > _SMALL_BYTES:
        for count, _ in enumerate(fields(data), 1):
            if count > most:
                raise ValueError(f"more than {most} fields in one message")


def fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field of a protobuf message. The range is empty for numeric fields.

    Raises ValueError for a truncated message, and for groups, which the protocol does not use.
    """
    at, size = 0, len(data)
    while at < size:
        key, at = _varint(data, at)
        kind, begin = key & 7, at
        if kind == _LENGTH:
            length, begin = _varint(data, at)
            at = begin + length
            if at <= size:
                yield key >> 3, begin, at
        else:
            if kind == _VARINT:
                _, at = _varint(data, at)
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                at += 8 if kind == _EIGHT_BYTES else 4
            else:
                raise ValueError(f"a field of wire type {kind}")
            yield key >> 3, begin, begin
        if at > size:
            raise ValueError("a truncated field")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a truncated number")
