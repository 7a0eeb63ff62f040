"""A storage URL to an engine, imported on demand: `memory:`, `sqlite:PATH` and `redis://HOST`."""

from __future__ import annotations

from pathlib import Path

from easq.errors import UsageError
from easq.storage.base import Storage, Timing
from easq.storage.redis_url import SCHEMES, parse_redis_url


def open_storage(
    url: str, *, durability: str = "fsync", timing: Timing | None = None, recover: bool = False
) -> Storage:
    """The engine that `url` names, not started yet. Raises UsageError for a URL that names none."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "memory" and not rest:
        from easq.storage.memory import Memory

        return Memory(timing)
    if colon and scheme == "sqlite" and rest:
        from easq.storage.sqlite import Sqlite

        return Sqlite(Path(rest).expanduser(), durability=durability, timing=timing, recover=recover)
    if scheme in SCHEMES:
        from easq.storage.distributed import Distributed
        from easq.storage.redis import Link

        return Distributed(Link(parse_redis_url(url)), timing)
    raise UsageError(f"unknown storage {url!r}", hint="use memory:, sqlite:PATH or redis://HOST")
