"""The three messages of the wire, read by hand: an opinion of its own on what the service sends.

DataFrameProto      1 index uint64   2 tags map<string,string>   3 data bytes   4 message string
DataFrameListProto  1 repeated DataFrameProto
AttributesProto     1 map<string,string>
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One item as it came over the wire."""

    index: int
    tags: dict[str, str]
    data: bytes

    @property
    def request_id(self) -> str:
        return self.tags["requestId"]


def read_item(data: bytes) -> Item:
    """The item of a DataFrameProto."""
    index, tags, payload = 0, {}, b""
    for number, value in _fields(data):
        if number == 1:
            assert isinstance(value, int)
            index = value
        else:
            assert isinstance(value, bytes)
            if number == 2:
                key, text = _entry(value)
                tags[key] = text
            elif number == 3:
                payload = value
    return Item(index, tags, payload)


def read_items(data: bytes) -> list[Item]:
    """The items of a DataFrameListProto."""
    return [read_item(value) for _, value in _fields(data) if isinstance(value, bytes)]


def read_map(data: bytes) -> dict[str, str]:
    """The attributes of an AttributesProto."""
    return dict(_entry(value) for _, value in _fields(data) if isinstance(value, bytes))


def _entry(data: bytes) -> tuple[str, str]:
    found = {number: value for number, value in _fields(data) if isinstance(value, bytes)}
    return found.get(1, b"").decode(), found.get(2, b"").decode()


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            length, at = _varint(data, at)
            assert at + length <= len(data), "a field runs over the end"
            yield key >> 3, data[at : at + length]
            at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
