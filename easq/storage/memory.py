"""The reference engine: entries in a dictionary, lost with the process. It is the readable definition of stored
data.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Sequence

from easq.model import Frame, Tags
from easq.storage.base import DeadLetterPolicy, Timing
from easq.storage.embedded import EmbeddedStorage
from easq.storage.engine import Settle
from easq.storage.rules.changes import Change, Keyed, KeysForgotten, Removed, Stored, Truncated
from easq.storage.rules.idempotency import KeyWindow
from easq.storage.rules.stream import Stream


class MemoryStorage(EmbeddedStorage):
    """Stores entries in memory. Nothing survives the process; `meta.durability` is `memory`."""

    durability = "memory"

    def __init__(self, timing: Timing | None = None) -> None:
        super().__init__(timing or Timing())
        self._entries: dict[str, dict[int, Frame]] = {}
        self._by_request: dict[str, dict[str, list[int]]] = {}
        self._keys: dict[str, dict[str, Keyed]] = {}

    async def open(self, stream: str, dead_letters: DeadLetterPolicy | None = None) -> None:
        if stream not in self._rules:
            self._entries[stream] = {}
            self._by_request[stream] = {}
            self._keys[stream] = {}
            rules = Stream(timing=self._timing, tags_of=lambda index: self.load_tags(stream, index))
            self._adopt(stream, rules, KeyWindow(), dead_letters)

    async def streams(self) -> Sequence[str]:
        return list(self._rules)

    def submit(self, changes: Sequence[Change], settle: Settle | None = None) -> Awaitable[None]:
        for change in changes:
            match change:
                case Stored():
                    self._entries[change.stream][change.frame.index] = change.frame
                    found = self._by_request[change.stream].setdefault(change.frame.request_id, [])
                    found.append(change.frame.index)
                case Keyed():
                    self._keys[change.stream][change.key] = change
                case KeysForgotten():
                    keys = self._keys[change.stream]
                    for key in [key for key, known in keys.items() if known.number < change.below]:
                        del keys[key]
                case Removed():
                    self._forget(change.stream, change.indexes)
                case Truncated():
                    below = [index for index in self._entries[change.stream] if index < change.below]
                    self._forget(change.stream, below)
                case _:
                    pass  # the rules have groups and counts in memory
        if settle is not None:
            settle(None)
        self._settled()
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _forget(self, stream: str, indexes: Sequence[int]) -> None:
        for index in indexes:
            frame = self._entries[stream].pop(index)
            found = self._by_request[stream][frame.request_id]
            found.remove(index)
            if not found:
                del self._by_request[stream][frame.request_id]

    def load(self, stream: str, index: int) -> Frame | None:
        return self._entries[stream].get(index)

    def load_tags(self, stream: str, index: int) -> Tags:
        frame = self._entries[stream].get(index)
        return {} if frame is None else frame.tags

    def recall(self, stream: str, key: str) -> Keyed | None:
        return self._keys[stream].get(key)

    def find(self, stream: str, request_id: str, start: int, most: int) -> list[int]:
        found = self._by_request[stream].get(request_id, [])
        at = bisect_left(found, start)
        return found[at : at + most]
