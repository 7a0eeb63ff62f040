"""Long polls: each is woken by a matching item, and none stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from easq.model import REQUEST_ID, Frame, Tags
from easq.storage.base import Selection
from easq.storage.long_poll import LongPolls, _LongPoll


def run(body: Callable[[LongPolls], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(LongPolls()), 20))


async def reader(
    waiting: LongPolls, *, start: int = 0, tags: Tags | None = None, taking: bool = False
) -> asyncio.Task[None]:
    """Start a reader, and return once it waits."""
    task = asyncio.create_task(waiting.wait("q", Selection(start, tags or {}), taking=taking, timeout_s=30))
    await asyncio.sleep(0)
    return task


async def woken(*tasks: asyncio.Task[None]) -> list[bool]:
    """Return which readers were woken; cancel the others."""
    for _ in range(5):
        await asyncio.sleep(0)
    found = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


def test_an_item_wakes_the_readers_that_want_its_index_and_tags() -> None:
    async def body(waiting: LongPolls) -> None:
        tasks = [
            await reader(waiting, start=8),
            await reader(waiting, start=9),
            await reader(waiting, tags={"run": "1"}),
            await reader(waiting, tags={"run": "2"}),
        ]
        waiting.item_arrived("q", Frame(8, {"run": "1", "other": "x"}))
        assert await woken(*tasks) == [True, False, True, False]

    run(body)


def test_two_items_wake_two_takers_and_everybody_before_them() -> None:
    async def body(waiting: LongPolls) -> None:
        tasks = [
            await reader(waiting, taking=True),
            await reader(waiting),
            await reader(waiting, taking=True),
            await reader(waiting, taking=True),
        ]
        waiting.item_arrived("q", Frame(1))
        waiting.item_arrived("q", Frame(2))
        assert await woken(*tasks) == [True, True, True, False]

    run(body)


def test_a_wake_reaches_every_reader_of_its_stream_and_no_other() -> None:
    async def body(waiting: LongPolls) -> None:
        tasks = [await reader(waiting, taking=True), await reader(waiting, start=100)]
        waiting.wake("other")
        waiting.item_arrived("other", Frame(1))
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        waiting.wake("q")
        assert await woken(*tasks) == [True, True]

    run(body)


def test_a_stream_is_known_as_long_as_somebody_waits_there() -> None:
    async def body(waiting: LongPolls) -> None:
        assert "q" not in waiting
        tasks = [await reader(waiting), await reader(waiting, start=2)]
        waiting.item_arrived("q", Frame(1))
        await tasks[0]
        assert "q" in waiting
        await woken(*tasks)
        assert "q" not in waiting

    run(body)


def test_an_item_is_compared_with_no_reader_that_it_cannot_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with 600 that wait for other request ids, other tags, or a later index."""
    compared: list[_LongPoll] = []
    wants = _LongPoll.wants

    def counted(reader: _LongPoll, frame: Frame) -> bool:
        compared.append(reader)
        return wants(reader, frame)

    monkeypatch.setattr(_LongPoll, "wants", counted)

    async def body(waiting: LongPolls) -> None:
        waiting.item_arrived("q", Frame(1))
        others = [await reader(waiting, tags={REQUEST_ID: f"r{number}", "a": "b"}) for number in range(200)]
        others += [await reader(waiting, tags={"user": f"u{number}"}) for number in range(200)]
        others += [await reader(waiting, start=1_000_000 + number) for number in range(200)]
        mine = await reader(waiting, tags={REQUEST_ID: "mine"})
        waiting.item_arrived("q", Frame(2, {REQUEST_ID: "mine", "a": "b"}))
        assert len(compared) == 1
        assert await woken(mine, *others) == [True] + [False] * 600
        assert "q" not in waiting

    run(body)


def test_readers_of_a_later_index_are_woken_in_the_order_they_came() -> None:
    async def body(waiting: LongPolls) -> None:
        later = [await reader(waiting, start=5, taking=True), await reader(waiting, start=3, taking=True)]
        now = [await reader(waiting, taking=True), await reader(waiting, tags={"a": "b"}, taking=True)]
        waiting.item_arrived("q", Frame(5, {"a": "b"}))
        waiting.item_arrived("q", Frame(6))
        assert await woken(*later, *now) == [True, True, False, False]

    run(body)


def test_what_woke_a_taker_that_is_gone_goes_to_the_next() -> None:
    async def body(waiting: LongPolls) -> None:
        gone = asyncio.get_running_loop().create_future()
        wait = waiting.wait("q", Selection(0), taking=True, timeout_s=30, gone=gone)
        first = asyncio.create_task(wait)
        await asyncio.sleep(0)
        second = await reader(waiting, taking=True)
        waiting.item_arrived("q", Frame(1))
        gone.set_result(None)
        assert await woken(first, second) == [True, True]

    run(body)


def test_a_reader_that_is_gone_is_forgotten_at_once() -> None:
    async def body(waiting: LongPolls) -> None:
        gone = asyncio.get_running_loop().create_future()
        waits = [waiting.wait("q", Selection(0), taking=False, timeout_s=30, gone=gone) for _ in range(3)]
        tasks = [asyncio.create_task(one) for one in waits]
        await asyncio.sleep(0)
        gone.set_result(None)
        await asyncio.gather(*tasks)
        assert "q" not in waiting

    run(body)
