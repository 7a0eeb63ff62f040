"""Readers that wait for an item: long polls, each until what it wants may have come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from easq.model import Frame, Tags


@dataclass(slots=True, eq=False)
class _Reader:
    """One that waits."""

    start: int
    tags: Tags
    taking: bool
    future: asyncio.Future[None]

    def wants(self, frame: Frame) -> bool:
        return frame.index >= self.start and carries(frame.tags, self.tags)

    def wake(self) -> bool:
        """It looks again; whether it had not been woken before."""
        if self.future.done():
            return False
        self.future.set_result(None)
        return True


def carries(tags: Tags, wanted: Tags) -> bool:
    """Whether `wanted` are among `tags`."""
    return all(tags.get(key) == value for key, value in wanted.items())


class Waiting:
    """The readers of one engine that wait, by stream, first come first."""

    def __init__(self) -> None:
        self._readers: dict[str, list[_Reader]] = {}  # only of streams where somebody waits

    def __contains__(self, stream: str) -> bool:
        return stream in self._readers

    async def wait(self, stream: str, *, start: int, tags: Tags, taking: bool, timeout_s: float) -> None:
        """Returns when an item from index `start` on with all of `tags` may have come, or the time is over."""
        reader = _Reader(start, tags, taking, asyncio.get_running_loop().create_future())
        readers = self._readers.setdefault(stream, [])
        readers.append(reader)
        try:
            await asyncio.wait_for(reader.future, timeout_s)
        except TimeoutError:
            pass
        finally:
            readers.remove(reader)
            if not readers:
                del self._readers[stream]

    def came(self, stream: str, frame: Frame) -> None:
        """An item may be read: those that want it look, up to the first that takes it away."""
        for reader in self._readers.get(stream, ()):
            if reader.wants(frame) and reader.wake() and reader.taking:
                return

    def wake(self, stream: str) -> None:
        """Every reader of the stream looks."""
        for reader in self._readers.get(stream, ()):
            reader.wake()
