"""The link to Redis, against real servers: what a call promises whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from easq.errors import EasqError, Unavailable
from easq.storage.redis import Link
from easq.storage.redis_url import parse_redis_url
from tests.support.redis import RedisServer

#: scripts of these tests, as `easq.storage.scripts` gives them
SCRIPTS = {
    "echo": "return ARGV",
    "add": "return redis.call('INCRBY', KEYS[1], ARGV[1])",
}


async def nothing(_: bool) -> None:
    """No preparation."""


class Linked:
    """A link to a server that is closed when the block is left."""

    def __init__(
        self, url: str, prepare: Callable[[bool], Awaitable[None]] = nothing, wait_replicas: int = 0
    ) -> None:
        self.link = Link(parse_redis_url(url), wait_replicas=wait_replicas, source=SCRIPTS.__getitem__)
        self._prepare = prepare

    async def __aenter__(self) -> Link:
        await self.link.connect(self._prepare)
        return self.link

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that is there."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_replies_are_what_the_script_returned(server: RedisServer) -> None:
    """Text, bytes and numbers go in as they are; bytes, numbers and lists come out."""

    async def run() -> None:
        async with Linked(server.url) as link:
            assert await link.call("echo", ["{q}a"], ["ü", b"\x00\xff", 7]) == [
                "ü".encode(),
                b"\x00\xff",
                b"7",
            ]
            assert await link.call("add", ["{q}n"], [5]) == 5
            assert link.durability == "redis-fsync"
            assert link.is_up()

    asyncio.run(run())


def test_calls_of_one_moment_share_a_round_trip(server: RedisServer) -> None:
    """A hundred calls at once are run in order, once each; their replies are their own."""

    async def run() -> None:
        async with Linked(server.url) as link:
            replies = await asyncio.gather(*(link.call("add", ["{q}n"], [1]) for _ in range(100)))
            assert replies == list(range(1, 101))

    asyncio.run(run())


def test_scripts_that_were_flushed_are_loaded_again(server: RedisServer) -> None:
    """SCRIPT FLUSH goes unnoticed, and nothing is run twice."""

    async def run() -> None:
        async with Linked(server.url) as link:
            assert await link.call("add", ["{q}n"], [1]) == 1
            server.ask("SCRIPT", "FLUSH")
            assert await asyncio.gather(*(link.call("add", ["{q}n"], [1]) for _ in range(3))) == [2, 3, 4]

    asyncio.run(run())


def test_a_server_that_was_killed_is_found_again(server: RedisServer) -> None:
    """While it is away calls are certainly not done; then the link prepares anew and calls go through."""
    prepared: list[bool] = []

    async def prepare(changed: bool) -> None:
        prepared.append(changed)

    async def run() -> None:
        async with Linked(server.url, prepare) as link:
            await link.call("add", ["{q}n"], [1])
            server.kill()
            await until(lambda: not link.is_up())
            with pytest.raises(Unavailable):
                await link.call("add", ["{q}n"], [1])
            server.start()
            await until(link.is_up)
            assert await link.call("add", ["{q}n"], [1]) == 2
        assert prepared == [False, True]

    asyncio.run(run())


def test_only_what_prepares_goes_through_before_it_is_done(server: RedisServer) -> None:
    """A call that waits for the connection comes after those of `prepare`."""

    async def prepare(changed: bool) -> None:
        if changed:
            await link.call("add", ["{q}n"], [100])
            await asyncio.sleep(0.1)
            await link.call("add", ["{q}n"], [100])

    async def run() -> None:
        async with Linked(server.url, prepare) as connected:
            nonlocal link
            link = connected
            server.restart()
            await until(lambda: not link.is_up())
            assert await link.call("add", ["{q}n"], [1]) == 201

    link: Link
    asyncio.run(run())


def test_no_redis_at_the_address(tmp_path: Path) -> None:
    """A start says which address, and what to do."""
    server = RedisServer(tmp_path)
    server.start()
    server.kill()

    async def run() -> None:
        async with Linked(server.url):
            pass

    with pytest.raises(EasqError) as caught:
        asyncio.run(run())
    assert f"127.0.0.1:{server.port}" in caught.value.message
    assert caught.value.hint
