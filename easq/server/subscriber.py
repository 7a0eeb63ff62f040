"""The session of a consumer that watches a stream: leases, auto-commits, heartbeats."""

from __future__ import annotations

from collections.abc import Sequence

from easq.model import Consumer, Frame
from easq.protocol import operations as op
from easq.server.queue import Queue


class Subscriber:
    """Gets the frames for one connection, never more of them uncommitted than the window."""

    def __init__(self, queue: Queue, consumer: Consumer, watch: op.Watch, session: int) -> None:
        self._queue = queue
        self._consumer = consumer
        self._watch = watch
        self._session = session

    @classmethod
    async def open(cls, queue: Queue, consumer: Consumer, watch: op.Watch) -> Subscriber:
        """Begin a session. Raises AnotherWatcher and StreamEnded."""
        return cls(queue, consumer, watch, await queue.attach(consumer, watch))

    async def next(self) -> list[Frame]:
        """Wait for frames and return them; none when another session has taken the name over.

        Raises StreamEnded once nothing is left for the group.
        """
        leases = await self._queue.storage.lease(
            self._queue.stream, self._session, index_only=self._watch.index_only
        )
        return [lease.frame for lease in leases]

    async def still_has(self, frame: Frame) -> bool:
        """Return whether the frame may still be sent: another consumer may have got it meanwhile."""
        return await self._queue.storage.still_leased(self._queue.stream, self._session, frame.index)

    async def sent(self, frames: Sequence[Frame]) -> None:
        """Commit the frames with auto-commit, once they were written to the connection."""
        if self._watch.auto_commit and frames:
            await self._queue.commit(self._consumer, [frame.index for frame in frames])

    async def heartbeat(self) -> None:
        """Record a heartbeat."""
        await self._queue.heartbeat(self._session)

    async def close(self, *, lost: bool) -> None:
        """End the session: its connection is `lost`, or was closed in order."""
        await self._queue.detach(self._session, lost=lost)
