"""One HTTP exchange with a server, bounded in time and size, and tried again where that is safe.

The only file that sends requests with httpx. It uses httpx's transports, but not its client, which adds redirects,
cookies, `.netrc`, its own proxies and decompression. The protocol of a queue has none of these.
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

import httpx

from easq.errors import AnswerTooLarge, EasqError, NotAQueueService, Unreachable
from easq.net.bounded import EXCHANGE, BoundedTransport, Exchange
from easq.net.failures import lost, not_http, refused_by_proxy, unanswered, unconnected, unsendable, unusable
from easq.net.headers import request_headers
from easq.net.retry import Attempt, Retry, Steps, Times, exchange
from easq.net.settings import MAX_HEADER_BYTES, NetworkSettings
from easq.net.trace import Tracer, hidden, hide_in, secrets_of
from easq.net.url import proxy_for, request_url, shown
from easq.protocol.operations import Caller, Request
from easq.protocol.replies import Reply, read_error

R = TypeVar("R")

_PORTS = {"http": 80, "https": 443}
#: longest URL that httpx takes, in characters
_MAX_URL = 65536


#: a sender of single requests, as httpx defines it
HttpxTransport: TypeAlias = httpx.BaseTransport


class Transport:
    """Exchanges requests for replies. Usable from several threads at once; a context manager."""

    def __init__(self, settings: NetworkSettings, *, http: HttpxTransport | None = None) -> None:
        """Prepare; connections are opened when they are needed.

        Args:
            http: sends the requests; for tests of behaviour that a real server does not show on request.
        """
        self.settings = settings
        self._http = BoundedTransport(settings) if http is None else http

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def run(self, steps: Steps[R]) -> R:
        """Return the result of an exchange: send its attempts, and pause between them. Raises its EasqError."""
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
        retry: Retry = Retry.READ,
        times: Times | None = None,
    ) -> Reply:
        """Return the 2xx reply to `request`, by the rules of `retry.exchange`."""
        return self.run(
            exchange(
                url, request, caller, self.settings,
                deadline_s=deadline_s, retry=retry, times=times,
            )
        )  # fmt: skip

    def open(self, url: str, request: Request, caller: Caller) -> ByteStream:
        """Return the endless 2xx answer to `request` once its headers have arrived. Raises the error of a refusal."""
        headers = request_headers(request, caller, self.settings.headers)
        with self._begin(url, request, headers, self.settings.request_timeout_s) as sent:
            if not 200 <= sent.response.status_code < 300:
                raise read_error(hide_in(self._read(sent), sent.secrets))
        sent.exchange.until = None
        return ByteStream(url, sent.response)

    def _attempt(self, attempt: Attempt) -> Reply:
        """Return the whole reply. In a reply that is not 2xx the secrets of the request are masked."""
        headers = request_headers(attempt.request, attempt.caller, self.settings.headers)
        sent = self._begin(attempt.url, attempt.request, headers, attempt.until - time.monotonic())
        try:
            reply = self._read(sent)
        finally:
            sent.response.close()
            times, state, began = attempt.times, sent.exchange, sent.began
            times.connect_s = None if state.connected is None else state.connected - began
            times.first_byte_s = None if state.first_byte is None else state.first_byte - began
            times.total_s = time.monotonic() - began
        return reply if 200 <= reply.status < 300 else hide_in(reply, sent.secrets)

    def _begin(self, url: str, request: Request, headers: Mapping[str, str], limit_s: float) -> _Sent:
        """Send a request, and wait up to `limit_s` for status and headers of the answer."""
        proxy = proxy_for(url, self.settings.environ)
        secrets = secrets_of(headers, proxy)
        tracer = Tracer(self.settings.trace, secrets)
        tracer.sent(request.method, url + request.path, request.query, headers, request.body)
        began = time.monotonic()
        connect_s = max(min(limit_s, self.settings.connect_timeout_s), 0.001)
        state = Exchange(url, began + limit_s, connect_s)
        try:
            response = self._http.handle_request(_message(request_url(url, request), request, headers, state))
        except (EasqError, httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            failure = error if isinstance(error, EasqError) else _translate(error, state, limit_s, proxy)
            tracer.answer(hidden(failure, secrets).message, time.monotonic() - began)
            raise failure from (error.__cause__ if failure is error else error)
        return _Sent(state, response, tracer, secrets, began)

    def _read(self, sent: _Sent) -> Reply:
        """Return the whole answer, not decoded."""
        limit, response, state = self.settings.max_answer_bytes, sent.response, sent.exchange
        headers = response.headers.raw
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            raise NotAQueueService(
                f"the headers of the answer of {shown(state.url)} are above {MAX_HEADER_BYTES} bytes"
            )
        body = io.BytesIO()  # getvalue() does not copy its buffer, which bytes(bytearray) would
        try:
            for chunk in cast("httpx.SyncByteStream", response.stream):
                body.write(chunk)
                if body.tell() > limit:
                    raise AnswerTooLarge(
                        f"the answer of {shown(state.url)} is above the limit of {limit} bytes"
                    )
        except httpx.TransportError as error:
            failure = _translate(error, state, (state.until or sent.began) - sent.began)
            sent.tracer.answer(failure.message, time.monotonic() - sent.began)
            raise failure from error
        reply = Reply(response.status_code, _readable(headers), body.getvalue())
        sent.tracer.received(reply, time.monotonic() - sent.began)
        return reply


class _Sent(NamedTuple):
    """A request that was sent, and the head of its answer. As a context manager it closes the answer on an error."""

    exchange: Exchange
    response: httpx.Response
    tracer: Tracer
    secrets: list[str]
    began: float  #: on the monotonic clock

    def __enter__(self) -> _Sent:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.response.close()


def _message(url: str, request: Request, headers: Mapping[str, str], state: Exchange) -> httpx.Request:
    """Return `request` as an httpx.Request; `url` is the whole URL."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    named = f"[{host}]" if ":" in host else host
    usual = parts.port in (None, _PORTS.get(parts.scheme))
    framing = {"Host": named if usual else f"{named}:{parts.port}"}
    if request.body or request.method in ("POST", "PUT"):
        framing["Content-Length"] = str(len(request.body))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpx.Request(
        request.method,
        # httpx refuses a longer URL, and normalizes this one; `target` is sent instead
        url if len(url) < _MAX_URL else state.url,
        headers=framing | dict(headers),
        content=request.body,
        extensions={EXCHANGE: state, "target": target.encode("ascii")},
    )


def _readable(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers as text. Repeated headers are joined by commas (RFC 9110, section 5.3)."""
    found: dict[str, str] = {}
    for raw, value in headers:
        name, text = raw.decode("ascii").lower(), value.decode(errors="replace")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


class ByteStream:
    """The bytes of an endless answer as they arrive. `abort` may be called from another thread."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        self._url = url
        self._response = response
        self._chunks = iter(cast("httpx.SyncByteStream", response.stream))

    def read(self) -> bytes:
        """Return the next bytes, empty at the end. Raises Unreachable when the connection is lost."""
        try:
            return next(self._chunks, b"")
        except (httpx.TransportError, OSError, RuntimeError, ValueError) as error:
            # after `abort`, a read raises one of the last three, depending on the platform and on TLS
            raise Unreachable(f"connection to {shown(self._url)} lost") from error

    def abort(self) -> None:
        """End a `read` that waits in another thread."""
        network = self._response.extensions.get("network_stream")
        connection = network.get_extra_info("socket") if network is not None else None
        if connection is not None:
            with contextlib.suppress(OSError):  # it was shut before
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; only where no other thread reads."""
        self._response.close()


def _translate(error: Exception, state: Exchange, limit_s: float, proxy: str | None = None) -> EasqError:
    """Return the EasqError for an exception of httpx. Its class tells whether the request was sent."""
    url = state.url
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return unconnected(error, url, proxy)
    if isinstance(error, httpx.ProxyError):
        return refused_by_proxy(url, proxy or "", str(error))
    if isinstance(error, httpx.TimeoutException):
        return unanswered(url, limit_s)
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | UnicodeError):
        return unusable(url, error)
    if isinstance(error, httpx.LocalProtocolError):
        return unsendable(url, error)
    if isinstance(error, httpx.RemoteProtocolError) and not state.is_ended:
        return not_http(url, error)
    return lost(url)
