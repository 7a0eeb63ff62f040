"""Deadlines in a process that is suspended from time to time."""

from __future__ import annotations

import asyncio
import time

import pytest

from easq.server.deadline import Deadline


async def late_after_a_standstill(deadline: Deadline) -> str:
    """Suspend the loop for longer than the deadline. Data waits to be read when it continues."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[str] = loop.create_future()
    loop.call_later(0.01, time.sleep, 0.5)
    loop.call_later(0.02, came.set_result, "there")
    try:
        async with deadline:
            return await came
    except TimeoutError:
        return "late"


def test_a_standstill_does_not_use_up_a_deadline() -> None:
    assert asyncio.run(late_after_a_standstill(Deadline(0.4))) == "there"


def test_data_that_arrives_in_the_iteration_of_the_deadline_is_in_time() -> None:
    """This holds for the last part of the limit as well."""
    deadline = Deadline(0.05)
    deadline._most_s = 0.05
    assert asyncio.run(late_after_a_standstill(deadline)) == "there"


def test_a_deadline_passes_and_can_be_put_off() -> None:
    async def wait(more_s: float) -> None:
        async with Deadline(0.1) as deadline:
            deadline.extend(more_s)
            await asyncio.sleep(60)

    for more_s in (0.0, 0.2):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(wait(more_s))
        assert time.monotonic() - began >= 0.09 + more_s


def test_what_is_over_in_time_leaves_nothing_behind() -> None:
    async def body() -> None:
        async with Deadline(0.01):
            pass
        await asyncio.sleep(0.05)

    asyncio.run(body())
