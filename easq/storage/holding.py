"""Which items of a stream are held back, and by whom.

A group holds back what one of its filters lets through and it has not committed. An item leaves once no group holds it
and one has committed it. So a committed item that is still here is held by another group, and leaves later only when a
filter of that group ends: all committed items are examined then, in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from easq.model import Tags
from easq.storage.base import Limits
from easq.storage.entries import Entries
from easq.storage.filters import CONNECTED, NOBODY
from easq.storage.groups import Group

#: so many items are examined in one slice: tags to read and rows to delete take 2 ms (measured)
SLICE = 250
#: and so many by one put that finds the stream full: its client may ask again without a pause
_PUT_SLICE = 200


class _Scan:
    """Goes through the items that any group has committed, in slices. Some may be gone, some come twice."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups
        self._items: list[int] = []
        self._rest: list[set[int]] = []  # of the groups that come after
        self._is_requested = False

    @property
    def is_pending(self) -> bool:
        """Whether there are items to be taken."""
        return self._is_requested or bool(self._items or self._rest)

    def request(self) -> None:
        """Go through all items that are committed now; a scan under way is finished before."""
        self._is_requested = True

    def take(self, most: int) -> list[int]:
        """Return up to `most` of the next items, ascending."""
        if self._is_requested and not self._items and not self._rest:
            self._is_requested = False
            found = [group.committed for group in self._groups.values() if group.committed]
            # a million items are copied in 10 ms, and sorted in 300 ms
            few = sum(map(len, found)) <= most
            self._rest = [set().union(*found)] if few and found else found
        if not self._items and self._rest:
            self._items = list(self._rest.pop())
        taken = self._items[-most:]
        del self._items[-most:]
        return sorted(taken)


class Holding:
    """Tells who holds back the items of one stream."""

    def __init__(self, entries: Entries, groups: Mapping[str, Group], tags_of: Callable[[int], Tags]) -> None:
        self._entries = entries
        self._groups = groups
        self._tags_of = tags_of
        self._sweep = _Scan(groups)
        self._search = _Scan(groups)
        # committed items that perhaps only filters without a consumer hold back: index -> bytes
        self._loose: dict[int, int] = {}
        self._loose_size = 0

    def holder(self, index: int) -> int:
        """Return who holds the item back: NOBODY, ABSENT (filters without a consumer) or CONNECTED."""
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

    # -- a filter has ended ----------------------------------------------------------------------------------------

    @property
    def is_sweeping(self) -> bool:
        """Whether there are items that `next_free` has to examine."""
        return self._sweep.is_pending

    def filter_ended(self) -> None:
        """Request that all committed items are examined."""
        self._sweep.request()

    def next_free(self) -> list[int]:
        """Examine one slice; return the items that may leave, ascending."""
        return [index for index in self._sweep.take(SLICE) if self._is_free(index)]

    def _is_free(self, index: int) -> bool:
        return self._is_kept(index) and self.holder(index) == NOBODY

    def _is_kept(self, index: int) -> bool:
        """Whether the item is present, and some group has committed it."""
        committed = any(index in group.committed for group in self._groups.values())
        return committed and index in self._entries

    # -- a stream is full ------------------------------------------------------------------------------------------

    def kept(self, index: int, holder: int) -> None:
        """Record who holds a committed item back."""
        if holder != CONNECTED and index not in self._loose:
            self._loose[index] = self._entries.size_of(index)
            self._loose_size += self._loose[index]

    def forget(self, index: int) -> None:
        """Forget an item that has left."""
        self._loose_size -= self._loose.pop(index, 0)

    def consumer_left(self) -> None:
        """Record that what a consumer held back is perhaps loose now."""
        self._search.request()

    def loose(self, size: int, limits: Limits) -> list[int]:
        """Return items that only filters without a consumer hold back: enough to make room for one of `size` bytes,
        or all that are known. A put looks at few; where many are to be examined, the puts after it go on.
        """
        for index in self._search.take(_PUT_SLICE):
            if self._is_kept(index):
                self.kept(index, self.holder(index))
        items, size = self._entries.lacks(size, limits)
        if not limits.evict and (len(self._loose) < items or self._loose_size < size):
            return []
        found: list[int] = []
        held: list[int] = []
        for index, its_size in self._loose.items():
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
