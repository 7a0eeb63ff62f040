"""Names to queues and their sinks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from easq.server.queue import REAR_SUFFIX, Clock, Queue, QueuePolicy, check_name
from easq.storage.base import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """An input and its sink."""

    input: Queue
    sink: Queue


async def _open(pair: Pair) -> None:
    await pair.sink.open()
    await pair.input.open()


def _pair(storage: Storage, name: str, policy: QueuePolicy, sink_policy: QueuePolicy, clock: Clock) -> Pair:
    sink = Queue(storage, name, is_sink=True, policy=sink_policy, clock=clock)
    return Pair(Queue(storage, name, is_sink=False, policy=policy, clock=clock, answers=sink), sink)


class Queues:
    """All queues of one service; the first one is also reached at the root."""

    def __init__(
        self,
        storage: Storage,
        names: Sequence[str],
        *,
        policy: QueuePolicy,
        sink_policy: QueuePolicy,
        clock: Clock,
    ) -> None:
        self.storage = storage
        self.pairs: Mapping[str, Pair] = {
            check_name(name): _pair(storage, name, policy, sink_policy, clock) for name in names
        }
        self.first = self.pairs[names[0]]

    async def open(self) -> None:
        """Every queue exists, with what it held before. Stored queues that are not named are kept, and named in a
        warning.
        """
        await asyncio.gather(*map(_open, self.pairs.values()))
        stored = {stream.removesuffix(REAR_SUFFIX).split("/")[0] for stream in await self.storage.streams()}
        left = sorted(stored - set(self.pairs))
        if left:
            log.warning("kept but not served: %s (name them with --queue)", ", ".join(left))
