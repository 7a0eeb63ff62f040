"""An httpx transport whose every exchange ends by a deadline, over the connections of `net/connection.py`.

httpx and httpcore bound only each single read (encode/httpx#1450): a server that sends a byte now and then can hold an
exchange for ever. Here one deadline bounds the whole exchange, from connecting to the last byte of the body.
"""

from __future__ import annotations

import select
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from easq.net.connection import Connection, Connector, proxy_authorization
from easq.net.failures import unconnected
from easq.net.settings import NetworkSettings
from easq.net.url import proxy_for

#: the extension of an httpx.Request that holds its Exchange
EXCHANGE = "easq.exchange"
#: most bytes of one write: the deadline is checked between two writes
_PIECE = 64 * 1024
#: httpcore's exceptions, and httpx's of the same names
ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
}
_FAILURES = tuple(ERRORS)


@dataclass(slots=True)
class Exchange:
    """The bounds and the progress of one exchange. Times are on the monotonic clock."""

    url: str  #: named in errors
    until: float | None  #: its end; None for none
    connect_s: float = 5.0  #: time limit of connecting, proxy and TLS included, in seconds
    connect_until: float = 0.0
    connected: float | None = None
    first_byte: float | None = None
    is_ended: bool = False  #: the server closed the connection


class BoundedTransport(httpx.BaseTransport):
    """Sends requests over connections that are kept open, direct or through the proxies of the settings.

    Usable from several threads at once. Raises httpx's exceptions, and Unconnected where no connection came about.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._connector = Connector(settings)
        self._current = _Current()
        self._pools: dict[tuple[str, str | None], httpcore.ConnectionPool] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, and return status and headers of the answer; its body is read from its stream.

        The extension `EXCHANGE` holds the bounds of the exchange. Its progress is recorded there.
        """
        url = request.url
        exchange = request.extensions.get(EXCHANGE) or Exchange(str(url), None)
        self._current.exchange = exchange
        proxy = proxy_for(exchange.url, self._settings.environ)
        headers, target = request.headers.raw, request.extensions.get("target", url.raw_path)
        if proxy is not None and url.scheme == "http":
            target = b"%b://%b%b" % (url.raw_scheme, url.netloc, target)
            if credentials := proxy_authorization(urlsplit(proxy)):
                headers = [(b"Proxy-Authorization", credentials.encode()), *headers]
        message = httpcore.Request(
            request.method,
            # httpcore must not parse the URL: it would drop the text after a `;`
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=target),
            headers=headers,
            content=request.stream,
        )
        try:
            response = self._pool(url.scheme, proxy).handle_request(message)
        except _FAILURES as error:
            raise ERRORS[type(error)](str(error), request=request) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response, request),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()

    def _pool(self, scheme: str, proxy: str | None) -> httpcore.ConnectionPool:
        """Return the connections for one scheme, direct or through `proxy`."""
        key = (scheme, proxy)
        with self._lock:
            if key not in self._pools:
                self._pools[key] = httpcore.ConnectionPool(
                    ssl_context=self._connector.tls if scheme == "https" else None,
                    max_connections=None,
                    max_keepalive_connections=64,
                    keepalive_expiry=30.0,
                    network_backend=_Network(self._connector, self._current, proxy),
                )
            return self._pools[key]


class _Current(threading.local):
    """The exchange of the current thread."""

    def __init__(self) -> None:
        self.exchange = Exchange("", None)


class _Body(httpx.SyncByteStream):
    """The body of an answer."""

    def __init__(self, response: httpcore.Response, request: httpx.Request) -> None:
        self._response, self._request = response, request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response.iter_stream()
        except _FAILURES as error:
            raise ERRORS[type(error)](str(error), request=self._request) from error

    def close(self) -> None:
        self._response.close()


class _Network(httpcore.NetworkBackend):
    """Opens connections for the exchanges of a pool."""

    def __init__(self, connector: Connector, current: _Current, proxy: str | None) -> None:
        self._connector, self._current, self._proxy = connector, current, proxy

    def connect_tcp(self, *_: object, **__: object) -> httpcore.NetworkStream:
        """Return a connection to the host of the current exchange's url, or to its proxy."""
        exchange = self._current.exchange
        exchange.connect_until = time.monotonic() + exchange.connect_s
        if exchange.until is not None:
            exchange.connect_until = min(exchange.connect_until, exchange.until)
        connection = self._connector.connect(
            exchange.url,
            self._proxy,
            tunnel=exchange.url.startswith("https:"),
            secure=False,  # httpcore asks for it
            until=exchange.connect_until,
        )
        exchange.connected = time.monotonic()
        return _Stream(connection, self._current, self._proxy)


class _Stream(httpcore.NetworkStream):
    """A connection for httpcore; every read and write ends by the deadline of the exchange that it serves."""

    def __init__(self, connection: Connection, current: _Current, proxy: str | None) -> None:
        self._connection, self._current, self._proxy = connection, current, proxy

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        exchange = self._current.exchange
        self._connection.until = exchange.until
        try:
            data = self._connection.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("the time for the exchange is over") from error
        except OSError as error:
            exchange.is_ended = True
            raise httpcore.ReadError(str(error)) from error
        if not data:
            exchange.is_ended = True
        elif exchange.first_byte is None:
            exchange.first_byte = self._connection.heard_at
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._connection.until = self._current.exchange.until
        view = memoryview(buffer)
        try:
            while view:
                view = view[self._connection.send(view[:_PIECE]) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout("the time for the exchange is over") from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._connection.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        exchange = self._current.exchange
        try:
            self._connection.secure(ssl_context, server_hostname or "", exchange.connect_until)
        except OSError as error:
            self._connection.close()
            raise unconnected(error, exchange.url, self._proxy) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._connection.ssl_object
        if info == "socket":
            return self._connection
        if info == "is_readable":  # an idle connection is readable only once the server has closed it
            poll = select.poll()
            poll.register(self._connection.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        return None
