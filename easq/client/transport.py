"""One HTTP exchange with a server, bounded in time and size, and tried again where that is safe.

The only file that knows httpx. What httpx does not do by itself is added here: one deadline over the whole
exchange, also against a server that drips its answer; a bound on the answer; retries by what is certain about
the request. What it does on its own is switched off: redirects, `.netrc`, proxies from the environment,
decompression.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import httpcore

from easq.client.attempts import Attempt, Steps, Times, exchange
from easq.client.endpoint import proxy_for, shown
from easq.client.exchange import MAX_HEADER_BYTES, target
from easq.client.exchange import PATH_SAFE as PATH_SAFE
from easq.client.exchange import Retry as Retry
from easq.client.exchange import Settings as Settings
from easq.client.failures import Unanswered, Unconnected, unconnected
from easq.client.headers import request_headers
from easq.client.tls import tls_context
from easq.client.trace import Tracer, hide_in, secrets_of
from easq.errors import ConfigError, EasqError, NotAQueueService, ServerError, Unreachable, UsageError
from easq.wire.operations import Caller, Request
from easq.wire.replies import Reply, read_error

# httpx loads the module of its own command line, with rich and pygments: 40 % of the time of `easq put -d x`. A
# module that cannot be found is what it expects where these are not installed.
_modules: dict[str, Any] = vars(sys)["modules"]
_unwanted = "httpx._main" not in _modules
if _unwanted:
    _modules["httpx._main"] = None
import httpx  # noqa: E402

if _unwanted:
    del _modules["httpx._main"]

R = TypeVar("R")

#: a stream that nothing comes on is probed by TCP: after 10 s of silence, every 5 s, three times
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Transport:
    """Exchanges requests for replies. Usable from several threads at once; a context manager."""

    def __init__(self, settings: Settings, *, http: httpx.BaseTransport | None = None) -> None:
        """`http` stands in for the network in tests."""
        self.settings = settings
        self._http = http
        self._clients: dict[tuple[str, str | None], httpx.Client] = {}
        self._lock = threading.Lock()
        self._deadline = _Deadline()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

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
        """The 2xx reply to `request`, by the rules of `attempts.exchange`."""
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
            if not response.is_success:
                refused = self._read(url, response, tracer, began)
                raise read_error(hide_in(refused, secrets_of(headers)))
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
        return reply if 200 <= reply.status < 300 else hide_in(reply, secrets_of(headers))

    def _send(
        self, url: str, request: Request, headers: Mapping[str, str], limit_s: float
    ) -> tuple[httpx.Response, Tracer, float]:
        """Sends, and waits for status and headers until `limit_s` is over."""
        tracer = Tracer(self.settings.trace, secrets_of(headers))
        tracer.request(request.method, url + request.path, request.query)
        tracer.headers(">", headers)
        tracer.body(">", request.body)
        began = time.monotonic()
        self._deadline.begin(began + limit_s)
        # everything but connecting is bounded by the deadline, below httpx
        timeout = httpx.Timeout(None, connect=max(min(limit_s, self.settings.connect_timeout_s), 0.001))
        try:
            client = self._client(url)
            message = client.build_request(
                request.method,
                target(url, request),
                headers=headers,
                content=request.body if request.body or request.method in ("POST", "PUT") else None,
                timeout=timeout,
            )
            return client.send(message, stream=True), tracer, began
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            failure = _translate(error, url, limit_s)
            tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error

    def _read(self, url: str, response: httpx.Response, tracer: Tracer, began: float) -> Reply:
        """The whole answer, as it came over the wire."""
        limit = self.settings.max_answer_bytes
        if sum(len(name) + len(value) for name, value in response.headers.raw) > MAX_HEADER_BYTES:
            raise NotAQueueService(
                f"the headers of the answer of {shown(url)} are above {MAX_HEADER_BYTES} bytes"
            )
        body = bytearray()
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > limit:
                    raise ServerError(
                        f"the answer of {shown(url)} is above the limit of {limit} bytes",
                        hint="ask for fewer items at once, or raise the limit",
                    )
        except httpx.HTTPError as error:
            failure = _translate(error, url, (self._deadline.until or began) - began)
            tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error
        reply = Reply(response.status_code, dict(response.headers), bytes(body))
        tracer.answer(f"{reply.status}, {len(reply.body)} bytes", time.monotonic() - began)
        tracer.headers("<", reply.headers)
        tracer.body("<", reply.body)
        return reply

    def _client(self, url: str) -> httpx.Client:
        """The client for the scheme of `url` and the proxy on the way to it."""
        proxy = proxy_for(url, self.settings.environ)
        key = (url.partition(":")[0], proxy)
        with self._lock:
            if key not in self._clients:
                sockets = self._http or self._sockets(tls=key[0] == "https", proxy=proxy)
                self._clients[key] = httpx.Client(transport=sockets, trust_env=False, follow_redirects=False)
            return self._clients[key]

    def _sockets(self, *, tls: bool, proxy: str | None) -> httpx.HTTPTransport:
        verify: ssl.SSLContext | bool = False
        if tls:
            verify = tls_context(cacert=self.settings.cacert, insecure=self.settings.insecure)
        sockets = httpx.HTTPTransport(
            verify=verify,
            trust_env=False,
            proxy=proxy,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0),
            socket_options=_socket_options(),
        )
        # httpx has no total deadline (encode/httpx#1450); below it every single read and write can be bounded
        pool: Any = sockets._pool
        pool._network_backend = _BoundedBackend(pool._network_backend, self._deadline)
        return sockets


class ByteStream:
    """The bytes of an endless answer as they arrive. `abort` may be called from another thread."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        self._url = url
        self._response = response
        self._chunks = response.iter_raw()

    def read(self) -> bytes:
        """The next bytes, empty at the end. Raises Unreachable when the connection is lost."""
        try:
            return next(self._chunks, b"")
        except httpx.HTTPError as error:
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
    connected: float | None = None
    first_byte: float | None = None

    def begin(self, until: float) -> None:
        """Another exchange ends at `until`."""
        self.until, self.connected, self.first_byte = until, None, None

    def bound(self, timeout: float | None, error: type[Exception]) -> float | None:
        """`timeout` cut to what is left; raises `error` when nothing is."""
        if self.until is None:
            return timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise error("the time for the exchange is over")
        return left if timeout is None else min(timeout, left)


class _BoundedStream(httpcore.NetworkStream):
    """A connection whose every read and write ends by the deadline of the exchange it serves."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
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
        bounded = self._deadline.bound(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._inner.start_tls(ssl_context, server_hostname, bounded), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _BoundedBackend(httpcore.NetworkBackend):
    """Opens connections that know the deadline."""

    def __init__(self, inner: httpcore.NetworkBackend, deadline: _Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        bounded = self._deadline.bound(timeout, httpcore.ConnectTimeout)
        stream = self._inner.connect_tcp(host, port, bounded, local_address, socket_options)
        self._deadline.connected = time.monotonic()
        return _BoundedStream(stream, self._deadline)


def _translate(error: Exception, url: str, limit_s: float) -> EasqError:
    """Our error for one of httpx, by what is certain about the request."""
    address = shown(url)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return unconnected(error, url)
    if isinstance(error, httpx.ProxyError):
        return Unconnected(
            f"the proxy on the way to {address} refused: {error}", hint="see HTTP_PROXY and NO_PROXY"
        )
    if isinstance(error, httpx.TimeoutException):
        return Unanswered(
            f"no complete answer from {address} within {limit_s:.3g} s",
            hint="raise --request-timeout if it is slow",
        )
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | UnicodeError):
        return ConfigError(f"the url {address} cannot be used: {error}")
    if isinstance(error, httpx.LocalProtocolError):
        return UsageError(f"the request to {address} cannot be sent: {error}")
    if isinstance(error, httpx.RemoteProtocolError) and not _was_closed(error):
        return NotAQueueService(
            f"{address} does not answer in HTTP: {error}", hint="check host and port of the url"
        )
    return Unreachable(f"connection to {address} lost before the answer was complete")


def _was_closed(error: httpx.RemoteProtocolError) -> bool:
    text = str(error).lower()
    return "disconnect" in text or "closed" in text


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
