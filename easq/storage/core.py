"""The rules of one stream without I/O, threads or clocks: who gets which item next, and what has to be remembered.

The life of an entry, for one group:

    allotted ──stored──▶ ready ──hand out──▶ pending ──commit──▶ committed ──all holders committed──▶ gone
                          ▲                    │
                          ├──── negative ──────┤   after the back-off
                          ├──── closed ────────┤   at once
                          └──── lost ──────────┘   at once for the same user, for others after the grace

    pending ──the last failure that is allowed──▶ given up: counts as committed, a copy goes to the rear store

    delete, truncate, a settled claim: gone, from any state, for all groups.
    claim: hidden from everyone until it is released or deleted.

A `Stream` knows index, priority and size of each entry, never its tags or data: those are the engine's. Methods change
the state and return `Effects`: what the engine has to make durable, and which connections have something to fetch.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf

from easq.errors import QueueFull, StreamEnded
from easq.model import Consumer, Tags
from easq.storage.base import Limits, Location, StreamStats, Subscription, Timing
from easq.wire.replies import ConsumerLine, GroupLine

#: the negative code of a consumer that will exit: its items go back, it gets nothing more, nothing counts as failed
SHUTDOWN = "Shutdown"
#: a lane is rebuilt when it has more removed entries than this, and more than present ones
_MIN_HOLES = 1024
#: at most so many consumers that left are listed per group
_MAX_LEFT = 1000
#: an item that failed so often in a group is handed out alone: it must not drag a window of others with it
_ALONE_AFTER = 2


@dataclass(slots=True)
class Effects:
    """What a step asks of the engine. `removed` and `truncated_below` (0: none) name entries to forget.

    `given_up` are copied to the rear store; `unanswered` left because every group gave them up, and none committed.
    """

    removed: list[int] = field(default_factory=list)
    truncated_below: int = 0
    committed: list[tuple[str, int, bool]] = field(default_factory=list)  # group, index, given up
    given_up: list[tuple[str, int, Touch]] = field(default_factory=list)
    unanswered: list[tuple[int, Touch]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    forgotten_groups: list[str] = field(default_factory=list)
    touched: list[tuple[str, int]] = field(default_factory=list)
    woken: set[int] = field(default_factory=set)
    replaced: set[int] = field(default_factory=set)


class _Lane:
    """The indexes of one priority class, ascending; removed ones stay as holes until the next rebuild."""

    __slots__ = ("head", "holes", "indexes")

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.head = 0
        self.holes = 0

    def after(self, index: int) -> int:
        """The position of the first entry above `index`."""
        return max(self.head, bisect_right(self.indexes, index, lo=self.head))

    def dropped(self, present: dict[int, tuple[int, int]], count: int) -> None:
        """`count` of the lane's entries were removed from `present`."""
        self.holes += count
        indexes, head = self.indexes, self.head
        while head < len(indexes) and indexes[head] not in present:
            head += 1
        self.head = head
        if self.holes > _MIN_HOLES and self.holes > len(indexes) // 2:
            self.indexes = [index for index in indexes if index in present]
            self.head = self.holes = 0


class _View:
    """How far the consumers with one start and one tag filter have looked, per priority class."""

    __slots__ = ("after", "cursors", "sessions", "tags")

    def __init__(self, after: int, tags: Tags) -> None:
        self.after = after
        self.tags = dict(tags)
        self.cursors: dict[int, int] = {}
        self.sessions: set[int] = set()


@dataclass(slots=True)
class _Session:
    """One watch connection."""

    number: int
    consumer: Consumer
    window: int
    auto_commit: bool
    view: _View
    out: set[int] = field(default_factory=set)  # pending at this connection
    box: dict[int, None] = field(default_factory=dict)  # of these, not yet fetched, in order
    served: int = 0  # when it was last given an item, in hand-outs of the stream
    stopped: bool = False
    alone: int = 0  # the item that this connection has, or waits for, to have nothing beside it

    @property
    def free(self) -> int:
        return 0 if self.stopped or self.alone else self.window - len(self.out)


@dataclass(slots=True)
class _Member:
    """A consumer as attributes list it, connected or not."""

    consumer: Consumer
    session: int | None
    window: int
    auto_commit: bool
    tags: Tags
    index: int = 0
    active_at: float = 0.0
    left_pending: bool = False


@dataclass(slots=True)
class Touch:
    """What a group remembers of an item that was delivered to it at least once."""

    deliveries: int = 0
    failures: int = 0
    code: str = ""
    reason: str = ""


class _Group:
    """One consumer group over the stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending: dict[int, int] = {}  # index -> session
        self.committed: set[int] = set()  # of the present entries, with those that were given up
        self.given_up: set[int] = set()  # of the committed
        self.alone: list[
            tuple[int, int]
        ] = []  # heap of (-priority, index): ready, and to be handed out alone
        self.reserved: set[int] = (
            set()
        )  # connections that get nothing more until they are empty, then such an item
        self.touched: dict[int, Touch] = {}
        self.returned: list[tuple[int, int]] = []  # heap of (-priority, index)
        self.held: dict[int, tuple[float, str | None]] = {}  # index -> (until, only for this user)
        self.timers: list[tuple[float, int]] = []  # heap of (until, index)
        self.views: list[_View] = []
        self.members: dict[str, _Member] = {}
        self.connected = 0
        self.left_at: float | None = None  # set while the group is absent and still holds items back
        self.highest = 0  # highest index handed out

    def unavailable(self, index: int) -> bool:
        return index in self.pending or index in self.committed or index in self.held

    def goes_alone(self, index: int) -> bool:
        touch = self.touched.get(index)
        return touch is not None and touch.failures >= _ALONE_AFTER

    def view(self, after: int, tags: Tags) -> _View:
        for view in self.views:
            if view.after == after and view.tags == tags:
                return view
        view = _View(after, tags)
        self.views.append(view)
        return view


class Stream:
    """The state of one stream, and every rule that changes it."""

    def __init__(
        self,
        *,
        timing: Timing,
        tags_of: Callable[[int], Tags],
        last: int = 0,
        ended: bool = False,
        max_failures: int = 0,
        has_rear_room: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.timing = timing
        self.max_failures = max_failures  # an item is given up with so many; 0: never
        self.has_rear_room = has_rear_room
        self.ended = ended
        self.last = last  # highest index ever allotted
        self.shown = last  # highest index ever made visible, or known not to have been stored
        self._tags_of = tags_of
        self._entries: dict[int, tuple[int, int]] = {}  # index -> (priority, size)
        self._shapes: dict[tuple[int, int], tuple[int, int]] = {}  # equal tuples kept once: memory
        self._lanes: dict[int, _Lane] = {}
        self._claimed: dict[int, int] = {}  # index -> size
        self._size = 0
        self._allotted: dict[int, int] = {}  # index -> size, not stored yet
        self._allotted_size = 0
        self._groups: dict[str, _Group] = {}
        self._sessions: dict[int, _Session] = {}
        self._handouts = 0
        self._number = 0
        self.due = inf  # when `tick` has something to do, at the earliest

    # -- entries ---------------------------------------------------------------------------------------------------

    def restore(self, index: int, priority: int, size: int) -> None:
        """An entry that was stored before is present; called in index order, before anything else."""
        self._insert(index, priority, size)

    def restore_group(
        self,
        name: str,
        committed: Iterable[int],
        given_up: Iterable[int],
        touched: Iterable[tuple[int, Touch]],
        now: float,
    ) -> None:
        """A stored group is known, as one whose last consumer left now. `committed` includes `given_up`."""
        group = self._groups.setdefault(name, _Group(name))
        group.left_at = now
        self.due = min(self.due, now + self.timing.group_retention_s)
        group.committed = {index for index in committed if index in self._entries}
        group.given_up = {index for index in given_up if index in group.committed}
        group.touched = {index: touch for index, touch in touched if index in self._entries}
        for index in group.touched:
            if group.goes_alone(index):
                self._return(group, index)

    def _insert(self, index: int, priority: int, size: int) -> None:
        shape = (priority, size)
        self._entries[index] = self._shapes.setdefault(shape, shape)
        if len(self._shapes) > 4096:
            self._shapes.clear()
        self._lanes.setdefault(priority, _Lane()).indexes.append(index)
        self._size += size

    def allot(self, size: int, limits: Limits) -> tuple[int, Effects]:
        """A new index is reserved for an item of `size` bytes; `show` or `drop` follows, in the order of allotting.

        Raises StreamEnded; QueueFull when there is no room even without the claims of absent groups. Then nothing has
        changed.
        """
        if self.ended:
            raise StreamEnded("the stream has ended and takes no more items")
        effects = Effects()
        if not self.has_room(size, limits) and self._can_make_room(size, limits):
            self._drop_absent_claims(effects)
            if limits.evict:
                self._evict(size, limits, effects)
        if not self.has_room(size, limits):
            held = len(self._entries) + len(self._allotted)
            raise QueueFull(
                f"the queue is full: {held} of {limits.max_items} items,"
                f" {self._size + self._allotted_size} of {limits.max_bytes} bytes",
                hint="wait until items were committed or deleted",
            )
        self.last += 1
        self._allotted[self.last] = size
        self._allotted_size += size
        if effects.removed:
            self._dispatch_all(effects)
        return self.last, effects

    def has_room(self, size: int, limits: Limits) -> bool:
        """Whether an item of `size` bytes fits."""
        return (
            len(self._entries) + len(self._allotted) < limits.max_items
            and self._size + self._allotted_size + size <= limits.max_bytes
        )

    def _can_make_room(self, size: int, limits: Limits) -> bool:
        """Whether an item of `size` bytes fits when absent groups let go, and everything that may be is evicted."""
        unheld = set(self._committed_by([group for group in self._groups.values() if group.connected]))
        if limits.evict:
            left = [held for index, held in self._claimed.items() if index not in unheld]
            count, total = len(left), sum(left)
        else:
            count = len(self._entries) - len(unheld)
            total = self._size - sum(self._entries[index][1] for index in unheld)
        return (
            count + len(self._allotted) < limits.max_items
            and total + self._allotted_size + size <= limits.max_bytes
        )

    def _evict(self, size: int, limits: Limits, effects: Effects) -> None:
        while not self.has_room(size, limits):
            oldest = next(self.indexes_from(0), None)
            if oldest is None:
                return
            self._remove([oldest], effects)

    def _drop_absent_claims(self, effects: Effects) -> None:
        for group in self._groups.values():
            group.left_at = None
        self._remove_unheld(effects)

    def show(self, index: int, priority: int) -> None:
        """The allotted item is stored: it is present. `dispatch` hands it out."""
        size = self._allotted.pop(index)
        self._allotted_size -= size
        self.shown = index
        self._insert(index, priority, size)

    def drop(self, index: int) -> None:
        """The allotted item was not stored; its index is never used again."""
        self._allotted_size -= self._allotted.pop(index)
        self.shown = max(self.shown, index)

    def __contains__(self, index: int) -> bool:
        return index in self._entries and index not in self._claimed

    def indexes_from(self, start: int, priority: int | None = None) -> Iterator[int]:
        """The indexes of what is present and not claimed, from `start` on, ascending; the stream must not change
        meanwhile.
        """
        lanes = self._lanes.values() if priority is None else [self._lanes.get(priority, _Lane())]
        runs = [self._lane_from(lane, start) for lane in lanes]
        yield from runs[0] if len(runs) == 1 else heapq.merge(*runs)

    def _lane_from(self, lane: _Lane, start: int) -> Iterator[int]:
        for position in range(lane.after(start - 1), len(lane.indexes)):
            index = lane.indexes[position]
            if index in self._entries and index not in self._claimed:
                yield index

    def last_present(self) -> int:
        """The highest index present and not claimed, 0 when there is none."""
        best = 0
        for lane in self._lanes.values():
            for position in range(len(lane.indexes) - 1, lane.head - 1, -1):
                index = lane.indexes[position]
                if index in self:
                    best = max(best, index)
                    break
        return best

    def claim(self, indexes: Iterable[int]) -> Effects:
        """The present items are hidden from everyone, also from connections that have not fetched them yet."""
        effects = Effects()
        for index in indexes:
            self._claimed[index] = self._entries[index][1]
            for group in self._groups.values():
                number = group.pending.get(index)
                if number is not None and index in self._sessions[number].box:
                    self._unlease(group, index)
        self._dispatch_all(effects)
        return effects

    def release(self, indexes: Iterable[int]) -> Effects:
        """Claimed items that still exist are visible again, and ready for each group that does not have them."""
        effects = Effects()
        for index in indexes:
            if self._claimed.pop(index, None) is None:
                continue
            for group in self._groups.values():
                self._return(group, index)
        self._dispatch_all(effects)
        return effects

    def delete(self, indexes: Iterable[int]) -> Effects:
        """The present items are gone for all groups."""
        effects = Effects()
        self._remove([index for index in dict.fromkeys(indexes) if index in self._entries], effects)
        self._dispatch_all(effects)
        return effects

    def truncate(self, below: int) -> tuple[int, Effects]:
        """All present items under `below` are gone; `truncated_below` excludes what is not stored yet."""
        effects = Effects()
        gone: list[int] = []
        for lane in self._lanes.values():
            end = bisect_left(lane.indexes, below)
            gone += [index for index in lane.indexes[lane.head : end] if index in self._entries]
        self._remove(gone, effects)
        effects.removed.clear()
        effects.truncated_below = min(below, self.shown + 1)
        self._dispatch_all(effects)
        return len(gone), effects

    def _remove(self, indexes: Sequence[int], effects: Effects) -> None:
        counts: dict[int, int] = {}
        for index in indexes:
            priority, size = self._entries.pop(index)
            self._claimed.pop(index, None)
            self._size -= size
            counts[priority] = counts.get(priority, 0) + 1
            for group in self._groups.values():
                self._unlease(group, index)
                group.committed.discard(index)
                group.given_up.discard(index)
                group.touched.pop(index, None)
                group.held.pop(index, None)
        for priority, count in counts.items():
            lane = self._lanes[priority]
            lane.dropped(self._entries, count)
            if lane.head == len(lane.indexes):
                del self._lanes[priority]
        effects.removed += indexes

    # -- groups and consumers --------------------------------------------------------------------------------------

    def attach(self, consumer: Consumer, subscription: Subscription, now: float) -> tuple[int, Effects]:
        """A connection of `consumer` is there; its older one, if any, is closed. Items kept for this user go to it
        first.
        """
        if self._is_through(self._groups.get(consumer.group)):
            raise StreamEnded("the stream has ended, and nothing in it is left for this group")
        effects = Effects()
        group = self._group(consumer.group, effects)
        member = group.members.get(consumer.user)
        if member is not None and member.session is not None:
            effects.replaced.add(member.session)
            self._leave(self._sessions[member.session], lost=False, now=now, effects=effects)
        view = group.view(subscription.after, subscription.tags)
        self._number += 1
        session = _Session(
            self._number, consumer, subscription.window, subscription.auto_commit, view, served=self._handouts
        )
        view.sessions.add(session.number)
        self._sessions[session.number] = session
        last_index = member.index if member is not None else 0
        group.members[consumer.user] = _Member(
            consumer,
            session.number,
            subscription.window,
            subscription.auto_commit,
            dict(subscription.tags),
            index=last_index,
            active_at=now,
        )
        group.connected += 1
        group.left_at = None
        # when every group was long absent nobody held anything back: what this one had committed then can leave now
        self._remove_unheld(effects)
        self._give_back(group, session, effects)
        self._dispatch(group, effects)
        return session.number, effects

    def _group(self, name: str, effects: Effects) -> _Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name)
            effects.groups.append(name)
        return group

    def _give_back(self, group: _Group, session: _Session, effects: Effects) -> None:
        """What is held for this very user is its again, in order; what it no longer wants is ready for all."""
        mine = [index for index, (_, user) in group.held.items() if user == session.consumer.user]
        heap: list[tuple[int, int]] = []
        for index in mine:
            if self._wanted(session.view, index) and index in self and not group.goes_alone(index):
                heap.append((-self._entries[index][0], index))
            else:
                del group.held[index]
                self._return(group, index)
        heapq.heapify(heap)
        while heap and session.free > 0:
            other = self._peek(group, session.view)
            if other is not None and other < heap[0]:
                self._hand_out(group, session, other[1], effects)
            else:
                index = heapq.heappop(heap)[1]
                del group.held[index]
                self._hand_out(group, session, index, effects)

    def detach(self, number: int, *, lost: bool, now: float) -> Effects:
        """The connection is gone; closed or `lost` decides when others get its items. Unknown numbers are ignored."""
        effects = Effects()
        session = self._sessions.get(number)
        if session is not None:
            group = self._groups[session.consumer.group]
            self._leave(session, lost=lost, now=now, effects=effects)
            self._dispatch(group, effects)
        return effects

    def _leave(self, session: _Session, *, lost: bool, now: float, effects: Effects) -> None:
        group = self._groups[session.consumer.group]
        member = group.members[session.consumer.user]
        del self._sessions[session.number]
        if session.number in group.reserved:
            self._unreserve(group, session)
        session.view.sessions.discard(session.number)
        if not session.view.sessions:
            group.views.remove(session.view)
        group.connected -= 1
        if not group.connected:
            group.left_at = now
        member.session = None
        member.active_at = now
        member.left_pending = bool(session.out)
        for index in sorted(session.out):
            del group.pending[index]
            if index in session.box or not lost:
                self._return(group, index)
                continue
            touch = group.touched[index]
            touch.failures += 1
            touch.code, touch.reason = "", "the connection was lost"
            effects.touched.append((group.name, index))
            if not self._give_up(group, index, touch, effects):
                self._hold(group, index, now + self.timing.leave_grace_s, session.consumer.user)
        session.out.clear()
        session.box.clear()
        self._forget_left(group)
        self.due = min(self.due, *self._moments(group))

    def _forget_left(self, group: _Group) -> None:
        left = [member for member in group.members.values() if member.session is None]
        for member in sorted(left, key=lambda member: member.active_at)[: max(0, len(left) - _MAX_LEFT)]:
            del group.members[member.consumer.user]

    def _hold(self, group: _Group, index: int, until: float, user: str | None) -> None:
        group.held[index] = (until, user)
        heapq.heappush(group.timers, (until, index))
        self.due = min(self.due, until)

    def _return(self, group: _Group, index: int) -> None:
        entry = self._entries.get(index)
        if entry is not None and not group.unavailable(index) and index not in self._claimed:
            heapq.heappush(group.alone if group.goes_alone(index) else group.returned, (-entry[0], index))

    def active(self, number: int, now: float) -> None:
        """The connection showed life."""
        session = self._sessions.get(number)
        if session is not None:
            self._groups[session.consumer.group].members[session.consumer.user].active_at = now

    def fetch(self, number: int, *, most: int, most_bytes: int) -> list[tuple[int, int]]:
        """The next items handed to the connection, as (index, deliveries), in order; one at least, if there is one."""
        session = self._sessions.get(number)
        if session is None:
            return []
        group = self._groups[session.consumer.group]
        fetched: list[tuple[int, int]] = []
        size = 0
        for index in islice(session.box, most):
            size += self._entries[index][1]
            if fetched and size > most_bytes:
                break
            touch = group.touched.setdefault(index, Touch())
            touch.deliveries += 1
            fetched.append((index, touch.deliveries))
        for index, _ in fetched:
            del session.box[index]
        return fetched

    def group_of(self, number: int) -> str:
        """The group of a connection that is known."""
        return self._sessions[number].consumer.group

    def count(self, priority: int | None) -> int:
        """How many entries are present and not claimed, of one class or of all."""
        if priority is None:
            return len(self._entries) - len(self._claimed)
        return sum(1 for _ in self.indexes_from(0, priority))

    def is_through(self, number: int) -> bool:
        """Whether the stream has ended, and the connection's group has committed all that was in it."""
        return self._is_through(self._groups[self._sessions[number].consumer.group])

    def _is_through(self, group: _Group | None) -> bool:
        committed = len(group.committed) if group is not None else 0
        return self.ended and not self._allotted and committed == len(self._entries)

    def connected(self, number: int) -> bool:
        """Whether the connection is still the consumer's."""
        return number in self._sessions

    def sessions(self) -> dict[Consumer, int]:
        """The connected consumers."""
        return {session.consumer: number for number, session in self._sessions.items()}

    # -- acknowledgement -------------------------------------------------------------------------------------------

    def commit(self, name: str, indexes: Iterable[int]) -> tuple[int, Effects]:
        """The items are done for the group; an item that all groups holding it back have committed is gone."""
        effects = Effects()
        present = [index for index in dict.fromkeys(indexes) if index in self._entries]
        if not present:
            return 0, effects
        group = self._group(name, effects)
        gone, counted = [], 0
        for index in present:
            if index in group.committed and index not in group.given_up:
                continue
            counted += 1
            self._unlease(group, index)
            group.held.pop(index, None)
            group.committed.add(index)
            group.given_up.discard(index)
            if self._is_done(index):
                gone.append(index)
            else:
                effects.committed.append((name, index, False))
        self._remove(gone, effects)
        if self._is_idle(group):
            self._forget(group, effects)
        self._dispatch_all(effects)
        return counted, effects

    def _holders(self) -> list[_Group]:
        """The groups that hold items back: those with a consumer, and those whose last one left a short time ago."""
        return [group for group in self._groups.values() if group.connected or group.left_at is not None]

    def _is_done(self, index: int) -> bool:
        """Whether every group that holds items back has committed the entry."""
        return all(index in group.committed for group in self._holders())

    def _give_up(self, group: _Group, index: int, touch: Touch, effects: Effects) -> bool:
        """Whether the item has no failure left in the group; then it counts as committed, and a copy goes to the rear.

        Without room in the rear store it stays where it is, and comes again after the longest back-off.
        """
        if not self.max_failures or touch.failures < self.max_failures:
            return False
        if not self.has_rear_room(self._entries[index][1]):
            return False
        effects.given_up.append((group.name, index, replace(touch)))
        group.committed.add(index)
        group.given_up.add(index)
        if self._is_done(index):
            self._retire([index], effects)
        else:
            effects.committed.append((group.name, index, True))
        return True

    def _retire(self, indexes: Sequence[int], effects: Effects) -> None:
        """Entries that their groups are done with are gone; those that nobody committed are unanswered."""
        for index in indexes:
            groups = [group for group in self._groups.values() if index in group.committed]
            if groups and all(index in group.given_up for group in groups):
                effects.unanswered.append((index, groups[-1].touched.get(index) or Touch()))
        self._remove(indexes, effects)

    def _unlease(self, group: _Group, index: int) -> None:
        number = group.pending.pop(index, None)
        if number is not None:
            session = self._sessions[number]
            session.out.discard(index)
            session.box.pop(index, None)
            if session.alone == index:
                session.alone = 0

    def negative(
        self, name: str, indexes: Iterable[int], *, code: str, reason: str, now: float
    ) -> tuple[int, Effects]:
        """Items pending in the group are ready again after the back-off of their failures; others are left alone."""
        effects = Effects()
        group = self._groups.get(name)
        if group is None:
            return 0, effects
        counted = 0
        stopped: set[int] = set()
        for index in dict.fromkeys(indexes):
            number = group.pending.get(index)
            if number is None:
                continue
            counted += 1
            self._unlease(group, index)
            if code == SHUTDOWN:
                stopped.add(number)
                self._return(group, index)
                continue
            touch = group.touched.setdefault(index, Touch())
            touch.failures += 1
            touch.code, touch.reason = code, reason
            effects.touched.append((name, index))
            if self._give_up(group, index, touch, effects):
                continue
            delays = self.timing.backoff_s
            delay = delays[min(touch.failures, len(delays)) - 1]
            if delay > 0:
                self._hold(group, index, now + delay, None)
            else:
                self._return(group, index)
        for number in stopped:
            self._stop(group, self._sessions[number])
        self._dispatch(group, effects)
        return counted, effects

    def _stop(self, group: _Group, session: _Session) -> None:
        """The connection gets nothing more: what it has not fetched yet is ready for others."""
        session.stopped = True
        for index in list(session.box):
            self._unlease(group, index)
            self._return(group, index)

    # -- handing out -----------------------------------------------------------------------------------------------

    def dispatch(self) -> Effects:
        """Every free slot for which an item is ready has one."""
        effects = Effects()
        self._dispatch_all(effects)
        return effects

    def _dispatch_all(self, effects: Effects) -> None:
        for group in self._groups.values():
            if group.connected:
                self._dispatch(group, effects)

    def _dispatch(self, group: _Group, effects: Effects) -> None:
        """The ready item of the highest class and lowest index goes to the consumer with most free slots, until
        none fits.
        """
        self._serve_reserved(group, effects)
        while True:
            best: tuple[int, int] | None = None
            takers: set[int] = set()  # connections that want it
            for view in group.views:
                if any(self._sessions[number].free > 0 for number in view.sessions):
                    candidate = self._peek(group, view)
                    if candidate is not None and candidate == best:
                        takers |= view.sessions
                    elif candidate is not None and (best is None or candidate < best):
                        best, takers = candidate, set(view.sessions)
            if self._reserve(group, best, effects):
                continue
            if best is None:
                if self._release_reserved(group):
                    continue
                return
            session = max(
                (self._sessions[number] for number in takers),
                key=lambda session: (session.free, -session.served, -session.number),
            )
            self._hand_out(group, session, best[1], effects)

    def _serve_reserved(self, group: _Group, effects: Effects) -> None:
        """A connection that was waiting to be empty, and is, has its item; if that is gone, it waits no longer."""
        for number in list(group.reserved):
            session = self._sessions[number]
            if session.stopped or not self._ready(group, session.alone):
                self._unreserve(group, session)
            elif not session.out:
                group.reserved.discard(number)
                self._hand_out(group, session, session.alone, effects)

    def _unreserve(self, group: _Group, session: _Session) -> None:
        """The connection waits for no item; what it waited for, if it is still ready, is for whoever comes."""
        group.reserved.discard(session.number)
        index, session.alone = session.alone, 0
        self._return(group, index)

    def _release_reserved(self, group: _Group) -> bool:
        """Nothing else is to be handed out: an item that waits for one connection to be empty, while another that
        could take it is, waits no longer. Whether there was one.
        """
        for number in group.reserved:
            session = self._sessions[number]
            if not all(taker.out for taker in self._takers(group, session.alone)):
                self._unreserve(group, session)
                return True
        return False

    def _takers(self, group: _Group, index: int) -> list[_Session]:
        """The connections that want the item, and neither have nor wait for one that goes alone."""
        return [
            session
            for view in group.views
            if self._wanted(view, index)
            for session in (self._sessions[number] for number in view.sessions)
            if not session.stopped and not session.alone
        ]

    def _reserve(self, group: _Group, other: tuple[int, int] | None, effects: Effects) -> bool:
        """An item that goes alone, if it is before `other`, has a consumer: whichever has least pending gets nothing
        more until it is empty, then it gets the item. The others go on with later items.
        """
        passed: list[tuple[int, int]] = []
        found = False
        while group.alone and not found and (other is None or group.alone[0] < other):
            pair = heapq.heappop(group.alone)
            if not self._ready(group, pair[1]):
                continue
            takers = self._takers(group, pair[1])
            if not takers:
                passed.append(pair)
                continue
            chosen = min(takers, key=lambda session: (len(session.out), session.served))
            chosen.alone = pair[1]
            group.reserved.add(chosen.number)
            found = True
        for pair in passed:
            heapq.heappush(group.alone, pair)
        if found:
            self._serve_reserved(group, effects)
        return found

    def _hand_out(self, group: _Group, session: _Session, index: int, effects: Effects) -> None:
        self._handouts += 1
        session.served = self._handouts
        session.out.add(index)
        session.box[index] = None
        group.pending[index] = session.number
        group.highest = max(group.highest, index)
        group.members[session.consumer.user].index = index
        effects.woken.add(session.number)

    def _ready(self, group: _Group, index: int) -> bool:
        return index in self and not group.unavailable(index)

    def _ready_among_others(self, group: _Group, index: int) -> bool:
        return self._ready(group, index) and not group.goes_alone(index)

    def _wanted(self, view: _View, index: int) -> bool:
        if index <= view.after:
            return False
        if not view.tags:
            return True
        tags = self._tags_of(index)
        return all(tags.get(key) == value for key, value in view.tags.items())

    def _peek(self, group: _Group, view: _View) -> tuple[int, int] | None:
        """The (-priority, index) that the view's consumers get next."""
        returned = self._peek_returned(group, view)
        for priority in sorted(self._lanes, reverse=True):
            if returned is not None and -returned[0] > priority:
                return returned
            index = self._peek_lane(group, view, priority)
            if index is not None:
                fresh = (-priority, index)
                return fresh if returned is None else min(fresh, returned)
        return returned

    def _peek_returned(self, group: _Group, view: _View) -> tuple[int, int] | None:
        heap = group.returned
        while heap and not self._ready_among_others(group, heap[0][1]):
            heapq.heappop(heap)
        if not heap or self._wanted(view, heap[0][1]):
            return heap[0] if heap else None
        fitting = (
            pair
            for pair in sorted(heap)
            if self._ready_among_others(group, pair[1]) and self._wanted(view, pair[1])
        )
        return next(fitting, None)

    def _peek_lane(self, group: _Group, view: _View, priority: int) -> int | None:
        lane = self._lanes[priority]
        position = lane.after(max(view.cursors.get(priority, 0), view.after))
        while position < len(lane.indexes):
            index = lane.indexes[position]
            if self._ready_among_others(group, index) and self._wanted(view, index):
                return index
            view.cursors[priority] = index
            position += 1
        return None

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """Holds that are over are ready, and groups absent for too long no longer hold anything back."""
        effects = Effects()
        lapsed = False
        for group in list(self._groups.values()):
            while group.timers and group.timers[0][0] <= now:
                until, index = heapq.heappop(group.timers)
                if group.held.get(index, (None,))[0] == until:
                    del group.held[index]
                    self._return(group, index)
            for user, member in list(group.members.items()):
                if member.session is None and member.active_at + self.timing.forget_s <= now:
                    del group.members[user]
            if group.left_at is not None and group.left_at + self.timing.group_retention_s <= now:
                group.left_at = None
                lapsed = True
            if self._is_idle(group):
                self._forget(group, effects)
        if lapsed:
            self._remove_unheld(effects)
        self._dispatch_all(effects)
        self.due = min(
            (moment for group in self._groups.values() for moment in self._moments(group)), default=inf
        )
        return effects

    def _moments(self, group: _Group) -> Iterator[float]:
        if group.timers:
            yield group.timers[0][0]
        if group.left_at is not None:
            yield group.left_at + self.timing.group_retention_s
        for member in group.members.values():
            if member.session is None:
                yield member.active_at + self.timing.forget_s

    def _is_idle(self, group: _Group) -> bool:
        holding = group.connected or group.left_at is not None
        return not (holding or group.committed or group.touched or group.members or group.held)

    def _forget(self, group: _Group, effects: Effects) -> None:
        del self._groups[group.name]
        effects.forgotten_groups.append(group.name)

    def _remove_unheld(self, effects: Effects) -> None:
        """Entries that every holding group has committed are gone; without a holding group nothing is."""
        self._retire(self._committed_by(self._holders()), effects)

    def _committed_by(self, groups: Sequence[_Group]) -> list[int]:
        """The entries that all of `groups` have committed, ascending; none when there are no groups."""
        smallest = min((group.committed for group in groups), key=len, default=set[int]())
        return sorted(index for index in smallest if all(index in group.committed for group in groups))

    # -- what is asked ---------------------------------------------------------------------------------------------

    def touch(self, name: str, index: int) -> Touch | None:
        """What the group remembers of an item that was delivered to it."""
        group = self._groups.get(name)
        return None if group is None else group.touched.get(index)

    def locate(self, name: str, index: int) -> Location | None:
        """Where a present item stands for the group."""
        if index not in self:
            return None
        group = self._groups.get(name)
        if group is not None and index in group.pending:
            return Location(self._sessions[group.pending[index]].consumer.user, 0)
        priority = self._entries[index][0]
        ahead = 0
        for other in self.indexes_from(0):
            ranks_before = (-self._entries[other][0], other) < (-priority, index)
            if ranks_before and (group is None or not (other in group.pending or other in group.committed)):
                ahead += 1
        return Location(None, ahead)

    def stats(self, now: float) -> StreamStats:
        """The stream at this moment; what is claimed counts as gone."""
        return StreamStats(
            length=len(self._entries) - len(self._claimed),
            size=self._size - sum(self._claimed.values()),
            first=next(self.indexes_from(0), 0),
            last=self.last_present(),
            next=self.last + 1,
            ended=self.ended,
            consumers=[
                self._consumer_line(group, member, now)
                for group in self._groups.values()
                for member in group.members.values()
            ],
            groups=[
                GroupLine(
                    id=group.name,
                    index=min(group.pending, default=0),
                    pending=len(group.pending),
                    delivered=group.highest + 1,
                    consumers=group.connected,
                )
                for group in self._groups.values()
                if group.connected or group.members
            ],
        )

    def _consumer_line(self, group: _Group, member: _Member, now: float) -> ConsumerLine:
        session = None if member.session is None else self._sessions[member.session]
        held = sum(1 for _, user in group.held.values() if user == member.consumer.user)
        if session is not None:
            status = "Running"
        elif not member.left_pending:
            status = "Complete"
        else:
            status = "Leaving" if held else "Exit"
        return ConsumerLine(
            id=member.consumer.id,
            index=member.index,
            pending=held if session is None else len(session.out),
            status=status,
            idle_s=max(0.0, now - member.active_at),
            window=0 if session is None else member.window,
            slots=0 if session is None else max(0, member.window - len(session.out)),
            auto_commit=member.auto_commit,
            tags=member.tags,
        )
