"""Listens at an address, checks each request, and turns errors into replies."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Sequence

from aiohttp import web

from easq.errors import BadRequest, ConfigError, EasqError, StorageError
from easq.protocol.replies import Reply, error_reply
from easq.server.auth import Guard
from easq.server.connection import (
    CHECK_EVERY_S,
    MAX_FIELD,
    MAX_HEADERS,
    Handler,
    HttpServer,
    connection_of,
    release_frames,
    reset,
)
from easq.server.hooks import AccessLog, Hook, safe
from easq.server.request import authority
from easq.server.response import respond

log = logging.getLogger(__name__)

#: headers whose value is not a list. A request that repeats one is refused: a proxy may use the first value where a
#: server uses the last
_SINGLE = re.compile(
    rb"host|content-length|content-type|transfer-encoding|user-agent|authorization|x-auth-token|origin|idempotency-key"
    rb"|x-easq-.*|x-eas-queueservice-.*|sec-(?!websocket-(?:extensions|protocol)$).*",
    re.IGNORECASE,
)
#: time after which an idle connection is closed, in seconds
_KEEP_ALIVE_S = 60.0
#: time after which a connection is lost whose client acknowledges no written data, in seconds
_WRITE_DEADLINE_S = 30.0
#: a silent connection is probed after 10 s, then every 5 s; after four unanswered probes, 30 s in all, it is lost: a
#: host that vanished must not keep items pending. macOS calls the first option TCP_KEEPALIVE
_PROBES = (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
#: most connections that wait to be accepted, and most that asyncio accepts in one iteration of its loop. asyncio takes
#: one number for both, and logs an error for each connection that it cannot accept
_BACKLOG, _ACCEPT_AT_ONCE = 1024, 64
#: iterations of the loop until a connection that asyncio has accepted reaches the server, at most
_ACCEPT_ITERATIONS = 3
#: time that requests in flight have once the service stops, in seconds
_GRACE_S = 5.0


class Listener:
    """One listening address and its handler. After `close` it can be started again at the same port."""

    def __init__(
        self, handler: Handler, guard: Guard, *, max_connections: int = 0, hooks: Sequence[Hook] = ()
    ) -> None:
        """Prepare; `start` listens.

        Args:
            handler: called for each request that `guard` accepts; an EasqError that it raises becomes the reply.
            max_connections: most connections from one IP address; 0: no limit.
            hooks: called when a request is over, besides the access log.
        """
        self._handler = handler
        self._guard = guard
        self._max_connections = max_connections
        self._hooks = (AccessLog(log), *hooks)
        self._runner: web.ServerRunner | None = None
        self._server: HttpServer | None = None
        self._accepting: asyncio.Server | None = None
        self._next_check: asyncio.TimerHandle | None = None
        self.ip = ""
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen at `host` and `port`; 0 takes a free one. Raises ConfigError."""
        self._server = HttpServer(
            self._answer,
            lambda error: respond(error_reply(error)),
            hooks=self._hooks,
            max_connections=self._max_connections,
            keepalive_timeout_s=_KEEP_ALIVE_S,
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
            _enable_probes(listening)
        self.ip, self.port = self._accepting.sockets[0].getsockname()[:2]
        self._check()

    async def refuse_new(self) -> None:
        """Accept no more connections; open connections stay open.

        asyncio passes a connection on some iterations after it has accepted it, but not after its server is closed. So
        the server is closed only after these iterations.
        """
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            for listening in accepting.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(_ACCEPT_ITERATIONS):
                await asyncio.sleep(0)
            accepting.close()

    def _check(self) -> None:
        assert self._server is not None
        self._server.check()
        self._next_check = asyncio.get_running_loop().call_later(CHECK_EVERY_S, self._check)

    async def close(self) -> None:
        """Close all connections. Requests in flight have five seconds to end."""
        await self.refuse_new()
        if self._next_check is not None:
            self._next_check.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def abort(self) -> None:
        """Reset all connections, as when a process is killed."""
        await self.refuse_new()
        for connection in self._server.connections if self._server is not None else ():
            transport = connection.transport
            if transport is not None:
                reset(transport)
        if self._server is not None:
            await self._server.shutdown(0)
        await self.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Return the answer. An EasqError becomes its reply; another error a 500, and a traceback in the log."""
        connection = connection_of(request)
        connection.begin()
        try:
            _check_headers(request.raw_headers)
            self._guard.check_source(request.headers, authority(request))
            return await self._handler(request)
        except asyncio.CancelledError:
            connection.call_hooks(request, 0)
            raise
        except Exception as error:
            response = _reply_to(error, request)
            release_frames(error)
            return response
        finally:
            connection.is_answering = False


def _enable_probes(listening: socket.socket) -> None:
    """Set the TCP options that detect lost connections. Accepted sockets inherit them."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _PROBES:
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # bounds unacknowledged data and the probes together; 10 s of silence and four probes stay within it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_WRITE_DEADLINE_S * 1000))


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise BadRequest for too many headers, too many bytes of headers, or a repeated header of `_SINGLE`."""
    size, names = 0, set()
    for name, value in headers:
        size += len(name) + len(value)
        names.add(name.lower())
    if len(headers) > MAX_HEADERS or size > MAX_FIELD:
        raise BadRequest(
            f"a request has at most {MAX_HEADERS} headers, and {MAX_FIELD} bytes of them", status=431
        )
    if len(names) == len(headers):
        return
    counts = Counter(name.lower() for name, _ in headers)
    for name, _ in headers:
        if counts[name.lower()] > 1 and _SINGLE.fullmatch(name):
            raise BadRequest(f"the header {name.decode('latin-1')} is given more than once")


def _reply_to(error: Exception, request: web.BaseRequest) -> web.Response:
    match error:
        case StorageError():
            # nobody knows whether the data was stored. Without an answer no client retries by itself
            log.error("%s", error)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        case EasqError():
            response = respond(error_reply(error))
            if not request.content.at_eof() or error.status == 431:
                # the rest of the body is not read: the connection cannot be used for another request
                response.force_close()
            return response
        case TimeoutError():
            response = respond(Reply(408, {"Content-Type": "text/plain"}, b"the body did not come in time"))
            response.force_close()
            return response
        case ConnectionError() | asyncio.IncompleteReadError():
            return web.Response(status=400)
    log.error("%s %s failed", request.method, safe(request.path), exc_info=error)
    return respond(Reply(500, {"Content-Type": "text/plain"}, b"internal error"))
