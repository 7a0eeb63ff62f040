"""The behaviour of redis-py's connections that the driver relies on, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import signature

import pytest
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from easq.storage.redis.driver import ConnectionLost, ErrorReply, RedisConnection, slot_of
from easq.storage.redis.url import parse_redis_url
from tests.conftest import MakeRedis
from tests.support.redis import RedisServer, free_port


@pytest.fixture
def server(make_redis: MakeRedis) -> RedisServer:
    return make_redis()


def run_on(url: str, body: Callable[[RedisConnection], Awaitable[None]]) -> None:
    """Run the body with a connection that is not open yet, and close it."""
    parsed = parse_redis_url(url)
    ((host, port),) = parsed.nodes

    async def main() -> None:
        connection = RedisConnection(parsed, host, port, connect_timeout_s=5.0)
        try:
            async with asyncio.timeout(20):
                await body(connection)
        finally:
            await connection.close(nowait=True)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connect", ()),
        ("disconnect", ("nowait",)),
        ("pack_commands", ("commands",)),
        ("send_packed_command", ("command", "check_health")),
        ("read_response", ("disable_decoding", "disconnect_on_error")),
    ],
)
def test_connections_have_the_methods_that_are_called(method: str, parameters: tuple[str, ...]) -> None:
    assert set(parameters) <= signature(getattr(AbstractConnection, method)).parameters.keys()


@pytest.mark.parametrize("kind", [Connection, SSLConnection, UnixDomainSocketConnection])
def test_each_kind_of_connection_takes_the_options(kind: type[AbstractConnection]) -> None:
    options = {"username": "u", "password": "p", "db": 1, "protocol": 2}
    kind(**options, socket_timeout=None, socket_connect_timeout=1.0)


def test_replies_to_commands_sent_together_come_one_at_a_time(server: RedisServer) -> None:
    """Bytes stay bytes, an error reply is a value, and what follows it is read as well."""

    async def body(connection: RedisConnection) -> None:
        await connection.open()
        commands = [
            ("ECHO", b"\xff\r\n"),
            ("ECHO", "\u00fc"),
            ("INCR", "n"),
            ("GET", "missing"),
            ("NONSENSE",),
            ("EVAL", "return {1, 'two', {}}", 0),
            ("EVALSHA", "0" * 40, 0),
        ]
        await connection.send(connection.pack(commands))
        replies = [await connection.receive() for _ in commands]
        assert replies[:4] == [b"\xff\r\n", "\u00fc".encode(), 1, None]
        assert isinstance(replies[4], ErrorReply)
        assert replies[4].code == "ERR"
        assert replies[5] == [1, b"two", []]
        assert replies[6].code == "NOSCRIPT"

    run_on(server.url, body)


def test_an_error_reply_has_its_code(server: RedisServer) -> None:
    """redis-py removes some codes from the text, and makes classes of them."""
    codes = ["OOM", "READONLY", "NOPERM", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "CROSSSLOT"]
    replies = {f"{code} some text": code for code in (*codes, "NOREPLICAS", "BUSY", "MISCONF")}
    replies |= {f"{code} 1 127.0.0.1:7000": code for code in ("MOVED", "ASK")}
    replies["no code"] = "ERR"

    async def body(connection: RedisConnection) -> None:
        await connection.open()
        for reply, code in replies.items():
            await connection.send(connection.pack([("EVAL", "return {err = ARGV[1]}", 0, reply)]))
            assert (await connection.receive()).code == code

    run_on(server.url, body)


def test_a_wrong_password_is_an_error_reply(make_redis: MakeRedis) -> None:
    server = make_redis()
    with server.client() as client:
        client.config_set("requirepass", "secret")

    async def body(connection: RedisConnection) -> None:
        with pytest.raises(ErrorReply) as caught:
            await connection.open()
        assert caught.value.code == "WRONGPASS"

    run_on(f"redis://:wrong@127.0.0.1:{server.port}", body)


def test_a_refused_connection_says_why_without_the_address() -> None:
    async def body(connection: RedisConnection) -> None:
        with pytest.raises(ConnectionLost, match=r"^Connection refused$"):
            await connection.open()

    run_on(f"redis://127.0.0.1:{free_port()}", body)


def test_the_end_of_the_connection_is_noticed_while_it_is_idle(server: RedisServer) -> None:
    async def body(connection: RedisConnection) -> None:
        await connection.open()
        with server.client() as other:
            reading = asyncio.ensure_future(connection.receive())
            await asyncio.sleep(0)
            await asyncio.to_thread(other.client_kill_filter, _type="normal", skipme=True)
        with pytest.raises(ConnectionLost):
            await reading

    run_on(server.url, body)


def test_the_slot_of_a_key_is_what_a_cluster_says(make_redis: MakeRedis) -> None:
    server = make_redis(cluster_enabled="yes")
    with server.client() as client:
        for key in ("easq:{q}:meta", "easq:{q}/sink:meta", "\u00fc", "{}a"):
            assert slot_of(key) == client.execute_command("CLUSTER", "KEYSLOT", key)
