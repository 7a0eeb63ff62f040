"""Interrupted deliveries: frames that other consumers have got meanwhile are not sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from easq.model import Consumer
from easq.protocol.frames import decode_frame
from easq.protocol.operations import Codec, Watch
from easq.server.http import ServiceState
from easq.server.queue import Clock, Queue, QueuePolicy
from easq.server.subscriber import Subscriber
from easq.server.watch import _deliver
from easq.storage.base import Storage
from tests.storage.conftest import Engine, run_on
from tests.storage.servers import LEASE_S, Moment, Server, lapse, servers


class _Connection:
    """A connection that runs a function after the first frame was sent."""

    def __init__(self, between: Callable[[], Awaitable[None]]) -> None:
        self.sent: list[int] = []
        self._between = between

    async def send(self, data: bytes) -> None:
        self.sent.append(decode_frame(data, Codec.PROTOBUF).index)
        if len(self.sent) == 1:
            await self._between()


async def _delivered(
    storage: Storage, session: int, between: Callable[[], Awaitable[None]], *, user: str = "u"
) -> list[int]:
    """Return the indexes that are sent to the connection, until no more arrive."""
    loop = asyncio.get_running_loop()
    queue = Queue(storage, "q", is_sink=False, policy=QueuePolicy(), clock=Clock(loop.time, lambda: 0))
    watch = Watch(window=10)
    transport, subscriber = _Connection(between), Subscriber(queue, Consumer("g", user), watch, session)
    async with asyncio.timeout(20):
        await _deliver(cast("Any", transport), subscriber, watch, ServiceState())
    return transport.sent


def stand_still(server: Server, duration_s: float) -> None:
    """Advance the server's clock in one step. No timer of its event loop runs meanwhile."""
    server.redis_storage._heartbeat["q"].renewed_at -= duration_s


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_connection_that_was_replaced_in_a_batch_is_sent_no_more_of_it(kind: str, tmp_path: Any) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        session = await engine.attach()

        async def replaced() -> None:
            other = await engine.attach()
            assert await engine.leased(other, 3) == [1, 2, 3]
            assert await engine.commit(1, 2, 3) == 3

        assert await _delivered(engine.storage, session, replaced) == [1]

    run_on("memory:" if kind == "memory" else f"sqlite:{tmp_path / 'easq.db'}", body)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_what_was_committed_or_deleted_in_a_batch_is_not_sent(kind: str, tmp_path: Any) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(4):
            await engine.put()
        session = await engine.attach()

        async def gone() -> None:
            assert await engine.commit(2) == 1
            assert await engine.storage.delete("q", [3]) == 1
            await engine.storage.end("q", ended=True)
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(engine.detach(session)))

        assert await _delivered(engine.storage, session, gone) == [1, 4]

    run_on("memory:" if kind == "memory" else f"sqlite:{tmp_path / 'easq.db'}", body)


@pytest.mark.parametrize("looks_first", [False, True])
def test_a_server_suspended_in_a_batch_does_not_send_items_that_others_got(
    redis_url: str, looks_first: bool
) -> None:
    """Two orders: the server first continues the batch, or first sends Redis a heartbeat."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (asleep, awake):
            for _ in range(3):
                await awake.put()
            session = await asleep.attach("old")

            async def stop() -> None:
                await lapse(clock, awake)
                clock.now += 10.0
                other = await awake.attach("new")
                assert sorted(await awake.leased(other, 3)) == [1, 2, 3]
                assert await awake.commit(1, 2, 3) == 3
                stand_still(asleep, LEASE_S)
                if looks_first:
                    await asleep.redis_storage.check("q")

            assert await _delivered(asleep.storage, session, stop, user="old") == [1]

    asyncio.run(body())


def test_a_server_that_stood_still_for_less_goes_on_with_what_is_still_its_own(redis_url: str) -> None:
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (asleep, awake):
            for _ in range(4):
                await awake.put()
            session = await asleep.attach("old")

            async def stop() -> None:
                clock.now += 0.6 * LEASE_S
                assert await awake.commit(2) == 1
                stand_still(asleep, 0.6 * LEASE_S)
                asyncio.get_running_loop().call_later(
                    0.3, lambda: asyncio.ensure_future(asleep.detach(session))
                )

            assert await _delivered(asleep.storage, session, stop, user="old") == [1, 3, 4]

    asyncio.run(body())
