"""The connections of many exchanges on one event loop.

The only file of this wing that knows aiohttp: httpx's pool makes 32 concurrent requests slower than one. It does
what `transport` does for one exchange at a time: sends an attempt, bounded in time and size, and says in our own
errors what failed.
"""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from easq.client.attempts import Attempt, Times
from easq.client.endpoint import proxy_for, shown
from easq.client.exchange import MAX_HEADER_BYTES, Settings, target
from easq.client.failures import Unanswered, Unconnected, unconnected
from easq.client.headers import request_headers
from easq.client.tls import tls_context
from easq.client.trace import Tracer, hide_in, secrets_of
from easq.errors import ConfigError, EasqError, NotAQueueService, ServerError, Unreachable, UsageError
from easq.wire.operations import Request
from easq.wire.replies import Reply

#: a body above this is sent in pieces: aiohttp would hold up the loop with it, and warns
_LARGE_BODY = 256 * 1024
#: headers that differ from request to request and are checked, or made of what is safe, where they are made
_VARYING = frozenset(("Idempotency-Key", "Authorization", "Content-MD5", "Date"))
#: of the time for an attempt, the part in which it has to be connected: then it is known that nothing was sent
_CONNECT_PART = 0.98
#: addresses and sets of headers that are remembered
_MAX_KNOWN = 1000


class Session:
    """Connections that its senders share; an async context manager.

    With `timed` every attempt is told when it was connected and answered, which costs a fifth of its time.
    """

    def __init__(self, settings: Settings, *, timed: bool = False) -> None:
        self.settings = settings
        self._timed = timed
        self._roots: dict[str, tuple[URL | None, ssl.SSLContext | bool]] = {}
        self._targets: dict[tuple[object, ...], URL] = {}
        self._heads: dict[tuple[object, ...], dict[str, str]] = {}
        self._own = frozenset(name.lower() for name in settings.headers)
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Session:
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=30.0, resolver=aiohttp.ThreadedResolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            read_bufsize=256 * 1024,
            max_field_size=MAX_HEADER_BYTES,
            trace_configs=[_connecting()] if self._timed else None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    def sender(self) -> Sender:
        """One that sends an attempt at a time, for one task, which has to be the running one when it does."""
        return Sender(self)

    def root(self, url: str) -> tuple[URL | None, ssl.SSLContext | bool]:
        """The proxy on the way to what `url` begins, and how TLS is spoken on it."""
        found = self._roots.get(url)
        if found is None:
            proxy = proxy_for(url, self.settings.environ)
            tls: ssl.SSLContext | bool = True
            if any(one.lower().startswith("https:") for one in (url, proxy or "")):
                if self._tls is None:
                    self._tls = tls_context(cacert=self.settings.cacert, insecure=self.settings.insecure)
                tls = self._tls
            found = self._roots[url] = (URL(proxy) if proxy else None, tls)
        return found

    def target(self, url: str, request: Request) -> URL:
        """The whole address, made once for each that is asked for again and again."""
        place = (url, request.path, request.query)
        found = self._targets.get(place)
        if found is None:
            if len(self._targets) >= _MAX_KNOWN:
                self._targets.clear()
            try:
                found = self._targets[place] = URL(target(url, request), encoded=True)
            except UnicodeError as error:
                raise UsageError(f"the request to {shown(url)} cannot be sent: {error}") from error
        return found

    def headers(self, attempt: Attempt) -> dict[str, str]:
        """All headers; those that do not differ from request to request are checked once."""
        request = attempt.request
        steady: list[tuple[str, str]] = []
        varying: list[tuple[str, str]] = []
        for pair in request.headers.items():
            (varying if pair[0] in _VARYING else steady).append(pair)
        kind = (attempt.caller, *steady)
        found = self._heads.get(kind)
        if found is None:
            if len(self._heads) >= _MAX_KNOWN:
                self._heads.clear()
            found = self._heads[kind] = request_headers(
                Request(request.method, headers=dict(steady)), attempt.caller, self.settings.headers
            )
        if not varying:
            return found
        return {**found, **{name: value for name, value in varying if name.lower() not in self._own}}


class Sender:
    """Sends one attempt at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._deadline = _Deadline()
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self.url = ""  #: where the last attempt went

    async def send(self, attempt: Attempt) -> Reply:
        """The whole reply; one that is not 2xx without the secrets that were sent: servers like to quote them."""
        settings, request, url = self._session.settings, attempt.request, attempt.url
        self.url = url
        headers = self._session.headers(attempt)
        began = time.monotonic()
        limit_s = attempt.until - began
        tracer = None
        if settings.trace is not None:
            tracer = Tracer(settings.trace, secrets_of(headers))
            tracer.request(request.method, url + request.path, request.query)
            tracer.headers(">", headers)
            tracer.body(">", request.body)
        try:
            reply = await self._send(attempt, headers, limit_s)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _translate(error, url, limit_s)
            if tracer is not None:
                tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error
        finally:
            attempt.times.total_s = time.monotonic() - began
        if tracer is not None:
            tracer.answer(f"{reply.status}, {len(reply.body)} bytes", time.monotonic() - began)
            tracer.headers("<", reply.headers)
            tracer.body("<", reply.body)
        return reply if 200 <= reply.status < 300 else hide_in(reply, secrets_of(headers))

    async def _send(self, attempt: Attempt, headers: Mapping[str, str], limit_s: float) -> Reply:
        session, request, times = self._session, attempt.request, attempt.times
        proxy, tls = session.root(attempt.url)
        data: bytes | io.BytesIO | None = request.body
        if len(request.body) > _LARGE_BODY:
            data = io.BytesIO(request.body)
        elif not request.body:
            data = None
        times.connect_s = times.first_byte_s = None
        with self._deadline.until(attempt.until):
            async with session.http.request(
                request.method,
                session.target(attempt.url, request),
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=self._timeout(limit_s),
                proxy=proxy,
                ssl=tls,
                trace_request_ctx=times,
            ) as response:
                body = await self._body(response)
        return Reply(response.status, response.headers, body)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._session.settings.max_answer_bytes
        body = await response.content.readany()
        if response.content.at_eof():
            return body
        parts, size = [body], len(body)
        while part := await response.content.readany():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ServerError(
                    f"the answer of {shown(self.url)} is above the limit of {limit} bytes",
                    hint="ask for fewer items at once, or raise the limit",
                )
        return b"".join(parts)

    def _timeout(self, limit_s: float) -> aiohttp.ClientTimeout:
        """What bounds connecting; the deadline bounds the rest, at no cost for a request that is in time."""
        connect_s = min(max(limit_s * _CONNECT_PART, 0.001), self._session.settings.connect_timeout_s)
        found = self._timeouts.get(connect_s)
        if found is None:
            self._timeouts.clear()
            found = self._timeouts[connect_s] = aiohttp.ClientTimeout(
                total=None, sock_connect=connect_s, ceil_threshold=3600.0
            )
        return found


class _Deadline:
    """Ends what a task waits for, with TimeoutError. A timer is set anew only when it goes off too early, or would go
    off too late: a request that is answered in time costs none (5 % of it with `asyncio.timeout`).
    """

    def __init__(self) -> None:
        self._until = 0.0  # 0.0: nothing is waited for
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._over = False

    def until(self, moment: float) -> _Deadline:
        """To be entered: what is inside ends by `moment`, on the monotonic clock, which is the loop's."""
        self._until, self._over = moment, False
        if self._timer is None or self._timer.when() > moment:
            if self._timer is not None:
                self._timer.cancel()
            self._task = asyncio.current_task()
            self._timer = asyncio.get_running_loop().call_at(moment, self._look)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._until = 0.0
        if self._over and self._task is not None:
            self._over = False
            if self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._until > loop.time():
            self._timer = loop.call_at(self._until, self._look)
        elif self._until and self._task is not None:
            self._over = True
            self._task.cancel()


def _connecting() -> aiohttp.TraceConfig:
    """Tells the Times of a request when it was connected and when it was answered."""
    config = aiohttp.TraceConfig()

    async def begun(_http: object, trace: SimpleNamespace, *_: object) -> None:
        trace.began = time.monotonic()

    async def connected(_http: object, trace: SimpleNamespace, *_: object) -> None:
        _times(trace).connect_s = time.monotonic() - trace.began

    async def answered(_http: object, trace: SimpleNamespace, *_: object) -> None:
        _times(trace).first_byte_s = time.monotonic() - trace.began

    config.on_request_start.append(begun)
    config.on_connection_create_end.append(connected)
    config.on_request_end.append(answered)
    return config


def _times(trace: SimpleNamespace) -> Times:
    times: Times = trace.trace_request_ctx
    return times


def _translate(error: Exception, url: str, limit_s: float) -> EasqError:
    """Our error for one of aiohttp, by what is certain about the request."""
    address = shown(url)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Unconnected(
            f"the proxy on the way to {address} refused: {error.status} {error.message}",
            hint="see HTTP_PROXY and NO_PROXY",
        )
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return unconnected(error, url)
    if isinstance(error, TimeoutError):
        return Unanswered(
            f"no complete answer from {address} within {limit_s:.3g} s",
            hint="raise --request-timeout if it is slow",
        )
    if isinstance(error, aiohttp.InvalidURL):
        return ConfigError(f"the url {address} cannot be used: {error}")
    if isinstance(error, aiohttp.ClientResponseError):
        return NotAQueueService(
            f"{address} does not answer in HTTP: {error.message}", hint="check host and port of the url"
        )
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return UsageError(f"the request to {address} cannot be sent: {error}")
    return Unreachable(f"connection to {address} lost before the answer was complete")
