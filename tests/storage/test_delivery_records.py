"""Changed delivery records: each is stored once, after a short delay; records of removed items are not stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from easq.model import Consumer
from easq.storage.base import Limits, Subscription, Timing
from easq.storage.delivery_records import DeliveryRecords
from easq.storage.rules.changes import Change, DeliveryRecorded
from easq.storage.rules.stream import Stream


def delivered(count: int) -> Stream:
    """A stream with `count` items, each delivered once to the group `g`."""
    stream = Stream(timing=Timing(), tags_of=lambda _: {})
    for _ in range(count):
        index, _ = stream.allocate(1, Limits())
        stream.entries.show(index, 0)
    session, _ = stream.attach(Consumer("g", "u"), Subscription(count), 1.0)
    assert len(stream.fetch(session, most=count, most_bytes=1 << 20, now=1.0)) == count
    return stream


def test_records_are_stored_together_a_moment_later() -> None:
    async def run() -> None:
        stored: list[Sequence[Change]] = []
        records = DeliveryRecords({"q": delivered(3)}, stored.append)
        for index in (1, 2, 2, 3):
            records.note("q", "g", index)
        assert stored == []
        records.forget("q", [3])
        async with asyncio.timeout(10):
            while not stored:
                await asyncio.sleep(0.01)
        ((first, second),) = stored
        assert isinstance(first, DeliveryRecorded)
        assert isinstance(second, DeliveryRecorded)
        assert [(one.index, one.record.deliveries) for one in (first, second)] == [(1, 1), (2, 1)]
        assert records.take() == []

    asyncio.run(run())


def test_items_that_a_truncate_removed_have_none() -> None:
    async def run() -> None:
        stream = delivered(3)
        records = DeliveryRecords({"q": stream}, lambda _: None)
        for index in (1, 2, 3):
            records.note("q", "g", index)
        stream.truncate(3)
        (left,) = records.take()
        assert isinstance(left, DeliveryRecorded)
        assert left.index == 3
        records.stop()

    asyncio.run(run())
