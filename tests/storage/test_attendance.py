"""What a server does at Redis besides its callers' verbs, when connections break and Redis is full or another one."""

from __future__ import annotations

import asyncio

import pytest

from easq.errors import QueueFull
from tests.conftest import MakeRedis
from tests.storage.servers import Server, run, servers


async def until_up(*engines: Server) -> None:
    """Calls go through."""
    async with asyncio.timeout(10):
        while not all(engine.link.is_up() for engine in engines):
            await asyncio.sleep(0.01)


def test_at_maxmemory_commits_work_after_a_new_connection_and_at_a_new_server(make_redis: MakeRedis) -> None:
    """Otherwise nobody could make room."""
    server = make_redis()

    async def body() -> None:
        async with servers(server.url, 1) as (engine,):
            await engine.put()
            await engine.put()
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(QueueFull):
                await engine.put()
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.05)
            await until_up(engine)
            assert await engine.commit(1) == 1
            async with servers(server.url, 1) as (late,):
                assert await late.commit(2) == 1

    run(body())
