"""The state of one stream, and the steps that several verbs share: hold, remove, dispatch."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import TypeAlias

from easq.model import Tags
from easq.storage.base import Timing
from easq.storage.rules.consumers import ConsumerSession
from easq.storage.rules.dispatch import Dispatcher
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.entries import Entries
from easq.storage.rules.filters import NOBODY
from easq.storage.rules.groups import ConsumerGroup, EntryState, Hold
from easq.storage.rules.retention import Retention

#: the value of `due` when `tick` has to be called at once: before any time of a monotonic clock
AT_ONCE = 0.0

#: a removed entry: its priority, its size, and its state in each group
RemovedEntry: TypeAlias = tuple[int, int, dict[str, EntryState]]


class StreamState:
    """Entries, groups and connections of one stream."""

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
        self.max_failures = max_failures  # number of failures after which an item is given up; 0: never
        self.has_rear_room = has_rear_room
        self.ended = ended
        self.entries = Entries(last)
        self._groups: dict[str, ConsumerGroup] = {}
        self._sessions: dict[int, ConsumerSession] = {}
        self._dispatcher = Dispatcher(self.entries, self._sessions, tags_of)
        self._retention = Retention(self.entries, self._groups, tags_of)
        self._number = 0
        # removed entries whose copy or answer is not stored yet: the values to restore them, or None if they must not
        # be restored
        self._removed: dict[int, RemovedEntry | None] = {}
        self._unanswered_at = inf  # when to search for entries whose answer was refused
        self.due = inf  # when `tick` has to be called next

    def _group(self, name: str, effects: Effects) -> ConsumerGroup:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = ConsumerGroup(name)
            effects.groups.append(name)
        return group

    def _present(self, indexes: Iterable[int]) -> list[int]:
        """Return the present entries of `indexes`, each once. Entries whose copy is being stored will never be
        restored.
        """
        named = dict.fromkeys(indexes)
        if self._removed:
            self._removed |= dict.fromkeys(self._removed.keys() & named.keys())
        return [index for index in named if index in self.entries]

    def _hold(self, group: ConsumerGroup, index: int, hold: Hold) -> None:
        group.held[index] = hold
        heapq.heappush(group.timers, (hold.until, index))
        self.due = min(self.due, hold.until)

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

    def _retire(self, indexes: Sequence[int], effects: Effects) -> None:
        """Remove entries that their groups have finished; those that no group committed are unanswered."""
        for index in indexes:
            groups = [group for group in self._groups.values() if index in group.committed]
            if groups and all(index in group.given_up for group in groups):
                effects.unanswered.append((index, groups[-1].records.get(index) or DeliveryRecord()))
                self._removed.setdefault(index, self._snapshot(index))
        self._remove(indexes, effects)

    def _snapshot(self, index: int) -> RemovedEntry:
        """Return what is needed to restore the present entry."""
        states = {group.name: group.state_of(index) for group in self._groups.values()}
        return -self.entries.rank(index)[0], self.entries.size_of(index), states

    def _is_free(self, index: int) -> bool:
        """Return whether no group retains an item that was just committed. Record its holder otherwise."""
        holder = self._retention.holder(index)
        if holder != NOBODY:
            self._retention.record_holder(index, holder)
        return holder == NOBODY

    def _remove_free(self, effects: Effects) -> None:
        """Examine one slice of the committed items, and remove those that no group retains."""
        free = self._retention.next_free()
        if free:
            self._retire(free, effects)
        if self._retention.is_sweeping:
            self.due = AT_ONCE

    def _forget_idle(self, effects: Effects) -> None:
        """Remove the groups that have no state left."""
        for name in [group.name for group in self._groups.values() if group.idle]:
            del self._groups[name]
            effects.forgotten_groups.append(name)

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
