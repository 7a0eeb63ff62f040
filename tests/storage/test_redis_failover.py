"""The link through Sentinels and over a Cluster: it calls whoever is the primary now."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from easq.errors import StorageError, Unavailable
from easq.storage.redis import Link
from easq.storage.redis_primaries import Primary, slot_table
from easq.storage.redis_url import parse_redis_url
from tests.support.redis import RedisServer, find_redis

SCRIPTS = {
    "add": "return redis.call('INCRBY', KEYS[1], ARGV[1])",
    "tell": "return redis.call('SPUBLISH', KEYS[1], 'x')",
}
#: a Sentinel that was not scheduled in time trusts its clock again after 30 s
PATIENCE_S = 90.0


class Sentinel(RedisServer):
    """Watches over `primary` under the name `main`, alone."""

    def __init__(self, folder: Path, primary: RedisServer) -> None:
        super().__init__(folder)
        self._primary = primary

    def _configuration(self) -> str:
        return (
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\nlogfile {self.log}\n"
            f"sentinel monitor main 127.0.0.1 {self._primary.port} 1\n"
            "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
        )

    def _launch(self, command: list[str]) -> bool:
        return super()._launch([*command, "--sentinel"])


@pytest.fixture
def servers() -> Iterator[Callable[[RedisServer], RedisServer]]:
    """Starts what it is given; all are gone in the end."""
    started: list[RedisServer] = []

    def start(server: RedisServer) -> RedisServer:
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def until_answered(link: Link, key: str) -> object:
    """The reply of the first `add` of 1 that has one."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await link.call("add", [key], [1])
            except (Unavailable, StorageError):
                await asyncio.sleep(0.05)


def test_slots_lead_to_their_primaries() -> None:
    """First and last are in, and what nobody has is nobody's."""
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
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        link = Link(parse_redis_url(url), wait_replicas=1, source=SCRIPTS.__getitem__)
        await until(lambda: "'online'" in str(primary.ask("INFO", "replication")))
        await until(lambda: bool(sentinel.ask("SENTINEL", "REPLICAS", "main")))
        await link.connect(prepare)
        try:
            assert await link.call("add", ["{q}n"], [41]) == 41
            primary.kill()
            await until(lambda: "'role': 'master'" in str(replica.ask("INFO", "replication")))
            await until(link.is_up)
            assert prepared == [False, True]
            assert replica.ask("GET", "{q}n") == b"41"
            with pytest.raises(StorageError, match="0 of 1 replicas"):
                await link.call("add", ["{q}n"], [1])
        finally:
            await link.close()

    asyncio.run(run())


def test_sentinels_that_know_no_such_service(
    tmp_path: Path, servers: Callable[[RedisServer], RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start says so, after it has waited for an election."""
    monkeypatch.setattr("easq.storage.redis.START_S", 0.5)
    primary = servers(RedisServer(tmp_path / "a"))
    sentinel = servers(Sentinel(tmp_path / "s", primary))

    async def nothing(_: bool) -> None:
        pass

    link = Link(
        parse_redis_url(f"redis+sentinel://127.0.0.1:{sentinel.port}/other"), source=SCRIPTS.__getitem__
    )
    with pytest.raises(StorageError, match="they know no service 'other'"):
        asyncio.run(link.connect(nothing))


@pytest.mark.long
def test_a_cluster_of_three(tmp_path: Path, servers: Callable[[RedisServer], RedisServer]) -> None:
    """Calls go to the node of their slot, also after it moved; what is published there is heard."""
    nodes = [
        servers(RedisServer(tmp_path / name, cluster_enabled="yes", cluster_node_timeout="3000"))
        for name in "abc"
    ]
    subprocess.run(
        [
            find_redis("redis-cli"),
            "--cluster",
            "create",
            *(f"127.0.0.1:{node.port}" for node in nodes),
            "--cluster-yes",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )
    prepared: list[bool] = []
    heard: list[bytes] = []

    async def prepare(changed: bool) -> None:
        prepared.append(changed)

    async def run() -> None:
        link = Link(parse_redis_url(f"redis+cluster://127.0.0.1:{nodes[0].port}"), source=SCRIPTS.__getitem__)
        await link.connect(prepare)
        try:
            keys = [f"{{q{number}}}:n" for number in range(30)]
            assert await asyncio.gather(*(link.call("add", [key], [1]) for key in keys)) == [1] * 30
            assert all(node.ask("DBSIZE") for node in nodes)
            await link.listen("{q0}:hint", heard.append)
            await link.call("tell", ["{q0}:hint"], [])
            await until(lambda: heard == [b"x"])
            await asyncio.to_thread(_move, keys[0], nodes)
            assert await until_answered(link, keys[0]) == 2
            assert prepared[0] is False
            assert prepared[-1] is True
        finally:
            await link.close()

    asyncio.run(run())


def _move(key: str, nodes: list[RedisServer]) -> None:
    """The slot of the key, and the key, are at another node."""
    slot = int(str(nodes[0].ask("CLUSTER", "KEYSLOT", key)))
    (source,) = (node for node in nodes if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot))
    target = next(node for node in nodes if node is not source)
    source_id, target_id = (_text(node.ask("CLUSTER", "MYID")) for node in (source, target))
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    for node in (target, source, *nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)


def _text(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
