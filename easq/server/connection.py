"""The adapter to aiohttp's HTTP server. All that relies on undocumented behaviour of aiohttp is here.

aiohttp documents `web.Server`, and that a handler gets a request and returns a response. It does not document

- which methods of `web.RequestHandler`, its connection, are called when, which `ClientConnection` overrides;
- that it calls `web.Server` without arguments for each connection, which `HttpServer` overrides;
- that a response is asked to `prepare` and to `write_eof`, which `SingleWriteResponse` overrides;
- `output_size` of a request's writer, `total_bytes` of its content, and the texts of parser errors.

tests/server/test_connection.py has a test for each, which fails when aiohttp changes it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Any, TypeAlias

from aiohttp import ClientConnectionResetError, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from easq.errors import BadRequest
from easq.protocol.replies import Reply
from easq.server.hooks import MALFORMED, Hook, RequestRecord
from easq.server.masks import MaskedFrames

log = logging.getLogger(__name__)

#: answers a request
Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

#: most bytes of a request line, and of all headers of a request
MAX_LINE, MAX_FIELD = 64 * 1024, 32 * 1024
#: most headers of a request
MAX_HEADERS = 100
#: seconds between two checks for slow clients, and how many checks the head of a request may take after its first byte
CHECK_EVERY_S, _HEAD_CHECKS = 1.0, 5
#: seconds between two warnings that an address has too many connections
_WARN_AGAIN_S = 60.0
#: methods of requests that usually have no body
_BODILESS = (b"GET ", b"HEAD ", b"DELETE ", b"OPTIONS ")
#: headers that announce a body, or bytes that are not HTTP
_FRAMING = (b"\ncontent-length", b"\ntransfer-encoding", b"\nupgrade")
#: headers whose repetitions `without_repeated` drops
_DROPPED = (b"\ncontent-type:", b"\nuser-agent:")


class ClientConnection(web.RequestHandler):
    """One connection of a client, and the request that is being answered there."""

    __slots__ = (
        "address",
        "begun",
        "heads_only",
        "last_byte_at",
        "is_answering",
        "lost",
        "on_unmasked",
        "queue",
        "route",
        "server",
        "started",
    )

    def __init__(self, server: HttpServer, **given: Any) -> None:
        super().__init__(server, **given)
        self.server = server
        #: number of checks when the first byte of a head arrived; None while no head is being read
        self.begun: int | None = None
        self.is_answering = False
        self.address = ""
        #: when the last byte arrived, by the event loop's clock
        self.last_byte_at = 0.0
        #: whether each piece of input so far was exactly one head without a body; the next piece then begins a head
        self.heads_only = True
        #: done once the connection is lost; None until `until_lost` asks for it
        self.lost: asyncio.Future[None] | None = None
        #: called when a WebSocket frame is not masked
        self.on_unmasked: Callable[[], None] | None = None
        #: route, queue and start time (event loop's clock) of the current request
        self.route, self.queue, self.started = "", "", 0.0

    def begin(self) -> None:
        """Record that a request is being answered."""
        self.is_answering, self.begun = True, None
        self.route, self.queue, self.started = "", "", self.server.now()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count a new connection; abort it if its address has too many."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if not self.server.admit(self.address) and self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        """Tell aiohttp that the connection is closed, but not the error.

        A writer that waits for buffer space continues, so it has to call `check_connected`. aiohttp would set `exc` on
        the writer's future. The traceback of `exc` refers to that future and to the payload being written: a reference
        cycle that only a full garbage collection would free.
        """
        super().connection_lost(None)
        self.on_unmasked = None  # it refers to the WebSocket, and that to this connection
        self.server.left(self.address)
        if self.lost is not None and not self.lost.done():
            self.lost.set_result(None)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """Set the parser of a WebSocket. It gets no data from the first unmasked frame on."""
        if self.on_unmasked is not None:
            parser = MaskedFrames(parser, self.on_unmasked)
        super().set_parser(parser, data_received_cb)

    def data_received(self, data: bytes) -> None:
        """Pass `data` to aiohttp: it belongs to a head unless a request is being answered."""
        self.last_byte_at = self.server.now()
        if self.begun is None and not self.is_answering:
            self.begun = self.server.checks
        if self.heads_only:
            head = without_repeated(data)
            self.heads_only = head is not None
            data = data if head is None else head
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the response, then call the hooks."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.call_hooks(request, resp.status)

    def call_hooks(self, request: web.BaseRequest, status: int) -> None:
        """Call the hooks that are enabled, once for each request. The error of a hook is logged."""
        enabled = [hook for hook in self.server.hooks if hook.is_enabled()]
        if not enabled:
            return
        record = RequestRecord(
            self.route,
            self.queue,
            request.method,
            request.rel_url.raw_path,
            status,
            self.server.now() - self.started,
            request.content.total_bytes,
            request.writer.output_size,
        )
        for hook in enabled:
            try:
                hook(record)
            except Exception:
                log.exception("a hook failed")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Return the answer to malformed input, after which the connection is closed.

        The answer has no traceback, and repeats nothing of the input. Raises ConnectionError when another answer has
        begun.
        """
        self.route, self.queue, self.started = MALFORMED, "", self.server.now()
        log.info("%s sent what is no HTTP request: %s", request.remote, type(exc).__name__)
        if exc is not None:
            release_frames(exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        response = self.server.refuse(_parser_error(exc, status))
        response.force_close()
        return response


class HttpServer(web.Server):
    """aiohttp's server, whose connections are `ClientConnection`s."""

    #: number of checks so far. The age of a head is counted in checks, not in time: a suspended process makes no checks
    checks = 0

    def __init__(
        self,
        handler: Handler,
        refuse: Callable[[BadRequest], web.Response],
        *,
        hooks: Sequence[Hook] = (),
        max_connections: int = 0,
        keepalive_timeout_s: float,
    ) -> None:
        """Prepare; an instance is the protocol factory of a listening socket.

        Args:
            handler: answers each request.
            refuse: returns the answer to malformed input.
            hooks: called when a request is over.
            max_connections: most connections from one IP address; 0: no limit.
            keepalive_timeout_s: time after which an idle connection is closed, in seconds.
        """
        super().__init__(handler, handler_cancellation=False)
        self.refuse, self.hooks = refuse, hooks
        self.now = asyncio.get_running_loop().time
        self._event_loop = asyncio.get_running_loop()
        self._keepalive_timeout_s = keepalive_timeout_s
        self._max_connections = max_connections
        self._by_address: Counter[str] = Counter()
        self._warned_at = -_WARN_AGAIN_S

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return ClientConnection(
            self,
            loop=self._event_loop,
            access_log=None,
            keepalive_timeout=self._keepalive_timeout_s,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            auto_decompress=False,
        )

    def admit(self, address: str) -> bool:
        """Count a new connection from the address, and return whether it is within the limit."""
        self._by_address[address] += 1
        if not self._max_connections or self._by_address[address] <= self._max_connections:
            return True
        if self.now() - self._warned_at >= _WARN_AGAIN_S:
            self._warned_at = self.now()
            log.warning(
                "%s has %d connections, the limit (--max-connections): further ones are closed",
                address,
                self._max_connections,
            )
        return False

    def left(self, address: str) -> None:
        """Uncount a closed connection from the address."""
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def check(self) -> None:
        """Close connections whose client sends the head of a request too slowly."""
        self.checks += 1
        for connection in self.connections:
            begun = connection.begun if isinstance(connection, ClientConnection) else None
            if begun is not None and self.checks - begun > _HEAD_CHECKS:
                log.info("a request did not come within %.0f s", _HEAD_CHECKS * CHECK_EVERY_S)
                connection.force_close()


class SingleWriteResponse(web.StreamResponse):
    """A reply in one write, on a connection that stays open.

    It does not use aiohttp's writer for responses in parts, which takes a tenth of the time of a put.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(status=reply.status)
        self._reply = reply

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open: always."""
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the reply; wait while the write buffer is not empty. Raises ConnectionError when the client is lost."""
        if request.transport is None or request.transport.is_closing():
            raise ClientConnectionResetError("the connection is closed")
        data = _head(self._reply, self.reason) + self._reply.body
        request.transport.write(data)
        request.writer.output_size += len(data)
        if request.transport.get_write_buffer_size():
            await drain(request)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: `prepare` has written all of it."""


def connection_of(request: web.BaseRequest) -> ClientConnection:
    """Return the connection of the request."""
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    return connection


def until_lost(request: web.BaseRequest) -> asyncio.Future[None]:
    """Return the future that is done as soon as the connection of the request is lost."""
    connection = connection_of(request)
    if connection.lost is None:
        connection.lost = asyncio.get_running_loop().create_future()
        if request.transport is None:
            connection.lost.set_result(None)
    return connection.lost


def on_unmasked(request: web.BaseRequest, call: Callable[[], None]) -> None:
    """Call `call` at the first unmasked frame of the connection. That frame and all later bytes are discarded.

    Use this before the WebSocket is prepared: frames may arrive in one piece with the handshake.
    """
    connection_of(request).on_unmasked = call


async def drain(request: web.BaseRequest) -> None:
    """Wait until the write buffer is empty. Raises ConnectionError when the connection was lost."""
    await request.writer.drain()
    check_connected(request)


def check_connected(request: web.BaseRequest) -> None:
    """Raise ConnectionError when the connection is lost: a write that waited for buffer space does not report that."""
    if request.transport is None or request.transport.is_closing():
        raise ClientConnectionResetError("the connection was lost")


def reset(transport: asyncio.WriteTransport) -> None:
    """Reset the TCP connection, so that the peer does not take a partial answer for a complete one."""
    connected: socket.socket = transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def release_frames(error: BaseException) -> None:
    """Drop the tracebacks of `error` and of the errors in its context.

    aiohttp stores some errors in a connection, request or response. The tracebacks' frames refer to that object and to
    the payload being sent: a reference cycle that only a full garbage collection would free.
    """
    known: BaseException | None = error
    while known is not None:
        known.__traceback__ = None
        known = known.__context__


def without_repeated(data: bytes) -> bytes | None:
    """Return `data` without repeated Content-Type and User-Agent lines; None unless it is one whole, bodiless head.

    The Java SDK sends two Content-Type lines with a GET. The parser refuses repeated headers, since a proxy and a
    server may use different ones. These two headers mean nothing without a body.
    """
    if not data.startswith(_BODILESS) or data.find(b"\r\n\r\n") != len(data) - 4:
        return None
    lower = data.lower()
    if any(name in lower for name in _FRAMING):
        return None
    if all(lower.count(name) < 2 for name in _DROPPED):
        return data
    lines = data[:-4].split(b"\r\n")
    if any(not line or line[0] in b" \t" or b"\r" in line or b"\n" in line for line in lines):
        return data  # the parser reports the error
    seen: set[bytes] = set()
    left = []
    for line in lines:
        name = b"\n" + line.partition(b":")[0].lower() + b":"
        if name not in _DROPPED or name not in seen:
            left.append(line)
        seen.add(name)
    return b"\r\n".join(left) + b"\r\n\r\n"


def _parser_error(error: BaseException | None, status: int) -> BadRequest:
    """Return the error for an exception of the parser. Its message never contains the value of a header."""
    if isinstance(error, LineTooLong):
        return BadRequest(
            f"the request line is above {MAX_LINE} bytes, or a header above {MAX_FIELD}", status=431
        )
    if isinstance(error, BadHttpMessage):
        if error.message == "Too many headers received":
            return BadRequest(f"a request has at most {MAX_HEADERS} headers", status=431)
        if found := re.match(r"Duplicate '?([A-Za-z-]+)", error.message):
            return BadRequest(f"the header {found[1]} is given more than once", status=status)
        if found := re.match(r"Invalid `([A-Za-z-]+)`", error.message):
            return BadRequest(f"the header {found[1]} is not valid, or given more than once", status=status)
    return BadRequest("this is no HTTP/1.1 request", status=status)


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
