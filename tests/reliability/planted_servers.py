"""`easq serve` on Redis with one bug in it, to show that the checks of a fleet notice.

python -m tests.reliability.planted_servers BUG serve ...
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from easq.cli.main import main
from easq.errors import StorageError, Unavailable
from easq.model import Ack, Frame
from easq.storage.base import Lease
from easq.storage.redis import client, scripts
from easq.storage.redis.connection import PipelinedConnection
from easq.storage.redis.engine import RedisStorage

_background: set[asyncio.Task[Any]] = set()


def acknowledged_without_wait() -> None:
    """The server claims to wait for replicas, but does not."""

    def connect(connection: Any, name: str, texts: Any, _: int) -> PipelinedConnection:
        return PipelinedConnection(connection, name, texts, 0)

    client.PipelinedConnection = connect


def acknowledged_though_redis_did_not_answer() -> None:
    """A put that was refused, or whose outcome is unknown while Redis is away, is answered with the next index."""
    original = RedisStorage.append

    async def append(self: RedisStorage, stream: str, frame: Frame, **given: Any) -> Ack:
        try:
            return await original(self, stream, frame, **given)
        except (StorageError, Unavailable):
            remote = self._heartbeat[stream]
            remote.last += 1
            return Ack(remote.last, frame.request_id)

    RedisStorage.append = append


def index_from_a_local_counter() -> None:
    """Each server counts its own puts."""
    original, numbers = RedisStorage.append, itertools.count(1)

    async def append(self: RedisStorage, stream: str, frame: Frame, **given: Any) -> Ack:
        await original(self, stream, frame, **given)
        return Ack(next(numbers), frame.request_id)

    RedisStorage.append = append


def commits_in_local_memory() -> None:
    """A commit is answered at once, and sent to Redis half a second later."""
    original = RedisStorage.commit

    async def later(self: RedisStorage, *args: Any) -> None:
        await asyncio.sleep(0.5)
        await original(self, *args)

    async def commit(self: RedisStorage, stream: str, group: str, indexes: Sequence[int]) -> int:
        task = asyncio.create_task(later(self, stream, group, indexes))
        _background.add(task)
        task.add_done_callback(_background.discard)
        return len(indexes)

    RedisStorage.commit = commit


def pushes_without_checking_its_lease() -> None:
    """Fetched items are sent after a delay, without a check that they are still leased."""
    original = RedisStorage.fetch

    async def fetch(self: RedisStorage, stream: str, session: int, **given: Any) -> list[Lease] | None:
        leases = await original(self, stream, session, **given)
        if leases:
            await asyncio.sleep(1.5)
        return leases

    async def still_leased(*_: object) -> bool:
        return True

    RedisStorage.fetch = fetch
    RedisStorage.still_leased = still_leased


def _in_lua(old: str, new: str) -> None:
    original = scripts._text

    def text(name: str) -> str:
        return original(name).replace(old, new)

    assert any(old in original(name) for name in ("consumers", "stream", "tick")), old
    scripts._text = text


def window_one_too_large() -> None:
    """One item more than the window is delivered."""
    _in_lua("s.window - s.out", "s.window + 1 - s.out")


def sweep_does_not_release() -> None:
    """Items at the consumers of a dead server are never released."""
    _in_lua("ipairs(call('ZRANGEBYSCORE', servers, '-inf', NOW))", "ipairs({})")


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        acknowledged_without_wait,
        acknowledged_though_redis_did_not_answer,
        index_from_a_local_counter,
        commits_in_local_memory,
        pushes_without_checking_its_lease,
        window_one_too_large,
        sweep_does_not_release,
    )
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
