"""Which items of a stream are retained, and by which groups.

A group retains the items that match one of its filters and that it has not committed. An item is removed once a group
has committed it and no group retains it. So a committed item that is still present is retained by another group.
Without a further commit, such an item becomes removable only when a filter of that group ends. Then all committed items
are examined, in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from easq.model import Tags
from easq.storage.base import Limits
from easq.storage.rules.entries import Entries
from easq.storage.rules.filters import CONNECTED, NOBODY
from easq.storage.rules.groups import ConsumerGroup

#: items examined in one slice: to read their tags and delete their rows takes 2 ms (measured)
SLICE = 250
#: items examined by one put that finds the stream full: its client may retry without a pause
_PUT_SLICE = 200


class _CommittedScan:
    """Iterates over the items that any group has committed, in slices, including some removed items and duplicates."""

    def __init__(self, groups: Mapping[str, ConsumerGroup]) -> None:
        self._groups = groups
        self._items: list[int] = []
        self._rest: list[set[int]] = []  # the committed items of the next groups
        self._is_requested = False

    @property
    def is_pending(self) -> bool:
        """Whether `take` may return more items."""
        return self._is_requested or bool(self._items or self._rest)

    def request(self) -> None:
        """Begin a new scan, after the present one is finished."""
        self._is_requested = True

    def take(self, most: int) -> list[int]:
        """Return up to `most` of the next items, ascending."""
        if self._is_requested and not self._items and not self._rest:
            self._is_requested = False
            found = [group.committed for group in self._groups.values() if group.committed]
            # not sorted as a whole: a million items take 10 ms to copy, and 300 ms to sort
            few = sum(map(len, found)) <= most
            self._rest = [set().union(*found)] if few and found else found
        if not self._items and self._rest:
            self._items = list(self._rest.pop())
        taken = self._items[-most:]
        del self._items[-most:]
        return sorted(taken)


class Retention:
    """Finds out which groups retain the items of one stream."""

    def __init__(
        self, entries: Entries, groups: Mapping[str, ConsumerGroup], tags_of: Callable[[int], Tags]
    ) -> None:
        self._entries = entries
        self._groups = groups
        self._tags_of = tags_of
        self._sweep = _CommittedScan(groups)
        self._search = _CommittedScan(groups)
        # committed items that perhaps only filters of absent consumers retain: index -> bytes
        self._releasable: dict[int, int] = {}
        self._releasable_size = 0

    def holder(self, index: int) -> int:
        """Return who retains the item: NOBODY, ABSENT (only filters of absent consumers) or CONNECTED."""
        found = NOBODY
        has_tags = False
        for group in self._groups.values():
            if index not in group.committed:
                filters = group.filters
                if filters.everything == CONNECTED:
                    return CONNECTED
                has_tags = has_tags or filters.has_tags
                found = found or filters.everything
        if has_tags:
            tags = self._tags_of(index)
            for group in self._groups.values():
                if group.filters.has_tags and index not in group.committed:
                    found = max(found, group.filters.holder(tags))
        return found

    # -- a filter has ended --------------------------------------------------------------------------------------------

    @property
    def is_sweeping(self) -> bool:
        """Whether there are items that `next_free` has to examine."""
        return self._sweep.is_pending

    def filter_ended(self) -> None:
        """Request that `next_free` examines all committed items."""
        self._sweep.request()

    def next_free(self) -> list[int]:
        """Examine one slice, and return the items that can be removed, ascending."""
        return [index for index in self._sweep.take(SLICE) if self._is_free(index)]

    def _is_free(self, index: int) -> bool:
        return self._is_committed(index) and self.holder(index) == NOBODY

    def _is_committed(self, index: int) -> bool:
        """Return whether the item is present, and some group has committed it."""
        committed = any(index in group.committed for group in self._groups.values())
        return committed and index in self._entries

    # -- a stream is full ----------------------------------------------------------------------------------------------

    def record_holder(self, index: int, holder: int) -> None:
        """Record that `holder` retains a committed item."""
        if holder != CONNECTED and index not in self._releasable:
            self._releasable[index] = self._entries.size_of(index)
            self._releasable_size += self._releasable[index]

    def forget(self, index: int) -> None:
        """Forget a removed item."""
        self._releasable_size -= self._releasable.pop(index, 0)

    def consumer_left(self) -> None:
        """Record that only filters of absent consumers may now retain some items."""
        self._search.request()

    def releasable(self, size: int, limits: Limits) -> list[int]:
        """Return items that only filters of absent consumers retain: enough to make room for an item of `size` bytes.

        If they are not enough: none, or with `limits.evict` all that are known. One call examines at most `_PUT_SLICE`
        items; the next puts go on.
        """
        for index in self._search.take(_PUT_SLICE):
            if self._is_committed(index):
                self.record_holder(index, self.holder(index))
        items, size = self._entries.lacks(size, limits)
        if not limits.evict and (len(self._releasable) < items or self._releasable_size < size):
            return []
        found: list[int] = []
        held: list[int] = []
        for index, its_size in self._releasable.items():
            if items <= 0 and size <= 0:
                break
            if self.holder(index) == CONNECTED:
                held.append(index)
            else:
                found.append(index)
                items, size = items - 1, size - its_size
        for index in held:
            self.forget(index)
        return found if limits.evict or (items <= 0 and size <= 0) else []
