"""The rules of a stream in states that only the rules themselves reach: between dispatch and fetch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from easq.errors import QueueFull
from easq.model import Consumer, Tags
from easq.protocol.operations import SHUTDOWN, Negative
from easq.storage.base import Limits, Subscription, Timing
from easq.storage.rules.effects import Effects
from easq.storage.rules.stream import Stream

TIMING = Timing(leave_grace_s=2.0, group_retention_s=60.0, backoff_s=(0.0,))
NOW = 100.0


def stream_of(*sizes: int, max_failures: int = 0) -> Stream:
    """A stream with items of these sizes, from index 1 on."""
    stream = Stream(timing=TIMING, tags_of=lambda _: {}, max_failures=max_failures)
    for size in sizes:
        index, _ = stream.allocate(size, Limits())
        stream.entries.show(index, 0)
    return stream


def attach(stream: Stream, user: str = "u", group: str = "g", *, window: int = 10, now: float = NOW) -> int:
    session, _ = stream.attach(Consumer(group, user), Subscription(window), now)
    return session


def _removed(allotted: tuple[int, Effects | None]) -> list[int]:
    """Return what made room for the item."""
    _, effects = allotted
    assert effects is not None
    return effects.removed


def fetched(stream: Stream, session: int) -> list[tuple[int, int]]:
    return stream.fetch(session, most=100, most_bytes=1000, now=NOW)


# -- dispatched, not fetched ------------------------------------------------------------------------------------------


def test_what_comes_back_before_it_was_fetched_is_fetched_once() -> None:
    """A returned item is listed once, at its new position."""
    stream = stream_of(1, 1)
    session = attach(stream)
    assert stream.negative("g", Negative((1,)), now=NOW)[0] == 1
    assert fetched(stream, session) == [(2, 1), (1, 1)]
    assert fetched(stream, session) == []


def test_a_consumer_that_shuts_down_is_not_sent_what_it_has_not_fetched() -> None:
    stream = stream_of(1, 1, 1)
    leaving = attach(stream, "leaving")
    assert stream.fetch(leaving, most=1, most_bytes=1000, now=NOW) == [(1, 1)]
    other = attach(stream, "other")
    counted, effects = stream.negative("g", Negative((1, 2), SHUTDOWN), now=NOW)
    assert (counted, effects.woken) == (2, {other})
    assert fetched(stream, leaving) == []
    assert fetched(stream, other) == [(1, 2), (2, 1), (3, 1)]


def test_what_is_claimed_before_it_was_fetched_is_not_sent_until_it_is_released() -> None:
    stream = stream_of(1, 1)
    session = attach(stream, window=1)
    assert stream.claim([1]).woken == {session}
    assert fetched(stream, session) == [(2, 1)]
    stream.release([1])
    stream.commit("g", [2])
    assert fetched(stream, session) == [(1, 1)]


def test_what_is_claimed_is_not_sent_to_the_user_it_was_kept_for() -> None:
    stream = stream_of(1)
    session = attach(stream)
    assert fetched(stream, session) == [(1, 1)]
    stream.detach(session, lost=True, now=NOW)
    stream.claim([1])
    again = attach(stream)
    assert fetched(stream, again) == []
    stream.release([1])
    assert fetched(stream, again) == [(1, 2)]


# -- groups that hold items back ---------------------------------------------------------------------------------------


def test_what_a_group_had_committed_leaves_when_all_were_away_for_too_long() -> None:
    """Another group retained the item; then no group does, and items that no group committed stay."""
    stream = stream_of(1, 1)
    one, two = attach(stream, group="one"), attach(stream, group="two")
    stream.commit("one", [1])
    for session in (one, two):
        stream.detach(session, lost=False, now=NOW)
    assert stream.stats(NOW).length == 2
    assert stream.tick(NOW + TIMING.group_retention_s).removed == [1]
    assert list(stream.entries.indexes_from(0)) == [2]


# -- room --------------------------------------------------------------------------------------------------------------


def test_a_put_that_is_refused_evicts_nothing() -> None:
    """Claimed items cannot be evicted: there would be no room even without all other items."""
    stream = stream_of(6, 2)
    stream.claim([1])
    with pytest.raises(QueueFull):
        stream.allocate(5, Limits(max_bytes=10, evict=True))
    assert list(stream.entries.indexes_from(0)) == [2]
    assert _removed(stream.allocate(4, Limits(max_bytes=10, evict=True))) == [2]


def test_a_put_that_is_refused_takes_no_absent_group_its_claim() -> None:
    stream = stream_of(3, 3)
    attach(stream, group="here")
    absent = attach(stream, group="absent")
    stream.detach(absent, lost=False, now=NOW)
    stream.commit("here", [1])
    with pytest.raises(QueueFull):
        stream.allocate(8, Limits(max_bytes=10))
    assert list(stream.entries.indexes_from(0)) == [1, 2]
    assert _removed(stream.allocate(7, Limits(max_bytes=10))) == [1]


# -- alone -------------------------------------------------------------------------------------------------------------


def test_an_item_that_goes_alone_goes_to_whoever_has_nothing_else_to_do() -> None:
    stream = stream_of(1, 1)
    busy = attach(stream, "busy")
    assert fetched(stream, busy) == [(1, 1), (2, 1)]
    stream.negative("g", Negative((1,)), now=NOW)
    assert fetched(stream, busy) == [(1, 2)]
    stream.negative("g", Negative((1,)), now=NOW)
    assert fetched(stream, busy) == []
    idle = attach(stream, "idle")
    assert fetched(stream, idle) == [(1, 3)]
    stream.commit("g", [2])
    assert fetched(stream, busy) == []


# -- who gets it -------------------------------------------------------------------------------------------------------


def test_the_consumer_with_most_free_slots_gets_it_whatever_else_they_want() -> None:
    """Also when the consumers of a group started at different indexes."""
    stream = stream_of(1)
    stream.delete([1])
    small, _ = stream.attach(Consumer("g", "small"), Subscription(1), NOW)
    large, _ = stream.attach(Consumer("g", "large"), Subscription(5, after=1), NOW)
    index, _ = stream.allocate(1, Limits())
    stream.entries.show(index, 0)
    stream.dispatch()
    assert (fetched(stream, small), fetched(stream, large)) == ([], [(2, 1)])


# -- given up in vain --------------------------------------------------------------------------------------------------


def test_an_item_that_whose_dead_letter_was_refused_comes_again_after_the_longest_back_off() -> None:
    stream = stream_of(1, 1, 1, max_failures=1)
    session = attach(stream)
    fetched(stream, session)
    _, effects = stream.negative("g", Negative((2,)), now=NOW)
    assert list(stream.entries.indexes_from(0)) == [1, 3]
    stream.copies_refused(effects, NOW)
    assert list(stream.entries.indexes_from(0)) == [1, 2, 3]
    stream.commit("g", [1, 3])
    assert stream.due == NOW + TIMING.backoff_s[-1]
    stream.tick(stream.due)
    assert fetched(stream, session) == [(2, 2)]


@pytest.mark.parametrize("held", [False, True])
def test_what_was_removed_before_its_dead_letter_was_refused_does_not_come_again(held: bool) -> None:
    stream = stream_of(1, 1, max_failures=1)
    session = attach(stream)
    if held:
        attach(stream, group="other")
    fetched(stream, session)
    _, effects = stream.negative("g", Negative((1,)), now=NOW)
    stream.truncate(2)
    stream.copies_refused(effects, NOW)
    assert list(stream.entries.indexes_from(0)) == [2]


def test_a_truncation_beyond_what_is_there_takes_nothing_that_comes_after_it() -> None:
    """Also when its dead letter was refused: it was put later."""
    stream = stream_of(max_failures=1)
    stream.truncate(1000)
    index, _ = stream.allocate(1, Limits())
    stream.entries.show(index, 0)
    session = attach(stream)
    assert fetched(stream, session) == [(1, 1)]
    _, effects = stream.negative("g", Negative((1,)), now=NOW)
    stream.copies_refused(effects, NOW)
    assert list(stream.entries.indexes_from(0)) == [1]


def test_what_was_deleted_before_its_dead_letter_was_refused_is_removed_for_good() -> None:
    stream = stream_of(1, max_failures=1)
    session = attach(stream)
    fetched(stream, session)
    _, effects = stream.negative("g", Negative((1,)), now=NOW)
    stream.delete([1])
    assert stream.copies_refused(effects, NOW).removed == [1]
    assert list(stream.entries.indexes_from(0)) == []


@pytest.mark.parametrize("held", [False, True])
def test_what_was_committed_before_its_dead_letter_was_refused_does_not_come_again(held: bool) -> None:
    """Whether another group holds it or not."""
    stream = stream_of(1, max_failures=1)
    session = attach(stream)
    other = attach(stream, group="other") if held else 0
    fetched(stream, session)
    _, given_up = stream.negative("g", Negative((1,)), now=NOW)
    stream.commit("g", [1])
    taken = stream.copies_refused(given_up, NOW)
    stream.tick(NOW + TIMING.backoff_s[-1])
    assert fetched(stream, session) == []
    assert taken.removed == ([] if held else [1])
    assert list(stream.entries.indexes_from(0)) == ([1] if held else [])
    if held:
        assert fetched(stream, other) == [(1, 1)]
        assert stream.commit("other", [1])[1].removed == [1]


# -- a service that runs for long --------------------------------------------------------------------------------------


def remembered(stream: Stream, group: str = "g") -> int:
    """How much is remembered for handing out in a group."""
    known = stream._groups[group]
    cursors = sum(len(view.cursors) for view in known.views)
    returned = sum(len(view.inbox) + len(view.returned) for view in known.views + known.left_views)
    return returned + len(known.alone) + len(known.timers) + cursors


def test_what_comes_back_again_and_again_is_remembered_once() -> None:
    """Claims that are released while no consumer of the group has a free slot."""
    stream = stream_of(1, 1)
    attach(stream, window=1)
    for _ in range(5000):
        stream.claim([2])
        stream.release([2])
    assert remembered(stream) < 3000


def test_an_item_that_nobody_wants_does_not_keep_all_that_came_back_after_it() -> None:
    tags = {1: {"for": "others"}}
    stream = Stream(timing=TIMING, tags_of=lambda index: tags.get(index, {}))
    for _ in range(2):
        index, _ = stream.allocate(1, Limits())
        stream.entries.show(index, 0)
    stream.detach(attach(stream, "earlier", window=1), lost=False, now=NOW)
    other, _ = stream.attach(Consumer("g", "u"), Subscription(1, tags={"for": "nobody"}), NOW)
    for _ in range(5000):
        tags[2] = {"for": "nobody"}
        stream.claim([2])
        stream.release([2])
    assert fetched(stream, other) == [(2, 1)]
    assert remembered(stream) < 3000


def test_priorities_that_are_gone_are_forgotten() -> None:
    """A client that uses the time as the priority has a new priority each second."""
    stream = stream_of()
    session = attach(stream)
    for priority in range(5000):
        index, _ = stream.allocate(1, Limits())
        stream.entries.show(index, priority)
        stream.dispatch()
        assert fetched(stream, session) == [(index, 1)]
        stream.commit("g", [index])
    assert remembered(stream) < 3000


def test_groups_that_remember_nothing_any_more_are_forgotten() -> None:
    """Commits under ever new names, of items that another group holds."""
    stream = stream_of(1)
    attach(stream)
    for number in range(100):
        stream.commit(f"g{number}", [1])
    _, effects = stream.commit("g", [1])
    assert sorted(effects.forgotten_groups) == sorted(f"g{number}" for number in range(100))
    assert list(stream._groups) == ["g"]


# -- a consumer whose filter lets next to nothing through --------------------------------------------------------------

#: so many entries are examined in one call, at the most
_SLICE = 600


class Counted:
    """A stream of many items without tags, but for some, and how often tags were loaded."""

    def __init__(self, count: int, tags: Mapping[int, Tags] | None = None) -> None:
        self.loaded = 0
        self.tags = tags or {}
        self.stream = Stream(timing=TIMING, tags_of=self.load)
        for _ in range(count):
            index, _ = self.stream.allocate(1, Limits())
            self.stream.entries.show(index, 0)

    def load(self, index: int) -> Tags:
        self.loaded += 1
        return self.tags.get(index, {})

    def attach(self, user: str, group: str = "g", window: int = 1, **tags: str) -> int:
        session, _ = self.stream.attach(Consumer(group, user), Subscription(window, tags=tags), NOW)
        return session

    def loads(self, act: Callable[[], object]) -> int:
        before = self.loaded
        act()
        return self.loaded - before

    def finish(self) -> list[int]:
        """The slices that follow; how many tags each loaded."""
        counts = []
        while self.stream.due <= NOW:
            counts.append(self.loads(lambda: self.stream.tick(NOW)))
        return counts


def test_a_scan_goes_in_slices_and_finds_what_is_at_the_end() -> None:
    counted = Counted(5000, {5000: {"for": "me"}})
    sessions: list[int] = []
    first = counted.loads(lambda: sessions.append(counted.attach("u", **{"for": "me"})))
    counts = counted.finish()
    assert max(first, *counts) <= _SLICE
    assert len(counts) > 5
    assert fetched(counted.stream, sessions[0]) == [(5000, 1)]


def test_a_scan_goes_on_where_it_was_after_a_reconnect() -> None:
    counted = Counted(5000)
    session = counted.attach("u", **{"for": "me"})
    counted.stream.tick(NOW)
    so_far = counted.loaded
    counted.stream.detach(session, lost=True, now=NOW)
    session = counted.attach("u", **{"for": "me"})
    counted.finish()
    assert counted.loaded <= 5000 + 1
    assert so_far > 0
    counted.stream.detach(session, lost=False, now=NOW)
    assert counted.loads(lambda: counted.attach("other", **{"for": "me"})) == 0


def test_others_get_theirs_while_a_scan_is_under_way() -> None:
    """Calls of the same group and of another one, with and without a filter: no call pays for the whole scan."""
    counted = Counted(5000, {4: {"a": "b"}})
    counted.attach("u", **{"for": "me"})
    plain = counted.attach("plain")
    assert fetched(counted.stream, plain) == [(1, 1)]
    other = counted.attach("plain", "other")
    assert fetched(counted.stream, other) == [(1, 1)]
    filtered = counted.attach("filtered", a="b")
    counted.stream.tick(NOW)
    assert counted.stream.due <= NOW
    assert fetched(counted.stream, filtered) == [(4, 1)]
    assert counted.loads(lambda: counted.stream.commit("g", [1])) == 0
    assert fetched(counted.stream, plain) == [(2, 1)]


def test_what_is_not_known_yet_holds_back_what_comes_after_it() -> None:
    """An item of a lower priority is not dispatched before the higher one was examined."""
    counted = Counted(1, {1: {"for": "me"}, 3000: {"for": "me"}})
    for _ in range(2999):
        index, _ = counted.stream.allocate(1, Limits())
        counted.stream.entries.show(index, 9)
    session = counted.attach("u", window=2, **{"for": "me"})
    assert fetched(counted.stream, session) == []
    counted.finish()
    assert fetched(counted.stream, session) == [(3000, 1), (1, 1)]


def test_what_came_back_and_is_not_wanted_is_looked_at_once() -> None:
    counted = Counted(3000)
    everything = counted.attach("everything", window=3000)
    counted.attach("u", **{"for": "me"})
    counted.finish()
    leave = lambda: counted.stream.detach(everything, lost=False, now=NOW)  # noqa: E731
    assert max(counted.loads(leave), *counted.finish()) <= _SLICE
    assert counted.loaded <= 3000 + _SLICE
    assert counted.loads(counted.stream.dispatch) == 0


def test_a_consumer_that_comes_to_much_that_is_done_does_not_look_through_it_in_one_call() -> None:
    """A group has committed all but the last; another one holds it."""
    counted = Counted(100_000)
    counted.attach("u", "holds", window=1)
    counted.stream.commit("g", range(1, 100_000))
    session = counted.attach("u")
    assert counted.stream.due <= NOW
    counted.finish()
    assert fetched(counted.stream, session) == [(100_000, 1)]
