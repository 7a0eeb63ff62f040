"""A server whose Redis is full, flushed, away, or has unusable settings: answers and messages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from easq.errors import Exit
from tests.conftest import MakeRedis, Serve
from tests.reliability.fleet import Record
from tests.support.http import Answer, Stream
from tests.support.process import run_to_the_end
from tests.support.redis import RedisServer, free_port
from tests.support.waiting import eventually
from tests.support.websocket import watch


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({"appendfsync": "always"}, "redis-fsync"),
        ({"appendfsync": "everysec"}, "redis-everysec"),
        ({"appendfsync": "no"}, "redis-memory"),
        ({"appendonly": "no"}, "redis-memory"),
    ],
    ids=["always", "everysec", "no", "no file"],
)
def test_the_level_is_the_one_that_redis_is_set_to(
    serve: Serve, make_redis: MakeRedis, options: dict[str, str], level: str
) -> None:
    """Never a better word."""
    service = serve(storage=make_redis(**options).url)
    assert service.stream().attributes()["meta.durability"] == level


def test_the_level_names_the_replicas_that_are_waited_for(serve: Serve, make_redis: MakeRedis) -> None:
    primary = make_redis()
    replica = make_redis(replicaof=f"127.0.0.1 {primary.port}")
    eventually(lambda: replica.follows(primary), within_s=60)
    service = serve("--wait-replicas", "1", storage=primary.url)
    assert service.stream().attributes()["meta.durability"] == "redis-replicated:1"
    assert service.stream().put() == 1


def test_while_too_few_replicas_follow_reads_alone_are_answered(serve: Serve, make_redis: MakeRedis) -> None:
    """The outcome of a put under way is unknown: its connection is closed. After that, and after a start, puts are
    refused and certainly not stored, until the replica is there again.
    """
    primary = make_redis()
    replica = make_redis(replicaof=f"127.0.0.1 {primary.port}")
    eventually(lambda: replica.follows(primary), within_s=60)
    service = serve("--wait-replicas", "1", storage=primary.url)
    assert service.stream().put() == 1
    stored, in_doubt = 1, 0
    for begin_anew in (False, True):
        replica.freeze()
        if begin_anew:
            service.terminate()
            service.start()
        stream = service.stream()
        while (answer := _answer(stream)) is None:
            in_doubt += 1
        assert (answer.status, answer.header("X-Easq-Stored")) == (503, "no")
        assert b"fewer replicas" in answer.body
        assert stored <= stream.length() <= stored + in_doubt
        assert [item.index for item in stream.get(_index_=0, _auto_delete_="false")] == [1]
        eventually(lambda: "fewer replicas follow than the 1 to wait for" in service.log.read_text())
        replica.thaw()
        while (answer := _answer(stream)) is None or answer.status == 503:
            in_doubt += answer is None
        assert answer.status == 200
        stored += 1


def _answer(stream: Stream) -> Answer | None:
    """Return the status of a put; None when the connection is closed."""
    try:
        return stream.ask("POST", (), b"x")
    except (EOFError, OSError):
        return None


def test_a_full_redis_refuses_puts_and_lets_everything_else_through(
    serve: Serve, make_redis: MakeRedis
) -> None:
    """429, as for a full disk; commits, deletes and truncates work, and make room."""
    redis = make_redis(maxmemory="6mb")
    stream = serve(storage=redis.url).stream().as_consumer("u")
    indexes: list[int] = []
    while (answer := stream.ask("POST", (), b"x" * 100_000)).status == 200:
        indexes.append(int(answer.body))
    assert answer.status == 429, answer
    assert len(indexes) > 10
    with watch(stream, _window_=2) as watching:
        assert watching.indexes(2) == indexes[:2]
        assert stream.commit(indexes[0]).status == 200
        assert stream.negative(indexes[1]).status == 200
    assert stream.delete(indexes[2]).status == 200
    assert stream.truncate(indexes[-2]).status == 200
    assert stream.length() == 2
    assert stream.put() > indexes[-1]


def test_scripts_that_are_flushed_are_loaded_again(serve: Serve, make_redis: MakeRedis) -> None:
    redis = make_redis()
    stream = serve(storage=redis.url).stream().as_consumer("u")
    with watch(stream) as watching:
        for number in range(1, 4):
            redis.ask("SCRIPT", "FLUSH")
            assert stream.put() == number
            assert watching.indexes(1) == [number]
            redis.ask("SCRIPT", "FLUSH")
            assert stream.commit(number).header("X-Easq-Committed") == "1"
    assert stream.length() == 0


def test_while_redis_is_away_it_is_503_and_it_recovers(
    serve: Serve, make_redis: MakeRedis, record_property: Record
) -> None:
    """503 with the word that nothing was stored; a watch goes on where it was when Redis is back."""
    redis = make_redis()
    service = serve(storage=redis.url)
    stream = service.stream().as_consumer("u")
    assert stream.put() == 1
    redis.kill()
    refused = eventually(lambda: _refused(stream))
    assert refused.header("X-Easq-Stored") == "no"
    assert service.stream().ask("GET", (), None, _attrs_="true").status == 503
    redis.start()
    began = time.monotonic()
    eventually(lambda: stream.ask("POST", (), b"x").status == 200)
    record_property(
        "put acknowledged again after ms (promised: 2000)", round((time.monotonic() - began) * 1000)
    )
    with watch(stream) as watching:
        assert watching.indexes(2)[0] == 1
    assert "Traceback" not in service.log.read_text()


def _refused(stream: Stream) -> Answer | None:
    """The first 503; before it a connection may be closed without an answer, when a put was under way."""
    try:
        answer = stream.ask("POST", (), b"lost")
    except (EOFError, OSError):
        return None
    return answer if answer.status == 503 else None


def test_a_watch_outlives_a_restart_of_redis(serve: Serve, make_redis: MakeRedis) -> None:
    """The watch keeps its pending items, can commit them, and gets later items."""
    redis = make_redis()
    stream = serve(storage=redis.url).stream().as_consumer("u")
    with watch(stream, _window_=2) as watching:
        assert stream.put() == 1
        assert watching.indexes(1) == [1]
        redis.restart()
        eventually(lambda: stream.ask("POST", (), b"x").status == 200)
        assert watching.next().index > 1
        assert eventually(lambda: stream.commit(1)).header("X-Easq-Committed") == "1"


def test_a_redis_that_evicts_is_refused(make_redis: MakeRedis, tmp_path: Path) -> None:
    """Nothing acknowledged may be dropped to make room."""
    redis = make_redis(maxmemory_policy="allkeys-lru")
    done = run_to_the_end(tmp_path, redis.url)
    assert done.returncode == Exit.STORAGE
    assert "allkeys-lru" in done.stderr
    assert "noeviction" in done.stderr


def test_a_redis_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    done = run_to_the_end(tmp_path, f"redis://127.0.0.1:{port}")
    assert done.returncode == Exit.STORAGE
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_two_servers_have_one_queue(serve: Serve, redis_server: RedisServer, redis_url: str) -> None:
    """Put at one, delivered and committed at the other, gone at both."""
    assert redis_server.is_running
    one, other = (serve(storage=redis_url).stream().as_consumer("u") for _ in range(2))
    with watch(other) as watching:
        assert [one.put(), other.put()] == [1, 2]
        assert watching.indexes(2) == [1, 2]
        assert one.commit(1, 2).header("X-Easq-Committed") == "2"
    assert (one.length(), other.length()) == (0, 0)
