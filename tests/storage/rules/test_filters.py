"""Filters alone, after a restart, and their cost when very many items are retained."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from easq.errors import QueueFull
from easq.model import Consumer, Tags
from easq.storage.base import Limits, Subscription, Timing
from easq.storage.rules.filters import (
    ABSENT,
    CONNECTED,
    NOBODY,
    Filters,
    filter_of,
    filters_text,
    stored_filters,
)
from easq.storage.rules.retention import SLICE
from easq.storage.rules.state import AT_ONCE
from easq.storage.rules.stream import Stream
from tests.storage.conftest import Engine

Run: TypeAlias = Callable[[Callable[[Engine], Awaitable[Any]]], Any]
A, B = {"user": "a"}, {"user": "b"}


def test_a_groups_filter_and_the_time_it_was_left_are_kept(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        await engine.attach(group="here", tags=A)
        left = engine.now
        await engine.detach(await engine.attach(group="left", tags=B))
        await engine.restart()
        rules = engine.storage._rules["q"]  # type: ignore[attr-defined]
        ((tags, left_at),) = rules.filters("left")
        assert tags == filter_of(B)
        assert left <= left_at + 0.01
        ((tags, left_at),) = rules.filters("here")
        assert tags == filter_of(A)
        assert left_at > left

    run_sqlite(body)


def test_filters_are_stored_with_what_is_left_of_their_time() -> None:
    filters = [(filter_of(A), None), (filter_of(B), 90.0), ((), 99.5)]
    text = filters_text(filters, 100.0, 1_000_000)
    assert text == '[[{"user":"a"},null],[{"user":"b"},990000],[{},999500]]'
    # killed, and started again 20 s later: the clock went on, and nobody knows when who was connected left
    assert stored_filters(text, 7.0, 1_020_000) == [(A, 7.0), (B, -23.0), ({}, -13.5)]
    # stopped: the downtime does not count
    text = filters_text(filters, 100.0, 1_000_000, stopping=True)
    assert stored_filters(text, 7.0, 1_020_000) == [(A, 7.0), (B, -3.0), ({}, 6.5)]
    # a clock that was put back meanwhile gives nobody more than the whole time
    assert stored_filters(filters_text(filters, 100.0, 1_000_000), 7.0, 0) == [(A, 7.0), (B, 7.0), ({}, 7.0)]
    assert stored_filters("", 7.0, 0) is None


# -- filters -----------------------------------------------------------------------------------------------------------


def test_filters_tell_who_holds_an_item() -> None:
    filters = Filters()
    assert (filters.holder({}), filters.everything) == (NOBODY, NOBODY)
    filters.set(filter_of({"b": "2", "a": "1"}), None)
    filters.set(filter_of({"a": "1"}), 5.0)
    filters.set(filter_of({"a": "2"}), 6.0)
    assert filters.holder({"a": "1", "b": "2", "c": "3"}) == CONNECTED
    assert filters.holder({"a": "1", "b": "3"}) == ABSENT
    assert filters.holder({"a": "3", "b": "2"}) == NOBODY
    assert (filters.everything, filters.first_left_at) == (NOBODY, 5.0)
    assert not filters.drop_absent(10.0, 6.0)
    assert filters.drop_absent(11.0, 6.0)
    assert filters.holder({"a": "1"}) == NOBODY
    assert filters.holder({"a": "2"}) == ABSENT


def test_many_absent_filters_become_one_that_lets_everything_through() -> None:
    """Retained items stay, and the memory for consumers that left does not grow."""
    filters = Filters()
    filters.set(filter_of({"user": "here"}), None)
    for number in range(1000):
        filters.leave(filter_of({"user": str(number)}), float(number))
        assert len(list(filters)) < 70
        assert filters.holder({"user": "0"}) == ABSENT
    assert filters.holder({"user": "here"}) == CONNECTED


# -- what it costs -----------------------------------------------------------------------------------------------------


def committed_stream(count: int, tags_of: Callable[[int], Tags]) -> Stream:
    """A stream of `count` items that the group `worker` committed, and a consumer of `slow` does not."""
    stream = Stream(timing=Timing(group_retention_s=60.0), tags_of=tags_of)
    session, _ = stream.attach(Consumer("slow", "u"), Subscription(1, tags=A), 100.0)
    stream.attach(Consumer("worker", "u"), Subscription(1), 100.0)
    for index in range(1, count + 1):
        stream.allocate(1, Limits())
        stream.entries.show(index, index % 3)
    for first in range(1, count + 1, 1000):
        stream.commit("worker", range(first, min(first + 1000, count + 1)))
    assert len(stream.entries) == count
    stream.detach(session, lost=False, now=100.0)
    return stream


def test_what_a_retention_lets_go_leaves_in_slices() -> None:
    looked_at = 0

    def tags_of(_: int) -> Tags:
        nonlocal looked_at
        looked_at += 1
        return A

    count = 4 * SLICE + 10
    stream = committed_stream(count, tags_of)
    looked_at = 0
    now = stream.due
    assert now == 160.0
    slices = []
    while stream.due <= now:
        slices.append(len(stream.tick(now).removed))
        assert looked_at <= SLICE * len(slices)
    assert sum(slices) == count
    assert max(slices) <= SLICE
    assert len(stream.entries) == 0


def test_a_put_that_finds_the_stream_full_looks_at_few_items() -> None:
    """However many items were committed: the next puts examine the items that one put did not examine."""
    looked_at = 0

    def tags_of(index: int) -> Tags:
        nonlocal looked_at
        looked_at += 1
        return {**A, "late": str(index > 3)}

    count = 3 * SLICE
    stream = committed_stream(count, tags_of)
    stream.attach(Consumer("slow", "other"), Subscription(1, tags={**A, "late": "True"}), 100.0)
    limits = Limits(max_items=count)
    refused = 0
    while len(stream.entries) == count:
        looked_at = 0
        try:
            stream.allocate(1, limits)
        except QueueFull:
            refused += 1
            assert looked_at < SLICE
            assert refused < 20
    while stream.due == AT_ONCE:
        stream.tick(100.0)
    assert [index for index in range(1, count + 1) if index not in stream.entries] == [1, 2, 3]


@pytest.mark.long
def test_no_slice_takes_long_with_a_million_items() -> None:
    stream = committed_stream(1_000_000, lambda _: A)
    longest = 0.0
    limits = Limits(max_items=1_000_000)
    stream.attach(Consumer("slow", "u"), Subscription(1, tags=A), 100.0)
    stream.attach(Consumer("looked", "u"), Subscription(1), 100.0)
    stream.detach(3, lost=False, now=100.0)

    def measure(step: Callable[[], Any]) -> Any:
        nonlocal longest
        begun = time.thread_time()
        done = step()
        longest = max(longest, time.thread_time() - begun)
        return done

    def put() -> None:
        with pytest.raises(QueueFull):
            stream.allocate(1, limits)

    for _ in range(100):
        measure(put)
    measure(lambda: stream.detach(4, lost=False, now=100.0))
    now = 160.0
    measure(lambda: stream.tick(now))
    while stream.due == AT_ONCE:
        measure(lambda: stream.tick(now))
    assert len(stream.entries) == 0
    assert longest < 0.05
