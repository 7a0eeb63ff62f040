"""A model whose calls block, for an event loop: each call runs in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from easq.models.base import DEFAULT_TIMEOUT_S, Answer, BlockingModel, Call, ModelFailed
from easq.protocol.operations import SHUTDOWN

_Task: TypeAlias = "tuple[asyncio.Future[Answer], Call, float]"

#: calls of one model that run at the same time; further ones wait for a thread
THREADS = 64


class Threaded:
    """A Model that runs the calls of `blocking` in daemon threads, which are started as they are needed."""

    def __init__(self, blocking: BlockingModel, *, threads: int = THREADS) -> None:
        """Prepare a model that runs up to `threads` calls at the same time."""
        self._blocking, self._count = blocking, threads
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._started = self._running = 0
        self._is_closed = False

    def check(self) -> None:
        """Run the model's own `check`."""
        self._blocking.check()

    async def answer(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """Return the model's answer; the time limit begins when the call has a thread."""
        if self._is_closed:
            raise ModelFailed("the model is closed", status=503, code=SHUTDOWN)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._running += 1  # until the thread is free, even if the caller has stopped waiting
        if self._running > self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"easq-job-{self._started}", daemon=True).start()
        self._tasks.put((future, call, timeout_s))
        return await future

    def cancel(self) -> None:
        """Make the calls in flight fail with the code `Shutdown`."""
        self._blocking.cancel()

    async def close(self) -> None:
        """Cancel the calls in flight. Calls that wait for a thread fail when a thread takes them."""
        self._is_closed = True
        self._blocking.close()
        for _thread in range(self._started):
            self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call, timeout_s = task
            ended: Callable[[], object]
            try:
                if future.cancelled():
                    raise asyncio.CancelledError
                ended = partial(future.set_result, self._blocking.run(call, timeout_s=timeout_s))
            except BaseException as error:  # a bug surfaces where the answer is awaited
                ended = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                future.get_loop().call_soon_threadsafe(self._ended, future, ended)

    def _ended(self, future: asyncio.Future[Answer], ended: Callable[[], object]) -> None:
        self._running -= 1
        if not future.done():
            ended()
