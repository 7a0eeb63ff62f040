"""A reverse proxy: streams a request to another HTTP server, and the answer back.

The gateway uses it for its instances, and an instance for a model behind HTTP. A request is sent once, since it may
have taken effect. If no connection can be opened, the body is still unread, and the caller can try another server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from easq.errors import MethodNotAllowed, PayloadTooLarge, Refused
from easq.net.aio_raw import RawClient
from easq.protocol.hop_by_hop import end_to_end
from easq.server.connection import until_lost
from easq.server.handshake import check_not_stripped
from easq.server.request import BodyReader, read_body
from easq.server.response import UNBUFFERED, break_off

#: longest body or answer of known length that is read whole before it is forwarded, in bytes. An incomplete answer can
#: then be replaced by an error with a status
_WHOLE = 64 * 1024
#: methods that are not forwarded: TRACE echoes headers, CONNECT opens a tunnel
_REFUSED_METHODS = frozenset({"TRACE", "CONNECT"})
#: the usual methods that are forwarded
_PASSED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
#: response headers that make a browser guess content types, or make a web server before us send one of its own files
UNSAFE = re.compile(
    r"x-content-type-options|x-accel-(?!buffering$).*|x-sendfile.*|x-lighttpd-.*|x-litespeed-.*|x-reproxy-.*"
)


class BrokenOff(Exception):
    """An answer ended early, after a part of it was sent to the caller. The caller's connection was aborted."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__("the answer broke off")
        self.response = response


class CallerGone(ConnectionError):
    """The caller has disconnected. `answered` tells whether the answer had begun."""

    def __init__(self, *, answered: bool) -> None:
        super().__init__("the caller is gone")
        self.answered = answered


class StreamedBody(aiohttp.Payload):
    """A streamed body: it is read from the caller while it is written to the server. It can be sent only once."""

    def __init__(self, reader: BodyReader, *, size: int | None, patience_s: float) -> None:
        """Wrap `reader`.

        Args:
            size: the length in bytes; None when the caller did not declare it.
            patience_s: time limit of writing one piece to the server, in seconds.
        """
        super().__init__(None, content_type="application/octet-stream")
        self._reader = reader
        self._declared = size
        self._patience_s = patience_s
        self._begun = False
        #: an error on the caller's side. `pass_on` raises it: a traceback through `write` would refer to this body, and
        #: so make a reference cycle
        self.failure: Exception | None = None

    @property
    def size(self) -> int | None:
        """The declared length in bytes; None when the caller declared none."""
        return self._declared

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        """Raise TypeError: the body is streamed, not stored."""
        raise TypeError("the body of a request is streamed, not stored")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write each piece as it arrives.

        Raises TimeoutError when the server does not take a piece in time, and ConnectionError on a second call.
        """
        if self._begun:
            raise ConnectionError("the body was sent before")
        self._begun = True
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(None) as limit:
            while piece := await self._read():
                limit.reschedule(clock() + self._patience_s)
                await writer.write(piece)
                limit.reschedule(None)

    async def _read(self) -> bytes:
        try:
            return await self._reader.read()
        except TimeoutError:
            self.failure = Refused("the body did not come in time", status=408)
            raise
        except PayloadTooLarge as error:
            self.failure = PayloadTooLarge(error.message)
            raise
        except (ConnectionError, aiohttp.ClientError):
            self.failure = CallerGone(answered=True)  # not the server's fault
            raise

    def take_failure(self) -> Exception:
        """Return and clear the error on the caller's side, which must exist."""
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure


async def body_of(request: web.BaseRequest, limit: int, *, patience_s: float) -> bytes | StreamedBody | None:
    """Return the body of `request`: as bytes if it is small, else as a stream; None if it has none.

    Raises PayloadTooLarge for a declared size above `limit` bytes.
    """
    if not request.body_exists:
        return None

    def too_large(size: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"the request has {size} bytes, {limit} are allowed")

    size = request.content_length
    if size is not None and size <= _WHOLE:
        return await read_body(request, limit, too_large)
    reader = BodyReader(request, limit, too_large)
    await reader.begin()
    return StreamedBody(reader, size=size, patience_s=patience_s)


def check_can_pass(request: web.BaseRequest) -> None:
    """Raise MethodNotAllowed or UpgradeRequired for a request that is not passed on."""
    if request.method in _REFUSED_METHODS:
        raise MethodNotAllowed(f"{request.method} is not passed on", allow=_PASSED_METHODS)
    check_not_stripped(request)


class Proxy:
    """Passes requests on to other servers. Used on the event loop."""

    def __init__(self, *, connect_s: float, answer_s: float, repeat: bool = False) -> None:
        """Prepare; connections are opened when they are needed.

        Args:
            connect_s: time limit of a connection attempt, in seconds.
            answer_s: time limit until the answer begins, and between two pieces of it, in seconds.
            repeat: send a request again on a new connection when a reused one ends without an answer: the server has
                closed the idle connection. Requests with a streamed body are not repeated.
        """
        # servers close idle connections: uvicorn after 5 s, easq after 60 s
        self._client = RawClient(idle_s=2.0 if repeat else 15.0, connect_s=connect_s, read_s=answer_s)
        self._repeat = repeat
        self._running: set[asyncio.Task[web.StreamResponse]] = set()

    async def close(self) -> None:
        """Abort the requests in flight, which fail as if their server had closed the connection. Close connections."""
        # closing a session does not wake a task that reads an answer (aiohttp 3.14)
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._client.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session for WebSockets."""
        return self._client.session()

    async def pass_on(
        self,
        request: web.BaseRequest,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes | StreamedBody | None,
        *,
        drop: frozenset[str] = frozenset(),
        add: Sequence[tuple[str, str]] = (),
    ) -> web.StreamResponse:
        """Send `request` with these headers to `url`, and return the answer. Redirects are not followed.

        A large answer is sent to the caller before this returns.

        Args:
            drop: response headers to remove, in lower case.
            add: response headers to add.

        Raises:
            aiohttp.ClientError, TimeoutError: there was no answer, and nothing was sent to the caller. With
                aiohttp.ClientConnectorError nothing was sent to the server either.
            PayloadTooLarge, Refused: the caller's body is too large, or was too slow.
            CallerGone: the caller disconnected.
            BrokenOff: the answer broke off after a part of it was sent.
        """
        proxied = _ProxiedRequest(request, drop, add)
        try:
            task = asyncio.create_task(self._send(proxied, url, headers, body))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            return await proxied.wait_for(task)
        except (aiohttp.ClientError, TimeoutError, OSError):
            if isinstance(body, StreamedBody) and body.failure is not None:
                raise body.take_failure() from None
            raise

    async def _send(
        self,
        proxied: _ProxiedRequest,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes | StreamedBody | None,
    ) -> web.StreamResponse:
        streamed = isinstance(body, StreamedBody)
        reply = await self._client.request(
            proxied.request.method,
            url,
            headers,
            body,
            repeat=self._repeat and not streamed,
            reuse=not (self._repeat and streamed),
        )
        async with reply:
            return await proxied.answer(reply)


class _ProxiedRequest:
    """One request of a caller, and the state of its answer."""

    def __init__(
        self, request: web.BaseRequest, drop: frozenset[str], add: Sequence[tuple[str, str]]
    ) -> None:
        self.request, self._drop, self._add = request, drop, add
        #: the answer, once it is being sent
        self._begun: web.StreamResponse | None = None

    async def wait_for(self, task: asyncio.Task[web.StreamResponse]) -> web.StreamResponse:
        """Return the answer of `task`. When the caller disconnects, cancel the task and raise CallerGone."""
        either: set[asyncio.Future[Any]] = {task, until_lost(self.request)}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise CallerGone(answered=self._begun is not None)
            if task.cancelled():  # by `Proxy.close`
                if self._begun is None:
                    raise aiohttp.ClientConnectionError("the connection was closed")
                raise self._break_off(self._begun)
            return task.result()
        finally:
            task.cancel()
            either.clear()
            del task  # its exception refers to this frame, which refers to the task

    async def answer(self, reply: aiohttp.ClientResponse) -> web.StreamResponse:
        """Return the response for `reply`: its status, its end-to-end headers and its body. Send a large one here."""
        length = reply.content_length
        has_body = self.request.method != "HEAD" and reply.status not in (204, 304)
        response: web.StreamResponse
        if has_body and length is not None and length <= _WHOLE:
            response = web.Response(body=await reply.read(), status=reply.status, reason=reply.reason or None)
            self._add_headers(response, reply)
            return response
        response = web.StreamResponse(status=reply.status, reason=reply.reason or None)
        self._add_headers(response, reply)
        if length is not None:
            response.content_length = length
        elif has_body:
            # ask proxies in front of the service not to buffer an answer of unknown length
            response.headers.setdefault("X-Accel-Buffering", UNBUFFERED["X-Accel-Buffering"])
            if reply.content_type == "text/event-stream":
                response.headers.setdefault("Cache-Control", UNBUFFERED["Cache-Control"])
        self._begun = response
        try:
            await response.prepare(self.request)
            while has_body:
                try:
                    piece = await reply.content.readany()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    raise self._break_off(response) from error
                if not piece:
                    break
                await response.write(piece)
        except ConnectionError as error:
            raise CallerGone(answered=True) from error
        return response

    def _break_off(self, response: web.StreamResponse) -> BrokenOff:
        break_off(self.request)
        return BrokenOff(response)

    def _add_headers(self, response: web.StreamResponse, reply: aiohttp.ClientResponse) -> None:
        for name, value in end_to_end(reply.headers.items()):
            lower = name.lower()
            if (
                lower not in self._drop
                and not UNSAFE.fullmatch(lower)
                and value.replace("\t", " ").isprintable()
            ):
                response.headers.add(name, value)
        for name, value in (("X-Content-Type-Options", "nosniff"), *self._add):
            response.headers.add(name, value)
