"""Reading a request: its target, and its body within limits of size and time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from aiohttp import HttpVersion11, web

from easq.errors import PayloadTooLarge
from easq.server.deadline import Deadline

#: time limit of a body in seconds, and the number of received bytes that extends it by one second
_BODY_DEADLINE_S, _BODY_RATE = 9.0, 1024
#: scheme and authority of a request target in absolute form, which clients send to proxies
_ABSOLUTE = re.compile(r"https?://([^/?]*)/?", re.IGNORECASE)


def target(request: web.BaseRequest) -> str:
    """Return path and query of the request target as they were sent, without scheme and authority."""
    text = request.raw_path
    if text.startswith("/") or (before := _ABSOLUTE.match(text)) is None:
        return text
    return "/" + text[before.end() :]


def authority(request: web.BaseRequest) -> str | None:
    """Return the authority of a request target in absolute form; None for the usual form, a path."""
    text = request.raw_path
    if text.startswith("/") or (before := _ABSOLUTE.match(text)) is None:
        return None
    return before[1]


def local_address(request: web.BaseRequest) -> tuple[str, int]:
    """Return our IP address and port of the connection; empty and 0 once it is closed."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return (str(name[0]).partition("%")[0], int(name[1])) if name else ("", 0)


async def _begin_body(
    request: web.BaseRequest, limit: int, too_large: Callable[[int], PayloadTooLarge]
) -> None:
    """Send `100 Continue` if the client waits for it. Raises `too_large(size)` for a declared size above `limit`."""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise too_large(declared)
    if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        # curl waits a second for this before it sends a large body, other clients without limit
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # else aiohttp considers the answer begun


async def read_body(
    request: web.BaseRequest, limit: int, too_large: Callable[[int], PayloadTooLarge]
) -> bytes:
    """Return the body, of at most `limit` bytes.

    Raises `too_large(size)` as soon as the size is known to be above `limit`, and TimeoutError for a slow client.
    """
    await _begin_body(request, limit, too_large)
    if request.content.is_eof():
        body = request.content.read_nowait(-1)  # it arrived together with the head
        if len(body) > limit:
            raise too_large(len(body))
        return body
    chunks: list[bytes] = []
    size = 0
    async with Deadline(_BODY_DEADLINE_S) as deadline:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise too_large(size)
            chunks.append(chunk)
            deadline.extend(len(chunk) / _BODY_RATE)
    return b"".join(chunks)


class BodyReader:
    """A request's body in pieces, under the limits of `read_body`. Only the time inside `read` counts."""

    def __init__(
        self, request: web.BaseRequest, limit: int, too_large: Callable[[int], PayloadTooLarge]
    ) -> None:
        self._request, self._limit, self._too_large = request, limit, too_large
        self._size, self._left_s = 0, _BODY_DEADLINE_S

    async def begin(self) -> None:
        """Send `100 Continue` if the client waits for it. Raises `too_large(size)` for a size above the limit."""
        await _begin_body(self._request, self._limit, self._too_large)

    async def read(self) -> bytes:
        """Return the next piece, empty at the end.

        Raises TimeoutError for a client that is too slow, and `too_large(size)` above the limit.
        """
        piece: bytes = self._request.content.read_nowait(-1)
        if not piece:
            clock = asyncio.get_running_loop().time
            began = clock()
            async with Deadline(self._left_s):
                piece = await self._request.content.readany()
            self._left_s -= min(clock() - began, self._left_s)
        self._left_s += len(piece) / _BODY_RATE
        self._size += len(piece)
        if self._size > self._limit:
            raise self._too_large(self._size)
        return piece
