"""A queue without a connection: races that a client cannot cause on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from easq.model import Consumer
from easq.protocol.operations import Watch
from easq.server.queue import Clock, Queue, QueuePolicy
from easq.storage.memory import MemoryStorage


class _Overtaken(MemoryStorage):
    """A storage that runs a function between a check and the use of its result."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def idle(self, *args: Any, **options: Any) -> float | None:
        found = await super().idle(*args, **options)
        meanwhile, self.meanwhile = self.meanwhile, None
        if found is not None and meanwhile is not None:
            await meanwhile()
        return found


async def _queue(storage: MemoryStorage) -> Queue:
    await storage.start(lambda _: None)
    clock = Clock(asyncio.get_running_loop().time, lambda: 0)
    queue = Queue(storage, "q", is_sink=False, policy=QueuePolicy(), clock=clock)
    await queue.open()
    return queue


def test_the_end_of_a_session_right_after_a_check_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second watch of a name continues as soon as the first one ends, not only at its next check."""
    monkeypatch.setattr("easq.server.queue.TAKEOVER_WAIT_S", 1000.0)
    monkeypatch.setattr("easq.server.queue._POLL_S", 1000.0, raising=False)
    monkeypatch.setattr("easq.server.queue._LOOK_AGAIN_S", 1000.0, raising=False)

    async def body() -> None:
        storage = _Overtaken()
        queue = await _queue(storage)
        consumer = Consumer("g", "u")
        first = await queue.attach(consumer, Watch())
        storage.meanwhile = lambda: queue.detach(first, lost=False)
        async with asyncio.timeout(10):
            assert await queue.attach(consumer, Watch()) != first
        await storage.close()

    asyncio.run(body())


def test_every_watch_that_waits_for_a_name_is_woken_by_the_end_of_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second waiting watch does not take the wake-up from the first."""
    monkeypatch.setattr("easq.server.queue.TAKEOVER_WAIT_S", 1000.0)
    monkeypatch.setattr("easq.server.queue._POLL_S", 1000.0, raising=False)
    monkeypatch.setattr("easq.server.queue._LOOK_AGAIN_S", 1000.0, raising=False)

    async def body() -> None:
        storage = _Overtaken()
        queue = await _queue(storage)
        names = [Consumer("g", "u"), Consumer("g", "v")]
        watching = [await queue.attach(name, Watch()) for name in names]
        waiting = [asyncio.create_task(queue.attach(names[0], Watch()))]
        await asyncio.sleep(0)

        async def leave() -> None:
            for session in watching:
                await queue.detach(session, lost=False)

        storage.meanwhile = leave
        waiting.append(asyncio.create_task(queue.attach(names[1], Watch())))
        async with asyncio.timeout(10):
            await asyncio.gather(*waiting)
        await storage.close()

    asyncio.run(body())
