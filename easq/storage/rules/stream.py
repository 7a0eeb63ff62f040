"""The rules of one stream: dispatch of items to connections, and the changes to store. No I/O, threads or clocks.

The life of an entry, for one group:

    allocated ──stored──▶ ready ──dispatch──▶ pending ──commit──▶ committed ──no group retains it──▶ removed
                            ▲                    │
                            ├──── negative ──────┤   after the back-off
                            ├──── closed ────────┤   at once
                            └──── lost ──────────┘   at once for the same user, for others after the grace period

    A lost connection counts as a failure unless its process reconnects within the grace period. For a consumer that
    names no process, the first losses of an item do not count.

    pending ──last failure allowed──▶ given up: counts as committed, and a dead letter goes to the rear store

    delete, truncate, a settled claim: removed, from any state, for all groups.
    claim: hidden from everyone until it is released or deleted.

A `Stream` knows index, priority and size of each entry; tags and data belong to the engine. Its methods change the
state and return `Effects`: the changes that the engine has to store, and the connections that have items to fetch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from math import inf

from easq.errors import StreamEnded
from easq.model import Consumer, Tags
from easq.storage.base import Limits, Location, StreamStats, Subscription
from easq.storage.rules.consumers import ConsumerSession, GroupMember
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.failures import FailureRules
from easq.storage.rules.filters import Filter, filter_of
from easq.storage.rules.groups import ConsumerGroup
from easq.storage.rules.state import AT_ONCE
from easq.storage.rules.statistics import stats_of


class Stream(FailureRules):
    """One stream with all its rules. The engine calls it, one method at a time, and stores the effects."""

    # -- entries -------------------------------------------------------------------------------------------------------

    def restore_group(
        self,
        name: str,
        committed: Iterable[int],
        given_up: Iterable[int],
        records: Iterable[tuple[int, DeliveryRecord]],
        now: float,
        filters: Iterable[tuple[Tags, float]] | None = None,
    ) -> None:
        """Restore a stored group, after the entries. `committed` includes `given_up`.

        `filters` are its filters, each with the time at which its last consumer left. None: they are not known, so the
        group retains every item, as if a consumer without a filter had left now.
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

        Returns the index and the effects of making room for the item; None for the effects if there was room. Raises
        StreamEnded; QueueFull when there is no room even without the items that only absent consumers retain. After an
        error nothing has changed.
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
        """Hide the present items from everyone, including connections that have not fetched them yet."""
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
        """Show claimed items again if they still exist; they are ready for each group that has not finished them."""
        effects = Effects()
        for index in indexes:
            if self.entries.release(index):
                for group in self._groups.values():
                    self._dispatcher.make_ready(group, index)
        self._dispatch_all(effects)
        return effects

    def delete(self, indexes: Iterable[int]) -> Effects:
        """Remove the present items for all groups."""
        effects = Effects()
        self._remove(self._present(indexes), effects)
        self._dispatch_all(effects)
        return effects

    def truncate(self, below: int) -> tuple[int, Effects]:
        """Remove all present items below `below`, and return how many there were.

        `truncated_below` of the effects excludes entries that are not stored yet.
        """
        effects = Effects()
        self._removed |= dict.fromkeys(index for index in self._removed if index < below)
        gone = self.entries.below(below)
        self._remove(gone, effects)
        effects.removed.clear()
        effects.truncated_below = min(below, self.entries.shown + 1)
        self._dispatch_all(effects)
        return len(gone), effects

    def commit(self, name: str, indexes: Iterable[int]) -> tuple[int, Effects]:
        """Commit the items for the group, and return how many were not committed before. Items that no group retains
        are removed.
        """
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

    # -- consumers -----------------------------------------------------------------------------------------------------

    def attach(self, consumer: Consumer, subscription: Subscription, now: float) -> tuple[int, Effects]:
        """Add a connection of `consumer`, and return its number. An older connection of the consumer is closed.

        Items that are held for this user go to the new connection first. Raises StreamEnded.
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
        self.count_replaced(group, session, effects)
        self._dispatcher.redeliver_held(group, session, effects)
        self._dispatch_to(group, effects)
        return session.number, effects

    def _take_filter(self, group: ConsumerGroup, tags: Tags, before: Tags | None, effects: Effects) -> None:
        """Record that a consumer with `tags` is connected: the group retains the items that match them.

        If the consumer had other tags `before`, and no other consumer has them, their filter ends: the consumer will
        not return for the items of that filter.
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

    def detach(self, number: int, *, lost: bool, now: float) -> Effects:
        """Remove the connection. `lost` decides when others get its items. Unknown numbers are ignored."""
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
            self.lose(group, session, index, now, effects)
        session.pending.clear()
        session.unsent.clear()
        group.forget_left()
        self.due = min(self.due, *group.due_times(self.timing))

    def active(self, number: int, now: float) -> None:
        """Record a heartbeat of the connection."""
        session = self._sessions.get(number)
        if session is not None:
            self._groups[session.consumer.group].members[session.consumer.user].active_at = now

    def fetch(self, number: int, *, most: int, most_bytes: int, now: float) -> list[tuple[int, int]]:
        """Return the next items of the connection as (index, delivery count), in order; one at least, if any."""
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
        """Return the group of a known connection."""
        return self._sessions[number].consumer.group

    def is_through(self, number: int) -> bool:
        """Return whether the stream has ended, and the group of the connection has committed everything."""
        return self._is_through(self._groups[self._sessions[number].consumer.group])

    def _is_through(self, group: ConsumerGroup | None) -> bool:
        committed = len(group.committed) if group is not None else 0
        return self.ended and not self.entries.has_allocated and committed == len(self.entries)

    def connected(self, number: int) -> bool:
        """Return whether the connection still belongs to its consumer."""
        return number in self._sessions

    def has_out(self, number: int, index: int) -> bool:
        """Return whether the item is pending at the connection, which has fetched it."""
        session = self._sessions.get(number)
        return session is not None and index in session.pending and index not in session.unsent

    def sessions(self) -> dict[Consumer, int]:
        """Return the connected consumers and the numbers of their connections."""
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

    # -- time ----------------------------------------------------------------------------------------------------------

    def dispatch(self) -> Effects:
        """Give an item to every free slot for which one is ready."""
        effects = Effects()
        self._dispatch_all(effects)
        return effects

    def tick(self, now: float) -> Effects:
        """Do what is due at `now`: end holds and filters, and forget consumers that left.

        Long scans go on here, one slice in each call.
        """
        effects = Effects()
        lapsed = self._unanswered_at <= now
        if lapsed:
            self._unanswered_at = inf
        for group in list(self._groups.values()):
            while group.timers and group.timers[0][0] <= now:
                until, index = heapq.heappop(group.timers)
                hold = group.held.get(index)
                if hold is not None and hold.until == until:
                    self.end_hold(group, index, hold, effects)
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

    # -- queries -------------------------------------------------------------------------------------------------------

    def filters(self, name: str) -> list[tuple[Filter, float | None]] | None:
        """Return the filters of the group, each with the time at which its last consumer left (None: one is connected).
        None for an unknown group.
        """
        group = self._groups.get(name)
        return None if group is None else list(group.filters)

    def absent(self) -> list[str]:
        """Return the names of groups with filters of consumers that left."""
        return [group.name for group in self._groups.values() if group.filters.first_left_at is not None]

    def record(self, name: str, index: int) -> DeliveryRecord | None:
        """Return the delivery record of the item in the group; None if it was never delivered there."""
        group = self._groups.get(name)
        return None if group is None else group.records.get(index)

    def locate(self, name: str, index: int) -> Location | None:
        """Return the place of the item for the group; None if it is not visible."""
        place = self.place(name, index)
        if place is None or place.owner is not None:
            return place
        return replace(place, ahead=place.ahead - self.entries.count_ahead(self.handled(name), index))

    def place(self, name: str, index: int) -> Location | None:
        """Return the same as `locate`, but with the items of `handled` included in `ahead`."""
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
        """Return the state of the stream at `now`; claimed items count as removed."""
        return stats_of(
            self.entries,
            self._groups.values(),
            self._sessions,
            now=now,
            ended=self.ended,
            retention_s=self.timing.group_retention_s,
        )
