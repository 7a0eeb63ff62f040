"""The client through Sentinels and on a Cluster: it calls the present primary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from easq.errors import StorageError, Unavailable
from easq.storage.redis.client import RedisClient
from easq.storage.redis.topology import Primary, slot_table
from easq.storage.redis.url import parse_redis_url
from tests.support.cluster import SHARDS, RedisCluster
from tests.support.redis import RedisServer, Sentinel

SCRIPTS = {
    "add": "return redis.call('INCRBY', KEYS[1], ARGV[1])",
    "tell": "return redis.call('SPUBLISH', KEYS[1], 'x')",
}
PATIENCE_S = Sentinel.SETTLED_S


@pytest.fixture
def servers() -> Iterator[Callable[[RedisServer], RedisServer]]:
    """Start servers; all are stopped at the end of the test."""
    started: list[RedisServer] = []

    def start(server: RedisServer) -> RedisServer:
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    made = RedisCluster(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def until_taken(redis_client: RedisClient, key: str) -> object:
    """The reply to the first `add` of 1 that is not certainly refused."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await redis_client.call("add", [key], [1])
            except Unavailable:
                await asyncio.sleep(0.05)


def test_slots_lead_to_their_primaries() -> None:
    """The first and last slot of a range belong to it; a slot without a primary has none."""
    table = slot_table([Primary("a", 1, ((0, 1), (5, 5))), Primary("b", 1, ((2, 3),))])
    assert table[:7] == [0, 0, 1, 1, -1, 0, -1]
    assert len(table) == 16_384


@pytest.mark.long
def test_a_replica_that_was_promoted_is_called(
    tmp_path: Path, servers: Callable[[RedisServer], RedisServer]
) -> None:
    """The primary is killed: Sentinel names another, which has all that was answered, and it is another one."""
    primary = servers(RedisServer(tmp_path / "a"))
    replica = servers(RedisServer(tmp_path / "b", replicaof=f"127.0.0.1 {primary.port}"))
    sentinel = servers(Sentinel(tmp_path / "s", primary))
    prepared: list[bool] = []

    async def prepare(changed: bool) -> None:
        prepared.append(changed)

    async def run() -> None:
        redis_client = RedisClient(parse_redis_url(sentinel.url), wait_replicas=1, source=SCRIPTS.__getitem__)
        await until(lambda: replica.follows(primary) and sentinel.knows(replica))
        await redis_client.connect(prepare)
        try:
            assert await redis_client.call("add", ["{q}n"], [41]) == 41
            primary.kill()
            await until(lambda: sentinel.has_settled_on(replica))
            await until(redis_client.is_up)
            assert (prepared[0], prepared[-1]) == (False, True)
            assert replica.ask("GET", "{q}n") == b"41"
            with pytest.raises(Unavailable, match="fewer replicas than the 1"):
                await redis_client.call("add", ["{q}n"], [1])
            assert replica.ask("GET", "{q}n") == b"41"
        finally:
            await redis_client.close()

    asyncio.run(run())


def test_sentinels_that_know_no_such_service(
    tmp_path: Path, servers: Callable[[RedisServer], RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start says so, after it has waited for an election."""
    monkeypatch.setattr("easq.storage.redis.client.START_S", 0.5)
    primary = servers(RedisServer(tmp_path / "a"))
    sentinel = servers(Sentinel(tmp_path / "s", primary))

    async def nothing(_: bool) -> None:
        pass

    redis_client = RedisClient(
        parse_redis_url(f"redis+sentinel://127.0.0.1:{sentinel.port}/other"), source=SCRIPTS.__getitem__
    )
    with pytest.raises(StorageError, match="they know no service 'other'"):
        asyncio.run(redis_client.connect(nothing))


@pytest.mark.long
def test_a_cluster_of_three(cluster: RedisCluster) -> None:
    """Calls go to the node of their slot, also after it moved; what is published there is heard."""
    prepared: list[bool] = []
    heard: list[bytes] = []

    async def prepare(changed: bool) -> None:
        prepared.append(changed)

    async def run() -> None:
        redis_client = RedisClient(parse_redis_url(cluster.url), source=SCRIPTS.__getitem__)
        await redis_client.connect(prepare)
        try:
            keys = [f"{{q{number}}}:n" for number in range(30)]
            assert await asyncio.gather(*(redis_client.call("add", [key], [1]) for key in keys)) == [1] * 30
            await until(lambda: all(node.ask("DBSIZE") for node in cluster.nodes))  # replicas follow
            await redis_client.listen("{q0}:hint", heard.append)
            await redis_client.call("tell", ["{q0}:hint"], [])
            await until(lambda: heard == [b"x"])
            source = cluster.primary_of(keys[0])
            target = next(node for node in cluster.nodes[:SHARDS] if node is not source)
            await asyncio.to_thread(cluster.move, keys[0], target)
            assert await until_taken(redis_client, keys[0]) == 2
            assert prepared[0] is False
            assert prepared[-1] is True
        finally:
            await redis_client.close()

    asyncio.run(run())
