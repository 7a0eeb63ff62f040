"""A consumer group of a stream: its consumers, and the state of the entries in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from easq.model import Tags
from easq.storage.base import Timing
from easq.storage.rules.consumers import FilterView, GroupMember
from easq.storage.rules.effects import DeliveryRecord
from easq.storage.rules.filters import Filters

#: most consumers that left and are still listed, per group
_MAX_LEFT = 1000
#: most views without a connection, per group
_MAX_LEFT_VIEWS = 16
#: number of failures, and of lost connections, after which an item is delivered alone in its group: a crash that the
#: item causes then affects no other items
_ALONE_AFTER, _ALONE_AFTER_LOSSES = 2, 1
#: the state of one entry in a group: whether it is committed, whether it is given up, and its delivery record
EntryState: TypeAlias = tuple[bool, bool, DeliveryRecord | None]


class Hold(NamedTuple):
    """Holds an item for `user` until the time `until`. If `user` is None, no consumer gets the item until then.

    With a `process`, the item was pending at a lost connection of that process. If it does not reconnect before `until`
    the loss counts as a failure.
    """

    until: float
    user: str | None = None
    process: str = ""


class ConsumerGroup:
    """One consumer group of a stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending: dict[int, int] = {}  # index -> session
        self.committed: set[int] = set()  # includes the given up ones; present entries only
        self.given_up: set[int] = set()  # a part of `committed`
        # heap of (-priority, index): ready, and to be delivered alone
        self.alone: list[tuple[int, int]] = []
        # connections that get nothing more until they are empty, and then an item of `alone`
        self.reserved: set[int] = set()
        self.records: dict[int, DeliveryRecord] = {}
        # index -> the user that failed the item last: another user gets it, if there is one. `elsewhere` has the ready
        # ones of these items: user -> heap of (-priority, index)
        self.failed_by: dict[int, str] = {}
        self.elsewhere: dict[str, list[tuple[int, int]]] = {}
        self.redelivering: set[int] = set()  # connections with items in `ConsumerSession.redeliveries`
        self.held: dict[int, Hold] = {}
        self.timers: list[tuple[float, int]] = []  # heap of (until, index)
        self.views: list[FilterView] = []
        self.left_views: list[
            FilterView
        ] = []  # views without a connection, the one left most recently at the end
        self.members: dict[str, GroupMember] = {}
        self.connected = 0
        self.filters = Filters()  # the group retains the items that match one of them
        self.highest = 0  # highest index dispatched

    @property
    def must_be_stored(self) -> bool:
        """Whether the group has state to store."""
        return bool(self.filters or self.committed or self.records or self.held)

    @property
    def idle(self) -> bool:
        """Whether the group has no state at all."""
        return not (self.must_be_stored or self.members)

    def unavailable(self, index: int) -> bool:
        """Return whether the item is pending, committed or held."""
        return index in self.pending or index in self.committed or index in self.held

    def goes_alone(self, index: int) -> bool:
        """Return whether the item is delivered alone."""
        record = self.records.get(index)
        return record is not None and (
            record.failures >= _ALONE_AFTER or record.losses >= _ALONE_AFTER_LOSSES
        )

    def view(self, after: int, tags: Tags) -> FilterView:
        """Return the view with this start and filter: a connected one, one without a connection, or a new one."""
        for view in self.views:
            if view.after == after and view.tags == tags:
                return view
        for view in self.left_views:
            if view.after == after and view.tags == tags:
                self.left_views.remove(view)
                break
        else:
            view = FilterView(after, tags)
        self.views.append(view)
        return view

    def leave_view(self, view: FilterView) -> None:
        """Store a view without connections for a later connection: examining the items before its cursors may have
        taken long.
        """
        self.views.remove(view)
        self.left_views.append(view)
        del self.left_views[:-_MAX_LEFT_VIEWS]

    def forget(self, index: int) -> None:
        """Forget a removed entry, which is not pending."""
        self.committed.discard(index)
        self.given_up.discard(index)
        self.records.pop(index, None)
        self.held.pop(index, None)
        self.failed_by.pop(index, None)

    def state_of(self, index: int) -> EntryState:
        """Return the state of the entry in this group, for `restore_state`."""
        return index in self.committed, index in self.given_up, self.records.get(index)

    def restore_state(self, index: int, state_of: EntryState) -> None:
        """Restore the state of the entry in this group."""
        committed, given_up, record = state_of
        if committed:
            self.committed.add(index)
        if given_up:
            self.given_up.add(index)
        if record is not None:
            self.records[index] = record

    def forget_left(self) -> None:
        """Remove the consumers that left first, so that at most `_MAX_LEFT` of these are listed."""
        left = [member for member in self.members.values() if member.session is None]
        for member in sorted(left, key=lambda member: member.active_at)[: max(0, len(left) - _MAX_LEFT)]:
            del self.members[member.consumer.user]

    def due_times(self, timing: Timing) -> Iterator[float]:
        """Yield the times at which `tick` has to be called for this group."""
        if self.timers:
            yield self.timers[0][0]
        first_left_at = self.filters.first_left_at
        if first_left_at is not None:
            yield first_left_at + timing.group_retention_s
        for member in self.members.values():
            if member.session is None:
                yield member.active_at + timing.forget_s
