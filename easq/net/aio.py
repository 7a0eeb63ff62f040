"""Many concurrent exchanges on one event loop, over aiohttp: httpcore's pool is slower with 32 than with one.

`AsyncTransport` is the asynchronous version of `net/http.py`: its senders send attempts, bounded in time and size.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TypeVar

import aiohttp
from yarl import URL

from easq.errors import EasqError
from easq.net.aio_raw import AUTO_HEADERS, FAILURES, in_pieces, read_body, translate
from easq.net.failures import unsendable
from easq.net.headers import check_value, request_headers
from easq.net.retry import Attempt, Steps, Times
from easq.net.settings import MAX_HEADER_BYTES, NetworkSettings
from easq.net.tls import tls_context
from easq.net.trace import Tracer, hidden, hide_in, secrets_of
from easq.net.url import proxy_for, request_url
from easq.protocol.operations import Request
from easq.protocol.replies import Reply

R = TypeVar("R")

#: headers that differ from request to request
_VARYING = frozenset(("Idempotency-Key", "Authorization", "Content-MD5", "Date"))
#: fraction of an attempt's time within which it must be connected. If it is not, the attempt fails before the deadline
#: with an error that says that nothing was sent
_CONNECT_PART = 0.98
#: delay of a deadline's timer that means that the process was suspended (Ctrl-Z), in seconds. The deadline is then
#: extended by this time
_SUSPENDED_S = 1.0
#: parameters of mallopt, from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: most targets in the cache
_MAX_KNOWN = 1000


@dataclass(frozen=True, slots=True)
class _Target:
    """URL, headers, proxy and TLS of equal requests. They are checked once, and then cached."""

    url: URL
    headers: dict[str, str]
    proxy: URL | None
    way: str | None  #: the proxy as text
    tls: ssl.SSLContext | bool


class AsyncTransport:
    """Connections to any servers, which its senders share; an async context manager."""

    def __init__(self, settings: NetworkSettings, *, timed: bool = False) -> None:
        """Prepare; entering the context opens the session.

        Args:
            timed: fill in the times of connecting and of the first byte of each attempt, which takes a little longer.
        """
        self.settings = settings
        self._timed = timed
        self._known: dict[tuple[object, ...], _Target] = {}
        self._own = frozenset(name.lower() for name in settings.headers)
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> AsyncTransport:
        _keep_large_blocks()
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=30.0, resolver=aiohttp.ThreadedResolver()
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=AUTO_HEADERS,
            read_bufsize=256 * 1024,
            max_field_size=MAX_HEADER_BYTES,
            trace_configs=[_connecting()] if self._timed else None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    def sender(self) -> Sender:
        """Return a sender for the running task."""
        return Sender(self)

    def prepare(self, attempt: Attempt) -> tuple[_Target, dict[str, str]]:
        """Return the target of an attempt, and all its headers."""
        request = attempt.request
        steady: list[tuple[str, str]] = []
        varying: list[tuple[str, str]] = []
        for pair in request.headers.items():
            (varying if pair[0] in _VARYING else steady).append(pair)
        kind = (attempt.url, request.path, request.query, attempt.caller, *steady)
        place = self._known.get(kind)
        if place is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            place = self._known[kind] = self._place(attempt, dict(steady))
        if not varying:
            return place, place.headers
        headers = dict(place.headers)
        for name, value in varying:
            if name.lower() not in self._own:
                check_value(name, value)
                headers[name] = value
        return place, headers

    def _place(self, attempt: Attempt, headers: Mapping[str, str]) -> _Target:
        url, request = attempt.url, attempt.request
        proxy = proxy_for(url, self.settings.environ)
        tls: ssl.SSLContext | bool = True
        if any(one.lower().startswith("https:") for one in (url, proxy or "")):
            if self._tls is None:
                self._tls = tls_context(cacert=self.settings.cacert, insecure=self.settings.insecure)
            tls = self._tls
        checked = request_headers(
            Request(request.method, headers=headers), attempt.caller, self.settings.headers
        )
        try:
            return _Target(
                URL(request_url(url, request), encoded=True),
                checked,
                URL(proxy) if proxy else None,
                proxy,
                tls,
            )
        except UnicodeError as error:
            raise unsendable(url, error) from error


class Sender:
    """Sends one attempt at a time, in the task that made it."""

    def __init__(self, session: AsyncTransport) -> None:
        self._session = session
        self._http = session.http
        self._deadline = _Deadline()
        self._usual = _timeout(session.settings.connect_timeout_s)
        self._longest_s = session.settings.connect_timeout_s / _CONNECT_PART
        self.url = ""  #: of the last attempt

    async def send(self, attempt: Attempt) -> Reply:
        """Return the whole reply. In a reply that is not 2xx the secrets of the request are masked."""
        settings, request, times = self._session.settings, attempt.request, attempt.times
        self.url = attempt.url
        place, headers = self._session.prepare(attempt)
        began = time.monotonic()
        limit_s = attempt.until - began
        tracer = None
        if settings.trace is not None:
            tracer = Tracer(settings.trace, secrets_of(headers, place.way))
            tracer.sent(request.method, attempt.url + request.path, request.query, headers, request.body)
        try:
            reply = await self._exchange(request.method, place, headers, request.body, attempt.until, times)
        except FAILURES as error:
            failure = translate(error, attempt.url, limit_s, place.way)
            failure = hidden(failure, secrets_of(headers, place.way))
            if tracer is not None:
                tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error
        finally:
            times.total_s = time.monotonic() - began
        if tracer is not None:
            tracer.received(reply, time.monotonic() - began)
        if 200 <= reply.status < 300:
            return reply
        return hide_in(reply, secrets_of(headers, place.way))

    async def run(self, steps: Steps[R]) -> R:
        """Return the result of an exchange, as `Transport.run`, without blocking. Raises its EasqError."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    step = next(steps)
                    continue
                try:
                    reply = await self.send(step)
                except EasqError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            answer: R = end.value
            return answer

    async def _exchange(
        self,
        method: str,
        place: _Target,
        headers: Mapping[str, str],
        body: bytes,
        until: float,
        times: Times,
    ) -> Reply:
        times.connect_s = times.first_byte_s = None
        self._deadline.begin(until)
        try:
            async with self._http.request(
                method,
                place.url,
                data=in_pieces(body),
                headers=headers,
                allow_redirects=False,
                # the time left bounds connecting; `_Deadline` bounds the whole attempt
                timeout=self._timeout(until - time.monotonic(), place),
                proxy=place.proxy,
                ssl=place.tls,
                trace_request_ctx=times,
            ) as response:
                limit = self._session.settings.max_answer_bytes
                return Reply(response.status, response.headers, await read_body(response, self.url, limit))
        finally:
            self._deadline.end()

    def _timeout(self, limit_s: float, place: _Target) -> aiohttp.ClientTimeout:
        """Return the time limit of connecting. It covers a proxy and TLS only if needed, since that costs a timer."""
        whole = place.proxy is not None or place.url.scheme == "https"
        if whole or limit_s < self._longest_s:
            settings = self._session.settings
            return _timeout(min(limit_s * _CONNECT_PART, settings.connect_timeout_s), whole=whole)
        return self._usual


class _Deadline:
    """A reusable deadline for the awaits of one task.

    Its timer is replaced only if it has fired too early, or would fire too late. So a request that is answered in time
    needs no new timer, unlike with `asyncio.timeout`.
    """

    def __init__(self) -> None:
        self._until = 0.0  # 0.0: no deadline
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(self._loop)
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def begin(self, until: float) -> None:
        """Cancel the task at `until` on the monotonic clock, which the loop uses too, unless `end` comes first."""
        self._until = until
        timer = self._timer
        if timer is None or timer.when() > until:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(until, self._look)

    def end(self) -> None:
        """End the deadline. If it has passed, raise TimeoutError; this replaces the task's CancelledError."""
        self._until = 0.0
        if self._over and self._task is not None:
            self._over = False
            if self._task.uncancel() == 0:
                raise TimeoutError

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._until and now - self._until > _SUSPENDED_S:
            self._until = now + _SUSPENDED_S
        if self._until > now:
            self._timer = self._loop.call_at(self._until, self._look)
        elif self._until and self._task is not None:
            self._over = True
            self._task.cancel()


def _timeout(connect_s: float, *, whole: bool = False) -> aiohttp.ClientTimeout:
    """Return a bound of `connect_s` on TCP alone, or with `whole` on the answer of a proxy and TLS too."""
    connect_s = max(connect_s, 0.001)
    return aiohttp.ClientTimeout(
        total=None, connect=connect_s if whole else None, sock_connect=connect_s, ceil_threshold=3600.0
    )


@cache
def _keep_large_blocks() -> None:
    """Make glibc allocate blocks of up to 1 MiB on its heap, and retain up to 2 MiB of freed heap.

    asyncio reads into a block of 256 KiB. By default, this block is mapped, shrunk and unmapped for each answer, which
    takes 20 us of the 80 us of a request.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # of glibc; see mallopt(3)
        mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 2 * 1024 * 1024)


def _connecting() -> aiohttp.TraceConfig:
    """Return a trace that fills in the Times of each request."""
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
