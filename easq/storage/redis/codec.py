"""Converts the arguments and answers of scripts: indexes, tags, frames."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from easq.model import Frame, Tags

#: above all indexes: numbers in Lua are doubles
TOP = 2**53 - 1


def index_text(index: int) -> str:
    """Return the index as scripts compare it: 16 digits."""
    return f"{index:016d}"


def index_texts(indexes: Iterable[int]) -> list[str]:
    """Return the indexes that an item can have, in order, as text."""
    return [index_text(index) for index in indexes if 0 < index < TOP]


def pack_tags(tags: Tags) -> bytes:
    """Return the tags as pairs of length (four bytes) and text. Equal tags in any order give equal bytes."""
    parts: list[bytes] = []
    for pair in sorted(tags.items()):
        for text in pair:
            data = text.encode(errors="surrogatepass")
            parts += struct.pack(">I", len(data)), data
    return b"".join(parts)


def unpack_tags(data: bytes) -> dict[str, str]:
    """Return the tags from the bytes of `pack_tags`."""
    texts: list[str] = []
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        at += 4 + length
        texts.append(data[at - length : at].decode(errors="surrogatepass"))
    return dict(zip(texts[::2], texts[1::2], strict=True))


def read_frame(item: Sequence[Any]) -> Frame:
    """Return the frame of an answer of index, tags and data."""
    index, tags, data = item
    return Frame(int(index), unpack_tags(tags), data)
