"""What goes into a script and comes out of it, as the Lua files read it: indexes, tags, frames."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from easq.model import Frame, Tags

#: Lua counts in doubles: no index is as high as this
TOP = 2**53 - 1


def index_text(index: int) -> str:
    """The index as scripts compare it: 16 digits."""
    return f"{index:016d}"


def index_texts(indexes: Iterable[int]) -> list[str]:
    """Those that an item can have, in order."""
    return [index_text(index) for index in indexes if 0 < index < TOP]


def pack_tags(tags: Tags) -> bytes:
    """Pairs of length and text, four bytes a length; equal tags in whatever order give equal bytes."""
    parts: list[bytes] = []
    for pair in sorted(tags.items()):
        for text in pair:
            data = text.encode(errors="surrogatepass")
            parts += struct.pack(">I", len(data)), data
    return b"".join(parts)


def unpack_tags(data: bytes) -> dict[str, str]:
    """The tags that `pack_tags` made these bytes of."""
    texts: list[str] = []
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        at += 4 + length
        texts.append(data[at - length : at].decode(errors="surrogatepass"))
    return dict(zip(texts[::2], texts[1::2], strict=True))


def read_frame(item: Sequence[Any]) -> Frame:
    """The frame that a script answers as index, tags and data."""
    index, tags, data = item
    return Frame(int(index), unpack_tags(tags), data)
