"""Scans examine the entries of a stream slice by slice; a limit ends them before the last entry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf

from easq.errors import Unavailable


@dataclass(frozen=True, slots=True)
class ScanLimit:
    """The conditions that end a scan early: its caller is gone, or a time of the event loop is reached."""

    is_gone: Callable[[], bool] = lambda: False
    until: float = inf

    def has_time(self) -> bool:
        """Return whether there is time left. Raises Unavailable when the caller is gone."""
        if self.is_gone():
            raise Unavailable("the caller has disconnected, or the service stops")
        return self.until == inf or asyncio.get_running_loop().time() < self.until


NO_SCAN_LIMIT = ScanLimit()


class ScanGate:
    """Lets at most `at_once` slices of scans run, in the order of arrival."""

    def __init__(self, at_once: int) -> None:
        self._slots = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def slot(self, limit: ScanLimit = NO_SCAN_LIMIT) -> AsyncIterator[bool]:
        """Wait for a slot, and yield whether the scan may go on: False once its time is over. Raises Unavailable when
        the caller is gone.
        """
        has_slot = False
        try:
            async with asyncio.timeout_at(None if limit.until == inf else limit.until):
                has_slot = await self._slots.acquire()
        except TimeoutError:
            pass
        try:
            yield limit.has_time() and has_slot
        finally:
            if has_slot:
                self._slots.release()
