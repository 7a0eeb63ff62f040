"""One HTTP exchange with a server, bounded in time and size, and tried again where that is safe.

The only file that knows httpcore, the sockets and HTTP/1.1 of httpx without what a queue has no use for: redirects,
`.netrc`, cookies, decompression, and a third of the time of `easq put -d x` for loading them. What it does not do by
itself is added here: one deadline over the whole exchange, also against a server that drips its answer; a bound on the
answer; retries by what is certain about the request.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import httpcore

from easq.errors import AnswerTooLarge, ConfigError, EasqError, NotAQueueService, Unreachable, UsageError
from easq.net.connection import try_addresses
from easq.net.failures import Unanswered, refused_by_proxy, unconnected
from easq.net.headers import request_headers
from easq.net.retry import Attempt, Retry, Steps, Times, exchange
from easq.net.settings import MAX_HEADER_BYTES, NetworkSettings
from easq.net.tls import tls_context
from easq.net.trace import Tracer, hidden, hide_in, secrets_of
from easq.net.url import proxy_for, request_url, shown
from easq.protocol.operations import Caller, Request
from easq.protocol.replies import Reply, read_error

R = TypeVar("R")

#: what httpcore raises; it has no class for all of them
_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
_PORTS = {"http": 80, "https": 443}
#: a stream that nothing comes on is probed by TCP: after 10 s of silence, every 5 s, three times
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Transport:
    """Exchanges requests for replies. Usable from several threads at once; a context manager."""

    def __init__(self, settings: NetworkSettings, *, network: httpcore.NetworkBackend | None = None) -> None:
        """`network` makes the connections; given by tests of what goes wrong in it."""
        self.settings = settings
        self._network = network
        self._pools: dict[tuple[str, str | None], httpcore.ConnectionPool] = {}
        self._lock = threading.Lock()
        self._deadline = _Deadline()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def run(self, steps: Steps[R]) -> R:
        """What the exchange ends in; every attempt of it is sent, and every pause kept. Raises its EasqError."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    time.sleep(step)
                    step = next(steps)
                    continue
                try:
                    reply = self._attempt(step)
                except EasqError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            answer: R = end.value
            return answer

    def exchange(
        self,
        url: str,
        request: Request,
        caller: Caller | None,
        *,
        deadline_s: float | None = None,
        attempt_s: float | None = None,
        retry: Retry = Retry.READ,
        times: Times | None = None,
    ) -> Reply:
        """The 2xx reply to `request`, by the rules of `retry.exchange`."""
        return self.run(
            exchange(
                url, request, caller, self.settings,
                deadline_s=deadline_s, attempt_s=attempt_s, retry=retry, times=times,
            )
        )  # fmt: skip

    def open(self, url: str, request: Request, caller: Caller) -> ByteStream:
        """The endless 2xx answer to `request`, once its headers are there; another status is raised as its
        error.
        """
        headers = request_headers(request, caller, self.settings.headers)
        response, tracer, began = self._send(url, request, headers, self.settings.request_timeout_s)
        try:
            if not 200 <= response.status < 300:
                refused = self._read(url, response, tracer, began)
                raise read_error(hide_in(refused, self._secrets(url, headers)))
        except BaseException:
            response.close()
            raise
        self._deadline.until = None
        return ByteStream(url, response)

    def _attempt(self, attempt: Attempt) -> Reply:
        """The whole reply; one that is not 2xx without the secrets that were sent: servers like to quote them."""
        headers = request_headers(attempt.request, attempt.caller, self.settings.headers)
        limit_s = attempt.until - time.monotonic()
        response, tracer, began = self._send(attempt.url, attempt.request, headers, limit_s)
        try:
            reply = self._read(attempt.url, response, tracer, began)
        finally:
            response.close()
            times, deadline = attempt.times, self._deadline
            times.connect_s = None if deadline.connected is None else deadline.connected - began
            times.first_byte_s = None if deadline.first_byte is None else deadline.first_byte - began
            times.total_s = time.monotonic() - began
        return reply if 200 <= reply.status < 300 else hide_in(reply, self._secrets(attempt.url, headers))

    def _secrets(self, url: str, headers: Mapping[str, str]) -> list[str]:
        return secrets_of(headers, proxy_for(url, self.settings.environ))

    def _send(
        self, url: str, request: Request, headers: Mapping[str, str], limit_s: float
    ) -> tuple[httpcore.Response, Tracer, float]:
        """Sends, and waits for status and headers until `limit_s` is over."""
        proxy = proxy_for(url, self.settings.environ)
        secrets = secrets_of(headers, proxy)
        tracer = Tracer(self.settings.trace, secrets)
        tracer.request(request.method, url + request.path, request.query)
        tracer.headers(">", headers)
        tracer.body(">", request.body)
        began = time.monotonic()
        self._deadline.begin(began + limit_s)
        # everything but connecting is bounded by the deadline, below httpcore
        connect_s = max(min(limit_s, self.settings.connect_timeout_s), 0.001)
        try:
            message = _message(
                request_url(url, request), request, headers, {"connect": connect_s}, proxied=proxy is not None
            )
            return self._pool(url, proxy).handle_request(message), tracer, began
        except (*_FAILURES, UnicodeError) as error:
            failure = hidden(_translate(error, url, limit_s, proxy), secrets)
            tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error

    def _read(self, url: str, response: httpcore.Response, tracer: Tracer, began: float) -> Reply:
        """The whole answer, as it came over the wire."""
        limit = self.settings.max_answer_bytes
        if sum(len(name) + len(value) for name, value in response.headers) > MAX_HEADER_BYTES:
            raise NotAQueueService(
                f"the headers of the answer of {shown(url)} are above {MAX_HEADER_BYTES} bytes"
            )
        body = io.BytesIO()  # getvalue() does not copy its buffer, which bytes(bytearray) would
        try:
            for chunk in response.iter_stream():
                body.write(chunk)
                if body.tell() > limit:
                    raise AnswerTooLarge(f"the answer of {shown(url)} is above the limit of {limit} bytes")
        except _FAILURES as error:
            failure = _translate(error, url, (self._deadline.until or began) - began)
            tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error
        reply = Reply(response.status, _readable(response.headers), body.getvalue())
        tracer.answer(f"{reply.status}, {len(reply.body)} bytes", time.monotonic() - began)
        tracer.headers("<", reply.headers)
        tracer.body("<", reply.body)
        return reply

    def _pool(self, url: str, proxy: str | None) -> httpcore.ConnectionPool:
        """The connections for the scheme of `url` and the proxy on the way to it."""
        key = (url.partition(":")[0], proxy)
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._connections(tls=key[0] == "https", proxy=proxy)
            return self._pools[key]

    def _connections(self, *, tls: bool, proxy: str | None) -> httpcore.ConnectionPool:
        # httpx and httpcore have no total deadline (encode/httpx#1450); below them every read and write is bounded
        network = self._network or _Sockets()
        way = urlsplit(proxy) if proxy is not None else None
        # TLS handshakes to come before a proxy's tunnel is ready for requests: with an https proxy, then with the host
        layers = 0 if way is None or not tls else 2 if way.scheme == "https" else 1
        options: dict[str, Any] = {
            "ssl_context": self._tls_context() if tls else None,
            "max_connections": None,
            "max_keepalive_connections": 64,
            "keepalive_expiry": 30.0,
            "socket_options": _socket_options(),
            "network_backend": _BoundedBackend(network, self._deadline, layers),
        }
        if way is None:
            return httpcore.ConnectionPool(**options)
        name, password = unquote(way.username or ""), unquote(way.password or "")
        return httpcore.HTTPProxy(
            httpcore.URL(
                scheme=way.scheme, host=(way.hostname or "").encode("idna"), port=way.port, target="/"
            ),
            proxy_auth=(name.encode(), password.encode()) if name or password else None,
            proxy_ssl_context=self._tls_context() if way.scheme == "https" else None,
            **options,
        )

    def _tls_context(self) -> ssl.SSLContext:
        return tls_context(cacert=self.settings.cacert, insecure=self.settings.insecure)


def _message(
    url: str, request: Request, headers: Mapping[str, str], timeout: Mapping[str, float], *, proxied: bool
) -> httpcore.Request:
    """`request` as it goes over the wire, to the whole address `url`, which a proxy is told if it is `proxied`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    named = f"[{host}]" if ":" in host else host
    usual = parts.port in (None, _PORTS.get(parts.scheme))
    framing = {"Host": named if usual else f"{named}:{parts.port}"}
    if request.body or request.method in ("POST", "PUT"):
        framing["Content-Length"] = str(len(request.body))
    return httpcore.Request(
        request.method,
        # not read by httpcore, which cuts what stands behind a `;`
        httpcore.URL(
            scheme=parts.scheme,
            # httpcore puts it into what it tells the proxy as it is
            host=named if proxied else host,
            port=parts.port,
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        ),
        headers=[
            (name.encode("ascii"), value.encode("ascii")) for name, value in (framing | dict(headers)).items()
        ],
        content=request.body,
        extensions={"timeout": timeout},
    )


def _readable(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as text, those of one name as one (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for raw, value in headers:
        name, text = raw.decode("ascii").lower(), value.decode(errors="replace")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


class ByteStream:
    """The bytes of an endless answer as they arrive. `abort` may be called from another thread."""

    def __init__(self, url: str, response: httpcore.Response) -> None:
        self._url = url
        self._response = response
        self._chunks = response.iter_stream()

    def read(self) -> bytes:
        """The next bytes, empty at the end. Raises Unreachable when the connection is lost."""
        try:
            return next(self._chunks, b"")
        except _FAILURES as error:
            raise _translate(error, self._url, 0.0) from error
        except (OSError, RuntimeError, ValueError) as error:
            # what reading from a socket that `abort` shut ends in, by platform and by TLS
            raise Unreachable(f"connection to {shown(self._url)} lost") from error

    def abort(self) -> None:
        """Ends a `read` that waits, in whatever thread."""
        network = self._response.extensions.get("network_stream")
        line = network.get_extra_info("socket") if network is not None else None
        if line is not None:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it was shut before

    def close(self) -> None:
        """Closes the connection; only where no other thread reads."""
        self._response.close()


class _Deadline(threading.local):
    """When the exchange of the current thread ends, and how far it came, on the monotonic clock."""

    until: float | None = None
    connect_until: float | None = None  #: end of the time to connect
    connected: float | None = None
    first_byte: float | None = None

    def begin(self, until: float) -> None:
        """Another exchange ends at `until`."""
        self.until, self.connected, self.first_byte = until, None, None
        self.connect_until = None

    def bound(
        self, timeout: float | None, error: type[Exception], *, connecting: bool = False
    ) -> float | None:
        """Return `timeout`, or the time that is left if that is less; with `connecting`, of the time to connect.

        Raises `error` if no time is left.
        """
        until = self.until
        if connecting and self.connect_until is not None:
            until = self.connect_until if until is None else min(until, self.connect_until)
        if until is None:
            return timeout
        left = until - time.monotonic()
        if left <= 0:
            raise error("the time for the exchange is over")
        return left if timeout is None else min(timeout, left)


class _BoundedStream(httpcore.NetworkStream):
    """A connection whose every read and write ends by the deadline of the exchange it serves.

    While `layers` TLS handshakes are still to come, it reads the answer of a proxy, within the time to connect.
    """

    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline, layers: int) -> None:
        self._inner = inner
        self._deadline = deadline
        self._layers = layers

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._layers:
            bounded = self._deadline.bound(timeout, httpcore.ConnectTimeout, connecting=True)
            try:
                return self._inner.read(max_bytes, bounded)
            except httpcore.ReadTimeout as error:
                raise httpcore.ConnectTimeout("the proxy does not answer") from error
        data = self._inner.read(max_bytes, self._deadline.bound(timeout, httpcore.ReadTimeout))
        if data and self._deadline.first_byte is None:
            self._deadline.first_byte = time.monotonic()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # one call sends in pieces, each with its own timeout; small pieces bring the deadline back in between
        view = memoryview(buffer)
        for at in range(0, len(view), 65536):
            bounded = self._deadline.bound(timeout, httpcore.WriteTimeout)
            self._inner.write(bytes(view[at : at + 65536]), bounded)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        bounded = self._deadline.bound(timeout, httpcore.ConnectTimeout, connecting=True)
        name = server_hostname and server_hostname.strip("[]")  # as the proxy was told it
        secured = self._inner.start_tls(ssl_context, name, bounded)
        return _BoundedStream(secured, self._deadline, max(self._layers - 1, 0))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _BoundedBackend(httpcore.NetworkBackend):
    """Opens connections that know the deadline."""

    def __init__(self, inner: httpcore.NetworkBackend, deadline: _Deadline, layers: int) -> None:
        self._inner = inner
        self._deadline = deadline
        self._layers = layers

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        bounded = self._deadline.bound(timeout, httpcore.ConnectTimeout)
        self._deadline.connect_until = None if bounded is None else time.monotonic() + bounded
        stream = self._inner.connect_tcp(host, port, bounded, local_address, socket_options)
        self._deadline.connected = time.monotonic()
        return _BoundedStream(stream, self._deadline, self._layers)


class _Sockets(httpcore.SyncBackend):
    """Tries the addresses of a host in turn within one timeout; httpcore would give each of them the whole timeout."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        def connect(address: str, part: float | None) -> httpcore.NetworkStream:
            return super(_Sockets, self).connect_tcp(address, port, part, local_address, socket_options)

        if timeout is None:
            return connect(host, None)
        try:
            return try_addresses(host, port, timeout, connect)
        except OSError as error:  # from the name look-up; errors of connecting are httpcore's own
            raise httpcore.ConnectError(str(error)) from error


def _translate(error: Exception, url: str, limit_s: float, proxy: str | None = None) -> EasqError:
    """Our error for one of httpcore, by what is certain about the request."""
    address = shown(url)
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout | httpcore.PoolTimeout):
        return unconnected(error, url, proxy)
    if isinstance(error, httpcore.ProxyError):
        return refused_by_proxy(url, proxy or "", str(error))
    if isinstance(error, httpcore.TimeoutException):
        return Unanswered(
            f"no complete answer from {address} within {round(limit_s, 1):g} s",
            hint="raise --request-timeout if it is slow",
        )
    if isinstance(error, httpcore.UnsupportedProtocol | UnicodeError):
        return ConfigError(f"the url {address} cannot be used: {error}")
    if isinstance(error, httpcore.LocalProtocolError):
        return UsageError(f"the request to {address} cannot be sent: {error}")
    if isinstance(error, httpcore.RemoteProtocolError) and not _was_closed(error):
        return NotAQueueService(
            f"{address} does not answer in HTTP: {error}", hint="check host and port of the url"
        )
    return Unreachable(f"connection to {address} lost before the answer was complete")


def _was_closed(error: httpcore.RemoteProtocolError) -> bool:
    # httpcore's and h11's words; those about an answer that is none quote it behind their own
    return str(error).startswith(("Server disconnected", "peer closed", "peer unexpectedly closed"))


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
