"""Bugs planted in the rules of a stream. The model in `books` has to detect each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import pytest

from easq.model import Consumer
from easq.storage.base import Subscription
from easq.storage.rules.consumers import ConsumerSession
from easq.storage.rules.dispatch import Dispatcher
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.entries import Entries
from easq.storage.rules.filters import CONNECTED, NOBODY, Filters
from easq.storage.rules.groups import ConsumerGroup, Hold
from easq.storage.rules.retention import Retention
from easq.storage.rules.stream import Stream


def _nobody_has(stream: Stream, session: ConsumerSession) -> None:
    """Items of an ended connection are neither pending nor ready."""
    group = stream._groups[session.consumer.group]
    for index in session.pending:
        del group.pending[index]
        group.held[index] = Hold(inf)
    session.pending.clear()
    session.unsent.clear()


def takeover_forgets_what_is_out(patch: pytest.MonkeyPatch) -> None:
    """A second connection of a user replaces the first, whose items are neither pending nor ready."""
    original = Stream.attach

    def attach(
        self: Stream, consumer: Consumer, subscription: Subscription, now: float
    ) -> tuple[int, Effects]:
        replaced = self.sessions().get(consumer)
        if replaced is not None:
            _nobody_has(self, self._sessions[replaced])
        return original(self, consumer, subscription, now)

    patch.setattr(Stream, "attach", attach)


def redelivery_loses_priority(patch: pytest.MonkeyPatch) -> None:
    """Returned items get the lowest priority."""
    original = Dispatcher.make_ready

    def make_ready(self: Dispatcher, group: ConsumerGroup, index: int) -> None:
        if self._ready_among_others(group, index):
            for view in group.views + group.left_views:
                view.inbox.append((0, index))
        else:
            original(self, group, index)

    patch.setattr(Dispatcher, "make_ready", make_ready)


def truncate_takes_one_more(patch: pytest.MonkeyPatch) -> None:
    """Truncates including the index, instead of below it."""
    original = Stream.truncate
    patch.setattr(Stream, "truncate", lambda self, below: original(self, below + 1))


def counts_start_anew_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    """Deliveries and failures are stored, and not read."""
    original = Stream.restore_group

    def restore_group(
        self: Stream,
        name: str,
        committed: Iterable[int],
        given_up: Iterable[int],
        _: Iterable[tuple[int, DeliveryRecord]],
        now: float,
        filters: Any = None,
    ) -> None:
        original(self, name, committed, given_up, (), now, filters)

    patch.setattr(Stream, "restore_group", restore_group)


def lost_connection_keeps_what_is_out(patch: pytest.MonkeyPatch) -> None:
    """Items of a lost connection are held for its user for ever."""
    original = Stream._leave

    def leave(self: Stream, session: ConsumerSession, *, lost: bool, now: float, effects: Effects) -> None:
        if lost:
            _nobody_has(self, session)
        original(self, session, lost=lost, now=now, effects=effects)

    patch.setattr(Stream, "_leave", leave)


def commits_are_not_stored(patch: pytest.MonkeyPatch) -> None:
    """The commits of one of several groups are lost at the next start."""
    original = Stream.commit

    def commit(self: Stream, name: str, indexes: Iterable[int]) -> tuple[int, Effects]:
        counted, effects = original(self, name, indexes)
        effects.committed.clear()
        return counted, effects

    patch.setattr(Stream, "commit", commit)


def one_failure_too_many(patch: pytest.MonkeyPatch) -> None:
    """An item is given up one failure late."""
    original = Stream._give_up

    def give_up(
        self: Stream, group: ConsumerGroup, index: int, record: DeliveryRecord, effects: Effects
    ) -> bool:
        self.max_failures += bool(self.max_failures)
        try:
            return original(self, group, index, record, effects)
        finally:
            self.max_failures -= bool(self.max_failures)

    patch.setattr(Stream, "_give_up", give_up)


def poison_comes_with_company(patch: pytest.MonkeyPatch) -> None:
    """An item that failed often is dispatched like any other."""
    patch.setattr(ConsumerGroup, "goes_alone", lambda *_: False)


def window_is_one_larger(patch: pytest.MonkeyPatch) -> None:
    """One item more than the window is dispatched."""
    patch.setattr(
        ConsumerSession,
        "free",
        property(lambda self: 0 if self.stopped or self.alone else self.window + 1 - len(self.pending)),
    )


def claims_are_seen(patch: pytest.MonkeyPatch) -> None:
    """A claimed item is dispatched all the same."""
    patch.setattr(Entries, "visible", Entries.__contains__)


def time_is_not_due(patch: pytest.MonkeyPatch) -> None:
    """Nothing is done at its time, unless something else is due."""
    original = Stream._hold

    def hold(self: Stream, group: ConsumerGroup, index: int, hold: Hold) -> None:
        due = self.due
        original(self, group, index, hold)
        self.due = due

    patch.setattr(Stream, "_hold", hold)


def groups_hold_what_they_do_not_want(patch: pytest.MonkeyPatch) -> None:
    """A group with a filter holds every item back."""
    patch.setattr(Filters, "holder", lambda self, _: CONNECTED if self else NOBODY)


def absent_groups_hold_nothing(patch: pytest.MonkeyPatch) -> None:
    """A filter ends with its last consumer, not with the retention."""
    patch.setattr(Filters, "leave", lambda self, one, _: self.drop(one))


def a_break_ends_a_filter(patch: pytest.MonkeyPatch) -> None:
    """A group with a connected consumer retains only the items that this consumer wants."""
    original = Stream._leave

    def leave(self: Stream, session: ConsumerSession, *, lost: bool, now: float, effects: Effects) -> None:
        original(self, session, lost=lost, now=now, effects=effects)
        group = self._groups[session.consumer.group]
        if group.connected:
            group.filters.drop_absent()

    patch.setattr(Stream, "_leave", leave)


def what_a_filter_held_stays(patch: pytest.MonkeyPatch) -> None:
    """When a filter ends, no removable items are searched."""
    patch.setattr(Retention, "filter_ended", lambda _: None)


def forgotten_groups_come_back(patch: pytest.MonkeyPatch) -> None:
    """At a restart every group holds everything back again."""
    original = Stream.restore_group

    def restore_group(self: Stream, *stored: Any) -> None:
        original(self, *stored[:5])

    patch.setattr(Stream, "restore_group", restore_group)


def a_process_that_is_back_has_failed(patch: pytest.MonkeyPatch) -> None:
    """A lost connection is a failure at once, whether its process comes back or not."""
    original = Stream._hold

    def hold(self: Stream, group: ConsumerGroup, index: int, hold: Hold) -> None:
        if hold.process:
            group.records[index].failures += 1
        original(self, group, index, hold)

    patch.setattr(Stream, "_hold", hold)


def a_process_that_is_back_has_nothing(patch: pytest.MonkeyPatch) -> None:
    """Items of a process whose connection was lost are ready for all consumers when the process reconnects."""
    original = Dispatcher.redeliver_held

    def redeliver_held(
        self: Dispatcher, group: ConsumerGroup, session: ConsumerSession, effects: Effects
    ) -> None:
        for index in [index for index, hold in group.held.items() if hold.process]:
            del group.held[index]
            self.make_ready(group, index)
        original(self, group, session, effects)

    patch.setattr(Dispatcher, "redeliver_held", redeliver_held)


def busy_is_a_failure(patch: pytest.MonkeyPatch) -> None:
    """A busy item counts as failed."""
    patch.setattr(Stream, "_busy_for", lambda *_: None)


def busy_never_ends(patch: pytest.MonkeyPatch) -> None:
    """The time that a busy item is at a consumer is not counted."""
    original = Stream.fetch

    def fetch(self: Stream, number: int, *, most: int, most_bytes: int, now: float) -> list[tuple[int, int]]:
        fetched = original(self, number, most=most, most_bytes=most_bytes, now=now)
        for index, _ in fetched:
            self._groups[self.group_of(number)].records[index].fetched_ms = 0
        return fetched

    patch.setattr(Stream, "fetch", fetch)


def what_failed_comes_to_the_same(patch: pytest.MonkeyPatch) -> None:
    """An item goes to the consumer that failed it, as any item does."""
    original = Dispatcher.make_ready

    def make_ready(self: Dispatcher, group: ConsumerGroup, index: int) -> None:
        group.failed_by.pop(index, None)
        original(self, group, index)

    patch.setattr(Dispatcher, "make_ready", make_ready)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    bug.__name__: bug
    for bug in (
        takeover_forgets_what_is_out,
        redelivery_loses_priority,
        truncate_takes_one_more,
        counts_start_anew_after_a_restart,
        lost_connection_keeps_what_is_out,
        commits_are_not_stored,
        one_failure_too_many,
        poison_comes_with_company,
        window_is_one_larger,
        claims_are_seen,
        time_is_not_due,
        groups_hold_what_they_do_not_want,
        absent_groups_hold_nothing,
        a_break_ends_a_filter,
        what_a_filter_held_stays,
        forgotten_groups_come_back,
        a_process_that_is_back_has_failed,
        a_process_that_is_back_has_nothing,
        busy_is_a_failure,
        busy_never_ends,
        what_failed_comes_to_the_same,
    )
}
