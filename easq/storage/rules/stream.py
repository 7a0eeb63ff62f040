"""The rules of one stream without I/O, threads or clocks: who gets which item next, and what has to be remembered.

The life of an entry, for one group:

    allotted ──stored──▶ ready ──hand out──▶ pending ──commit──▶ committed ──no group retains it──▶ gone
                          ▲                    │
                          ├──── negative ──────┤   after the back-off
                          ├──── closed ────────┤   at once
                          └──── lost ──────────┘   at once for the same user, for others after the grace

    A lost connection counts as a failure unless its process reconnects within the grace period. For a consumer that
    names no process, the first losses of an item do not count.

    pending ──the last failure that is allowed──▶ given up: counts as committed, a copy goes to the rear store

    delete, truncate, a settled claim: gone, from any state, for all groups.
    claim: hidden from everyone until it is released or deleted.

A `Stream` knows index, priority and size of each entry, never its tags or data: those are the engine's. Methods change
the state and return `Effects`: what the engine has to make durable, and which connections have something to fetch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import inf
from typing import TypeAlias

from easq.errors import StreamEnded
from easq.model import Consumer, Tags
from easq.protocol.operations import BUSY, SHUTDOWN
from easq.protocol.replies import ConsumerLine, GroupLine, HeldLine
from easq.storage.base import Limits, Location, StreamStats, Subscription, Timing
from easq.storage.rules.dispatch import Dispatcher
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.entries import Entries
from easq.storage.rules.filters import NOBODY, Filter, filter_of
from easq.storage.rules.groups import ConsumerGroup, ConsumerSession, EntryState, GroupMember, Hold
from easq.storage.rules.retention import Retention

#: the value of `due` when `tick` has to be called at once: before any time of a monotonic clock
AT_ONCE = 0.0
#: the code with which an item fails that waited for busy consumers for too long
BUSY_STATUS = "503"
#: the wait of a busy item without `delay_s`: as long as it has waited before, within these bounds, in milliseconds
BUSY_FIRST_MS, BUSY_MOST_MS = 1000, 30_000
#: so many lost connections of an item do not count as failures if the consumer names no process
FREE_LOSSES = 10
#: the failure reason of an item whose consumer did not reconnect
_LOST = "the connection was lost"


#: of an entry that left: priority, size, and what each group remembered of it
_RemovedEntry: TypeAlias = tuple[int, int, dict[str, EntryState]]


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
        has_rear_room: Callable[[int, int], bool] = lambda _items, _size: True,
    ) -> None:
        self.timing = timing
        self.max_failures = max_failures  # an item is given up with so many; 0: never
        self.has_rear_room = has_rear_room
        self.ended = ended
        self.entries = Entries(last)
        self._groups: dict[str, ConsumerGroup] = {}
        self._sessions: dict[int, ConsumerSession] = {}
        self._dispatcher = Dispatcher(self.entries, self._sessions, tags_of)
        self._retention = Retention(self.entries, self._groups, tags_of)
        self._number = 0
        # entries that left with a copy or answer that is not stored yet: how to bring them back; None: not wanted back
        self._removed: dict[int, _RemovedEntry | None] = {}
        self._unanswered_at = inf  # when those are looked for that left in vain, as nobody could be told
        self.due = inf  # when `tick` has something to do, at the earliest

    # -- entries ---------------------------------------------------------------------------------------------------

    def restore_group(
        self,
        name: str,
        committed: Iterable[int],
        given_up: Iterable[int],
        records: Iterable[tuple[int, DeliveryRecord]],
        now: float,
        filters: Iterable[tuple[Tags, float]] | None = None,
    ) -> None:
        """Restore a stored group, after its entries. `committed` includes `given_up`.

        `filters` are its filters, and when the last consumer of each left; None if they are not known: then the group
        retains every item, as if a consumer without a filter had left now.
        """
        group = self._groups.setdefault(name, ConsumerGroup(name))
        for tags, left_at in [({}, now)] if filters is None else filters:
            group.filters.set(filter_of(tags), left_at)
        self._retention.consumer_left()
        self._retention.filter_ended()
        self.due = AT_ONCE
        group.committed = {index for index in committed if index in self.entries}
        group.given_up = {index for index in given_up if index in group.committed}
        group.records = {index: record for index, record in records if index in self.entries}
        for index in group.records:
            if group.goes_alone(index):
                self._dispatcher.make_ready(group, index)

    def allocate(self, size: int, limits: Limits) -> tuple[int, Effects | None]:
        """Reserve an index for an item of `size` bytes; `show` or `drop` has to follow, in the order of the indexes.

        Returns the index, and what making room for the item asks for; None, as for most items, if there was room.
        Raises StreamEnded; QueueFull when there is no room even without the claims of absent groups. Then nothing has
        changed.
        """
        if self.ended:
            raise StreamEnded("the stream has ended and takes no more items")
        entries = self.entries
        if entries.has_room(size, limits):
            return entries.allocate(size, limits), None
        effects = Effects()
        releasable: list[int] = []
        if any(group.filters.first_left_at is not None for group in self._groups.values()):
            releasable = self._retention.releasable(size, limits)
        if (releasable or limits.evict) and entries.would_have_room(size, limits, without=releasable):
            self._make_room(size, limits, releasable, effects)
        index = entries.allocate(size, limits)
        if effects.removed:
            self._dispatch_all(effects)
        return index, effects

    def _make_room(self, size: int, limits: Limits, releasable: Sequence[int], effects: Effects) -> None:
        """Drop the filters of absent consumers, remove `releasable`, then evict the oldest if `limits` allow it."""
        for group in self._groups.values():
            if group.filters.drop_absent():
                effects.groups.append(group.name)
        self._retire(releasable, effects)
        self._retention.filter_ended()
        self._remove_free(effects)
        while not self.entries.has_room(size, limits):
            self._remove([next(self.entries.indexes_from(0))], effects)

    def claim(self, indexes: Iterable[int]) -> Effects:
        """The present items are hidden from everyone, also from connections that have not fetched them yet."""
        effects = Effects()
        for index in indexes:
            self.entries.claim(index)
            for group in self._groups.values():
                number = group.pending.get(index)
                if number is not None and index in self._sessions[number].unsent:
                    self._dispatcher.end_delivery(group, index)
        self._dispatch_all(effects)
        return effects

    def release(self, indexes: Iterable[int]) -> Effects:
        """Claimed items that still exist are visible again, and ready for each group that does not have them."""
        effects = Effects()
        for index in indexes:
            if self.entries.release(index):
                for group in self._groups.values():
                    self._dispatcher.make_ready(group, index)
        self._dispatch_all(effects)
        return effects

    def delete(self, indexes: Iterable[int]) -> Effects:
        """The present items are gone for all groups."""
        effects = Effects()
        self._remove(self._present(indexes), effects)
        self._dispatch_all(effects)
        return effects

    def _present(self, indexes: Iterable[int]) -> list[int]:
        """Those that are there, each once; those that are just leaving will not come back."""
        named = dict.fromkeys(indexes)
        if self._removed:
            self._removed |= dict.fromkeys(self._removed.keys() & named.keys())
        return [index for index in named if index in self.entries]

    def truncate(self, below: int) -> tuple[int, Effects]:
        """All present items under `below` are gone; `truncated_below` excludes what is not stored yet."""
        effects = Effects()
        self._removed |= dict.fromkeys(index for index in self._removed if index < below)
        gone = self.entries.below(below)
        self._remove(gone, effects)
        effects.removed.clear()
        effects.truncated_below = min(below, self.entries.shown + 1)
        self._dispatch_all(effects)
        return len(gone), effects

    def _remove(self, indexes: Sequence[int], effects: Effects) -> None:
        self.entries.remove(indexes)
        for index in indexes:
            for group in self._groups.values():
                self._dispatcher.end_delivery(group, index)
                group.forget(index)
            self._retention.forget(index)
        effects.removed += indexes
        if indexes:
            self._forget_idle(effects)

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
            older = self._sessions[member.session]
            is_back = bool(older.process) and older.process == subscription.process
            self._leave(older, lost=is_back, now=now, effects=effects)
        view = group.view(subscription.after, subscription.tags)
        self._number += 1
        session = ConsumerSession(
            self._number,
            consumer,
            subscription.window,
            subscription.auto_commit,
            view,
            served=self._dispatcher.count,
            process=subscription.process,
        )
        view.sessions.add(session.number)
        self._sessions[session.number] = session
        last_index = member.index if member is not None else 0
        group.members[consumer.user] = GroupMember(
            consumer,
            session.number,
            subscription.window,
            subscription.auto_commit,
            dict(subscription.tags),
            index=last_index,
            active_at=now,
        )
        group.connected += 1
        self._take_filter(group, subscription.tags, None if member is None else member.tags, effects)
        self._count_replaced(group, session, effects)
        self._dispatcher.redeliver_held(group, session, effects)
        self._dispatch_to(group, effects)
        return session.number, effects

    def _take_filter(self, group: ConsumerGroup, tags: Tags, before: Tags | None, effects: Effects) -> None:
        """Record that a consumer with `tags` is connected: the group retains the items that match them.

        If the consumer had other tags `before` that no other consumer has, their filter ends: it will not return for
        those items.
        """
        mine = filter_of(tags)
        if mine not in group.filters or group.filters.is_absent(mine):
            group.filters.set(mine, None)
            effects.groups.append(group.name)
        if before is None or before == tags or not group.filters.is_absent(filter_of(before)):
            return
        if not any(member.tags == before for member in group.members.values()):
            group.filters.drop(filter_of(before))
            effects.groups.append(group.name)
            self._retention.filter_ended()
            self._remove_free(effects)

    def _group(self, name: str, effects: Effects) -> ConsumerGroup:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = ConsumerGroup(name)
            effects.groups.append(name)
        return group

    def detach(self, number: int, *, lost: bool, now: float) -> Effects:
        """The connection is gone; closed or `lost` decides when others get its items. Unknown numbers are ignored."""
        effects = Effects()
        session = self._sessions.get(number)
        if session is not None:
            group = self._groups[session.consumer.group]
            self._leave(session, lost=lost, now=now, effects=effects)
            self._dispatch_to(group, effects)
        return effects

    def _leave(self, session: ConsumerSession, *, lost: bool, now: float, effects: Effects) -> None:
        group = self._groups[session.consumer.group]
        member = group.members[session.consumer.user]
        del self._sessions[session.number]
        if session.number in group.reserved:
            self._dispatcher.unreserve(group, session)
        group.redelivering.discard(session.number)
        session.view.sessions.discard(session.number)
        if not session.view.sessions:
            group.leave_view(session.view)
            if not any(view.tags == session.view.tags for view in group.views):
                group.filters.leave(filter_of(session.view.tags), now)
                effects.groups.append(group.name)
                self._retention.consumer_left()
        group.connected -= 1
        member.session = None
        member.active_at = now
        member.left_pending = bool(session.pending)
        for index in sorted(session.pending):
            del group.pending[index]
            if index in session.unsent or not lost:
                self._dispatcher.make_ready(group, index)
                continue
            hold = Hold(now + self.timing.leave_grace_s, session.consumer.user, session.process)
            if session.process:
                self._hold(group, index, hold)
            elif group.records[index].losses < FREE_LOSSES:
                group.records[index].losses += 1
                effects.recorded.append((group.name, index))
                self._hold(group, index, hold)
            else:
                self._count_loss(group, index, effects, hold)
        session.pending.clear()
        session.unsent.clear()
        group.forget_left()
        self.due = min(self.due, *group.due_times(self.timing))

    def _hold(self, group: ConsumerGroup, index: int, hold: Hold) -> None:
        group.held[index] = hold
        heapq.heappush(group.timers, (hold.until, index))
        self.due = min(self.due, hold.until)

    def _count_loss(self, group: ConsumerGroup, index: int, effects: Effects, hold: Hold) -> None:
        """Count the lost connection as a failure of the item; hold the item as `hold` says unless it is given up."""
        group.held.pop(index, None)
        group.records[index].losses += 1
        if not self._fail(group, index, "", _LOST, effects):
            self._hold(group, index, hold)

    def _count_replaced(self, group: ConsumerGroup, session: ConsumerSession, effects: Effects) -> None:
        """Count the losses of an earlier process of the same name: it will not reconnect, as `session` replaces it."""
        lost = [
            index
            for index, hold in group.held.items()
            if hold.user == session.consumer.user and hold.process not in ("", session.process)
        ]
        for index in sorted(lost):
            self._count_loss(group, index, effects, group.held[index]._replace(process=""))

    def _fail(self, group: ConsumerGroup, index: int, code: str, reason: str, effects: Effects) -> bool:
        """Count a failure of the item. Return whether it was the last one allowed, and the group has given it up."""
        record = group.records.setdefault(index, DeliveryRecord())
        record.failures += 1
        record.code, record.reason = code, reason
        record.busy_ms = record.fetched_ms = 0
        effects.recorded.append((group.name, index))
        return self._give_up(group, index, record, effects)

    def active(self, number: int, now: float) -> None:
        """The connection showed life."""
        session = self._sessions.get(number)
        if session is not None:
            self._groups[session.consumer.group].members[session.consumer.user].active_at = now

    def fetch(self, number: int, *, most: int, most_bytes: int, now: float) -> list[tuple[int, int]]:
        """The next items handed to the connection, as (index, deliveries), in order; one at least, if there is one."""
        session = self._sessions.get(number)
        if session is None:
            return []
        group = self._groups[session.consumer.group]
        fetched: list[tuple[int, int]] = []
        size = 0
        for index in islice(session.unsent, most):
            size += self.entries.size_of(index)
            if fetched and size > most_bytes:
                break
            record = group.records.setdefault(index, DeliveryRecord())
            record.deliveries += 1
            if record.busy_ms:
                record.fetched_ms = round(now * 1000)
            fetched.append((index, record.deliveries))
        for index, _ in fetched:
            del session.unsent[index]
        return fetched

    def next_size(self, number: int) -> int:
        """Return the size in bytes of the next item for the connection; 0 if there is none."""
        session = self._sessions.get(number)
        index = next(iter(session.unsent), None) if session is not None else None
        return 0 if index is None else self.entries.size_of(index)

    def group_of(self, number: int) -> str:
        """The group of a connection that is known."""
        return self._sessions[number].consumer.group

    def is_through(self, number: int) -> bool:
        """Whether the stream has ended, and the connection's group has committed all that was in it."""
        return self._is_through(self._groups[self._sessions[number].consumer.group])

    def _is_through(self, group: ConsumerGroup | None) -> bool:
        committed = len(group.committed) if group is not None else 0
        return self.ended and not self.entries.has_allocated and committed == len(self.entries)

    def connected(self, number: int) -> bool:
        """Whether the connection is still the consumer's."""
        return number in self._sessions

    def has_out(self, number: int, index: int) -> bool:
        """Whether the connection has fetched the item, which is pending at it."""
        session = self._sessions.get(number)
        return session is not None and index in session.pending and index not in session.unsent

    def sessions(self) -> dict[Consumer, int]:
        """The connected consumers."""
        return {session.consumer: number for number, session in self._sessions.items()}

    def idle(self, consumer: Consumer, now: float, process: str = "") -> float | None:
        """Return the seconds since the last heartbeat of the consumer's connection; None if it has none, or one of the
        same process.
        """
        group = self._groups.get(consumer.group)
        member = None if group is None else group.members.get(consumer.user)
        if member is None or member.session is None:
            return None
        if process and self._sessions[member.session].process == process:
            return None
        return now - member.active_at

    # -- acknowledgement -------------------------------------------------------------------------------------------

    def commit(self, name: str, indexes: Iterable[int]) -> tuple[int, Effects]:
        """Commit the items for the group; remove those that no other group retains."""
        effects = Effects()
        present = self._present(indexes)
        if not present:
            return 0, effects
        group = self._group(name, effects)
        gone, counted = [], 0
        for index in present:
            if index in group.committed and index not in group.given_up:
                continue
            counted += 1
            self._dispatcher.end_delivery(group, index)
            group.held.pop(index, None)
            group.failed_by.pop(index, None)
            group.committed.add(index)
            group.given_up.discard(index)
            if self._is_free(index):
                gone.append(index)
            else:
                effects.committed.append((name, index, False))
        self._remove(gone, effects)
        self._dispatch_all(effects)
        return counted, effects

    def _is_free(self, index: int) -> bool:
        """Return whether no group retains an item that one has just committed; record who does."""
        holder = self._retention.holder(index)
        if holder != NOBODY:
            self._retention.record_holder(index, holder)
        return holder == NOBODY

    def _give_up(self, group: ConsumerGroup, index: int, record: DeliveryRecord, effects: Effects) -> bool:
        """Whether the item has no failure left in the group; then it counts as committed, and a copy goes to the rear.

        Without room in the rear store it stays where it is, and comes again after the longest back-off.
        """
        if not self.max_failures or record.failures < self.max_failures:
            return False
        size = effects.given_up_size + self.entries.size_of(index)
        if not self.has_rear_room(len(effects.given_up) + 1, size):
            return False
        effects.given_up_size = size
        effects.given_up.append((group.name, index, replace(record)))
        left = self._snapshot(index)
        group.committed.add(index)
        group.given_up.add(index)
        if self._is_free(index):
            self._removed[index] = left
            self._retire([index], effects)
        else:
            effects.committed.append((group.name, index, True))
        return True

    def _retire(self, indexes: Sequence[int], effects: Effects) -> None:
        """Entries that their groups are done with are gone; those that nobody committed are unanswered."""
        for index in indexes:
            groups = [group for group in self._groups.values() if index in group.committed]
            if groups and all(index in group.given_up for group in groups):
                effects.unanswered.append((index, groups[-1].records.get(index) or DeliveryRecord()))
                self._removed.setdefault(index, self._snapshot(index))
        self._remove(indexes, effects)

    def _snapshot(self, index: int) -> _RemovedEntry:
        """What has to be known of a present entry to bring it back."""
        states = {group.name: group.state_of(index) for group in self._groups.values()}
        return -self.entries.rank(index)[0], self.entries.size_of(index), states

    def copies_stored(self, effects: Effects) -> None:
        """Copies and answers of what left are stored: it does not come back."""
        for index in _copied_in(effects):
            self._removed.pop(index, None)

    def copies_refused(self, effects: Effects, now: float) -> Effects:
        """Copies and answers could not be stored: what left is where it was.

        Not so what was deleted or committed since. What a group gave up comes to it again after the longest back-off.
        Then too those are looked for that leave without a failure of their own, since a group that held them is absent.
        """
        again = now + self.timing.backoff_s[-1]
        taken = Effects()
        for index in dict.fromkeys(effects.removed):
            if index in self._removed:
                left = self._removed.pop(index)
                if left is None:
                    taken.removed.append(index)
                else:
                    self._restore_entry(index, left, taken)
        for name, index, _ in effects.given_up:
            group = self._groups.get(name)
            is_done = group is None or (index in group.committed and index not in group.given_up)
            if group is not None and index in self.entries and not is_done:
                group.committed.discard(index)
                group.given_up.discard(index)
                self._hold(group, index, Hold(again))
        self._unanswered_at = min(self._unanswered_at, again)
        self.due = min(self.due, again)
        for index in _copied_in(effects):
            for group in self._groups.values():
                self._dispatcher.make_ready(group, index)
        self._dispatch_all(taken)
        return taken

    def _restore_entry(self, index: int, left: _RemovedEntry, effects: Effects) -> None:
        priority, size, states = left
        self.entries.restore(index, priority, size)
        for name, state in states.items():
            if any(state):
                self._group(name, effects).restore_state(index, state)

    def negative(
        self,
        name: str,
        indexes: Iterable[int],
        *,
        code: str,
        reason: str,
        now: float,
        delay_s: float | None = None,
    ) -> tuple[int, Effects]:
        """Make items that are pending in the group ready again after their back-off; ignore others.

        Busy ones wait for `delay_s`, or as long as they have waited before.
        """
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
            self._dispatcher.end_delivery(group, index)
            if code == SHUTDOWN:
                stopped.add(number)
                self._dispatcher.make_ready(group, index)
                continue
            record = group.records.setdefault(index, DeliveryRecord())
            if code == BUSY and (waiting_ms := self._busy_for(record, delay_s, now)) is not None:
                record.busy_ms += max(1, waiting_ms)  # 0 would not tell that it was busy before
                effects.recorded.append((name, index))
                delay = waiting_ms / 1000
            else:
                if self._fail(group, index, BUSY_STATUS if code == BUSY else code, reason, effects):
                    continue
                delays = self.timing.backoff_s
                delay = delays[min(record.failures, len(delays)) - 1]
            group.failed_by[index] = self._sessions[number].consumer.user
            if delay > 0:
                self._hold(group, index, Hold(now + delay))
            else:
                self._dispatcher.make_ready(group, index)
        for number in stopped:
            self._dispatcher.stop(group, self._sessions[number])
        self._dispatch_to(group, effects)
        return counted, effects

    def _busy_for(self, record: DeliveryRecord, delay_s: float | None, now: float) -> int | None:
        """Return how many milliseconds a busy item has to wait; None when it has reached the limit.

        If it was busy before, the time that it was at the consumer counts: a worker keeps it until it may ask the model
        again.
        """
        if record.fetched_ms:
            record.busy_ms += max(0, round(now * 1000) - record.fetched_ms)
            record.fetched_ms = 0
        limit_ms = round(self.timing.busy_limit_s * 1000)
        if limit_ms and record.busy_ms >= limit_ms:
            return None
        if delay_s is None:
            delay_ms = min(max(record.busy_ms, BUSY_FIRST_MS), BUSY_MOST_MS)
        else:
            delay_ms = round(delay_s * 1000)
        return min(delay_ms, limit_ms - record.busy_ms) if limit_ms else delay_ms

    # -- handing out -----------------------------------------------------------------------------------------------

    def dispatch(self) -> Effects:
        """Every free slot for which an item is ready has one."""
        effects = Effects()
        self._dispatch_all(effects)
        return effects

    def _dispatch_all(self, effects: Effects, *, is_slice: bool = False) -> None:
        for group in self._groups.values():
            if group.connected:
                self._dispatcher.dispatch(group, effects, groups=len(self._groups), is_slice=is_slice)
        if self._dispatcher.is_behind:
            self.due = AT_ONCE

    def _dispatch_to(self, group: ConsumerGroup, effects: Effects) -> None:
        self._dispatcher.dispatch(group, effects)
        if self._dispatcher.is_behind:
            self.due = AT_ONCE

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """Holds that are over are ready, and groups absent for too long no longer hold anything back."""
        effects = Effects()
        lapsed = self._unanswered_at <= now
        if lapsed:
            self._unanswered_at = inf
        for group in list(self._groups.values()):
            while group.timers and group.timers[0][0] <= now:
                until, index = heapq.heappop(group.timers)
                hold = group.held.get(index)
                if hold is not None and hold.until == until:
                    self._release_hold(group, index, hold, effects)
            for user, member in list(group.members.items()):
                if member.session is None and member.active_at + self.timing.forget_s <= now:
                    del group.members[user]
            if group.filters.drop_absent(now, self.timing.group_retention_s):
                effects.groups.append(group.name)
                lapsed = True
        if lapsed:
            self._retention.filter_ended()
        self._remove_free(effects)
        self._forget_idle(effects)
        self._dispatcher.is_behind = False
        self._dispatch_all(effects, is_slice=True)
        if not self._dispatcher.is_behind and not self._retention.is_sweeping:
            self.due = min(
                (due_time for group in self._groups.values() for due_time in group.due_times(self.timing)),
                default=inf,
            )
            self.due = min(self.due, self._unanswered_at)
        return effects

    def stood_still(self, now: float) -> None:
        """Restart the grace period of all lost connections: nobody could reconnect while the service stood still."""
        for group in self._groups.values():
            for index, hold in list(group.held.items()):
                if hold.user is not None:
                    self._hold(group, index, hold._replace(until=now + self.timing.leave_grace_s))

    def _release_hold(self, group: ConsumerGroup, index: int, hold: Hold, effects: Effects) -> None:
        """Make the held item ready for all consumers. If it was held for a process, count a failure."""
        del group.held[index]
        if hold.process:
            group.records[index].losses += 1
            if self._fail(group, index, "", _LOST, effects):
                return
            if hold.user is not None:
                group.failed_by[index] = hold.user
        self._dispatcher.make_ready(group, index)

    def _forget_idle(self, effects: Effects) -> None:
        """Groups of which nothing is to be remembered are not known any more."""
        for name in [group.name for group in self._groups.values() if group.idle]:
            del self._groups[name]
            effects.forgotten_groups.append(name)

    def _remove_free(self, effects: Effects) -> None:
        """Examine one slice of the committed items, and remove those that no group retains."""
        free = self._retention.next_free()
        if free:
            self._retire(free, effects)
        if self._retention.is_sweeping:
            self.due = AT_ONCE

    # -- what is asked ---------------------------------------------------------------------------------------------

    def filters(self, name: str) -> list[tuple[Filter, float | None]] | None:
        """Return the group's filters, and when the last consumer of each left (None: one is connected). None for an
        unknown group.
        """
        group = self._groups.get(name)
        return None if group is None else list(group.filters)

    def absent(self) -> list[str]:
        """Return the groups with filters of consumers that left."""
        return [group.name for group in self._groups.values() if group.filters.first_left_at is not None]

    def record(self, name: str, index: int) -> DeliveryRecord | None:
        """What the group remembers of an item that was delivered to it."""
        group = self._groups.get(name)
        return None if group is None else group.records.get(index)

    def locate(self, name: str, index: int) -> Location | None:
        """Where a present item stands for the group."""
        place = self.place(name, index)
        if place is None or place.owner is not None:
            return place
        return replace(place, ahead=place.ahead - self.entries.count_ahead(self.handled(name), index))

    def place(self, name: str, index: int) -> Location | None:
        """Return the same as `locate`, except that `ahead` includes the items that `handled` returns."""
        if not self.entries.visible(index):
            return None
        group = self._groups.get(name)
        if group is not None and index in group.pending:
            return Location(self._sessions[group.pending[index]].consumer.user, 0)
        return Location(None, self.entries.ahead(index))

    def handled(self, name: str) -> list[int]:
        """Return the items that the group has pending or committed, to be subtracted from `ahead` of `place`."""
        group = self._groups.get(name)
        return [] if group is None else [*group.pending, *group.committed]

    def stats(self, now: float) -> StreamStats:
        """The stream at this moment; what is claimed counts as gone."""
        return StreamStats(
            length=self.entries.count(),
            size=self.entries.visible_size,
            first=next(self.entries.indexes_from(0), 0),
            last=self.entries.last_visible(),
            next=self.entries.last + 1,
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
            held=[line for group in self._groups.values() for line in self._held_lines(group, now)],
        )

    def _held_lines(self, group: ConsumerGroup, now: float) -> Iterator[HeldLine]:
        """Yield a line for each filter of the group, unless the group has committed everything."""
        uncommitted = len(self.entries) - len(group.committed)
        for one, left_at in group.filters:
            if uncommitted:
                left_s = None if left_at is None else max(0.0, left_at + self.timing.group_retention_s - now)
                yield HeldLine(group.name, None if one else uncommitted, left_s, dict(one))

    def _consumer_line(self, group: ConsumerGroup, member: GroupMember, now: float) -> ConsumerLine:
        session = None if member.session is None else self._sessions[member.session]
        held = sum(1 for hold in group.held.values() if hold.user == member.consumer.user)
        if session is not None:
            status = "Running"
        elif not member.left_pending:
            status = "Complete"
        else:
            status = "Leaving" if held else "Exit"
        return ConsumerLine(
            id=member.consumer.id,
            index=member.index,
            pending=held if session is None else len(session.pending),
            status=status,
            idle_s=max(0.0, now - member.active_at),
            window=0 if session is None else member.window,
            slots=0 if session is None else max(0, member.window - len(session.pending)),
            auto_commit=member.auto_commit,
            tags=member.tags,
        )


def _copied_in(effects: Effects) -> list[int]:
    """The entries that have a copy or an answer, each once."""
    given_up = [index for _, index, _ in effects.given_up]
    return list(dict.fromkeys([*given_up, *(index for index, _ in effects.unanswered)]))
