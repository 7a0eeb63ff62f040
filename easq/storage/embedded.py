"""The verbs of an engine inside this process, over the rules of each stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice

from easq.errors import KeyReused, StreamEnded
from easq.model import DELIVERY_COUNT, NEWEST, REQUEST_ID, Ack, Consumer, Frame, Tags
from easq.protocol.operations import Negative
from easq.storage.base import (
    MOST_BYTES,
    Lease,
    Limits,
    Location,
    Selection,
    StreamStats,
    Subscription,
    Timing,
    is_enough,
)
from easq.storage.engine import EmbeddedEngine
from easq.storage.long_poll import matches
from easq.storage.rules.changes import Change, Ended, Keyed, KeysForgotten
from easq.storage.rules.scans import NO_SCAN_LIMIT, ScanGate, ScanLimit
from easq.storage.rules.stream import Stream

#: most items, and most bytes, that one fetch of a connection reads
_FETCH_ITEMS, _FETCH_BYTES = 256, 4 * 1024**2
#: entries in one slice of a scan (10 us each, 35 us if they match), and before it waits for its first slice: most gets
#: find what they want there
_SCAN_CHUNK, _FIRST_CHUNK = 128, 8
#: bytes of payload that are loaded before other tasks run; 8 MiB take 5 to 10 ms
_LARGE_BYTES = 1024**2
#: entries in one slice of a truncate (2 us each), and of `locate` (0.4 us each), which compares few at once
_REMOVED_AT_ONCE, _COUNTED_AT_ONCE, _COUNTED_FIRST = 2_500, 12_500, 1_000


class EmbeddedStorage(EmbeddedEngine):
    """The verbs, over the rules of each stream. Subclasses store the entries: memory, SQLite."""

    def __init__(self, timing: Timing, wall_ms: Callable[[], int] | None = None) -> None:
        super().__init__(timing, wall_ms)
        self._large = asyncio.Lock()  # for leases of large items
        #: one slice in one turn of the event loop, however many scans there are
        self._gate = ScanGate(at_once=1)
        self._keys_under_way: dict[tuple[str, str], asyncio.Future[None]] = {}

    # -- put -----------------------------------------------------------------------------------------------------------

    async def append(self, stream: str, frame: Frame, *, priority: int, limits: Limits, key: str = "") -> Ack:
        if key:
            return await self._append_once(stream, frame, priority, limits, key)
        ack, stored = self._add(stream, frame, priority, limits)
        await stored
        return ack

    def _add(
        self, stream: str, frame: Frame, priority: int, limits: Limits, key: str = "", digest: bytes = b""
    ) -> tuple[Ack, Awaitable[None]]:
        """Submit a new item. Return the answer of the put, and an awaitable that is done once the item is stored."""
        rules = self._rules_of(stream)
        self.check_space()
        index, effects = rules.allocate(len(frame.data), limits)
        if effects is not None:
            # the entries that made room are removed even if the disk then has no space
            self._apply_later(stream, effects)
        stored, settle = self._prepare(stream, index, frame, priority)
        request_id = frame.request_id
        changes: list[Change] = [stored]
        if key:
            now, window = asyncio.get_running_loop().time(), self._key_windows[stream]
            changes.append(Keyed(stream, key, index, request_id, digest, window.next(now)))
            below = window.forget(now)
            if below:
                changes.append(KeysForgotten(stream, below))
        return Ack(index, request_id), self.submit(changes, settle)

    async def _append_once(self, stream: str, frame: Frame, priority: int, limits: Limits, key: str) -> Ack:
        """Append the item unless the key has stored one. A put with the same key that is under way is awaited."""
        digest = sha256(frame.data).digest()
        while (under_way := self._keys_under_way.get((stream, key))) is not None:
            await asyncio.wait({under_way})
        self._rules_of(stream)
        known = self.recall(stream, key)
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

    # -- get -----------------------------------------------------------------------------------------------------------

    async def read(
        self, stream: str, selection: Selection, *, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        start = selection.start
        if start == NEWEST:
            start = self._rules_of(stream).entries.last_visible() or 1
        frames: list[Frame] = []
        size = 0

        def found(index: int) -> int | None:
            nonlocal size
            frame = self.load(stream, index)
            if frame is None:
                return 0
            size += len(frame.data)
            if frames and size > MOST_BYTES:
                return None
            frames.append(frame)
            return None if len(frames) >= selection.length else len(frame.data)

        await self._scan(stream, start, selection.tags, limit, found)
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
                await asyncio.sleep(0)  # the slice of the next scan is in another turn of the event loop

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
            chunk = self.find(stream, request_id, start, most)
        else:
            chunk = list(islice(rules.entries.indexes_from(start), most))
        loaded = 0
        for index in chunk:
            if rules.entries.visible(index) and (is_known or matches(self.load_tags(stream, index), tags)):
                size = found(index)
                if size is None:
                    return None
                loaded += size
                if loaded > _LARGE_BYTES:
                    return index + 1
        return chunk[-1] + 1 if len(chunk) == most else None

    async def take(
        self, stream: str, selection: Selection, *, minimum: int, limit: ScanLimit = NO_SCAN_LIMIT
    ) -> list[Frame]:
        frames = await self.read(stream, selection, limit=limit)
        rules = self._rules_of(stream)
        # others may have taken or removed items during a long scan
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
                self._long_polls.item_arrived(stream, Frame(index, self.load_tags(stream, index)))
        await self._apply(stream, effects)

    async def settle(self, stream: str, indexes: Sequence[int]) -> None:
        await self.delete(stream, indexes)

    async def wait(
        self,
        stream: str,
        selection: Selection,
        *,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        rules = self._rules_of(stream)
        if selection.start == NEWEST:
            selection = replace(selection, start=rules.entries.last + 1)
        await self._long_polls.wait(stream, selection, taking=taking, timeout_s=timeout_s, gone=gone)

    async def wake(self, stream: str) -> None:
        self._long_polls.wake(stream)

    # -- watch ---------------------------------------------------------------------------------------------------------

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
                # one connection at a time loads a large item, and other tasks run in between
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
            frame = Frame(index, self.load_tags(stream, index)) if index_only else self.load(stream, index)
            if frame is not None:
                self._records.note(stream, rules.group_of(session), index)
                if deliveries > 1:  # a first delivery is as it was stored
                    frame = replace(frame, tags={**frame.tags, DELIVERY_COUNT: str(deliveries)})
                leases.append(Lease(frame, deliveries))
        return leases

    async def still_leased(self, stream: str, session: int, index: int) -> bool:
        return self._rules_of(stream).has_out(session, index)

    async def sessions(self, stream: str) -> Mapping[Consumer, int]:
        return self._rules_of(stream).sessions()

    async def active(self, stream: str, session: int, *, now: float) -> None:
        self._rules_of(stream).active(session, now)

    async def idle(self, stream: str, consumer: Consumer, *, now: float, process: str = "") -> float | None:
        return self._rules_of(stream).idle(consumer, now, process)

    # -- results -------------------------------------------------------------------------------------------------------

    async def commit(self, stream: str, group: str, indexes: Sequence[int]) -> int:
        counted, effects = self._rules_of(stream).commit(group, indexes)
        await self._apply(stream, effects)
        return counted

    async def negative(
        self,
        stream: str,
        group: str,
        negative: Negative,
        *,
        now: float,
    ) -> int:
        rules = self._rules_of(stream)
        counted, effects = rules.negative(group, negative, now)
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
            step = rules.entries.bound(below, _REMOVED_AT_ONCE)
            count, effects = rules.truncate(step)
            total += count
            await self._apply(stream, effects)
        return total

    async def end(self, stream: str, *, ended: bool) -> None:
        self._rules_of(stream).ended = ended
        await self.submit([Ended(stream, ended)])
        self._wake_watchers(stream)

    # -- queries -------------------------------------------------------------------------------------------------------

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
