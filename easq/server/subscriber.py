"""The session of a consumer that watches a stream: leases, auto-commits, heartbeats."""

from __future__ import annotations

from collections.abc import Sequence

from easq.model import Consumer, Frame
from easq.protocol import operations as op
from easq.server.queue import Queue


class Subscriber:
    """Gets the frames for one connection. The number of uncommitted frames never exceeds the window."""

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
        """Wait for frames and return them; return an empty list when another session has replaced this one.

        Raises StreamEnded when the stream has ended and the group has no items left.
        """
        leases = await self._queue.storage.lease(
            self._queue.stream, self._session, index_only=self._watch.index_only
        )
        return [lease.frame for lease in leases]

    async def still_has(self, frame: Frame) -> bool:
        """Return whether the frame may still be sent: its lease may have passed to another consumer."""
        return await self._queue.storage.still_leased(self._queue.stream, self._session, frame.index)

    async def sent(self, frames: Sequence[Frame]) -> None:
        """Record that the frames were written to the connection. A watch with auto-commit commits them."""
        if self._watch.auto_commit and frames:
            await self._queue.commit(self._consumer, [frame.index for frame in frames])

    async def heartbeat(self) -> None:
        """Record a heartbeat."""
        await self._queue.heartbeat(self._session)

    async def close(self, *, lost: bool) -> None:
        """End the session: its connection is `lost`, or was closed in order."""
        await self._queue.detach(self._session, lost=lost)
