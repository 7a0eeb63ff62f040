"""The storage contract: one suite, run on each engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from easq.errors import QueueFull, StreamEnded
from easq.model import NEWEST, Ack, Consumer, Frame
from easq.storage.base import MOST_BYTES, Limits, Selection, Timing
from tests.storage.conftest import Engine, run_on

Run: TypeAlias = Callable[[Callable[[Engine], Awaitable[Any]]], Any]


# -- append and read ---------------------------------------------------------------------------------------------------


def test_indexes_start_at_one_and_go_up(run: Run) -> None:
    async def body(engine: Engine) -> None:
        assert [await engine.put(), await engine.put(), await engine.put()] == [1, 2, 3]

    run(body)


def test_what_was_put_is_read_back_whole(run: Run) -> None:
    """Data of any bytes and tags of any text come back as they went in."""
    data = bytes(range(256)) + b"\0" * 10
    tags = {"requestId": "r", "task_id": "b ar/ü\u202e", "empty": ""}

    async def body(engine: Engine) -> None:
        appended = await engine.storage.append("q", Frame(0, tags, data), priority=0, limits=Limits())
        assert appended == Ack(1, "r")
        assert await engine.storage.read("q", Selection(0)) == [Frame(1, tags, data)]

    run(body)


def test_concurrent_appends_get_distinct_indexes_and_stay_in_order(run: Run) -> None:
    async def body(engine: Engine) -> None:
        indexes = await asyncio.gather(*(engine.put(str(n).encode()) for n in range(200)))
        assert indexes == list(range(1, 201))
        frames = await engine.storage.read("q", Selection(0, length=1000))
        assert [frame.data for frame in frames] == [str(n).encode() for n in range(200)]

    run(body)


def test_indexes_are_not_used_again_after_truncate_to_empty(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        assert await engine.storage.truncate("q", 4) == 3
        assert await engine.put() == 4
        assert await engine.storage.delete("q", [4]) == 1
        assert await engine.put() == 5

    run(body)


def test_read_starts_at_an_index_and_counts_matches(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for n in range(6):
            await engine.put(str(n).encode(), color="red" if n % 2 else "blue")
        assert await engine.indexes(start=3) == [3, 4, 5, 6]
        assert await engine.indexes(start=0, length=2, tags={"color": "red"}) == [2, 4]
        assert await engine.indexes(start=3, length=1, tags={"color": "red"}) == [4]
        assert await engine.indexes(tags={"color": "green"}) == []
        assert await engine.indexes(tags={"color": "red", "requestId": "r-3"}) == [4]
        assert await engine.indexes(tags={"color": "blue", "requestId": "r-3"}) == []

    run(body)


def test_reading_by_index_ignores_priority_classes(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for priority in (0, 5, 0, 1):
            await engine.put(priority=priority)
        assert await engine.indexes() == [1, 2, 3, 4]

    run(body)


def test_one_request_id_may_belong_to_several_items(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put(b"same", requestId="one")
        await engine.storage.delete("q", [2])
        assert await engine.indexes(tags={"requestId": "one"}) == [1, 3]

    run(body)


def test_newest_without_waiting_is_the_last_item(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        assert await engine.indexes(start=NEWEST) == [3]

    run(body)


def test_one_read_stops_at_a_bound_of_bytes(run: Run) -> None:
    async def body(engine: Engine) -> None:
        piece = b"x" * (MOST_BYTES // 4)
        for _ in range(6):
            await engine.put(piece, requestId="big")
        frames = await engine.storage.read("q", Selection(0, length=10))
        assert [frame.index for frame in frames] == [1, 2, 3, 4]

    run(body)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_full_stream_refuses_and_stores_nothing(run: Run) -> None:
    async def body(engine: Engine) -> None:
        limits = Limits(max_items=2)
        await engine.put(limits=limits)
        await engine.put(limits=limits)
        with pytest.raises(QueueFull, match="2 of 2 items"):
            await engine.put(limits=limits)
        assert await engine.length() == 2
        assert await engine.commit(1) == 1
        assert await engine.put(limits=limits) == 3

    run(body)


def test_concurrent_appends_do_not_pass_the_limit_together(run: Run) -> None:
    async def body(engine: Engine) -> None:
        limits = Limits(max_items=5)
        results = await asyncio.gather(
            *(engine.put(limits=limits) for _ in range(20)), return_exceptions=True
        )
        assert sum(isinstance(result, QueueFull) for result in results) == 15
        assert await engine.length() == 5

    run(body)


def test_the_limit_of_bytes_counts_payload(run: Run) -> None:
    async def body(engine: Engine) -> None:
        limits = Limits(max_bytes=10)
        await engine.put(b"123456", limits=limits)
        with pytest.raises(QueueFull, match="6 of 10 bytes"):
            await engine.put(b"12345", limits=limits)
        await engine.put(b"1234", limits=limits)

    run(body)


def test_eviction_drops_the_oldest(run: Run) -> None:
    async def body(engine: Engine) -> None:
        limits = Limits(max_items=3, evict=True)
        for _ in range(5):
            await engine.put(limits=limits)
        assert await engine.indexes() == [3, 4, 5]

    run(body)


def test_a_full_stream_lets_go_of_what_only_absent_groups_hold(run: Run) -> None:
    """A watch for debugging that was left running must never fill the queue."""

    async def body(engine: Engine) -> None:
        limits = Limits(max_items=2)
        forgotten = await engine.attach(group="debug")
        await engine.detach(forgotten)
        worker = await engine.attach(group="g")
        for _ in range(2):
            await engine.put(limits=limits)
        await engine.leased(worker, 2)
        await engine.commit(1, 2)
        assert await engine.length() == 2
        assert await engine.put(limits=limits) == 3
        assert await engine.indexes() == [3]

    run(body)


def test_an_ended_stream_takes_nothing_more_until_it_is_reopened(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        await engine.storage.end("q", ended=True)
        with pytest.raises(StreamEnded):
            await engine.put()
        assert await engine.indexes() == [1]
        await engine.storage.end("q", ended=False)
        assert await engine.put() == 2

    run(body)


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claimed_item_is_gone_for_everyone_until_it_is_released(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put(b"a")
        await engine.put(b"b")
        taken = await engine.storage.take("q", Selection(0), minimum=1)
        assert [frame.index for frame in taken] == [1]
        assert await engine.indexes() == [2]
        assert await engine.indexes(tags={"requestId": "r-a"}) == []
        stats = await engine.storage.attributes("q", now=engine.now)
        assert (stats.length, stats.first, stats.last, stats.size) == (1, 2, 2, 1)
        assert await engine.storage.count("q", tags={}, priority=None) == 1
        session = await engine.attach()
        assert await engine.leased(session) == [2]
        await engine.storage.release("q", [1])
        assert await engine.leased(session) == [1]
        assert await engine.indexes() == [1, 2]

    run(body)


def test_two_takers_never_get_the_same_item(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for n in range(50):
            await engine.put(str(n).encode())
        taken = await asyncio.gather(
            *(engine.storage.take("q", Selection(0, length=3), minimum=1) for _ in range(20))
        )
        indexes = [frame.index for frames in taken for frame in frames]
        assert sorted(indexes) == list(range(1, 51))

    run(body)


def test_too_few_matches_are_not_claimed(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        assert await engine.storage.take("q", Selection(0, length=2), minimum=2) == []
        assert await engine.indexes() == [1]

    run(body)


def test_a_claim_that_was_truncated_does_not_come_back(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        await engine.storage.take("q", Selection(0), minimum=1)
        await engine.storage.truncate("q", 2)
        await engine.storage.release("q", [1])
        assert await engine.length() == 0
        assert await engine.indexes() == []

    run(body)


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_a_reader_wakes_for_a_matching_item_only(run: Run) -> None:
    async def body(engine: Engine) -> None:
        waiting = asyncio.ensure_future(
            engine.storage.wait("q", Selection(0, {"requestId": "r-b"}), taking=False, timeout_s=30)
        )
        await asyncio.sleep(0)
        await engine.put(b"a")
        await engine.settle()
        assert not waiting.done()
        await engine.put(b"b")
        await asyncio.wait_for(waiting, 10)

    run(body)


def test_one_item_wakes_one_taker(run: Run) -> None:
    async def body(engine: Engine) -> None:
        waiting = [
            asyncio.ensure_future(engine.storage.wait("q", Selection(0), taking=True, timeout_s=30))
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        await engine.put()
        await engine.settle()
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True, False, False]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(body)


def test_waiting_ends_when_the_time_is_over(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await asyncio.wait_for(engine.storage.wait("q", Selection(0), taking=False, timeout_s=0.01), 10)

    run(body)


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_window_is_never_exceeded_and_each_commit_lets_one_through(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(10):
            await engine.put()
        session = await engine.attach(window=3)
        assert await engine.leased(session, 3) == [1, 2, 3]
        assert await engine.has_nothing_for(session)
        await engine.commit(2)
        assert await engine.leased(session) == [4]
        assert await engine.has_nothing_for(session)

    run(body)


def test_higher_classes_come_first_and_each_class_in_order(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for priority in (0, 1, 0, 7, 1, 0):
            await engine.put(priority=priority)
        session = await engine.attach(window=1)
        order = []
        for _ in range(6):
            (index,) = await engine.leased(session)
            order.append(index)
            await engine.commit(index)
        assert order == [4, 2, 5, 1, 3, 6]

    run(body)


def test_a_returned_item_keeps_its_place(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(4):
            await engine.put()
        session = await engine.attach(window=2)
        assert await engine.leased(session, 2) == [1, 2]
        await engine.negative(1)
        assert await engine.leased(session) == [1]
        await engine.commit(2)
        assert await engine.leased(session) == [3]

    run(body)


def test_a_redelivery_says_how_often(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach()
        (first,) = await engine.storage.lease("q", session, index_only=False)
        await engine.negative(1)
        (second,) = await engine.storage.lease("q", session, index_only=False)
        assert "deliveryCount" not in first.frame.tags
        assert second.frame.tags["deliveryCount"] == "2"
        (stored,) = await engine.storage.read("q", Selection(0))
        assert "deliveryCount" not in stored.tags

    run(body)


def test_a_leased_item_is_the_connections_until_it_is_not(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(4):
            await engine.put()
        session = await engine.attach()
        assert await engine.leased(session, 4) == [1, 2, 3, 4]

        async def still() -> list[bool]:
            return [await engine.storage.still_leased("q", session, index) for index in (1, 2, 3, 4)]

        assert await still() == [True] * 4
        if engine.url.startswith("redis"):
            await engine.detach(session)
            assert (
                await still() == [False] * 4
            )  # what others did at Redis is asked when a lease may have expired
            return
        await engine.commit(1)
        await engine.storage.delete("q", [2])
        await engine.negative(3)
        assert await still() == [False, False, False, True]
        assert await engine.leased(session) == [3]
        assert await still() == [False, False, True, True]
        await engine.attach()
        assert await still() == [False] * 4

    run(body)


def test_index_only_leaves_the_data_out(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put(b"payload", color="red")
        session = await engine.attach()
        (lease,) = await engine.storage.lease("q", session, index_only=True)
        assert lease.frame == Frame(1, {"color": "red", "requestId": "r-payload"}, b"")

    run(body)


def test_items_go_to_the_consumer_with_most_free_slots(run: Run) -> None:
    async def body(engine: Engine) -> None:
        small = await engine.attach("small", window=2)
        large = await engine.attach("large", window=4)
        for _ in range(6):
            await engine.put()
        shares = [await engine.leased(small, 2), await engine.leased(large, 4)]
        assert sorted(shares[0] + shares[1]) == [1, 2, 3, 4, 5, 6]
        assert shares[1][:2] == [1, 2]

    run(body)


def test_each_group_gets_every_item_and_the_last_commit_removes_it(run: Run) -> None:
    async def body(engine: Engine) -> None:
        one = await engine.attach(group="one")
        two = await engine.attach(group="two")
        await engine.put()
        assert await engine.leased(one) == await engine.leased(two) == [1]
        assert await engine.commit(1, group="one") == 1
        assert await engine.length() == 1
        assert await engine.commit(1, group="one") == 0
        assert await engine.commit(1, group="two") == 1
        assert await engine.length() == 0

    run(body)


def test_a_new_group_sees_what_is_there(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        await engine.put()
        holder = await engine.attach(group="holder")
        early = await engine.attach(group="early")
        await engine.leased(early, 2)
        await engine.commit(1, group="early")
        late = await engine.attach(group="late")
        assert await engine.leased(late, 2) == [1, 2]
        assert await engine.leased(holder, 2) == [1, 2]

    run(body)


def test_a_filter_delivers_only_what_matches(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for n in range(6):
            await engine.put(str(n).encode(), color="red" if n % 3 == 0 else "blue")
        session = await engine.attach(tags={"color": "red"})
        assert await engine.leased(session, 2) == [1, 4]
        await engine.put(b"7", color="red")
        assert await engine.leased(session) == [7]

    run(body)


def test_a_watch_can_start_later_and_a_second_consumer_gets_the_rest(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(4):
            await engine.put()
        late = await engine.attach("late", after=2)
        assert await engine.leased(late, 2) == [3, 4]
        rest = await engine.attach("rest")
        assert await engine.leased(rest, 2) == [1, 2]

    run(body)


def test_newest_skips_what_is_there(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach(after=NEWEST)
        assert await engine.has_nothing_for(session)
        await engine.put()
        assert await engine.leased(session) == [2]

    run(body)


async def consumer_with(engine: Engine, count: int, user: str) -> int:
    """Add a connection that gets `count` new items, which fill its window."""
    for _ in range(count):
        await engine.put()
    session = await engine.attach(user, window=count)
    assert await engine.leased(session, count) == list(range(1, count + 1))
    return session


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_a_closed_connection_returns_its_items_at_once(run: Run) -> None:
    async def body(engine: Engine) -> None:
        first = await consumer_with(engine, 3, "first")
        second = await engine.attach("second", window=3)
        await engine.detach(first)
        assert await engine.leased(second, 3) == [1, 2, 3]

    run(body)


def test_a_lost_connection_keeps_its_items_for_the_same_user(run: Run) -> None:
    """The same user gets the items at once, in order and one at a time; another user gets them only after the grace
    period.
    """

    async def body(engine: Engine) -> None:
        first = await consumer_with(engine, 3, "first")
        second = await engine.attach("second", window=3)
        await engine.detach(first, lost=True)
        assert await engine.has_nothing_for(second)
        again = await engine.attach("first", window=3)
        for index in (1, 2, 3):
            assert await engine.leased(again) == [index]
            assert await engine.has_nothing_for(second)
            assert await engine.has_nothing_for(again)
            await engine.commit(index)

    run(body)


def test_a_process_that_is_back_keeps_what_it_holds(run: Run) -> None:
    """A returning process gets all its items at once, any number of times, also before the service has noticed the
    loss. No failure is counted.
    """

    async def body(engine: Engine) -> None:
        for _ in range(4):
            await engine.put()
        session = await engine.attach("first", window=3, process="p")
        second = await engine.attach("second", window=1)
        assert await engine.leased(session, 3) == [1, 2, 3]
        assert await engine.leased(second) == [4]
        for turn in range(8):
            if turn % 2:
                await engine.detach(session, lost=True)
            session = await engine.attach("first", window=3, process="p")
            assert await engine.leased(session, 3) == [1, 2, 3]
        await engine.commit(4)
        assert await engine.has_nothing_for(second)
        await engine.negative(3)  # its first failure, with no delay after it
        assert await engine.leased(second) == [3]

    run(body)


def test_a_process_that_is_back_with_less_room_gets_the_rest_later(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        session = await engine.attach("first", window=3, process="p")
        await engine.leased(session, 3)
        await engine.detach(session, lost=True)
        session = await engine.attach("first", window=2, process="p")
        assert await engine.leased(session, 2) == [1, 2]
        await engine.commit(1)
        assert await engine.has_nothing_for(session)
        await engine.commit(2)
        assert await engine.leased(session) == [3]

    run(body)


def test_a_late_commit_of_what_a_lost_connection_had_counts(run: Run) -> None:
    async def body(engine: Engine) -> None:
        session = await consumer_with(engine, 2, "first")
        await engine.detach(session, lost=True)
        assert await engine.commit(1) == 1
        again = await engine.attach("first")
        assert await engine.leased(again) == [2]

    run(body)


def test_a_failed_item_goes_to_another_consumer(run: Run) -> None:
    """The item waits for such a consumer while it has no free slot; other consumers get later items."""

    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        bad, good = await engine.attach("bad", window=1), await engine.attach("good", window=1)
        assert await engine.leased(bad) == [1]
        assert await engine.leased(good) == [2]
        await engine.negative(1)
        assert await engine.leased(bad) == [3]
        await engine.commit(3)
        assert await engine.has_nothing_for(bad)
        await engine.commit(2)
        assert await engine.leased(good) == [1]

    run(body)


@pytest.mark.parametrize("how", ["never there", "leaves", "wants other tags"])
def test_a_failed_item_comes_again_where_there_is_no_other(run: Run, how: str) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        only = await engine.attach("only", window=1)
        assert await engine.leased(only) == [1]
        if how != "never there":
            other = await engine.attach(
                "other", window=1, tags={"color": "red"} if how == "wants other tags" else {}
            )
        if how == "leaves":
            await engine.put()
            assert await engine.leased(other) == [2]
        await engine.negative(1)
        if how == "leaves":
            assert await engine.has_nothing_for(only)
            await engine.detach(other)
        assert await engine.leased(only) == [1]

    run(body)


def test_an_item_that_failed_twice_goes_alone_to_another(engine_url: str) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        bad = await engine.attach("bad")
        assert await engine.leased(bad) == [1]
        await engine.negative(1)
        assert await engine.leased(bad) == [1]
        good = await engine.attach("good")
        await engine.negative(1)
        assert await engine.leased(good) == [1]
        assert await engine.has_nothing_for(bad)

    run_on(engine_url, body, Timing(backoff_s=(0.0,)))


def test_a_busy_item_comes_again_when_it_is_due(engine_url: str) -> None:
    """No failure is counted, and other items are delivered meanwhile."""

    async def body(engine: Engine) -> None:
        for _ in range(2):
            await engine.put()
        session = await engine.attach(window=1)
        assert await engine.leased(session) == [1]
        begun = engine.now
        await engine.negative(1, code="Busy", delay_s=0.3)
        assert await engine.leased(session) == [2]
        await engine.commit(2)
        assert await engine.leased(session) == [1]
        assert engine.now - begun >= 0.29
        for _ in range(20):
            await engine.negative(1, code="Busy", delay_s=0.0)
            assert await engine.leased(session) == [1]
        await engine.negative(1)  # the first failure, with no delay after it
        assert await engine.leased(session) == [1]

    run_on(engine_url, body, Timing(backoff_s=(0.0, 600.0)))


def test_a_busy_item_fails_although_it_waits_at_the_consumer(engine_url: str) -> None:
    """A worker keeps an item until it may ask its model again: once the model was busy, this time counts. The time
    before does not, and each failure begins anew.
    """

    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach(window=1)
        for _ in range(2):
            assert await engine.leased(session) == [1]
            await asyncio.sleep(0.15)
            await engine.negative(1, code="Busy", delay_s=0.0)
            assert await engine.leased(session) == [1]
            await asyncio.sleep(0.15)
            await engine.negative(1, code="Busy", delay_s=0.0)
        assert await engine.has_nothing_for(session)

    run_on(engine_url, body, Timing(backoff_s=(0.0, 600.0), busy_limit_s=0.1))


def test_a_busy_item_goes_to_another_consumer(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        one = await engine.attach("one")
        assert await engine.leased(one) == [1]
        two = await engine.attach("two")
        await engine.negative(1, code="Busy", delay_s=0.0)
        assert await engine.leased(two) == [1]
        await engine.negative(1, code="Busy", delay_s=0.0)
        assert await engine.leased(one) == [1]

    run(body)


def test_a_lost_connections_items_go_to_others_after_the_grace(engine_url: str) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        first = await engine.attach("first", window=3)
        await engine.leased(first, 3)
        second = await engine.attach("second", window=3)
        await engine.detach(first, lost=True)
        for index in (1, 2, 3):
            assert await engine.leased(second) == [index]
            await engine.commit(index)

    run_on(engine_url, body, Timing(leave_grace_s=0.05))


def test_the_same_user_with_a_smaller_window_never_gets_more_than_it(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(5):
            await engine.put()
        first = await engine.attach("first", window=5)
        await engine.leased(first, 5)
        await engine.detach(first, lost=True)
        again = await engine.attach("first", window=2)
        assert await engine.leased(again) == [1]
        assert await engine.has_nothing_for(again)

    run(body)


def test_a_second_connection_of_one_name_replaces_the_first(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        first = await engine.attach()
        assert await engine.leased(first) == [1]
        second = await engine.attach()
        assert await engine.leased(second) == [1]
        assert await engine.storage.lease("q", first, index_only=False) == []
        await engine.detach(first, lost=True)
        assert await engine.storage.sessions("q") == {Consumer("g", "u"): second}

    run(body)


def test_a_lost_connection_counts_a_failure_and_a_shutdown_does_not(run: Run) -> None:
    """After a lost connection the item waits for the back-off of a second failure; after Shutdown it does not."""

    async def body(engine: Engine) -> None:
        await engine.put()
        first = await engine.attach("first")
        await engine.leased(first)
        await engine.negative(1, code="Shutdown")
        second = await engine.attach("second")
        assert await engine.leased(second) == [1]
        await engine.negative(1)
        assert await engine.leased(second) == [1]

    run(body)


def test_shutdown_stops_pushing_to_that_connection(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        await engine.put()
        leaving = await engine.attach("leaving", window=1)
        assert await engine.leased(leaving) == [1]
        await engine.negative(1, code="Shutdown")
        assert await engine.has_nothing_for(leaving)
        other = await engine.attach("other")
        assert await engine.leased(other, 2) == [1, 2]

    run(body)


def test_the_back_off_grows_with_each_failure(engine_url: str) -> None:
    """The first failure brings the item back at once, the second after its delay."""

    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach()
        assert await engine.leased(session) == [1]
        await engine.negative(1)
        assert await engine.leased(session) == [1]
        await engine.negative(1)
        assert await engine.has_nothing_for(session)
        assert await engine.leased(session) == [1]

    run_on(engine_url, body, Timing(backoff_s=(0.0, 0.3)))


def test_negative_of_what_is_not_pending_does_nothing(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        assert await engine.negative(1) == 0
        session = await engine.attach()
        await engine.leased(session)
        assert await engine.negative(1, 1, 99) == 1
        assert await engine.negative(1, group="other") == 0

    run(body)


# -- commit, delete, truncate ------------------------------------------------------------------------------------------


def test_commit_is_idempotent_and_ignores_what_is_not_there(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        assert await engine.commit(0, 1, 1, 99, 2**64 - 1) == 1
        assert await engine.commit(1) == 0
        assert await engine.length() == 0
        assert await engine.put() == 2
        assert await engine.length() == 1

    run(body)


def test_a_commit_after_redelivery_began_is_honoured(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        first = await engine.attach("first")
        await engine.leased(first)
        await engine.detach(first)
        second = await engine.attach("second", window=1)
        assert await engine.leased(second) == [1]
        assert await engine.commit(1) == 1
        await engine.put()
        assert await engine.leased(second) == [2]

    run(body)


def test_a_group_without_consumers_may_commit(run: Run) -> None:
    """The item is removed if no other group retains it. Otherwise the group never gets it, and does not retain it."""

    async def body(engine: Engine) -> None:
        await engine.put()
        await engine.put()
        watching = await engine.attach(group="watching")
        assert await engine.commit(1, group="shell") == 1
        assert await engine.length() == 2
        await engine.leased(watching, 2)
        await engine.commit(1, 2, group="watching")
        assert await engine.length() == 0
        await engine.put()
        await engine.detach(watching)
        shell = await engine.attach(group="shell")
        assert await engine.leased(shell) == [3]

    run(body)


def test_delete_and_truncate_free_slots_and_orphan_copies(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(6):
            await engine.put()
        session = await engine.attach(window=2)
        assert await engine.leased(session, 2) == [1, 2]
        assert await engine.storage.delete("q", [1, 1, 77, 2**64 - 1]) == 1
        assert await engine.leased(session) == [3]
        assert await engine.storage.truncate("q", 4) == 2
        assert await engine.leased(session, 2) == [4, 5]
        assert await engine.commit(1, 2, 3) == 0
        assert await engine.negative(1, 2, 3) == 0
        assert await engine.indexes() == [4, 5, 6]

    run(body)


def test_truncate_removes_strictly_lower_indexes(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(5):
            await engine.put()
        assert await engine.storage.truncate("q", 3) == 2
        assert await engine.indexes() == [3, 4, 5]
        assert await engine.storage.truncate("q", 1) == 0
        assert await engine.storage.truncate("q", 2**64 - 1) == 3
        assert await engine.storage.truncate("q", 1) == 0
        assert await engine.put() == 6

    run(body)


def test_truncate_leaves_what_is_being_put(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        putting = [asyncio.ensure_future(engine.put()) for _ in range(20)]
        truncated = asyncio.ensure_future(engine.storage.truncate("q", 2**64 - 1))
        indexes = await asyncio.gather(*putting)
        await truncated
        left = await engine.indexes()
        assert left == indexes[len(indexes) - len(left) :]
        frames = await engine.storage.read("q", Selection(0, length=100))
        assert [frame.index for frame in frames] == left

    run(body)


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_group_that_is_long_gone_holds_nothing_back(engine_url: str) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        gone = await engine.attach(group="gone")
        stays = await engine.attach(group="stays")
        await engine.leased(stays)
        await engine.detach(gone)
        await engine.commit(1, group="stays")
        assert await engine.length() == 1
        async with asyncio.timeout(10):
            while await engine.length():
                await asyncio.sleep(0.01)

    run_on(engine_url, body, Timing(group_retention_s=0.3))


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_search_tells_owner_or_how_many_are_ahead(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for priority in (0, 0, 0, 1):
            await engine.put(priority=priority)
        session = await engine.attach("worker", window=1)
        assert await engine.leased(session) == [4]
        locate = engine.storage.locate
        pending = await locate("q", "g", 4)
        assert pending is not None
        assert (pending.owner, pending.ahead) == ("worker", 0)
        third = await locate("q", "g", 3)
        assert third is not None
        assert (third.owner, third.ahead) == (None, 2)
        elsewhere = await locate("q", "other", 3)
        assert elsewhere is not None
        assert (elsewhere.owner, elsewhere.ahead) == (None, 3)
        assert await locate("q", "g", 5) is None

    run(body)


def test_count_by_class_and_tags(run: Run) -> None:
    async def body(engine: Engine) -> None:
        for n in range(6):
            await engine.put(str(n).encode(), priority=n % 2, color="red" if n < 4 else "blue")
        count = engine.storage.count
        assert await count("q", tags={}, priority=None) == 6
        assert await count("q", tags={}, priority=1) == 3
        assert await count("q", tags={"color": "red"}, priority=None) == 4
        assert await count("q", tags={"color": "blue"}, priority=0) == 1
        assert await count("q", tags={}, priority=9) == 0

    run(body)


def test_attributes_of_an_empty_and_of_a_used_stream(run: Run) -> None:
    async def body(engine: Engine) -> None:
        empty = await engine.storage.attributes("q", now=engine.now)
        assert (empty.length, empty.size, empty.first, empty.last, empty.next) == (0, 0, 0, 0, 1)
        assert (list(empty.consumers), list(empty.groups)) == ([], [])
        for n in range(3):
            await engine.put(b"ab", requestId=str(n))
        session = await engine.attach("worker", window=2)
        await engine.leased(session, 2)
        used = await engine.storage.attributes("q", now=engine.now)
        assert (used.length, used.size, used.first, used.last, used.next) == (3, 6, 1, 3, 4)
        (consumer,), (group,) = used.consumers, used.groups
        assert (consumer.id, consumer.status, consumer.index) == ("g.worker", "Running", 2)
        assert (consumer.pending, consumer.window, consumer.slots) == (2, 2, 0)
        assert group.text() == "Id: g, Index: 1, Pending: 2, Delivered: 3, Consumers: 1"

    run(body)


def test_a_consumer_that_left_is_complete_leaving_or_gone_with_work(run: Run) -> None:
    async def body(engine: Engine) -> None:
        async def status() -> dict[str, str]:
            stats = await engine.storage.attributes("q", now=engine.now)
            return {line.id: f"{line.status} {line.pending} {line.window}" for line in stats.consumers}

        await engine.put()
        idle = await engine.attach("idle", group="other")
        busy = await engine.attach("busy")
        await engine.leased(idle)
        await engine.leased(busy)
        await engine.commit(1, group="other")
        assert await status() == {"other.idle": "Running 0 10", "g.busy": "Running 1 10"}
        await engine.detach(idle, lost=True)
        await engine.detach(busy, lost=True)
        assert await status() == {"other.idle": "Complete 0 0", "g.busy": "Leaving 1 0"}
        heir = await engine.attach("heir")
        await engine.storage.detach("q", heir, lost=False, now=engine.now)
        assert (await status())["g.heir"] == "Complete 0 0"

    run(body)


def test_a_connection_that_shows_life_is_not_idle(run: Run) -> None:
    async def body(engine: Engine) -> None:
        consumer = Consumer("g", "u")
        assert await engine.storage.idle("q", consumer, now=engine.now) is None
        session = await engine.attach()
        idle = await engine.storage.idle("q", consumer, now=engine.now)
        assert idle is not None
        assert 0 <= idle < 60
        await engine.detach(session)
        assert await engine.storage.idle("q", consumer, now=engine.now) is None
        assert await engine.storage.idle("q", Consumer("other", "u"), now=engine.now) is None

    run(body)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_what_is_there_is_still_delivered_before_a_stream_is_over(run: Run) -> None:
    """A watcher gets the remaining items, and its watch ends with its last commit. A watch without remaining items is
    refused.
    """

    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach()
        await engine.storage.end("q", ended=True)
        assert await engine.leased(session) == [1]
        assert await engine.has_nothing_for(session)
        await engine.commit(1)
        with pytest.raises(StreamEnded):
            await engine.leased(session)
        await engine.detach(session)
        with pytest.raises(StreamEnded):
            await engine.attach("late")
        await engine.storage.end("q", ended=False)
        again = await engine.attach("late")
        await engine.put()
        assert await engine.leased(again) == [2]

    run(body)


def test_a_waiting_watcher_is_let_go_when_its_empty_stream_ends(run: Run) -> None:
    async def body(engine: Engine) -> None:
        session = await engine.attach()
        waiting = asyncio.ensure_future(engine.storage.lease("q", session, index_only=False))
        await asyncio.sleep(0)
        await engine.storage.end("q", ended=True)
        with pytest.raises(StreamEnded):
            await asyncio.wait_for(waiting, 10)

    run(body)


def test_a_group_that_is_through_is_let_go_while_another_is_not(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        fast, slow = await engine.attach(group="fast"), await engine.attach(group="slow")
        await engine.leased(fast)
        await engine.leased(slow)
        await engine.storage.end("q", ended=True)
        await engine.commit(1, group="fast")
        with pytest.raises(StreamEnded):
            await engine.leased(fast)
        assert await engine.has_nothing_for(slow)

    run(body)
