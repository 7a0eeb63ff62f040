"""All queues of a service by name, each an input and a sink."""

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

    async def open(self) -> None:
        """Create both unless they exist. The sink is first, since it gets answers to the input's dead letters."""
        await self.sink.open()
        await self.input.open()


class Queues:
    """All queues of one service. The first one is also reached at the root."""

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
        pairs: dict[str, Pair] = {}
        for name in map(check_name, names):
            sink = Queue(storage, name, is_sink=True, policy=sink_policy, clock=clock)
            pairs[name] = Pair(
                Queue(storage, name, is_sink=False, policy=policy, clock=clock, answers=sink), sink
            )
        self.pairs: Mapping[str, Pair] = pairs
        self.first = pairs[names[0]]

    async def open(self) -> None:
        """Create the queues unless they exist, and log a warning for stored queues that are not served."""
        await asyncio.gather(*(pair.open() for pair in self.pairs.values()))
        stored = {stream.removesuffix(REAR_SUFFIX).split("/")[0] for stream in await self.storage.streams()}
        left = sorted(stored - set(self.pairs))
        if left:
            log.warning("kept but not served: %s (name them with --queue)", ", ".join(left))
