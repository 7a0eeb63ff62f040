"""The consumer groups of a stream: what each has done with the entries, and who of it is connected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from easq.model import Consumer, Tags
from easq.storage.base import Timing
from easq.storage.rules.effects import DeliveryRecord
from easq.storage.rules.filters import Filters

#: at most so many consumers that left are listed per group
_MAX_LEFT = 1000
#: most views without a connection that are kept per group
_MAX_LEFT_VIEWS = 16
#: an item that failed so often in a group, or whose connection was lost so often, is handed out alone, so that a crash
#: it causes does not affect a window of other items
_ALONE_AFTER, _ALONE_AFTER_LOSSES = 2, 1
#: of one entry: whether the group has committed it, whether given up, and how often it was delivered and failed
EntryState: TypeAlias = tuple[bool, bool, DeliveryRecord | None]


class FilterView:
    """How far the consumers with one start and one tag filter have looked, per priority class.

    Items that are ready again behind the cursors are in `inbox` until they are examined, then in `returned` if they
    match the filter.
    """

    __slots__ = ("after", "cursors", "inbox", "left", "returned", "sessions", "tags")

    def __init__(self, after: int, tags: Tags) -> None:
        self.after = after
        self.tags = dict(tags)
        self.cursors: dict[int, int] = {}
        self.inbox: list[tuple[int, int]] = []  # (-priority, index)
        self.returned: list[tuple[int, int]] = []  # heap of (-priority, index)
        self.sessions: set[int] = set()
        self.left = 0  # budget: how much may still be examined in this call


class Hold(NamedTuple):
    """An item that only `user` gets before `until`, or nobody if `user` is None.

    With a `process`, the item was pending at a lost connection of that process. If it does not reconnect before `until`
    the loss counts as a failure.
    """

    until: float
    user: str | None = None
    process: str = ""


@dataclass(slots=True)
class ConsumerSession:
    """One watch connection."""

    number: int
    consumer: Consumer
    window: int
    auto_commit: bool
    view: FilterView
    pending: set[int] = field(default_factory=set)  # pending at this connection
    unsent: dict[int, None] = field(default_factory=dict)  # of these, not yet fetched, in order
    served: int = 0  # when it was last given an item, in hand-outs of the stream
    stopped: bool = False
    alone: int = 0  # the item that this connection has, or waits for, to have nothing beside it
    process: str = ""
    # heap of (-priority, index): items held for this user, which it gets one at a time
    redeliveries: list[tuple[int, int]] = field(default_factory=list)

    @property
    def free(self) -> int:
        return 0 if self.stopped or self.alone or self.redeliveries else self.window - len(self.pending)


@dataclass(slots=True)
class GroupMember:
    """A consumer as attributes list it, connected or not."""

    consumer: Consumer
    session: int | None
    window: int
    auto_commit: bool
    tags: Tags
    index: int = 0
    active_at: float = 0.0
    left_pending: bool = False


class ConsumerGroup:
    """One consumer group over the stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending: dict[int, int] = {}  # index -> session
        self.committed: set[int] = set()  # of the present entries, with those that were given up
        self.given_up: set[int] = set()  # of the committed
        # heap of (-priority, index): ready, and to be handed out alone
        self.alone: list[tuple[int, int]] = []
        # connections that get nothing more until they are empty, then such an item
        self.reserved: set[int] = set()
        self.records: dict[int, DeliveryRecord] = {}
        # index -> the user that failed the item last: another user gets it, if there is one; and the heaps of such
        # items that are ready, by that user
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
        self.filters = Filters()  # which items the group retains; without a filter none
        self.highest = 0  # highest index handed out

    @property
    def must_be_stored(self) -> bool:
        """Whether the group has to be stored."""
        return bool(self.filters or self.committed or self.records or self.held)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember of it."""
        return not (self.must_be_stored or self.members)

    def unavailable(self, index: int) -> bool:
        return index in self.pending or index in self.committed or index in self.held

    def goes_alone(self, index: int) -> bool:
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
        """Keep a view without connections for later: it may have taken long to examine the items before its cursors."""
        self.views.remove(view)
        self.left_views.append(view)
        del self.left_views[:-_MAX_LEFT_VIEWS]

    def forget(self, index: int) -> None:
        """The entry is gone; nothing of it is pending."""
        self.committed.discard(index)
        self.given_up.discard(index)
        self.records.pop(index, None)
        self.held.pop(index, None)
        self.failed_by.pop(index, None)

    def state_of(self, index: int) -> EntryState:
        """What the group remembers of the entry, for `restore_state`."""
        return index in self.committed, index in self.given_up, self.records.get(index)

    def restore_state(self, index: int, state_of: EntryState) -> None:
        """The group remembers of the entry what it did."""
        committed, given_up, record = state_of
        if committed:
            self.committed.add(index)
        if given_up:
            self.given_up.add(index)
        if record is not None:
            self.records[index] = record

    def forget_left(self) -> None:
        """Of the consumers that left only the latest are listed."""
        left = [member for member in self.members.values() if member.session is None]
        for member in sorted(left, key=lambda member: member.active_at)[: max(0, len(left) - _MAX_LEFT)]:
            del self.members[member.consumer.user]

    def due_times(self, timing: Timing) -> Iterator[float]:
        """When something is to be done by itself."""
        if self.timers:
            yield self.timers[0][0]
        first_left_at = self.filters.first_left_at
        if first_left_at is not None:
            yield first_left_at + timing.group_retention_s
        for member in self.members.values():
            if member.session is None:
                yield member.active_at + timing.forget_s
