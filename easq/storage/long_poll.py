"""Long polls that wait for an item: each is woken when a matching item may have arrived.

Each is listed under one of its tags. So an item is compared only with the long polls listed under the item's tags.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from easq.model import REQUEST_ID, Frame, Tags
from easq.storage.base import Selection

#: the tag under which a long poll is listed; None without tags
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
        """The tag under which the long poll is listed: the request id if it is wanted, since few items share it."""
        if REQUEST_ID in self.tags:
            return REQUEST_ID, self.tags[REQUEST_ID]
        return next(iter(self.tags.items()), None)

    def wants(self, frame: Frame) -> bool:
        return frame.index >= self.start and matches(frame.tags, self.tags)

    def wake(self, *_: object) -> None:
        """Wake the long poll, so that it reads again."""
        if not self.future.done():
            self.future.set_result(None)


def matches(tags: Tags, wanted: Tags) -> bool:
    """Return whether all `wanted` tags are among `tags`."""
    return all(tags.get(key) == value for key, value in wanted.items())


@dataclass(slots=True)
class _StreamPolls:
    """The long polls of one stream. Long polls with a `start` above the next index are in `later` until that index is
    reached.
    """

    reached: int = 0  # the highest index that has arrived
    polls: dict[int, _LongPoll] = field(default_factory=dict)
    by_key: dict[_Key, dict[int, _LongPoll]] = field(default_factory=dict)
    later: list[tuple[int, int]] = field(default_factory=list)  # heap of (start, number); some have left

    def add(self, poll: _LongPoll) -> None:
        self.polls[poll.number] = poll
        if poll.start > self.reached + 1:
            heapq.heappush(self.later, (poll.start, poll.number))
        else:
            self.by_key.setdefault(poll.key, {})[poll.number] = poll

    def remove(self, poll: _LongPoll) -> None:
        """Remove the long poll, if it is here."""
        if self.polls.pop(poll.number, None) is None:
            return
        listed = self.by_key.get(poll.key, {})
        listed.pop(poll.number, None)
        if not listed:
            self.by_key.pop(poll.key, None)
        if len(self.later) > 2 * len(self.polls) + 64:
            self.later = [one for one in self.later if one[1] in self.polls]
            heapq.heapify(self.later)

    def reach(self, index: int) -> None:
        """Record an item with this index, and list the long polls that wait from there on."""
        self.reached = max(self.reached, index)
        while self.later and self.later[0][0] <= self.reached + 1:
            poll = self.polls.get(heapq.heappop(self.later)[1])
            if poll is None:
                continue
            listed = self.by_key.setdefault(poll.key, {})
            is_first_come = not listed or next(reversed(listed)) < poll.number
            listed[poll.number] = poll
            if not is_first_come:
                self.by_key[poll.key] = dict(sorted(listed.items()))

    def found(self, frame: Frame) -> Iterable[_LongPoll]:
        """Return the long polls that may want the item, in order of arrival."""
        by_key = self.by_key
        listed = [by_key[key].values() for key in frame.tags.items() if key in by_key]
        if None in by_key:
            listed.append(by_key[None].values())
        if len(listed) > 1:
            return heapq.merge(*listed, key=lambda poll: poll.number)
        return listed[0] if listed else ()


class LongPolls:
    """The waiting long polls of one engine, by stream, in order of arrival."""

    def __init__(self) -> None:
        self._streams: dict[str, _StreamPolls] = {}  # only streams with a waiting poll
        self._number = 0

    def __contains__(self, stream: str) -> bool:
        return stream in self._streams

    async def wait(
        self,
        stream: str,
        selection: Selection,
        *,
        taking: bool,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        """Return when an item of the selection may have arrived, after `timeout_s`, or when `gone` is done.

        `taking`: the item will be taken, so that it wakes one such long poll only. If that one is gone, the next is
        woken.
        """
        self._number += 1
        poll = _LongPoll(
            self._number,
            selection.start,
            dict(selection.tags),
            taking,
            asyncio.get_running_loop().create_future(),
        )
        polls = self._streams.setdefault(stream, _StreamPolls())
        polls.add(poll)
        if gone is not None:
            gone.add_done_callback(poll.wake)
        try:
            await asyncio.wait_for(poll.future, timeout_s)
        except TimeoutError:
            pass
        finally:
            polls.remove(poll)
            if not polls.polls:
                self._streams.pop(stream, None)
            if gone is not None:
                gone.remove_done_callback(poll.wake)
                if gone.done() and poll.item is not None:
                    self.item_arrived(stream, poll.item)

    def item_arrived(self, stream: str, frame: Frame) -> None:
        """Wake the long polls that want the item, up to the first that takes it."""
        polls = self._streams.get(stream)
        if polls is None:
            return
        if frame.index > polls.reached:
            polls.reach(frame.index)
        for poll in polls.found(frame):
            if not poll.wants(frame) or poll.future.done():
                continue
            poll.item = frame
            poll.wake()
            if poll.taking:
                return

    def wake(self, stream: str) -> None:
        """Wake all long polls of the stream."""
        polls = self._streams.get(stream)
        for poll in list(polls.polls.values()) if polls is not None else ():
            poll.wake()
