"""A deadline that a process which stood still (stopped, suspended, a paused machine) has not missed."""

from __future__ import annotations

import asyncio
from types import TracebackType

#: the time is counted in so many parts, of so many seconds at most; a standstill, however long, takes one of them
_PARTS, _PART_S = 4, 1.0


class Deadline:
    """As `asyncio.timeout`, but for the time in which the event loop ran: raises TimeoutError after `seconds` of it.

    What waits in the sockets when the process goes on is read before the deadline is looked at again.
    """

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds
        self._most_s = min(seconds / _PARTS, _PART_S)
        self._part_s = 0.0

    async def __aenter__(self) -> Deadline:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        await self._limit.__aenter__()
        self._count()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def extend(self, seconds: float) -> None:
        """Put the deadline off."""
        self._left_s += seconds

    def _count(self) -> None:
        self._part_s = max(0.0, min(self._left_s, self._most_s))
        self._handle = self._loop.call_later(self._part_s, self._passed)

    def _passed(self) -> None:
        self._left_s -= self._part_s
        if self._left_s > 0:
            self._count()
        else:
            # not at once: the task that waits may have been woken in this very turn of the loop
            self._limit.reschedule(self._loop.time())
