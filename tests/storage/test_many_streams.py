"""Hundreds of queues on one Redis: cost of a start, cost while idle, and cancelling a start."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import redis

from easq.model import Consumer, Frame
from easq.server.queue import Clock, QueuePolicy
from easq.server.queues import Queues
from easq.storage.base import Limits, Selection, Subscription
from easq.storage.redis import heartbeat
from easq.storage.redis.client import RedisClient
from easq.storage.redis.connection import PipelinedConnection, ScriptCall
from easq.storage.redis.engine import RedisStorage
from easq.storage.redis.url import parse_redis_url
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

QUEUES = 200
PATIENCE_S = 60.0
many = pytest.mark.parametrize("queues", [50, pytest.param(QUEUES, marks=pytest.mark.long)])


class Counted:
    """Counts the calls of scripts, and the round trips that they took."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.rounds = 0
        exchange = PipelinedConnection._exchange

        async def counted(connection: PipelinedConnection, batch: Sequence[ScriptCall]) -> None:
            self.rounds += 1
            self.calls.update(call.script for call in batch)
            await exchange(connection, batch)

        patch.setattr(PipelinedConnection, "_exchange", counted)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are counted here, not timed: let none be refused because the machine is slow."""
    monkeypatch.setattr("easq.storage.redis.client.DEADLINE_S", PATIENCE_S)
    monkeypatch.setattr("easq.storage.redis.connection.DEADLINE_S", PATIENCE_S)


@asynccontextmanager
async def opened(url: str, queues: int, *, lease_s: float = 5.0) -> AsyncIterator[RedisStorage]:
    """Open `queues` queues on an engine, and close it at the end: each has a sink, and both have a rear store."""
    storage = RedisStorage(RedisClient(parse_redis_url(url)), lease_s=lease_s)
    try:
        await storage.start(lambda _: None)
        names = [f"q{number}" for number in range(queues)]
        clock = Clock(asyncio.get_running_loop().time, lambda: 0)
        await Queues(storage, names, policy=QueuePolicy(), sink_policy=QueuePolicy(), clock=clock).open()
        yield storage
    finally:
        await storage.close()


@many
def test_a_start_takes_few_round_trips(redis_url: str, monkeypatch: pytest.MonkeyPatch, queues: int) -> None:
    """However many queues there are."""
    counted = Counted(monkeypatch)

    async def run() -> None:
        async with opened(redis_url, queues):
            begun, calls = counted.rounds, counted.calls.total()
        assert begun < 60
        assert calls < 3 * 4 * queues + 20
        # nothing of this server is there that it would have to give up
        assert counted.calls.total() - calls < 20

    asyncio.run(run())


@many
def test_queues_without_anything_going_on_cost_next_to_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, queues: int
) -> None:
    counted = Counted(monkeypatch)

    async def run() -> None:
        async with opened(redis_url, queues):
            async with asyncio.timeout(PATIENCE_S):
                while counted.calls["tick"] < 4 * queues:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
            before = counted.calls.total()
            await asyncio.sleep(1.2)
            assert counted.calls.total() - before < 50

    asyncio.run(run())


def test_the_end_of_a_server_is_noticed_where_nobody_else_looked(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items of its consumers are ready again, and its claims are released."""
    monkeypatch.setattr(heartbeat, "_IDLE_CHECKS", 0)

    async def run() -> None:
        async with opened(redis_url, 20, lease_s=1.0) as other:
            redis_client = RedisClient(parse_redis_url(redis_url))
            ending = RedisStorage(redis_client, lease_s=1.0)
            await ending.start(lambda _: None)
            for stream in ("q7", "q11"):
                await ending.open(stream)
                for _ in range(2):
                    await ending.append(
                        stream, Frame(0, {"requestId": "r"}, b"x"), priority=0, limits=Limits()
                    )
            # longer than it takes that all that is started has looked
            await asyncio.sleep(0.5)
            number = await ending.attach("q7", Consumer("g", "u"), Subscription(1), now=0.0)
            assert await ending.lease("q7", number, index_only=True)
            assert len(await ending.take("q11", Selection(0), minimum=1)) == 1
            with redis.Redis.from_url(redis_url) as client:
                assert (client.hlen("easq:{q7}:who"), client.hlen("easq:{q11}:claims")) == (1, 1)
                await redis_client.close()
                async with asyncio.timeout(PATIENCE_S):
                    while client.hlen("easq:{q7}:who") or client.hlen("easq:{q11}:claims"):
                        await asyncio.sleep(0.05)
            assert len(await other.read("q11", Selection(0, length=9))) == 2

    asyncio.run(run())


class Slow(Proxy):
    """Forwards received data after a delay."""

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(0.1)
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start(redis_server: RedisServer, redis_url: str, number: signal.Signals) -> None:
    """At once, however many queues are opened already."""
    queues = [option for name in range(QUEUES) for option in ("--queue", f"q{name}")]
    with Slow(redis_server.port) as proxy, redis.Redis.from_url(redis_url) as client:
        storage = f"redis://127.0.0.1:{proxy.port}"
        process = subprocess.Popen(
            [sys.executable, "-m", "easq", "serve", "--port", "0", "--storage", storage, *queues],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            eventually(lambda: client.scard("easq:streams") >= 20)
            process.send_signal(number)
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert out == b""
    assert process.returncode == 128 + number
