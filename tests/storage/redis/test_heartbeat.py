"""The heartbeat of a server at Redis, when connections break, and when Redis is full or was replaced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from easq.errors import QueueFull, StorageError, Unavailable
from easq.model import Frame
from easq.storage.base import DeadLetterPolicy, Selection
from easq.storage.redis import stream
from easq.storage.redis.client import RedisClient
from easq.storage.redis.engine import RedisStorage
from easq.storage.redis.heartbeat import Heartbeat
from easq.storage.redis.url import parse_redis_url
from tests.conftest import MakeRedis
from tests.storage.conftest import NO_LIMITS
from tests.storage.servers import Moment, Server, lapse, run, servers


async def until_up(*engines: Server) -> None:
    """Wait until calls succeed."""
    async with asyncio.timeout(10):
        while not all(engine.redis.is_up() for engine in engines):
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


def test_a_start_that_fails_leaves_no_connection(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is connected, and then does not take the lease of the server."""
    server = make_redis()

    async def fail(_: Heartbeat) -> None:
        raise Unavailable("Redis is away")

    monkeypatch.setattr(Heartbeat, "_renew_lease", fail)

    async def body() -> None:
        storage = RedisStorage(RedisClient(parse_redis_url(server.url)))
        with pytest.raises(Unavailable):
            await storage.start(lambda _: None)
        async with asyncio.timeout(10):
            while len(server.client_list()) > 1:
                await asyncio.sleep(0.01)

    run(body())


async def take(engine: Server, length: int = 1) -> list[int]:
    frames = await engine.storage.take("q", Selection(0, length=length), minimum=length)
    return [frame.index for frame in frames]


def test_many_looks_at_once_end_what_is_owed(make_redis: MakeRedis) -> None:
    """After an absence of Redis each watcher's fetch looks, beside the look of each second."""
    server = make_redis()

    async def body() -> None:
        async with servers(server.url) as (one, other):
            for _ in range(2):
                await one.put()
            assert await take(one, 2) == [1, 2]
            await asyncio.to_thread(server.kill)
            await one.storage.settle("q", [1])
            await one.storage.release("q", [2])
            await asyncio.to_thread(server.start)
            await until_up(one, other)
            await asyncio.gather(*(one.redis_storage.check("q") for _ in range(3)))
            assert await other.indexes() == [2]

    run(body())


def test_a_release_that_is_repeated_ends_no_later_claim(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the call was lost; when the call is repeated, another caller has claimed the item."""

    async def body() -> None:
        async with servers(redis_url) as (one, other):
            await one.put()
            assert await take(one) == [1]
            heard = one.redis.call

            async def deaf(*args: Any, **kwargs: Any) -> Any:
                await heard(*args, **kwargs)
                raise StorageError("the connection broke")

            monkeypatch.setattr(one.redis, "call", deaf)
            await one.storage.release("q", [1])
            monkeypatch.undo()
            assert await take(one) == [1]
            await one.redis_storage.check("q")
            assert await take(other) == []
            await one.storage.settle("q", [1])
            assert await other.length() == 0

    run(body())


def test_a_server_that_stops_settles_what_it_owes_before_it_gives_its_claims_up(
    make_redis: MakeRedis,
) -> None:
    """A client has the item: it does not come again."""
    server = make_redis()

    async def body() -> None:
        async with servers(server.url) as (one, other):
            await one.put()
            assert await take(one) == [1]
            await asyncio.to_thread(server.kill)
            await one.storage.settle("q", [1])
            await asyncio.to_thread(server.start)
            await until_up(one, other)
            await one.storage.close()
            assert await other.indexes() == []
            assert await other.length() == 0

    run(body())


def test_a_claim_whose_end_a_fail_over_took_back_ends_again(redis_url: str) -> None:
    """The promoted replica has the claim, and not its end; nobody would ever end it while the server lives."""

    async def body() -> None:
        async with servers(redis_url) as (one, other):
            await one.put()
            await one.put()
            assert await take(one) == [1]
            with redis.Redis.from_url(redis_url) as client:
                before = {key: client.dump(key) for key in client.scan_iter("easq:{q}:*")}
                await one.storage.settle("q", [1])
                for key, value in before.items():
                    client.restore(key, 0, value, replace=True)
            assert await take(one) == [2]
            await one.redis_storage.check("q")
            assert await other.indexes() == [1]
            await one.storage.release("q", [2])
            assert await other.indexes() == [1, 2]

    run(body())


def test_one_look_gives_up_all_connections_that_were_lost_meanwhile(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the server's next look, by which it is known to be alive, does not wait for thousands of round trips."""
    many = 50

    async def body() -> None:
        async with servers(redis_url, 1) as (engine,):
            sessions = [await engine.attach(f"u{number}") for number in range(many)]
            heard = engine.redis.call
            begun = 0
            all_begun = asyncio.Event()

            async def away(*_: Any, **__: Any) -> Any:
                raise Unavailable("Redis is away")

            async def back(script: str, *args: Any, **kwargs: Any) -> Any:
                nonlocal begun
                if script == "detach":
                    begun += 1
                    if begun == many:
                        all_begun.set()
                    await all_begun.wait()
                return await heard(script, *args, **kwargs)

            monkeypatch.setattr(engine.redis, "call", away)
            for session in sessions:
                with pytest.raises(Unavailable):
                    await engine.detach(session, lost=True)
            monkeypatch.setattr(engine.redis, "call", back)
            await engine.redis_storage.check("q")
            assert await engine.storage.sessions("q") == {}
            monkeypatch.undo()

    run(body())


def test_a_stream_that_is_being_opened_is_opened_at_the_next_redis_too(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is started anew before the server that opens the stream has finished: no index is given twice."""
    redis_server = make_redis()

    async def body() -> None:
        async with servers(redis_server.url, 1) as (gone,):
            assert await gone.put() == 1
        late = Server(redis_server.url, None)
        await late.storage.start(late.failures.append)
        heard = late.redis.call

        async def call(script: str, *args: Any, **kwargs: Any) -> Any:
            if script == "streams":
                monkeypatch.undo()
                await asyncio.to_thread(redis_server.restart)
                await until_up(late)
            return await heard(script, *args, **kwargs)

        monkeypatch.setattr(late.redis, "call", call)
        await late.storage.open("q")
        assert await late.put() == 1 + stream.RAISE + 1
        await late.storage.close()

    run(body())


def test_a_check_does_not_wait_for_the_dead_letters_that_are_due(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While thousands of items are, this server's time would be over too."""
    clock = Moment()
    dead_letters = DeadLetterPolicy(1, "q#rear", NO_LIMITS, lambda frame, _: Frame(0, frame.tags, frame.data))

    async def body() -> None:
        alive = Server(redis_url, clock)
        await alive.storage.start(alive.failures.append)
        await alive.storage.open("q#rear")
        await alive.storage.open("q", dead_letters)
        await alive.put()
        session = await alive.attach(process="p")
        assert await alive.leased(session) == [1]
        await alive.detach(session, lost=True)
        heard = alive.redis.call
        may_go_on = asyncio.Event()

        async def slow(script: str, *args: Any, **kwargs: Any) -> Any:
            if script == "dead_letter":
                await may_go_on.wait()
            return await heard(script, *args, **kwargs)

        monkeypatch.setattr(alive.redis, "call", slow)
        await lapse(clock, alive)
        assert await alive.length() == 1
        may_go_on.set()
        while await alive.length() > 0:
            await asyncio.sleep(0.01)
        assert len(await alive.storage.read("q#rear", Selection(0, length=9))) == 1
        await alive.storage.close()

    run(body())


def test_a_look_that_fails_by_a_mistake_is_not_the_last(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged, and the server stays alive."""

    async def body() -> None:
        redis_client = RedisClient(parse_redis_url(redis_url))
        engine = RedisStorage(redis_client, lease_s=0.2)
        await engine.start(lambda _: None)
        await engine.open("q")
        heard = redis_client.call
        ticks = 0

        async def mistaken(script: str, *args: Any, **kwargs: Any) -> Any:
            nonlocal ticks
            ticks += script == "tick"
            if script == "tick" and ticks == 1:
                raise RuntimeError("a mistake")
            return await heard(script, *args, **kwargs)

        monkeypatch.setattr(redis_client, "call", mistaken)
        while ticks < 3:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        await engine.close()

    run(body())
    assert "RuntimeError: a mistake" in caplog.text
