"""Several servers on one Redis, in the test's own process, with a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from easq.storage.base import Timing
from easq.storage.redis.client import RedisClient
from easq.storage.redis.engine import RedisStorage
from easq.storage.redis.url import parse_redis_url
from tests.storage.conftest import TIMING, Engine

#: a server counts as alive so long by the tests' clock; by the real one nothing lapses during a test
LEASE_S = 1000.0


class Moment:
    """The clock that all servers of a test share; only the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Server(Engine):
    """One server's engine, with the stream `q`."""

    def __init__(self, url: str, clock: Callable[[], float] | None, timing: Timing = TIMING) -> None:
        self.redis = RedisClient(parse_redis_url(url))
        self.redis_storage = RedisStorage(self.redis, timing, clock=clock, lease_s=LEASE_S)
        self.storage = self.redis_storage
        self.failures: list[Exception] = []

    async def die(self) -> None:
        """End the server without closing anything."""
        await self.redis.close()


@asynccontextmanager
async def servers(
    url: str, count: int = 2, clock: Callable[[], float] | None = None, timing: Timing = TIMING
) -> AsyncIterator[list[Server]]:
    """`count` servers on one Redis."""
    started = [Server(url, clock, timing) for _ in range(count)]
    for server in started:
        await server.start()
    try:
        yield started
    finally:
        for server in started:
            await server.storage.close()


async def lapse(clock: Moment, looking: Server) -> None:
    """Let time pass until the lease of a silent server has expired; `looking` checks meanwhile."""
    for part in (0.0, 0.4, 0.4, 0.201):
        clock.now += part * LEASE_S
        await looking.redis_storage.check("q")


def run(body: Awaitable[Any]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(30):
            return await body

    return asyncio.run(main())
