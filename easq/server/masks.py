"""The check that the frames of a WebSocket client are masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: most bytes of a WebSocket frame before its mask
_MAX_HEAD = 10


class Masks:
    """Finds frames that a client has not masked.

    RFC 6455 forbids unmasked frames: a proxy that reads them as requests may store a forged response in its cache.
    aiohttp accepts unmasked frames.
    """

    def __init__(self) -> None:
        self._head = b""  # an incomplete frame header
        self._skip = 0  # bytes left of the current frame

    def are_valid(self, data: bytes) -> bool:
        """Read the next `data`, and return whether all frames that begin in it are masked."""
        while data:
            if self._skip:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                data = data[skipped:]
                continue
            held = len(self._head)
            head = self._head + data[: _MAX_HEAD - held]
            if len(head) > 1 and not head[1] & 0x80:
                return False
            size = _frame_size(head)
            if size is None:
                self._head = head
                return True
            self._head, self._skip = b"", size - held
        return True


def _frame_size(head: bytes) -> int | None:
    """Return the size in bytes of the masked frame that begins with `head`; None when `head` is too short to tell."""
    if len(head) < 2:
        return None
    length, more = head[1] & 0x7F, 0
    if length > 125:
        more = 2 if length == 126 else 8
        if len(head) < 2 + more:
            return None
        length = int.from_bytes(head[2 : 2 + more], "big")
    return 2 + more + 4 + length


class MaskedFrames:
    """Wraps aiohttp's parser of a WebSocket. The parser gets no data from the first unmasked frame on."""

    def __init__(self, parser: Any, on_unmasked: Callable[[], None]) -> None:
        """Wrap `parser`; `on_unmasked` is called once, at the first unmasked frame."""
        self._parser = parser
        self._on_unmasked = on_unmasked
        self._masks = Masks()
        self._has_ended = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Pass `data` to the parser, and return whether it has ended, and the bytes that it has not used."""
        if self._has_ended:
            return False, b""
        if self._masks.are_valid(data):
            ended, left = self._parser.feed_data(data)
            return ended, left
        self._has_ended = True
        self._on_unmasked()
        return False, b""

    def feed_eof(self) -> None:
        """Tell the parser that the connection is closed."""
        self._parser.feed_eof()
