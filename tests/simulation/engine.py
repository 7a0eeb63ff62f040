"""The engine itself on a disk and a clock that are the test's: writes take virtual time, and power cuts lose them.

All of it but SQL is the product's: the verbs, keys, dead letters, group commit's order, the rules.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from easq.errors import QueueFull
from easq.model import Frame, Tags
from easq.storage.base import DeadLetterPolicy, Timing
from easq.storage.embedded import EmbeddedStorage
from easq.storage.engine import Settle
from easq.storage.rules.changes import (
    Change,
    Committed,
    DeliveryRecorded,
    Ended,
    GroupChanged,
    Keyed,
    KeysForgotten,
    Removed,
    Stored,
    Truncated,
)
from easq.storage.rules.effects import DeliveryRecord
from easq.storage.rules.filters import stored_filters
from easq.storage.rules.idempotency import KeyWindow
from easq.storage.rules.stream import Stream


class _Instant(selectors.SelectSelector):
    """A selector without input: waiting moves the clock."""

    moment = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and nothing will come"
        self.moment += max(timeout, 0.0)
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: when no task can run, the clock moves to the next timer."""

    def __init__(self) -> None:
        self._instant = _Instant()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.moment


@dataclass
class StoredStream:
    """The durable data of one stream."""

    entries: dict[int, tuple[Frame, int]] = field(default_factory=dict)  # -> frame, priority
    last: int = 0
    ended: bool = False
    groups: dict[str, GroupChanged] = field(default_factory=dict)
    committed: dict[tuple[str, int], bool] = field(default_factory=dict)  # -> given up
    records: dict[tuple[str, int], DeliveryRecord] = field(default_factory=dict)
    keys: dict[str, Keyed] = field(default_factory=dict)
    number: int = 0  # of the last key

    def write(self, change: Change) -> None:
        match change:
            case Stored():
                self.last = max(self.last, change.frame.index)
                self.entries[change.frame.index] = change.frame, change.priority
            case Keyed():
                self.keys[change.key] = change
                self.number = max(self.number, change.number)
            case KeysForgotten():
                self.keys = {key: known for key, known in self.keys.items() if known.number >= change.below}
            case Removed():
                self.forget(set(change.indexes))
            case Truncated():
                self.forget({index for index in self.entries if index < change.below})
            case Committed():
                self.committed[change.group, change.index] = change.given_up
            case DeliveryRecorded():
                if change.index in self.entries:
                    self.records[change.group, change.index] = change.record
            case GroupChanged(is_stored=True):
                self.groups[change.group] = change
            case GroupChanged():
                self.groups.pop(change.group, None)
            case Ended():
                self.ended = change.ended

    def forget(self, gone: set[int]) -> None:
        for index in gone:
            self.entries.pop(index, None)
        self.committed = {pair: up for pair, up in self.committed.items() if pair[1] not in gone}
        self.records = {pair: record for pair, record in self.records.items() if pair[1] not in gone}


@dataclass
class _Job:
    changes: Sequence[Change]
    settle: Settle | None
    future: asyncio.Future[None]


class OnDisk(EmbeddedStorage):
    """The embedded engine over `disk`, stream by stream. `takes_s` says how long a write takes, `fails` whether there
    is no space for what stores: puts, copies and answers.
    """

    durability = "virtual"

    def __init__(
        self,
        disk: dict[str, StoredStream],
        timing: Timing,
        takes_s: Callable[[], float],
        fails: Callable[[], bool],
    ) -> None:
        super().__init__(timing, lambda: round(asyncio.get_running_loop().time() * 1000))
        self._disk = disk
        self._takes_s = takes_s
        self._fails = fails
        self._queued: list[_Job] = []
        self._batch: list[_Job] = []
        self._writing: asyncio.TimerHandle | None = None

    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None = None) -> None:
        stored = self._disk.setdefault(stream, StoredStream())
        rules = Stream(
            timing=self._timing,
            tags_of=lambda index: self.load_tags(stream, index),
            last=stored.last,
            ended=stored.ended,
        )
        for index, (frame, priority) in sorted(stored.entries.items()):
            rules.entries.insert(index, priority, len(frame.data))
        now = asyncio.get_running_loop().time()
        for group, known in sorted(stored.groups.items()):
            committed = {index: up for (name, index), up in stored.committed.items() if name == group}
            given_up = [index for index, up in committed.items() if up]
            records = [
                (index, replace(record, fetched_ms=0))
                for (name, index), record in stored.records.items()
                if name == group
            ]
            filters = stored_filters(known.filter, now, self._wall_ms())
            rules.restore_group(group, committed, given_up, records, now, filters)
        self._adopt(stream, rules, KeyWindow(stored.number), dead_letters)

    async def streams(self) -> Sequence[str]:
        return list(self._disk)

    def cut_power(self, *, written: bool) -> None:
        """Stop all writes and calls. The write under way is on the disk, or is lost."""
        self._failure = ConnectionAbortedError("the power is gone")
        if self._writing is not None:
            self._writing.cancel()
        self._ticker.stop()
        self._records.stop()
        if written:
            self._write()

    def submit(self, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        job = _Job(changes, settle, asyncio.get_running_loop().create_future())
        self._queued.append(job)
        if self._writing is None:
            self._begin()
        return job.future

    def _begin(self) -> None:
        self._batch, self._queued = self._queued, []
        loop = asyncio.get_running_loop()
        self._writing = loop.call_later(self._takes_s(), self._end) if self._batch else None

    def _end(self) -> None:
        refused = self._write()
        for job in self._batch:
            error = QueueFull("no space") if job in refused else None
            if job.settle is not None:
                job.settle(error)
            if not job.future.done():
                job.future.set_exception(error) if error else job.future.set_result(None)
        self._settled()
        self._begin()

    def _write(self) -> list[_Job]:
        """The batch is on the disk, in its order; what it refused is not."""
        refused = []
        for job in self._batch:
            if any(isinstance(change, Stored) for change in job.changes) and self._fails():
                refused.append(job)
                continue
            for change in job.changes:
                self._disk[change.stream].write(change)
        return refused

    def load(self, stream: str, index: int) -> Frame | None:
        return self._disk[stream].entries.get(index, (None, 0))[0]

    def load_tags(self, stream: str, index: int) -> Tags:
        frame = self.load(stream, index)
        return {} if frame is None else frame.tags

    def recall(self, stream: str, key: str) -> Keyed | None:
        return self._disk[stream].keys.get(key)

    def find(self, stream: str, request_id: str, start: int, most: int) -> list[int]:
        entries = self._disk[stream].entries.values()
        found = [frame.index for frame, _ in entries if frame.request_id == request_id]
        return [index for index in sorted(found) if index >= start][:most]
