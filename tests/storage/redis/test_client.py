"""The Redis client, against real servers: the outcome of each call when connections are lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import pytest

from easq.errors import QueueFull, StorageError, Unavailable, UsageError
from easq.model import Frame
from easq.storage.base import Limits, Selection
from easq.storage.open import open_client
from easq.storage.redis import client, connection
from easq.storage.redis.client import RedisClient
from easq.storage.redis.driver import RedisConnection
from easq.storage.redis.engine import RedisStorage
from easq.storage.redis.url import parse_redis_url
from tests.conftest import MakeRedis
from tests.support.cluster import join
from tests.support.redis import RedisServer, free_port
from tests.support.waiting import eventually

#: scripts of these tests, as `easq.storage.redis.scripts` gives them
SCRIPTS = {
    "echo": "return ARGV",
    "add": "return redis.call('INCRBY', KEYS[1], ARGV[1])",
    "set": "redis.call('SET', KEYS[1], ARGV[1]) return 1",
    "spin": "while true do end",
    "work": """
        local function us() local time = redis.call('TIME') return time[1] * 1e6 + time[2] end
        local over = us() + 5000
        while us() < over do end
        return 1
    """,
    "tell": "return redis.call('PUBLISH', ARGV[1], ARGV[2])",
    "stell": "return redis.call('SPUBLISH', ARGV[1], ARGV[2])",
    "wrong": "redis.call('SET', KEYS[1], 'x') return redis.call('INCR', KEYS[1])",
}
#: longer than any test takes
PATIENCE_S = 20.0


async def nothing(_: bool) -> None:
    """No preparation."""


class Connected:
    """A client that is connected within the block."""

    def __init__(
        self, url: str, prepare: Callable[[bool], Awaitable[None]] = nothing, *, wait_replicas: int = 0
    ) -> None:
        self.redis = RedisClient(
            parse_redis_url(url), wait_replicas=wait_replicas, source=SCRIPTS.__getitem__
        )
        self._prepare = prepare

    async def __aenter__(self) -> RedisClient:
        await self.redis.connect(self._prepare)
        return self.redis

    async def __aexit__(self, *_: object) -> None:
        await self.redis.close()


@pytest.fixture
def server(make_redis: MakeRedis) -> RedisServer:
    """A Redis with the settings of docs/redis.md."""
    return make_redis()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_answered(redis_client: RedisClient) -> object:
    """The reply of the first call that is not refused; anything but a refusal is raised."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await redis_client.call("echo", ["{q}a"], ["back"])
            except Unavailable:
                await asyncio.sleep(0.01)


async def until_refused(call: Callable[[], Awaitable[object]]) -> Exception:
    """The first error that the call, made again and again, ends with."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await call()
            except (QueueFull, StorageError, Unavailable) as error:
                return error


def replicated(make_redis: MakeRedis) -> tuple[RedisServer, RedisServer]:
    """A Redis, and its replica, which follows."""
    server = make_redis()
    replica = make_redis(replicaof=f"127.0.0.1 {server.port}")
    eventually(lambda: replica.follows(server), within_s=60)
    return server, replica


async def until_left(server: RedisServer) -> None:
    """Wait until no client but the one that asks is connected."""
    await until(lambda: len(server.client_list()) == 1)


async def interrupted(work: Coroutine[object, object, object]) -> None:
    """Begin the work, and cancel it when it waits for the first time."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def restarted(server: RedisServer, redis_client: RedisClient) -> None:
    """The server is another process, and the client has noticed."""
    await asyncio.to_thread(server.kill)
    await until(lambda: not redis_client.is_up())
    await asyncio.to_thread(server.start)


def test_replies_are_what_the_script_returned(server: RedisServer) -> None:
    """Text, bytes and numbers go in as they are; bytes, numbers and lists come out."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            assert await redis_client.call("echo", ["{q}a"], ["ü", b"\x00\r\n\xff", 7]) == [
                "ü".encode(),
                b"\x00\r\n\xff",
                b"7",
            ]
            assert await redis_client.call("echo", ["{q}a"], [b"x" * 5_000_000]) == [b"x" * 5_000_000]
            assert await redis_client.call("add", ["{q}n"], [5]) == 5
            assert redis_client.is_up()
        assert not redis_client.is_up()

    asyncio.run(run())


def test_calls_of_one_moment_share_one_round_trip(server: RedisServer) -> None:
    """A hundred calls at once are one write to the disk: appendfsync always syncs once for each turn of Redis."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            await redis_client.call("add", ["{q}n"], [0])
            with server.client() as client:
                before = client.info("stats")["total_reads_processed"]
                replies = await asyncio.gather(*(redis_client.call("add", ["{q}n"], [1]) for _ in range(100)))
                after = client.info("stats")["total_reads_processed"]
            assert replies == list(range(1, 101))
            assert (
                int(after) - int(before) <= 4
            )  # the batch, this test's own INFO, and perhaps the client's own INFO

    asyncio.run(run())


def test_scripts_that_were_flushed_are_loaded_again(server: RedisServer) -> None:
    """SCRIPT FLUSH has no visible effect, and no script runs twice."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            assert await redis_client.call("add", ["{q}n"], [1]) == 1
            server.ask("SCRIPT", "FLUSH")
            assert await asyncio.gather(*(redis_client.call("add", ["{q}n"], [1]) for _ in range(3))) == [
                2,
                3,
                4,
            ]

    asyncio.run(run())


def test_a_server_that_was_killed_is_found_again(server: RedisServer) -> None:
    """While Redis is away, calls are certainly not run. After it is back, the client prepares again and calls
    succeed.
    """
    prepared: list[bool] = []

    async def prepare(changed: bool) -> None:
        prepared.append(changed)

    async def run() -> None:
        async with Connected(server.url, prepare) as redis_client:
            await redis_client.call("add", ["{q}n"], [1])
            server.kill()
            await until(lambda: not redis_client.is_up())
            with pytest.raises(Unavailable, match="Redis is away"):
                await redis_client.call("add", ["{q}n"], [1])
            server.start()
            await until(redis_client.is_up)
            assert await redis_client.call("add", ["{q}n"], [1]) == 2
        assert prepared == [False, True]

    asyncio.run(run())


def test_a_connection_that_broke_is_no_other_primary(server: RedisServer) -> None:
    """The same server on a new connection does not count as changed."""
    prepared: list[bool] = []

    async def prepare(changed: bool) -> None:
        prepared.append(changed)

    async def run() -> None:
        async with Connected(server.url, prepare) as redis_client:
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: len(prepared) == 2)
            assert await until_answered(redis_client) == [b"back"]
        assert prepared == [False, False]

    asyncio.run(run())


def test_what_was_answered_and_what_was_not_is_told_apart(server: RedisServer) -> None:
    """Killed under load: each answered call was run, each refused one was not, and others may have been."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            answered = refused = unknown = 0

            async def add() -> None:
                nonlocal answered, refused, unknown
                for _ in range(50):
                    try:
                        await redis_client.call("add", ["{q}n"], [1])
                        answered += 1
                    except Unavailable:
                        refused += 1
                    except StorageError:
                        unknown += 1

            load = asyncio.gather(*(add() for _ in range(40)))
            await until(lambda: answered > 200)
            server.restart()
            await load
            assert await until_answered(redis_client) == [b"back"]
            assert answered + refused + unknown == 2000
            stored = int(await redis_client.call("add", ["{q}n"], [0]))
            assert answered <= stored <= answered + unknown

    asyncio.run(run())


def test_only_what_prepares_goes_through_before_it_is_done(server: RedisServer) -> None:
    """A call that waits for the connection comes after those of `prepare`."""
    connected = Connected(server.url)

    async def prepare(changed: bool) -> None:
        if changed:
            await connected.redis.call("add", ["{q}n"], [100])
            await asyncio.sleep(0.1)
            await connected.redis.call("add", ["{q}n"], [100])

    async def run() -> None:
        connected._prepare = prepare
        async with connected as redis_client:
            await restarted(server, redis_client)
            assert await redis_client.call("add", ["{q}n"], [1]) == 201

    asyncio.run(run())


def test_a_preparation_that_fails_is_done_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """No other call is sent before `prepare` has succeeded once."""
    tries = 0

    async def prepare(changed: bool) -> None:
        nonlocal tries
        if changed:
            tries += 1
            if tries < 3:
                raise StorageError("not prepared")

    async def run() -> None:
        async with Connected(server.url, prepare) as redis_client:
            await restarted(server, redis_client)
            assert await until_answered(redis_client) == [b"back"]
        assert tries == 3
        assert "not prepared" in caplog.text

    asyncio.run(run())


def test_a_preparation_ends_with_its_connection(server: RedisServer) -> None:
    """A call made inside it when the connection is gone is refused at once, so that it can be done again."""
    connected = Connected(server.url)
    seen: list[object] = []

    async def prepare(changed: bool) -> None:
        if changed and not seen:
            server.restart()
            try:
                await connected.redis.call("echo", ["{q}a"], [1])
            except (Unavailable, StorageError) as error:
                seen.append(error)
                raise

    async def run() -> None:
        connected._prepare = prepare
        async with connected as redis_client:
            await restarted(server, redis_client)
            assert await until_answered(redis_client) == [b"back"]
        assert len(seen) == 1

    asyncio.run(run())


def test_a_server_that_stands_still_is_given_up(server: RedisServer) -> None:
    """The outcome of sent calls is unknown, and later calls are refused. When Redis continues, calls succeed again."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            server.freeze()
            under_way = asyncio.ensure_future(redis_client.call("add", ["{q}n"], [1]))
            with pytest.raises(StorageError, match="did not answer within 1 s"):
                await under_way
            await until(lambda: not redis_client.is_up())
            with pytest.raises(Unavailable):
                await redis_client.call("add", ["{q}n"], [1])
            server.thaw()
            assert await until_answered(redis_client) == [b"back"]

    asyncio.run(run())


def test_a_server_that_stands_still_is_noticed_when_nothing_is_asked(server: RedisServer) -> None:
    """The client checks it each second."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            server.freeze()
            await until(lambda: not redis_client.is_up())
            server.thaw()
            await until(redis_client.is_up)

    asyncio.run(run())


def test_a_server_that_is_at_work_is_not_lost(server: RedisServer) -> None:
    """As when a thousand watchers connect at once: the batch takes longer than an answer may, and answers come."""
    many = 400

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            calls = (redis_client.call("work", [f"n{number}"], [b"x" * 1000]) for number in range(many))
            assert await asyncio.gather(*calls) == [1] * many
            assert redis_client.is_up()

    asyncio.run(run())


def test_calls_end_when_the_link_is_closed_while_a_connection_ends(make_redis: MakeRedis) -> None:
    """One node of a Cluster is gone, the other owes an answer, and the service stops."""
    patient = {"cluster_enabled": "yes", "cluster_node_timeout": "60000"}
    one, other = make_redis(**patient), make_redis(**patient)
    join(one, other, boundary=1)

    async def body() -> None:
        redis_client = RedisClient(
            parse_redis_url(f"redis+cluster://127.0.0.1:{one.port}"), source=SCRIPTS.__getitem__
        )
        await redis_client.connect(nothing)
        assert await redis_client.call("add", ["n"], [1]) == 1
        other.freeze()
        sent = asyncio.ensure_future(redis_client.call("add", ["n"], [1]))
        await asyncio.sleep(0.1)
        waits = asyncio.ensure_future(redis_client.call("add", ["n"], [1]))
        await asyncio.to_thread(one.kill)
        await until(lambda: not redis_client.is_up())
        await redis_client.close()
        async with asyncio.timeout(5):
            assert [type(error) for error in await asyncio.gather(sent, waits, return_exceptions=True)] == [
                StorageError,
                Unavailable,
            ]

    try:
        asyncio.run(body())
    finally:
        other.thaw()


def test_a_connection_is_closed_also_when_its_close_is_cancelled(server: RedisServer) -> None:
    """As those to Sentinels are when the service stops while it asks them."""
    url = parse_redis_url(server.url)

    async def body() -> None:
        opened = connection.PipelinedConnection(
            RedisConnection(url, *url.nodes[0], connect_timeout_s=PATIENCE_S), "redis"
        )
        await opened.open()
        await interrupted(opened.close())
        await until_left(server)

    asyncio.run(body())


def test_all_connections_are_closed_also_when_the_close_of_the_client_is_cancelled(
    server: RedisServer,
) -> None:
    async def body() -> None:
        async with Connected(server.url) as redis_client:
            await redis_client.listen("c", lambda _: None)
            await interrupted(redis_client.close())
            await until_left(server)

    asyncio.run(body())


def test_a_closed_client_has_no_search_for_primaries_under_way(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a connection to a Sentinel, which takes a moment to close."""
    monkeypatch.setattr(client, "ASK_S", 0.0)
    steps: list[str] = []

    async def body() -> None:
        async with Connected(server.url) as redis_client:

            async def find() -> object:
                steps.append("open")
                try:
                    return await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.01)
                    steps.append("closed")

            monkeypatch.setattr(redis_client._primaries, "find", find)
            await until(lambda: bool(steps))
        assert steps == ["open", "closed"]

    asyncio.run(body())


def test_a_pause_is_over_when_it_is(server: RedisServer) -> None:
    """CLIENT PAUSE is as if it stood still."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            server.ask("CLIENT", "PAUSE", 2_000, "ALL")
            with pytest.raises(StorageError):
                await redis_client.call("add", ["{q}n"], [1])
            assert await until_answered(redis_client) == [b"back"]

    asyncio.run(run())


def test_a_busy_server_refuses(make_redis: MakeRedis) -> None:
    """BUSY is certainly not done; the script that spins is not known to be."""
    server = make_redis(busy_reply_threshold="100")

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            with socket.create_connection(("127.0.0.1", server.port)) as other:
                other.sendall(b"*3\r\n$4\r\nEVAL\r\n$17\r\nwhile true do end\r\n$1\r\n0\r\n")
                error = await until_refused(lambda: redis_client.call("add", ["{q}n"], [1]))
                assert repr(error) == "Unavailable('Redis is busy with a script')"
                server.ask("SCRIPT", "KILL")
                assert await until_answered(redis_client) == [b"back"]

    asyncio.run(run())


def test_a_server_without_memory_refuses(make_redis: MakeRedis) -> None:
    """OOM is reported as a full queue, and the connection stays."""
    server = make_redis(maxmemory="3mb")
    numbers = itertools.count()

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            error = await until_refused(
                lambda: redis_client.call("set", [f"{{q}}{next(numbers)}"], [b"x" * 1_000_000])
            )
            assert repr(error) == "QueueFull('Redis has no memory left')"
            assert await redis_client.call("echo", ["{q}a"], [1]) == [b"1"]

    asyncio.run(run())


def test_a_script_that_fails_is_not_known_to_have_done_nothing(server: RedisServer) -> None:
    """The error names the script and what Redis says; the next call goes through."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            with pytest.raises(StorageError, match=r"wrong: Redis says: .*not an integer"):
                await redis_client.call("wrong", ["{q}w"], [])
            assert redis_client.is_up()
            assert await redis_client.call("echo", ["{q}a"], [1]) == [b"1"]

    asyncio.run(run())


def test_a_primary_that_became_a_replica_is_left(
    make_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """READONLY is certainly not done, and calls go through once it is a primary again."""
    server, other = make_redis(), make_redis()

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            await redis_client.call("add", ["{q}n"], [1])
            server.ask("REPLICAOF", "127.0.0.1", other.port)
            assert isinstance(
                await until_refused(lambda: redis_client.call("set", ["{q}s"], [1])), Unavailable
            )
            server.ask("REPLICAOF", "NO", "ONE")
            assert await until_answered(redis_client) == [b"back"]
        assert "replica" in caplog.text

    asyncio.run(run())


def test_min_replicas_to_write_refuses(server: RedisServer) -> None:
    """NOREPLICAS is certainly not done."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
            with pytest.raises(Unavailable, match="min-replicas-to-write"):
                await redis_client.call("add", ["{q}n"], [1])
            assert redis_client.is_up()

    asyncio.run(run())


def test_a_server_that_loads_its_data_is_waited_for(make_redis: MakeRedis) -> None:
    """A start while Redis loads ends once it has loaded; calls until then are certainly not done."""
    server = make_redis(appendonly="no", key_load_delay="1000", loading_process_events_interval_bytes="1024")
    with server.client() as client:
        client.mset({f"k{number}": "x" * 100 for number in range(1500)})
        client.save()
    prepared: list[bool] = []

    async def prepare(_: bool) -> None:
        prepared.append(True)

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            await asyncio.to_thread(server.kill)
            await until(lambda: not redis_client.is_up())
            # a second and a half of LOADING, from before the server is ready
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            await until(lambda: "while loading" in server.log.read_text() or starting.done())
            other = Connected(server.url, prepare)
            async with other:
                assert prepared
            assert await until_answered(redis_client) == [b"back"]
            await starting

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        ({}, "redis-fsync"),
        ({"appendfsync": "everysec"}, "redis-everysec"),
        ({"appendonly": "no"}, "redis-memory"),
    ],
)
def test_durability_is_what_the_server_does(
    make_redis: MakeRedis, options: dict[str, str], durability: str
) -> None:
    """The durability is read from the settings of Redis."""
    server = make_redis(**options)

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            assert redis_client.durability == durability

    asyncio.run(run())


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is looked at all the time, so that no test waits a second for it."""
    monkeypatch.setattr(connection, "INFO_S", 0.05)


@pytest.mark.usefixtures("looks_often")
def test_settings_that_change_are_noticed(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """The durability shown is another one each time."""

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            for setting, value, word in (
                ("appendfsync", "everysec", "redis-everysec"),
                ("appendfsync", "always", "redis-fsync"),
                ("no-appendfsync-on-rewrite", "yes", "redis-memory"),
                ("no-appendfsync-on-rewrite", "no", "redis-fsync"),
                ("appendonly", "no", "redis-memory"),
            ):
                server.ask("CONFIG", "SET", setting, value)
                await until(lambda word=word: redis_client.durability == word)  # type: ignore[misc]

    asyncio.run(run())
    assert "durability was redis-fsync and is redis-everysec now" in caplog.text


@pytest.mark.usefixtures("looks_often")
def test_while_redis_may_throw_items_away_puts_are_refused(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Certainly not stored, until the policy is mended; what is there is read and committed meanwhile."""

    async def run() -> None:
        storage = RedisStorage(RedisClient(parse_redis_url(server.url)))
        await storage.start(lambda _: None)
        await storage.open("q")

        refusals = set()

        async def put() -> bool:
            try:
                await storage.append("q", Frame(0, {"requestId": "r"}, b"x"), priority=0, limits=Limits())
            except Unavailable as error:
                refusals.add((error.message, error.hint))
                return False
            return True

        assert await put()
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        async with asyncio.timeout(20):
            while await put():
                await asyncio.sleep(0.05)
        before = (await storage.attributes("q", now=0.0)).next
        assert not await put()
        assert len(await storage.read("q", Selection(0, length=1000))) == before - 1
        assert await storage.commit("q", "g", range(1, before)) == before - 1
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        async with asyncio.timeout(20):
            while not await put():
                await asyncio.sleep(0.05)
        frames = await storage.read("q", Selection(0, length=1000))
        assert [frame.index for frame in frames] == [before]
        await storage.close()
        ((message, hint),) = refusals
        assert message == "maxmemory-policy allkeys-lru lets Redis delete items when memory is full"
        assert "CONFIG SET maxmemory-policy noeviction" in hint

    asyncio.run(run())
    assert caplog.text.count("allkeys-lru lets Redis delete items when memory is full: puts are refused") == 1
    assert caplog.text.count("maxmemory-policy noeviction again: puts are accepted") == 1


@pytest.mark.usefixtures("looks_often")
def test_keys_that_redis_threw_away_are_told_of(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with Connected(server.url):
            with server.client() as client:
                client.mset({f"k{number}": "x" * 1000 for number in range(1000)})
            server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", "1")
            await until(lambda: server.ask("DBSIZE") == 0)
            await until(lambda: "keys: acknowledged items may be lost" in caplog.text)

    asyncio.run(run())


def test_a_user_who_may_not_ask_for_the_settings(server: RedisServer) -> None:
    """Where CONFIG is forbidden the weaker word is shown, and calls go through."""
    server.ask("ACL", "SETUSER", "easq", "on", ">secret", "~*", "&*", "+@all", "-config")

    async def run() -> None:
        async with Connected(f"redis://easq:secret@127.0.0.1:{server.port}") as redis_client:
            assert redis_client.durability == "redis-everysec"
            assert await redis_client.call("add", ["{q}n"], [1]) == 1

    asyncio.run(run())


def refusal(url: str) -> StorageError:
    """Return the error with which a start is refused."""

    async def run() -> None:
        async with Connected(url):
            pass

    with pytest.raises(StorageError) as caught:
        asyncio.run(run())
    assert "secret" not in caught.value.message + caught.value.hint
    return caught.value


def test_starts_that_are_refused(server: RedisServer) -> None:
    """Each message names the server and what is wrong; none has the password."""
    at = f"127.0.0.1:{server.port}"
    server.ask("ACL", "SETUSER", "easq", "on", ">secret", "~*", "&*", "-@all", "+evalsha")
    assert refusal(f"redis://easq:wrong-secret@{at}").message == f"{at}: wrong or missing password"
    error = refusal(f"redis://easq:secret@{at}")
    assert error.message.startswith(f"{at}: ")
    assert "permissions" in error.message
    assert error.hint == "see what its ACL allows"
    server.ask("CONFIG", "SET", "requirepass", "secret")
    assert refusal(server.url).message == f"{at}: wrong or missing password"


def test_a_policy_that_throws_items_away_is_refused(make_redis: MakeRedis) -> None:
    """The hint has the command that changes it."""
    server = make_redis(maxmemory_policy="allkeys-lru")
    error = refusal(server.url)
    assert error.message == (
        f"127.0.0.1:{server.port}: maxmemory-policy allkeys-lru lets Redis delete items when memory is full"
    )
    assert "CONFIG SET maxmemory-policy noeviction" in error.hint


def test_no_redis_at_the_address(server: RedisServer) -> None:
    """A start says which address, and what to do."""
    server.kill()
    error = refusal(server.url)
    assert error.message.startswith(f"no Redis at 127.0.0.1:{server.port}: ")
    assert error.hint == "start it, or name another with --storage"


def test_a_redis_that_others_reach_needs_a_password() -> None:
    """Like the service itself, which needs a token."""
    with pytest.raises(UsageError) as caught:
        open_client("redis://10.0.0.1:6379")
    assert (
        caught.value.message
        == "redis://10.0.0.1:6379 can be reached from other machines, and the URL has no password"
    )
    assert open_client("redis://10.0.0.1:6379", allow_open=True).durability == ""
    assert open_client("redis://:secret@10.0.0.1:6379").durability == ""


def test_a_socket_of_this_machine(make_redis: MakeRedis, tmp_path: Path) -> None:
    """unix:// leads to the same server."""
    path = tmp_path / "redis.sock"
    make_redis(unixsocket=str(path))

    async def run() -> None:
        async with Connected(f"unix://{path}?db=1") as redis_client:
            assert await redis_client.call("add", ["{q}n"], [1]) == 1

    asyncio.run(run())


def test_tls(make_redis: MakeRedis, certificate: Path) -> None:
    """rediss:// trusts the authority that the query names, and no other."""
    port = free_port()
    both = str(certificate)
    make_redis(tls_port=str(port), tls_auth_clients="no", tls_cert_file=both, tls_key_file=both)

    async def run() -> None:
        async with Connected(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}") as redis_client:
            assert await redis_client.call("add", ["{q}n"], [1]) == 1

    asyncio.run(run())
    assert "certificate verify failed" in refusal(f"rediss://127.0.0.1:{port}").message


def test_a_private_ca_that_says_no_more_than_that_it_is_one_is_trusted(
    make_redis: MakeRedis, private_ca: tuple[Path, Path]
) -> None:
    """Also by Python 3.13, which refuses it by default."""
    port, (ca, both) = free_port(), private_ca
    make_redis(tls_port=str(port), tls_auth_clients="no", tls_cert_file=str(both), tls_key_file=str(both))

    async def run() -> None:
        async with Connected(f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}") as redis_client:
            assert await redis_client.call("add", ["{q}n"], [1]) == 1

    asyncio.run(run())


def test_what_is_published_is_heard(server: RedisServer) -> None:
    """Both kinds of PUBLISH, any bytes, and again after the connection was lost."""
    heard: list[bytes] = []

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            await redis_client.listen("easq:hint", heard.append)
            await redis_client.call("tell", [], ["easq:hint", b"\x00one"])
            await redis_client.call("stell", ["easq:hint"], ["easq:hint", b"two"])
            await until(lambda: heard == [b"\x00one", b"two"])
            await restarted(server, redis_client)
            assert await until_answered(redis_client) == [b"back"]
            async with asyncio.timeout(PATIENCE_S):
                while heard[-1] != b"three":
                    await redis_client.call("tell", [], ["easq:hint", b"three"])
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_without_replicas_nothing_is_run_that_they_have_to_have(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is certainly not done; other calls are answered."""

    async def run() -> None:
        async with Connected(server.url, wait_replicas=1) as redis_client:
            assert redis_client.durability == "redis-replicated:1"
            with pytest.raises(Unavailable, match="fewer replicas than the 1"):
                await redis_client.call("add", ["{q}n"], [1])
            assert await redis_client.call("echo", ["{q}a"], [1], replicated=False) == [b"1"]
            assert redis_client.is_up()

    asyncio.run(run())
    assert server.ask("GET", "{q}n") is None
    assert "fewer replicas follow than the 1 to wait for" in caplog.text


def test_wait_with_a_replica(make_redis: MakeRedis) -> None:
    """Answered calls are on the replica too, also when a whole batch waits together."""
    server, replica = replicated(make_redis)

    async def run() -> None:
        async with Connected(server.url, wait_replicas=1) as redis_client:
            replies = await asyncio.gather(*(redis_client.call("add", ["{q}n"], [1]) for _ in range(50)))
            assert replies == list(range(1, 51))
            assert replica.ask("GET", "{q}n") == b"50"

    asyncio.run(run())


def test_nobody_knows_of_the_call_that_finds_its_replica_gone(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call was run on the primary but not on the replica. Later calls are not run until the replica has caught
    up.
    """
    monkeypatch.setattr("easq.storage.redis.connection.INFO_S", 0.05)
    server, replica = replicated(make_redis)

    async def run() -> None:
        async with Connected(server.url, wait_replicas=1) as redis_client:
            await until_answered(redis_client)
            assert await redis_client.call("add", ["{q}n"], [1]) == 1
            monkeypatch.setattr("easq.storage.redis.connection.INFO_S", 1000.0)  # it is not looked at again
            replica.freeze()
            with pytest.raises(StorageError, match="0 of 1 replicas have it"):
                await redis_client.call("add", ["{q}n"], [1])
            for _ in range(3):
                with pytest.raises(Unavailable, match="fewer replicas than the 1"):
                    await redis_client.call("add", ["{q}n"], [1])
            assert await redis_client.call("echo", ["{q}a"], [1], replicated=False) == [b"1"]
            assert server.ask("GET", "{q}n") == b"2"
            replica.thaw()

    asyncio.run(run())


def test_a_replica_that_is_back_is_waited_for_again(
    make_redis: MakeRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it stands still a look does not take it for one that follows."""
    monkeypatch.setattr("easq.storage.redis.connection.INFO_S", 0.05)
    server, replica = replicated(make_redis)

    async def run() -> None:
        async with Connected(server.url, wait_replicas=1) as redis_client:
            replica.freeze()
            assert isinstance(
                await until_refused(lambda: redis_client.call("add", ["{q}n"], [1])), StorageError
            )
            looks = 0
            while looks < 10:
                looks += 1
                with pytest.raises(Unavailable, match="fewer replicas than the 1"):
                    await redis_client.call("add", ["{q}n"], [1])
                await asyncio.sleep(0.05)
            replica.thaw()
            await until_answered(redis_client)
            assert replica.ask("GET", "{q}n") == server.ask("GET", "{q}n")

    asyncio.run(run())
    assert "the replicas to wait for follow again" in caplog.text


def test_more_than_may_wait_is_refused(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of waiting calls is limited while Redis stands still."""
    monkeypatch.setattr("easq.storage.redis.client.MOST_CALLS", 10)

    async def run() -> None:
        async with Connected(server.url) as redis_client:
            server.freeze()
            calls = [asyncio.ensure_future(redis_client.call("add", ["{q}n"], [1])) for _ in range(11)]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            (first,) = done
            with pytest.raises(Unavailable, match="too many requests"):
                await first
            server.thaw()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())


def test_the_deadline_of_a_wait_is_within_that_of_the_batch() -> None:
    """Replicas that lag do not end the connection."""
    assert connection.WAIT_MS / 1000 < connection.DEADLINE_S


def test_nothing_is_logged_of_a_password(make_redis: MakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Neither when the connection is lost nor when it comes back, at any level."""
    caplog.set_level(logging.DEBUG)
    server = make_redis()
    server.ask("CONFIG", "SET", "requirepass", "top-secret-word")

    async def run() -> None:
        async with Connected(f"redis://:top-secret-word@127.0.0.1:{server.port}") as redis_client:
            with server.client(password="top-secret-word") as client:
                client.client_kill_filter(_type="normal", skipme=True)
            await until(lambda: not redis_client.is_up())
            await until(redis_client.is_up)

    asyncio.run(run())
    assert "Redis is back" in caplog.text
    assert "top-secret-word" not in caplog.text
