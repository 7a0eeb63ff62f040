"""Scans of many entries: one slice per turn of the event loop, and an early end when the caller is gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from easq.errors import Unavailable
from easq.model import Consumer, Frame
from easq.storage.base import Limits, Selection, Subscription
from easq.storage.redis import stream as remote
from easq.storage.redis.heartbeat import Heartbeat
from easq.storage.rules.effects import Effects
from easq.storage.rules.scans import ScanLimit
from easq.storage.rules.stream import Stream
from tests.storage.conftest import Engine, run_on
from tests.support.callbacks import MOST_S, longest_callback

Run = Callable[[Callable[[Engine], Awaitable[Any]]], Any]
#: entries that no engine examines in one slice
MANY = 2_500
NOWHERE = {"color": "none"}


async def fill(engine: Engine, count: int) -> None:
    """One blue item, and then others."""
    await engine.put(b"first", color="blue")
    for at in range(1, count, 500):
        await asyncio.gather(*(engine.put(b"%d" % number) for number in range(at, at + 500)))


def test_many_scans_take_one_slice_in_a_turn_of_the_event_loop(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await fill(engine, 5_000)
        storage = engine.storage
        scans = [
            asyncio.ensure_future(storage.read("q", Selection(0, {"color": f"c{number}"}, 1)))
            for number in range(100)
        ]
        scans += [
            asyncio.ensure_future(storage.count("q", tags={"color": f"c{number}"}, priority=None))
            for number in range(100)
        ]
        with longest_callback() as longest:
            for _ in range(60):
                await asyncio.sleep(0)
        assert longest.turn_s < MOST_S
        assert not any(scan.done() for scan in scans)
        for scan in scans:
            scan.cancel()
        await asyncio.gather(*scans, return_exceptions=True)
        assert await engine.indexes(length=1) == [1]

    run_sqlite(body)


@pytest.mark.parametrize("verb", ["read", "take", "count"])
def test_a_scan_ends_when_its_caller_is_gone(run: Run, verb: str) -> None:
    async def body(engine: Engine) -> None:
        await fill(engine, MANY)
        looks = 0

        def is_gone() -> bool:
            nonlocal looks
            looks += 1
            return looks == 2

        storage = engine.storage
        blue, limit = {"color": "blue"}, ScanLimit(is_gone)
        scan = {
            "read": lambda: storage.read("q", Selection(0, blue, 2), limit=limit),
            "take": lambda: storage.take("q", Selection(0, blue, 2), minimum=1, limit=limit),
            "count": lambda: storage.count("q", tags=blue, priority=None, limit=limit),
        }[verb]
        with pytest.raises(Unavailable):
            await scan()
        assert looks == 2
        assert await engine.indexes(length=1) == [1]
        assert await engine.storage.count("q", tags={"color": "blue"}, priority=None) == 1

    run(body)


def test_a_scan_whose_time_is_over_answers_what_it_found(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await fill(engine, MANY)
        blue, limit = {"color": "blue"}, ScanLimit(until=engine.now)
        read = await engine.storage.read("q", Selection(0, blue, 2), limit=limit)
        assert [frame.index for frame in read] == [1]
        take = engine.storage.take
        assert await take("q", Selection(0, blue, 2), minimum=2, limit=limit) == []
        assert await engine.indexes(length=1) == [1]
        taken = await take("q", Selection(0, blue, 2), minimum=1, limit=limit)
        assert [frame.index for frame in taken] == [1]
        assert await engine.indexes(length=1) == [2]

    run(body)


def test_a_scan_waits_for_its_turn_no_longer_than_its_time(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await fill(engine, MANY)
        gate = engine.storage._gate  # type: ignore[attr-defined]
        async with gate.slot():
            limit = ScanLimit(until=engine.now + 0.01)
            assert await engine.storage.read("q", Selection(0, NOWHERE, 1), limit=limit) == []
            # what is among the first entries is found without waiting for others
            found = await engine.storage.read("q", Selection(0, {"color": "blue"}, 1))
            assert [frame.index for frame in found] == [1]
        assert await engine.storage.count("q", tags=NOWHERE, priority=None) == 0

    run_sqlite(body)


def test_one_stream_in_a_turn_of_the_event_loop_looks_for_items_that_its_watchers_want(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = [f"s{number}" for number in range(8)]
    turn = 0
    ticks: Counter[int] = Counter()
    original = Stream.tick

    def tick(self: Stream, now: float) -> Effects:
        ticks[turn] += 1
        return original(self, now)

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(next_turn)

    async def body(engine: Engine) -> None:
        for stream in streams:
            await engine.storage.open(stream)
            for _ in range(1_000):
                await engine.storage.append(stream, Frame(0, {}, b""), priority=0, limits=Limits())
        monkeypatch.setattr(Stream, "tick", tick)
        next_turn()
        subscription = Subscription(10, 0, NOWHERE)
        for stream in streams:
            await engine.storage.attach(stream, Consumer("g", "u"), subscription, now=engine.now)
        every = engine.storage._rules.values()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            while any(rules._dispatcher.is_behind for rules in every):
                await asyncio.sleep(0)

    run_on("memory:", body)
    assert max(ticks.values()) == 1
    assert sum(ticks.values()) > 2 * len(streams)


def test_few_scans_are_under_way_at_redis_together(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BUDGET", 10)
    monkeypatch.setattr(Heartbeat, "ask", asked := _Asked(Heartbeat.ask))

    async def body(engine: Engine) -> None:
        for number in range(50):
            await engine.put(b"%d" % number)
        storage = engine.storage
        counts = [storage.count("q", tags={"color": f"c{number}"}, priority=None) for number in range(10)]
        assert await asyncio.gather(*counts) == [0] * 10

    run_on(redis_url, body)
    assert asked.total >= 10 * 4
    assert asked.most <= 2


class _Asked:
    """Counts the further calls of scans: all of them, and most at one time."""

    def __init__(self, original: Callable[..., Awaitable[Any]]) -> None:
        self.original = original
        self.total = self.now = self.most = 0

    def __get__(self, heartbeat: Heartbeat, _: type) -> Callable[..., Awaitable[Any]]:
        async def ask(stream: remote.RemoteStream, script: str, *args: Any, **options: Any) -> Any:
            if script != "count" or args[0] == "0":
                return await self.original(heartbeat, stream, script, *args, **options)
            self.total, self.now = self.total + 1, self.now + 1
            self.most = max(self.most, self.now)
            try:
                return await self.original(heartbeat, stream, script, *args, **options)
            finally:
                self.now -= 1

        return ask
