"""Opens the engine that a storage URL names, imported on demand: `memory:`, `sqlite:PATH`, or a Redis
(`redis/url.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from easq.errors import ConfigError, UsageError
from easq.storage.base import Storage, Timing
from easq.storage.redis.url import is_redis_url, parse_redis_url, shown_url

if TYPE_CHECKING:
    from easq.storage.redis.client import RedisClient


def open_storage(
    url: str,
    *,
    durability: str = "fsync",
    timing: Timing | None = None,
    recover: bool = False,
    wait_replicas: int = 0,
    allow_open: bool = False,
) -> Storage:
    """Return the engine that `url` names, not started yet.

    `durability` and `recover` are for SQLite; `wait_replicas` and `allow_open` (a Redis that other machines can reach
    may have no password) for Redis. Raises UsageError for a URL that names no engine, and for an option of another
    engine.
    """
    scheme, colon, rest = url.partition(":")
    if is_redis_url(url):
        if durability != "fsync" or recover:
            option = "--recover" if recover else f"--durability {durability}"
            raise UsageError(
                f"{option} is only for sqlite:PATH", hint="Redis's own settings say what a put survives"
            )
        client = open_client(url, wait_replicas=wait_replicas, allow_open=allow_open)
        from easq.storage.redis.engine import RedisStorage

        return RedisStorage(client, timing)
    if wait_replicas:
        raise UsageError("--wait-replicas is only for Redis storage", hint="--storage redis://HOST:PORT")
    if colon and scheme == "memory" and not rest:
        from easq.storage.memory import MemoryStorage

        return MemoryStorage(timing)
    if colon and scheme == "sqlite" and rest:
        from easq.storage.sqlite.engine import SqliteStorage

        return SqliteStorage(Path(rest).expanduser(), durability=durability, timing=timing, recover=recover)
    raise UsageError(
        f"unknown storage {shown_url(url)!r}", hint="use memory:, sqlite:PATH or redis://HOST:PORT"
    )


def open_client(url: str, *, wait_replicas: int = 0, allow_open: bool = False) -> RedisClient:
    """Return the client of the Redis that `url` names, not connected yet. Raises UsageError; ConfigError without
    redis-py.
    """
    where = parse_redis_url(url)
    if where.is_open and not allow_open:
        raise UsageError(
            f"{where.shown} can be reached from other machines, and the URL has no password",
            hint="give Redis one (requirepass), and write it as redis://:PASSWORD@HOST:PORT",
        )
    try:
        from easq.storage.redis.client import RedisClient
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise ConfigError("redis-py is not installed", hint="pip install 'easq[redis]'") from error
    return RedisClient(where, wait_replicas=wait_replicas)
