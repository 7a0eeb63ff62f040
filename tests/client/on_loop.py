"""An AsyncWatcher with the methods of a Watcher, so that the tests of one are the tests of both."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from easq.client.async_watch import AsyncWatcher
from easq.model import Frame

T = TypeVar("T")


class OnLoop:
    """Run a watch on an event loop in a separate thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._came: queue.SimpleQueue[Frame | BaseException | None] = queue.SimpleQueue()
        self._watcher = AsyncWatcher(*args, on_frame=self._came.put, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._running: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int:
        return self._watcher.epoch

    def __enter__(self) -> OnLoop:
        self._thread.start()
        try:
            self._do(self._watcher.connect())
        except BaseException:
            self._end()
            raise
        self._do(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next(self, timeout_s: float | None = None) -> Frame | None:
        try:
            came = self._came.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(came, Frame):
            return came
        self._came.put(came)
        if came is not None:
            raise came
        return None

    def close(self) -> None:
        if self._thread.is_alive():
            self._do(self._finish(abort=False))
            self._end()

    def abort(self) -> None:
        self._do(self._finish(abort=True))
        self._end()

    async def _begin(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._watcher.run()
        except asyncio.CancelledError:
            self._came.put(None)
        except BaseException as error:
            self._came.put(error)

    async def _finish(self, *, abort: bool) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        await (self._watcher.abort() if abort else self._watcher.close())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _end(self) -> None:
        self._do(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
