"""Choose the connection of a group that gets the next item.

The ready item of the highest priority and lowest index goes to the consumer with most free slots. Among equals, the one
served least recently gets it, then the one with the lowest number. An item that failed once goes to another consumer,
if there is one. After two failures, or one lost connection, an item is delivered alone: to a connection that has no
other item.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from easq.model import Tags
from easq.storage.rules.consumers import ConsumerSession, FilterView
from easq.storage.rules.effects import Effects
from easq.storage.rules.entries import Entries
from easq.storage.rules.groups import ConsumerGroup

#: stale entries of a heap are removed when it is longer than this and more than twice as long as the stream
_MIN_LENGTH = 1024
#: most items of one heap that `_dispatch_elsewhere` examines if the consumers of the group have different filters
_MOST_BEHIND = 32
#: Budget of one call; the next call goes on. An entry costs 1 (0.4 us), or 40 if its tags are read, which may be in the
#: file (10-20 us). The whole budget takes less than 4 ms.
_BUDGET, _TAGS_COST = 8_000, 40
#: budget of a view without tags while another view is behind; a view without tags seldom examines many entries
_FEW = 64
#: returned for a view's next item while it is not known yet; not a valid index
_UNKNOWN = 0


class Dispatcher:
    """Assigns the entries of one stream to its connections."""

    def __init__(
        self, entries: Entries, sessions: Mapping[int, ConsumerSession], tags_of: Callable[[int], Tags]
    ) -> None:
        self._entries = entries
        self._sessions = sessions
        self._tags_of = tags_of
        self.count = 0  # items dispatched so far
        #: whether a view has spent its budget before it examined everything: further slices are needed
        self.is_behind = False

    def _spend(self, view: FilterView, cost: int) -> bool:
        """Subtract `cost` from the view's budget. If the budget is spent, set `is_behind` and return False."""
        if view.left <= 0:
            self.is_behind = True
            return False
        view.left -= cost
        return True

    def dispatch(
        self, group: ConsumerGroup, effects: Effects, *, groups: int = 1, is_slice: bool = False
    ) -> None:
        """Assign ready items, in order of rank, until no consumer with a free slot wants one.

        The next item of a view may be behind more entries than one call may examine. Calls with `is_slice` then
        continue the search. `groups` is the number of groups that share the budget.
        """
        share = max(_TAGS_COST, _BUDGET // (groups * max(1, len(group.views))))
        for view in group.views:
            if is_slice or not self.is_behind:
                view.left = share
            else:  # only slices work on it meanwhile, so that other calls stay cheap
                view.left = 0 if view.tags else _FEW
        self._serve_reserved(group, effects)
        if group.redelivering:
            self._redeliver(group, effects)
        while True:
            best: tuple[int, int] | None = None
            takers: set[int] = set()  # connections that want `best`
            for view in group.views:
                if any(self._sessions[number].free > 0 for number in view.sessions):
                    candidate = self._peek(group, view)
                    if candidate is not None and candidate == best:
                        takers |= view.sessions
                    elif candidate is not None and (best is None or candidate < best):
                        best, takers = candidate, set(view.sessions)
            if self._reserve(group, best, effects):
                continue
            if group.elsewhere and self._dispatch_elsewhere(group, best, effects):
                continue
            if best is None:
                if not self.is_behind and self._release_reserved(group):
                    continue
                return
            session = max((self._sessions[number] for number in takers), key=_by_free_slots)
            self._assign(group, session, best[1], effects)

    def redeliver_held(self, group: ConsumerGroup, session: ConsumerSession, effects: Effects) -> None:
        """Give the items that are held for a user to the user's new connection. Items that its filter excludes become
        ready for all.

        A process that reconnects gets all of them at once, as before. Another process gets them one at a time.
        """
        mine = [index for index, hold in group.held.items() if hold.user == session.consumer.user]
        had: list[tuple[int, int]] = []
        for index in mine:
            if not (self._entries.visible(index) and self._wanted(session.view, index)):
                del group.held[index]
                self.make_ready(group, index)
            elif group.held[index].process:
                had.append(self._entries.rank(index))
            else:
                session.redeliveries.append(self._entries.rank(index))
        for _, index in sorted(had):
            hold = group.held.pop(index)
            if len(session.pending) < session.window:
                self._assign(group, session, index, effects)
                if group.goes_alone(index):
                    session.alone = index
            else:  # the window is smaller than before, which does not count as a loss
                group.held[index] = hold._replace(process="")
                session.redeliveries.append(self._entries.rank(index))
        if session.redeliveries:
            heapq.heapify(session.redeliveries)
            group.redelivering.add(session.number)

    def make_ready(self, group: ConsumerGroup, index: int) -> None:
        """Make the item ready for the group again, at its rank, unless it is pending, committed, held or claimed."""
        if not self._ready(group, index):
            return
        rank = self._entries.rank(index)
        if group.goes_alone(index):
            heapq.heappush(group.alone, rank)
            self._tidy(group, group.alone)
            return
        if index in group.failed_by:
            elsewhere = group.elsewhere.setdefault(group.failed_by[index], [])
            heapq.heappush(elsewhere, rank)
            self._tidy(group, elsewhere)
            return
        for view in group.views:
            if index > view.after:
                view.inbox.append(rank)
                self._tidy(group, view.inbox)
        for view in group.left_views:
            if index > view.after:
                view.inbox.append(rank)
        if group.left_views and len(group.left_views[0].inbox) > _MIN_LENGTH:
            del group.left_views[0]  # a new view would not cost more than to examine this inbox

    def _tidy(self, group: ConsumerGroup, heap: list[tuple[int, int]]) -> None:
        """Remove stale entries and duplicates from `heap` when it is more than twice as long as the stream."""
        if len(heap) > _MIN_LENGTH and len(heap) > 2 * len(self._entries):
            heap[:] = sorted({pair for pair in heap if self._ready(group, pair[1])})

    def end_delivery(self, group: ConsumerGroup, index: int) -> None:
        """End the delivery of the item: it is no longer pending in the group."""
        number = group.pending.pop(index, None)
        if number is not None:
            session = self._sessions[number]
            session.pending.discard(index)
            session.unsent.pop(index, None)
            if session.alone == index:
                session.alone = 0

    def unreserve(self, group: ConsumerGroup, session: ConsumerSession) -> None:
        """Stop the connection's wait for an item. If the item is still ready, any connection may get it."""
        group.reserved.discard(session.number)
        index, session.alone = session.alone, 0
        self.make_ready(group, index)

    def stop(self, group: ConsumerGroup, session: ConsumerSession) -> None:
        """Stop the connection: it gets nothing more, and what it has not fetched yet is ready for others."""
        session.stopped = True
        for index in list(session.unsent):
            self.end_delivery(group, index)
            self.make_ready(group, index)

    # -- items for, or not for, a certain consumer ---------------------------------------------------------------------

    def _redeliver(self, group: ConsumerGroup, effects: Effects) -> None:
        """Give consumers the items held for them, one at a time. A consumer gets the next one when it has nothing else
        pending.
        """
        for number in sorted(group.redelivering):
            session = self._sessions[number]
            while session.redeliveries:
                index = session.redeliveries[0][1]
                hold = group.held.get(index)
                if hold is not None and hold.user == session.consumer.user and self._entries.visible(index):
                    break
                heapq.heappop(session.redeliveries)  # it was committed or claimed, or is ready for everyone
            if session.redeliveries and not session.stopped and not session.pending:
                heapq.heappop(session.redeliveries)
                del group.held[index]
                session.alone = index
                self._assign(group, session, index, effects)
            if not session.redeliveries:
                group.redelivering.discard(number)

    def _dispatch_elsewhere(
        self, group: ConsumerGroup, other: tuple[int, int] | None, effects: Effects
    ) -> bool:
        """Assign a failed item that comes before `other` to a consumer other than the one that failed it; return
        whether there was one.

        The item waits while such consumers have no free slot. Without such a consumer it becomes an ordinary item.
        """
        found: list[tuple[int, int]] = []
        for user, heap in list(group.elsewhere.items()):
            while heap and not self._waits_elsewhere(group, user, heap[0][1]):
                heapq.heappop(heap)
            if not heap:
                del group.elsewhere[user]
            elif len(group.views) == 1:
                # all consumers have the same filter: without a free slot for this item there is none for the others
                found.append(heap[0])
            else:
                found += heapq.nsmallest(_MOST_BEHIND, heap)
        for rank in sorted(found):
            if other is not None and rank > other:
                break
            index = rank[1]
            failed_by = group.failed_by.get(index)
            if failed_by is None or not self._waits_elsewhere(group, failed_by, index):
                continue
            others = [taker for taker in self._wanting(group, index) if taker.consumer.user != failed_by]
            free = [taker for taker in others if taker.free > 0]
            if free:
                self._assign(group, max(free, key=_by_free_slots), index, effects)
                return True
            if not others:
                del group.failed_by[index]
                self.make_ready(group, index)
                return True
        return False

    def _waits_elsewhere(self, group: ConsumerGroup, user: str, index: int) -> bool:
        return (
            self._ready(group, index) and not group.goes_alone(index) and group.failed_by.get(index) == user
        )

    def _wanting(self, group: ConsumerGroup, index: int) -> Iterator[ConsumerSession]:
        """Yield the connections whose filter matches the item, except stopped ones."""
        for view in group.views:
            if self._wanted(view, index):
                for number in view.sessions:
                    if not self._sessions[number].stopped:
                        yield self._sessions[number]

    # -- items delivered alone -----------------------------------------------------------------------------------------

    def _serve_reserved(self, group: ConsumerGroup, effects: Effects) -> None:
        """Assign the reserved item to each waiting connection that is now empty. End the wait for items that no longer
        exist.
        """
        for number in sorted(group.reserved):
            session = self._sessions[number]
            if session.stopped or not self._ready(group, session.alone):
                self.unreserve(group, session)
            elif not session.pending:
                group.reserved.discard(number)
                self._assign(group, session, session.alone, effects)

    def _release_reserved(self, group: ConsumerGroup) -> bool:
        """End the wait of one connection for an item that another, empty connection can take. Return whether there was
        such a wait.

        Called when no other item can be dispatched.
        """
        for number in sorted(group.reserved):
            session = self._sessions[number]
            if not all(taker.pending for taker in self._takers(group, session.alone)):
                self.unreserve(group, session)
                return True
        return False

    def _takers(self, group: ConsumerGroup, index: int) -> list[ConsumerSession]:
        """Return the connections that can get the item alone: their filter matches, and they neither have nor wait for
        such an item. The user that failed it last is left out unless it is the only one.
        """
        wanting = list(self._wanting(group, index))
        failed_by = group.failed_by.get(index)
        if failed_by is not None:
            wanting = [session for session in wanting if session.consumer.user != failed_by] or wanting
        return [session for session in wanting if not session.alone and not session.redeliveries]

    def _reserve(self, group: ConsumerGroup, other: tuple[int, int] | None, effects: Effects) -> bool:
        """Reserve a connection for an item that is delivered alone and comes before `other`. Return whether there was
        such an item.

        The connection with the fewest pending items is reserved: it gets nothing more until it is empty, and then this
        item. The other connections go on with later items.
        """
        passed: list[tuple[int, int]] = []
        found = False
        while group.alone and not found and (other is None or group.alone[0] < other):
            pair = heapq.heappop(group.alone)
            if not self._ready(group, pair[1]) or self._is_reserved(group, pair[1]):
                continue
            takers = self._takers(group, pair[1])
            if not takers:
                passed.append(pair)
                continue
            chosen = min(takers, key=lambda session: (len(session.pending), session.served, session.number))
            chosen.alone = pair[1]
            group.reserved.add(chosen.number)
            found = True
        for pair in passed:
            heapq.heappush(group.alone, pair)
        if found:
            self._serve_reserved(group, effects)
        return found

    def _is_reserved(self, group: ConsumerGroup, index: int) -> bool:
        """Return whether a connection waits for the item, which may be in the heap more than once."""
        return any(self._sessions[number].alone == index for number in group.reserved)

    # -- what is next --------------------------------------------------------------------------------------------------

    def _assign(self, group: ConsumerGroup, session: ConsumerSession, index: int, effects: Effects) -> None:
        self.count += 1
        session.served = self.count
        session.pending.add(index)
        session.unsent[index] = None
        group.pending[index] = session.number
        group.highest = max(group.highest, index)
        group.members[session.consumer.user].index = index
        effects.woken.add(session.number)

    def _ready(self, group: ConsumerGroup, index: int) -> bool:
        return self._entries.visible(index) and not group.unavailable(index)

    def _ready_among_others(self, group: ConsumerGroup, index: int) -> bool:
        return self._ready(group, index) and index not in group.failed_by and not group.goes_alone(index)

    def _wanted(self, view: FilterView, index: int) -> bool:
        if index <= view.after:
            return False
        if not view.tags:
            return True
        tags = self._tags_of(index)
        return all(tags.get(key) == value for key, value in view.tags.items())

    def _peek(self, group: ConsumerGroup, view: FilterView) -> tuple[int, int] | None:
        """Return the (-priority, index) of the next item of the view; None if there is none, or it is not known yet."""
        if not self._sort_inbox(group, view):
            return None
        heap = view.returned
        while heap and not self._ready_among_others(group, heap[0][1]):
            heapq.heappop(heap)
        returned = heap[0] if heap else None
        classes = self._entries.classes()
        if len(view.cursors) > _MIN_LENGTH and len(view.cursors) > 2 * len(classes):
            view.cursors = {priority: view.cursors.get(priority, 0) for priority in classes}
        for priority in classes:
            if returned is not None and -returned[0] > priority:
                return returned
            index = self._peek_level(group, view, priority)
            if index == _UNKNOWN:
                known = returned is not None and returned <= (-priority, view.cursors.get(priority, 0))
                return returned if known else None
            if index is not None:
                fresh = (-priority, index)
                return fresh if returned is None else min(fresh, returned)
        return returned

    def _sort_inbox(self, group: ConsumerGroup, view: FilterView) -> bool:
        """Move the items of the inbox that match the filter to `returned`, drop the others, and return whether the
        budget was enough.
        """
        inbox = view.inbox
        while inbox:
            if not self._spend(view, _TAGS_COST if view.tags else 1):
                return False
            rank = inbox.pop()
            if self._ready_among_others(group, rank[1]) and self._wanted(view, rank[1]):
                heapq.heappush(view.returned, rank)
                self._tidy(group, view.returned)
        return True

    def _peek_level(self, group: ConsumerGroup, view: FilterView, priority: int) -> int | None:
        start = max(view.cursors.get(priority, 0), view.after)
        for index in self._entries.level(priority, start):
            ready = self._ready_among_others(group, index)
            if not self._spend(view, _TAGS_COST if ready and view.tags else 1):
                return _UNKNOWN
            if ready and self._wanted(view, index):
                return index
            view.cursors[priority] = index
        return None


def _by_free_slots(session: ConsumerSession) -> tuple[int, int, int]:
    """Return the sort key of `max`: most free slots, then least recently served."""
    return session.free, -session.served, -session.number
