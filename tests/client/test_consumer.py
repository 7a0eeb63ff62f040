"""The items of one consumer: their begin, their commits, and the effects of a lost connection."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from easq.client.consumer import MAX_BATCH, Deliveries
from easq.model import Frame
from easq.net.breaker import FIRST_PAUSE_S


def made(*indexes: int, window: int = 5, jobs: int | None = None, begin: bool = False) -> Deliveries[str]:
    """A consumer with these items, which came on connection 1."""
    items = Deliveries[str](window=window, jobs=jobs)
    for index in indexes:
        assert items.push(Frame(index), 1)
        if begin:
            assert items.begin(0.0) == Frame(index)
            items.call_ended()
    return items


def test_an_item_from_push_to_commit() -> None:
    items = made(1)
    assert (items.in_flight, items.wait_s(0.0)) == (0, 0.0)
    assert items.begin(0.0) == Frame(1)
    assert (items.in_flight, items.batch(), items.begin(0.0)) == (1, [], None)
    items.call_ended()
    items.done(1, "note")
    assert (items.in_flight, items.uncommitted, items.batch()) == (1, 1, [1])
    assert items.committed([1]) == ["note"]
    assert (items.in_flight, items.uncommitted, items.batch()) == (0, 0, [])


def test_an_item_that_was_left_and_comes_again_is_new() -> None:
    """A consumer in another process has returned it with a negative."""
    items = made(1, begin=True)
    items.leave(1)
    assert items.push(Frame(1), 1)
    assert (items.left, items.begin(0.0)) == (0, Frame(1))


def test_items_begin_in_the_order_of_delivery() -> None:
    items = made(3, 1, 2)
    assert [items.begin(0.0) for _ in range(4)] == [Frame(3), Frame(1), Frame(2), None]


def test_no_more_calls_at_a_time_than_jobs() -> None:
    """A call that ended makes room, also while its item is not committed."""
    items = made(1, 2, 3, jobs=2)
    assert [items.begin(0.0) for _ in range(3)] == [Frame(1), Frame(2), None]
    assert items.wait_s(0.0) == inf
    items.call_ended()
    assert items.begin(0.0) == Frame(3)


# a lost connection


def test_an_item_that_is_pushed_again_while_it_is_begun_does_not_begin_twice() -> None:
    """It counts as delivered by the new connection, on which a negative is accepted."""
    items = made(1, begin=True)
    assert not items.push(Frame(1), 2)
    assert items.begin(0.0) is None
    assert items.release(1)


def test_a_begun_item_of_a_lost_connection_is_not_returned() -> None:
    """Another consumer may have it by now."""
    items = made(1, begin=True)
    items.connected(2)
    assert items.in_flight == 1
    assert not items.release(1)


def test_a_begun_item_of_a_lost_connection_is_committed_once_it_is_done() -> None:
    items = made(1, begin=True)
    items.connected(2)
    items.done(1, "note")
    assert items.batch() == [1]


def test_waiting_items_are_forgotten_with_their_connection() -> None:
    """They begin when the new connection brings them."""
    items = made(1, 2)
    assert items.push(Frame(2), 2)
    assert [items.begin(0.0), items.begin(0.0)] == [Frame(2), None]
    assert items.push(Frame(1), 2)
    assert items.begin(0.0) == Frame(1)


def test_items_that_were_left_are_forgotten_with_their_connection() -> None:
    items = made(1, 2, begin=True, window=2)
    items.leave(1)
    assert items.left == 1
    items.leave(2)
    assert items.left == 2
    items.connected(2)
    assert items.left == 0
    assert items.push(Frame(1), 2)


def test_an_item_that_is_left_after_its_connection_was_lost_is_forgotten() -> None:
    items = made(1, begin=True, window=1)
    items.connected(2)
    items.leave(1)
    assert items.left == 0
    assert items.push(Frame(1), 2)


def test_a_committed_item_that_comes_again_is_committed_again() -> None:
    """The commit was lost on the way; its note is reported once."""
    items = made(1, begin=True)
    items.done(1, "note")
    assert items.committed([1]) == ["note"]
    assert not items.push(Frame(1), 2)
    assert items.begin(0.0) is None
    assert items.batch() == [1]
    assert items.committed([1]) == []


def test_an_item_that_comes_again_while_its_commit_is_under_way_is_committed_once() -> None:
    items = made(1, begin=True)
    items.done(1, "note")
    batch = items.batch()
    assert not items.push(Frame(1), 2)
    assert items.committed(batch) == ["note"]
    assert items.batch() == []


def test_a_released_item_is_new_when_it_comes_again() -> None:
    """The service may push it again before it has answered the negative."""
    items = made(1, begin=True)
    assert items.release(1)
    assert items.push(Frame(1), 1)
    assert not items.release(7)


def test_the_same_connection_again_changes_nothing() -> None:
    items = made(1)
    items.connected(1)
    assert items.begin(0.0) == Frame(1)


# a busy or failing model


def test_a_busy_model_is_called_for_one_item_at_a_time() -> None:
    items = made(1, 2, 3)
    items.begin(0.0)
    items.call_ended()
    assert items.busy(0.0, None)
    assert not items.busy(0.0, None)
    assert (items.is_held, items.is_one_at_a_time) == (True, True)
    assert items.begin(0.0) is None
    assert items.wait_s(0.0) == FIRST_PAUSE_S
    assert items.begin(FIRST_PAUSE_S) == Frame(2)
    assert (items.begin(FIRST_PAUSE_S), items.wait_s(FIRST_PAUSE_S)) == (None, inf)
    items.call_ended()
    assert items.succeeded()
    assert not items.succeeded()
    assert (items.is_held, items.begin(FIRST_PAUSE_S)) == (False, Frame(3))


def test_the_time_that_a_model_asks_for_is_waited() -> None:
    items = made(1)
    items.busy(10.0, 7.0)
    assert (items.wait_s(10.0), items.wait_s(16.0)) == (7.0, 1.0)


def test_three_failures_in_a_row_have_the_model_called_for_one_item_at_a_time() -> None:
    items = made(1)
    assert [items.failed(0.0) for _ in range(4)] == [False, False, True, False]
    assert items.is_one_at_a_time


def test_an_item_that_is_put_off_waits_behind_all_others() -> None:
    """The waiting time is counted from the first time that the item was put off."""
    items = made(1, 2)
    items.begin(0.0)
    items.call_ended()
    assert items.busy_for_s(1, 5.0) == 0.0
    items.put_off(1, 5.0)
    assert [items.begin(6.0), items.begin(6.0)] == [Frame(2), Frame(1)]
    items.put_off(1, 7.0)
    assert items.busy_for_s(1, 9.0) == 4.0
    items.begin(9.0)
    items.release(1)
    items.push(Frame(1), 1)
    assert items.busy_for_s(1, 9.0) == 0.0


def test_an_item_that_is_put_off_after_its_connection_was_lost_is_forgotten() -> None:
    items = made(1, begin=True)
    items.connected(2)
    items.put_off(1, 0.0)
    assert (items.begin(0.0), items.in_flight) == (None, 0)
    assert items.push(Frame(1), 2)


def test_nothing_begins_while_the_sink_is_full() -> None:
    items = made(1)
    items.hold()
    items.hold()
    items.resume()
    assert (items.is_held, items.begin(0.0), items.wait_s(0.0)) == (True, None, inf)
    items.resume()
    assert (items.is_held, items.begin(0.0)) == (False, Frame(1))


# commits


def test_a_batch_has_a_bound_and_keeps_the_order() -> None:
    items = made(*range(1, 301), window=1000, begin=True)
    for index in range(300, 0, -1):
        assert items.is_batch_full == (300 - index >= MAX_BATCH)
        items.done(index, "note")
    first = items.batch()
    assert first == list(range(300, 300 - MAX_BATCH, -1))
    items.committed(first)
    assert items.batch() == list(range(300 - MAX_BATCH, 0, -1))
    assert not items.is_batch_full


def test_a_batch_is_full_when_the_service_pushes_nothing_more_before_it() -> None:
    items = made(1, 2, window=2, begin=True)
    items.done(1, "note")
    assert not items.is_batch_full
    items.done(2, "note")
    assert items.is_batch_full


def test_so_many_committed_items_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easq.client.consumer._MAX_REMEMBERED", 2)
    items = made(1, 2, 3, begin=True)
    for index in (1, 2, 3):
        items.done(index, "note")
    items.committed([1, 2, 3])
    assert [items.push(Frame(index), 2) for index in (1, 2, 3)] == [True, False, False]


# the end


def test_after_a_stop_nothing_begins() -> None:
    items = made(1, 2, 3)
    items.begin(0.0)
    items.begin(0.0)
    items.done(2, "note")
    assert (items.is_stopping, items.left_s(0.0)) == (False, inf)
    items.stop(10.0)
    items.stop(20.0)
    assert (items.is_stopping, items.begin(0.0), items.wait_s(0.0)) == (True, None, inf)
    assert (items.left_s(4.0), items.left_s(11.0)) == (6.0, 0.0)
    assert items.waiting == [Frame(3)]
    assert items.release(3)
    assert items.release(1)
    assert items.batch() == [2]


def test_at_the_end_what_is_pending_here_is_returned() -> None:
    """All but items that are done, and those that began on a connection that is lost."""
    items = made(1, 2, begin=True)
    for index in (3, 4, 5):
        items.push(Frame(index), 2)
    items.begin(0.0)
    items.done(2, "note")
    items.begin(0.0)
    items.leave(4)
    assert items.release_all() == [3, 4, 5]
    assert items.release_all() == []
    assert items.batch() == [2]


@dataclass
class Known:
    """The record of one item in the reference: its state, its connection, and whether it was committed before."""

    state: str
    epoch: int
    before: bool = False


class Reference(RuleBasedStateMachine):
    """Compare with one record for each item, searched in full; the service pushes what is not pending."""

    def __init__(self) -> None:
        super().__init__()
        self.items = Deliveries[int](window=8, jobs=3)
        self.known: dict[int, Known] = {}  # in the order of their last change
        self.epoch = 1
        self.calls: list[int] = []
        self.sent: list[int] | None = None  # a commit that is under way

    def enter(self, index: int, state: str, epoch: int, *, before: bool = False) -> None:
        self.known.pop(index, None)
        self.known[index] = Known(state, epoch, before)

    def inside(self, *states: str) -> list[int]:
        return [index for index, known in self.known.items() if known.state in states]

    def drop(self, index: int) -> None:
        self.known.pop(index)

    @rule(index=st.integers(1, 6))
    def push(self, index: int) -> None:
        known = self.known.get(index)
        is_new = self.items.push(Frame(index), self.epoch)
        if known is None or known.state == "left":
            assert is_new
            self.enter(index, "waiting", self.epoch)
        elif known.state == "committed":
            assert not is_new
            self.enter(index, "done", self.epoch, before=True)
        else:
            assert not is_new
            known.epoch = self.epoch

    @rule()
    def lose_the_connection(self) -> None:
        self.epoch += 1
        self.items.connected(self.epoch)
        for index in self.inside("waiting", "left"):
            self.drop(index)

    @rule()
    def begin(self) -> None:
        waiting = self.inside("waiting")
        expected = waiting[0] if waiting and len(self.calls) < 3 else None
        frame = self.items.begin(0.0)
        assert frame == (None if expected is None else Frame(expected))
        if expected is not None:
            self.calls.append(expected)
            self.enter(expected, "begun", self.known[expected].epoch)

    @precondition(lambda self: self.calls)
    @rule(at=st.integers(0, 2), end=st.sampled_from(["done", "put off", "leave", "release"]))
    def end_a_call(self, at: int, end: str) -> None:
        index = self.calls.pop(at % len(self.calls))
        self.items.call_ended()
        is_ours = self.known[index].epoch == self.epoch
        if end == "done":
            self.items.done(index, index)
            self.enter(index, "done", self.known[index].epoch)
        elif end == "put off":
            self.items.put_off(index, 0.0)
            self.enter(index, "waiting", self.epoch) if is_ours else self.drop(index)
        elif end == "leave":
            self.items.leave(index)
            self.enter(index, "left", self.epoch) if is_ours else self.drop(index)
        else:
            assert self.items.release(index) == is_ours
            self.drop(index)

    @precondition(lambda self: self.sent is None and self.inside("done"))
    @rule()
    def send_a_commit(self) -> None:
        self.sent = self.items.batch()
        assert self.sent == self.inside("done")

    @precondition(lambda self: self.sent is not None)
    @rule(is_lost=st.booleans())
    def end_a_commit(self, is_lost: bool) -> None:
        sent, self.sent = self.sent or [], None
        if is_lost:
            return
        expected = [index for index in sent if not self.known[index].before]
        assert self.items.committed(sent) == expected
        for index in sent:
            self.enter(index, "committed", 0)

    @invariant()
    def they_agree(self) -> None:
        assert self.items.in_flight == len(self.inside("begun", "done"))
        assert self.items.uncommitted == len(self.inside("done"))
        assert self.items.batch() == self.inside("done")

    def teardown(self) -> None:
        pending = self.inside("waiting", "begun", "left")
        ours = {index for index in pending if self.known[index].epoch == self.epoch}
        assert set(self.items.release_all()) == ours


TestReference = Reference.TestCase
