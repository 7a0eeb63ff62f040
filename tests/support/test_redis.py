"""The Redis that tests start: it is private, keeps its data, and can be held still."""

from __future__ import annotations

import pytest
import redis

from tests.conftest import MakeRedis
from tests.support.redis import RedisServer


def test_what_it_acknowledged_is_there_again_after_a_kill(make_redis: MakeRedis) -> None:
    server = make_redis()
    server.ask("SET", "k", "v")
    before = server.pid, server.url
    server.restart()
    assert server.ask("GET", "k") == b"v"
    assert server.url == before[1]
    assert server.pid != before[0]


def test_its_options_are_those_of_the_configuration_file(make_redis: MakeRedis) -> None:
    server = make_redis(appendfsync="everysec", maxmemory="64mb")
    with server.client() as client:
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024**2)}


def test_while_it_stands_still_nothing_is_answered(make_redis: MakeRedis) -> None:
    server = make_redis()
    server.freeze()
    with server.client(socket_timeout=0.2) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    server.thaw()
    assert server.ask("PING")


def test_a_stopped_one_can_be_killed(make_redis: MakeRedis) -> None:
    server = make_redis()
    server.freeze()
    server.kill()
    assert not server.is_running


def test_two_are_strangers(make_redis: MakeRedis, redis_server: RedisServer) -> None:
    one, other = make_redis(), make_redis()
    one.ask("SET", "k", "v")
    assert other.ask("DBSIZE") == 0
    assert len({one.port, other.port, redis_server.port}) == 3


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_shared_one_is_empty_for_each_test(redis_url: str, name: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set(name, "v")
