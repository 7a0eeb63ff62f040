"""The entries of a stream: present ones by priority and index, claimed ones, and allocated ones that are being stored.

This module has the priority and size of each entry. The engine has the tags and data. Consumers are unknown here.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice

from easq.errors import QueueFull
from easq.storage.base import Limits

#: indexes are below 2^42, which 10,000 puts a second reach in 14 years; the bits above hold the stream in a data file
INDEX_BITS = 42
#: a level is rebuilt when it has more holes than this, and more than present entries
_MIN_HOLES = 1024
#: most different (priority, size) tuples that entries share
_MAX_SHAPES = 4096


class _PriorityLevel:
    """The indexes of one priority, ascending. Removed ones stay as holes until the list is rebuilt.

    All positions before `head` are holes; `holes` counts those behind it.
    """

    __slots__ = ("head", "holes", "indexes")

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.head = 0
        self.holes = 0

    def after(self, index: int) -> int:
        """Return the position of the first entry above `index`."""
        return max(self.head, bisect_right(self.indexes, index, lo=self.head))

    def dropped(self, present: Container[int], count: int) -> None:
        """Record that `count` entries of the level are no longer `present`."""
        indexes, head = self.indexes, self.head
        while head < len(indexes) and indexes[head] not in present:
            head += 1
        self.holes += count - (head - self.head)
        self.head = head
        gone = self.holes + head
        if gone > _MIN_HOLES and gone > len(indexes) // 2:
            # a new list, since scans may be in the middle of the old one. Without holes, as after a truncate, half a
            # million entries are copied in 3 ms; to filter them takes 40 ms
            self.indexes = [index for index in indexes if index in present] if self.holes else indexes[head:]
            self.head = self.holes = 0


class Entries:
    """`index in entries`: the entry is stored and not removed. `visible(index)`: it is not claimed either."""

    def __init__(self, last: int) -> None:
        self.last = last  # highest index ever allocated
        self.shown = last  # highest index that was made visible, or dropped because it was not stored
        self._present: dict[int, tuple[int, int]] = {}  # index -> (priority, size)
        self._shapes: dict[tuple[int, int], tuple[int, int]] = {}  # equal tuples share memory
        self._levels: dict[int, _PriorityLevel] = {}
        self._claimed: dict[int, int] = {}  # index -> size
        self._size = 0
        self._allocated: dict[int, int] = {}  # index -> size, not stored yet
        self._allocated_size = 0

    # -- adding --------------------------------------------------------------------------------------------------------

    def insert(self, index: int, priority: int, size: int) -> None:
        """Add a present entry; called in the order of indexes."""
        shape = (priority, size)
        self._present[index] = self._shapes.setdefault(shape, shape)
        if len(self._shapes) > _MAX_SHAPES:
            self._shapes.clear()
        self._levels.setdefault(priority, _PriorityLevel()).indexes.append(index)
        self._size += size

    def allocate(self, size: int, limits: Limits) -> int:
        """Reserve the next index; `show` or `drop` has to follow, in the order of the indexes. Raises QueueFull."""
        if not self.has_room(size, limits):
            held = len(self._present) + len(self._allocated)
            raise QueueFull(
                f"the queue is full: {held} of {limits.max_items} items,"
                f" {self._size + self._allocated_size} of {limits.max_bytes} bytes",
                hint="wait until items were committed or deleted",
            )
        if self.last + 1 >> INDEX_BITS:
            raise QueueFull("the queue has no index left", hint="use a new queue")
        self.last += 1
        self._allocated[self.last] = size
        self._allocated_size += size
        return self.last

    def show(self, index: int, priority: int) -> None:
        """Make an allocated entry present: it is stored."""
        size = self._allocated.pop(index)
        self._allocated_size -= size
        self.shown = index
        self.insert(index, priority, size)

    def drop(self, index: int) -> None:
        """Give up an allocated entry that was not stored; its index is never used again."""
        self._allocated_size -= self._allocated.pop(index)
        self.shown = max(self.shown, index)

    def has_room(self, size: int, limits: Limits, *, items: int = 1) -> bool:
        """Return whether `items` entries with a total of `size` bytes fit."""
        return self._fits(len(self._present) + items - 1, self._size, size, limits)

    def lacks(self, size: int, limits: Limits) -> tuple[int, int]:
        """Return how many entries, and how many bytes, have to be removed before an entry of `size` bytes fits."""
        items = len(self._present) + len(self._allocated) + 1 - limits.max_items
        return items, self._size + self._allocated_size + size - limits.max_bytes

    def would_have_room(self, size: int, limits: Limits, *, without: Iterable[int]) -> bool:
        """Return whether an entry of `size` bytes would fit if the entries `without` were removed. With `limits.evict`,
        all entries that may be evicted count as removed too.
        """
        gone = set(without)
        if limits.evict:
            left = [held for index, held in self._claimed.items() if index not in gone]
            return self._fits(len(left), sum(left), size, limits)
        total = self._size - sum(self._present[index][1] for index in gone)
        return self._fits(len(self._present) - len(gone), total, size, limits)

    def _fits(self, count: int, total: int, size: int, limits: Limits) -> bool:
        return (
            count + len(self._allocated) < limits.max_items
            and total + self._allocated_size + size <= limits.max_bytes
        )

    # -- removing ------------------------------------------------------------------------------------------------------

    def claim(self, index: int) -> None:
        """Hide the present entry."""
        self._claimed[index] = self._present[index][1]

    def release(self, index: int) -> bool:
        """Show the entry again; return whether it was claimed."""
        return self._claimed.pop(index, None) is not None

    def restore(self, index: int, priority: int, size: int) -> None:
        """Make a removed entry present again, at its rank: its removal could not be stored."""
        level = self._levels.setdefault(priority, _PriorityLevel())
        present = [other for other in level.indexes if other in self._present]
        insort(present, index)
        level.indexes, level.head, level.holes = present, 0, 0
        self._present[index] = (priority, size)
        self._size += size

    def remove(self, indexes: Sequence[int]) -> None:
        """Remove the present entries."""
        counts: dict[int, int] = {}
        for index in indexes:
            priority, size = self._present.pop(index)
            self._claimed.pop(index, None)
            self._size -= size
            counts[priority] = counts.get(priority, 0) + 1
        for priority, count in counts.items():
            level = self._levels[priority]
            level.dropped(self._present, count)
            if level.head == len(level.indexes):
                del self._levels[priority]

    # -- queries -------------------------------------------------------------------------------------------------------

    def __contains__(self, index: int) -> bool:
        return index in self._present

    def __len__(self) -> int:
        return len(self._present)

    def visible(self, index: int) -> bool:
        """Return whether the entry is present and not claimed."""
        return index in self._present and index not in self._claimed

    def count(self, priority: int | None = None) -> int:
        """Return how many entries are present and not claimed, of one priority or of all."""
        if priority is None:
            return len(self._present) - len(self._claimed)
        level = self._levels.get(priority)
        if level is None:
            return 0
        claimed = sum(1 for index in self._claimed if self._present[index][0] == priority)
        return len(level.indexes) - level.head - level.holes - claimed

    @property
    def visible_size(self) -> int:
        """The total size in bytes of the entries that are present and not claimed."""
        return self._size - sum(self._claimed.values())

    @property
    def has_allocated(self) -> bool:
        """Whether an entry is being stored."""
        return bool(self._allocated)

    def rank(self, index: int) -> tuple[int, int]:
        """Return the rank of a present entry: (-priority, index), lowest first."""
        return -self._present[index][0], index

    def size_of(self, index: int) -> int:
        """Return the bytes of a present entry."""
        return self._present[index][1]

    def classes(self) -> list[int]:
        """Return the priorities of present entries, highest first."""
        return sorted(self._levels, reverse=True)

    def level(self, priority: int, after: int) -> Iterator[int]:
        """Yield the indexes of a priority above `after`, ascending, including removed ones; nothing may change
        meanwhile.
        """
        level = self._levels[priority]
        indexes = level.indexes
        for position in range(level.after(after), len(indexes)):
            yield indexes[position]

    def indexes_from(self, start: int, priority: int | None = None) -> Iterator[int]:
        """Yield the visible indexes of one priority or of all, from `start` on, ascending; nothing may change
        meanwhile.
        """
        classes = self._levels if priority is None else self._levels.keys() & {priority}
        runs = [filter(self.visible, self.level(one, start - 1)) for one in classes]
        return runs[0] if len(runs) == 1 else heapq.merge(*runs)

    def ahead(self, index: int) -> int:
        """Return how many visible entries have a lower rank than the present entry `index`."""
        rank = self.rank(index)
        count = 0
        for priority, level in self._levels.items():
            end = len(level.indexes) if -priority < rank[0] else 0
            if -priority == rank[0]:
                end = bisect_left(level.indexes, index, lo=level.head)
            if level.holes:
                count += sum(map(self._present.__contains__, islice(level.indexes, level.head, end)))
            else:
                count += max(0, end - level.head)
        return count - sum(1 for claimed in self._claimed if self.rank(claimed) < rank)

    def count_ahead(self, others: Iterable[int], index: int) -> int:
        """Return how many of `others` are visible and have a lower rank than the present entry `index`."""
        rank = self.rank(index)
        return sum(1 for other in others if self.visible(other) and self.rank(other) < rank)

    def bound(self, below: int, most: int) -> int:
        """Return the end of a slice: an index of at most `below`. At most `most` present entries are below it, or one
        per priority.
        """
        share = max(1, most // max(1, len(self._levels)))
        for level in self._levels.values():
            if len(level.indexes) - level.head > share:
                below = min(below, level.indexes[level.head + share])
        return below

    def below(self, index: int) -> list[int]:
        """Return the present entries below `index`, including claimed ones."""
        found: list[int] = []
        for level in self._levels.values():
            end = bisect_left(level.indexes, index)
            found += [index for index in level.indexes[level.head : end] if index in self._present]
        return found

    def last_visible(self) -> int:
        """Return the highest visible index, 0 when there is none."""
        best = 0
        for level in self._levels.values():
            positions = range(len(level.indexes) - 1, level.head - 1, -1)
            best = max(
                best, next((level.indexes[at] for at in positions if self.visible(level.indexes[at])), 0)
            )
        return best
