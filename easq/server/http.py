"""Operations that are answered at once: operation to broker call to reply."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from functools import lru_cache, partial
from typing import ParamSpec, TypeVar

from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from easq.errors import BadRequest, PayloadTooLarge
from easq.model import Frame
from easq.protocol import operations as op
from easq.protocol import replies
from easq.protocol.replies import Reply
from easq.server.deadline import Deadline
from easq.server.queue import Queue

P = ParamSpec("P")
T = TypeVar("T")

#: a body has to be there after so many seconds, and one more for each so many bytes that have come
_BODY_DEADLINE_S, _BODY_RATE = 9.0, 1024
#: a reply with more payload is encoded in a thread (8 MiB in JSON take 30 ms), and written in slices
LARGE_BYTES, _SLICE_BYTES = 1024**2, 256 * 1024
#: a single thread: several would contend for the interpreter lock
_APART = ThreadPoolExecutor(1, "easq-encode")
#: a body that is no payload (the form of a negative) has at most so many bytes
_MAX_FORM = 64 * 1024


#: scheme and authority of a request target in absolute form, which clients send to proxies
_ABSOLUTE = re.compile(r"https?://([^/?]*)/?", re.IGNORECASE)


def target(request: web.BaseRequest) -> str:
    """What is asked for, as it was sent: path and query, without scheme and authority before them."""
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


async def _begin_body(
    request: web.BaseRequest, limit: int, too_large: Callable[[int], PayloadTooLarge]
) -> None:
    """Send `100 Continue` if the client waits for it. Raises `too_large(size)` for a declared size above `limit`."""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise too_large(declared)
    if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        # it is wanted: curl waits a second for this before it sends a large body, others for ever
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing is sent yet


async def read_body(
    request: web.BaseRequest, limit: int, too_large: Callable[[int], PayloadTooLarge]
) -> bytes:
    """The request's body, of at most `limit` bytes. Raises `too_large(size)` as soon as it is known to have more."""
    await _begin_body(request, limit, too_large)
    if request.content.is_eof():
        body = request.content.read_nowait(-1)  # all of it came with the head: nothing to wait for
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
    """A request's body in pieces, under the limits of `read_body`. The time between two calls does not count."""

    def __init__(
        self, request: web.BaseRequest, limit: int, too_large: Callable[[int], PayloadTooLarge]
    ) -> None:
        self._request, self._limit, self._too_large = request, limit, too_large
        self._size, self._left_s = 0, _BODY_DEADLINE_S

    async def begin(self) -> None:
        """Send `100 Continue` if the client waits for it. Raises `too_large(size)` for a declared size that is."""
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


def reset(transport: asyncio.WriteTransport) -> None:
    """Reset the TCP connection, so that the other side does not take a partial answer for a complete one."""
    held: socket.socket = transport.get_extra_info("socket")
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def break_off(request: web.BaseRequest) -> None:
    """Abort the connection in the middle of an answer.

    Over HTTP/1.0 it is reset: there an orderly end marks the answer as complete.
    """
    transport = request.transport
    if transport is None:
        return
    if request.version < HttpVersion11:
        reset(transport)
    else:
        transport.abort()


async def read_operation(request: web.BaseRequest, queue: Queue) -> bytes:
    """The body of an operation on `queue`. Raises PayloadTooLarge."""
    if request.method == "POST":
        return await read_body(request, queue.policy.max_payload, queue.too_large)
    return await read_body(
        request,
        _MAX_FORM,
        lambda size: PayloadTooLarge(f"the body has {size} bytes, {_MAX_FORM} are allowed here"),
    )


async def answer(
    operation: op.Operation,
    queue: Queue,
    caller: op.Caller,
    request: web.BaseRequest,
    *,
    is_gone: Callable[[], bool],
    gone: Callable[[], asyncio.Future[None] | None],
) -> web.StreamResponse:
    """The operation has taken effect, and its reply is ready to send (a deleting get: is sent).

    Args:
        is_gone: tells whether the caller has disconnected, or the service stops; a long poll then ends without items.
        gone: returns a future that is done when the caller disconnects, or None.
    """
    consumer = caller.consumer
    match operation:
        case op.Put():
            return acknowledge(replies.put_reply(await queue.put(operation)), request)
        case op.Get():
            return await _get(operation, queue, request, is_gone, gone)
        case op.Describe():
            return respond(replies.attributes_reply(await queue.attributes(), operation.codec))
        case op.Search():
            return respond(replies.search_reply(await queue.search(consumer, operation.index)))
        case op.Count():
            return respond(replies.count_reply(await queue.count(operation, is_gone=is_gone)))
        case op.Commit():
            counted = await queue.commit(consumer, operation.indexes)
            return acknowledge(replies.ok_reply({replies.COMMITTED_HEADER: str(counted)}), request)
        case op.Negative():
            counted = await queue.negative(consumer, operation)
            return acknowledge(replies.ok_reply({replies.COMMITTED_HEADER: str(counted)}), request)
        case op.Delete():
            return _deleted(await queue.delete(operation.indexes))
        case op.Truncate():
            return _deleted(await queue.truncate(operation.index))
        case op.End():
            await queue.end(operation)
            return respond(replies.ok_reply())
        case op.Watch():
            raise BadRequest("a watch is not answered here")


def _deleted(count: int) -> web.StreamResponse:
    return respond(replies.ok_reply({replies.DELETED_HEADER: str(count)}))


async def _get(
    get: op.Get,
    queue: Queue,
    request: web.BaseRequest,
    is_gone: Callable[[], bool],
    gone: Callable[[], asyncio.Future[None] | None],
) -> web.StreamResponse:
    frames = await queue.get(get, is_gone=is_gone, gone=gone)
    try:
        if sum(len(frame.data) for frame in frames) > LARGE_BYTES:
            response: web.StreamResponse = _Sliced(await apart(_frames_reply, get, frames))
        else:
            response = respond(_frames_reply(get, frames))
    except BaseException:
        if get.auto_delete and frames:
            await queue.give_back(frames)
        raise
    if not get.auto_delete or not frames:
        return response
    return await _send_then_settle(response, queue, frames, request)


def _frames_reply(get: op.Get, frames: list[Frame]) -> Reply:
    if get.codec is not op.Codec.RAW:
        return replies.frames_reply(frames, get.codec)
    if not frames:
        return Reply(204)
    return replies.raw_reply(frames[0]) if get.length == 1 else replies.frames_reply(frames, op.Codec.JSON)


async def _send_then_settle(
    response: web.StreamResponse, queue: Queue, frames: list[Frame], request: web.BaseRequest
) -> web.StreamResponse:
    """Claimed items are removed when the whole answer is with the kernel, and are back when it could not be written."""
    written = False
    try:
        transport = request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=0)
        await response.prepare(request)
        await response.write_eof()
        await response_drained(request)
        written = request.transport is not None and not request.transport.is_closing()
    except ConnectionError:
        pass
    finally:
        if written:
            await queue.settle(frames)
        else:
            await queue.give_back(frames)
    return response


async def response_drained(request: web.BaseRequest) -> None:
    """What was written to the connection has left this process. Raises ConnectionError when it was lost."""
    await request.writer.drain()
    check_connected(request)


def check_connected(request: web.BaseRequest) -> None:
    """Raise ConnectionError when the connection is lost: a write that waited for buffer space does not report that."""
    if request.transport is None or request.transport.is_closing():
        raise ClientConnectionResetError("the connection was lost")


def release_frames(error: BaseException) -> None:
    """Drop the tracebacks of `error` and of the errors in its context.

    aiohttp stores some errors in a connection, request or response. The tracebacks' frames refer to that object and to
    the payload being sent: a reference cycle that only a full garbage collection would free.
    """
    known: BaseException | None = error
    while known is not None:
        known.__traceback__ = None
        known = known.__context__


async def apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread, and return its result. There is one thread, so calls run one after the other."""
    return await asyncio.get_running_loop().run_in_executor(_APART, partial(work, *args, **kwargs))


class _Sliced(web.StreamResponse):
    """A large reply, written in slices: written at once it would be copied three times, and block the event loop."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(status=reply.status, headers={"X-Content-Type-Options": "nosniff", **reply.headers})
        self.content_length = len(reply.body)
        self._rest = memoryview(reply.body)

    async def write_eof(self, data: bytes = b"") -> None:
        while self._rest:
            piece, self._rest = self._rest[:_SLICE_BYTES], self._rest[_SLICE_BYTES:]
            await self.write(piece)
        await super().write_eof(data)


def acknowledge(reply: Reply, request: web.BaseRequest) -> web.StreamResponse:
    """As `respond`, for the answers that are sent most, with a short body."""
    goes_on = request.version == HttpVersion11 and request.keep_alive and request.method != "HEAD"
    return _Whole(reply) if goes_on else respond(reply)


class _Whole(web.StreamResponse):
    """A reply that is one write, on a connection that goes on: it needs none of what a response in parts does, which
    is a tenth of the time that a put takes.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(status=reply.status)
        self._reply = reply

    @property
    def keep_alive(self) -> bool | None:
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if request.transport is None or request.transport.is_closing():
            raise ClientConnectionResetError("the connection is closed")
        request.transport.write(_head(self._reply, self.reason) + self._reply.body)
        if request.transport.get_write_buffer_size():
            await response_drained(request)  # who reads no answers is not answered for ever
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """All of it is written already."""


def _head(reply: Reply, reason: str) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in reply.headers.items()]
    text = (
        f"HTTP/1.1 {reply.status} {reason}\r\n{''.join(lines)}"
        f"Content-Length: {len(reply.body)}\r\nDate: {_date(int(time.time()))}\r\n\r\n"
    )
    if text.count("\n") != len(lines) + 4 or text.count("\r") != len(lines) + 4:
        raise ValueError("a header holds a line break")
    return text.encode()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def respond(reply: Reply) -> web.Response:
    """The HTTP response that `reply` describes. No browser is to take it for another type than it says."""
    headers: Mapping[str, str] = reply.headers
    if reply.body:
        headers = {"X-Content-Type-Options": "nosniff", **headers}
    return web.Response(status=reply.status, headers=headers, body=reply.body)
