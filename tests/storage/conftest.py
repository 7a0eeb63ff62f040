"""Every embedded engine, on its own event loop with a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from easq.model import Consumer, Frame, Tags
from easq.protocol.operations import Negative
from easq.storage.base import Limits, Selection, Storage, Subscription, Timing
from easq.storage.open import open_storage
from easq.storage.sqlite.engine import SqliteStorage

#: the timing of the suite: long enough that nothing lapses by itself during a test
TIMING = Timing(leave_grace_s=2.0, group_retention_s=60.0)
NO_LIMITS = Limits()


class Engine:
    """An engine with one open stream `q`, and short names for its verbs."""

    def __init__(self, url: str, timing: Timing = TIMING, durability: str = "fsync") -> None:
        self.url = url
        self.timing = timing
        self.durability = durability
        self.storage: Storage = open_storage(url, durability=durability, timing=timing)
        self.failures: list[Exception] = []

    async def start(self) -> None:
        await self.storage.start(self.failures.append)
        await self.storage.open("q")

    async def restart(self) -> None:
        """Close the engine, and start it again on the stored data."""
        await self.storage.close()
        self.storage = open_storage(self.url, timing=self.timing)
        await self.start()

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def put(
        self, data: bytes = b"x", *, priority: int = 0, limits: Limits = NO_LIMITS, **tags: str
    ) -> int:
        tags.setdefault("requestId", f"r-{data.decode('latin-1')}")
        appended = await self.storage.append("q", Frame(0, tags, data), priority=priority, limits=limits)
        return appended.index

    async def indexes(self, start: int = 0, length: int = 1000, tags: Tags | None = None) -> list[int]:
        frames = await self.storage.read("q", Selection(start, tags or {}, length))
        return [frame.index for frame in frames]

    async def attach(
        self,
        user: str = "u",
        group: str = "g",
        *,
        window: int = 10,
        after: int = 0,
        tags: Tags | None = None,
        process: str = "",
    ) -> int:
        subscription = Subscription(window, after, tags or {}, process=process)
        return await self.storage.attach("q", Consumer(group, user), subscription, now=self.now)

    async def detach(self, session: int, *, lost: bool = False, after_s: float = 0.0) -> None:
        await self.storage.detach("q", session, lost=lost, now=self.now + after_s)

    async def leased(self, session: int, at_least: int = 1) -> list[int]:
        """Return the indexes leased to the session, once there are at least `at_least`."""
        found: list[int] = []
        async with asyncio.timeout(10):
            while len(found) < at_least:
                leases = await self.storage.lease("q", session, index_only=False)
                found += [lease.frame.index for lease in leases]
        return found

    async def has_nothing_for(self, session: int) -> bool:
        """Return whether nothing is leased to the session once everything under way is done."""
        task = asyncio.ensure_future(self.storage.lease("q", session, index_only=False))
        await self.settle()
        done = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return not done

    async def settle(self) -> None:
        """Wait until all changes so far are durable and dispatched: a later write is."""
        await self.storage.open("settle")
        await self.storage.append("settle", Frame(0, {"requestId": "s"}, b""), priority=0, limits=NO_LIMITS)
        await asyncio.sleep(0)

    async def commit(self, *indexes: int, group: str = "g") -> int:
        return await self.storage.commit("q", group, indexes)

    async def negative(
        self,
        *indexes: int,
        group: str = "g",
        code: str = "",
        at_s: float = 0.0,
        delay_s: float | None = None,
    ) -> int:
        now = self.now + at_s
        return await self.storage.negative("q", group, Negative(tuple(indexes), code, "", delay_s), now=now)

    async def length(self) -> int:
        return (await self.storage.attributes("q", now=self.now)).length


def start(path: Path, *, recover: bool = False) -> None:
    """A service starts on the data file, and ends."""

    async def main() -> None:
        storage = SqliteStorage(path, recover=recover)
        await storage.start(lambda _: None)
        await storage.close()

    asyncio.run(main())


@pytest.fixture(params=["memory", "sqlite", "redis"])
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'data' / 'easq.db'}"


@pytest.fixture
def run(engine_url: str) -> Callable[[Callable[[Engine], Awaitable[Any]]], Any]:
    """Runs an async test body with a started engine."""
    return lambda body: run_on(engine_url, body)


@pytest.fixture
def run_sqlite(tmp_path: Path) -> Callable[[Callable[[Engine], Awaitable[Any]]], Any]:
    """The same for the durable engine."""
    return lambda body: run_on(f"sqlite:{tmp_path / 'easq.db'}", body)


def run_on(url: str, body: Callable[[Engine], Awaitable[Any]], timing: Timing = TIMING) -> Any:
    async def main() -> Any:
        engine = Engine(url, timing)
        await engine.start()
        try:
            return await body(engine)
        finally:
            await engine.storage.close()
            assert engine.failures == []

    return asyncio.run(main())
