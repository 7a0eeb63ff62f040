"""Calls of a model from an event loop: over aiohttp for a service, in a fixed number of threads for all others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlencode

from easq.errors import AnswerTooLarge, EasqError, NotAQueueService, Unreachable
from easq.models.base import Answer, Call, Model, ModelFailed
from easq.models.http import MAX_IDLE_S, judged, sent_headers
from easq.net.aio import AsyncTransport, Sender
from easq.net.failures import Unanswered, Unconnected
from easq.net.retry import Times
from easq.net.settings import NetworkSettings
from easq.protocol.hop_by_hop import end_to_end
from easq.protocol.operations import SHUTDOWN

if TYPE_CHECKING:
    from easq.models.http import Http

#: returns the answer to a call within so many seconds, or raises as `Model.run` does
Ask: TypeAlias = Callable[[Call, float], Awaitable[Answer]]
_Task: TypeAlias = "tuple[asyncio.Future[Answer], Call, float]"

#: connecting is bounded by the time limit of each call, in seconds
_NO_LIMIT_S = 3600.0


class Threads:
    """Calls a model in at most `count` daemon threads, which are started as they are needed."""

    def __init__(self, model: Model, count: int) -> None:
        self._model, self._count = model, count
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._started = self._running = 0

    async def __aenter__(self) -> Threads:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        for _thread in range(self._started):
            self._tasks.put(None)

    def asker(self) -> Ask:
        """Return the function that calls the model."""
        return self._ask

    def cancel(self) -> None:
        """Have the running calls fail with the code Shutdown."""
        self._model.cancel()

    async def _ask(self, call: Call, timeout_s: float) -> Answer:
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._running += 1
        try:
            if self._running > self._started < self._count:
                self._started += 1
                threading.Thread(target=self._run, name=f"easq-job-{self._started}", daemon=True).start()
            self._tasks.put((future, call, timeout_s))
            return await future
        finally:
            self._running -= 1

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call, timeout_s = task
            try:
                ended = partial(future.set_result, self._model.run(call, timeout_s=timeout_s))
            except BaseException as error:  # a bug surfaces where the answer is awaited
                ended = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(_unless_done, future, ended)


def _unless_done(future: asyncio.Future[Answer], ended: Callable[[], None]) -> None:
    if not future.done():
        ended()


class AsyncHttp:
    """Calls the service of an `Http` model over aiohttp. Each asker makes one call at a time."""

    def __init__(self, model: Http) -> None:
        self._model = model
        self._transport = AsyncTransport(
            NetworkSettings(
                connect_timeout_s=_NO_LIMIT_S, environ={}, max_answer_bytes=model.max_answer
            ),
            timed=True,
            keepalive_s=MAX_IDLE_S,
        )  # fmt: skip
        self._running: set[asyncio.Task[object]] = set()
        self._cancelled: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> AsyncHttp:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    def asker(self) -> Ask:
        """Return a function that calls the service, for one task."""
        return partial(self._ask, self._transport.sender())

    def cancel(self) -> None:
        """Have the running calls fail with the code Shutdown."""
        for task in self._running - self._cancelled:
            self._cancelled.add(task)
            task.cancel()

    async def _ask(self, sender: Sender, call: Call, timeout_s: float) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        url = self._model.url(call.path, urlencode(call.query))
        headers = {
            name: value.decode("utf-8", "surrogateescape") for name, value in sent_headers(call).items()
        }
        if not any(name.lower() == "accept-encoding" for name in headers):
            headers["Accept-Encoding"] = "identity"
        until = time.monotonic() + timeout_s
        times = Times()
        self._running.add(task)
        try:
            while True:
                try:
                    reply = await sender.call(call.method, url, headers, call.data, until=until, times=times)
                    break
                except (Unanswered, Unconnected):
                    raise
                except Unreachable:
                    # a connection that was used before ended without an answer: the server was about to close it
                    if times.connect_s is not None or times.first_byte_s is not None:
                        raise
        except asyncio.CancelledError:
            if task not in self._cancelled:
                raise
            task.uncancel()
            raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN) from None
        except EasqError as error:
            raise self._failure(error, timeout_s, has_begun=times.first_byte_s is not None) from error
        finally:
            self._running.discard(task)
            self._cancelled.discard(task)
        return judged(Answer(reply.body, reply.status, end_to_end(reply.headers.items())))

    def _failure(self, error: EasqError, timeout_s: float, *, has_begun: bool) -> ModelFailed:
        """Return the failure of a call that has no whole answer."""
        if isinstance(error, Unanswered):
            return ModelFailed(f"no answer within {timeout_s:g} s", status=504)
        if isinstance(error, AnswerTooLarge):
            return ModelFailed(f"the answer is above {self._model.max_answer} bytes", status=502)
        if isinstance(error, NotAQueueService):
            return ModelFailed("the model's answer is no HTTP", status=502)
        if not isinstance(error, Unreachable):
            return ModelFailed(error.message, status=400)
        if not isinstance(error, Unconnected):
            said = "the answer broke off" if has_begun else "the connection to the model was lost"
            return ModelFailed(said, status=502)
        causes = [error.__cause__]
        while causes[-1] is not None:
            causes.append(causes[-1].__cause__ or causes[-1].__context__)
        if any(isinstance(cause, TimeoutError) for cause in causes):
            return ModelFailed(f"no answer within {timeout_s:g} s", status=504)
        cause = next((one for one in reversed(causes) if isinstance(one, OSError)), None)
        reason = error.message
        if isinstance(cause, ConnectionRefusedError):
            reason = "connection refused"
        elif cause is not None and cause.errno is not None and cause.errno > 0:
            reason = os.strerror(cause.errno)
        is_busy = not isinstance(cause, ssl.SSLError)
        return ModelFailed(f"the model cannot be reached: {reason}", status=502, busy=is_busy)
