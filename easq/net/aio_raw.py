"""An asynchronous HTTP client for any server, over aiohttp, and functions that all aiohttp clients of easq use."""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from easq.errors import AnswerTooLarge, EasqError, Unreachable
from easq.net.failures import (
    Incomplete,
    lost,
    not_http,
    refused_by_proxy,
    unanswered,
    unconnected,
    unsendable,
    unusable,
)
from easq.net.settings import MAX_HEADER_BYTES
from easq.net.tls import tls_context
from easq.net.url import shown
from easq.protocol.replies import Reply

#: largest body that is sent in one piece, in bytes; with a larger one aiohttp would block the loop, and warn
_LARGE_BODY = 256 * 1024
#: headers that aiohttp would add
AUTO_HEADERS = ("Content-Type", "User-Agent", "Accept", "Accept-Encoding")
#: exceptions of a failed request
FAILURES = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


class RawClient:
    """An HTTP client that sends requests as they are given: no proxy, no redirects, no headers of its own.

    It reuses connections. A server may close an idle connection at the moment of its reuse. A repeatable request is
    then sent again on a new connection. Used on one event loop.
    """

    def __init__(self, *, idle_s: float, connect_s: float | None = None, read_s: float | None = None) -> None:
        """Prepare; the connections are opened when they are needed.

        Args:
            idle_s: longest idle time after which a connection is reused, in seconds.
            connect_s: time limit of a connection attempt, in seconds.
            read_s: time limit until the answer begins, and between two pieces of it, in seconds.
        """
        self._idle_s = idle_s
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_s, sock_read=read_s, ceil_threshold=3600.0
        )
        self._tls: ssl.SSLContext | None = None
        self._sessions: dict[
            bool, aiohttp.ClientSession
        ] = {}  # whether connections are reused -> the session
        self._is_closed = False

    def session(self, *, reuse: bool = True) -> aiohttp.ClientSession:
        """Return the session whose connections are reused, or the one that opens a connection for each request.

        Raises aiohttp.ClientConnectionError after `close`.
        """
        if reuse in self._sessions:
            return self._sessions[reuse]
        if self._is_closed:
            raise aiohttp.ClientConnectionError("the client is closed")
        connector = (
            aiohttp.TCPConnector(limit=0, keepalive_timeout=self._idle_s)
            if reuse
            else aiohttp.TCPConnector(limit=0, force_close=True)
        )
        session = self._sessions[reuse] = self._open(connector)
        return session

    def _open(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        async def note(_session: object, context: SimpleNamespace, _params: object) -> None:
            if context.trace_request_ctx is not None:  # None for a WebSocket
                context.trace_request_ctx.reused = True

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(note)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=AUTO_HEADERS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            trace_configs=[tracing],
        )

    async def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | aiohttp.Payload | None,
        *,
        repeat: bool,
        reuse: bool = True,
    ) -> aiohttp.ClientResponse:
        """Send a request to `url`, which is percent-encoded, and return the head of the answer.

        Raises aiohttp.ClientError, TimeoutError or OSError; `translate` returns the EasqError for each.

        Args:
            repeat: send it once more when a reused connection ended without an answer.
            reuse: False opens a connection for this request.
        """
        noted = SimpleNamespace(reused=False)
        session = self.session(reuse=reuse)
        if url.startswith("https:") and self._tls is None:
            self._tls = tls_context()
        options: dict[str, Any] = {
            "headers": list(headers),
            "allow_redirects": False,
            "ssl": self._tls or True,
            "trace_request_ctx": noted,
        }
        place = URL(url, encoded=True)
        try:
            return await session.request(method, place, data=in_pieces(body), **options)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not (repeat and noted.reused):
                raise
        return await self.session(reuse=False).request(method, place, data=in_pieces(body), **options)

    async def fetch(
        self, method: str, url: str, headers: Iterable[tuple[str, str]], body: bytes, *, max_answer: int
    ) -> Reply:
        """Send a request, and return the whole answer. The caller bounds the time.

        Raises Unconnected, Incomplete, Unreachable, AnswerTooLarge above `max_answer` bytes, NotAQueueService for an
        answer that is no HTTP, and UsageError for a request that cannot be sent.
        """
        try:
            async with await self.request(method, url, headers, body, repeat=True) as response:
                return Reply(response.status, response.headers, await read_body(response, url, max_answer))
        except FAILURES as error:
            raise translate(error, url) from error


def in_pieces(body: bytes | aiohttp.Payload | None) -> io.BytesIO | bytes | aiohttp.Payload | None:
    """Return `body` in a form that aiohttp sends in pieces if it is large."""
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > _LARGE_BODY else body or None


async def read_body(response: aiohttp.ClientResponse, url: str, limit: int) -> bytes:
    """Return the body. Raises AnswerTooLarge above `limit` bytes."""
    parts, size = [], response.content_length or 0
    if size <= limit:
        body = await response.content.readany()
        if response.content.at_eof() and len(body) <= limit:
            return body
        parts, size = [body], len(body)
    while size <= limit and (part := await response.content.readany()):
        parts.append(part)
        size += len(part)
    if size > limit:
        raise AnswerTooLarge(f"the answer of {shown(url)} is above the limit of {limit} bytes")
    return b"".join(parts)


def translate(error: Exception, url: str, limit_s: float = 0.0, proxy: str | None = None) -> EasqError:
    """Return the EasqError for an exception of aiohttp. Its class tells whether the request was sent."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return refused_by_proxy(url, proxy or "", f"{error.status} {error.message}")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return unconnected(error, url, proxy)
    if isinstance(error, TimeoutError):
        return unanswered(url, limit_s)
    if isinstance(error, aiohttp.InvalidURL):
        return unusable(url, error)
    if isinstance(error, aiohttp.ClientResponseError):
        return not_http(url, error.message)
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return unsendable(url, error)
    return lost(url, kind=Incomplete if isinstance(error, aiohttp.ClientPayloadError) else Unreachable)
