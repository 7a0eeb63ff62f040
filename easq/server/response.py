"""Writing a response: whole, or in slices."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import HttpVersion11, web

from easq.protocol.replies import Reply
from easq.server.connection import SingleWriteResponse, reset

#: size of a slice of a large reply, in bytes
_SLICE_BYTES = 256 * 1024
#: headers of a streamed answer: without them nginx buffers it
UNBUFFERED = {"X-Accel-Buffering": "no", "Cache-Control": "no-cache, no-transform"}


def respond(reply: Reply) -> web.Response:
    """Return the HTTP response for `reply`. It forbids browsers to guess another type."""
    headers: Mapping[str, str] = reply.headers
    if reply.body:
        headers = {"X-Content-Type-Options": "nosniff", **headers}
    return web.Response(status=reply.status, headers=headers, body=reply.body)


def acknowledge(reply: Reply, request: web.BaseRequest) -> web.StreamResponse:
    """Return the response for a short, frequent reply. It is sent in one write if the connection stays open."""
    stays_open = request.version == HttpVersion11 and request.keep_alive and request.method != "HEAD"
    return SingleWriteResponse(reply) if stays_open else respond(reply)


class SlicedResponse(web.StreamResponse):
    """A large reply, written in slices: written at once it would be copied three times, and block the event loop."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(status=reply.status, headers={"X-Content-Type-Options": "nosniff", **reply.headers})
        self.content_length = len(reply.body)
        self._rest = memoryview(reply.body)

    async def write_eof(self, data: bytes = b"") -> None:
        """Write the body, and end the response."""
        while self._rest:
            piece, self._rest = self._rest[:_SLICE_BYTES], self._rest[_SLICE_BYTES:]
            await self.write(piece)
        await super().write_eof(data)


def break_off(request: web.BaseRequest) -> None:
    """Abort the connection in the middle of an answer.

    An HTTP/1.0 connection is reset, since its client takes an orderly close for the end of the answer.
    """
    transport = request.transport
    if transport is None:
        return
    if request.version < HttpVersion11:
        reset(transport)
    else:
        transport.abort()
