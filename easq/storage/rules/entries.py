"""What is in a stream: entries by class and index, those claimed, and those that are being stored.

Priority and size of each entry, never its tags or data: those are the engine's. No consumer is known here.
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
#: a lane is rebuilt when it has more removed entries than this, and more than present ones
_MIN_HOLES = 1024
#: at most so many shapes (priority and size) are kept to be shared
_MAX_SHAPES = 4096


class _PriorityLevel:
    """The indexes of one priority class, ascending; removed ones stay as holes until the next rebuild.

    `holes` of them lie behind `head`; before it there are only such.
    """

    __slots__ = ("head", "holes", "indexes")

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.head = 0
        self.holes = 0

    def after(self, index: int) -> int:
        """The position of the first entry above `index`."""
        return max(self.head, bisect_right(self.indexes, index, lo=self.head))

    def dropped(self, present: Container[int], count: int) -> None:
        """`count` of the lane's entries are not `present` any more."""
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
    """`index in entries` is whether it is stored and not removed, `visible` whether it is not claimed either."""

    def __init__(self, last: int) -> None:
        self.last = last  # highest index ever allotted
        self.shown = last  # highest index ever made visible, or known not to have been stored
        self._present: dict[int, tuple[int, int]] = {}  # index -> (priority, size)
        self._shapes: dict[tuple[int, int], tuple[int, int]] = {}  # equal tuples kept once: memory
        self._levels: dict[int, _PriorityLevel] = {}
        self._claimed: dict[int, int] = {}  # index -> size
        self._size = 0
        self._allocated: dict[int, int] = {}  # index -> size, not stored yet
        self._allocated_size = 0

    # -- coming ----------------------------------------------------------------------------------------------------

    def insert(self, index: int, priority: int, size: int) -> None:
        """The entry is present; called in index order."""
        shape = (priority, size)
        self._present[index] = self._shapes.setdefault(shape, shape)
        if len(self._shapes) > _MAX_SHAPES:
            self._shapes.clear()
        self._levels.setdefault(priority, _PriorityLevel()).indexes.append(index)
        self._size += size

    def allocate(self, size: int, limits: Limits) -> int:
        """A new index is reserved; `show` or `drop` follows, in the order of allotting. Raises QueueFull."""
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
        """The allotted entry is stored: it is present."""
        size = self._allocated.pop(index)
        self._allocated_size -= size
        self.shown = index
        self.insert(index, priority, size)

    def drop(self, index: int) -> None:
        """The allotted entry was not stored; its index is never used again."""
        self._allocated_size -= self._allocated.pop(index)
        self.shown = max(self.shown, index)

    def has_room(self, size: int, limits: Limits, *, items: int = 1) -> bool:
        """Whether so many entries fit, of `size` bytes together."""
        return self._fits(len(self._present) + items - 1, self._size, size, limits)

    def lacks(self, size: int, limits: Limits) -> tuple[int, int]:
        """Return how many entries, and how many bytes, have to be removed before an entry of `size` bytes fits."""
        items = len(self._present) + len(self._allocated) + 1 - limits.max_items
        return items, self._size + self._allocated_size + size - limits.max_bytes

    def would_have_room(self, size: int, limits: Limits, *, without: Iterable[int]) -> bool:
        """Whether it fits when `without` are gone and, if the limits say so, all that may be evicted is."""
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

    # -- going -----------------------------------------------------------------------------------------------------

    def claim(self, index: int) -> None:
        """The present entry is hidden."""
        self._claimed[index] = self._present[index][1]

    def release(self, index: int) -> bool:
        """The entry is hidden no longer; whether it was."""
        return self._claimed.pop(index, None) is not None

    def restore(self, index: int, priority: int, size: int) -> None:
        """A removed entry is present again, in its place: its removal could not be stored."""
        level = self._levels.setdefault(priority, _PriorityLevel())
        present = [other for other in level.indexes if other in self._present]
        insort(present, index)
        level.indexes, level.head, level.holes = present, 0, 0
        self._present[index] = (priority, size)
        self._size += size

    def remove(self, indexes: Sequence[int]) -> None:
        """The present entries are gone."""
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

    # -- what there is ---------------------------------------------------------------------------------------------

    def __contains__(self, index: int) -> bool:
        return index in self._present

    def __len__(self) -> int:
        return len(self._present)

    def visible(self, index: int) -> bool:
        """Whether the entry is present and not claimed."""
        return index in self._present and index not in self._claimed

    def count(self, priority: int | None = None) -> int:
        """How many entries are present and not claimed, of one class or of all."""
        if priority is None:
            return len(self._present) - len(self._claimed)
        level = self._levels.get(priority)
        if level is None:
            return 0
        claimed = sum(1 for index in self._claimed if self._present[index][0] == priority)
        return len(level.indexes) - level.head - level.holes - claimed

    @property
    def visible_size(self) -> int:
        """The bytes of what is present and not claimed."""
        return self._size - sum(self._claimed.values())

    @property
    def has_allocated(self) -> bool:
        """Whether an entry is being stored."""
        return bool(self._allocated)

    def rank(self, index: int) -> tuple[int, int]:
        """The place of a present entry: (-priority, index), lowest first."""
        return -self._present[index][0], index

    def size_of(self, index: int) -> int:
        """The bytes of a present entry."""
        return self._present[index][1]

    def classes(self) -> list[int]:
        """The priorities of present entries, highest first."""
        return sorted(self._levels, reverse=True)

    def level(self, priority: int, after: int) -> Iterator[int]:
        """The indexes of a class above `after`, ascending, with some that are gone; nothing may change meanwhile."""
        level = self._levels[priority]
        indexes = level.indexes
        for position in range(level.after(after), len(indexes)):
            yield indexes[position]

    def indexes_from(self, start: int, priority: int | None = None) -> Iterator[int]:
        """What is visible, of one class or of all, from `start` on, ascending; nothing may change meanwhile."""
        classes = self._levels if priority is None else self._levels.keys() & {priority}
        runs = [filter(self.visible, self.level(one, start - 1)) for one in classes]
        return runs[0] if len(runs) == 1 else heapq.merge(*runs)

    def ahead(self, index: int) -> int:
        """How many visible entries have a lower rank than the present entry `index`."""
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
        """Return an index, at most `below`, below which at most `most` entries, or one per class, are present."""
        share = max(1, most // max(1, len(self._levels)))
        for level in self._levels.values():
            if len(level.indexes) - level.head > share:
                below = min(below, level.indexes[level.head + share])
        return below

    def below(self, index: int) -> list[int]:
        """The present entries under `index`, claimed ones too."""
        found: list[int] = []
        for level in self._levels.values():
            end = bisect_left(level.indexes, index)
            found += [index for index in level.indexes[level.head : end] if index in self._present]
        return found

    def last_visible(self) -> int:
        """The highest visible index, 0 when there is none."""
        best = 0
        for level in self._levels.values():
            positions = range(len(level.indexes) - 1, level.head - 1, -1)
            best = max(
                best, next((level.indexes[at] for at in positions if self.visible(level.indexes[at])), 0)
            )
        return best
