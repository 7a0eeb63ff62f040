"""The base of engines inside this process: the rules return effects, this module turns them into changes, and a
subclass stores the changes.

An item becomes visible when its change is durable, in the order of indexes. A removal is visible at once, and
acknowledged when it is durable.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import TypeAlias

from easq.errors import QueueFull, StorageError
from easq.model import Frame, Tags
from easq.storage.base import DeadLetterPolicy, Failure, Limits, Storage, Timing
from easq.storage.delivery_records import DeliveryRecords
from easq.storage.long_poll import LongPolls
from easq.storage.rules.changes import (
    Change,
    Committed,
    GroupChanged,
    Keyed,
    Removed,
    Stored,
    Truncated,
)
from easq.storage.rules.effects import Effects
from easq.storage.rules.filters import filters_text
from easq.storage.rules.idempotency import KeyWindow
from easq.storage.rules.stream import Stream
from easq.storage.ticker import Ticker

#: limits for items that the service itself writes: these are always stored
NO_LIMITS = Limits(max_items=1 << 62, max_bytes=1 << 62)

#: called on the event loop when changes are durable (None) or failed
Settle: TypeAlias = Callable[[Exception | None], None]


class EmbeddedEngine(Storage):
    """The base of `EmbeddedStorage`: the rules of each stream, and the way from their effects to stored changes.

    A subclass stores the entries (`submit`, `load`, `load_tags`, `find`, `recall`).
    """

    def __init__(self, timing: Timing, wall_ms: Callable[[], int] | None = None) -> None:
        """`wall_ms` returns the wall time in Unix milliseconds, for times that are stored across restarts."""
        self._timing = timing
        self._wall_ms = wall_ms or (lambda: time.time_ns() // 1_000_000)
        self._rules: dict[str, Stream] = {}
        self._events: dict[tuple[str, int], asyncio.Event] = {}
        self._long_polls = LongPolls()
        self._fresh: dict[str, list[Frame]] = {}
        self._dead_letters: dict[str, DeadLetterPolicy] = {}
        self._key_windows: dict[str, KeyWindow] = {}
        self._ticker = Ticker(self._rules, self._apply_later)
        self._records = DeliveryRecords(self._rules, self._submit_later)
        self._failure: Exception | None = None
        self._on_failure: Callable[[Exception], None] = lambda _: None

    # -- for subclasses ------------------------------------------------------------------------------------------------

    @abstractmethod
    def submit(self, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        """Make the changes durable, in the order of the calls; call `settle` first, then finish the awaitable.

        After each batch of settled changes `_settled` is called once. Raises QueueFull when a Stored found no space.
        """

    @abstractmethod
    def load(self, stream: str, index: int) -> Frame | None:
        """Return the stored entry; None when it is deleted."""

    @abstractmethod
    def load_tags(self, stream: str, index: int) -> Tags:
        """Return the tags of the stored entry; none when it is deleted."""

    @abstractmethod
    def recall(self, stream: str, key: str) -> Keyed | None:
        """Return the record of the idempotency key; None when the key is unknown, or deleted."""

    @abstractmethod
    def find(self, stream: str, request_id: str, start: int, most: int) -> list[int]:
        """Return the indexes of stored entries with this request id from `start` on, ascending, at most `most`."""

    def has_space(self) -> bool:
        """Return whether the engine has space for another entry at all."""
        return True

    def check_space(self) -> None:
        """Raise QueueFull when the engine is known to have no space."""

    # -- running -------------------------------------------------------------------------------------------------------

    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        self._on_failure = on_failure

    async def close(self) -> None:
        self._ticker.stop()
        self._records.stop()
        if self._failure is None:
            leaving = [
                self._group_change(stream, group, stopping=True)
                for stream, rules in self._rules.items()
                for group in rules.absent()
            ]
            await self.submit([*self._records.take(), *leaving])

    def _adopt(
        self, stream: str, rules: Stream, keys: KeyWindow, dead_letters: DeadLetterPolicy | None
    ) -> None:
        """Add a stream that is restored, with the window of its idempotency keys and its dead-letter policy."""
        self._rules[stream] = rules
        self._key_windows[stream] = keys
        if dead_letters is not None:
            self._dead_letters[stream] = dead_letters
            rules.max_failures = dead_letters.max_failures
            rear = self._rules[dead_letters.rear]
            rules.has_rear_room = lambda items, size: (
                rear.entries.has_room(size, dead_letters.rear_limits, items=items) and self.has_space()
            )
        self._ticker.schedule(stream)

    def _fail(self, error: Exception) -> None:
        """Report the first failure; from then on every verb raises StorageError."""
        if self._failure is None:
            self._failure = error
            self._ticker.stop()
            self._records.stop()
            self._on_failure(error)

    def _rules_of(self, stream: str) -> Stream:
        """Return the rules of the stream. Raises StorageError after a failure."""
        if self._failure is not None:
            raise StorageError(f"the storage failed: {self._failure}")
        return self._rules[stream]

    # -- effects -------------------------------------------------------------------------------------------------------

    async def _apply(self, stream: str, effects: Effects) -> None:
        """Store the changes of `effects`, and return once they are durable.

        Raises QueueFull when an item should be given up, and there was no space for its dead letter: it is not given
        up.
        """
        copies_stored, stored = self._write_copies(stream, effects)
        changes = self._changes(stream, effects, copies_stored)
        if changes:
            await self.submit(changes)
        if effects.given_up and stored is not None:
            await stored

    def _apply_later(self, stream: str, effects: Effects) -> asyncio.Future[None] | None:
        """Submit the changes of `effects`. Return a future that is done once they are stored; None without any."""
        copies_stored, _ = self._write_copies(stream, effects)
        changes = self._changes(stream, effects, copies_stored)
        return self._submit_later(changes) if changes else None

    def _submit_later(self, changes: Sequence[Change], settle: Settle | None = None) -> asyncio.Future[None]:
        """Submit the changes. Nobody has to await the returned future: `_fail` reports a failure."""
        stored = asyncio.ensure_future(self.submit(changes, settle))
        stored.add_done_callback(_ignore)
        return stored

    def _changes(self, stream: str, effects: Effects, copies_stored: Container[int]) -> list[Change]:
        """Return the changes that `effects` ask for, except those of the `copied` entries; wake connections."""
        changes: list[Change] = [self._group_change(stream, group) for group in dict.fromkeys(effects.groups)]
        changes += [Committed(stream, *committed) for committed in effects.committed if not committed[2]]
        if effects.truncated_below:
            changes.append(Truncated(stream, effects.truncated_below))
        if effects.removed:
            removed = (
                [index for index in effects.removed if index not in copies_stored]
                if copies_stored
                else effects.removed
            )
            if removed:
                changes.append(Removed(stream, removed))
            self._records.forget(stream, effects.removed)
        changes += [GroupChanged(stream, group, False) for group in effects.forgotten_groups]
        for group, index in effects.recorded:
            self._records.note(stream, group, index)
        for session in effects.woken | effects.replaced:
            event = self._events.get((stream, session))
            if event is not None:
                event.set()
        if self._rules[stream].ended:
            self._wake_watchers(stream)
        self._ticker.schedule(stream)
        return changes

    def _group_change(self, stream: str, group: str, *, stopping: bool = False) -> GroupChanged:
        """Return the change that stores the group and its filters."""
        filters = self._rules[stream].filters(group) or []
        now, wall_ms = asyncio.get_running_loop().time(), self._wall_ms()
        left = [left_at for _, left_at in filters if left_at is not None]
        is_absent = 0 < len(left) == len(filters)
        return GroupChanged(
            stream,
            group,
            True,
            filters_text(filters, now, wall_ms, stopping=stopping),
            wall_ms - round((now - max(left)) * 1000) if is_absent else None,
        )

    def _wake_watchers(self, stream: str) -> None:
        """Wake every connection of the stream, so that it checks whether the stream has ended."""
        for (watched, _), event in self._events.items():
            if watched == stream:
                event.set()

    def _settled(self) -> None:
        """Dispatch new items, and wake long polls, after a batch became durable."""
        fresh, self._fresh = self._fresh, {}
        for stream, frames in fresh.items():
            self._apply_later(stream, self._rules[stream].dispatch())
            for frame in frames if stream in self._long_polls else ():
                self._long_polls.item_arrived(stream, frame)

    # -- dead letters --------------------------------------------------------------------------------------------------

    def _write_copies(
        self, stream: str, effects: Effects
    ) -> tuple[Container[int], asyncio.Future[None] | None]:
        """Submit dead letters and answers, in one step with the removal of their items.

        Returns the indexes of these items, and a future that is done once the step is stored. A disk without space for
        the copies refuses that step alone: the items are restored.
        """
        dead_letters = self._dead_letters.get(stream)
        if dead_letters is None or not (effects.given_up or effects.unanswered):
            return (), None
        rules = self._rules[stream]
        settles: list[Settle] = []
        changes: list[Change] = [
            Committed(stream, *committed) for committed in effects.committed if committed[2]
        ]
        failed: dict[int, Failure] = {}
        for group, index, record in effects.given_up:
            failed[index] = Failure(group, record.deliveries, record.failures, record.code, record.reason)
            self._copy(
                stream, index, dead_letters.rear, dead_letters.rear_copy, failed[index], changes, settles
            )
        answered = dict(effects.unanswered) if dead_letters.sink else {}
        for index, record in answered.items():
            why = failed.get(index) or Failure(
                "", record.deliveries, record.failures, record.code, record.reason
            )
            self._copy(stream, index, dead_letters.sink, dead_letters.answer, why, changes, settles)
        copies_stored = failed.keys() | answered.keys()
        gone = [index for index in effects.removed if index in copies_stored]
        if gone:
            changes.append(Removed(stream, gone))

        def settle(error: Exception | None) -> None:
            for settle_copy in settles:
                settle_copy(error)
            if error is None:
                rules.copies_stored(effects)
            elif isinstance(error, QueueFull):
                self._apply_later(stream, rules.copies_refused(effects, asyncio.get_running_loop().time()))
                self._long_polls.wake(stream)

        stored = asyncio.ensure_future(self.submit(changes, settle))
        stored.add_done_callback(_ignore)
        return copies_stored, stored

    def _copy(
        self,
        stream: str,
        index: int,
        target: str,
        make: Callable[[Frame, Failure], Frame],
        why: Failure,
        changes: list[Change],
        settles: list[Settle],
    ) -> None:
        """Append the copy of an item to the changes. Limits do not apply to what the service writes, nor does an end
        mark.
        """
        frame = self.load(stream, index)
        if frame is not None:
            copy = make(frame, why)
            number = self._rules[target].entries.allocate(len(copy.data), NO_LIMITS)
            stored, settle = self._prepare(target, number, copy, 0)
            changes.append(stored)
            settles.append(settle)

    def _prepare(self, stream: str, index: int, frame: Frame, priority: int) -> tuple[Stored, Settle]:
        """Return the change that stores the frame, and the function that makes it visible once it is stored."""
        entries = self._rules[stream].entries
        stored = Frame(index, frame.tags, frame.data)

        def settle(error: Exception | None) -> None:
            if error is None:
                entries.show(index, priority)
                self._fresh.setdefault(stream, []).append(stored)
            else:
                entries.drop(index)

        return Stored(stream, stored, priority), settle


def _ignore(future: asyncio.Future[None]) -> None:
    """Read the exception of the future, which `_fail` has reported already."""
    if not future.cancelled():
        future.exception()
