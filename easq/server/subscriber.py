"""One consumer's connection over one stream: lease, deliver, auto-commit, leave."""

from __future__ import annotations

from collections.abc import Sequence

from easq.model import Consumer, Frame
from easq.protocol import operations as op
from easq.server.queue import Queue


class Subscriber:
    """Frames for one connection, never more of them uncommitted than the window."""

    def __init__(self, queue: Queue, consumer: Consumer, watch: op.Watch, session: int) -> None:
        self._queue = queue
        self._consumer = consumer
        self._watch = watch
        self._session = session

    @classmethod
    async def open(cls, queue: Queue, consumer: Consumer, watch: op.Watch) -> Subscriber:
        """The consumer is connected. Raises AnotherWatcher, StreamEnded."""
        return cls(queue, consumer, watch, await queue.attach(consumer, watch))

    async def next(self) -> list[Frame]:
        """Waits for the next frames; none when another connection has taken the name."""
        leases = await self._queue.storage.lease(
            self._queue.stream, self._session, index_only=self._watch.index_only
        )
        return [lease.frame for lease in leases]

    async def still_has(self, frame: Frame) -> bool:
        """Whether the frame may still be sent: nobody else may have got it meanwhile."""
        return await self._queue.storage.still_leased(self._queue.stream, self._session, frame.index)

    async def sent(self, frames: Sequence[Frame]) -> None:
        """The frames were written to the connection: with auto-commit they are committed, at most once."""
        if self._watch.auto_commit and frames:
            await self._queue.commit(self._consumer, [frame.index for frame in frames])

    async def heard(self) -> None:
        """The connection showed life."""
        await self._queue.heard(self._session)

    async def close(self, *, lost: bool) -> None:
        """The connection is gone: `lost`, or closed by its own word."""
        await self._queue.detach(self._session, lost=lost)
