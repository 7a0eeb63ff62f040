"""The tag filters of a consumer group: a group retains the items that match one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import inf
from typing import TypeAlias

from easq.model import Tags

#: the tags that an item must have, sorted; a filter without tags matches every item
Filter: TypeAlias = tuple[tuple[str, str], ...]

#: who retains an item: nobody, only consumers that left, or a connected consumer
NOBODY, ABSENT, CONNECTED = 0, 1, 2
#: most separate filters whose consumers left; above that, one filter that matches every item replaces them
_MOST_ABSENT = 64


def filter_of(tags: Tags) -> Filter:
    """Return the filter that matches items with all of `tags`."""
    return tuple(sorted(tags.items()))


def filters_text(
    filters: Iterable[tuple[Filter, float | None]], now: float, wall_ms: int, *, stopping: bool = False
) -> str:
    """Return filters as JSON text to store: for each its tags, and the wall time in ms at which its last consumer left
    (null: one is connected).

    With `stopping`, each entry also has the age of that time, so that the downtime of the service does not count.
    """
    rows: list[list[object]] = []
    for one, left_at in filters:
        gone_ms = None if left_at is None else max(0, round((now - left_at) * 1000))
        rows.append([dict(one), None if gone_ms is None else wall_ms - gone_ms])
        if gone_ms is not None and stopping:
            rows[-1].append(gone_ms)
    return json.dumps(rows, separators=(",", ":"))


def stored_filters(text: str, now: float, wall_ms: int) -> list[tuple[Tags, float]] | None:
    """Return the filters of a stored text, and when the last consumer of each left; None for an empty text.

    A consumer that was connected when the service ended counts as having left now.
    """
    if not text:
        return None
    found: list[tuple[Tags, float]] = []
    for tags, left_ms, *stopped in json.loads(text):
        if left_ms is None:
            found.append((tags, now))
        else:
            gone_ms = stopped[0] if stopped else wall_ms - left_ms
            found.append((tags, now - max(0, gone_ms) / 1000))
    return found


class Filters:
    """The filters of one group. A filter whose last consumer left remains until the retention period ends.

    They are indexed by their keys: to match an item costs one lookup per set of keys, not one per filter.
    """

    __slots__ = ("_by_keys", "everything", "has_tags")

    def __init__(self) -> None:
        self._by_keys: dict[tuple[str, ...], dict[tuple[str, ...], float | None]] = {}
        #: who retains every item: the state of the filter without tags
        self.everything = NOBODY
        #: whether there is a filter with tags
        self.has_tags = False

    def __bool__(self) -> bool:
        return bool(self._by_keys)

    def __iter__(self) -> Iterator[tuple[Filter, float | None]]:
        """Yield each filter, and when its last consumer left; None while one is connected."""
        for keys, by_values in self._by_keys.items():
            for values, left_at in by_values.items():
                yield tuple(zip(keys, values, strict=True)), left_at

    def __contains__(self, one: Filter) -> bool:
        keys, values = _split(one)
        return values in self._by_keys.get(keys, ())

    def set(self, one: Filter, left_at: float | None) -> None:
        """Record the filter: a consumer with it is connected (None), or the last one left at `left_at`."""
        keys, values = _split(one)
        self._by_keys.setdefault(keys, {})[values] = left_at
        if not one:
            self.everything = CONNECTED if left_at is None else ABSENT
        else:
            self.has_tags = True

    def leave(self, one: Filter, now: float) -> None:
        """Record that the filter's last consumer left at `now`; merge such filters if they are too many."""
        self.set(one, now)
        if sum(left_at is not None for _, left_at in self) > _MOST_ABSENT:
            self.drop_absent()
            if () not in self:
                self.set((), now)

    def is_absent(self, one: Filter) -> bool:
        """Return whether the group has the filter, but no connected consumer with it."""
        keys, values = _split(one)
        return self._by_keys.get(keys, {}).get(values) is not None

    def drop(self, one: Filter) -> None:
        """Remove the filter, if the group has it."""
        keys, values = _split(one)
        by_values = self._by_keys.get(keys, {})
        by_values.pop(values, None)
        if not by_values:
            self._by_keys.pop(keys, None)
        if not one:
            self.everything = NOBODY
        self.has_tags = len(self._by_keys) > (() in self._by_keys)

    def drop_absent(self, now: float = inf, retention_s: float = 0.0) -> bool:
        """Remove the filters whose last consumer left by `now - retention_s`; return whether there was one."""
        gone = [one for one, left_at in self if left_at is not None and left_at + retention_s <= now]
        for one in gone:
            self.drop(one)
        return bool(gone)

    @property
    def first_left_at(self) -> float | None:
        """The earliest time at which a filter's last consumer left; None while all have a connected consumer."""
        return min((left_at for _, left_at in self if left_at is not None), default=None)

    def holder(self, tags: Tags) -> int:
        """Return who retains an item with these tags: NOBODY, ABSENT or CONNECTED."""
        found = NOBODY
        for keys, by_values in self._by_keys.items():
            try:
                values = tuple([tags[key] for key in keys])
            except KeyError:
                continue
            if values in by_values:
                if by_values[values] is None:
                    return CONNECTED
                found = ABSENT
        return found


def _split(one: Filter) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(key for key, _ in one), tuple(value for _, value in one)
