"""Long polls that wait for an item: each is woken when a matching item may have arrived.

Readers are indexed by one of their tags, so an item costs only what the readers with one of its tags cost.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from easq.model import REQUEST_ID, Frame, Tags

#: the tag under which a reader is listed; None for a reader without tags
_Key: TypeAlias = tuple[str, str] | None


@dataclass(slots=True, eq=False)
class _LongPoll:
    """One waiting long poll. Numbers ascend in order of arrival."""

    number: int
    start: int
    tags: Tags
    taking: bool
    future: asyncio.Future[None]
    item: Frame | None = None  # the item that woke it

    @property
    def key(self) -> _Key:
        """The wanted tag under which the reader is listed: the request id if it is one, since few items share it."""
        if REQUEST_ID in self.tags:
            return REQUEST_ID, self.tags[REQUEST_ID]
        return next(iter(self.tags.items()), None)

    def wants(self, frame: Frame) -> bool:
        return frame.index >= self.start and matches(frame.tags, self.tags)

    def wake(self, *_: object) -> None:
        """Wake the reader, so that it reads again."""
        if not self.future.done():
            self.future.set_result(None)


def matches(tags: Tags, wanted: Tags) -> bool:
    """Whether `wanted` are among `tags`."""
    return all(tags.get(key) == value for key, value in wanted.items())


@dataclass(slots=True)
class _Stream:
    """The readers of one stream. Those with a `start` above the next index are in `later` until it is reached."""

    reached: int = 0  # the highest index that has arrived
    readers: dict[int, _LongPoll] = field(default_factory=dict)
    by_key: dict[_Key, dict[int, _LongPoll]] = field(default_factory=dict)
    later: list[tuple[int, int]] = field(default_factory=list)  # heap of (start, number); some have left

    def add(self, reader: _LongPoll) -> None:
        self.readers[reader.number] = reader
        if reader.start > self.reached + 1:
            heapq.heappush(self.later, (reader.start, reader.number))
        else:
            self.by_key.setdefault(reader.key, {})[reader.number] = reader

    def remove(self, reader: _LongPoll) -> None:
        """Remove the reader, if it is here."""
        if self.readers.pop(reader.number, None) is None:
            return
        listed = self.by_key.get(reader.key, {})
        listed.pop(reader.number, None)
        if not listed:
            self.by_key.pop(reader.key, None)
        if len(self.later) > 2 * len(self.readers) + 64:
            self.later = [one for one in self.later if one[1] in self.readers]
            heapq.heapify(self.later)

    def reach(self, index: int) -> None:
        """Record an item with this index, and list the readers that wait from there on."""
        self.reached = max(self.reached, index)
        while self.later and self.later[0][0] <= self.reached + 1:
            reader = self.readers.get(heapq.heappop(self.later)[1])
            if reader is None:
                continue
            listed = self.by_key.setdefault(reader.key, {})
            is_first_come = not listed or next(reversed(listed)) < reader.number
            listed[reader.number] = reader
            if not is_first_come:
                self.by_key[reader.key] = dict(sorted(listed.items()))

    def found(self, frame: Frame) -> Iterable[_LongPoll]:
        """Return the readers that may want the item, in order of arrival."""
        by_key = self.by_key
        listed = [by_key[key].values() for key in frame.tags.items() if key in by_key]
        if None in by_key:
            listed.append(by_key[None].values())
        if len(listed) > 1:
            return heapq.merge(*listed, key=lambda reader: reader.number)
        return listed[0] if listed else ()


class LongPolls:
    """The readers of one engine that wait, by stream, first come first."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}  # only streams with a waiting reader
        self._number = 0

    def __contains__(self, stream: str) -> bool:
        return stream in self._streams

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
        """Return when an item from index `start` on with all of `tags` may have arrived, after `timeout_s`, or when
        `gone` is done. An item that woke a reader that is gone wakes the next one.
        """
        self._number += 1
        reader = _LongPoll(
            self._number, start, dict(tags), taking, asyncio.get_running_loop().create_future()
        )
        readers = self._streams.setdefault(stream, _Stream())
        readers.add(reader)
        if gone is not None:
            gone.add_done_callback(reader.wake)
        try:
            await asyncio.wait_for(reader.future, timeout_s)
        except TimeoutError:
            pass
        finally:
            readers.remove(reader)
            if not readers.readers:
                self._streams.pop(stream, None)
            if gone is not None:
                gone.remove_done_callback(reader.wake)
                if gone.done() and reader.item is not None:
                    self.item_arrived(stream, reader.item)

    def item_arrived(self, stream: str, frame: Frame) -> None:
        """An item may be read: those that want it look, up to the first that takes it away."""
        readers = self._streams.get(stream)
        if readers is None:
            return
        if frame.index > readers.reached:
            readers.reach(frame.index)
        for reader in readers.found(frame):
            if not reader.wants(frame) or reader.future.done():
                continue
            reader.item = frame
            reader.wake()
            if reader.taking:
                return

    def wake(self, stream: str) -> None:
        """Every reader of the stream looks."""
        readers = self._streams.get(stream)
        for reader in list(readers.readers.values()) if readers is not None else ():
            reader.wake()
