"""An engine inside this process: the core decides, a subclass keeps the entries, sleepers wake here.

What a step changed is handed to the subclass as `Change`s. An item becomes visible when its change is durable, in the
order of indexes; a removal is visible at once and acknowledged when it is durable.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from math import inf
from typing import TypeAlias

from easq.errors import KeyReused, QueueFull, StorageError, StreamEnded
from easq.model import DELIVERY_COUNT, NEWEST, REQUEST_ID, Ack, Consumer, Frame, Tags
from easq.storage.base import (
    MOST_BYTES,
    DeadLetterPolicy,
    Failure,
    Lease,
    Limits,
    Location,
    Storage,
    StreamStats,
    Subscription,
    Timing,
    is_enough,
)
from easq.storage.long_poll import LongPolls, matches
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
from easq.storage.rules.effects import Effects
from easq.storage.rules.filters import filters_text
from easq.storage.rules.idempotency import KeyWindow
from easq.storage.rules.scans import NO_SCAN_LIMIT, ScanGate, ScanLimit
from easq.storage.rules.state import AT_ONCE
from easq.storage.rules.stream import Stream

#: delivery counts are made durable this long after they changed, at the latest, in seconds
_LAZY_S = 0.1
#: one fetch of a connection reads at most so many items, and so many bytes
_FETCH_ITEMS, _FETCH_BYTES = 256, 4 * 1024**2
#: the next slice is begun after so many seconds even if the last one is not stored yet
_PAUSE_S = 1.0
#: what the service itself writes is stored whatever is there already
NO_LIMITS = Limits(max_items=1 << 62, max_bytes=1 << 62)
#: entries in one slice of a scan (10 us each, 35 us if they match), and before it waits for its first slice: most gets
#: find what they want there
_SCAN_CHUNK, _FIRST_CHUNK = 128, 8
#: bytes of payload that are loaded before other tasks get a turn; 8 MiB take 5 to 10 ms
_LARGE_BYTES = 1024**2
#: entries in one slice of a truncate (2 us each), and of `locate` (0.4 us each), which compares few at once
_REMOVED_AT_ONCE, _COUNTED_AT_ONCE, _COUNTED_FIRST = 2_500, 12_500, 1_000


#: called on the event loop when changes are durable (None) or failed
Settle: TypeAlias = Callable[[Exception | None], None]


class EmbeddedStorage(Storage):
    """All verbs over `Stream`; a subclass keeps the entries (`_submit`, `_load`, `_load_tags`, `_find`)."""

    #: a timer that is late by more than so many seconds shows that the process stood still (stopped, suspended)
    stood_still_s = 1.0

    def __init__(self, timing: Timing, wall_ms: Callable[[], int] | None = None) -> None:
        """`wall_ms` returns the wall time in Unix milliseconds, for times that are stored across restarts."""
        self._timing = timing
        self._wall_ms = wall_ms or (lambda: time.time_ns() // 1_000_000)
        self._rules: dict[str, Stream] = {}
        self._events: dict[tuple[str, int], asyncio.Event] = {}
        self._long_polls = LongPolls()
        self._large = asyncio.Lock()
        #: one slice in one turn of the event loop, however many scans there are
        self._gate = ScanGate(at_once=1)
        self._has_ticked = False  # a slice of a stream's rules ran in this turn of the event loop
        self._fresh: dict[str, list[Frame]] = {}
        self._lazy: dict[tuple[str, int], set[str]] = {}
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._dead_letters: dict[str, DeadLetterPolicy] = {}
        self._key_windows: dict[str, KeyWindow] = {}
        self._keys_under_way: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._ticks: dict[str, tuple[float, asyncio.Handle]] = {}
        self._paused: set[str] = set()  # streams whose next slice waits until the last one is stored
        self._failure: Exception | None = None
        self._on_failure: Callable[[Exception], None] = lambda _: None

    # -- what a subclass provides --------------------------------------------------------------------------------------

    @abstractmethod
    def _submit(self, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        """The changes will be durable, in the order of calls; `settle` is called first, then the awaitable is done.

        After each batch of settled changes `_settled` is called once. Raises QueueFull when a Stored found no space.
        """

    @abstractmethod
    def _load(self, stream: str, index: int) -> Frame | None:
        """The stored entry; None when it is gone."""

    @abstractmethod
    def _load_tags(self, stream: str, index: int) -> Tags:
        """The stored entry's tags; empty when it is gone."""

    @abstractmethod
    def _recall(self, stream: str, key: str) -> Keyed | None:
        """What the idempotency key has stored; None when it is not known, or not any more."""

    @abstractmethod
    def _find(self, stream: str, request_id: str, start: int, most: int) -> list[int]:
        """Return the indexes of stored entries with this request id from `start` on, ascending, at most `most`."""

    # -- running -------------------------------------------------------------------------------------------------------

    async def start(self, on_failure: Callable[[Exception], None]) -> None:
        self._on_failure = on_failure

    async def close(self) -> None:
        for _, handle in self._ticks.values():
            handle.cancel()
        self._ticks.clear()
        self._paused.clear()
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        if self._failure is None:
            leaving = [
                self._kept(stream, group, stopping=True)
                for stream, rules in self._rules.items()
                for group in rules.absent()
            ]
            await self._submit([*self._lazy_changes(), *leaving])

    def _adopt(
        self, stream: str, rules: Stream, keys: KeyWindow, dead_letters: DeadLetterPolicy | None
    ) -> None:
        self._rules[stream] = rules
        self._key_windows[stream] = keys
        if dead_letters is not None:
            self._dead_letters[stream] = dead_letters
            rules.max_failures = dead_letters.max_failures
            rear = self._rules[dead_letters.rear]
            rules.has_rear_room = lambda items, size: (
                rear.entries.has_room(size, dead_letters.rear_limits, items=items) and self._has_space()
            )
        self._schedule(stream)

    def _has_space(self) -> bool:
        """Whether the engine has room for another entry at all."""
        return True

    def _check_space(self) -> None:
        """Raises QueueFull when the engine is known to have none."""

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self._on_failure(error)

    def _rules_of(self, stream: str) -> Stream:
        if self._failure is not None:
            raise StorageError(f"the storage failed: {self._failure}")
        return self._rules[stream]

    # -- effects -------------------------------------------------------------------------------------------------------

    def _changes(self, stream: str, effects: Effects, copies_stored: Container[int]) -> list[Change]:
        """What `effects` asks to be made durable, but for what is `copies_stored`; connections are woken on the way."""
        changes: list[Change] = [self._kept(stream, group) for group in dict.fromkeys(effects.groups)]
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
            for index in effects.removed:
                self._lazy.pop((stream, index), None)
        changes += [GroupChanged(stream, group, False) for group in effects.forgotten_groups]
        for group, index in effects.recorded:
            self._remember(stream, group, index)
        for session in effects.woken | effects.replaced:
            event = self._events.get((stream, session))
            if event is not None:
                event.set()
        if self._rules[stream].ended:
            self._wake_watchers(stream)
        self._schedule(stream)
        return changes

    def _kept(self, stream: str, group: str, *, stopping: bool = False) -> GroupChanged:
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

    async def _apply(self, stream: str, effects: Effects) -> None:
        """Raises QueueFull when the step gave an item up, and there was no space for its copy: it is not given up."""
        copies_stored, stored = self._bury(stream, effects)
        changes = self._changes(stream, effects, copies_stored)
        if changes:
            await self._submit(changes)
        if effects.given_up and stored is not None:
            await stored

    def _apply_later(self, stream: str, effects: Effects) -> asyncio.Future[None] | None:
        """Submit the changes of `effects`. Return a future that is done once they are stored; None without any."""
        copies_stored, _ = self._bury(stream, effects)
        changes = self._changes(stream, effects, copies_stored)
        if not changes:
            return None
        stored = asyncio.ensure_future(self._submit(changes))
        stored.add_done_callback(_ignore)
        return stored

    def _bury(self, stream: str, effects: Effects) -> tuple[Container[int], asyncio.Future[None] | None]:
        """Copies and answers are on their way, in one step with the leaving of what they are of: which entries that
        are, and when it is done. A disk without space for them refuses that step alone: they come again.
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
            for told in settles:
                told(error)
            if error is None:
                rules.copies_stored(effects)
            elif isinstance(error, QueueFull):
                self._apply_later(stream, rules.copies_refused(effects, asyncio.get_running_loop().time()))
                self._long_polls.wake(stream)

        stored = asyncio.ensure_future(self._submit(changes, settle))
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
        """Of what the service itself writes there is always room in the target, also when that has ended."""
        frame = self._load(stream, index)
        if frame is not None:
            copy = make(frame, why)
            number = self._rules[target].entries.allocate(len(copy.data), NO_LIMITS)
            stored, settle = self._placed(target, number, copy, 0)
            changes.append(stored)
            settles.append(settle)

    def _placed(self, stream: str, index: int, frame: Frame, priority: int) -> tuple[Stored, Settle]:
        """The frame under its allotted index, and who makes it visible."""
        entries = self._rules[stream].entries
        stored = Frame(index, frame.tags, frame.data)

        def settle(error: Exception | None) -> None:
            if error is None:
                entries.show(index, priority)
                self._fresh.setdefault(stream, []).append(stored)
            else:
                entries.drop(index)

        return Stored(stream, stored, priority), settle

    def _remember(self, stream: str, group: str, index: int) -> None:
        self._lazy.setdefault((stream, index), set()).add(group)
        if self._lazy_timer is None:
            self._lazy_timer = asyncio.get_running_loop().call_later(_LAZY_S, self._flush_lazy)

    def _flush_lazy(self) -> None:
        self._lazy_timer = None
        changes = self._lazy_changes()
        if changes and self._failure is None:
            asyncio.ensure_future(self._submit(changes)).add_done_callback(_ignore)

    def _lazy_changes(self) -> list[Change]:
        changes: list[Change] = []
        for (stream, index), groups in self._lazy.items():
            for group in groups:
                record = self._rules[stream].record(group, index)
                if record is not None:
                    changes.append(DeliveryRecorded(stream, group, index, replace(record)))
        self._lazy.clear()
        return changes

    def _wake_watchers(self, stream: str) -> None:
        """Every connection looks whether the stream is over."""
        for (watched, _), event in self._events.items():
            if watched == stream:
                event.set()

    def _schedule(self, stream: str) -> None:
        """The stream's rules run again when something waits for the time."""
        due = self._rules[stream].due
        known = self._ticks.get(stream)
        if due == inf or (known is not None and known[0] <= due) or stream in self._paused:
            return
        if known is not None:
            known[1].cancel()
        handle = asyncio.get_running_loop().call_at(due, self._tick, stream)
        self._ticks[stream] = (due, handle)

    def _tick(self, stream: str) -> None:
        due, _ = self._ticks.pop(stream)
        if self._failure is not None:
            return
        loop = asyncio.get_running_loop()
        if due == AT_ONCE:
            if self._has_ticked:  # another stream's slice ran in this turn: the next turn is this stream's
                self._ticks[stream] = due, loop.call_soon(self._tick, stream)
                return
            self._has_ticked = True
            loop.call_soon(self._allow_tick)
        rules, now = self._rules[stream], loop.time()
        if due > AT_ONCE and now - due > self.stood_still_s:
            rules.stood_still(now)
        effects = rules.tick(now)
        # slices made faster than they are stored would pile up to one long transaction
        self._paused.add(stream)
        stored = self._apply_later(stream, effects)
        if stored is None or rules.due > AT_ONCE:
            self._go_on(stream)
            return
        # on a full disk nothing is stored for a while, and other timers must not wait for that
        timer = asyncio.get_running_loop().call_later(_PAUSE_S, self._go_on, stream)
        stored.add_done_callback(lambda _: self._go_on(stream, timer))

    def _allow_tick(self) -> None:
        self._has_ticked = False

    def _go_on(self, stream: str, timer: asyncio.TimerHandle | None = None) -> None:
        """Allow the stream's next slice."""
        if timer is not None:
            timer.cancel()
        if stream in self._paused and self._failure is None:
            self._paused.remove(stream)
            self._schedule(stream)

    def _settled(self) -> None:
        """A batch is durable: new items are handed out, waiting readers wake."""
        fresh, self._fresh = self._fresh, {}
        for stream, frames in fresh.items():
            self._apply_later(stream, self._rules[stream].dispatch())
            for frame in frames if stream in self._long_polls else ():
                self._long_polls.item_arrived(stream, frame)

    # -- the verbs -----------------------------------------------------------------------------------------------------

    async def append(self, stream: str, frame: Frame, *, priority: int, limits: Limits, key: str = "") -> Ack:
        if key:
            return await self._append_once(stream, frame, priority, limits, key)
        ack, stored = self._add(stream, frame, priority, limits)
        await stored
        return ack

    def _add(
        self, stream: str, frame: Frame, priority: int, limits: Limits, key: str = "", digest: bytes = b""
    ) -> tuple[Ack, Awaitable[None]]:
        """What the put is answered with, once it is stored."""
        rules = self._rules_of(stream)
        self._check_space()
        index, effects = rules.allocate(len(frame.data), limits)
        if effects is not None:
            self._apply_later(
                stream, effects
            )  # what made room has left, whether the disk then has space or not
        stored, settle = self._placed(stream, index, frame, priority)
        request_id = frame.request_id
        changes: list[Change] = [stored]
        if key:
            changes += self._keyed(stream, key, index, request_id, digest)
        return Ack(index, request_id), self._submit(changes, settle)

    def _keyed(self, stream: str, key: str, index: int, request_id: str, digest: bytes) -> Iterator[Change]:
        now = asyncio.get_running_loop().time()
        window = self._key_windows[stream]
        yield Keyed(stream, key, index, request_id, digest, window.next(now))
        below = window.forget(now)
        if below:
            yield KeysForgotten(stream, below)

    async def _append_once(self, stream: str, frame: Frame, priority: int, limits: Limits, key: str) -> Ack:
        """As `_add`, unless the key has stored an item, or is just storing one: then that is waited for."""
        digest = sha256(frame.data).digest()
        while (under_way := self._keys_under_way.get((stream, key))) is not None:
            await asyncio.wait({under_way})
        self._rules_of(stream)
        known = self._recall(stream, key)
        if known is not None:
            if known.digest != digest:
                raise KeyReused(f"the idempotency key {key[:80]!a} was used before, with another payload")
            return Ack(known.index, known.request_id, duplicate=True)
        mine = self._keys_under_way[stream, key] = asyncio.get_running_loop().create_future()
        try:
            ack, stored = self._add(stream, frame, priority, limits, key, digest)
            await stored
            return ack
        finally:
            del self._keys_under_way[stream, key]
            mine.set_result(None)

    async def read(
        self, stream: str, *, start: int, length: int, tags: Tags, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        if start == NEWEST:
            start = self._rules_of(stream).entries.last_visible() or 1
        frames: list[Frame] = []
        size = 0

        def found(index: int) -> int | None:
            nonlocal size
            frame = self._load(stream, index)
            if frame is None:
                return 0
            size += len(frame.data)
            if frames and size > MOST_BYTES:
                return None
            frames.append(frame)
            return None if len(frames) >= length else len(frame.data)

        await self._scan(stream, start, tags, limit, found)
        return frames

    async def _scan(
        self, stream: str, start: int, tags: Tags, limit: ScanLimit, found: Callable[[int], int | None]
    ) -> None:
        """Call `found` with the index of each visible entry from `start` on that has all of `tags`, ascending.

        `found` returns how many bytes it has loaded, or None to end the scan. The scan also ends when its time is
        over. Raises Unavailable when the caller is gone.
        """
        rules = self._rules_of(stream)
        rest = self._scan_slice(stream, rules, start, tags, _FIRST_CHUNK, found)
        while rest is not None:
            async with self._gate.slot(limit) as has_time:
                if not has_time:
                    return
                rest = self._scan_slice(stream, rules, rest, tags, _SCAN_CHUNK, found)
                await asyncio.sleep(0)  # the next scan's slice is in another turn of the event loop

    def _scan_slice(
        self,
        stream: str,
        rules: Stream,
        start: int,
        tags: Tags,
        most: int,
        found: Callable[[int], int | None],
    ) -> int | None:
        """Examine at most `most` entries, and return the index to go on from; None when the scan is over."""
        request_id = tags.get(REQUEST_ID)
        is_known = not tags or (request_id is not None and len(tags) == 1)
        if request_id is not None:
            chunk = self._find(stream, request_id, start, most)
        else:
            chunk = list(islice(rules.entries.indexes_from(start), most))
        loaded = 0
        for index in chunk:
            if rules.entries.visible(index) and (is_known or matches(self._load_tags(stream, index), tags)):
                size = found(index)
                if size is None:
                    return None
                loaded += size
                if loaded > _LARGE_BYTES:
                    return index + 1
        return chunk[-1] + 1 if len(chunk) == most else None

    async def take(
        self,
        stream: str,
        *,
        start: int,
        length: int,
        tags: Tags,
        minimum: int,
        limit: ScanLimit = NO_SCAN_LIMIT,
    ) -> list[Frame]:
        frames = await self.read(stream, start=start, length=length, tags=tags, limit=limit)
        rules = self._rules_of(stream)
        # a long scan lets others run: what they took or removed meanwhile is not ours
        frames = [frame for frame in frames if rules.entries.visible(frame.index)]
        if not is_enough(frames, minimum):
            return []
        await self._apply(stream, rules.claim([frame.index for frame in frames]))
        return frames

    async def release(self, stream: str, indexes: Sequence[int]) -> None:
        rules = self._rules_of(stream)
        effects = rules.release(indexes)
        for index in indexes:
            if rules.entries.visible(index):
                self._long_polls.item_arrived(stream, Frame(index, self._load_tags(stream, index)))
        await self._apply(stream, effects)

    async def settle(self, stream: str, indexes: Sequence[int]) -> None:
        await self.delete(stream, indexes)

    async def wait(
        self,
        stream: str,
        *,
        start: int,
        tags: Tags,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        rules = self._rules_of(stream)
        if start == NEWEST:
            start = rules.entries.last + 1
        await self._long_polls.wait(
            stream, start=start, tags=tags, taking=taking, timeout_s=timeout_s, gone=gone
        )

    async def wake(self, stream: str) -> None:
        self._long_polls.wake(stream)

    async def attach(self, stream: str, consumer: Consumer, subscription: Subscription, *, now: float) -> int:
        rules = self._rules_of(stream)
        if subscription.after == NEWEST:
            subscription = replace(subscription, after=rules.entries.last)
        session, effects = rules.attach(consumer, subscription, now)
        self._events[stream, session] = asyncio.Event()
        self._events[stream, session].set()
        await self._apply(stream, effects)
        return session

    async def detach(self, stream: str, session: int, *, lost: bool, now: float) -> None:
        effects = self._rules_of(stream).detach(session, lost=lost, now=now)
        event = self._events.pop((stream, session), None)
        if event is not None:
            event.set()
        await self._apply(stream, effects)

    async def lease(self, stream: str, session: int, *, index_only: bool) -> list[Lease]:
        event = self._events.get((stream, session))
        while event is not None:
            rules = self._rules_of(stream)
            if not rules.connected(session):
                break
            if rules.next_size(session) > _LARGE_BYTES:
                # one connection at a time loads a large item, and other tasks get a turn in between
                async with self._large:
                    await asyncio.sleep(0)
                    leases = self._lease(stream, rules, session, event, index_only)
            else:
                leases = self._lease(stream, rules, session, event, index_only)
            if leases:
                return leases
            if not rules.connected(session):
                break
            if rules.is_through(session):
                raise StreamEnded("the stream has ended")
            await event.wait()
        return []

    def _lease(
        self, stream: str, rules: Stream, session: int, event: asyncio.Event, index_only: bool
    ) -> list[Lease]:
        event.clear()
        leases = []
        now = asyncio.get_running_loop().time()
        fetched = rules.fetch(session, most=_FETCH_ITEMS, most_bytes=_FETCH_BYTES, now=now)
        for index, deliveries in fetched:
            frame = self._frame(stream, index, index_only)
            if frame is not None:
                self._remember(stream, rules.group_of(session), index)
                leases.append(Lease(_counted(frame, deliveries), deliveries))
        return leases

    async def still_leased(self, stream: str, session: int, index: int) -> bool:
        return self._rules_of(stream).has_out(session, index)

    def _frame(self, stream: str, index: int, index_only: bool) -> Frame | None:
        return Frame(index, self._load_tags(stream, index)) if index_only else self._load(stream, index)

    async def commit(self, stream: str, group: str, indexes: Sequence[int]) -> int:
        counted, effects = self._rules_of(stream).commit(group, indexes)
        await self._apply(stream, effects)
        return counted

    async def negative(
        self,
        stream: str,
        group: str,
        indexes: Sequence[int],
        *,
        code: str,
        reason: str,
        now: float,
        delay_s: float | None = None,
    ) -> int:
        rules = self._rules_of(stream)
        counted, effects = rules.negative(group, indexes, code=code, reason=reason, now=now, delay_s=delay_s)
        await self._apply(stream, effects)
        return counted

    async def delete(self, stream: str, indexes: Sequence[int]) -> int:
        effects = self._rules_of(stream).delete(indexes)
        await self._apply(stream, effects)
        return len(effects.removed)

    async def truncate(self, stream: str, below: int) -> int:
        rules = self._rules_of(stream)
        below = min(below, rules.entries.shown + 1)  # entries that are put meanwhile stay
        total, step = 0, 0
        while step < below:
            if step:
                async with self._gate.slot():
                    await asyncio.sleep(0)
                    step, count, effects = self._truncate_slice(stream, rules, below)
            else:
                step, count, effects = self._truncate_slice(stream, rules, below)
            total += count
            await self._apply(stream, effects)
        return total

    def _truncate_slice(self, stream: str, rules: Stream, below: int) -> tuple[int, int, Effects]:
        """Remove the oldest entries under `below`; return the index under which all are gone, and how many were."""
        step = rules.entries.bound(below, _REMOVED_AT_ONCE)
        count, effects = rules.truncate(step)
        for key in [key for key in self._lazy if key[0] == stream and key[1] < step]:
            del self._lazy[key]
        return step, count, effects

    async def locate(self, stream: str, group: str, index: int) -> Location | None:
        rules = self._rules_of(stream)
        location = rules.place(group, index)
        if location is None or location.owner is not None:
            return location
        handled = rules.handled(group)
        ahead = location.ahead - rules.entries.count_ahead(handled[:_COUNTED_FIRST], index)
        for at in range(_COUNTED_FIRST, len(handled), _COUNTED_AT_ONCE):
            async with self._gate.slot():
                await asyncio.sleep(0)
                if not rules.entries.visible(index):
                    return None
                ahead -= rules.entries.count_ahead(handled[at : at + _COUNTED_AT_ONCE], index)
        return replace(location, ahead=max(0, ahead))

    async def count(
        self, stream: str, *, tags: Tags, priority: int | None, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> int:
        rules = self._rules_of(stream)
        if not tags:
            return rules.entries.count(priority)
        total = 0

        def found(index: int) -> int:
            nonlocal total
            total += priority is None or rules.entries.rank(index)[0] == -priority
            return 0

        await self._scan(stream, 0, tags, limit, found)
        return total

    async def attributes(self, stream: str, *, now: float) -> StreamStats:
        return self._rules_of(stream).stats(now)

    async def sessions(self, stream: str) -> Mapping[Consumer, int]:
        return self._rules_of(stream).sessions()

    async def active(self, stream: str, session: int, *, now: float) -> None:
        self._rules_of(stream).active(session, now)

    async def idle(self, stream: str, consumer: Consumer, *, now: float, process: str = "") -> float | None:
        return self._rules_of(stream).idle(consumer, now, process)

    async def end(self, stream: str, *, ended: bool) -> None:
        self._rules_of(stream).ended = ended
        await self._submit([Ended(stream, ended)])
        self._wake_watchers(stream)


def _counted(frame: Frame, deliveries: int) -> Frame:
    """A redelivered frame says so; a first delivery is as it was stored."""
    if deliveries < 2:
        return frame
    return replace(frame, tags={**frame.tags, DELIVERY_COUNT: str(deliveries)})


def _ignore(future: asyncio.Future[None]) -> None:
    """A failure of changes nobody waits for has been reported by `_fail` already."""
    if not future.cancelled():
        future.exception()
