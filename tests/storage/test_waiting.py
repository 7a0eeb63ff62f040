"""Readers that wait: who is woken by what, and that nobody is forgotten or left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from easq.model import Frame, Tags
from easq.storage.waiting import Waiting


def run(body: Callable[[Waiting], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(Waiting()), 20))


async def reader(
    waiting: Waiting, *, start: int = 0, tags: Tags | None = None, taking: bool = False
) -> asyncio.Task[None]:
    """A reader that waits already."""
    task = asyncio.create_task(waiting.wait("q", start=start, tags=tags or {}, taking=taking, timeout_s=30))
    await asyncio.sleep(0)
    return task


async def woken(*tasks: asyncio.Task[None]) -> list[bool]:
    """Which of the readers have gone on; the others are ended."""
    for _ in range(5):
        await asyncio.sleep(0)
    found = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


def test_an_item_wakes_the_readers_that_want_its_index_and_tags() -> None:
    async def body(waiting: Waiting) -> None:
        tasks = [
            await reader(waiting, start=8),
            await reader(waiting, start=9),
            await reader(waiting, tags={"run": "1"}),
            await reader(waiting, tags={"run": "2"}),
        ]
        waiting.came("q", Frame(8, {"run": "1", "other": "x"}))
        assert await woken(*tasks) == [True, False, True, False]

    run(body)


def test_two_items_wake_two_takers_and_everybody_before_them() -> None:
    async def body(waiting: Waiting) -> None:
        tasks = [
            await reader(waiting, taking=True),
            await reader(waiting),
            await reader(waiting, taking=True),
            await reader(waiting, taking=True),
        ]
        waiting.came("q", Frame(1))
        waiting.came("q", Frame(2))
        assert await woken(*tasks) == [True, True, True, False]

    run(body)


def test_a_wake_reaches_every_reader_of_its_stream_and_no_other() -> None:
    async def body(waiting: Waiting) -> None:
        tasks = [await reader(waiting, taking=True), await reader(waiting, start=100)]
        waiting.wake("other")
        waiting.came("other", Frame(1))
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        waiting.wake("q")
        assert await woken(*tasks) == [True, True]

    run(body)


def test_a_stream_is_known_as_long_as_somebody_waits_there() -> None:
    async def body(waiting: Waiting) -> None:
        assert "q" not in waiting
        tasks = [await reader(waiting), await reader(waiting, start=2)]
        waiting.came("q", Frame(1))
        await tasks[0]
        assert "q" in waiting
        await woken(*tasks)
        assert "q" not in waiting

    run(body)
