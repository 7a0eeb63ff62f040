"""The engines under test, on an event loop with a virtual clock."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Coroutine
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import redis

from easq.model import Consumer, Frame
from easq.server.queue import Clock, Queue, QueuePolicy
from easq.server.queues import Queues
from easq.storage.base import Lease, Limits, Storage, Subscription, Timing
from easq.storage.embedded import EmbeddedStorage
from easq.storage.memory import MemoryStorage
from easq.storage.redis.client import RedisClient
from easq.storage.redis.engine import RedisStorage
from easq.storage.redis.url import parse_redis_url
from easq.storage.sqlite.engine import SqliteStorage
from tests.model.reference import (
    BUSY_LIMIT_MS,
    FORGET_S,
    GRACE_S,
    MAX_BYTES,
    MAX_FAILURES,
    MAX_ITEMS,
    RETENTION_S,
)

T = TypeVar("T")
START = 1000.0
#: a server is not missed however the clock leaps
LEASE_S = 1000.0


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time stands still until `wait`."""

    moment = START

    def time(self) -> float:
        return self.moment

    def run(self, work: Awaitable[T]) -> T:
        """Return the answer of `work`, which waits only for the engine."""
        return self.run_until_complete(work)

    def wait(self, seconds: float) -> None:
        """Move the clock, and run the timers that are due."""
        self.moment += seconds
        for _ in range(3):
            self.run_until_complete(asyncio.sleep(0))

    def finish(self) -> None:
        self.run_until_complete(self.shutdown_default_executor())
        self.close()


class Engine:
    """One embedded engine with the queue `q`, its sink and its rear store."""

    def __init__(self, loop: Loop, backoff_s: float, folder: Path | None) -> None:
        self.loop = loop
        self.folder = folder
        self.timing = Timing(
            leave_grace_s=GRACE_S,
            group_retention_s=RETENTION_S,
            backoff_s=(backoff_s,),
            busy_limit_s=BUSY_LIMIT_MS / 1000,
            forget_s=FORGET_S,
        )
        self.generation = 0
        self.failures: list[Exception] = []
        self.start()

    @property
    def path(self) -> Path:
        assert self.folder is not None
        return self.folder / str(self.generation) / "q.db"

    def storage_of(self) -> Storage:
        """Return the engine on the data of its folder."""
        if self.folder is None:
            return MemoryStorage(self.timing)
        self.path.parent.mkdir(exist_ok=True)
        self.path.with_name("q.db.ballast").touch()  # there is no disk to be filled here
        wall_ms = lambda: round(self.loop.time() * 1000)  # noqa: E731
        return SqliteStorage(self.path, durability="os", timing=self.timing, wall_ms=wall_ms)

    def start(self) -> None:
        """Start the engine on the stored data."""
        self.storage = self.storage_of()
        if isinstance(self.storage, EmbeddedStorage):
            self.storage._ticker.stood_still_s = inf  # here the clock leaps
        policy = QueuePolicy(limits=Limits(MAX_ITEMS, MAX_BYTES), max_failures=MAX_FAILURES)
        queues = Queues(
            self.storage, ["q"], policy=policy, sink_policy=policy, clock=Clock(self.loop.time, lambda: 7)
        )
        self.queue: Queue = queues.first.input
        self.sink: Queue = queues.first.sink
        self.loop.run(self.storage.start(self.failures.append))
        self.loop.run(self.sink.open())
        self.loop.run(self.queue.open())

    def restart(self, seconds: float) -> None:
        """Stop the engine, and start it again after `seconds`."""
        self.close()
        self.loop.moment += seconds
        self.start()

    def kill(self, seconds: float) -> None:
        """Kill the engine, and start it after `seconds` on the present files; data that was only in memory is lost."""
        abandoned, files = self.storage, self.path.parent
        self.generation += 1
        self.path.parent.mkdir()
        for file in ("q.db", "q.db-wal"):
            shutil.copy(files / file, self.path.parent / file)
        self.loop.run(abandoned.close())
        self.loop.moment += seconds
        self.start()

    def close(self) -> None:
        self.loop.run(self.storage.close())
        assert self.failures == []

    def stored_groups(self) -> set[str]:
        """Return the groups of the queue that are stored in the file."""
        connection = sqlite3.connect(self.path)
        try:
            rows = connection.execute(
                "SELECT g.name FROM consumer_group g JOIN stream s ON s.id = g.stream WHERE s.name = 'q'"
            ).fetchall()
        finally:
            connection.close()
        return {name for (name,) in rows}

    # -- what a step does ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until everything is durable and dispatched, by waiting for a later write."""

        async def after_all() -> None:
            await self.storage.open("settle")
            await self.storage.append("settle", Frame(0, {"requestId": "s"}), priority=0, limits=Limits())
            await self.storage.truncate("settle", 1 << 62)

        self.loop.run(after_all())

    def answer(self, work: Coroutine[Any, Any, T]) -> T | str:
        """Return the answer of the step, or the name of the error with which it was refused."""
        try:
            return self.loop.run(work)
        except Exception as error:
            return type(error).__name__

    def attach(
        self, group: str, user: str, window: int, after: int, tags: dict[str, str], process: str
    ) -> int | str:
        subscription = Subscription(window, after, tags, process=process)
        return self.answer(
            self.storage.attach("q", Consumer(group, user), subscription, now=self.loop.time())
        )

    def detach(self, number: int, *, lost: bool) -> None:
        self.loop.run(self.storage.detach("q", number, lost=lost, now=self.loop.time()))

    def read(self, number: int) -> list[Lease] | str:
        """Return the items that are sent to the connection now, without waiting for more."""

        async def now() -> list[Lease]:
            task = asyncio.ensure_future(self.storage.lease("q", number, index_only=False))
            for _ in range(3):
                await asyncio.sleep(0)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait({task})
            return []

        return self.answer(now())


class OnRedis(Engine):
    """The engine on a Redis that was emptied, by the clock of the test."""

    def __init__(self, loop: Loop, backoff_s: float, url: str) -> None:
        self.url = url
        with redis.Redis.from_url(url) as client:
            client.flushall()
        super().__init__(loop, backoff_s, None)

    def storage_of(self) -> Storage:
        redis_client = RedisClient(parse_redis_url(self.url))
        self.redis_storage = RedisStorage(redis_client, self.timing, clock=self.loop.time, lease_s=LEASE_S)
        return self.redis_storage

    def settle(self) -> None:
        """Run the timers that are due: they need a running loop."""
        for stream in ("q", "q/sink", "q#rear"):
            self.loop.run(self.redis_storage.check(stream))

    def read(self, number: int) -> list[Lease] | str:
        answer = self.answer(self.redis_storage.fetch("q", number, index_only=False))
        return [] if answer is None else answer
