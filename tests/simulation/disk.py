"""A disk that stores the changes of `Effects` in order, after a delay, and loses the writes under way in a power
cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from easq.model import Tags
from easq.storage.base import Timing
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.filters import Filter
from easq.storage.rules.stream import Stream

#: delivery counts are written so long after they changed, in seconds
LAZY_S = 0.1


@dataclass
class Job:
    """One atomic write: its changes, its success, and the function to call."""

    effects: Effects = field(default_factory=Effects)
    stored: tuple[int, int, int, Tags] | None = None  # index, priority, size, tags
    records: list[tuple[str, int, DeliveryRecord]] = field(default_factory=list)
    # of the groups that changed: each filter, and when its last consumer left
    filters: dict[str, list[tuple[Filter, float | None]]] = field(default_factory=dict)
    ended: bool | None = None
    fails: bool = False
    told: Callable[[], None] = lambda: None


class Disk:
    """The stored data, and the writes under way."""

    def __init__(self) -> None:
        self.items: dict[int, tuple[int, int, Tags]] = {}
        self.last = 0
        self.ended = False
        self.groups: dict[str, list[tuple[Filter, float | None]]] = {}
        self.committed: dict[str, dict[int, bool]] = {}  # group -> index -> given up
        self.records: dict[str, dict[int, DeliveryRecord]] = {}
        self.jobs: deque[Job] = deque()
        self.lazy: dict[tuple[str, int], None] = {}
        self.lazy_due = 0.0

    def submit(self, job: Job, now: float) -> None:
        """The write is under way; counts that changed follow later."""
        for index in job.effects.removed:
            self._forget_lazy(lambda known, gone=index: known == gone)
        if job.effects.truncated_below:
            self._forget_lazy(lambda known: known < job.effects.truncated_below)
        for group, index in job.effects.recorded:
            self.remember(group, index, now)
        self.jobs.append(job)

    def _forget_lazy(self, gone: Callable[[int], bool]) -> None:
        for key in [key for key in self.lazy if gone(key[1])]:
            del self.lazy[key]

    def remember(self, group: str, index: int, now: float) -> None:
        """The counts of an item in a group are written within `LAZY_S`."""
        if not self.lazy:
            self.lazy_due = now + LAZY_S
        self.lazy[group, index] = None

    def flush(
        self, record: Callable[[str, int], DeliveryRecord | None]
    ) -> Iterator[tuple[str, int, DeliveryRecord]]:
        """The counts that changed are under way."""
        job = Job()
        for group, index in self.lazy:
            known = record(group, index)
            if known is not None:
                job.records.append((group, index, replace(known)))
        self.lazy.clear()
        self.jobs.append(job)
        yield from job.records

    def sync(self, count: int) -> list[Job]:
        """The next `count` writes are stored, or have failed; in order."""
        done = [self.jobs.popleft() for _ in range(min(count, len(self.jobs)))]
        for job in done:
            if not job.fails:
                self._write(job)
        return done

    def cut_power(self, count: int) -> None:
        """`count` of the writes under way are stored without anybody being told, the others never."""
        self.sync(count)
        self.jobs.clear()
        self.lazy.clear()

    def _write(self, job: Job) -> None:
        if job.stored is not None:
            index, *entry = job.stored
            self.items[index] = (entry[0], entry[1], entry[2])
            self.last = max(self.last, index)
        effects = job.effects
        self.groups.update(job.filters)
        for group, index, given_up in effects.committed:
            self.committed.setdefault(group, {})[index] = given_up
        gone = set(effects.removed) | {index for index in self.items if index < effects.truncated_below}
        for index in gone:
            self.items.pop(index, None)
            for rows in (*self.committed.values(), *self.records.values()):
                rows.pop(index, None)
        for name in effects.forgotten_groups:
            self.groups.pop(name, None)
        for group, index, record in job.records:
            if index in self.items:
                self.records.setdefault(group, {})[index] = record
        if job.ended is not None:
            self.ended = job.ended

    def start(
        self, timing: Timing, max_failures: int, has_rear_room: Callable[[int, int], bool], now: float
    ) -> Stream:
        """A stream with what is stored."""
        stream = Stream(
            timing=timing,
            tags_of=lambda index: self.items[index][2] if index in self.items else {},
            last=self.last,
            ended=self.ended,
            max_failures=max_failures,
            has_rear_room=has_rear_room,
        )
        for index, (priority, size, _) in sorted(self.items.items()):
            stream.entries.insert(index, priority, size)
        for group in sorted(self.groups):
            committed = self.committed.get(group, {})
            given_up = [index for index, is_given_up in committed.items() if is_given_up]
            # when an item was fetched is not stored
            records = [
                (index, replace(record, fetched_ms=0))
                for index, record in self.records.get(group, {}).items()
            ]
            filters = [(dict(one), now if left is None else left) for one, left in self.groups[group]]
            stream.restore_group(group, committed, given_up, records, now, filters)
        return stream
