"""A time limit that counts only the time in which the process ran.

A limit in wall time would end all connections of a process that was stopped, or whose machine was suspended, as soon as
the process runs again.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

#: the limit is divided into at least four parts of at most 1 s. A suspension of any length counts as one part
_PARTS, _PART_S = 4, 1.0


class Deadline:
    """A context manager like `asyncio.timeout`: raises TimeoutError once the event loop has run for `seconds`.

    After a suspension, the event loop reads data that waits in the sockets before the limit is checked again.
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
        """Extend the time limit by `seconds`."""
        self._left_s += seconds

    def _count(self) -> None:
        self._part_s = max(0.0, min(self._left_s, self._most_s))
        self._handle = self._loop.call_later(self._part_s, self._passed)

    def _passed(self) -> None:
        self._left_s -= self._part_s
        if self._left_s > 0:
            self._count()
        else:
            # takes effect in the next iteration of the loop: the task may have been woken in this one
            self._limit.reschedule(self._loop.time())
