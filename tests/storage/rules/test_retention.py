"""Retention of items by groups: by their filters, and for a time after their consumers left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis

from easq.errors import QueueFull
from easq.model import Tags
from easq.storage.base import Limits, Timing
from easq.storage.redis.codec import pack_tags
from tests.storage.conftest import Engine, run_on

Run: TypeAlias = Callable[[Callable[[Engine], Awaitable[Any]]], Any]
A, B = {"user": "a"}, {"user": "b"}


async def is_empty(engine: Engine) -> None:
    """Wait until the stream is empty."""
    async with asyncio.timeout(20):
        while await engine.length():
            await asyncio.sleep(0.02)


def test_groups_do_not_hold_what_their_filters_do_not_let_through(run: Run) -> None:
    """Two groups with different filters commit all their items: all items are removed."""

    async def body(engine: Engine) -> None:
        limits = Limits(max_items=4)
        sessions = {user: await engine.attach(group=user, tags={"user": user}) for user in "ab"}
        for _ in range(3):
            indexes = {user: [await engine.put(limits=limits, user=user) for _ in range(2)] for user in "ab"}
            for user, session in sessions.items():
                assert await engine.leased(session, 2) == indexes[user]
                assert await engine.commit(*indexes[user], group=user) == 2
        assert await engine.length() == 0

    run(body)


def test_what_no_filter_lets_through_waits(run: Run) -> None:
    """As it does where there are no groups, until one commits it."""

    async def body(engine: Engine) -> None:
        await engine.attach(group="a", tags=A)
        await engine.attach(group="b", tags=B)
        await engine.put(user="c")
        await engine.settle()
        assert await engine.indexes() == [1]
        assert await engine.commit(1, group="shell") == 1
        assert await engine.length() == 0

    run(body)


def test_a_group_holds_what_any_of_its_consumers_wants(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.attach("one", tags=A)
        await engine.attach("two", tags={**B, "color": "red"})
        for tags in (A, B, {**B, "color": "red"}):
            await engine.put(**tags)
        assert await engine.commit(1, 2, 3, group="other") == 3
        assert await engine.indexes() == [1, 3]
        assert await engine.commit(1, 3) == 2
        assert await engine.length() == 0
        everything = await engine.attach("three")
        for tags in (A, B, {}):
            await engine.put(**tags)
        await engine.commit(4, 5, 6, group="other")
        assert await engine.leased(everything, 1)
        assert await engine.indexes() == [4, 5, 6]

    run(body)


def test_an_absent_group_holds_what_its_filter_lets_through(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.detach(await engine.attach(tags=A))
        await engine.put(**A)
        await engine.put(**B)
        await engine.commit(1, 2, group="other")
        assert await engine.indexes() == [1]
        again = await engine.attach(tags=A)
        assert await engine.leased(again) == [1]
        await engine.commit(1)
        assert await engine.length() == 0

    run(body)


def test_a_lost_consumers_filter_counts_while_others_of_its_group_are_there(run: Run) -> None:
    """A short break of one connection costs its group nothing."""

    async def body(engine: Engine) -> None:
        one = await engine.attach("one", tags=A, process="p")
        await engine.attach("two", tags=B)
        await engine.put(**A)
        assert await engine.leased(one) == [1]
        await engine.commit(1, group="other")
        await engine.detach(one, lost=True)
        await engine.put(**A)
        await engine.commit(2, group="other")
        back = await engine.attach("one", tags=A, process="p")
        assert await engine.leased(back, 2) == [1, 2]

    run(body)


def test_a_consumer_with_another_filter_lets_go_of_what_its_old_one_held(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.detach(await engine.attach("one", tags=A))
        for tags in (A, B):
            await engine.put(**tags)
        await engine.commit(1, 2, group="other")
        assert await engine.indexes() == [1]
        await engine.attach("two", tags=B)
        assert await engine.indexes() == [1]
        await engine.attach("one", tags=B)
        assert await engine.length() == 0

    run(body)


def test_the_same_filter_of_another_consumer_still_holds(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.detach(await engine.attach("one", tags=A))
        await engine.detach(await engine.attach("other", tags=A))
        await engine.put(**A)
        await engine.commit(1, group="other")
        await engine.attach("one", tags=B)
        assert await engine.indexes() == [1]

    run(body)


@pytest.mark.parametrize("tags", [{}, A], ids=["everything", "filtered"])
def test_what_was_held_leaves_when_the_retention_ends_without_anyones_help(
    engine_url: str, tags: Tags
) -> None:
    """A worker that has committed everything and a watch that committed nothing have both left."""

    async def body(engine: Engine) -> None:
        worker, looked = await engine.attach(group="worker"), await engine.attach(group="looked", tags=tags)
        await engine.put(**A)
        await engine.leased(worker)
        await engine.leased(looked)
        await engine.commit(1, group="worker")
        await engine.detach(worker)
        await engine.detach(looked)
        assert await engine.length() == 1
        await is_empty(engine)

    run_on(engine_url, body, Timing(group_retention_s=0.3))


def test_a_full_stream_lets_go_of_what_only_absent_filters_hold(run: Run) -> None:
    """Also of a filter whose consumer left a group that still has another one."""

    async def body(engine: Engine) -> None:
        limits = Limits(max_items=2)
        await engine.detach(await engine.attach("looked", tags=A))
        await engine.attach("stays", tags=B)
        await engine.attach(group="worker")
        await engine.put(limits=limits, **A)
        await engine.put(limits=limits, **B)
        await engine.commit(1, 2, group="worker")
        assert await engine.indexes() == [1, 2]
        assert await engine.put(limits=limits, **B) == 3
        assert await engine.indexes() == [2, 3]
        await engine.commit(3, group="worker")
        with pytest.raises(QueueFull):
            await engine.put(limits=limits, **B)
        assert await engine.indexes() == [2, 3]

    run(body)


# -- over a restart ----------------------------------------------------------------------------------------------------


def test_a_forgotten_group_does_not_come_back_with_a_restart(tmp_path: Path) -> None:
    """Its time was over before the stop; afterwards others are alone."""

    async def body(engine: Engine) -> None:
        old = await engine.attach(group="old")
        index = await engine.put()
        await engine.leased(old)
        await engine.commit(index, group="old")
        await engine.detach(old)
        await asyncio.sleep(0.5)
        engine.timing = Timing()
        await engine.restart()
        newer = await engine.attach(group="newer")
        indexes = [await engine.put() for _ in range(3)]
        await engine.leased(newer, 3)
        await engine.commit(*indexes, group="newer")
        assert await engine.length() == 0

    run_on(f"sqlite:{tmp_path / 'easq.db'}", body, Timing(group_retention_s=0.2))


def test_a_group_that_was_there_until_the_stop_has_its_whole_retention_afterwards(run_sqlite: Run) -> None:
    """Also its filter, whichever consumer returns first."""

    async def body(engine: Engine) -> None:
        slow = await engine.attach(group="slow", tags=A)
        await engine.put(**A)
        await engine.put(**B)
        await engine.detach(slow)
        await engine.restart()
        await engine.commit(1, 2, group="quick")
        assert await engine.indexes() == [1]
        again = await engine.attach(group="slow", tags=A)
        assert await engine.leased(again) == [1]

    run_sqlite(body)


def test_groups_of_the_first_schema_are_taken_over(redis_url: str) -> None:
    """It knew no filters: of a group only when it was left, and the views of its connections."""

    async def body(engine: Engine) -> None:
        await engine.put(user="a")
        await engine.put(user="b")
        watching = await engine.attach(group="watching", tags={"user": "a"})
        await engine.detach(await engine.attach(group="left", tags={"user": "b"}))
        with redis.Redis.from_url(redis_url) as client:
            seconds, micros = client.time()
            now_ms = seconds * 1000 + micros // 1000
            client.hset("easq:{q}:meta", "schema", "1")
            for group, left in (("watching", -1), ("left", now_ms)):
                client.hdel(f"easq:{{q}}:g:{group}:meta", "filters")
                client.hset(f"easq:{{q}}:g:{group}:meta", "left", left)
            client.zrem("easq:{q}:timers", b"l\0left\0" + pack_tags({"user": "b"}))
            client.zadd("easq:{q}:timers", {b"l\0left": now_ms + 2000})
        await engine.commit(1, 2, group="worker")
        assert await engine.length() == 2
        async with asyncio.timeout(20):
            while await engine.length() == 2:
                await asyncio.sleep(0.05)
        assert await engine.indexes() == [1]
        assert await engine.leased(watching) == [1]
        await engine.commit(1, group="watching")
        assert await engine.length() == 0

    run_on(redis_url, body, Timing(group_retention_s=2.0))
