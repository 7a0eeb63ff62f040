"""A door of the service: an address, and for each request there an answer or an error's reply, and a line of log."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from easq.errors import BadRequest, ConfigError, EasqError, StorageError
from easq.protocol.replies import Reply, error_reply
from easq.server.auth import Guard
from easq.server.http import authority, release_frames, reset, respond
from easq.server.masks import MaskedFrames

log = logging.getLogger(__name__)

#: what answers a request; what it raises becomes a reply
Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

#: what one request line, and all its headers, may have in bytes
_MAX_LINE, _MAX_FIELD = 64 * 1024, 32 * 1024
#: and how many of these there may be
_MAX_HEADERS = 100
#: headers whose value is not a list. Given twice, they are refused: a proxy that reads the first one and a server that
#: reads the last would disagree
_SINGLE = re.compile(
    rb"host|content-length|content-type|transfer-encoding|user-agent|authorization|x-auth-token|origin|idempotency-key"
    rb"|x-easq-.*|x-eas-queueservice-.*|sec-(?!websocket-(?:extensions|protocol)$).*",
    re.IGNORECASE,
)
#: methods of requests that usually have no body; headers that announce a body, or the last request of a connection; and
#: headers that `without_doubles` drops when they are repeated
_BODILESS = (b"GET ", b"HEAD ", b"DELETE ", b"OPTIONS ")
_FRAMING = (b"\ncontent-length", b"\ntransfer-encoding", b"\nupgrade")
_DROPPED = (b"\ncontent-type:", b"\nuser-agent:")
#: an idle connection is kept so long, in seconds
_KEEP_ALIVE_S = 60.0
#: the head of a request is looked for this often, in seconds, and has to be there at so many looks after its first byte
_LOOK_S, _HEAD_LOOKS = 1.0, 5
#: a connection whose client takes nothing of what is written for so long is lost, in seconds
_WRITE_DEADLINE_S = 30.0
#: a silent connection is probed after 10 s, then every 5 s; after four unanswered probes, 30 s in all, it is lost: a
#: host that vanished must not keep items pending. macOS calls the first option TCP_KEEPALIVE
_PROBES = (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
#: so many connections wait to be taken; asyncio, told of both by one number, takes so many before it looks around, and
#: complains as often when it cannot
_BACKLOG, _ACCEPT_AT_ONCE = 1024, 64
#: what asyncio has accepted is a connection of the server so many turns of its loop later, at the most
_HAND_OVER = 3
#: seconds between two warnings that an address has too many connections
_SAY_AGAIN_S = 60.0
#: requests under way may take so long once the service stops, in seconds
_GRACE_S = 5.0


def _find_lost(listening: socket.socket) -> None:
    """Have the system close connections whose peer is gone. Accepted sockets inherit the options."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _PROBES:
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # bounds unacknowledged data and the probes together; 10 s of silence and four probes stay within it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_WRITE_DEADLINE_S * 1000))


class Listener:
    """One address, and what is answered there. It can be started again, at the same port, after it was closed."""

    def __init__(self, answer: Handler, guard: Guard, *, max_connections: int = 0) -> None:
        """Prepare; `start` listens.

        Args:
            answer: called for each request that `guard` accepts.
            max_connections: most connections from one IP address; 0: no limit.
        """
        self._answer = answer
        self._guard = guard
        self._max_connections = max_connections
        self._runner: web.ServerRunner | None = None
        self._server: _HttpServer | None = None
        self._accepting: asyncio.Server | None = None
        self._looking: asyncio.TimerHandle | None = None
        self.ip = ""
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Requests are answered, at `ip` and `port`: 0 takes a free one. Raises ConfigError."""
        self._server = _HttpServer(
            self._handle,
            max_connections=self._max_connections,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_S,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD,
            auto_decompress=False,
            handler_cancellation=False,
        )
        self._runner = web.ServerRunner(self._server, handle_signals=False, shutdown_timeout=_GRACE_S)
        await self._runner.setup()
        try:
            self._accepting = await asyncio.get_running_loop().create_server(
                self._server, host, port, backlog=_ACCEPT_AT_ONCE
            )
        except OSError as error:
            await self.close()
            reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ConfigError(
                f"{host} port {port}: {reason}", hint="choose another with --port, or --port 0"
            ) from error
        for listening in self._accepting.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(_BACKLOG)
            _find_lost(listening)
        self.ip, self.port = self._accepting.sockets[0].getsockname()[:2]
        self._look()

    async def refuse_new(self) -> None:
        """No new connection is taken; those that are there go on.

        asyncio hands over what it has accepted some turns of its loop later, and cannot once its server is closed.
        """
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            for listening in accepting.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(_HAND_OVER):
                await asyncio.sleep(0)
            accepting.close()

    def _look(self) -> None:
        assert self._server is not None
        self._server.look()
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    async def close(self) -> None:
        """No connection is there; requests under way had some seconds to end."""
        await self.refuse_new()
        if self._looking is not None:
            self._looking.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def abort(self) -> None:
        """No connection is there, all were reset, as when a process is killed."""
        await self.refuse_new()
        for connection in self._server.connections if self._server is not None else ():
            transport = connection.transport
            if transport is not None:
                reset(transport)
        if self._server is not None:
            await self._server.shutdown(0)
        await self.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request; an EasqError becomes its reply, a bug a 500 and a traceback in the log."""
        started = time.monotonic()
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.is_answering, connection.begun = True, None
        try:
            _check_headers(request.raw_headers)
            self._guard.check_source(request.headers, authority(request))
            response = await self._answer(request)
        except Exception as error:
            response = _reply_to(error, request)
            release_frames(error)
        finally:
            connection.is_answering = False
        if log.isEnabledFor(logging.INFO):
            log.info(
                "%s %s %s %.1fms",
                request.method,
                safe(request.rel_url.raw_path),
                response.status,
                (time.monotonic() - started) * 1000,
            )
        return response


def until_lost(request: web.BaseRequest) -> asyncio.Future[None]:
    """Return the future that is done as soon as the connection of the request is lost."""
    connection = request.protocol
    assert isinstance(connection, _Connection)
    if connection.lost is None:
        connection.lost = asyncio.get_running_loop().create_future()
        if request.transport is None:
            connection.lost.set_result(None)
    return connection.lost


def on_unmasked(request: web.BaseRequest, call: Callable[[], None]) -> None:
    """Have the first unmasked frame on the request's connection call `call`; neither it nor what follows is read.

    To be called before the WebSocket is prepared: frames may come in one piece with the handshake.
    """
    connection = request.protocol
    assert isinstance(connection, _Connection)
    connection.on_unmasked = call


def safe(text: str) -> str:
    """`text` for a line of log: no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise BadRequest when there are too many headers, when they are too large in all, or when one that must be unique
    is repeated.
    """
    size, names = 0, set()
    for name, value in headers:
        size += len(name) + len(value)
        names.add(name.lower())
    if len(headers) > _MAX_HEADERS or size > _MAX_FIELD:
        raise BadRequest(
            f"a request has at most {_MAX_HEADERS} headers, and {_MAX_FIELD} bytes of them", status=431
        )
    if len(names) == len(headers):
        return
    counts = Counter(name.lower() for name, _ in headers)
    for name, _ in headers:
        if counts[name.lower()] > 1 and _SINGLE.fullmatch(name):
            raise BadRequest(f"the header {name.decode('latin-1')} is given more than once")


def without_doubles(data: bytes) -> bytes | None:
    """Return `data` without repeated Content-Type and User-Agent lines; None unless it is one whole, bodiless head.

    The Java SDK sends two Content-Type lines with a GET. The parser refuses those, since two readers may pick different
    ones; without a body neither has a meaning.
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
    kept = []
    for line in lines:
        name = b"\n" + line.partition(b":")[0].lower() + b":"
        if name not in _DROPPED or name not in seen:
            kept.append(line)
        seen.add(name)
    return b"\r\n".join(kept) + b"\r\n\r\n"


def _reply_to(error: Exception, request: web.BaseRequest) -> web.Response:
    match error:
        case StorageError():
            # whether it was stored is not known: no answer, so that no client sends it again by itself
            log.error("%s", error)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        case EasqError():
            return _refuse(request, error)
        case TimeoutError():
            response = respond(Reply(408, {"Content-Type": "text/plain"}, b"the body did not come in time"))
            response.force_close()
            return response
        case ConnectionError() | asyncio.IncompleteReadError():
            return web.Response(status=400)
    log.error("%s %s failed", request.method, safe(request.path), exc_info=error)
    return respond(Reply(500, {"Content-Type": "text/plain"}, b"internal error"))


def _refuse(request: web.BaseRequest, error: EasqError) -> web.Response:
    response = respond(error_reply(error))
    if not request.content.at_eof() or error.status == 431:
        # the rest of the body is not read: the connection cannot be used for another request
        response.force_close()
    return response


class _Connection(web.RequestHandler):
    """aiohttp's connection; what is no HTTP is refused without its traceback, and without repeating any of it."""

    __slots__ = (
        "address",
        "begun",
        "heads_only",
        "heard_at",
        "is_answering",
        "lost",
        "on_unmasked",
        "server",
    )

    def __init__(self, server: _HttpServer, **given: Any) -> None:
        super().__init__(server, **given)
        self.server = server
        #: the look before which the first byte of a head came, unless the head is whole
        self.begun: int | None = None
        self.is_answering = False
        self.address = ""
        #: when the last byte arrived, by the event loop's clock
        self.heard_at = 0.0
        #: whether all input so far was whole heads of requests without a body, each in one piece, so that the next
        #: bytes begin a head as well
        self.heads_only = True
        #: done once the connection is lost; None until `until_lost` asks for it
        self.lost: asyncio.Future[None] | None = None
        #: called when a WebSocket frame is not masked
        self.on_unmasked: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count a new connection; abort it if its address has too many."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if not self.server.admit(self.address) and self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        """Tell aiohttp that the connection is closed, without its error. A writer that waits for buffer space goes on,
        and has to call `check_connected`.

        aiohttp would set `exc` on the writer's future. Its traceback refers to that future and to the payload being
        written: a reference cycle that only a full garbage collection would free.
        """
        super().connection_lost(None)
        self.on_unmasked = None  # it refers to the WebSocket, and that to this connection
        self.server.left(self.address)
        if self.lost is not None and not self.lost.done():
            self.lost.set_result(None)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """Have a WebSocket's parser read what follows the handshake, as far as it is masked."""
        if self.on_unmasked is not None:
            parser = MaskedFrames(parser, self.on_unmasked)
        super().set_parser(parser, data_received_cb)

    def data_received(self, data: bytes) -> None:
        """Bytes have come, of a head unless a request is being answered."""
        self.heard_at = self.server.now()
        if self.begun is None and not self.is_answering:
            self.begun = self.server.looks
        if self.heads_only:
            head = without_doubles(data)
            self.heads_only = head is not None
            data = data if head is None else head
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """The answer to what could not be read as a request, after which the connection ends."""
        log.info("%s sent what is no HTTP request: %s", request.remote, type(exc).__name__)
        if exc is not None:
            release_frames(exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        text = "this is no HTTP/1.1 request"
        if isinstance(exc, LineTooLong):
            status, text = 431, f"the request line is above {_MAX_LINE} bytes, or a header above {_MAX_FIELD}"
        elif isinstance(exc, BadHttpMessage) and exc.message == "Too many headers received":
            status, text = 431, f"a request has at most {_MAX_HEADERS} headers"
        elif isinstance(exc, BadHttpMessage):
            text = _what_is_wrong(exc.message) or text
        response = respond(error_reply(BadRequest(text, status=status)))
        response.force_close()
        return response


def _what_is_wrong(said: str) -> str:
    """Return the parser's complaint about a header in plain words, without the header's value; empty for others."""
    if found := re.match(r"Duplicate '?([A-Za-z-]+)", said):
        return f"the header {found[1]} is given more than once"
    if found := re.match(r"Invalid `([A-Za-z-]+)`", said):
        return f"the header {found[1]} is not valid, or given more than once"
    return ""


class _HttpServer(web.Server):
    """aiohttp's server, over connections of ours."""

    #: looks so far. They are counted, not the time: while the process stands still no client is slow
    looks = 0

    def __init__(self, handler: Handler, *, max_connections: int, **given: Any) -> None:
        super().__init__(handler, **given)
        self._max_connections = max_connections
        self._by_address: Counter[str] = Counter()
        self._said_at = -_SAY_AGAIN_S

    def admit(self, address: str) -> bool:
        """Count a new connection from the address, and return whether it is within the limit."""
        self._by_address[address] += 1
        if not self._max_connections or self._by_address[address] <= self._max_connections:
            return True
        if self.now() - self._said_at >= _SAY_AGAIN_S:
            self._said_at = self.now()
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

    def now(self) -> float:
        """Return the time on the clock of the event loop."""
        return self._loop.time()

    def look(self) -> None:
        """Connections that are too slow with the head of a request are closed."""
        self.looks += 1
        for connection in self.connections:
            begun = connection.begun if isinstance(connection, _Connection) else None
            if begun is not None and self.looks - begun > _HEAD_LOOKS:
                log.info("a request did not come within %.0f s", _HEAD_LOOKS * _LOOK_S)
                connection.force_close()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)
