"""Many requests in flight to one stream, and their outcomes in the order in which they were asked for.

The only file of this wing that knows aiohttp: httpx's pool makes 32 concurrent requests slower than one. Three
threads share the work: one reads the tasks, which may block on a pipe; one runs the event loop; the caller's
takes the outcomes. Memory is bounded by how far reading may be ahead of the caller, in tasks and in bytes.
"""

from __future__ import annotations

import asyncio
import io
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import aiohttp
from yarl import URL

from easq.client.backoff import full_jitter
from easq.client.endpoint import proxy_for, shown
from easq.client.exchange import (
    MAX_FULL_ATTEMPTS,
    MAX_HEADER_BYTES,
    Retry,
    Settings,
    again_after_reply,
    not_taken,
    target,
)
from easq.client.failures import Unanswered, Unconnected, unconnected
from easq.client.headers import request_headers
from easq.client.tls import tls_context
from easq.client.trace import Tracer, hidden, hide_in, secrets_of
from easq.errors import ConfigError, EasqError, NotAQueueService, ServerError, Unreachable, UsageError
from easq.wire.operations import Caller, Operation, Request, to_request
from easq.wire.replies import Reply, read_error

T = TypeVar("T")
R = TypeVar("R")

#: bytes of payloads that are read and not yet reported; one item may be larger
MAX_HELD_BYTES = 64 * 1024 * 1024
#: a body above this is sent in pieces: aiohttp would hold up the loop with it, and warns
_LARGE_BODY = 256 * 1024
#: how far behind its rate a run may catch up, in seconds; more would be a burst
_CATCH_UP_S = 0.1
#: from this pause on a stop is noticed while it lasts, in seconds
_LONG_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """One request to be made, or why it cannot be; `what` is given back with the outcome."""

    what: T
    operation: Operation | EasqError
    size: int = 0


@dataclass(slots=True)
class Outcome(Generic[T, R]):
    """What became of a task: a `result`, or an `error`. Times are monotonic seconds."""

    task: Task[T]
    result: R | None = None
    error: EasqError | None = None
    attempts: int = 0
    doubt: bool = False  #: an attempt before the last may have taken effect
    due: float = 0.0  #: when it was to begin by the rate
    began: float = 0.0
    ended: float = 0.0
    done: bool = False


_Mail: TypeAlias = "list[Outcome[Any, Any]] | BaseException | tuple[int, str] | None"


class Bulk:
    """Runs tasks against `url`, called as `caller`, `workers` of them at a time.

    With `rate` at most so many are begun in a second; with `open_loop` each is due at its own moment, however
    late the ones before are. With `stop_at_failure` none is begun after the first failure.
    """

    def __init__(
        self,
        url: str,
        caller: Caller,
        settings: Settings,
        *,
        workers: int,
        rate: float | None = None,
        open_loop: bool = False,
        stop_at_failure: bool = False,
        retry: Retry = Retry.READ,
    ) -> None:
        self.url, self.caller, self.settings = url, caller, settings
        self._workers, self._rate, self._open_loop = workers, rate, open_loop
        self._stop_at_failure, self._retry = stop_at_failure, retry
        self._stopping = False
        self._mail: queue.SimpleQueue[_Mail] = queue.SimpleQueue()
        self._line = _Line(2 * workers + 16)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halt: asyncio.Event | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._hungry = False
        self._flushing = False
        self._next_due = 0.0
        self._make: Callable[[Reply], Any]
        self._reader: threading.Thread

    def run(self, tasks: Iterator[Task[T]], read: Callable[[Reply], R]) -> Iterator[list[Outcome[T, R]]]:
        """The outcomes in the tasks' order, in batches of what is there; each batch is done with when the next
        is asked for. A result is what `read` makes of a 2xx answer.

        Raises what reading a task raised, after the outcomes of those before.
        """
        reader = threading.Thread(target=self._read, args=(tasks,), name="easq-read", daemon=True)
        runner = threading.Thread(target=self._run, name="easq-bulk", daemon=True)
        self._reader, self._make = reader, read
        runner.start()
        try:
            reader.start()
            while (mail := self._mail.get()) is not None:
                if isinstance(mail, BaseException):
                    raise mail
                if isinstance(mail, tuple):
                    if self.settings.trace is not None:
                        self.settings.trace(*mail)
                    continue
                yield mail
                self._line.leave(mail)
        finally:
            self.stop(grace_s=0.0)
            runner.join()
        if self._line.failure is not None:
            raise self._line.failure

    def stop(self, *, grace_s: float) -> None:
        """No further task is begun, and after `grace_s` those in flight are given up: they fail as Unanswered.

        May be called from a signal handler.
        """
        self._stopping = True
        self._call(self._stopped)
        loop = self._loop
        if loop is not None:
            self._call(lambda: loop.call_later(grace_s, self._given_up))

    def read_all(self, *, within_s: float) -> bool:
        """Whether no task is being read any more; it may take a moment after the last outcome."""
        self._reader.join(within_s)
        return not self._reader.is_alive()

    # in the reader's thread

    def _read(self, tasks: Iterator[Task[Any]]) -> None:
        line = self._line
        try:
            for task in tasks:
                if not line.enter(Outcome(task)):
                    break
                if self._hungry:
                    self._call(self._feed)
        except BaseException as error:
            line.failure = error
        finally:
            line.ended = True
            self._call(self._feed)

    def _call(self, callback: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(callback)
            except RuntimeError:
                pass  # the loop has ended, and with it what the call was about

    # in the loop's thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._mail.put(error)
        finally:
            self._loop = None
            self._line.close()
            self._mail.put(None)

    async def _main(self) -> None:
        self._halt = asyncio.Event()
        async with _Session(self.url, self.caller, self.settings, self._mail) as session:
            self._tasks = [asyncio.ensure_future(self._work(session)) for _ in range(self._workers)]
            self._loop = asyncio.get_running_loop()
            await asyncio.gather(*self._tasks)
        self._flush()

    def _feed(self) -> None:
        waiters = self._waiters
        over = self._line.ended or self._stopping
        for _ in range(len(waiters) if over else min(len(waiters), len(self._line.waiting))):
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        self._hungry = bool(waiters)

    def _stopped(self) -> None:
        if self._halt is not None:
            self._halt.set()
        self._line.close()
        self._feed()

    def _given_up(self) -> None:
        self._stopped()
        for task in self._tasks:
            task.cancel()

    async def _next(self) -> Outcome[Any, Any] | None:
        """The next task, as an outcome to be filled in; None when there is no further one."""
        line = self._line
        while not self._stopping:
            self._hungry = True  # said before looking: what enters after the look is told
            if line.waiting:
                self._hungry = bool(self._waiters)
                return line.waiting.popleft()
            if line.ended:
                return None
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return None

    async def _work(self, session: _Session) -> None:
        try:
            while (outcome := await self._next()) is not None:
                if self._rate and not await self._due(outcome, self._rate):
                    return
                await self._one(session, outcome)
        except asyncio.CancelledError:
            pass  # it was between two tasks

    async def _due(self, outcome: Outcome[Any, Any], rate: float) -> bool:
        """Its time has come; False when the run was stopped before."""
        now = time.monotonic()
        due = self._next_due or now
        if not self._open_loop:
            due = max(due, now - max(1 / rate, _CATCH_UP_S))
        outcome.due, self._next_due = due, due + 1 / rate
        pause_s = due - now
        if pause_s > _LONG_PAUSE_S and self._halt is not None:
            try:
                await asyncio.wait_for(self._halt.wait(), pause_s)
            except TimeoutError:
                pass
        elif pause_s > 0:
            await asyncio.sleep(pause_s)
        return not self._stopping

    async def _one(self, session: _Session, outcome: Outcome[Any, Any]) -> None:
        outcome.began = time.monotonic()
        outcome.due = outcome.due or outcome.began
        operation = outcome.task.operation
        try:
            if isinstance(operation, EasqError):
                raise operation
            outcome.result = self._make(await session.exchange(to_request(operation), self._retry, outcome))
        except EasqError as error:
            outcome.error = hidden(error, self.caller.token)
        except asyncio.CancelledError:
            outcome.error = Unanswered(f"given up before {shown(self.url)} answered")
        outcome.ended = time.monotonic()
        outcome.done = True
        if outcome.error is not None and self._stop_at_failure:
            self._stopping = True
            self._stopped()
        if not self._flushing and self._line.order[0].done:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """All outcomes whose turn it is are with the caller."""
        self._flushing = False
        order, batch = self._line.order, []
        while order and order[0].done:
            batch.append(order.popleft())
        if batch:
            self._mail.put(batch)


class _Line:
    """The tasks that were read and not yet reported, in order; its bounds are what bounds memory."""

    def __init__(self, most: int) -> None:
        self.order: deque[Outcome[Any, Any]] = deque()
        self.waiting: deque[Outcome[Any, Any]] = deque()
        self.ended = False
        self.failure: BaseException | None = None
        self._most, self._held, self._bytes = most, 0, 0
        self._closed = False
        self._room = threading.Condition()

    def enter(self, outcome: Outcome[Any, Any]) -> bool:
        """It stands in line, once there is room; False when the line closed, then it stands at its end, unbegun."""
        with self._room:
            size = outcome.task.size
            while not self._closed and self._held and self._full(size):
                self._room.wait()
            self._held += 1
            self._bytes += size
            self.order.append(outcome)
            if not self._closed:
                self.waiting.append(outcome)
            return not self._closed

    def leave(self, outcomes: list[Outcome[T, R]]) -> None:
        """They are reported, and others may enter."""
        with self._room:
            self._held -= len(outcomes)
            self._bytes -= sum(outcome.task.size for outcome in outcomes)
            self._room.notify()

    def close(self) -> None:
        """Nothing more enters."""
        with self._room:
            self._closed = True
            self._room.notify()

    def _full(self, size: int) -> bool:
        return self._held >= self._most or self._bytes + size > MAX_HELD_BYTES


class _Session:
    """The connections of one run."""

    def __init__(self, url: str, caller: Caller, settings: Settings, mail: queue.SimpleQueue[_Mail]) -> None:
        self._url, self._caller, self._settings = url, caller, settings
        if settings.trace is not None:  # said by the caller's thread: only it may write
            self._settings = replace(settings, trace=lambda level, line: mail.put((level, line)))
        self._heads: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._own = {name.lower() for name in settings.headers}
        self._last: tuple[Any, URL] = (None, URL())
        self._timeout = self._timeout_of(settings.request_timeout_s)

    async def __aenter__(self) -> _Session:
        settings = self._settings
        proxy = proxy_for(self._url, settings.environ)
        self._proxy = URL(proxy) if proxy else None
        tls = any(url.startswith("https:") for url in (self._url.lower(), (proxy or "").lower()))
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=30.0,
                resolver=aiohttp.ThreadedResolver(),
                ssl=tls_context(cacert=settings.cacert, insecure=settings.insecure) if tls else False,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            read_bufsize=256 * 1024,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def exchange(self, request: Request, retry: Retry, outcome: Outcome[Any, Any]) -> Reply:
        """The 2xx reply to `request`, as `Transport.exchange` gives it; `outcome` is told how often it was sent."""
        settings = self._settings
        start = time.monotonic()
        end = start + settings.request_timeout_s
        connect_end = min(end, start + settings.connect_timeout_s)
        headers = self._headers(request)
        failures = full = 0
        while True:
            give_up = end
            outcome.attempts += 1
            try:
                timeout = self._timeout if not failures else self._timeout_of(end - time.monotonic())
                reply = await self._attempt(request, headers, timeout)
                if 200 <= reply.status < 300:
                    return reply
                error: EasqError = read_error(hide_in(reply, secrets_of(headers)))
                full += reply.status == 429 and request.method == "POST"
                again = full < MAX_FULL_ATTEMPTS and again_after_reply(retry, reply)
                unsure = reply.status >= 500 and not not_taken(reply)
            except Unconnected as failure:
                error, again, give_up = failure, retry is not Retry.NEVER and not failure.lasting, connect_end
                unsure = False
            except Unreachable as failure:
                error, again, unsure = failure, retry in (Retry.READ, Retry.PREDICT), True
            failures += 1
            pause_s = full_jitter(failures)
            if not again or time.monotonic() + pause_s >= give_up:
                raise error
            outcome.doubt = outcome.doubt or unsure
            await asyncio.sleep(pause_s)

    async def _attempt(
        self, request: Request, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> Reply:
        tracer = None
        began = time.monotonic()
        if self._settings.trace is not None:
            tracer = Tracer(self._settings.trace, secrets_of(headers))
            tracer.request(request.method, self._url + request.path, request.query)
            tracer.headers(">", headers)
            tracer.body(">", request.body)
        data: bytes | io.BytesIO | None = request.body
        if len(request.body) > _LARGE_BODY:
            data = io.BytesIO(request.body)
        elif not request.body and request.method not in ("POST", "PUT"):
            data = None
        try:
            async with self._http.request(
                request.method,
                self._target(request),
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
                proxy=self._proxy,
            ) as response:
                reply = Reply(response.status, response.headers, await self._body(response))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _translate(error, self._url, timeout.total or 0.0)
            if tracer is not None:
                tracer.answer(failure.message, time.monotonic() - began)
            raise failure from error
        if tracer is not None:
            tracer.answer(f"{reply.status}, {len(reply.body)} bytes", time.monotonic() - began)
            tracer.headers("<", reply.headers)
            tracer.body("<", reply.body)
        return reply

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_answer_bytes
        body = await response.content.readany()
        if response.content.at_eof():
            return body
        parts, size = [body], len(body)
        while part := await response.content.readany():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ServerError(
                    f"the answer of {shown(self._url)} is above the limit of {limit} bytes",
                    hint="ask for fewer items at once, or raise the limit",
                )
        return b"".join(parts)

    def _headers(self, request: Request) -> dict[str, str]:
        """All headers; those that do not differ from request to request are checked once."""
        own = {name: value for name, value in request.headers.items() if name not in _VARYING}
        kind = tuple(own.items())
        if kind not in self._heads:
            if len(self._heads) > 1000:
                self._heads.clear()
            self._heads[kind] = request_headers(
                Request(request.method, headers=own), self._caller, self._settings.headers
            )
        varying = {
            name: value
            for name, value in request.headers.items()
            if name in _VARYING and name.lower() not in self._own
        }
        return {**self._heads[kind], **varying}

    def _target(self, request: Request) -> URL:
        place = (request.path, request.query)
        if self._last[0] != place:
            try:
                self._last = (place, URL(target(self._url, request), encoded=True))
            except UnicodeError as error:
                raise UsageError(f"the request to {shown(self._url)} cannot be sent: {error}") from error
        return self._last[1]

    def _timeout_of(self, limit_s: float) -> aiohttp.ClientTimeout:
        limit_s = max(limit_s, 0.001)
        return aiohttp.ClientTimeout(
            total=limit_s, sock_connect=min(limit_s, self._settings.connect_timeout_s), ceil_threshold=3600.0
        )


#: headers that differ from request to request and are checked where they are made
_VARYING = ("Idempotency-Key",)


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
