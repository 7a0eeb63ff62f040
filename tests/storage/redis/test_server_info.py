"""The state that a Redis reports: its durability, and the servers on which no queue is stored."""

from __future__ import annotations

import pytest

from easq.errors import StorageError
from easq.storage.redis.server_info import parse_info, weakest

INFO = (
    b"# Server\r\nredis_version:%s\r\nrun_id:r\r\n# Persistence\r\naof_enabled:%d\r\n"
    b"# Replication\r\nrole:master\r\nmaster_replid:m\r\n# Memory\r\nmaxmemory_policy:%s\r\n"
)


@pytest.mark.parametrize(
    ("aof", "config", "word"),
    [
        (1, [b"appendonly", b"yes", b"appendfsync", b"always"], "redis-fsync"),
        (1, [b"appendonly", b"yes", b"appendfsync", b"everysec"], "redis-everysec"),
        (1, [b"appendonly", b"yes", b"appendfsync", b"no"], "redis-memory"),
        (0, [b"appendonly", b"no", b"appendfsync", b"always"], "redis-memory"),
        (
            1,
            [b"appendonly", b"yes", b"appendfsync", b"always", b"no-appendfsync-on-rewrite", b"yes"],
            "redis-memory",
        ),
        (1, None, "redis-everysec"),
        (0, None, "redis-memory"),
        (1, [], "redis-everysec"),
    ],
)
def test_the_word_for_what_survives(aof: int, config: list[bytes] | None, word: str) -> None:
    """The durability is never better than the server's settings; where CONFIG is forbidden, it is the weaker one."""
    assert parse_info(INFO % (b"7.0.15", aof, b"noeviction"), config).durability == word


def test_the_weakest_word_goes_for_all() -> None:
    """A Cluster with one node that syncs each second has the durability of that node."""
    always = parse_info(
        INFO % (b"7.0.15", 1, b"noeviction"), [b"appendonly", b"yes", b"appendfsync", b"always"]
    )
    everysec = parse_info(INFO % (b"7.0.15", 1, b"noeviction"), None)
    assert weakest([always, everysec]) == "redis-everysec"


def test_a_version_that_is_too_old_is_refused() -> None:
    """7.0 is the oldest."""
    parse_info(INFO % (b"7.0.0", 1, b"noeviction"), None).check("r:1")
    with pytest.raises(StorageError) as caught:
        parse_info(INFO % (b"6.2.14", 1, b"noeviction"), None).check("r:1")
    assert caught.value.message == "r:1: Redis 6.2 is too old"


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([], 0),
        (["slave0:ip=127.0.0.1,port=1,state=online,offset=14,lag=0"], 1),
        (["slave0:ip=::1,port=1,state=online,offset=14,lag=2,io-thread=0"], 1),
        (["slave0:ip=127.0.0.1,port=1,state=online,offset=14,lag=3"], 0),
        (["slave0:ip=127.0.0.1,port=1,state=wait_bgsave,offset=0,lag=0"], 0),
        (["slave0:ip=127.0.0.1,port=1,state=send_bulk,offset=0,lag=1"], 0),
        ([f"slave{n}:ip=127.0.0.1,port=1,state=online,offset=0,lag=1" for n in range(12)], 12),
        (["slave0:", "slave_repl_offset:5", "connected_slaves:7", "slave1:state=online,lag=-1"], 0),
    ],
)
def test_how_many_replicas_follow(lines: list[str], count: int) -> None:
    """Those that are still copying do not, nor those that have said nothing for a while."""
    said = INFO % (b"7.0.15", 1, b"noeviction") + "\r\n".join(lines).encode()
    assert parse_info(said, None).replicas == count
